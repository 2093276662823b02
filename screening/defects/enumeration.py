"""Every symmetry-distinct configuration of a search space, exactly once, as a stream of arrays.

Orderly generation (Read, Ann. Discrete Math. 2, 107 (1978)): a defect on a site is a *point* (site, code);
points are ordered by site, then code; a configuration is an ascending sequence of points and is *canonical*
when no operation of the supercell's group gives a lexicographically smaller sequence. Every prefix of a
canonical sequence is canonical, so the search tree that appends larger points to canonical sequences meets
each symmetry-distinct configuration once, and nothing that was seen needs to be remembered. An operation can
only beat a sequence if it carries one of its sites onto the smallest site of the smallest orbit present: 6 of
768 operations per sulphur site in 8x8 MoS2. The multiplicity follows from the operations that give the same
sequence again (orbit and stabilizer).

A chunk is the part of the tree below one canonical prefix; the state of the walk is the sequence it stands
at, so that a chunk is resumed from any block's last row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration, DefectType, composition_label
from screening.defects.host import Supercell
from screening.defects.symmetry import Symmetry, count_orbits
from screening.errors import CountMismatchError, InputError

BLOCK_ROWS = 65_536


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """All configurations of `min_defects` to `max_defects` defects of the given types in a supercell.

    Attributes:
        defect_types: in the order of their codes.
        composition: if given, how often each type occurs, exactly; types that are not named do not occur.
    """

    supercell: Supercell
    defect_types: tuple[DefectType, ...]
    max_defects: int
    min_defects: int = 1
    composition: Mapping[DefectType, int] | None = None

    def __post_init__(self) -> None:
        if not self.defect_types:
            raise InputError("a search space needs at least one defect type, such as v_S")
        for defect_type in self.defect_types:
            self.supercell.allowed(defect_type)
        if not 1 <= self.min_defects <= self.max_defects:
            raise InputError(
                f"the number of defects runs from {self.min_defects} to {self.max_defects}; "
                "expected a first number of at least 1 and a last one not below it"
            )
        if self.composition is not None:
            self._check_composition(self.composition)

    def _check_composition(self, composition: Mapping[DefectType, int]) -> None:
        for defect_type, count in composition.items():
            if defect_type not in self.defect_types:
                raise InputError(
                    f"the composition names {defect_type.name}, which is not among the defect types "
                    f"{', '.join(t.name for t in self.defect_types)}"
                )
            if count < 0:
                raise InputError(f"the composition asks for {count} of {defect_type.name}; expected 0 or more")
        total = sum(composition.values())
        if not self.min_defects <= total <= self.max_defects:
            raise InputError(
                f"the composition has {total} defects; the search space goes from {self.min_defects} "
                f"to {self.max_defects}"
            )

    @property
    def max_counts(self) -> tuple[int, ...]:
        """The largest allowed number of each defect type."""
        if self.composition is None:
            return (self.max_defects,) * len(self.defect_types)
        return tuple(self.composition.get(defect_type, 0) for defect_type in self.defect_types)

    @property
    def sizes(self) -> range:
        """The numbers of defects that occur."""
        if self.composition is None:
            return range(self.min_defects, self.max_defects + 1)
        total = sum(self.composition.values())
        return range(total, total + 1)

    def counts(self, symmetry: Symmetry) -> dict[tuple[int, ...], int]:
        """Exact number of symmetry-distinct configurations per composition (tuple in the order of the types)."""
        orbits = count_orbits(self.supercell, symmetry, self.defect_types, self.sizes[-1])
        wanted = self.max_counts if self.composition is not None else None
        return {
            composition: count
            for composition, count in orbits.items()
            if sum(composition) in self.sizes and (wanted is None or composition == wanted)
        }

    def label(self, composition: tuple[int, ...]) -> str:
        """Name of a composition given as a tuple: `2*v_S+Se_S`."""
        return composition_label({t.code: n for t, n in zip(self.defect_types, composition, strict=True)})


@dataclass(frozen=True)
class Chunk:
    """An independently enumerable part: all configurations of `n_defects` that begin with a canonical prefix."""

    n_defects: int
    prefix: Configuration


@dataclass(frozen=True, eq=False)
class Block:
    """Symmetry-distinct configurations with one number of defects, in canonical form and ascending order.

    Attributes:
        sites: (n, n_defects) int16, ascending along each row.
        defect_types: (n, n_defects) int16, codes.
        multiplicity: (n,) int32, size of each symmetry orbit.
    """

    sites: NDArray[np.int16]
    defect_types: NDArray[np.int16]
    multiplicity: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.sites)


def plan_chunks(space: SearchSpace, symmetry: Symmetry) -> list[Chunk]:
    """Split a search space into chunks, ordered by number of defects and prefix.

    The prefix is two defects shorter than the configurations, so that a chunk holds thousands of rows.
    """
    chunks = []
    for n_defects in space.sizes:
        depth = max(0, n_defects - 2)
        if depth == 0:
            chunks.append(Chunk(n_defects, Configuration((), ())))
            continue
        for block in _walk(space, symmetry, Chunk(depth, Configuration((), ())), complete=False):
            for sites, codes in zip(block.sites.tolist(), block.defect_types.tolist(), strict=True):
                chunks.append(Chunk(n_defects, Configuration(tuple(sites), tuple(codes))))
    return chunks


def enumerate_chunk(
    space: SearchSpace, symmetry: Symmetry, chunk: Chunk, *, after: Configuration | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Iterator[Block]:  # fmt: skip
    """Stream the configurations of a chunk in blocks of at most `block_rows`.

    Args:
        after: resume behind this configuration, the last row of an earlier block.
    """
    return _walk(space, symmetry, chunk, after=after, block_rows=block_rows)


def enumerate_space(space: SearchSpace, symmetry: Symmetry) -> Iterator[Block]:
    """Stream a whole search space.

    Raises:
        CountMismatchError: at the end, if the number of configurations is not Burnside's; never seen.
    """
    found = 0
    for chunk in plan_chunks(space, symmetry):
        for block in enumerate_chunk(space, symmetry, chunk):
            found += len(block)
            yield block
    check_count(found, sum(space.counts(symmetry).values()))


def check_count(found: int, expected: int) -> None:
    """Compare a number of enumerated configurations with the exact count.

    Raises:
        CountMismatchError: they differ.
    """
    if found != expected:
        raise CountMismatchError(
            f"enumerated {found} symmetry-distinct configurations, but Burnside's lemma counts {expected}; "
            "do not use this enumeration, report it"
        )


def canonical_form(symmetry: Symmetry, configuration: Configuration) -> tuple[Configuration, int]:
    """The canonical configuration that is symmetry-equivalent to this one, and its multiplicity."""
    if not configuration.sites:
        return configuration, 1
    sites = np.array(configuration.sites, np.int16)
    codes = np.array(configuration.defect_types, np.int16)
    best_sites, best_codes, n_same = _smallest_image(
        sites, codes, symmetry.permutations, symmetry.to_representative, symmetry.representatives
    )
    canonical = Configuration(tuple(best_sites.tolist()), tuple(best_codes.tolist()))
    return canonical, symmetry.n_operations // int(n_same)


def _walk(
    space: SearchSpace, symmetry: Symmetry, chunk: Chunk, *, after: Configuration | None = None,
    block_rows: int = BLOCK_ROWS, complete: bool = True,
) -> Iterator[Block]:  # fmt: skip
    """Walk the tree below a prefix; `complete` demands the exact composition where the space has one."""
    n_defects, n_prefix = chunk.n_defects, chunk.prefix.n_defects
    site_codes = _codes_by_site(space)
    max_counts = np.array(space.max_counts, np.int64)
    codes = np.array([t.code for t in space.defect_types], np.int64)
    exact = complete and space.composition is not None
    min_counts = max_counts if exact else np.zeros_like(max_counts)
    path_sites = np.full(n_defects, -1, np.int64)
    path_columns = np.full(n_defects, -1, np.int64)
    start = after if after is not None else chunk.prefix
    for depth, (site, code) in enumerate(zip(start.sites, start.defect_types, strict=True)):
        path_sites[depth] = site
        path_columns[depth] = int(np.flatnonzero(site_codes[site] == code)[0])
    if after is None:
        _open(path_sites, path_columns, n_prefix, site_codes.shape[1])
    depth = n_prefix if after is None else n_defects - 1
    while depth >= n_prefix:
        block = Block(
            np.empty((block_rows, n_defects), np.int16),
            np.empty((block_rows, n_defects), np.int16),
            np.empty(block_rows, np.int32),
        )
        n_rows, depth = _fill(
            block.sites, block.defect_types, block.multiplicity, path_sites, path_columns, depth, n_prefix,
            site_codes, codes, min_counts, max_counts,
            symmetry.permutations, symmetry.to_representative, symmetry.representatives,
        )  # fmt: skip
        if n_rows:
            yield Block(block.sites[:n_rows], block.defect_types[:n_rows], block.multiplicity[:n_rows])


def _codes_by_site(space: SearchSpace) -> NDArray[np.int64]:
    """(n_sites, n_columns): the codes allowed on each site, ascending, padded with -1."""
    by_species: dict[str, list[int]] = {}
    for defect_type in space.defect_types:
        by_species.setdefault(defect_type.removed, []).append(defect_type.code)
    table = np.full((space.supercell.n_sites, max(map(len, by_species.values()))), -1, np.int64)
    for site, symbol in enumerate(space.supercell.species):
        allowed = sorted(by_species.get(symbol, []))
        table[site, : len(allowed)] = allowed
    return table


@numba.njit(cache=True)
def _open(path_sites, path_columns, depth, n_columns):  # type: ignore[no-untyped-def]
    """Stand just before the first point that may follow at this depth."""
    path_sites[depth] = path_sites[depth - 1] if depth > 0 else -1
    path_columns[depth] = n_columns


@numba.njit(cache=True)
def _next_point(path_sites, path_columns, depth, site_codes):  # type: ignore[no-untyped-def]
    """Move to the next allowed point at this depth; False when there is none."""
    n_sites, n_columns = site_codes.shape
    site, column = path_sites[depth], path_columns[depth] + 1
    while True:
        if site >= 0 and column < n_columns and site_codes[site, column] >= 0:
            path_sites[depth], path_columns[depth] = site, column
            return True
        site += 1
        column = 0
        if site >= n_sites:
            return False


@numba.njit(cache=True)
def _counts_allow(path_codes, length, codes, limits, sign):  # type: ignore[no-untyped-def]
    """Whether the number of each code stays below (sign 1) or reaches (sign -1) its limit."""
    for t in range(len(codes)):
        count = 0
        for d in range(length):
            if path_codes[d] == codes[t]:
                count += 1
        if sign * (count - limits[t]) > 0:
            return False
    return True


@numba.njit(cache=True)
def _fill(  # type: ignore[no-untyped-def]
    out_sites, out_codes, out_multiplicity, path_sites, path_columns, depth, n_prefix,
    site_codes, codes, min_counts, max_counts, permutations, to_representative, representatives,
):  # fmt: skip
    """Walk on until the block is full or the tree below the prefix is done; returns rows and depth."""
    n_defects = len(path_sites)
    path_codes = np.empty(n_defects, np.int64)
    image_sites = np.empty(n_defects, np.int64)
    image_codes = np.empty(n_defects, np.int64)
    for d in range(depth):
        path_codes[d] = site_codes[path_sites[d], path_columns[d]]
    n_rows = 0
    while depth >= n_prefix and n_rows < len(out_sites):
        if not _next_point(path_sites, path_columns, depth, site_codes):
            depth -= 1
            continue
        path_codes[depth] = site_codes[path_sites[depth], path_columns[depth]]
        if not _counts_allow(path_codes, depth + 1, codes, max_counts, 1):
            continue
        same = _count_same(
            path_sites, path_codes, depth + 1, image_sites, image_codes,
            permutations, to_representative, representatives,
        )  # fmt: skip
        if same == 0:
            continue
        if depth + 1 < n_defects:
            depth += 1
            _open(path_sites, path_columns, depth, site_codes.shape[1])
        elif _counts_allow(path_codes, n_defects, codes, min_counts, -1):
            for d in range(n_defects):
                out_sites[n_rows, d] = path_sites[d]
                out_codes[n_rows, d] = path_codes[d]
            out_multiplicity[n_rows] = len(permutations) // same
            n_rows += 1
    return n_rows, depth


@numba.njit(cache=True)
def _image(sites, codes, length, permutation, image_sites, image_codes):  # type: ignore[no-untyped-def]
    """Image of a sequence under a permutation, sorted by site (insertion sort: sequences are short)."""
    for i in range(length):
        site, code = permutation[sites[i]], codes[i]
        j = i
        while j > 0 and image_sites[j - 1] > site:
            image_sites[j] = image_sites[j - 1]
            image_codes[j] = image_codes[j - 1]
            j -= 1
        image_sites[j] = site
        image_codes[j] = code


@numba.njit(cache=True)
def _compare(a_sites, a_codes, b_sites, b_codes, length):  # type: ignore[no-untyped-def]
    """-1, 0 or 1 as sequence a is lexicographically smaller than, equal to or larger than b."""
    for i in range(length):
        if a_sites[i] != b_sites[i]:
            return -1 if a_sites[i] < b_sites[i] else 1
        if a_codes[i] != b_codes[i]:
            return -1 if a_codes[i] < b_codes[i] else 1
    return 0


@numba.njit(cache=True)
def _count_same(  # type: ignore[no-untyped-def]
    sites, codes, length, image_sites, image_codes, permutations, to_representative, representatives
):
    """Order of the stabilizer of a canonical sequence; 0 for a sequence that is not canonical."""
    first = sites[0]
    for i in range(length):
        if representatives[sites[i]] < first:
            return 0
    same = 0
    for i in range(length):
        if representatives[sites[i]] != first or codes[i] > codes[0]:
            continue
        if codes[i] < codes[0]:
            return 0
        for column in range(to_representative.shape[1]):
            operation = to_representative[sites[i], column]
            if operation < 0:
                break
            _image(sites, codes, length, permutations[operation], image_sites, image_codes)
            order = _compare(image_sites, image_codes, sites, codes, length)
            if order < 0:
                return 0
            if order == 0:
                same += 1
    return same


@numba.njit(cache=True)
def _smallest_image(sites, codes, permutations, to_representative, representatives):  # type: ignore[no-untyped-def]
    """Smallest image of a sequence, and how many operations give it."""
    length = len(sites)
    first = representatives[sites].min()
    best_sites, best_codes = sites.copy(), codes.copy()
    image_sites, image_codes = sites.copy(), codes.copy()
    same = 0
    for i in range(length):
        if representatives[sites[i]] != first:
            continue
        for column in range(to_representative.shape[1]):
            operation = to_representative[sites[i], column]
            if operation < 0:
                break
            _image(sites, codes, length, permutations[operation], image_sites, image_codes)
            order = _compare(image_sites, image_codes, best_sites, best_codes, length)
            if order < 0 or same == 0:
                best_sites[:], best_codes[:] = image_sites, image_codes
                same = 1
            elif order == 0:
                same += 1
    return best_sites, best_codes, same
