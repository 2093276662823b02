"""Campaigns: the list, and one with its progress as it happens."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.campaigns import partition_bytes, progress_of, workers_of
from screening.database.queries import campaign_by_name
from screening.errors import InputError
from screening.pipeline import campaigns, plans
from screening.web.access import Admin, Reader, Submitter
from screening.web.api.campaigns import change
from screening.web.campaign_events import events_answer
from screening.web.server import Transaction
from screening.web.templating import render

router = APIRouter()


@router.get("/campaigns")
def show_campaigns(request: Request, session: Transaction, _: Reader) -> Response:
    """The campaigns, newest first."""
    return render(request, "campaigns.html", rows=progress_of(session)[::-1])


@router.get("/campaigns/{campaign}")
def show_campaign(request: Request, session: Transaction, _: Reader, campaign: str) -> Response:
    """A campaign: what it is, how far it is, who works on it."""
    return _page(request, session, campaign)


@router.get("/campaigns/{campaign}/events")
def follow_campaign(request: Request, session: Transaction, _: Reader, campaign: str) -> Response:
    """Progress as server-sent events: one whenever something has changed, until the campaign is over."""
    return events_answer(request, campaign_by_name(session, campaign).id)


@router.post("/campaigns/{campaign}/delete")
def delete_campaign(
    request: Request, session: Transaction, _: Admin, campaign: str, sure: Annotated[str, Form(max_length=200)] = ""
) -> Response:  # fmt: skip
    """Delete it with its candidates, where its name was typed for that."""
    if sure != campaign:
        return _page(request, session, campaign, fault=f"type {campaign} to delete it; nothing was deleted")
    campaigns.remove(session, campaign_by_name(session, campaign))
    return RedirectResponse("/campaigns", 303)


@router.post("/campaigns/{campaign}/{verb}")
def change_campaign(
    request: Request, session: Transaction, _: Submitter, campaign: str,
    verb: Literal["start", "pause", "resume", "cancel"],
) -> Response:  # fmt: skip
    """Start, pause, resume or cancel it."""
    try:
        with session.begin_nested():
            change(session, campaign, verb)
    except InputError as error:
        return _page(request, session, campaign, fault=str(error))
    return RedirectResponse(f"/campaigns/{campaign}", 303)


def _page(request: Request, session: Session, name: str, *, fault: str | None = None) -> Response:
    campaign = campaign_by_name(session, name)
    (progress,) = progress_of(session, campaign.id)
    of = plans.describe_campaign(session, campaign)
    return render(
        request, "campaign.html", of=of, kept=plans.what_is_kept(of), progress=progress, fault=fault,
        workers=workers_of(session, campaign.id), size=partition_bytes(session, campaign.id),
        chunks=_chunks(session, campaign.id), failures=_failures(session, campaign.id),
        status=200 if fault is None else 422,
    )  # fmt: skip


def _chunks(session: Session, campaign_id: int) -> dict[str, int]:
    """Numbers of chunks by state, of those that occur."""
    (progress,) = progress_of(session, campaign_id)
    left = progress.chunks - progress.chunks_done - progress.chunks_running - progress.chunks_failed
    found = {
        "finished": progress.chunks_done, "running": progress.chunks_running, "failed": progress.chunks_failed,
        "open": left,
    }  # fmt: skip
    return {state: n for state, n in found.items() if n}


def _failures(session: Session, campaign_id: int) -> list[tuple[int, str | None]]:
    """Numbers and errors of the first chunks that failed."""
    chunk = tables.Chunk
    failed = (chunk.campaign_id == campaign_id, chunk.state == "failed")
    rows = session.execute(select(chunk.number, chunk.error).where(*failed).order_by(chunk.number).limit(10))
    return [(number, error) for number, error in rows]
