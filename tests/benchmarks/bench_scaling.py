"""How many workers one database carries: processes that do everything a worker does but the network, which sleeps.

Server and workers share the cores of this machine, so that the rate without any sleep is a lower bound; the seconds
of the server's processes per chunk and per million rows are what a server's cores can be counted with. See
docs/scaling.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg
import pytest
from sqlalchemy import Engine, func, insert, select, text

from screening.database import campaigns as rows
from screening.database import leases, tables
from screening.database.design_query import DesignQuery
from screening.database.session import session_scope
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.pipeline import campaigns, searches
from screening.pipeline.dispatch import CONDITIONS, announce
from screening.pipeline.hosts import add_supercell
from screening.services import addresses
from screening.services.postgresql import data_directory, postmaster
from screening.services.state import read_state
from screening.settings import Settings
from tests.benchmarks.conftest import Measure, PrintLine
from tests.synthetic_results import add_results, mos2

ROOT = Path(__file__).parent.parent.parent
TYPES = parse_defect_types("v_S,Se_S,v_Mo,W_Mo")
BEST = DesignQuery(host="MoS2", limit=1000)
CHUNK_ROWS = 400  # of the 1,170,765 candidates of four defects: a few thousand chunks
LIMIT_S = 15.0
WEIGHTS_BYTES = 1_000_000
SAMPLE_S = 0.05


@dataclass
class Load:
    """What a server did in a time: seconds of its processes, bytes of its log, what its sessions waited for.

    Attributes:
        waits: sessions that waited, by what for, as the mean over the samples; `Lock` is one session for another.
    """

    cpu_s: float = 0.0
    wal_bytes: int = 0
    connections: int = 0
    waits: dict[str, float] = field(default_factory=dict)


@pytest.mark.parametrize("s_per_chunk", [0.0, 0.05, 0.5, 3.0])
@pytest.mark.parametrize("n_workers", [1, 4, 16, 64])
def bench_workers_on_one_database(
    print_line: PrintLine, services: Settings, clean_engine: Engine, n_workers: int, s_per_chunk: float
) -> None:
    """Chunks per second against what the workers could do, the wait for a claim, locks, connections, the server."""
    space_id, campaign_id = plan(clean_engine, 4, CHUNK_ROWS, BEST)
    with watched(services, clean_engine) as load:
        done = run(clean_engine, space_id, n_workers, s_per_candidate=s_per_chunk / CHUNK_ROWS)
    chunks = done["chunks"]
    assert chunks == chunks_done_once(clean_engine, campaign_id)
    claims, rest = np.array(done["claims_s"]), np.array(done["rest_s"])
    possible = n_workers * chunks / (done["network_s"] or float("nan"))
    line: dict[str, object] = {
        "figure": "workers on one database", "workers": n_workers, "s_per_chunk": s_per_chunk, "chunks": chunks,
        "chunks_per_s": round(chunks / done["seconds"], 2),
        "of_possible": round(chunks / done["seconds"] / possible, 3) if s_per_chunk else None,
        "claim_ms": milliseconds(claims), "chunk_without_network_ms": milliseconds(rest),
        "worker_cpu_ms_per_chunk": round(1000 * done["cpu_s"] / chunks, 2), **server_line(load, chunks),
    }  # fmt: skip
    print_line(line)


@pytest.mark.parametrize("n_workers", [1, 2, 4, 8])
def bench_rows_into_one_campaign(
    print_line: PrintLine, services: Settings, clean_engine: Engine, n_workers: int
) -> None:
    """Storage `all` with chunks of the real size and no network at all: the rows that a server takes."""
    space_id, campaign_id = plan(clean_engine, 5, 300_000, None)
    with watched(services, clean_engine) as load:
        done = run(clean_engine, space_id, n_workers, s_per_candidate=0.0)
    with session_scope(clean_engine) as session:
        stored = session.scalar(select(func.count()).select_from(tables.Candidate))
        size = rows.partition_bytes(session, campaign_id)
    assert stored == done["candidates"]
    assert done["chunks"] == chunks_done_once(clean_engine, campaign_id)
    millions = done["candidates"] / 1e6
    line: dict[str, object] = {
        "figure": "rows into one campaign", "workers": n_workers, "rows": stored,
        "rows_per_s": round(done["candidates"] / done["seconds"]),
        "bytes_per_row": round(size / done["candidates"], 1),
        "wal_bytes_per_row": round(load.wal_bytes / done["candidates"], 1),
        "server_s_per_million": round(load.cpu_s / millions, 3),
        "workers_s_per_million": round(done["cpu_s"] / millions, 3), **server_line(load, done["chunks"]),
    }  # fmt: skip
    print_line(line)


@pytest.mark.parametrize("n_done", [0, 5_000])
@pytest.mark.parametrize("n_waiting", [100, 1_000, 10_000])
def bench_a_claim_among_many_chunks(measure: Measure, clean_engine: Engine, n_waiting: int, n_done: int) -> None:
    """A claim, and the question whether a campaign is over, with more chunks than any campaign has."""
    _, campaign_id = plan(clean_engine, 3, 100_000, BEST)
    multiply_chunks(clean_engine, campaign_id, n_waiting + n_done)
    if n_done:
        finish_oldest(clean_engine, n_done)

    def claim() -> None:
        with session_scope(clean_engine) as session:
            for _ in range(20):
                assert leases.claim_next(session, tables.Chunk, "here:1:a", *CONDITIONS["score"]) is not None
            session.rollback()

    def ask() -> None:
        with session_scope(clean_engine) as session:
            for _ in range(20):
                assert not rows.campaigns_over(session)

    what = f"{n_waiting} chunks wait, {n_done} are done"
    measure(what, 20, claim=claim, is_a_campaign_over=ask)


def bench_announcements(measure: Measure, services: Settings) -> None:
    """Messages that there is work, in a Redis database where nobody reads them."""
    redis_url = addresses(services).redis_url.removesuffix("/0") + "/2"

    def send() -> None:
        for _ in range(10):
            announce(redis_url, "score")

    measure("announcements", 10, ours=send)


def plan(engine: Engine, n_defects: int, chunk_rows: int, query: DesignQuery | None) -> tuple[int, int]:
    """Start a campaign over 8x8 MoS2 with a row that says that it is a trained model; its search space and its id."""
    with session_scope(engine) as session:
        add_results(session, 60)
        level_id = session.scalars(select(tables.LevelOfTheory.id)).one()
        session.execute(text("UPDATE calculation_results SET homo = -1, lumo = 1, total_mag = 0"))
        session.execute(text("UPDATE calculation_results SET homo_lumo_gap_majority = 1, homo_lumo_gap_minority = 1"))
        model = tables.TrainedModel(
            name="sleeper", level_id=level_id, properties=list(tables.PROPERTY_COMMENTS), settings={}, seed=0,
            state="finished", weights=os.urandom(WEIGHTS_BYTES),
        )  # fmt: skip
        session.add(model)
        session.flush()
        results = session.scalars(select(tables.CalculationResult.id)).all()
        session.execute(
            insert(tables.ModelTrainingResult),
            [{"model_id": model.id, "result_id": result, "role": "train"} for result in results],
        )
        stored = add_supercell(session, mos2("8x8"))
        space = SearchSpace(stored.supercell, TYPES, n_defects, min_defects=n_defects)
        space_id = searches.add_search_space(session, stored, space)
        request = campaigns.CampaignRequest(model.id, query)
        campaign = campaigns.plan(session, space_id, request, chunk_rows=chunk_rows)
        campaigns.start(session, campaign)
        session.flush()
        return space_id, campaign.id


def run(engine: Engine, space_id: int, n_workers: int, *, s_per_candidate: float) -> dict[str, Any]:
    """Let workers scan until nothing is left or the time is over; what they did, see scaling_workers."""
    job = {
        "database_url": engine.url.render_as_string(hide_password=False), "search_space_id": space_id,
        "n_workers": n_workers, "s_per_candidate": s_per_candidate, "limit_s": LIMIT_S,
    }  # fmt: skip
    finished = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.scaling_workers"],
        cwd=ROOT, input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True, timeout=600,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(finished.stdout)
    return answer


def chunks_done_once(engine: Engine, campaign_id: int) -> int:
    """The number of finished chunks, each of which was begun once; a campaign without others passed the trigger."""
    with session_scope(engine) as session:
        chunk = tables.Chunk
        found = session.execute(select(chunk.state, chunk.attempts).where(chunk.campaign_id == campaign_id)).all()
        states = Counter(state for state, _ in found)
        assert {attempts for state, attempts in found if state == "finished"} <= {1}
        assert set(states) <= {"finished", "waiting"}
        campaign = session.get_one(tables.Campaign, campaign_id)
        assert (campaign.state == "finished") == (states["waiting"] == 0)
        return states["finished"]


@contextmanager
def watched(services: Settings, engine: Engine) -> Iterator[Load]:
    """What the server does while the block runs."""
    load, stop = Load(), threading.Event()
    data = data_directory(services.home, read_state(services.home))
    pid = postmaster(data)
    assert pid is not None
    server = psutil.Process(pid)
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        own = connection.info.backend_pid
        before, begin = server_seconds(server, but=own), wal_position(connection)
        sampler = threading.Thread(target=sample, args=(connection, load, stop))
        sampler.start()
        try:
            yield load
        finally:
            stop.set()
            sampler.join()
        load.cpu_s = server_seconds(server, but=own) - before
        load.wal_bytes = wal_position(connection) - begin


def sample(connection: psycopg.Connection, load: Load, stop: threading.Event) -> None:
    """Look at the sessions of this database, again and again."""
    query = (
        "SELECT coalesce(CASE WHEN state = 'active' THEN wait_event_type || ' ' || wait_event END, ''), count(*) "
        "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() GROUP BY 1"
    )
    waits: Counter[str] = Counter()
    n_samples = 0
    while not stop.wait(SAMPLE_S):
        found: dict[str, int] = dict(connection.execute(query).fetchall())
        load.connections = max(load.connections, sum(found.values()))
        waits.update(found)
        n_samples += 1
    load.waits = {
        name: n / n_samples for name, n in waits.most_common() if name and not name.startswith(("Client", "Timeout"))
    }


def server_seconds(server: psutil.Process, *, but: int) -> float:
    """Seconds of CPU of a server's processes but one, those that have ended included."""
    times = server.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in server.children():
        if child.pid == but:
            continue
        try:
            found = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += found.user + found.system
    return float(total)


def wal_position(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT pg_current_wal_lsn() - '0/0'").fetchone()
    assert row is not None
    return int(row[0])


def server_line(load: Load, chunks: int) -> dict[str, object]:
    return {
        "server_ms_per_chunk": round(1000 * load.cpu_s / chunks, 2), "connections": load.connections,
        "waiting_for_locks": round(sum(n for name, n in load.waits.items() if name.startswith("Lock ")), 3),
        "waits": {name: round(n, 2) for name, n in list(load.waits.items())[:3]},
    }  # fmt: skip


def milliseconds(seconds: np.ndarray[Any, Any]) -> dict[str, float]:
    return {f"p{p}": round(1000 * float(np.percentile(seconds, p)), 1) for p in (50, 99)}


def multiply_chunks(engine: Engine, campaign_id: int, n: int) -> None:
    """Copies of a campaign's first chunk, so that it has n of them."""
    with session_scope(engine) as session:
        session.execute(text("DELETE FROM chunks WHERE number > 0"))
        session.execute(
            text(
                "INSERT INTO chunks (campaign_id, number, scores, n_defects, first_sites, first_defect_types, "
                "last_sites, last_defect_types, state) SELECT campaign_id, generate_series(1, :n - 1), scores, "
                "n_defects, first_sites, first_defect_types, last_sites, last_defect_types, 'waiting' FROM chunks "
                "WHERE campaign_id = :campaign_id"
            ),
            {"n": n, "campaign_id": campaign_id},
        )


def finish_oldest(engine: Engine, n: int) -> None:
    """Bring the oldest chunks through their states one after another, as workers leave the table and its indexes."""
    for _ in range(n // 100):
        with session_scope(engine) as session:
            for _ in range(100):
                owner = leases.new_owner()
                chunk_id = leases.claim_next(session, tables.Chunk, owner, *CONDITIONS["score"])
                assert chunk_id is not None
                leases.finish(
                    session, tables.Chunk, chunk_id, owner,
                    n_candidates=1, n_configurations=1, checksum=0, worker="here:1", worked_s=1.0,
                )  # fmt: skip
