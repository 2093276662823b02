"""Results of a relative: a host with the same lattice of other elements, as GaSe and InSe, or MoS2 and WSe2.

What defects do to each other is much the same in two such hosts. A vacancy of a metal stands for a vacancy of the other
metal, and the metal of one host in the other for its counterpart, so that configurations of one can be written as
configurations of the other. How far their results teach is for the kernel to find out
(`screening.learning.environment_kernel`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration, atomic_number
from screening.defects.host import Supercell
from screening.learning.dataset import LabelledRows
from screening.learning.graph import pair_table
from screening.learning.references import output_labels

FARTHEST = 0.5  # angstrom, between sites that correspond, the lattices scaled onto each other
_ALIKE = 1e-3  # fractional coordinates, above rounding
_CODE = 128  # a code is the atomic number of what was removed times this, plus that of what was added


@dataclass(frozen=True, eq=False)
class Correspondence:
    """How a supercell of a relative is written as one of the host.

    Attributes:
        sites: (n_sites,) site of the host for each site of the relative.
        elements: atomic number for atomic number; others stay what they are.
    """

    sites: NDArray[np.int64]
    elements: Mapping[int, int]

    def translate(self, configuration: Configuration) -> Configuration:
        """A configuration of the relative in the sites and defect types of the host."""
        sites = self.sites[list(configuration.sites)]
        codes = [
            self.elements.get(removed, removed) * _CODE + self.elements.get(added, added)
            for removed, added in (divmod(code, _CODE) for code in configuration.defect_types)
        ]
        order = np.argsort(sites)
        return Configuration(tuple(sites[order].tolist()), tuple(codes[i] for i in order))


@dataclass(frozen=True, eq=False)
class RelativeRows:
    """Results of relatives, written as configurations of a supercell.

    Attributes:
        configurations: n of them.
        labels: (n, n_outputs) float64, NaN where unknown.
        fold: (n,), by which to choose some of them.
    """

    configurations: tuple[Configuration, ...]
    labels: NDArray[np.float64]
    fold: NDArray[np.int64]

    def chosen(self, rows: NDArray[np.int64]) -> RelativeRows:
        """Some of the rows; rows: (m,) numbers."""
        return RelativeRows(tuple(self.configurations[row] for row in rows), self.labels[rows], self.fold[rows])


def rows_of_relatives(
    rows: LabelledRows, supercell: Supercell, *, codes: Collection[int], outputs: Sequence[str]
) -> RelativeRows:
    """Training rows of other hosts with the same lattice, written as configurations of a supercell.

    Args:
        codes: defect types of the supercell's host that may occur; rows with others are left out.
        outputs: the columns of the labels.
    """
    known, found = set(codes), dict[int, Configuration]()
    for s, other in enumerate(rows.supercells):
        if other.host.name == supercell.host.name or (correspondence := correspond(supercell, other)) is None:
            continue
        for row in np.flatnonzero(~rows.is_validation & (rows.supercell_of_row == s)).tolist():
            translated = correspondence.translate(rows.configurations[row])
            if known.issuperset(translated.defect_types):
                found[row] = translated
    numbers = np.array(list(found), np.int64)
    return RelativeRows(tuple(found.values()), output_labels(rows, outputs)[numbers], rows.fold[numbers])


def _one_of_each_translation(supercell: Supercell) -> list[int]:
    """A site for each site of the unit cell: others differ from these by a translation of the lattice."""
    within = supercell.positions @ np.linalg.inv(supercell.host.lattice)
    within[:, :2] -= np.floor(within[:, :2] + 0.5 * _ALIKE)
    _, first = np.unique(np.rint(within / _ALIKE).astype(np.int64), axis=0, return_index=True)
    return sorted(first.tolist())


def correspond(supercell: Supercell, other: Supercell) -> Correspondence | None:
    """The correspondence that changes the fewest elements, of these with the least distances.

    None where there is none, or where pairs do not correspond.
    """
    if len(supercell.species) != len(other.species) or not np.array_equal(supercell.matrix, other.matrix):
        return None
    here, there = _places(supercell), _places(other)
    cell = supercell.lattice.copy()
    if supercell.host.is_layer:
        cell[2] = (0.0, 0.0, 1.0)
    has_other_element = np.array(other.species)[:, None] != np.array(supercell.species)
    best: tuple[int, float, NDArray[np.int64]] | None = None
    for in_plane, normal in product((1, -1), repeat=2):  # of layers with two-fold axes or mirrors one is enough
        turned = there * (in_plane, in_plane, normal)
        for start in _one_of_each_translation(supercell):
            shift = np.append(here[start, :2] - turned[0, :2], 0.0)
            apart = (turned + shift)[:, None] - here
            apart[..., :2] -= np.rint(apart[..., :2])
            distances = np.linalg.norm(apart @ cell, axis=2)
            sites, farthest = distances.argmin(axis=1), float(distances.min(axis=1).max())
            n_other = int(has_other_element[np.arange(len(sites)), sites].sum())
            if len(set(sites.tolist())) == len(here) and farthest < FARTHEST:
                best = min(best or (n_other, farthest, sites), (n_other, farthest, sites), key=lambda found: found[:2])
    if best is None:
        return None
    sites = best[2]
    species = set(zip(other.species, (supercell.species[site] for site in sites), strict=True))
    if len({a for a, _ in species}) != len(species) or len({b for _, b in species}) != len(species):
        return None
    numbers = pair_table(supercell).number.numpy()[np.ix_(sites, sites)], pair_table(other).number.numpy()
    pairs = {(int(a), int(b)) for a, b in zip(*(number.ravel() for number in numbers), strict=True)}
    if not len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}):
        return None
    of_other = {atomic_number(a): atomic_number(b) for a, b in species}
    elements = {b: a for a, b in of_other.items()} | of_other
    if len(set(elements.values())) < len(elements):  # two elements would become one
        return None
    return Correspondence(sites.astype(np.int64), elements)


def _places(supercell: Supercell) -> NDArray[np.float64]:
    """(n_sites, 3): fractional in the plane; from the middle, in angstrom for layers, whose vacuum differs."""
    places = supercell.positions @ np.linalg.inv(supercell.lattice)
    if supercell.host.is_layer:
        places[:, 2] = supercell.positions[:, 2]
    places[:, 2] -= places[:, 2].mean()
    return np.asarray(places)
