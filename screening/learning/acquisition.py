"""Which calculation to do next: what an improvement is worth, and a batch without look-alikes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

LIKENESS = 0.25  # of the median distance; rows nearer than this tell much the same
LEAST_NOVELTY = 0.02  # beside what is known: equal features are not always equal configurations

_SMALLEST_STD = 1e-9


def expected_improvement(mean: NDArray[np.float64], std: NDArray[np.float64], best: float) -> NDArray[np.float64]:
    """Expected amount by which a value that should be low falls below the best one known.

    Jones et al., J. Glob. Optim. 13, 455 (1998), eq. 15: ``(best - m) Phi(z) + s phi(z)``, ``z = (best - m) / s``.

    Args:
        mean: (n,) predicted values.
        std: (n,) their standard deviations.
    """
    spread = np.maximum(std, _SMALLEST_STD)
    z = (best - mean) / spread
    return np.asarray((best - mean) * norm.cdf(z) + spread * norm.pdf(z), np.float64)


def expected_approach(
    mean: NDArray[np.float64], std: NDArray[np.float64], target: float, nearest: float
) -> NDArray[np.float64]:
    """Expected amount by which a value comes nearer to a target than the nearest one known.

    The mean of ``max(0, b - |y - t|)``, b the distance of the nearest: a triangle around the target, which is the sum
    of three ramps ``(y - c)+`` at t - b, t and t + b, each with the closed form of `expected_improvement`.

    Args:
        mean: (n,) predicted values.
        std: (n,) their standard deviations.
        target: t, the value that is wanted.
        nearest: b, 0 or more.
    """
    below, at, above = (expected_improvement(-mean, std, -end) for end in (target - nearest, target, target + nearest))
    return np.maximum(below - 2.0 * at + above, 0.0)


def novelty_of(features: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    """How unlike what is known rows are: (m,), 1 far away, `LEAST_NOVELTY` where a known row has the same features.

    Args:
        features: (m, k), what makes rows alike.
        known: (n_known, k).
    """
    scale, length = _scale_and_length(features)
    scaled = features / scale
    novelty = np.ones(len(features))
    for row in np.unique(known / scale, axis=0):
        novelty = np.minimum(novelty, _unlike(scaled, row, length))
    return np.maximum(novelty, LEAST_NOVELTY)


def choose_batch(
    worth: NDArray[np.float64], features: NDArray[np.float64], n: int, *, known: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Choose up to n rows of high worth that are unlike each other, best first, with the value of each when chosen.

    Greedy: each step takes the row with the largest worth times ``1 - exp(-d^2 / 2 l^2)``, d its distance to the
    nearest row taken so far and l a quarter of the median distance of all rows, so that an equal configuration is
    never taken twice and a nearly equal one only when it is worth far more (local penalisation, Gonzalez et al.,
    AISTATS 2016, in its simplest form). What is like a known row is worth less in the same way. Rows of no worth come
    last. Values never rise from one row to the next, so that batches of rows that have no likeness to each other are
    put together by their values.

    Args:
        worth: (m,), larger is better.
        features: (m, k), what makes rows alike.
        known: (n_known, k) the same of what is calculated or will be.
    """
    scale, length = _scale_and_length(features)
    scaled = features / scale
    novelty = np.ones(len(worth)) if known is None else novelty_of(features, known)
    open_rows = np.ones(len(worth), bool)
    floor = 1e-12 * (float(np.max(worth, initial=0.0)) or 1.0)  # among rows of no worth, novelty decides
    chosen: list[int] = []
    values: list[float] = []
    while len(chosen) < min(n, len(worth)):
        value = np.where(open_rows, (worth + floor) * novelty, -np.inf)
        row = int(np.argmax(value))
        chosen.append(row)
        values.append(float(value[row]))
        open_rows[row] = False
        novelty = np.minimum(novelty, _unlike(scaled, scaled[row], length))
    return np.array(chosen, np.int64), np.array(values, np.float64)


def _scale_and_length(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """What features are divided by, and the distance within which rows are alike then."""
    scale = np.maximum(features.std(axis=0), 1e-9)
    return scale, LIKENESS * _median_distance(features / scale)


def _unlike(scaled: NDArray[np.float64], row: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """(m,) from 0 for rows that equal one to 1 for those far from it."""
    distance = ((scaled - row) ** 2).sum(axis=1)
    return np.asarray(1.0 - np.exp(-0.5 * distance / length**2), np.float64)


def _median_distance(rows: NDArray[np.float64]) -> float:
    """Median distance between rows, from at most 200 of them evenly spread; 1 where all are equal."""
    some = rows[:: max(1, len(rows) // 200)]
    distances = np.sqrt(((some[:, None] - some[None]) ** 2).sum(axis=2))
    positive = distances[distances > 0]
    return float(np.median(positive)) if len(positive) else 1.0
