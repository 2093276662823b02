"""How far a configuration is from what a model has learnt from, in words and as a factor on standard deviations.

Three things are looked at, each in one host and before any network is run: the number of defects and of those of each
type, against the numbers seen; the shares of the types, against the nearest composition seen; and pairs of defects that
are closer than any seen of their types. What lies between things seen keeps the standard deviation of its calibration.

The factors are measured on 2DMD, by training without what was then asked for; shares of errors within the intervals of
68 and 95 %, mean of hosts and of energies, gaps and levels, without and with the factors:

- more defects than ever, by a fifth to four fifths: 80 and 99 %, 85 and 99.7 %. The members disagree more, and that is
  enough, even from three defects to 24 in MoS2 and WSe2 (energies and gaps; HOMO and LUMO jump with the height of the
  cell, which is another one there). So there are words, but no factor.
- fewer defects than ever: 55 and 96 %, with the factor 71 and 98; in BP, from 10 to 7 and 3, 35 and 99 %, with it 72
  and 100.
- more than half of the defects of one type, where no such rows were learnt from: 61 and 93 %, with the factor 66 and
  95.
- pairs closer than 3.3 angstrom, where none were learnt from, in singles to triples of MoS2 and WSe2: 58 and 90 %, with
  the factor 72 and 95.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Supercell
from screening.learning.dataset import LabelledRows
from screening.learning.references import References

_SHARE = 1  # column of the shares in distances of compositions
_GROWTH = np.array([0.7, 1.0])  # of the logarithm of the standard deviation with these distances; see above
_OF_CLOSER_PAIR = 1.5
_SAME_DISTANCE = 0.05  # angstrom; supercells of one host, of other cells by size or height, differ by less


@dataclass(frozen=True, eq=False)
class _Seen:
    """The compositions of one host.

    Attributes:
        fewest: number of defects.
        most: number of defects.
        most_of_type: (n_codes,).
        shares: (n_shares, n_codes) float64: the distinct shares of the types.
        usual_distance: largest distance of one of them from the nearest of the others.
    """

    fewest: int
    most: int
    most_of_type: NDArray[np.int64]
    shares: NDArray[np.float64]
    usual_distance: float

    @classmethod
    def of(cls, compositions: NDArray[np.int64]) -> _Seen:
        """Of numbers of defects (n, n_codes)."""
        sizes = compositions.sum(axis=1)
        shares = np.unique(compositions / sizes[:, None], axis=0)
        most_of_type = compositions.max(axis=0)
        return cls(int(sizes.min()), int(sizes.max()), most_of_type, shares, _usual_distance(shares))


@dataclass(frozen=True, eq=False)
class Novelty:
    """What was seen in training.

    Attributes:
        hosts: names of the hosts.
        codes: codes of the defect types, ascending.
        compositions: (n_compositions, 1 + n_codes) int64: index of the host, then how many defects of each type.
        closest: (n_hosts, n_codes, n_codes) float64, angstrom: smallest distance of two defects of these types; inf
            where no configuration had both.
    """

    hosts: tuple[str, ...]
    codes: tuple[int, ...]
    compositions: NDArray[np.int64]
    closest: NDArray[np.float64]

    def widening(
        self, supercell: Supercell, sites: NDArray[np.int16], defect_types: NDArray[np.int16]
    ) -> NDArray[np.float64]:
        """(n,) float64, at least 1: factors on the standard deviations of a block of configurations.

        Args:
            sites: (n, k) site numbers.
            defect_types: (n, k) codes, all of them seen with the host.
        """
        host = self.hosts.index(supercell.host.name)
        kinds = np.searchsorted(self.codes, defect_types)
        first, composition = _distinct(kinds, len(self.codes))
        distances = self._distances(host, _counts(kinds[first], len(self.codes)))
        widening = np.exp(distances @ _GROWTH)[composition]
        too_close = _has_closer_pair(sites, kinds, supercell.pair_distances, self.closest[host] - _SAME_DISTANCE)
        return np.asarray(np.where(too_close, _OF_CLOSER_PAIR * widening, widening))

    def reasons(self, supercell: Supercell, configurations: Sequence[Configuration]) -> list[str]:
        """Why each configuration is far from what was learnt from, in words; empty where it is not."""
        if supercell.host.name not in self.hosts:
            return [f"the host {supercell.host.name} was never seen"] * len(configurations)
        return ["; ".join(self._reasons(supercell, configuration)) for configuration in configurations]

    def _reasons(self, supercell: Supercell, configuration: Configuration) -> list[str]:
        name = supercell.host.name
        host = self.hosts.index(name)
        seen = self._seen[host]
        known = {code for code, most in zip(self.codes, seen.most_of_type, strict=True) if most}
        unseen = sorted(set(configuration.defect_types) - known)
        if unseen:
            return [f"{', '.join(DefectType.from_code(code).name for code in unseen)} was never seen in {name}"]
        kinds = np.searchsorted(self.codes, np.array([configuration.defect_types]))
        counts = _counts(kinds, len(self.codes))
        found = [*self._unusual_numbers(seen, counts[0])]
        if self._distances(host, counts)[0, _SHARE] > 0:
            found.append(f"the shares of {configuration.composition} are far from all seen")
        return found + self._unusual_pairs(supercell, configuration, self.closest[host])

    def _unusual_numbers(self, seen: _Seen, counts: NDArray[np.int64]) -> list[str]:
        """Words on the numbers of defects (n_codes,) of each type."""
        size = int(counts.sum())
        if size > seen.most:
            return [f"{size} defects, at most {seen.most} were seen"]
        found = [f"{size} defects, at least {seen.fewest} were seen"] if size < seen.fewest else []
        more = [
            f"{count} {DefectType.from_code(code).name}, at most {most} were seen"
            for code, count, most in zip(self.codes, counts.tolist(), seen.most_of_type.tolist(), strict=True)
            if count > most
        ]
        return found + more

    def _unusual_pairs(
        self, supercell: Supercell, configuration: Configuration, closest: NDArray[np.float64]
    ) -> list[str]:
        """Words on the pair of each two types that is closer than any seen."""
        found: dict[tuple[int, int], float] = {}
        rows = [(s, self.codes.index(t)) for s, t in zip(configuration.sites, configuration.defect_types, strict=True)]
        for i, (site, kind) in enumerate(rows):
            for other_site, other in rows[:i]:
                distance = float(supercell.pair_distances[site, other_site])
                pair = (min(kind, other), max(kind, other))
                if distance < closest[pair] - _SAME_DISTANCE and distance < found.get(pair, np.inf):
                    found[pair] = distance
        return [self._words_on_pair(pair, distance, float(closest[pair])) for pair, distance in sorted(found.items())]

    def _words_on_pair(self, pair: tuple[int, int], distance: float, closest: float) -> str:
        one, other = (DefectType.from_code(self.codes[kind]).name for kind in pair)
        if np.isinf(closest):
            return f"{one} and {other} were never seen together"
        return f"{one} and {other} at {distance:.2f} angstrom, the closest seen are at {closest:.2f}"

    @cached_property
    def _seen(self) -> dict[int, _Seen]:
        """What was seen of each host, by its index."""
        host, counts = self.compositions[:, 0], self.compositions[:, 1:]
        return {number: _Seen.of(counts[host == number]) for number in np.unique(host).tolist()}

    def _distances(self, host: int, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, 2): how far compositions (n, n_codes) are from those seen, 0 where they are not.

        The logarithm of how many fewer defects there are than ever, and the share of the defects that are other than in
        the nearest composition seen, beyond what is usual.
        """
        seen, size = self._seen[host], counts.sum(axis=1)
        fewer = np.log(seen.fewest / size)
        far = _nearest(counts / size[:, None], seen.shares) - seen.usual_distance
        return np.asarray(np.maximum(np.stack([fewer, far], axis=1), 0.0))


def learn_novelty(rows: LabelledRows, references: References, known: Novelty | None = None) -> Novelty:
    """What the training rows have shown of the hosts of the references.

    Args:
        known: what the model has seen that the training started from; its hosts and codes are among the references'.
    """
    hosts, codes = references.hosts, references.codes
    host_of_supercell = [hosts.index(supercell.host.name) for supercell in rows.supercells]
    compositions, closest = (set(), _nothing_seen(references)) if known is None else _renumbered(known, references)
    for row in np.flatnonzero(~rows.is_validation):
        number, configuration = rows.supercell_of_row[row], rows.configurations[row]
        host, sites = host_of_supercell[number], np.array(configuration.sites)
        kinds = np.searchsorted(codes, configuration.defect_types)
        compositions.add((host, *np.bincount(kinds, minlength=len(codes)).tolist()))
        one, other = np.triu_indices(len(sites), k=1)
        distances = rows.supercells[number].pair_distances[sites[one], sites[other]]
        np.minimum.at(closest[host], (kinds[one], kinds[other]), distances)
        np.minimum.at(closest[host], (kinds[other], kinds[one]), distances)
    return Novelty(hosts, codes, np.array(sorted(compositions), np.int64), closest)


def _nothing_seen(references: References) -> NDArray[np.float64]:
    n_codes = len(references.codes)
    return np.full((len(references.hosts), n_codes, n_codes), np.inf)


def _renumbered(known: Novelty, references: References) -> tuple[set[tuple[int, ...]], NDArray[np.float64]]:
    """Compositions and closest distances by the hosts and codes of the references."""
    host = np.array([references.hosts.index(name) for name in known.hosts])
    code = np.array([references.codes.index(code) for code in known.codes])
    compositions = np.zeros((len(known.compositions), 1 + len(references.codes)), np.int64)
    compositions[:, 0] = host[known.compositions[:, 0]]
    compositions[:, 1 + code] = known.compositions[:, 1:]
    closest = _nothing_seen(references)
    closest[np.ix_(host, code, code)] = known.closest
    return set(map(tuple, compositions.tolist())), closest


def _distinct(kinds: NDArray[np.int64], n_codes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First row of each distinct composition of kinds (n, k), and the composition (n,) of each row.

    Compositions are told apart by sums of random 62-bit numbers, one for each type: sorting these is fast, and that two
    of a million compositions have the same sum has a probability of 1e-7.
    """
    weights = np.random.default_rng(0).integers(2**62, size=n_codes)
    _, first, composition = np.unique(weights[kinds].sum(axis=1), return_index=True, return_inverse=True)
    return first, composition.reshape(-1)


def _counts(kinds: NDArray[np.int64], n_codes: int) -> NDArray[np.int64]:
    """(n, n_codes): how many defects of each type configurations (n, k) have."""
    return np.asarray((kinds[:, :, None] == np.arange(n_codes)).sum(axis=1), np.int64)


def _nearest(shares: NDArray[np.float64], seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,): share of the defects that would have to change to reach the nearest composition seen."""
    return np.asarray(0.5 * np.abs(shares[:, None] - seen[None]).sum(axis=2).min(axis=1))


def _usual_distance(seen: NDArray[np.float64]) -> float:
    """Largest distance of distinct seen shares (n, n_codes) from the nearest of the others; 0 for a single one."""
    if len(seen) < 2:
        return 0.0
    distances = 0.5 * np.abs(seen[:, None] - seen[None]).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    return float(distances.min(axis=1).max())


@numba.njit(cache=True, nogil=True)
def _has_closer_pair(sites, kinds, distances, closest):  # type: ignore[no-untyped-def]
    """(n,) bool: whether two defects are closer than allowed for their kinds."""
    n, k = sites.shape
    found = np.zeros(n, np.bool_)
    for row in range(n):
        for i in range(k):
            for j in range(i):
                if distances[sites[row, i], sites[row, j]] < closest[kinds[row, i], kinds[row, j]]:
                    found[row] = True
    return found
