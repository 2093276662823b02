"""Workers of a test: real Celery processes on a database and a Redis database of their own.

Tests that break servers use those of `own_servers`, which no other test uses, and databases that are copies of one
with a trained model and two planned campaigns.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import URL, Engine, make_url, text

from screening.database import leases, tables
from screening.database.session import make_engine, migrate, session_scope
from screening.pipeline.models import TrainingRequest, submit_training, train_unit
from screening.services import addresses, down, stop_workers, up
from screening.settings import Settings
from tests.conftest import temporary_home
from tests.synthetic_results import LEVEL, add_results
from tests.workers.campaign_outcome import CAMPAIGNS, Outcome, plan_campaigns, scan_undisturbed

_TEMPLATE = "planned"
_MODEL = {"n_members": 3, "width": 16, "n_blocks": 1, "epochs": 5, "batch_rows": 32}


@pytest.fixture
def project(clean_services: Settings) -> Iterator[Settings]:
    """Settings of one test, whose workers are stopped after it."""
    yield clean_services
    stop_workers(clean_services)


@pytest.fixture(scope="session")
def own_servers() -> Iterator[Settings]:
    """PostgreSQL and Valkey that tests may kill, if they start them again (`services.up`)."""
    with temporary_home() as home:
        settings = Settings(home=home, database_url=None, redis_url=None, device="cpu")
        try:
            up(settings)
            yield settings
        finally:
            down(settings)


@pytest.fixture(scope="session")
def planned_template(own_servers: Settings) -> Iterator[Engine]:
    """Engine that creates databases; `planned` is their template: a trained model, and the campaigns planned."""
    url = make_url(addresses(own_servers).database_url)
    administrator = make_engine(_url(url, "postgres")).execution_options(isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {_TEMPLATE}"))
    template = make_engine(_url(url, _TEMPLATE))
    migrate(template)
    with session_scope(template) as session:
        add_results(session, 100)
        model_id = submit_training(session, TrainingRequest(LEVEL, settings=_MODEL))
    owner = leases.new_owner()
    with session_scope(template) as session:
        assert leases.claim_next(session, tables.TrainedModel, owner) == model_id
    train_unit(template, model_id, owner, device="cpu")
    plan_campaigns(template, model_id)
    template.dispose()  # CREATE DATABASE wants its template without connections
    yield administrator
    administrator.dispose()


@pytest.fixture(scope="session")
def undisturbed(planned_template: Engine) -> dict[str, Outcome]:
    """What each campaign comes to when one process scans one chunk after the other and nothing happens."""
    found = _copy(planned_template, "undisturbed")
    try:
        return {name: scan_undisturbed(found, name) for name in CAMPAIGNS}
    finally:
        found.dispose()


@pytest.fixture
def planned_engine(planned_template: Engine) -> Iterator[Engine]:
    """Engine on a fresh copy of the database with the planned campaigns, dropped after the test."""
    found = _copy(planned_template, "disturbed")
    yield found
    found.dispose()
    with planned_template.connect() as connection:
        connection.execute(text("DROP DATABASE disturbed WITH (FORCE)"))


@pytest.fixture
def breakable(own_servers: Settings, planned_engine: Engine) -> Iterator[Settings]:
    """Settings of one test whose workers use `planned_engine` and `own_servers`; the workers are stopped after it."""
    broker = addresses(own_servers).redis_url
    with redis.Redis.from_url(broker) as client:
        client.flushdb()
    with temporary_home() as home:
        settings = Settings(
            home=home,
            database_url=SecretStr(planned_engine.url.render_as_string(hide_password=False)),
            redis_url=SecretStr(broker),
            device="cpu",
        )
        yield settings
        stop_workers(settings)


def _copy(administrator: Engine, name: str) -> Engine:
    with administrator.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}"))
    return make_engine(_url(administrator.url, name))


def _url(url: URL, database: str) -> str:
    return url.set(database=database).render_as_string(hide_password=False)
