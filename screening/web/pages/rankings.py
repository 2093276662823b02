"""Rankings: what was kept, one of them, and how two of them differ."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from screening.database.design_query import DesignQuery
from screening.database.tables import PROPERTY_COMMENTS
from screening.pipeline.export_sources import source_of_ranking
from screening.pipeline.query_words import describe_query
from screening.pipeline.ranking_changes import compare_rankings
from screening.pipeline.rankings import SavedRanking, find_ranking, list_rankings, load_ranking
from screening.web.access import Reader, Submitter
from screening.web.exports import ExportFormat, export_answer
from screening.web.server import Transaction
from screening.web.templating import render

router = APIRouter()


@router.get("/rankings")
def show_rankings(request: Request, session: Transaction, _: Reader) -> Response:
    """The rankings, newest first."""
    rows = [
        row | {"words": describe_query(query), "places": ", ".join(map(str, query.places))}
        for row in list_rankings(session)[::-1]
        for query in [DesignQuery.model_validate(row["query"])]
    ]
    return render(request, "rankings.html", rows=rows)


@router.get("/rankings/{ranking}")
def show_ranking(request: Request, session: Transaction, _: Reader, ranking: str, since: str | None = None) -> Response:
    """A ranking as it was when it was made, and what changed since an older one."""
    found = load_ranking(session, find_ranking(session, ranking))
    changes = None
    if since:
        changes = compare_rankings(session, load_ranking(session, find_ranking(session, since)), found)
    others = [row for row in list_rankings(session)[::-1] if row["id"] != found.id][:50]
    return render(
        request, "ranking.html", ranking=found, words=describe_query(found.query), changes=changes, since=since,
        others=others, shown=_shown(found), address=f"/rankings/{found.id}",
    )  # fmt: skip


@router.get("/rankings/{ranking}/export")
def export(
    request: Request, session: Transaction, _: Reader, ranking: str, format: ExportFormat = "csv"
) -> Response:  # fmt: skip
    """The rows of a ranking as a file."""
    return export_answer(request, source_of_ranking(session, ranking), format, name=f"ranking-{ranking}")


@router.post("/rankings/{ranking}/delete")
def delete(session: Transaction, _: Submitter, ranking: str) -> Response:
    """Delete a ranking; its campaign stays."""
    session.delete(find_ranking(session, ranking))
    return RedirectResponse("/rankings", 303)


def _shown(found: SavedRanking) -> list[str]:
    """Properties that every row has."""
    values: list[dict[str, Any]] = [row["values"] for row in found.rows]
    return [name for name in PROPERTY_COMMENTS if values and all(name in of_row for of_row in values)]
