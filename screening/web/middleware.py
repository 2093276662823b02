"""Around every request: its id, its line in the log, its time in the metrics, headers of security, entity tags.

Plain ASGI, so that answers that never end (server-sent events) and files that are streamed pass through.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import uuid
from http import HTTPStatus

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from screening.web.error_answers import TOO_LARGE, answer
from screening.web.metrics import REQUEST_SECONDS

_logger = logging.getLogger("screening.web")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; object-src 'none'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
}
_ENDLESS = "/events"
_TAGGED = ("/api/", "/optimade/")
_LONGEST_TAGGED = 4 * 2**20  # bytes; longer answers go out as they come


class RequestLog:
    """The outermost layer: a request id (the client's, if it is a plain word), a line in the log, its time."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["request_id"] = request_id
        begin, status = time.perf_counter(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in _SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        finally:
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", "other")  # of the template, not of the path: few labels
            REQUEST_SECONDS.labels(scope["method"], route, str(status)).observe(seconds)
            _logger.info(
                "%s %s %s %d %.0f ms %s", request_id, scope["method"], scope["path"], status, 1000 * seconds,
                (scope.get("client") or ("?",))[0],
            )  # fmt: skip


class Turns:
    """Lets so many requests in at a time; the others wait for their turn, in their order.

    A request holds its connection to the database between the threads that work on it. More of them at once than
    there are connections would wait for each other. Events are no turn: they hold nothing between two looks.
    """

    def __init__(self, app: ASGIApp, at_once: int) -> None:
        self.app = app
        self.at_once = at_once
        self._turns: anyio.Semaphore | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["path"].endswith(_ENDLESS) or scope["path"].startswith("/static/"):
            await self.app(scope, receive, send)
            return
        if self._turns is None:  # it belongs to the loop that runs
            self._turns = anyio.Semaphore(self.at_once)
        async with self._turns:
            await self.app(scope, receive, send)


class DeclaredLength:
    """Refuses a body by the length that it declares, before any of it is read.

    What comes is counted as well (RequestBodyLimitMiddleware), but that answers a declared length in plain text.
    """

    def __init__(self, app: ASGIApp, longest: int) -> None:
        self.app = app
        self.longest = longest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        declared = Headers(scope=scope).get("content-length", "") if scope["type"] == "http" else ""
        if declared.isdecimal() and int(declared) > self.longest:
            refusal = await run_in_threadpool(answer, Request(scope), HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE)
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)


class EntityTags:
    """Gives JSON answers of GET an ETag, and answers 304 to who has them already."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith(_TAGGED):
            await self.app(scope, receive, send)
            return
        known = {tag.strip().removeprefix("W/") for tag in Headers(scope=scope).get("if-none-match", "").split(",")}
        start: Message | None = None
        body = bytearray()

        async def send_tagged(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                headers = Headers(raw=message["headers"])
                is_json = headers.get("content-type", "").startswith(("application/json", "application/vnd.api+json"))
                length = headers.get("content-length")
                if message["status"] == 200 and is_json and length is not None and int(length) <= _LONGEST_TAGGED:
                    start = message  # held back until the body is there
                    return
            elif start is not None:
                body.extend(message.get("body", b""))
                if message.get("more_body"):
                    return
                await self._send_whole(start, bytes(body), known, send)
                return
            await send(message)

        await self.app(scope, receive, send_tagged)

    @staticmethod
    async def _send_whole(start: Message, body: bytes, known: set[str], send: Send) -> None:
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = MutableHeaders(scope=start)
        headers["etag"] = tag
        headers.setdefault("cache-control", "private, no-cache")
        if tag in known or "*" in known:
            del headers["content-length"]
            await send({**start, "status": 304})
            await send({"type": "http.response.body", "body": b""})
            return
        await send(start)
        await send({"type": "http.response.body", "body": body})
