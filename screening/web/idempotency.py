"""Idempotency-Key: a POST that is sent twice is done once, and answered the same both times.

The answer is written in the transaction that did the work, so there is never one without the other. Of two that come
at the same time the second waits for the first at the unique key. A key belongs to the token that sent it, and is
forgotten after a week.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from fastapi.responses import JSONResponse
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database.tables import IdempotentRequest
from screening.web.access import Submitter
from screening.web.problems import ProblemError
from screening.web.server import Transaction

_KEPT = timedelta(days=7)


class Once:
    """A request that may have been answered before.

    Attributes:
        token_id: of who asks; None where anybody may.
        earlier: what was answered; None if this is the first time.
    """

    def __init__(self, session: Session, token_id: int | None, key: str | None, digest: bytes) -> None:
        self._session = session
        self.token_id = token_id
        self._row_id: int | None = None
        self.earlier: JSONResponse | None = None
        if key is not None and token_id is not None:
            self._begin(token_id, key, digest)

    def keep(self, status: int, answer: Mapping[str, Any]) -> JSONResponse:
        """The answer, kept for the next time the same request comes."""
        if self._row_id is not None:
            self._session.execute(
                update(IdempotentRequest)
                .where(IdempotentRequest.id == self._row_id)
                .values(status=status, answer=dict(answer))
            )
        return JSONResponse(dict(answer), status)

    def _begin(self, token_id: int, key: str, digest: bytes) -> None:
        self._session.execute(delete(IdempotentRequest).where(IdempotentRequest.created_at < func.now() - _KEPT))
        row = {"token_id": token_id, "key": key, "request_sha256": digest}
        added = insert(IdempotentRequest).values(**row).on_conflict_do_nothing().returning(IdempotentRequest.id)
        self._row_id = self._session.scalar(added)
        if self._row_id is not None:
            return
        found = self._session.execute(
            select(IdempotentRequest.request_sha256, IdempotentRequest.status, IdempotentRequest.answer).where(
                IdempotentRequest.token_id == token_id, IdempotentRequest.key == key
            )
        ).one()
        if found.request_sha256 != digest:
            raise ProblemError(
                422, f"the Idempotency-Key {key!r} was used for another request; take a new key for each request"
            )
        self.earlier = JSONResponse(found.answer, found.status, headers={"Idempotency-Replayed": "true"})


async def _digest(request: Request) -> bytes:
    """SHA-256 of what is asked. Of a form its fields, and of each file its name and content."""
    digest = hashlib.sha256(f"{request.method} {request.url.path}?{request.url.query}\n".encode())
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        digest.update(await request.body())
        return digest.digest()
    for name, value in (await request.form()).multi_items():
        digest.update(f"{name}\n".encode())
        if isinstance(value, str):
            digest.update(value.encode())
            continue
        digest.update(f"{value.filename}\n".encode())
        while part := await value.read(2**20):
            digest.update(part)
        await value.seek(0)
    return digest.digest()


def _once(
    session: Transaction, caller: Submitter, digest: Annotated[bytes, Depends(_digest)],
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=200, description="the same request with the same key is done once")
    ] = None,
) -> Once:  # fmt: skip
    return Once(session, caller.token_id, idempotency_key, digest)


OncePerKey = Annotated[Once, Depends(_once, scope="function")]
