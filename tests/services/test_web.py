"""The web server of a project is started, found again, started anew, and stopped."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path

import pytest

from screening.database.session import make_engine, migrate
from screening.errors import ServiceError
from screening.services import down, processes, start_web, status, up
from screening.services.web import pid_file
from screening.settings import Settings


def health(url: str) -> dict[str, object]:
    with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:  # noqa: S310  # our own address
        found: dict[str, object] = json.load(answer)
    return found


def test_the_web_server_runs_until_down_and_restarts_when_its_settings_change(home: Path) -> None:
    settings = Settings(home=home, database_url=None, redis_url=None, device="cpu")
    engine = make_engine(up(settings).database_url)
    migrate(engine)
    engine.dispose()
    url = start_web(settings)
    assert health(url)["status"] == "ok"
    first = processes.running_pid(pid_file(home))
    assert start_web(settings) == url
    assert processes.running_pid(pid_file(home)) == first
    assert [(row.name, row.running, row.pid) for row in status(settings) if row.name == "web"] == [("web", True, first)]

    open_to_all = settings.model_copy(update={"web_anonymous_read": True})
    assert start_web(open_to_all) == url
    assert processes.running_pid(pid_file(home)) not in (first, None)

    down(settings)
    assert processes.running_pid(pid_file(home)) is None
    with pytest.raises(OSError, match="refused"):
        health(url)


def test_a_web_server_that_cannot_start_says_why(services: Settings, home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up_already = services.model_copy(update={"web_port": port})
        with pytest.raises(ServiceError, match="address already in use"):
            start_web(up_already)
