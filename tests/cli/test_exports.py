"""`screening export` by its names and options."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from screening.cli.exports import kind_of
from screening.database.session import session_scope
from screening.errors import InputError
from screening.settings import Settings
from tests.pipeline.made_gaps import fill


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.csv", "csv"), ("a.CSV.gz", "csv"), ("a.parquet", "parquet"), ("a.xyz", "extxyz"), ("a.json", "json"),
        ("a.db", "ase"), ("structures", "poscar"),
    ],
)  # fmt: skip
def test_the_name_of_the_file_says_its_format(name: str, kind: str) -> None:
    assert kind_of(Path(name), None) == kind
    assert kind_of(Path(name), "csv") == "csv"


def test_names_and_formats_that_are_not_known_are_refused_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"a.xlsx ends in no known format; end it in .csv"):
        kind_of(Path("a.xlsx"), None)
    with pytest.raises(InputError, match="there is no format 'excel'; the formats are csv, parquet, extxyz, poscar"):
        kind_of(Path("a.csv"), "excel")


def export(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert settings.database_url is not None
    assert settings.redis_url is not None
    return subprocess.run(
        [sys.executable, "-c", "from screening.cli import main; main()", "export", *arguments],
        env={
            "PATH": os.defpath, "SCREENING_HOME": str(settings.home), "OMP_NUM_THREADS": "1",
            "SCREENING_DATABASE_URL": settings.database_url.get_secret_value(),
            "SCREENING_REDIS_URL": settings.redis_url.get_secret_value(),
        },
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_a_select_is_written_and_the_report_says_what(clean_services: Settings, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    statement = "SELECT n, n * 0.5::real AS half FROM generate_series(1, 3) AS n"
    shown = export(clean_services, str(path), "--sql", statement)
    assert shown.returncode == 0, shown.stderr
    assert path.read_text() == "n,half\n1,0.5\n2,1\n3,1.5\n"
    assert shown.stdout.startswith("3 rows in ")
    told = json.loads(export(clean_services, str(path), "--sql", statement, "--json").stdout)
    assert (told["rows"], told["format"], told["about"]) == (3, "csv", {"sql": statement})


def test_a_design_query_and_a_ranking_are_written_by_the_options_of_design(
    clean_services: Settings, clean_engine: Engine, tmp_path: Path
) -> None:
    with session_scope(clean_engine) as session:
        fill(session)
    table, structures = tmp_path / "a.csv", tmp_path / "structures"
    shown = export(clean_services, str(table), "--host", "MoS2", "--gap", "0.95:1.15", "--confidence", "0.2")
    assert shown.returncode == 0, shown.stderr
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) > 5
    assert {row["homo_lumo_gap_min"] for row in rows} == {"0.9", "1", "1.1", "1.2"}  # those of 1.3 are too unlikely
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    pairs = export(clean_services, str(table), "--host", "MoS2", "--count", "v_S:2", "--min-defects", "2")
    assert pairs.returncode == 0, pairs.stderr
    with table.open() as stream:
        assert {row["configuration"] for row in csv.DictReader(stream)} == {"2*v_S"}
    limited = export(clean_services, str(structures), "--campaign", "gaps", "--limit", "3")
    assert "3 structures in" in limited.stdout
    assert "the limit of 3 rows was reached" in limited.stdout
    assert len(list(structures.glob("*/POSCAR"))) == 3
    told = json.loads(export(clean_services, str(tmp_path / "a.json"), "--ranking", "1", "--json").stdout)
    assert (told["rows"], told["format"]) == (20, "json")
    assert len(json.loads((tmp_path / "a.json").read_text())) == 20


def test_a_file_without_a_limit_means_all_rows_and_no_limit_is_zero(
    clean_services: Settings, clean_engine: Engine, tmp_path: Path
) -> None:
    with session_scope(clean_engine) as session:
        fill(session)
        n_stored = session.execute(text("SELECT count(*) FROM candidate_predictions")).scalar_one()
    assert n_stored > 20  # the limit of a design query that names none
    query, table = tmp_path / "q.toml", tmp_path / "a.csv"
    for limit, options, n_rows in (("", (), n_stored), ("limit = 4\n", (), 4), ("limit = 4\n", ("--limit", "7"), 7)):
        query.write_text(f'host = "MoS2"\n{limit}')
        told = json.loads(export(clean_services, str(table), "--query", str(query), *options, "--json").stdout)
        assert told["rows"] == n_rows
    table.unlink()
    for options in (("--host", "MoS2"), ("--ranking", "1")):
        refused = export(clean_services, str(table), *options, "--limit", "0")
        assert refused.returncode == 1
        assert "limit" in refused.stderr
    assert not table.exists()


def test_options_of_different_rows_are_refused(clean_services: Settings, tmp_path: Path) -> None:
    refused = export(clean_services, str(tmp_path / "a.csv"), "--ranking", "1", "--gap", "1:2")
    assert refused.returncode == 1
    assert "--ranking, --gap are about different rows" in refused.stderr
    nothing = export(clean_services, str(tmp_path / "a.csv"))
    assert "a design query is about a host" in nothing.stderr
    assert list(tmp_path.iterdir()) == []
