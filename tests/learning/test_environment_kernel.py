"""The kernel regression: against sums written out, and against what is known of regressions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.defects.symmetry import find_symmetry
from screening.learning import environment_kernel
from screening.learning.environment_kernel import Lesson, fit_environment_kernels, predict_all
from screening.learning.environments import describe, likeness, self_likeness
from screening.learning.graph import pair_table
from screening.learning.pair_columns import PairColumns, pair_columns
from tests.learning.synthetic import labelled_rows

Place = tuple[int, int]  # defect type and class of pair
V_S, SE_S, V_MO = 16 * 128, 16 * 128 + 34, 42 * 128


@pytest.fixture(scope="module")
def columns() -> PairColumns:
    return pair_columns(Supercell.parse(catalogue_host("MoS2"), "4x4"), [V_S, SE_S, V_MO])


def lesson(
    configurations: Sequence[Configuration], labels: NDArray[np.float64], folds: NDArray[np.int64], n_foreign: int = 0
) -> Lesson:
    return Lesson(configurations, labels, folds, np.ones(len(labels), np.bool_), n_foreign)


def environment(
    columns: PairColumns, configuration: Configuration, i: int, reach: float
) -> dict[tuple[int, int], float]:
    """What is around defect i: by type and class of pair, each defect by how near it is."""
    table = pair_table(columns.supercell)
    found: dict[Place, float] = {}
    for j, (site, code) in enumerate(zip(configuration.sites, configuration.defect_types, strict=True)):
        distance = columns.supercell.pair_distances[configuration.sites[i], site]
        if j != i and distance < 9.0:
            place = (code, int(table.number[configuration.sites[i], site]))
            found[place] = found.get(place, 0.0) + float(np.exp(-distance / reach))
    return found


def test_likeness_is_the_mean_over_pairs_of_environments_of_one_type(columns: PairColumns) -> None:
    first = Configuration((2, 17, 25, 40), (V_MO, V_S, SE_S, V_S))
    second = Configuration((3, 18, 33), (V_MO, V_S, V_S))
    reach, length = 3.0, 0.4
    expected = 0.0
    for i, a in enumerate(first.defect_types):
        for j, b in enumerate(second.defect_types):
            if a == b:
                x, y = environment(columns, first, i, reach), environment(columns, second, j, reach)
                square = sum((x.get(place, 0.0) - y.get(place, 0.0)) ** 2 for place in {*x, *y})
                expected += np.exp(-0.5 * square / length**2) / (4 * 3)
    one, other = describe(columns, [first]), describe(columns, [second])
    assert float(likeness(one, other, (reach, length))) == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(self_likeness(one, (reach, length)), likeness(one, one, (reach, length)).diagonal())


def test_a_smooth_answer_is_learnt_and_left_out_rows_are_not_known() -> None:
    rows = labelled_rows(240)
    energies = rows.labels[:, 1]
    columns = pair_columns(rows.supercells[0], sorted({c for x in rows.configurations for c in x.defect_types}))
    folds = np.arange(200) % 3
    labels = np.stack([energies[:200], rows.labels[:200, 2], np.where(folds == 0, np.nan, energies[:200])], axis=1)
    fitted = fit_environment_kernels(columns, lesson(rows.configurations[:200], labels, folds), n_members=3)
    predicted = predict_all(columns, fitted, rows.configurations)  # (3, 240, 3)
    assert np.isfinite(predicted).all()
    incomplete, predicted = predicted[1:, :, 2], predicted[:, :, 0]
    new = np.abs(predicted[:, 200:].mean(axis=0) - energies[200:]).mean()
    assert new < 0.03 * energies.std()
    left_out = np.abs(predicted[folds, np.arange(200)] - energies[:200]).mean()
    known = np.abs(predicted[(folds + 1) % 3, np.arange(200)] - energies[:200]).mean()
    assert left_out > 2 * known
    assert fitted[0] is not None
    for member in range(3):
        assert (fitted[0].weights[folds == member, member] == 0).all()
    assert np.abs(incomplete.mean(axis=0) - energies)[200:].mean() < 0.06 * energies.std()


def test_equivalent_configurations_have_one_energy() -> None:
    rows = labelled_rows(120)
    columns = pair_columns(rows.supercells[0], sorted({c for x in rows.configurations for c in x.defect_types}))
    labels = rows.labels[:, 1:2]
    folds = np.zeros(120, np.int64)
    fitted = fit_environment_kernels(columns, lesson(rows.configurations, labels, folds), n_members=2)
    sites, codes = (2, 17, 25, 40), (V_MO, V_S, SE_S, V_S)
    images = []
    for permutation in find_symmetry(rows.supercells[0]).permutations[::7]:
        image = sorted((int(permutation[s]), c) for s, c in zip(sites, codes, strict=True))
        images.append(Configuration(tuple(s for s, _ in image), tuple(c for _, c in image)))
    of_none, of_all = predict_all(columns, fitted, images)[:, :, 0]
    assert np.ptp(of_all) < 1e-5
    assert np.allclose(of_none, labels.mean())  # a member that has no row left knows the mean


def test_rows_that_are_equal_do_not_break_the_fit() -> None:
    rows = labelled_rows(60)
    columns = pair_columns(rows.supercells[0], sorted({c for x in rows.configurations for c in x.defect_types}))
    twice = rows.configurations + rows.configurations
    labels = np.concatenate([rows.labels[:, 1:2], rows.labels[:, 1:2]])
    fitted = fit_environment_kernels(columns, lesson(twice, labels, np.arange(120) % 4), n_members=4)
    assert np.isfinite(predict_all(columns, fitted, rows.configurations)).all()


def test_what_never_varies_or_is_hardly_known_is_not_learnt() -> None:
    rows = labelled_rows(60)
    columns = pair_columns(rows.supercells[0], sorted({c for x in rows.configurations for c in x.defect_types}))
    labels = np.full((60, 2), 1.25)
    labels[:, 1] = np.where(np.arange(60) < 8, np.arange(60), np.nan)
    fitted = fit_environment_kernels(columns, lesson(rows.configurations, labels, np.arange(60) % 3), n_members=3)
    assert fitted == [None, None]


def test_a_relative_teaches_what_few_results_cannot() -> None:
    """Results of the same interactions in other units help; results of pure noise do no harm."""
    rows = labelled_rows(400)
    columns = pair_columns(rows.supercells[0], sorted({c for x in rows.configurations for c in x.defect_types}))
    energies = rows.labels[:, 1:2]
    noise = np.random.default_rng(0).normal(size=energies.shape)
    n_own, folds = 25, np.append(np.full(25, 1), np.zeros(175, np.int64))  # of a member that leaves nothing out
    errors = []
    for labels, n_rows in ((energies, n_own), (energies, 200), (noise, 200)):
        given = np.concatenate([energies[:n_own], 3.0 * labels[n_own:n_rows] + 40.0])
        taught = lesson(rows.configurations[:n_rows], given, folds[:n_rows], n_rows - n_own)
        (kernel,) = fit_environment_kernels(columns, taught, n_members=1)
        errors.append(np.abs(predict_all(columns, [kernel], rows.configurations[200:])[0] - energies[200:]).mean())
    alone, with_relative, with_noise = errors
    assert with_relative < 0.5 * alone
    assert with_noise < 1.3 * alone


def test_rows_that_others_contradict_teach_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tenth label is wrong by three standard deviations; noise without heavy tails believes it."""
    rows = labelled_rows(300)
    columns = pair_columns(rows.supercells[0], sorted({c for x in rows.configurations for c in x.defect_types}))
    energies = rows.labels[:, 1:2]
    wrong = energies[:200].copy()
    wrong[::10] += 3.0 * energies.std() * np.random.default_rng(1).choice([-1.0, 1.0], size=(20, 1))
    errors = []
    for freedom in (2.0, 1e9):
        monkeypatch.setattr(environment_kernel, "_FREEDOM", freedom)
        taught = lesson(rows.configurations[:200], wrong, np.ones(200, np.int64))
        (kernel,) = fit_environment_kernels(columns, taught, n_members=1)
        errors.append(np.abs(predict_all(columns, [kernel], rows.configurations[200:])[0] - energies[200:]).mean())
    assert errors[0] < 0.7 * errors[1]
