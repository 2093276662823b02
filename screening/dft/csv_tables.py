"""CSV files of results, plain or gzipped, read so that nothing missing goes unnoticed.

pandas turns an empty cell, a short row and the text ``nan`` into one and the same number and takes a second to
import; here each of them is an error that names the column.
"""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from screening.errors import FileFormatError, InputError

Row = Mapping[str, str | None]
"""Cells by column; None where the row is too short."""


def open_text(path: Path) -> TextIO:
    """A CSV file to read, which is gzipped if its name ends in ``.gz``; a byte order mark is passed over."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def read_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """These columns of all rows of a CSV file, which is gzipped if its name ends in ``.gz``.

    Raises:
        FileFormatError: it is cut short, no CSV, or lacks a column.
    """
    try:
        with open_text(path) as file:
            reader = csv.DictReader(file)
            present = reader.fieldnames or ()
            absent = [column for column in columns if column not in present]
            if absent:
                raise FileFormatError(
                    f"{path.name} has no column {', '.join(absent)}; its columns are {', '.join(present) or 'none'}"
                )
            return [{column: row[column] for column in columns} for row in reader]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileFormatError(f"{path.name} is cut short or no gzip file ({error}); fetch it again") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileFormatError(f"{path.name} is no CSV file in UTF-8 ({error}); expected a header and rows") from error


def rows_by(column: str, table: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each value of a column, in the order of the file; a row without one is called by its line."""
    rows: dict[str, list[Row]] = {}
    for line, row in enumerate(table, start=2):
        rows.setdefault(row[column] or f"line {line}", []).append(row)
    return rows


def number(row: Row, column: str) -> float:
    """A finite number of a row.

    Raises:
        InputError: the cell is absent, empty, no number, or not finite.
    """
    text = row[column]
    try:
        value = float(text or "nan")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"its {column} is {text!r}; expected a finite number")
    return value


def number_of_file(row: Row, column: str, path: Path) -> float:
    """A finite number of a row that the whole file depends on.

    Raises:
        FileFormatError: there is none.
    """
    try:
        return number(row, column)
    except InputError as error:
        raise FileFormatError(f"a row of {path.name} cannot be used: {error}") from error
