"""From a design query to the campaigns that answer it: models, chemical potentials, and how errors spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.branches import check_types, load_branch
from screening.database.design_query import DesignQuery
from screening.database.query_terms import Branch
from screening.defects.defect_types import DefectType
from screening.errors import InputError
from screening.pipeline.campaign_choice import describe_space, find_campaign
from screening.pipeline.potentials import ElementPotential, potentials_of, shifts_of
from screening.pipeline.space_requests import stored_host_name


@dataclass(frozen=True, eq=False)
class Answer:
    """One of a query's places, with the campaign that answers for it.

    Attributes:
        supercell: its label.
        campaign: its name, like `model`.
        properties: what the model predicts.
        search_space: what the candidates are: `1 to 3 of v_S, Se_S`; `candidates` their number.
        potentials: chemical potentials by element, as far as they are known.
    """

    host: str
    supercell: str
    supercell_id: int
    campaign: str
    campaign_id: int
    model: str
    model_id: int
    properties: tuple[str, ...]
    level_id: int
    search_space: str
    search_space_id: int
    candidates: int
    branch: Branch
    potentials: Mapping[str, ElementPotential]


def resolve(
    session: Session, query: DesignQuery, *, model_name: str | None = None, campaign_name: str | None = None
) -> list[Answer]:
    """What answers each of a query's places, in their order.

    Raises:
        UnknownNameError: there is no such host, campaign, model or level of theory.
        InputError: nothing that is finished can answer the query, or its places are at several levels of theory or
            twice the same.
    """
    if campaign_name is not None and len(query.places) > 1:
        raise InputError(
            f"campaign {campaign_name} is about one supercell, the design query about "
            f"{', '.join(map(str, query.places))}; leave --campaign out"
        )
    found = [
        find_campaign(
            session, query.at(place.host, place.supercell), model_name=model_name, campaign_name=campaign_name
        )
        for place in query.places
    ]
    _check_distinct(query, [campaign for campaign, _ in found])
    levels = {model.level_id: model.name for _, model in found}
    if len(levels) > 1:
        names = [f"{name} at {session.get_one(tables.LevelOfTheory, i).name!r}" for i, name in levels.items()]
        raise InputError(f"the places are answered by {', '.join(names)}; a ranking is at one level: give level")
    check_types(session, query, [campaign for campaign, _ in found])
    return [_answer(session, query, place, *answering) for place, answering in enumerate(found)]


def with_stored_host(session: Session, query: DesignQuery) -> DesignQuery:
    """The query under the names by which the database knows its hosts: h-BN for hBN."""
    places = tuple(place.model_copy(update={"host": stored_host_name(session, place.host)}) for place in query.places)
    return query.model_copy(update={"places": places})


def _check_distinct(query: DesignQuery, campaigns: list[tables.Campaign]) -> None:
    """Make sure that no campaign answers for two places, which would give its rows twice."""
    first: dict[int, str] = {}
    for place, campaign in zip(query.places, campaigns, strict=True):
        if campaign.id in first:
            raise InputError(
                f"the places {first[campaign.id]} and {place} are the same one, which campaign {campaign.name} "
                "answers; name it once"
            )
        first[campaign.id] = str(place)


def _answer(
    session: Session, query: DesignQuery, place: int, campaign: tables.Campaign, model: tables.TrainedModel
) -> Answer:
    space = session.get_one(tables.SearchSpace, campaign.search_space_id)
    supercell = session.get_one(tables.Supercell, space.supercell_id)
    types = [DefectType.from_code(code) for code in space.defect_types]
    elements = {symbol for t in types for symbol in (t.removed, t.added) if symbol is not None}
    potentials = potentials_of(session, model.level_id, supercell, query.potentials, elements)
    branch = load_branch(session, campaign, query, place=place)
    branch = replace(branch, shifts=shifts_of(potentials, space.defect_types))
    host = session.get_one(tables.Host, supercell.host_id).name
    return Answer(
        host, supercell.label, supercell.id, campaign.name, campaign.id, model.name, model.id,
        tuple(model.properties), model.level_id,
        describe_space(space), space.id, space.expected, branch, potentials,
    )  # fmt: skip
