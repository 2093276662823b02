"""Design queries, rankings, candidates and exports."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from screening.database.design_query import DesignQuery
from screening.errors import InputError
from screening.pipeline.designs import RankedTable, explain_design_query, run_design_query, sql_of
from screening.pipeline.export_sources import source_of_query, source_of_ranking
from screening.pipeline.ranking_changes import compare_rankings
from screening.pipeline.rankings import find_ranking, list_rankings, load_ranking, store_ranking
from screening.web.access import Reader, Submitter
from screening.web.api.answers import PROBLEMS
from screening.web.design_fields import MOST_ROWS, read_design
from screening.web.exports import ExportFormat, export_answer
from screening.web.idempotency import OncePerKey
from screening.web.paging import After, Limit, Page, id_of, page_of
from screening.web.server import Transaction

router = APIRouter(tags=["designs"], responses=PROBLEMS)

RankingName = Annotated[str, Path(max_length=200, description="name or number of the ranking")]
CampaignName = Annotated[str, Path(max_length=200)]
CandidateId = Annotated[int, Path(ge=0, lt=2**63)]
N_NEAREST = 8


class Design(BaseModel):
    """A design query, and what it is asked of."""

    model_config = ConfigDict(extra="forbid")

    query: dict[str, Any] = Field(
        description="fields of a design query (docs/design-queries.md): host, supercell, windows, sort ...",
        examples=[{"host": "MoS2", "windows": ["homo_lumo_gap_min=1.0:1.2"], "limit": 20}],
    )
    model: str | None = Field(default=None, max_length=200, description="whose predictions are ranked")
    campaign: str | None = Field(default=None, max_length=200, description="whose candidates are ranked")


class DesignPage(Design):
    """A design query, and where its page begins."""

    after: str | None = Field(default=None, max_length=2000, description="`after` of the page before")


class NewRanking(Design):
    """A design query whose answer is kept."""

    name: str | None = Field(default=None, min_length=1, max_length=200)


class Predicted(BaseModel):
    """A predicted property, eV or Bohr magneton."""

    mean: float
    std: float = Field(description="standard deviation")


class RankedRow(BaseModel):
    """A candidate that satisfies a query."""

    rank: int | None = None
    host: str
    supercell: str
    campaign: str | None
    candidate: int | None
    configuration: str = Field(description="defect types with their numbers", examples=["2*v_S+W_Mo"])
    sites: list[int]
    defects: list[str] = Field(description="type at each of the sites")
    multiplicity: int = Field(description="equivalent configurations")
    probability: float = Field(description="that every window holds")
    concentration: float | None = Field(default=None, description="estimate at the query's temperature")
    calculated: bool = Field(description="whether a result exists at the model's level of theory")
    reason: str = Field(description="why it is there")
    values: dict[str, Predicted] = Field(description="by property")


class Potential(BaseModel):
    """A chemical potential that energies are at."""

    host: str
    supercell: str
    element: str
    energy: float = Field(description="eV per atom")
    source: str
    shift: float = Field(description="against the reference that the model learnt with, eV")


class Ranked(BaseModel):
    """A page of a ranked table."""

    rows: list[RankedRow]
    after: str | None = Field(description="give it for the next page; null where there is none")
    model: str
    newer: str | None = Field(description="version in production, if that is another one")
    campaigns: list[str]
    candidates: int = Field(description="that were asked")
    potentials: list[Potential]
    sql: str = Field(description="the SELECT that gave it")


class Text(BaseModel):
    """A text."""

    text: str


class RankingRow(BaseModel):
    """A ranking that was kept."""

    id: int
    name: str
    model: str
    level: str = Field(description="level of theory")
    rows: int
    query: dict[str, Any]
    created_at: datetime


class Place(BaseModel):
    """Where a ranking's candidates are from."""

    host: str
    supercell: str
    campaign: str
    model: str


class RankingDetail(BaseModel):
    """A ranking as it was when it was made."""

    id: int
    name: str
    query: dict[str, Any]
    sql: str
    created_at: datetime
    places: list[Place]
    potentials: list[Potential]
    rows: list[RankedRow]


class KeptRanking(BaseModel):
    """A ranking that was just kept."""

    id: int
    name: str
    rows: int


class ChangedRow(BaseModel):
    """A candidate whose rank changed from one ranking to another."""

    what: Literal["rose", "fell", "came", "went"]
    host: str
    configuration: str
    sites: list[int]
    rank_before: int | None
    rank_after: int | None
    cause: str


class Changes(BaseModel):
    """What changed from a ranking to another."""

    rows: list[ChangedRow]


@router.post("/designs/run")
def run_design(session: Transaction, _: Reader, design: DesignPage) -> Ranked:
    """Rank the scored candidates that have the properties that are wanted, a page at a time."""
    table = ask(session, design)
    return Ranked(
        rows=[ranked_row(row, campaign_of(table, row)) for row in table.rows], after=table.after, model=table.model,
        newer=table.newer, campaigns=[answer.campaign for answer in table.answers], candidates=table.candidates,
        potentials=_potentials(table), sql=table.sql,
    )  # fmt: skip


@router.post("/designs/sql")
def show_sql(session: Transaction, _: Reader, design: Design) -> Text:
    """The SELECT of a design query; nothing is run."""
    query = read_design(session, design.query)
    return Text(text=sql_of(session, query, model_name=design.model, campaign_name=design.campaign))


@router.post("/designs/explain")
def explain(session: Transaction, _: Reader, design: Design) -> Text:
    """How the database answers a design query; it is run for that."""
    query = read_design(session, design.query)
    return Text(text=explain_design_query(session, query, model_name=design.model, campaign_name=design.campaign))


@router.post("/designs/export", response_class=Response)
def export_design(
    request: Request, session: Transaction, _: Reader, design: Design,
    format: Annotated[ExportFormat, Query()] = "csv",  # as callers write it
) -> Response:  # fmt: skip
    """All rows of a design query, up to its limit, as a file."""
    query = read_design(session, design.query)
    source = source_of_query(session, query, model_name=design.model, campaign_name=design.campaign)
    return export_answer(request, source, format, name="design")


@router.get("/rankings")
def get_rankings(
    request: Request, session: Transaction, _: Reader, limit: Limit = 100, after: After = None
) -> Page[RankingRow]:  # fmt: skip
    """The rankings that were kept, oldest first."""
    rows = [RankingRow(**row) for row in list_rankings(session, after=id_of(after) or 0, limit=limit + 1)]
    return Page[RankingRow](**page_of(request, rows, limit, ["id"]))


@router.post("/rankings", status_code=201, response_model=KeptRanking)
def add_ranking(session: Transaction, once: OncePerKey, new: NewRanking) -> Any:
    """Run a design query and keep its answer as a snapshot."""
    if once.earlier:
        return once.earlier
    query = read_design(session, new.query)
    table = run_design_query(session, query, model_name=new.model, campaign_name=new.campaign)
    ranking = store_ranking(session, query, table, name=new.name)
    return once.keep(201, {"id": ranking, "name": new.name or str(ranking), "rows": len(table.rows)})


@router.get("/rankings/{ranking}")
def get_ranking(session: Transaction, _: Reader, ranking: RankingName) -> RankingDetail:
    """A ranking as it was when it was made."""
    found = load_ranking(session, find_ranking(session, ranking))
    places = found.places
    return RankingDetail(
        id=found.id, name=found.name, query=found.query.stored(), sql=found.sql, created_at=found.created_at,
        places=[Place(**place) for place in places],
        potentials=[
            Potential(
                host=places[place]["host"], supercell=places[place]["supercell"], element=element, energy=energy,
                source=source, shift=shift,
            )
            for (place, element), (energy, source, shift) in found.references.items()
        ],
        rows=[
            RankedRow(
                **{name: row[name] for name in RankedRow.model_fields if name not in ("campaign", "values")},
                campaign=places[row["place"]]["campaign"],
                values={name: Predicted(mean=mean, std=std) for name, (mean, std, _) in row["values"].items()},
            )
            for row in found.rows
        ],
    )  # fmt: skip


@router.delete("/rankings/{ranking}", status_code=204)
def delete_ranking(session: Transaction, _: Submitter, ranking: RankingName) -> None:
    """Delete a ranking; its campaign stays."""
    session.delete(find_ranking(session, ranking))


@router.get("/rankings/{ranking}/changes")
def compare(
    session: Transaction, _: Reader, ranking: RankingName,
    since: Annotated[str, Query(max_length=200, description="name or number of an older ranking")],
) -> Changes:  # fmt: skip
    """What rose, fell, came and went since an older ranking, and why."""
    older, newer = (load_ranking(session, find_ranking(session, name)) for name in (since, ranking))
    names = ("what", "host", "configuration", "sites", "rank_before", "rank_after", "cause")
    return Changes(
        rows=[
            ChangedRow(**{name: getattr(change, name) for name in names})
            for change in compare_rankings(session, older, newer)
        ]
    )


@router.get("/rankings/{ranking}/export", response_class=Response)
def export_ranking(
    request: Request, session: Transaction, _: Reader, ranking: RankingName,
    format: Annotated[ExportFormat, Query()] = "csv",  # as callers write it
) -> Response:  # fmt: skip
    """The rows of a ranking as a file."""
    return export_answer(request, source_of_ranking(session, ranking), format, name=f"ranking-{ranking}")


def ask(session: Session, design: DesignPage) -> RankedTable:
    """A page of a design query.

    Raises:
        InputError: it is not acceptable, asks for more rows than one answer has, or nothing can answer it.
    """
    query = read_design(session, design.query)
    check_rows(query)
    return run_design_query(session, query, model_name=design.model, campaign_name=design.campaign, after=design.after)


def check_rows(query: DesignQuery) -> None:
    """Refuse more rows than one answer has.

    Raises:
        InputError: there would be.
    """
    if query.limit > MOST_ROWS:
        raise InputError(
            f"limit is {query.limit}; one answer has {MOST_ROWS} rows at most: page with `after`, or export"
        )


def campaign_of(table: RankedTable, row: dict[str, Any]) -> str:
    """The campaign that a row of a ranked table is from."""
    return str(table.answers[row["place"]].campaign)


def ranked_row(row: dict[str, Any], campaign: str | None) -> RankedRow:
    """A row of a ranked table."""
    named = {name: row[name] for name in RankedRow.model_fields if name in row}
    values = {
        name.removesuffix("_mean"): Predicted(mean=value, std=row[name.removesuffix("mean") + "std"])
        for name, value in row.items()
        if name.endswith("_mean")
    }
    return RankedRow(**named, campaign=campaign, values=values)


def _potentials(table: RankedTable) -> list[Potential]:
    return [
        Potential(
            host=answer.host, supercell=answer.supercell, element=element, energy=potential.energy,
            source=potential.source, shift=potential.shift,
        )
        for answer in table.answers
        for element, potential in answer.potentials.items()
    ]  # fmt: skip
