"""Which campaign answers a design query, and what its candidates are."""

from __future__ import annotations

import json

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.design_query import DesignQuery
from screening.database.models import find_model, production
from screening.defects.defect_types import DefectType, composition_label
from screening.errors import InputError, UnknownNameError


def find_campaign(
    session: Session, query: DesignQuery, *, model_name: str | None = None, campaign_name: str | None = None
) -> tuple[tables.Campaign, tables.TrainedModel]:
    """The campaign that a query of one place is answered from, and its model.

    Raises:
        UnknownNameError: there is no such campaign, no model, or no such level of theory.
        InputError: nothing that is finished can answer the query.
    """
    supercell_id = queries.supercell_id_of(session, query.host, query.supercell)
    if campaign_name is not None:
        campaign = queries.campaign_by_name(session, campaign_name)
        _check_campaign(session, campaign, query, supercell_id, model_name=model_name)
        assert campaign.model_id is not None
        model = session.get_one(tables.TrainedModel, campaign.model_id)
    else:
        model = _choose_model(session, query, supercell_id, name=model_name)
    _check_level(session, query, model)
    missing = sorted(query.properties - set(model.properties))
    if missing:
        raise InputError(
            f"model {model.name} does not predict {', '.join(missing)}; it predicts {', '.join(model.properties)}"
        )
    return (campaign if campaign_name is not None else _complete_campaign(session, query, model, supercell_id)), model


def _check_campaign(
    session: Session, campaign: tables.Campaign, query: DesignQuery, supercell_id: int, *, model_name: str | None
) -> None:
    """Make sure that a campaign that was asked for by name can answer a query.

    Raises:
        InputError: it cannot.
    """
    space = session.get_one(tables.SearchSpace, campaign.search_space_id)
    if space.supercell_id != supercell_id:
        raise InputError(f"campaign {campaign.name} is about another supercell than host {query.host} of the query")
    if campaign.model_id is None:
        raise InputError(f"campaign {campaign.name} has no model, so it has nothing to rank; choose another one")
    if model_name is not None and not _is_called(session, campaign.model_id, model_name):
        raise InputError(f"campaign {campaign.name} was not scored by model {model_name}; leave --model out")
    sizes = [sum(space.composition)] if space.composition else range(space.min_defects, space.max_defects + 1)
    if query.max_defects is not None and query.max_defects not in sizes:
        raise InputError(
            f"campaign {campaign.name} is about {describe_space(space)}, the query asks for up to {query.max_defects} "
            "defects; leave --max-defects out, or choose another campaign"
        )
    if campaign.state != "finished":
        raise InputError(f"campaign {campaign.name} is {campaign.state}; it can be ranked when it is finished")
    if campaign.storage == "all":
        return
    kept = DesignQuery.model_validate(campaign.query)
    matched = session.scalar(select(func.sum(tables.Chunk.n_matching)).where(tables.Chunk.campaign_id == campaign.id))
    matching = int(matched or 0)
    if not query.ranks_as(kept) and not (matching <= kept.limit and query.is_narrower_than(kept)):
        raise InputError(
            f"campaign {campaign.name} keeps {min(kept.limit, matching)} of the {matching} candidates that satisfy its "
            f"own query, {json.dumps(kept.stored())}; the best of another one may not be among them: "
            "ask the same, or scan the search space with this query (`screening campaign plan`)"
        )


def _at_level(session: Session, name: str | None) -> list[ColumnElement[bool]]:
    """That a model is of a level of theory, if one is asked for.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name is None:
        return []
    level = tables.LevelOfTheory
    level_id = session.scalar(select(level.id).where(level.name == name))
    if level_id is None:
        known = ", ".join(session.scalars(select(level.name).order_by(level.id))) or "none"
        raise UnknownNameError(f"no level of theory is called {name!r}; there are: {known}")
    return [tables.TrainedModel.level_id == level_id]


def _check_level(session: Session, query: DesignQuery, model: tables.TrainedModel) -> None:
    """Make sure that predictions are of the level of theory that is asked for."""
    _at_level(session, query.asked_level)
    level = session.get_one(tables.LevelOfTheory, model.level_id).name
    if query.asked_level not in (None, level):
        raise InputError(
            f"the design query asks for the level {query.asked_level!r}; model {model.name} predicts {level!r}: "
            "ask for that one, or choose another model with --model"
        )


def _is_called(session: Session, model_id: int, name: str) -> bool:
    """Whether a name means a version, or the line that it belongs to."""
    model = session.get_one(tables.TrainedModel, model_id)
    found = find_model(session, name)
    return session.get_one(tables.ModelLine, model.line_id).name == name or (found is not None and found.id == model_id)


def _choose_model(
    session: Session, query: DesignQuery, supercell_id: int, *, name: str | None = None
) -> tables.TrainedModel:
    """The model of this name, or the newest one that has scored what a query asks for, or has scored anything.

    One that is in production comes before all others, by the time of its promotion.

    Raises:
        UnknownNameError: there is no model.
        InputError: the model is not finished.
    """
    if name is not None:
        return queries.model_by_name(session, name)
    in_use = production()
    newest_first = session.scalars(
        select(tables.TrainedModel)
        .outerjoin(in_use, in_use.c.model_id == tables.TrainedModel.id)
        .where(tables.TrainedModel.state == "finished", *_at_level(session, query.asked_level))
        .order_by(in_use.c.promotion_id.desc().nulls_last(), tables.TrainedModel.id.desc())
    ).all()
    for max_defects in (query.max_defects, None):
        for model in newest_first:
            if queries.scored_campaign(session, model.id, supercell_id, max_defects=max_defects) is not None:
                return model
    return queries.model_by_name(session, None)


def _complete_campaign(
    session: Session, query: DesignQuery, model: tables.TrainedModel, supercell_id: int
) -> tables.Campaign:
    """The campaign that keeps every prediction of a model that a query may ask for.

    Raises:
        InputError: the model has scored no search space that holds what the query asks for.
    """
    found = queries.scored_campaign(session, model.id, supercell_id, max_defects=query.max_defects)
    if found is not None:
        return found
    other = queries.scored_campaign(session, model.id, supercell_id)
    if other is None:
        raise InputError(
            f"model {model.name} has scored no search space of host {query.host}; "
            f"run `screening score --host {query.host}` first"
        )
    scored = describe_space(session.get_one(tables.SearchSpace, other.search_space_id))
    raise InputError(
        f"model {model.name} has scored {scored} of host {query.host}, the query asks for up to {query.max_defects} "
        f"defects; run `screening score` with --max-defects {query.max_defects} first"
    )


def describe_space(space: tables.SearchSpace) -> str:
    """What the candidates of a search space are: `1 to 3 of v_S, Se_S`, or `exactly 4*v_S`."""
    if space.composition is not None:
        what = f"exactly {composition_label(dict(zip(space.defect_types, space.composition, strict=True)))}"
    else:
        sizes = "exactly" if space.min_defects == space.max_defects else f"{space.min_defects} to"
        what = f"{sizes} {space.max_defects} of {', '.join(_limited_names(space))}"
    if space.min_separation is not None:
        what += f", at least {space.min_separation:g} A apart"
    if space.max_separation is not None:
        what += f", at most {space.max_separation:g} A apart"
    return what


def _limited_names(space: tables.SearchSpace) -> list[str]:
    names = [DefectType.from_code(code).name for code in space.defect_types]
    if space.min_counts is None or space.max_counts is None:
        return names
    return [
        f"{name} ({least}-{largest})"
        for name, least, largest in zip(names, space.min_counts, space.max_counts, strict=True)
    ]
