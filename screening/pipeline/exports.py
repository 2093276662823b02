"""Rows into files: CSV and Parquet tables, and the structures that rows are about.

Nothing is held in memory but a block of rows: CSV is what the server's COPY sends, Parquet is written block by block of
the same in binary. A file is made beside its place and moved there when it is whole. All is read in one
transaction that sees the database as it was when the export began, and that can write nothing.

Arrays are joined by blanks in CSV and are lists in Parquet, where each column has its comment with the unit and the
file says what was asked for. What neither format has (JSON, intervals) is text.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psycopg
from psycopg import Connection, sql
from sqlalchemy import Engine

from screening.dft.structure_files import beside
from screening.errors import InputError, ServiceError
from screening.pipeline.export_sources import Source

if TYPE_CHECKING:
    import pyarrow

TABLES = {"csv": (".csv", ".csv.gz"), "parquet": (".parquet",)}
ROWS_PER_BLOCK = 65_536

OnProgress = Callable[[int], None]

_ARROW_TYPES = {
    "bool": "bool_", "int2": "int16", "int4": "int32", "int8": "int64", "float4": "float32", "float8": "float64",
    "text": "string", "varchar": "string", "name": "string",
}  # fmt: skip
_TEXT = "text"


@dataclass(frozen=True)
class ExportColumn:
    """A column of a file.

    Attributes:
        type: name of the type in PostgreSQL, of the elements if it is an array.
        comment: what it holds, with its unit; empty where the column is computed.
    """

    name: str
    type: str
    is_array: bool
    comment: str


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        size: bytes.
    """

    rows: int
    size: int
    seconds: float
    columns: tuple[ExportColumn, ...]


def export_table(
    engine: Engine, source: Source, path: Path, *, kind: str, on_progress: OnProgress | None = None
) -> ExportReport:
    """Write the rows of a source as a table; a file that is there is replaced at the end.

    Args:
        kind: one of `TABLES`.
        on_progress: called with the number of rows (Parquet) or bytes (CSV) so far.

    Raises:
        InputError: the server refuses the statement, or there is no folder for the file.
        ServiceError: the server broke off.
    """
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} for {path.name}; make it first")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    started = time.monotonic()
    write = {"csv": _write_csv, "parquet": _write_parquet}[kind]
    with reading(engine, source) as connection:
        columns = describe_columns(connection, source)
        with beside(path) as part:
            rows = write(connection, source, columns, part, _Target(path, on_progress or (lambda done: None)))
    return ExportReport(rows, path.stat().st_size, round(time.monotonic() - started, 2), columns)


@dataclass(frozen=True)
class _Target:
    """Where a table is going to be, and who wants to know how far it is."""

    path: Path
    on_progress: OnProgress


@contextlib.contextmanager
def reading(engine: Engine, source: Source) -> Iterator[Connection[Any]]:
    """A connection whose transaction sees one state of the database and writes nothing, as the source's role.

    Raises:
        InputError: the server refuses what is run in the block.
        ServiceError: the server broke off.
    """
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as opened:
        if source.role is not None:
            opened.exec_driver_sql(f'SET LOCAL ROLE "{source.role}"')
        connection = opened.connection.driver_connection
        assert isinstance(connection, Connection)
        try:
            yield connection
        except psycopg.OperationalError as error:
            raise ServiceError(f"PostgreSQL broke off: {' '.join(str(error).split())}") from error
        except psycopg.Error as error:
            raise _refused(error) from error


def describe_columns(connection: Connection[Any], source: Source) -> tuple[ExportColumn, ...]:
    """The columns of a source, in order; the statement is planned for that and not run.

    Raises:
        InputError: two columns have one name.
        psycopg.Error: the server refuses the statement: no SELECT, or several statements.
    """
    with connection.cursor(binary=True) as cursor:  # the binary protocol takes one statement at a time
        cursor.execute(_wrapped(source, sql.SQL("*"), limit=0))
        found, result = cursor.description or [], cursor.pgresult
        assert result is not None
        origins = [(result.ftable(i), result.ftablecol(i)) for i in range(len(found))]
    names = [column.name for column in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"several columns are called {', '.join(twice)}; name each once with AS")
    types = {column.type_code: connection.adapters.types.get(column.type_code) for column in found}
    comments = _comments(connection, origins)
    columns = []
    for column, origin in zip(found, origins, strict=True):
        known = types[column.type_code]
        name = known.name if known is not None else ""
        is_array = known is not None and known.array_oid == column.type_code
        columns.append(ExportColumn(column.name, name, is_array, comments.get(origin, "")))
    return tuple(columns)


def _comments(connection: Connection[Any], origins: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Comments of the columns of tables and views that columns of a SELECT are, by table and number."""
    tables, numbers = [table for table, _ in origins], [number for _, number in origins]
    rows = connection.execute(
        "SELECT t, n, col_description(t, n) FROM unnest(%s::oid[], %s::integer[]) AS origin (t, n) WHERE t > 0",
        (tables, numbers),
    )
    return {(table, number): comment for table, number, comment in rows if comment}


def _wrapped(source: Source, columns: sql.Composable, limit: int | None = None) -> sql.Composed:
    """A SELECT of the source; it ends with a line of its own, since it may end in a remark."""
    end = sql.SQL("") if limit is None else sql.SQL(" LIMIT {}").format(sql.Literal(limit))
    return sql.SQL("SELECT {} FROM ({}\n) AS exported{}").format(columns, sql.SQL(source.sql), end)


def _write_csv(
    connection: Connection[Any], source: Source, columns: Sequence[ExportColumn], part: Path, target: _Target
) -> int:
    chosen = sql.SQL(", ").join(
        sql.SQL("array_to_string({0}, ' ') AS {0}" if column.is_array else "{}").format(sql.Identifier(column.name))
        for column in columns
    )
    statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT csv, HEADER)").format(_wrapped(source, chosen))
    with connection.cursor() as cursor, _binary(target.path, part) as stream:
        done = 0
        with cursor.copy(statement) as copy:
            for block in copy:
                stream.write(block)
                done += len(block)
                if done >> 22 != (done - len(block)) >> 22:
                    target.on_progress(done)
        return cursor.rowcount


@contextlib.contextmanager
def _binary(path: Path, part: Path) -> Iterator[IO[bytes]]:
    with part.open("wb") as plain:
        if path.suffix != ".gz":
            yield plain
            return
        with gzip.GzipFile(path.stem, "wb", 4, plain, mtime=0) as packed:
            yield packed  # type: ignore[misc]


def _write_parquet(
    connection: Connection[Any], source: Source, columns: Sequence[ExportColumn], part: Path, target: _Target
) -> int:
    import pyarrow
    import pyarrow.parquet

    schema = _schema(source, columns)
    with pyarrow.parquet.ParquetWriter(part, schema, compression="zstd") as writer:
        done = 0
        for block in read_blocks(connection, source, columns):
            arrays = [_array(values, field) for values, field in zip(zip(*block, strict=True), schema, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema), row_group_size=len(block))
            done += len(block)
            target.on_progress(done)
    return done


def _array(values: Sequence[Any], field: pyarrow.Field) -> pyarrow.Array:
    """A column of a block.

    Raises:
        InputError: its type does not hold a value, such as an array of arrays.
    """
    import pyarrow

    try:
        return pyarrow.array(values, field.type)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise InputError(
            f"column {field.name} does not fit into {field.type} of a Parquet file ({error}); expected numbers, texts, "
            f"times or plain arrays of them: select {field.name}::text"
        ) from error


def read_blocks(
    connection: Connection[Any], source: Source, columns: Sequence[ExportColumn]
) -> Iterator[list[tuple[Any, ...]]]:
    """The rows of a source in blocks, while the server works on the next ones; what Parquet does not have is text."""
    chosen = sql.SQL(", ").join(sql.SQL("{}{}").format(sql.Identifier(c.name), _cast(c)) for c in columns)
    statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(_wrapped(source, chosen))
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types([_sent_type(column) for column in columns])
        rows = copy.rows()
        while block := list(itertools.islice(rows, ROWS_PER_BLOCK)):
            yield block


def _sent_type(column: ExportColumn) -> str:
    """Name of the type that `_cast` leaves."""
    if column.type == "numeric":
        return "float8[]" if column.is_array else "float8"
    if _cast(column).as_string():
        return "text"
    return f"{column.type}[]" if column.is_array else column.type


def _cast(column: ExportColumn) -> sql.SQL:
    if column.type == "numeric":
        return sql.SQL("::double precision[]" if column.is_array else "::double precision")
    if column.type in _ARROW_TYPES or (column.type in ("timestamptz", "timestamp", "date") and not column.is_array):
        return sql.SQL("")
    return sql.SQL("::text")


def _schema(source: Source, columns: Sequence[ExportColumn]) -> pyarrow.Schema:
    import pyarrow

    fields = []
    for column in columns:
        kind = "float8" if column.type == "numeric" else column.type
        times = {"timestamptz": ("us", "UTC"), "timestamp": ("us",)}
        if kind in _ARROW_TYPES:
            of_one = getattr(pyarrow, _ARROW_TYPES[kind])()
            found = pyarrow.list_(of_one) if column.is_array else of_one
        elif kind in times and not column.is_array:
            found = pyarrow.timestamp(*times[kind])
        else:
            found = pyarrow.date32() if kind == "date" and not column.is_array else pyarrow.string()
        metadata = {"comment": column.comment} if column.comment else None
        fields.append(pyarrow.field(column.name, found, metadata=metadata))
    return pyarrow.schema(fields, metadata={"screening": json.dumps(dict(source.about))})


def _refused(error: psycopg.Error) -> InputError:
    parts = [error.diag.message_primary or " ".join(str(error).split())]
    parts += [text for text in (error.diag.message_detail, error.diag.message_hint) if text]
    return InputError(f"the statement is refused: {'; '.join(parts)}; expected one SELECT of the documented views")
