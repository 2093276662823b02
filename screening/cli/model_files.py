"""Files of models: model add, export, card and reproduce."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from screening.cli.options import AsJson
from screening.cli.output import note, print_json, print_table, progress_bar, size_on_disk
from screening.cli.project import Project
from screening.settings import load_settings

if TYPE_CHECKING:
    from screening.learning.training import Progress
    from screening.pipeline.model_cards import ModelCard

_NOTE_S = 60.0  # between lines of progress where there is no terminal


def add_commands(model: typer.Typer) -> None:
    """Add this module's commands to those of `model`."""
    model.command("add")(model_add)
    model.command("export")(model_export)
    model.command("card")(model_card)
    model.command("reproduce")(model_reproduce)


def model_add(
    model: Annotated[str, typer.Argument(help="A model that comes with the package, or a .safetensors file.")],
    name: Annotated[str | None, typer.Option("--name", help="What to call it; as its card does if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put a model of a file into the database, so that campaigns, rankings and trainings (--from) can use it.

    Its hosts and its level of theory come with it. The same file again changes nothing.
    """
    from screening.pipeline.model_transfer import add_model_file
    from screening.pipeline.pretrained import read_model_file

    found = read_model_file(model)
    with Project().transaction() as session:
        stored, is_new = add_model_file(session, found, name)
    if as_json:
        print_json({"model": stored, "new": is_new, "level": found.card.level.name})
    elif is_new:
        hosts = ", ".join(host.name for host in found.card.hosts)
        print(f"added model {stored} ({found.card.level.name}; {hosts}); `screening model show {stored}` shows it")
    else:
        print(f"model {stored} is there already; nothing was changed")


def model_export(
    name: Annotated[str, typer.Argument(help="Name of a finished model of the database.")],
    file: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    as_json: AsJson = False,
) -> None:
    """Write a model with its card into a file, from which it predicts anywhere without a database."""
    from screening.pipeline.model_transfer import export_model
    from screening.pipeline.pretrained import check_output, write_model_file

    check_output(file)
    with Project().transaction() as session:
        found = export_model(session, name)
    write_model_file(file, found)
    if as_json:
        print_json({"model": found.card.name, "file": file, "bytes": len(found.packed)})
    else:
        print(f"model {found.card.name} in {file} ({size_on_disk(len(found.packed))})")


def model_card(
    name: Annotated[str, typer.Argument(help="A model that comes with the package, or a .safetensors file.")],
    as_json: AsJson = False,
) -> None:
    """Show the card of a model in a file: data, licence, errors, limits. Needs no services."""
    from screening.pipeline.model_cards import card_text, card_to_json
    from screening.pipeline.pretrained import read_model_file

    card = read_model_file(name).card
    if as_json:
        print_json(card_to_json(card))
    else:
        print(card_text(card), end="")


def model_reproduce(
    data: Annotated[Path, typer.Argument(help="Folder or archive of a release of 2DMD.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write; the card is written beside it as text.")
    ] = Path("2dmd-pbe.safetensors"),
    seed: Annotated[int | None, typer.Option(help="Seed of weights and order; that of the shipped model.")] = None,
    members: Annotated[int | None, typer.Option(help="Networks of the ensemble; as the shipped model.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the rows, at most; as the shipped model.")] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Do one of the two trainings, measured or shipped, and stop: two processes then share the work, and "
            "the command without this option puts both together."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train and measure the model that comes with the package again, from its data. Needs no services.

    The first of two trainings measures: it learns from the training rows only. The second makes the weights, from all
    rows. Checkpoints lie beside the output: the same command goes on where it was stopped.
    """
    from dataclasses import replace

    from screening.pipeline.labelled_files import read_labelled
    from screening.pipeline.model_cards import card_to_json
    from screening.pipeline.pretrained import check_output
    from screening.pipeline.reproduction import RECIPE, reproduce_model, train_part

    check_output(output)
    settings = replace(
        RECIPE.settings,
        n_members=RECIPE.settings.n_members if members is None else members,
        epochs=RECIPE.settings.epochs if epochs is None else epochs,
        device=load_settings().device,
    )
    recipe = replace(RECIPE, settings=settings, seed=RECIPE.seed if seed is None else seed)
    with progress_bar("read") as show:
        labelled = read_labelled(data, on_progress=show)
    for refused, reason in labelled.refusals:
        note(f"left out {refused}: {reason}")
    note(f"{labelled.n_rows} labelled rows of {len(labelled.subsets)} subsets")
    with progress_bar("train") as show:
        if only is not None:
            train_part(labelled, output, only, recipe=recipe, on_progress=_reporter(show))
            note(f"the {only} model is trained; the same command without --only puts both together")
            return
        card = reproduce_model(labelled, output, recipe=recipe, on_progress=_reporter(show))
    if as_json:
        print_json(card_to_json(card))
        return
    _print_errors(card)
    print(f"{output} and {output.with_suffix('.md')}: model {card.name}")


def _reporter(show: Callable[[int, int, str], None]) -> Callable[[str, Progress], None]:
    """Shows each epoch on a bar, and says a line a minute, which is all there is where no terminal is."""
    last_note = 0.0

    def report(name: str, progress: Progress) -> None:
        nonlocal last_note
        errors = [
            f"{short} {1000 * error:.1f} meV"
            for key, short in (("formation_energy_per_site", "energy"), ("homo_lumo_gap_min", "gap"))
            if (error := progress.validation_mae.get(key)) is not None
        ]
        text = ", ".join([f"{name} model", progress.host, *errors])
        show(progress.epoch, progress.max_epochs, text)
        if time.monotonic() - last_note > _NOTE_S:
            last_note = time.monotonic()
            note(f"epoch {progress.epoch} of at most {progress.max_epochs} after {progress.elapsed_s:.0f} s: {text}")

    return report


def _print_errors(card: ModelCard) -> None:
    """Mean absolute errors by data set and property."""
    errors = {(metric.dataset, metric.property): metric for metric in card.metrics}
    datasets = list(dict.fromkeys(metric.dataset for metric in card.metrics))
    properties = list(dict.fromkeys(metric.property for metric in card.metrics))
    print("mean absolute errors on rows that were not learnt (1e-3 eV or Bohr magneton):")
    print_table(
        ["data set", *properties],
        [
            [name, *(f"{1000 * errors[name, key].mae:.1f}" if (name, key) in errors else "" for key in properties)]
            for name in datasets
        ],
    )
