"""Hosts and their supercells.

A supercell numbers its sites once; everything after that is integers. Site numbers run over the sites
of the unit cell first and over its copies second, the copies in lexicographic order of their lattice
translation, so that site ``n_cells * s + c`` is copy ``c`` of unit-cell site ``s``. Distances between
sites are a table, computed here once under the periodicity of the host: a layer is not periodic along
its third axis, whatever the height of the cell it was given in.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration, DefectType
from screening.defects.lattices import reduced_basis
from screening.errors import InputError

VACUUM = 6.0  # angstrom; a wider gap along the third axis means a layer


@dataclass(frozen=True, eq=False)
class Host:
    """A pristine material.

    Attributes:
        name: `MoS2`.
        lattice: (3, 3) float64, rows are the lattice vectors, angstrom.
        species: chemical symbol of each site of the unit cell.
        positions: (n, 3) float64, fractional. The third coordinate of a layer is not wrapped.
        is_layer: periodic along the first two lattice vectors only.
        source: where lattice and positions come from.
    """

    name: str
    lattice: NDArray[np.float64]
    species: tuple[str, ...]
    positions: NDArray[np.float64]
    is_layer: bool
    source: str

    @property
    def periodic(self) -> tuple[bool, bool, bool]:
        """Along which lattice vectors the host repeats."""
        return (True, True, not self.is_layer)

    @property
    def formula(self) -> str:
        """Composition of the unit cell in the order of its sites: `MoS2`."""
        symbols = dict.fromkeys(self.species)
        counts = {symbol: self.species.count(symbol) for symbol in symbols}
        divisor = int(np.gcd.reduce(list(counts.values())))
        return "".join(f"{s}{n // divisor if n > divisor else ''}" for s, n in counts.items())

    @classmethod
    def from_cell(
        cls, name: str, lattice: NDArray[np.float64], species: tuple[str, ...],
        positions: NDArray[np.float64], *, source: str,
    ) -> Host:  # fmt: skip
        """Make a host from any crystal cell; a gap above 6 angstrom along the third axis makes it a layer.

        The layer is moved to the middle of its cell so that no bond crosses the cell's top.

        Raises:
            InputError: the cell is empty, flat, or a layer whose third axis is not perpendicular to it.
        """
        if len(species) == 0 or abs(np.linalg.det(lattice)) < 1e-3:
            raise InputError(f"host {name} has {len(species)} sites and volume {np.linalg.det(lattice):.3g}")
        wrapped = np.mod(positions, 1.0)
        heights = np.sort(wrapped[:, 2])
        gaps = np.diff(np.append(heights, heights[0] + 1.0))
        widest = int(np.argmax(gaps))
        thickness_axis = np.abs(np.linalg.det(lattice)) / np.linalg.norm(np.cross(lattice[0], lattice[1]))
        is_layer = bool(gaps[widest] * thickness_axis > VACUUM)
        if is_layer:
            if not np.allclose(lattice[:2] @ lattice[2], 0.0, atol=1e-2 * np.linalg.norm(lattice[2])):
                raise InputError(f"host {name} is a layer whose third axis is not perpendicular to it")
            bottom = heights[(widest + 1) % len(heights)]
            z = np.mod(wrapped[:, 2] - bottom + 1e-9, 1.0)
            wrapped[:, 2] = z - (z.max() + z.min()) / 2 + 0.5
        return cls(name, np.asarray(lattice, np.float64), tuple(species), wrapped, is_layer, source)


@dataclass(frozen=True, eq=False)
class Supercell:
    """A supercell of a host with its numbered sites.

    Attributes:
        matrix: (3, 3) int64; its rows give the supercell's lattice vectors in those of the unit cell.
    """

    host: Host
    matrix: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.matrix.shape != (3, 3) or round(np.linalg.det(self.matrix)) < 1:
            raise InputError(f"supercell matrix {self.matrix.tolist()} must be 3x3 with a positive determinant")
        axis = np.array([0, 0, 1])
        if self.host.is_layer and not (
            np.array_equal(self.matrix[2], axis) and np.array_equal(self.matrix[:, 2], axis)
        ):
            raise InputError(f"{self.host.name} is a layer; its supercell repeats the first two axes only")

    @classmethod
    def parse(cls, host: Host, text: str) -> Supercell:
        """Read `8x8`, `3x3x2` or nine integers `1,1,0,-1,1,0,0,0,1` (rows after one another)."""
        if re.fullmatch(r"\d{1,9}x\d{1,9}(x\d{1,9})?", text):
            repeats = [int(part) for part in text.split("x")]
            if len(repeats) == 2 and not host.is_layer:
                raise InputError(f"{host.name} is periodic in three dimensions; write {text}x1, found {text}")
            return cls(host, np.diag((*repeats, 1)[:3]).astype(np.int64))
        if re.fullmatch(r"-?\d{1,9}(,-?\d{1,9}){8}", text):
            return cls(host, np.array([int(part) for part in text.split(",")], np.int64).reshape(3, 3))
        raise InputError(f"supercell {text!r} cannot be read; write 8x8, 3x3x2 or nine integers with commas")

    @property
    def label(self) -> str:
        """`8x8`, `3x3x2`, or the nine integers of the matrix."""
        if np.array_equal(self.matrix, np.diag(np.diag(self.matrix))):
            repeats = np.diag(self.matrix)[: 2 if self.host.is_layer else 3]
            return "x".join(str(n) for n in repeats)
        return ",".join(str(n) for n in self.matrix.ravel())

    @property
    def lattice(self) -> NDArray[np.float64]:
        """(3, 3) float64, rows, angstrom."""
        return self.matrix @ self.host.lattice

    @cached_property
    def translations(self) -> NDArray[np.int64]:
        """(n_cells, 3) int64: the unit cell's copies, as integer combinations of its lattice vectors."""
        corners = np.array(list(itertools.product((0, 1), repeat=3))) @ self.matrix
        axes = [range(low, high + 1) for low, high in zip(corners.min(0), corners.max(0), strict=True)]
        grid = np.array(list(itertools.product(*axes)), np.int64)
        inside = self.wrap_cells(grid)
        return np.asarray(grid[(inside == grid).all(axis=1)], np.int64)

    def wrap_cells(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bring integer translations (..., 3) into the supercell, in exact integer arithmetic."""
        determinant = round(np.linalg.det(self.matrix))
        adjugate = np.rint(np.linalg.inv(self.matrix) * determinant).astype(np.int64)
        quotient = (cells @ adjugate) // determinant
        return np.asarray(cells - quotient @ self.matrix, np.int64)

    def cell_numbers(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the copy that each integer translation (..., 3) belongs to, wrapped; shape (...)."""
        wrapped = self.wrap_cells(cells)
        low, span = self.translations.min(0), np.ptp(self.translations, axis=0) + 1
        strides = np.array([span[1] * span[2], span[2], 1])
        table = np.full(int(span.prod()), -1, np.int64)
        table[(self.translations - low) @ strides] = np.arange(len(self.translations))
        return np.asarray(table[(wrapped - low) @ strides], np.int64)

    @property
    def n_cells(self) -> int:
        """Number of unit cells."""
        return len(self.translations)

    @property
    def n_sites(self) -> int:
        """Number of sites."""
        return self.n_cells * len(self.host.species)

    @cached_property
    def unit_cell_sites(self) -> NDArray[np.int64]:
        """(n_sites,) int64: the unit-cell site that each site is a copy of."""
        return np.repeat(np.arange(len(self.host.species)), self.n_cells)

    @cached_property
    def species(self) -> tuple[str, ...]:
        """Chemical symbol of each site."""
        return tuple(self.host.species[s] for s in self.unit_cell_sites)

    @cached_property
    def positions(self) -> NDArray[np.float64]:
        """(n_sites, 3) float64, angstrom, Cartesian; the ideal lattice sites."""
        fractional = self.host.positions[:, None, :] + self.translations[None, :, :]
        return np.asarray(fractional.reshape(-1, 3) @ self.host.lattice, np.float64)

    @cached_property
    def pair_vectors(self) -> NDArray[np.float64]:
        """(n_sites, n_sites, 3) float64, angstrom: shortest vector from site i to site j.

        No image is taken across the vacuum of a layer. Where several images are equally near, one of them.
        """
        basis = reduced_basis(self.lattice[: 2 if self.host.is_layer else 3])
        shifts = np.array(list(itertools.product((-1, 0, 1), repeat=len(basis)))) @ basis
        between = self.positions[None, :, :] - self.positions[:, None, :]
        between -= np.rint(between @ np.linalg.pinv(basis)) @ basis  # at most one image away from the shortest
        best = np.empty_like(between)
        for i, row in enumerate(between):  # a row at a time keeps 27 images of 200 sites small
            candidates = row[:, None, :] + shifts[None]
            nearest = np.argmin((candidates**2).sum(-1).round(9), axis=1)
            best[i] = candidates[np.arange(len(row)), nearest]
        return best

    @cached_property
    def pair_distances(self) -> NDArray[np.float64]:
        """(n_sites, n_sites) float64, angstrom: the pair table."""
        return np.asarray(np.linalg.norm(self.pair_vectors, axis=-1), np.float64)

    def allowed(self, defect_type: DefectType) -> NDArray[np.int64]:
        """Numbers of the sites on which this defect type can sit.

        Raises:
            InputError: the host has no site of the species that the defect type removes.
        """
        sites = np.flatnonzero(np.array(self.species) == defect_type.removed)
        if len(sites) == 0:
            raise InputError(
                f"{defect_type.name}: host {self.host.name} has no site of species {defect_type.removed!r}; "
                f"its species are {', '.join(dict.fromkeys(self.host.species))}"
            )
        return sites

    def structure(self, configuration: Configuration) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """Species and ideal positions (n_atoms, 3), angstrom, of a configuration, in the order of the sites."""
        species: list[str | None] = list(self.species)
        for site, code in zip(configuration.sites, configuration.defect_types, strict=True):
            species[site] = DefectType.from_code(code).added
        kept = [site for site, symbol in enumerate(species) if symbol is not None]
        return tuple(symbol for symbol in species if symbol is not None), self.positions[kept]
