"""How good predictions are: errors, and how often the label lies within the error bars.

Errors are predicted minus calculated, in eV or Bohr magneton. The noise of a mean absolute error is the standard
error that resampling its rows gives; for a mean, infinitely many resamplings have the closed form
``sqrt(mean((a - mean(a))^2) / n)`` (Efron and Tibshirani, An Introduction to the Bootstrap (1993), eq. 5.12), so
that no random number is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CLOSE = 0.020  # eV or Bohr magneton
_NORMAL = NormalDist()
_ROUNDING = 1e-9  # an error as large as its interval lies within


@dataclass(frozen=True)
class Metrics:
    """Errors of some rows in one property; all but `n_rows` are NaN where there is no row.

    Attributes:
        n_rows: rows with a label.
        mae: mean absolute error, eV or Bohr magneton, as are `mae_noise`, `rmse` and `mean_std`.
        mae_noise: bootstrap standard error of the mean absolute error; NaN for a single row, which does not show it.
        rmse: root mean square error.
        within: share of the rows whose error is at most `CLOSE`.
        coverage_68: share of the rows with the label in the interval that should hold 68 % of them.
        coverage_95: likewise of 95 %.
        mean_std: mean of the predicted standard deviations.
    """

    n_rows: int
    mae: float
    mae_noise: float
    rmse: float
    within: float
    coverage_68: float
    coverage_95: float
    mean_std: float


@dataclass(frozen=True, eq=False)
class ErrorBars:
    """Errors of rows in one property beside what was predicted of them, all (n,) float64, eV or Bohr magneton.

    Attributes:
        errors: predicted minus calculated; NaN where there is no label.
        stds: predicted standard deviations: half widths of the intervals of 68 %.
        half_widths: of the intervals of 95 %.
    """

    errors: NDArray[np.float64]
    stds: NDArray[np.float64]
    half_widths: NDArray[np.float64]

    def chosen(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> ErrorBars:
        """Those of some rows, by a mask or by their numbers."""
        return ErrorBars(self.errors[rows], self.stds[rows], self.half_widths[rows])


def measure(found: ErrorBars) -> Metrics:
    """The metrics of some rows; rows without a label do not count."""
    labelled = found.chosen(np.isfinite(found.errors))
    n_rows = len(labelled.errors)
    if n_rows == 0:
        return Metrics(0, *[float("nan")] * 7)
    size = np.abs(labelled.errors)
    return Metrics(
        n_rows=n_rows,
        mae=float(size.mean()),
        mae_noise=float(size.std() / np.sqrt(n_rows)) if n_rows > 1 else float("nan"),
        rmse=float(np.sqrt((size**2).mean())),
        within=float((size <= CLOSE).mean()),
        coverage_68=float((size <= labelled.stds).mean()),
        coverage_95=float((size <= labelled.half_widths).mean()),
        mean_std=float(labelled.stds.mean()),
    )


def measure_groups(found: ErrorBars, group_of_row: NDArray[np.int64]) -> dict[int, Metrics]:
    """The metrics of each group that has a label, by its number, ascending."""
    labelled = np.isfinite(found.errors)
    return {
        group: measure(found.chosen(labelled & (group_of_row == group)))
        for group in np.unique(group_of_row[labelled]).tolist()
    }


def mean_of_groups(metrics: Sequence[Metrics]) -> Metrics:
    """The mean of the metrics of groups, each weighing the same; its rows are those of all.

    The noise is that of a mean of independent numbers. The mean of root mean square errors is no root mean square
    error of anything, but what published tables average.
    """
    if not metrics:
        return Metrics(0, *[float("nan")] * 7)
    names = ("mae", "rmse", "within", "coverage_68", "coverage_95", "mean_std")
    means = {name: float(np.mean([getattr(found, name) for found in metrics])) for name in names}
    noise = float(np.linalg.norm([found.mae_noise for found in metrics]) / len(metrics))
    return Metrics(n_rows=sum(found.n_rows for found in metrics), mae_noise=noise, **means)


def coverage_at(found: ErrorBars, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n_shares,) how many of the labels lie in the intervals that should hold these shares; NaN without a label.

    The intervals of 68 and 95 % are given. The others are interpolated between the mean and these, and beyond 95 %
    continued, linearly in the quantiles of the normal distribution.
    """
    labelled = found.chosen(np.isfinite(found.errors))
    if len(labelled.errors) == 0:
        return np.full(len(shares), np.nan)
    quantiles = np.array([_NORMAL.inv_cdf(0.5 + share / 2) for share in shares])[:, None]
    at_68, at_95 = (_NORMAL.inv_cdf(0.5 + share / 2) for share in (0.68, 0.95))
    inner = labelled.stds * quantiles / at_68
    outer = labelled.stds + (labelled.half_widths - labelled.stds) * (quantiles - at_68) / (at_95 - at_68)
    widths = np.where(quantiles <= at_68, inner, outer)
    return np.asarray((np.abs(labelled.errors) <= widths * (1.0 + _ROUNDING)).mean(axis=1))
