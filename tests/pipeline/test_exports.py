"""Tables and structures of design queries, rankings and SELECTs, read back by pyarrow and by our own readers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet
import pytest
from sqlalchemy import Engine, text

from screening.database import tables
from screening.database.design_query import DesignQuery
from screening.database.session import session_scope
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.defects.matching import Matcher
from screening.dft.structures import read_structures
from screening.errors import InputError, UnknownNameError
from screening.pipeline import structure_rows
from screening.pipeline.designs import run_design_query
from screening.pipeline.export_sources import Source, source_of_query, source_of_ranking, source_of_sql
from screening.pipeline.exports import export_table
from screening.pipeline.hosts import add_supercell
from screening.pipeline.rankings import store_ranking
from screening.pipeline.structure_rows import export_structures
from tests.pipeline.made_campaigns import add_finished
from tests.synthetic_results import mos2

PROPERTIES = ["formation_energy_per_site", "homo_lumo_gap_min"]
QUERY = DesignQuery.of(host="MoS2", windows=["homo_lumo_gap_min=0.5:1.25"], confidence=0.3, limit=1000)
SELECT = "SELECT * FROM candidate_predictions WHERE campaign_id = campaign('m-1') ORDER BY candidate_id -- all"


def predicted(i: int) -> dict[str, float]:
    return {
        "formation_energy_per_site_mean": abs(i % 40 - 20.25) / 8, "formation_energy_per_site_std": 0.05,
        "homo_lumo_gap_min_mean": (i * 7 % 41) / 20, "homo_lumo_gap_min_std": 0.05 + (i % 3) / 10,
    }  # fmt: skip


@pytest.fixture
def scored(clean_engine: Engine) -> Engine:
    """A database with a finished campaign `m-1` of 4x4 MoS2 with up to two of v_S and Se_S."""
    with session_scope(clean_engine) as session:
        level = tables.LevelOfTheory(name="PBE", code="VASP", functional="PBE", settings={}, digest="d")
        session.add(level)
        session.flush()
        model = tables.TrainedModel(
            name="m", level_id=level.id, properties=PROPERTIES, settings={}, seed=0, state="finished", weights=b"w"
        )
        session.add(model)
        session.flush()
        stored = add_supercell(session, mos2())
        space = SearchSpace(stored.supercell, parse_defect_types("v_S,Se_S"), 2)
        add_finished(session, stored, space, model, lambda i, _: predicted(i))
    return clean_engine


def source(engine: Engine, sql: str) -> Source:
    with session_scope(engine) as session:
        return source_of_sql(session, sql)


def design(engine: Engine, query: DesignQuery = QUERY) -> tuple[Source, list[dict[str, Any]]]:
    """The source of a design query, and what the query returns by itself."""
    with session_scope(engine) as session:
        return source_of_query(session, query), run_design_query(session, query).rows


def test_a_design_query_is_written_as_it_is_ranked(scored: Engine, tmp_path: Path) -> None:
    found, rows = design(scored)
    report = export_table(scored, found, tmp_path / "a.csv", kind="csv")
    export_table(scored, found, tmp_path / "a.parquet", kind="parquet")
    assert report.rows == len(rows) > 5
    csv = pyarrow.csv.read_csv(tmp_path / "a.csv").to_pylist()
    parquet = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    for number, (row, line, entry) in enumerate(zip(rows, csv, parquet, strict=True), start=1):
        defects = [f"{name}@{site}" for name, site in zip(row["defects"], row["sites"], strict=True)]
        assert (line["rank"], line["candidate"], line["configuration"]) == (
            number, row["candidate"], row["configuration"],
        )  # fmt: skip
        assert (line["host"], line["supercell"], line["campaign"]) == ("MoS2", "4x4", "m-1")
        assert str(line["defects"]) == " ".join(defects)
        assert (entry["defects"], entry["sites"]) == (defects, row["sites"])
        for name in PROPERTIES:
            assert entry[name] == pytest.approx(row[f"{name}_mean"])
            assert line[f"{name}_std"] == pytest.approx(row[f"{name}_std"])


def test_a_select_is_written_whole_with_types_units_and_what_was_asked(scored: Engine, tmp_path: Path) -> None:
    report = export_table(scored, source(scored, SELECT), tmp_path / "a.parquet", kind="parquet")
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    with scored.connect() as connection:
        expected = connection.execute(text(SELECT.partition("--")[0])).mappings().all()
    assert report.rows == table.num_rows == len(expected) > 10
    for name in ("candidate", "candidate_id", "sites", "types", "is_calculated", "predicted_at"):
        assert table[name].to_pylist() == [row[name] for row in expected]
    gaps = [row["homo_lumo_gap_min"] for row in expected]
    assert table["homo_lumo_gap_min"].to_pylist() == pytest.approx(gaps)  # of single precision
    assert [json.loads(value) for value in table["counts"].to_pylist()] == [row["counts"] for row in expected]
    types = {name: str(table.schema.field(name).type) for name in ("sites", "homo_lumo_gap_min", "predicted_at", "age")}
    assert types == {
        "sites": "list<element: int16>", "homo_lumo_gap_min": "float", "predicted_at": "timestamp[us, tz=UTC]",
        "age": "string",
    }  # fmt: skip
    comment = table.schema.field("homo_lumo_gap_min").metadata[b"comment"].decode()
    assert comment == "predicted smaller HOMO-LUMO gap of the two spin channels, eV"
    assert json.loads(table.schema.metadata[b"screening"])["sql"].startswith("SELECT * FROM candidate_predictions")


def test_numbers_texts_and_nulls_come_through(scored: Engine, tmp_path: Path) -> None:
    odd = source(
        scored,
        "SELECT 1.25::numeric AS x, '{1.5,2}'::numeric[] AS y, NULL::integer AS z, 'a \"b\", 50 %' AS t, true AS b, "
        "'2026-11-24'::date AS d, '{a,NULL}'::text[] AS l, 'NaN'::real AS n",
    )
    export_table(scored, odd, tmp_path / "a.parquet", kind="parquet")
    (row,) = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert str(row.pop("n")) == "nan"
    assert str(row.pop("d")) == "2026-11-24"
    assert row == {"x": 1.25, "y": [1.5, 2.0], "z": None, "t": 'a "b", 50 %', "b": True, "l": ["a", None]}
    export_table(scored, odd, tmp_path / "a.csv", kind="csv")
    assert (tmp_path / "a.csv").read_text() == (
        'x,y,z,t,b,d,l,n\n1.25,1.5 2,,"a ""b"", 50 %",t,2026-11-24,a,NaN\n'
    )  # fmt: skip


def test_a_table_without_rows_has_its_columns(scored: Engine, tmp_path: Path) -> None:
    nothing = source(scored, "SELECT candidate, sites FROM candidate_predictions WHERE false")
    assert export_table(scored, nothing, tmp_path / "a.parquet", kind="parquet").rows == 0
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet").column_names == ["candidate", "sites"]
    assert export_table(scored, nothing, tmp_path / "a.csv", kind="csv").rows == 0
    assert (tmp_path / "a.csv").read_text() == "candidate,sites\n"


def test_more_rows_than_a_block_are_all_written_and_compressed(scored: Engine, tmp_path: Path) -> None:
    many = source(scored, "SELECT n FROM generate_series(1, 150000) AS n")
    said: list[int] = []
    report = export_table(scored, many, tmp_path / "a.parquet", kind="parquet", on_progress=said.append)
    assert (report.rows, said) == (150_000, [65_536, 131_072, 150_000])
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet")["n"].to_pylist() == list(range(1, 150_001))
    export_table(scored, many, tmp_path / "a.csv.gz", kind="csv")
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()).split() == [
        b"n", *(str(n).encode() for n in range(1, 150_001)),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_statement_that_breaks_off_leaves_the_old_file(scored: Engine, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    broken = source(scored, "SELECT 1 / (100000 - n) AS x FROM generate_series(1, 200000) AS n")
    with pytest.raises(InputError, match="the statement is refused: division by zero"):
        export_table(scored, broken, path, kind=kind)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT * FROM trained_models", "permission denied for table trained_models"),
        ("SELECT 1 AS x; DROP TABLE hosts", "syntax error"),
        ("SELECT 1) AS x; RESET ROLE; SELECT * FROM (SELECT 1", "cannot insert multiple commands"),
        ("DELETE FROM hosts RETURNING name", "syntax error"),
        ("SELECT nothing FROM saved_rankings", 'column "nothing" does not exist'),
        ("SELECT 1 AS x, 2 AS x", "several columns are called x; name each once with AS"),
        (" ; ", "the statement is empty"),
    ],
)
def test_what_is_no_select_of_the_views_is_refused(scored: Engine, tmp_path: Path, sql: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        export_table(scored, source(scored, sql), tmp_path / "a.csv", kind="csv")
    assert list(tmp_path.iterdir()) == []
    with scored.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM hosts")) == 1


def test_a_saved_ranking_is_written_by_name_and_number(scored: Engine, tmp_path: Path) -> None:
    with session_scope(scored) as session:
        table = run_design_query(session, QUERY)
        number = store_ranking(session, QUERY, table, name="wanted")
    for name in ("wanted", str(number)):
        with session_scope(scored) as session:
            found = source_of_ranking(session, name)
        export_table(scored, found, tmp_path / "a.parquet", kind="parquet")
        rows = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
        assert [row["candidate"] for row in rows] == [f"m-1:{row['candidate']}" for row in table.rows]
        assert [row["reason"] for row in rows] == [row["reason"] for row in table.rows]
        for name_of in PROPERTIES:
            assert [row[name_of] for row in rows] == pytest.approx([row[f"{name_of}_mean"] for row in table.rows])
        assert "total_mag" not in rows[0]
    for other in ("other", "²", "99999999999"):
        with session_scope(scored) as session, pytest.raises(UnknownNameError, match=f"no ranking is called '{other}'"):
            source_of_ranking(session, other)


def test_arrays_of_arrays_are_refused_in_parquet_with_what_to_do(scored: Engine, tmp_path: Path) -> None:
    nested = "SELECT n, '{{1,2},{3,4}}'::integer[]%s AS m FROM generate_series(1, 100000) AS n"
    with pytest.raises(InputError, match=r"column m does not fit into list<.*select m::text"):
        export_table(scored, source(scored, nested % ""), tmp_path / "a.parquet", kind="parquet")
    assert list(tmp_path.iterdir()) == []
    export_table(scored, source(scored, nested % "::text"), tmp_path / "a.parquet", kind="parquet")
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet")["m"][99_999].as_py() == "{{1,2},{3,4}}"


@pytest.mark.parametrize(("name", "kind"), [("a.extxyz", "extxyz"), ("a", "poscar"), ("a.json", "json")])
def test_structures_are_the_configurations_of_their_rows(scored: Engine, tmp_path: Path, name: str, kind: str) -> None:
    found, rows = design(scored)
    path = tmp_path / name
    report = export_structures(scored, found, path, kind=kind)
    assert report.rows == len(rows)
    files = sorted(path.glob("*/POSCAR")) if kind == "poscar" else [path]
    structures = [structure for file in files for structure in read_structures(file)]
    matcher = Matcher(mos2())
    assert [matcher.match(structure).composition for structure in structures] == [row["configuration"] for row in rows]


def test_too_many_structures_are_not_written_by_mistake(
    scored: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structure_rows, "MOST_STRUCTURES", 3)
    found, rows = design(scored)
    with pytest.raises(InputError, match="there are more than 3 rows, and each would be a structure"):
        export_structures(scored, found, tmp_path / "a.extxyz", kind="extxyz")
    assert list(tmp_path.iterdir()) == []
    assert export_structures(scored, found, tmp_path / "a.extxyz", kind="extxyz", is_all=True).rows == len(rows) > 3


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT host, supercell FROM candidate_predictions", "the rows have no defects"),
        ("SELECT host, supercell, 'v_S@1' AS defects FROM candidate_predictions", "defects is text; expected an array"),
        ("SELECT 'MoS2' AS host, '4x4' AS supercell, '{v_S}'::text[] AS defects", "'v_S' is no defect at a site"),
        ("SELECT 'MoS2' AS host, '4x4' AS supercell, '{v_S@16,Se_S@16}'::text[] AS defects", "a site is named twice"),
        ("SELECT 'WS2' AS host, '4x4' AS supercell, '{v_S@16}'::text[] AS defects", "WS2"),
    ],
)
def test_rows_that_do_not_say_their_structure_are_refused(
    scored: Engine, tmp_path: Path, sql: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export_structures(scored, source(scored, sql), tmp_path / "a.extxyz", kind="extxyz")
    assert list(tmp_path.iterdir()) == []
