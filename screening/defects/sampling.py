"""Random symmetry-distinct configurations, each with the same probability, of spaces too large to be walked.

The orbits of labelled configurations differ in size, so a labelled configuration drawn at random falls into a large
orbit more often; correcting that by rejection would refuse almost every draw (all but one in 768 in 8x8 MoS2). Dixon
and Wilf (J. Algorithms 4, 205 (1983)) turn Burnside's lemma into a draw without rejection: choose an operation g of
the group G with a probability proportional to the number fix(g) of configurations that it fixes, then one of these at
random. A configuration x is drawn with the probability

    sum over the g that fix x of  [fix(g) / sum_h fix(h)] * [1 / fix(g)]  =  |Stab(x)| / sum_h fix(h).

Its orbit has |G| / |Stab(x)| members, all with stabilizers of this order, so every orbit is drawn with the probability
|G| / sum_h fix(h), which by Burnside's lemma is one over the number of orbits. This holds for each composition and for
several of them together. Limits on separations are invariant under the group, so drawing again until a configuration
obeys them leaves equal probabilities among those that do.

The fixed configurations of an operation are counted by Polya's product, for each kind of site on its own: of n cycles
of one length, k_1, k_2, ... carry the defect types 1, 2, ... in n! / (k_1! k_2! ... (n - sum k)!) ways. All numbers
are exact integers.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from screening.defects.defect_types import Configuration
from screening.defects.enumeration import SearchSpace, canonical_form
from screening.defects.limits import allowed_pairs
from screening.defects.symmetry import Symmetry
from screening.errors import InputError

MAX_REFUSED = 100_000  # draws one after another that break a limit on separations; some ten seconds

Counts = tuple[int, ...]
Cycles = dict[int, list[list[int]]]  # by length


@dataclass(frozen=True)
class SampledConfiguration:
    """A canonical configuration and the size of its symmetry orbit."""

    configuration: Configuration
    multiplicity: int


class Sampler:
    """Draws the symmetry-distinct configurations of a search space with equal probabilities.

    Attributes:
        n_distinct: exact number of configurations that obey the limits on numbers, whatever their separations.
    """

    def __init__(self, space: SearchSpace, symmetry: Symmetry) -> None:
        self.space = space
        self.symmetry = symmetry
        self._allowed = allowed_pairs(space.supercell, symmetry, space.limits)
        self._kinds = list(dict.fromkeys(t.removed for t in space.defect_types))
        self._columns = [[i for i, t in enumerate(space.defect_types) if t.removed == s] for s in self._kinds]
        self._cycles: list[list[Cycles] | None] = [None] * symmetry.n_operations  # by kind of site, once looked at
        self._operations: dict[tuple[tuple[Counts, ...], ...], list[int]] = defaultdict(list)
        for operation in range(symmetry.n_operations):
            self._operations[self._cycle_type(operation)].append(operation)
        self._ways: dict[tuple[tuple[Counts, ...], Counts], int] = {}
        self._choices: list[tuple[tuple[tuple[Counts, ...], ...], Counts]] = []
        self._bounds: list[int] = []
        total = 0
        for composition in self._compositions():
            for cycle_type, operations in self._operations.items():
                if weight := len(operations) * self._n_fixed(cycle_type, composition):
                    total += weight
                    self._choices.append((cycle_type, composition))
                    self._bounds.append(total)
        self.n_distinct, remainder = divmod(total, symmetry.n_operations)
        assert remainder == 0, "Burnside's sum is divisible by the group's order"
        if total == 0:
            raise InputError("the search space has no configuration: more defects are asked for than there are sites")

    def draw(self, generator: random.Random) -> SampledConfiguration:
        """One configuration, independent of those drawn before.

        Raises:
            InputError: too many draws in a row break the limits on separations.
        """
        for _ in range(MAX_REFUSED):
            sites, codes = self._draw_fixed(generator)
            if self._obeys_separations(sites):
                return SampledConfiguration(*canonical_form(self.symmetry, Configuration(sites, codes)))
        raise InputError(
            f"none of {MAX_REFUSED} random configurations obeys the limits on separations; loosen --min-separation and "
            "--max-separation, or enumerate the search space"
        )

    def draw_distinct(self, n: int, generator: random.Random) -> Iterator[SampledConfiguration]:
        """`n` different configurations, every set of `n` with the same probability.

        Raises:
            InputError: the space has fewer, or those that obey the separations do not turn up.
        """
        if n > self.n_distinct:
            raise InputError(
                f"a sample of {n} different configurations was asked for, the search space has {self.n_distinct}; "
                "ask for fewer, or enumerate it without --sample"
            )
        seen: set[Configuration] = set()
        n_known = 0
        while len(seen) < n:
            found = self.draw(generator)
            if found.configuration in seen:
                n_known += 1
                if n_known > MAX_REFUSED:
                    raise InputError(
                        f"only {len(seen)} of {n} configurations were found in {MAX_REFUSED} draws of known ones; ask "
                        "for fewer, or enumerate the search space without --sample"
                    )
                continue
            n_known = 0
            seen.add(found.configuration)
            yield found

    def _compositions(self) -> Iterator[Counts]:
        """All compositions of the space."""
        ranges = (
            range(least, most + 1) for least, most in zip(self.space.min_counts, self.space.max_counts, strict=True)
        )
        return (composition for composition in itertools.product(*ranges) if self.space.allows(composition))

    def _cycles_of(self, operation: int) -> list[Cycles]:
        known = self._cycles[operation]
        if known is not None:
            return known
        image = self.symmetry.permutations[operation].tolist()
        found: list[Cycles] = [defaultdict(list) for _ in self._kinds]
        seen = [False] * len(image)
        for start, symbol in enumerate(self.space.supercell.species):
            cycle = []
            site = start
            while not seen[site]:
                seen[site] = True
                cycle.append(site)
                site = image[site]
            if cycle and symbol in self._kinds:
                found[self._kinds.index(symbol)][len(cycle)].append(cycle)
        self._cycles[operation] = found
        return found

    def _cycle_type(self, operation: int) -> tuple[tuple[Counts, ...], ...]:
        """For each kind of site the pairs (length, number of cycles), ascending; too long cycles left out."""
        longest = self.space.sizes[-1]
        return tuple(
            tuple(sorted((length, len(cycles)) for length, cycles in kind.items() if length <= longest))
            for kind in self._cycles_of(operation)
        )

    def _n_fixed(self, cycle_type: tuple[tuple[Counts, ...], ...], composition: Counts) -> int:
        """How many configurations of a composition an operation fixes."""
        return math.prod(
            self._n_ways(groups, tuple(composition[i] for i in columns))
            for groups, columns in zip(cycle_type, self._columns, strict=True)
        )

    def _n_ways(self, groups: tuple[Counts, ...], counts: Counts) -> int:
        """In how many ways groups of cycles (length, number) carry so many defects of each type."""
        if not groups:
            return int(not any(counts))
        known = self._ways.get((groups, counts))
        if known is None:
            known = sum(weight for _, weight in self._splits(groups, counts))
            self._ways[groups, counts] = known
        return known

    def _splits(self, groups: tuple[Counts, ...], counts: Counts) -> Iterator[tuple[Counts, int]]:
        """Numbers of cycles of the first group for each type, and the ways to have them with all that follows."""
        length, n_cycles = groups[0]
        for taken in itertools.product(*(range(n // length + 1) for n in counts)):
            if sum(taken) <= n_cycles:
                left = tuple(n - length * k for n, k in zip(counts, taken, strict=True))
                yield taken, _multinomial(n_cycles, taken) * self._n_ways(groups[1:], left)

    def _draw_fixed(self, generator: random.Random) -> tuple[Counts, Counts]:
        """Sites and codes of a configuration that a random operation fixes."""
        choice = bisect.bisect_right(self._bounds, generator.randrange(self._bounds[-1]))
        cycle_type, composition = self._choices[choice]
        cycles = self._cycles_of(generator.choice(self._operations[cycle_type]))
        points: list[tuple[int, int]] = []
        for groups, columns, by_length in zip(cycle_type, self._columns, cycles, strict=True):
            left = tuple(composition[i] for i in columns)
            for g, (length, _) in enumerate(groups):
                taken = self._draw_split(groups[g:], left, generator)
                chosen = iter(generator.sample(by_length[length], sum(taken)))
                for column, k in zip(columns, taken, strict=True):
                    code = self.space.defect_types[column].code
                    points += [(site, code) for _ in range(k) for site in next(chosen)]
                left = tuple(n - length * k for n, k in zip(left, taken, strict=True))
        points.sort()
        return tuple(site for site, _ in points), tuple(code for _, code in points)

    def _draw_split(self, groups: tuple[Counts, ...], counts: Counts, generator: random.Random) -> Counts:
        below = generator.randrange(self._n_ways(groups, counts))
        for taken, weight in self._splits(groups, counts):
            below -= weight
            if below < 0:
                return taken
        raise AssertionError("the ways of the splits add up to all ways")

    def _obeys_separations(self, sites: Counts) -> bool:
        if len(self._allowed) == 0:
            return True
        pairs = self._allowed[np.ix_(sites, sites)]
        return bool(pairs[np.triu_indices(len(sites), 1)].all())


def _multinomial(n: int, parts: Counts) -> int:
    """In how many ways n cycles are dealt out to types, k_1 to the first, k_2 to the second, and some left over."""
    ways = 1
    for k in parts:
        ways *= math.comb(n, k)
        n -= k
    return ways
