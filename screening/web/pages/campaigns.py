"""Campaigns: the list, and one with its progress as it happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request
from fastapi.encoders import jsonable_encoder
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from screening.database import tables
from screening.database.campaigns import CampaignProgress, partition_bytes, progress_of, workers_of
from screening.database.queries import campaign_by_name
from screening.errors import InputError
from screening.pipeline import campaigns, plans
from screening.web.access import Admin, Reader, Submitter
from screening.web.api.campaigns import change
from screening.web.server import Server, Transaction, server_of
from screening.web.templating import render

router = APIRouter()

_TICK_S = 1.0
_LONGEST_S = 3600.0  # of one connection; the browser opens the next by itself
_STATES = ("waiting", "running", "finished", "failed", "planned")


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
    campaign_id = campaign_by_name(session, campaign).id
    events = _events(request, server_of(request), campaign_id)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


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


async def _events(request: Request, server: Server, campaign_id: int) -> AsyncIterator[str]:
    """Events of a campaign; each look is a short transaction in a thread, between which nothing is held."""
    last: dict[str, Any] | None = None
    clock = asyncio.get_running_loop()
    until = clock.time() + _LONGEST_S
    while clock.time() < until and not await request.is_disconnected():
        found = await run_in_threadpool(_look, server, campaign_id)
        if found is None:
            yield "event: over\ndata: {}\n\n"
            return
        shown = jsonable_encoder(asdict(found))
        if shown != last:
            yield f"data: {json.dumps(shown)}\n\n"
            last = shown
        else:
            yield ": still there\n\n"
        if found.is_over and found.chunks_running == 0:
            yield "event: over\ndata: {}\n\n"
            return
        await asyncio.sleep(_TICK_S)


def _look(server: Server, campaign_id: int) -> CampaignProgress | None:
    with server.transaction(read_only=True) as session:
        return next(iter(progress_of(session, campaign_id)), None)
