"""The data dictionary: views, functions and tables with their columns, made of the comments in the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

_NOT_OURS = "alembic_version"
_FOR_READERS = ("campaign",)

_COLUMNS = """
    SELECT relname, relkind = 'v', coalesce(obj_description(attrelid, 'pg_class'), ''), attname,
        format_type(atttypid, atttypmod), attnotnull, coalesce(col_description(attrelid, attnum), '')
    FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v') AND NOT relispartition
        AND attnum > 0 AND NOT attisdropped AND relname <> :not_ours
    ORDER BY relkind <> 'v', relname, attnum"""
_FUNCTIONS = """
    SELECT format('%s(%s)', proname, pg_get_function_arguments(oid)), pg_get_function_result(oid),
        coalesce(obj_description(oid, 'pg_proc'), '')
    FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname = ANY (:names) ORDER BY 1"""


@dataclass(frozen=True)
class Column:
    """A column; `type` as PostgreSQL writes it."""

    name: str
    type: str
    is_required: bool
    comment: str


@dataclass(frozen=True)
class Relation:
    """A view or a table with its columns in order."""

    name: str
    is_view: bool
    comment: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Function:
    """A function that readers may call."""

    signature: str
    result: str
    comment: str


def describe(session: Session) -> list[Relation]:
    """Views, then tables, both by name; without the partitions of campaigns."""
    found: dict[str, Relation] = {}
    for name, is_view, comment, *column in session.execute(text(_COLUMNS), {"not_ours": _NOT_OURS}):
        before = found.get(name, Relation(name, is_view, comment, ()))
        found[name] = Relation(name, is_view, comment, (*before.columns, Column(*column)))
    return list(found.values())


def describe_functions(session: Session) -> list[Function]:
    """Functions that readers may call."""
    return [Function(*row) for row in session.execute(text(_FUNCTIONS), {"names": list(_FOR_READERS)})]


def to_markdown(relations: Sequence[Relation], functions: Sequence[Function]) -> str:
    """The dictionary as a page."""
    views = [relation for relation in relations if relation.is_view]
    tables = [relation for relation in relations if not relation.is_view]
    lines = [
        "# Data dictionary",
        "",
        "Made by `screening sql --dictionary` of the comments in the database. Energies are in eV, lengths in "
        "angstrom, magnetisations in Bohr magneton.",
        "",
        "## Views",
        "",
        "Their names and columns stay as they are; the role `screening_reader` reads these and nothing else.",
    ]
    for function in functions:
        lines += ["", f"### {function.signature} -> {function.result}", "", function.comment + "."]
    for view in views:
        lines += _section(view)
    lines += ["", "## Tables", "", "Read by their owner only; they change from version to version."]
    for table in tables:
        lines += _section(table)
    return "\n".join(lines) + "\n"


def _section(relation: Relation) -> list[str]:
    rows = [f"| `{c.name}` | {_type(c, relation)} | {_cell(c.comment)} |" for c in relation.columns]
    head = ["| column | type | |", "|---|---|---|"]
    return ["", f"### {relation.name}", "", relation.comment[:1].upper() + relation.comment[1:] + ".", "", *head, *rows]


def _type(column: Column, relation: Relation) -> str:
    """A table's columns say whether they may be null; of a view the server does not know it."""
    short = column.type.replace("timestamp with time zone", "timestamptz").replace("double precision", "double")
    return short if relation.is_view or column.is_required else f"{short}, or null"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
