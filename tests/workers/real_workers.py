"""What tests do to real Celery workers: wait for them, hold them inside a unit of work, kill them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine, func, select, text

from screening import services
from screening.database import tables
from screening.database.campaigns import CampaignProgress, progress_of
from screening.database.session import session_scope
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.pipeline import campaigns, searches
from screening.pipeline.campaigns import CampaignRequest
from screening.pipeline.hosts import add_supercell
from screening.services import status
from screening.settings import Settings
from tests.synthetic_results import mos2

TYPES = "v_S,Se_S,v_Mo,W_Mo"
LONG_S = 120.0  # two busy cores; what is waited for takes seconds
STORED_ONLY = CampaignRequest()


def add_space(engine: Engine, *, label: str = "4x4", max_defects: int = 2) -> int:
    with session_scope(engine) as session:
        stored = add_supercell(session, mos2(label))
        space = SearchSpace(stored.supercell, parse_defect_types(TYPES), max_defects)
        return searches.add_search_space(session, stored, space)


def plan_campaign(
    engine: Engine, space_id: int, request: CampaignRequest = STORED_ONLY, *, chunk_rows: int | None = None
) -> int:
    with session_scope(engine) as session:
        return campaigns.plan(session, space_id, request, chunk_rows=chunk_rows).id


def command(engine: Engine, action: Callable[[Any, tables.Campaign], None], campaign_id: int) -> None:
    """Start, pause, cancel or resume a campaign."""
    with session_scope(engine) as session:
        action(session, session.get_one(tables.Campaign, campaign_id))


def run_campaign(
    engine: Engine, space_id: int, request: CampaignRequest = STORED_ONLY, *, chunk_rows: int | None = None
) -> int:
    campaign_id = plan_campaign(engine, space_id, request, chunk_rows=chunk_rows)
    command(engine, campaigns.start, campaign_id)
    return campaign_id


def progress(engine: Engine, campaign_id: int) -> CampaignProgress:
    with session_scope(engine) as session:
        (found,) = progress_of(session, campaign_id)
        return found


def multiplicities(engine: Engine, campaign_id: int) -> dict[int, int]:
    """Configurations that the candidates of a campaign stand for, by number of defects."""
    size = func.cardinality(tables.Candidate.sites)
    with session_scope(engine) as session:
        rows = session.execute(
            select(size, func.sum(tables.Candidate.multiplicity))
            .where(tables.Candidate.campaign_id == campaign_id)
            .group_by(size)
        )
        return dict(rows.all())


def wait_until(holds: Callable[[], bool], project: Settings, *, timeout_s: float = LONG_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            logs = "\n".join(services.log_tail(path) for path in sorted((project.home / "logs").glob("*.log")))
            pytest.fail(f"not within {timeout_s:.0f} s; {logs}")
        time.sleep(0.1)


def log(project: Settings, name: str) -> str:
    return (project.home / "logs" / f"{name}.log").read_text()


def leader(project: Settings, name: str) -> psutil.Process:
    """The process of a service or worker."""
    (process,) = [found for found in status(project) if found.name == name]
    assert process.pid is not None
    return psutil.Process(process.pid)


def kill(processes: list[psutil.Process]) -> None:
    """Kill with signal 9, all before any can tell another."""
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)


def kill_workers(project: Settings) -> None:
    """Kill with signal 9 every worker, its children, and beat."""
    leaders = [process.pid for process in status(project) if process.name.startswith(("worker", "beat"))]
    processes = [psutil.Process(pid) for pid in leaders if pid is not None]
    family = [child for process in processes for child in process.children(recursive=True)] + processes
    assert family
    kill(family)


@contextmanager
def stuck(engine: Engine, table: str) -> Iterator[None]:
    """Whoever writes into a table waits until the block ends."""
    with engine.connect() as connection, connection.begin():
        connection.execute(text(f"LOCK TABLE {table} IN SHARE MODE"))
        yield


def n_blocked(engine: Engine) -> int:
    """Transactions that wait for a lock, as those do that `stuck` holds."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with engine.connect() as connection:
        return int(connection.scalar(text(waiting)) or 0)


def n_ending(engine: Engine) -> int:
    """Transactions that store a chunk and wait for the table of chunks, to write that they are ready."""
    waiting = (
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE datname = current_database() "
        "AND NOT granted AND relation = 'chunks'::regclass AND application_name LIKE '%:%:%'"
    )
    with engine.connect() as connection:
        return int(connection.scalar(text(waiting)) or 0)
