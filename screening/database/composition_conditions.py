"""What a design query asks of compositions: numbers of defects, their types, and what these add to energies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ARRAY, ColumnElement, Integer, SmallInteger, cast, func, literal, select

from screening.database.design_query import DesignQuery
from screening.database.query_terms import Branch, number
from screening.database.tables import Campaign, Composition, SearchSpace


def of_composition(query: DesignQuery, branch: Branch) -> Iterator[ColumnElement[bool]]:
    """Conditions on compositions: numbers of defects, and their types."""
    least, most = branch.sizes(query)
    if least > 1:
        yield Composition.n_defects >= least
    if most is not None:
        yield Composition.n_defects <= most
    occurring: ColumnElement[Any] = Composition.defect_types.expression
    if query.types:
        yield occurring.op("<@")(_codes(branch, query.types))
    if set(query.required) - branch.codes.keys():
        yield literal(False)
    elif query.required:
        yield occurring.op("@>")(_codes(branch, query.required))
    if query.forbidden:
        yield ~occurring.op("&&", is_comparison=True)(_codes(branch, query.forbidden))
    for count in query.counts:
        if count.type not in branch.codes:
            yield literal(count.least == 0)
            continue
        n_of_type = _number_of(branch.codes[count.type])
        if count.least > 0:
            yield n_of_type >= count.least
        if count.most is not None:
            yield n_of_type <= count.most


def _codes(branch: Branch, names: Sequence[str]) -> ColumnElement[Any]:
    """Ids of the types that the campaign has."""
    found = [branch.codes[name] for name in names if name in branch.codes]
    return cast(literal(found, ARRAY(SmallInteger)), ARRAY(SmallInteger))


def _number_of(code: int) -> ColumnElement[int]:
    """How often a defect type occurs in a composition."""
    place = func.array_position(Composition.defect_types, cast(code, SmallInteger), type_=Integer)
    return func.coalesce(Composition.counts[place], 0, type_=Integer)


def types_of_campaign(branch: Branch) -> ColumnElement[Any]:
    """Ids of all defect types of the search space that the campaign scanned."""
    return (
        select(SearchSpace.defect_types)
        .join(Campaign, Campaign.search_space_id == SearchSpace.id)
        .where(Campaign.id == branch.campaign_id)
        .scalar_subquery()
    )


def shift_of_composition(branch: Branch) -> ColumnElement[float] | None:
    """What the chemical potentials add to the formation energy of a composition, eV; None if nothing."""
    total: ColumnElement[float] | None = None
    for code, shift in branch.shifts.items():
        part: ColumnElement[Any] = _number_of(code) * number(shift)
        total = part if total is None else total + part
    return total
