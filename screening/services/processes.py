"""Detached processes that are known by a locked pid file.

A process and its children inherit an open file that holds an exclusive lock (flock), so the file is locked
as long as one of them lives, however it ended: no pid that another process got meanwhile, no clock that
jumped and no changed process title can deceive it. The shell writes its pid into the file before it becomes
the program, so that nothing is lost when the caller is killed in between. A process leads a session of its
own, by which children are found when it is dead and they are not.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

_KILL_S = 10.0


def start(
    pid_file: Path, command: Sequence[str], *, log: Path, directory: Path, environment: Mapping[str, str]
) -> None:
    """Start a process that outlives its caller; what it writes is appended to a log."""
    descriptor = os.open(pid_file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with log.open("a") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(pid_file), *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=directory,
                env=dict(environment), pass_fds=(descriptor,), start_new_session=True,
            )  # fmt: skip
    finally:
        os.close(descriptor)
    process.returncode = 0  # it outlives us; do not warn that nobody waited for it


def is_held(pid_file: Path) -> bool:
    """Whether the process of a pid file, or a child of it, lives."""
    try:
        descriptor = os.open(pid_file, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def running_pid(pid_file: Path) -> int | None:
    """The pid of the process itself, if it lives; None also when only children are left."""
    pid = _leader(pid_file) if is_held(pid_file) else None
    if pid is None or not psutil.pid_exists(pid):
        return None
    try:
        return None if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE else pid
    except psutil.NoSuchProcess:
        return None


def stop(*pid_files: Path, grace_s: float) -> None:
    """Ask processes to end, all at once; kill those and their children that have not after a while."""
    asked = []
    for pid_file in pid_files:
        pid = running_pid(pid_file)
        if pid is not None:
            _send(pid, signal.SIGTERM)
            asked.append(pid_file)
    _wait_until_released(asked, grace_s)
    held = [pid_file for pid_file in pid_files if is_held(pid_file)]
    leaders = {_leader(pid_file) for pid_file in held} - {None}
    for member in psutil.pids() if leaders else ():
        if _session(member) in leaders:
            _send(member, signal.SIGKILL)
    _wait_until_released(held, _KILL_S)


def kill_orphans(home: Path) -> None:
    """Kill processes whose pid files were deleted with the home directory below them; what they wrote is gone too."""
    files = f"{home.resolve()}/run/"
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):  # it has ended, or is another user's
            held = [os.readlink(descriptor) for descriptor in descriptors.iterdir()]
            if any(path.startswith(files) and path.endswith(".pid (deleted)") for path in held):
                _send(int(descriptors.parent.name), signal.SIGKILL)


def _send(pid: int, sign: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has ended by itself
        os.kill(pid, sign)


def _wait_until_released(pid_files: Sequence[Path], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while any(is_held(pid_file) for pid_file in pid_files) and time.monotonic() < deadline:
        time.sleep(0.05)


def _leader(pid_file: Path) -> int | None:
    """The pid in a pid file; None while the process has not written it yet."""
    content = pid_file.read_text().strip()
    return int(content) if content.isdigit() else None


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None
