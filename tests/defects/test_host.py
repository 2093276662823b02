import itertools

import numpy as np
import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Host, Supercell
from screening.errors import InputError

DIAMOND = Host.from_cell(
    "diamond",
    np.array([[0.0, 1.7835, 1.7835], [1.7835, 0.0, 1.7835], [1.7835, 1.7835, 0.0]]),
    ("C", "C"),
    np.array([[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]]),
    source="textbook",
)


def hexagonal(c: float) -> np.ndarray:
    return np.array([[3.0, 0.0, 0.0], [-1.5, 1.5 * 3**0.5, 0.0], [0.0, 0.0, c]])


def shortest_by_brute_force(supercell: Supercell, reach: int) -> np.ndarray:
    """Distances over many more images than the table looks at."""
    repeats = [range(-reach, reach + 1) if periodic else (0,) for periodic in supercell.host.periodic]
    shifts = np.array(list(itertools.product(*repeats))) @ supercell.lattice
    between = supercell.positions[None] - supercell.positions[:, None]
    return np.sqrt(((between[:, :, None] + shifts) ** 2).sum(-1)).min(-1)


def test_a_wide_gap_along_the_third_axis_makes_a_layer() -> None:
    positions = np.array([[0.0, 0.0, 0.1], [1 / 3, 2 / 3, 0.2]])
    layer = Host.from_cell("x", hexagonal(10.0), ("Mo", "S"), positions, source="")
    bulk = Host.from_cell("x", hexagonal(6.0), ("Mo", "S"), positions, source="")
    assert layer.periodic == (True, True, False)
    assert bulk.periodic == (True, True, True)


def test_a_layer_cut_by_the_top_of_its_cell_is_put_together_in_the_middle() -> None:
    positions = np.array([[0.0, 0.0, 0.95], [1 / 3, 2 / 3, 0.05]])
    host = Host.from_cell("x", hexagonal(20.0), ("Mo", "S"), positions, source="")
    assert host.positions[:, 2] == pytest.approx([0.45, 0.55])


def test_a_layer_under_a_tilted_axis_is_refused() -> None:
    tilted = hexagonal(20.0)
    tilted[2, 0] = 5.0
    with pytest.raises(InputError, match="not perpendicular"):
        Host.from_cell("x", tilted, ("Mo",), np.zeros((1, 3)), source="")


def test_an_empty_or_flat_cell_is_refused() -> None:
    with pytest.raises(InputError, match="0 sites"):
        Host.from_cell("x", hexagonal(20.0), (), np.zeros((0, 3)), source="")
    with pytest.raises(InputError, match="volume"):
        Host.from_cell("x", hexagonal(0.0), ("Mo",), np.zeros((1, 3)), source="")


def test_formula_is_reduced_in_the_order_of_the_sites() -> None:
    assert catalogue_host("MoS2").formula == "MoS2"
    assert catalogue_host("V2O5").formula == "V2O5"
    assert catalogue_host("GaSe").formula == "GaSe"


@pytest.mark.parametrize(
    ("text", "n_sites", "label"),
    [("8x8", 192, "8x8"), ("8x8x1", 192, "8x8"), ("2,1,0,-1,1,0,0,0,1", 9, "2,1,0,-1,1,0,0,0,1")],
)
def test_supercells_are_read_and_named(text: str, n_sites: int, label: str) -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), text)
    assert supercell.n_sites == n_sites == len(supercell.species) == len(supercell.positions)
    assert supercell.label == label


@pytest.mark.parametrize("text", ["8", "8x", "0x4", "8x8x2", "1,1,0,1,1,0,0,0,1", "1,0,1,0,1,0,0,0,1", "axb"])
def test_what_is_no_supercell_of_a_layer_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Supercell.parse(catalogue_host("MoS2"), text)


def test_a_bulk_host_needs_three_repeats() -> None:
    with pytest.raises(InputError, match="write 2x2x1"):
        Supercell.parse(DIAMOND, "2x2")
    assert Supercell.parse(DIAMOND, "2x2x3").label == "2x2x3"


def test_sites_run_over_the_unit_cell_first_and_its_copies_second() -> None:
    host = catalogue_host("MoS2")
    supercell = Supercell.parse(host, "3x2")
    copies = list(itertools.product(range(3), range(2), [0]))
    for s, symbol in enumerate(host.species):
        for c, copy in enumerate(copies):
            site = supercell.n_cells * s + c
            assert supercell.species[site] == symbol
            assert supercell.positions[site] == pytest.approx((host.positions[s] + copy) @ host.lattice)


def test_integer_translations_are_wrapped_into_the_supercell() -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), "2,1,0,-1,1,0,0,0,1")
    assert len(supercell.translations) == 3
    for numbers in (
        supercell.cell_numbers(supercell.translations + supercell.matrix[0]),
        supercell.cell_numbers(supercell.translations - 5 * supercell.matrix[1]),
    ):
        assert numbers.tolist() == [0, 1, 2]


@pytest.mark.parametrize("text", ["3x3", "4x1", "2,1,0,-1,1,0,0,0,1", "5,7,0,2,6,0,0,0,1", "1,7,0,0,12,0,0,0,1"])
def test_pair_table_holds_the_shortest_distances(text: str) -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), text)
    assert supercell.pair_distances == pytest.approx(shortest_by_brute_force(supercell, 12), abs=1e-9)


def test_pair_table_of_a_bulk_host_crosses_every_face() -> None:
    supercell = Supercell.parse(DIAMOND, "2x1x2")
    assert supercell.pair_distances == pytest.approx(shortest_by_brute_force(supercell, 3), abs=1e-9)


def test_a_skewed_basis_of_the_same_supercell_has_the_same_distances() -> None:
    host = catalogue_host("MoS2")
    plain, skewed = Supercell.parse(host, "4x4"), Supercell.parse(host, "4,0,0,100,4,0,0,0,1")
    assert np.sort(skewed.pair_distances, axis=None) == pytest.approx(np.sort(plain.pair_distances, axis=None))


def test_no_pair_crosses_the_vacuum_whatever_the_height_of_the_cell() -> None:
    low, high = (
        Host.from_cell("x", hexagonal(c), ("Mo", "S"), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 6.0 / c]]), source="")
        for c in (13.0, 40.0)
    )
    tables = [Supercell.parse(host, "4x4").pair_distances for host in (low, high)]
    assert tables[0] == pytest.approx(tables[1])
    assert tables[0][0, 16] == pytest.approx(6.0)


def test_shortest_distances_of_mos2_are_its_bond_and_its_lattice_constant() -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), "8x8")
    shells = np.unique(supercell.pair_distances[0].round(3))
    assert shells[1] == pytest.approx(2.417, abs=2e-3)  # Mo-S, first distance of the published distance curve
    assert shells[2] == pytest.approx(3.190, abs=2e-3)


def test_a_configuration_becomes_atoms_in_the_order_of_the_sites() -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), "2x2")
    codes = (DefectType.parse("W_Mo").code, DefectType.parse("v_S").code)
    species, positions = supercell.structure(Configuration((1, 4), codes))
    assert species == ("Mo", "W", "Mo", "Mo", *["S"] * 7)
    assert positions == pytest.approx(np.delete(supercell.positions, 4, axis=0))


def test_a_defect_type_without_a_site_is_refused_with_the_species_there_are() -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), "2x2")
    with pytest.raises(InputError, match=r"no site of species 'Te'; its species are Mo, S"):
        supercell.allowed(DefectType.parse("v_Te"))
    assert supercell.allowed(DefectType.parse("v_S")).tolist() == list(range(4, 12))
