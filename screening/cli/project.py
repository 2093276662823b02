"""What a command works with: the settings of this machine, the database and the broker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from screening.errors import ServiceError, UnknownNameError
from screening.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from screening.defects.host import Host
    from screening.pipeline.dispatch import Kind
    from screening.services import Addresses


class Project:
    """The services of this machine's settings."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or load_settings()

    @cached_property
    def addresses(self) -> Addresses:
        """Where the services are."""
        from screening.services import addresses

        return addresses(self.settings)

    @property
    def has_database(self) -> bool:
        """Whether a database is known here, whether it answers or not."""
        from screening.services import has_database

        return has_database(self.settings)

    @cached_property
    def engine(self) -> Engine:
        """An engine on a database whose schema is at the newest migration."""
        from screening.database.session import check_schema, make_engine

        engine = make_engine(self.addresses.database_url)
        check_schema(engine)
        return engine

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One transaction, committed at the end of the block."""
        from screening.database.session import session_scope

        with session_scope(self.engine) as session:
            yield session

    def announce(self, *kinds: Kind) -> None:
        """Tell the workers of committed work; a broker that is away costs seconds, not work."""
        from screening.cli.output import note
        from screening.pipeline.dispatch import announce

        try:
            announce(self.addresses.redis_url, *kinds)
        except ServiceError as error:
            note(f"screening: {error}")


def find_host(project: Project, name: str) -> Host:
    """The host that the database knows by this name, else the catalogue's; needs no database for those.

    Raises:
        UnknownNameError: neither knows it.
    """
    from screening.defects.catalogue import catalogue_host
    from screening.pipeline.space_requests import known_host

    try:
        with project.transaction() as session:
            return known_host(session, name)
    except ServiceError as error:
        try:
            return catalogue_host(name)
        except UnknownNameError as unknown:
            raise UnknownNameError(f"{unknown}; the database was not asked: {error}") from error


@dataclass(frozen=True)
class LimitOptions:
    """The options that limit a search space, as they were given."""

    limit: Sequence[str] = ()
    require: Sequence[str] = ()
    min_separation: float | None = None
    max_separation: float | None = None


NO_LIMITS = LimitOptions()
