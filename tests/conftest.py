"""Fixtures of all tests: our own PostgreSQL and Valkey, databases at the newest migration, the shared data.

Nothing here uses a server, a directory or a variable of the user: every SCREENING_* variable but
SCREENING_SHARED_DATA is taken out of the environment before the first test. Tests that commit take
`clean_engine` (a database of their own) or `clean_services` (the same as Settings); all others take `session`,
whose rows are rolled back.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import URL, Engine, make_url, text
from sqlalchemy.orm import Session

from screening.database.session import make_engine, migrate
from screening.services import addresses, down, up
from screening.settings import Settings

ROOT = Path(__file__).parent.parent
_TEMPLATE = "migrated"
_NUMBERS = count(1)


def pytest_configure() -> None:
    """Forget the user's settings; let SIGTERM end the run as ^C does, so that the servers are stopped."""
    for name in [name for name in os.environ if name.startswith("SCREENING_") and name != "SCREENING_SHARED_DATA"]:
        del os.environ[name]
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def temporary_home() -> Iterator[Path]:
    """A home directory that the unprivileged user of PostgreSQL can enter (tmp_path is closed to it)."""
    home = Path(tempfile.mkdtemp(prefix="screening-tests-"))
    home.chmod(0o755)
    try:
        yield home
    finally:
        shutil.rmtree(home)


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty home directory of one test; what runs in it at the end is stopped."""
    with temporary_home() as found:
        yield found
        down(Settings(home=found, database_url=None, redis_url=None))


@pytest.fixture(scope="session")
def services() -> Iterator[Settings]:
    """PostgreSQL and Valkey in a home of their own, migrated; stopped and removed at the end."""
    with temporary_home() as home:
        settings = Settings(home=home, database_url=None, redis_url=None, device="cpu")
        try:
            engine = make_engine(up(settings).database_url)
            migrate(engine)
            engine.dispose()
            yield settings
        finally:
            down(settings)


@pytest.fixture(scope="session")
def engine(services: Settings) -> Iterator[Engine]:
    """Engine on the database of `services`; who commits takes `clean_engine` instead."""
    found = make_engine(addresses(services).database_url)
    yield found
    found.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session whose commits are savepoints of a transaction that is rolled back after the test."""
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as found:
            yield found
        outer.rollback()


@pytest.fixture(scope="session")
def migrated_template(services: Settings) -> Iterator[Engine]:
    """Engine that creates databases; the database `migrated` is their template, empty at the newest migration."""
    url = make_url(addresses(services).database_url)
    administrator = make_engine(_url(url, "postgres")).execution_options(isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {_TEMPLATE}"))
    template = make_engine(_url(url, _TEMPLATE))
    migrate(template)
    template.dispose()  # CREATE DATABASE wants its template without connections
    yield administrator
    administrator.dispose()


@contextmanager
def fresh_database(migrated_template: Engine, *, like: str = _TEMPLATE) -> Iterator[Engine]:
    """An engine on a copy of a database, empty at the newest migration or another; dropped at the end of the block."""
    name = f"test_{next(_NUMBERS)}"
    with migrated_template.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {like}"))
    found = make_engine(_url(migrated_template.url, name))
    yield found
    found.dispose()
    with migrated_template.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def clean_engine(migrated_template: Engine) -> Iterator[Engine]:
    """Engine on a database of one test, for what commits itself."""
    with fresh_database(migrated_template) as found:
        yield found


def broker_of(services: Settings) -> SecretStr:
    """The Redis database of tests; the first one is that of the services."""
    return SecretStr(addresses(services).redis_url.removesuffix("/0") + "/1")


@pytest.fixture
def clean_services(services: Settings, clean_engine: Engine) -> Iterator[Settings]:
    """Settings with a home, a database and an emptied Redis database of one test: for commands and workers."""
    broker = broker_of(services)
    with temporary_home() as home:
        with redis.Redis.from_url(broker.get_secret_value()) as client:
            client.flushdb()
        yield Settings(
            home=home,
            database_url=SecretStr(clean_engine.url.render_as_string(hide_password=False)),
            redis_url=broker,
            device="cpu",
        )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data that is not part of the project; tests that need it are skipped where it is absent."""
    found = Path(os.environ.get("SCREENING_SHARED_DATA", ROOT.parent / "shared" / "data")).resolve()
    if not found.is_dir():
        pytest.skip(f"no shared data in {found}; set SCREENING_SHARED_DATA to their directory")
    return found


def _url(url: URL, database: str) -> str:
    return url.set(database=database).render_as_string(hide_password=False)
