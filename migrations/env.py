"""Alembic's environment: takes the caller's connection, or opens one from SCREENING_DATABASE_URL."""

from __future__ import annotations

import os
import re

from alembic import context
from sqlalchemy import Connection, text

from screening.database.session import make_engine
from screening.database.tables import Table

LOCK = 5_823_041  # any number, the same for everyone who migrates this database


def is_declared(name: str | None, kind: str, _parents: object) -> bool:
    """Everything but the partitions of campaigns, which functions of migration 0003 make."""
    return kind != "table" or name is None or not re.fullmatch(r"candidates_\d+", name)


def run(connection: Connection) -> None:
    """Run the migrations under an advisory lock, so that two processes do not migrate at once."""
    context.configure(
        connection=connection, target_metadata=Table.metadata, compare_type=True, include_name=is_declared
    )
    with context.begin_transaction():
        connection.execute(text("SET LOCAL lock_timeout = '30s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    url = os.environ.get("SCREENING_DATABASE_URL")
    if url is None:
        raise SystemExit("set SCREENING_DATABASE_URL (`screening status` prints how), or run `screening up`")
    with make_engine(url).connect() as opened:
        run(opened)
        opened.commit()
