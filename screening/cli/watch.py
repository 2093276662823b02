"""Watched folders: results watch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from screening.cli.options import AsJson
from screening.cli.output import note, print_json, print_table, progress_bar
from screening.cli.project import Project
from screening.errors import InputError

if TYPE_CHECKING:
    from screening.pipeline.watched_folders import SeenFile


def add_commands(results: typer.Typer) -> None:
    """Add this module's commands to `results`."""
    results.command("watch")(results_watch)


def results_watch(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[FOLDER]", help="Folder in which results appear; without one, list them."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look once and stop, for cron.")] = False,
    interval: Annotated[float, typer.Option("--interval", help="Seconds from a look to the next.")] = 30.0,
    abandoned: Annotated[
        float, typer.Option("--abandoned-after", help="Hours without a change after which a run was cut short.")
    ] = 6.0,
    level: Annotated[str | None, typer.Option("--level", help="Level of theory of extxyz, .db and CSV files.")] = None,
    new_level: Annotated[bool, typer.Option("--new-level", help="Let the name of --level be a new one.")] = False,
    host: Annotated[str | None, typer.Option("--host", help="Host of the structures, where it is not clear.")] = None,
    mu: Annotated[
        list[str] | None, typer.Option("--mu", help="Chemical potential in eV per atom: Mg=-1.5; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take results in as their files appear in a folder, until ^C.

    A file is taken once it stands still; what became of it is kept, so that a watch that is started again goes on.
    """
    if folder is None:
        _list_watched(as_json=as_json)
        return
    from screening.cli.calculations import chemical_potential
    from screening.pipeline.space_requests import stored_host_name
    from screening.pipeline.watched_folders import look, watch_folder

    if new_level and level is None:
        raise InputError("--new-level says that the name of --level is new; give --level too")
    if interval <= 0 or abandoned <= 0:
        raise InputError("--interval and --abandoned-after are times; expected numbers above 0")
    potentials = dict(chemical_potential(text) for text in mu or ())
    project = Project()
    with project.transaction() as session:
        host_name = None if host is None else stored_host_name(session, host)
        folder_id = watch_folder(session, folder, level_name=level, host_name=host_name)
    if not once:
        note(f"watching {folder}, every {interval:g} s; ^C ends it")
    try:
        while True:
            with progress_bar("results") as show:
                seen = look(
                    project.engine, folder_id, now=time.time(), abandoned_s=3600 * abandoned,
                    chemical_potentials=potentials, new_level=new_level, on_progress=show,
                )  # fmt: skip
            _print_seen(seen, as_json=as_json, is_only=once)
            if once:
                return
            time.sleep(interval)
    except KeyboardInterrupt:
        note("the watch has ended; the same command goes on with it")


def _print_seen(seen: list[SeenFile], *, as_json: bool, is_only: bool) -> None:
    """A line for each file; for a program an object a look, if something was seen."""
    from dataclasses import asdict

    if as_json:
        if seen or is_only:
            print_json({"files": [asdict(file) for file in seen]})
        return
    for file in seen:
        print(f"{file.outcome} {file.path}" + (f": {file.text}" if file.text else ""), flush=True)
    if is_only and not seen:
        print("nothing new that stands still")


def _list_watched(*, as_json: bool) -> None:
    from screening.pipeline.watched_folders import list_watched

    with Project().transaction() as session:
        rows = list_watched(session)
    if as_json:
        print_json({"folders": rows})
    elif not rows:
        print("no folder is watched; name one: `screening results watch FOLDER`")
    else:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
