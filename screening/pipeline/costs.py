"""What a search space will cost before anything of it is begun: disk, time to enumerate, time to score.

The disk follows from the number of candidates and bytes per row that were measured; the times from rates measured on
this machine: the walk of random chunks now, and what the workers needed for the last scoring.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from screening.database import tables
from screening.defects.enumeration import SearchSpace, enumerate_chunk, plan_chunks
from screening.defects.symmetry import Symmetry

# bytes on disk of a row with its indexes, by pg_total_relation_size: tests/benchmarks/bench_disk.py, PostgreSQL 16,
# 74,000 candidates of 4 defects in 8x8 MoS2, all properties predicted; 3 and 5 defects differ by 6 % (candidates)
# and 17 % (predictions of the 13,446 with 3 defects, whose indexes are hardly filled)
CANDIDATE_BYTES = 286
PREDICTION_BYTES = 203

MAX_TIMED_DEFECTS = 5  # beyond, the plan of the chunks alone takes minutes
TIMED_S = 0.3


def disk_bytes(n_candidates: int) -> int:
    """Bytes on disk of stored candidates and of the predictions of one model for them."""
    return n_candidates * (CANDIDATE_BYTES + PREDICTION_BYTES)


def enumeration_seconds(space: SearchSpace, symmetry: Symmetry, n_candidates: int) -> float | None:
    """Seconds that one process needs to walk a search space, from the rate of random chunks; storing comes on top.

    Returns:
        None for more than five defects, whose chunks are too many to be planned first.
    """
    if space.sizes[-1] > MAX_TIMED_DEFECTS:
        return None
    if n_candidates == 0:
        return 0.0
    largest = replace(space, min_defects=space.sizes[-1])
    chunks = plan_chunks(largest, symmetry)
    if not chunks:
        return 0.0
    random.Random(0).shuffle(chunks)
    next(enumerate_chunk(largest, symmetry, chunks[0], block_rows=1), None)  # the walk is compiled, or loaded
    started = time.perf_counter()
    n_rows = n_walked = 0
    for chunk in chunks:
        n_rows += sum(len(block) for block in enumerate_chunk(largest, symmetry, chunk))
        n_walked += 1
        if time.perf_counter() - started > TIMED_S:
            break
    elapsed = time.perf_counter() - started
    if n_rows == 0:
        return elapsed * len(chunks) / n_walked
    return elapsed * n_candidates / n_rows


def scoring_seconds(session: Session, n_candidates: int) -> float | None:
    """Seconds that one worker needs to score candidates, from the last model that has scored; None if none has."""
    unit = tables.ScoringChunk
    done = (unit.state == "finished", unit.n_predictions > 0)
    newest = select(func.max(unit.model_id)).where(*done).scalar_subquery()
    took = func.sum(func.extract("epoch", unit.finished_at - unit.started_at))
    n_scored, seconds = session.execute(
        select(func.sum(unit.n_predictions), took).where(*done, unit.model_id == newest)
    ).one()
    if not n_scored or not seconds:
        return None
    return n_candidates * float(seconds) / int(n_scored)
