import gzip
import io
import json
import pickle
import tarfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.enumeration import canonical_form
from screening.defects.host import Supercell
from screening.defects.matching import Matcher
from screening.defects.symmetry import find_symmetry
from screening.dft.structures import (
    archive_members,
    parse_cif,
    parse_structures,
    read_host,
    read_structures,
    write_structure,
)
from screening.errors import FileFormatError, InputError, UnsafeArchiveError

SUPERCELL = Supercell.parse(catalogue_host("MoS2"), "4x4")
CONFIGURATION = Configuration(
    (3, 20, 21), tuple(DefectType.parse(name).code for name in ("W_Mo", "v_S", "Se_S"))
)  # fmt: skip

CIF = """data_MoS2
_cell_length_a 3.19
_cell_length_b 3.19
_cell_length_c 15
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 120
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Mo1 Mo 0.33333333 0.66666667 0.5 1
S1 S 0.66666667 0.33333333 0.6043(2) 1.0
S2 S 0.66666667 0.33333333 0.3957 1.0
"""
SYMMETRIC_CIF = """data_MoS2
_cell_length_a 3.19
_cell_length_b 3.19
_cell_length_c 15
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 120
SYMMETRY
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Mo1 0.33333 0.66667 0.5
S1 0.66667 0.33333 0.6043
"""
POSCAR = """MoS2
1.0
3.19 0.0 0.0
-1.595 2.762621 0.0
0.0 0.0 15.0
Mo S
1 2
Direct
0.33333333 0.66666667 0.5
0.66666667 0.33333333 0.6043
0.66666667 0.33333333 0.3957
"""
PYMATGEN = {
    "@module": "pymatgen.core.structure",
    "@class": "Structure",
    "lattice": {"matrix": [[3.19, 0.0, 0.0], [-1.595, 2.762621, 0.0], [0.0, 0.0, 15.0]]},
    "sites": [
        {"species": [{"element": "Mo", "oxidation_state": 4, "occu": 1}], "abc": [1 / 3, 2 / 3, 0.5]},
        {"species": [{"element": "S", "occu": 1.0}], "abc": [2 / 3, 1 / 3, 0.6043]},
        {"species": [{"element": "S", "occu": 1.0}], "abc": [2 / 3, 1 / 3, 0.3957]},
    ],
}
EXTXYZ = """3
Lattice="3.19 0.0 0.0 -1.595 2.762621 0.0 0.0 0.0 15.0" Properties=species:S:1:pos:R:3 pbc="T T F"
Mo 0.0 1.84175 7.5
S 1.595 0.92087 9.0645
S 1.595 0.92087 5.9355
"""


def distances(lattice: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Sorted shortest distances between the atoms, which no choice of origin, axes or order changes."""
    offsets = positions[:, None] - positions[None]
    offsets -= np.rint(offsets)
    images = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], [0], indexing="ij"), -1).reshape(-1, 3)
    all_images = np.linalg.norm((offsets[:, :, None] + images) @ lattice, axis=-1)
    return np.sort(all_images.min(-1), axis=None)


EXPECTED_DISTANCES = np.array([0.0] * 3 + [np.sqrt(3.19**2 / 3 + 1.5645**2)] * 4 + [3.129] * 2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MoS2.cif", CIF),
        ("structure.txt", CIF),
        ("MoS2.vasp", POSCAR),
        ("POSCAR", POSCAR),
        ("CONTCAR.relaxed", POSCAR),
        ("poscar-without-suffix", POSCAR),
        ("MoS2.json", json.dumps(PYMATGEN)),
        ("MoS2.data", json.dumps(PYMATGEN)),
        ("MoS2.xyz", EXTXYZ),
        ("MoS2.extxyz", EXTXYZ),
        ("MoS2.txt", EXTXYZ),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_every_format_gives_the_same_crystal(tmp_path: Path, name: str, text: str, compressed: bool) -> None:
    path = tmp_path / (f"{name}.gz" if compressed else name)
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    (structure,) = read_structures(path)
    assert structure.name == Path(name).stem
    assert sorted(structure.species) == ["Mo", "S", "S"]
    assert distances(structure.lattice, structure.positions) == pytest.approx(EXPECTED_DISTANCES, abs=1e-3)


@pytest.mark.parametrize(
    "symmetry",
    [
        "_space_group_name_H-M_alt 'P -6 m 2'",
        "_symmetry_space_group_name_H-M 'P -6 m 2'\n_symmetry_Int_Tables_number 187",
        "_space_group_IT_number 187",
        "loop_\n_symmetry_equiv_pos_as_xyz\n'x, y, z'\n'x, y, -z+1'\n'-y, x-y, z'\n'-x+y, -x, z'",
    ],
)
def test_symmetry_copies_are_made_and_special_positions_kept_single(symmetry: str) -> None:
    structure = parse_cif(SYMMETRIC_CIF.replace("SYMMETRY", symmetry), "x")
    assert structure.species == ("Mo", "S", "S")
    assert distances(structure.lattice, structure.positions) == pytest.approx(EXPECTED_DISTANCES, abs=1e-3)


def test_positions_have_the_multiplicities_of_the_international_tables() -> None:
    """P -3 m 1: 12 of the general position, 2 of (1/3, 2/3, z)."""
    cif = SYMMETRIC_CIF.replace("SYMMETRY", "_symmetry_space_group_name_H-M 'P -3 m 1'")
    structure = parse_cif(cif.replace("0.33333 0.66667 0.5", "0.1 0.3 0.45"), "x")
    assert structure.species == ("Mo",) * 12 + ("S",) * 2
    assert len({tuple(position) for position in structure.positions.round(6).tolist()}) == 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("0.6043(2) 1.0", "0.6043(2) 0.5"), r"site S1 has occupancy 0\.5; expected 1"),
        (("S1 S ", "S1 Xx "), "site S1 has no known element"),
        (("0.66666667 0.33333333 0.3957", "? 0.33333333 0.3957"), "site S2 has no known element or a coordinate"),
        (("_cell_length_a 3.19\n", ""), "has no unit cell"),
        (("'P 1'", "'P 7 nonsense'"), "names the space group P 7 nonsense, which is not known"),
        (("_atom_site_fract_x", "_atom_site_frct_x"), "has 0 blocks with fractional coordinates"),
        (("data_MoS2", "MoS2"), "cannot be read"),
        (("S2 S 0.66666667 0.33333333 0.3957 1.0\n", "S2 S 0.66666667\n"), "cannot be read"),
    ],
)
def test_a_bad_cif_is_refused_with_its_reason(change: tuple[str, str], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        parse_cif(CIF.replace(*change), "bad")


def test_a_cif_of_two_crystals_is_refused() -> None:
    with pytest.raises(FileFormatError, match="has 2 blocks"):
        parse_cif(CIF + CIF.replace("data_MoS2", "data_other"), "two")


def test_oxidation_states_in_symbols_are_ignored() -> None:
    structure = parse_cif(CIF.replace("Mo1 Mo ", "Mo1 Mo4+ ").replace("S1 S ", "S1 S2- "), "x")
    assert structure.species == ("Mo", "S", "S")


def test_a_uuid_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "MoS2_Mo56W4_dc05c576-af56-4203-89ea-12c432a1a34b.cif"
    path.write_text(CIF)
    assert next(read_structures(path)).name == path.stem


def test_frames_are_named_by_their_index(tmp_path: Path) -> None:
    path = tmp_path / "run.extxyz"
    path.write_text(EXTXYZ * 3)
    assert [structure.name for structure in read_structures(path)] == ["run:0", "run:1", "run:2"]
    path = tmp_path / "list.json"
    path.write_text(json.dumps([PYMATGEN, PYMATGEN]))
    assert [structure.name for structure in read_structures(path)] == ["list:0", "list:1"]


def test_a_layer_without_a_third_lattice_vector_gets_vacuum() -> None:
    text = EXTXYZ.replace("0.0 0.0 15.0", "0.0 0.0 0.0")
    (structure,) = parse_structures("x.xyz", text.encode())
    assert structure.lattice[2] == pytest.approx([0.0, 0.0, 23.129])
    assert distances(structure.lattice, structure.positions) == pytest.approx(EXPECTED_DISTANCES, abs=1e-3)


def test_the_json_that_pymatgen_writes_is_read() -> None:
    pymatgen_core = pytest.importorskip("pymatgen.core")
    theirs = pymatgen_core.Structure(
        np.diag([4.0, 5.0, 6.0]), ["Ga", "N"], [[0.1, 0.2, 0.3], [0.6, 0.7, 1.8]]
    )  # fmt: skip
    (ours,) = parse_structures("x.json", json.dumps(theirs.as_dict()).encode())
    assert ours.species == ("Ga", "N")
    assert ours.lattice == pytest.approx(theirs.lattice.matrix)
    assert ours.positions - theirs.frac_coords == pytest.approx(np.rint(ours.positions - theirs.frac_coords))


def partly_occupied() -> dict[str, object]:
    site = {"species": [{"element": "S", "occu": 0.5}, {"element": "Se", "occu": 0.5}], "abc": [0.0, 0.0, 0.0]}
    return {**PYMATGEN, "sites": [site]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "{", "JSON x cannot be read"),
        ("x.json", "[]", "empty list"),
        ("x.json", "3", "no pymatgen structure"),
        ("x.json", '{"lattice": {}}', "no pymatgen structure"),
        ("x.json", json.dumps(partly_occupied()), "site 0 is partly occupied"),
        ("x.json", json.dumps(PYMATGEN).replace('"Mo"', '"Xx"'), "'Xx' is not a chemical element"),
        ("x.xyz", "3\nno lattice\nMo 0 0 0\nS 1 1 1\nS 2 2 2\n", "3 atoms and 0 lattice vectors"),
        ("x.xyz", EXTXYZ[:150], "extxyz x cannot be read"),
        ("x.xyz", "", "extxyz x"),
        ("POSCAR", POSCAR[:90], "POSCAR POSCAR cannot be read"),
        ("POSCAR", POSCAR.replace("0.3957", "abc"), "POSCAR POSCAR cannot be read"),
        ("x.txt", "hello", r"x\.txt begins with 'hello', of no known format; expected CIF"),
        ("x.cif", "", "has 0 blocks"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(name: str, text: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        parse_structures(name, text.encode())


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(FileFormatError, match=r"x\.cif is not a text file"):
        parse_structures("x.cif", b"\xff\xfe\x00\x01")


def test_a_truncated_compressed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.cif.gz"
    path.write_bytes(gzip.compress(CIF.encode())[:-20])
    with pytest.raises(FileFormatError, match=r"x\.cif\.gz is truncated or damaged"):
        list(read_structures(path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.cif"):
        with pytest.raises(FileFormatError, match="is not a file"):
            list(read_structures(path))


def archive_of(path: Path, files: dict[str, str]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        return path
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.zip"])
def test_an_archive_gives_the_structures_of_its_files(tmp_path: Path, name: str) -> None:
    path = archive_of(tmp_path / name, {"a/one.cif": CIF, "two.vasp": POSCAR, "three.xyz": EXTXYZ * 2})
    assert [s.name for s in read_structures(path)] == ["one", "two", "three:0", "three:1"]


def test_an_archive_with_a_path_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchiveError):
        list(read_structures(archive_of(tmp_path / "x.tar.gz", {"../x.cif": CIF})))


def test_a_file_of_another_kind_in_an_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"README\.md begins with"):
        list(read_structures(archive_of(tmp_path / "x.zip", {"one.cif": CIF, "README.md": "# Read me"})))


def test_files_are_parsed_in_other_processes() -> None:
    names = [f"{i}.cif" for i in range(6)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(parse_structures, names, [CIF.encode()] * 6))
    assert [structures[0].name for structures in found] == ["0", "1", "2", "3", "4", "5"]
    assert pickle.loads(pickle.dumps(found[0][0])).species == ("Mo", "S", "S")  # noqa: S301


@pytest.mark.parametrize("name", ["x.cif", "POSCAR", "x.vasp", "x.xyz", "x.extxyz"])
def test_what_is_written_is_read_and_matched_as_the_same_configuration(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_structure(path, SUPERCELL, CONFIGURATION)
    (structure,) = read_structures(path)
    assert structure.species == ("Mo",) * 15 + ("W",) + ("S",) * 30 + ("Se",)
    assert np.linalg.norm(structure.lattice[2]) == pytest.approx(np.linalg.norm(SUPERCELL.host.lattice[2]))
    symmetry = find_symmetry(SUPERCELL)
    found = Matcher(SUPERCELL).match(structure)
    assert canonical_form(symmetry, found) == canonical_form(symmetry, CONFIGURATION)


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")  # it rounds 0.333333333 and says so
def test_what_is_written_can_be_read_by_pymatgen(tmp_path: Path) -> None:
    pymatgen_core = pytest.importorskip("pymatgen.core")
    formulas = set()
    for name in ("x.cif", "POSCAR"):
        write_structure(tmp_path / name, SUPERCELL, CONFIGURATION)
        formulas.add(pymatgen_core.Structure.from_file(tmp_path / name).composition.formula)
    assert formulas == {"Mo15 W1 Se1 S30"}


def test_a_name_without_a_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="says no format"):
        write_structure(tmp_path / "x.pdb", SUPERCELL, CONFIGURATION)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "expected"), [(None, "MoS2"), ("my host", "my host")])
def test_a_host_is_read_and_named_by_its_formula(tmp_path: Path, name: str | None, expected: str) -> None:
    path = tmp_path / "cell.cif"
    path.write_text(CIF)
    host = read_host(path, name)
    assert (host.name, host.formula, host.is_layer, host.source) == (expected, "MoS2", True, "file cell.cif")


def test_a_host_of_two_structures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "two.extxyz"
    path.write_text(EXTXYZ * 2)
    with pytest.raises(InputError, match="holds 2 structures; expected one"):
        read_host(path)


def test_reading_2dmd_is_fast_enough(shared_data: Path) -> None:
    """0.4 ms a file on a free core (pymatgen: 120 ms); the bound, 3 ms, still imports 14,866 in 45 s."""
    path = shared_data / "2dmd" / "high_density_defects" / "MoS2_500" / "initial.tar.gz"
    started = time.process_time()
    assert sum(1 for _ in read_structures(path)) == sum(1 for _ in archive_members(path)) == 500
    assert time.process_time() - started < 500 * 3e-3
