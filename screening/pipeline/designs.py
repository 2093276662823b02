"""Design queries and their rankings: which candidates have the properties that are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.design_query import DesignQuery, compile_query, to_sql
from screening.errors import InputError


@dataclass(frozen=True)
class RankedTable:
    """What a design query returned.

    Attributes:
        sql: the SELECT, to read and to run elsewhere.
        model: name of the model whose predictions are ranked.
        rows: best first; `candidate`, `configuration`, `sites`, `defects`, `multiplicity`, `probability` (that
            every window holds), `calculated` (a result exists), then `<property>_mean` and `<property>_std` of
            the properties that the model has.
    """

    sql: str
    model: str
    model_id: int
    search_space_id: int
    rows: list[dict[str, Any]]


def run_design_query(session: Session, query: DesignQuery, *, model_name: str | None = None) -> RankedTable:
    """Rank the candidates of the largest search space that the model has scored completely.

    Raises:
        InputError: the model is not there, lacks a property of the query, or has not scored what it asks for.
    """
    supercell_id = queries.supercell_id_of(session, query.host, query.supercell)
    model = choose_model(session, supercell_id, model_name)
    asked = {window.property for window in query.windows} | ({query.sort} - {"probability"})
    missing = sorted(asked - set(model.properties))
    if missing:
        raise InputError(
            f"model {model.name} does not predict {', '.join(missing)}; it predicts {', '.join(model.properties)}"
        )
    search_space_id = queries.scored_search_space(session, model.id, supercell_id)
    if search_space_id is None:
        raise InputError(
            f"model {model.name} has scored no search space of host {query.host}; "
            f"run `screening score --host {query.host}` first"
        )
    _check_size(session, query, model.name, search_space_id)
    statement = compile_query(query, model_id=model.id, search_space_id=search_space_id)
    names = dict(session.execute(select(tables.DefectType.id, tables.DefectType.name)).all())
    rows = []
    for found in session.execute(statement).mappings():
        row: dict[str, Any] = dict(found)
        row["defects"] = [names[code] for code in row.pop("defect_types")]
        rows.append({key: value for key, value in row.items() if value is not None})
    return RankedTable(to_sql(statement), model.name, model.id, search_space_id, rows)


def store_ranking(session: Session, query: DesignQuery, table: RankedTable) -> int:
    """Keep a ranking as a snapshot; its id."""
    ranking = tables.Ranking(
        model_id=table.model_id,
        search_space_id=table.search_space_id,
        query=query.model_dump(mode="json"),
        sql=table.sql,
    )
    session.add(ranking)
    session.flush()
    if table.rows:
        session.execute(
            insert(tables.RankingRow),
            [
                {
                    "ranking_id": ranking.id,
                    "rank": rank,
                    "candidate_id": row["candidate"],
                    "probability": row["probability"],
                }
                for rank, row in enumerate(table.rows, start=1)
            ],
        )
    return ranking.id


def choose_model(session: Session, supercell_id: int, name: str | None) -> tables.TrainedModel:
    """The model of this name, or the newest one that has scored a search space of the supercell completely.

    Raises:
        UnknownNameError: there is no model.
        InputError: the model is not finished.
    """
    if name is not None:
        return queries.model_by_name(session, name)
    newest_first = select(tables.TrainedModel).where(tables.TrainedModel.state == "finished")
    for model in session.scalars(newest_first.order_by(tables.TrainedModel.id.desc())):
        if queries.scored_search_space(session, model.id, supercell_id) is not None:
            return model
    return queries.model_by_name(session, None)


def _check_size(session: Session, query: DesignQuery, model_name: str, search_space_id: int) -> None:
    """Make sure that all configurations that are asked for were scored."""
    largest = session.get_one(tables.SearchSpace, search_space_id).max_defects
    if query.max_defects is not None and query.max_defects > largest:
        raise InputError(
            f"model {model_name} has scored up to {largest} defects of host {query.host}, the query asks for up to "
            f"{query.max_defects}; run `screening enumerate` and `screening score` with "
            f"--max-defects {query.max_defects} first"
        )
