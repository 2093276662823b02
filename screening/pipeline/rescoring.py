"""Scoring again: the campaign of a model that is no longer in production, with the version that is.

The old campaign stays, stale, until it is deleted; rankings of both can be compared.
"""

from __future__ import annotations

import re

from sqlalchemy.orm import Session

from screening.database import models, tables
from screening.database.design_query import DesignQuery
from screening.database.policies import find_same
from screening.errors import InputError
from screening.pipeline import campaigns
from screening.pipeline.campaigns import CampaignRequest


def check_rescorable(session: Session, campaign: tables.Campaign, model: tables.TrainedModel) -> None:
    """Make sure that a version can score the search space of a campaign again.

    Raises:
        InputError: it has not seen one of the defect types, or lacks a property of the query.
    """
    query = None if campaign.query is None else DesignQuery.model_validate(campaign.query)
    campaigns.check_request(session, campaign.search_space_id, CampaignRequest(model.id, query))


def rescore(session: Session, campaign: tables.Campaign) -> tables.Campaign:
    """Start the campaign of the same search space and query with the version in production, or find it.

    Raises:
        InputError: it has no model, or its model is in production, or the new version does not fit it.
    """
    if campaign.model_id is None:
        raise InputError(f"campaign {campaign.name} has no model, so that nothing in it is predicted")
    model = session.get_one(tables.TrainedModel, campaign.model_id)
    current = models.in_production(session, model.line_id)
    if current is None or current.id == model.id:
        raise InputError(f"campaign {campaign.name} is scored by {model.name}, which is in production: it is not stale")
    found = find_same(session, campaign, current.id)
    if found is None:
        query = None if campaign.query is None else DesignQuery.model_validate(campaign.query)
        name = f"{re.sub(r'@[0-9]+$', '', campaign.name)}{models.VERSION_MARK}{current.version}"
        found = campaigns.plan(session, campaign.search_space_id, CampaignRequest(current.id, query, name))
    if found.state == "planned":
        campaigns.start(session, found)
    return found
