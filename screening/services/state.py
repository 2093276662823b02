"""The home directory of a project: its lock, and what it remembers of its services (state.json)."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from screening.errors import AddressError, ServiceError
from screening.settings import Settings

_TAIL_LINES = 25
_TAIL_BYTES = 16_384


@dataclass(frozen=True)
class Addresses:
    """Where the services listen; the passwords are not shown."""

    database_url: str
    redis_url: str

    def __repr__(self) -> str:
        return f"Addresses({without_password(self.database_url)}, {without_password(self.redis_url)})"


def addresses(settings: Settings) -> Addresses:
    """The addresses to use: those of the environment, else of the services that `up` started.

    Raises:
        ServiceError: there are neither.
        AddressError: an address is not of PostgreSQL or Redis, or cannot be read.
    """
    state = read_state(settings.home)
    database = settings.database_url.get_secret_value() if settings.database_url else state.get("database_url")
    broker = settings.redis_url.get_secret_value() if settings.redis_url else state.get("redis_url")
    if database is None or broker is None:
        raise ServiceError(
            f"no services are known in {settings.home}; run `screening up`, "
            "or set SCREENING_DATABASE_URL and SCREENING_REDIS_URL"
        )
    _check_address("SCREENING_DATABASE_URL", database, r"postgres(ql)?(\+psycopg)?://", "postgresql://")
    _check_address("SCREENING_REDIS_URL", broker, r"rediss?://", "redis://")
    return Addresses(re.sub(r"^postgres(ql)?(\+psycopg)?://", "postgresql+psycopg://", database), broker)


def has_database(settings: Settings) -> bool:
    """Whether the environment or a former `up` says where a database is."""
    return settings.database_url is not None or "database_url" in read_state(settings.home)


def without_password(url: str) -> str:
    """An address with its passwords left out: also one that is no good address, of which rather too much is."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    user, at, place = rest.rpartition("@")
    if at and ":" in user:
        rest = f"{user.partition(':')[0]}:***@{place}"
    return re.sub(
        r"([?&][^=&#]*(?:pass|pwd|secret|token)[^=&#]*=)[^&]*", r"\1***", scheme + separator + rest, flags=re.I
    )


def _check_address(name: str, url: str, pattern: str, begin: str) -> None:
    """Refuse what a server's own library would misread, and then say with the password in its message.

    Raises:
        AddressError: the address is of another kind of server, or its parts cannot be told apart.
    """
    if not re.match(pattern, url):
        raise AddressError(f"{name} is {without_password(url)}; it should begin with {begin}")
    try:
        parts = urlsplit(url)
        is_clear = parts.port != 0 and "#" not in url and url.count("@") == parts.netloc.count("@") <= 1
    except ValueError:  # brackets or a port that is no number, as after `u:pa` of u:pa/ss@host
        is_clear = False
    if not is_clear or re.search(r"%(?![0-9a-fA-F]{2})", url):
        raise AddressError(
            f"{name} cannot be read; write {begin}user:password@host:port/name, and percent-encode "
            "what a password has of / ? # @ [ ] and % (%2F %3F %23 %40 %5B %5D %25)"
        )


def log_tail(path: Path) -> str:
    """The end of a log, as a sentence for an error message."""
    if not path.exists():
        return f"it left no log in {path}"
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
    return f"the end of {path}:\n" + "\n".join(lines)


def prepare_home(home: Path) -> None:
    """Make the home directory of a project.

    Raises:
        ServiceError: it cannot be made, or cannot be written.
    """
    try:
        for directory in (home, home / "logs", home / "run"):
            directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServiceError(f"{home} cannot be the home of services ({error}); set SCREENING_HOME") from error
    if not os.access(home, os.W_OK | os.X_OK):
        raise ServiceError(f"{home} cannot be written by this user; set SCREENING_HOME to a directory of your own")


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """One process at a time starts and stops the services of a project."""
    try:
        lock = (home / "lock").open("w")
    except OSError as error:
        raise ServiceError(f"the services in {home} cannot be locked ({error}); set SCREENING_HOME") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_state(home: Path) -> dict[str, Any]:
    """What is remembered of the services; empty before the first `up`.

    Raises:
        ServiceError: the file is damaged.
    """
    path = home / "state.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ServiceError(f"{path} cannot be read ({error}); restore it, or move {home} away to start anew") from error
    if not isinstance(found, dict):
        raise ServiceError(f"{path} does not hold a JSON object; restore it, or move {home} away to start anew")
    return found


def write_state(home: Path, state: Mapping[str, Any]) -> None:
    """Replace the state file in one step, readable by its owner only."""
    temporary = home / f"state.json.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    with temporary.open("w") as file:
        json.dump(state, file, indent=1)
        file.flush()
        os.fsync(file.fileno())  # a crash of the machine must not lose the passwords
    temporary.replace(home / "state.json")


def free_port(remembered: int | None) -> int:
    """The remembered port if nobody has taken it, else one that the system chooses."""
    if remembered is not None and port_is_free(remembered):
        return remembered
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server could listen on a port of the loopback interface."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: connections may linger
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
