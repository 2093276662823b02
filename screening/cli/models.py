"""Models: train, model list and show; history, rollback and policy are in `retraining`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

import screening.cli.model_files as model_files
from screening.cli.options import AsJson, LevelName, Wait
from screening.cli.output import print_json, print_table, wait_for
from screening.cli.project import Project
from screening.cli.retraining import model_history, model_policy, model_rollback, print_comparison
from screening.cli.training_progress import look_at_training
from screening.errors import ScreeningError

if TYPE_CHECKING:
    from screening.pipeline.models import TrainingRequest


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(train)
    model = typer.Typer(help="Trained models.", no_args_is_help=True)
    model.command("list")(model_list)
    model.command("show")(model_show)
    model.command("history")(model_history)
    model.command("rollback")(model_rollback)
    model.command("policy")(model_policy)
    model_files.add_commands(model)
    app.add_typer(model, name="model")


def train(
    level: LevelName = None,
    host: Annotated[
        list[str] | None, typer.Option("--host", help="Only results of this host; may be repeated.")
    ] = None,
    dataset: Annotated[list[str] | None, typer.Option("--dataset", help="Only this data set; may be repeated.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="What to call the model.")] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Start from this finished model. The new one is its next version, or a model of its own where --host "
            "or --dataset name others than its.",
        ),
    ] = None,
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="Train on every result and validate on none: for a model to give away.")
    ] = False,
    members: Annotated[int | None, typer.Option(help="Networks of the ensemble; 5 if not given.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training rows, at most; 150 if not given, 90 with --from.")
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Time after which the training comes to its end; no limit if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and order.")] = 0,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Train an ensemble on the results of one level of theory.

    The first version of a model goes into production; a further one (--from) if it is not worse.
    """
    from screening.pipeline.models import TrainingRequest
    from screening.pipeline.space_requests import stored_host_name

    project = Project()
    with project.transaction() as session:
        hosts = tuple(stored_host_name(session, known) for known in host or ())
    given = {"n_members": members, "epochs": epochs, "max_minutes": max_minutes}
    request = TrainingRequest(
        level=level or (_level_of(project, parent) if parent else _only_level(project)),
        name=name,
        hosts=hosts,
        datasets=tuple(dataset or ()),
        parent=parent,
        seed=seed,
        settings={key: value for key, value in given.items() if value is not None},
        learn_from_all=all_rows,
    )
    found = train_stored(project, request, wait=wait)
    if as_json:
        print_json(found)
    elif wait:
        _print_model(found)
    else:
        print(f"queued: model {found['model']}; `screening model show {found['model']}` tells how far it is")


def train_stored(project: Project, request: TrainingRequest, *, wait: bool = True) -> dict[str, Any]:
    """Queue a training and wait for it.

    Raises:
        ScreeningError: it failed.
    """
    from screening.database import listings
    from screening.pipeline import models

    with project.transaction() as session:
        model_id = models.submit_training(session, request)
    project.announce("train")
    if wait:
        wait_for(lambda: look_at_training(project, model_id), label="train")
        with project.transaction() as session:
            found = models.progress(session, model_id)
        if found.state == "failed":
            raise ScreeningError(f"the training of model {found.name} failed: {found.error}")
    with project.transaction() as session:
        return listings.describe_version(session, model_id)


def model_list(as_json: AsJson = False) -> None:
    """List the trained models, and those that are being trained."""
    from screening.database import listings

    with Project().transaction() as session:
        rows = listings.list_models(session)
    if as_json:
        print_json({"models": rows})
        return
    columns = [
        "model", "line", "version", "standing", "state", "level", "parent", "n_train", "n_validation",
        "training_time_s", "created_at",
    ]  # fmt: skip
    print_table(columns, [[_short(row[column]) for column in columns] for row in rows])


def model_show(name: Annotated[str, typer.Argument(help="Name of the model.")], as_json: AsJson = False) -> None:
    """Show a model: what it learnt from, its errors on validation rows, how far it is."""
    from screening.database import listings

    with Project().transaction() as session:
        found = listings.describe_model(session, name)
    if as_json:
        print_json(found)
    else:
        _print_model(found)


def _print_model(found: dict[str, Any]) -> None:
    metrics = found["metrics"]
    time = "" if found["training_time_s"] is None else f", trained in {found['training_time_s']:.0f} s"
    standing = {
        "production": f", in production of {found['line']}",
        "replaced": f", was in production of {found['line']}",
        "rejected": f", rejected as version {found['version']} of {found['line']}",
    }.get(found["standing"], "")
    print(
        f"model {found['model']} ({found['state']}{standing}): {found['n_train']} rows to train on, "
        f"{found['n_validation']} to validate on, level {found['level']}{time}"
    )
    if found["error"]:
        print(f"error: {found['error']}")
    if found["state"] == "running" and found["progress"]:
        latest = found["progress"]
        errors = ", ".join(f"{name} {1e3 * error:.2f}" for name, error in latest["validation_mae"].items())
        print(
            f"epoch {latest['epoch']} of at most {latest['max_epochs']} after {latest['elapsed_s']:.0f} s; "
            f"mean absolute errors on validation rows (1e-3 eV or Bohr magneton): {errors}"
        )
    rows = [[m["dataset"], m["property"], m["n_rows"], 1e3 * m["mae"], 1e3 * m["rmse"]] for m in metrics]
    rounded = [[*row[:3], round(row[3], 2), round(row[4], 2)] for row in rows]
    print_table(["validation rows of", "property", "rows", "MAE (1e-3)", "RMSE (1e-3)"], rounded)
    if found["comparison"] is not None:
        print()
        print_comparison(found["comparison"])


def _short(value: Any) -> Any:
    return value.strftime("%Y-%m-%d %H:%M") if hasattr(value, "strftime") else value


def _level_of(project: Project, model: str) -> str:
    """The level of theory of a model."""
    from screening.database.listings import describe_model

    with project.transaction() as session:
        level: str = describe_model(session, model)["level"]
    return level


def _only_level(project: Project) -> str:
    """The level of theory with results, if there is just one.

    Raises:
        InputError: there are none or several.
    """
    from screening.database import listings
    from screening.errors import InputError

    with project.transaction() as session:
        names = listings.levels_with_results(session)
    if len(names) != 1:
        raise InputError(
            f"there are results of {', '.join(map(repr, names)) or 'no level of theory'}; "
            + ("choose one with --level" if names else "take some in with `screening import` first")
        )
    return names[0]
