"""Configurations of a relative: against distances, and against names of defects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Supercell
from screening.learning.dataset import LabelledRows
from screening.learning.relatives import correspond, rows_of_relatives
from tests.learning.synthetic import labelled_rows


def names(configuration: Configuration) -> list[str]:
    return sorted(DefectType.from_code(code).name for code in configuration.defect_types)


@pytest.mark.parametrize(
    ("host", "other", "given", "expected"),
    [
        ("MoS2", "WSe2", ("v_W", "Mo_W", "v_Se", "S_Se"), ["Se_S", "W_Mo", "v_Mo", "v_S"]),
        ("GaSe", "InSe", ("v_In", "Ga_In", "v_Se", "S_Se"), ["In_Ga", "S_Se", "v_Ga", "v_Se"]),
    ],
)
def test_defects_of_a_relative_have_counterparts_at_the_same_places(
    host: str, other: str, given: tuple[str, ...], expected: list[str]
) -> None:
    here, there = Supercell.parse(catalogue_host(host), "4x4"), Supercell.parse(catalogue_host(other), "4x4")
    correspondence = correspond(here, there)
    assert correspondence is not None
    rng, scale = np.random.default_rng(0), here.lattice[0, 0] / there.lattice[0, 0]
    for _ in range(20):
        sites: list[int] = []
        for name in given:
            free = [s for s, symbol in enumerate(there.species) if symbol == name.split("_")[1] and s not in sites]
            sites.append(int(rng.choice(free)))
        order = np.argsort(sites)
        codes = [DefectType.parse(name).code for name in given]
        configuration = Configuration(tuple(sites[i] for i in order), tuple(codes[i] for i in order))
        translated = correspondence.translate(configuration)
        assert names(translated) == expected
        assert list(translated.sites) == sorted(translated.sites)
        distances = [
            np.sort(cell.pair_distances[np.ix_(c.sites, c.sites)], axis=None)
            for cell, c in ((here, translated), (there, configuration))
        ]
        assert np.abs(distances[0] - scale * distances[1]).max() < 0.4


@pytest.mark.parametrize("other", ["h-BN", "GaSe", "BP"])
def test_other_lattices_are_no_relatives(other: str) -> None:
    here, there = Supercell.parse(catalogue_host("MoS2"), "4x4"), Supercell.parse(catalogue_host(other), "4x4")
    assert correspond(here, there) is None
    assert correspond(here, Supercell.parse(catalogue_host("WSe2"), "3x3")) is None


def test_rows_come_from_relatives_with_the_same_defects_and_not_from_validation() -> None:
    rows = labelled_rows(40)
    (supercell,) = rows.supercells
    relative = Supercell.parse(catalogue_host("WSe2"), "4x4")
    back = correspond(relative, supercell)
    assert back is not None
    both = LabelledRows(
        supercells=(supercell, relative),
        supercell_of_row=np.repeat([0, 1], 40),
        configurations=rows.configurations + tuple(back.translate(c) for c in rows.configurations),
        properties=rows.properties,
        labels=np.concatenate([rows.labels, rows.labels + 1.0]),
        is_validation=np.concatenate([rows.is_validation, rows.is_validation]),
        group_of_row=np.repeat([0, 1], 40),
    )
    found = rows_of_relatives(both, supercell)
    assert found is not None
    learnt = np.flatnonzero(~rows.is_validation)
    assert [names(c) for c in found.configurations] == [names(rows.configurations[row]) for row in learnt]
    np.testing.assert_allclose(found.labels, rows.labels[learnt] + 1.0)
    only_vacancies = np.array([all(code % 128 == 0 for code in c.defect_types) for c in rows.configurations])
    few = replace(both, is_validation=np.concatenate([~only_vacancies, rows.is_validation]))
    fewer = rows_of_relatives(few, supercell)
    assert fewer is not None
    assert all(name.startswith("v_") for c in fewer.configurations for name in names(c))
    assert rows_of_relatives(rows, supercell) is None
