"""A candidate: its supercell with the defects marked, what is predicted of it, and where that comes from."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.tables import PROPERTY_COMMENTS
from screening.pipeline.hosts import load_supercell
from screening.pipeline.provenance import FoundCandidate, defects_of, find_candidate, find_ranked, why
from screening.web.access import Reader
from screening.web.drawing import species_colours, supercell_svg
from screening.web.server import Transaction
from screening.web.templating import render

router = APIRouter()


@router.get("/candidates/{campaign}/{candidate}")
def show_candidate(request: Request, session: Transaction, _: Reader, campaign: str, candidate: str) -> Response:
    """A candidate of a campaign."""
    found = find_candidate(session, candidate, campaign)
    return _page(request, session, found, path=f"{campaign}/{candidate}", why_path=f"{campaign}/{candidate}/why")


@router.get("/rankings/{ranking}/rows/{rank}")
def show_ranked(request: Request, session: Transaction, _: Reader, ranking: str, rank: int) -> Response:
    """A row of a ranking; its campaign may be deleted."""
    return _page(request, session, find_ranked(session, ranking, rank), path=None, why_path=None)


@router.get("/candidates/{campaign}/{candidate}/why")
def show_why(request: Request, session: Transaction, _: Reader, campaign: str, candidate: str) -> Response:
    """Where the predictions come from, as a part of the page."""
    template = "why_part.html" if request.headers.get("hx-request") == "true" else "why.html"
    found = find_candidate(session, candidate, campaign)
    return render(request, template, why=why(session, found), candidate=found, properties=PROPERTY_COMMENTS)


def _page(
    request: Request, session: Session, found: FoundCandidate, *, path: str | None, why_path: str | None
) -> Response:
    supercell = load_supercell(session, found.supercell_id).supercell
    of = found.configuration
    defects = [tuple(text.split("@")) for text in defects_of(of.sites, of.defect_types)]
    distances: list[dict[str, Any]] = [
        {"first": f"{defects[i][0]}@{a}", "second": f"{defects[j][0]}@{b}", "distance": supercell.pair_distances[a, b]}
        for i, a in enumerate(of.sites)
        for j, b in enumerate(of.sites)
        if i < j
    ]
    model = session.get_one(tables.TrainedModel, found.model_id)
    level = session.get_one(tables.LevelOfTheory, model.level_id).name
    return render(
        request, "candidate.html", candidate=found, supercell=supercell, defects=defects, distances=distances,
        model=model.name, level=level, properties=PROPERTY_COMMENTS, path=path, why_path=why_path,
        colours=species_colours(supercell, found.configuration), top=supercell_svg(supercell, found.configuration),
        side=supercell_svg(supercell, found.configuration, view="side"),
    )  # fmt: skip
