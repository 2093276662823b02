"""Open designs: design queries with a name that are ranked again with every new version of their model.

A saved ranking is a snapshot. Opened, it becomes the first of a row of rankings: once another version goes into
production, the campaign it was made of is scored by that version, and when that is done the query is ranked again. Beat
finds what is to be done (screening.database.loops.designs_to_rank), a worker that tends the lines does it.
"""

from __future__ import annotations

import logging

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from screening.database import loops as rows
from screening.database import models, tables
from screening.database.design_query import DesignQuery
from screening.database.policies import find_same
from screening.database.session import session_scope
from screening.errors import InputError, UnknownNameError
from screening.pipeline.designs import run_design_query
from screening.pipeline.query_context import resolve
from screening.pipeline.rankings import store_ranking
from screening.pipeline.rescoring import check_rescorable, rescore

_logger = logging.getLogger(__name__)

Best = frozenset[tuple[tuple[int, ...], tuple[int, ...]]]


def add_design(
    session: Session, name: str, query: DesignQuery, line: tables.ModelLine, *, is_open: bool = True
) -> tables.Design:
    """Store a design query under a name.

    Args:
        is_open: whether it is ranked again by itself; that of a loop is not, the loop does it.

    Raises:
        InputError: the name is taken.
    """
    if session.scalar(select(tables.Design.id).where(tables.Design.name == name)):
        raise InputError(f"a design is called {name!r} already; choose another name")
    design = tables.Design(name=name, query=query.stored(), line_id=line.id, is_open=is_open)
    session.add(design)
    session.flush()
    return design


def open_ranking(session: Session, name: str, ranking_id: int) -> tables.Design:
    """Let a saved ranking be followed by others, under a name.

    Raises:
        UnknownNameError: there is no such ranking.
        InputError: the name is taken, or the ranking belongs to a design already or is about several places, or its
            campaign was deleted.
    """
    ranking = session.get(tables.Ranking, ranking_id, with_for_update={"key_share": True})
    if ranking is None:
        raise UnknownNameError(f"there is no ranking {ranking_id}; `screening design --save` keeps one")
    if ranking.design_id is not None:
        known = session.get_one(tables.Design, ranking.design_id)
        raise InputError(
            f"ranking {ranking_id} belongs to design {known.name} already; `screening follow list` shows it"
        )
    if ranking.campaign_id is None:
        raise InputError(f"the campaign of ranking {ranking_id} was deleted; rank again (`screening design --save`)")
    query = DesignQuery.model_validate(ranking.query)
    if len(query.places) > 1:
        raise InputError(
            f"ranking {ranking_id} is about {', '.join(map(str, query.places))}; one of a single host and supercell "
            "can be followed: rank and follow each of them"
        )
    model = session.get_one(tables.TrainedModel, ranking.model_id)
    line = session.get_one(tables.ModelLine, model.line_id)
    design = add_design(session, name, query, line)
    ranking.design_id = design.id
    session.flush()
    return design


def close_design(session: Session, name: str) -> tables.Design:
    """Rank a design no more; its rankings stay.

    Raises:
        UnknownNameError: there is no such design.
    """
    design = session.scalar(select(tables.Design).where(tables.Design.name == name))
    if design is None:
        known = ", ".join(session.scalars(select(tables.Design.name).order_by(tables.Design.id)))
        raise UnknownNameError(f"no design is called {name!r}; there are: {known or 'none'}")
    design.is_open = False
    session.flush()
    return design


def query_of(design: tables.Design) -> DesignQuery:
    """The design query of a design."""
    return DesignQuery.model_validate(design.query)


def newest_ranking(session: Session, design_id: int) -> tables.Ranking | None:
    """The newest ranking of a design; None where it has none yet."""
    ranking = tables.Ranking
    return session.scalar(select(ranking).where(ranking.design_id == design_id).order_by(ranking.id.desc()).limit(1))


def scored_again(session: Session, newest: tables.Ranking, model_id: int) -> tables.Campaign | None:
    """The campaign of a version that a design is ranked from next: that of its newest ranking, scored again.

    It has the same search space, storage and query, so that two rankings differ by their model only. Of a campaign that
    was deleted only the search space is known; any that keeps all of that is as good.
    """
    if newest.campaign_id is not None:
        return find_same(session, session.get_one(tables.Campaign, newest.campaign_id), model_id)
    row = tables.Campaign
    of_space = row.search_space_id == newest.search_space_id, row.model_id == model_id, row.storage == "all"
    return session.scalar(select(row).where(*of_space).order_by(row.id.desc()).limit(1))


def store_ranking_of(
    session: Session, design: tables.Design, model: tables.TrainedModel, *, least_rows: int = 1
) -> int:
    """Rank a design by a version that has scored its search space, and keep the ranking; its id.

    The first ranking chooses the campaign, all others are of that one, scored again.

    Raises:
        InputError: the version has not scored it.
    """
    query = query_of(design)
    query = query.model_copy(update={"limit": max(query.limit, least_rows)})
    newest = newest_ranking(session, design.id)
    campaign_name = None
    if newest is not None:
        campaign = scored_again(session, newest, model.id)
        if campaign is None or campaign.state != "finished":
            raise InputError(
                f"{model.name} has not scored the search space that ranking {newest.id} of design {design.name} is of; "
                "score that one with it (`screening score`)"
            )
        campaign_name = campaign.name
    table = run_design_query(session, query, model_name=model.name, campaign_name=campaign_name)
    return store_ranking(session, query, table, design_id=design.id)


def best_rows(session: Session, ranking_id: int, n: int) -> Best:
    """Sites and defect types of the first rows of a ranking."""
    row = tables.RankingRow
    found = session.execute(select(row.sites, row.defect_types).where(row.ranking_id == ranking_id, row.rank <= n))
    return frozenset((tuple(sites), tuple(types)) for sites, types in found)


def rank_open_designs(engine: Engine) -> tuple[list[str], list[str]]:
    """Bring open designs further: names of campaigns that were started, and of designs that were ranked again.

    A transaction for each design; one that somebody else is at is passed by. One that can be ranked no more is closed,
    and the reason is logged, so that the others go on.
    """
    with session_scope(engine) as session:
        wanted = rows.designs_to_rank(session)
    scored, ranked = [], []
    for design_id in wanted:
        try:
            with session_scope(engine) as session:
                if (design := _claim(session, design_id)) is None:
                    continue
                newly_scored, newly_ranked = _bring_further(session, design)
        except InputError as error:
            _close_for(engine, design_id, error)
            continue
        scored += newly_scored
        ranked += newly_ranked
    return scored, ranked


def obstacles(session: Session) -> dict[str, str]:
    """Why closed designs cannot be ranked by the version in production, by name.

    Those that a person has closed, and those of loops, have no obstacle as a rule.
    """
    closed = session.scalars(select(tables.Design).where(~tables.Design.is_open).order_by(tables.Design.id)).all()
    found = {design.name: _obstacle(session, design) for design in closed}
    return {name: reason for name, reason in found.items() if reason is not None}


def _obstacle(session: Session, design: tables.Design) -> str | None:
    """What `_bring_further` would fail with, found without scoring or storing anything."""
    champion, newest = models.in_production(session, design.line_id), newest_ranking(session, design.id)
    if champion is None or newest is None or newest.model_id == champion.id:
        return None
    try:
        again = scored_again(session, newest, champion.id)
        if again is None:
            check_rescorable(session, _campaign_of(session, design, newest), champion)
        elif again.state == "finished":
            resolve(session, query_of(design), model_name=champion.name, campaign_name=again.name)
    except InputError as error:
        return str(error)
    return None


def _claim(session: Session, design_id: int) -> tables.Design | None:
    """A design that is to be ranked, locked; None if somebody else is at it or has been."""
    design = session.scalar(
        select(tables.Design).where(tables.Design.id == design_id).with_for_update(key_share=True, skip_locked=True)
    )
    return design if design is not None and design_id in rows.designs_to_rank(session) else None


def _close_for(engine: Engine, design_id: int, error: InputError) -> None:
    """Close a design that cannot be ranked; the transaction in which that was found is gone."""
    with session_scope(engine) as session:
        if (design := _claim(session, design_id)) is None:
            return
        design.is_open = False
        name = design.name
    _logger.error("design %s is closed, it can be ranked no more: %s; follow another ranking", name, error)


def _bring_further(session: Session, design: tables.Design) -> tuple[list[str], list[str]]:
    """Rank a design where the version in production has scored its search space, else have that scored.

    Returns:
        Names of the campaign that was started and of the design if it was ranked; of neither while it is scored.

    Raises:
        InputError: the design can be neither ranked nor scored again.
    """
    champion = models.in_production(session, design.line_id)
    newest = newest_ranking(session, design.id)
    assert champion is not None
    assert newest is not None
    found = scored_again(session, newest, champion.id)
    if found is not None and found.state == "finished":
        store_ranking_of(session, design, champion)
        return [], [design.name]
    if found is not None and found.state != "planned":
        return [], []
    return [rescore(session, _campaign_of(session, design, newest)).name], []


def _campaign_of(session: Session, design: tables.Design, newest: tables.Ranking) -> tables.Campaign:
    """The campaign of the newest ranking of a design, which is to be scored again.

    Raises:
        InputError: it was deleted.
    """
    if newest.campaign_id is None:
        raise InputError(
            f"the campaign of ranking {newest.id} was deleted, so that design {design.name} cannot be scored again"
        )
    return session.get_one(tables.Campaign, newest.campaign_id)
