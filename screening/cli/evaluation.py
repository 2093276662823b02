"""Evaluations: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from screening.cli.calculations import chemical_potential
from screening.cli.options import AsJson
from screening.cli.output import counted, note, print_json, print_table, progress_bar
from screening.cli.predictions import database_of
from screening.cli.project import Project
from screening.errors import InputError

if TYPE_CHECKING:
    from screening.pipeline.evaluation import EvaluatedModel, Evaluation
    from screening.pipeline.labelled_files import LabelledFiles
    from screening.pipeline.yardsticks import Yardstick

_SPLITS = ("train", "validation", "test", "none", "all")
_MOST_REFUSALS_SHOWN = 20


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(evaluate)


def evaluate(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="Labelled rows: a release of 2DMD or a subset of it (folder or archive), or results as `results add` "
            "takes them (vasprun.xml, extxyz, CSV; file, folder or archive).",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="A model of the database, one that comes with the package, or a .safetensors file. If not given, the "
            "newest of the database; without a database, the package's own.",
        ),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split", help="Only rows of this split: train, validation, test, or none (without one); all if not given."
        ),
    ] = None,
    subset: Annotated[
        list[str] | None, typer.Option("--subset", help="Only this subset of a release; may be repeated.")
    ] = None,
    properties: Annotated[
        list[str] | None, typer.Option("--property", help="Only this property; may be repeated.")
    ] = None,
    include_learnt: Annotated[
        bool, typer.Option("--include-learnt", help="Count rows that the model has learnt from, too.")
    ] = False,
    yardsticks: Annotated[
        bool,
        typer.Option(
            "--yardsticks",
            help="Fit the pair expansion and boosted trees to those rows that the model has learnt from, and show them "
            "beside it; some minutes for 2DMD.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for metrics, rows and plots; one below the project's home if not given."
        ),
    ] = None,
    all_properties: Annotated[
        bool, typer.Option("--all-properties", help="Print the metrics of every property.")
    ] = False,
    by_defects: Annotated[bool, typer.Option("--by-defects", help="Print metrics by number of defects, too.")] = False,
    host: Annotated[
        str | None, typer.Option("--host", help="Host of single files, where it is not clear or sites are numbers.")
    ] = None,
    mu: Annotated[
        list[str] | None,
        typer.Option("--mu", help="Chemical potential of single files in eV per atom: Mg=-1.5; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a model with labels that it has not learnt from; needs no services for a model file.

    Prints mean absolute errors by subset, beside the published ones where the data are 2DMD, and how often labels lie
    within the error bars. Metrics, rows and plots are stored in a folder.
    """
    from screening.pipeline.evaluation import evaluate_model, find_model
    from screening.pipeline.evaluation_files import EvaluationOrigin, evaluation_to_json, store_evaluation
    from screening.pipeline.labelled_files import Selection, read_labelled
    from screening.pipeline.labelled_results import GivenReferences

    splits = _checked_splits(split or [])
    if yardsticks and include_learnt:
        raise InputError("--yardsticks are fitted to the learnt rows, so leave --include-learnt out")
    project = Project()
    found_model = find_model(database_of(project, model), model)
    references = GivenReferences(host, dict(chemical_potential(text) for text in mu or ()))
    with progress_bar("read") as show:
        labelled = read_labelled(
            data, selection=Selection(tuple(subset or ()), splits), references=references, on_progress=show
        )
    evaluation = evaluate_model(
        found_model, labelled, include_learnt=include_learnt, properties=tuple(properties or ()),
        device=project.settings.device,
    )  # fmt: skip
    shown = _shown(evaluation, properties, all_properties=all_properties)
    fitted = _fit_yardsticks(found_model, labelled, evaluation, shown) if yardsticks else []
    origin = EvaluationOrigin.of(found_model, evaluation, data, splits=splits, includes_learnt=include_learnt)
    folder = output or origin.folder(project.settings.home)
    files = store_evaluation(evaluation, origin, folder, yardsticks=fitted)
    if as_json:
        print_json({**evaluation_to_json(evaluation, origin, fitted), "files": files})
        return
    _print_counts(found_model, labelled, evaluation)
    _print_comparisons(evaluation, shown, fitted)
    _print_metrics(evaluation, shown, by_defects=by_defects)
    print(f"\nstored: {folder} ({', '.join(path.name for path in files)})")


def _checked_splits(given: list[str]) -> tuple[str, ...]:
    """The splits that are wanted; none for all."""
    for name in given:
        if name not in _SPLITS:
            raise InputError(f"--split {name!r} is not known; expected {', '.join(_SPLITS)}")
    return () if "all" in given else tuple(dict.fromkeys(given))


def _shown(evaluation: Evaluation, wanted: list[str] | None, *, all_properties: bool) -> list[str]:
    """The properties whose tables are printed."""
    from screening.pipeline.evaluation_plots import main_properties

    return list(evaluation.properties) if wanted or all_properties else main_properties(evaluation)


def _print_counts(model: EvaluatedModel, labelled: LabelledFiles, evaluation: Evaluation) -> None:
    """Say what was evaluated and what was not."""
    n_learnt = int(evaluation.is_learnt.sum())
    print(f"model {model.name} ({model.level.name}) on {counted(evaluation.rows.n_rows, 'labelled row')}")
    if evaluation.n_left_out:
        print(f"left out: {counted(evaluation.n_left_out, 'row')} that the model has learnt from")
    if n_learnt:
        print(f"INCLUDED: {counted(n_learnt, 'row')} that the model has learnt from; these errors are too small")
    elif model.learnt is None:
        print("CAUTION: the model does not say what it has learnt from; these errors may be too small")
    if labelled.n_unlabelled:
        print(f"without labels: {counted(labelled.n_unlabelled, 'structure')}")
    for name, remark in (*labelled.notes, *((row, f"left out, {reason}") for row, reason in labelled.repeats)):
        note(f"{name}: {remark}")
    refusals = [*labelled.refusals, *evaluation.refusals]
    for name, reason in refusals[:_MOST_REFUSALS_SHOWN]:
        note(f"refused {name}: {reason}")
    if len(refusals) > _MOST_REFUSALS_SHOWN:
        note(f"and {len(refusals) - _MOST_REFUSALS_SHOWN} more; evaluation.json lists them all")


def _fit_yardsticks(
    model: EvaluatedModel, labelled: LabelledFiles, evaluation: Evaluation, names: list[str]
) -> list[Yardstick]:
    import numpy as np

    from screening.learning.fingerprints import fingerprints_of_rows
    from screening.pipeline.yardsticks import fit_yardsticks

    assert model.learnt is not None
    learnt = labelled.chosen(np.isin(fingerprints_of_rows(labelled), model.learnt))
    with progress_bar("fit") as show:
        return fit_yardsticks(evaluation, learnt, properties=names, on_progress=lambda text: show(0, 0, text))


def _print_comparisons(evaluation: Evaluation, names: list[str], yardsticks: list[Yardstick]) -> None:
    """Mean absolute errors beside those of other methods."""
    from screening.pipeline.evaluation_tables import better_methods, comparison_table, short_name

    for name in names:
        print()
        print_table(*comparison_table(evaluation, name, yardsticks))
        for subset, methods in better_methods(evaluation, name, yardsticks).items():
            print(f"better than this model on {short_name(subset)}: {', '.join(methods)}")
    if not yardsticks and not evaluation.is_learnt.any():
        print("\n--yardsticks shows simple models beside it, fitted to those rows of the data that it has learnt from")


def _print_metrics(evaluation: Evaluation, names: list[str], *, by_defects: bool) -> None:
    from screening.pipeline.evaluation import metrics_by_defects, metrics_by_subset
    from screening.pipeline.evaluation_tables import metrics_table

    print()
    print_table(*metrics_table([row for name in names for row in metrics_by_subset(evaluation, name)]))
    if by_defects:
        print()
        rows = [row for name in names for row in metrics_by_defects(evaluation, name)]
        print_table(*metrics_table(rows, by_defects=True))
