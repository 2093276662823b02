"""Evaluations as tables: a model beside the published ones, and its metrics by subset and number of defects.

Published figures: mean absolute errors on a random 20 % of each subset of 2DMD after training on the others, mean of
12 runs, of Kazeev et al., npj Comput. Mater. 9, 113 (2023), doi 10.1038/s41524-023-01062-z. Reference figures are
yardsticks fitted in seconds, on such a split. Over random splits the error of a subset varies by about 10 %, so
smaller differences mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from screening.dft.dataset_2dmd import SUBSETS
from screening.pipeline.evaluation import MEAN_OF_SUBSETS, Evaluation, MetricRow, metrics_by_subset
from screening.pipeline.yardsticks import Yardstick, yardstick_errors

Table = tuple[list[str], list[list[str]]]
"""Columns, and rows of cells; numbers as texts, so that each has the digits that mean something."""

SHORT_NAMES = dict(
    zip(SUBSETS, ("MoS2 low", "WSe2 low", "MoS2 high", "WSe2 high", "BP", "GaSe", "InSe", "h-BN"), strict=True)
)
PAPER = "published sparse MEGNet"
PUBLISHED: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "formation_energy_per_site": {
        PAPER: (2.6, 4.8, 18, 24, 70, 41, 36, 95),
        "published CatBoost": (11.8, 14.7, 88, 186, 79, 91, 121, 189),
        "reference ridge on counts": (36, 42, 61, 81, 73, 69, 61, 236),
        "reference ridge on pairs": (2.4, 5.4, 35, 32, 72, 42, 36, 149),
    },
    "homo_lumo_gap_min": {
        PAPER: (5.0, 6.8, 45, 43, 183, 196, 154, 208),
        "published CatBoost": (24.5, 17.5, 77, 63, 154, 192, 153, 170),
        "published MEGNet, all atoms": (25.9, 32.1, 58, 47, 162, 200, 154, 198),
        "reference ridge on counts": (86, 69, 91, 97, 164, 197, 152, 176),
        "reference trees on pairs": (5.0, 9.5, 49, 43, 164, 165, 145, 225),
    },
}
"""Mean absolute errors, meV, of each method in the order of `SUBSETS`."""

_MILLI = 1e3


def short_name(subset: str) -> str:
    """`MoS2 low`, as in the paper; other names stay as they are."""
    return SHORT_NAMES.get(subset, subset)


def unit_of(name: str) -> str:
    """Unit in which the errors of a property are shown."""
    return "1e-3 Bohr magneton" if name == "total_mag" else "meV"


def comparison_table(evaluation: Evaluation, name: str, yardsticks: Sequence[Yardstick] = ()) -> Table:
    """Mean absolute errors of a property: a column for each subset, a row for the model and each other method.

    The mean of a method is that over the subsets that are evaluated here; it is empty where one has no figure.
    """
    found = metrics_by_subset(evaluation, name)
    columns = [f"MAE of {name}, {unit_of(name)}", *(_column(row.subset) for row in found)]
    rows = [
        ["this model", *(_error(row.metrics.mae) for row in found)],
        ["its standard error", *(_error(row.metrics.mae_noise) for row in found)],
        ["rows", *(f"{row.metrics.n_rows:,}" for row in found)],
    ]
    subsets = [row.subset for row in found if row.subset != MEAN_OF_SUBSETS]
    for yardstick in yardsticks:
        errors = yardstick_errors(evaluation, yardstick, name)
        of_all = _error(float(np.mean([errors.get(subset, np.nan) for subset in subsets])))
        cells = {MEAN_OF_SUBSETS: of_all, **{subset: _error(error) for subset, error in errors.items()}}
        rows.append([f"{yardstick.name} on the same rows", *(cells.get(row.subset, "") for row in found)])
    for method, published in PUBLISHED.get(name, {}).items():
        known = dict(zip(SUBSETS, published, strict=True))
        figures = [known[subset] for subset in subsets if subset in known]
        if figures:
            mean = f"{np.mean(figures):.0f}" if len(figures) == len(subsets) else ""
            cells = {MEAN_OF_SUBSETS: mean, **{subset: f"{known[subset]:g}" for subset in subsets if subset in known}}
            rows.append([method, *(cells.get(row.subset, "") for row in found)])
    return columns, rows


def better_methods(
    evaluation: Evaluation, name: str, yardsticks: Sequence[Yardstick] = ()
) -> dict[str, tuple[str, ...]]:
    """The methods that have a smaller error than the model, for each subset in which there are any."""
    errors = {yardstick.name: yardstick_errors(evaluation, yardstick, name) for yardstick in yardsticks}
    for method, published in PUBLISHED.get(name, {}).items():
        errors[method] = {s: error / _MILLI for s, error in zip(SUBSETS, published, strict=True)}
    found = {
        row.subset: tuple(m for m, of_method in errors.items() if of_method.get(row.subset, np.inf) < row.metrics.mae)
        for row in metrics_by_subset(evaluation, name)
    }
    return {subset: methods for subset, methods in found.items() if methods}


def metrics_table(rows: Sequence[MetricRow], *, by_defects: bool = False) -> Table:
    """All metrics, a row for each property and subset, or for each number of defects of these."""
    columns = ["property", "subset", *(["defects"] if by_defects else []), "rows", "MAE (1e-3)", "its error"]
    columns += ["RMSE (1e-3)", "within 20 meV", "in 68 %", "in 95 %", "mean std (1e-3)"]
    cells = []
    for row in rows:
        found = row.metrics
        cells.append(
            [row.property, short_name(row.subset)]
            + ([str(row.n_defects)] if by_defects else [])
            + [f"{found.n_rows:,}", *map(_error, (found.mae, found.mae_noise, found.rmse))]
            + [f"{100 * share:.1f} %" for share in (found.within, found.coverage_68, found.coverage_95)]
            + [_error(found.mean_std)]
        )
    return columns, cells


def _column(subset: str) -> str:
    return "mean" if subset == MEAN_OF_SUBSETS else short_name(subset)


def _error(value: float) -> str:
    return f"{_MILLI * value:.1f}" if np.isfinite(value) else ""
