import itertools
from collections import Counter

import numpy as np
import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import DefectType, parse_defect_types
from screening.defects.host import Host, Supercell
from screening.defects.symmetry import Symmetry, count_orbits, find_symmetry, unit_cell_operations
from screening.errors import InputError


def supercell_of(name: str, text: str) -> Supercell:
    return Supercell.parse(catalogue_host(name), text)


def orbits_by_brute_force(symmetry: Symmetry, supercell: Supercell, types: tuple[DefectType, ...], n: int) -> Counter:
    """Orbits of all configurations of n defects, by applying every permutation to every one of them."""
    points = [(site, t.code) for t in types for site in supercell.allowed(t).tolist()]
    seen: set[frozenset[tuple[int, int]]] = set()
    orbits: Counter[tuple[int, ...]] = Counter()
    for chosen in itertools.combinations(points, n):
        configuration = frozenset(chosen)
        if len({site for site, _ in chosen}) < n or configuration in seen:
            continue
        seen |= {frozenset((int(g[site]), code) for site, code in chosen) for g in symmetry.permutations}
        orbits[tuple(sum(code == t.code for _, code in chosen) for t in types)] += 1
    return orbits


@pytest.mark.parametrize(
    ("name", "text", "n_operations", "n_space_group_operations"),
    [
        ("MoS2", "8x8", 768, 768),  # P-6m2: 12 operations, 64 translations
        ("WSe2", "8x8", 768, 768),
        ("h-BN", "8x8", 384, 768),  # the mirror plane of a flat layer moves no site
        ("GaSe", "6x6", 432, 432),
        ("InSe", "6x6", 432, 432),
        ("BP", "6x6", 288, 288),  # Pmna: 8 operations, 36 translations
        ("V2O5", "3x1", 24, 24),  # Pmmn
        ("MoS2", "4x3", 24, 24),  # only the identity and the horizontal mirror keep this supercell
    ],
)
def test_number_of_operations(name: str, text: str, n_operations: int, n_space_group_operations: int) -> None:
    symmetry = find_symmetry(supercell_of(name, text))
    assert symmetry.n_operations == n_operations
    assert symmetry.n_space_group_operations == n_space_group_operations


@pytest.mark.parametrize(("name", "text"), [("MoS2", "4x4"), ("h-BN", "3x3"), ("BP", "3x2"), ("V2O5", "2x1")])
def test_operations_preserve_species_and_distances(name: str, text: str) -> None:
    supercell = supercell_of(name, text)
    species, distances = np.array(supercell.species), supercell.pair_distances
    for permutation in find_symmetry(supercell).permutations:
        assert sorted(permutation) == list(range(supercell.n_sites))
        assert (species[permutation] == species).all()
        assert distances[np.ix_(permutation, permutation)] == pytest.approx(distances, abs=1e-5)


def test_representative_is_the_smallest_site_of_an_orbit() -> None:
    symmetry = find_symmetry(supercell_of("MoS2", "3x3"))
    assert symmetry.representatives.tolist() == [0] * 9 + [9] * 18


def test_operations_to_the_representative_carry_each_site_there() -> None:
    symmetry = find_symmetry(supercell_of("MoS2", "3x3"))
    for site, operations in enumerate(symmetry.to_representative):
        used = operations[operations >= 0]
        assert (symmetry.permutations[used, site] == symmetry.representatives[site]).all()
        assert (
            len(used)
            == symmetry.n_operations / Counter(symmetry.representatives.tolist())[int(symmetry.representatives[site])]
        )


@pytest.mark.parametrize(("name", "text"), [("MoS2", "3x3"), ("BP", "2x2"), ("h-BN", "3x2")])
def test_pair_classes_are_the_orbits_of_pairs(name: str, text: str) -> None:
    symmetry = find_symmetry(supercell_of(name, text))
    classes = symmetry.pair_classes
    n_sites = len(classes)
    assert (classes == classes.T).all()
    orbits = {}
    for i, j in itertools.combinations_with_replacement(range(n_sites), 2):
        images = {tuple(sorted((int(g[i]), int(g[j])))) for g in symmetry.permutations}
        orbits[i, j] = min(images)
        assert {classes[pair] for pair in images} == {classes[i, j]}
    assert len(set(orbits.values())) == classes.max() + 1


@pytest.mark.parametrize(
    ("name", "text", "types"),
    [
        ("MoS2", "3x3", "v_S,v_Mo"),
        ("MoS2", "2x3", "v_S,Se_S,W_Mo"),
        ("h-BN", "3x3", "v_B,C_B,C_N"),
        ("BP", "2x2", "v_P,N_P"),
        ("V2O5", "1x1", "v_O,v_V"),
        ("MoS2", "2,1,0,-1,1,0,0,0,1", "v_S,v_Mo"),
    ],
)
def test_burnside_counts_the_orbits_of_brute_force(name: str, text: str, types: str) -> None:
    supercell, defect_types = supercell_of(name, text), parse_defect_types(types)
    symmetry = find_symmetry(supercell)
    counted = count_orbits(supercell, symmetry, defect_types, 3)
    for n_defects in (1, 2, 3):
        expected = orbits_by_brute_force(symmetry, supercell, defect_types, n_defects)
        assert {c: n for c, n in counted.items() if sum(c) == n_defects} == dict(expected)


def test_the_pristine_supercell_is_counted_once() -> None:
    supercell = supercell_of("MoS2", "2x2")
    assert count_orbits(supercell, find_symmetry(supercell), parse_defect_types("v_S"), 1)[(0,)] == 1


def test_a_layer_as_high_as_it_is_wide_keeps_its_third_axis() -> None:
    host = Host.from_cell("square", np.eye(3) * 7.0, ("C",), np.zeros((1, 3)), source="")
    rotations, _ = unit_cell_operations(host)
    assert len(rotations) == 16  # 4/mmm, not the 48 of m-3m
    assert find_symmetry(Supercell.parse(host, "3x3")).n_operations == 8 * 9


def test_symmetry_does_not_depend_on_the_height_of_the_cell() -> None:
    host = catalogue_host("MoS2")
    tall = host.lattice * np.array([[1.0], [1.0], [2.0]])
    positions = host.positions * [1.0, 1.0, 0.5]
    other = Host.from_cell("MoS2", tall, host.species, positions, source="")
    tables = [find_symmetry(Supercell.parse(h, "4x4")).permutations for h in (host, other)]
    assert (tables[0] == tables[1]).all()


def test_two_atoms_in_one_place_are_refused() -> None:
    host = Host.from_cell("x", np.diag([3.0, 3.0, 20.0]), ("C", "C"), np.zeros((2, 3)), source="")
    with pytest.raises(InputError, match="spglib finds no symmetry"):
        unit_cell_operations(host)


def test_more_pair_classes_than_an_int16_holds_are_refused() -> None:
    n_sites = 300
    identity = Symmetry(np.arange(n_sites, dtype=np.int16)[None], 1)
    with pytest.raises(InputError, match="symmetry-distinct pairs"):
        _ = identity.pair_classes


def test_a_supercell_of_a_supercell_is_refused_before_anything_large_is_made() -> None:
    """Silicon as a cell of 216 atoms: 27 times 192 operations, times 8 of the supercell."""
    corners = np.array([[0.0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    cell = np.concatenate([corners, corners + 0.25])
    shifts = np.array(list(np.ndindex(3, 3, 3)))
    positions = (cell[None] + shifts[:, None]).reshape(-1, 3) / 3.0
    host = Host.from_cell("Si", 3 * 5.43 * np.eye(3), ("Si",) * 216, positions, source="test")
    with pytest.raises(InputError, match="primitive unit cell"):
        find_symmetry(Supercell.parse(host, "2x2x2"))
