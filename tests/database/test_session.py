"""What the connection to the database says when it cannot be used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from screening.database import session
from screening.database.session import address, make_engine, migrate, session_scope
from screening.errors import ServiceError

CLOSED = "postgresql+psycopg://me:secret@127.0.0.1:9/db?application_name=me&password=hidden&sslpassword=hidden"


def test_an_address_is_shown_without_any_password() -> None:
    engine = make_engine(CLOSED)
    assert address(engine) == "postgresql+psycopg://me:***@127.0.0.1:9/db?application_name=me"


def begin(engine: Engine) -> None:
    with session_scope(engine):
        pass


@pytest.mark.parametrize("use", [migrate, begin])
def test_a_server_that_does_not_answer_is_named_without_its_password(use: Callable[[Engine], None]) -> None:
    message = r"PostgreSQL does not answer at .*127\.0\.0\.1:9.*SCREENING_DATABASE_URL"
    with pytest.raises(ServiceError, match=message) as caught:
        use(make_engine(CLOSED))
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_server_that_is_too_old_is_refused_before_anything_is_made(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "OLDEST_POSTGRESQL", 99)
    with pytest.raises(ServiceError, match=r"PostgreSQL \d+ .* need 99 or newer"):
        migrate(engine)


def test_a_migration_that_the_server_breaks_off_is_told(clean_engine: Engine) -> None:
    url = clean_engine.url.update_query_dict({"options": "-c statement_timeout=500"})
    impatient = make_engine(url.render_as_string(hide_password=False))
    with clean_engine.connect() as other, other.begin():
        other.exec_driver_sql("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(ServiceError, match=r"the migrations could not be run .*statement timeout"):
            migrate(impatient)
    impatient.dispose()
