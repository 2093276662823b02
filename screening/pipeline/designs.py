"""Design queries and their rankings: which candidates have the properties that are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.design_query import DesignQuery, compile_query, to_sql
from screening.defects.defect_types import DefectType, composition_label
from screening.errors import InputError


@dataclass(frozen=True)
class RankedTable:
    """What a design query returned.

    Attributes:
        sql: the SELECT, to read and to run elsewhere.
        model: name of the model whose predictions are ranked.
        search_space: what its candidates are: `1 to 3 of v_S, Se_S`, or `exactly 4*v_S`.
        candidates: their number.
        rows: best first; `candidate`, `configuration`, `sites`, `defects`, `multiplicity`, `probability` (that
            every window holds), `calculated` (a result exists), then `<property>_mean` and `<property>_std` of
            the properties that the model has.
    """

    sql: str
    model: str
    model_id: int
    search_space_id: int
    search_space: str
    candidates: int
    rows: list[dict[str, Any]]


def run_design_query(session: Session, query: DesignQuery, *, model_name: str | None = None) -> RankedTable:
    """Rank the candidates of a search space that the model has scored completely.

    That is the largest one with every composition, up to the query's number of defects; a restricted one only where
    there is no other.

    Raises:
        InputError: the model is not there, lacks a property of the query, or has not scored what it asks for.
    """
    supercell_id = queries.supercell_id_of(session, query.host, query.supercell)
    model = choose_model(session, query, supercell_id, name=model_name)
    asked = {window.property for window in query.windows} | ({query.sort} - {"probability"})
    missing = sorted(asked - set(model.properties))
    if missing:
        raise InputError(
            f"model {model.name} does not predict {', '.join(missing)}; it predicts {', '.join(model.properties)}"
        )
    space = find_scored_space(session, query, model)
    statement = compile_query(query, model_id=model.id, search_space_id=space.id)
    names = dict(session.execute(select(tables.DefectType.id, tables.DefectType.name)).all())
    rows = []
    for found in session.execute(statement).mappings():
        row: dict[str, Any] = dict(found)
        row["defects"] = [names[code] for code in row.pop("defect_types")]
        rows.append({key: value for key, value in row.items() if value is not None})
    return RankedTable(
        to_sql(statement), model.name, model.id, space.id, describe_space(space), space.expected, rows
    )  # fmt: skip


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


def choose_model(
    session: Session, query: DesignQuery, supercell_id: int, *, name: str | None = None
) -> tables.TrainedModel:
    """The model of this name, or the newest one that has scored what a query asks for, or has scored anything.

    Raises:
        UnknownNameError: there is no model.
        InputError: the model is not finished.
    """
    if name is not None:
        return queries.model_by_name(session, name)
    newest_first = session.scalars(
        select(tables.TrainedModel)
        .where(tables.TrainedModel.state == "finished")
        .order_by(tables.TrainedModel.id.desc())
    ).all()
    for max_defects in (query.max_defects, None):
        for model in newest_first:
            if queries.scored_search_space(session, model.id, supercell_id, max_defects=max_defects) is not None:
                return model
    return queries.model_by_name(session, None)


def find_scored_space(session: Session, query: DesignQuery, model: tables.TrainedModel) -> tables.SearchSpace:
    """The search space that a query is answered from.

    Raises:
        InputError: the model has scored none that holds what the query asks for.
    """
    supercell_id = queries.supercell_id_of(session, query.host, query.supercell)
    found = queries.scored_search_space(session, model.id, supercell_id, max_defects=query.max_defects)
    if found is not None:
        return session.get_one(tables.SearchSpace, found)
    other = queries.scored_search_space(session, model.id, supercell_id)
    if other is None:
        raise InputError(
            f"model {model.name} has scored no search space of host {query.host}; "
            f"run `screening score --host {query.host}` first"
        )
    raise InputError(
        f"model {model.name} has scored {describe_space(session.get_one(tables.SearchSpace, other))} of host "
        f"{query.host}, the query asks for up to {query.max_defects} defects; run `screening enumerate` and "
        f"`screening score` with --max-defects {query.max_defects} first"
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
