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

A chunk is the part of the tree below a range of canonical prefixes; the state of the walk is the sequence it stands
at, so that a chunk is resumed from any block's last row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration, DefectType, composition_label
from screening.defects.host import Supercell
from screening.defects.limits import Limits, allowed_pairs
from screening.defects.orderly_walk import Rules, estimate_rows, fill, open_depth, smallest_image
from screening.defects.separated_counts import count_separated_orbits
from screening.defects.symmetry import Symmetry, count_orbits
from screening.errors import CountMismatchError, InputError

BLOCK_ROWS = 65_536
CHUNK_ROWS = 300_000
MAX_PREFIXES = 200_000  # walked in 0.1 s; a plan is also rows of a database
PREFIXES_PER_CHUNK = 20  # prefixes differ in size by orders of magnitude; so many even out
PROBES = 30_000  # for all prefixes of a number of defects together; half a second in 8x8 MoS2

_EMPTY = Configuration((), ())


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
    """An independently enumerable part: all configurations of `n_defects` that begin within a range of prefixes.

    Attributes:
        first: a canonical prefix, shorter than `n_defects`; empty, with `last`, for all configurations.
        last: a canonical prefix of the same length, not before `first`; both ends belong to the chunk.
    """

    n_defects: int
    first: Configuration
    last: Configuration

    def __post_init__(self) -> None:
        assert self.first.n_defects == self.last.n_defects < self.n_defects


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

    def configuration(self, row: int) -> Configuration:
        """One row."""
        return Configuration(tuple(self.sites[row].tolist()), tuple(self.defect_types[row].tolist()))


def plan_chunks(space: SearchSpace, symmetry: Symmetry, *, rows: int = CHUNK_ROWS) -> list[Chunk]:
    """Split a search space into chunks of about `rows` configurations, ordered by number of defects and prefix.

    The prefixes are long enough for chunks of even size, but never more than `MAX_PREFIXES` for one number of
    defects; in spaces with so many configurations that this is not enough, one chunk per prefix is larger than `rows`.
    The plan is the same every time. Each number of defects has at least one chunk, even if the limits leave it empty.

    Raises:
        InputError: separations are limited, and the configurations are too many to be counted.
    """
    n_rows: Counter[int] = Counter()
    for composition, count in space.counts(symmetry).items():
        n_rows[sum(composition)] += count
    chunks = []
    for n_defects in space.sizes:
        n_chunks = -(-n_rows[n_defects] // rows)
        prefixes = _prefixes(space, symmetry, n_defects, n_chunks)
        starts = _even_starts(space, symmetry, prefixes, n_defects, n_chunks)
        for start, end in zip(starts, [*starts[1:], len(prefixes)], strict=True):
            chunks.append(Chunk(n_defects, prefixes.configuration(start), prefixes.configuration(end - 1)))
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


def walk_rules(space: SearchSpace, symmetry: Symmetry) -> Rules:
    """What the compiled loops need to know of a space and its group."""
    return Rules(
        _codes_by_site(space),
        np.array([t.code for t in space.defect_types], np.int64),
        np.array([space.supercell.allowed(t)[-1] for t in space.defect_types], np.int64),
        np.array(space.min_counts, np.int64),
        np.array(space.max_counts, np.int64),
        allowed_pairs(space.supercell, symmetry, space.limits),
        symmetry.permutations,
        symmetry.to_representative,
        symmetry.representatives,
    )


def _walk(
    space: SearchSpace, symmetry: Symmetry, chunk: Chunk, *, after: Configuration | None = None,
    block_rows: int = BLOCK_ROWS, n_after: int = 0,
) -> Iterator[Block]:  # fmt: skip
    """Walk the range of a chunk; `n_after` more defects are to follow the chunk's when it is a part of a plan."""
    n_defects = chunk.n_defects
    rules = walk_rules(space, symmetry)
    last = np.array(chunk.last.sites, np.int64), np.array(chunk.last.defect_types, np.int64)
    path_sites = np.full(n_defects, -1, np.int64)
    path_columns = np.full(n_defects, -1, np.int64)
    start = after if after is not None else chunk.first
    for depth, (site, code) in enumerate(zip(start.sites, start.defect_types, strict=True)):
        path_sites[depth] = site
        path_columns[depth] = int(np.flatnonzero(rules.site_codes[site] == code)[0])
    depth = n_defects - 1
    if after is None:
        depth = chunk.first.n_defects
        open_depth(path_sites, path_columns, depth, rules.site_codes.shape[1])
    while depth >= 0:
        block = Block(
            np.empty((block_rows, n_defects), np.int16),
            np.empty((block_rows, n_defects), np.int16),
            np.empty(block_rows, np.int32),
        )
        n_rows, depth = fill(
            block.sites, block.defect_types, block.multiplicity, path_sites, path_columns, depth, *last,
            n_after, rules,
        )  # fmt: skip
        if n_rows:
            yield Block(block.sites[:n_rows], block.defect_types[:n_rows], block.multiplicity[:n_rows])


def _prefixes(space: SearchSpace, symmetry: Symmetry, n_defects: int, n_chunks: int) -> Block:
    """The canonical prefixes of the shortest length that has enough of them for even chunks."""
    found = Block(np.zeros((1, 0), np.int16), np.zeros((1, 0), np.int16), np.ones(1, np.int32))
    if n_chunks <= 1:
        return found
    for depth in range(1, n_defects):
        whole = Chunk(depth, _EMPTY, _EMPTY)
        walk = _walk(space, symmetry, whole, block_rows=MAX_PREFIXES + 1, n_after=n_defects - depth)
        longer = next(walk, None)
        if longer is None or len(longer) > MAX_PREFIXES:
            break
        found = longer
        if len(found) >= PREFIXES_PER_CHUNK * n_chunks:
            break
    return found


def _even_starts(
    space: SearchSpace, symmetry: Symmetry, prefixes: Block, n_defects: int, n_chunks: int
) -> list[int]:  # fmt: skip
    """Where in the prefixes each chunk starts, the first at 0."""
    if len(prefixes) <= n_chunks or n_chunks <= 1:
        return list(range(len(prefixes)))
    n_probes = max(1, PROBES // len(prefixes))
    estimates = estimate_rows(
        prefixes.sites, prefixes.defect_types, n_defects - prefixes.sites.shape[1], n_probes, 0,
        walk_rules(space, symmetry),
    )  # fmt: skip
    middle = np.cumsum(estimates) - estimates / 2
    number = np.minimum(middle * (n_chunks / max(1.0, estimates.sum())), n_chunks - 1).astype(np.int64)
    return [0, *(np.flatnonzero(np.diff(number)) + 1).tolist()]


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
