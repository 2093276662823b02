"""Predictions: predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from screening.cli.options import AsJson, ModelName
from screening.cli.output import note, print_json, progress_bar
from screening.cli.project import Project

_MOST_REFUSALS_SHOWN = 20


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(predict)


def predict(
    files: Annotated[
        list[Path], typer.Argument(help="CIF, POSCAR, extxyz, pymatgen JSON, or a tar.gz or zip of CIFs.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file to write.")],
    model: ModelName = None,
    as_json: AsJson = False,
) -> None:
    """Predict the properties of defective supercells; one row per structure.

    A structure that cannot be predicted is named with its reason, the others are written all the same, and the exit
    code is 1.
    """
    from screening.pipeline.predictions import predict_files

    project = Project()
    with progress_bar("predict") as show:
        report = predict_files(
            project.engine, files, output, model_name=model, device=project.settings.device,
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
        print(f"{report.rows} rows by model {report.model} in {report.seconds:.1f} s: {output}")
        for name, reason in report.refusals[:_MOST_REFUSALS_SHOWN]:
            note(f"refused {name}: {reason}")
        if len(report.refusals) > _MOST_REFUSALS_SHOWN:
            note(f"and {len(report.refusals) - _MOST_REFUSALS_SHOWN} more; --json lists them all")
    if report.refusals:
        raise typer.Exit(1)
