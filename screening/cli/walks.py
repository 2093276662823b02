"""Search spaces walked or sampled in this process: nothing is stored, no service is needed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from screening.cli.output import print_table, progress_bar

if TYPE_CHECKING:
    from screening.defects.enumeration import SearchSpace


def enumerate_here(space: SearchSpace) -> dict[str, Any]:
    """Enumerate in this process and keep nothing."""
    from screening.defects.enumeration import check_count, enumerate_chunk, plan_chunks
    from screening.defects.symmetry import find_symmetry
    from screening.pipeline.scanning import peak_memory_mb

    symmetry = find_symmetry(space.supercell)
    expected = sum(space.counts(symmetry).values())
    _compile(space, symmetry)
    started = time.perf_counter()
    found = 0
    with progress_bar("enumerate") as show:
        for chunk in plan_chunks(space, symmetry):
            for block in enumerate_chunk(space, symmetry, chunk):
                found += len(block)
            show(found, expected, "")
    seconds = time.perf_counter() - started
    check_count(found, expected)
    return {
        "candidates": found,
        "expected": expected,
        "seconds": round(seconds, 4),
        "per_second": round(found / seconds, 1),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }


def sample_here(space: SearchSpace, n: int, seed: int) -> dict[str, Any]:
    """Draw different configurations in this process, each with the same probability.

    `expected` is the exact number of the space's configurations, null where separations are limited.
    """
    import random

    from screening.defects.defect_types import DefectType
    from screening.defects.sampling import Sampler
    from screening.defects.symmetry import find_symmetry
    from screening.pipeline.scanning import peak_memory_mb

    symmetry = find_symmetry(space.supercell)
    started = time.perf_counter()
    sampler = Sampler(space, symmetry)
    configurations = []
    with progress_bar("sample") as show:
        for drawn in sampler.draw_distinct(n, random.Random(seed)):
            configurations.append(
                {
                    "configuration": drawn.configuration.composition,
                    "defects": [DefectType.from_code(code).name for code in drawn.configuration.defect_types],
                    "sites": drawn.configuration.sites,
                    "multiplicity": drawn.multiplicity,
                }
            )
            show(len(configurations), n, "")
    seconds = time.perf_counter() - started
    return {
        "candidates": n,
        "expected": None if space.limits.has_separations else sampler.n_distinct,
        "seconds": round(seconds, 4),
        "per_second": round(n / seconds, 1),
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "sampled": len(configurations),
        "seed": seed,
        "configurations": configurations,
    }


def print_sample(configurations: Sequence[Mapping[str, Any]]) -> None:
    """Print sampled configurations with their sites."""
    rows = []
    for found in configurations:
        sites = " ".join(f"{d}@{s}" for d, s in zip(found["defects"], found["sites"], strict=True))
        rows.append([found["configuration"], sites, found["multiplicity"]])
    print_table(["configuration", "sites", "multiplicity"], rows)


def _compile(space: SearchSpace, symmetry: Any) -> None:
    """Let numba compile the walk, or load it from its cache, before the clock starts."""
    from screening.defects.enumeration import enumerate_chunk, plan_chunks

    first = plan_chunks(space, symmetry)[0]
    next(iter(enumerate_chunk(space, symmetry, first, block_rows=1)), None)
