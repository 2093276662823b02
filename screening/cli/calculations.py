"""Calculations: calculate, results add; rounds elsewhere are in `rounds`, watched folders in `watch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import screening.cli.quarantine as quarantine
import screening.cli.rounds as rounds
import screening.cli.watch as watch
from screening.cli.options import AsJson, LevelName, Wait
from screening.cli.output import Tick, note, print_json, print_table, progress_bar, wait_for
from screening.cli.project import Project
from screening.errors import InputError

if TYPE_CHECKING:
    from screening.pipeline.result_rows import IntakeReport


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(calculate)
    results = typer.Typer(help="Results of calculations.", no_args_is_help=True)
    results.command("add")(results_add)
    watch.add_commands(results)
    quarantine.add_commands(results)
    app.add_typer(results, name="results")
    rounds.add_commands(app)


def calculate(
    level: LevelName = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Calculations at most.")] = None,
    failed_too: Annotated[bool, typer.Option("--retry-failed", help="Also those that failed before.")] = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Hand the proposed calculations to the workers, who run the built-in calculator on them (GFN1-xTB).

    Exit code 1 if one of them failed; its reason is kept.
    """
    project = Project()
    found = calculate_stored(project, level=level, limit=limit, failed_too=failed_too, wait=wait)
    if as_json:
        print_json({"calculations": found})
    elif not found:
        print(describe_calculations(project, level or builtin_level()))
    else:
        print_calculations(found)
    if wait and any(row["state"] == "failed" for row in found):
        raise typer.Exit(1)


def calculate_stored(
    project: Project,
    *,
    level: str | None = None,
    limit: int | None = None,
    failed_too: bool = False,
    wait: bool = True,
) -> list[dict[str, Any]]:
    """Release proposed calculations of a level, and wait for them and for what waited or ran there; one row each."""
    from screening.database.listings import calculation_rows, open_calculations
    from screening.pipeline.rounds import release_calculations

    with project.transaction() as session:
        release_calculations(session, level or builtin_level(), limit, failed_too=failed_too)
        ids = open_calculations(session, level or builtin_level())
    if not ids:
        return []
    project.announce("calculate")

    def look() -> Tick:
        with project.transaction() as session:
            states = [row["state"] for row in calculation_rows(session, ids)]
        done = sum(state in ("finished", "failed") for state in states)
        return Tick(done, len(ids), "", started="running" in states, over=done == len(ids))

    if wait:
        wait_for(look, label="calculate")
    with project.transaction() as session:
        return calculation_rows(session, ids)


def describe_calculations(project: Project, level: str) -> str:
    """What there is instead of proposals at a level of theory."""
    from screening.database.listings import calculation_counts

    with project.transaction() as session:
        rows = calculation_counts(session)
    others = [f"{row['calculations']} {row['state']} at {row['level']}" for row in rows]
    advice = "`screening next` proposes some"
    if any(row["state"] == "failed" and row["level"] == level for row in rows):
        advice += ", --retry-failed tries failed ones again"
    return f"no calculation is proposed at {level}; there are: {', '.join(others) or 'none'}; {advice}"


def builtin_level() -> str:
    """Name of the level of theory of the built-in calculator."""
    from screening.dft.xtb import level_of_theory

    return level_of_theory().name


def print_calculations(rows: list[dict[str, Any]]) -> None:
    """Print calculations with their outcome."""
    properties = ("formation_energy_per_site", "homo_lumo_gap_min")
    columns = ["calculation", "configuration", "sites", "state", *properties, "error"]
    print_table(columns, [[row.get(column) for column in columns] for row in rows])


def results_add(
    paths: Annotated[list[Path], typer.Argument(help="vasprun.xml(.gz), extxyz, ASE .db or CSV files, or folders.")],
    level: Annotated[
        str | None,
        typer.Option("--level", help="Level of theory of extxyz and CSV files; VASP runs say it themselves."),
    ] = None,
    new_level: Annotated[
        bool, typer.Option("--new-level", help="Let the name of --level be that of a new level of theory.")
    ] = False,
    host: Annotated[str | None, typer.Option("--host", help="Host of the structures, where it is not clear.")] = None,
    mu: Annotated[
        list[str] | None, typer.Option("--mu", help="Chemical potential in eV per atom: Mg=-1.5; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take in finished calculations; a file that was taken in before changes nothing.

    A file that cannot be taken in is named with its reason, the others are taken in, and the exit code is 1.
    """
    from dataclasses import asdict

    from screening.pipeline.results import add_result_files
    from screening.pipeline.space_requests import stored_host_name

    if new_level and level is None:
        raise InputError("--new-level says that the name of --level is new; give --level too")
    potentials = dict(chemical_potential(text) for text in mu or ())
    project = Project()
    if host is not None:
        with project.transaction() as session:
            host = stored_host_name(session, host)
    with progress_bar("results") as show:
        report = add_result_files(
            project.engine, paths, level_name=level, new_level=new_level, host_name=host,
            chemical_potentials=potentials, on_progress=show,
        )  # fmt: skip
    if as_json:
        print_json(asdict(report))
    else:
        print_intake(report)
    if report.refused:
        raise typer.Exit(1)


def print_intake(report: IntakeReport) -> None:
    """Print what became of results."""
    kept = f", {report.failed} of them kept as failed" if report.failed else ""
    print(f"read {report.read}, new {report.new}, known {report.known}, refused {report.refused}{kept}")
    for name, text in report.notes:
        print(f"{name}: {text}")
    for name, reason in report.refusals:
        note(f"refused {name}: {reason}")


def chemical_potential(text: str) -> tuple[str, float]:
    """Read `Mg=-1.5`."""
    from screening.defects.defect_types import atomic_number

    symbol, _, energy = text.partition("=")
    atomic_number(symbol.strip())
    try:
        return symbol.strip(), float(energy)
    except ValueError as error:
        raise InputError(f"--mu {text!r} cannot be read; write element=eV per atom: Mg=-1.5") from error
