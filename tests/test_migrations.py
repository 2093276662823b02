"""The migrations on a real PostgreSQL: up, down, by command, by two processes, and equal to the tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import alembic.command
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

from screening.database.session import check_schema, make_engine, migrate, migration_config, session_scope
from screening.database.tables import Table
from screening.errors import SchemaError, ServiceError

ROOT = Path(__file__).parent.parent
_NUMBERS = count(1)
SEARCH_SPACE = """
    INSERT INTO hosts (name, formula, lattice, species, positions, is_layer, source)
        VALUES ('MoS2', 'MoS2', array_fill(1.0, ARRAY[9]), '{Mo}', '{0, 0, 0}', true, 'a test');
    INSERT INTO supercells (host_id, matrix, label, n_sites, n_operations)
        VALUES (1, '{1, 0, 0, 0, 1, 0, 0, 0, 1}', '1x1', 1, 1);
    INSERT INTO search_spaces (supercell_id, defect_types, min_defects, max_defects, expected)
        VALUES (1, '{2048, 5376}', 1, 2, 10)"""
FILLED_0002 = (
    SEARCH_SPACE
    + """;
    INSERT INTO compositions (label, defect_types, counts, n_defects) VALUES ('v_S', '{2048}', '{1}', 1),
        ('v_S+v_Mo', '{2048, 5376}', '{1, 1}', 2);
    INSERT INTO chunks (search_space_id, number, n_defects, prefix_sites, prefix_defect_types, state, n_candidates)
        VALUES (1, 0, 2, '{}', '{}', 'finished', 2);
    INSERT INTO candidates (search_space_id, chunk_id, composition_id, multiplicity, sites, defect_types)
        VALUES (1, 1, 1, 32, '{7}', '{2048}'), (1, 1, 2, 96, '{3, 9}', '{5376, 2048}');
    INSERT INTO levels_of_theory (name, code, functional, settings, digest) VALUES ('PBE', 'VASP', 'PBE', '{}', 'd');
    INSERT INTO trained_models (name, level_id, properties, settings, seed, state, weights)
        VALUES ('m', 1, '{homo}', '{}', 1, 'finished', 'w');
    INSERT INTO scoring_chunks (model_id, chunk_id, state, n_predictions) VALUES (1, 1, 'finished', 2);
    INSERT INTO predictions (candidate_id, model_id, homo_mean, homo_std) VALUES (1, 1, -5.0, 0.1), (2, 1, -6.0, 0.1);
    INSERT INTO rankings (model_id, search_space_id, query, sql) VALUES (1, 1, '{"host": "MoS2"}', 'SELECT 1');
    INSERT INTO ranking_rows (ranking_id, rank, candidate_id, probability) VALUES (1, 1, 2, 0.75), (1, 2, 1, 0.5)"""
)
_PROGRAMS = {
    "functions": """
        SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1""",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public' ORDER BY 1",
    "triggers": "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1",
}
_CATALOGUES = {
    "columns": """
        SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
            attgenerated, pg_get_expr(adbin, adrelid), col_description(attrelid, attnum)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
            LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace AND attnum > 0 AND NOT attisdropped
        ORDER BY 1, 2""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2",
    "comments": """
        SELECT oid::regclass::text, obj_description(oid) FROM pg_class
        WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace ORDER BY 1""",
}


@pytest.fixture
def empty_engine(migrated_template: Engine) -> Iterator[Engine]:
    """A database without tables."""
    name = f"empty_{next(_NUMBERS)}"
    with migrated_template.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = make_engine(migrated_template.url.set(database=name).render_as_string(hide_password=False))
    yield engine
    engine.dispose()
    with migrated_template.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def catalogue(engine: Engine, name: str) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        rows = connection.execute(text((_CATALOGUES | _PROGRAMS)[name])).all()
    return [tuple(row) for row in rows if "alembic_version" not in str(row[0])]


def migrate_to(engine: Engine, revision: str) -> None:
    """Up from an empty database, down from one at the newest migration."""
    config = migration_config()
    is_empty = not inspect(engine).get_table_names()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (alembic.command.upgrade if is_empty else alembic.command.downgrade)(config, revision)


def alembic_command(engine: Engine, *arguments: str) -> subprocess.CompletedProcess[str]:
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments], cwd=ROOT, env={**os.environ, "SCREENING_DATABASE_URL": url},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_an_empty_database_gets_every_table(empty_engine: Engine) -> None:
    migrate(empty_engine)
    found = set(inspect(empty_engine).get_table_names())
    assert found == {*Table.metadata.tables, "alembic_version"}


def test_migrating_twice_changes_nothing(empty_engine: Engine) -> None:
    migrate(empty_engine)
    before = catalogue(empty_engine, "columns")
    migrate(empty_engine)
    assert catalogue(empty_engine, "columns") == before


def test_down_leaves_nothing_and_up_again_gives_the_same_schema(empty_engine: Engine) -> None:
    migrate(empty_engine)
    before = {name: catalogue(empty_engine, name) for name in _CATALOGUES | _PROGRAMS}
    assert all(before.values())
    migrate_to(empty_engine, "base")
    assert [catalogue(empty_engine, name) for name in _PROGRAMS] == [[], [], []]
    assert inspect(empty_engine).get_table_names() == ["alembic_version"]
    migrate(empty_engine)
    assert {name: catalogue(empty_engine, name) for name in _CATALOGUES | _PROGRAMS} == before


def test_a_downgrade_to_0002_gives_the_schema_of_0002(empty_engine: Engine) -> None:
    migrate_to(empty_engine, "0002")
    before = {name: catalogue(empty_engine, name) for name in _CATALOGUES | _PROGRAMS}
    migrate(empty_engine)
    migrate_to(empty_engine, "0002")
    assert {name: catalogue(empty_engine, name) for name in _CATALOGUES | _PROGRAMS} == before


def run_script(engine: Engine, script: str) -> None:
    with engine.begin() as connection:
        for statement in script.split(";"):
            connection.exec_driver_sql(statement)


MODELS_0003 = (
    SEARCH_SPACE
    + """;
    INSERT INTO levels_of_theory (name, code, functional, settings, digest) VALUES ('PBE', 'V', 'PBE', '{}', 'd');
    INSERT INTO trained_models (name, level_id, properties, settings, seed, state, weights, finished_at, parent_id)
        VALUES ('first', 1, '{homo}', '{}', 1, 'finished', 'w', '2026-11-01', NULL),
        ('second', 1, '{homo}', '{}', 1, 'finished', 'w', '2026-11-02', 1),
        ('running', 1, '{homo}', '{}', 1, 'waiting', NULL, NULL, 1),
        ('waiting', 1, '{homo}', '{}', 1, 'waiting', NULL, NULL, 1);
    INSERT INTO compositions (label, defect_types, counts, n_defects) VALUES ('v_S', '{2048}', '{1}', 1);
    INSERT INTO configurations (supercell_id, composition_id, n_defects, sites, defect_types, multiplicity)
        VALUES (1, 1, 1, '{1}', '{2048}', 2);
    INSERT INTO calculations (configuration_id, level_id, state) VALUES (1, 1, 'finished');
    INSERT INTO calculation_results (calculation_id, dataset, row_name, energy) VALUES (1, 'a', '1', -1.0);
    INSERT INTO model_training_results (model_id, result_id, role) VALUES (1, 1, 'train')"""
)


def test_models_of_0003_are_lines_of_their_own_after_the_upgrade(empty_engine: Engine) -> None:
    migrate_to(empty_engine, "0003")
    run_script(empty_engine, MODELS_0003)
    migrate(empty_engine)
    with empty_engine.connect() as connection:
        models = connection.execute(
            text(
                "SELECT trained_models.name, model_lines.name, version, hosts, datasets FROM trained_models "
                "JOIN model_lines ON model_lines.id = line_id ORDER BY trained_models.id"
            )
        ).all()
        assert [tuple(row) for row in models] == [
            ("first", "first", 1, ["MoS2"], []), ("second", "second", 1, [], []), ("running", "running", 1, [], []),
            ("waiting", "waiting", 1, [], []),
        ]  # fmt: skip
        production = "SELECT line, model, promoted_at::date::text FROM models_in_production ORDER BY model_id"
        assert [tuple(row) for row in connection.execute(text(production))] == [
            ("first", "first", "2026-11-01"), ("second", "second", "2026-11-02"),
        ]  # fmt: skip


def test_a_downgrade_to_0003_gives_the_schema_of_0003_and_keeps_the_models(empty_engine: Engine) -> None:
    migrate_to(empty_engine, "0003")
    before = {name: catalogue(empty_engine, name) for name in _CATALOGUES | _PROGRAMS}
    run_script(empty_engine, MODELS_0003)
    migrate(empty_engine)
    migrate_to(empty_engine, "0003")
    assert {name: catalogue(empty_engine, name) for name in _CATALOGUES | _PROGRAMS} == before
    with empty_engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM trained_models")) == 4
        assert connection.scalar(text("SELECT count(*) FROM model_training_results")) == 1


def test_rankings_of_0002_keep_what_they_found_though_candidates_are_dropped(empty_engine: Engine) -> None:
    migrate_to(empty_engine, "0002")
    run_script(empty_engine, FILLED_0002)
    migrate(empty_engine)
    with empty_engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT rank, candidate_id, sites, defect_types, multiplicity, probability, campaign_id, query "
                "FROM rankings JOIN ranking_rows ON ranking_id = id ORDER BY rank"
            )
        ).all()
        assert [tuple(row) for row in rows] == [
            (1, 2, [3, 9], [5376, 2048], 96, 0.75, None, {"places": [{"host": "MoS2"}]}),
            (2, 1, [7], [2048], 32, 0.5, None, {"places": [{"host": "MoS2"}]}),
        ]
        kept = "hosts, supercells, search_spaces, levels_of_theory, trained_models, compositions"
        numbers = {name: connection.scalar(text(f"SELECT count(*) FROM {name}")) for name in kept.split(", ")}
        assert numbers == {name: 2 if name == "compositions" else 1 for name in numbers}
        assert connection.scalar(text("SELECT count(*) FROM candidates")) == 0


QUERIES_0004 = {
    '{"host": "MoS2", "supercell": null, "max_defects": null, "windows": [], "sort": "formation_energy_per_site", '
    '"direction": "lowest", "confidence": 0.5, "limit": 20}': {"places": [{"host": "MoS2"}], "limit": 20},
    '{"host": "BP", "supercell": "6x6", "max_defects": 3, "windows": [{"property": "homo", "low": 1.0, "high": null}], '
    '"sort": "homo", "direction": "highest", "confidence": 0.6, "limit": 7}': {
        "places": [{"host": "BP", "supercell": "6x6"}], "max_defects": 3,
        "windows": [{"property": "homo", "low": 1.0}], "sort": "homo", "direction": "highest", "confidence": 0.6,
        "limit": 7,
    },
}  # fmt: skip
CAMPAIGN_0004 = (
    MODELS_0003
    + """;
    INSERT INTO campaigns (name, search_space_id, model_id, storage) VALUES ('c', 1, 1, 'all');
    SELECT add_campaign_partition(1);
    INSERT INTO arrangements (composition_id, defect_types) VALUES (1, '{2048}')"""
)


def add_queries_of_0004(engine: Engine) -> None:
    ranking = (
        "INSERT INTO rankings (model_id, search_space_id, campaign_id, query, sql) VALUES (1, 1, 1, :q, 'SELECT 1')"
    )
    row = (
        "INSERT INTO ranking_rows (ranking_id, rank, candidate_id, sites, defect_types, multiplicity, probability) "
        "SELECT id, 1, 1, '{1}', '{2048}', 1, 0.5 FROM rankings"
    )
    campaign = (
        "INSERT INTO campaigns (name, search_space_id, model_id, storage, query) "
        "VALUES (md5(:q), 1, 1, 'best', CAST(:q AS jsonb))"
    )
    round_ = "INSERT INTO rounds (model_id, level_id, seed, query) VALUES (1, 1, 1, :q)"
    with engine.begin() as connection:
        for query in QUERIES_0004:
            for statement in (campaign, ranking, round_):
                connection.execute(text(statement), {"q": query})
        connection.execute(text(row))


def test_queries_of_0004_name_their_places_after_the_upgrade_and_come_back_by_the_downgrade(
    empty_engine: Engine,
) -> None:
    migrate_to(empty_engine, "0004")
    run_script(empty_engine, CAMPAIGN_0004)
    add_queries_of_0004(empty_engine)
    migrate(empty_engine)
    of = "SELECT query FROM {} WHERE query IS NOT NULL ORDER BY id"
    with empty_engine.connect() as connection:
        for table in ("campaigns", "rankings", "rounds"):
            assert connection.scalars(text(of.format(table))).all() == list(QUERIES_0004.values())
        rows = connection.execute(text("SELECT level_id, composition_id FROM ranking_rows JOIN rankings ON true"))
        assert set(rows.all()) == {(1, 1)}
        parts = connection.execute(text("SELECT place, campaign_id, campaign, supercell_id FROM ranking_campaigns"))
        assert [tuple(part) for part in parts] == [(0, 1, "c", 1)] * 2
    migrate_to(empty_engine, "0004")
    with empty_engine.connect() as connection:
        for table in ("campaigns", "rankings", "rounds"):
            assert connection.scalars(text(of.format(table))).all() == [json.loads(query) for query in QUERIES_0004]


@pytest.mark.parametrize(
    "query",
    [
        '{"places": [{"host": "MoS2"}, {"host": "BP"}], "limit": 5}',
        '{"places": [{"host": "MoS2"}], "required": ["v_S"], "limit": 5}',
        '{"places": [{"host": "MoS2"}], "sort": "homo", "direction": "closest", "target": 1.0, "limit": 5}',
    ],
)
def test_a_query_that_0004_does_not_know_is_not_lost_by_a_downgrade(empty_engine: Engine, query: str) -> None:
    migrate_to(empty_engine, "0004")
    run_script(empty_engine, CAMPAIGN_0004)
    migrate(empty_engine)
    with empty_engine.begin() as connection:
        connection.execute(
            text("INSERT INTO rounds (model_id, level_id, seed, query) VALUES (1, 1, 1, :q)"), {"q": query}
        )
    with pytest.raises(DBAPIError, match="design queries are stored with fields or several places that version 0004"):
        migrate_to(empty_engine, "0004")


def test_finished_campaigns_of_0004_get_the_index_by_arrangement_and_lose_it_by_the_downgrade(
    empty_engine: Engine,
) -> None:
    migrate_to(empty_engine, "0004")
    run_script(empty_engine, CAMPAIGN_0004)
    with empty_engine.begin() as connection:  # finished, without the rows that its trigger would ask for
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE campaigns SET state = 'finished', finished_at = now()"))
    named = "SELECT indexname FROM pg_indexes WHERE tablename = 'candidates_1' ORDER BY 1"
    before = ["candidates_1_energy", "candidates_1_gap", "candidates_1_id"]
    run_script(empty_engine, "SELECT index_campaign_partition(1)")
    for revision, expected in (("head", ["candidates_1_arrangement", *before]), ("0004", before)):
        if revision == "head":
            migrate(empty_engine)
        else:
            migrate_to(empty_engine, revision)
        with empty_engine.connect() as connection:
            assert connection.scalars(text(named)).all() == expected


@pytest.mark.parametrize("revision", ["0004", "0005", "0006"])
def test_a_downgrade_gives_the_schema_of_its_version(empty_engine: Engine, revision: str) -> None:
    migrate_to(empty_engine, revision)
    before = {name: catalogue(empty_engine, name) for name in _CATALOGUES | _PROGRAMS}
    migrate(empty_engine)
    migrate_to(empty_engine, revision)
    assert {name: catalogue(empty_engine, name) for name in _CATALOGUES | _PROGRAMS} == before


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE calculations SET state = 'exported'",
        "UPDATE calculation_results SET retracted_at = now(), retraction = 'a typing error'",
    ],
)
def test_what_0005_does_not_know_of_calculations_is_not_lost_by_a_downgrade(empty_engine: Engine, change: str) -> None:
    migrate(empty_engine)
    run_script(empty_engine, CAMPAIGN_0004)
    run_script(empty_engine, change)
    with pytest.raises(DBAPIError, match="calculations that run elsewhere or results that are withdrawn are stored"):
        migrate_to(empty_engine, "0005")


def test_rankings_are_not_lost_by_a_downgrade(empty_engine: Engine) -> None:
    migrate_to(empty_engine, "0002")
    run_script(empty_engine, FILLED_0002)
    migrate(empty_engine)
    with pytest.raises(DBAPIError, match="rankings are stored, which version 0002 cannot keep"):
        migrate_to(empty_engine, "0002")
    with empty_engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM ranking_rows")) == 2
    run_script(empty_engine, "DELETE FROM rankings")
    migrate_to(empty_engine, "0002")
    assert inspect(empty_engine).has_table("predictions")


def test_campaigns_are_dropped_with_their_partitions_by_a_downgrade(empty_engine: Engine) -> None:
    migrate(empty_engine)
    add_campaign(empty_engine)
    migrate_to(empty_engine, "0002")
    assert not inspect(empty_engine).has_table("candidates_1")
    with empty_engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM search_spaces")) == 1


def add_campaign(engine: Engine) -> None:
    """A campaign with a row in its partition and the indexes of a scored one."""
    run_script(
        engine,
        SEARCH_SPACE
        + """;
        INSERT INTO levels_of_theory (name, code, functional, settings, digest) VALUES ('PBE', 'V', 'PBE', '{}', 'd');
        INSERT INTO trained_models (name, level_id, properties, settings, seed) VALUES ('m', 1, '{homo}', '{}', 1);
        INSERT INTO campaigns (name, search_space_id, model_id, storage) VALUES ('c', 1, 1, 'all');
        SELECT add_campaign_partition(1);
        INSERT INTO candidates (id, campaign_id, arrangement_id, multiplicity, sites) VALUES (1, 1, 1, 1, '{1}');
        SELECT index_campaign_partition(1)""",
    )


def test_search_spaces_of_0001_are_those_without_limits_after_the_upgrade(empty_engine: Engine) -> None:
    migrate_to(empty_engine, "0001")
    with empty_engine.begin() as connection:
        connection.execute(text(SEARCH_SPACE))
    migrate(empty_engine)
    limits = "composition, min_counts, max_counts, min_separation, max_separation"
    with empty_engine.connect() as connection:
        assert connection.execute(text(f"SELECT {limits} FROM search_spaces")).all() == [(None,) * 5]
    with pytest.raises(IntegrityError, match="uq_search_spaces_definition"), empty_engine.begin() as connection:
        connection.execute(text(SEARCH_SPACE.rpartition(";")[2]))


def test_limits_of_search_spaces_are_not_lost_by_a_downgrade(empty_engine: Engine) -> None:
    migrate(empty_engine)
    with empty_engine.begin() as connection:
        connection.execute(text(SEARCH_SPACE))
        connection.execute(text("UPDATE search_spaces SET min_separation = 3.0"))
    with pytest.raises(DBAPIError, match="search spaces with limits are stored"):
        migrate_to(empty_engine, "0001")
    with empty_engine.begin() as connection:
        connection.execute(text("UPDATE search_spaces SET min_separation = NULL"))
    migrate_to(empty_engine, "0001")
    with empty_engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM search_spaces")) == 1


def test_alembic_sees_no_difference_between_migrations_and_tables(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Table.metadata) == []


@pytest.mark.parametrize("name", _CATALOGUES)
def test_migrations_and_tables_give_the_same_catalogue(engine: Engine, empty_engine: Engine, name: str) -> None:
    # checks, generated columns and index conditions, at which alembic does not look
    Table.metadata.create_all(empty_engine)
    found = catalogue(engine, name)
    assert found == catalogue(empty_engine, name)
    assert len(found) >= len(Table.metadata.tables)


def test_every_table_and_every_column_of_the_science_says_what_it_holds() -> None:
    silent = [table.name for table in Table.metadata.tables.values() if not table.comment]
    assert silent == []
    floats = [
        f"{table.name}.{column.name}"
        for table in Table.metadata.tables.values()
        for column in table.columns
        if column.type.python_type is float and not column.comment
    ]
    assert floats == []


def test_the_command_alembic_upgrades_the_database_of_the_environment(empty_engine: Engine) -> None:
    finished = alembic_command(empty_engine, "upgrade", "head")
    assert finished.returncode == 0, finished.stderr
    check_schema(empty_engine)
    assert alembic_command(empty_engine, "check").returncode == 0


def test_partitions_of_campaigns_and_their_indexes_are_no_difference_to_the_command_alembic(
    clean_engine: Engine,
) -> None:
    add_campaign(clean_engine)
    assert inspect(clean_engine).has_table("candidates_1")
    finished = alembic_command(clean_engine, "check")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    run_script(clean_engine, "CREATE TABLE candidates_of_somebody (id integer)")
    finished = alembic_command(clean_engine, "check")
    assert finished.returncode != 0
    assert "candidates_of_somebody" in finished.stdout + finished.stderr


def test_the_command_alembic_without_an_address_says_what_to_set() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode != 0
    assert "SCREENING_DATABASE_URL" in finished.stderr


def test_two_processes_that_migrate_at_once_both_succeed(empty_engine: Engine) -> None:
    url = empty_engine.url.render_as_string(hide_password=False)
    program = "import sys; from screening.database.session import *; migrate(make_engine(sys.argv[1]))"
    both = [subprocess.Popen([sys.executable, "-c", program, url], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    check_schema(empty_engine)


def test_a_migration_that_fails_leaves_the_database_as_it_was(empty_engine: Engine) -> None:
    with empty_engine.begin() as connection:
        connection.execute(text("CREATE TABLE rounds (id integer)"))  # stands in the way of migration 0001
    with pytest.raises(ProgrammingError, match="rounds"):
        migrate(empty_engine)
    assert inspect(empty_engine).get_table_names() == ["rounds"]


def test_a_database_that_is_not_migrated_is_refused(empty_engine: Engine) -> None:
    with pytest.raises(SchemaError, match=r"at migration none, this version of screening needs \d+.*screening up"):
        check_schema(empty_engine)


def test_a_database_of_another_version_is_refused(clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match="at migration 9999"):
        check_schema(clean_engine)


def test_a_server_that_is_not_there_is_a_service_error_without_the_password() -> None:
    absent = make_engine("postgresql+psycopg://someone:secret@127.0.0.1:9/nothing")
    with pytest.raises(ServiceError, match="does not answer") as caught:
        check_schema(absent)
    assert "secret" not in str(caught.value)
