"""Gradient-boosted trees on defect counts and pairs: the yardstick of the gaps, which are no sums of pairs.

Histogram gradient boosting as in scikit-learn (Ke et al., LightGBM, NeurIPS 30 (2017)), one model for each property of
one supercell, stopped early on the validation rows; their errors are therefore slightly too small. Trees see plain
counts (how many vacancies there are) and the same per defect (what the energy per site depends on). They are refitted
in seconds and not stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor

from screening.defects.defect_types import Configuration
from screening.errors import InputError
from screening.learning.dataset import LabelledRows
from screening.learning.pair_columns import PairColumns, columns_of_rows
from screening.learning.references import ENERGY, ENERGY_PER_SITE, output_labels, outputs_of

_LEARNING_RATE = 0.05
_MOST_TREES = 1000
_PATIENCE = 40  # trees without a gain on the validation rows
_LEAVES = 8  # small trees: the subsets of high density have 300 rows
_FEWEST_ROWS_IN_LEAF = 5


@dataclass(frozen=True, eq=False)
class BoostedTrees:
    """Fitted trees of one supercell.

    Attributes:
        columns: its defect types and pairs.
        properties: what is predicted, in the order of the columns of predictions.
        models: the model of each output; the energy is learnt per site.
    """

    columns: PairColumns
    properties: tuple[str, ...]
    models: dict[str, HistGradientBoostingRegressor]

    def predict(self, configurations: Sequence[Configuration]) -> NDArray[np.float64]:
        """(n, n_properties) float64 of configurations of any number of defects, in their order.

        Raises:
            StructureError: a configuration is pristine.
            InputError: a configuration has a defect type that was not learnt from.
        """
        unknown = np.flatnonzero(~self.columns.can_count(configurations))
        if len(unknown):
            raise InputError(
                f"configuration {unknown[0]}, {configurations[unknown[0]].composition}, has a defect type that the "
                "trees have never seen; fit them to results with it first"
            )
        x = _features(self.columns, configurations)
        found = {name: model.predict(x) for name, model in self.models.items()}
        if ENERGY_PER_SITE in found:
            found[ENERGY] = found[ENERGY_PER_SITE] * np.array([c.n_defects for c in configurations])
        return np.stack([found[name] for name in self.properties], axis=1)


def fit_boosted_trees(rows: LabelledRows, *, seed: int = 0) -> BoostedTrees:
    """Fit trees to the training rows of one supercell, stopping on its validation rows.

    Raises:
        InputError: the rows are of several supercells, or a property has no value in training or in validation rows.
    """
    columns = columns_of_rows(rows)
    usable = columns.can_count(rows.configurations)  # a validation row may have a type that no training row has
    x = _features(columns, [c for c, is_usable in zip(rows.configurations, usable, strict=True) if is_usable])
    outputs = outputs_of(rows.properties)
    labels, is_validation = output_labels(rows, outputs)[usable], rows.is_validation[usable]
    models = {}
    for name, label in zip(outputs, labels.T, strict=True):
        if name == ENERGY_PER_SITE and not {ENERGY, ENERGY_PER_SITE} & set(rows.properties):
            continue
        known = np.isfinite(label)
        train, stop = known & ~is_validation, known & is_validation
        if not train.any() or not stop.any():
            raise InputError(
                f"{train.sum()} training and {stop.sum()} validation rows have a value of {name}; trees need both: "
                "add results or leave this property out"
            )
        model = HistGradientBoostingRegressor(
            learning_rate=_LEARNING_RATE,
            max_iter=_MOST_TREES,
            max_leaf_nodes=_LEAVES,
            min_samples_leaf=_FEWEST_ROWS_IN_LEAF,
            early_stopping=True,
            n_iter_no_change=_PATIENCE,
            random_state=seed,
        )
        models[name] = model.fit(x[train], label[train], X_val=x[stop], y_val=label[stop])
    return BoostedTrees(columns, rows.properties, models)


def _features(columns: PairColumns, configurations: Sequence[Configuration]) -> NDArray[np.float32]:
    """(n, 2 (K + n_pairs) + 1): counts, counts per defect, number of defects."""
    counts = np.concatenate(columns.counts_of(configurations), axis=1)
    n_defects = np.array([[configuration.n_defects] for configuration in configurations], np.float32)
    return np.concatenate([counts, counts / n_defects, n_defects], axis=1)
