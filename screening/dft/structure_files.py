"""Files of many structures, written one after another: extxyz, pymatgen JSON, ASE db, a folder of POSCARs.

A writer is a context manager that gives a function; each call of it appends a structure, so that a million of them
need no more memory than one. A file is made beside its place and moved there when it is complete: what breaks off
leaves nothing. An ASE db, which is SQLite, is made in the machine's temporary directory, since SQLite's locks do not
hold on network file systems.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING

from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Supercell
from screening.dft.structures import grouped_structure, write_structure
from screening.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

Value = float | int | str | bool
KINDS: Mapping[str, tuple[str, ...]] = {
    "extxyz": (".extxyz", ".xyz", ".extxyz.gz", ".xyz.gz"),
    "json": (".json", ".json.gz"),
    "ase": (".db",),
    "poscar": (),
}
"""Kinds of files by name, with the endings that say them; `poscar` is a folder."""

_ROWS_PER_COMMIT = 1000
_NOT_A_NAME = "/\\*?:\0"


@dataclass(frozen=True, eq=False)
class LabelledStructure:
    """The unrelaxed structure of a configuration, with what is known of it.

    Attributes:
        values: by name, written with the structure: predictions, a candidate's number, a probability.
    """

    supercell: Supercell
    configuration: Configuration
    values: Mapping[str, Value]

    @property
    def description(self) -> dict[str, Value]:
        """What says which structure it is, then its values; without those that are no finite number."""
        pairs = zip(self.configuration.sites, self.configuration.defect_types, strict=True)
        described: dict[str, Value] = {
            "host": self.supercell.host.name,
            "supercell": self.supercell.label,
            "configuration": self.configuration.composition,
            "defects": " ".join(f"{DefectType.from_code(code).name}@{site}" for site, code in pairs),
            **self.values,
        }
        return {k: v for k, v in described.items() if not (isinstance(v, float) and not math.isfinite(v))}


Write = Callable[[LabelledStructure], None]


def kind_of_output(path: Path) -> str | None:
    """The kind that a file's name says; None where it says none."""
    name = path.name.lower()
    return next((kind for kind, endings in KINDS.items() if endings and name.endswith(endings)), None)


def open_writer(path: Path, kind: str) -> AbstractContextManager[Write]:
    """A writer of one of `KINDS`; a file that is there is replaced, a folder has to be empty or absent.

    Raises:
        InputError: the folder to write into is absent, or the one to be made is full.
    """
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} for {path.name}; make it first")
    if path.is_dir() and (kind != "poscar" or any(path.iterdir())):
        raise InputError(f"{path} is a folder{' that is not empty' if kind == 'poscar' else ''}; give another name")
    return {"extxyz": _extxyz, "json": _pymatgen_json, "ase": _ase_db, "poscar": _poscar_folder}[kind](path)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A place beside a file or folder that becomes it when the block ends without an exception."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        if part.is_dir() and path.is_dir():
            path.rmdir()
        part.replace(path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path, part: Path) -> Iterator[IO[str]]:
    if path.suffix != ".gz":
        with part.open("w", encoding="utf-8") as stream:
            yield stream
        return
    with gzip.open(part, "wt", encoding="utf-8", compresslevel=5) as stream:
        yield stream


@contextmanager
def _extxyz(path: Path) -> Iterator[Write]:
    from ase.io.extxyz import write_xyz

    with beside(path) as part, _opened(path, part) as stream:

        def write(structure: LabelledStructure) -> None:
            atoms = _atoms(structure)
            atoms.info.update(structure.description)
            write_xyz(stream, atoms)

        yield write


@contextmanager
def _pymatgen_json(path: Path) -> Iterator[Write]:
    """A list of what Structure.as_dict gives, one a line; the description in its `properties`."""
    from pymatgen.core.lattice import Lattice
    from pymatgen.core.structure import Structure

    with beside(path) as part, _opened(path, part) as stream:
        before = "[\n"

        def write(structure: LabelledStructure) -> None:
            nonlocal before
            species, positions = grouped_structure(structure.supercell, structure.configuration)
            periodic = structure.supercell.host.periodic
            found = Structure(
                Lattice(structure.supercell.lattice, pbc=periodic), species, positions, coords_are_cartesian=True,
                properties=dict(structure.description),
            )  # fmt: skip
            stream.write(before + json.dumps(found.as_dict(), allow_nan=False))
            before = ",\n"

        yield write
        stream.write("[]\n" if before == "[\n" else "\n]\n")


@contextmanager
def _ase_db(path: Path) -> Iterator[Write]:
    """Rows of an ASE database; the description as `data`, and as key-value pairs, which `ase db` selects by."""
    from ase.db import connect

    with beside(path) as part, TemporaryDirectory(prefix="screening-") as folder:
        made = Path(folder) / "structures.db"
        database = connect(str(made), type="db")  # type: ignore[no-untyped-call]
        waiting: list[LabelledStructure] = []

        def flush() -> None:
            with database:
                for structure in waiting:
                    described = structure.description
                    database.write(_atoms(structure), key_value_pairs=_allowed_pairs(described), data=described)
            waiting.clear()

        def write(structure: LabelledStructure) -> None:
            waiting.append(structure)
            if len(waiting) == _ROWS_PER_COMMIT:
                flush()

        yield write
        flush()
        shutil.copyfile(made, part)


@contextmanager
def _poscar_folder(path: Path) -> Iterator[Write]:
    """`0001_2v_S+Se_S/POSCAR` and so on, with `structures.csv`: one row per structure."""
    with beside(path) as part:
        part.mkdir()
        rows: list[dict[str, Value]] = []

        def write(structure: LabelledStructure) -> None:
            name = "".join(c for c in structure.configuration.composition if c not in _NOT_A_NAME)
            folder = f"{len(rows) + 1:04d}_{name}"
            (part / folder).mkdir()
            write_structure(part / folder / "POSCAR", structure.supercell, structure.configuration)
            rows.append({"folder": folder, **structure.description})

        yield write
        columns = dict.fromkeys(name for row in rows for name in row) or {"folder": None}
        with (part / "structures.csv").open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, list(columns))
            table.writeheader()
            table.writerows(rows)


def _allowed_pairs(described: Mapping[str, Value]) -> dict[str, Value]:
    """Those that ASE takes as key-value pairs: no word of its own as a key, no text that reads as a number."""
    from ase.db.core import check

    allowed = {}
    for key, value in described.items():
        try:
            check({key: value})  # type: ignore[no-untyped-call]
        except ValueError:
            continue
        allowed[key] = value
    return allowed


def _atoms(structure: LabelledStructure) -> Atoms:
    import ase

    species, positions = grouped_structure(structure.supercell, structure.configuration)
    return ase.Atoms(
        species, positions=positions, cell=structure.supercell.lattice, pbc=structure.supercell.host.periodic
    )  # fmt: skip
