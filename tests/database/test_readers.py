"""Readers on a real server: people with passwords of their own."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine, text

from screening.database.readers import AS_READER, add_reader, drop_reader, list_readers, role_problem
from screening.database.session import make_engine, session_scope
from screening.errors import InputError, ServiceError, UnknownNameError


@pytest.fixture
def name(clean_engine: Engine) -> Iterator[str]:
    """A name that is taken away at the end, whatever the test has made of it."""
    found = f"person_{secrets.token_hex(4)}"
    yield found
    with clean_engine.begin() as connection:
        if connection.scalar(text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :name)"), {"name": found}):
            connection.execute(text(f"DROP OWNED BY {found}"))
            connection.execute(text(f"DROP ROLE {found}"))


def login(engine: Engine, name: str, password: str) -> psycopg.Connection:
    url = engine.url.set(drivername="postgresql", username=name, password=password)
    return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)


def test_a_reader_logs_in_reads_and_writes_nothing(clean_engine: Engine, name: str) -> None:
    with session_scope(clean_engine) as session:
        password = add_reader(session, name)
    with login(clean_engine, name, password) as connection:
        assert connection.execute("SELECT count(*) FROM candidate_predictions").fetchone() == (0,)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("CREATE TEMPORARY TABLE mine (x integer)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT weights FROM trained_models")
        with session_scope(clean_engine) as session:
            assert (name, 1) in [(reader.name, reader.n_connections) for reader in list_readers(session)]


def test_a_reader_who_is_dropped_cannot_log_in(clean_engine: Engine, name: str) -> None:
    with session_scope(clean_engine) as session:
        password = add_reader(session, name)
    with session_scope(clean_engine) as session:
        drop_reader(session, name)
        assert name not in [reader.name for reader in list_readers(session)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        login(clean_engine, name, password)


def test_what_a_reader_who_switches_read_only_off_can_make_goes_with_them(clean_engine: Engine, name: str) -> None:
    with session_scope(clean_engine) as session:
        password = add_reader(session, name)
    with login(clean_engine, name, password) as connection:
        connection.execute("SET default_transaction_read_only = off")
        made = connection.execute("SELECT lo_create(0)").fetchone()
        assert made is not None
        connection.execute("CREATE TEMPORARY TABLE mine (x integer)")
        for refused in ("CREATE TABLE mine (x integer)", "CREATE SCHEMA mine", "DELETE FROM campaign_progress"):
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)):
                connection.execute(refused)
        with session_scope(clean_engine) as session:
            drop_reader(session, name)
    with session_scope(clean_engine) as session:
        left = "SELECT count(*) FROM pg_largeobject_metadata WHERE oid = :oid"
        assert session.scalar(text(left), {"oid": made[0]}) == 0
        assert not session.scalar(text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :name)"), {"name": name})


def test_somebody_who_owns_tables_is_not_dropped_with_them(clean_engine: Engine, name: str) -> None:
    with session_scope(clean_engine) as session:
        add_reader(session, name)
    with clean_engine.begin() as connection:
        connection.execute(text("CREATE TABLE of_somebody (x integer)"))
        connection.execute(text(f"ALTER TABLE of_somebody OWNER TO {name}"))
    with session_scope(clean_engine) as session, pytest.raises(InputError, match=f"{name} owns public.of_somebody"):
        drop_reader(session, name)
    with session_scope(clean_engine) as session:
        assert session.scalar(text("SELECT count(*) FROM of_somebody")) == 0
        session.execute(text("DROP TABLE of_somebody"))
        drop_reader(session, name)


def test_only_readers_can_be_dropped(clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        for other in ("nobody_at_all", "screening", "screening_reader", 'x"; DROP ROLE screening; --'):
            with pytest.raises(UnknownNameError, match="no reader is called"):
                drop_reader(session, other)


def test_a_name_that_is_taken_or_needs_quotes_is_refused(clean_engine: Engine, name: str) -> None:
    with session_scope(clean_engine) as session:
        add_reader(session, name)
        with pytest.raises(InputError, match=f"the server has a role {name} already"):
            add_reader(session, name)
        for bad in ("Anna", "1st", "a b", 'a"', "a" * 32, ""):
            with pytest.raises(InputError, match="is no name for a reader"):
                add_reader(session, bad)


def test_rights_that_are_missing_are_given(clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        session.execute(text("REVOKE SELECT ON candidate_predictions FROM screening_reader"))
    with session_scope(clean_engine) as session:
        assert role_problem(session) is None
    url = clean_engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, options=AS_READER) as connection:
        assert connection.execute("SELECT current_user, count(*) FROM candidate_predictions").fetchone() == (
            "screening_reader", 0,
        )  # fmt: skip


def test_who_may_not_take_the_role_is_told_what_an_administrator_does(clean_engine: Engine, name: str) -> None:
    with clean_engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'word'"))
    owner = make_engine(
        clean_engine.url.set(username=name, password="word").render_as_string(hide_password=False)
    )  # fmt: skip
    with session_scope(owner) as session:
        assert role_problem(session) == (
            f"{name} may not take the role screening_reader; an administrator of the server runs "
            f"GRANT screening_reader TO {name};"
        )
        with pytest.raises(ServiceError, match="may not take the role screening_reader"):
            add_reader(session, "someone_else")
    owner.dispose()
