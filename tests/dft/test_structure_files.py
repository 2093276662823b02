"""Files of many structures, read back by our own readers, by pymatgen and by ASE."""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path

import ase.db
import ase.io
import pytest
from pymatgen.core import Structure

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.enumeration import canonical_form
from screening.defects.host import Supercell
from screening.defects.matching import Matcher
from screening.defects.symmetry import find_symmetry
from screening.dft.structure_files import LabelledStructure, beside, kind_of_output, open_writer
from screening.dft.structures import read_structures
from screening.errors import InputError

SUPERCELL = Supercell.parse(catalogue_host("MoS2"), "4x4")
CODES = [DefectType.parse(name).code for name in ("W_Mo", "v_S", "Se_S")]
CONFIGURATIONS = [
    Configuration((3, 20, 21), tuple(CODES)),
    Configuration((17, 30), (CODES[1], CODES[1])),
    Configuration((5,), (CODES[0],)),
]
NAMES = {"extxyz": "s.extxyz", "json": "s.json", "ase": "s.db", "poscar": "s"}


def labelled(number: int) -> LabelledStructure:
    values = {"candidate": number, "homo_mean": -5.25 - number, "homo_std": math.nan, "campaign": "7", "age": "1 day"}
    return LabelledStructure(SUPERCELL, CONFIGURATIONS[number], values)


def write_all(path: Path, kind: str) -> None:
    with open_writer(path, kind) as write:
        for number in range(3):
            write(labelled(number))


def read_all(path: Path, kind: str, tmp_path: Path) -> list[Configuration]:
    """By our own readers; an ASE database by way of ASE and an extxyz file."""
    if kind == "ase":
        atoms = [row.toatoms() for row in ase.db.connect(path).select()]
        path = tmp_path / "of_ase.extxyz"
        ase.io.write(path, atoms)
    files = sorted(path.glob("*/POSCAR")) if kind == "poscar" else [path]
    matcher = Matcher(SUPERCELL)
    return [matcher.match(structure) for file in files for structure in read_structures(file)]


@pytest.mark.parametrize("kind", NAMES)
def test_structures_come_back_as_the_configurations_that_were_written(tmp_path: Path, kind: str) -> None:
    path = tmp_path / NAMES[kind]
    write_all(path, kind)
    symmetry = find_symmetry(SUPERCELL)
    found = [canonical_form(symmetry, configuration) for configuration in read_all(path, kind, tmp_path)]
    assert found == [canonical_form(symmetry, configuration) for configuration in CONFIGURATIONS]


@pytest.mark.parametrize("name", ["s.extxyz.gz", "s.json.gz"])
def test_a_file_is_compressed_where_its_name_says_so(tmp_path: Path, name: str) -> None:
    kind = kind_of_output(Path(name))
    assert kind is not None
    write_all(tmp_path / name, kind)
    write_all(tmp_path / name.removesuffix(".gz"), kind)
    assert gzip.decompress((tmp_path / name).read_bytes()) == (tmp_path / name.removesuffix(".gz")).read_bytes()


def test_what_is_known_of_a_structure_is_written_with_it(tmp_path: Path) -> None:
    for kind, name in NAMES.items():
        write_all(tmp_path / name, kind)
    defects = "W_Mo@3 v_S@20 Se_S@21"
    frame = ase.io.read(tmp_path / "s.extxyz", index=0)
    assert (frame.info["defects"], frame.info["candidate"], frame.info["homo_mean"]) == (defects, 0, -5.25)
    assert "homo_std" not in frame.info  # no number
    assert list(frame.pbc) == [True, True, False]
    structure = Structure.from_dict(json.loads((tmp_path / "s.json").read_text())[1])
    assert (structure.properties["candidate"], structure.properties["host"]) == (1, "MoS2")
    (row,) = ase.db.connect(tmp_path / "s.db").select("homo_mean<-7")
    assert row.key_value_pairs["defects"] == "W_Mo@5"
    assert not {"campaign", "age"} & set(row.key_value_pairs)  # a number as text, and a word of ASE's own
    assert (row.data["campaign"], row.data["age"]) == ("7", "1 day")
    with (tmp_path / "s" / "structures.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["folder"] for row in rows] == ["0001_v_S+Se_S+W_Mo", "0002_2v_S", "0003_W_Mo"]
    assert rows[0]["defects"] == defects
    assert (tmp_path / "s" / "0002_2v_S" / "POSCAR").is_file()


@pytest.mark.parametrize("kind", NAMES)
def test_nothing_is_left_of_a_file_that_broke_off(tmp_path: Path, kind: str) -> None:
    path = tmp_path / NAMES[kind]

    def write_one_and_fail() -> None:
        with open_writer(path, kind) as write:
            write(labelled(0))
            raise RuntimeError("the server is gone")

    with pytest.raises(RuntimeError, match="the server is gone"):
        write_one_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    with open_writer(path, "json"):
        assert path.read_text() == "old"
    assert json.loads(path.read_text()) == []


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    write_all(tmp_path / "s", "poscar")
    with pytest.raises(InputError, match="is a folder that is not empty; give another name"):
        open_writer(tmp_path / "s", "poscar")
    with pytest.raises(InputError, match="is a folder; give another name"):
        open_writer(tmp_path / "s", "json")
    with pytest.raises(InputError, match="there is no folder"):
        open_writer(tmp_path / "absent" / "s.db", "ase")


def test_a_name_says_its_kind() -> None:
    names = {"a.XYZ": "extxyz", "a.json.gz": "json", "a.db": "ase", "a": None, "a.csv": None}
    assert {name: kind_of_output(Path(name)) for name in names} == names


def test_beside_keeps_what_is_there_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail() -> None:
        with beside(path) as part:
            part.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
