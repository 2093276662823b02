"""What is exported: the rows of a design query, of a saved ranking, or of a SELECT that somebody wrote.

Each becomes one SELECT without parameters, whose rows name what they are about: a host, a supercell and defects at
their sites (`v_S@16`), from which a structure can be made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Text, case, func, literal, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.design_query import DesignQuery
from screening.database.query_sql import compile_query, to_sql
from screening.database.readers import READER, role_problem
from screening.database.tables import PROPERTY_COMMENTS
from screening.errors import InputError, UnknownNameError
from screening.pipeline.query_context import Answer, resolve

_FIRST = ("candidate", "configuration", "multiplicity", "probability", "concentration", "calculated")


@dataclass(frozen=True)
class Source:
    """A SELECT with what it is.

    Attributes:
        sql: without parameters.
        about: what its rows are, by name: the design query, the model, the ranking; kept in Parquet files.
        role: that it is run as; None is whoever owns the database.
        limit: that it was given; None where it returns all there is.
    """

    sql: str
    about: Mapping[str, str]
    role: str | None = None
    limit: int | None = None


def source_of_query(
    session: Session, query: DesignQuery, *, model_name: str | None = None, campaign_name: str | None = None
) -> Source:
    """The rows of a design query in their order, as many as its limit says.

    Raises:
        InputError: as `screening.pipeline.query_context.resolve` says.
    """
    answers = resolve(session, query, model_name=model_name, campaign_name=campaign_name)
    ranked = compile_query(query, [answer.branch for answer in answers]).subquery("ranked")
    predicted = {name for answer in answers for name in answer.properties}
    values = [
        ranked.c[f"{name}_{part}"].label(name if part == "mean" else f"{name}_std")
        for name in PROPERTY_COMMENTS
        if name in predicted
        for part in ("mean", "std")
    ]
    statement = select(
        func.row_number().over().label("rank"),
        _by_place(ranked.c.place, [answer.host for answer in answers]).label("host"),
        _by_place(ranked.c.place, [answer.supercell for answer in answers]).label("supercell"),
        _by_place(ranked.c.place, [answer.campaign for answer in answers]).label("campaign"),
        *(ranked.c[name] for name in _FIRST if name in ranked.c),
        ranked.c.sites,
        _defects(ranked.c.sites, ranked.c.defect_types).label("defects"),
        *values,
    )
    about = {"design query": json.dumps(query.stored()), **_models(answers)}
    return Source(to_sql(statement), about, limit=query.limit)


def source_of_ranking(session: Session, name: str) -> Source:
    """The rows of a saved ranking, by its name or number.

    Raises:
        UnknownNameError: there is no such ranking.
    """
    ranking = session.scalar(select(tables.Ranking).where(tables.Ranking.name == name))
    if ranking is None and name.isdecimal() and len(name) < 10:
        ranking = session.get(tables.Ranking, int(name))
    if ranking is None:
        raise UnknownNameError(f"no ranking is called {name!r}; `screening ranking list` shows them")
    of_ranking = (
        select(tables.RankingValue.property).where(tables.RankingValue.ranking_id == ranking.id).distinct()
    )  # fmt: skip
    predicted = set(session.scalars(of_ranking))
    columns = [f"{name}, {name}_std" for name in PROPERTY_COMMENTS if name in predicted]
    statement = (  # the number is ours and the names are of our own list
        "SELECT rank, candidate, host, supercell, configuration, n_defects, multiplicity, probability, concentration, "  # noqa: S608
        f"is_calculated, sites, defects, {''.join(f'{column}, ' for column in columns)}reason "
        f"FROM saved_ranking_rows WHERE ranking_id = {ranking.id:d} ORDER BY rank"
    )
    about = {"ranking": ranking.name or str(ranking.id), "design query": json.dumps(ranking.query)}
    return Source(statement, about)


def source_of_sql(session: Session, sql: str) -> Source:
    """The rows of a SELECT of the documented views; run as a reader where the server has the role.

    Raises:
        InputError: there is nothing in it.
    """
    statement = sql.strip().rstrip(";").rstrip()
    if not statement:
        raise InputError("the statement is empty; expected a SELECT of the documented views")
    return Source(statement, {"sql": statement}, role=None if role_problem(session) else READER)


def _models(answers: Sequence[Answer]) -> dict[str, str]:
    return {
        "model": ", ".join(dict.fromkeys(answer.model for answer in answers)),
        "campaign": ", ".join(answer.campaign for answer in answers),
    }


def _by_place(place: Any, names: Sequence[str]) -> Any:
    if len(set(names)) == 1:
        return literal(names[0], Text)
    return case(dict(enumerate(names)), value=place)


def _defects(sites: Any, defect_types: Any) -> Any:
    """`{v_S@16,Se_S@20}`."""
    pair = func.unnest(sites, defect_types).table_valued("site", "id").render_derived("placed")
    label = func.concat(tables.DefectType.name, "@", pair.c.site)
    named = (
        select(func.array_agg(aggregate_order_by(label, pair.c.site)))
        .select_from(pair)
        .join(tables.DefectType, tables.DefectType.id == pair.c.id)
    )
    return named.scalar_subquery()
