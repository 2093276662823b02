"""Results of a relative: a host with the same lattice of other elements, as GaSe and InSe, or MoS2 and WSe2.

What defects do to each other is much the same in two such hosts. A vacancy of a metal stands for a vacancy of the other
metal, and the metal of one host in the other for its counterpart, so that configurations of one can be written as
configurations of the other. How far their results teach is for the kernel to find out
(`screening.learning.environment_kernel`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration, atomic_number
from screening.defects.host import Supercell
from screening.learning.dataset import LabelledRows
from screening.learning.graph import pair_table

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


def rows_of_relatives(rows: LabelledRows, supercell: Supercell) -> LabelledRows | None:
    """Training rows of other hosts with the same lattice, written as configurations of a supercell; None without any.

    Rows with a defect type that has no counterpart among those of the supercell's host are left out.
    """
    host = supercell.host.name
    of_host = [s for s, other in enumerate(rows.supercells) if other.host.name == host]
    own = np.flatnonzero(~rows.is_validation & np.isin(rows.supercell_of_row, of_host))
    codes = {code for row in own for code in rows.configurations[row].defect_types}
    found: dict[int, Configuration] = {}
    for s, other in enumerate(rows.supercells):
        if other.host.name == host or (correspondence := correspond(supercell, other)) is None:
            continue
        for row in np.flatnonzero(~rows.is_validation & (rows.supercell_of_row == s)).tolist():
            translated = correspondence.translate(rows.configurations[row])
            if codes.issuperset(translated.defect_types):
                found[row] = translated
    if not found:
        return None
    chosen = rows.chosen(np.array(list(found)))
    return replace(
        chosen,
        supercells=(supercell,),
        supercell_of_row=np.zeros(len(found), np.int64),
        configurations=tuple(found.values()),
    )


def _one_of_each_translation(supercell: Supercell) -> list[int]:
    """A site for each site of the unit cell: others differ from these by a translation of the lattice."""
    within = supercell.positions @ np.linalg.inv(supercell.host.lattice)
    within[:, :2] -= np.floor(within[:, :2] + 0.5 * _ALIKE)
    _, first = np.unique(np.rint(within / _ALIKE).astype(np.int64), axis=0, return_index=True)
    return sorted(first.tolist())


def correspond(supercell: Supercell, other: Supercell) -> Correspondence | None:
    """The correspondence with the least distances; None where there is none, or where pairs do not correspond."""
    if len(supercell.species) != len(other.species) or not np.array_equal(supercell.matrix, other.matrix):
        return None
    inverse = np.linalg.inv(supercell.lattice), np.linalg.inv(other.lattice)
    here, there = supercell.positions @ inverse[0], other.positions @ inverse[1]
    best: tuple[float, NDArray[np.int64]] | None = None
    for in_plane, normal in product((1, -1), repeat=2):  # of layers with two-fold axes or mirrors one is enough
        turned = there * (in_plane, in_plane, normal)
        turned[:, 2] += here[:, 2].mean() - turned[:, 2].mean()
        for start in _one_of_each_translation(supercell):
            shift = np.append(here[start, :2] - turned[0, :2], 0.0)
            apart = (turned + shift)[:, None] - here
            apart[..., :2] -= np.rint(apart[..., :2])
            distances = np.linalg.norm(apart @ supercell.lattice, axis=2)
            sites, farthest = distances.argmin(axis=1), float(distances.min(axis=1).max())
            if len(set(sites.tolist())) == len(here) and farthest < (best[0] if best else FARTHEST):
                best = farthest, sites
    if best is None:
        return None
    species = set(zip(other.species, (supercell.species[site] for site in best[1]), strict=True))
    if len({a for a, _ in species}) != len(species) or len({b for _, b in species}) != len(species):
        return None
    numbers = pair_table(supercell).number.numpy()[np.ix_(best[1], best[1])], pair_table(other).number.numpy()
    pairs = {(int(a), int(b)) for a, b in zip(*(number.ravel() for number in numbers), strict=True)}
    if not len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}):
        return None
    of_other = {atomic_number(a): atomic_number(b) for a, b in species}
    return Correspondence(best[1].astype(np.int64), {b: a for a, b in of_other.items()} | of_other)
