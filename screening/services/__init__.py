"""PostgreSQL and Valkey from pip wheels, the Celery workers and the web server, in user space.

Everything a project runs lives below its home directory: data, logs, `run/` with a locked pid file per
process, and `state.json` (mode 0600) with ports and passwords. `up` may be called at any time, by several
processes at once: it starts what is not running, whatever stopped it. One project knows nothing of another:
ports are chosen freely and remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from screening.services import postgresql, valkey, web, workers
from screening.services.doctor import Check, doctor
from screening.services.processes import kill_orphans, running_pid
from screening.services.state import (
    Addresses,
    addresses,
    has_database,
    locked,
    log_tail,
    prepare_home,
    read_state,
    without_password,
)
from screening.services.web import start_web
from screening.services.workers import n_processes, start_workers, stop_workers
from screening.settings import Settings

__all__ = [
    "Addresses",
    "Check",
    "ProcessStatus",
    "addresses",
    "doctor",
    "down",
    "has_database",
    "log_tail",
    "n_processes",
    "start_web",
    "start_workers",
    "status",
    "stop_workers",
    "up",
    "without_password",
]


@dataclass(frozen=True)
class ProcessStatus:
    """One process of a project."""

    name: str
    running: bool
    pid: int | None
    address: str
    log: Path


def up(settings: Settings) -> Addresses:
    """Start those of PostgreSQL and Valkey that are ours and do not run; wait until they answer.

    Raises:
        ServiceError: one did not start; with the end of its log.
    """
    home = settings.home
    prepare_home(home)
    with locked(home):
        state = read_state(home)
        if settings.database_url is None:
            postgresql.start(home, state)
        if settings.redis_url is None:
            valkey.start(home, state)
    return addresses(settings)


def down(settings: Settings) -> None:
    """Stop the web server, the workers, Valkey and PostgreSQL of a project; what does not run is no error.

    Also those that are left when their home directory was deleted.

    Raises:
        ServiceError: PostgreSQL did not stop; with the end of its log.
    """
    home = settings.home
    if home.exists():
        with locked(home):
            web.stop(home)
            workers.stop(home)
            valkey.stop(home)
            postgresql.stop(home, read_state(home))
    else:
        postgresql.stop(home, {})
    kill_orphans(home)


def status(settings: Settings) -> list[ProcessStatus]:
    """What runs for a project: the services that are ours, and the workers and web server that were started."""
    home = settings.home
    state = read_state(home)
    rows = []
    if settings.database_url is None:
        pid = postgresql.postmaster(postgresql.data_directory(home, state))
        rows.append(_row(home, "postgresql", pid, state.get("database_url", "not set up")))
    if settings.redis_url is None:
        rows.append(
            _row(home, "valkey", running_pid(home / "run" / "valkey.pid"), state.get("redis_url", "not set up"))
        )
    for pid_file in workers.pid_files(home):
        rows.append(_row(home, pid_file.stem, running_pid(pid_file), ""))
    if web.pid_file(home).exists():
        rows.append(_row(home, "web", running_pid(web.pid_file(home)), state.get("web_url", "")))
    return rows


def _row(home: Path, name: str, pid: int | None, url: str) -> ProcessStatus:
    return ProcessStatus(name, pid is not None, pid, without_password(url), home / "logs" / f"{name}.log")
