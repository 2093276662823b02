import numpy as np
import pytest

from screening.defects.catalogue import catalogue_host, host_names
from screening.defects.host import Host, Supercell
from screening.defects.site_lattice import REACH, SiteLattice

DIAMOND = Host.from_cell(
    "diamond",
    np.array([[0.0, 1.7835, 1.7835], [1.7835, 0.0, 1.7835], [1.7835, 1.7835, 0.0]]),
    ("C", "C"),
    np.array([[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]]),
    source="textbook",
)
SUPERCELLS = [
    *(Supercell.parse(catalogue_host(name), "4x3") for name in host_names()),
    Supercell.parse(catalogue_host("MoS2"), "2,1,0,-1,4,0,0,0,1"),
    Supercell.parse(DIAMOND, "3x2x2"),
]


def placed(supercell: Supercell, sites: np.ndarray, cartesian: np.ndarray) -> np.ndarray:
    """Coordinates of atoms displaced from sites by Cartesian vectors."""
    lattice = SiteLattice(supercell)
    return (supercell.positions[sites] + cartesian) @ np.linalg.inv(lattice.frame)


def numbers_of(supercell: Supercell) -> np.ndarray:
    return SiteLattice(supercell).atomic_numbers


@pytest.mark.parametrize("supercell", SUPERCELLS, ids=lambda cell: f"{cell.host.name} {cell.label}")
def test_atoms_displaced_less_than_half_a_bond_get_the_sites_they_came_from(supercell: Supercell) -> None:
    generator = np.random.default_rng(1)
    sites = generator.permutation(supercell.n_sites)
    bond = supercell.pair_distances[supercell.pair_distances > 0.1].min()
    displacements = generator.uniform(-1, 1, (len(sites), 3)) * 0.45 * bond / 3**0.5
    displacements -= np.median(displacements, axis=0)
    coordinates = placed(supercell, sites, displacements)
    found = SiteLattice(supercell).assign(coordinates, numbers_of(supercell)[sites], np.zeros(3))
    assert found.sites.tolist() == sites.tolist()
    assert found.rank[:2] == (0, 0)


@pytest.mark.parametrize("supercell", SUPERCELLS, ids=lambda cell: f"{cell.host.name} {cell.label}")
def test_the_origin_with_most_votes_is_the_true_one_up_to_symmetry(supercell: Supercell) -> None:
    lattice = SiteLattice(supercell)
    generator = np.random.default_rng(2)
    sites = np.sort(generator.choice(supercell.n_sites, int(0.9 * supercell.n_sites), replace=False))
    shift = generator.uniform(-8.0, 8.0, 3)
    coordinates = placed(supercell, sites, shift + generator.normal(0.0, 0.1, (len(sites), 3)))
    numbers = numbers_of(supercell)[sites]
    origins = lattice.find_origins(coordinates, numbers)
    assert origins[0].votes >= len(sites)  # sites of one species may be translations of one another
    assert [origin.votes for origin in origins] == sorted((origin.votes for origin in origins), reverse=True)
    found = lattice.assign(coordinates, numbers, origins[0].shift)
    assert found.rank[:2] == (0, supercell.n_sites - len(sites))


def test_atoms_of_no_species_of_the_host_have_no_origin() -> None:
    lattice = SiteLattice(SUPERCELLS[0])
    assert lattice.find_origins(np.zeros((2, 3)), np.array([6, 7])) == []


def test_where_two_atoms_want_one_site_the_sum_of_squares_decides() -> None:
    """Atom 0 sits on its neighbour's side; its neighbour moves on into the vacancy only if that costs less."""
    supercell = Supercell.parse(catalogue_host("BP"), "4x3")
    lattice = SiteLattice(supercell)
    sites = np.arange(supercell.n_sites)
    displacements = np.zeros((len(sites), 3))
    neighbour = int(np.argsort(supercell.pair_distances[0])[1])
    bond = supercell.pair_vectors[0, neighbour]
    displacements[0] = bond * 0.53  # nearer to the neighbour's site, 1.18 A of 2.22 A from its own
    found = lattice.assign(placed(supercell, sites, displacements), numbers_of(supercell), np.zeros(3))
    assert found.sites.tolist() == sites.tolist()
    assert found.squared_distance == pytest.approx((0.53 * np.linalg.norm(bond)) ** 2, rel=1e-3)


def test_an_atom_out_of_reach_has_no_site() -> None:
    supercell = SUPERCELLS[0]
    displacements = np.zeros((supercell.n_sites, 3))
    displacements[-1, 2] = REACH + 0.01
    coordinates = placed(supercell, np.arange(supercell.n_sites), displacements)
    found = SiteLattice(supercell).assign(coordinates, numbers_of(supercell), np.zeros(3))
    assert found.sites[-1] == -1
    assert found.rank[:2] == (1, 1)


@pytest.mark.parametrize("supercell", SUPERCELLS, ids=lambda cell: f"{cell.host.name} {cell.label}")
def test_the_nearest_site_is_that_of_the_pair_table(supercell: Supercell) -> None:
    lattice = SiteLattice(supercell)
    for site in range(0, supercell.n_sites, 7):
        away = lattice.supercell.lattice[0] * 3 - lattice.supercell.lattice[1]
        coordinates = placed(supercell, np.array([site]), away + np.array([0.1, 0.2, 0.2]))[0]
        found, distance = lattice.nearest_site(coordinates)
        assert found == site
        assert distance == pytest.approx(0.3)


def test_relaxed_atoms_are_not_taken_for_unrelaxed_ones() -> None:
    supercell = SUPERCELLS[0]
    lattice, numbers = SiteLattice(supercell), numbers_of(supercell)
    displacements = np.zeros((supercell.n_sites, 3))
    ideal = lattice.assign_unrelaxed(placed(supercell, np.arange(supercell.n_sites), displacements), numbers)
    assert ideal is not None
    assert ideal.rank == (0, 0, pytest.approx(0.0, abs=1e-12))
    displacements[5] = [0.03, 0.0, 0.0]
    moved = placed(supercell, np.arange(supercell.n_sites), displacements)
    assert lattice.assign_unrelaxed(moved, numbers) is None
