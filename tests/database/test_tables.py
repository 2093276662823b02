"""Every rule of the schema refuses what breaks it, and takes what does not."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest
from sqlalchemy import CheckConstraint, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.tables import PROPERTY_COMMENTS, Calculation, Candidate, Table

_DIALECT = postgresql.dialect()
NAN, INFINITY = "NaN", "Infinity"

# table, columns of a row that is good, and by constraint the columns that break it
ROWS: dict[str, dict[str, Any]] = {
    "hosts": {
        "name": "BN", "formula": "BN", "lattice": "{1,0,0,0,1,0,0,0,1}", "species": "{B,N}",
        "positions": "{0,0,0,0,0,0}", "is_layer": True, "source": "test",
    },
    "supercells": {"host_id": "host", "matrix": "{2,0,0,0,2,0,0,0,1}", "label": "2x2", "n_sites": 12, "n_operations": 48},  # noqa: E501
    "defect_types": {"id": 1, "name": "O_S", "removed": "S", "added": "O"},
    "compositions": {"label": "2*v_S", "defect_types": "{2048}", "counts": "{2}", "n_defects": 2},
    "chemical_potentials": {"level_id": "level", "element": "S", "energy": -4.1, "source": "S8"},
    "configurations": {"supercell_id": "supercell", "composition_id": "vacancy", "n_defects": 1, "sites": "{3}", "defect_types": "{2048}", "multiplicity": 128},  # noqa: E501
    "search_spaces": {"supercell_id": "supercell", "defect_types": "{2048}", "min_defects": 1, "max_defects": 3, "expected": 5},  # noqa: E501
    "search_space_counts": {"search_space_id": "search_space", "composition_id": "vacancy", "expected": 4},
    "arrangements": {"composition_id": "pair", "defect_types": "{2082,2048}"},
    "campaigns": {"name": "c2", "search_space_id": "search_space", "storage": "all"},
    "chunks": {
        "campaign_id": "campaign", "number": 1, "scores": True, "n_defects": 2, "first_sites": "{3}",
        "first_defect_types": "{2048}", "last_sites": "{5}", "last_defect_types": "{2082}",
    },
    "chunk_counts": {"chunk_id": "chunk", "composition_id": "vacancy", "n_candidates": 4, "n_matching": 4},
    "campaign_bins": {"campaign_id": "campaign", "property": "homo", "low": -6.0, "high": -5.0, "n_bins": 10},
    "chunk_histograms": {"chunk_id": "chunk", "property": "homo", "counts": "{0,3,1}"},
    "candidates": {"id": 5, "campaign_id": "campaign", "arrangement_id": "one", "multiplicity": 128, "sites": "{3}", "homo_mean": -5.5, "homo_std": 0.1},  # noqa: E501
    "trained_models": {"name": "m2", "level_id": "level", "properties": "{homo}", "settings": "{}", "seed": 1},
    "model_lines": {"name": "l2", "level_id": "level", "after_results": 100, "after_hours": 0.5},
    "promotions": {"line_id": "line", "model_id": "model", "reason": "test"},
    "model_comparisons": {"challenger_id": "model", "champion_id": "model", "n_rows": 3, "ratio": 0.9, "ratio_low": 0.8, "ratio_high": 1.1, "is_promoted": True, "reason": "test"},  # noqa: E501
    "result_predictions": {"model_id": "model", "result_id": "result", "property": "homo", "mean": -5.0, "std": 0.1, "half_width": 0.2},  # noqa: E501
    "validation_predictions": {"model_id": "model", "result_id": "result", "property": "homo", "mean": -5.0, "std": 0.1},  # noqa: E501
    "quarantined_results": {"result_id": "result", "model_id": "model", "reason": "test"},
    "calculations": {"configuration_id": "configuration", "level_id": "level", "state": "proposed"},
    "calculation_results": {"calculation_id": "calculation", "dataset": "d", "row_name": "r", "energy": -1.0},
    "ranking_rows": {"ranking_id": "ranking", "rank": 1, "candidate_id": 5, "sites": "{3}", "defect_types": "{2048}", "multiplicity": 128, "probability": 0.5},  # noqa: E501
    "model_training_results": {"model_id": "model", "result_id": "result", "role": "train"},
    "interval_multiples": {"model_id": "model", "host": "MoS2", "n_defects": 2, "property": "homo", "multiple": 2.5},
    "campaign_correlations": {"campaign_id": "campaign", "n_defects": 2, "property": "homo", "other": "lumo", "correlation": -0.5},  # noqa: E501
    "ranking_campaigns": {"ranking_id": "ranking", "place": 1, "campaign_id": "campaign", "campaign": "c1", "model_id": "model", "supercell_id": "supercell", "search_space_id": "search_space"},  # noqa: E501
    "ranking_references": {"ranking_id": "ranking", "place": 0, "element": "S", "energy": -4.1, "source": "S8", "shift": 0.0},  # noqa: E501
    "ranking_values": {"ranking_id": "ranking", "rank": 7, "property": "homo", "mean": -5.5, "std": 0.1, "probability": 0.5},  # noqa: E501
    "calculation_failures": {"calculation_id": "calculation", "attempt": 1, "reason": "cut short"},
    "watched_folders": {"machine": "here", "path": "/results"},
    "watched_files": {"folder_id": "folder", "path": "a/vasprun.xml", "size": 5, "modified": 1.5, "outcome": "growing"},
    "designs": {"name": "d2", "query": "{}", "line_id": "line"},
    "loops": {
        "name": "l2", "design_id": "design", "line_id": "line", "level_id": "level", "calculator": "builtin",
        "batch": 8, "max_calculations": 100, "patience": 2, "top": 10, "seed": 1,
    },
    "loop_steps": {"loop_id": "loop", "number": 1, "stage": "rank", "ranking_id": "ranking"},
    "access_tokens": {"name": "ben", "role": "read", "secret_sha256": b"s" * 32},
    "logins": {"token_id": "token", "secret_sha256": b"s" * 32, "expires_at": "2030-01-01"},
    "idempotent_requests": {"token_id": "token", "key": "k", "request_sha256": b"d" * 32, "status": 201, "answer": "{}"},  # noqa: E501
    "uploads": {"purpose": "results", "name": "vasprun.xml", "size": 1, "sha256": b"d" * 32, "content": b"x", "options": "{}"},  # noqa: E501
}  # fmt: skip
_LEASED = {
    "state": {"state": "paused"},
    "lease": {"state": "running"},
    "failed_has_error": {"state": "failed"},
    "attempts": {"attempts": -1},
}
_COUNTED = {
    "state": "finished", "n_candidates": 4, "n_configurations": 512, "checksum": -1, "worker": "here:1", "worked_s": 0.1
}  # fmt: skip
BROKEN: dict[str, dict[str, dict[str, Any]]] = {
    "hosts": {"lattice": {"lattice": "{1,2,3}"}, "positions": {"positions": "{0,0,0}"}},
    "supercells": {"matrix": {"matrix": "{8,8}"}, "sizes": {"n_sites": 0}},
    "defect_types": {"is_a_defect": {"added": "S", "name": "S_S"}, "name": {"name": "v_S2"}},
    "compositions": {"counts": {"counts": "{1,1}"}},
    "chemical_potentials": {"energy_is_finite": {"energy": NAN}},
    "configurations": {"n_defects": {"sites": "{3,4}"}, "multiplicity": {"multiplicity": 0}},
    "search_spaces": {
        "defects": {"min_defects": 4},
        "counts": {"min_counts": "{0}"},
        "separations": {"min_separation": 3.5, "max_separation": 3.0},
    },
    "search_space_counts": {"expected": {"expected": 0}},
    "arrangements": {"defect_types": {"defect_types": "{}"}},
    "campaigns": {
        "state": {"state": "done"},
        "storage": {"storage": "some", "model_id": "model"},
        "best_has_query": {"query": "{}"},
        "best_has_model": {"storage": "best", "query": "{}"},
        "finished_at": {"finished_at": "2026-01-01"},
        "incomplete_has_error": {"state": "incomplete"},
    },
    "chunks": {
        **_LEASED,
        "finished_is_counted": {"state": "finished"},
        "numbers": _COUNTED | {"n_matching": 5},
        "prefixes": {"last_sites": "{}"},
    },
    "chunk_counts": {"numbers": {"n_matching": 5}},
    "campaign_bins": {"bins": {"low": -5.0}},
    "candidates": {
        "configuration": {"sites": "{}"},
        **{name: {f"{name}_mean": NAN, f"{name}_std": 0.1} for name in PROPERTY_COMMENTS},
    },
    "trained_models": {
        **_LEASED,
        "finished_has_weights": {"state": "finished"},
        "finished_drops_checkpoint": {"state": "finished", "weights": b"w", "checkpoint": b"c"},
    },
    "model_lines": {"after_results": {"after_results": 0}, "after_hours": {"after_hours": NAN}},
    "promotions": {"replaced": {"replaced_id": "model"}},
    "model_comparisons": {"ratio": {"ratio_low": None}},
    "quarantined_results": {
        "state": {"state": "lost", "decided_at": "2026-01-01"},
        "decided_at": {"state": "released"},
    },
    "calculations": {
        **_LEASED,
        "expected_s": {"expected_s": 0.0},
        "submitted_at": {"state": "submitted"},
    },
    "calculation_failures": {"attempt": {"attempt": 0}},
    "watched_files": {
        "outcome": {"outcome": "lost"},
        "reason": {"outcome": "refused"},
        "size": {"size": -1},
    },
    "calculation_results": {
        "retraction": {"retracted_at": "2026-01-01"},
        "split": {"split": "test"},
        "energy_is_finite": {"energy": NAN},
        "properties_are_finite": {"lumo": INFINITY},
    },
    "ranking_rows": {
        "probability": {"probability": 1.5},
        "defects": {"sites": "{3,4}"},
        "concentration": {"concentration": -1.0},
    },
    "ranking_campaigns": {"place": {"place": -1}},
    "ranking_references": {"energies_are_finite": {"shift": NAN}},
    "ranking_values": {"distribution": {"std": -0.1}, "probability": {"probability": 1.5}},
    "interval_multiples": {"multiple": {"multiple": 0.9}},
    "campaign_correlations": {"correlation": {"correlation": 1.5}, "pair": {"other": "gap"}},
    "loops": {
        "calculator": {"calculator": "nobody"},
        "state": {"state": "lost", "finished_at": "2026-01-01"},
        "stage": {"stage": "sleep"},
        "numbers": {"batch": 0},
        "failed_has_error": {"state": "failed", "finished_at": "2026-01-01"},
        "finished_at": {"state": "finished"},
    },
    "loop_steps": {"number": {"number": 0}, "stage": {"stage": "sleep"}},
    "model_training_results": {"role": {"role": "test"}},
    "access_tokens": {"role": {"role": "root"}, "secret_sha256": {"secret_sha256": b"short"}},
    "logins": {"secret_sha256": {"secret_sha256": b"short"}},
    "idempotent_requests": {"status": {"status": 500}},
    "uploads": {
        **_LEASED,
        "purpose": {"purpose": "decoration"},
        "file": {"sha256": b"short"},
        "finished_has_report": {"state": "finished"},
        "open_has_content": {"content": None},
    },
}
CASES = [(table, rule, columns) for table, rules in BROKEN.items() for rule, columns in rules.items()]


@pytest.fixture
def references(session: Session, ids: Any) -> dict[str, int]:
    """Ids by the name that stands for them in ROWS."""
    found: dict[str, int] = vars(ids).copy()
    ranking = {"model_id": "model", "level_id": "level", "search_space_id": "search_space", "query": "{}", "sql": ""}
    found["line"] = session.execute(text("SELECT line_id FROM trained_models")).scalar_one()
    found["ranking"] = insert(session, "rankings", ranking, found)
    insert(session, "ranking_campaigns", ROWS["ranking_campaigns"] | {"place": 0}, found)
    insert(session, "ranking_rows", ROWS["ranking_rows"] | {"rank": 7}, found)
    for name, table in {"folder": "watched_folders", "design": "designs", "loop": "loops"}.items():
        first = {key: f"first of {value}" for key, value in ROWS[table].items() if key in ("name", "path")}
        found[name] = insert(session, table, ROWS[table] | first, found)
    found["token"] = insert(
        session, "access_tokens", {"name": "ana", "role": "read", "secret_sha256": b"t" * 32}, found
    )
    for name in ("configuration", "calculation", "result"):
        table = "calculation_results" if name == "result" else f"{name}s"
        columns = ROWS[table] | ({"sites": "{9}"} if "sites" in ROWS[table] else {})
        found[name] = insert(session, table, columns | ({"dataset": "first"} if name == "result" else {}), found)
    spare = ROWS["configurations"] | {"sites": "{10}"}
    found["configuration"] = insert(session, "configurations", spare, found)
    found["calculation"] = insert(session, "calculations", ROWS["calculations"], found)
    found["configuration"] = insert(session, "configurations", spare | {"sites": "{11}"}, found)
    return found


def insert(session: Session, table: str, columns: dict[str, Any], references: dict[str, int]) -> int:
    values = {name: references.get(value, value) if name.endswith("_id") else value for name, value in columns.items()}
    names, marks = ", ".join(values), ", ".join(f"CAST(:{name} AS {type_of(table, name)})" for name in values)
    returning = "RETURNING id" if "id" in Table.metadata.tables[table].columns else "RETURNING 0"
    found = session.scalar(text(f"INSERT INTO {table} ({names}) VALUES ({marks}) {returning}"), values)
    assert isinstance(found, int)
    return found


def type_of(table: str, column: str) -> str:
    return str(Table.metadata.tables[table].columns[column].type.compile(dialect=_DIALECT))


@pytest.mark.parametrize("table", ROWS)
def test_a_good_row_is_taken(session: Session, references: dict[str, int], table: str) -> None:
    insert(session, table, ROWS[table], references)


@pytest.mark.parametrize(("table", "rule", "columns"), CASES, ids=[f"{table}-{rule}" for table, rule, _ in CASES])
def test_a_row_that_breaks_a_rule_is_refused_by_its_name(
    session: Session, references: dict[str, int], table: str, rule: str, columns: dict[str, Any]
) -> None:
    with pytest.raises(IntegrityError, match=rf'violates check constraint "ck_{table}_{rule}"'):
        insert(session, table, ROWS[table] | columns, references)


def test_every_rule_of_every_table_is_broken_by_a_test() -> None:
    stated = {
        (table.name, re.sub(f"^ck_{table.name}_", "", str(rule.name)))
        for table in Table.metadata.tables.values()
        for rule in table.constraints
        if isinstance(rule, CheckConstraint)
    }
    assert {(table, rule) for table, rule, _ in CASES} == stated


@pytest.mark.parametrize(
    "columns",
    [
        {"homo_mean": None}, {"homo_std": None}, {"homo_std": -0.1}, {"homo_std": INFINITY}, {"homo_std": NAN},
        {"homo_mean": INFINITY},
    ],
)  # fmt: skip
def test_a_prediction_is_a_distribution(session: Session, references: dict[str, int], columns: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="ck_candidates_homo"):
        insert(session, "candidates", ROWS["candidates"] | columns, references)


def test_a_candidate_may_leave_properties_out(session: Session, references: dict[str, int]) -> None:
    insert(session, "candidates", ROWS["candidates"] | {"homo_mean": None, "homo_std": None}, references)
    assert session.query(Candidate).one().homo_mean is None


@pytest.mark.parametrize("column", ["n_candidates", "n_configurations", "checksum", "worker", "worked_s"])
def test_a_chunk_is_counted_when_it_is_finished_and_only_then(
    session: Session, references: dict[str, int], column: str
) -> None:
    insert(session, "chunks", ROWS["chunks"] | _COUNTED, references)
    for columns in (_COUNTED | {column: None}, {column: _COUNTED[column]}):
        with pytest.raises(IntegrityError, match="ck_chunks_finished_is_counted"), session.begin_nested():
            insert(session, "chunks", ROWS["chunks"] | {"number": 2} | columns, references)


def test_a_campaign_that_keeps_all_is_there_once_with_and_without_a_model(
    session: Session, references: dict[str, int]
) -> None:
    best = {"storage": "best", "model_id": "model", "query": "{}"}
    for name in ("c3", "c4"):
        insert(session, "campaigns", ROWS["campaigns"] | best | {"name": name}, references)
    insert(session, "campaigns", ROWS["campaigns"], references)
    for columns in ({"name": "c5"}, {"name": "c5", "model_id": "model"}):
        with pytest.raises(IntegrityError, match="uq_campaigns_all"), session.begin_nested():
            insert(session, "campaigns", ROWS["campaigns"] | columns, references)


def test_a_campaign_has_one_chunk_of_a_number(session: Session, references: dict[str, int]) -> None:
    with pytest.raises(IntegrityError, match="uq_chunks_campaign_id_number"):
        insert(session, "chunks", ROWS["chunks"] | {"number": 0}, references)


def test_the_same_search_space_is_not_stored_twice_with_or_without_a_composition(
    session: Session, references: dict[str, int]
) -> None:
    for columns in (ROWS["search_spaces"], ROWS["search_spaces"] | {"composition": "{3}"}):
        insert(session, "search_spaces", columns, references)
        with pytest.raises(IntegrityError, match="uq_search_spaces_definition"), session.begin_nested():
            insert(session, "search_spaces", columns, references)


@pytest.mark.parametrize(
    "limits",
    [
        {"min_counts": "{0,1}", "max_counts": "{1,2}"},  # of two types, where the space has one
        {"min_counts": "{1}", "max_counts": "{1}", "composition": "{1}"},
    ],
)
def test_limits_on_numbers_fit_the_types_and_do_not_go_with_a_composition(
    session: Session, references: dict[str, int], limits: dict[str, str]
) -> None:
    with pytest.raises(IntegrityError, match="ck_search_spaces_counts"):
        insert(session, "search_spaces", ROWS["search_spaces"] | limits, references)


@pytest.mark.parametrize("separation", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("column", ["min_separation", "max_separation"])
def test_separations_are_finite_and_above_zero(
    session: Session, references: dict[str, int], column: str, separation: float
) -> None:
    with pytest.raises(IntegrityError, match="ck_search_spaces_separations"):
        insert(session, "search_spaces", ROWS["search_spaces"] | {column: separation}, references)


def test_search_spaces_that_differ_in_one_limit_are_different(session: Session, references: dict[str, int]) -> None:
    plain = ROWS["search_spaces"]
    for limits in ({"min_separation": 3.0}, {"max_separation": 3.0}, {"min_counts": "{0}", "max_counts": "{2}"}):
        insert(session, "search_spaces", plain | limits, references)
        with pytest.raises(IntegrityError, match="uq_search_spaces_definition"), session.begin_nested():
            insert(session, "search_spaces", plain | limits, references)


def test_the_hash_of_weights_is_computed_by_the_database(session: Session, references: dict[str, int]) -> None:
    finished = {"state": "finished", "weights": b"weights"}
    insert(session, "trained_models", ROWS["trained_models"] | finished, references)
    found = session.scalar(text("SELECT weights_sha256 FROM trained_models WHERE name = 'm2'"))
    assert found == hashlib.sha256(b"weights").hexdigest()


def test_a_configuration_is_calculated_once_at_a_level(session: Session, references: dict[str, int]) -> None:
    insert(session, "calculations", ROWS["calculations"], references)
    with pytest.raises(IntegrityError, match="uq_calculations_configuration_id_level_id"):
        insert(session, "calculations", ROWS["calculations"], references)


def test_a_campaign_takes_its_chunks_counts_and_histograms_with_it_but_no_ranking(
    session: Session, references: dict[str, int]
) -> None:
    for table in ("chunk_counts", "campaign_bins", "chunk_histograms", "campaign_correlations"):
        insert(session, table, ROWS[table], references)
    session.execute(text("UPDATE rankings SET campaign_id = (SELECT id FROM campaigns)"))
    session.execute(text("DELETE FROM campaigns"))
    for table in ("chunks", "chunk_counts", "campaign_bins", "chunk_histograms", "campaign_correlations"):
        assert session.scalar(text(f"SELECT count(*) FROM {table}")) == 0
    kept = session.execute(text("SELECT campaign_id, sites FROM rankings JOIN ranking_rows ON ranking_id = id"))
    assert kept.all() == [(None, [3])]
    assert session.execute(text("SELECT campaign_id, campaign FROM ranking_campaigns")).all() == [(None, "c1")]


@pytest.mark.parametrize(
    ("table", "rule"), [("search_spaces", "fk_campaigns_search_space_id"), ("trained_models", "fk_campaigns_model_id")]
)
def test_what_a_campaign_is_about_cannot_be_taken_away(
    session: Session, references: dict[str, int], table: str, rule: str
) -> None:
    session.execute(text("DELETE FROM rankings"))
    with pytest.raises(IntegrityError, match=rule), session.begin_nested():
        session.execute(text(f"DELETE FROM {table}"))
    session.execute(text("DELETE FROM campaigns"))
    session.execute(text(f"DELETE FROM {table}"))


def test_what_a_model_learnt_from_cannot_be_taken_away(session: Session, references: dict[str, int]) -> None:
    insert(session, "model_training_results", ROWS["model_training_results"], references)
    with pytest.raises(IntegrityError, match="fk_model_training_results_result_id"):
        session.execute(text("DELETE FROM calculation_results"))


def test_a_calculation_has_one_result_that_stands_and_any_number_that_were_withdrawn(
    session: Session, references: dict[str, int]
) -> None:
    plain = ROWS["calculation_results"]
    for row_name in ("a", "b"):
        withdrawn = {"row_name": row_name, "retracted_at": "2026-01-01", "retraction": "a typing error"}
        insert(session, "calculation_results", plain | withdrawn, references)
    insert(session, "calculation_results", plain | {"row_name": "c"}, references)
    with pytest.raises(IntegrityError, match="uq_calculation_results_standing"):
        insert(session, "calculation_results", plain | {"row_name": "d"}, references)


def test_what_rests_on_a_withdrawn_result_is_shown_down_to_the_children_of_its_models(
    session: Session, references: dict[str, int]
) -> None:
    insert(session, "model_training_results", ROWS["model_training_results"], references)
    child = ROWS["trained_models"] | {"parent_id": "model", "state": "finished", "weights": b"w"}
    child_id = insert(session, "trained_models", child, references)
    marked = text("SELECT kind, id, result_id FROM rests_on_retracted ORDER BY kind, id")
    assert session.execute(marked).all() == []
    session.execute(text("UPDATE calculation_results SET retracted_at = now(), retraction = 'a typing error'"))
    result = references["result"]
    assert [tuple(row) for row in session.execute(marked)] == [
        ("campaign", references["campaign"], result), ("model", references["model"], result),
        ("model", child_id, result), ("ranking", references["ranking"], result),
    ]  # fmt: skip


def test_the_progress_of_a_round_counts_its_calculations_by_state(session: Session, references: dict[str, int]) -> None:
    round_ = {"model_id": "model", "level_id": "level", "query": "{}", "seed": 1}
    insert(session, "rounds", round_, references)
    references["round"] = insert(session, "rounds", round_ | {"name": "second"}, references)
    insert(session, "calculations", ROWS["calculations"] | {"round_id": "round"}, references)
    found = session.execute(text("SELECT round, calculations, proposed, finished FROM round_progress ORDER BY 2")).all()
    assert found[1] == ("second", 1, 1, 0)
    assert found[0][1:] == (0, 0, 0)
    assert found[0].round.startswith("round ")


def test_a_calculation_begins_as_waiting_without_attempts(session: Session, references: dict[str, int]) -> None:
    columns = {name: value for name, value in ROWS["calculations"].items() if name != "state"}
    identifier = insert(session, "calculations", columns, references)
    found = session.get_one(Calculation, identifier)
    assert (found.state, found.attempts, found.lease_owner) == ("waiting", 0, None)


def test_a_model_without_a_line_founds_one_and_its_first_finished_version_is_in_production(session: Session) -> None:
    level = tables.LevelOfTheory(name="PBE", code="VASP", functional="PBE", settings={}, digest="d1")
    session.add(level)
    session.flush()
    columns = {"level_id": level.id, "properties": ["homo"], "settings": {}, "seed": 0}
    first = tables.TrainedModel(name="a", **columns)
    session.add(first)
    session.flush()
    assert session.get_one(tables.ModelLine, first.line_id).name == "a"
    assert first.version == 1
    assert session.scalars(select(tables.Promotion)).all() == []
    first.state, first.weights = "finished", b"w"
    second = tables.TrainedModel(name="b", line_id=first.line_id, state="finished", weights=b"w", **columns)
    session.add(second)
    session.flush()
    assert second.version == 2
    (promotion,) = session.scalars(select(tables.Promotion))
    assert (promotion.line_id, promotion.model_id, promotion.replaced_id) == (first.line_id, first.id, None)


def test_two_versions_of_a_line_are_never_trained_at_once(session: Session, ids: Any) -> None:
    open_line = session.get_one(tables.TrainedModel, ids.model).line_id
    columns = {"level_id": ids.level, "properties": ["homo"], "settings": {}, "seed": 0, "line_id": open_line}
    session.add(tables.TrainedModel(name="a", state="failed", error="it diverged", **columns))
    session.flush()
    session.add(tables.TrainedModel(name="b", **columns))
    with pytest.raises(IntegrityError, match="uq_trained_models_open"):
        session.flush()


def test_a_version_of_another_line_or_level_is_refused(session: Session, ids: Any) -> None:
    model = session.get_one(tables.TrainedModel, ids.model)
    other = tables.ModelLine(name="other", level_id=ids.level)
    level = tables.LevelOfTheory(name="another", code="VASP", functional="PBE", settings={}, digest="d2")
    session.add_all([other, level])
    session.flush()
    promotion = {"line_id": other.id, "model_id": model.id, "reason": "test"}
    with pytest.raises(IntegrityError, match="fk_promotions_line_id_model_id"), session.begin_nested():
        session.execute(tables.Promotion.__table__.insert().values(**promotion))
    columns = {"name": "c", "line_id": other.id, "level_id": level.id, "properties": [], "settings": {}, "seed": 0}
    with pytest.raises(IntegrityError, match="fk_trained_models_line_id_level_id"), session.begin_nested():
        session.execute(tables.TrainedModel.__table__.insert().values(**columns))
