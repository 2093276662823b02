"""The role on a server that does not have it yet: a server of the test's own, since a role is the whole server's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, make_url, text

from screening.database.readers import add_reader, drop_reader, list_readers, role_problem
from screening.database.session import make_engine, migrate, session_scope
from screening.errors import ServiceError
from screening.services import down, up
from screening.settings import Settings
from tests.conftest import temporary_home

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[URL]:
    """An address on a server without any role of ours."""
    with temporary_home() as home:
        settings = Settings(home=home, database_url=None, redis_url=None, device="cpu")
        try:
            yield make_url(up(settings).database_url)
        finally:
            down(settings)


def run(server: URL, *statements: str) -> None:
    engine = make_engine(server.render_as_string(hide_password=False)).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def test_databases_that_are_migrated_at_once_make_the_role_once(server: URL) -> None:
    names = [f"apart_{number}" for number in range(3)]
    run(server, *(f"CREATE DATABASE {name}" for name in names))
    processes = []
    for name in names:
        url = server.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "alembic", "upgrade", "head"],
                cwd=ROOT,
                env={**os.environ, "SCREENING_DATABASE_URL": url},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    for name, process in zip(names, processes, strict=True):
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        engine = make_engine(server.set(database=name).render_as_string(hide_password=False))
        with session_scope(engine) as session:
            assert role_problem(session) is None
            assert session.scalar(
                text("SELECT has_table_privilege('screening_reader', 'calculated_results', 'SELECT')")
            )
        engine.dispose()


def test_who_may_make_no_role_is_told_what_an_administrator_does_and_can_read_then(server: URL) -> None:
    run(server, "CREATE ROLE plain LOGIN PASSWORD 'word'", "CREATE DATABASE theirs OWNER plain")
    url = server.set(username="plain", password="word", database="theirs")
    engine = make_engine(url.render_as_string(hide_password=False))
    migrate(engine)
    advice = "CREATE ROLE screening_reader; GRANT screening_reader TO plain;"
    with session_scope(engine) as session:
        problem = role_problem(session)
        assert problem == (
            "this server has no role screening_reader, and plain may not make it; an administrator of the server runs "
            + advice
        )
        with pytest.raises(ServiceError, match="this server has no role screening_reader"):
            add_reader(session, "anna")
    run(server, *(statement for statement in advice.split(";") if statement.strip()))
    with session_scope(engine) as session:
        assert role_problem(session) is None
    with engine.connect() as connection:
        connection.execute(text("SET ROLE screening_reader"))
        assert connection.execute(text("SELECT * FROM candidate_predictions")).all() == []
    with session_scope(engine) as session, pytest.raises(ServiceError, match="no reader can be made on this server"):
        add_reader(session, "anna")
    engine.dispose()


def test_whoever_may_make_roles_takes_the_one_they_made(server: URL) -> None:
    run(server, "CREATE ROLE maker LOGIN CREATEROLE PASSWORD 'word'", "CREATE DATABASE theirs OWNER maker")
    url = server.set(username="maker", password="word", database="theirs")
    engine = make_engine(url.render_as_string(hide_password=False))
    migrate(engine)
    with session_scope(engine) as session:
        assert role_problem(session) is None
        password = add_reader(session, "anna")
    assert len(password) > 20
    make_large_object(server.set(database="theirs", username="anna", password=password))
    with session_scope(engine) as session:
        drop_reader(session, "anna")
        assert list_readers(session) == []
    engine.dispose()


def test_a_reader_who_owns_something_in_another_database_is_not_dropped(server: URL) -> None:
    engine = make_engine(server.render_as_string(hide_password=False))
    migrate(engine)
    with session_scope(engine) as session:
        password = add_reader(session, "anna")
    run(server, "CREATE DATABASE other")
    make_large_object(server.set(database="other", username="anna", password=password))
    with session_scope(engine) as session, pytest.raises(ServiceError, match=r"anna.*in database other.*DROP OWNED BY"):
        drop_reader(session, "anna")
    run(server.set(database="other"), "DROP OWNED BY anna")
    with session_scope(engine) as session:
        drop_reader(session, "anna")
    engine.dispose()


def test_what_the_page_gives_an_administrator_stops_readers_from_making_anything(server: URL) -> None:
    page = (ROOT / "docs" / "sql.md").read_text()
    commands = [line.split(";")[0] for line in page.splitlines() if line.startswith("REVOKE ")]
    assert len(commands) > 2
    assert server.database == "screening"
    run(server, *commands)
    engine = make_engine(server.render_as_string(hide_password=False))
    migrate(engine)
    with session_scope(engine) as session:
        password = add_reader(session, "anna")
    reader = server.set(drivername="postgresql", username="anna", password=password)
    with psycopg.connect(reader.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        for statement in (
            "SELECT lo_create(0)", "SELECT lo_creat(0)", "SELECT lo_from_bytea(0, 'x')",
            "CREATE TEMPORARY TABLE x (y int)", "CREATE TABLE x (y int)", "SELECT lo_import('/etc/hostname')",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
        assert connection.execute("SELECT count(*) FROM candidate_predictions").fetchone() == (0,)
    engine.dispose()


def make_large_object(reader: URL) -> None:
    url = reader.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("SELECT lo_create(0)")
