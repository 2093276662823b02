"""Results that are put aside: results quarantine, release, reject."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any

import typer

from screening.cli.options import AsJson
from screening.cli.output import counted, print_json, print_table
from screening.cli.project import Project
from screening.cli.provenance import results_retract

Ids = Annotated[list[int] | None, typer.Argument(metavar="[RESULT]...", help="Ids of results.")]
Batch = Annotated[str | None, typer.Option("--batch", help="All open results of this batch instead.")]
_MOST_SHOWN = 20  # of a batch


def add_commands(results: typer.Typer) -> None:
    """Add this module's commands to `results`."""
    results.command("quarantine")(results_quarantine)
    results.command("release")(results_release)
    results.command("reject")(results_reject)
    results.command("retract")(results_retract)


def results_quarantine(
    decided_too: Annotated[bool, typer.Option("--all", help="Also what was released or rejected.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the results that are put aside because they contradict a model, with the reason.

    No model learns from them until they are released.
    """
    from screening.pipeline.quarantine import list_quarantined

    with Project().transaction() as session:
        rows = list_quarantined(session, open_only=not decided_too)
    if as_json:
        print_json({"quarantined": rows})
    elif not rows:
        print("no result is put aside")
    else:
        print_quarantined(rows, most_shown=None)


def results_release(ids: Ids = None, batch: Batch = None, as_json: AsJson = False) -> None:
    """Let models learn from results that were put aside."""
    from screening.pipeline.quarantine import release

    with Project().transaction() as session:
        found = release(session, ids=ids or (), batch=batch)
    _print_decision(found, "released", "`screening retrain` learns from them", as_json=as_json)


def results_reject(
    ids: Ids = None,
    batch: Batch = None,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why; needed for results that were not put aside before.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Keep results out of every training for good; they stay in the database."""
    from screening.pipeline.quarantine import reject

    with Project().transaction() as session:
        found = reject(session, ids=ids or (), batch=batch, reason=reason)
    _print_decision(found, "rejected", "no training takes them", as_json=as_json)


def print_quarantined(rows: Sequence[dict[str, Any]], *, most_shown: int | None = _MOST_SHOWN) -> None:
    """Print results that are put aside, batch by batch."""
    ordered = sorted(rows, key=lambda row: (row["batch"] or "", row["reason"] if row["batch"] else "", row["result"]))
    for (batch, reason), some in groupby(
        ordered, key=lambda row: (row["batch"], row["reason"] if row["batch"] else "")
    ):
        of_batch = list(some)
        if batch is not None:
            print(f"batch {batch!r}, {counted(len(of_batch), 'result')}: {reason}")
        columns = ["result", "state", "host", "configuration", "sites", "name", *([] if batch else ["reason"])]
        print_table(columns, [[row[column] for column in columns] for row in of_batch[:most_shown]])
        if most_shown is not None and len(of_batch) > most_shown:
            print(f"and {len(of_batch) - most_shown} more; `screening results quarantine` lists all")


def _print_decision(ids: Sequence[int], state: str, then: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"state": state, "results": ids})
    else:
        print(f"{counted(len(ids), 'result')} {state}: {', '.join(map(str, ids))}; {then}")
