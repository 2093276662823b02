"""Configurations drawn like given ones, and their labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration
from screening.defects.host import Host, Supercell
from screening.learning.environment_kernel import MOST_ROWS
from screening.learning.references import outputs_of
from screening.learning.teaching import _balanced, draw_alike, draw_rows, label_drawn, lattices_of, shares_of_teacher
from tests.learning.synthetic import energy_of, labelled_rows

V_S, SE_S, V_MO = 16 * 128, 16 * 128 + 34, 42 * 128


def test_drawn_configurations_are_valid_and_have_the_sizes_and_types_of_the_given_ones() -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), "4x4")
    given = [Configuration((2, 17, 25), (V_MO, V_S, SE_S)), Configuration((16,), (V_S,))]
    drawn = draw_alike(supercell, given, 500, np.random.default_rng(0))
    assert len(drawn) == 500
    sizes = Counter(configuration.n_defects for configuration in drawn)
    assert set(sizes) == {1, 3}
    assert 200 < sizes[1] < 300
    assert {code for configuration in drawn for code in configuration.defect_types} == {V_S, SE_S, V_MO}
    for configuration in drawn:
        assert list(configuration.sites) == sorted(set(configuration.sites))
        for site, code in zip(configuration.sites, configuration.defect_types, strict=True):
            assert {"S": 16, "Mo": 42}[supercell.species[site]] == code // 128
    assert len({configuration.sites for configuration in drawn}) > 200


def test_compositions_that_find_no_sites_are_drawn_again() -> None:
    """Types of two configurations mixed may need more metal sites than a small supercell has."""
    supercell = Supercell.parse(catalogue_host("MoS2"), "1x1")
    given = [Configuration((0, 1), (V_MO, V_S)), Configuration((1, 2), (V_S, SE_S))]
    drawn = draw_alike(supercell, given, 50, np.random.default_rng(0))
    assert all(sum(code == V_MO for code in configuration.defect_types) <= 1 for configuration in drawn)


def test_cells_of_one_host_with_other_heights_are_one_lattice_and_other_supercells_are_not() -> None:
    host = catalogue_host("MoS2")
    lattice, positions = host.lattice.copy(), host.positions.copy()
    lattice[2] *= 1.4
    positions[:, 2] /= 1.4
    taller = Host(host.name, lattice, host.species, positions, host.is_layer, host.source)
    cells = [Supercell.parse(host, "4x4"), Supercell.parse(host, "3x3"), Supercell.parse(taller, "4x4")]
    groups = lattices_of(cells)
    assert [sorted(group) for group in groups] == [[0, 2], [1]]


def test_drawn_rows_are_alike_each_group_and_labels_follow_the_rows() -> None:
    rows = labelled_rows(150)
    rows = replace(rows, group_of_row=np.array([c.n_defects > 2 for c in rows.configurations], np.int64))
    energies = rows.labels[:, 1]
    drawn = draw_rows(rows, n_drawn=300, seed=3)
    assert [part.group for part in drawn] == [0, 1]
    assert all(c.n_defects <= 2 for c in drawn[0].configurations)
    assert all(c.n_defects == 3 for c in drawn[1].configurations)
    labels, left_out = label_drawn(rows, outputs_of(rows.properties)[:2], drawn, n_members=3, others=rows, seed=3)
    assert [found.shape for found in labels] == [(3, 150, 2), (3, 150, 2)]
    for part, found in zip(drawn, labels, strict=True):
        expected = [energy_of(c, rows.supercells[0]) / c.n_defects for c in part.configurations]
        assert np.abs(found[:, :, 0] - expected).mean() < 0.1 * np.std(energies)
    assert np.isnan(left_out[rows.is_validation]).all()
    of_training = np.abs(left_out[:, 0] - energies)[~rows.is_validation]
    assert 1e-4 < of_training.mean() < 0.1 * np.std(energies)


def test_too_few_results_teach_nothing() -> None:
    rows = labelled_rows(9)
    assert draw_rows(rows, n_drawn=300, seed=3) == []


def test_a_mixture_errs_least_and_never_leaves_its_two_parts() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(4000, 4))
    network = truth + 0.3 * rng.normal(size=truth.shape)
    teacher = truth + np.array([0.3, 0.1, 0.9, 0.3]) * rng.normal(size=truth.shape)
    teacher[:, 3] = np.nan
    shares = shares_of_teacher(truth, network, teacher)
    np.testing.assert_allclose(shares, [0.5, 0.9, 0.1, 0.0], atol=0.03)
    worse = truth + 2.0 * (network - truth)
    assert shares_of_teacher(truth, network, worse).tolist() == [0.0] * 4


def test_at_most_so_many_rows_are_learnt_and_small_groups_keep_all_of_theirs() -> None:
    groups = np.repeat([0, 1, 2], [5000, 300, 900])
    chosen = _balanced(groups, np.random.default_rng(0))
    assert len(chosen) == MOST_ROWS == len(set(chosen.tolist()))
    sizes = Counter(groups[chosen].tolist())
    assert sizes[1] == 300
    assert sizes[0] == sizes[2] == (MOST_ROWS - 300) / 2
