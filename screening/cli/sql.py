"""SQL for everybody: sql."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.cli.options import AsJson
from screening.cli.output import note, print_json, print_table
from screening.cli.project import Project
from screening.errors import FileFormatError, InputError, ServiceError

if TYPE_CHECKING:
    from psycopg import Connection, Error

_HELP = "reads the documented views and changes nothing: \\dv lists them, \\d+ VIEW its columns, \\q ends"


@dataclass(frozen=True)
class _Rows:
    """What one statement returned."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


def add_commands(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(sql)


def sql(
    command: Annotated[
        list[str] | None,
        typer.Option("--command", "-c", help="Run this statement and print its rows; may be repeated."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Run the statements of this file; - for standard input.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.")] = False,
    as_json: AsJson = False,
    dictionary: Annotated[
        bool, typer.Option("--dictionary", help="Print every view, table and column with its meaning and unit.")
    ] = False,
    readers: Annotated[bool, typer.Option("--readers", help="List who may read with a password of their own.")] = False,
    new_reader: Annotated[
        str | None, typer.Option("--new-reader", help="Let somebody read: makes a name with a password.")
    ] = None,
    drop_reader: Annotated[str | None, typer.Option("--drop-reader", help="Take this away again.")] = None,
) -> None:
    """Read the database with SQL: a prompt, or the statement of -c; nothing can be changed.

    The views are for everybody and keep their names: candidate_predictions, current_predictions, calculated_results,
    saved_ranking_rows and others; `screening sql --dictionary` explains each column, docs/sql.md has examples. A
    million rows are for `screening export --sql`.
    """
    project = Project()
    chosen = [bool(command or file), dictionary, readers, new_reader is not None, drop_reader is not None]
    if sum(chosen) > 1:
        raise InputError("give one of -c or -f, --dictionary, --readers, --new-reader and --drop-reader")
    if as_csv and as_json:
        raise InputError("give --csv or --json, not both")
    if dictionary:
        _print_dictionary(project)
    elif readers or new_reader is not None or drop_reader is not None:
        _manage_readers(project, new_reader, drop_reader, as_json=as_json)
    elif command or file:
        statements = [*(command or []), *([_read(file)] if file else [])]
        _print_results(_run(project, statements, is_text=as_csv), as_csv=as_csv, as_json=as_json)
    else:
        if as_csv or as_json:
            raise InputError("--csv and --json print the rows of a statement; give it with -c or -f")
        _prompt(project)


def session_options(project: Project) -> str:
    """Options of a session that reads, as the role if that can be taken; a note says so if it cannot."""
    from screening.database.readers import AS_READER, READ_ONLY, role_problem

    with project.transaction() as session:
        problem = role_problem(session)
    if problem is None:
        return AS_READER
    note(f"reading with your own rights, tables too, but changing nothing: {problem}")
    return READ_ONLY


def refused(error: Error) -> InputError:
    """What the server said of a statement, with its hint and the line that it means."""
    parts = [error.diag.message_primary or str(error).strip()]
    parts += [text for text in (error.diag.message_detail, error.diag.message_hint) if text]
    if error.sqlstate == "42501":
        parts.append("readers see the documented views only; `screening sql --dictionary` has them")
    return InputError(f"the statement is refused: {'; '.join(parts)}")


def _prompt(project: Project) -> None:
    from screening.services.psql import run_psql

    options = session_options(project)
    project.engine.dispose()
    if sys.stdin.isatty():
        note(_HELP)
    run_psql(project.addresses.database_url, options, environment=os.environ)


def _read(file: Path) -> str:
    if str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{file} cannot be read ({error}); expected a file of SQL statements") from error


def _run(project: Project, statements: Sequence[str], *, is_text: bool = False) -> list[_Rows]:
    """Run statements, each with several parts perhaps, and keep what returns rows.

    Args:
        is_text: leave values as the server writes them; arrays are lists of such texts.

    Raises:
        InputError: the server refuses one.
    """
    import psycopg

    url = project.addresses.database_url.replace("postgresql+psycopg://", "postgresql://", 1)
    options = session_options(project)
    found = []
    try:
        with psycopg.connect(url, options=options, autocommit=True, application_name="screening sql") as connection:
            if is_text:
                _leave_texts(connection)
            for statement in statements:
                cursor = connection.execute(statement.encode())
                while True:
                    if cursor.description is not None:
                        found.append(_Rows([column.name for column in cursor.description], cursor.fetchall()))
                    if not cursor.nextset():
                        break
    except psycopg.OperationalError as error:
        raise ServiceError(f"PostgreSQL broke off: {' '.join(str(error).split())}") from error
    except psycopg.Error as error:
        raise refused(error) from error
    return found


def _leave_texts(connection: Connection[Any]) -> None:
    """Let values be the texts that COPY would write: `t`, `{"a": 1}`, `1 day`."""
    from psycopg.types.string import TextLoader

    for known in connection.adapters.types:
        connection.adapters.register_loader(known.oid, TextLoader)


def _print_results(results: Sequence[_Rows], *, as_csv: bool, as_json: bool) -> None:
    if (as_csv or as_json) and len(results) != 1:
        raise InputError(f"{len(results)} of the statements return rows; --csv and --json print those of one")
    if as_json:
        (result,) = results
        twice = sorted({name for name in result.columns if result.columns.count(name) > 1})
        if twice:
            raise InputError(f"several columns are called {', '.join(twice)}; name each once with AS, or give --csv")
        rows = [dict(zip(result.columns, map(_plain, row), strict=True)) for row in result.rows]
        print_json({"columns": result.columns, "rows": rows})
    elif as_csv:
        (result,) = results
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(result.columns)
        writer.writerows([_flat(value) for value in row] for row in result.rows)
    else:
        for result in results:
            print_table(result.columns, [[_plain(value) for value in row] for row in result.rows])
            print(f"{len(result.rows):,} row{'s' if len(result.rows) != 1 else ''}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value)
    return float(value) if isinstance(value, Decimal) else value


def _flat(value: Any) -> Any:
    """As `screening export` writes it: the parts of an array joined by blanks."""
    return " ".join(_parts(value)) if isinstance(value, list) else value


def _parts(array: list[Any]) -> Iterator[str]:
    """What array_to_string joins: parts of arrays in it too, and none that is null."""
    for part in array:
        if isinstance(part, list):
            yield from _parts(part)
        elif part is not None:
            yield str(part)


def _print_dictionary(project: Project) -> None:
    from screening.database.dictionary import describe, describe_functions, to_markdown

    with project.transaction() as session:
        print(to_markdown(describe(session), describe_functions(session)), end="")


def _manage_readers(project: Project, new: str | None, dropped: str | None, *, as_json: bool) -> None:
    from sqlalchemy import make_url

    from screening.database.readers import add_reader, drop_reader, list_readers

    with project.transaction() as session:
        password = add_reader(session, new) if new is not None else None
        if dropped is not None:
            drop_reader(session, dropped)
        known = list_readers(session)
    if new is not None:
        url = make_url(project.addresses.database_url).set(drivername="postgresql", username=new, password=password)
        address = url.render_as_string(hide_password=False)
        if as_json:
            print_json({"name": new, "address": address})
        else:
            print(address)
            note("this address with its password is shown once; give it to the reader, `psql ADDRESS` opens it")
    elif as_json:
        print_json({"readers": [{"name": reader.name, "connections": reader.n_connections} for reader in known]})
    elif dropped is not None:
        print(f"{dropped} cannot log in any more")
    elif known:
        print_table(["reader", "connections"], [[reader.name, reader.n_connections] for reader in known])
    else:
        print("nobody has a password of their own; --new-reader NAME makes one")
