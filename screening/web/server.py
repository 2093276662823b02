"""What every request shares: settings, the engine with its pool of connections, and the broker."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from screening.database.session import session_scope
from screening.errors import ServiceError
from screening.pipeline.dispatch import Kind, announce
from screening.services import addresses
from screening.settings import Settings

N_AT_ONCE = 20  # requests that are worked on at the same time; the rest wait
N_THREADS = 40  # that work on them, and look for whom events are told
_N_CONNECTIONS = 2 * N_AT_ONCE + 10  # who asks is looked up in a transaction of its own
_SAFE = ("GET", "HEAD", "OPTIONS")
_ANNOUNCED = "announced"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Server:
    """The services behind the web server; opened once for each process."""

    settings: Settings
    engine: Engine
    redis_url: str

    @classmethod
    def open(cls, settings: Settings) -> Server:
        """An engine with as many connections as the requests at once may need."""
        found = addresses(settings)
        engine = create_engine(
            found.database_url, pool_pre_ping=True, pool_size=N_AT_ONCE, max_overflow=_N_CONNECTIONS - N_AT_ONCE,
            pool_timeout=10.0,
            connect_args={"connect_timeout": 10, "application_name": "screening web"},
        )  # fmt: skip
        return cls(settings, engine, found.redis_url)

    @contextmanager
    def transaction(self, *, read_only: bool, timeout_s: float | None = None) -> Iterator[Session]:
        """One transaction with a limit on each of its statements, committed at the end; then the workers hear of it.

        Args:
            timeout_s: None for that of the settings.
        """
        limit = self.settings.web_query_s if timeout_s is None else timeout_s
        with session_scope(self.engine) as session:
            session.execute(
                text("SELECT set_config('statement_timeout', :limit, true)"), {"limit": f"{1000 * limit:.0f}ms"}
            )
            if read_only:
                session.execute(text("SET TRANSACTION READ ONLY"))
            yield session
        if kinds := session.info.get(_ANNOUNCED):
            self._announce(kinds)

    def _announce(self, kinds: list[Kind]) -> None:
        try:
            announce(self.redis_url, *kinds)
        except ServiceError as error:  # the work is stored; beat finds it when the broker is back
            _logger.warning("%s", error)


def tell_workers(session: Session, *kinds: Kind) -> None:
    """Announce work of these kinds once the transaction of this session is committed."""
    session.info.setdefault(_ANNOUNCED, []).extend(kinds)


def server_of(request: Request) -> Server:
    """The services of the application that answers a request."""
    return cast(Server, request.app.state.server)


def _transaction(request: Request) -> Iterator[Session]:
    """The transaction of a request: it may only read where the method says so; committed before the answer is sent."""
    with server_of(request).transaction(read_only=request.method in _SAFE) as session:
        yield session


Transaction = Annotated[Session, Depends(_transaction, scope="function")]
