"""Which labels make a model better everywhere: a batch that leaves the least uncertainty in all candidates together.

What the label of one candidate tells of another is a covariance: a Gaussian process on the pairs of defects (Rasmussen
and Williams, Gaussian Processes for Machine Learning (2006), ch. 2), conditioned on the configurations that have a
label or will soon have one. Each step takes the candidate x whose label lowers the standard deviations of all
candidates u most, to first order

    sum_u s_u c(x, u)^2 / (2 sqrt(c(u, u)) (c(x, x) + noise))

and conditions the covariance c on it (active learning after Cohn, Neural Networks 9, 1071 (1996), for standard
deviations in place of variances: errors are judged by their mean, and a few odd candidates must not rule the choice).
So a candidate counts that is uncertain and like many others; an outlier tells of nothing but itself, and the second of
two alike ones tells nothing. No label enters but through s, the model's own standard deviations, so that a batch needs
no training in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from screening.defects.defect_types import Configuration
from screening.learning.pair_columns import PairColumns

LENGTH = 0.7  # of the covariance, in units of `pair_features`; chosen on MoS2 low of 2DMD, not scanned
NOISE = 1e-4  # of a variance of 1: what the covariance cannot tell apart has one label all the same
_GROWTH = 2.0  # pairs weigh (3 angstrom / d)^2: far pairs interact less
_UNIT = 3.0  # angstrom
_SMALLEST = 1e-7


def pair_features(columns: PairColumns, configurations: Sequence[Configuration]) -> NDArray[np.float64]:
    """What makes configurations alike: (n, K + n_pairs) float64, shares of the types and pairs per defect.

    Args:
        columns: of all defect types that occur.
        configurations: n of any number of defects, none pristine.
    """
    types, pairs = columns.counts_of(configurations)
    n_defects = types.sum(axis=1, keepdims=True, dtype=np.float64)
    weighted = pairs * (_UNIT / columns.distances) ** _GROWTH
    return np.asarray(np.concatenate([types, weighted], axis=1) / n_defects, np.float64)


def posterior_covariance(features: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float32]:
    """(m, m) covariance of candidates whose features are (m, k), given labels of others with features (p, k)."""
    covariance = _prior(features, features)
    if len(known):
        own = _prior(known, known)
        own[np.diag_indices_from(own)] += NOISE
        factor = np.linalg.cholesky(own)
        explained = solve_triangular(factor, _prior(known, features), lower=True)  # (p, m)
        covariance -= explained.T @ explained
    return covariance.astype(np.float32)


def spread_of(
    std: NDArray[np.float64], features: NDArray[np.float64], learnt: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What makes a model's standard deviations of those of the covariance: (m, n_properties).

    Args:
        std: (m, n_properties) of the model.
        features: (m, k) of the candidates.
        learnt: (p, k) of what the model has learnt from, which may be less than what is known by now.
    """
    variance = posterior_covariance(features, learnt).diagonal().astype(np.float64)
    return np.asarray(std / np.sqrt(np.maximum(variance, NOISE))[:, None])


def choose_informative(
    covariance: NDArray[np.float32], spread: NDArray[np.float64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of up to n candidates, the most informative first, and what each leaves of the uncertainty.

    Args:
        covariance: (m, m) of `posterior_covariance`.
        spread: (m, n_properties) of `spread_of`; properties count equally.

    Returns:
        Rows (n,), and the mean standard deviation of all candidates after each of them as a share of that before the
        first (n,), the mean of the properties.
    """
    left = covariance.copy()
    weights = (spread / np.maximum((spread * _std(left)[:, None]).mean(axis=0), _SMALLEST)).mean(axis=1)  # (m,)
    is_open = np.ones(len(left), bool)
    rows, remaining = [], []
    for _ in range(min(n, len(left))):
        std = _std(left)
        gain = (left * left) @ (weights / std).astype(np.float32) / (std**2 + NOISE)
        row = int(np.argmax(np.where(is_open, gain, -np.inf)))
        is_open[row] = False
        shared = left[row].copy()
        left -= np.outer(shared, shared / (shared[row] + np.float32(NOISE)))
        rows.append(row)
        remaining.append(float((weights * _std(left)).mean()))
    return np.array(rows, np.int64), np.array(remaining)


def _prior(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n_a, n_b) exp(-|a - b|^2 / 2 l^2)."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2.0 * a @ b.T
    return np.asarray(np.exp(-0.5 * np.maximum(squares, 0.0) / LENGTH**2))


def _std(covariance: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.sqrt(np.maximum(covariance.diagonal().astype(np.float64), _SMALLEST))
