"""The probability that the windows of a design query hold, as SQL.

A prediction is a distribution around its mean of which 68 % are within a standard deviation and 95 % within k of them,
where k is the multiple that the model was calibrated to (1.96 if errors are normal): with z the distance of an end of
a window from the mean in standard deviations, P(x < end) = Phi(g(z)),

    g(z) = c z + (1 - c) clamp(z, -1, 1),   c = (1.96 - 1) / (k - 1),

which is z within one standard deviation, and stretched beyond so that g(k) = 1.96. It is odd and rises with z, so half
of the distribution is on either side of the mean. Beyond 95 % it is a wider normal distribution, no power law.

Errors of several properties go together: a Gaussian copula with one factor x,

    P = integral phi(x) prod_i [Phi((g(b_i) - l_i x) / s_i) - Phi((g(a_i) - l_i x) / s_i)] dx,   s_i^2 = 1 - l_i^2,

is exact for two windows with correlation l_1 l_2 (Dunnett and Sobel, Biometrika 42, 258 (1955)). With 12 nodes of
Gauss and Hermite it errs by 1e-5 at a correlation of 0.5 and by 4e-3 at 0.8, to which correlations are limited.
`screening.pipeline.block_queries` is its twin in numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ARRAY, ColumnElement, Double, Float, Integer, case, cast, func, literal, select
from sqlalchemy.sql import column

from screening.database.query_parts import Window

SMALLEST_STD = 1e-6  # eV; a prediction without spread still has a distribution
NORMAL_MULTIPLE = 1.959963984540054  # standard deviations to either side that hold 95 % of a normal distribution
SMALLEST_MULTIPLE = 1.05  # g is steep below
LARGEST_CORRELATION = 0.8
SMALLEST_CORRELATION = 0.05  # below, properties are independent
N_NODES = 12
_ROOT_2 = 2.0**0.5


@dataclass(frozen=True)
class Spreads:
    """What probabilities need besides mean and standard deviation, by property; empty: normal and independent.

    Attributes:
        slopes: c of 1, 2, ... defects; more than there are have the last one.
        loadings: l of the windows' properties in the same way; empty without a correlation.
    """

    slopes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    loadings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@lru_cache(maxsize=1)
def factor_nodes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes (n,) and weights (n,), of sum 1, of a standard normal variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
    return nodes, weights / weights.sum()


def slope_of(multiple: float) -> float:
    """C of a multiple k."""
    return (NORMAL_MULTIPLE - 1.0) / (max(multiple, SMALLEST_MULTIPLE) - 1.0)


def loadings_of(correlations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Loadings (n,) on one factor whose products are the correlations (n, n), or nearest to them.

    For two it is exact, for three where their signs agree; otherwise by least squares. Products are limited to
    `LARGEST_CORRELATION`; all are 0 where no correlation reaches `SMALLEST_CORRELATION`.
    """
    n = len(correlations)
    off = np.clip(correlations, -LARGEST_CORRELATION, LARGEST_CORRELATION) * (1.0 - np.eye(n))
    if n < 2 or np.abs(off).max() < SMALLEST_CORRELATION:
        return np.zeros(n)
    first, second = np.unravel_index(np.abs(off).argmax(), off.shape)
    loadings = np.zeros(n)
    root = np.sqrt(np.abs(off[first, second]))
    loadings[first], loadings[second] = root, np.sign(off[first, second]) * root
    largest = LARGEST_CORRELATION**0.5
    for _ in range(200 if n > 2 else 0):
        for i in range(n):
            others = (loadings**2).sum() - loadings[i] ** 2
            if others > 0.0:
                loadings[i] = np.clip(off[i] @ loadings / others, -largest, largest)
    return loadings


def probability_of(
    windows: Sequence[Window],
    spreads: Spreads,
    values: Mapping[str, tuple[ColumnElement[float], ColumnElement[float]]],
    n_defects: ColumnElement[int],
) -> ColumnElement[float]:
    """That all windows hold.

    Args:
        values: mean and standard deviation of each window's property.
    """
    ends = [_ends(window, spreads, values[window.property], n_defects) for window in windows]
    if any(any(spreads.loadings.get(window.property, ())) for window in windows):
        return _joint([by_size(spreads.loadings[window.property], n_defects) for window in windows], ends)
    product: ColumnElement[float] = literal(1.0)
    for marginal in map(_marginal, ends):
        product = product * marginal
    return product


def marginals_of(
    windows: Sequence[Window],
    spreads: Spreads,
    values: Mapping[str, tuple[ColumnElement[float], ColumnElement[float]]],
    n_defects: ColumnElement[int],
) -> list[ColumnElement[float]]:
    """That each window holds."""
    return [_marginal(_ends(window, spreads, values[window.property], n_defects)) for window in windows]


def by_size(numbers: Sequence[float], n_defects: ColumnElement[int]) -> ColumnElement[float]:
    """The number that belongs to a number of defects."""
    if len(set(numbers)) == 1:
        return literal(numbers[0], Double)
    place = func.least(n_defects, len(numbers), type_=Integer)
    return case({n: literal(number, Double) for n, number in enumerate(numbers, start=1)}, value=place)


_Ends = tuple[ColumnElement[float] | None, ColumnElement[float] | None]


def _ends(
    window: Window, spreads: Spreads, value: tuple[ColumnElement[float], ColumnElement[float]],
    n_defects: ColumnElement[int],
) -> _Ends:  # fmt: skip
    """G of both ends of a window; None where it is open."""
    mean, std = value
    std = func.greatest(std, SMALLEST_STD, type_=Float)
    slopes = spreads.slopes.get(window.property)

    def stretched(end: float | None) -> ColumnElement[float] | None:
        if end is None:
            return None
        z = (end - mean) / std
        if slopes is None:
            return z
        slope = by_size(slopes, n_defects)
        return slope * z + (1.0 - slope) * func.greatest(-1.0, func.least(1.0, z, type_=Float), type_=Float)

    return stretched(window.low), stretched(window.high)


def _marginal(ends: _Ends) -> ColumnElement[float]:
    low, high = ends
    below_high = literal(1.0) if high is None else _normal_cdf(high)
    return below_high - (literal(0.0) if low is None else _normal_cdf(low))


def _joint(loadings: list[ColumnElement[float]], ends: list[_Ends]) -> ColumnElement[float]:
    nodes, weights = factor_nodes()
    tables = [cast(literal(list(map(float, x)), ARRAY(Double)), ARRAY(Double)) for x in (nodes, weights)]
    factor = func.unnest(*tables).table_valued(column("x", Float), column("weight", Float)).render_derived("factor")
    product: ColumnElement[float] = factor.c.weight
    for loading, (low, high) in zip(loadings, ends, strict=True):
        width = func.sqrt(1.0 - loading * loading, type_=Float)

        def given_x(end: ColumnElement[Any], loading: Any = loading, width: Any = width) -> ColumnElement[float]:
            return _normal_cdf((end - loading * factor.c.x) / width)

        below_high = literal(1.0) if high is None else given_x(high)
        product = product * (below_high - (literal(0.0) if low is None else given_x(low)))
    # by itself it would correlate with the statement around it only, and read the CTE of shifts once more
    total = select(func.sum(product, type_=Float)).select_from(factor).correlate_except(factor)
    return total.scalar_subquery()


def _normal_cdf(z: ColumnElement[Any]) -> ColumnElement[float]:
    return 0.5 * (1.0 + func.erf(z / _ROOT_2, type_=Float))
