"""Every rule of the schema refuses what breaks it, and takes what does not."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest
from sqlalchemy import CheckConstraint, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from screening.database.tables import PROPERTY_COMMENTS, Calculation, Prediction, Table

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
    "chunks": {"search_space_id": "search_space", "number": 1, "n_defects": 2, "prefix_sites": "{3}", "prefix_defect_types": "{2048}"},  # noqa: E501
    "candidates": {"search_space_id": "search_space", "chunk_id": "chunk", "composition_id": "vacancy", "multiplicity": 128, "sites": "{3}", "defect_types": "{2048}"},  # noqa: E501
    "trained_models": {"name": "m2", "level_id": "level", "properties": "{homo}", "settings": "{}", "seed": 1},
    "scoring_chunks": {"model_id": "model", "chunk_id": "chunk"},
    "calculations": {"configuration_id": "configuration", "level_id": "level", "state": "proposed"},
    "calculation_results": {"calculation_id": "calculation", "dataset": "d", "row_name": "r", "energy": -1.0},
    "predictions": {"candidate_id": "candidate", "model_id": "model", "homo_mean": -5.5, "homo_std": 0.1},
    "ranking_rows": {"ranking_id": "ranking", "rank": 1, "candidate_id": "candidate", "probability": 0.5},
    "model_training_results": {"model_id": "model", "result_id": "result", "role": "train"},
}  # fmt: skip
_LEASED = {
    "state": {"state": "paused"},
    "lease": {"state": "running"},
    "failed_has_error": {"state": "failed"},
    "attempts": {"attempts": -1},
}
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
    "chunks": {**_LEASED, "finished_is_counted": {"state": "finished"}, "prefix": {"prefix_sites": "{}"}},
    "candidates": {"defects": {"sites": "{}", "defect_types": "{}"}, "multiplicity": {"multiplicity": 0}},
    "trained_models": {
        **_LEASED,
        "finished_has_weights": {"state": "finished"},
        "finished_drops_checkpoint": {"state": "finished", "weights": b"w", "checkpoint": b"c"},
    },
    "scoring_chunks": {**_LEASED, "finished_is_counted": {"n_predictions": 3}},
    "calculations": _LEASED,
    "calculation_results": {
        "split": {"split": "test"},
        "energy_is_finite": {"energy": NAN},
        "properties_are_finite": {"lumo": INFINITY},
    },
    "predictions": {name: {f"{name}_mean": NAN, f"{name}_std": 0.1} for name in PROPERTY_COMMENTS},
    "ranking_rows": {"probability": {"probability": 1.5}},
    "model_training_results": {"role": {"role": "test"}},
}
CASES = [(table, rule, columns) for table, rules in BROKEN.items() for rule, columns in rules.items()]


@pytest.fixture
def references(session: Session, ids: Any) -> dict[str, int]:
    """Ids by the name that stands for them in ROWS."""
    found: dict[str, int] = vars(ids).copy()
    ranking = {"model_id": "model", "search_space_id": "search_space", "query": "{}", "sql": ""}
    found["ranking"] = insert(session, "rankings", ranking, found)
    for name in ("configuration", "calculation", "candidate", "result"):
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


@pytest.mark.parametrize("columns", [{"homo_mean": -5.5}, {"homo_std": 0.1}, {"homo_mean": -5.5, "homo_std": -0.1}])
def test_a_prediction_has_mean_and_spread_or_neither(
    session: Session, references: dict[str, int], columns: dict[str, Any]
) -> None:
    bare = {"candidate_id": "candidate", "model_id": "model"}
    with pytest.raises(IntegrityError, match="ck_predictions_homo"):
        insert(session, "predictions", bare | columns, references)


def test_a_prediction_may_leave_properties_out(session: Session, references: dict[str, int]) -> None:
    insert(session, "predictions", {"candidate_id": "candidate", "model_id": "model"}, references)
    assert session.query(Prediction).one().homo_mean is None


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


def test_a_search_space_takes_its_candidates_and_predictions_with_it(
    session: Session, references: dict[str, int]
) -> None:
    insert(session, "predictions", ROWS["predictions"], references)
    session.execute(text("DELETE FROM rankings"))
    session.execute(text("DELETE FROM search_spaces"))
    for table in ("chunks", "candidates", "predictions", "scoring_chunks"):
        assert session.scalar(text(f"SELECT count(*) FROM {table}")) == 0


def test_what_a_model_learnt_from_cannot_be_taken_away(session: Session, references: dict[str, int]) -> None:
    insert(session, "model_training_results", ROWS["model_training_results"], references)
    with pytest.raises(IntegrityError, match="fk_model_training_results_result_id"):
        session.execute(text("DELETE FROM calculation_results"))


def test_a_calculation_begins_as_waiting_without_attempts(session: Session, references: dict[str, int]) -> None:
    columns = {name: value for name, value in ROWS["calculations"].items() if name != "state"}
    identifier = insert(session, "calculations", columns, references)
    found = session.get_one(Calculation, identifier)
    assert (found.state, found.attempts, found.lease_owner) == ("waiting", 0, None)
