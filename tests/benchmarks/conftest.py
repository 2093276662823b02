"""Benchmarks print one JSON line per figure: what, how many, median seconds of the repeats, rate; never asserted."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import pytest

Measure = Callable[..., None]
PrintLine = Callable[[Mapping[str, object]], None]


@pytest.fixture
def print_line(capsys: pytest.CaptureFixture[str]) -> PrintLine:
    """Print a figure whatever pytest captures."""

    def print_json(figure: Mapping[str, object]) -> None:
        with capsys.disabled():
            print(json.dumps(figure), flush=True)

    return print_json


@pytest.fixture
def measure(print_line: PrintLine) -> Measure:
    """Time alternatives in turn, so that they meet the same noise, and print a line for each."""

    def run(what: str, n_items: int, *, repeats: int = 5, **alternatives: Callable[[], object]) -> None:
        seconds: dict[str, list[float]] = {name: [] for name in alternatives}
        for _ in range(repeats):
            for name, work in alternatives.items():
                seconds[name].append(seconds_of(work))
        for name, times in seconds.items():
            print_line(figure_line(what, name, n_items, times))

    return run


def seconds_of(work: Callable[[], object]) -> float:
    """How long a piece of work takes by the clock."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def figure_line(what: str, how: str, n_items: int, seconds: Sequence[float]) -> dict[str, object]:
    """A figure from repeated times."""
    median = statistics.median(seconds)
    return {
        "figure": what,
        "how": how,
        "items": n_items,
        "median_s": round(median, 5),
        "min_s": round(min(seconds), 5),
        "max_s": round(max(seconds), 5),
        "per_second": round(n_items / median, 1),
    }
