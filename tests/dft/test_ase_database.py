"""Results in ASE databases that ASE has written."""

from __future__ import annotations

import math
from pathlib import Path

import ase
import ase.db
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Supercell
from screening.defects.matching import Matcher
from screening.dft.ase_database import is_ase_db, read_ase_db
from screening.errors import FileFormatError

SUPERCELL = Supercell.parse(catalogue_host("MoS2"), "4x4")


def atoms_of(name: str, energy: float | None = -300.5) -> ase.Atoms:
    code = DefectType.parse(name)
    configuration = Configuration((int(SUPERCELL.allowed(code)[3]),), (code.code,))
    species, positions = SUPERCELL.structure(configuration)
    atoms = ase.Atoms(species, positions=positions, cell=SUPERCELL.lattice, pbc=[True, True, False])
    if energy is not None:
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


def test_rows_are_results_with_energy_and_properties(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with ase.db.connect(path) as database:
        database.write(atoms_of("v_S"), name="first", total_mag=1.5, homo_lumo_gap_min=0.25)
        database.write(atoms_of("W_Mo", -310.0))
    first, second = read_ase_db(path)
    assert (first.name, first.energy, first.properties) == (
        "first", -300.5, {"total_mag": 1.5, "homo_lumo_gap_min": 0.25},
    )  # fmt: skip
    assert (second.name, second.energy, second.problem) == ("row 2", -310.0, None)
    assert second.structure is not None
    assert Matcher(SUPERCELL).match(second.structure).composition == "W_Mo"


def test_an_energy_may_be_a_pair_of_a_row_without_a_calculator(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with ase.db.connect(path) as database:
        database.write(atoms_of("v_S", None), total_energy=-1.0)
        database.write(atoms_of("v_S", None), data={"energy": -2.0})
    assert [result.problem for result in read_ase_db(path)] == ["its energy is None; expected a finite number"] * 2


def test_what_is_not_converged_or_named_twice_has_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with ase.db.connect(path) as database:
        database.write(atoms_of("v_S"), converged=False)
        database.write(atoms_of("v_S"), name="a")
        database.write(atoms_of("W_Mo"), name="a")
    found = read_ase_db(path)
    assert [result.name for result in found] == ["row 1", "a", "a, again in row 3"]
    assert found[0].problem == "the file says that it is not converged"
    assert found[1].problem is None
    assert found[2].problem == "the database has two rows called 'a'; name each once"
    assert math.isnan(found[2].energy)


def test_a_molecule_without_a_cell_has_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with ase.db.connect(path) as database:
        molecule = ase.Atoms("CO", positions=np.eye(3)[:2])
        molecule.calc = SinglePointCalculator(molecule, energy=-1.0)
        database.write(molecule)
    (found,) = read_ase_db(path)
    assert found.problem is not None
    assert "0 lattice vectors" in found.problem


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_ase_db(path)
    path.write_text("Site,Energy")
    with pytest.raises(FileFormatError, match="is no SQLite file"):
        read_ase_db(path)
    with ase.db.connect(tmp_path / "whole.db") as database:
        for _ in range(20):
            database.write(atoms_of("v_S"))
    content = (tmp_path / "whole.db").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FileFormatError, match="cannot be read as an ASE database"):
        read_ase_db(path)


def test_the_name_says_it() -> None:
    assert is_ase_db(Path("a/runs.DB"))
    assert not is_ase_db(Path("runs.db.csv"))
