"""Yardsticks of an evaluation: simple models, fitted in seconds to the rows that the evaluated model has learnt from.

Published errors come from another choice of rows, and over random choices the error of a subset varies by 10 %. The
pair expansion and boosted trees fitted to the very rows of the model, one for each subset, and measured on the very
rows of the evaluation say what the model adds to counting defects and pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from screening.errors import InputError
from screening.learning.fingerprints import fingerprints_of_rows
from screening.learning.metrics import ErrorBars, measure_groups
from screening.pipeline.evaluation import Evaluation
from screening.pipeline.labelled_files import LabelledFiles

_STOPPING_PARTS = 5  # every fifth row that may be learnt from, by what it is, stops the trees
FEWEST_ROWS = 10  # of a subset; fewer are no fit


@dataclass(frozen=True, eq=False)
class Yardstick:
    """Predictions of a simple model for the rows of an evaluation.

    Attributes:
        means: (n, n_properties) float64, columns as in the evaluation; NaN where it has no fit or has never seen a
            defect type.
    """

    name: str
    means: NDArray[np.float64]


def fit_yardsticks(
    evaluation: Evaluation, learnt: LabelledFiles, *, properties: Sequence[str], on_progress: Callable[[str], None]
) -> list[Yardstick]:
    """Fit both yardsticks in each subset; a minute for two properties of the eight subsets of 2DMD on a quiet core.

    Args:
        learnt: rows that the model has learnt from, of the data of the evaluation.
        properties: of the evaluation, those wanted.
        on_progress: called with the method and subset that is fitted.

    Raises:
        InputError: no subset has rows that can be fitted.
    """
    found = []
    for name, predict in (("pair expansion", _by_pair_expansion), ("boosted trees", _by_trees)):
        means = np.full(evaluation.means.shape, np.nan)
        for group, subset in enumerate(evaluation.rows.subsets):
            rows = np.flatnonzero(evaluation.rows.group_of_row == group)
            known = _known(learnt, group, properties)
            if len(rows) and known.properties:
                on_progress(f"{name}, {subset}")
                columns = [evaluation.properties.index(p) for p in known.properties]
                means[rows[:, None], columns] = predict(known, evaluation.rows.chosen(rows))
        if np.isnan(means).all():
            raise InputError(
                f"the data hold {learnt.n_rows} rows that the model has learnt from, too few in each subset to fit "
                f"yardsticks to ({FEWEST_ROWS}); give the data that it was trained on as well"
            )
        found.append(Yardstick(name, means))
    return found


def yardstick_errors(evaluation: Evaluation, yardstick: Yardstick, name: str) -> dict[str, float]:
    """Mean absolute error of a property in each subset that the yardstick predicts, eV or Bohr magneton."""
    p = evaluation.properties.index(name)
    errors = yardstick.means[:, p] - evaluation.labels[:, p]
    found = measure_groups(ErrorBars(errors, *np.zeros((2, len(errors)))), evaluation.rows.group_of_row)
    return {evaluation.rows.subsets[group]: metrics.mae for group, metrics in found.items()}


def _known(learnt: LabelledFiles, group: int, wanted: Sequence[str]) -> LabelledFiles:
    """The learnt rows of a subset, with the wanted properties that enough of them have."""
    of_group = learnt.chosen(learnt.group_of_row == group)
    n_known = np.isfinite(of_group.labels).sum(axis=0)
    columns = [learnt.properties.index(name) for name in wanted]
    columns = [p for p in columns if n_known[p] >= FEWEST_ROWS]
    return replace(
        of_group, properties=tuple(learnt.properties[p] for p in columns), labels=of_group.labels[:, columns]
    )


def _by_pair_expansion(known: LabelledFiles, wanted: LabelledFiles) -> NDArray[np.float64]:
    """(n, n_properties) predictions of the wanted rows; their labels have no part in the fit."""
    from screening.learning.pair_expansion import fit_pair_expansion

    names = (*known.names, *wanted.names)
    columns = [wanted.properties.index(name) for name in known.properties]
    rows = replace(
        known,
        configurations=(*known.configurations, *wanted.configurations),
        supercell_of_row=np.concatenate([known.supercell_of_row, wanted.supercell_of_row]),
        labels=np.concatenate([known.labels, wanted.labels[:, columns]]),
        group_of_row=np.concatenate([known.group_of_row, wanted.group_of_row]),
        names=names,
        splits=(None,) * len(names),
    ).rows(np.arange(len(names)) >= known.n_rows)
    fitted = fit_pair_expansion(rows)
    usable = np.flatnonzero(fitted.columns.can_count(wanted.configurations))
    configurations = [wanted.configurations[i] for i in usable]
    found = np.full((wanted.n_rows, len(known.properties)), np.nan)
    found[usable] = fitted.predict_configurations(fitted.columns.supercell, configurations)[0]
    return found


def _by_trees(known: LabelledFiles, wanted: LabelledFiles) -> NDArray[np.float64]:
    """(n, n_properties) predictions of the wanted rows; some of the known rows stop the trees."""
    from screening.learning.boosted_trees import fit_boosted_trees

    is_stopping = fingerprints_of_rows(known) % _STOPPING_PARTS == 0
    is_stopping[np.argmin(fingerprints_of_rows(known))] = True  # there is one in any case
    fitted = fit_boosted_trees(known.rows(is_stopping))
    usable = np.flatnonzero(fitted.columns.can_count(wanted.configurations))
    found = np.full((wanted.n_rows, len(known.properties)), np.nan)
    found[usable] = fitted.predict([wanted.configurations[i] for i in usable])
    return found
