"""A project as the web side finds it: 4x4 MoS2 with results, a model that was really trained, a campaign, a ranking."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from screening.database import leases, tables
from screening.database.design_query import DesignQuery
from screening.database.session import session_scope
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.pipeline import campaigns, searches
from screening.pipeline.designs import run_design_query, store_ranking
from screening.pipeline.hosts import add_supercell
from screening.pipeline.models import train_unit
from screening.pipeline.scanning import scan_unit
from screening.pipeline.training_requests import TrainingRequest, submit_training
from tests.synthetic_results import LEVEL, add_results, mos2

OWNER = "here:1:a"
QUERY = {"host": "MoS2", "supercell": "4x4", "windows": ["homo_lumo_gap_min=0.5:1.5"], "confidence": 0.0, "limit": 5}


@dataclass(frozen=True)
class Made:
    """Names of what is there."""

    model: str
    campaign: str
    ranking: int


def make_project(engine: Engine) -> Made:
    """Store results of a formula, train a small model on them, score all pairs of two types, and keep a ranking."""
    with session_scope(engine) as session:
        add_results(session, 60)
        request = TrainingRequest(
            level=LEVEL, name="small", settings={"n_members": 3, "width": 8, "n_blocks": 1, "epochs": 4}
        )
        submit_training(session, request)
        model_id = leases.claim_next(session, tables.TrainedModel, OWNER)
        assert model_id is not None
    train_unit(engine, model_id, OWNER, device="cpu")
    with session_scope(engine) as session:
        model = session.get_one(tables.TrainedModel, model_id)
        campaign = start_campaign(session, model.id, name="pairs")
    scan_all(engine)
    with session_scope(engine) as session:
        query = DesignQuery.of(**QUERY)
        ranking = store_ranking(session, query, run_design_query(session, query), name="first")
    return Made("small", campaign, ranking)


def start_campaign(session: Session, model_id: int | None, *, name: str, max_defects: int = 2) -> str:
    """Start a campaign over v_S and Se_S in 4x4 MoS2; its name."""
    stored = add_supercell(session, mos2())
    space = SearchSpace(stored.supercell, parse_defect_types("v_S,Se_S"), max_defects)
    space_id = searches.add_search_space(session, stored, space)
    campaign = campaigns.plan(session, space_id, campaigns.CampaignRequest(model_id, name=name))
    campaigns.start(session, campaign)
    return campaign.name


def scan_all(engine: Engine) -> None:
    """Do every chunk that waits, and end campaigns that are over, as the workers do."""
    while True:
        with session_scope(engine) as session:
            chunk_id = leases.claim_next(session, tables.Chunk, OWNER)
        if chunk_id is None:
            break
        scan_unit(engine, chunk_id, OWNER, device="cpu")
    campaigns.close_over(engine)
