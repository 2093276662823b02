"""Scanning a chunk: enumerate, score and keep its candidates in one stream, and count them exactly.

A block of configurations goes from the enumeration to the network to the database without an object per structure.
The rows that are kept, the counters and the chunk's new state are committed in one transaction: whatever dies, a
chunk is done exactly once or not at all. Memory is that of a block, whatever the size of the campaign; with storage
`best`, that of twice the rows that the query keeps.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import campaigns as rows
from screening.database import queries, tables
from screening.database.branches import load_branch
from screening.database.bulk_copy import Column, copy_rows
from screening.database.design_query import CONCENTRATION, DesignQuery
from screening.database.leases import LEASE_S, finish, lease_kept, sign, worker_of
from screening.database.query_terms import Branch
from screening.database.session import end_when_idle, session_scope
from screening.defects.checksum import add_checksums, checksum
from screening.defects.defect_types import Configuration, composition_label
from screening.defects.enumeration import Block, Chunk, SearchSpace, enumerate_chunk
from screening.errors import LeaseLostError
from screening.pipeline.block_queries import QueryBlock, distances_of, matching, probabilities, sort_keys
from screening.pipeline.hosts import StoredSupercell, add_compositions
from screening.pipeline.searches import load_search_space
from screening.pipeline.spreads import store_correlations, store_multiples

_DOUBT = 1e-12  # of probabilities: the database has another erf, and rounds to six digits before it ranks

Scores = dict[str, NDArray[np.float32]]  # by column: <property>_mean and <property>_std, (n,) each
Score = Callable[[Block], Scores]


@dataclass(frozen=True, eq=False)
class _Scan:
    """What a worker needs to know of a chunk."""

    campaign_id: int
    number: int
    stored: StoredSupercell
    space: SearchSpace
    chunk: Chunk
    score: Score
    query: DesignQuery | None
    branch: Branch | None
    cutoff: float | None
    bins: dict[str, NDArray[np.float64]]


@dataclass(eq=False)
class _Tally:
    """Exact counters of the part of a chunk that has been scanned.

    Attributes:
        matching: by id of the composition, like `candidates`.
        histograms: by property, (n_bins + 2,).
    """

    n_candidates: int = 0
    n_configurations: int = 0
    checksum: int = 0
    candidates: Counter[int] = field(default_factory=Counter)
    matching: Counter[int] = field(default_factory=Counter)
    histograms: dict[str, NDArray[np.int64]] = field(default_factory=dict)


def scan_unit(engine: Engine, chunk_id: int, owner: str, *, device: str) -> None:
    """Scan a chunk that `owner` holds; one transaction of its own for all that it writes.

    Raises:
        LeaseLostError: another worker took the chunk over, or its campaign was cancelled; nothing was written.
        InputError: the model has not seen the host or a defect type.
    """
    started = time.perf_counter()
    with session_scope(engine) as session:
        scan = _load(session, chunk_id, device=device)
    tally = _Tally()

    def end(session: Session) -> None:
        finish(
            session, tables.Chunk, chunk_id, owner,
            n_candidates=tally.n_candidates, n_configurations=tally.n_configurations, checksum=tally.checksum,
            n_matching=None if scan.query is None else tally.matching.total(), rows_done=tally.n_candidates,
            worker=worker_of(owner), worked_s=time.perf_counter() - started, peak_memory_mb=peak_memory_mb(),
        )  # fmt: skip
        # after the end of the lease was found: whoever took the chunk over may have stored the same counters
        _store_tally(session, chunk_id, tally, has_query=scan.query is not None)

    def tell() -> dict[str, Any]:
        return {"rows_done": tally.n_candidates, "heartbeat": func.clock_timestamp()}

    with lease_kept(engine, tables.Chunk, chunk_id, owner, tell=tell) as lost:
        stream = _Stream(engine, scan, tally, lost)
        if scan.query is None:
            with session_scope(engine) as session:
                sign(session, owner)
                stream.run(partial(_store_all, session, scan.campaign_id))
                end(session)
        else:
            assert scan.branch is not None
            best = _Best(scan.query, scan.branch, scan.cutoff)
            stream.run(best.add)
            with session_scope(engine) as session:
                sign(session, owner)
                best.store(session, scan.campaign_id)
                end(session)
    if scan.query is not None:
        _trim(engine, scan.campaign_id, slack=scan.query.limit)


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, MB; the system counts kB, on macOS bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True, eq=False)
class _Kept:
    """Rows as they are stored, without their campaign.

    Attributes:
        distances: (n,) float32 by column: `closest` and `farthest`, angstrom; none of single defects.
    """

    ids: NDArray[np.int64]
    arrangement: NDArray[np.int32]
    multiplicity: NDArray[np.int32]
    sites: NDArray[np.int16]
    distances: dict[str, NDArray[np.float32]]
    scores: Scores

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, chosen: NDArray[Any]) -> _Kept:
        distances, scores = (
            {name: column[chosen] for name, column in columns.items()} for columns in (self.distances, self.scores)
        )
        return _Kept(
            self.ids[chosen], self.arrangement[chosen], self.multiplicity[chosen], self.sites[chosen], distances, scores
        )


class _Stream:
    """A chunk from its enumeration to the counters, block by block."""

    def __init__(self, engine: Engine, scan: _Scan, tally: _Tally, lost: threading.Event) -> None:
        self._scan, self._tally, self._lost = scan, tally, lost
        self._arrangements = _Arrangements(engine, scan.space)
        self._pair_distances = scan.stored.supercell.pair_distances.astype(np.float32)

    def run(self, keep: Callable[[_Kept, NDArray[np.int16]], NDArray[np.bool_]]) -> None:
        """Scan the chunk; `keep` takes the rows and defect types of each block and says which satisfy the query.

        Raises:
            LeaseLostError: another worker took the chunk over, or its campaign was cancelled.
        """
        scan, tally = self._scan, self._tally
        for block in enumerate_chunk(scan.space, scan.stored.symmetry, scan.chunk):
            if self._lost.is_set():
                raise LeaseLostError("the lease ran out, or the campaign was cancelled")
            scores = scan.score(block)
            arrangement, composition = self._arrangements.of(block)
            ids = scan.number * rows.IDS_PER_CHUNK + tally.n_candidates + np.arange(len(block))
            distances = distances_of(block.sites, self._pair_distances)
            kept = _Kept(ids, arrangement, block.multiplicity, block.sites, distances, scores)
            matches = keep(kept, block.defect_types)
            _count(tally, scan, block, composition, matches, scores)
        assert tally.n_candidates <= rows.IDS_PER_CHUNK, "a chunk has more candidates than ids"


def _store_all(session: Session, campaign_id: int, block: _Kept, _defect_types: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Append every row; without a query all satisfy it."""
    _copy(session, campaign_id, block)
    return np.ones(len(block), np.bool_)


class _Best:
    """The rows of a chunk that a design query ranks first, as many as it keeps of all; blocks come in order of ids."""

    def __init__(self, query: DesignQuery, branch: Branch, cutoff: float | None) -> None:
        self._query, self._branch = query, branch
        self._below = np.inf if cutoff is None else float(np.nextafter(cutoff, np.inf))  # keys of rows to come
        self._kept: list[tuple[NDArray[np.float64], NDArray[np.float64], _Kept]] = []  # smallest and largest keys, rows

    def add(self, block: _Kept, defect_types: NDArray[np.int16]) -> NDArray[np.bool_]:
        """Keep what may be among the best; (n,) whether each row satisfies the query."""
        query, branch = self._query, self._branch
        asked = QueryBlock(defect_types, block.multiplicity, block.scores, **block.distances)
        probability = probabilities(query, branch.spreads, block.scores, asked.n_defects)
        matches = matching(query, branch, asked, probability)
        smallest, largest = (sort_keys(query, branch, asked, probability + x) for x in (_DOUBT, -_DOUBT))
        if query.sort == CONCENTRATION:  # the logarithm is the database's too
            smallest, largest = smallest - _DOUBT, largest + _DOUBT
        chosen = np.flatnonzero(matches & (smallest < self._below))
        if len(chosen):
            self._kept.append((smallest[chosen], largest[chosen], block[chosen]))
        if sum(len(kept) for _, _, kept in self._kept) > 2 * self._query.limit:
            self._shorten()
        return matches

    def store(self, session: Session, campaign_id: int) -> None:
        """Append the best rows of the chunk."""
        self._shorten()
        for _, _, kept in self._kept:
            _copy(session, campaign_id, kept)

    def _shorten(self) -> None:
        """Drop what has as many better rows as the query keeps: smaller keys, or the same and smaller ids."""
        limit = self._query.limit
        if sum(len(kept) for _, _, kept in self._kept) <= limit:
            return
        largest = np.concatenate([keys for _, keys, _ in self._kept])
        last = np.argsort(largest, kind="stable")[limit - 1]  # rows are in order of ids
        below, last_id = largest[last], np.concatenate([kept.ids for _, _, kept in self._kept])[last]
        self._below = min(self._below, float(below))
        parts = []
        for keys, largest, kept in self._kept:
            chosen = np.flatnonzero((keys < below) | ((keys == below) & (kept.ids <= last_id)))
            if len(chosen):
                parts.append((keys[chosen], largest[chosen], kept[chosen]))
        self._kept = parts


class _Arrangements:
    """Ids of arrangements of defect types and of their compositions, added in transactions of their own.

    Other chunks need the same rows at the same time: written in a chunk's transaction, they would make one worker
    wait for the other.
    """

    def __init__(self, engine: Engine, space: SearchSpace) -> None:
        self._engine = engine
        self._codes = np.array(sorted(t.code for t in space.defect_types), np.int16)
        self._ids: dict[tuple[int, ...], tuple[int, int]] = {}

    def of(self, block: Block) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Ids of the arrangement and of the composition of each row, (n,) int32 each."""
        distinct, inverse = self._distinct(block.defect_types)
        found = [tuple(row) for row in distinct.tolist()]
        unknown = [types for types in found if types not in self._ids]
        if unknown:
            self._add(unknown)
        ids = np.array([self._ids[types] for types in found], np.int32)
        return ids[inverse, 0], ids[inverse, 1]

    def _distinct(self, defect_types: NDArray[np.int16]) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
        """The distinct rows, and which of them each row is."""
        n_types, k = len(self._codes), defect_types.shape[1]
        if n_types**k >= 2**62:
            distinct, inverse = np.unique(defect_types, axis=0, return_inverse=True)
            return distinct, inverse.ravel()
        number = np.zeros(len(defect_types), np.int64)
        for column in np.searchsorted(self._codes, defect_types).T:
            number = number * n_types + column
        _, first, inverse = np.unique(number, return_index=True, return_inverse=True)
        return defect_types[first], inverse.ravel()

    def _add(self, unknown: list[tuple[int, ...]]) -> None:
        with session_scope(self._engine) as session:
            counts = [Counter(types) for types in unknown]
            compositions = add_compositions(session, counts)
            of_composition = {
                types: compositions[composition_label(count)] for types, count in zip(unknown, counts, strict=True)
            }
            ids = queries.arrangement_ids(session, of_composition)
        self._ids |= {types: (ids[types], of_composition[types]) for types in unknown}


def _load(session: Session, chunk_id: int, *, device: str) -> _Scan:
    """What the rows say of a chunk."""
    row = session.get_one(tables.Chunk, chunk_id)
    campaign = session.get_one(tables.Campaign, row.campaign_id)
    stored, space = load_search_space(session, campaign.search_space_id)
    query = None if campaign.query is None else DesignQuery.model_validate(campaign.query)
    first = Configuration(tuple(row.first_sites), tuple(row.first_defect_types))
    last = Configuration(tuple(row.last_sites), tuple(row.last_defect_types))
    bins = session.scalars(select(tables.CampaignBins).where(tables.CampaignBins.campaign_id == campaign.id))
    score = _scorer(session, campaign, stored, space, n_defects=row.n_defects, device=device)
    return _Scan(
        campaign.id, row.number, stored, space, Chunk(row.n_defects, first, last),
        score,
        query, None if query is None else load_branch(session, campaign, query), campaign.cutoff,
        {b.property: np.linspace(b.low, b.high, b.n_bins + 1) for b in bins},
    )  # fmt: skip


def _scorer(
    session: Session,
    campaign: tables.Campaign,
    stored: StoredSupercell,
    space: SearchSpace,
    *,
    n_defects: int,
    device: str,
) -> Score:
    """The model of a campaign as a function of blocks, once it has said how its errors spread.

    Without a model there is nothing to say of them.
    """
    if campaign.model_id is None:
        return _no_scores
    from screening.learning.artifacts import ensemble_from_bytes
    from screening.learning.scorer import score_block

    model = session.get_one(tables.TrainedModel, campaign.model_id)
    assert model.weights is not None
    ensemble = ensemble_from_bytes(model.weights)
    store_multiples(session, model.id, ensemble, stored.supercell.host.name, max(space.sizes))
    store_correlations(session, campaign.id, ensemble, stored, space, n_defects=n_defects, device=device)
    score = partial(score_block, ensemble, stored.supercell, device=device)

    def scores_of(block: Block) -> Scores:
        mean, std = score(block.sites, block.defect_types)
        found = {}
        for p, name in enumerate(ensemble.properties):
            found[f"{name}_mean"] = mean[:, p].astype(np.float32)
            found[f"{name}_std"] = std[:, p].astype(np.float32)
        return found

    return scores_of


def _no_scores(_block: Block) -> Scores:
    return {}


def _copy(session: Session, campaign_id: int, kept: _Kept) -> None:
    """Append rows to the partition of a campaign."""
    columns: dict[str, Column] = {
        "id": kept.ids,
        "campaign_id": np.full(len(kept), campaign_id, np.int32),
        "arrangement_id": kept.arrangement,
        "multiplicity": kept.multiplicity,
        **kept.scores,
        "sites": kept.sites,
        **kept.distances,
    }
    copy_rows(session, rows.partition_name(campaign_id), columns)


def _count(
    tally: _Tally, scan: _Scan, block: Block, composition: NDArray[np.int32], matches: NDArray[np.bool_], scores: Scores
) -> None:
    """Add a block to the counters."""
    tally.n_candidates += len(block)
    tally.n_configurations += int(block.multiplicity.sum(dtype=np.int64))
    tally.checksum = add_checksums(tally.checksum, checksum(block))
    for counter, chosen in ((tally.candidates, composition), (tally.matching, composition[matches])):
        ids, numbers = np.unique(chosen, return_counts=True)
        counter.update(dict(zip(ids.tolist(), numbers.tolist(), strict=True)))
    for name, edges in scan.bins.items():
        bins = np.searchsorted(edges, scores[f"{name}_mean"], side="right")
        counts = np.bincount(bins, minlength=len(edges) + 1)
        tally.histograms[name] = tally.histograms.get(name, 0) + counts


def _store_tally(session: Session, chunk_id: int, tally: _Tally, *, has_query: bool) -> None:
    """Store what was counted by composition and by bin."""
    if tally.candidates:
        session.execute(
            insert(tables.ChunkCount),
            [
                {
                    "chunk_id": chunk_id,
                    "composition_id": composition_id,
                    "n_candidates": n,
                    "n_matching": tally.matching[composition_id] if has_query else None,
                }
                for composition_id, n in tally.candidates.items()
            ],
        )
    if tally.histograms:
        session.execute(
            insert(tables.ChunkHistogram),
            [
                {"chunk_id": chunk_id, "property": name, "counts": counts.tolist()}
                for name, counts in tally.histograms.items()
            ],
        )


def _trim(engine: Engine, campaign_id: int, *, slack: int) -> None:
    """Delete rows that are no longer among the best, unless somebody is at it; a transaction of its own."""
    with session_scope(engine) as session:
        campaign = session.scalar(
            select(tables.Campaign)
            .where(tables.Campaign.id == campaign_id)
            .with_for_update(key_share=True, skip_locked=True)
        )
        if campaign is not None:
            end_when_idle(session, LEASE_S)
            campaign.cutoff = rows.trim(session, campaign, slack=slack)
