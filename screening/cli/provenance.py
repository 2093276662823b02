"""Where predictions come from and what rests on results: why, affected, results retract."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.cli.options import AsJson
from screening.cli.output import counted, note, print_json, print_table
from screening.cli.project import Project
from screening.errors import InputError

if TYPE_CHECKING:
    from screening.pipeline.provenance import Affected, Why

ResultName = Annotated[
    str, typer.Argument(metavar="RESULT", help="Id of a result, or its name in its data set, or DATASET:NAME.")
]
_SHOWN = ("formation_energy_per_site", "homo_lumo_gap_min")
_MOST_SHOWN = 12  # files, rankings


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands; `quarantine` adds that on results."""
    app.command("why")(why)
    app.command("affected")(affected)


def why(
    candidate: Annotated[
        str,
        typer.Argument(
            metavar="CANDIDATE", help="CAMPAIGN:ID as `design` shows both, an id, or with --ranking a rank."
        ),
    ],
    ranking: Annotated[
        str | None, typer.Option("--ranking", help="A saved ranking, by its id or name; CANDIDATE is then a rank.")
    ] = None,
    campaign: Annotated[str | None, typer.Option("--campaign", help="The campaign of a candidate's id.")] = None,
    nearest: Annotated[int, typer.Option("--nearest", min=0, help="How many of the most alike results to show.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Say why a candidate has its prediction: its model, what that has learnt from, and the files of these results."""
    from screening.pipeline import provenance

    with Project().transaction() as session:
        if ranking is None:
            chosen = provenance.find_candidate(session, candidate, campaign)
        elif not candidate.isdecimal():
            raise InputError(f"rank {candidate!r} of ranking {ranking} cannot be read; expected a number from 1 on")
        else:
            chosen = provenance.find_ranked(session, ranking, int(candidate))
        found = provenance.why(session, chosen, n_nearest=nearest)
    if as_json:
        print_json(asdict(found))
    else:
        _print_why(found)


def affected(result: ResultName, as_json: AsJson = False) -> None:
    """List the models, predictions, rankings and rounds that rest on a result."""
    from screening.pipeline import provenance

    with Project().transaction() as session:
        found = provenance.affected(session, provenance.find_result(session, result))
    if as_json:
        print_json(asdict(found))
    else:
        _print_affected(found)


def results_retract(
    result: ResultName,
    reason: Annotated[str, typer.Option("--reason", help="Why it is withdrawn; kept with it.")],
    as_json: AsJson = False,
) -> None:
    """Withdraw a result: no training and no query takes it any more, and what rests on it is marked.

    `screening affected` shows beforehand what that is. Nothing is deleted; the calculation can be made again.
    """
    from screening.pipeline import provenance
    from screening.pipeline.retraction import retract

    with Project().transaction() as session:
        found = retract(session, provenance.find_result(session, result), reason)
    if as_json:
        print_json(asdict(found))
        return
    print(f"result {found.result['result']} is withdrawn: {found.result['retraction']}")
    if found.n_derived:
        print(f"{counted(found.n_derived, 'formation energy')} that were derived from it are empty until another "
              "pristine result is taken in")  # fmt: skip
    _print_affected(found)
    lines = dict.fromkeys(model["line"] for model in found.models if model["standing"] == "production")
    for line in lines:
        print(f"\n`screening retrain {line}` trains a version without it")


def note_retracted(project: Project, model_id: int, name: str) -> None:
    """Say it where predictions are shown that rest on withdrawn results."""
    from screening.database.provenance import retracted_below

    with project.transaction() as session:
        ids = retracted_below(session, model_id)
    if ids:
        shown = ", ".join(map(str, ids[:5])) + (" ..." if len(ids) > 5 else "")
        note(
            f"{name} rests on {'a retracted result' if len(ids) == 1 else f'{len(ids)} retracted results'} ({shown}); "
            f"`screening affected {ids[0]}` shows what else does, `screening retrain` trains a version without"
        )


def _print_why(found: Why) -> None:
    candidate = found.candidate
    print(
        f"{candidate.name}: {candidate.configuration.composition} in {found.host} {found.supercell}, "
        f"{' '.join(found.defects)}, multiplicity {candidate.multiplicity}"
    )
    model = found.versions[0]
    print(f"\npredicted by {model['model']} at {model['level']}" + (
        f", campaign {candidate.campaign}" if candidate.campaign else "; its campaign was deleted"
    ))  # fmt: skip
    calculated = found.calculated or {}
    rows = [
        [name, f"{mean:.3f} +- {std:.3f}", calculated.get(name)] for name, (mean, std) in candidate.predictions.items()
    ]
    if rows:
        print_table(["property", "predicted", "calculated"], rows)
    if found.calculated is not None:
        print(f"calculated: result {calculated['result']}, {_origin(calculated)}")
    print("\nthe model and the versions it goes back to")
    columns = ["model", "standing", "n_train", "n_new", "n_validation", "finished_at", "why"]
    print_table(columns, [[_cell(version[column]) for column in columns] for version in found.versions])
    for card in found.from_files:
        print(f"\n{card['model']} came from a file, and its results are not here: {', '.join(card['data'])}; "
              f"{card['source']} {' '.join(card['citations'])}")  # fmt: skip
    if found.nearest:
        print(f"\nmost alike of the {found.n_learnt} results of {found.host} {found.supercell} it has learnt from")
        columns = ["result", "likeness", "configuration", *_SHOWN, "standing", "from"]
        print_table(columns, [
            [row["result"], round(row["likeness"], 3), row["configuration"], *(row[name] for name in _SHOWN),
             row["standing"], _origin(row)]
            for row in found.nearest
        ])  # fmt: skip
    _print_sources(found)
    if found.retracted:
        note(f"it rests on retracted results: {', '.join(map(str, found.retracted))}")


def _print_sources(found: Why) -> None:
    print("\nall that the model and the versions it goes back to have learnt from or were chosen on")
    columns = ["results", "retracted", "dataset", "file", "sha256", "parser_version"]
    rows = [
        [source["results"], source["retracted"] or "", source["dataset"], source["file"] or "calculated here",
         (source["sha256"] or "")[:12], source["parser_version"]]
        for source in found.sources[:_MOST_SHOWN]
    ]  # fmt: skip
    print_table(columns, rows)
    if len(found.sources) > _MOST_SHOWN:
        print(f"and {len(found.sources) - _MOST_SHOWN} more; --json has all")


def _print_affected(found: Affected) -> None:
    result = found.result
    what = "pristine" if result["n_defects"] == 0 else result["configuration"]
    print(
        f"result {result['result']} ({result['standing']}): {what} in {result['host']} {result['supercell']} at "
        f"{result['level']}, {_origin(result)}"
    )
    if found.n_derived and result["standing"] != "retracted":
        print(f"{counted(found.n_derived, 'formation energy')} are derived from it")
    if not found.models:
        print("no model has learnt from it; nothing rests on it")
        return
    tables: list[tuple[list[str], Any]] = [
        (["model", "standing", "state", "how"], found.models),
        (["campaign", "model", "state", "predictions"], found.campaigns),
        (["ranking", "name", "model", "rows", "created_at"], found.rankings),
        (["round", "name", "model", "calculations", "finished"], found.rounds),
    ]
    for columns, rows in tables:
        if rows:
            print()
            print_table(columns, [[_cell(row[column]) for column in columns] for row in rows[-_MOST_SHOWN:]])
            if len(rows) > _MOST_SHOWN:
                print(f"and {len(rows) - _MOST_SHOWN} older ones; --json has all")


def _origin(row: dict[str, Any]) -> str:
    """Where a result comes from: `row-7 of low_density_defects/MoS2, targets.csv.gz`."""
    file = f", {row['file']} ({row['sha256'][:12]})" if row["file"] else ", calculated here"
    return f"{row['row_name']} of {row['dataset']}{file}"


def _cell(value: Any) -> Any:
    return f"{value.astimezone():%Y-%m-%d %H:%M}" if hasattr(value, "astimezone") else value
