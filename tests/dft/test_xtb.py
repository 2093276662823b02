from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from tblite.ase import TBLite

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.enumeration import canonical_form
from screening.defects.host import Host, Supercell
from screening.defects.symmetry import find_symmetry
from screening.dft import xtb
from screening.errors import CalculationError, InputError, UnknownNameError

PRISTINE = Configuration((), ())


def single(supercell: Supercell, name: str, number: int = 0) -> Configuration:
    defect_type = DefectType.parse(name)
    return Configuration((int(supercell.allowed(defect_type)[number]),), (defect_type.code,))


def mos2(size: str) -> Supercell:
    return Supercell.parse(catalogue_host("MoS2"), size)


@pytest.mark.parametrize(("name", "gap"), [(None, 2.07), ("v_S", 0.92), ("v_Mo", 0.40)])
def test_gaps_of_4x4_mos2_are_those_measured_before(name: str | None, gap: float) -> None:
    supercell = mos2("4x4")
    configuration = single(supercell, name) if name else PRISTINE
    found = xtb.calculate(supercell, configuration)
    assert found.properties["homo_lumo_gap_min"] == pytest.approx(gap, abs=0.02)
    assert found.properties["lumo"] - found.properties["homo"] == pytest.approx(gap, abs=0.02)
    assert found.properties["homo_lumo_gap_majority"] == found.properties["homo_lumo_gap_minority"]
    assert "total_mag" not in found.properties


def test_the_energy_is_that_of_the_same_atoms_in_ase() -> None:
    supercell = mos2("3x3")
    configuration = single(supercell, "Se_S", 3)
    cell = supercell.lattice.copy()
    cell[2] = (0.0, 0.0, 25.0)
    species = list(supercell.species)
    species[configuration.sites[0]] = "Se"
    atoms = Atoms(species, positions=supercell.positions, cell=cell, pbc=True)
    atoms.calc = TBLite(method="GFN1-xTB", electronic_temperature=300.0, verbosity=0)
    assert xtb.calculate(supercell, configuration).energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)


def test_symmetry_equivalent_configurations_have_one_energy() -> None:
    supercell = mos2("3x3")
    symmetry = find_symmetry(supercell)
    configuration = Configuration((2, 14), (DefectType.parse("W_Mo").code, DefectType.parse("v_S").code))
    canonical, _ = canonical_form(symmetry, configuration)
    assert canonical != configuration
    one, other = (xtb.calculate(supercell, c) for c in (configuration, canonical))
    assert one.energy == pytest.approx(other.energy, abs=1e-5)
    assert one.properties == pytest.approx(other.properties, abs=1e-4)


def test_the_height_of_the_hosts_cell_does_not_matter() -> None:
    host = catalogue_host("MoS2")
    lattice = host.lattice.copy()
    lattice[2, 2] = 14.88
    positions = host.positions.copy()
    positions[:, 2] = 0.5 + (positions[:, 2] - 0.5) * host.lattice[2, 2] / 14.88
    flat = Supercell.parse(replace(host, lattice=lattice, positions=positions), "2x2")
    found = xtb.calculate(flat, PRISTINE).energy
    assert found == pytest.approx(xtb.calculate(mos2("2x2"), PRISTINE).energy, abs=1e-5)


def test_an_odd_number_of_electrons_has_a_level_that_is_homo_and_lumo() -> None:
    supercell = Supercell.parse(catalogue_host("h-BN"), "3x3")
    found = xtb.calculate(supercell, single(supercell, "v_B")).properties  # boron takes three electrons with it
    assert found["homo"] == found["lumo"]
    assert found["homo_lumo_gap_majority"] != found["homo_lumo_gap_minority"]
    assert found["homo_lumo_gap_min"] == min(found["homo_lumo_gap_majority"], found["homo_lumo_gap_minority"])


def test_a_basis_that_becomes_linearly_dependent_fails_with_the_reason() -> None:
    with pytest.raises(CalculationError, match=r"In4Se4.*eigenvalue problem.*damping 0\.1"):
        xtb.calculate(Supercell.parse(catalogue_host("InSe"), "2x1"), PRISTINE)


def test_self_consistency_that_does_not_converge_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xtb, "_MIXINGS", ((0.4, 2),))
    with pytest.raises(CalculationError, match="not converged in 2 cycles"):
        xtb.calculate(mos2("2x2"), PRISTINE)


def test_the_second_mixing_is_tried_where_the_first_does_not_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = xtb.calculate(mos2("2x2"), PRISTINE).energy
    monkeypatch.setattr(xtb, "_MIXINGS", ((0.4, 2), (0.1, 500)))
    assert xtb.calculate(mos2("2x2"), PRISTINE).energy == pytest.approx(expected, abs=1e-5)


def test_no_atom_is_no_calculation() -> None:
    supercell = Supercell.parse(catalogue_host("h-BN"), "1x1")
    both = Configuration((0, 1), (DefectType.parse("v_B").code, DefectType.parse("v_N").code))
    with pytest.raises(CalculationError, match="leaves no atom"):
        xtb.calculate(supercell, both)


def test_a_layer_too_thick_for_the_cell_is_refused() -> None:
    positions = np.array([[0.0, 0.0, 0.2], [0.0, 0.0, 0.35], [0.0, 0.0, 0.5], [0.0, 0.0, 0.65]])
    lattice = np.diag([3.0, 3.0, 40.0])
    host = Host("slab", lattice, ("C",) * 4, positions, is_layer=True, source="a test")
    with pytest.raises(InputError, match=r"18\.0 angstrom thick"):
        xtb.calculate(Supercell.parse(host, "1x1"), PRISTINE)


def test_relaxation_lowers_the_energy_and_is_a_level_of_its_own() -> None:
    supercell = mos2("2x2")
    vacancy = single(supercell, "v_S")
    relaxed = xtb.calculate(supercell, vacancy, relax=True)
    assert relaxed.energy < xtb.calculate(supercell, vacancy).energy - 0.01
    assert xtb.level_of_theory().digest != xtb.level_of_theory(relax=True).digest
    assert xtb.level_of_theory().name == "GFN1-xTB single point"
    assert xtb.level_of_theory(relax=True).name == "GFN1-xTB relaxed"


def test_a_relaxation_that_does_not_end_fails_with_the_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xtb, "MAX_STEPS", 1)
    supercell = mos2("2x2")
    with pytest.raises(CalculationError, match=r"did not converge in 1 steps: largest force \d"):
        xtb.calculate(supercell, single(supercell, "v_S"), relax=True)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    supercell = mos2("2x2")
    xtb.calculate(supercell, single(supercell, "v_S"), relax=True)
    monkeypatch.setattr(xtb, "_MIXINGS", ((0.4, 2),))
    with pytest.raises(CalculationError):
        xtb.calculate(supercell, PRISTINE)
    assert capfd.readouterr() == ("", "")


def test_a_metal_is_in_equilibrium_with_its_compound_and_the_other_element() -> None:
    gallium, source = xtb.reference("Ga")
    selenium, _ = xtb.reference("Se")
    supercell = Supercell.parse(catalogue_host("GaSe"), "4x4")
    assert 32 * (gallium + selenium) == pytest.approx(xtb.calculate(supercell, PRISTINE).energy, abs=1e-6)
    assert source == "4x4 GaSe, in equilibrium with Se8 molecule, relaxed"


def test_tungsten_is_in_equilibrium_with_ws2() -> None:
    tungsten, source = xtb.reference("W")
    sulphur, _ = xtb.reference("S")
    host = catalogue_host("MoS2")
    ws2 = Supercell.parse(replace(host, name="WS2", species=("W", "S", "S")), "4x4")
    assert 16 * tungsten + 32 * sulphur == pytest.approx(xtb.calculate(ws2, PRISTINE).energy, abs=1e-5)
    assert source == "4x4 MoS2 with W in place of Mo, in equilibrium with S8 molecule, relaxed"


@pytest.mark.parametrize(("formula", "bond", "angle"), [("S8", 2.05, 108.0), ("Se8", 2.33, 105.7)])
def test_rings_relax_to_the_measured_bonds(formula: str, bond: float, angle: float) -> None:
    ring = xtb._molecule(formula)
    xtb._relax(ring, 0.001)
    assert ring.get_distance(0, 1) == pytest.approx(bond, abs=0.04)  # crystal structures of sulphur and selenium
    assert ring.get_angle(0, 1, 2) == pytest.approx(angle, abs=3.0)


@pytest.mark.parametrize("symbol", ["N", "O", "In", "C", "P", "B"])
def test_an_element_has_one_reference_that_binds(symbol: str) -> None:
    energy, source = xtb.reference(symbol)
    atom = xtb._single_point(Atoms(symbol, positions=[(0, 0, 0)]))[0]
    assert -12.0 < energy - atom < -0.3
    assert source


def test_an_element_without_a_reference_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="no reference for the chemical potential of Te; it has B, C"):
        xtb.reference("Te")
