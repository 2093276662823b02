"""How the server answers queries of the views: one partition is read, by an index, whatever else there is."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from screening.database.session import session_scope
from tests.database.made_predictions import add_predictions

OF_MANY = "FROM candidate_predictions WHERE campaign_id = campaign('many')"
ROW = "SELECT candidate, configuration, defects, homo_lumo_gap_min, formation_energy_per_site"


@pytest.fixture
def filled(clean_engine: Engine) -> Iterator[Session]:
    """200,000 candidates with indexes, beside a campaign that is still without."""
    with session_scope(clean_engine) as session:
        add_predictions(session, "unfinished", 3_000, is_indexed=False)
        many = add_predictions(session, "many", 200_000)
        assert many == 2
    with session_scope(clean_engine) as session:
        session.execute(text("ANALYZE"))
        yield session


def plan(session: Session, statement: str) -> str:
    return "\n".join(session.scalars(text(f"EXPLAIN {statement}")))


def test_a_window_and_an_order_are_served_by_an_index(filled: Session) -> None:
    """Walking along the order with the window as a condition, or all of the window, whichever is less."""
    windows = {
        "homo_lumo_gap_min BETWEEN 1.0 AND 1.2 ORDER BY formation_energy_per_site": "homo_lumo_gap_min_mean >=",
        "formation_energy_per_site < 0.5 ORDER BY homo_lumo_gap_min DESC": "formation_energy_per_site_mean <",
    }
    for window, condition in windows.items():
        found = plan(filled, f"{ROW} {OF_MANY} AND {window} LIMIT 100")
        assert re.search(r"Index Scan (Backward )?(using|on) candidates_2_(energy|gap)", found), found
        assert re.search(rf"Index Cond: .*{condition}", found), found
        assert "Seq Scan on candidates_2" not in found


def test_a_composition_is_found_by_its_arrangements(filled: Session) -> None:
    statement = f"{ROW} {OF_MANY} AND configuration = '2*v_S+3*Se_S' ORDER BY formation_energy_per_site LIMIT 100"
    found = plan(filled, statement)
    assert re.search(r"candidates_2_arrangement", found)
    assert "Seq Scan on candidates_2" not in found
    rows = filled.execute(text(statement)).all()
    expected = filled.execute(
        text(
            "SELECT formation_energy_per_site_mean FROM candidates_2 "
            "JOIN arrangements ON arrangements.id = arrangement_id "
            "WHERE (SELECT array_agg(t ORDER BY t) FROM unnest(defect_types) AS t) = '{2048,2048,2082,2082,2082}' "
            "ORDER BY 1 LIMIT 100"
        )
    ).all()
    assert [row.formation_energy_per_site for row in rows] == [energy for (energy,) in expected]
    assert len(rows) == 100


def test_the_name_of_a_campaign_is_known_before_the_plan_is_made(filled: Session) -> None:
    for other in ("candidates_1", "Append"):
        assert other not in plan(filled, f"{ROW} {OF_MANY} ORDER BY formation_energy_per_site LIMIT 5")
    assert "candidates_1" in plan(filled, f"{ROW} FROM candidate_predictions WHERE campaign = 'many' LIMIT 5")


def test_a_plan_that_is_kept_does_not_outlive_its_campaign(filled: Session) -> None:
    """Although campaign() calls itself immutable: the partition goes with the campaign, and the plan with it."""
    filled.execute(text(f"PREPARE kept AS SELECT count(*) {OF_MANY}"))
    for _ in range(7):
        assert filled.scalar(text("EXECUTE kept")) == 200_000
    filled.execute(text("DELETE FROM campaigns WHERE name = 'many'"))
    filled.execute(text("SELECT drop_campaign_partition(2)"))
    filled.flush()
    add_predictions(filled, "many", 1_000, is_indexed=False)
    assert filled.scalar(text("EXECUTE kept")) == 1_000
