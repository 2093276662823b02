"""Rounds that are calculated elsewhere: round create, list, status, export, submitted, failed, import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import screening.cli.designs as designs
from screening.cli.options import AsJson
from screening.cli.output import counted, duration, note, print_json, print_table, progress_bar
from screening.cli.project import Project
from screening.errors import InputError

RoundName = Annotated[str, typer.Argument(metavar="ROUND", help="Name or number of the round.")]
_VALUES = ("formation_energy_per_site", "homo_lumo_gap_min")


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands."""
    rounds = typer.Typer(help="Rounds of calculations, here or on another machine.", no_args_is_help=True)
    rounds.command("create", help=designs.next_.__doc__)(designs.next_)
    rounds.command("list")(round_list)
    rounds.command("status")(round_status)
    rounds.command("export")(round_export)
    rounds.command("submitted")(round_submitted)
    rounds.command("failed")(round_failed)
    rounds.command("import")(round_import)
    app.add_typer(rounds, name="round")


def round_list(as_json: AsJson = False) -> None:
    """List the rounds, newest first, with how many of their calculations are in which state."""
    from screening.database.rounds import STATES, list_rounds

    with Project().transaction() as session:
        rows = list_rounds(session)
    if as_json:
        print_json({"rounds": rows})
    elif not rows:
        print("there is no round; `screening round create` proposes the next calculations")
    else:
        states = [state for state in STATES if any(row[state] for row in rows)]
        columns = ["round", "level_of_theory", "model", "calculations", *states, "folder"]
        print_table(columns, [[row[column] for column in columns] for row in rows])


def round_status(round_name: RoundName, as_json: AsJson = False) -> None:
    """Show the calculations of a round: state, attempts, result or error."""
    from screening.database.rounds import STATES, find_round, round_rows

    with Project().transaction() as session:
        found = find_round(session, round_name)
        title, folder = found.name or f"round {found.id}", found.folder
        rows = round_rows(session, found.id)
    counts = {state: sum(row["state"] == state for row in rows) for state in STATES}
    if as_json:
        print_json({"round": title, "folder": folder, "states": counts, "calculations": rows})
        return
    several = len({(row["host"], row["supercell"]) for row in rows}) > 1
    columns = [
        "calculation",
        *(["host", "supercell"] if several else []),
        "configuration",
        "sites",
        "state",
        "attempts",
    ]
    columns += ["state", "attempts"]
    columns += [name for name in ("job", "expected", *_VALUES, "error") if any(_cell(row, name) for row in rows)]
    print_table(columns, [[_cell(row, column) for column in columns] for row in rows])
    print(f"\n{title}: " + ", ".join(f"{n} {state}" for state, n in counts.items() if n))
    if folder is not None:
        print(f"its folder is {folder}")


def round_export(
    round_name: RoundName,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write: new, empty, or its own.")],
    settings: Annotated[
        Path | None,
        typer.Option(
            "--settings",
            help="TOML or JSON file of what the level of theory leaves open: cutoff, k_points, pseudopotentials ...",
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also calculations that failed; three attempts in all.")
    ] = False,
    only_structures: Annotated[
        bool, typer.Option("--structures-only", help="POSCARs and the manifest alone, for another code than VASP.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the inputs of a round: a folder for each calculation, a manifest, and a script for Slurm.

    POTCARs are named, not written. What is exported counts as such until its result comes; again writes the same.
    """
    from screening.database.rounds import find_round
    from screening.dft.vasp_inputs import read_settings
    from screening.pipeline.round_files import SCRIPT, export_round

    extra = None if settings is None else read_settings(settings)
    with Project().transaction() as session:
        report = export_round(
            session, find_round(session, round_name).id, folder, settings=extra, retry_failed=retry_failed,
            only_structures=only_structures,
        )  # fmt: skip
    if as_json:
        print_json({"round": report.round_name, "folders": _texts(report.folders), "notes": report.notes})
        return
    for text in report.notes:
        note(text)
    print(f"{counted(len(report.folders), 'calculation')} of {report.round_name} in {folder}")
    if not only_structures:
        print(f"to run them with Slurm: see the head of {folder / SCRIPT}")
    print(f"to take the results in: screening round import {folder}")


def round_submitted(
    round_name: RoundName,
    job: Annotated[str, typer.Option("--job", help="Number of the job on the other machine.")],
    as_json: AsJson = False,
) -> None:
    """Say that what is exported of a round was submitted on the other machine."""
    from screening.database.rounds import find_round, mark_submitted

    with Project().transaction() as session:
        found = find_round(session, round_name)
        n, title = mark_submitted(session, found.id, job), found.name or f"round {found.id}"
    if as_json:
        print_json({"round": title, "submitted": n, "job": job})
    else:
        print(f"{counted(n, 'calculation')} of {title} submitted as job {job}")


def round_failed(
    round_name: RoundName,
    reason: Annotated[str, typer.Option("--reason", help="What became of the job; kept with each calculation.")],
    job: Annotated[str | None, typer.Option("--job", help="Only what was submitted as this job.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say that what is submitted of a round will not come back, as when its job was cancelled.

    Import before what is done. What failed is written again by `screening round export --retry-failed`.
    """
    from screening.database.rounds import find_round
    from screening.pipeline.round_files import fail_submitted

    with Project().transaction() as session:
        found = find_round(session, round_name)
        n, title = fail_submitted(session, found.id, reason, job=job), found.name or f"round {found.id}"
    if as_json:
        print_json({"round": title, "failed": n, "job": job, "reason": reason})
    else:
        print(f"{counted(n, 'calculation')} of {title} failed: {reason}")


def round_import(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that `screening round export` wrote.")],
    mu: Annotated[
        list[str] | None, typer.Option("--mu", help="Chemical potential in eV per atom: Mg=-1.5; may be repeated.")
    ] = None,
    abandoned: Annotated[
        float, typer.Option("--abandoned-after", help="Hours without a change after which a run was cut short.")
    ] = 6.0,
    as_json: AsJson = False,
) -> None:
    """Take in what is calculated in the folders of a round; again changes nothing.

    What is done finishes its calculation; what was cut short, did not converge or cannot be read fails it; what is
    still being written is left alone. Exit code 1 if something was refused.
    """
    from dataclasses import asdict

    from screening.cli.calculations import chemical_potential, print_intake
    from screening.pipeline.round_files import import_round

    if not abandoned >= 0:
        raise InputError(f"--abandoned-after is {abandoned:g}; expected a number of hours, or 0 if no run goes on")
    potentials = dict(chemical_potential(text) for text in mu or ())
    with progress_bar("round") as show:
        report = import_round(
            Project().engine, folder, chemical_potentials=potentials, abandoned_s=3600 * abandoned, on_progress=show
        )
    if as_json:
        print_json(asdict(report))
    else:
        print_intake(report.intake)
        print(f"{report.round_name}: " + ", ".join(f"{n} {state}" for state, n in report.states.items()))
        if report.without_result:
            print(f"no result yet of {_listed(report.without_result)}")
        if report.being_written:
            print(f"still being written: {_listed(report.being_written)}; --abandoned-after 0 if their job has ended")
    if report.intake.refused:
        raise typer.Exit(1)


def _listed(ids: Sequence[int]) -> str:
    return f"{counted(len(ids), 'calculation')}: {', '.join(map(str, ids[:10]))}{' ...' if len(ids) > 10 else ''}"


def _texts(folders: Any) -> dict[str, str]:
    return {str(identifier): str(path) for identifier, path in folders.items()}


def _cell(row: dict[str, Any], column: str) -> Any:
    if column == "expected":
        return None if row["expected_s"] is None else duration(row["expected_s"])
    return row[column]
