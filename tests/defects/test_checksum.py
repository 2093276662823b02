"""The checksum of configurations, against plain Python integers."""

from __future__ import annotations

import numpy as np
import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.checksum import add_checksums, checksum
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import Block, SearchSpace, enumerate_chunk, enumerate_space, plan_chunks
from screening.defects.host import Supercell
from screening.defects.symmetry import find_symmetry

MASK = 2**64 - 1
Row = tuple[tuple[int, ...], tuple[int, ...], int]


def block_of(rows: list[Row]) -> Block:
    sites, codes, multiplicity = zip(*rows, strict=True)
    return Block(np.array(sites, np.int16), np.array(codes, np.int16), np.array(multiplicity, np.int32))


def finalizer(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def expected(rows: list[Row]) -> int:
    """The definition in unbounded integers."""
    total = 0
    for sites, codes, multiplicity in rows:
        found = finalizer((0x243F6A8885A308D3 + multiplicity) & MASK)
        for site, code in zip(sites, codes, strict=True):
            found = finalizer((found + 0x9E3779B97F4A7C15 + (site << 32 | code)) & MASK)
        total += found
    total &= MASK
    return total - 2**64 if total >= 2**63 else total


ROWS: list[Row] = [
    ((0, 64, 190), (5376, 2048, 2082), 768),
    ((0, 65, 191), (5376, 2082, 2048), 384),
    ((64, 70, 100), (2048, 2048, 2082), 768),
]


def test_the_finalizer_is_the_published_one() -> None:
    state, outputs = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        outputs.append(finalizer(state))
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]  # of splitmix64, seed 1234567


def test_checksum_is_the_sum_of_the_rows_hashes() -> None:
    generator = np.random.default_rng(0)
    rows: list[Row] = [
        (
            tuple(sorted(generator.choice(32_767, n, replace=False).tolist())),
            tuple(generator.integers(0, 15_360, n).tolist()),
            int(generator.integers(1, 2**31 - 1)),
        )
        for n in [5] * 500
    ]
    assert checksum(block_of(rows)) == expected(rows)
    assert checksum(block_of(ROWS)) == expected(ROWS)
    assert -(2**63) <= checksum(block_of(rows)) < 2**63


@pytest.mark.parametrize(
    "changed",
    [
        [((0, 64, 190), (5376, 2082, 2048), 768), *ROWS[1:]],  # two types change places
        [((0, 64, 190), (5376, 2048, 2082), 384), *ROWS[1:]],
        [((0, 64, 189), (5376, 2048, 2082), 768), *ROWS[1:]],
        [((0, 64, 190), (5376, 2048, 2082), 384), ((0, 65, 191), (5376, 2082, 2048), 768), ROWS[2]],
        ROWS[:2],
        [*ROWS, ROWS[0]],
        [*ROWS, ROWS[0], ROWS[0]],  # an exclusive or would not see it
        [ROWS[0], ROWS[0], ROWS[2]],
    ],
)
def test_whatever_changes_in_a_row_changes_the_checksum(changed: list[Row]) -> None:
    assert checksum(block_of(changed)) != checksum(block_of(ROWS))


def test_the_order_of_rows_does_not_matter() -> None:
    assert checksum(block_of(ROWS[::-1])) == checksum(block_of(ROWS))


def test_no_rows_have_the_checksum_zero() -> None:
    assert checksum(Block(np.zeros((0, 3), np.int16), np.zeros((0, 3), np.int16), np.zeros(0, np.int32))) == 0


def test_checksums_add_up_modulo_two_to_the_64() -> None:
    assert add_checksums(2**63 - 1, 1) == -(2**63)
    assert add_checksums(-(2**63), -1) == 2**63 - 1
    assert add_checksums(-5, 3) == -2
    assert add_checksums(checksum(block_of(ROWS[:1])), checksum(block_of(ROWS[1:]))) == checksum(block_of(ROWS))


@pytest.mark.parametrize(("block_rows", "chunk_rows"), [(1, 10**6), (7, 50), (65_536, 200)])
def test_a_space_has_one_checksum_however_it_is_cut(block_rows: int, chunk_rows: int) -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), "4x4")
    space, symmetry = SearchSpace(supercell, parse_defect_types("v_S,W_Mo"), 3), find_symmetry(supercell)
    whole, cut = 0, 0
    for block in enumerate_space(space, symmetry):
        whole = add_checksums(whole, checksum(block))
    for chunk in plan_chunks(space, symmetry, rows=chunk_rows):
        for block in enumerate_chunk(space, symmetry, chunk, block_rows=block_rows):
            cut = add_checksums(cut, checksum(block))
    assert cut == whole != 0
