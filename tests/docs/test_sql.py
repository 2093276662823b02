"""Every statement of docs/sql.md is run as a reader, on a database with a campaign, a result and a ranking."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
from sqlalchemy import Engine

from screening.database.readers import AS_READER
from screening.database.session import session_scope
from tests.pipeline.made_gaps import fill

PAGE = (Path(__file__).parents[2] / "docs" / "sql.md").read_text()
STATEMENTS = [
    statement.strip()
    for block in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    for statement in block.split(";")
    if statement.strip()
]
EMPTY = ("design_loops", "proposed_calculations", "models_and_errors")  # of which this database has no row


def test_every_statement_of_the_page_answers_a_reader(clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        fill(session)
    url = clean_engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    assert len(STATEMENTS) > 12
    with psycopg.connect(url, options=AS_READER, autocommit=True) as connection:
        for statement in STATEMENTS:
            rows = connection.execute(statement).fetchall()
            assert rows or any(f"FROM {view}" in statement for view in EMPTY), statement


def test_the_page_names_every_view_and_no_other(clean_engine: Engine) -> None:
    with clean_engine.connect() as connection:
        views = set(connection.exec_driver_sql("SELECT viewname FROM pg_views WHERE schemaname = 'public'").scalars())
    listed = {name for line in PAGE.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    assert {name for name in listed if "_" in name} >= views - {"campaign_workers", "campaign_histograms"}
    used = {name for statement in STATEMENTS for name in re.findall(r"(?:FROM|JOIN) (\w+)", statement)}
    assert used <= views
