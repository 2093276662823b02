"""The web server of a project: a process on the remembered port, or another free one."""

from __future__ import annotations

import hashlib
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from screening.errors import ServiceError
from screening.services import processes
from screening.services.state import (
    Addresses,
    addresses,
    free_port,
    locked,
    log_tail,
    prepare_home,
    read_state,
    write_state,
)
from screening.settings import Settings

_START_S = 180.0  # imports from a cold disk, on busy cores
_STOP_S = 10.0


def start_web(settings: Settings) -> str:
    """Start the web server where it does not run; its address.

    One that runs with other addresses of the services, or other settings, is stopped and started anew.

    Raises:
        ServiceError: it did not start; with the end of its log.
    """
    home = settings.home
    found = addresses(settings)
    prepare_home(home)
    with locked(home):
        state = read_state(home)
        digest = _digest(settings, found)
        if state.get("web_settings") != digest:
            stop(home)
        if processes.running_pid(pid_file(home)) is None:
            port = settings.web_port or free_port(state.get("web_port"))
            state = {
                **state,
                "web_port": port,
                "web_settings": digest,
                "web_url": f"http://{settings.web_address}:{port}",
            }
            write_state(home, state)  # before it runs: who is killed in between finds it again
            _spawn(settings, found, port)
            _wait_until_ready(home, state["web_url"])
    return str(state["web_url"])


def stop(home: Path) -> None:
    """Stop the web server of a project, if it runs."""
    processes.stop(pid_file(home), grace_s=_STOP_S)


def pid_file(home: Path) -> Path:
    """The pid file of the web server."""
    return home / "run" / "web.pid"


def _spawn(settings: Settings, found: Addresses, port: int) -> None:
    """Addresses and passwords go in the environment, where `ps` does not show them."""
    environment = {
        **os.environ,
        "SCREENING_HOME": str(settings.home),
        "SCREENING_DATABASE_URL": found.database_url,
        "SCREENING_REDIS_URL": found.redis_url,
    }
    command = [
        sys.executable, "-m", "screening", "serve", "--host", settings.web_address, "--port", str(port),
    ]  # fmt: skip
    processes.start(
        pid_file(settings.home), command, log=_log(settings.home), directory=settings.home, environment=environment
    )


def _digest(settings: Settings, found: Addresses) -> str:
    of_web = settings.model_dump(mode="json", exclude={"home", "database_url", "redis_url", "device"})
    return hashlib.sha256(f"{found.database_url} {found.redis_url} {sorted(of_web.items())}".encode()).hexdigest()


def _log(home: Path) -> Path:
    return home / "logs" / "web.log"


def _wait_until_ready(home: Path, url: str) -> None:
    """Wait until it answers, whatever it says of the services.

    Raises:
        ServiceError: it stopped, or the time is up.
    """
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5.0):  # noqa: S310  # our own address
                return
        except urllib.error.HTTPError:
            return
        except OSError:  # not there yet
            if not processes.is_held(pid_file(home)):
                raise ServiceError(f"the web server stopped at once; {log_tail(_log(home))}") from None
            time.sleep(0.1)
    raise ServiceError(f"the web server did not answer in {_START_S:.0f} s; {log_tail(_log(home))}")
