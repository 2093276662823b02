"""What a review of campaigns found."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.design_query import DesignQuery, Window, compile_query, to_sql
from screening.pipeline import rounds
from tests.pipeline.test_rounds import scored

GAP = Window(property="homo_lumo_gap_min", low=1.0, high=1.2)


@pytest.mark.parametrize("sort", ["formation_energy_per_site", "probability"])
def test_no_probability_is_converted_to_numeric(sort: str) -> None:
    """A division by an expression of unknown type is one by numeric; over a campaign that takes most of the time."""
    query = DesignQuery(host="MoS2", windows=(GAP,), sort=sort)
    assert "numeric" not in to_sql(compile_query(query, campaign_id=1)).lower()


@pytest.mark.parametrize("direction", ["lowest", "highest"])
def test_the_best_is_among_the_likeliest_however_many_are_as_likely(
    session: Session, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    """Where no window is given all are equally likely, and those of the last chunks would never be proposed."""
    scored(session, std=0.01)
    monkeypatch.setattr(rounds, "POOL_ROWS", 3)
    (first,) = rounds.propose(session, DesignQuery(host="MoS2", direction=direction), n=1)
    best = func.min if direction == "lowest" else func.max
    mean = tables.Candidate.formation_energy_per_site_mean
    chosen = session.execute(select(mean).where(tables.Candidate.id == first.candidate_id)).scalar_one()
    assert chosen == session.execute(select(best(mean))).scalar_one()
