"""Pages over ten million predictions, and two hundred readers at once while a campaign runs."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from functools import partial
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, func, text, update

from screening.database.campaigns import progress_of
from screening.database.design_query import DesignQuery
from screening.database.queries import campaign_by_name
from screening.database.session import make_engine, migrate, session_scope
from screening.database.tables import Campaign, SearchSpace, TrainedModel
from screening.database.tokens import add_token
from screening.pipeline import campaigns, searches
from screening.pipeline.dispatch import announce
from screening.pipeline.hosts import add_supercell
from screening.pipeline.space_requests import SpaceRequest, space_of
from screening.services import addresses, start_web, start_workers, up
from screening.settings import Settings
from screening.web.app import create_app
from tests.benchmarks.conftest import Measure, PrintLine
from tests.database.made_predictions import add_predictions
from tests.synthetic_results import mos2
from tests.web.conftest import client_of
from tests.web.made_project import make_project

N_ROWS = 10_000_000
N_READERS = 200
LOAD_S = 30.0
GAP = "/explore?host=MoS2&campaign=five&window1=homo_lumo_gap_min&low1=1.0&high1=1.2"
PAGES = {
    "overview": "/", "campaigns": "/campaigns", "campaign": "/campaigns/five", "hosts": "/hosts",
    "explore, a gap, lowest energies": GAP, "explore, next page of it": GAP,
    "explore, two types": "/explore?host=MoS2&campaign=five&types=v_S,Se_S",
    "density and points": GAP.replace("explore", "explore/points") + "&x=homo_lumo_gap_min&y=formation_energy_per_site",
}  # fmt: skip
PROPERTIES = ["formation_energy", "formation_energy_per_site", "homo_lumo_gap_min"]
READ = ["/api/v1/campaigns", "/api/v1/hosts", "/api/v1/models", "/api/v1/rankings/first", "/health", "/metrics"]


def bench_pages(measure: Measure, clean_services: Settings, clean_engine: Engine) -> None:
    """Each page thrice, by one process; the second and third time is warm."""
    with session_scope(clean_engine) as session:
        add_predictions(session, "five", N_ROWS)
        session.execute(update(TrainedModel).values(properties=PROPERTIES))
        session.execute(text("SET LOCAL session_replication_role = replica"))  # rows that nobody has counted
        session.execute(update(SearchSpace).values(expected=N_ROWS))
        session.execute(update(Campaign).values(state="finished", finished_at=func.now()))
    app = create_app(clean_services)
    with client_of(app, clean_engine, "read") as client:
        client.headers["accept"] = "text/html"
        for name, path in PAGES.items():
            shown = _next_page(client, path) if "next page" in name else path
            measure(f"page: {name}", N_ROWS, repeats=3, http=partial(_get, client, shown))
    app.state.server.engine.dispose()


def bench_readers(print_line: PrintLine, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of two hundred readers for half a minute, alone and while the workers scan a campaign."""
    monkeypatch.setenv("SCREENING_WEB_RATE", "1000000/minute")  # for the process of the server
    settings = Settings(home=home, database_url=None, redis_url=None, device="cpu")
    engine = make_engine(up(settings).database_url)
    migrate(engine)
    make_project(engine)
    with session_scope(engine) as session:
        token = add_token(session, "the readers", "read")
    url = start_web(settings)
    for is_busy in (False, True):
        if is_busy:
            start_workers(settings)
            _start_campaign(engine, addresses(settings).redis_url)
        done = asyncio.run(_read(url, token))
        times = sorted(seconds for seconds, _ in done)
        statuses = Counter(status for _, status in done)
        with session_scope(engine) as session:
            rate = None if not is_busy else progress_of(session, campaign_by_name(session, "load").id)[0].per_second
        print_line(
            {
                "figure": f"{N_READERS} readers at once", "how": "while a campaign runs" if is_busy else "alone",
                "items": len(done), "errors": sum(n for status, n in statuses.items() if status != 200),
                "per_second": round(len(done) / LOAD_S, 1), "median_s": round(statistics.median(times), 3),
                "p95_s": round(times[int(0.95 * len(times))], 3), "max_s": round(times[-1], 3),
                "candidates_per_second": rate,
            }
        )  # fmt: skip
    engine.dispose()


def _next_page(client: TestClient, path: str) -> str:
    text = client.get(path).text
    return text[: text.index('" rel="next"')].rsplit('href="', 1)[1].replace("&amp;", "&")


def _get(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text[:2000]


def _start_campaign(engine: Engine, redis_url: str) -> None:
    """Some minutes of work: the best of all configurations of up to five defects in 8x8 MoS2."""
    with session_scope(engine) as session:
        host = mos2().host
        request = SpaceRequest(host="MoS2", supercell="8x8", defect_types="v_S,Se_S,v_Mo,W_Mo", max_defects=5)
        space = space_of(host, request)
        space_id = searches.add_search_space(session, add_supercell(session, space.supercell), space)
        model_id = session.connection().exec_driver_sql("SELECT id FROM trained_models").scalar_one()
        query = DesignQuery.of(host="MoS2", supercell="8x8", windows="gap=1.0:1.2", limit=1000)
        campaigns.start(session, campaigns.plan(session, space_id, campaigns.CampaignRequest(model_id, query, "load")))
    announce(redis_url, "score")


async def _read(url: str, token: str) -> list[tuple[float, int]]:
    """Seconds and status of each request; 0 where none was answered."""
    done: list[tuple[float, int]] = []
    until = time.perf_counter() + LOAD_S
    limits = httpx2.Limits(max_connections=N_READERS)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=60.0) as client:

        async def reader(number: int) -> None:
            n = number
            while time.perf_counter() < until:
                started = time.perf_counter()
                try:
                    status = (await client.get(READ[n % len(READ)])).status_code
                except httpx2.HTTPError:
                    status = 0
                done.append((time.perf_counter() - started, status))
                n += 1
                await asyncio.sleep(0.05)

        await asyncio.gather(*(reader(number) for number in range(N_READERS)))
    return done
