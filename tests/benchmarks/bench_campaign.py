"""Campaigns end to end on real services and workers: enumerate, graphs, an ensemble of five, COPY or the best rows.

The model learns the built-in results for some seconds; its weights cost what any weights do. Storage `all` runs whole,
from the start to the last index, after a small campaign that makes the workers import and compile what they need.
Storage `best` for five defects runs for SCREENING_BENCH_S seconds (60 if not given; 0: the whole campaign).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, func, select

from screening.database import campaigns as rows
from screening.database.design_query import DesignQuery, Window
from screening.database.session import session_scope
from screening.database.tables import Campaign, Chunk, TrainedModel
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.defects.host import Supercell
from screening.pipeline import campaigns, searches
from screening.pipeline.campaigns import CampaignRequest
from screening.pipeline.dispatch import announce
from screening.pipeline.hosts import add_supercell
from screening.pipeline.models import TrainingRequest, submit_training
from screening.pipeline.results import import_builtin
from screening.services import addresses, start_workers, stop_workers
from screening.settings import Settings
from tests.benchmarks.conftest import PrintLine

TYPES = "v_S,Se_S,v_Mo,W_Mo"
N_MEMBERS = 5
SAMPLE_S = float(os.environ.get("SCREENING_BENCH_S", "60"))
BEST = DesignQuery(host="MoS2", supercell="8x8", windows=(Window(property="homo_lumo_gap_min", low=0.4),), limit=10_000)


@pytest.fixture
def project(clean_services: Settings, clean_engine: Engine) -> Iterator[Settings]:
    """Settings of a project with a model called `bench`."""
    with session_scope(clean_engine) as session:
        import_builtin(session)
        submit_training(
            session,
            TrainingRequest(
                level="GFN1-xTB single point", name="bench", hosts=("MoS2",),
                settings={"n_members": N_MEMBERS, "epochs": 20},
            ),
        )  # fmt: skip
    start_workers(clean_services, cpu=0, gpu=1)
    announce(addresses(clean_services).redis_url, "train")
    while state_of_model(clean_engine) != "finished":
        time.sleep(0.5)
    yield clean_services
    stop_workers(clean_services)


def state_of_model(engine: Engine) -> str:
    with session_scope(engine) as session:
        model = session.scalars(select(TrainedModel)).one()
        assert model.state != "failed", model.error
        return model.state


def plan(engine: Engine, n_defects: int, query: DesignQuery | None, *, repeat: int = 0) -> int:
    """A campaign over all configurations of so many defects; repeats differ in the query's limit, else are deleted."""
    with session_scope(engine) as session:
        stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "8x8"))
        space = SearchSpace(stored.supercell, parse_defect_types(TYPES), n_defects, min_defects=n_defects)
        model_id = session.scalars(select(TrainedModel.id)).one()
        if query is not None:
            query = query.model_copy(update={"limit": query.limit + repeat})
        search_space_id = searches.add_search_space(session, stored, space)
        return campaigns.plan(session, search_space_id, CampaignRequest(model_id, query)).id


def start(engine: Engine, project: Settings, campaign_id: int, n_workers: int) -> None:
    start_workers(project, cpu=0, gpu=n_workers)
    with session_scope(engine) as session:
        campaigns.start(session, session.get_one(Campaign, campaign_id))
    announce(addresses(project).redis_url, "score")


def wait_for(engine: Engine, campaign_id: int) -> rows.CampaignProgress:
    while True:
        with session_scope(engine) as session:
            (found,) = rows.progress_of(session, campaign_id)
        if found.is_over:
            assert found.state == "finished", found.error
            return found
        time.sleep(0.2)


def warm_up(engine: Engine, project: Settings, n_workers: int) -> None:
    """Let every worker score a chunk, so that it has imported and compiled what it needs."""
    campaign_id = plan(engine, 3, BEST, repeat=n_workers)
    start(engine, project, campaign_id, n_workers)
    wait_for(engine, campaign_id)
    other = plan(engine, 3, BEST, repeat=100 + n_workers)
    start(engine, project, other, n_workers)
    wait_for(engine, other)


def peak_memory_mb(engine: Engine, campaign_id: int) -> float:
    with session_scope(engine) as session:
        return max(worker.peak_memory_mb or 0.0 for worker in rows.workers_of(session, campaign_id))


def bench_storage_all(clean_engine: Engine, project: Settings, print_line: PrintLine) -> None:
    """1,170,765 candidates of four defects with all predictions, one worker against two."""
    rates = {}
    for n_workers in (1, 2):
        warm_up(clean_engine, project, n_workers)
        campaign_id = plan(clean_engine, 4, None)
        start(clean_engine, project, campaign_id, n_workers)
        found = wait_for(clean_engine, campaign_id)
        assert found.started_at is not None
        assert found.finished_at is not None
        seconds = (found.finished_at - found.started_at).total_seconds()
        rates[n_workers] = found.candidates_done / seconds
        with session_scope(clean_engine) as session:
            n_bytes = rows.partition_bytes(session, campaign_id)
        print_line(
            {
                "figure": f"campaign, storage all, 4 defects, {N_MEMBERS} members, {n_workers} workers",
                "items": found.candidates_done,
                "seconds": round(seconds, 2),
                "per_second": round(rates[n_workers], 1),
                "peak_memory_mb": round(peak_memory_mb(clean_engine, campaign_id), 1),
                "bytes_per_candidate": round(n_bytes / found.candidates_done, 1),
            }
        )
        with session_scope(clean_engine) as session:
            campaigns.remove(session, session.get_one(Campaign, campaign_id))
    print_line({"figure": "two workers against one, storage all", "ratio": round(rates[2] / rates[1], 2)})


def bench_storage_best(clean_engine: Engine, project: Settings, print_line: PrintLine) -> None:
    """86,498,034 candidates of five defects, of which the best 10,000 are kept; one worker against two."""
    rates = {}
    for n_workers in (1, 2):
        warm_up(clean_engine, project, n_workers)
        campaign_id = plan(clean_engine, 5, BEST, repeat=n_workers)
        start(clean_engine, project, campaign_id, n_workers)
        whole = n_workers == 2 and SAMPLE_S == 0
        n_done, seconds = sample(clean_engine, campaign_id, n_workers, None if whole else SAMPLE_S or 60.0)
        rates[n_workers] = n_done / seconds
        print_line(
            {
                "figure": f"campaign, storage best, 5 defects, {N_MEMBERS} members, {n_workers} workers",
                "items": n_done,
                "seconds": round(seconds, 2),
                "per_second": round(rates[n_workers], 1),
                "hours_for_all": round(86_498_034 / rates[n_workers] / 3600, 3),
                "peak_memory_mb": round(peak_memory_mb(clean_engine, campaign_id), 1),
            }
        )
        if not whole:
            with session_scope(clean_engine) as session:
                campaigns.cancel(session, session.get_one(Campaign, campaign_id))
    print_line({"figure": "two workers against one, storage best", "ratio": round(rates[2] / rates[1], 2)})


def sample(engine: Engine, campaign_id: int, n_workers: int, seconds: float | None) -> tuple[int, float]:
    """Candidates of the chunks that end after each worker's first one, and the seconds until the last of them."""
    of_campaign = (Chunk.campaign_id == campaign_id, Chunk.state == "finished")
    ended = select(
        func.count(),
        func.coalesce(func.extract("epoch", func.max(Chunk.finished_at)), 0.0),
        func.coalesce(func.sum(Chunk.n_candidates), 0),
    ).where(*of_campaign)
    first: tuple[int, float] | None = None
    while True:
        with session_scope(engine) as session:
            n_chunks, last, n_done = session.execute(ended).one()
            (found,) = rows.progress_of(session, campaign_id)
        if first is None and n_chunks >= n_workers:
            first = int(n_done), float(last)
        if first and (found.is_over or (seconds is not None and float(last) - first[1] > seconds)):
            assert found.state in ("running", "finished"), found.error
            return int(n_done) - first[0], float(last) - first[1]
        time.sleep(0.2)
