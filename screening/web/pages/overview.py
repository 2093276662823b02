"""The overview: what runs, what is new, what waits for somebody."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from screening.database import listings, tables
from screening.database.campaigns import progress_of
from screening.database.loops import list_loops
from screening.database.rounds import list_rounds
from screening.database.uploads import list_uploads
from screening.pipeline.rankings import list_rankings
from screening.web.access import Reader
from screening.web.server import Transaction
from screening.web.templating import render

router = APIRouter()

_NEWEST = 5


@router.get("/")
def show_overview(request: Request, session: Transaction, _: Reader) -> Response:
    """What runs, what is new, what waits."""
    template = "overview_parts.html" if request.headers.get("hx-request") == "true" else "overview.html"
    return render(request, template, **look(session))


def look(session: Session) -> dict[str, Any]:
    """What the overview shows."""
    campaigns = progress_of(session)
    models = listings.list_models(session)
    rounds = list_rounds(session)
    uploads = list_uploads(session, limit=20)
    rankings = list_rankings(session)
    return {
        "campaigns": [row for row in campaigns if row.state == "running"],
        "trainings": [row for row in models if row["state"] in ("waiting", "running")],
        "loops": [row for row in list_loops(session) if row["state"] in ("running", "paused")],
        "calculating": sum(row["waiting"] + row["running"] for row in rounds),
        "new_rankings": rankings[-_NEWEST:][::-1],
        "new_models": [row for row in models if row["state"] == "finished"][-_NEWEST:][::-1],
        "finished": [row for row in campaigns if row.state == "finished"][-_NEWEST:][::-1],
        "waits": _waits(session, campaigns, models, rounds, uploads),
        "numbers": _numbers(session, campaigns),
    }  # fmt: skip


def _waits(session: Session, campaigns: Any, models: Any, rounds: Any, uploads: Any) -> list[tuple[str, str]]:
    """What somebody has to do: a sentence, and the page for it."""
    found = [
        (f"campaign {row.campaign} is {row.state}: {row.error or 'resume it'}", f"/campaigns/{row.campaign}")
        for row in campaigns
        if row.state in ("incomplete", "planned", "paused")
    ]
    found += [
        (f"model {row['model']} failed: {row['error']}", f"/models/{row['model']}")
        for row in models
        if row["state"] == "failed"
    ][-_NEWEST:]
    for row in rounds[:20]:
        path = f"/rounds/{row['round_id']}"
        if row["proposed"]:
            found.append((f"{row['round']} has {row['proposed']} calculations to download", path))
        if row["exported"] or row["submitted"]:
            found.append((f"{row['round']} waits for {row['exported'] + row['submitted']} results", path))
        if row["failed"]:
            found.append((f"{row['failed']} calculations of {row['round']} failed", path))
    found += [
        (f"upload {row.name} could not be read: {row.error}", f"/uploads/{row.id}")
        for row in uploads
        if row.state == "failed"
    ][:_NEWEST]
    quarantined = tables.QuarantinedResult
    n_open = session.scalar(select(func.count()).select_from(quarantined).where(quarantined.state == "open"))
    if n_open:
        found.append((f"{n_open} results contradict a model and wait to be looked at", "/models"))
    return found


def _numbers(session: Session, campaigns: Any) -> list[tuple[str, int, str]]:
    """Figures at the head of the page: what, how many, and the page of it."""

    def count(table: Any, *conditions: Any) -> int:
        return session.scalar(select(func.count()).select_from(table).where(*conditions)) or 0

    retracted = tables.CalculationResult.retracted_at
    return [
        ("hosts", count(tables.Host), "/hosts"),
        ("results", count(tables.CalculationResult, retracted.is_(None)), "/rounds"),
        ("trained models", count(tables.TrainedModel, tables.TrainedModel.state == "finished"), "/models"),
        ("scored candidates", sum(row.candidates_done for row in campaigns if row.model), "/campaigns"),
        ("rankings", count(tables.Ranking), "/rankings"),
    ]
