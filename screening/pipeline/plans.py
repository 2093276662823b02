"""Campaigns before and while they run: what one will cost, what it is, and its starts and stops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy.orm import Session

from screening.database import campaigns as rows
from screening.database.design_query import DesignQuery
from screening.database.tables import Campaign, Host, SearchSpace, Supercell, TrainedModel
from screening.defects import enumeration
from screening.pipeline import campaigns, costs, searches
from screening.pipeline.campaign_choice import describe_space
from screening.pipeline.campaigns import CampaignRequest
from screening.pipeline.dispatch import Kind
from screening.pipeline.hosts import add_supercell, symmetry_of
from screening.pipeline.query_words import describe_query

MOST_BYTES = 50 * 10**9  # more than a laptop has to spare

Change = Literal["start", "pause", "resume", "cancel"]


def plan_campaign(
    session: Session, space: enumeration.SearchSpace, request: CampaignRequest, *, chunk_rows: int | None = None
) -> dict[str, Any]:
    """Write a campaign; what it is, and what it will cost.

    Returns:
        `describe_campaign`, with exact numbers of `candidates`, also `by_defects`, of `chunks`, with `disk_bytes` and
        the `seconds` of one worker process.

    Raises:
        InputError: nobody could scan it, or the model does not fit it.
    """
    symmetry = symmetry_of(space.supercell)
    numbers = searches.count_table(space, symmetry)
    total = numbers["total"]
    space_id = searches.add_search_space(session, add_supercell(session, space.supercell), space)
    campaign = campaigns.plan(session, space_id, request, chunk_rows=chunk_rows)
    seconds: float | None
    if request.model_id is None:
        n_properties, seconds = 0, costs.enumeration_seconds(space, symmetry, total)
    else:
        n_properties = len(session.get_one(TrainedModel, request.model_id).properties)
        seconds = costs.scoring_seconds(session, total)
        if seconds is None:
            seconds = costs.timed_scoring_seconds(session, request.model_id, space, symmetry, total)
    n_kept = total if request.query is None else min(total, request.query.limit)
    (progress,) = rows.progress_of(session, campaign.id)
    return {
        **describe_campaign(session, campaign),
        "candidates": total,
        "by_defects": numbers["by_defects"],
        "chunks": progress.chunks,
        "disk_bytes": costs.disk_bytes(n_kept, n_properties=n_properties),
        "seconds": seconds,
    }


def estimate(session: Session, space: enumeration.SearchSpace, *, kept: int | None = None) -> dict[str, Any]:
    """Exact numbers of candidates and what a campaign over them would cost; nothing is stored.

    Args:
        kept: rows that would be kept; all if not given.

    Returns:
        `searches.count_table` with `disk_bytes`, `seconds` to enumerate and `scoring_seconds`, of one process; the
        last is None where nothing was scored yet.
    """
    symmetry = symmetry_of(space.supercell)
    numbers = searches.count_table(space, symmetry)
    total = numbers["total"]
    return numbers | {
        "disk_bytes": costs.disk_bytes(total if kept is None else min(total, kept)),
        "seconds": costs.enumeration_seconds(space, symmetry, total),
        "scoring_seconds": costs.scoring_seconds(session, total),
    }


def change(session: Session, campaign: Campaign, verb: Change) -> Kind | None:
    """Start, pause, resume or cancel a campaign; the kind of work that the workers are to be told of.

    Raises:
        InputError: it is not in a state for that.
    """
    getattr(campaigns, verb)(session, campaign)
    if verb in ("pause", "cancel"):
        return None
    return "enumerate" if campaign.model_id is None else "score"


def describe_campaign(session: Session, campaign: Campaign) -> dict[str, Any]:
    """What a campaign is: name, state, host, supercell, search space, model, storage mode, query."""
    space = session.get_one(SearchSpace, campaign.search_space_id)
    supercell = session.get_one(Supercell, space.supercell_id)
    model = None if campaign.model_id is None else session.get_one(TrainedModel, campaign.model_id).name
    return {
        "campaign": campaign.name,
        "state": campaign.state,
        "host": session.get_one(Host, supercell.host_id).name,
        "supercell": supercell.label,
        "search_space_id": space.id,
        "search_space": describe_space(space),
        "model": model,
        "storage": campaign.storage,
        "query": campaign.query,
    }


def what_is_kept(of: Mapping[str, Any]) -> str:
    """The storage mode of a described campaign in words."""
    if of["query"] is None:
        return "every candidate" + (" with its predictions" if of["model"] else "")
    query = DesignQuery.model_validate(of["query"])
    return f"the best {query.limit:,}: {describe_query(query)}"
