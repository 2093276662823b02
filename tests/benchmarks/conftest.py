"""Benchmarks print one JSON line per figure: what, how many, median seconds of the repeats, rate; never asserted."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import pytest

Measure = Callable[..., None]


@pytest.fixture
def measure(capsys: pytest.CaptureFixture[str]) -> Measure:
    """Time alternatives in turn, so that they meet the same noise, and print a line for each."""

    def run(what: str, n_items: int, *, repeats: int = 5, **alternatives: Callable[[], object]) -> None:
        seconds: dict[str, list[float]] = {name: [] for name in alternatives}
        for _ in range(repeats):
            for name, work in alternatives.items():
                started = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - started)
        for name, times in seconds.items():
            median = statistics.median(times)
            line = {
                "figure": what,
                "how": name,
                "items": n_items,
                "median_s": round(median, 5),
                "min_s": round(min(times), 5),
                "max_s": round(max(times), 5),
                "per_second": round(n_items / median, 1),
            }
            with capsys.disabled():
                print(json.dumps(line), flush=True)

    return run
