"""Configurations of a relative: against distances, and against names of defects."""

from __future__ import annotations

import numpy as np
import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Host, Supercell
from screening.learning.dataset import LabelledRows
from screening.learning.references import output_labels, outputs_of
from screening.learning.relatives import correspond, rows_of_relatives
from screening.learning.teaching import draw_rows, label_drawn
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
    codes = {code for c in rows.configurations for code in c.defect_types}
    outputs = outputs_of(rows.properties)
    found = rows_of_relatives(both, supercell, codes=codes, outputs=outputs)
    learnt = np.flatnonzero(~rows.is_validation)
    assert [names(c) for c in found.configurations] == [names(rows.configurations[row]) for row in learnt]
    np.testing.assert_allclose(found.labels, output_labels(both, outputs)[40 + learnt])
    vacancies = {code for code in codes if code % 128 == 0}
    fewer = rows_of_relatives(both, supercell, codes=vacancies, outputs=outputs)
    assert 0 < len(fewer.configurations) < len(found.configurations)
    assert all(name.startswith("v_") for c in fewer.configurations for name in names(c))
    assert rows_of_relatives(rows, supercell, codes=codes, outputs=outputs).configurations == ()


def test_a_property_that_a_relative_does_not_know_is_no_obstacle() -> None:
    rows = labelled_rows(40)
    (supercell,) = rows.supercells
    relative = Supercell.parse(catalogue_host("WSe2"), "4x4")
    back = correspond(relative, supercell)
    assert back is not None
    unknown = rows.labels.copy()
    unknown[:, 2] = np.nan
    both = LabelledRows(
        supercells=(supercell, relative),
        supercell_of_row=np.repeat([0, 1], 40),
        configurations=rows.configurations + tuple(back.translate(c) for c in rows.configurations),
        properties=rows.properties,
        labels=np.concatenate([rows.labels, unknown]),
        is_validation=np.zeros(80, np.bool_),
        group_of_row=np.repeat([0, 1], 40),
    )
    drawn = draw_rows(rows, n_drawn=60, seed=1)
    labels, _ = label_drawn(rows, outputs_of(rows.properties), drawn, n_members=3, others=both, seed=1)
    assert np.isfinite(labels[0]).all()


def host_with(host: Host, *, height: float = 1.0, swapped: bool = False) -> Host:
    """The host with another vacuum, or with its two atoms at each other's places."""
    lattice, positions = host.lattice.copy(), host.positions.copy()
    lattice[2] *= height
    positions[:, 2] /= height
    species = host.species[::-1] if swapped else host.species
    return Host(f"{host.name} again", lattice, species, positions, host.is_layer, host.source)


def test_the_vacuum_does_not_matter() -> None:
    here = Supercell.parse(catalogue_host("MoS2"), "4x4")
    there = Supercell.parse(host_with(catalogue_host("WSe2"), height=1.7), "4x4")
    assert correspond(here, there) is not None


def test_in_a_flat_layer_elements_tell_which_sites_correspond() -> None:
    here = Supercell.parse(catalogue_host("h-BN"), "4x4")
    there = Supercell.parse(host_with(catalogue_host("h-BN"), swapped=True), "4x4")
    correspondence = correspond(here, there)
    assert correspondence is not None
    assert {site: here.species[s] for site, s in enumerate(correspondence.sites)} == dict(enumerate(there.species))
    assert all(a == b for a, b in correspondence.elements.items())
