"""From a structure to the configuration of a supercell, whatever the file's order, origin, wrapping and setting.

First the setting: the integer matrices that take the structure's lattice to the supercell's, by their metric, one
for each class that the host's own symmetry does not already connect (two for MoS2, whose lattice is six-fold and
whose crystal is three-fold). For a layer only the two in-plane vectors count, and it may lie on either face. Then
origin and assignment, in `site_lattice`. Of several settings and origins the one with the fewest defects wins.

An unrelaxed structure takes a short cut: when every atom lies on a site and there are fewer defects than unit
cells, no other setting can do better, since one that does not belong to the host's symmetry misplaces two sites in
each unit cell, or leaves an atom without a site.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration, atomic_number
from screening.defects.host import Host, Supercell
from screening.defects.lattices import (
    MAX_STRAIN,
    LatticeMap,
    describe_lattice,
    hermite_normal_form,
    lattice_maps,
    plane_frame,
)
from screening.defects.site_lattice import REACH, Assignment, SiteLattice
from screening.defects.symmetry import unit_cell_operations
from screening.errors import ExtraAtomError, LatticeError, StructureError, TooManyDefectsError

LARGEST_DEFECT_FRACTION = 0.25

_ORIGINS_TRIED = 6
_CLOSE_VOTE = 0.8  # a distorted host nearly fits its own images; an origin with fewer votes is no rival
_KNOWN_LATTICES = 256
_FEWEST_ATOMS, _MOST_ATOMS = 0.7, 1.1  # per site; beyond that a structure has too many defects anyway
_SAME_STRAIN = 0.01  # supercells whose strains differ by less are told apart by their atoms


@dataclass(frozen=True, eq=False)
class Structure:
    """Atoms in a periodic cell, as read from a file.

    Attributes:
        name: what messages and tables call it.
        lattice: (3, 3) float64, rows are the lattice vectors, angstrom.
        species: chemical symbol of each atom.
        positions: (n_atoms, 3) float64, fractional, any wrapping.
    """

    name: str
    lattice: NDArray[np.float64]
    species: tuple[str, ...]
    positions: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.lattice.shape != (3, 3) or self.positions.shape != (len(self.species), 3) or not self.species:
            raise StructureError(
                f"structure {self.name} has a lattice of shape {self.lattice.shape}, {len(self.species)} species and "
                f"positions of shape {self.positions.shape}; expected (3, 3), n > 0 and (n, 3)"
            )
        if not (np.isfinite(self.lattice).all() and np.isfinite(self.positions).all()):
            raise StructureError(f"structure {self.name} has a coordinate that is not a finite number; mend its file")
        if abs(np.linalg.det(self.lattice)) < 1e-3:
            raise StructureError(f"structure {self.name} has a flat cell; expected three independent lattice vectors")


@dataclass(frozen=True, eq=False)
class _Setting:
    """How a structure's fractional coordinates become those of the host's unit cell.

    Attributes:
        transform: (3, 3); ``positions @ transform`` are coordinates as in `site_lattice`.
        vacuum_axis: the structure's lattice vector across the vacuum; None for a bulk host.
    """

    transform: NDArray[np.float64]
    vacuum_axis: int | None


class Matcher:
    """Matches structures to one supercell; what does not depend on the structure is computed once."""

    def __init__(self, supercell: Supercell) -> None:
        self.supercell = supercell
        self._sites = SiteLattice(supercell)
        self._operations = _supercell_rotations(supercell)
        self._settings: dict[bytes, tuple[_Setting, ...]] = {}

    def match(self, structure: Structure) -> Configuration:
        """The configuration that a structure is, in the site numbers of the supercell; not canonical.

        A structure fits a symmetric host in many ways; this is one of them. About 0.2 ms for 192 unrelaxed atoms,
        10 ms for relaxed ones.

        Raises:
            LatticeError: the structure's lattice is not that of the supercell.
            ExtraAtomError: an atom has no site, an interstitial or an adatom.
            TooManyDefectsError: more than a quarter of the sites differ from the host.
            StructureError: the atoms do not lie on the host's lattice at all.
        """
        numbers = np.array([_number_of(symbol) for symbol in structure.species])
        placements = []
        for setting in self._settings_of(structure):
            placements.append(_coordinates(structure, setting))
            found = self._sites.assign_unrelaxed(placements[-1], numbers)
            if found is not None:
                break
        else:
            found = self._best_assignment(placements, numbers)
        self._check(structure, found)
        return self._configuration(found.sites, numbers)

    def _settings_of(self, structure: Structure) -> tuple[_Setting, ...]:
        """The settings worth trying, one per class under the host's symmetry; remembered by lattice."""
        key = structure.lattice.tobytes()
        if key not in self._settings:
            if len(self._settings) >= _KNOWN_LATTICES:
                self._settings.clear()
            self._settings[key] = tuple(self._find_settings(structure.lattice))
        if not self._settings[key]:
            raise LatticeError(_wrong_lattice(structure, self.supercell))
        return self._settings[key]

    def _find_settings(self, lattice: NDArray[np.float64]) -> list[_Setting]:
        settings = []
        for axis, frame in _frames(lattice, self.supercell.host):
            seen: set[bytes] = set()
            for matrix in self._unimodular_maps(frame):
                if matrix.tobytes() in seen:
                    continue
                seen.update((operation @ matrix).tobytes() for operation in self._operations)
                settings.append(_Setting(lattice @ np.linalg.inv(matrix @ frame) @ self.supercell.matrix, axis))
        return settings

    def _unimodular_maps(self, frame: NDArray[np.float64]) -> list[NDArray[np.int64]]:
        """(3, 3) int64 matrices from a structure's frame to the supercell's; a layer also upside down."""
        n_axes = 2 if self.supercell.host.is_layer else 3
        maps = []
        for found in lattice_maps(frame[:n_axes], self.supercell.lattice[:n_axes]):
            if abs(round(np.linalg.det(found.matrix))) != 1:
                continue
            for side in (1, -1) if n_axes == 2 else (1,):
                matrix = np.diag([1, 1, side]).astype(np.int64)
                matrix[:n_axes, :n_axes] = found.matrix
                maps.append(matrix)
        return maps

    def _best_assignment(
        self, placements: Sequence[NDArray[np.float64]], numbers: NDArray[np.int64]
    ) -> Assignment:  # fmt: skip
        """The best assignment over all settings and the origins with the most votes."""
        ballots = [
            (origin, placement)
            for placement in placements
            for origin in self._sites.find_origins(placement, numbers)
        ]  # fmt: skip
        ballots.sort(key=lambda ballot: -ballot[0].votes)
        best = Assignment(placements[0], np.full(len(numbers), -1), self.supercell.n_sites, 0.0)
        for origin, placement in ballots[:_ORIGINS_TRIED]:
            settled = best.rank < (0, self.supercell.n_cells)
            if settled and origin.votes < _CLOSE_VOTE * ballots[0][0].votes:
                break
            best = min(best, self._sites.assign(placement, numbers, origin.shift), key=lambda found: found.rank)
        return best

    def _check(self, structure: Structure, found: Assignment) -> None:
        """Refuse an assignment that is no configuration of the host.

        Raises:
            ExtraAtomError, TooManyDefectsError, StructureError: as `match` says.
        """
        where = f"the {self.supercell.label} supercell of {self.supercell.host.name}"
        extra = np.flatnonzero(found.sites < 0)
        n_atoms = len(structure.species)
        if len(extra) > max(1, LARGEST_DEFECT_FRACTION * n_atoms):
            raise StructureError(
                f"structure {structure.name} ({_formula(structure.species)}) is not {where}: at best "
                f"{n_atoms - len(extra)} of its {n_atoms} atoms have a site within {REACH} A; "
                f"expected all of them: check that the host is the right one"
            )
        if len(extra):
            raise ExtraAtomError(f"structure {structure.name}: {self._describe_extra(structure, found, extra)}")
        if found.n_defects > max(1.0, LARGEST_DEFECT_FRACTION * self.supercell.n_sites):
            raise TooManyDefectsError(
                f"structure {structure.name} ({_formula(structure.species)}) differs from {where} on "
                f"{found.n_defects} of {self.supercell.n_sites} sites; expected at most a quarter: "
                "check that the host is the right one"
            )

    def _describe_extra(self, structure: Structure, found: Assignment, extra: NDArray[np.int64]) -> str:
        atom = int(extra[0])
        site, distance = self._sites.nearest_site(found.coordinates[atom])
        taken = np.flatnonzero(found.sites == site)
        return (
            f"{len(extra)} of {len(structure.species)} atoms have no lattice site of the {self.supercell.label} "
            f"supercell of {self.supercell.host.name}; the first is atom {atom} (counted from 0), "
            f"{structure.species[atom]}, {distance:.2f} A from its nearest site {site}"
            f"{f', which atom {taken[0]} holds' if len(taken) else ''}; expected each atom within {REACH} A of a site "
            "of its own: interstitials and adatoms are not supported, remove the atom or leave the structure out"
        )

    def _configuration(self, sites: NDArray[np.int64], numbers: NDArray[np.int64]) -> Configuration:
        removed = self._sites.atomic_numbers
        added = np.zeros_like(removed)
        added[sites] = numbers
        defective = np.flatnonzero(added != removed)
        codes = 128 * removed[defective] + added[defective]
        return Configuration(tuple(defective.tolist()), tuple(codes.tolist()))


def find_supercell(structure: Structure, hosts: Sequence[Host]) -> Supercell:
    """The supercell, of one of several hosts, that a structure is a defective copy of.

    Lattice and number of atoms decide; where they leave several (hosts of one lattice constant, a nearly square
    cell), the one in which the structure has the fewest defects, plain repeats before others. If the structure
    matches none, the plainest is returned, and matching it says what is wrong.

    Raises:
        LatticeError: no supercell of any host has the structure's lattice and about its number of atoms.
    """
    n_atoms = len(structure.species)
    fitting = [
        candidate
        for host in hosts
        for candidate in _candidates(np.asarray(structure.lattice, np.float64).tobytes(), host)
        if _FEWEST_ATOMS * candidate.supercell.n_sites <= n_atoms <= _MOST_ATOMS * candidate.supercell.n_sites
    ]
    if not fitting:
        listed = ", ".join(f"{h.name} ({describe_lattice(_vectors(h, h.lattice))})" for h in hosts) or "none"
        raise LatticeError(
            f"structure {structure.name} ({_formula(structure.species)}) has the lattice "
            f"{describe_lattice(structure.lattice)}, of which no host known here has a supercell of about {n_atoms} "
            f"sites within {MAX_STRAIN:.0%}; known hosts: {listed}; add its host first"
        )
    least = min(candidate.strain for candidate in fitting)
    near = sorted((c for c in fitting if c.strain <= least + _SAME_STRAIN), key=lambda c: (not c.is_plain, c.strain))
    for plain in (True, False):
        matched = [
            (n, c.supercell) for c in near if c.is_plain == plain and (n := _n_defects(structure, c)) is not None
        ]
        if matched:
            return min(matched, key=lambda pair: pair[0])[1]
    return near[0].supercell


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A supercell that has a structure's lattice up to a strain."""

    supercell: Supercell
    strain: float

    @cached_property
    def matcher(self) -> Matcher:
        """The matcher of the supercell."""
        return Matcher(self.supercell)

    @property
    def is_plain(self) -> bool:
        """Whether its matrix is diagonal: `8x8`."""
        return not np.any(self.supercell.matrix - np.diag(np.diag(self.supercell.matrix)))


def _n_defects(structure: Structure, candidate: _Candidate) -> int | None:
    """Number of defects of a structure in a candidate; None if it does not match."""
    try:
        return candidate.matcher.match(structure).n_defects
    except StructureError:
        return None


@lru_cache(maxsize=_KNOWN_LATTICES)  # the structures of one file mostly share their lattice, and this takes 20 ms
def _candidates(lattice_bytes: bytes, host: Host) -> tuple[_Candidate, ...]:
    """Supercells of a host that have this lattice (its float64 bytes), one per class under the host's symmetry."""
    lattice = np.frombuffer(lattice_bytes).reshape(3, 3)
    n_axes = 2 if host.is_layer else 3
    rotations, _ = unit_cell_operations(host)
    found: list[_Candidate] = []
    seen: set[bytes] = set()
    for _, frame in _frames(lattice, host):
        maps = lattice_maps(_vectors(host, host.lattice), frame[:n_axes])
        for lattice_map in sorted(maps, key=_hermite_order):
            form = hermite_normal_form(lattice_map.matrix)
            if form.tobytes() in seen:
                continue
            images = (form @ rotation.T[:n_axes, :n_axes] for rotation in rotations)
            seen.update(hermite_normal_form(image).tobytes() for image in images)
            matrix = np.eye(3, dtype=np.int64)
            matrix[:n_axes, :n_axes] = form
            found.append(_Candidate(Supercell(host, matrix), lattice_map.strain))
    return tuple(found)


def _hermite_order(found: LatticeMap) -> tuple[float, int, tuple[int, ...]]:
    """Sort key: least strain, then the supercells that are plain repeats, `8x8` before nine integers."""
    form = hermite_normal_form(found.matrix)
    return round(found.strain, 6), int(form.sum() - np.trace(form)), tuple(form.ravel().tolist())


def _vectors(host: Host, lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lattice vectors along which a host repeats."""
    return lattice[: 2 if host.is_layer else 3]


def _frames(lattice: NDArray[np.float64], host: Host) -> list[tuple[int | None, NDArray[np.float64]]]:
    """Ways to look at a structure's lattice: for a layer, each axis as the one across the vacuum."""
    if not host.is_layer:
        return [(None, lattice)]
    return [(axis, plane_frame(lattice, axis)) for axis in (2, 0, 1)]


def _coordinates(structure: Structure, setting: _Setting) -> NDArray[np.float64]:
    """(n_atoms, 3): coordinates as in `site_lattice`; a layer cut by its cell's top is put together again."""
    positions = structure.positions
    axis = setting.vacuum_axis
    if axis is not None:
        heights = np.mod(positions[:, axis], 1.0)
        ordered = np.sort(heights)
        gaps = np.diff(ordered, append=ordered[0] + 1.0)
        widest = int(gaps.argmax())
        if widest < len(gaps) - 1:
            heights = np.where(heights > ordered[widest], heights - 1.0, heights)
        # a whole cell more or less along a tilted axis also moves an atom sideways
        positions = positions.copy()
        positions[:, axis] = heights
    return np.asarray(positions @ setting.transform, np.float64)


def _supercell_rotations(supercell: Supercell) -> list[NDArray[np.int64]]:
    """The host's rotations that keep the supercell's lattice, as integer matrices of its vectors."""
    matrix = supercell.matrix
    kept = []
    for rotation in unit_cell_operations(supercell.host)[0]:
        image = matrix @ rotation.T @ np.linalg.inv(matrix)
        if np.allclose(image, np.rint(image), atol=1e-6):
            kept.append(np.rint(image).astype(np.int64))
    return kept


def _wrong_lattice(structure: Structure, supercell: Supercell) -> str:
    """Why a structure's lattice was refused, and which supercell of the host it looks like."""
    host = supercell.host
    others = [
        candidate
        for candidate in _candidates(np.asarray(structure.lattice, np.float64).tobytes(), host)
        if candidate.is_plain
    ]
    hint = "no plain supercell of this host has its lattice"
    if others:
        hint = f"it looks like {min(others, key=lambda candidate: candidate.strain).supercell.label}"
    return (
        f"structure {structure.name} ({_formula(structure.species)}) has the lattice "
        f"{describe_lattice(structure.lattice)}; expected {describe_lattice(_vectors(host, supercell.lattice))} "
        f"(within {MAX_STRAIN:.0%}) of the {supercell.label} supercell of {host.name}; {hint}: "
        "choose the right host and supercell"
    )


def _formula(species: Sequence[str]) -> str:
    return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in sorted(Counter(species).items()))


@lru_cache(maxsize=256)
def _number_of(symbol: str) -> int:
    return atomic_number(symbol)
