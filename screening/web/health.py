"""Whether the server and what is behind it answer."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from redis import Redis, RedisError
from sqlalchemy import text

from screening import __version__
from screening.errors import ServiceError
from screening.web.server import server_of

router = APIRouter()


@router.get("/health", summary="Whether the database and the broker answer", tags=["server"])
def health(request: Request, response: Response) -> dict[str, Any]:
    """200 if both do, else 503; needs no token."""
    server = server_of(request)
    found = {"database": True, "broker": True}
    try:
        with server.transaction(read_only=True, timeout_s=2.0) as session:
            session.execute(text("SELECT 1"))
    except ServiceError:
        found["database"] = False
    try:
        with Redis.from_url(server.redis_url, socket_timeout=2.0, socket_connect_timeout=2.0) as client:
            client.ping()
    except RedisError:
        found["broker"] = False
    response.status_code = 200 if all(found.values()) else 503
    return {"status": "ok" if all(found.values()) else "failing", **found, "version": __version__}
