"""Predictions: predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from screening.cli.options import AsJson
from screening.cli.output import note, print_json, print_table, progress_bar
from screening.cli.project import Project
from screening.errors import ServiceError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from screening.pipeline.predictions import PredictionReport

_MOST_REFUSALS_SHOWN = 20


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(predict)


def predict(
    files: Annotated[
        list[Path], typer.Argument(help="CIF, POSCAR, extxyz, pymatgen JSON, or a tar.gz or zip of CIFs.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="A model of the database, one that comes with the package, or a .safetensors file. If not given, the "
            "newest of the database; without a database, the package's own.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict the properties of defective supercells; one row per structure. Needs no services and no data.

    A structure that cannot be predicted is named with its reason, the others are written all the same, and the exit
    code is 1.
    """
    from screening.pipeline.predictions import choose_predictor, predict_files

    project = Project()
    engine = database_of(project, model)
    predictor = choose_predictor(engine, model)
    if model is None and predictor.is_of_file:
        place = f"no services are known in {project.settings.home}" if engine is None else "the database has no model"
        note(
            f"{place}: predicting with {predictor.name}, which comes with the package "
            f"({predictor.level}; {', '.join(host.name for host in predictor.hosts)})"
        )
    with progress_bar("predict") as show:
        report = predict_files(
            predictor, files, output, device=project.settings.device,
            on_progress=lambda done: show(done, 0, f"{done} structures"),
        )  # fmt: skip
    if as_json:
        refusals = [{"name": name, "reason": reason} for name, reason in report.refusals]
        print_json(
            {
                "model": report.model,
                "rows": report.rows,
                "seconds": report.seconds,
                "output": output,
                "refused": refusals,
            }
        )
    else:
        _print_first(report)
        print(f"{report.rows} rows by model {report.model} in {report.seconds:.1f} s: {output}")
        for name, reason in report.refusals[:_MOST_REFUSALS_SHOWN]:
            note(f"refused {name}: {reason}")
        if len(report.refusals) > _MOST_REFUSALS_SHOWN:
            note(f"and {len(report.refusals) - _MOST_REFUSALS_SHOWN} more; --json lists them all")
    if report.refusals:
        raise typer.Exit(1)


def _print_first(report: PredictionReport) -> None:
    """The first rows, as far as people want to read them: the energy, the gap, and what is unusual."""
    shown = [
        (title, key)
        for title, key in (("formation energy (eV)", "formation_energy"), ("gap (eV)", "homo_lumo_gap_min"))
        if report.first and f"{key}_mean" in report.first[0]
    ]
    rows = [
        [
            row["name"],
            f"{row['host']} {row['supercell']}",
            row["configuration"],
            *(f"{float(str(row[f'{key}_mean'])):.3f} +- {float(str(row[f'{key}_std'])):.3f}" for _, key in shown),
            row["beyond_training"],
        ]
        for row in report.first
    ]
    if rows:
        print_table(["name", "host", "configuration", *(title for title, _ in shown), "beyond training"], rows)
    if report.rows > len(rows):
        print(f"and {report.rows - len(rows)} more")


def database_of(project: Project, model: str | None) -> Engine | None:
    """The project's database; None where there is none, or where the model that is named needs none.

    Raises:
        ServiceError: there is one that does not answer.
    """
    from screening.pipeline.pretrained import is_model_path, shipped_models

    if not project.has_database or (model is not None and is_model_path(model)):
        return None
    try:
        return project.engine
    except ServiceError as error:
        if model in shipped_models():
            return None
        raise ServiceError(
            f"{error}; with --model a model that needs no database can be named: a .safetensors file"
            f"{''.join(f', or {name}' for name in shipped_models())}"
        ) from error
