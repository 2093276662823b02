"""Loops that the workers drive: loop start, status, pause, resume, stop, report; follow, of open designs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from screening.cli.designs import CampaignName
from screening.cli.loop_tables import print_loops, print_steps, watch_loop
from screening.cli.options import AsJson, SomeSupercell
from screening.cli.output import counted, print_json, print_table, progress_bar
from screening.cli.project import Project
from screening.cli.query_options import (
    Confidence,
    Gap,
    Highest,
    MostDefects,
    QueryFile,
    SomeHost,
    Sort,
    Windows,
    find_query,
)
from screening.errors import InputError

if TYPE_CHECKING:
    from screening.pipeline.loop_report import LoopReport
    from screening.pipeline.replay import Replay

SomeLoop = Annotated[
    str | None, typer.Argument(metavar="[LOOP]", help="Name of the loop; not needed where there is one.")
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Calculations of a round.")]
MaxCalculations = Annotated[int, typer.Option("--max-calculations", min=1, help="End after so many calculations.")]
Patience = Annotated[
    int, typer.Option("--patience", min=1, help="End when so many rankings have not changed the best candidates.")
]
Top = Annotated[int, typer.Option("--top", min=1, help="So many rows of a ranking count as the best candidates.")]
RandomErrors = Annotated[
    bool,
    typer.Option(
        "--random-errors/--no-random-errors",
        help="Also train on as many results drawn at random, and show their errors: as long as the loop's trainings.",
    ),
]
ReportFolder = Annotated[Path, typer.Option("--output", help="Folder for the table (CSV) and the plots (PNG).")]


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands."""
    from screening.cli.loop_shows import demo_2dmd, demo_xtb

    loop = typer.Typer(
        help="Rank, propose, calculate, learn, rescore: again and again, by the workers.", no_args_is_help=True
    )
    for command in (start, status, pause, resume, stop, report):
        loop.command(command.__name__)(command)
    loop.command("demo-xtb")(demo_xtb)
    loop.command("demo-2dmd")(demo_2dmd)
    app.add_typer(loop, name="loop")
    follow = typer.Typer(help="Saved rankings that are made again with every new version.", no_args_is_help=True)
    follow.command("add")(follow_add)
    follow.command("list")(follow_list)
    follow.command("end")(follow_end)
    app.add_typer(follow, name="follow")


def start(
    name: Annotated[str, typer.Argument(metavar="LOOP", help="What to call the loop.")],
    model: Annotated[str, typer.Option("--model", help="Name of the model that learns and ranks.")],
    query: QueryFile = None,
    host: SomeHost = None,
    supercell: SomeSupercell = None,
    gap: Gap = None,
    window: Windows = None,
    max_defects: MostDefects = None,
    sort: Sort = None,
    highest: Highest = False,
    confidence: Confidence = None,
    campaign: CampaignName = None,
    batch: Batch = 10,
    max_calculations: MaxCalculations = 200,
    patience: Patience = 2,
    top: Top = 10,
    external: Annotated[
        bool,
        typer.Option(
            "--external", help="The rounds are calculated elsewhere (`screening round export`), not by our workers."
        ),
    ] = False,
    only_stored: Annotated[
        bool, typer.Option("--only-stored", help="Propose only configurations that an import brought without results.")
    ] = False,
    keep_campaigns: Annotated[
        bool, typer.Option("--keep-campaigns", help="Keep the campaigns of all versions, not only of the last two.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of proposals and trainings.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Start a loop: the workers calculate and learn until the best candidates of a design query stand still.

    The model must have scored the search space (`screening score`); --campaign says which of several, or one that keeps
    the best of a larger one. `screening loop status` shows how far it is.
    """
    from screening.pipeline.loops import LoopRequest, ranked_first, start_loop

    project = Project()
    with project.transaction() as session:
        asked = find_query(
            session, campaign, query=query, host=host, supercell=supercell, gap=gap, window=window,
            max_defects=max_defects, sort=sort, highest=highest, confidence=confidence,
        )  # fmt: skip
        request = LoopRequest(
            name, asked, model, calculator="external" if external else "builtin", batch=batch,
            max_calculations=max_calculations, patience=patience, top=top, campaign=campaign,
            only_stored=only_stored, keep_campaigns=keep_campaigns, seed=seed,
        )  # fmt: skip
        ground = ranked_first(session, start_loop(session, request))
    project.announce("advance")
    if as_json:
        print_json({"loop": name, "state": "running", "campaign": ground.campaign, "candidates": ground.candidates})
    else:
        print(
            f"its best are those of campaign {ground.campaign}, {counted(ground.candidates, 'candidate')} "
            f"({ground.search_space}), and of the same search space scored again"
        )
        print(f"loop {name} runs; `screening loop status {name} --watch` shows how far it is")


def status(
    name: SomeLoop = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show each new step until the loop is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the loops, or the steps that one has been through."""
    from screening.database.loops import list_loops, loop_by_name, steps_of

    project = Project()
    with project.transaction() as session:
        loops = list_loops(session)
        chosen = None if name is None and not watch else loop_by_name(session, name)
        steps = None if chosen is None else steps_of(session, chosen.id)
        loop_id = None if chosen is None else chosen.id
        if chosen is not None:
            loops = [loop for loop in loops if loop["id"] == chosen.id]
    if as_json:
        print_json({"loops": loops} if steps is None else {"loops": loops, "steps": steps})
        return
    if watch:
        assert loop_id is not None
        watch_loop(project, loop_id)
        return
    print_loops(loops)
    if steps is not None:
        print()
        print_steps(steps)


def pause(name: SomeLoop = None, as_json: AsJson = False) -> None:
    """Let a loop begin nothing more; what runs comes to its end, and `loop resume` goes on."""
    from screening.pipeline import loops

    with Project().transaction() as session:
        found = loops.pause(session, name)
        said = found.name, found.stage
    _say(said, "paused", "what runs comes to its end; `screening loop resume` goes on", as_json=as_json)


def resume(name: SomeLoop = None, as_json: AsJson = False) -> None:
    """Go on with a loop that was paused or stopped, or try again what failed."""
    from screening.pipeline import loops

    project = Project()
    with project.transaction() as session:
        found = loops.resume(session, name)
        said = found.name, found.stage
    project.announce("advance", "calculate", "score")
    _say(said, "running", "it goes on from there", as_json=as_json)


def stop(name: SomeLoop = None, as_json: AsJson = False) -> None:
    """End a loop at once: its training or campaign is dropped; what is finished stays, and `loop resume` goes on."""
    from screening.pipeline import loops

    with Project().transaction() as session:
        found = loops.stop(session, name)
        said = found.name, found.stage
    _say(said, "stopped", "what is finished stays; `screening loop resume` goes on", as_json=as_json)


def report(
    name: SomeLoop = None,
    output: ReportFolder = Path("loop"),
    data: Annotated[
        Path | None,
        typer.Option("--data", help="The release of 2DMD that a replay has played, to compare with chance."),
    ] = None,
    subset: Annotated[str | None, typer.Option("--subset", help="Its subset, where it has several.")] = None,
    random_errors: RandomErrors = False,
    as_json: AsJson = False,
) -> None:
    """Write what a loop has found: best value and errors against the calculations made, as a table and plots."""
    from screening.cli.loop_shows import read_labels

    project = Project()
    replay = None if data is None else read_labels(data, subset)
    if random_errors and replay is None:
        raise InputError("--random-errors learns from labels that a loop has not chosen; give --data, where they are")
    show_report(project, name, output, replay=replay, random_errors=random_errors, as_json=as_json)


def show_report(
    project: Project, name: str | None, output: Path, *, replay: Replay | None = None, random_errors: bool = False,
    as_json: bool = False,
) -> LoopReport:  # fmt: skip
    """Write a loop's report and print it.

    Args:
        replay: all labels, where they are known.
        random_errors: whether versions learn from as many of them drawn at random, to compare errors with.
    """
    from dataclasses import asdict

    from screening.pipeline.loop_report import report as report_of
    from screening.pipeline.loop_report import write_report

    errors = None if replay is None or not random_errors else _random_errors(project, name, replay)
    with project.transaction() as session:
        found = report_of(session, name, replay=replay, random_errors=errors, device=project.settings.device)
    table, plot = write_report(found, output)
    if as_json:
        print_json({**asdict(found), "table": table, "plot": plot})
        return found
    columns = ["n_calculated", "model", "best", "mae", "proposed_mae", "n_changed"]
    if replay is not None:
        columns += ["random_low", "random_median", "random_high", *(["random_mae"] if errors else [])]
    print(f"loop {found.loop}, {found.state}: {found.ended or 'not over yet'}")
    print(f"best: {found.direction} {found.property}; errors of it, on {counted(found.n_test, 'row')} never learnt")
    print_table(columns, [[getattr(point, column) for column in columns] for point in found.points])
    if found.known_best is not None:
        print(f"best of all labels: {found.known_best:.4f}")
    print(f"\ntable  {table}\nplots  {plot}")
    return found


def _random_errors(project: Project, name: str | None, replay: Replay) -> dict[int, float | None]:
    """Errors of versions that learn from labels drawn at random, with a progress bar."""
    from screening.pipeline.random_choice import errors_of, random_choice

    device = project.settings.device
    with project.transaction() as session:
        chosen = random_choice(session, name, replay, device=device)
    with progress_bar("random choice") as show:
        return errors_of(chosen, replay, device=device, on_version=show)


def _say(loop: tuple[str, str], state: str, then: str, *, as_json: bool) -> None:
    name, stage = loop
    if as_json:
        print_json({"loop": name, "state": state, "stage": stage})
    else:
        print(f"loop {name} is {state} at stage {stage}; {then}")


def follow_add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the design.")],
    ranking: Annotated[int, typer.Option("--ranking", help="Id of a saved ranking (`screening design --save`).")],
    as_json: AsJson = False,
) -> None:
    """Make a saved ranking again, under a name, whenever another version of its model goes into production."""
    from screening.pipeline.open_designs import open_ranking

    project = Project()
    with project.transaction() as session:
        open_ranking(session, name, ranking)
    project.announce("tend")
    if as_json:
        print_json({"design": name, "ranking": ranking})
    else:
        print(f"design {name}: ranking {ranking} is followed by one of each new version; `screening follow list`")


def follow_list(as_json: AsJson = False) -> None:
    """List the designs that are ranked again, with their newest rankings, and what stands in the way of closed ones."""
    from screening.database.loops import list_designs
    from screening.pipeline.open_designs import obstacles

    with Project().transaction() as session:
        found = obstacles(session)
        rows = [{**row, "obstacle": found.get(row["design"])} for row in list_designs(session)]
    if as_json:
        print_json({"designs": rows})
        return
    if not rows:
        print("no design is followed; `screening follow add` begins with a saved ranking")
        return
    columns = ["design", "by", "rankings", "newest", "model", "in production", *(["obstacle"] if found else [])]
    table = []
    for row in rows:
        by = f"loop {row['loop']}" if row["loop"] else "itself" if row["is_open"] else "nobody any more"
        obstacle = [row["obstacle"]] if found else []
        table.append([row["design"], by, row["rankings"], row["newest"], row["model"], row["current"], *obstacle])
    print_table(columns, table)


def follow_end(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the design.")], as_json: AsJson = False
) -> None:
    """Rank a design no more; its rankings stay."""
    from screening.pipeline.open_designs import close_design

    with Project().transaction() as session:
        close_design(session, name)
    if as_json:
        print_json({"design": name, "is_open": False})
    else:
        print(f"design {name} is ranked no more; its rankings stay")
