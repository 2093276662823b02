"""The loop shown end to end: loop demo-xtb, live with GFN1-xTB, and loop demo-2dmd, on DFT results of 2DMD.

Both set a model up from few results, start a loop as any user does, watch the workers drive it, and write its report. A
second run goes on with the loop that is there.
"""

from __future__ import annotations

import random
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.cli.calculations import builtin_level
from screening.cli.loop_tables import watch_loop
from screening.cli.loops import Batch, MaxCalculations, Patience, RandomErrors, ReportFolder, Top, show_report
from screening.cli.models import train_stored
from screening.cli.options import AsJson
from screening.cli.output import Tick, note, progress_bar, wait_for
from screening.cli.project import Project
from screening.cli.query_options import build_query
from screening.cli.searches import read_space, score_stored
from screening.cli.services import start_services
from screening.errors import ScreeningError

if TYPE_CHECKING:
    from screening.defects.enumeration import SearchSpace
    from screening.pipeline.loops import LoopRequest
    from screening.pipeline.replay import Replay

_XTB_TYPES = "v_B,C_B,v_N,C_N"
_MAX_DEFECTS = 3
_VALIDATION_EVERY = 5  # of the first results: enough to compare two versions on
Epochs = Annotated[int, typer.Option("--epochs", help="Passes over the rows of the first training, at most.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the first results, of proposals and trainings.")]


def demo_xtb(
    first: Annotated[int, typer.Option("--first", min=20, help="Configurations to begin with, drawn at random.")] = 30,
    batch: Batch = 10,
    max_calculations: MaxCalculations = 150,
    patience: Patience = 2,
    top: Top = 5,
    gap: Annotated[str, typer.Option("--gap", help="Window on the gap that is looked for, eV.")] = "0.5:",
    epochs: Epochs = 150,
    seed: Seed = 0,
    output: ReportFolder = Path("loop-xtb"),
    as_json: AsJson = False,
) -> None:
    """Run the loop live: 4x4 h-BN with vacancies and carbon, GFN1-xTB, from 30 labels until the best stand still."""
    project = Project()
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        start_services(project)
        name = f"demo-xtb-{seed}" if seed else "demo-xtb"
        loop_id = _existing(project, name)
        if loop_id is None:
            space = read_space(project, "h-BN", "4x4", _XTB_TYPES, _MAX_DEFECTS)
            _calculate_first(project, space, first, seed)
            query = build_query(host="h-BN", supercell="4x4", gap=gap, sort="formation_energy_per_site")
            model = _train(project, builtin_level(), "h-BN", name, epochs, seed)
            score_stored(project, space, model)
            loop_id = _start(project, _request(
                name, query, model, batch=batch, max_calculations=max_calculations, patience=patience, top=top,
                seed=seed,
            ))  # fmt: skip
        watch_loop(project, loop_id)
    show_report(project, name, output, as_json=as_json)


def demo_2dmd(
    path: Annotated[Path, typer.Argument(help="Directory or zip of the public layout of 2DMD.")],
    subset: Annotated[str, typer.Option("--subset", help="A subset of 8x8 MoS2 or WSe2.")] = "low_density_defects/MoS2",
    first: Annotated[int, typer.Option("--first", min=20, help="Results to begin with, drawn at random.")] = 200,
    batch: Batch = 200,
    max_calculations: MaxCalculations = 800,
    patience: Patience = 2,
    top: Top = 20,
    gap: Annotated[str, typer.Option("--gap", help="Window on the gap that is looked for, eV.")] = "1.0:1.2",
    epochs: Epochs = 150,
    seed: Seed = 0,
    random_errors: RandomErrors = True,
    output: ReportFolder = Path("loop-2dmd"),
    as_json: AsJson = False,
) -> None:
    """Run the loop on DFT results of 2DMD, replayed in batches: from 200 results, 200 more with every round."""
    from screening.pipeline.replay import begin, play

    project = Project()
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        start_services(project)
        replay = read_labels(path, subset)
        host = replay.supercell.host.name
        name = f"demo-2dmd-{host}" + (f"-{seed}" if seed else "")
        loop_id = _existing(project, name)
        if loop_id is None:
            with project.transaction() as session:
                n = begin(session, replay, n_first=first, seed=seed)
            note(f"{n} of {len(replay.pool)} results are taken in; {len(replay.test)} others measure the errors")
            space = read_space(project, host, replay.supercell.label, _types_of(replay), _MAX_DEFECTS)
            query = build_query(host=host, supercell=replay.supercell.label, gap=gap, sort="formation_energy_per_site")
            model = _train(project, "2DMD PBE", host, name, epochs, seed)
            score_stored(project, space, model)
            loop_id = _start(project, _request(
                name, query, model, calculator="external", only_stored=True, batch=batch,
                max_calculations=max_calculations, patience=patience, top=top, seed=seed,
            ))  # fmt: skip

        def act() -> None:
            if play(project.engine, replay, loop_id):
                project.announce("advance")

        watch_loop(project, loop_id, act)
    show_report(project, name, output, replay=replay, random_errors=random_errors, as_json=as_json)


def read_labels(path: Path, subset: str | None) -> Replay:
    """The labels of a subset of 2DMD, with a progress bar."""
    from screening.pipeline.replay import read_replay

    with progress_bar("2DMD") as show:
        return read_replay(path, subset, show)


def _types_of(replay: Replay) -> str:
    """The defect types of the labels."""
    from screening.defects.defect_types import DefectType

    codes = {code for label in replay.pool for code in label.configuration.defect_types}
    return ",".join(DefectType.from_code(code).name for code in sorted(codes))


def _existing(project: Project, name: str) -> int | None:
    """The loop of an earlier run, which goes on."""
    from screening.database.loops import list_loops
    from screening.pipeline.loops import resume

    with project.transaction() as session:
        found = {loop["loop"]: loop for loop in list_loops(session)}.get(name)
        if found is None:
            return None
        note(f"loop {name} of an earlier run is {found['state']}; it goes on")
        if found["state"] in ("paused", "stopped", "failed"):
            resume(session, name)
    project.announce("advance", "calculate", "score")
    return int(found["id"])


def _calculate_first(project: Project, space: SearchSpace, n: int, seed: int) -> None:
    """Let the workers calculate configurations drawn at random; every fifth result is for validation."""
    from screening.database.listings import calculation_rows
    from screening.pipeline.first_calculations import add_random, set_split

    with project.transaction() as session:
        ids = add_random(session, space, builtin_level(), n, random.Random(seed))
    project.announce("calculate")

    def look() -> Tick:
        with project.transaction() as session:
            states = [row["state"] for row in calculation_rows(session, ids)]
        done = sum(state in ("finished", "failed") for state in states)
        return Tick(done, len(ids), "", started="running" in states or done > 0, over=done == len(ids))

    wait_for(look, label="the first calculations")
    with project.transaction() as session:
        failed = [row for row in calculation_rows(session, ids) if row["state"] == "failed"]
        n_validation = set_split(session, ids, every=_VALIDATION_EVERY)
    if len(failed) > n // 2:
        raise ScreeningError(f"{len(failed)} of the first {n} calculations failed, the first: {failed[0]['error']}")
    note(f"{n - len(failed)} of {n} random configurations are calculated, {n_validation} of them for validation")


def _train(project: Project, level: str, host: str, name: str, epochs: int, seed: int) -> str:
    """The first version of a show's model; its name."""
    from screening.database.models import find_model
    from screening.pipeline.models import TrainingRequest

    with project.transaction() as session:
        known = find_model(session, name)
        if known is not None and known.state == "finished":
            return known.name
    request = TrainingRequest(level=level, name=name, hosts=(host,), seed=seed, settings={"epochs": epochs})
    found = train_stored(project, request)
    note(
        f"model {found['model']} has learnt from {found['n_train']} results, {found['n_validation']} are for validation"
    )
    model: str = found["model"]
    return model


def _request(name: str, query: Any, model: str, **others: Any) -> LoopRequest:
    from screening.pipeline.loops import LoopRequest

    return LoopRequest(name=name, query=query, line=model, **others)


def _start(project: Project, request: LoopRequest) -> int:
    from screening.pipeline.loops import start_loop

    with project.transaction() as session:
        loop_id = start_loop(session, request).id
    project.announce("advance")
    note(f"loop {request.name} runs: {request.batch} calculations a round, until the best {request.top} stand still")
    return loop_id
