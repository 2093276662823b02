"""A checksum of configurations that depends neither on their order nor on how they were cut into blocks.

Each row (sites, codes, multiplicity) is hashed to 64 bits, value by value, with the finalizer of splitmix64 (Steele,
Lea, Flood, OOPSLA 2014), a bijection in which every bit of the input changes half the bits of the output; the checksum
is the sum of the hashes modulo 2**64. A row that is missing, doubled or different changes it, except with a
probability of 2**-64. Two enumerations are the same if their numbers of rows and their checksums are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from screening.defects.enumeration import Block

_SEED = np.uint64(0x243F6A8885A308D3)  # the first bits of pi; a row of zeros does not hash to zero
_STEP = np.uint64(0x9E3779B97F4A7C15)  # of splitmix64, the golden ratio; equal values one after another differ


def checksum(block: Block) -> int:
    """The checksum of a block's rows as a signed 64-bit integer, a bigint of PostgreSQL; 0 for no rows."""
    return add_checksums(_sum_of_rows(block.sites, block.defect_types, block.multiplicity), 0)


def add_checksums(a: int, b: int) -> int:
    """The checksum of the rows of both, signed: the sum modulo 2**64."""
    return (a + b + 2**63) % 2**64 - 2**63


@numba.njit(cache=True)
def mixed(value):  # type: ignore[no-untyped-def]
    """The finalizer of splitmix64, uint64 to uint64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True)
def _sum_of_rows(sites, codes, multiplicity):  # type: ignore[no-untyped-def]
    total = np.zeros(1, np.uint64)
    for row in range(len(sites)):
        found = mixed(_SEED + np.uint64(multiplicity[row]))
        for d in range(sites.shape[1]):
            point = (np.uint64(sites[row, d]) << np.uint64(32)) | np.uint64(codes[row, d])
            found = mixed(found + _STEP + point)
        total[0] += found
    return total[0]
