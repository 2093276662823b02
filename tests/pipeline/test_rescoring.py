"""Campaigns whose model is no longer in production are stale, and are scored again by the version that is."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from screening.database import campaigns as rows
from screening.database import models, tables
from screening.database.design_query import DesignQuery
from screening.defects.defect_types import Configuration, parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.errors import InputError
from screening.pipeline import campaigns
from screening.pipeline.campaigns import CampaignRequest
from screening.pipeline.designs import run_design_query
from screening.pipeline.hosts import StoredSupercell, add_supercell
from screening.pipeline.rescoring import rescore
from tests.pipeline.made_campaigns import add_finished, add_trained, train_small
from tests.synthetic_results import mos2

TYPES = parse_defect_types("v_S,Se_S")
QUERY = DesignQuery(host="MoS2", limit=3)


@pytest.fixture(scope="module")
def weights() -> bytes:
    return train_small()


@pytest.fixture
def stored(session: Session) -> StoredSupercell:
    return add_supercell(session, mos2())


@pytest.fixture
def space(stored: StoredSupercell) -> SearchSpace:
    return SearchSpace(stored.supercell, TYPES, 2)


@pytest.fixture
def first(session: Session, stored: StoredSupercell, weights: bytes) -> tables.TrainedModel:
    return add_trained(session, stored, weights, TYPES, name="first")


def predict(number: int, _: Configuration) -> dict[str, float]:
    names = ("formation_energy", "formation_energy_per_site", "homo_lumo_gap_min")
    return {f"{name}_{part}": 1.0 + number for name in names for part in ("mean", "std")}


def add_version(session: Session, first: tables.TrainedModel) -> tables.TrainedModel:
    """Another version of the line, which is promoted."""
    model = tables.TrainedModel(
        name="first@2", line_id=first.line_id, parent_id=first.id, level_id=first.level_id,
        properties=first.properties, settings={}, seed=0, state="finished", weights=first.weights,
    )  # fmt: skip
    session.add(model)
    session.flush()
    learnt = session.query(tables.ModelTrainingResult).where(tables.ModelTrainingResult.model_id == first.id)
    for row in learnt.all():
        session.add(tables.ModelTrainingResult(model_id=model.id, result_id=row.result_id, role=row.role))
    session.flush()
    models.promote(session, model, reason="a test")
    return model


def stale(session: Session) -> dict[str, tuple[bool, str | None]]:
    return {row.campaign: (row.is_stale, row.production) for row in rows.progress_of(session)}


def test_a_promotion_makes_the_campaigns_of_the_line_stale_and_a_rollback_fresh(
    session: Session, stored: StoredSupercell, space: SearchSpace, first: tables.TrainedModel, weights: bytes
) -> None:
    other = add_trained(session, stored, weights, TYPES, name="other")
    names = [add_finished(session, stored, space, model, predict).name for model in (first, other)]
    assert stale(session) == {names[0]: (False, "first"), names[1]: (False, "other")}
    add_version(session, first)
    assert stale(session) == {names[0]: (True, "first@2"), names[1]: (False, "other")}
    models.promote(session, first, reason="rolled back")
    assert stale(session) == {names[0]: (False, "first"), names[1]: (False, "other")}


def test_a_campaign_without_a_model_is_never_stale(
    session: Session, space: SearchSpace, stored: StoredSupercell
) -> None:
    from screening.pipeline import searches

    campaign = campaigns.plan(session, searches.add_search_space(session, stored, space), CampaignRequest())
    assert stale(session) == {campaign.name: (False, None)}
    with pytest.raises(InputError, match="has no model, so that nothing in it is predicted"):
        rescore(session, campaign)


def test_a_ranking_says_that_it_is_stale_until_the_new_version_has_scored(
    session: Session, stored: StoredSupercell, space: SearchSpace, first: tables.TrainedModel
) -> None:
    add_finished(session, stored, space, first, predict)
    assert run_design_query(session, QUERY).newer is None
    second = add_version(session, first)
    found = run_design_query(session, QUERY)
    assert (found.model, found.newer) == ("first", "first@2")
    add_finished(session, stored, space, second, predict)
    found = run_design_query(session, QUERY)
    assert (found.model, found.newer) == ("first@2", None)


def test_rescoring_starts_the_same_campaign_with_the_version_in_production(
    session: Session, stored: StoredSupercell, space: SearchSpace, first: tables.TrainedModel
) -> None:
    old = add_finished(session, stored, space, first, predict)
    second = add_version(session, first)
    new = rescore(session, old)
    assert (new.name, new.model_id, new.state) == (f"{old.name}@2", second.id, "running")
    assert (new.search_space_id, new.storage) == (old.search_space_id, "all")
    assert rescore(session, old).id == new.id
    assert session.get(tables.Campaign, old.id) is not None
    with pytest.raises(InputError, match="scored by first@2, which is in production: it is not stale"):
        rescore(session, new)


def test_the_best_of_a_query_are_kept_by_the_same_query(
    session: Session, stored: StoredSupercell, space: SearchSpace, first: tables.TrainedModel
) -> None:
    from screening.pipeline import searches

    query = DesignQuery(host="MoS2", supercell="4x4", limit=5)
    space_id = searches.add_search_space(session, stored, space)
    old = campaigns.plan(session, space_id, CampaignRequest(first.id, query, "five"))
    second = add_version(session, first)
    new = rescore(session, old)
    assert (new.name, new.model_id, new.storage, new.query) == ("five@2", second.id, "best", old.query)
    third = tables.TrainedModel(
        name="first@3", line_id=first.line_id, parent_id=second.id, level_id=first.level_id,
        properties=first.properties, settings={}, seed=0, state="finished", weights=first.weights,
    )  # fmt: skip
    session.add(third)
    session.flush()
    models.promote(session, third, reason="a test")
    assert rescore(session, new).name == "five@3"
