"""Progress of a campaign as server-sent events: one whenever something has changed, until the campaign is over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from fastapi import Request
from fastapi.encoders import jsonable_encoder
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from screening.database.campaigns import CampaignProgress, progress_of
from screening.web.server import Server, server_of

_TICK_S = 1.0
_LONGEST_S = 3600.0  # of one connection; the browser opens the next by itself


def events_answer(request: Request, campaign_id: int) -> StreamingResponse:
    """The events of a campaign; the last one is called `over`."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    events = _events(request, server_of(request), campaign_id)
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


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
