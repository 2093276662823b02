"""Explore: the design query as a form, its rows in a table, and where they lie in a plot."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData, QueryParams

from screening.database import listings
from screening.database.campaigns import progress_of
from screening.database.densities import density_of
from screening.database.design_query import CONCENTRATION, PROBABILITY, DesignQuery
from screening.database.tables import PROPERTY_COMMENTS
from screening.errors import InputError
from screening.pipeline.designs import RankedTable, run_design_query
from screening.pipeline.export_sources import source_of_query
from screening.pipeline.query_words import describe_nothing, describe_query
from screening.pipeline.rankings import store_ranking
from screening.web.access import Reader, Submitter
from screening.web.api.designs import campaign_of, check_rows, ranked_row
from screening.web.design_fields import MOST_ROWS, read_design
from screening.web.exports import ExportFormat, export_answer
from screening.web.forms import Fields, FormOf
from screening.web.server import Transaction
from screening.web.templating import render

router = APIRouter()

N_WINDOWS = 3
_PLOTTED = 1000  # rows of the query that are drawn with their error bars
_EXPORTED = 1_000_000
_PLAIN = ("types", "required", "forbidden", "counts", "min_defects", "max_defects", "density", "min_separation",
          "max_separation", "level", "potentials", "temperature", "confidence", "limit")  # fmt: skip
_DEFAULTS = {"sort": "formation_energy_per_site", "direction": "lowest", "confidence": "0.5", "limit": "20"}


@router.get("/explore")
def explore(request: Request, session: Transaction, _: Reader, after: str | None = None) -> Response:
    """The form, and the rows where a host is named."""
    given = fields_of(request.query_params)
    values: dict[str, Any] = {"table": None, "query": None, "rows": [], "fault": None, "words": "", "sql": ""}
    if given.get("host"):
        try:
            query = design_of(session, given)
            check_rows(query)
            table = run_design_query(
                session, query, model_name=given.get("model"), campaign_name=given.get("campaign"), after=after
            )
            values |= _found(query, table)
        except InputError as error:
            values["fault"] = str(error)
    return _page(request, session, given, values, after=after)


@router.get("/explore/points")
def show_points(
    request: Request, session: Transaction, _: Reader, x: Annotated[str, Query(max_length=50)],
    y: Annotated[str, Query(max_length=50)],
) -> Response:  # fmt: skip
    """Where the best rows of a query lie, with their error bars, and how all candidates of its campaigns spread."""
    given = fields_of(request.query_params)
    query = design_of(session, given)
    wide = query.model_copy(update={"limit": max(query.limit, min(_PLOTTED, MOST_ROWS))})
    model, campaign = given.get("model"), given.get("campaign")
    table = run_design_query(session, wide, model_name=model, campaign_name=campaign)
    missing = [name for name in (x, y) if name not in table.answers[0].properties]
    if missing:
        raise InputError(
            f"model {table.model} does not predict {', '.join(missing)}; it predicts "
            f"{', '.join(table.answers[0].properties)}"
        )
    first = table.answers[0]
    density = None
    if query.potentials.are_references and len(table.answers) == 1:
        density = asdict(density_of(session, first.campaign_id, first.candidates, x=x, y=y))
    points = [
        {
            "x": row[f"{x}_mean"], "dx": row[f"{x}_std"], "y": row[f"{y}_mean"], "dy": row[f"{y}_std"],
            "name": row["configuration"], "path": f"/candidates/{campaign_of(table, row)}/{row['candidate']}",
            "calculated": row["calculated"], "probability": row["probability"],
        }
        for row in table.rows
    ]  # fmt: skip
    windows = {window.property: [window.low, window.high] for window in query.windows}
    titles = {name: PROPERTY_COMMENTS[name] for name in (x, y)}
    return JSONResponse(
        {"points": points, "density": density, "windows": windows, "titles": titles, "front": bool(query.pareto)}
    )


@router.get("/explore/export")
def export(request: Request, session: Transaction, _: Reader, format: ExportFormat = "csv") -> Response:
    """All rows of the query as a file: a million at most of a table."""
    given = fields_of(request.query_params)
    query = design_of(session, given)
    if format in ("csv", "parquet"):
        query = query.model_copy(update={"limit": _EXPORTED})
    source = source_of_query(session, query, model_name=given.get("model"), campaign_name=given.get("campaign"))
    return export_answer(request, source, format, name="design")


@router.post("/explore/save")
def save(request: Request, session: Transaction, _: Submitter, form: FormOf) -> Response:
    """Keep the rows of the query, or those that are ticked, as a ranking."""
    given = fields_of(form)
    chosen = {str(value) for value in form.getlist("chosen")}
    name = str(form.get("name") or "").strip() or None
    try:
        with session.begin_nested():
            query = design_of(session, given)
            check_rows(query)
            table = run_design_query(
                session, query, model_name=given.get("model"), campaign_name=given.get("campaign"),
                after=given.get("after"),
            )  # fmt: skip
            ranking = store_ranking(session, query, _only(table, chosen), name=name)
    except InputError as error:
        return _page(request, session, given, {
            "table": None, "query": None, "rows": [], "fault": str(error), "words": "", "sql": "",
        })  # fmt: skip
    return RedirectResponse(f"/rankings/{ranking}", 303)


def fields_of(sent: QueryParams | FormData) -> Fields:
    """What is typed, over the defaults; empty fields are left out."""
    typed = {name: value.strip() for name, value in sent.items() if isinstance(value, str) and value.strip()}
    return _DEFAULTS | typed


def design_of(session: Session, given: Fields) -> DesignQuery:
    """The design query of the form.

    Raises:
        InputError: a field is not acceptable.
    """
    if "host" not in given:
        raise InputError("a design query is about a host; choose one")
    places = [part.strip() for part in given["host"].split(",") if part.strip()]
    supercell = given.get("supercell")
    found: dict[str, Any] = {
        "places": [{"host": host, "supercell": supercell} if supercell else host for host in places]
    }
    found |= {name: given[name] for name in _PLAIN if name in given}
    windows = []
    for n in range(1, N_WINDOWS + 1):
        low, high = given.get(f"low{n}"), given.get(f"high{n}")
        if low is not None or high is not None:
            windows.append({"property": given.get(f"window{n}", "homo_lumo_gap_min"), "low": low, "high": high})
    if windows:
        found["windows"] = windows
    goals = [given[f"goal{n}"] for n in (1, 2, 3) if f"goal{n}" in given]
    if goals:
        found["pareto"] = goals
    else:
        found["sort"] = given["sort"]
        if given["sort"] not in (PROBABILITY, CONCENTRATION):
            found["direction"] = given["direction"]
            if given["direction"] == "closest":
                found["target"] = given.get("target")
    return read_design(session, found)


def _found(query: DesignQuery, table: RankedTable) -> dict[str, Any]:
    rows = [ranked_row(row, campaign_of(table, row)) for row in table.rows]
    words = describe_query(query) if rows else describe_nothing(query, table.candidates)
    return {
        "table": table, "query": query, "rows": rows, "words": words, "sql": table.sql,
        "shown": [name for name in PROPERTY_COMMENTS if all(name in row.values for row in rows)],
        "several": len(table.answers) > 1,
    }  # fmt: skip


def _only(table: RankedTable, chosen: set[str]) -> RankedTable:
    """The rows that are ticked; all where none is."""
    if not chosen:
        return table
    rows = [row for row in table.rows if f"{campaign_of(table, row)}:{row['candidate']}" in chosen]
    if len(rows) < len(chosen):
        raise InputError("some of the ticked rows are no longer among those of the query; run it again")
    return replace(table, rows=rows)


def _page(
    request: Request, session: Session, given: Fields, values: dict[str, Any], *, after: str | None = None
) -> Response:
    campaigns = [row for row in progress_of(session) if row.model and row.state == "finished"]
    hosts = listings.list_hosts(session)
    kept = {name: value for name, value in given.items() if name not in ("after", "csrf_token", "chosen", "name")}
    table = values["table"]
    shown: dict[str, Any] = {"shown": [], "several": False} | values
    following = urlencode(kept | {"after": table.after}) if table is not None and table.after else None
    return render(
        request, "explore.html", given=given, campaigns=campaigns, properties=PROPERTY_COMMENTS, kept=kept,
        hosts=list(dict.fromkeys(row["host"] for row in hosts)), n_windows=N_WINDOWS, after=after,
        supercells=sorted({row["supercell"] for row in hosts}), address=urlencode(kept), following=following,
        status=200 if values["fault"] is None else 422, **shown,
    )  # fmt: skip
