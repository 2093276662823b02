"""Rankings: snapshots of what design queries returned, and how two of them differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.design_query import DesignQuery
from screening.database.tables import PROPERTY_COMMENTS
from screening.errors import InputError
from screening.pipeline.reasons import window_probabilities

if TYPE_CHECKING:
    from screening.pipeline.designs import RankedTable


def store_ranking(
    session: Session,
    query: DesignQuery,
    table: RankedTable,
    *,
    name: str | None = None,
    design_id: int | None = None,
) -> int:
    """Keep a ranking as a snapshot, with what it was made of; its id.

    Raises:
        InputError: another ranking has the name.
    """
    if name is not None and session.scalar(select(tables.Ranking.id).where(tables.Ranking.name == name)) is not None:
        raise InputError(f"a ranking is called {name!r} already; choose another name, or delete that one")
    first = table.answers[0]
    ranking = tables.Ranking(
        name=name,
        design_id=design_id,
        model_id=first.model.id,
        level_id=first.model.level_id,
        search_space_id=first.space.id,
        campaign_id=first.campaign.id,
        query=query.stored(),
        sql=table.sql,
        temperature=query.temperature,
    )
    session.add(ranking)
    session.flush()
    _store_places(session, ranking.id, table)
    if table.rows:
        _store_rows(session, ranking.id, query, table)
    return ranking.id


def _store_places(session: Session, ranking_id: int, table: RankedTable) -> None:
    session.execute(
        insert(tables.RankingCampaign),
        [
            {
                "ranking_id": ranking_id,
                "place": place,
                "campaign_id": answer.campaign.id,
                "campaign": answer.campaign.name,
                "model_id": answer.model.id,
                "supercell_id": answer.supercell.id,
                "search_space_id": answer.space.id,
            }
            for place, answer in enumerate(table.answers)
        ],
    )
    references = [
        {
            "ranking_id": ranking_id,
            "place": place,
            "element": element,
            "energy": potential.energy,
            "source": potential.source,
            "shift": potential.shift,
        }
        for place, answer in enumerate(table.answers)
        for element, potential in answer.potentials.items()
    ]
    if references:
        session.execute(insert(tables.RankingReference), references)


def _store_rows(session: Session, ranking_id: int, query: DesignQuery, table: RankedTable) -> None:
    codes = dict(session.execute(select(tables.DefectType.name, tables.DefectType.id)).all())
    labels = {row["configuration"] for row in table.rows}
    of_label = select(tables.Composition.label, tables.Composition.id).where(tables.Composition.label.in_(labels))
    compositions = dict(session.execute(of_label).all())
    rows, values = [], []
    for rank, row in enumerate(table.rows, start=1):
        rows.append(
            {
                "ranking_id": ranking_id,
                "rank": rank,
                "place": row["place"],
                "candidate_id": row["candidate"],
                "composition_id": compositions[row["configuration"]],
                "sites": row["sites"],
                "defect_types": [codes[name] for name in row["defects"]],
                "multiplicity": row["multiplicity"],
                "key": row.get("key"),
                "probability": row["probability"],
                "concentration": row.get("concentration"),
                "is_calculated": row["calculated"],
                "reason": row["reason"],
            }
        )
        values += _values(ranking_id, rank, row, query, table)
    session.execute(insert(tables.RankingRow), rows)
    session.execute(insert(tables.RankingValue), values)


def _values(
    ranking_id: int, rank: int, row: dict[str, Any], query: DesignQuery, table: RankedTable
) -> list[dict[str, Any]]:
    """What was predicted of a row, one entry for each property."""
    probabilities = window_probabilities(row, query, table.answers[row["place"]].branch)
    return [
        {
            "ranking_id": ranking_id,
            "rank": rank,
            "property": name,
            "mean": row[f"{name}_mean"],
            "std": row[f"{name}_std"],
            "probability": probabilities.get(name),
        }
        for name in PROPERTY_COMMENTS
        if f"{name}_mean" in row
    ]
