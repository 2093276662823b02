"""Atoms onto the numbered sites of a supercell: the origin, then the assignment.

Coordinates here are those of the host's unit cell: fractional along periodic vectors, and for a layer the height
in angstrom as the third, since its cell's height means nothing. The origin is found by votes: every atom votes for
the translations, modulo the unit cell, that put it on a site of its own species; defects are outvoted. It is
refined by the median of the displacements. Then atoms and the sites within `REACH` of them form a graph; where
that leaves a choice, the least sum of squared distances decides (Hungarian method), with a surcharge on a site of
another species, so that a displaced atom is not taken for an antisite beside a vacancy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import atomic_number
from screening.defects.host import Supercell
from screening.defects.lattices import plane_frame

REACH = 1.2  # angstrom; an atom farther than this from every free site is extra
ON_SITE = 0.02  # angstrom; closer than this, an atom counts as unrelaxed

_VOTE_BIN = 0.4  # angstrom
_VOTE_RADIUS = 0.8  # angstrom; votes nearer than this are for one origin
_STARTS = 8
_ORIGINS = 4
_OTHER_SPECIES = (
    0.7  # angstrom squared; beside a vacancy in h-BN (1.45 A) keeps atoms up to 0.97 A, antisites up to 0.48 A off
)
_NO_EDGE = 1e6  # angstrom squared; above any sum of costs


@dataclass(frozen=True, eq=False)
class Assignment:
    """Atoms on sites.

    Attributes:
        coordinates: (n_atoms, 3) float64, with the origin that was found.
        sites: (n_atoms,) int64, site of each atom; -1 for an atom that has none.
        n_defects: sites that are empty or hold another species.
        squared_distance: sum over the atoms that have a site, angstrom squared.
    """

    coordinates: NDArray[np.float64]
    sites: NDArray[np.int64]
    n_defects: int
    squared_distance: float

    @property
    def rank(self) -> tuple[int, int, float]:
        """Smaller is better: atoms without a site, defects, displacement."""
        return int((self.sites < 0).sum()), self.n_defects, self.squared_distance


@dataclass(frozen=True, eq=False)
class Origin:
    """A translation, and how many pairs of an atom and a site of its species agree on it."""

    shift: NDArray[np.float64]
    votes: int


@dataclass(frozen=True, eq=False)
class _Edges:
    """Pairs of an atom and a site within `REACH`.

    Attributes:
        displacements: (n_edges, 3) float64, from the site to the atom, angstrom.
    """

    atoms: NDArray[np.int64]
    sites: NDArray[np.int64]
    displacements: NDArray[np.float64]

    @cached_property
    def squares(self) -> NDArray[np.float64]:
        """(n_edges,) float64: squared distances, angstrom squared."""
        return np.asarray((self.displacements**2).sum(axis=1), np.float64)

    def __len__(self) -> int:
        return len(self.atoms)


class SiteLattice:
    """The sites of a supercell as a target for atoms; what does not depend on the atoms is computed once.

    Attributes:
        frame: (3, 3) float64, rows: Cartesian vectors of the coordinates.
        atomic_numbers: (n_sites,) int64.
    """

    def __init__(self, supercell: Supercell) -> None:
        host = supercell.host
        self.supercell = supercell
        self.frame = plane_frame(host.lattice) if host.is_layer else host.lattice
        self._positions = host.positions @ host.lattice @ np.linalg.inv(self.frame)
        self._numbers = np.array([atomic_number(symbol) for symbol in host.species])
        self.atomic_numbers = np.repeat(self._numbers, supercell.n_cells)
        self._periodic = np.array(host.periodic)
        spacings = 1.0 / np.linalg.norm(np.linalg.inv(self.frame), axis=0)
        reach = np.where(self._periodic, np.floor(0.5 + REACH / spacings), 0).astype(int)
        self._images = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1).reshape(-1, 3)
        rarest = min(sorted(set(host.species)), key=host.species.count)
        self._pivot_sites = np.flatnonzero(np.array(host.species) == rarest)
        self._adjugate, self._determinant, self._table = _cell_table(supercell)

    def assign_unrelaxed(
        self, coordinates: NDArray[np.float64], numbers: NDArray[np.int64]
    ) -> Assignment | None:  # fmt: skip
        """The assignment of atoms that all lie on sites, with fewer defects than unit cells; else None.

        One atom of the rarest species fixes the origin, as in a file of ideal positions.
        """
        pivots = np.flatnonzero(numbers == self._numbers[self._pivot_sites[0]])
        if len(pivots) == 0 or len(numbers) > self.supercell.n_sites:
            return None
        for pivot_site in self._pivot_sites:
            origin = coordinates[pivots[0]] - self._positions[pivot_site]
            offsets = (coordinates - origin)[:, None, :] - self._positions  # (n_atoms, n_unit_cell_sites, 3)
            cells = np.rint(offsets) * self._periodic
            squares = (((offsets - cells) @ self.frame) ** 2).sum(-1)
            nearest = squares.argmin(axis=1)
            atoms = np.arange(len(numbers))
            squares = squares[atoms, nearest]
            if squares.max() > ON_SITE**2:
                continue
            sites = self._site_numbers(nearest, cells[atoms, nearest])
            n_defects = self.count_defects(sites, numbers)
            if len(set(sites.tolist())) == len(sites) and n_defects < self.supercell.n_cells:
                return Assignment(coordinates - origin, sites, n_defects, float(squares.sum()))
        return None

    def find_origins(self, coordinates: NDArray[np.float64], numbers: NDArray[np.int64]) -> list[Origin]:
        """Translations modulo the unit cell that put many atoms on sites of their species, most votes first."""
        atoms, sites = np.nonzero(numbers[:, None] == self._numbers)
        if len(atoms) == 0:
            return []
        shifts = coordinates[atoms] - self._positions[sites]
        shifts[:, self._periodic] %= 1.0
        found: list[Origin] = []
        for start in _fullest_bins(shifts, self._periodic, np.linalg.norm(self.frame, axis=1)):
            origin = self._settle(start, shifts)
            if not any(self._are_close(origin.shift, other.shift) for other in found):
                found.append(origin)
        return sorted(found, key=lambda origin: -origin.votes)[:_ORIGINS]

    def assign(
        self, coordinates: NDArray[np.float64], numbers: NDArray[np.int64], shift: NDArray[np.float64]
    ) -> Assignment:  # fmt: skip
        """Give each atom a site of its own within `REACH`, with the least sum of squared distances.

        Args:
            shift: the origin, to about half the distance between sites; it is refined.
        """
        moved = self._refine(coordinates - shift)
        edges = self._edges(moved)
        costs = edges.squares + _OTHER_SPECIES * (self.atomic_numbers[edges.sites] != numbers[edges.atoms])
        chosen = _cheapest(edges, costs, len(numbers), self.supercell.n_sites)
        sites = np.full(len(numbers), -1, np.int64)
        sites[edges.atoms[chosen]] = edges.sites[chosen]
        return Assignment(moved, sites, self.count_defects(sites, numbers), float(edges.squares[chosen].sum()))

    def count_defects(self, sites: NDArray[np.int64], numbers: NDArray[np.int64]) -> int:
        """Sites that are empty or hold another species, given each atom's site (-1 for none) and atomic number."""
        placed = sites >= 0
        return self.supercell.n_sites - int((self.atomic_numbers[sites[placed]] == numbers[placed]).sum())

    def nearest_site(self, coordinates: NDArray[np.float64]) -> tuple[int, float]:
        """Number of the site nearest to one atom (3,), and its distance, angstrom."""
        offsets = coordinates - self._positions
        around = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
        cells = ((np.rint(offsets)[:, None, :] + around) * self._periodic).astype(np.int64)
        distances = np.linalg.norm((offsets[:, None, :] - cells) @ self.frame, axis=-1)
        site, image = np.unravel_index(int(distances.argmin()), distances.shape)
        return int(self._site_numbers(np.array([site]), cells[site, image][None])[0]), float(distances.min())

    def _site_numbers(self, unit_cell_sites: NDArray[np.int64], cells: NDArray[np.float64]) -> NDArray[np.int64]:
        """Supercell.cell_numbers with its tables at hand."""
        whole = cells.astype(np.int64)
        scaled = np.mod(whole @ self._adjugate, self._determinant)  # position in the supercell, times the determinant
        wrapped = (scaled @ self.supercell.matrix) // self._determinant
        low, strides, numbers = self._table
        return np.asarray(unit_cell_sites * self.supercell.n_cells + numbers[(wrapped - low) @ strides], np.int64)

    def _settle(self, start: NDArray[np.float64], shifts: NDArray[np.float64]) -> Origin:
        """Mean shift: move to the mean of the votes around, until it stays."""
        origin, votes = start, 0
        for _ in range(4):
            offsets = shifts - origin
            offsets -= np.rint(offsets) * self._periodic
            near = ((offsets @ self.frame) ** 2).sum(-1) < _VOTE_RADIUS**2
            votes = int(near.sum())
            if votes == 0:
                break
            origin = origin + offsets[near].mean(axis=0)
        return Origin(origin, votes)

    def _are_close(self, one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
        offset = one - other
        offset -= np.rint(offset) * self._periodic
        return bool(np.linalg.norm(offset @ self.frame) < _VOTE_BIN)

    def _refine(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move the atoms until the median displacement from their nearest sites is zero."""
        to_coordinates = np.linalg.inv(self.frame)
        for _ in range(6):
            edges = self._edges(coordinates)
            if len(edges) == 0:
                break
            order = np.lexsort((edges.squares, edges.atoms))
            nearest = order[np.unique(edges.atoms[order], return_index=True)[1]]
            median = np.median(edges.displacements[nearest], axis=0)
            coordinates = coordinates - median @ to_coordinates
            if np.abs(median).max() < 1e-3:
                break
        return coordinates

    def _edges(self, coordinates: NDArray[np.float64]) -> _Edges:
        offsets = coordinates[:, None, :] - self._positions
        cells = (np.rint(offsets) * self._periodic)[:, :, None, :] + self._images
        vectors = (offsets[:, :, None, :] - cells) @ self.frame  # (n_atoms, n_unit_cell_sites, n_images, 3)
        squares = (vectors**2).sum(-1)
        picked = np.nonzero(squares <= REACH**2)
        sites = self._site_numbers(picked[1], cells[picked])
        return _Edges(picked[0], sites, vectors[picked])


def _cell_table(supercell: Supercell) -> tuple[NDArray[np.int64], int, tuple[NDArray[np.int64], ...]]:
    """Adjugate and determinant of the supercell's matrix; lowest copy, strides and numbers of the copies."""
    determinant = round(np.linalg.det(supercell.matrix))
    adjugate = np.rint(np.linalg.inv(supercell.matrix) * determinant).astype(np.int64)
    low = supercell.translations.min(0)
    span = np.ptp(supercell.translations, axis=0) + 1
    strides = np.array([span[1] * span[2], span[2], 1])
    numbers = np.full(int(span.prod()), -1, np.int64)
    numbers[(supercell.translations - low) @ strides] = np.arange(supercell.n_cells)
    return adjugate, determinant, (low, strides, numbers)


def _fullest_bins(
    shifts: NDArray[np.float64], periodic: NDArray[np.bool_], lengths: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Centres of the bins that hold, with their neighbours, the most shifts."""
    low = np.where(periodic, 0.0, shifts.min(axis=0) - _VOTE_BIN)
    extent = np.where(periodic, 1.0, shifts.max(axis=0) + _VOTE_BIN - low)
    n_bins = np.maximum(np.ceil(extent * np.where(periodic, lengths, 1.0) / _VOTE_BIN), 3).astype(int)
    bins = np.minimum(((shifts - low) / extent * n_bins).astype(int), n_bins - 1)
    votes = np.bincount(np.ravel_multi_index(tuple(bins.T), tuple(n_bins)), minlength=int(n_bins.prod()))
    votes = votes.reshape(n_bins)
    for axis in range(3):  # a margin of one bin keeps this from wrapping around along an axis that does not repeat
        votes = votes + np.roll(votes, 1, axis) + np.roll(votes, -1, axis)
    centres: list[NDArray[np.int64]] = []
    for flat in np.argsort(-votes, axis=None, kind="stable")[: 27 * _STARTS]:
        index = np.array(np.unravel_index(flat, votes.shape))
        if votes[tuple(index)] == 0 or len(centres) == _STARTS:
            break
        apart = [np.abs(index - other) for other in centres]
        if all(np.minimum(gap, np.where(periodic, n_bins - gap, gap)).max() > 1 for gap in apart):
            centres.append(index)
    return [low + (index + 0.5) / n_bins * extent for index in centres]


def _cheapest(edges: _Edges, costs: NDArray[np.float64], n_atoms: int, n_sites: int) -> NDArray[np.int64]:
    """Numbers of the edges of the cheapest assignment that leaves as few atoms as possible without a site."""
    alone = (np.bincount(edges.atoms, minlength=n_atoms)[edges.atoms] == 1) & (
        np.bincount(edges.sites, minlength=n_sites)[edges.sites] == 1
    )
    chosen = [np.flatnonzero(alone)]
    rest = np.flatnonzero(~alone)
    if len(rest):
        chosen.extend(_hungarian(edges, costs, members) for members in _components(edges, rest, n_atoms, n_sites))
    return np.concatenate(chosen)


def _components(edges: _Edges, members: NDArray[np.int64], n_atoms: int, n_sites: int) -> list[NDArray[np.int64]]:
    """Split edges into those of each connected part of the graph of atoms and sites."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n_nodes = n_atoms + n_sites
    pairs = (edges.atoms[members], n_atoms + edges.sites[members])
    _, labels = connected_components(coo_array((np.ones(len(members)), pairs), (n_nodes, n_nodes)), directed=False)
    label = labels[edges.atoms[members]]
    order = np.argsort(label, kind="stable")
    return np.split(members[order], np.flatnonzero(np.diff(label[order])) + 1)


def _hungarian(edges: _Edges, costs: NDArray[np.float64], members: NDArray[np.int64]) -> NDArray[np.int64]:
    """The edges of the cheapest assignment within one connected part."""
    from scipy.optimize import linear_sum_assignment

    atoms, rows = np.unique(edges.atoms[members], return_inverse=True)
    sites, columns = np.unique(edges.sites[members], return_inverse=True)
    cost = np.full((len(atoms), len(sites)), _NO_EDGE)
    number = np.full(cost.shape, -1, np.int64)
    far_first = np.argsort(-costs[members])  # of two images of one site the nearer is written last
    cost[rows[far_first], columns[far_first]] = costs[members[far_first]]
    number[rows[far_first], columns[far_first]] = members[far_first]
    picked = number[linear_sum_assignment(cost)]
    return np.asarray(picked[picked >= 0], np.int64)
