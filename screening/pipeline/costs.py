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

# bytes on disk of a row with its indexes, by pg_total_relation_size: tests/benchmarks/bench_disk.py
CANDIDATE_BYTES = 104  # of four defects, with the three indexes of its partition
PROPERTY_BYTES = 8  # mean and standard deviation

MAX_TIMED_DEFECTS = 5  # beyond, the plan of the chunks alone takes minutes
TIMED_S = 0.3


def disk_bytes(n_candidates: int, *, n_properties: int = len(tables.PROPERTY_COMMENTS)) -> int:
    """Bytes on disk of candidates with the predictions of so many properties."""
    return n_candidates * (CANDIDATE_BYTES + PROPERTY_BYTES * n_properties)


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
    chunk, campaign = tables.Chunk, tables.Campaign
    done = (chunk.state == "finished", chunk.scores, chunk.n_candidates > 0)
    newest = select(func.max(campaign.model_id)).join(chunk, chunk.campaign_id == campaign.id).where(*done)
    n_scored, seconds = session.execute(
        select(func.sum(chunk.n_candidates), func.sum(chunk.worked_s))
        .join(campaign, campaign.id == chunk.campaign_id)
        .where(*done, campaign.model_id == newest.scalar_subquery())
    ).one()
    if not n_scored or not seconds:
        return None
    return n_candidates * float(seconds) / int(n_scored)
