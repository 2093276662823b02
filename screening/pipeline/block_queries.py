"""What a design query says of blocks of candidates, in numpy: the twin of its SELECT.

A scan that keeps the best rows of a query decides by this which they are, and the database by
`screening.database.query_sql`; both must say the same, to the last of twelve digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from screening.database.design_query import CONCENTRATION, PROBABILITY, DesignQuery
from screening.database.query_parts import Window
from screening.database.query_terms import BOLTZMANN, CLOSE_ENOUGH, Branch
from screening.database.window_probability import SMALLEST_STD, Spreads, factor_nodes

Scores = Mapping[str, NDArray[np.float32]]  # by column: <property>_mean and <property>_std, (n,) each


@dataclass(frozen=True, eq=False)
class QueryBlock:
    """Candidates of one number of defects.

    Attributes:
        defect_types: (n, n_defects) int16 codes.
        multiplicity: (n,) int32.
        closest: (n,) float32 shortest distance between two defects, angstrom, `farthest` the longest; None of one
            defect.
    """

    defect_types: NDArray[np.int16]
    multiplicity: NDArray[np.int32]
    scores: Scores
    closest: NDArray[np.float32] | None = None
    farthest: NDArray[np.float32] | None = None

    @property
    def n_defects(self) -> int:
        """Number of defects of each of them."""
        return int(self.defect_types.shape[1])


def window_probability(
    window: Window, spreads: Spreads, mean: NDArray[np.float64], std: NDArray[np.float64], n_defects: int
) -> NDArray[np.float64]:
    """(n,): that a window holds, by means and standard deviations (n,)."""
    below_low, below_high = (
        None if z is None else _normal_cdf(z) for z in _ends(window, spreads, mean, std, n_defects)
    )
    return np.asarray(
        (1.0 if below_high is None else below_high) - (0.0 if below_low is None else below_low) + 0.0 * mean
    )


def probabilities(query: DesignQuery, spreads: Spreads, scores: Scores, n_defects: int) -> NDArray[np.float64]:
    """(n,): that every window of a query holds."""
    n_rows = len(next(iter(scores.values())))
    values = [_values(scores, window.property) for window in query.windows]
    if any(any(spreads.loadings.get(window.property, ())) for window in query.windows):
        ends = [_ends(window, spreads, *value, n_defects) for window, value in zip(query.windows, values, strict=True)]
        return _joint([_of_size(spreads.loadings[window.property], n_defects) for window in query.windows], ends)
    product = np.ones(n_rows)
    for window, value in zip(query.windows, values, strict=True):
        product *= window_probability(window, spreads, *value, n_defects)
    return product


def sort_keys(
    query: DesignQuery, branch: Branch, block: QueryBlock, probability: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,): what a design query ranks candidates by, the smaller the better."""
    if query.sort == PROBABILITY:
        return -np.round(probability, 6)
    if query.sort == CONCENTRATION:
        assert query.temperature is not None
        energy = block.scores["formation_energy_mean"].astype(np.float64)
        places = np.log(block.multiplicity.astype(np.float64)) - np.log(branch.area or 1.0)
        return np.asarray(energy - BOLTZMANN * query.temperature * places)
    key = block.scores[f"{query.sort}_mean"].astype(np.float64)
    if query.target is not None:
        return np.asarray(np.abs(key - query.target))
    return key if query.direction == "lowest" else -key


def matching(
    query: DesignQuery, branch: Branch, block: QueryBlock, probability: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(n,): whether candidates satisfy a query."""
    n_rows = len(block.multiplicity)
    least, most = branch.sizes(query)
    if block.n_defects < least or (most is not None and block.n_defects > most):
        return np.zeros(n_rows, np.bool_)
    found = _types_are_wanted(query, branch, block)
    if block.closest is not None and query.min_separation is not None:
        found &= block.closest >= query.min_separation - CLOSE_ENOUGH
    if block.farthest is not None and query.max_separation is not None:
        found &= block.farthest <= query.max_separation + CLOSE_ENOUGH
    if not query.windows:
        return found
    for window in query.windows if query.confidence >= 0.5 else ():  # as the database does before it looks closer
        mean = block.scores[f"{window.property}_mean"].astype(np.float64)
        found &= (mean >= (-np.inf if window.low is None else window.low)) & (
            mean <= (np.inf if window.high is None else window.high)
        )
    if branch.spreads.loadings:
        for window in query.windows:
            mean, std = _values(block.scores, window.property)
            found &= window_probability(window, branch.spreads, mean, std, block.n_defects) >= query.confidence
    return found & (probability >= query.confidence)


def distances_of(sites: NDArray[np.int16], pair_distances: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Shortest and longest distance (n,) between two defects of each row of sites (n, k), angstrom; {} of one."""
    n_rows, k = sites.shape
    if k == 1:
        return {}
    closest, farthest = np.full(n_rows, np.inf, np.float32), np.zeros(n_rows, np.float32)
    for i in range(k):
        for j in range(i):
            distance = pair_distances[sites[:, j], sites[:, i]]
            np.minimum(closest, distance, out=closest)
            np.maximum(farthest, distance, out=farthest)
    return {"closest": closest, "farthest": farthest}


def _types_are_wanted(query: DesignQuery, branch: Branch, block: QueryBlock) -> NDArray[np.bool_]:
    found = np.ones(len(block.multiplicity), np.bool_)
    types = block.defect_types
    if query.types:
        found &= np.isin(types, [branch.codes[name] for name in query.types if name in branch.codes]).all(axis=1)
    if query.forbidden:
        found &= ~np.isin(types, [branch.codes[name] for name in query.forbidden if name in branch.codes]).any(axis=1)
    for name in query.required:
        found &= (types == branch.codes.get(name, -1)).any(axis=1)
    for count in query.counts:
        number = (types == branch.codes.get(count.type, -1)).sum(axis=1)
        found &= (number >= count.least) & (number <= (block.n_defects if count.most is None else count.most))
    return found


def _values(scores: Scores, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of a property in double precision."""
    return scores[f"{name}_mean"].astype(np.float64), scores[f"{name}_std"].astype(np.float64)


_Ends = tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]


def _ends(
    window: Window, spreads: Spreads, mean: NDArray[np.float64], std: NDArray[np.float64], n_defects: int
) -> _Ends:
    """Both ends of a window as g says them; None where it is open."""
    std = np.maximum(std, SMALLEST_STD)
    slopes = spreads.slopes.get(window.property)

    def stretched(end: float | None) -> NDArray[np.float64] | None:
        if end is None:
            return None
        z = (end - mean) / std
        if slopes is None:
            return np.asarray(z)
        slope = _of_size(slopes, n_defects)
        return np.asarray(slope * z + (1.0 - slope) * np.clip(z, -1.0, 1.0))

    return stretched(window.low), stretched(window.high)


def _joint(loadings: Sequence[float], ends: Sequence[_Ends]) -> NDArray[np.float64]:
    total: NDArray[np.float64] | float = 0.0
    for x, weight in zip(*factor_nodes(), strict=True):
        product: NDArray[np.float64] | float = float(weight)
        for loading, (low, high) in zip(loadings, ends, strict=True):
            width = np.sqrt(1.0 - loading * loading)
            below_high = 1.0 if high is None else _normal_cdf((high - loading * x) / width)
            product = product * (below_high - (0.0 if low is None else _normal_cdf((low - loading * x) / width)))
        total = total + product
    return np.asarray(total)


def _of_size(numbers: Sequence[float], n_defects: int) -> float:
    return numbers[min(n_defects, len(numbers)) - 1]


def _normal_cdf(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1.0 + erf(z / 2.0**0.5)))
