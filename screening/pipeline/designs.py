"""Design queries and their rankings: which candidates have the properties that are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.design_query import DesignQuery, compile_query, to_sql
from screening.database.models import find_model, newer_in_production, production
from screening.defects.defect_types import DefectType, composition_label
from screening.errors import InputError


@dataclass(frozen=True)
class RankedTable:
    """What a design query returned.

    Attributes:
        sql: the SELECT, to read and to run elsewhere.
        model: name of the model whose predictions are ranked.
        campaign: name of the campaign that made them.
        search_space: what its candidates are: `1 to 3 of v_S, Se_S`, or `exactly 4*v_S`.
        candidates: their number.
        newer: name of the version that is in production instead of the model; None if it is in production itself.
        rows: best first; `candidate`, `configuration`, `sites`, `defects`, `multiplicity`, `probability` (that
            every window holds), `calculated` (a result exists), then `<property>_mean` and `<property>_std` of
            the properties that the model has.
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


def run_design_query(
    session: Session, query: DesignQuery, *, model_name: str | None = None, campaign_name: str | None = None
) -> RankedTable:
    """Rank the candidates of a campaign: the one of this name, or one that keeps every prediction of the model.

    Of several that is the largest one with every composition, up to the query's number of defects; a restricted one
    only where there is no other.

    Raises:
        InputError: the model is not there, lacks a property of the query, or has not scored what it asks for.
    """
    campaign, model = find_campaign(session, query, model_name=model_name, campaign_name=campaign_name)
    space = session.get_one(tables.SearchSpace, campaign.search_space_id)
    statement = compile_query(query, campaign_id=campaign.id)
    names = dict(session.execute(select(tables.DefectType.id, tables.DefectType.name)).all())
    rows = []
    for found in session.execute(statement).mappings():
        row: dict[str, Any] = dict(found)
        row["defects"] = [names[code] for code in row.pop("defect_types")]
        rows.append({key: value for key, value in row.items() if value is not None})
    return RankedTable(
        to_sql(statement), model.name, model.id, campaign.name, campaign.id, space.id, describe_space(space),
        space.expected, rows, newer_in_production(session, model.id),
    )  # fmt: skip


def store_ranking(session: Session, query: DesignQuery, table: RankedTable) -> int:
    """Keep a ranking as a snapshot; its id."""
    ranking = tables.Ranking(
        model_id=table.model_id,
        level_id=session.get_one(tables.TrainedModel, table.model_id).level_id,
        search_space_id=table.search_space_id,
        campaign_id=table.campaign_id,
        query=query.model_dump(mode="json"),
        sql=table.sql,
    )
    session.add(ranking)
    session.flush()
    if table.rows:
        codes = dict(session.execute(select(tables.DefectType.name, tables.DefectType.id)).all())
        session.execute(
            insert(tables.RankingRow),
            [
                {
                    "ranking_id": ranking.id,
                    "rank": rank,
                    "candidate_id": row["candidate"],
                    "sites": row["sites"],
                    "defect_types": [codes[name] for name in row["defects"]],
                    "multiplicity": row["multiplicity"],
                    "probability": row["probability"],
                }
                for rank, row in enumerate(table.rows, start=1)
            ],
        )
    return ranking.id


def find_campaign(
    session: Session, query: DesignQuery, *, model_name: str | None = None, campaign_name: str | None = None
) -> tuple[tables.Campaign, tables.TrainedModel]:
    """The campaign that a query is answered from, and its model.

    Raises:
        UnknownNameError: there is no such campaign, or no model.
        InputError: nothing that is finished can answer the query.
    """
    supercell_id = queries.supercell_id_of(session, query.host, query.supercell)
    if campaign_name is not None:
        campaign = queries.campaign_by_name(session, campaign_name)
        _check_campaign(session, campaign, query, supercell_id, model_name=model_name)
        assert campaign.model_id is not None
        model = session.get_one(tables.TrainedModel, campaign.model_id)
    else:
        model = _choose_model(session, query, supercell_id, name=model_name)
    missing = sorted(query.properties - set(model.properties))
    if missing:
        raise InputError(
            f"model {model.name} does not predict {', '.join(missing)}; it predicts {', '.join(model.properties)}"
        )
    return (campaign if campaign_name is not None else _complete_campaign(session, query, model, supercell_id)), model


def _check_campaign(
    session: Session, campaign: tables.Campaign, query: DesignQuery, supercell_id: int, *, model_name: str | None
) -> None:
    """Make sure that a campaign that was asked for by name can answer a query.

    Raises:
        InputError: it cannot.
    """
    space = session.get_one(tables.SearchSpace, campaign.search_space_id)
    if space.supercell_id != supercell_id:
        raise InputError(f"campaign {campaign.name} is about another supercell than host {query.host} of the query")
    if campaign.model_id is None:
        raise InputError(f"campaign {campaign.name} has no model, so it has nothing to rank; choose another one")
    if model_name is not None and not _is_called(session, campaign.model_id, model_name):
        raise InputError(f"campaign {campaign.name} was not scored by model {model_name}; leave --model out")
    sizes = [sum(space.composition)] if space.composition else range(space.min_defects, space.max_defects + 1)
    if query.max_defects is not None and query.max_defects not in sizes:
        raise InputError(
            f"campaign {campaign.name} is about {describe_space(space)}, the query asks for up to {query.max_defects} "
            "defects; leave --max-defects out, or choose another campaign"
        )
    if campaign.state != "finished":
        raise InputError(f"campaign {campaign.name} is {campaign.state}; it can be ranked when it is finished")
    if campaign.storage == "all":
        return
    kept = DesignQuery.model_validate(campaign.query)
    matched = session.scalar(select(func.sum(tables.Chunk.n_matching)).where(tables.Chunk.campaign_id == campaign.id))
    matching = int(matched or 0)
    if not query.ranks_as(kept) and not (matching <= kept.limit and query.is_narrower_than(kept)):
        raise InputError(
            f"campaign {campaign.name} keeps {min(kept.limit, matching)} of the {matching} candidates that satisfy its "
            f"own query, {kept.model_dump_json(exclude_none=True)}; the best of another one may not be among them: "
            "ask the same, or scan the search space with this query (`screening campaign plan`)"
        )


def _is_called(session: Session, model_id: int, name: str) -> bool:
    """Whether a name means a version, or the line that it belongs to."""
    model = session.get_one(tables.TrainedModel, model_id)
    found = find_model(session, name)
    return session.get_one(tables.ModelLine, model.line_id).name == name or (found is not None and found.id == model_id)


def _choose_model(
    session: Session, query: DesignQuery, supercell_id: int, *, name: str | None = None
) -> tables.TrainedModel:
    """The model of this name, or the newest one that has scored what a query asks for, or has scored anything.

    One that is in production comes before all others, by the time of its promotion.

    Raises:
        UnknownNameError: there is no model.
        InputError: the model is not finished.
    """
    if name is not None:
        return queries.model_by_name(session, name)
    in_use = production()
    newest_first = session.scalars(
        select(tables.TrainedModel)
        .outerjoin(in_use, in_use.c.model_id == tables.TrainedModel.id)
        .where(tables.TrainedModel.state == "finished")
        .order_by(in_use.c.promotion_id.desc().nulls_last(), tables.TrainedModel.id.desc())
    ).all()
    for max_defects in (query.max_defects, None):
        for model in newest_first:
            if queries.scored_campaign(session, model.id, supercell_id, max_defects=max_defects) is not None:
                return model
    return queries.model_by_name(session, None)


def _complete_campaign(
    session: Session, query: DesignQuery, model: tables.TrainedModel, supercell_id: int
) -> tables.Campaign:
    """The campaign that keeps every prediction of a model that a query may ask for.

    Raises:
        InputError: the model has scored no search space that holds what the query asks for.
    """
    found = queries.scored_campaign(session, model.id, supercell_id, max_defects=query.max_defects)
    if found is not None:
        return found
    other = queries.scored_campaign(session, model.id, supercell_id)
    if other is None:
        raise InputError(
            f"model {model.name} has scored no search space of host {query.host}; "
            f"run `screening score --host {query.host}` first"
        )
    scored = describe_space(session.get_one(tables.SearchSpace, other.search_space_id))
    raise InputError(
        f"model {model.name} has scored {scored} of host {query.host}, the query asks for up to {query.max_defects} "
        f"defects; run `screening score` with --max-defects {query.max_defects} first"
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
