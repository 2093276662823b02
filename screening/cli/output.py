"""What commands print: tables for people, JSON for programs, and progress bars on a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

POLL_S = 0.5
NO_WORKER_S = 20.0  # a worker that is idle answers within seconds


@dataclass(frozen=True)
class Tick:
    """How far a unit of waiting is.

    Attributes:
        started: whether a worker has begun.
        over: whether nothing more will happen.
    """

    done: float
    total: float
    text: str
    started: bool
    over: bool


def print_json(found: Any) -> None:
    """Print one JSON object; NaN has no place in JSON and becomes null."""
    print(json.dumps(_plain(found), allow_nan=False))


def note(text: str) -> None:
    """Say something to the person at the terminal, not to the program that reads the output."""
    print(text, file=sys.stderr, flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for c, column in enumerate(columns):
        numeric = all(isinstance(row[c], int | float) or row[c] is None for row in rows) and bool(rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table, highlight=False)


def wait_for(look: Callable[[], Tick], *, label: str) -> Tick:
    """Look again and again until the work is over, with a bar where the standard error is a terminal."""
    waiting_since = time.monotonic()
    hinted = False
    with _bar(label) as show:
        try:
            while not (tick := look()).over:
                show(tick)
                if tick.started:
                    waiting_since = time.monotonic()
                elif not hinted and time.monotonic() - waiting_since > NO_WORKER_S:
                    hinted = True
                    note(f"{label}: waits for a free worker; `screening status` shows them, `screening up` starts them")
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            note(f"{label}: only the waiting has ended, the workers go on; `screening status` shows how far they are")
            raise
    return tick


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar for work of this process: call it with what is done, the total and what is at hand."""
    with _bar(label) as show:
        yield lambda done, total, text: show(Tick(done, total, text, started=True, over=False))


@contextmanager
def _bar(label: str) -> Iterator[Callable[[Tick], None]]:
    """A progress bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda tick: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=None, text="")

        def show(tick: Tick) -> None:
            progress.update(task, completed=tick.done, total=tick.total or None, text=tick.text)

        yield show


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e-3 and value else f"{value:.4f}"
    if isinstance(value, list | tuple):
        return " ".join(str(part) for part in value)
    return str(value)


def _plain(found: Any) -> Any:
    """The same in plain JSON types."""
    if isinstance(found, Mapping):
        return {str(key): _plain(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_plain(value) for value in found]
    if isinstance(found, float):
        return found if found == found and abs(found) != float("inf") else None
    if isinstance(found, str | int | bool) or found is None:
        return found
    return str(found)
