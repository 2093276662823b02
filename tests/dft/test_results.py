import pytest

from screening.defects.defect_types import Configuration, DefectType
from screening.dft.results import LevelOfTheory, formation_energy
from screening.errors import InputError


def configuration(*names: str) -> Configuration:
    return Configuration(tuple(range(len(names))), tuple(DefectType.parse(name).code for name in names))


def test_a_vacancy_gives_its_atom_to_the_reservoir() -> None:
    found = formation_energy(configuration("v_S"), -90.0, pristine_energy=-100.0, chemical_potentials={"S": -4.0})
    assert found == pytest.approx(6.0)


def test_a_substitution_takes_its_atom_from_the_reservoir() -> None:
    found = formation_energy(
        configuration("Se_S"), -99.0, pristine_energy=-100.0, chemical_potentials={"S": -4.0, "Se": -3.5}
    )
    assert found == pytest.approx(1.0 - 4.0 + 3.5)


def test_every_defect_of_a_configuration_counts() -> None:
    found = formation_energy(
        configuration("v_S", "v_S", "W_Mo"),
        -80.0,
        pristine_energy=-100.0,
        chemical_potentials={"S": -4.0, "W": -13.0, "Mo": -11.0},
    )
    assert found == pytest.approx(20.0 - 8.0 - 11.0 + 13.0)


def test_the_pristine_supercell_costs_nothing() -> None:
    assert formation_energy(configuration(), -100.0, pristine_energy=-100.0, chemical_potentials={}) == 0.0


def test_a_missing_chemical_potential_is_named() -> None:
    with pytest.raises(InputError, match=r"no chemical potential of Se for Se_S; known are S"):
        formation_energy(configuration("Se_S"), -99.0, pristine_energy=-100.0, chemical_potentials={"S": -4.0})


def test_the_digest_of_a_level_does_not_depend_on_its_name_or_the_order_of_its_settings() -> None:
    one = LevelOfTheory("one", "VASP", "PBE", {"cutoff": 500, "spin": True})
    other = LevelOfTheory("other", "VASP", "PBE", {"spin": True, "cutoff": 500})
    assert one.digest == other.digest
    assert one.digest != LevelOfTheory("one", "VASP", "PBE", {"cutoff": 520, "spin": True}).digest
