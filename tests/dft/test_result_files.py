import math
from pathlib import Path

import pytest

from screening.defects.defect_types import DefectType
from screening.dft.result_files import find_result_files, kind_of, read_extxyz, read_result_table
from screening.errors import FileFormatError

FRAME = (
    '2\nLattice="2.5 0 0 0 2.5 0 0 0 20" Properties=species:S:1:pos:R:3 {info} pbc="T T T"\n'
    "B 0.0 0.0 0.0\nN 1.25 0.7 0.0\n"
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vasprun.xml", "vasprun"),
        ("relax_vasprun.xml.gz", "vasprun"),
        ("done.XYZ", "extxyz"),
        ("done.csv.gz", "csv"),
        ("POSCAR", None),
        ("done.xml", None),
    ],
)
def test_a_file_is_known_by_its_name(name: str, kind: str | None) -> None:
    assert kind_of(Path(name)) == kind


def test_folders_are_searched_and_each_file_is_found_once(tmp_path: Path) -> None:
    for name in ("a/vasprun.xml", "b/c/done.csv", "b/notes.txt", "b/more.extxyz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = find_result_files([tmp_path / "b" / "more.extxyz", tmp_path])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b/more.extxyz", "a/vasprun.xml", "b/c/done.csv"]


def test_a_frame_has_its_energy_and_the_properties_it_names(tmp_path: Path) -> None:
    path = tmp_path / "done.xyz"
    path.write_text(
        FRAME.format(info="energy=-17.5 homo_lumo_gap_min=4.5 total_mag=1 formation_energy=3 unknown=7")
        + FRAME.format(info="homo=1")
        + FRAME.format(info="energy=-17.5 homo=nan")
    )
    good, without, wrong = read_extxyz(path)
    assert (good.energy, dict(good.properties)) == (-17.5, {"homo_lumo_gap_min": 4.5, "total_mag": 1.0})
    assert good.structure is not None
    assert good.structure.species == ("B", "N")
    assert math.isnan(without.energy)
    assert without.problem == "its energy is None; expected a finite number"
    assert wrong.problem == "its homo is nan; expected a finite number"
    assert len({found.name for found in (good, without, wrong)}) == 3


def test_a_row_of_sites_is_ordered_and_the_pristine_supercell_has_none(tmp_path: Path) -> None:
    path = tmp_path / "done.csv"
    path.write_text("energy,sites,defect_types,supercell\n-1.5,20 16,Se_S v_S,4x4\n-2.5,,,\n-1,3 3,v_S v_S,\n")
    pair, pristine, twice = read_result_table(path)
    assert pair.configuration is not None
    assert pair.configuration.sites == (16, 20)
    assert pair.configuration.defect_types == (DefectType.parse("v_S").code, DefectType.parse("Se_S").code)
    assert (pair.supercell, pair.energy, pair.name) == ("4x4", -1.5, "row 1")
    assert pristine.configuration is not None
    assert (pristine.configuration.n_defects, pristine.supercell) == (0, None)
    assert twice.problem == "a site is named twice in '3 3'; expected each once"


def test_a_table_without_sites_or_structures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "done.csv"
    path.write_text("energy,sites\n-1,3\n")
    with pytest.raises(FileFormatError, match="has the columns energy, sites; expected energy, and structure or"):
        read_result_table(path)
