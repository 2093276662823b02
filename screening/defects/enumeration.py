"""Every symmetry-distinct configuration of a search space, exactly once, as a stream of arrays.

Orderly generation (Read, Ann. Discrete Math. 2, 107 (1978)): a defect on a site is a *point* (site, code);
points are ordered by site, then code; a configuration is an ascending sequence of points and is *canonical*
when no operation of the supercell's group gives a lexicographically smaller sequence. Every prefix of a
canonical sequence is canonical, so the search tree that appends larger points to canonical sequences meets
each symmetry-distinct configuration once, and nothing that was seen needs to be remembered. An operation can
only beat a sequence if it carries one of its sites onto the smallest site of the smallest orbit present: 6 of
768 operations per sulphur site in 8x8 MoS2. The multiplicity follows from the operations that give the same
sequence again (orbit and stabilizer).

Limits prune the tree at once where all that follows breaks them: more of a type than its largest number, fewer than
its least number even if all further defects are of it, a forbidden pair of sites. Each of these holds for a sequence
when it holds for its images, so what is left is still met once.

A chunk is the part of the tree below one canonical prefix; the state of the walk is the sequence it stands
at, so that a chunk is resumed from any block's last row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration, DefectType, composition_label
from screening.defects.host import Supercell
from screening.defects.limits import Limits, allowed_pairs
from screening.defects.orderly_walk import fill, open_depth, smallest_image
from screening.defects.separated_counts import count_separated_orbits
from screening.defects.symmetry import Symmetry, count_orbits
from screening.errors import CountMismatchError, InputError

BLOCK_ROWS = 65_536


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """All configurations of `min_defects` to `max_defects` defects of the given types in a supercell.

    Attributes:
        defect_types: in the order of their codes.
        composition: if given, how often each type occurs, exactly; types that are not named do not occur.
        limits: on the numbers of types, unless there is a composition, and on separations.
    """

    supercell: Supercell
    defect_types: tuple[DefectType, ...]
    max_defects: int
    min_defects: int = 1
    composition: Mapping[DefectType, int] | None = None
    limits: Limits = field(default_factory=Limits)

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
        self._check_limits()

    def _check_limits(self) -> None:
        if self.composition is not None and self.limits.counts:
            raise InputError(
                "a composition fixes the number of every defect type; leave the limits on the numbers of types out"
            )
        for defect_type in self.limits.counts:
            if defect_type not in self.defect_types:
                raise InputError(
                    f"a limit names {defect_type.name}, which is not among the defect types "
                    f"{', '.join(t.name for t in self.defect_types)}"
                )
        if not self.sizes:
            raise InputError(
                f"the limits ask for {sum(self.min_counts)} to {sum(self.max_counts)} defects; the search space goes "
                f"from {self.min_defects} to {self.max_defects}"
            )

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
    def min_counts(self) -> tuple[int, ...]:
        """The least allowed number of each defect type."""
        if self.composition is not None:
            return self.max_counts
        return tuple(self.limits.counts.get(defect_type, (0, None))[0] for defect_type in self.defect_types)

    @property
    def max_counts(self) -> tuple[int, ...]:
        """The largest allowed number of each defect type."""
        if self.composition is not None:
            return tuple(self.composition.get(defect_type, 0) for defect_type in self.defect_types)
        largest = (self.limits.counts.get(defect_type, (0, None))[1] for defect_type in self.defect_types)
        return tuple(self.max_defects if n is None else min(n, self.max_defects) for n in largest)

    @property
    def sizes(self) -> range:
        """The numbers of defects that occur."""
        least, largest = sum(self.min_counts), sum(self.max_counts)
        return range(max(self.min_defects, least), min(self.max_defects, largest) + 1)

    def allows(self, composition: tuple[int, ...]) -> bool:
        """Whether a composition, a tuple in the order of the types, is part of the space."""
        limits = zip(self.min_counts, composition, self.max_counts, strict=True)
        return sum(composition) in self.sizes and all(least <= n <= largest for least, n, largest in limits)

    def counts(self, symmetry: Symmetry) -> dict[tuple[int, ...], int]:
        """Exact number of symmetry-distinct configurations per composition (tuple in the order of the types).

        Raises:
            InputError: separations are limited, and the configurations are too many to be counted.
        """
        max_defects = self.sizes[-1]
        if self.limits.has_separations:
            allowed = allowed_pairs(self.supercell, symmetry, self.limits)
            orbits = count_separated_orbits(self.supercell, symmetry, self.defect_types, max_defects, allowed)
        else:
            orbits = count_orbits(self.supercell, symmetry, self.defect_types, max_defects)
        return {composition: count for composition, count in orbits.items() if self.allows(composition)}

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
        for block in _walk(space, symmetry, Chunk(depth, Configuration((), ())), n_after=n_defects - depth):
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
    best_sites, best_codes, n_same = smallest_image(
        sites, codes, symmetry.permutations, symmetry.to_representative, symmetry.representatives
    )
    canonical = Configuration(tuple(best_sites.tolist()), tuple(best_codes.tolist()))
    return canonical, symmetry.n_operations // int(n_same)


def _walk(
    space: SearchSpace, symmetry: Symmetry, chunk: Chunk, *, after: Configuration | None = None,
    block_rows: int = BLOCK_ROWS, n_after: int = 0,
) -> Iterator[Block]:  # fmt: skip
    """Walk the tree below a prefix; `n_after` more defects are to follow the chunk's when it is a part of a plan."""
    n_defects, n_prefix = chunk.n_defects, chunk.prefix.n_defects
    site_codes = _codes_by_site(space)
    codes = np.array([t.code for t in space.defect_types], np.int64)
    limits = np.array(space.min_counts, np.int64), np.array(space.max_counts, np.int64)
    allowed = allowed_pairs(space.supercell, symmetry, space.limits)
    path_sites = np.full(n_defects, -1, np.int64)
    path_columns = np.full(n_defects, -1, np.int64)
    start = after if after is not None else chunk.prefix
    for depth, (site, code) in enumerate(zip(start.sites, start.defect_types, strict=True)):
        path_sites[depth] = site
        path_columns[depth] = int(np.flatnonzero(site_codes[site] == code)[0])
    if after is None:
        open_depth(path_sites, path_columns, n_prefix, site_codes.shape[1])
    depth = n_prefix if after is None else n_defects - 1
    while depth >= n_prefix:
        block = Block(
            np.empty((block_rows, n_defects), np.int16),
            np.empty((block_rows, n_defects), np.int16),
            np.empty(block_rows, np.int32),
        )
        n_rows, depth = fill(
            block.sites, block.defect_types, block.multiplicity, path_sites, path_columns, depth, n_prefix,
            n_after, site_codes, codes, *limits, allowed,
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
