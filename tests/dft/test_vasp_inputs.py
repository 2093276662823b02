"""Inputs of VASP, read back by pymatgen and by our own matcher."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pymatgen.io.vasp.inputs import Incar, Kpoints, Poscar

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.enumeration import canonical_form
from screening.defects.host import Supercell
from screening.defects.matching import Matcher, find_supercell
from screening.defects.symmetry import find_symmetry
from screening.dft.results import LevelOfTheory
from screening.dft.structures import read_structures
from screening.dft.vasp import host_of_bulk, read_vasprun
from screening.dft.vasp_inputs import input_settings, read_settings, write_inputs
from screening.errors import FileFormatError, InputError

SUPERCELL = Supercell.parse(catalogue_host("MoS2"), "4x4")
CONFIGURATION = Configuration((3, 20, 21), tuple(DefectType.parse(name).code for name in ("W_Mo", "v_S", "Se_S")))
SETTINGS: dict[str, Any] = {
    "cutoff": 450.0, "spin_polarised": True, "k_points": "gamma 3 3 1 shift 0 0 0",
    "pseudopotentials": {"Mo": "PAW_PBE Mo_pv 04Feb2005", "W": "W_pv", "S": "S", "Se": "Se"},
}  # fmt: skip


def level(functional: str = "PBE", **others: Any) -> LevelOfTheory:
    return LevelOfTheory("a level", "VASP", functional, SETTINGS | others)


def incar_of(folder: Path, found: LevelOfTheory) -> Incar:
    write_inputs(folder, SUPERCELL, CONFIGURATION, found)
    return Incar.from_file(folder / "INCAR")


@pytest.mark.parametrize(("run", "label"), [("GaN_Mg_Ga", "Mg_Ga"), ("GaN_v_N", "v_N")])
def test_inputs_of_a_runs_level_have_the_settings_of_that_run(
    shared_data: Path, tmp_path: Path, run: str, label: str
) -> None:
    bulk = read_vasprun(shared_data / "vasp" / run / "bulk" / "vasprun.xml.gz").structure
    found = read_vasprun(shared_data / "vasp" / run / "defect" / "vasprun.xml.gz")
    assert bulk is not None
    assert found.structure is not None
    assert found.level is not None
    host = host_of_bulk(bulk)
    assert host is not None
    supercell = find_supercell(bulk, [host])
    configuration = Matcher(supercell).match(found.structure)
    files = write_inputs(tmp_path / "run", supercell, configuration, found.level)
    incar, settings = Incar.from_file(tmp_path / "run" / "INCAR"), found.level.settings
    gga = {"PBE": "PE", "PBEsol": "PS"}[found.level.functional]
    assert incar["GGA"].upper() == gga
    assert incar["ENCUT"] == settings["cutoff"]
    assert (incar["ISPIN"] == 2) is settings["spin_polarised"]
    assert incar["LASPH"] is settings["aspherical"]
    assert incar["PREC"].lower() == settings["precision"] == "accurate"
    assert incar["LREAL"] is settings["real_space_projection"] is False  # though the default of inputs is Auto
    assert [incar["ISMEAR"], incar["SIGMA"]] == settings["smearing"] == [0, 0.05]
    assert not incar.get("LDAU", False)
    points = Kpoints.from_file(tmp_path / "run" / "KPOINTS")
    assert (points.style.name, points.kpts) == ("Reciprocal", [(0.25, 0.25, 0.25)])
    order = Poscar.from_file(tmp_path / "run" / "POSCAR", check_for_potcar=False).site_symbols
    titles = [str(settings["pseudopotentials"][symbol]) for symbol in order]
    assert (tmp_path / "run" / "POTCAR.spec").read_text().split() == [title.split()[1] for title in titles]
    assert list(files.pseudopotentials) == [title.split()[1] for title in titles]
    (written,) = read_structures(tmp_path / "run" / "POSCAR")
    assert Matcher(supercell).match(written).composition == label


def test_the_poscar_is_the_configuration(tmp_path: Path) -> None:
    files = write_inputs(tmp_path, SUPERCELL, CONFIGURATION, level())
    (written,) = read_structures(tmp_path / "POSCAR")
    symmetry = find_symmetry(SUPERCELL)
    found = Matcher(SUPERCELL).match(written)
    assert canonical_form(symmetry, found) == canonical_form(symmetry, CONFIGURATION)
    assert (tmp_path / "POSCAR").read_text().splitlines()[0] == "MoS2 4x4 v_S+Se_S+W_Mo"
    assert files.sha256 == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("POSCAR", "INCAR", "KPOINTS", "POTCAR.spec")
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files.sha256)


def test_the_cell_of_the_host_is_kept_and_a_moment_is_given_for_each_atom(tmp_path: Path) -> None:
    incar = incar_of(tmp_path, level())
    atoms = Poscar.from_file(tmp_path / "POSCAR", check_for_potcar=False).structure
    assert incar["ISIF"] == 2
    assert len(incar["MAGMOM"]) == len(atoms) == 47
    moments = dict(zip((site.specie.symbol for site in atoms), incar["MAGMOM"], strict=True))
    assert moments == {"Mo": 5.0, "W": 5.0, "S": 0.6, "Se": 0.6}  # of the input set, in the order of POSCAR


def test_a_mesh_is_written_with_its_shift(tmp_path: Path) -> None:
    write_inputs(tmp_path, SUPERCELL, CONFIGURATION, level(k_points="monkhorst 3 2 1 shift 0.5 0 0"))
    points = Kpoints.from_file(tmp_path / "KPOINTS")
    assert (points.style.name, points.kpts, points.kpts_shift) == ("Monkhorst", [(3, 2, 1)], (0.5, 0.0, 0.0))


def test_listed_points_need_their_weights(tmp_path: Path) -> None:
    listed = level(k_points="reciprocal 0 0 0; 0.5 0 0 shift 0 0 0")
    with pytest.raises(InputError, match="lists 2 k-points without their weights"):
        write_inputs(tmp_path, SUPERCELL, CONFIGURATION, listed)
    write_inputs(tmp_path, SUPERCELL, CONFIGURATION, listed, extra={"k_point_weights": [1, 3]})
    points = Kpoints.from_file(tmp_path / "KPOINTS")
    assert (points.kpts, points.kpts_weights) == ([(0, 0, 0), (0.5, 0, 0)], [1.0, 3.0])


@pytest.mark.parametrize("text", ["line 1 1 1", "gamma 1 1", "gamma a b c", "gamma 1 1 1 shift 0", ""])
def test_points_that_cannot_be_written_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="cannot be written as a KPOINTS file"):
        write_inputs(tmp_path / "a", SUPERCELL, CONFIGURATION, level(k_points=text))
    assert not (tmp_path / "a").exists()


def test_hybrid_dispersion_spin_orbit_and_hubbard_u_reach_the_incar(tmp_path: Path) -> None:
    hybrid = incar_of(tmp_path / "a", level("HSE06+vdW-DFT-D3", exact_exchange=[0.25, 0.2], dispersion=11))
    assert (hybrid["LHFCALC"], hybrid["AEXX"], hybrid["HFSCREEN"], hybrid["IVDW"]) == (True, 0.25, 0.2, 11)
    with_u = incar_of(tmp_path / "b", level("PBE+U", hubbard_u={"Mo": 4.0, "S": 0.0}))
    order = Poscar.from_file(tmp_path / "b" / "POSCAR", check_for_potcar=False).site_symbols
    assert dict(zip(order, with_u["LDAUU"], strict=True)) == {"Mo": 4.0, "W": 0.0, "S": 0.0, "Se": 0.0}
    assert dict(zip(order, with_u["LDAUL"], strict=True)) == {"Mo": 2, "W": -1, "S": -1, "Se": -1}
    spin_orbit = incar_of(tmp_path / "c", level(spin_orbit=True))
    assert spin_orbit["LSORBIT"] is True
    assert len(spin_orbit["MAGMOM"]) == 47
    assert spin_orbit["MAGMOM"][0] == [0.0, 0.0, 5.0]
    plain = incar_of(tmp_path / "d", level("R2SCAN", spin_polarised=False))
    assert (plain["METAGGA"].upper(), plain["ISPIN"]) == ("R2SCAN", 1)
    assert "MAGMOM" not in plain


def test_a_functional_that_is_not_known_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the functional B3LYP, for which no INCAR is known here; known are PBE, "):
        write_inputs(tmp_path, SUPERCELL, CONFIGURATION, level("B3LYP"))


def test_a_level_without_settings_takes_them_from_a_file(tmp_path: Path) -> None:
    bare = LevelOfTheory("2DMD PBE", "VASP", "PBE", {"reference": "a paper"})
    with pytest.raises(InputError, match='"2DMD PBE" does not say its cutoff, spin_polarised, k_points, pseudopot'):
        write_inputs(tmp_path, SUPERCELL, CONFIGURATION, bare)
    path = tmp_path / "settings.toml"
    path.write_text(
        'cutoff = 500.0\nspin_polarised = true\nk_points = "gamma 1 1 1"\n'
        '[pseudopotentials]\nMo = "Mo_pv"\nW = "W_pv"\nS = "S"\nSe = "Se"\n[incar]\nNCORE = 4\nNSW = 0\n'
    )
    write_inputs(tmp_path / "a", SUPERCELL, CONFIGURATION, bare, extra=read_settings(path))
    incar = Incar.from_file(tmp_path / "a" / "INCAR")
    assert (incar["ENCUT"], incar["NCORE"], incar["NSW"]) == (500, 4, 0)
    same = tmp_path / "settings.json"
    same.write_text(json.dumps(read_settings(path)))
    assert read_settings(same) == read_settings(path)


def test_settings_that_contradict_the_level_are_refused() -> None:
    with pytest.raises(InputError, match=r"the settings have cutoff 520.0, level \"a level\" has 450.0"):
        input_settings(level(), {"cutoff": 520.0})
    with pytest.raises(InputError, match="have pseudopotentials Mo of Mo, level"):
        input_settings(level(), {"pseudopotentials": {"Mo": "Mo"}})
    more = input_settings(level(), {"pseudopotentials": {"Mo": "Mo_pv", "Te": "Te"}})["pseudopotentials"]
    assert more == SETTINGS["pseudopotentials"] | {"Te": "Te"}


def test_tags_that_the_level_decides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="have ENCUT, NELECT below incar, which the level of theory decides"):
        write_inputs(tmp_path, SUPERCELL, CONFIGURATION, level(), extra={"incar": {"encut": 1, "NELECT": 3}})


def test_an_element_without_a_pseudopotential_is_named(tmp_path: Path) -> None:
    lacking = level(pseudopotentials={"Mo": "Mo_pv", "S": "S", "Se": "Se"})
    with pytest.raises(InputError, match="no pseudopotential of W; it has those of Mo, S, Se"):
        write_inputs(tmp_path, SUPERCELL, CONFIGURATION, lacking)


def test_a_level_of_another_code_is_refused() -> None:
    with pytest.raises(InputError, match="is of code tblite; VASP inputs are made for levels of code VASP only"):
        input_settings(LevelOfTheory("GFN1-xTB", "tblite", "GFN1-xTB", {}))


def test_a_file_of_settings_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_settings(path)
    path.write_text("cutoff = ")
    with pytest.raises(FileFormatError, match="is no TOML"):
        read_settings(path)
    path.write_text("ecut = 500")
    with pytest.raises(InputError, match="no setting is called ecut; the settings are cutoff, "):
        read_settings(path)
    listed = tmp_path / "s.json"
    listed.write_text("[1]")
    with pytest.raises(FileFormatError, match="holds a list; expected settings by name"):
        read_settings(listed)
