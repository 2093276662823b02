"""How far loops are, as tables and step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from screening.cli.output import duration, note, print_table
from screening.cli.project import Project

WATCH_S = 2.0


def watch_loop(project: Project, loop_id: int, act: Callable[[], None] | None = None) -> None:
    """Print the steps of a loop as they end, until the loop is over.

    Args:
        act: called before each look; what plays the cluster of a replay.
    """
    from screening.database.loops import list_loops, steps_of

    shown: set[int] = set()
    try:
        while True:
            if act is not None:
                act()
            with project.transaction() as session:
                (loop,) = (found for found in list_loops(session) if found["id"] == loop_id)
                steps = steps_of(session, loop_id)
            for step in steps:
                if step["finished_at"] is not None and step["id"] not in shown:
                    shown.add(step["id"])
                    took = duration((step["finished_at"] - step["started_at"]).total_seconds())
                    print(
                        f"{step['finished_at'].astimezone():%H:%M:%S}  {step['stage']:<9}  {took:>9}  {step['remark']}"
                    )
            if loop["state"] != "running":
                print(f"loop {loop['loop']} is {loop['state']}: {loop['error'] or loop['remark'] or ''}")
                return
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        note("only the watching has ended, the workers go on; `screening loop status` shows how far they are")
        raise


def print_loops(loops: list[dict[str, Any]]) -> None:
    """Print how far loops are."""
    if not loops:
        print("there is no loop; `screening loop start` starts one")
        return
    rows = []
    for loop in loops:
        alive = loop["state"] in ("running", "paused")
        since = duration((datetime.now(UTC) - loop["stage_since"]).total_seconds()) if alive else ""
        stage = loop["stage"] if alive else ""
        if stage == "calculate":
            stage += f" ({loop['under_way']} of round {loop['round']} open)"
        what = loop["error"] or loop["remark"] or ""
        rows.append(
            [loop["loop"], loop["model"], loop["state"], stage, since, f"{loop['calculations']} of {loop['of']}",
             loop["best"], f"{loop['unchanged']} of {loop['patience']}", what]
        )  # fmt: skip
    columns = ["loop", "model", "state", "stage", "for", "calculations", "best", "unchanged", "remark"]
    print_table(columns, rows)


def print_steps(steps: list[dict[str, Any]]) -> None:
    """Print the steps that a loop has been through."""
    rows = []
    for step in steps:
        ended = step["finished_at"]
        took = "" if ended is None else duration((ended - step["started_at"]).total_seconds())
        rows.append(
            [step["number"], step["stage"], f"{step['started_at'].astimezone():%m-%d %H:%M:%S}", took, step["model"],
             step["n_calculated"], step["best"], step["n_changed"], step["mae"], step["remark"] or "..."]
        )  # fmt: skip
    columns = ["step", "stage", "began", "took", "model", "calculated", "best", "changed", "mae", "remark"]
    print_table(columns, rows)
