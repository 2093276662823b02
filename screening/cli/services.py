"""Services: up, down, status, doctor."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from screening.cli.loop_tables import print_loops
from screening.cli.options import AsJson
from screening.cli.output import note, print_json, print_table
from screening.cli.project import Project
from screening.errors import InputError, ServiceError


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(doctor)


def up(
    workers: Annotated[
        str | None,
        typer.Option(
            "--workers",
            help="Processes for each queue: cpu=4,gpu=1; a worker that runs with another number is restarted, `none` "
            "starts none. If not given, one for cpu, and for gpu one for each GPU or else each core; workers that "
            "run are left alone.",
        ),
    ] = None,
    web: Annotated[
        bool, typer.Option("--web/--no-web", help="Whether the web server is started; one that runs is left alone.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Start PostgreSQL, Valkey, workers, beat and web server where they do not run, and migrate the database."""
    project = Project()
    start_services(project, workers)
    if web:
        from screening import services

        services.start_web(project.settings)
    _show_status(project, as_json=as_json)


def start_services(project: Project, workers: str | None = None) -> None:
    """Bring everything up that is not."""
    from screening import services
    from screening.database.session import make_engine, migrate

    counts = parse_workers(workers) if workers else {"cpu": None, "gpu": None}
    found = services.up(project.settings)
    engine = make_engine(found.database_url)
    migrate(engine)
    engine.dispose()
    if any(count != 0 for count in counts.values()):
        services.start_workers(project.settings, cpu=counts["cpu"], gpu=counts["gpu"])
    for process in services.status(project.settings):
        if process.running and counts.get(process.name.removeprefix("worker-")) == 0:
            note(f"screening: {process.name} runs already and is left alone; `screening down` stops what runs")


def parse_workers(text: str) -> dict[str, int]:
    """Read `cpu=1,gpu=1` or `none`.

    Raises:
        InputError: it cannot be read.
    """
    counts = {"cpu": 0, "gpu": 0}
    if text == "none":
        return counts
    for part in text.split(","):
        queue, _, number = part.strip().partition("=")
        if queue not in counts or not number.isdigit():
            raise InputError(f"--workers {text!r} cannot be read; write cpu=1,gpu=1, cpu=4 or none")
        counts[queue] = int(number)
    return counts


def down(as_json: AsJson = False) -> None:
    """Stop web server, workers, Valkey and PostgreSQL; what they were doing goes on after the next `screening up`."""
    from screening import services

    project = Project()
    services.down(project.settings)
    if as_json:
        print_json({"home": project.settings.home, "running": False})
    else:
        print(f"stopped what ran for {project.settings.home}; its data stay there")


def status(as_json: AsJson = False) -> None:
    """Show the services, the units of work by state, and how far loops are.

    Exit code 1 unless the database answers, and PostgreSQL, Valkey and the workers that were started here run.
    """
    if not _show_status(Project(), as_json=as_json):
        raise typer.Exit(1)


def _show_status(project: Project, *, as_json: bool) -> bool:
    """Print what runs; whether all does."""
    from screening import services

    processes = services.status(project.settings)
    work: list[dict[str, Any]] | None = None
    loops: list[dict[str, Any]] | None = None
    closed: dict[str, str] | None = None
    try:
        work = _work(project)
        loops, closed = _loops(project), _closed_designs(project)
    except ServiceError as error:
        note(f"screening: {error}")
    if as_json:
        rows = [
            {"name": p.name, "running": p.running, "pid": p.pid, "address": p.address, "log": p.log} for p in processes
        ]
        print_json(
            {
                "home": project.settings.home, "services": rows, "work": work, "loops": loops,
                "closed_designs": closed,
            }
        )  # fmt: skip
    else:
        print(f"home {project.settings.home}")
        rows_ = [[p.name, "running" if p.running else "stopped", p.pid, p.address, str(p.log)] for p in processes]
        print_table(["service", "state", "pid", "address", "log"], rows_)
        if work:
            print()
            print_table(["work", "waiting", "running", "finished", "failed"], [list(row.values()) for row in work])
        if loops:
            print()
            print_loops(loops)
        for name, reason in (closed or {}).items():
            print(f"\ndesign {name} is closed, it cannot be ranked any more: {reason}; follow another ranking")
    stopped = [p.name for p in processes if not p.running]
    if work is not None and stopped:  # without the database the error has said what to do
        note(f"screening: {', '.join(stopped)} not running; `screening up` starts what is stopped, the logs say why")
    return work is not None and not stopped


def _loops(project: Project) -> list[dict[str, Any]]:
    """How far loops are; those that are over are in `screening loop status` only, but for the newest."""
    from screening.database.loops import list_loops

    with project.transaction() as session:
        found = list_loops(session)
    return [loop for loop in found if loop["finished_at"] is None] or found[-1:]


def _closed_designs(project: Project) -> dict[str, str]:
    """Why designs that are closed cannot be ranked, by name."""
    from screening.pipeline.open_designs import obstacles

    with project.transaction() as session:
        return obstacles(session)


def _work(project: Project) -> list[dict[str, Any]]:
    """Numbers of units of work by kind and state."""
    from sqlalchemy import func, select

    from screening.pipeline.dispatch import CONDITIONS, UNITS

    rows = []
    with project.transaction() as session:
        for kind, table in UNITS.items():
            of_kind = select(table.state, func.count()).where(*CONDITIONS[kind]).group_by(table.state)
            grouped = session.execute(of_kind)
            counts: dict[str, int] = {row[0]: row[1] for row in grouped}
            if counts:
                states = ("waiting", "running", "finished", "failed")
                rows.append({"kind": kind, **{state: counts.get(state, 0) for state in states}})
    return rows


def doctor(as_json: AsJson = False) -> None:
    """Check what the platform needs on this machine: file system, disk, versions, ports, services, GPU.

    Exit code 1 if something FAILED; a warning is no failure.
    """
    from screening.services.doctor import doctor as examine

    checks = examine(Project().settings)
    failed = [check.name for check in checks if check.ok is False]
    if as_json:
        rows = [{"name": c.name, "ok": c.ok, "found": c.found, "advice": c.advice} for c in checks]
        print_json({"ok": not failed, "checks": rows})
    else:
        words = {True: "ok", False: "FAILED", None: "warning"}
        print_table(["check", "", "found", "advice"], [[c.name, words[c.ok], c.found, c.advice] for c in checks])
    if failed:
        raise typer.Exit(1)
