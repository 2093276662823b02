"""`up`, `down` and `status` on servers that are away, stopped, or whose directory is gone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from screening.services import down, status, up
from screening.settings import Settings

CLOSED_DATABASE = {"SCREENING_DATABASE_URL": "postgresql://me:secret@127.0.0.1:9/db"}
CLOSED_BROKER = {"SCREENING_REDIS_URL": "redis://:secret@127.0.0.1:9/0"}


def screening(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command; whatever it says, it shows neither a traceback nor a password."""
    finished = subprocess.run(
        [sys.executable, "-c", "from screening.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SCREENING_HOME": str(home), "SCREENING_DEVICE": "cpu", **environment},
    )
    assert "Traceback" not in finished.stderr
    assert "secret" not in finished.stdout + finished.stderr
    return finished


def settings_of(home: Path) -> Settings:
    return Settings(home=home, database_url=None, redis_url=None, device="cpu")


def test_up_on_a_database_that_does_not_answer_says_so(tmp_path: Path) -> None:
    finished = screening("up", home=tmp_path / "home", **CLOSED_DATABASE, **CLOSED_BROKER)
    assert finished.returncode == 1
    assert finished.stderr.startswith("screening: PostgreSQL does not answer at")
    assert "SCREENING_DATABASE_URL" in finished.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {**CLOSED_DATABASE, **CLOSED_BROKER},
        {"SCREENING_DATABASE_URL": "postgresql://me:sec/ret@h/db", **CLOSED_BROKER},
        {**CLOSED_DATABASE, "SCREENING_REDIS_URL": "redis://:sec/ret@h/0"},
    ],
)
def test_status_of_addresses_that_are_no_good_is_one_message(tmp_path: Path, environment: dict[str, str]) -> None:
    finished = screening("status", "--json", home=tmp_path, **environment)
    assert finished.returncode == 1
    unknown = {"work": None, "loops": None, "closed_designs": None}
    assert json.loads(finished.stdout) == {"home": str(tmp_path), "services": [], **unknown}
    assert finished.stderr.count("screening: ") == 1


@pytest.mark.parametrize("command", ["status", "down"])
def test_a_home_that_is_a_file_is_told(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    finished = screening(command, home=tmp_path / "file")
    assert "screening: " in finished.stderr


def test_status_of_services_that_were_stopped_or_killed_says_what_to_do(home: Path) -> None:
    settings = settings_of(home)
    assert screening("up", "--workers", "none", "--no-web", "--json", home=home).returncode == 0
    assert screening("status", "--json", home=home).returncode == 0
    valkey = next(row.pid for row in status(settings) if row.name == "valkey")
    assert valkey is not None
    psutil.Process(valkey).kill()
    psutil.Process(valkey).wait(10)
    killed = screening("status", "--json", home=home)
    assert [(row["name"], row["running"]) for row in json.loads(killed.stdout)["services"]] == [
        ("postgresql", True), ("valkey", False),
    ]  # fmt: skip
    assert killed.returncode == 1
    assert "valkey not running; `screening up` starts" in killed.stderr
    assert screening("doctor", "--json", home=home).returncode == 1
    assert screening("down", home=home).returncode == 0
    stopped = screening("status", "--json", home=home)
    assert stopped.returncode == 1
    assert json.loads(stopped.stdout)["work"] is None
    assert stopped.stderr.count("run `screening up`") == 1


def test_servers_whose_home_was_deleted_are_stopped_by_down(home: Path) -> None:
    settings = settings_of(home)
    up(settings)
    processes = [psutil.Process(row.pid) for row in status(settings) if row.pid is not None]
    shutil.rmtree(home)
    try:
        assert screening("status", home=home).returncode == 1
        assert screening("down", home=home).returncode == 0
        _, alive = psutil.wait_procs(processes, timeout=10)
        assert alive == []
    finally:
        home.mkdir()
        down(settings)


def test_up_with_another_number_of_processes_restarts_and_says_what_it_leaves_alone(home: Path) -> None:
    def n_processes(name: str) -> int:
        return len(psutil.Process(next(row.pid for row in status(settings_of(home)) if row.name == name)).children())

    assert screening("up", "--json", home=home).returncode == 0
    n_scoring = n_processes("worker-gpu")  # by the GPUs or cores of this machine
    assert n_processes("worker-cpu") == 1
    assert n_scoring >= 1
    again = screening("up", "--workers", "cpu=2", "--json", home=home)
    assert again.returncode == 0
    assert "worker-gpu runs already and is left alone" in again.stderr
    assert (n_processes("worker-cpu"), n_processes("worker-gpu")) == (2, n_scoring)
    before = status(settings_of(home))
    assert screening("up", "--json", home=home).stderr == ""
    assert status(settings_of(home)) == before
    began = time.monotonic()
    assert screening("down", home=home).returncode == 0
    assert time.monotonic() - began < 10
