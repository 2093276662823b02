"""What commands print: tables for people, JSON for programs, and progress bars on a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

LEAST_TEXT = 12  # characters to which a column of texts may be folded; a narrower one is unreadable
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
    """Print a table; numbers to the right.

    Where a terminal is too narrow for all columns, each row becomes a list of its columns, so that none is left out; a
    file has lines as long as they need to be.
    """
    from rich.console import Console

    widths = _widths(columns, rows)
    if not sys.stdout.isatty():
        Console(width=sum(widths) + 2 * len(widths) + 1).print(table_of(columns, rows), highlight=False)
        return
    console = Console()
    least = sum(width if _is_numeric(rows, c) else min(width, LEAST_TEXT) for c, width in enumerate(widths)) + 2 * max(
        len(widths) - 1, 0
    )  # a blank on either side
    console.print(table_of(columns, rows) if least <= console.width else _lists_of(columns, rows), highlight=False)


def show(renderable: RenderableType) -> None:
    """Print what rich lays out, as wide as the terminal; a file has 200 columns."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(renderable, highlight=False)


def table_of(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> RenderableType:
    """A table for rich; numbers to the right, without a head where no column has a name."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for c, column in enumerate(columns):
        numeric = _is_numeric(rows, c)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))  # a Text is no markup: errors have brackets
    return table


def duration(seconds: float) -> str:
    """A time as people say it: `0.4 s`, `8 s`, `3 min 20 s`, `2 h 5 min`, `1 d 3 h`."""
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part} {part_name}"
    return f"{whole} s"


def size_on_disk(n_bytes: float) -> str:
    """Bytes as people say them: `8.2 kB`, `0.2 MB`, `14.7 GB`."""
    size, name = (1e9, "GB") if n_bytes >= 1e9 else (1e6, "MB") if n_bytes >= 1e5 else (1e3, "kB")
    return f"{n_bytes / size:,.1f} {name}"


def counted(n: int, word: str) -> str:
    """A number with its word: `1 chunk`, `2 chunks`."""
    return f"{n:,} {word}" + ("" if n == 1 else "s")


def wait_for(look: Callable[[], Tick], *, label: str, see: str = "screening status") -> Tick:
    """Look again and again until the work is over, with a bar where the standard error is a terminal.

    Args:
        see: the command that tells somebody who does not wait any more how far it is.
    """
    waiting_since = time.monotonic()
    hinted = False
    with _bar(label) as advance:
        try:
            while not (tick := look()).over:
                advance(tick)
                if tick.started:
                    waiting_since = time.monotonic()
                elif not hinted and time.monotonic() - waiting_since > NO_WORKER_S:
                    hinted = True
                    note(f"{label}: waits for a free worker; `screening status` shows them, `screening up` starts them")
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            note(f"{label}: only the waiting has ended, the workers go on; `{see}` shows how far they are")
            raise
    return tick


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar for work of this process: call it with what is done, the total and what is at hand."""
    with _bar(label) as advance:
        yield lambda done, total, text: advance(Tick(done, total, text, started=True, over=False))


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

        def advance(tick: Tick) -> None:
            progress.update(task, completed=tick.done, total=tick.total or None, text=tick.text)

        yield advance


def _widths(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[int]:
    """The longest line of each column, its name included, in characters of a terminal."""
    from rich.cells import cell_len

    return [
        max(cell_len(line) for text in (column, *(_cell(row[c]) for row in rows)) for line in text.split("\n"))
        for c, column in enumerate(columns)
    ]


def _lists_of(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> RenderableType:
    """Each row as lines of `column  value`, with an empty line between rows; no rows leave the names."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for number, row in enumerate(rows or [[None] * len(columns)]):
        if number:
            table.add_row("", "")
        for column, value in zip(columns, row, strict=True):
            table.add_row(Text(column), Text(_cell(value)))
    return table


def _is_numeric(rows: Sequence[Sequence[Any]], column: int) -> bool:
    return bool(rows) and all(_is_number(row[column]) for row in rows)


def _is_number(value: Any) -> bool:
    """Whether a cell is a number, or a number as a text (`1,003`, `99.9 %`), or empty."""
    text = value.removesuffix(" %").replace(",", "").replace(".", "", 1) if isinstance(value, str) else ""
    return value is None or isinstance(value, int | float) or value == "" or text.isdecimal()


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
