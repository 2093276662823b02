"""Configurations as numbers a linear model or a tree can take: how many defects of each type, how many pairs of each.

Two pairs of defects are counted in one column when they have the same two defect types and some symmetry maps one
pair of sites onto the other (`graph.pair_table` says so); a pair and its reverse are one pair. The pair table is
looked up for a whole block, so that no Python object is made per configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.errors import InputError, StructureError
from screening.learning.dataset import LabelledRows
from screening.learning.graph import all_kinds, pair_table

_ROWS_PER_BLOCK = 8192  # 13 MB of columns for the 400 of a supercell with many defect types


@dataclass(frozen=True, eq=False)
class PairColumns:
    """The pairs that some defect types can make in one supercell, numbered.

    Attributes:
        supercell: the supercell.
        codes: K codes of defect types, ascending.
        number: (K, K, P) int64, column of an ordered pair by its two types and its row of the pair table; both
            orders of a pair have one column; -1 where there are no such sites.
        distances: (n_pairs,) float64, angstrom, of the pairs of each column.
    """

    supercell: Supercell
    codes: tuple[int, ...]
    number: NDArray[np.int64]
    distances: NDArray[np.float64]

    @property
    def n_pairs(self) -> int:
        """Number of columns of pairs."""
        return len(self.distances)

    def counts(
        self, sites: NDArray[np.integer], defect_types: NDArray[np.integer]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """How many defects of each type (n, K) and pairs of each column (n, n_pairs) a block has.

        Args:
            sites: (n, k) site numbers.
            defect_types: (n, k) codes, all of them among `codes`.
        """
        n_rows, k = sites.shape
        kinds = np.searchsorted(self.codes, defect_types)
        first, second = np.triu_indices(k, 1)
        pair = pair_table(self.supercell).number.numpy()[sites[:, first], sites[:, second]]
        column = self.number[kinds[:, first], kinds[:, second], pair]  # (n, k (k - 1) / 2)
        assert (column >= 0).all(), "a defect type on a site of another species"
        return _tally(kinds, len(self.codes)), _tally(column.reshape(n_rows, -1), self.n_pairs)

    def counts_of(self, configurations: Sequence[Configuration]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The same for configurations of any number of defects, in their order.

        Raises:
            StructureError: a configuration is pristine.
        """
        types = np.empty((len(configurations), len(self.codes)), np.float32)
        pairs = np.empty((len(configurations), self.n_pairs), np.float32)
        for rows, sites, codes in blocks_of(configurations):
            types[rows], pairs[rows] = self.counts(sites, codes)
        return types, pairs

    def can_count(self, configurations: Sequence[Configuration]) -> NDArray[np.bool_]:
        """(n,) bool: whether all defect types of a configuration have columns."""
        codes = set(self.codes)
        return np.array([codes.issuperset(configuration.defect_types) for configuration in configurations], np.bool_)


def pair_columns(supercell: Supercell, codes: Sequence[int]) -> PairColumns:
    """The columns of some defect types in a supercell.

    Args:
        supercell: the supercell.
        codes: K distinct codes, each of a species that the supercell has.
    """
    codes = sorted(codes)
    table = pair_table(supercell)
    ordered = table.number.numpy()
    n_rows = len(table.features)
    distance, reverse = np.zeros(n_rows), np.zeros(n_rows, np.int64)
    distance[ordered] = supercell.pair_distances
    reverse[ordered] = ordered.T
    occurs = all_kinds(table, codes).row.numpy() >= 0  # (K, K, P)
    occurs &= distance > 0  # a site and itself
    first, second, pair = np.nonzero(occurs)
    keys = np.stack([first, second, pair], axis=1)
    reversed_keys = np.stack([second, first, reverse[pair]], axis=1)
    swap = _is_less(reversed_keys, keys)
    unique, column = np.unique(np.where(swap[:, None], reversed_keys, keys), axis=0, return_inverse=True)
    number = np.full(occurs.shape, -1, np.int64)
    number[occurs] = column.reshape(-1)
    return PairColumns(supercell, tuple(codes), number, distance[unique[:, 2]])


def columns_of_rows(rows: LabelledRows) -> PairColumns:
    """The columns of the defect types of training rows that share a supercell.

    Raises:
        InputError: the rows are of several supercells.
    """
    used = [rows.supercells[s] for s in np.unique(rows.supercell_of_row)]
    found = sorted({f"{supercell.host.name} {supercell.label}" for supercell in used})
    if len(found) > 1:
        raise InputError(
            f"the rows are of {', '.join(found)}; pairs are counted in one supercell: fit one model for each"
        )
    training = (c for c, is_held_out in zip(rows.configurations, rows.is_validation, strict=True) if not is_held_out)
    return pair_columns(used[0], sorted({code for configuration in training for code in configuration.defect_types}))


def rows_of_group(rows: LabelledRows, group: int) -> LabelledRows:
    """The rows of one group (a subset of a data set), their order kept.

    Raises:
        InputError: the group has no row to learn from.
    """
    return rows.chosen(np.flatnonzero(rows.group_of_row == group))


def blocks_of(
    configurations: Sequence[Configuration],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int16], NDArray[np.int16]]]:
    """Row numbers (n,), sites (n, k) and codes (n, k) of blocks with one number of defects.

    Raises:
        StructureError: a configuration is pristine.
    """
    by_size: dict[int, list[int]] = {}
    for row, configuration in enumerate(configurations):
        by_size.setdefault(configuration.n_defects, []).append(row)
    if 0 in by_size:
        raise StructureError(f"configuration {by_size[0][0]} has no defects; expected at least one")
    for rows in by_size.values():
        for start in range(0, len(rows), _ROWS_PER_BLOCK):
            block = rows[start : start + _ROWS_PER_BLOCK]
            sites = np.array([configurations[row].sites for row in block], np.int16)
            codes = np.array([configurations[row].defect_types for row in block], np.int16)
            yield np.array(block), sites, codes


def _tally(columns: NDArray[np.int64], n_columns: int) -> NDArray[np.float32]:
    """(n, n_columns) float32: how often each column occurs in each row of (n, m) column numbers."""
    n_rows = len(columns)
    cells = np.arange(n_rows)[:, None] * n_columns + columns
    return np.bincount(cells.ravel(), minlength=n_rows * n_columns).reshape(n_rows, n_columns).astype(np.float32)


def _is_less(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,): whether each row of (n, 3) numbers comes before the other in the order of a dictionary."""
    differs = a != b
    first = differs.argmax(axis=1)[:, None]
    return np.asarray(np.take_along_axis(a, first, 1)[:, 0] < np.take_along_axis(b, first, 1)[:, 0])
