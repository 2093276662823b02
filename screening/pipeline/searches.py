"""Search spaces: counting, enumerating and scoring their candidates, chunk by chunk.

A chunk's candidates and its new state are committed in one transaction, and so are the predictions of a
scoring chunk: whatever dies, a chunk is done exactly once or not at all. What a search space is made of (count,
compositions, chunks) is written when it is added, by one caller however many there are.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Engine, Integer, func, literal, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.bulk_copy import copy_rows
from screening.database.leases import finish, lease_kept, reopen_failed
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.enumeration import Block, Chunk, SearchSpace, check_count, enumerate_chunk, plan_chunks
from screening.defects.limits import Limits
from screening.defects.symmetry import Symmetry
from screening.errors import InputError
from screening.pipeline.hosts import StoredSupercell, add_compositions, add_defect_types, load_supercell


@dataclass(frozen=True)
class UnitProgress:
    """How far the chunks of a search space are.

    Attributes:
        running: those that a worker holds.
        stored_rows: candidates or predictions of the finished ones.
        first_error: of the first failed one.
    """

    total: int
    running: int
    done: int
    failed: int
    stored_rows: int
    first_error: str | None

    @property
    def is_over(self) -> bool:
        """Whether no chunk waits or runs."""
        return self.done + self.failed == self.total


def count_table(space: SearchSpace, symmetry: Symmetry) -> dict[str, Any]:
    """Exact numbers of candidates: `total`, `by_defects` and `by_composition`."""
    counts = space.counts(symmetry)
    by_defects: Counter[int] = Counter(dict.fromkeys(space.sizes, 0))
    for composition, count in counts.items():
        by_defects[sum(composition)] += count
    ordered = sorted(counts, key=lambda composition: (sum(composition), [-n for n in composition]))
    return {
        "total": sum(counts.values()),
        "by_defects": {str(n): by_defects[n] for n in sorted(by_defects)},
        "by_composition": {space.label(composition): counts[composition] for composition in ordered},
    }


def add_search_space(session: Session, stored: StoredSupercell, space: SearchSpace) -> int:
    """Store a search space, its exact count and its chunks, all waiting; again changes nothing."""
    add_defect_types(session, space.defect_types)
    key = {
        "supercell_id": stored.id,
        "defect_types": [t.code for t in space.defect_types],
        "min_defects": space.min_defects if space.composition is not None else space.sizes[0],
        "max_defects": space.max_defects if space.composition is not None else space.sizes[-1],
        "composition": None if space.composition is None else list(space.max_counts),
        **_limits_row(space),
    }
    known = (
        getattr(tables.SearchSpace, name).is_not_distinct_from(value) if value is None
        else getattr(tables.SearchSpace, name) == value
        for name, value in key.items()
    )  # fmt: skip
    if (found := session.scalar(select(tables.SearchSpace.id).where(*known))) is not None:
        return found
    counts = space.counts(stored.symmetry)
    added = insert(tables.SearchSpace).values(**key, expected=sum(counts.values())).on_conflict_do_nothing()
    search_space_id: int | None = session.scalar(added.returning(tables.SearchSpace.id))
    if search_space_id is None:  # another caller has added it since, with its chunks
        return add_search_space(session, stored, space)
    add_compositions(
        session,
        [Counter({t.code: n for t, n in zip(space.defect_types, c, strict=True) if n}) for c in counts],
    )
    _add_chunks(session, search_space_id, plan_chunks(space, stored.symmetry))
    return search_space_id


def load_search_space(session: Session, search_space_id: int) -> tuple[StoredSupercell, SearchSpace]:
    """A search space from its row."""
    row = session.get_one(tables.SearchSpace, search_space_id)
    stored = load_supercell(session, row.supercell_id)
    types = tuple(DefectType.from_code(code) for code in row.defect_types)
    composition = None if row.composition is None else dict(zip(types, row.composition, strict=True))
    counts = (
        {}
        if row.min_counts is None or row.max_counts is None
        else dict(zip(types, zip(row.min_counts, row.max_counts, strict=True), strict=True))
    )
    limits = Limits(counts, row.min_separation, row.max_separation)
    return stored, SearchSpace(
        stored.supercell, types, row.max_defects, min_defects=row.min_defects, composition=composition, limits=limits
    )


def enumerate_unit(engine: Engine, chunk_id: int, owner: str) -> None:
    """Enumerate and store the candidates of a chunk that `owner` holds; one transaction of its own.

    Raises:
        CountMismatchError: with this chunk the search space is complete, and its count is not the exact one.
        LeaseLostError: another worker took the chunk over; nothing was written.
    """
    with lease_kept(engine, tables.Chunk, chunk_id, owner), session_scope(engine) as session:
        row = session.get_one(tables.Chunk, chunk_id)
        stored, space = load_search_space(session, row.search_space_id)
        prefix = Configuration(tuple(row.prefix_sites), tuple(row.prefix_defect_types))
        n_candidates = 0
        for block in enumerate_chunk(space, stored.symmetry, Chunk(row.n_defects, prefix)):
            n_candidates += _store_candidates(session, row, block)
        finish(
            session, tables.Chunk, chunk_id, owner, n_candidates=n_candidates, peak_memory_mb=peak_memory_mb()
        )  # fmt: skip
        _check_space(session, row.search_space_id)


def add_scoring(session: Session, model_id: int, search_space_id: int) -> int:
    """Add the scoring of every chunk of a search space by a model; the number of chunks that are new.

    Raises:
        InputError: the search space is not enumerated completely, or the model is not trained.
    """
    model = session.get_one(tables.TrainedModel, model_id)
    if model.state != "finished":
        raise InputError(f"model {model.name} is {model.state}; wait until it is trained before it scores")
    open_chunks = session.scalar(
        select(func.count()).where(tables.Chunk.search_space_id == search_space_id, tables.Chunk.state != "finished")
    )
    if open_chunks:
        raise InputError(
            f"{open_chunks} chunks of search space {search_space_id} are not enumerated; "
            "run `screening enumerate` with the same options first"
        )
    added = session.scalars(
        insert(tables.ScoringChunk)
        .from_select(
            ["model_id", "chunk_id"],
            select(literal(model_id, Integer), tables.Chunk.id)
            .where(tables.Chunk.search_space_id == search_space_id)
            .order_by(tables.Chunk.number),
        )
        .on_conflict_do_nothing()
        .returning(tables.ScoringChunk.id)
    ).all()
    return len(added)


def check_trained_types(session: Session, model: tables.TrainedModel, search_space_id: int) -> None:
    """Make sure that a model has learnt from the host and the defect types of a search space.

    Raises:
        InputError: it has not; every chunk would fail.
    """
    space = session.get_one(tables.SearchSpace, search_space_id)
    host = session.get_one(tables.Host, session.get_one(tables.Supercell, space.supercell_id).host_id)
    known = queries.trained_types(session, model.id, host.id)
    counts = space.composition or space.max_counts or [1] * len(space.defect_types)
    unknown = {code for code, count in zip(space.defect_types, counts, strict=True) if count} - known
    if unknown:
        raise InputError(
            f"model {model.name} has never seen {_names(unknown)} in {host.name}; it knows "
            f"{_names(known) or 'nothing there'}: train it on results with them, or leave them out of --types"
        )


def progress(session: Session, search_space_id: int, *, model_id: int | None = None) -> UnitProgress:
    """How far the enumeration of a search space is, or its scoring by a model."""
    unit: type[tables.Chunk] | type[tables.ScoringChunk] = tables.Chunk if model_id is None else tables.ScoringChunk
    n_rows = tables.Chunk.n_candidates if model_id is None else tables.ScoringChunk.n_predictions
    belongs = _units_of(search_space_id, model_id)
    total, running, done, failed, stored_rows = session.execute(
        select(
            func.count(),
            func.count().filter(unit.state == "running", unit.lease_until >= func.now()),
            func.count().filter(unit.state == "finished"),
            func.count().filter(unit.state == "failed"),
            func.sum(n_rows),
        ).where(*belongs)
    ).one()
    first_error = session.scalar(select(unit.error).where(*belongs, unit.state == "failed").order_by(unit.id).limit(1))
    return UnitProgress(total, running, done, failed, int(stored_rows or 0), first_error)


def enumeration_figures(session: Session, search_space_id: int) -> dict[str, Any]:
    """What an enumeration has stored, and how fast.

    `candidates` and `expected`; `seconds` from the start of the first chunk to the end of the last one that is
    finished, `per_second`, and `peak_memory_mb` of the largest worker; these are 0 before a chunk is finished.
    """
    chunk = tables.Chunk
    row = session.execute(
        select(
            func.coalesce(func.sum(chunk.n_candidates), 0).label("candidates"),
            func.extract("epoch", func.max(chunk.finished_at) - func.min(chunk.started_at)).label("seconds"),
            func.max(chunk.peak_memory_mb).label("peak_memory_mb"),
        ).where(chunk.search_space_id == search_space_id, chunk.state == "finished")
    ).one()
    candidates, seconds = int(row.candidates), float(row.seconds or 0.0)
    return {
        "candidates": candidates,
        "expected": session.get_one(tables.SearchSpace, search_space_id).expected,
        "seconds": round(seconds, 3),
        "per_second": round(candidates / seconds, 1) if seconds else 0.0,
        "peak_memory_mb": round(row.peak_memory_mb or 0.0, 1),
    }


def retry_failed(session: Session, search_space_id: int, *, model_id: int | None = None) -> int:
    """Open the failed chunks of an enumeration, or of a scoring, once their cause is mended; their number."""
    unit = tables.Chunk if model_id is None else tables.ScoringChunk
    return reopen_failed(session, unit, *_units_of(search_space_id, model_id))


def score_unit(engine: Engine, unit_id: int, owner: str, *, device: str) -> None:
    """Score and store the predictions of a scoring chunk that `owner` holds; one transaction of its own.

    Raises:
        LeaseLostError: another worker took the chunk over; nothing was written.
    """
    from screening.learning.artifacts import ensemble_from_bytes
    from screening.learning.scorer import score_block

    with lease_kept(engine, tables.ScoringChunk, unit_id, owner), session_scope(engine) as session:
        unit = session.get_one(tables.ScoringChunk, unit_id)
        model = session.get_one(tables.TrainedModel, unit.model_id)
        chunk = session.get_one(tables.Chunk, unit.chunk_id)
        assert model.weights is not None
        ensemble = ensemble_from_bytes(model.weights)
        space = session.get_one(tables.SearchSpace, chunk.search_space_id)
        stored = load_supercell(session, space.supercell_id)
        candidate_ids, sites, codes = _read_candidates(session, chunk.id, chunk.n_defects)
        if len(candidate_ids):
            mean, std = score_block(ensemble, stored.supercell, sites, codes, device=device)
            columns: dict[str, NDArray[Any]] = {
                "candidate_id": candidate_ids,
                "model_id": np.full(len(candidate_ids), model.id, np.int32),
            }
            for p, name in enumerate(ensemble.properties):
                columns[f"{name}_mean"] = mean[:, p].astype(np.float32)
                columns[f"{name}_std"] = std[:, p].astype(np.float32)
            copy_rows(session, "predictions", columns)
        finish(session, tables.ScoringChunk, unit_id, owner, n_predictions=len(candidate_ids))


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, MB; the system counts kB, on macOS bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _limits_row(space: SearchSpace) -> dict[str, Any]:
    """The limits as columns; limits on numbers that forbid nothing are null, as if they were not given."""
    largest = space.sizes[-1]
    max_counts = [min(n, largest) for n in space.max_counts]
    are_limited = space.composition is None and (any(space.min_counts) or min(max_counts) < largest)
    return {
        "min_counts": list(space.min_counts) if are_limited else None,
        "max_counts": max_counts if are_limited else None,
        "min_separation": space.limits.min_separation,
        "max_separation": space.limits.max_separation,
    }


def _names(codes: Iterable[int]) -> str:
    return ", ".join(DefectType.from_code(code).name for code in sorted(codes))


def _add_chunks(session: Session, search_space_id: int, chunks: Sequence[Chunk]) -> None:
    session.execute(
        insert(tables.Chunk),
        [
            {
                "search_space_id": search_space_id,
                "number": number,
                "n_defects": chunk.n_defects,
                "prefix_sites": list(chunk.prefix.sites),
                "prefix_defect_types": list(chunk.prefix.defect_types),
            }
            for number, chunk in enumerate(chunks)
        ],
    )


def _units_of(search_space_id: int, model_id: int | None) -> tuple[ColumnElement[bool], ...]:
    """Conditions on the chunks of a search space, or on the scoring of them by a model."""
    if model_id is None:
        return (tables.Chunk.search_space_id == search_space_id,)
    chunks = select(tables.Chunk.id).where(tables.Chunk.search_space_id == search_space_id)
    return (tables.ScoringChunk.model_id == model_id, tables.ScoringChunk.chunk_id.in_(chunks))


def _store_candidates(session: Session, chunk: tables.Chunk, block: Block) -> int:
    """Append a block of candidates by COPY."""
    sorted_types = np.sort(block.defect_types, axis=1)
    distinct, inverse = np.unique(sorted_types, axis=0, return_inverse=True)
    counts = [Counter(row) for row in distinct.tolist()]
    ids = add_compositions(session, counts)
    composition = np.array(
        [ids[Configuration(tuple(range(len(row))), tuple(row)).composition] for row in distinct.tolist()]
    )
    return copy_rows(
        session,
        "candidates",
        {
            "search_space_id": np.full(len(block), chunk.search_space_id, np.int32),
            "chunk_id": np.full(len(block), chunk.id, np.int32),
            "composition_id": composition[inverse.ravel()].astype(np.int32),
            "multiplicity": block.multiplicity,
            "sites": block.sites,
            "defect_types": block.defect_types,
        },
    )


def _read_candidates(
    session: Session, chunk_id: int, n_defects: int
) -> tuple[NDArray[np.int64], NDArray[np.int16], NDArray[np.int16]]:
    """Ids (n,), sites and codes (n, n_defects) of a chunk's candidates in the order of their ids."""
    rows = session.execute(
        select(tables.Candidate.id, tables.Candidate.sites, tables.Candidate.defect_types)
        .where(tables.Candidate.chunk_id == chunk_id)
        .order_by(tables.Candidate.id)
    ).all()
    ids = np.array([row.id for row in rows], np.int64)
    sites = np.array([row.sites for row in rows], np.int16).reshape(-1, n_defects)
    codes = np.array([row.defect_types for row in rows], np.int16).reshape(-1, n_defects)
    return ids, sites, codes


def _check_space(session: Session, search_space_id: int) -> None:
    """When the last chunk of a search space is done, compare the sum of the counts with the exact one."""
    # The row lock makes the last two chunks see each other. It must be NO KEY UPDATE: the foreign keys of the
    # candidates that both have stored hold KEY SHARE on this row, and against UPDATE the two would dead-lock.
    space = session.get_one(tables.SearchSpace, search_space_id, with_for_update={"key_share": True})
    total, done, n_chunks = session.execute(
        select(
            func.sum(tables.Chunk.n_candidates),
            func.count().filter(tables.Chunk.state == "finished"),
            func.count(),
        ).where(tables.Chunk.search_space_id == search_space_id)
    ).one()
    if done == n_chunks:
        check_count(int(total or 0), space.expected)
        check_count(queries.count_candidates(session, search_space_id), space.expected)
