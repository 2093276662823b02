"""Design queries and their ranked tables: which candidates have the properties that are wanted, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.design_query import DesignQuery
from screening.database.models import newer_in_production
from screening.database.query_sql import Cursor, compile_query, to_sql
from screening.pipeline.query_context import Answer, resolve
from screening.pipeline.rankings import store_ranking
from screening.pipeline.reasons import reason_of

__all__ = ["RankedTable", "explain_design_query", "run_design_query", "sql_of", "store_ranking"]


@dataclass(frozen=True)
class RankedTable:
    """What a design query returned.

    Attributes:
        sql: the SELECT, to read and to run elsewhere.
        model: name of the model whose predictions are ranked; like what follows, of the first place.
        campaign: name of the campaign that made them.
        search_space: what its candidates are: `1 to 3 of v_S, Se_S`, or `exactly 4*v_S`.
        candidates: their number, of all places.
        newer: name of the version that is in production instead of the model; None if it is in production itself.
        rows: best first; `candidate`, `configuration`, `sites`, `defects`, `multiplicity`, `probability` (that
            every window holds), `calculated` (a result exists), `reason`, then `<property>_mean` and
            `<property>_std` of the properties that the model has; `host` and `supercell`.
        answers: what answered for each place.
        after: the cursor of the next page; None where this one is not full.
    """

    sql: str
    model: str
    model_id: int
    campaign: str
    campaign_id: int
    search_space_id: int
    search_space: str
    candidates: int
    rows: list[dict[str, Any]]
    newer: str | None = None
    answers: tuple[Answer, ...] = ()
    after: str | None = None


def run_design_query(
    session: Session,
    query: DesignQuery,
    *,
    model_name: str | None = None,
    campaign_name: str | None = None,
    after: str | None = None,
) -> RankedTable:
    """Rank the candidates of a campaign: the one of this name, or one that keeps every prediction of the model.

    Of several that is the largest one with every composition, up to the query's number of defects; a restricted one
    only where there is no other. A query of several places has a campaign for each.

    Args:
        after: the cursor of the page before.

    Raises:
        InputError: the model is not there, lacks a property of the query, or has not scored what it asks for.
    """
    answers = resolve(session, query, model_name=model_name, campaign_name=campaign_name)
    branches = [answer.branch for answer in answers]
    cursor = None if after is None else Cursor.decode(after, query, branches)
    statement = compile_query(query, branches, after=cursor)
    names = dict(session.execute(select(tables.DefectType.id, tables.DefectType.name)).all())
    rows = []
    for found in session.execute(statement).mappings():
        row: dict[str, Any] = {key: value for key, value in found.items() if value is not None}
        answer = answers[row["place"]]
        row["defects"] = [names[code] for code in row.pop("defect_types")]
        row |= {"host": answer.host, "supercell": answer.supercell}
        row["reason"] = reason_of(row, query, answer.branch)
        rows.append(row)
    last = rows[-1] if len(rows) == query.limit and not query.pareto else None
    first = answers[0]
    return RankedTable(
        to_sql(statement), first.model, first.model_id, first.campaign, first.campaign_id, first.search_space_id,
        first.search_space, sum(answer.candidates for answer in answers), rows,
        newer_in_production(session, first.model_id), tuple(answers),
        None if last is None else Cursor(last["key"], last["campaign_id"], last["candidate"]).encode(query, branches),
    )  # fmt: skip


def sql_of(
    session: Session, query: DesignQuery, *, model_name: str | None = None, campaign_name: str | None = None,
    after: str | None = None,
) -> str:  # fmt: skip
    """The SELECT of a design query with its parameters in place, for the campaigns that answer it; nothing is run.

    Raises:
        InputError: as `run_design_query`.
    """
    answers = resolve(session, query, model_name=model_name, campaign_name=campaign_name)
    branches = [answer.branch for answer in answers]
    cursor = None if after is None else Cursor.decode(after, query, branches)
    return to_sql(compile_query(query, branches, after=cursor))


def explain_design_query(
    session: Session, query: DesignQuery, *, model_name: str | None = None, campaign_name: str | None = None,
    after: str | None = None,
) -> str:  # fmt: skip
    """How the database answers a design query, with times and numbers of rows; it is run for that.

    Raises:
        InputError: as `run_design_query`.
    """
    statement = sql_of(session, query, model_name=model_name, campaign_name=campaign_name, after=after)
    return "\n".join(session.scalars(text(f"EXPLAIN (ANALYZE, BUFFERS) {statement}")))
