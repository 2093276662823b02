"""Configurations as a kernel sees them, and how alike their environments are.

The likeness M of two configurations is the mean over both sets of defects of equal type of exp(-|e - e'|^2 / 2 l^2), e
the defects around a defect by type and class of pair, each weighted by exp(-d / r).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from screening.defects.defect_types import Configuration
from screening.learning.graph import pair_table
from screening.learning.pair_columns import PairColumns, blocks_of

_NEAR = 9.0  # angstrom, of an environment

Scale = tuple[float, float]
"""(r in angstrom, l) of the module's docstring."""


@dataclass(frozen=True, eq=False)
class Described:
    """What the kernel sees of n configurations in one lattice of sites; float64 but for the environments.

    Attributes:
        n_defects: (n,).
        shares: (n, K) of the defect types.
        pairs: (n, n_pairs) per defect.
        distances: (n_pairs,) angstrom.
        environments: per type (n_kinds, n_near) float32, the distinct numbers of defects around a defect, by type and
            class of pair.
        weights: per type (n, n_kinds) float32, how many of the defects of a configuration have it, per defect.
        near: (n_near,) angstrom, distances of the columns of environments.
        is_foreign: (n,) bool, of a relative.
    """

    n_defects: Tensor
    shares: Tensor
    pairs: Tensor
    distances: Tensor
    environments: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    near: Tensor
    is_foreign: Tensor

    def chosen(self, rows: Tensor) -> Described:
        """The same of some configurations; rows: (m,) int64."""
        return Described(
            self.n_defects[rows],
            self.shares[rows],
            self.pairs[rows],
            self.distances,
            self.environments,
            tuple(weights[rows] for weights in self.weights),
            self.near,
            self.is_foreign[rows],
        )


def describe(columns: PairColumns, configurations: Sequence[Configuration], *, n_foreign: int = 0) -> Described:
    """What the kernel sees of configurations.

    Args:
        columns: of all defect types that occur.
        configurations: n of them, none pristine.
        n_foreign: so many, the last ones, are of a relative.
    """
    assert columns.can_count(configurations).all(), "a defect type that the columns do not have"
    table = pair_table(columns.supercell)
    number = table.number.numpy()
    distance = np.zeros(len(table.features))
    distance[number] = columns.supercell.pair_distances
    near = np.flatnonzero((distance > 0) & (distance < _NEAR))
    column = np.full(len(distance), -1)
    column[near] = np.arange(len(near))
    n_types = len(columns.codes)
    kinds: list[NDArray[np.int64]] = []
    owners: list[NDArray[np.int64]] = []
    around: list[NDArray[np.float32]] = []
    for rows, sites, codes in blocks_of(configurations):
        n_rows, k = sites.shape
        kind = np.searchsorted(columns.codes, codes)
        counts = np.zeros((n_rows * k, n_types * len(near)), np.float32)
        for i, j in product(range(k), repeat=2):
            place = column[number[sites[:, i], sites[:, j]]]
            known = np.flatnonzero(place >= 0) if i != j else np.empty(0, np.int64)
            counts[known * k + i, kind[known, j] * len(near) + place[known]] += 1.0
        kinds.append(kind.ravel())
        owners.append(np.repeat(rows, k))
        around.append(counts)
    types, pairs = columns.counts_of(configurations)
    n_defects = types.sum(axis=1, keepdims=True)
    environments, weights = _distinct(
        np.concatenate(kinds), np.concatenate(owners), np.concatenate(around), n_defects[:, 0], n_types
    )
    return Described(
        n_defects=torch.from_numpy(n_defects[:, 0]).double(),
        shares=torch.from_numpy(types / n_defects).double(),
        pairs=torch.from_numpy(pairs / n_defects).double(),
        distances=torch.from_numpy(columns.distances),
        environments=environments,
        weights=weights,
        near=torch.from_numpy(np.tile(distance[near], n_types)),
        is_foreign=torch.arange(len(configurations)) >= len(configurations) - n_foreign,
    )


def likeness(a: Described, b: Described, scale: Scale) -> Tensor:
    """M (n_a, n_b) float64 of the module's docstring."""
    reach, length = scale
    total = torch.zeros(len(a.n_defects), len(b.n_defects), dtype=torch.float64)
    damping = (torch.exp(-a.near / reach) / length).float()
    for e_a, w_a, e_b, w_b in zip(a.environments, a.weights, b.environments, b.weights, strict=True):
        if len(e_a) and len(e_b):
            total += _on_both_sides(w_a, torch.exp(-0.5 * squares(e_a * damping, e_b * damping)), w_b)
    return total


def self_likeness(rows: Described, scale: Scale) -> Tensor:
    """M(x, x) (n,) float64."""
    reach, length = scale
    total = torch.zeros(len(rows.n_defects), dtype=torch.float64)
    damping = (torch.exp(-rows.near / reach) / length).float()
    for environments, weights in zip(rows.environments, rows.weights, strict=True):
        if len(environments):
            scaled = environments * damping
            alike = torch.sparse.mm(weights.to_sparse(), torch.exp(-0.5 * squares(scaled, scaled)))
            total += (alike * weights).sum(dim=1)
    return total


def _on_both_sides(a: Tensor, alike: Tensor, b: Tensor) -> Tensor:
    """``a alike b^T``; a row of a and of b has few entries that are not 0, so this costs little more than `alike`."""
    product: Tensor = torch.sparse.mm(b.to_sparse(), torch.sparse.mm(a.to_sparse(), alike).T)
    return product.T


def _distinct(
    kinds: NDArray[np.int64],
    owners: NDArray[np.int64],
    around: NDArray[np.float32],
    n_defects: NDArray[np.float32],
    n_types: int,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Environments and weights of `Described`."""
    environments, weights = [], []
    for kind in range(n_types):
        chosen = np.flatnonzero(kinds == kind)
        distinct, place = torch.unique(torch.from_numpy(around[chosen]), dim=0, return_inverse=True)
        owner = torch.from_numpy(owners[chosen])
        weight = torch.zeros(len(n_defects), len(distinct))
        weight.index_put_((owner, place), 1.0 / torch.from_numpy(n_defects)[owner], accumulate=True)
        environments.append(distinct)
        weights.append(weight)
    return tuple(environments), tuple(weights)


def squares(a: Tensor, b: Tensor) -> Tensor:
    """(n_a, n_b) squared distances of rows."""
    return ((a**2).sum(dim=1)[:, None] + (b**2).sum(dim=1) - 2.0 * a @ b.T).clamp(min=0.0)
