"""Yardsticks see the rows that the model has learnt from, and never a label that they are measured on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from screening.errors import InputError
from screening.pipeline.evaluation import Evaluation
from screening.pipeline.evaluation_tables import better_methods, comparison_table
from screening.pipeline.labelled_files import LabelledFiles
from screening.pipeline.yardsticks import Yardstick, fit_yardsticks, yardstick_errors
from tests.learning.synthetic import labelled_rows
from tests.pipeline.made_evaluations import HIGH, LOW, labelled_of, made_evaluation

ENERGY, GAP = "formation_energy_per_site", "homo_lumo_gap_min"


def evaluation_of(rows: LabelledFiles, *, error: float) -> Evaluation:
    """An evaluation of a model that is wrong by a constant."""
    means = rows.labels + error
    stds = np.full(means.shape, 0.1)
    nothing = np.zeros(rows.n_rows, bool)
    return Evaluation(rows, rows.properties, rows.labels, means, stds, 2 * stds, nothing, 0, ())


@pytest.fixture(scope="module")
def parts() -> tuple[LabelledFiles, LabelledFiles]:
    """Rows to learn from and rows to measure on."""
    rows = labelled_of(labelled_rows())
    is_train = np.array([split == "train" for split in rows.splits])
    return rows.chosen(is_train), rows.chosen(~is_train)


def fit(measured: LabelledFiles, learnt: LabelledFiles, *properties: str) -> list[Yardstick]:
    said: list[str] = []
    found = fit_yardsticks(evaluation_of(measured, error=0.1), learnt, properties=properties, on_progress=said.append)
    assert said == ["pair expansion, made", "boosted trees, made"]
    return found


def test_sums_of_pairs_are_learnt_by_the_pair_expansion(parts: tuple[LabelledFiles, LabelledFiles]) -> None:
    """Energies of the synthetic rows are sums over defects and pairs; their standard deviation is above 1 eV."""
    learnt, measured = parts
    expansion, trees = fit(measured, learnt, ENERGY)
    (error,) = yardstick_errors(evaluation_of(measured, error=0.1), expansion, ENERGY).values()
    assert error < 0.15
    (of_trees,) = yardstick_errors(evaluation_of(measured, error=0.1), trees, ENERGY).values()
    assert of_trees < 0.5 * float(measured.labels[:, 1].std())
    assert np.isnan(expansion.means[:, 2]).all()  # the gap was not asked for


def test_labels_of_the_measured_rows_have_no_part(parts: tuple[LabelledFiles, LabelledFiles]) -> None:
    learnt, measured = parts
    shuffled = replace(measured, labels=measured.labels[::-1] + 5.0)
    for one, other in zip(fit(measured, learnt, ENERGY, GAP), fit(shuffled, learnt, ENERGY, GAP), strict=True):
        np.testing.assert_array_equal(one.means, other.means)


def test_too_few_learnt_rows_are_refused(parts: tuple[LabelledFiles, LabelledFiles]) -> None:
    learnt, measured = parts
    with pytest.raises(InputError, match="the data hold 5 rows that the model has learnt from, too few"):
        fit_yardsticks(
            evaluation_of(measured, error=0.1),
            learnt.chosen(np.arange(5)),
            properties=[GAP],
            on_progress=lambda _: None,
        )


def test_yardsticks_are_rows_of_the_table_and_may_be_better() -> None:
    made = made_evaluation()  # gaps 100 and 300 meV too low
    means = np.full(made.means.shape, np.nan)
    means[:3, 1] = made.labels[:3, 1] + 0.05
    yardstick = Yardstick("ruler", means)
    assert yardstick_errors(made, yardstick, GAP) == pytest.approx({LOW: 0.05})
    _, cells = comparison_table(made, GAP, [yardstick])
    assert next(row for row in cells if row[0] == "ruler on the same rows")[1:] == ["", "50.0", ""]
    other = replace(made, rows=replace(made.rows, subsets=("mine", "yours")))
    assert better_methods(other, GAP, [yardstick]) == {"mine": ("ruler",)}
    assert better_methods(replace(other, means=other.labels - 0.02), GAP, [yardstick]) == {}  # 20 meV beside its 50
    assert HIGH not in yardstick_errors(made, yardstick, GAP)
