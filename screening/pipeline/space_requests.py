"""A search space as a person asks for it, in words: from commands, forms and requests to the same SearchSpace."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from screening.database import queries
from screening.database.listings import newest_model
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import parse_composition, parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.defects.host import Host, Supercell
from screening.defects.limits import Limits, parse_limits
from screening.errors import InputError, UnknownNameError
from screening.pipeline.hosts import add_supercell, host_of

_Text = Annotated[str, Field(min_length=1, max_length=1000)]


class SpaceRequest(BaseModel):
    """A search space: which defect types, how many, where."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: _Text = Field(description="name of a host, of the database or of the catalogue", examples=["MoS2"])
    supercell: _Text = Field(description="repeats of the unit cell, or a label of the host", examples=["4x4"])
    defect_types: _Text = Field(description="with commas between them", examples=["v_S,Se_S,v_Mo,W_Mo"])
    max_defects: int | None = Field(
        default=None, ge=1, le=1000, description="largest number of defects; of the composition if not given"
    )
    min_defects: int = Field(default=1, ge=0, le=1000, description="least number of defects")
    composition: _Text | None = Field(default=None, description="exactly these defects", examples=["2*v_S+W_Mo"])
    limits: tuple[_Text, ...] = Field(default=(), description="on the number of one type", examples=[["v_S=0-2"]])
    required: tuple[_Text, ...] = Field(default=(), description="defect types that occur at least once")
    min_separation: float | None = Field(
        default=None, gt=0, description="least distance between any two defects, angstrom"
    )
    max_separation: float | None = Field(
        default=None, gt=0, description="largest distance of any two defects, angstrom"
    )


def space_of(host: Host, request: SpaceRequest) -> SearchSpace:
    """The search space that is asked for, in a host.

    Raises:
        InputError: a part of it cannot be read, does not fit the host, or has no end.
    """
    composition = parse_composition(request.composition) if request.composition else None
    max_defects = request.max_defects
    if max_defects is None:
        if composition is None:
            raise InputError("the search space has no end; give the largest number of defects, or a composition")
        max_defects = sum(composition.values())
    return SearchSpace(
        Supercell.parse(host, request.supercell),
        parse_defect_types(request.defect_types),
        max_defects,
        min_defects=request.min_defects,
        composition=composition,
        limits=Limits(parse_limits(request.limits, request.required), request.min_separation, request.max_separation),
    )


def known_host(session: Session, name: str) -> Host:
    """The host that the database knows by this name, else the catalogue's.

    Raises:
        UnknownNameError: neither knows it.
    """
    row = queries.find_host(session, stored_host_name(session, name))
    return catalogue_host(name) if row is None else host_of(row)


def stored_host_name(session: Session, name: str) -> str:
    """The name by which the database knows, or would know, a host: h-BN for hBN.

    A host of exactly this name comes first, even if the catalogue has it as another name of one of its own.
    """
    if queries.find_host(session, name) is not None:
        return name
    try:
        return catalogue_host(name).name
    except UnknownNameError:
        return name


def model_id_for(session: Session, space: SearchSpace, name: str | None) -> int:
    """The model of this name, or the newest that has learnt from the host of a search space.

    Raises:
        UnknownNameError: there is none.
        InputError: it is not trained yet.
    """
    chosen = name or newest_model(session, add_supercell(session, space.supercell).id)
    return queries.model_by_name(session, chosen).id
