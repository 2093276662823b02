from pathlib import Path

import numpy as np
import pytest

from screening.defects.catalogue import catalogue_host, host_names
from screening.defects.host import Supercell
from screening.defects.matching import Matcher, Structure
from screening.defects.symmetry import find_symmetry
from screening.dft.structures import read_host
from screening.errors import UnknownNameError

UNIT_CELLS = [
    ("MoS2", "low_density_defects/MoS2/unit_cells/MoS2.cif"),
    ("MoS2", "high_density_defects/MoS2_500/unit_cells/MoS2.cif"),
    ("WSe2", "low_density_defects/WSe2/unit_cells/WSe2.cif"),
    ("WSe2", "high_density_defects/WSe2_500/unit_cells/WSe2.cif"),
    ("h-BN", "high_density_defects/hBN_spin_500/unit_cells/BN.cif"),
    ("GaSe", "high_density_defects/GaSe_spin_500/unit_cells/GaSe.cif"),
    ("InSe", "high_density_defects/InSe_spin_500/unit_cells/InSe.cif"),
    ("BP", "high_density_defects/BP_spin_500/unit_cells/P.cif"),
    ("V2O5", "unit_cells/V2O5.cif"),
]


def relative(positions: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    cartesian = positions @ lattice
    return cartesian - cartesian[0]


@pytest.mark.parametrize(("name", "path"), UNIT_CELLS)
def test_hosts_are_the_unit_cells_of_the_data_set(shared_data: Path, name: str, path: str) -> None:
    ours, theirs = catalogue_host(name), read_host(shared_data / "2dmd" / path)
    assert ours.species == theirs.species
    assert ours.is_layer
    assert theirs.is_layer
    assert ours.lattice[:2] == pytest.approx(theirs.lattice[:2], abs=1e-5)
    assert relative(ours.positions, ours.lattice) == pytest.approx(relative(theirs.positions, theirs.lattice), abs=1e-5)


@pytest.mark.parametrize(("name", "path"), UNIT_CELLS)
def test_supercells_of_the_unit_cell_files_number_their_sites_alike(shared_data: Path, name: str, path: str) -> None:
    ours, theirs = (
        Supercell.parse(host, "3x3") for host in (catalogue_host(name), read_host(shared_data / "2dmd" / path))
    )
    assert (find_symmetry(ours).permutations == find_symmetry(theirs).permutations).all()
    species, positions = ours.species, theirs.positions @ np.linalg.inv(theirs.lattice)
    assert Matcher(ours).match(Structure("pristine", theirs.lattice, species, positions)).n_defects == 0


def test_the_catalogue_names_its_hosts() -> None:
    assert host_names() == ("MoS2", "WSe2", "h-BN", "GaSe", "InSe", "BP", "V2O5")
    assert [catalogue_host(name).name for name in host_names()] == list(host_names())


@pytest.mark.parametrize(("alias", "name"), [("hBN", "h-BN"), ("BN", "h-BN"), ("P", "BP"), ("phosphorene", "BP")])
def test_aliases_give_the_host_under_its_own_name(alias: str, name: str) -> None:
    assert catalogue_host(alias).name == name


def test_an_unknown_host_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UnknownNameError, match="no host 'MoTe2'; it has MoS2, WSe2"):
        catalogue_host("MoTe2")


@pytest.mark.parametrize(
    ("name", "bond", "partner"),
    [("MoS2", 2.42, 1), ("h-BN", 1.45, 1), ("BP", 2.22, 3)],
)
def test_bond_lengths_are_those_of_the_literature(name: str, bond: float, partner: int) -> None:
    supercell = Supercell.parse(catalogue_host(name), "3x3")
    sites = slice(partner * supercell.n_cells, (partner + 1) * supercell.n_cells)
    assert supercell.pair_distances[0, sites].min() == pytest.approx(bond, abs=0.01)
