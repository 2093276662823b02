"""Structures of exported rows: a row that names a host, a supercell and its defects becomes a file's structure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from screening.database import queries
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Supercell
from screening.dft.structure_files import LabelledStructure, Value, open_writer
from screening.errors import InputError
from screening.pipeline.export_sources import Source
from screening.pipeline.exports import (
    ExportColumn,
    ExportReport,
    OnProgress,
    describe_columns,
    read_blocks,
    reading,
)
from screening.pipeline.hosts import load_supercell

MOST_STRUCTURES = 10_000  # that are written without being asked twice: 100 MB of extxyz for 192 atoms
_NEEDED = ("host", "supercell", "defects")
_TOLD = (*_NEEDED, "configuration", "sites")  # by the structure itself


def export_structures(
    engine: Engine,
    source: Source,
    path: Path,
    *,
    kind: str,
    is_all: bool = False,
    on_progress: OnProgress | None = None,
) -> ExportReport:
    """Write the unrelaxed structure of every row of a source, with its other columns beside it.

    Args:
        kind: one of `screening.dft.structure_files.KINDS`.
        is_all: however many there are.

    Raises:
        InputError: the rows do not say which structures they are about, there are more than `MOST_STRUCTURES`, or
            the server refuses the statement.
    """
    started = time.monotonic()
    supercells: dict[tuple[str, str], Supercell] = {}
    done = 0
    with session_scope(engine) as session, reading(engine, source) as connection:
        columns = describe_columns(connection, source)
        _check(columns)
        with open_writer(path, kind) as write:
            for block in read_blocks(connection, source, columns):
                for values in block:
                    done += 1
                    if done > MOST_STRUCTURES and not is_all:
                        raise InputError(
                            f"there are more than {MOST_STRUCTURES:,} rows, and each would be a structure; choose "
                            "fewer with --limit, or write all of them with --all"
                        )
                    row = dict(zip((column.name for column in columns), values, strict=True))
                    write(_structure(session, supercells, row))
                    if on_progress is not None and done % 100 == 0:
                        on_progress(done)
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
    return ExportReport(done, size, round(time.monotonic() - started, 2), columns)


def _check(columns: Sequence[ExportColumn]) -> None:
    names = {column.name for column in columns}
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise InputError(
            f"the rows have no {', '.join(missing)}, so they do not say which structures they are about; select host, "
            "supercell and defects, as candidate_predictions and calculated_results have them"
        )
    (defects,) = (column for column in columns if column.name == "defects")
    if not defects.is_array:
        raise InputError(f"defects is {defects.type}; expected an array such as {{v_S@16,Se_S@20}}")


def _structure(
    session: Session, supercells: dict[tuple[str, str], Supercell], row: Mapping[str, Any]
) -> LabelledStructure:
    place = (row["host"], row["supercell"])
    if None in place or row["defects"] is None:
        raise InputError(f"a row has the host {row['host']} and the supercell {row['supercell']}; expected both")
    if place not in supercells:
        supercells[place] = load_supercell(session, queries.supercell_id_of(session, *place)).supercell
    values = {name: _value(value) for name, value in row.items() if name not in _TOLD and value is not None}
    return LabelledStructure(supercells[place], _configuration(row["defects"]), values)


def _configuration(defects: Sequence[str]) -> Configuration:
    """Of `v_S@16` and so on, in any order."""
    pairs = []
    for text in defects:
        name, separator, site = str(text).partition("@")
        if not separator or not site.isdigit():
            raise InputError(f"{text!r} is no defect at a site; expected v_S@16")
        pairs.append((int(site), DefectType.parse(name).code))
    pairs.sort()
    if len({site for site, _ in pairs}) < len(pairs):
        raise InputError(f"a site is named twice in {' '.join(defects)}; expected each once")
    return Configuration(tuple(site for site, _ in pairs), tuple(code for _, code in pairs))


def _value(value: Any) -> Value:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
