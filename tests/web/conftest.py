"""The web application on a database of the test's own, and clients that ask as somebody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from screening.database.session import session_scope
from screening.database.tokens import add_token
from screening.settings import Settings
from screening.web.app import create_app

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
            headers = {}
            if role != "nobody":
                with session_scope(clean_engine) as session:
                    headers["Authorization"] = f"Bearer {add_token(session, f'the {role} of the tests', role)}"
            return opened.enter_context(TestClient(app, base_url=ADDRESS, headers=headers))

        yield client


@pytest.fixture
def web(as_role: AsRole) -> TestClient:
    """A client with the role admin."""
    return as_role("admin")
