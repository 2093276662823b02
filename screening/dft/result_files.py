"""Files of finished calculations: extxyz frames and CSV tables, as they come from any code.

extxyz (ASE): a frame is a result; its energy is the one ASE reads, further properties are info keys named as in
`results.PROPERTIES`. A frame with ``converged=F`` is not taken. CSV: a row is a result with the columns ``energy``,
any of these properties, and either ``structure`` (a file below the table's folder) or ``sites`` and
``defect_types`` (joined by blanks: ``16 20``, ``v_S Se_S``) and, where the host has several, ``supercell``.
VASP runs are read by `screening.dft.vasp`, ASE databases by `screening.dft.ase_database`.
"""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from screening.defects.defect_types import Configuration, DefectType
from screening.defects.matching import Structure
from screening.dft.csv_tables import open_text
from screening.dft.results import PROPERTIES, LevelOfTheory
from screening.dft.structures import parse_structures, read_structures
from screening.errors import FileFormatError, InputError

if TYPE_CHECKING:
    from ase import Atoms

VASP_NAMES = ("vasprun.xml", "vasprun.xml.gz")
_XYZ = (".extxyz", ".xyz")
_ASE = ".db"
_TABLES = (".csv", ".csv.gz")
_DERIVED = ("formation_energy", "formation_energy_per_site")  # computed from energies, never taken from a file
_GIVEN = tuple(name for name in PROPERTIES if name not in _DERIVED)


@dataclass(frozen=True, eq=False)
class FoundResult:
    """What a file says of one calculation.

    Attributes:
        name: of the frame, row or run, unique within its file.
        structure: the defective supercell, or None where `configuration` is given.
        configuration: in the numbering of the host's supercell with the label `supercell`, or of its only one.
        energy: eV; NaN where there is a problem.
        level: of theory, where the file says it.
        problem: why the result cannot be used although its structure can be read (not converged, charged).
    """

    name: str
    energy: float
    structure: Structure | None = None
    configuration: Configuration | None = None
    supercell: str | None = None
    properties: Mapping[str, float] = field(default_factory=dict)
    level: LevelOfTheory | None = None
    problem: str | None = None


def kind_of(path: Path) -> str | None:
    """`vasprun`, `extxyz`, `ase` or `csv` by the file's name; None for any other file."""
    name = path.name.lower()
    if any(name.endswith(ending) for ending in VASP_NAMES):
        return "vasprun"
    if name.endswith(_XYZ):
        return "extxyz"
    if name.endswith(_ASE):
        return "ase"
    return "csv" if name.endswith(_TABLES) else None


def find_result_files(paths: Sequence[Path]) -> list[Path]:
    """The files among these paths and below those that are folders, in order, each once.

    Raises:
        FileFormatError: a path is not there, is of no known kind, or is a folder without results.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.is_file() and kind_of(p) is not None)
            if not below:
                raise FileFormatError(f"{path} holds no vasprun.xml(.gz), extxyz, ASE database or CSV file")
            found.update(dict.fromkeys(below))
        elif not path.is_file():
            raise FileFormatError(
                f"{path} is not there; expected vasprun.xml(.gz), extxyz, ASE database or CSV files, or folders"
            )
        elif kind_of(path) is None:
            raise FileFormatError(f"{path} is of no known kind; expected vasprun.xml(.gz), .extxyz, .xyz, .db or .csv")
        else:
            found[path] = None
    return list(found)


def read_extxyz(path: Path) -> list[FoundResult]:
    """Every frame of an extxyz file.

    Raises:
        FileFormatError: the file cannot be read, or a frame has no cell.
    """
    from ase.io import ParseError
    from ase.io.extxyz import XYZError, read_xyz

    try:
        with path.open(encoding="utf-8") as stream:
            frames = list(read_xyz(stream, index=slice(None)))
    except (ParseError, XYZError, ValueError, IndexError, KeyError) as error:
        raise FileFormatError(f"{path} cannot be read as extxyz ({type(error).__name__}: {error})") from error
    structures = parse_structures(path.name, path.read_bytes())
    return [_from_frame(atoms, structure) for atoms, structure in zip(frames, structures, strict=True)]


def read_result_table(path: Path) -> list[FoundResult]:
    """Every row of a CSV file of results.

    Raises:
        FileFormatError: the file is cut short, or lacks a column.
    """
    found: dict[str, FoundResult] = {}
    for number, row in enumerate(_read_rows(path), start=1):
        result = _from_row(path, row, number)
        if result.name in found:
            again = f"row {number}, again {result.name}"
            result = FoundResult(
                again, math.nan, problem=f"the table has two rows called {result.name!r}; name each once"
            )
        found[result.name] = result
    return list(found.values())


def _from_frame(atoms: Atoms, structure: Structure) -> FoundResult:
    given: dict[str, Any] = {**(atoms.calc.results if atoms.calc is not None else {}), **atoms.info}
    return result_of_values(structure.name, structure, given)


def result_of_values(name: str, structure: Structure, given: Mapping[str, Any]) -> FoundResult:
    """The result that a frame of extxyz or a row of an ASE database is, from its values by name."""
    if not given.get("converged", True):
        return FoundResult(name, math.nan, structure, problem="the file says that it is not converged")
    try:
        energy = _number(given.get("energy"), "energy")
        properties = {name: _number(given[name], name) for name in _GIVEN if name in given}
    except InputError as error:
        return FoundResult(name, math.nan, structure, problem=str(error))
    return FoundResult(name, energy, structure, properties=properties)


def _read_rows(path: Path) -> list[dict[str, str | None]]:
    try:
        with open_text(path) as stream:
            reader = csv.DictReader(stream)
            columns = set(reader.fieldnames or ())
            rows = list(reader)
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as error:
        raise FileFormatError(f"{path} is cut short or no CSV file ({error}); write it again") from error
    if "energy" not in columns or not ("structure" in columns or {"sites", "defect_types"} <= columns):
        raise FileFormatError(
            f"{path} has the columns {', '.join(sorted(columns)) or 'none'}; expected energy, and structure or "
            "sites and defect_types"
        )
    return rows


def _from_row(path: Path, row: Mapping[str, str | None], number: int) -> FoundResult:
    name = row.get("name") or f"row {number}"
    structure = configuration = None
    try:
        if row.get("structure"):
            structure = _structure_beside(path, str(row["structure"]))
        else:
            configuration = _parse_configuration(row.get("sites") or "", row.get("defect_types") or "")
        energy = _number(row["energy"], "energy")
        properties = {p: _number(row[p], p) for p in _GIVEN if row.get(p)}
    except InputError as error:
        return FoundResult(name, math.nan, structure, configuration, row.get("supercell"), problem=str(error))
    return FoundResult(name, energy, structure, configuration, row.get("supercell") or None, properties)


def _structure_beside(path: Path, name: str) -> Structure:
    folder = path.parent.resolve()
    place = (folder / name).resolve()
    if not place.is_relative_to(folder):
        raise InputError(f"its structure {name} lies outside the table's folder; put it there")
    structures = list(read_structures(place))
    if len(structures) != 1:
        raise InputError(f"its structure {name} holds {len(structures)} structures; expected one")
    return structures[0]


def _parse_configuration(sites: str, defect_types: str) -> Configuration:
    """`16 20` and `v_S Se_S`; both empty for the pristine supercell."""
    try:
        pairs = [
            (int(site), DefectType.parse(name).code)
            for site, name in zip(sites.split(), defect_types.split(), strict=True)
        ]
    except ValueError as error:
        raise InputError(
            f"sites {sites!r} and defect types {defect_types!r} do not go together; expected as in '16 20', 'v_S Se_S'"
        ) from error
    ordered = sorted(pairs)
    if len({site for site, _ in ordered}) < len(ordered):
        raise InputError(f"a site is named twice in {sites!r}; expected each once")
    return Configuration(tuple(site for site, _ in ordered), tuple(code for _, code in ordered))


def _number(value: object, name: str) -> float:
    try:
        number = float(str(value)) if value is not None else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        shown = str(value) if isinstance(value, float) else repr(value)
        raise InputError(f"its {name} is {shown}; expected a finite number")
    return number
