"""Rows and structures into files: export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.cli.options import AsJson, ModelName, SomeSupercell
from screening.cli.output import print_json, progress_bar
from screening.cli.project import Project
from screening.cli.query_options import (
    AllowedTypes,
    Closest,
    Confidence,
    Counts,
    DensityText,
    Farthest,
    FewestDefects,
    Forbidden,
    Gap,
    Highest,
    LevelAsked,
    MostDefects,
    Mu,
    Nearest,
    Pareto,
    QueryFile,
    Required,
    SomeHost,
    Sort,
    Spin,
    Temperature,
    Windows,
    find_query,
)
from screening.errors import InputError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from screening.pipeline.export_sources import Source
    from screening.pipeline.exports import ExportReport

_ALL_ROWS = 10_000_000  # the largest limit that a design query may have
_FORMATS = "csv, parquet, extxyz, poscar, json, ase"

CampaignName = Annotated[str | None, typer.Option("--campaign", help="Write what this campaign has kept.")]


def add_commands(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(export)


def export(
    output: Annotated[
        Path,
        typer.Argument(
            help="File to write: .csv, .csv.gz, .parquet, .extxyz, .json (pymatgen), .db (ASE); or a folder of POSCARs."
        ),
    ],
    ranking: Annotated[str | None, typer.Option("--ranking", help="A saved ranking, by its name or number.")] = None,
    sql: Annotated[str | None, typer.Option("--sql", help="A SELECT of the documented views.")] = None,
    query: QueryFile = None,
    host: SomeHost = None,
    supercell: SomeSupercell = None,
    gap: Gap = None,
    spin: Spin = None,
    window: Windows = None,
    types: AllowedTypes = None,
    require: Required = None,
    forbid: Forbidden = None,
    count: Counts = None,
    min_defects: FewestDefects = None,
    max_defects: MostDefects = None,
    density: DensityText = None,
    min_separation: Nearest = None,
    max_separation: Farthest = None,
    mu: Mu = None,
    temperature: Temperature = None,
    sort: Sort = None,
    highest: Highest = False,
    closest: Closest = None,
    pareto: Pareto = None,
    confidence: Confidence = None,
    level: LevelAsked = None,
    campaign: CampaignName = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Rows at most; that of --query, or all that satisfy, if not given.")
    ] = None,
    model: ModelName = None,
    format_: Annotated[
        str | None, typer.Option("--format", help=f"{_FORMATS}; what the file's name says if not given.")
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Write structures however many there are, not 10,000 at most.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a ranking, the rows of a design query, or of any SELECT: as a table, or as structures.

    Rows are streamed, so that there may be millions. Structures are the unrelaxed ones, with what is predicted beside
    them. Without --ranking and --sql, the options are those of `screening design`.
    """
    kind = kind_of(output, format_)
    options: dict[str, Any] = {
        "query": query, "host": host, "supercell": supercell, "gap": gap, "spin": spin, "window": window,
        "types": types, "require": require, "forbid": forbid, "count": count, "min_defects": min_defects,
        "max_defects": max_defects, "density": density, "min_separation": min_separation,
        "max_separation": max_separation, "mu": mu, "temperature": temperature, "sort": sort, "highest": highest,
        "closest": closest, "pareto": pareto, "confidence": confidence, "level": level, "limit": limit,
    }  # fmt: skip
    given = [
        name
        for name, value in {**options, "campaign": campaign, "model": model}.items()
        if value not in (None, []) and value is not False
    ]
    if (ranking is not None or sql is not None) and (given or None not in (ranking, sql)):
        named = ["ranking"] * (ranking is not None) + ["sql"] * (sql is not None) + given
        raise InputError(f"--{', --'.join(named)} are about different rows; give --ranking, --sql, or a design query")
    project = Project()
    with project.transaction() as session:
        source = _source(session, ranking, sql, options, campaign, model)
    report = _write(project, source, output, kind, is_all=all_)
    if as_json:
        columns = [{"name": c.name, "type": c.type, "comment": c.comment} for c in report.columns]
        print_json(
            {
                "output": output, "format": kind, "rows": report.rows, "bytes": report.size,
                "seconds": report.seconds, "columns": columns, "about": dict(source.about),
            }
        )  # fmt: skip
        return
    what = "rows" if kind in ("csv", "parquet") else "structures"
    print(f"{report.rows:,} {what} in {report.seconds:.1f} s, {report.size / 1e6:,.1f} MB: {output}")
    if source.limit is not None and report.rows == source.limit:
        print(f"the limit of {source.limit:,} rows was reached; there may be more")


def kind_of(output: Path, given: str | None) -> str:
    """The format of a file: the one that is asked for, or that its name says; a name without one is a folder.

    Raises:
        InputError: neither says a format that there is.
    """
    from screening.dft.structure_files import KINDS, kind_of_output

    tables = {"csv": (".csv", ".csv.gz"), "parquet": (".parquet",)}
    if given is not None:
        if given not in (*tables, *KINDS):
            raise InputError(f"there is no format {given!r}; the formats are {_FORMATS}")
        return given
    name = output.name.lower()
    found = next((kind for kind, endings in tables.items() if name.endswith(endings)), None) or kind_of_output(output)
    if found is None and "." in name:
        raise InputError(
            f"{output.name} ends in no known format; end it in .csv, .csv.gz, .parquet, .extxyz, .json or .db, or give "
            "--format"
        )
    return found or "poscar"


def _source(
    session: Session,
    ranking: str | None,
    sql: str | None,
    options: dict[str, Any],
    campaign: str | None,
    model: str | None,
) -> Source:
    from screening.pipeline.export_sources import source_of_query, source_of_ranking, source_of_sql

    if ranking is not None:
        return source_of_ranking(session, ranking)
    if sql is not None:
        return source_of_sql(session, sql)
    asked = find_query(session, campaign, **options)
    if "limit" not in asked.model_fields_set:
        asked = asked.model_copy(update={"limit": _ALL_ROWS})
    return source_of_query(session, asked, model_name=model, campaign_name=campaign)


def _write(project: Project, source: Source, output: Path, kind: str, *, is_all: bool) -> ExportReport:
    from screening.pipeline.exports import TABLES, export_table
    from screening.pipeline.structure_rows import export_structures

    with progress_bar("export") as show:
        if kind not in TABLES:
            return export_structures(
                project.engine, source, output, kind=kind, is_all=is_all,
                on_progress=lambda done: show(done, 0, f"{done:,} structures"),
            )  # fmt: skip
        unit = "bytes" if kind == "csv" else "rows"
        return export_table(
            project.engine, source, output, kind=kind, on_progress=lambda done: show(done, 0, f"{done:,} {unit}")
        )
