"""Results in an ASE database (`.db`, SQLite): a row is a calculation.

The energy is the row's calculator's; further properties are key-value pairs named as in `results.PROPERTIES`. A row
with the pair ``converged=False`` is not taken. Nothing in the file is unpickled.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from screening.dft.result_files import FoundResult, result_of_values
from screening.dft.structures import structure_of_atoms
from screening.errors import FileFormatError, InputError

_SQLITE = b"SQLite format 3\0"


def is_ase_db(path: Path) -> bool:
    """Whether a file's name says that it is an ASE database."""
    return path.name.lower().endswith(".db")


def read_ase_db(path: Path) -> list[FoundResult]:
    """Every row of an ASE database, named by its `name` pair or by its number: `row 3`.

    Raises:
        FileFormatError: the file is no ASE database, or is damaged.
    """
    from ase.db import connect

    try:
        with path.open("rb") as stream:
            beginning = stream.read(len(_SQLITE))
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read ({error}); expected an ASE database") from error
    if beginning != _SQLITE:
        raise FileFormatError(f"{path} is no SQLite file; expected an ASE database, as ase.db.connect writes it")
    found: dict[str, FoundResult] = {}
    try:
        database = connect(f"{path}", type="db", use_lock_file=False)  # type: ignore[no-untyped-call]
        for row in database.select():
            result = _result(row)
            if result.name in found:
                again = f"{result.name}, again in row {row.id}"
                problem = f"the database has two rows called {result.name!r}; name each once"
                result = FoundResult(again, math.nan, result.structure, problem=problem)
            found[result.name] = result
    except (sqlite3.Error, ValueError, KeyError, OSError) as error:
        raise FileFormatError(
            f"{path} cannot be read as an ASE database ({type(error).__name__}: {error}); write it again"
        ) from error
    return list(found.values())


def _result(row: Any) -> FoundResult:
    pairs: Mapping[str, Any] = row.key_value_pairs
    name = str(pairs.get("name", f"row {row.id}"))
    try:
        structure = structure_of_atoms(row.toatoms(), name)
    except InputError as error:
        return FoundResult(name, math.nan, problem=str(error))
    return result_of_values(name, structure, {"energy": row.get("energy"), **pairs})
