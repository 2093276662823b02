"""A design query as one parameterised SELECT, best first, page by page.

A query is answered from one campaign for each of its places, a branch. Where an index has the order of the query, a
branch is a walk along it until there are enough rows: both ways from the target for the closest, and from each
arrangement of defect types that is wanted where the query asks for some, or where chemical potentials shift the
energies of each of them by an amount of its own. Walks are put together by UNION ALL and ranked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Double,
    Float,
    Integer,
    Select,
    and_,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects import postgresql

from screening.database.composition_conditions import of_composition, shift_of_composition, types_of_campaign
from screening.database.design_query import CONCENTRATION, PROBABILITY, DesignQuery
from screening.database.pareto_sql import PREFIX, front_of
from screening.database.query_terms import PER_SITE, Branch, Terms, number, rounded
from screening.database.tables import (
    PROPERTY_COMMENTS,
    Arrangement,
    Calculation,
    Campaign,
    Candidate,
    Composition,
    Configuration,
    SearchSpace,
    TrainedModel,
)
from screening.errors import InputError

MOST_WALKED = 100_000  # rows; so many are found sooner by reading all
_PARTS = 32  # of the limit that is read of each arrangement at first
_ROUNDING = 1e-9  # eV, by which a sum in another order may differ


@dataclass(frozen=True)
class Cursor:
    """The row after which a page begins."""

    key: float
    campaign_id: int
    candidate: int

    def encode(self, query: DesignQuery, branches: Sequence[Branch]) -> str:
        """As text, good for the same query of the same campaigns with any limit."""
        content = json.dumps({"query": _digest(query, branches), **asdict(self)})
        return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str, query: DesignQuery, branches: Sequence[Branch]) -> Cursor:
        """Read what `encode` wrote.

        Raises:
            InputError: it is no cursor, or one of another query, of other campaigns or chemical potentials.
        """
        try:
            fields = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            digest, cursor = fields.pop("query"), cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError, binascii.Error) as error:
            raise InputError(f"{text!r} is no cursor; give the one that the page before has printed") from error
        if digest != _digest(query, branches):
            raise InputError(
                "the cursor is of another design query, or another campaign or other chemical potentials answer it "
                "now; ask the same one of the same campaign, or begin without --after"
            )
        return cursor


def compile_query(query: DesignQuery, branches: Sequence[Branch], *, after: Cursor | None = None) -> Select[Any]:
    """The SELECT of a design query: one row per candidate that has what it sorts by, best first, ties by candidate.

    Raises:
        InputError: pages of a front are asked for, which has none.
    """
    if query.pareto and after is not None:
        raise InputError("a Pareto front has no pages; leave --after out, and raise --limit for all of it")
    if query.pareto:
        return _front(query, branches)
    walks = [walk for branch in branches for walk in _walks(query, branch, after)]
    return _together(query, walks)


def _together(query: DesignQuery, walks: Sequence[Select[Any]]) -> Select[Any]:
    """The best rows of several statements."""
    if len(walks) == 1:
        return walks[0]
    together = union_all(*(select(walk.subquery(f"walk_{n}")) for n, walk in enumerate(walks, start=1))).subquery(
        "walks"
    )
    columns = together.c
    return select(together).order_by(columns.key, columns.campaign_id, columns.candidate).limit(query.limit)


def sort_key(query: DesignQuery, branch: Branch) -> ColumnElement[float]:
    """What a design query ranks candidates by, the smaller the better; without shifts of energies."""
    return Terms(query, branch, Candidate.__table__.c, None).key()


def to_sql(statement: Select[Any]) -> str:
    """The statement as PostgreSQL text with its parameters in place, to read and to run in psql."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    return str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))


@dataclass(frozen=True)
class _Way:
    """How a walk goes: the order of an index, or of the key where there is none; and where it ends."""

    order: ColumnElement[Any]
    rises: bool
    where: ColumnElement[bool]


def _walks(query: DesignQuery, branch: Branch, after: Cursor | None) -> Iterator[Select[Any]]:
    """The statements whose rows together hold the best ones of a branch."""
    for which in (0, 1) if query.target is not None else (0,):
        if _is_walked_by_arrangement(query, branch):
            yield _by_arrangement(query, branch, after, which)
        else:
            yield _of_all(query, branch, after, which)


def _is_walked_by_arrangement(query: DesignQuery, branch: Branch) -> bool:
    """Whether the index by arrangement and energy per defect has the order that is wanted, for each arrangement."""
    filtered = query.has_filters or bool(branch.shifts)
    return filtered and not query.pareto and query.sort == PER_SITE and query.limit <= MOST_WALKED


def _of_all(query: DesignQuery, branch: Branch, after: Cursor | None, which: int) -> Select[Any]:
    """From all candidates of the campaign, in the order of an index where there is one."""
    terms = Terms(query, branch, Candidate.__table__.c, shift_of_composition(branch))
    way = _way(terms, which)
    statement = _from_all(select(*_columns(terms, Composition.label, Arrangement.defect_types))).where(
        *terms.conditions(), way.where, *of_composition(query, branch)
    )
    if after is not None:
        statement = statement.where(_is_after(terms, way, after))
    return statement.order_by(way.order if way.rises else way.order.desc(), Candidate.id).limit(query.limit)


def _by_arrangement(query: DesignQuery, branch: Branch, after: Cursor | None, which: int) -> Select[Any]:
    """From each arrangement that is wanted, as many as are wanted in all: its order is that of an index.

    The first few of each arrangement give a key that the last of the best cannot exceed, so that few more are read.
    """
    shift = shift_of_composition(branch)
    wanted = (
        select(
            Arrangement.id, Arrangement.defect_types, Composition.label, Composition.n_defects,
            (literal(0.0, Double) if shift is None else shift).label("shift"),
        )
        .join(Composition, Composition.id == Arrangement.composition_id)
        .where(*of_composition(query, branch), Composition.defect_types.op("<@")(types_of_campaign(branch)))
        .cte(f"wanted_{branch.place}_{which}")
        .prefix_with("MATERIALIZED")
    )  # fmt: skip
    moved = wanted.c.shift if branch.shifts else None
    few = math.ceil(query.limit / _PARTS)
    first = _of_each(query, branch, after, which, wanted).limit(few).lateral("first")
    keys = Terms(query, branch, first.c, moved).key().label("key")
    of_first = select(keys).select_from(wanted.join(first, true())).subquery("of_first")
    last_key = select(of_first.c.key).order_by(of_first.c.key).offset(query.limit - 1).limit(1).scalar_subquery()
    bound = func.coalesce(last_key, cast(literal("Infinity"), Double), type_=Float)
    of_each = _of_each(query, branch, after, which, wanted)
    row = of_each.where(_is_within(query, branch, which, wanted, bound)).limit(query.limit).lateral("candidate")
    found = Terms(query, branch, row.c, moved)
    return (
        select(*_columns(found, wanted.c.label, wanted.c.defect_types))
        .select_from(wanted.join(row, true()))
        .order_by(found.key(), row.c.id)
        .limit(query.limit)
    )


def _of_each(query: DesignQuery, branch: Branch, after: Cursor | None, which: int, wanted: CTE) -> Select[Any]:
    """The candidates of an arrangement in their order."""
    table = Candidate.__table__
    terms = Terms(query, branch, table.c, wanted.c.shift if branch.shifts else None)
    way = _way(terms, which)
    statement = (
        select(table)
        .where(*terms.conditions(), way.where, table.c.arrangement_id == wanted.c.id)
        .order_by(way.order if way.rises else way.order.desc(), table.c.id)
        .correlate(wanted)
    )
    return statement if after is None else statement.where(_is_after(terms, way, after))


def _is_within(
    query: DesignQuery, branch: Branch, which: int, wanted: CTE, bound: ColumnElement[float]
) -> ColumnElement[bool]:
    """An index condition: the key of a candidate is not above a bound."""
    stored: ColumnElement[Any] = Candidate.__table__.c[f"{query.sort}_mean"]
    shift = wanted.c.shift / cast(wanted.c.n_defects, Float) if branch.shifts else literal(0.0, Double)
    if query.target is not None:
        begin = number(query.target) - shift
        return stored <= begin + bound + _ROUNDING if which == 0 else stored >= begin - bound - _ROUNDING
    if query.direction == "lowest":
        return stored <= bound - shift + _ROUNDING
    return stored >= -bound - shift - _ROUNDING


def _front(query: DesignQuery, branches: Sequence[Branch]) -> Select[Any]:
    """The rows that no other one dominates, in the order of the first goal."""
    parts = []
    for branch in branches:
        terms = Terms(query, branch, Candidate.__table__.c, shift_of_composition(branch))
        goals = [goal.label(f"{PREFIX}{n}") for n, goal in enumerate(terms.goals(), start=1)]
        chosen = select(terms.columns.campaign_id, terms.columns.id.label("candidate"), *goals)
        parts.append(_from_all(chosen).where(*terms.conditions(), *of_composition(query, branch)))
    front = front_of(parts, len(query.pareto))
    rows = []
    for branch in branches:
        terms = Terms(query, branch, Candidate.__table__.c, shift_of_composition(branch))
        found = _from_all(select(*_columns(terms, Composition.label, Arrangement.defect_types)))
        is_there = and_(front.c.campaign_id == terms.columns.campaign_id, front.c.candidate == terms.columns.id)
        of_branch = found.join(front, is_there).where(terms.columns.campaign_id == branch.campaign_id)
        rows.append(of_branch.order_by(terms.key(), Candidate.id).limit(query.limit))
    return _together(query, rows)


def _from_all(statement: Select[Any]) -> Select[Any]:
    return (
        statement.select_from(Candidate)
        .join(Arrangement, Arrangement.id == Candidate.arrangement_id)
        .join(Composition, Composition.id == Arrangement.composition_id)
    )


def _way(terms: Terms, which: int) -> _Way:
    """The order of a walk: along an index where a property is sorted by, also where each arrangement is shifted."""
    query = terms.query
    if query.sort in (PROBABILITY, CONCENTRATION):
        return _Way(terms.key(), True, true())
    stored: ColumnElement[Any] = terms.columns[f"{query.sort}_mean"]
    if query.target is None:
        shifted = terms.shift_of(query.sort) is not None and not _is_walked_by_arrangement(query, terms.branch)
        if shifted:
            return _Way(terms.key(), True, true())
        return _Way(stored, query.direction == "lowest", true())
    begin: ColumnElement[Any] = number(query.target)
    if (shift := terms.shift_of(query.sort)) is not None:
        begin = begin - shift
        if not _is_walked_by_arrangement(query, terms.branch):  # each composition's own begin: no order of an index
            return _Way(terms.key(), True, stored >= begin if which == 0 else stored < begin)
    if which == 0:
        return _Way(stored, True, stored >= begin)
    return _Way(stored, False, stored < begin)


def _is_after(terms: Terms, way: _Way, after: Cursor) -> ColumnElement[bool]:
    """Whether a row comes after that of a cursor; with a condition on the index where it has the order."""
    key, columns = terms.key(), terms.columns
    identity = tuple_(columns.campaign_id, columns.id) > tuple_(literal(after.campaign_id), literal(after.candidate))
    later = or_(key > number(after.key), and_(key == number(after.key), identity))
    query = terms.query
    if query.sort in (PROBABILITY, CONCENTRATION) or query.target is not None or terms.shift_of(query.sort) is not None:
        return later
    return and_(way.order >= number(after.key) if way.rises else way.order <= number(-after.key), later)


def _columns(terms: Terms, label: Any, defect_types: Any) -> list[ColumnElement[Any]]:
    columns, query = terms.columns, terms.query
    values = []
    for name in PROPERTY_COMMENTS:
        shifted = terms.shift_of(name) is not None
        values.append((terms.mean(name) if shifted else columns[f"{name}_mean"]).label(f"{name}_mean"))
        values.append(columns[f"{name}_std"])
    estimate = [terms.concentration().label("concentration")] if query.temperature is not None else []
    return [
        literal(terms.branch.place, Integer).label("place"),
        columns.campaign_id,
        columns.id.label("candidate"),
        label.label("configuration"),
        columns.sites,
        defect_types.label("defect_types"),
        columns.multiplicity,
        columns.closest,
        terms.key().label("key"),
        cast(rounded(terms.probability()), Float).label("probability"),
        *estimate,
        _is_calculated(columns, defect_types).label("calculated"),
        *values,
    ]


def _is_calculated(columns: Any, defect_types: Any) -> ColumnElement[bool]:
    """Whether a finished calculation at the model's level of theory exists for the candidate."""
    return exists(
        select(1)
        .select_from(Calculation)
        .join(Configuration, Configuration.id == Calculation.configuration_id)
        .join(Campaign, Campaign.id == columns.campaign_id)
        .join(SearchSpace, SearchSpace.id == Campaign.search_space_id)
        .join(TrainedModel, TrainedModel.id == Campaign.model_id)
        .where(
            Configuration.supercell_id == SearchSpace.supercell_id,
            Configuration.sites == columns.sites,
            Configuration.defect_types == defect_types,
            Calculation.level_id == TrainedModel.level_id,
            Calculation.state == "finished",
        )
    )


def _digest(query: DesignQuery, branches: Sequence[Branch]) -> str:
    fields = query.stored()
    fields.pop("limit")
    fields["branches"] = [(branch.campaign_id, sorted(branch.shifts.items())) for branch in branches]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
