"""The documented views and the role that reads them, on a real server; roles are the whole server's."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import alembic.command
import psycopg
import pytest
from sqlalchemy import Engine, func, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from screening.database.session import make_engine, migrate, migration_config, session_scope
from screening.database.tables import (
    Calculation,
    CalculationResult,
    Campaign,
    Candidate,
    Configuration,
    Promotion,
    QuarantinedResult,
    Round,
    SourceFile,
    TrainedModel,
)
from tests.database.conftest import SE_S, V_S, Ids, add_rows

ROOT = Path(__file__).parents[2]
VIEWS = {
    "candidate_predictions", "current_predictions", "campaign_compositions", "calculated_results", "models_and_errors",
    "host_supercells", "reference_energies", "saved_rankings", "saved_ranking_rows", "proposed_calculations",
    "design_loops", "campaign_progress", "campaign_workers", "campaign_histograms", "models_in_production",
    "round_progress", "rests_on_retracted",
}  # fmt: skip
REFUSED = {
    "SELECT weights FROM trained_models": "permission denied for table trained_models",
    "SELECT * FROM candidates": "permission denied for table candidates",
    "SELECT * FROM candidates_1": "permission denied for table candidates_1",
    "SELECT sql FROM rankings": "permission denied for table rankings",
    "INSERT INTO hosts (name) VALUES ('x')": "permission denied for table hosts",
    "UPDATE saved_rankings SET temperature = 1": "cannot update view|permission denied",
    "DELETE FROM campaigns": "permission denied for table campaigns",
    "TRUNCATE calculation_results": "permission denied for table calculation_results",
    "DROP VIEW candidate_predictions": "must be owner of view candidate_predictions",
    "ALTER TABLE candidates ADD COLUMN x integer": "must be owner of table candidates",
    "CREATE TABLE mine (x integer)": "permission denied for schema public",
    "CREATE FUNCTION mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'": "permission denied for schema public",
    "SELECT add_campaign_partition(7)": "permission denied",
    "SELECT grant_to_readers()": "permission denied for function grant_to_readers",
    "CREATE ROLE other": "permission denied to create role",
    "GRANT screening_reader TO pg_monitor": "permission denied to grant role",
    "SET ROLE screening": "permission denied to set role",
    "SELECT pg_read_file('/etc/passwd')": "permission denied for function pg_read_file",
    "COPY (SELECT 1) TO PROGRAM 'cat'": "permission denied to COPY to or from an external program",
    "COPY (SELECT 1) TO '/tmp/x'": "permission denied to COPY to a file",
    "ALTER SYSTEM SET work_mem = '1MB'": "permission denied to set parameter",
}  # fmt: skip


@pytest.fixture
def reader(clean_engine: Engine) -> Iterator[psycopg.Connection]:
    """A connection of a person of their own, who may read and was given nothing else."""
    name = f"reader_{secrets.token_hex(4)}"
    with clean_engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'word' IN ROLE screening_reader"))
    url = clean_engine.url.set(drivername="postgresql", username=name, password="word")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        yield connection
    with clean_engine.begin() as connection:
        connection.execute(text(f"DROP ROLE {name}"))


def readable(session: Session) -> set[str]:
    rows = session.execute(
        text(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace "
            "AND relkind IN ('r', 'p', 'v', 'm') AND has_table_privilege('screening_reader', oid, 'SELECT')"
        )
    )
    return {name for (name,) in rows}


def test_the_role_reads_the_documented_views_and_no_table_of_ours(session: Session) -> None:
    assert readable(session) == VIEWS | {"alembic_version"}
    all_views = session.scalars(text("SELECT viewname FROM pg_views WHERE schemaname = 'public'")).all()
    assert set(all_views) == VIEWS


def test_every_view_and_every_column_of_a_view_says_what_it_is(session: Session) -> None:
    undescribed = session.execute(
        text(
            "SELECT relname, attname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid WHERE relkind = 'v' "
            "AND relnamespace = 'public'::regnamespace AND attnum > 0 AND (col_description(attrelid, attnum) IS NULL "
            "OR obj_description(attrelid, 'pg_class') IS NULL)"
        )
    ).all()
    assert undescribed == []


def test_a_reader_can_read_every_view(reader: psycopg.Connection) -> None:
    for view in VIEWS:
        assert reader.execute(f"SELECT * FROM {view}").fetchall() == []


def test_a_reader_can_do_nothing_else(reader: psycopg.Connection, committed_ids: Ids) -> None:
    for statement, refusal in REFUSED.items():
        with pytest.raises(psycopg.Error, match=refusal):
            reader.execute(statement)


def test_the_owner_in_the_role_of_a_reader_reads_views_only(clean_engine: Engine) -> None:
    with clean_engine.connect() as connection:
        connection.execute(text("SET LOCAL ROLE screening_reader"))
        assert connection.execute(text("SELECT * FROM calculated_results")).all() == []
        with pytest.raises(DBAPIError, match="permission denied for table trained_models"):
            connection.execute(text("SELECT * FROM trained_models"))


def test_the_number_of_a_campaign_is_found_by_its_name(clean_engine: Engine, reader: psycopg.Connection) -> None:
    with session_scope(clean_engine) as session:
        ids = add_rows(session)
    assert reader.execute("SELECT campaign('c1')").fetchone() == (ids.campaign,)
    with pytest.raises(psycopg.Error, match='no campaign is called "c2"'):
        reader.execute("SELECT * FROM candidate_predictions WHERE campaign_id = campaign('c2')")


def add_candidate(session: Session, ids: Ids) -> None:
    session.add(
        Candidate(
            id=10_000_003, campaign_id=ids.campaign, arrangement_id=ids.two, multiplicity=96, closest=3.25,
            farthest=3.25, homo_mean=-5.5, homo_std=0.25, sites=[64, 70],
        )
    )  # fmt: skip
    session.flush()


def test_a_candidate_is_shown_with_names_for_everything(session: Session, ids: Ids) -> None:
    add_candidate(session, ids)
    row = session.execute(text("SELECT * FROM candidate_predictions")).mappings().one()
    expected = {
        "candidate": "c1:10000003", "candidate_id": 10_000_003, "campaign": "c1", "host": "MoS2", "supercell": "8x8",
        "configuration": "v_S+Se_S", "n_defects": 2, "types": ["v_S", "Se_S"], "counts": {"v_S": 1, "Se_S": 1},
        "defects": ["v_S@64", "Se_S@70"], "sites": [64, 70], "multiplicity": 96, "closest": 3.25, "homo": -5.5,
        "homo_std": 0.25, "total_mag": None, "is_calculated": False, "model": "m1", "line": "m1",
        "is_in_production": False, "level_of_theory": "PBE", "age": None,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected


def test_a_finished_calculation_at_the_models_level_marks_a_candidate(session: Session, ids: Ids) -> None:
    add_candidate(session, ids)
    configuration = Configuration(
        supercell_id=ids.supercell, composition_id=ids.pair, n_defects=2, sites=[64, 70], defect_types=[V_S, SE_S],
        multiplicity=96,
    )  # fmt: skip
    session.add(configuration)
    session.flush()
    calculation = Calculation(configuration_id=configuration.id, level_id=ids.level, state="proposed")
    session.add(calculation)
    session.flush()
    marked = text("SELECT is_calculated FROM candidate_predictions")
    assert session.scalar(marked) is False
    calculation.state = "finished"
    session.flush()
    assert session.scalar(marked) is True


def add_result(session: Session, ids: Ids) -> int:
    configuration = Configuration(
        supercell_id=ids.supercell, composition_id=ids.vacancy, n_defects=1, sites=[64], defect_types=[V_S],
        multiplicity=128,
    )  # fmt: skip
    file = SourceFile(sha256="abc", path="runs/1/vasprun.xml", kind="vasprun", size=9, parser_version="1")
    round_ = Round(model_id=ids.model, level_id=ids.level, query={}, seed=0, name="first round")
    session.add_all([configuration, file, round_])
    session.flush()
    calculation = Calculation(
        configuration_id=configuration.id, level_id=ids.level, state="finished", round_id=round_.id, proposal="likely"
    )
    session.add(calculation)
    session.flush()
    result = CalculationResult(
        calculation_id=calculation.id, source_file_id=file.id, dataset="runs", row_name="1", energy=-1.5, homo=-5.25
    )
    session.add(result)
    session.flush()
    return result.id


def test_a_result_says_its_file_and_whether_models_may_learn_from_it(session: Session, ids: Ids) -> None:
    result_id = add_result(session, ids)
    row = session.execute(text("SELECT * FROM calculated_results")).mappings().one()
    expected = {
        "result_id": result_id, "configuration": "v_S", "defects": ["v_S@64"], "energy": -1.5, "homo": -5.25,
        "level_of_theory": "PBE", "standing": "usable", "remark": None, "file": "runs/1/vasprun.xml", "sha256": "abc",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    standing = text("SELECT standing, remark FROM calculated_results")
    session.add(QuarantinedResult(result_id=result_id, reason="5 eV off"))
    session.flush()
    assert session.execute(standing).one() == ("aside", "5 eV off")
    result = session.get_one(CalculationResult, result_id)
    result.retracted_at, result.retraction = func.now(), "wrong cell"
    session.flush()
    assert session.execute(standing).one() == ("retracted", "wrong cell")


def test_a_proposed_calculation_says_its_round_and_reason(session: Session, ids: Ids) -> None:
    add_result(session, ids)
    row = session.execute(text("SELECT * FROM proposed_calculations")).mappings().one()
    assert (row["round"], row["reason"], row["state"], row["defects"]) == (
        "first round", "likely", "finished", ["v_S@64"],
    )  # fmt: skip


def test_current_predictions_are_those_of_the_newest_campaign_of_the_version_in_production(
    session: Session, ids: Ids
) -> None:
    add_candidate(session, ids)
    current = text("SELECT candidate FROM current_predictions")
    assert session.execute(current).all() == []
    session.execute(
        text("UPDATE trained_models SET state = 'finished', weights = 'w', finished_at = now() WHERE id = :id"),
        {"id": ids.model},
    )  # which the trigger of migration 0004 puts into production
    assert session.query(Promotion).count() == 1
    assert session.execute(current).all() == []  # the campaign is not finished
    session.execute(text("ALTER TABLE campaigns DISABLE TRIGGER ALL"))  # its counts are none of this test
    session.execute(text("UPDATE campaigns SET state = 'finished', finished_at = now()"))
    assert session.scalars(current).all() == ["c1:10000003"]
    assert session.get_one(Campaign, ids.campaign).model_id == session.get_one(TrainedModel, ids.model).id


@pytest.fixture
def two_empty_engines(migrated_template: Engine) -> Iterator[list[Engine]]:
    """Two databases of one server, without tables."""
    names = [f"apart_{secrets.token_hex(4)}" for _ in range(2)]
    with migrated_template.connect() as connection:
        for name in names:
            connection.execute(text(f"CREATE DATABASE {name}"))
    engines = [
        make_engine(migrated_template.url.set(database=name).render_as_string(hide_password=False)) for name in names
    ]
    yield engines
    with migrated_template.connect() as connection:
        for name, engine in zip(names, engines, strict=True):
            engine.dispose()
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def downgrade(engine: Engine, revision: str) -> None:
    config = migration_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, revision)


def grants(engine: Engine) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT relname, has_table_privilege('screening_reader', oid, 'SELECT') FROM pg_class "
                "WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace ORDER BY 1"
            )
        )
        return [tuple(row) for row in rows]


def alembic_process(engine: Engine, *arguments: str) -> subprocess.Popen[str]:
    """A process, since Alembic knows one migration at a time in each."""
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return subprocess.Popen(
        [sys.executable, "-m", "alembic", *arguments], cwd=ROOT, env={**os.environ, "SCREENING_DATABASE_URL": url},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_databases_of_one_server_are_migrated_at_once(two_empty_engines: list[Engine]) -> None:
    processes = [alembic_process(engine, "upgrade", "head") for engine in two_empty_engines]
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    for engine in two_empty_engines:
        assert grants(engine) == [(view, True) for view in sorted(VIEWS)]


def test_a_downgrade_takes_the_rights_in_this_database_and_leaves_the_role(two_empty_engines: list[Engine]) -> None:
    one, other = two_empty_engines
    migrate(one)
    migrate(other)
    downgrade(one, "0007")
    assert [is_readable for _, is_readable in grants(one)] == [False] * 6
    assert grants(other) == [(view, True) for view in sorted(VIEWS)]


def test_a_server_that_lets_nobody_make_roles_is_migrated_all_the_same(
    migrated_template: Engine, two_empty_engines: list[Engine]
) -> None:
    """As a user who owns the database and may make no role; the role that another made is not theirs to take."""
    engine = two_empty_engines[0]
    name = f"owner_{secrets.token_hex(4)}"
    with migrated_template.connect() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'word'"))
        connection.execute(text(f"ALTER DATABASE {engine.url.database} OWNER TO {name}"))
    url = engine.url.set(username=name, password="word").render_as_string(hide_password=False)
    owner = make_engine(url)
    try:
        migrate(owner)
        assert grants(owner) == [(view, True) for view in sorted(VIEWS)]  # an owner may give rights to any role
        with pytest.raises(DBAPIError, match="permission denied to set role"), owner.connect() as connection:
            connection.execute(text("SET ROLE screening_reader"))
        downgrade(owner, "0007")
    finally:
        owner.dispose()
        with engine.begin() as connection:
            connection.execute(text(f"REASSIGN OWNED BY {name} TO CURRENT_USER"))
            connection.execute(text(f"DROP OWNED BY {name}"))
        with migrated_template.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {engine.url.database} OWNER TO CURRENT_USER"))
            connection.execute(text(f"DROP ROLE {name}"))
