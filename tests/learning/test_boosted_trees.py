"""Boosted trees on counts and pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from screening.defects.defect_types import Configuration
from screening.errors import InputError, StructureError
from screening.learning.boosted_trees import BoostedTrees, fit_boosted_trees
from screening.learning.dataset import LabelledRows
from tests.learning.synthetic import labelled_rows

W_MO = 42 * 128 + 74


@pytest.fixture(scope="module")
def many_rows() -> LabelledRows:
    return labelled_rows(1200)


@pytest.fixture(scope="module")
def trees(many_rows: LabelledRows) -> BoostedTrees:
    return fit_boosted_trees(many_rows)


def test_trees_learn_what_counts_and_pairs_say(many_rows: LabelledRows, trees: BoostedTrees) -> None:
    new = labelled_rows(300, seed=11)
    errors = trees.predict(new.configurations)[:, 1:] - new.labels[:, 1:]
    assert (np.abs(errors).mean(axis=0) < 0.06 * new.labels[:, 1:].std(axis=0)).all()


def test_counts_alone_would_not_do(many_rows: LabelledRows, trees: BoostedTrees) -> None:
    """Two vacancies at different distances differ by their interaction, which only pairs know."""
    chosen = [
        row
        for row in np.flatnonzero(many_rows.is_validation)
        if many_rows.n_defects[row] == 2 and len(set(many_rows.configurations[row].defect_types)) == 1
    ]
    predicted = trees.predict([many_rows.configurations[row] for row in chosen])[:, 1]
    codes = np.array([many_rows.configurations[row].defect_types[0] for row in chosen])
    for code in set(codes.tolist()):
        of_code = codes == code
        labels = many_rows.labels[np.array(chosen)[of_code], 1]
        assert np.corrcoef(predicted[of_code], labels)[0, 1] > 0.9


def test_the_total_energy_is_the_energy_per_site_times_the_number_of_defects(
    many_rows: LabelledRows, trees: BoostedTrees
) -> None:
    predicted = trees.predict(many_rows.configurations)
    np.testing.assert_allclose(predicted[:, 0], predicted[:, 1] * many_rows.n_defects)


def test_the_same_seed_gives_the_same_trees(rows: LabelledRows) -> None:
    one, other = (fit_boosted_trees(rows, seed=3).predict(rows.configurations) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_rows_without_energies_or_with_absent_values_are_fitted_to_the_rest(rows: LabelledRows) -> None:
    labels = rows.labels[:, 2:].copy()
    labels[::3] = np.nan
    fitted = fit_boosted_trees(replace(rows, properties=rows.properties[2:], labels=labels))
    assert np.isfinite(fitted.predict(rows.configurations)).all()
    assert list(fitted.models) == ["homo_lumo_gap_min"]


def test_a_property_without_validation_values_is_refused(rows: LabelledRows) -> None:
    labels = rows.labels.copy()
    labels[rows.is_validation, 2] = np.nan
    with pytest.raises(InputError, match="192 training and 0 validation rows have a value of homo_lumo_gap_min"):
        fit_boosted_trees(replace(rows, labels=labels))


def test_unseen_types_and_pristine_supercells_are_refused(rows: LabelledRows, trees: BoostedTrees) -> None:
    metal = rows.supercells[0].species.index("Mo")
    with pytest.raises(InputError, match="configuration 0, W_Mo, has a defect type that the trees have never seen"):
        trees.predict([Configuration((metal,), (W_MO,))])
    with pytest.raises(StructureError, match="has no defects"):
        trees.predict([Configuration((), ())])
