"""What a search space will cost before anything of it is begun: disk, time to enumerate, time to score.

The disk follows from the number of candidates and bytes per row that were measured; the times from rates measured on
this machine: the walk of random chunks now, and what the workers needed for the last scoring.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace
from itertools import chain

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from screening.database import tables
from screening.defects.enumeration import Block, SearchSpace, enumerate_chunk, plan_chunks
from screening.defects.symmetry import Symmetry

# bytes on disk of a row by pg_total_relation_size: tests/benchmarks/bench_disk.py
CANDIDATE_BYTES = 108  # of up to five defects, with the distances between them
PROPERTY_BYTES = 8  # mean and standard deviation
INDEX_BYTES = 70  # of the three indexes over predictions

TIMED_S = 0.3
LARGE_CHUNK = 5_000  # candidates
SCORED_ROWS = 8_192  # by which a scoring is timed


def disk_bytes(n_candidates: int, *, n_properties: int = len(tables.PROPERTY_COMMENTS)) -> int:
    """Bytes on disk of candidates with the predictions of so many properties, or of none."""
    predicted = INDEX_BYTES + PROPERTY_BYTES * n_properties if n_properties else 0
    return n_candidates * (CANDIDATE_BYTES + predicted)


def enumeration_seconds(space: SearchSpace, symmetry: Symmetry, n_candidates: int) -> float:
    """Seconds that one process needs to walk a search space, from the rate of random chunks; storing comes on top."""
    if n_candidates == 0:
        return 0.0
    largest = replace(space, min_defects=space.sizes[-1])
    chunks = plan_chunks(largest, symmetry)
    random.Random(0).shuffle(chunks)
    next(enumerate_chunk(largest, symmetry, chunks[0], block_rows=1), None)  # the walk is compiled, or loaded
    started = time.perf_counter()
    n_rows, elapsed = 0, 0.0
    for block in chain.from_iterable(enumerate_chunk(largest, symmetry, chunk) for chunk in chunks):
        n_rows += len(block)
        elapsed = time.perf_counter() - started
        if elapsed > TIMED_S:
            break
    return elapsed * n_candidates / n_rows if n_rows else time.perf_counter() - started


def scoring_seconds(session: Session, n_candidates: int) -> float | None:
    """Seconds that one worker needs to scan candidates, from the chunks of the last model that has scored large ones.

    Returns:
        None if none has; small chunks spend their time on loading the model.
    """
    chunk, campaign = tables.Chunk, tables.Campaign
    done = (chunk.state == "finished", chunk.scores, chunk.n_candidates >= LARGE_CHUNK)
    newest = select(func.max(campaign.model_id)).join(chunk, chunk.campaign_id == campaign.id).where(*done)
    n_scored, seconds = session.execute(
        select(func.sum(chunk.n_candidates), func.sum(chunk.worked_s))
        .join(campaign, campaign.id == chunk.campaign_id)
        .where(*done, campaign.model_id == newest.scalar_subquery())
    ).one()
    if not n_scored or not seconds:
        return None
    return n_candidates * float(seconds) / int(n_scored)


def timed_scoring_seconds(
    session: Session, model_id: int, space: SearchSpace, symmetry: Symmetry, n_candidates: int
) -> float:
    """Seconds that one process needs to score candidates, by the scoring of some here and now; storing comes on top."""
    from screening.learning.artifacts import ensemble_from_bytes
    from screening.learning.scorer import score_block

    model = session.get_one(tables.TrainedModel, model_id)
    assert model.weights is not None
    ensemble = ensemble_from_bytes(model.weights)
    block = _largest_block(space, symmetry)
    if block is None:
        return 0.0
    score_block(ensemble, space.supercell, block.sites[:1], block.defect_types[:1])  # compiled, or loaded
    started = time.perf_counter()
    score_block(ensemble, space.supercell, block.sites, block.defect_types)
    return n_candidates * (time.perf_counter() - started) / len(block)


def _largest_block(space: SearchSpace, symmetry: Symmetry) -> Block | None:
    """Some configurations with as many defects as there are any of; the limits may forbid the largest size."""
    for chunk in sorted(plan_chunks(space, symmetry), key=lambda chunk: -chunk.n_defects):
        block = next(enumerate_chunk(space, symmetry, chunk, block_rows=SCORED_ROWS), None)
        if block is not None and len(block):
            return block
    return None
