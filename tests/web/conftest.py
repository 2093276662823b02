"""The web application on a database of the test's own, and clients that ask as somebody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import Engine

from screening.database.session import session_scope
from screening.database.tokens import add_token
from screening.settings import Settings
from screening.web.app import create_app
from tests.conftest import broker_of, fresh_database
from tests.web.made_project import Made, make_project

API = "/api/v1"
ADDRESS = "https://testserver"  # the cookie of a login is sent over https only

AsRole = Callable[[str], TestClient]


@pytest.fixture
def app(clean_services: Settings, clean_engine: Engine) -> Iterator[FastAPI]:
    """The application on a fresh database."""
    found = create_app(clean_services)
    yield found
    found.state.server.engine.dispose()


@pytest.fixture
def as_role(app: FastAPI, clean_engine: Engine) -> Iterator[AsRole]:
    """A client with a token of a role; with `nobody` one without."""
    with ExitStack() as opened:

        def client(role: str) -> TestClient:
            return opened.enter_context(client_of(app, clean_engine, role))

        yield client


@pytest.fixture(scope="session")
def made_once(migrated_template: Engine) -> Iterator[tuple[str, Made]]:
    """A made project (tests.web.made_project), which takes 20 s; the name of its database, for copies."""
    with fresh_database(migrated_template) as engine:
        found = make_project(engine)
        engine.dispose()  # CREATE DATABASE wants its template without connections
        yield str(engine.url.database), found


@pytest.fixture(scope="module")
def made(migrated_template: Engine, made_once: tuple[str, Made]) -> Iterator[tuple[Engine, Made]]:
    """A made project in a database of the module's own, for tests that only read, or add."""
    name, found = made_once
    with fresh_database(migrated_template, like=name) as engine:
        yield engine, found


@pytest.fixture(scope="module")
def made_app(services: Settings, made: tuple[Engine, Made]) -> Iterator[FastAPI]:
    """The application on the made project."""
    url = SecretStr(made[0].url.render_as_string(hide_password=False))
    found = create_app(services.model_copy(update={"database_url": url, "redis_url": broker_of(services)}))
    yield found
    found.state.server.engine.dispose()


@pytest.fixture(scope="module")
def reader(made_app: FastAPI, made: tuple[Engine, Made]) -> Iterator[TestClient]:
    """A client with the role read."""
    with client_of(made_app, made[0], "read") as client:
        yield client


@pytest.fixture(scope="module")
def submitter(made_app: FastAPI, made: tuple[Engine, Made]) -> Iterator[TestClient]:
    """A client with the role submit."""
    with client_of(made_app, made[0], "submit") as client:
        yield client


@pytest.fixture(scope="module")
def admin(made_app: FastAPI, made: tuple[Engine, Made]) -> Iterator[TestClient]:
    """A client with the role admin."""
    with client_of(made_app, made[0], "admin") as client:
        yield client


def client_of(app: FastAPI, engine: Engine, role: str) -> TestClient:
    """A client with a token of a role; with `nobody` one without."""
    headers = {}
    if role != "nobody":
        with session_scope(engine) as session:
            headers["Authorization"] = f"Bearer {add_token(session, f'the {role} of the tests', role)}"
    return TestClient(app, base_url=ADDRESS, headers=headers)


@pytest.fixture
def web(as_role: AsRole) -> TestClient:
    """A client with the role admin."""
    return as_role("admin")
