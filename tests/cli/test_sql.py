"""`screening sql` as a person meets it, on a database of the test's own."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from screening.database.session import session_scope
from screening.settings import Settings
from tests.database.conftest import add_rows
from tests.pipeline.made_gaps import fill

PROGRAM = [sys.executable, "-c", "from screening.cli import main; main()"]


@pytest.fixture
def environment(clean_services: Settings, clean_engine: Engine) -> dict[str, str]:
    """Of a command on a database with one campaign, `c1`."""
    with session_scope(clean_engine) as session:
        add_rows(session)
    return environment_of(clean_services)


def environment_of(clean_services: Settings) -> dict[str, str]:
    assert clean_services.database_url is not None
    assert clean_services.redis_url is not None
    return {
        "PATH": os.defpath, "SCREENING_HOME": str(clean_services.home), "OMP_NUM_THREADS": "1", "PAGER": "cat",
        "TERM": "dumb", "HOME": str(clean_services.home),
        "SCREENING_DATABASE_URL": clean_services.database_url.get_secret_value(),
        "SCREENING_REDIS_URL": clean_services.redis_url.get_secret_value(),
    }  # fmt: skip


def sql(environment: dict[str, str], *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, "sql", *arguments], env=environment, input=given, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip


def test_a_statement_is_answered_as_a_table_as_csv_and_as_json(environment: dict[str, str]) -> None:
    statement = "SELECT campaign, state, '{16,20}'::int[] AS sites, 1.50 AS x FROM campaign_progress"
    shown = sql(environment, "-c", statement)
    assert shown.returncode == 0, shown.stderr
    assert [line.split() for line in shown.stdout.splitlines()] == [
        ["campaign", "state", "sites", "x"], ["c1", "running", "16", "20", "1.5000"], ["1", "row"],
    ]  # fmt: skip
    assert sql(environment, "-c", statement, "--csv").stdout == "campaign,state,sites,x\nc1,running,16 20,1.50\n"
    assert json.loads(sql(environment, "-c", statement, "--json").stdout) == {
        "columns": ["campaign", "state", "sites", "x"],
        "rows": [{"campaign": "c1", "state": "running", "sites": [16, 20], "x": 1.5}],
    }


def test_json_is_shown_as_json(environment: dict[str, str]) -> None:
    shown = sql(environment, "-c", """SELECT '{"v_S": 2}'::jsonb AS counts FROM campaign_progress""")
    assert shown.stdout.splitlines()[1] == '{"v_S": 2}'


def test_csv_has_values_as_export_writes_them(environment: dict[str, str], tmp_path: Path) -> None:
    statement = (
        """SELECT '{"a": [1, null]}'::jsonb AS j, true AS b, interval '1 day 2 hours' AS i, 1::real AS r, NULL AS n, """
        """'{{1,2},{3,NULL}}'::int[] AS m, '{t,f}'::bool[] AS l, timestamptz '2026-11-24 12:00+00' AS t"""
    )
    exported = tmp_path / "a.csv"
    subprocess.run([*PROGRAM, "export", str(exported), "--sql", statement], env=environment, check=True, timeout=120)
    assert sql(environment, "-c", statement, "--csv").stdout == exported.read_text()
    assert exported.read_text().splitlines()[1].startswith('"{""a"": [1, null]}",t,1 day 02:00:00,1,,1 2 3,t f,2026-11')


def test_statements_of_a_file_and_of_standard_input_are_run(environment: dict[str, str]) -> None:
    script = "SELECT 1 AS one; -- a remark with a ; in it\nSELECT '100 %' AS share;"
    assert sql(environment, "-f", "-", given=script).stdout.split() == [
        "one", "1", "1", "row", "share", "100", "%", "1", "row",
    ]  # fmt: skip


def test_nothing_can_be_changed_and_the_message_says_what_can_be_read(environment: dict[str, str]) -> None:
    refused = sql(environment, "-c", "SELECT * FROM hosts")
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        "screening: the statement is refused: permission denied for table hosts; readers see the documented views only"
    )
    # not even by somebody who leaves the role, which the owner of a database can
    refused = sql(environment, "-c", "RESET ROLE; DELETE FROM hosts", "--json")
    assert json.loads(refused.stdout) == {
        "error": "the statement is refused: cannot execute DELETE in a read-only transaction"
    }


def test_options_that_do_not_go_together_are_refused(environment: dict[str, str]) -> None:
    for arguments, message in (
        (("-c", "SELECT 1; SELECT 2", "--csv"), "2 of the statements return rows"),
        (("-c", "SELECT 1 AS x, 2 AS y, 3 AS x", "--json"), "several columns are called x; name each once with AS"),
        (("--csv",), "--csv and --json print the rows of a statement"),
        (("-c", "SELECT 1", "--dictionary"), "give one of -c or -f"),
        (("-f", "absent.sql"), "absent.sql cannot be read"),
    ):
        refused = sql(environment, *arguments)
        assert refused.returncode == 1
        assert message in refused.stderr + refused.stdout


def test_a_reader_is_made_listed_and_dropped(environment: dict[str, str], clean_engine: Engine) -> None:
    name = f"person_{os.getpid()}"
    try:
        made = json.loads(sql(environment, "--new-reader", name, "--json").stdout)
        assert made["address"].startswith(f"postgresql://{name}:")
        reader = environment | {"SCREENING_DATABASE_URL": made["address"]}
        assert "c1" in sql(reader, "-c", "SELECT campaign FROM campaign_progress").stdout
        assert name in sql(environment, "--readers").stdout
        assert sql(environment, "--drop-reader", name).stdout == f"{name} cannot log in any more\n"
    finally:
        with clean_engine.begin() as connection:
            connection.execute(text(f"DROP ROLE IF EXISTS {name}"))


def test_the_select_of_a_design_query_is_run_by_the_owner_as_the_page_says(
    clean_services: Settings, clean_engine: Engine
) -> None:
    with session_scope(clean_engine) as session:
        fill(session)
    environment = environment_of(clean_services)
    design = [*PROGRAM, "design", "--campaign", "gaps", "--sql"]
    printed = subprocess.run(design, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    page = (Path(__file__).parents[2] / "docs" / "sql.md").read_text()
    assert 'echo "SET ROLE NONE;"' in page
    assert "permission denied for table" in sql(environment, "-f", "-", given=printed).stderr
    run = sql(environment, "-f", "-", given=f"SET ROLE NONE;\n{printed}")
    assert run.stdout.splitlines()[-1] == "20 rows", run.stderr


def test_statements_from_a_pipe_are_answered_by_psql(environment: dict[str, str]) -> None:
    finished = sql(environment, given="SELECT current_user, campaign FROM campaign_progress;")
    assert finished.returncode == 0, finished.stderr
    assert "screening_reader | c1" in finished.stdout


def test_the_prompt_lists_views_answers_and_ends(environment: dict[str, str]) -> None:
    """On a terminal: the prompt, a list of views, a SELECT, the end."""
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, [*PROGRAM, "sql"], environment)  # noqa: S606
    said = ""
    for awaited, answer in (
        ("=> ", "\\dv\n"),
        ("saved_rankings", "SELECT campaign, storage FROM campaign_progress;\n"),
        ("(1 row)", "\\q\n"),
    ):
        said += read_until(terminal, awaited)
        os.write(terminal, answer.encode())
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "reads the documented views and changes nothing" in said
    assert "c1" in said


def read_until(terminal: int, awaited: str) -> str:
    said = ""
    deadline = time.monotonic() + 60
    while awaited not in said:
        ready, _, _ = select.select([terminal], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"waited for {awaited!r}, got {said!r}"
        said += os.read(terminal, 65536).decode()
    return said
