"""Retraining: retrain, model history, model rollback, model policy."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.cli.options import AsJson, Wait
from screening.cli.output import counted, note, print_json, print_table, wait_for
from screening.cli.project import Project
from screening.cli.quarantine import print_quarantined
from screening.cli.training_progress import look_at_training
from screening.errors import InputError, ScreeningError

if TYPE_CHECKING:
    from screening.pipeline.policies import Policy

NameOfLine = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]


def add_commands(app: typer.Typer) -> None:
    """Add this module's command; `models` adds those on what exists."""
    app.command()(retrain)


def retrain(
    line: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Name of the model; not needed where there is one.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows, at most; 90 if not given.")] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Time after which the training comes to its end; no limit if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of rows.")] = 0,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Let a model learn from new results, starting from the version in production.

    The new version takes its place if it is not worse on rows that neither has learnt from; else it is kept as
    rejected. Where nothing is new, nothing is done.
    """
    given = {"epochs": epochs, "max_minutes": max_minutes}
    project = Project()
    found = retrain_stored(
        project, line, settings={key: value for key, value in given.items() if value is not None}, seed=seed, wait=wait
    )
    if as_json:
        print_json(found)
    else:
        _print_outcome(found)


def retrain_stored(
    project: Project, line: str | None, *, settings: dict[str, Any], seed: int = 0, wait: bool = True
) -> dict[str, Any]:
    """Queue the retraining of a line, or join the one that runs, and wait for it.

    Returns:
        `line`, `champion` (the version in production at the beginning), `new_results`, `remark` where there was nothing
        to do, `model` (the new version, as `model show` has it, or null), `is_joined`, `quarantined` (the open results
        that versions of the line contradict).

    Raises:
        ScreeningError: the training failed.
    """
    from screening.database import listings
    from screening.pipeline import models
    from screening.pipeline.quarantine import list_quarantined
    from screening.pipeline.retraining import submit_retraining

    with project.transaction() as session:
        started = submit_retraining(session, line, settings=settings, seed=seed)
    found: dict[str, Any] = {
        "line": started.line, "champion": started.champion, "new_results": started.n_new, "remark": started.remark,
        "is_joined": started.is_joined, "model": None,
    }  # fmt: skip
    if started.model_id is None:
        with project.transaction() as session:
            return found | {"quarantined": list_quarantined(session, line=started.line)}
    if started.is_joined:
        note(f"a training of model {started.line} is on its way already, and is waited for instead of another one")
    project.announce("train")
    model_id = started.model_id
    if wait:
        wait_for(lambda: look_at_training(project, model_id), label="retrain")
    with project.transaction() as session:
        progress = models.progress(session, model_id)
        aside = list_quarantined(session, line=started.line)
        if progress.state != "failed":
            return found | {"model": listings.describe_version(session, model_id), "quarantined": aside}
    note_quarantined(aside)
    raise ScreeningError(f"the training of model {progress.name} failed: {progress.error}")


def model_history(line: NameOfLine, as_json: AsJson = False) -> None:
    """Show the versions of a model, and which of them was in production when and why."""
    from screening.database.models import line_by_name, promotions_of, versions_of
    from screening.database.provenance import retracted_below

    with Project().transaction() as session:
        found = line_by_name(session, line)
        name, versions, promotions = found.name, versions_of(session, found.id), promotions_of(session, found.id)
        versions = [row | {"retracted_results": retracted_below(session, row["id"])} for row in versions]
    if as_json:
        print_json({"line": name, "versions": versions, "promotions": promotions})
        return
    columns = ["version", "model", "standing", "state", "parent", "n_train", "n_validation", "ratio", "training_time_s"]
    print_table(columns, [[row[column] for column in columns] for row in versions])
    print()
    rows = [[f"{p['promoted_at'].astimezone():%Y-%m-%d %H:%M:%S}", p["model"], p["replaced"], p["reason"]]
            for p in promotions]  # fmt: skip
    print_table(["in production since", "model", "instead of", "why"], rows)
    for row in versions:
        if row["standing"] == "rejected" and row["verdict"]:
            print(f"\n{row['model']} was rejected: {row['verdict']}")
    for row in versions:
        if row["retracted_results"]:
            ids = ", ".join(map(str, row["retracted_results"]))
            print(f"\n{row['model']} rests on retracted results: {ids} (`screening affected` says what else does)")


def model_rollback(
    line: NameOfLine,
    to: Annotated[
        int | None, typer.Option("--to", help="Number of the version; the one that was there before if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put an older version of a model into production again, or any that is finished."""
    from screening.pipeline.retraining import roll_back

    with Project().transaction() as session:
        now, before = roll_back(session, line, to)
    if as_json:
        print_json({"production": now, "replaced": before})
    else:
        print(f"{now} is in production instead of {before}")


def model_policy(
    line: NameOfLine,
    after_results: Annotated[
        int | None, typer.Option("--after-results", help="Retrain after so many new results.")
    ] = None,
    after_hours: Annotated[
        float | None, typer.Option("--after-hours", help="Retrain when new results have waited for so many hours.")
    ] = None,
    when_drifting: Annotated[
        bool,
        typer.Option("--when-drifting", help="Retrain when new results are outside the 95 % intervals too often."),
    ] = False,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Start finished campaigns again with each version that is promoted.")
    ] = False,
    off: Annotated[bool, typer.Option("--off", help="Do nothing by itself any more.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a model be retrained by itself, by the workers; without options show what is set."""
    from screening.database.models import line_by_name
    from screening.database.policies import drift_of
    from screening.pipeline.policies import OFF, Policy, set_policy

    policy = Policy(after_results, after_hours, when_drifting, rescore)
    if off and policy != OFF:
        raise InputError("--off lets nothing happen by itself; leave the other options out, or --off")
    with Project().transaction() as session:
        found = set_policy(session, line, policy) if off or policy != OFF else line_by_name(session, line)
        name, drift = found.name, drift_of(session, found)
        policy = Policy(found.after_results, found.after_hours, found.when_drifting, found.rescore)
    if as_json:
        print_json({"line": name, "policy": asdict(policy), "drift": [asdict(of) for of in drift]})
        return
    print(f"model {name}: {describe_policy(policy)}")
    if drift:
        columns = ["new results", "values", "outside the 95 % interval", "probability by chance"]
        print_table(columns, [[of.property, of.n_values, of.n_outside, of.probability] for of in drift])


def describe_policy(policy: Policy) -> str:
    """A policy in words."""
    reasons = [
        *([f"after {counted(policy.after_results, 'new result')}"] if policy.after_results is not None else []),
        *([f"when new results have waited for {policy.after_hours:g} h"] if policy.after_hours is not None else []),
        *(["when new results are outside its intervals too often"] if policy.when_drifting else []),
    ]
    text = f"retrained by itself {', or '.join(reasons)}" if reasons else "not retrained by itself"
    return text + ("; finished campaigns follow what is in production" if policy.rescore else "")


def print_comparison(comparison: dict[str, Any]) -> None:
    """Print the errors of champion and challenger on the same rows, and the verdict."""
    rows = [
        [
            e["dataset"],
            e["property"],
            e["n_rows"],
            *(round(1e3 * e[f"{who}_mae"], 2) for who in ("champion", "challenger")),
        ]
        for e in comparison["errors"]
    ]
    print_table(
        ["frozen rows of", "property", "rows", f"MAE of {comparison['champion']} (1e-3)", "its own (1e-3)"], rows
    )
    print(f"{'promoted' if comparison['is_promoted'] else 'rejected'}: {comparison['reason']}")


def note_quarantined(rows: list[dict[str, Any]]) -> None:
    """Say which results are put aside, on the standard error."""
    if rows:
        with redirect_stdout(sys.stderr):
            print(
                f"put aside, because they contradict the model, until a person decides: {counted(len(rows), 'result')}"
            )
            print_quarantined(rows)
            print("`screening results release` or `reject` with their ids, or with --batch\n")


def _print_outcome(found: dict[str, Any]) -> None:
    model = found["model"]
    note_quarantined(found["quarantined"])
    if model is None:
        print(f"model {found['line']}: {found['remark']}; {found['champion']} stays in production")
    elif model["state"] != "finished":
        print(f"queued: {model['model']}; `screening model show {model['model']}` tells how far it is")
    else:
        print(
            f"{model['model']} has learnt from {counted(model['n_train'], 'result')}, {found['new_results']} of them "
            f"new, in {model['training_time_s']:.0f} s, starting from {model['parent']}"
        )
        if model["comparison"] is not None:
            print_comparison(model["comparison"])
        if model["standing"] == "production":
            print(f"{model['model']} is in production of {found['line']}")
