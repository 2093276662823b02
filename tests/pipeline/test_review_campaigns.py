"""What a review of campaigns found."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.design_query import DesignQuery, Window
from screening.database.query_sql import compile_query, to_sql
from screening.database.query_terms import Branch
from screening.database.session import session_scope
from screening.errors import CountMismatchError
from screening.pipeline import campaigns, round_pools, rounds, scanning
from screening.pipeline.campaigns import CampaignRequest
from tests.pipeline.made_campaigns import scan_waiting
from tests.pipeline.test_rounds import scored
from tests.pipeline.test_scanning import BLOCK_ROWS, CHUNK_ROWS, Project, project, weights

__all__ = ["project", "weights"]  # fixtures

GAP = Window(property="homo_lumo_gap_min", low=1.0, high=1.2)


@pytest.mark.parametrize("sort", ["formation_energy_per_site", "probability"])
def test_no_probability_is_converted_to_numeric(sort: str) -> None:
    """A division by an expression of unknown type is one by numeric; over a campaign that takes most of the time."""
    query = DesignQuery(host="MoS2", windows=(GAP,), sort=sort)
    assert "numeric" not in to_sql(compile_query(query, [Branch(1)])).lower()


@pytest.mark.parametrize("direction", ["lowest", "highest"])
def test_the_best_is_among_the_likeliest_however_many_are_as_likely(
    session: Session, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    """Where no window is given all are equally likely, and those of the last chunks would never be proposed."""
    scored(session, std=0.01)
    monkeypatch.setattr(round_pools, "POOL_ROWS", 3)
    (first,) = rounds.propose(session, DesignQuery(host="MoS2", direction=direction), n=1)
    best = func.min if direction == "lowest" else func.max
    mean = tables.Candidate.formation_energy_per_site_mean
    chosen = session.execute(select(mean).where(tables.Candidate.id == first.candidate_id)).scalar_one()
    assert chosen == session.execute(select(best(mean))).scalar_one()


def test_of_equally_likely_candidates_a_chunk_stores_no_more_than_the_query_keeps(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a wide window nearly all have probability 1.000000; stored and deleted again, they would be the disk's."""
    stored = []
    copy_rows = scanning.copy_rows

    def counting(*arguments: Any) -> int:
        stored.append(copy_rows(*arguments))
        return stored[-1]

    monkeypatch.setattr(scanning, "copy_rows", counting)
    wide = Window(property="homo_lumo_gap_min", low=-50.0, high=50.0)
    query = DesignQuery(host="MoS2", windows=(wide,), sort="probability", limit=BLOCK_ROWS // 2)
    with session_scope(project.engine) as session:
        campaign = campaigns.plan(
            session, project.space_id, CampaignRequest(project.model_id, query), chunk_rows=CHUNK_ROWS
        )
        campaigns.start(session, campaign)
        campaign_id = campaign.id
        n_chunks = session.execute(select(func.count()).select_from(tables.Chunk)).scalar_one()
        n_candidates = session.get_one(tables.SearchSpace, project.space_id).expected
    scan_waiting(project.engine, campaign_id)
    assert sum(stored) <= n_chunks * query.limit < n_candidates / 2


def test_the_end_of_a_campaign_that_was_cancelled_meanwhile_is_not_written(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its counts are wrong, and between the refusal and the note of it somebody cancels it."""
    with session_scope(project.engine) as session:
        request = CampaignRequest(project.model_id, DesignQuery(host="MoS2", limit=5))
        campaign = campaigns.plan(session, project.space_id, request, chunk_rows=10**6)
        campaigns.start(session, campaign)
        campaign_id = campaign.id
    scan_waiting(project.engine, campaign_id)
    with session_scope(project.engine) as session:
        session.execute(update(tables.ChunkCount).values(n_candidates=tables.ChunkCount.n_candidates + 1))
    close = campaigns._close

    def closing(session: Session, campaign_id: int) -> None:
        try:
            close(session, campaign_id)
        finally:
            session.rollback()
            with session_scope(project.engine) as other:
                campaigns.cancel(other, other.get_one(tables.Campaign, campaign_id))

    monkeypatch.setattr(campaigns, "_close", closing)
    with pytest.raises(CountMismatchError, match="is not complete"):
        campaigns.close_over(project.engine)
    with session_scope(project.engine) as session:
        assert session.get_one(tables.Campaign, campaign_id).state == "cancelled"
