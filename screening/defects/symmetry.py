"""Symmetry of a supercell as permutations of its sites, and exact counts by Burnside's lemma.

The operations of the host's unit cell that keep the supercell's lattice, times the supercell's
translations, permute the numbered sites; all arithmetic on copies is in integers, so the only tolerance
is the one with which spglib finds the unit cell's operations. The number of symmetry-distinct
configurations is the average over the permutations of the number of configurations that each of them
fixes (Burnside): a configuration is fixed when every cycle of sites carries one and the same defect type,
so the fixed configurations of one permutation are counted by the product over its cycles of
``1 + sum_t x_t ** length`` (Polya, Acta Math. 68, 145 (1937)).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import spglib
from numpy.typing import NDArray

from screening.defects.defect_types import DefectType, atomic_number
from screening.defects.host import Host, Supercell
from screening.errors import InputError

spglib.error.OLD_ERROR_HANDLING = False  # SpglibError instead of None and a warning; the only way in spglib 3
MAX_OPERATIONS = 10_000  # a 28x28 supercell of MoS2 has 9,408
SYMPREC = 1e-2  # angstrom; tighter tolerances lose operations of relaxed unit cells given to 4 digits


@dataclass(frozen=True, eq=False)
class Symmetry:
    """The permutation group of a supercell's sites.

    Attributes:
        permutations: (n_operations, n_sites) int16, distinct; site i goes to ``permutations[g, i]``.
            The identity comes first.
        n_space_group_operations: operations before equal permutations are merged (a flat layer's mirror
            plane moves no site).
    """

    permutations: NDArray[np.int16]
    n_space_group_operations: int

    @property
    def n_operations(self) -> int:
        """Order of the permutation group."""
        return len(self.permutations)

    @cached_property
    def representatives(self) -> NDArray[np.int16]:
        """(n_sites,) int16: the smallest site of each site's orbit."""
        return np.asarray(self.permutations.min(axis=0), np.int16)

    @cached_property
    def to_representative(self) -> NDArray[np.int16]:
        """(n_sites, n_stabilizer_max) int16: the operations that carry a site onto its representative.

        Rows of sites in larger orbits are shorter and padded with -1.
        """
        hits = self.permutations == self.representatives[None, :]
        counts = hits.sum(axis=0)
        table = np.full((hits.shape[1], int(counts.max())), -1, np.int16)
        for site in range(hits.shape[1]):
            table[site, : counts[site]] = np.flatnonzero(hits[:, site])
        return table

    @cached_property
    def pair_classes(self) -> NDArray[np.int16]:
        """(n_sites, n_sites) int16: symmetric table of classes of unordered pairs of sites, numbered from 0.

        Two pairs have one class exactly when an operation maps one onto the other; the classes are ordered
        by their first pair. Pairs of a site with itself have classes as well.

        Raises:
            InputError: more classes than an int16 can number.
        """
        n_sites = self.permutations.shape[1]
        wide = self.permutations.astype(np.int64)
        label = np.empty((n_sites, n_sites), np.int64)
        for representative in np.unique(self.representatives).tolist():
            stabilizer = wide[wide[:, representative] == representative]
            nearest = stabilizer.min(axis=0)
            for site in np.flatnonzero(self.representatives == representative):
                operation = wide[self.to_representative[site, 0]]
                label[site] = representative * n_sites + nearest[operation]
        unordered = np.minimum(label, label.T)
        classes = np.unique(unordered, return_inverse=True)[1].reshape(label.shape)
        if classes.max() > np.iinfo(np.int16).max:
            raise InputError(
                f"the supercell has {classes.max() + 1} symmetry-distinct pairs of sites; expected at most "
                f"{np.iinfo(np.int16).max + 1}: choose a smaller supercell or a more symmetric host"
            )
        return np.asarray(classes, np.int16)


def unit_cell_operations(host: Host) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rotations (n, 3, 3) and translations (n, 3) of the host's unit cell, in fractional coordinates.

    None of a layer's turns its third axis into another one, even if its cell happens to be as high as it is wide.

    Raises:
        InputError: spglib finds no symmetry (two atoms in one place, say).
    """
    numbers = [atomic_number(symbol) for symbol in host.species]
    try:
        found = spglib.get_symmetry((host.lattice.tolist(), host.positions.tolist(), numbers), symprec=SYMPREC)
    except spglib.SpglibError as error:
        raise InputError(f"host {host.name}: spglib finds no symmetry ({error}); check its positions") from error
    if found is None:
        raise InputError(f"host {host.name}: spglib finds no symmetry; check its lattice and positions")
    rotations, translations = found["rotations"].astype(np.int64), found["translations"]
    if host.is_layer:
        kept = np.abs(rotations[:, 2, 2]) == 1
        rotations, translations = rotations[kept], translations[kept]
    return rotations, translations


def find_symmetry(supercell: Supercell) -> Symmetry:
    """All distinct site permutations of a supercell, checked to form a group.

    Raises:
        InputError: the host's unit cell has no valid symmetry, or the supercell so many operations that their group
            could not be checked in minutes.
    """
    operations = [
        (rotation, translation)
        for rotation, translation in zip(*unit_cell_operations(supercell.host), strict=True)
        if _keeps_lattice(rotation, supercell.matrix)
    ]
    if len(operations) * supercell.n_cells > MAX_OPERATIONS:
        raise InputError(
            f"supercell {supercell.label} of {supercell.host.name} has {supercell.n_sites} sites and "
            f"{len(operations) * supercell.n_cells} symmetry operations, more than {MAX_OPERATIONS}; "
            "choose a smaller supercell, or give the host by its primitive unit cell"
        )
    permutations = [_permutations_of(rotation, translation, supercell) for rotation, translation in operations]
    stacked = np.concatenate(permutations)
    distinct = np.unique(stacked, axis=0)  # sorted rows, so the identity comes first
    _check_group(distinct)
    return Symmetry(distinct.astype(np.int16), len(stacked))


def count_orbits(
    supercell: Supercell, symmetry: Symmetry, defect_types: Sequence[DefectType], max_defects: int
) -> dict[tuple[int, ...], int]:
    """Exact number of symmetry-distinct configurations of every composition with up to `max_defects` defects.

    Returns:
        A count for each tuple of numbers of defects, in the order of `defect_types`; the pristine supercell
        (all zero) included, compositions without a configuration left out.
    """
    kinds = _site_kinds(supercell, defect_types)
    total: Counter[tuple[int, ...]] = Counter()
    for cycles, multiplicity in _cycle_types(symmetry.permutations, kinds).items():
        for composition, fixed in _fixed_configurations(cycles, defect_types, max_defects).items():
            total[composition] += multiplicity * fixed
    orbits = {}
    for composition, fixed in sorted(total.items()):
        count, remainder = divmod(fixed, symmetry.n_operations)
        assert remainder == 0, "Burnside's sum is divisible by the group's order"
        orbits[composition] = count
    return orbits


def _keeps_lattice(rotation: NDArray[np.int64], matrix: NDArray[np.int64]) -> bool:
    """Whether a rotation maps the supercell's lattice onto itself."""
    images = np.linalg.solve(matrix.T.astype(float), rotation @ matrix.T)
    return bool(np.allclose(images, np.rint(images), atol=1e-6))


def _permutations_of(
    rotation: NDArray[np.int64], translation: NDArray[np.float64], supercell: Supercell
) -> NDArray[np.int64]:
    """(n_cells, n_sites): one operation of the unit cell followed by each translation of the supercell."""
    target, offset = _unit_cell_images(rotation, translation, supercell.host)
    copies = supercell.translations
    images = copies @ rotation.T + offset[:, None, :]  # (n_unit_cell_sites, n_cells, 3)
    shifted = images[None] + copies[:, None, None, :]  # (n_cells, n_unit_cell_sites, n_cells, 3)
    sites = target[None, :, None] * supercell.n_cells + supercell.cell_numbers(shifted)
    return np.asarray(sites.reshape(len(copies), -1), np.int64)


def _unit_cell_images(
    rotation: NDArray[np.int64], translation: NDArray[np.float64], host: Host
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each unit-cell site, the site it is mapped onto and the lattice translation (n, 3) in between."""
    images = host.positions @ rotation.T + translation
    species = np.array(host.species)
    target = np.empty(len(images), np.int64)
    offset = np.empty((len(images), 3), np.int64)
    for s, image in enumerate(images):
        difference = image - host.positions
        shift = np.rint(difference)
        distance = np.linalg.norm((difference - shift) @ host.lattice, axis=1)
        distance[species != species[s]] = np.inf
        target[s] = np.argmin(distance)
        offset[s] = shift[target[s]]
        if distance[target[s]] > 5 * SYMPREC:
            raise InputError(f"host {host.name}: an operation maps site {s} onto no site; symmetrise its positions")
    if host.is_layer:
        offset[:, 2] = 0  # a layer has one copy along its third axis
    return target, offset


def _check_group(permutations: NDArray[np.int64]) -> None:
    """Assert that the permutations hold the identity and are closed under composition."""
    n_operations, n_sites = permutations.shape
    assert np.array_equal(permutations[0], np.arange(n_sites)), "the identity is missing"
    weights = np.random.default_rng(0).integers(1, 2**62, n_sites)
    with np.errstate(over="ignore"):
        known = np.sort(permutations @ weights)
        assert len(np.unique(known)) == n_operations
        for permutation in permutations:
            composed = permutations[:, permutation] @ weights
            found = np.minimum(np.searchsorted(known, composed), n_operations - 1)
            assert np.array_equal(known[found], composed), "the site permutations form no group"


def _site_kinds(supercell: Supercell, defect_types: Sequence[DefectType]) -> NDArray[np.int64]:
    """(n_sites,): index of the site's species among those that the defect types remove, -1 where none does."""
    removed = list(dict.fromkeys(defect_type.removed for defect_type in defect_types))
    for defect_type in defect_types:
        supercell.allowed(defect_type)
    return np.array([removed.index(s) if s in removed else -1 for s in supercell.species])


def _cycle_types(
    permutations: NDArray[np.int16], kinds: NDArray[np.int64]
) -> Counter[tuple[tuple[int, int, int], ...]]:
    """How many permutations have each cycle type: (kind, length, number of cycles) sorted, kinds -1 left out."""
    types: Counter[tuple[tuple[int, int, int], ...]] = Counter()
    for permutation in permutations:
        seen = np.zeros(len(permutation), bool)
        cycles: Counter[tuple[int, int]] = Counter()
        image = permutation.tolist()
        for start in np.flatnonzero(kinds >= 0).tolist():
            length, site = 0, start
            while not seen[site]:
                seen[site] = True
                site = image[site]
                length += 1
            if length:
                cycles[int(kinds[start]), length] += 1
        types[tuple(sorted((kind, length, n) for (kind, length), n in cycles.items()))] += 1
    return types


def _fixed_configurations(
    cycles: tuple[tuple[int, int, int], ...],
    defect_types: Sequence[DefectType],
    max_defects: int,
) -> dict[tuple[int, ...], int]:
    """Number of configurations fixed by a permutation of this cycle type, by composition (Polya's product)."""
    removed = list(dict.fromkeys(defect_type.removed for defect_type in defect_types))
    polynomial = {(0,) * len(defect_types): 1}
    for kind, length, n_cycles in cycles:
        types_here = [i for i, t in enumerate(defect_types) if t.removed == removed[kind]]
        for _ in range(n_cycles):
            grown = dict(polynomial)
            for composition, count in polynomial.items():
                if sum(composition) + length > max_defects:
                    continue
                for i in types_here:
                    larger = (*composition[:i], composition[i] + length, *composition[i + 1 :])
                    grown[larger] = grown.get(larger, 0) + count
            polynomial = grown
    return polynomial
