"""Which calculation to do next: what an improvement is worth, and a batch without look-alikes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

LIKENESS = 0.25  # of the median distance; rows nearer than this tell much the same

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


def choose_batch(worth: NDArray[np.float64], features: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Choose up to n rows of high worth that are unlike each other, best first.

    Greedy: each step takes the row with the largest worth times ``1 - exp(-d^2 / 2 l^2)``, d its distance to the
    nearest row taken so far and l a quarter of the median distance of all rows, so that an equal configuration is
    never taken twice and a nearly equal one only when it is worth far more (local penalisation, Gonzalez et al.,
    AISTATS 2016, in its simplest form). Rows of no worth come last.

    Args:
        worth: (m,), larger is better.
        features: (m, k), what makes rows alike.
    """
    scaled = features / np.maximum(features.std(axis=0), 1e-9)
    length = LIKENESS * _median_distance(scaled)
    novelty = np.ones(len(worth))
    open_rows = np.ones(len(worth), bool)
    floor = 1e-12 * (float(np.max(worth, initial=0.0)) or 1.0)  # among rows of no worth, novelty decides
    chosen: list[int] = []
    while len(chosen) < min(n, len(worth)):
        value = np.where(open_rows, (worth + floor) * novelty, -np.inf)
        row = int(np.argmax(value))
        chosen.append(row)
        open_rows[row] = False
        distance = ((scaled - scaled[row]) ** 2).sum(axis=1)
        novelty = np.minimum(novelty, 1.0 - np.exp(-0.5 * distance / length**2))
    return np.array(chosen, np.int64)


def _median_distance(rows: NDArray[np.float64]) -> float:
    """Median distance between rows, from at most 200 of them evenly spread; 1 where all are equal."""
    some = rows[:: max(1, len(rows) // 200)]
    distances = np.sqrt(((some[:, None] - some[None]) ** 2).sum(axis=2))
    positive = distances[distances > 0]
    return float(np.median(positive)) if len(positive) else 1.0
