"""Campaigns in the database: their partitions, the states of their chunks, the best rows, and how far they are.

The functions and views that this calls are made by migrations 0003 and 0004. Nothing here commits.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from psycopg.errors import LockNotAvailable
from sqlalchemy import CursorResult, Float, bindparam, cast, delete, exists, func, select, text, tuple_, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from screening.database.branches import load_branch
from screening.database.design_query import DesignQuery
from screening.database.query_sql import sort_key
from screening.database.tables import Campaign, Candidate, Chunk

_LONGEST_LOCK_MS = 500  # that everybody may have to wait for a partition to be dropped
IDS_PER_CHUNK = 10**7  # ids of candidates of a chunk begin at its number times this


@dataclass(frozen=True)
class CampaignProgress:
    """How far a campaign is: a row of the view `campaign_progress`.

    Attributes:
        candidates: by Burnside's lemma.
        candidates_done: in finished chunks, and those that running chunks have been through.
        candidates_matching: of the finished chunks, those that satisfy the query; None without one.
        per_second: candidates, of the workers that work on it now; None if nobody does.
        error: why it is incomplete, or of the first chunk that failed.
        production: name of the model that is in production of the line of its model; None without a model.
        is_stale: whether that is another one than the model that scores it.
    """

    campaign_id: int
    campaign: str
    state: str
    storage: str
    model: str | None
    search_space_id: int
    candidates: int
    candidates_done: int
    candidates_left: int
    candidates_matching: int | None
    chunks: int
    chunks_done: int
    chunks_running: int
    chunks_failed: int
    workers: int
    per_second: float | None
    seconds_left: float | None
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None
    production: str | None
    is_stale: bool

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state not in ("running", "planned")


@dataclass(frozen=True)
class WorkerProgress:
    """What a worker process has done for a campaign: a row of the view `campaign_workers`.

    Attributes:
        per_second: candidates, in the last quarter of an hour; None if it has finished nothing since.
        heartbeat: when it last said that it is alive.
        peak_memory_mb: its largest resident size, MB.
    """

    worker: str
    chunks_done: int
    candidates: int
    per_second: float | None
    is_working: bool
    heartbeat: datetime | None
    peak_memory_mb: float | None


def partition_name(campaign_id: int) -> str:
    """Name of the partition of `candidates` that holds a campaign's rows."""
    return f"candidates_{campaign_id}"


def add_partition(session: Session, campaign_id: int) -> None:
    """Make the partition of a campaign."""
    session.execute(select(func.add_campaign_partition(campaign_id)))


def empty_partition(session: Session, campaign_id: int) -> None:
    """Delete all rows of a campaign and give their disk back; no other campaign has to wait."""
    session.execute(text(f"TRUNCATE {partition_name(campaign_id)}"))


def drop_partition(session: Session, campaign_id: int) -> None:
    """Drop the partition of a campaign; all of `candidates` is locked for it."""
    session.execute(select(func.drop_campaign_partition(campaign_id)))


def drop_orphans(session: Session) -> int:
    """Drop the partitions whose campaigns are deleted, as far as that needs no waiting; their number.

    To drop a partition locks all of `candidates`, so that one that is written would be waited for by everybody.
    """
    orphans = session.scalars(
        text(
            "SELECT campaign_id FROM ("
            "SELECT substring(inhrelid::regclass::text FROM '[0-9]+$')::integer AS campaign_id FROM pg_inherits "
            "WHERE inhparent = 'candidates'::regclass) AS partitions "
            "WHERE campaign_id NOT IN (SELECT id FROM campaigns) ORDER BY campaign_id"
        )
    ).all()
    n_dropped = 0
    for campaign_id in orphans:
        try:
            with session.begin_nested():
                session.execute(text(f"SET LOCAL lock_timeout = '{_LONGEST_LOCK_MS}ms'"))
                drop_partition(session, campaign_id)
            n_dropped += 1
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
            break
    return n_dropped


def index_partition(session: Session, campaign_id: int) -> None:
    """Make the indexes of a campaign's partition."""
    session.execute(select(func.index_campaign_partition(campaign_id)))


def end_strays(session: Session, campaign_id: int) -> int:
    """End the transactions that write into a campaign's partition, of which no chunk may run; their number.

    They are of processes that hung, lost their chunks and do not know it yet; while they last nobody can make an
    index on the partition, or drop it.
    """
    ended = session.execute(
        text(
            "SELECT count(*) FROM (SELECT DISTINCT pid FROM pg_locks WHERE relation = to_regclass(:partition) "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND mode = 'RowExclusiveLock' AND granted AND pid <> pg_backend_pid()) AS strays "
            "WHERE pg_terminate_backend(pid)"
        ),
        {"partition": partition_name(campaign_id)},
    )
    return int(ended.scalar_one())


def partition_bytes(session: Session, campaign_id: int) -> int:
    """Bytes on disk of a campaign's rows with their indexes."""
    size = func.pg_total_relation_size(func.to_regclass(partition_name(campaign_id)))
    return int(session.execute(select(size)).scalar_one())


def progress_of(session: Session, campaign_id: int | None = None) -> list[CampaignProgress]:
    """How far a campaign is, or all of them, oldest first."""
    statement = "SELECT * FROM campaign_progress"
    if campaign_id is not None:
        statement += " WHERE campaign_id = :campaign_id"
    rows = session.execute(text(f"{statement} ORDER BY campaign_id"), {"campaign_id": campaign_id}).mappings()
    return [CampaignProgress(**row) for row in rows]


def workers_of(session: Session, campaign_id: int) -> list[WorkerProgress]:
    """Who has worked on a campaign, by name."""
    rows = session.execute(
        text(
            "SELECT worker, chunks_done, candidates, per_second, is_working, heartbeat, peak_memory_mb "
            "FROM campaign_workers WHERE campaign_id = :campaign_id ORDER BY worker"
        ),
        {"campaign_id": campaign_id},
    ).mappings()
    return [WorkerProgress(**row) for row in rows]


def move_chunks(session: Session, campaign_id: int, states: Collection[str], state: str) -> int:
    """Bring the chunks in some states (never `finished`) to `planned` or `waiting`, as if never begun; their number."""
    result = session.execute(
        update(Chunk)
        .where(Chunk.campaign_id == campaign_id, Chunk.state.in_(states))
        .values(
            state=state, attempts=0, error=None, lease_owner=None, lease_until=None, started_at=None,
            finished_at=None, heartbeat=None, rows_done=0,
        )
    )  # fmt: skip
    assert isinstance(result, CursorResult)
    return result.rowcount


def campaigns_over(session: Session) -> dict[int, bool]:
    """Running campaigns of which no chunk waits or runs, and whether a model scores them."""
    open_chunk = exists().where(Chunk.campaign_id == Campaign.id, Chunk.state.in_(("waiting", "running")))
    found = select(Campaign.id, Campaign.model_id.is_not(None)).where(Campaign.state == "running", ~open_chunk)
    return dict(session.execute(found.order_by(Campaign.id)).all())


def trim(session: Session, campaign: Campaign, *, slack: int = 0) -> float | None:
    """Delete the rows that are not among the best of a campaign's query; the campaign's row must be locked.

    Args:
        slack: delete nothing while no more than so many rows are too many.

    Returns:
        The sort key of the last row that belongs to the best; None where all rows do.
    """
    query = DesignQuery.model_validate(campaign.query)
    of_campaign = Candidate.campaign_id == campaign.id
    stored = session.execute(select(func.count()).where(of_campaign)).scalar_one()
    if stored <= query.limit + slack:
        return campaign.cutoff
    key = sort_key(query, load_branch(session, campaign, query))
    last_key, last_id = session.execute(
        select(key, Candidate.id).where(of_campaign).order_by(key, Candidate.id).offset(query.limit - 1).limit(1)
    ).one()
    beyond = tuple_(key, Candidate.id) > tuple_(cast(bindparam("last_key", last_key), Float), last_id)
    session.execute(delete(Candidate).where(of_campaign, beyond))
    return float(last_key)
