"""Rankings: snapshots of what design queries returned, and how two of them differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Text, cast, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.design_query import DesignQuery
from screening.database.tables import PROPERTY_COMMENTS
from screening.defects.defect_types import composition_label
from screening.errors import InputError, UnknownNameError
from screening.pipeline.reasons import window_probabilities

if TYPE_CHECKING:
    from screening.pipeline.designs import RankedTable


_NAME = func.coalesce(tables.Ranking.name, cast(tables.Ranking.id, Text))


@dataclass(frozen=True, eq=False)
class SavedRanking:
    """A snapshot.

    Attributes:
        places: by the query's order: host, supercell, campaign, campaign_id (None if deleted), model.
        references: energy, source and shift by place and element.
        rows: best first; like those of a ranked table, with `values`: mean, standard deviation and probability of
            the window by property.
    """

    id: int
    name: str
    query: DesignQuery
    sql: str
    created_at: datetime
    places: list[dict[str, Any]]
    references: Mapping[tuple[int, str], tuple[float, str, float]]
    rows: list[dict[str, Any]]


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
        model_id=first.model_id,
        level_id=first.level_id,
        search_space_id=first.search_space_id,
        campaign_id=first.campaign_id,
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
                "campaign_id": answer.campaign_id,
                "campaign": answer.campaign,
                "model_id": answer.model_id,
                "supercell_id": answer.supercell_id,
                "search_space_id": answer.search_space_id,
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


def find_ranking(session: Session, name: str) -> tables.Ranking:
    """The ranking of this name or number.

    Raises:
        UnknownNameError: there is none.
    """
    found = session.scalar(select(tables.Ranking).where(tables.Ranking.name == name))
    if found is None and name.isdecimal() and len(name) < 10:  # a longer one is no id, nor a number that a column holds
        found = session.get(tables.Ranking, int(name))
    if found is None:
        known = ", ".join(session.scalars(select(_NAME).order_by(tables.Ranking.id.desc()).limit(10))) or "none"
        raise UnknownNameError(
            f"no ranking is called {name!r}; the newest are {known}: `screening ranking list` lists all, "
            "`screening design --save` makes one"
        )
    return found


def list_rankings(session: Session, *, after: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
    """What rankings there are, oldest first; those with ids above `after`, up to a limit."""
    n_rows = (
        select(func.count())
        .where(tables.RankingRow.ranking_id == tables.Ranking.id)
        .correlate(tables.Ranking)
        .scalar_subquery()
    )
    statement = (
        select(
            tables.Ranking.id, _NAME.label("name"), tables.TrainedModel.name.label("model"),
            tables.LevelOfTheory.name.label("level"), n_rows.label("rows"), tables.Ranking.query,
            tables.Ranking.created_at,
        )
        .join(tables.TrainedModel, tables.TrainedModel.id == tables.Ranking.model_id)
        .join(tables.LevelOfTheory, tables.LevelOfTheory.id == tables.Ranking.level_id)
        .where(tables.Ranking.id > after)
        .order_by(tables.Ranking.id)
        .limit(limit)
    )  # fmt: skip
    return [dict(row) for row in session.execute(statement).mappings()]


def load_ranking(session: Session, ranking: tables.Ranking) -> SavedRanking:
    """A ranking as it was stored, with all that it was made of."""
    of_it = tables.RankingCampaign.ranking_id == ranking.id
    places = session.execute(
        select(
            tables.RankingCampaign.place, tables.Host.name.label("host"), tables.Supercell.label.label("supercell"),
            tables.RankingCampaign.campaign, tables.RankingCampaign.campaign_id,
            tables.TrainedModel.name.label("model"), tables.RankingCampaign.supercell_id,
        )
        .join(tables.Supercell, tables.Supercell.id == tables.RankingCampaign.supercell_id)
        .join(tables.Host, tables.Host.id == tables.Supercell.host_id)
        .join(tables.TrainedModel, tables.TrainedModel.id == tables.RankingCampaign.model_id)
        .where(of_it)
        .order_by(tables.RankingCampaign.place)
    ).mappings()  # fmt: skip
    references = session.scalars(
        select(tables.RankingReference)
        .where(tables.RankingReference.ranking_id == ranking.id)
        .order_by(tables.RankingReference.place, tables.RankingReference.element)
    ).all()
    return SavedRanking(
        ranking.id, ranking.name or str(ranking.id), DesignQuery.model_validate(ranking.query), ranking.sql,
        ranking.created_at, [dict(place) for place in places],
        {(r.place, r.element): (r.energy, r.source, r.shift) for r in references}, _saved_rows(session, ranking.id),
    )  # fmt: skip


def _saved_rows(session: Session, ranking_id: int) -> list[dict[str, Any]]:
    names = dict(session.execute(select(tables.DefectType.id, tables.DefectType.name)).all())
    values: dict[int, dict[str, tuple[float, float, float | None]]] = {}
    of_ranking = select(tables.RankingValue).where(tables.RankingValue.ranking_id == ranking_id)
    for value in session.scalars(of_ranking):
        values.setdefault(value.rank, {})[value.property] = (value.mean, value.std, value.probability)
    rows = []
    statement = (
        select(tables.RankingRow, tables.Supercell.id, tables.Supercell.label, tables.Host.name)
        .join(
            tables.RankingCampaign,
            (tables.RankingCampaign.ranking_id == tables.RankingRow.ranking_id)
            & (tables.RankingCampaign.place == tables.RankingRow.place),
        )
        .join(tables.Supercell, tables.Supercell.id == tables.RankingCampaign.supercell_id)
        .join(tables.Host, tables.Host.id == tables.Supercell.host_id)
        .where(tables.RankingRow.ranking_id == ranking_id)
        .order_by(tables.RankingRow.rank)
    )
    for row, supercell_id, supercell, host in session.execute(statement):
        rows.append(
            {
                "rank": row.rank, "place": row.place, "host": host, "supercell": supercell,
                "supercell_id": supercell_id, "candidate": row.candidate_id,
                "configuration": composition_label(Counter(row.defect_types)), "sites": row.sites,
                "codes": row.defect_types, "defects": [names[code] for code in row.defect_types],
                "multiplicity": row.multiplicity, "probability": row.probability,
                "concentration": row.concentration, "calculated": row.is_calculated, "reason": row.reason,
                "values": values.get(row.rank, {}),
            }
        )  # fmt: skip
    return rows
