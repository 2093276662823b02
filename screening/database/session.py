"""Engine, transactions and migrations.

A transaction belongs to the entry point (a CLI command, a task): it opens `session_scope` and everything
below takes the session as its first argument and never commits. Streaming stages, which commit chunk by
chunk, open their own scopes and say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import alembic.command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from screening.errors import SchemaError, ServiceError

OLDEST_POSTGRESQL = 16  # erf() of design queries


def make_engine(database_url: str) -> Engine:
    """Engine for a `postgresql+psycopg://` address; connections are checked before they are used again."""
    return create_engine(database_url, pool_pre_ping=True, connect_args={"connect_timeout": 10})


@contextmanager
def session_scope(engine: Engine) -> Iterator[Session]:
    """One transaction: committed at the end of the block, rolled back by any exception.

    Raises:
        ServiceError: the server cannot be reached.
    """
    with Session(engine) as session:
        try:
            session.connection()
        except OperationalError as error:
            raise ServiceError(
                f"PostgreSQL does not answer at {address(engine)} ({_reason(error)}); run `screening up`, "
                "or mend SCREENING_DATABASE_URL if it is set"
            ) from error
        yield session
        session.commit()


def end_when_idle(session: Session, seconds: float) -> None:
    """Let the server roll this transaction back if its client does nothing for so long: its locks stop others."""
    session.execute(
        text("SELECT set_config('idle_in_transaction_session_timeout', :limit, true)"),
        {"limit": f"{1000 * seconds:.0f}ms"},
    )


def address(engine: Engine) -> str:
    """Host, port and database of an engine, without its passwords."""
    secrets = [name for name in engine.url.query if "pass" in name.lower()]
    return engine.url.difference_update_query(secrets).render_as_string(hide_password=True)


def migration_config() -> Config:
    """Alembic's configuration for the migrations that are installed with the package."""
    spec = find_spec("migrations")
    assert spec is not None
    assert spec.origin is not None
    config = Config()
    config.set_main_option("script_location", str(Path(spec.origin).parent).replace("%", "%%"))
    return config


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest migration; a lock keeps two processes from doing so at once.

    Raises:
        ServiceError: the server cannot be reached, is too old, or broke the migrations off.
    """
    config = migration_config()
    try:
        with session_scope(engine) as session:
            connection = session.connection()
            version = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one()) // 10000
            if version < OLDEST_POSTGRESQL:
                raise ServiceError(
                    f"PostgreSQL {version} at {address(engine)}; design queries need {OLDEST_POSTGRESQL} or newer: set "
                    "SCREENING_DATABASE_URL to such a server, or unset it to use the one that is installed along"
                )
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")
    except OperationalError as error:
        raise ServiceError(
            f"the migrations could not be run at {address(engine)} ({_reason(error)}); try `screening up` again"
        ) from error


def check_schema(engine: Engine) -> None:
    """Make sure that the schema is at the newest migration.

    Raises:
        SchemaError: it is not.
        ServiceError: the server cannot be reached.
    """
    head = ScriptDirectory.from_config(migration_config()).get_current_head()
    with session_scope(engine) as session:
        found = MigrationContext.configure(session.connection()).get_current_revision()
    if found != head:
        raise SchemaError(
            f"the database is at migration {found or 'none'}, this version of screening needs {head}; "
            "run `screening up` (or `alembic upgrade head`)"
        )


def _reason(error: OperationalError) -> str:
    """What the driver said, on one line."""
    return " ".join(str(error.orig).split())
