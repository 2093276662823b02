"""Processes that do not end when they are asked to."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

from screening.services import processes

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


def start_deaf(directory: Path, name: str) -> Path:
    pid_file, log = directory / f"{name}.pid", directory / f"{name}.log"
    processes.start(pid_file, [sys.executable, "-c", DEAF], log=log, directory=directory, environment=os.environ)
    deadline = time.monotonic() + 20
    while not log.exists() or "deaf" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return pid_file


def test_a_process_that_ignores_the_request_is_killed_after_its_grace(tmp_path: Path) -> None:
    pid_file = start_deaf(tmp_path, "one")
    pid = processes.running_pid(pid_file)
    assert pid is not None
    processes.stop(pid_file, grace_s=0.3)
    assert not processes.is_held(pid_file)
    assert processes.running_pid(pid_file) is None


def test_several_processes_have_their_grace_at_the_same_time(tmp_path: Path) -> None:
    pid_files = [start_deaf(tmp_path, name) for name in ("one", "two", "three")]
    began = time.monotonic()
    processes.stop(*pid_files, grace_s=1.0)
    assert 1.0 <= time.monotonic() - began < 3.0  # one after another would take longer
    assert not any(map(processes.is_held, pid_files))


def test_a_process_whose_pid_file_was_deleted_is_found_by_the_file_it_holds(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    kept, lost = start_deaf(tmp_path / "run", "kept"), start_deaf(tmp_path / "run", "lost")
    orphan = psutil.Process(processes.running_pid(lost))
    lost.unlink()
    processes.kill_orphans(tmp_path)
    orphan.wait(10)
    assert processes.running_pid(kept) is not None
    processes.stop(kept, grace_s=0.0)
