"""The pair expansion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.errors import FileFormatError, InputError, StructureError
from screening.learning import pair_expansion
from screening.learning.artifacts import pack
from screening.learning.dataset import LabelledRows
from screening.learning.pair_expansion import (
    PairExpansion,
    expansion_from_bytes,
    expansion_to_bytes,
    fit_pair_expansion,
    fit_ridge,
)
from tests.learning.synthetic import energy_of, labelled_rows

V_S, SE_S, V_MO, W_MO = 16 * 128, 16 * 128 + 34, 42 * 128, 42 * 128 + 74


@pytest.fixture(scope="module")
def expansion(rows: LabelledRows) -> PairExpansion:
    return fit_pair_expansion(rows)


def first_rows(rows: LabelledRows, n_training: int, n_validation: int) -> LabelledRows:
    """The first training rows and the first validation rows."""
    chosen = np.concatenate(
        [np.flatnonzero(~rows.is_validation)[:n_training], np.flatnonzero(rows.is_validation)[:n_validation]]
    )
    return rows.chosen(chosen)


def errors_on(rows: LabelledRows, expansion: PairExpansion) -> tuple[np.ndarray, np.ndarray]:
    """Errors and standard deviations of the validation rows (n, n_properties)."""
    chosen = np.flatnonzero(rows.is_validation)
    configurations = [rows.configurations[row] for row in chosen]
    mean, std = expansion.predict_configurations(rows.supercells[0], configurations)
    return mean - rows.labels[chosen], std


def test_energies_that_are_sums_of_pairs_are_learnt(rows: LabelledRows, expansion: PairExpansion) -> None:
    errors, _ = errors_on(rows, expansion)
    spread = rows.labels[rows.is_validation].std(axis=0)
    assert np.abs(errors[:, 1]).mean() < 0.01 * spread[1]


def test_more_defects_than_were_ever_seen_have_the_sum_of_their_pairs() -> None:
    expansion = fit_pair_expansion(labelled_rows(2000))
    supercell = expansion.columns.supercell
    sulphur = np.flatnonzero(np.array(supercell.species) == "S")[[0, 3, 5, 9, 12, 22]]
    configuration = Configuration(tuple(sulphur.tolist()), (V_S, SE_S) * 3)
    mean, std = expansion.predict_configurations(supercell, [configuration])
    assert mean[0, 0] == pytest.approx(energy_of(configuration, supercell), rel=0.01)
    assert std[0, 1] == pytest.approx(expansion.sigma[:, 0].max())


def test_left_out_residuals_are_those_of_fits_without_the_row() -> None:
    rng = np.random.default_rng(0)
    for n_rows, n_columns in ((30, 8), (9, 20)):
        x, y = rng.normal(size=(n_rows, n_columns)), rng.normal(size=(n_rows, 2))
        error, weights, residuals = fit_ridge(x, y, np.array([0.7]))
        for row in range(n_rows):
            others = np.delete(np.arange(n_rows), row)
            w, intercept = plain_ridge(x[others], y[others], 0.7)
            np.testing.assert_allclose(residuals[row], y[row] - intercept - x[row] @ w, atol=1e-9)
        np.testing.assert_allclose(weights, plain_ridge(x, y, 0.7)[0], atol=1e-9)
        np.testing.assert_allclose(error, (residuals**2).mean(axis=0))


def plain_ridge(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercept from the normal equations with a column of ones that costs nothing."""
    ones = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    penalty = strength * np.eye(ones.shape[1])
    penalty[-1, -1] = 0.0
    solution = np.linalg.solve(ones.T @ ones + penalty, ones.T @ y)
    return solution[:-1], solution[-1]


def test_the_strength_with_the_smallest_left_out_error_is_taken() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(12, 20)), rng.normal(size=(12, 1))
    each = [float(fit_ridge(x, y, np.array([s]))[0][0]) for s in (1e-3, 1.0, 1e3)]
    assert float(fit_ridge(x, y, np.array([1e-3, 1.0, 1e3]))[0][0]) == pytest.approx(min(each))


def test_standard_deviations_of_an_interpolating_fit_are_not_those_of_its_own_rows(rows: LabelledRows) -> None:
    few = first_rows(rows, 80, 1)
    fitted = fit_pair_expansion(few)
    new = labelled_rows(600, seed=9)
    own_errors = fitted.predict_configurations(rows.supercells[0], few.configurations)[0] - few.labels
    new_errors = fitted.predict_configurations(rows.supercells[0], new.configurations)[0] - new.labels
    own, ahead = (float(np.sqrt((e[:, 1] ** 2).mean())) for e in (own_errors[:80], new_errors[new.n_defects == 3]))
    assert own < 0.1 * ahead
    assert 0.5 * ahead < fitted.sigma[-1, 0] < 2.0 * ahead


def test_products_of_shares_enter_where_energies_depend_on_them_and_only_there(rows: LabelledRows) -> None:
    n_types, n_products = 3, 6
    products = slice(n_types, n_types + n_products)
    shares = np.array([[c.defect_types.count(code) for code in (V_S, SE_S)] for c in rows.configurations])
    shares = shares / rows.n_defects[:, None]
    bent = rows.labels.copy()
    bent[:, 1] += 4.0 * shares[:, 0] * shares[:, 1]
    bent[:, 0] = bent[:, 1] * rows.n_defects
    assert not fit_pair_expansion(rows).weights[products, 0].any()
    fitted = fit_pair_expansion(replace(rows, labels=bent))
    assert fitted.weights[products, 0].any()


def test_a_penalty_that_grows_with_distance_lowers_the_error_where_interactions_decay(
    rows: LabelledRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = first_rows(rows, 60, 1)
    new = labelled_rows(600, seed=9)

    def error() -> float:
        mean, _ = fit_pair_expansion(few).predict_configurations(rows.supercells[0], new.configurations)
        return float(np.abs(mean - new.labels)[:, 1].mean())

    growing = error()
    monkeypatch.setattr(pair_expansion, "_GROWTHS", (0.0,))
    assert growing < 0.97 * error()


def test_validation_rows_do_not_move_the_weights(rows: LabelledRows, expansion: PairExpansion) -> None:
    labels = rows.labels.copy()
    labels[rows.is_validation] += 100.0
    moved = fit_pair_expansion(replace(rows, labels=labels))
    np.testing.assert_array_equal(moved.weights, expansion.weights)
    assert (moved.sigma > expansion.sigma).all()


@pytest.mark.parametrize("n_training", [3, 5, 12, 50])
def test_few_rows_give_finite_predictions_no_worse_than_their_mean(rows: LabelledRows, n_training: int) -> None:
    few = first_rows(rows, n_training, 2)
    fitted = fit_pair_expansion(few)
    known = [
        row for row in np.flatnonzero(rows.is_validation) if fitted.columns.can_count([rows.configurations[row]])[0]
    ]
    mean, std = fitted.predict_configurations(rows.supercells[0], [rows.configurations[row] for row in known])
    assert np.isfinite(mean).all()
    assert (std > 0).all()
    by_mean = np.abs(few.labels[~few.is_validation, 1].mean() - rows.labels[known, 1]).mean()
    assert np.abs(mean[:, 1] - rows.labels[known, 1]).mean() <= 1.05 * by_mean


def test_two_rows_are_refused_with_what_to_do(rows: LabelledRows) -> None:
    with pytest.raises(
        InputError, match="2 training rows have a value of formation_energy_per_site; expected at least 3"
    ):
        fit_pair_expansion(first_rows(rows, 2, 2))


def test_standard_deviations_cover_rows_that_were_never_used(rows: LabelledRows) -> None:
    rng = np.random.default_rng(5)
    noisy = replace(rows, labels=rows.labels + rng.normal(0.0, 0.05, rows.labels.shape))
    fitted = fit_pair_expansion(noisy)
    new = labelled_rows(600, seed=9)
    mean, std = fitted.predict_configurations(rows.supercells[0], new.configurations)
    labels = new.labels + rng.normal(0.0, 0.05, new.labels.shape)
    covered = (np.abs(mean - labels) < std)[:, 2].mean()
    assert 0.6 < covered < 0.8


def test_the_total_energy_is_the_energy_per_site_times_the_number_of_defects(
    rows: LabelledRows, expansion: PairExpansion
) -> None:
    mean, std = expansion.predict_configurations(rows.supercells[0], rows.configurations)
    np.testing.assert_allclose(mean[:, 0], mean[:, 1] * rows.n_defects)
    np.testing.assert_allclose(std[:, 0], std[:, 1] * rows.n_defects)


def test_rows_without_energies_are_fitted_to_the_rest(rows: LabelledRows, expansion: PairExpansion) -> None:
    gaps = fit_pair_expansion(replace(rows, properties=rows.properties[2:], labels=rows.labels[:, 2:]))
    assert gaps.outputs == ("homo_lumo_gap_min",)
    ours = gaps.predict_configurations(rows.supercells[0], rows.configurations)[0][:, 0]
    np.testing.assert_allclose(
        ours, expansion.predict_configurations(rows.supercells[0], rows.configurations)[0][:, 2], atol=1e-8
    )


def test_an_absent_label_is_left_out_of_its_property_only(rows: LabelledRows, expansion: PairExpansion) -> None:
    labels = rows.labels.copy()
    labels[:20, 2] = np.nan
    fitted = fit_pair_expansion(replace(rows, labels=labels))
    np.testing.assert_allclose(fitted.weights[:, 0], expansion.weights[:, 0], atol=1e-8)
    assert not np.allclose(fitted.weights[:, 1], expansion.weights[:, 1])
    shorter = first_rows(rows, int((~rows.is_validation).sum()), 48)
    shorter = replace(shorter, labels=labels)
    np.testing.assert_allclose(fit_pair_expansion(shorter).weights, fitted.weights, atol=1e-8)


def test_other_supercells_and_unseen_types_are_refused_by_name(expansion: PairExpansion) -> None:
    sites, codes = np.array([[0]], np.int16), np.array([[V_S]], np.int16)
    with pytest.raises(InputError, match="has learnt from MoS2 4x4, not from MoS2 5x5"):
        expansion.predict(Supercell.parse(catalogue_host("MoS2"), "5x5"), sites, codes)
    with pytest.raises(InputError, match="has learnt from MoS2 4x4, not from WSe2 4x4"):
        expansion.predict(Supercell.parse(catalogue_host("WSe2"), "4x4"), sites, codes)
    with pytest.raises(InputError, match="has never seen W_Mo in MoS2; it knows v_S, Se_S, v_Mo"):
        expansion.check(expansion.columns.supercell, [V_S, W_MO])
    with pytest.raises(StructureError, match="has no defects"):
        expansion.predict_configurations(expansion.columns.supercell, [Configuration((), ())])


def test_a_type_of_validation_rows_only_is_not_learnt(rows: LabelledRows) -> None:
    configurations = list(rows.configurations)
    metal = rows.supercells[0].species.index("Mo")
    configurations[-1] = Configuration((metal,), (W_MO,))
    fitted = fit_pair_expansion(replace(rows, configurations=tuple(configurations)))
    assert fitted.columns.codes == (V_S, SE_S, V_MO)


def test_a_stored_expansion_predicts_the_same(rows: LabelledRows, expansion: PairExpansion) -> None:
    again = expansion_from_bytes(expansion_to_bytes(expansion))
    for one, other in zip(
        expansion.predict_configurations(rows.supercells[0], rows.configurations),
        again.predict_configurations(rows.supercells[0], rows.configurations),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert again.properties == expansion.properties


def test_other_bytes_are_refused_with_what_to_do() -> None:
    with pytest.raises(
        FileFormatError, match="'screening ensemble 2', this version reads 'screening pair expansion 1'"
    ):
        expansion_from_bytes(pack({"x": torch.zeros(1)}, {"format": "screening ensemble 2"}))
