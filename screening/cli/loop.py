"""The whole loop as one command: demo on the built-in data, demo-2dmd on the DFT data of 2DMD.

Import, train, enumerate, score, rank, propose, calculate, take in, train again, rank again. Whatever is there
already is used: a second run starts from the newest model and adds another round.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import screening.cli.loops as loops
import screening.cli.provenance as provenance
from screening.cli.calculations import builtin_level, calculate_stored, print_calculations
from screening.cli.designs import print_proposals, print_ranking, propose_stored
from screening.cli.models import train_stored
from screening.cli.options import AsJson
from screening.cli.output import note, print_json, print_table, progress_bar
from screening.cli.project import Project
from screening.cli.query_options import build_query
from screening.cli.searches import enumerate_stored, read_space, score_stored
from screening.cli.services import start_services
from screening.errors import ScreeningError

if TYPE_CHECKING:
    from screening.database.design_query import DesignQuery
    from screening.pipeline.models import TrainingRequest

TYPES = "v_S,Se_S,v_Mo,W_Mo"
MAX_DEFECTS = 3


@dataclass(frozen=True)
class _Loop:
    """What differs between the demos.

    Attributes:
        name: stem of the models' names.
        level: level of theory of the results.
        dataset: the data set to learn from, and rounds; everything of the host if None.
        take_in: imports the data; a line that says what it found.
        calculate: does the proposed calculations; one row each.
    """

    name: str
    level: str
    supercell: str
    dataset: str | None
    query: DesignQuery
    n: int
    only_stored: bool
    epochs: int
    take_in: Callable[[], str]
    calculate: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


Output = Annotated[Path, typer.Option("--output", help="Folder for the ranked table and the plot.")]
BatchSize = Annotated[int, typer.Option("--n", help="Calculations of the round.")]
Epochs = Annotated[int, typer.Option("--epochs", help="Passes over the training rows, at most.")]


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands, and those on loops that the workers drive and on provenance."""
    app.command()(demo)
    app.command("demo-2dmd")(demo_2dmd)
    loops.add_commands(app)
    provenance.add_commands(app)


def demo(output: Output = Path("demo"), n: BatchSize = 6, epochs: Epochs = 300, as_json: AsJson = False) -> None:
    """Run the whole loop on the built-in data: 4x4 MoS2, calculated live with GFN1-xTB."""
    project = Project()
    _start(project)
    loop = _Loop(
        name="demo",
        level=builtin_level(),
        supercell="4x4",
        dataset=None,
        query=build_query(
            host="MoS2", supercell="4x4", gap="0.95:1.2", max_defects=MAX_DEFECTS, sort="formation_energy_per_site"
        ),
        n=n,
        only_stored=False,
        epochs=epochs,
        take_in=lambda: _import_builtin(project),
        calculate=lambda proposals: calculate_stored(project, level=builtin_level()),
    )
    _show(project, loop, output, as_json=as_json)


def demo_2dmd(
    path: Annotated[Path, typer.Argument(help="Directory or zip of the public layout of 2DMD.")],
    output: Output = Path("demo-2dmd"),
    n: BatchSize = 20,
    epochs: Epochs = 150,
    as_json: AsJson = False,
) -> None:
    """Run the whole loop on the DFT data of 2DMD: a part of its results is held back and calculated by looking up."""
    from screening.dft.dataset_2dmd import LEVEL

    project = Project()
    _start(project)
    loop = _Loop(
        name="demo-2dmd",
        level=LEVEL.name,
        supercell="8x8",
        dataset="low_density_defects/MoS2",
        query=build_query(
            host="MoS2", supercell="8x8", gap="1.0:1.2", max_defects=MAX_DEFECTS, sort="formation_energy_per_site"
        ),
        n=n,
        only_stored=True,
        epochs=epochs,
        take_in=lambda: _import_2dmd(project, path),
        calculate=lambda proposals: _look_up(project, path, proposals),
    )
    _show(project, loop, output, as_json=as_json)


def _start(project: Project) -> None:
    _say("services: PostgreSQL, Valkey, workers")
    start_services(project)


def _show(project: Project, loop: _Loop, output: Path, *, as_json: bool) -> None:
    """Run the loop; for a program print one JSON object, and what people read to the standard error."""
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        summary = _run(project, loop, output)
    if as_json:
        print_json(summary)


def _run(project: Project, loop: _Loop, output: Path) -> dict[str, Any]:
    started = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    _say(loop.take_in())
    space = read_space(project, "MoS2", loop.supercell, TYPES, MAX_DEFECTS)
    found = enumerate_stored(project, space)
    _say(
        f"enumerated {found['candidates']} candidates of 1 to {MAX_DEFECTS} defects, as many as Burnside's lemma counts"
    )
    model = _newest_model(project, loop) or _train(project, loop, parent=None)
    score_stored(project, space, model)
    _say(f"model {model} has scored them; the design query asks for {_describe(loop.query)}")
    print_ranking(_rank(project, loop.query, model)[:5], loop.query)
    proposals = propose_stored(project, loop.query, n=loop.n, model_name=model, only_stored=loop.only_stored)
    _say(f"the next {len(proposals)} calculations")
    print_proposals(proposals)
    calculated = loop.calculate(proposals)
    if all(row["state"] != "finished" for row in calculated):
        raise ScreeningError(f"no calculation of the round finished; they are: {calculated}")
    _say("calculated")
    print_calculations(calculated)
    compared, plot = _plot(project, loop, model, output)
    retrained = _train(project, loop, parent=model)
    score_stored(project, space, retrained)
    rows = _rank(project, loop.query, retrained)
    _say(f"ranked by {retrained}, which has learnt from the new results: {_describe(loop.query)}")
    print_ranking(rows, loop.query)
    table = output / "ranking.csv"
    _write_table(table, rows)
    seconds = round(time.monotonic() - started, 1)
    _print_end(project, table, plot, seconds)
    return {
        "candidates": found["candidates"], "model": model, "retrained": retrained, "proposals": proposals,
        "calculated": calculated, "compared": compared, "table": table, "plot": plot, "rows": rows, "seconds": seconds,
    }  # fmt: skip


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["candidate"])
        writer.writeheader()
        writer.writerows(rows)


def _print_end(project: Project, table: Path, plot: Path, seconds: float) -> None:
    """Where things are, and how to go on."""
    from screening.services import without_password

    print(f"\ntable  {table}\nplot   {plot}")
    print(f"left running: {without_password(project.addresses.database_url)}, its broker and its workers")
    print("`.venv/bin/screening status` shows them, `.venv/bin/screening down` or `make stop` stops them")
    print("in a browser: `.venv/bin/screening up` starts the pages, `.venv/bin/screening token create me` lets you in")
    print(f"done in {seconds:.0f} s; another run adds another round")


def _newest_model(project: Project, loop: _Loop) -> str | None:
    """The newest finished model of earlier runs."""
    from screening.database import listings

    with project.transaction() as session:
        names = [row["model"] for row in listings.list_models(session) if row["state"] == "finished"]
    earlier = [name for name in names if name.rpartition("-")[0] == loop.name]
    return earlier[-1] if earlier else None


def _train(project: Project, loop: _Loop, *, parent: str | None) -> str:
    found = train_stored(project, _request(project, loop, parent))
    errors = {m["property"]: m["mae"] for m in found["metrics"] if not m["dataset"].startswith("rounds")}
    shown = ", ".join(
        f"{name} {1e3 * errors[name]:.1f} meV"
        for name in ("formation_energy_per_site", "homo_lumo_gap_min")
        if name in errors
    )
    _say(
        f"trained {found['model']} on {found['n_train']} results in {found['training_time_s']:.0f} s; "
        f"mean absolute errors on {found['n_validation']} validation rows: {shown}"
    )
    name: str = found["model"]
    return name


def _request(project: Project, loop: _Loop, parent: str | None) -> TrainingRequest:
    from screening.database import listings
    from screening.pipeline.models import TrainingRequest

    with project.transaction() as session:
        taken = {row["model"] for row in listings.list_models(session)}
    name = next(name for i in range(1, len(taken) + 2) if (name := f"{loop.name}-{i}") not in taken)
    datasets = (loop.dataset,) if loop.dataset else ()
    epochs = loop.epochs if parent is None else max(1, loop.epochs // 3)
    return TrainingRequest(
        level=loop.level, name=name, hosts=("MoS2",), datasets=datasets, parent=parent, settings={"epochs": epochs}
    )


def _rank(project: Project, query: DesignQuery, model: str) -> list[dict[str, Any]]:
    from screening.pipeline.designs import run_design_query, store_ranking

    with project.transaction() as session:
        table = run_design_query(session, query, model_name=model)
        store_ranking(session, query, table)
        return table.rows


def _plot(project: Project, loop: _Loop, model: str, output: Path) -> tuple[list[dict[str, Any]], Path]:
    """Predicted against calculated values, of the round and of the validation rows."""
    from screening.database.queries import model_by_name
    from screening.pipeline.reports import compared_rows, plot_parity

    properties = ("formation_energy_per_site", "homo_lumo_gap_min")
    with project.transaction() as session:
        rows = compared_rows(session, model_by_name(session, model).id, properties)
    path = output / "predicted_against_calculated.png"
    plot_parity(rows, properties, path, title=f"{model}: predicted before the calculation")
    proposed = [row for row in rows if row.kind == "proposed"]
    _say("predicted before, and calculated")
    columns = ["configuration", "property", "predicted", "calculated"]
    cells = [[r.configuration, r.property, f"{r.mean:.3f} +- {r.std:.3f}", round(r.value, 3)] for r in proposed]
    print_table(columns, cells)
    return [asdict(row) for row in proposed], path


def _import_builtin(project: Project) -> str:
    from screening.pipeline.results import import_builtin

    with project.transaction() as session:
        report = import_builtin(session)
    return f"built-in data set: {report.read} results of GFN1-xTB on 4x4 MoS2, {report.new} of them new"


def _import_2dmd(project: Project, path: Path) -> str:
    from screening.pipeline.imports import import_2dmd

    with progress_bar("2DMD") as show:
        reports = import_2dmd(project.engine, path, hold_back=0.2, on_progress=show)
    columns = ["read", "new", "known", "refused", "uncalculated", "ended", "held_back", "seconds"]
    print_table(["subset", *columns], [[r.name, *(getattr(r, c) for c in columns)] for r in reports])
    return f"2DMD: {sum(r.new for r in reports)} new results, {sum(r.held_back for r in reports)} held back"


def _look_up(project: Project, path: Path, proposals: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take in the results of proposed calculations from the data set."""
    from screening.database.listings import calculation_rows
    from screening.pipeline.imports import import_2dmd

    import_2dmd(project.engine, path, subsets=("low_density_defects/MoS2",), proposed_only=True)
    with project.transaction() as session:
        return calculation_rows(session, [proposal["calculation_id"] for proposal in proposals])


def _describe(query: DesignQuery) -> str:
    windows = [f"{w.property} {w.low} to {w.high} eV" for w in query.windows]
    return f"{' and '.join(windows)}, {query.direction} {query.sort} first"


def _say(text: str) -> None:
    note(f"\n== {text}")
