"""Exact counts by Burnside's lemma where some pairs of sites may not both carry a defect.

A configuration that a permutation fixes is a set of its cycles, each with one defect type on all its sites. With
forbidden pairs the sets are those of pairwise compatible cycles, an independent set of a graph, and Polya's product no
longer counts them. They are few for the numbers of defects that can be enumerated, so they are walked: over cycles in
ascending order with the cycles that may still follow as a bit mask, the last cycle counted by the mask's bits. What
is counted is the *shape* of a set, how many cycles it has of each kind of site and length; the types on them, which no
separation depends on, follow by multiplication. Nothing here is shared with the walk of the enumeration but the table
of allowed pairs.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import DefectType
from screening.defects.host import Supercell
from screening.defects.symmetry import Symmetry
from screening.errors import InputError

MAX_DEFECTS = 10  # beyond, the shapes of sets of cycles alone are too many
MAX_STEPS = 5_000_000_000  # some minutes; a space that needs more is too large to be enumerated anyway

_ADVICE = "ask for fewer defects, tighter limits, or a random sample (`screening enumerate --sample N --no-store`)"

CycleClass = tuple[int, int]  # index of the species among those removed, length


def count_separated_orbits(
    supercell: Supercell, symmetry: Symmetry, defect_types: Sequence[DefectType], max_defects: int,
    allowed: NDArray[np.bool_],
) -> dict[tuple[int, ...], int]:  # fmt: skip
    """Exact number of symmetry-distinct configurations with allowed pairs only, for each composition.

    Args:
        allowed: (n_sites, n_sites) bool, symmetric and invariant under the group.

    Returns:
        As count_orbits: by tuples of numbers of defects in the order of `defect_types`, pristine included.

    Raises:
        InputError: the configurations are too many to be counted so.
    """
    if max_defects > MAX_DEFECTS:
        raise InputError(
            f"up to {max_defects} defects with limited separations cannot be counted exactly; expected at most "
            f"{MAX_DEFECTS}: {_ADVICE}"
        )
    removed = list(dict.fromkeys(t.removed for t in defect_types))
    kinds = np.array([removed.index(s) if s in removed else -1 for s in supercell.species])
    shapes: Counter[tuple[CycleClass, ...]] = Counter()
    identity = np.arange(len(kinds))
    sites, sizes = np.unique(symmetry.representatives, return_counts=True)
    for permutation, n_conjugate in _conjugacy_classes(symmetry.permutations):
        cycles = _short_cycles(permutation, kinds, max_defects)
        orbit_sizes = (
            dict(zip(sites.tolist(), sizes.tolist(), strict=True)) if np.array_equal(permutation, identity) else {}
        )
        for shape, n_sets in _count_shapes(cycles, kinds, allowed, max_defects, orbit_sizes).items():
            shapes[shape] += n_conjugate * n_sets
    total: Counter[tuple[int, ...]] = Counter()
    for shape, n_sets in shapes.items():
        for composition, n_ways in _type_assignments(shape, defect_types, removed).items():
            total[composition] += n_sets * n_ways
    orbits = {}
    for composition, fixed in sorted(total.items()):
        count, remainder = divmod(fixed, symmetry.n_operations)
        assert remainder == 0, "Burnside's sum is divisible by the group's order"
        if count:
            orbits[composition] = count
    return orbits


def _conjugacy_classes(permutations: NDArray[np.int16]) -> list[tuple[NDArray[np.int16], int]]:
    """One permutation of each conjugacy class with the size of its class: conjugates fix equally many sets."""
    weights = np.random.default_rng(0).integers(1, 2**62, permutations.shape[1])
    inverses = np.argsort(permutations, axis=1)
    classes = []
    with np.errstate(over="ignore"):
        keys = permutations @ weights
        assert len(np.unique(keys)) == len(keys), "different permutations have different keys"
        left = dict(zip(keys.tolist(), permutations, strict=True))
        while left:
            permutation = next(iter(left.values()))
            conjugates = np.take_along_axis(permutations, permutation[inverses].astype(np.int64), axis=1)
            members = np.unique(conjugates @ weights).tolist()
            classes.append((permutation, len(members)))
            for key in members:
                del left[key]
    return classes


def _short_cycles(permutation: NDArray[np.int16], kinds: NDArray[np.int64], max_length: int) -> list[list[int]]:
    """The cycles of at most `max_length` sites on which a defect can sit."""
    image = permutation.tolist()
    seen = [False] * len(image)
    cycles = []
    for start in np.flatnonzero(kinds >= 0).tolist():
        cycle = []
        site = start
        while not seen[site]:
            seen[site] = True
            cycle.append(site)
            site = image[site]
        if 0 < len(cycle) <= max_length:
            cycles.append(cycle)
    return cycles


def _count_shapes(
    cycles: list[list[int]], kinds: NDArray[np.int64], allowed: NDArray[np.bool_], max_defects: int,
    orbit_sizes: dict[int, int],
) -> dict[tuple[CycleClass, ...], int]:  # fmt: skip
    """How many sets of compatible cycles there are of each shape.

    Args:
        orbit_sizes: if the cycles are single sites, all that the group moves, the size of each site's orbit by its
            representative: sets are then counted by those that hold a representative, k times for k sites.
    """
    conflicts = _conflicts(cycles, allowed)
    kept = np.flatnonzero(~np.diag(conflicts))
    class_of = [(int(kinds[cycles[c][0]]), len(cycles[c])) for c in kept]
    classes = sorted(set(class_of), key=lambda found: found[1])
    shapes, transitions = _shapes(classes, max_defects)
    numbers = np.array([classes.index(found) for found in class_of], np.int64)
    compatible = ~conflicts[np.ix_(kept, kept)]
    np.fill_diagonal(compatible, False)
    tables = _bit_rows(np.triu(compatible)), _bit_rows(np.arange(len(classes))[:, None] == numbers[None, :])
    total = [0] * len(shapes)
    steps = 0
    for mask, start, weight in _starts(cycles, kept, compatible, orbit_sizes):
        counts = np.zeros(len(shapes), np.int64)
        shape = 0 if start is None else int(transitions[0, numbers[start]])
        counts[shape] = 1  # the set that it starts from
        steps += _walk_sets(*tables, numbers, transitions, counts, mask, shape)
        if steps > MAX_STEPS:
            raise InputError(f"the configurations with these separations are too many to count them exactly; {_ADVICE}")
        total = [n + weight * int(more) for n, more in zip(total, counts, strict=True)]
    if orbit_sizes:
        total = [n // max(1, len(shape)) for n, shape in zip(total, shapes, strict=True)]
        total[0] = 1
    return {shape: n for shape, n in zip(shapes, total, strict=True) if n}


def _starts(
    cycles: list[list[int]], kept: NDArray[np.int64], compatible: NDArray[np.bool_], orbit_sizes: dict[int, int]
) -> list[tuple[NDArray[np.uint64], int | None, int]]:
    """Where walks begin: a mask of what may follow, the cycle that is in the set already, and the walk's weight."""
    if not orbit_sizes:
        return [(_bit_rows(np.ones((1, len(kept)), np.bool_))[0], None, 1)]
    masks = _bit_rows(compatible)
    return [
        (masks[i], i, orbit_sizes[cycles[c][0]]) for i, c in enumerate(kept.tolist()) if cycles[c][0] in orbit_sizes
    ]


def _conflicts(cycles: list[list[int]], allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n_cycles, n_cycles) bool: pairs of cycles with a forbidden pair of sites; on the diagonal, within a cycle."""
    membership = np.zeros((len(cycles), len(allowed)), np.float32)
    for c, cycle in enumerate(cycles):
        membership[c, cycle] = 1.0
    forbidden = ~allowed
    np.fill_diagonal(forbidden, False)
    return np.asarray(membership @ forbidden.astype(np.float32) @ membership.T > 0.5, np.bool_)


def _shapes(classes: list[CycleClass], max_defects: int) -> tuple[list[tuple[CycleClass, ...]], NDArray[np.int64]]:
    """All multisets of classes of at most `max_defects` sites, and the number of each with one class more or -1."""
    shapes: list[tuple[CycleClass, ...]] = []
    for n_cycles in range(max_defects + 1):
        shapes += [
            shape
            for shape in itertools.combinations_with_replacement(classes, n_cycles)
            if sum(length for _, length in shape) <= max_defects
        ]
    number = {tuple(sorted(shape)): i for i, shape in enumerate(shapes)}
    transitions = np.full((len(shapes), max(1, len(classes))), -1, np.int64)
    for i, shape in enumerate(shapes):
        for c, found in enumerate(classes):
            transitions[i, c] = number.get(tuple(sorted((*shape, found))), -1)
    return [tuple(sorted(shape)) for shape in shapes], transitions


def _bit_rows(table: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """(n_rows, n_words) uint64: each row of a table as bits."""
    n_words = max(1, -(-table.shape[1] // 64))
    padded = np.zeros((len(table), 64 * n_words), np.uint8)
    padded[:, : table.shape[1]] = table
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64)


def _type_assignments(
    shape: tuple[CycleClass, ...], defect_types: Sequence[DefectType], removed: Sequence[str]
) -> dict[tuple[int, ...], int]:
    """In how many ways the cycles of a set carry defect types, by composition."""
    ways: Counter[tuple[int, ...]] = Counter({(0,) * len(defect_types): 1})
    for kind, length in shape:
        grown: Counter[tuple[int, ...]] = Counter()
        for composition, count in ways.items():
            for i, defect_type in enumerate(defect_types):
                if defect_type.removed == removed[kind]:
                    grown[(*composition[:i], composition[i] + length, *composition[i + 1 :])] += count
        ways = grown
    return ways


@numba.njit(cache=True)
def _n_bits(word):  # type: ignore[no-untyped-def]
    """Number of bits that are set (Hacker's Delight, 5-1)."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@numba.njit(cache=True)
def _walk_sets(followers, members, numbers, transitions, counts, mask, start):  # type: ignore[no-untyped-def]
    """Add the larger sets of each shape to `counts`; returns the steps, more than MAX_STEPS if it was left off."""
    n_cycles, n_words = followers.shape
    n_classes = len(members)
    max_depth = MAX_DEFECTS + 1
    masks = np.zeros((max_depth, n_words), np.uint64)
    shape = np.zeros(max_depth, np.int64)
    cursor = np.zeros(max_depth, np.int64)
    masks[0] = mask
    shape[0] = start
    grows = np.zeros(len(transitions), np.bool_)
    for i in range(len(transitions)):
        grows[i] = transitions[i].max() >= 0
    depth, steps, entering = 0, 0, True
    while depth >= 0:
        if entering:
            steps += 1
            if steps > MAX_STEPS:
                return steps
            for c in range(n_classes):
                larger = transitions[shape[depth], c]
                if larger < 0:
                    continue
                for w in range(n_words):
                    counts[larger] += _n_bits(masks[depth, w] & members[c, w])
            cursor[depth] = 0
        entering = False
        while cursor[depth] < n_cycles:
            cycle = cursor[depth]
            cursor[depth] += 1
            if not masks[depth, cycle // 64] >> np.uint64(cycle % 64) & np.uint64(1):
                continue
            larger = transitions[shape[depth], numbers[cycle]]
            if larger >= 0 and grows[larger]:  # the sets that end here are counted by their last cycles
                shape[depth + 1] = larger
                for w in range(n_words):
                    masks[depth + 1, w] = masks[depth, w] & followers[cycle, w]
                depth += 1
                entering = True
                break
        if not entering:
            depth -= 1
    return steps
