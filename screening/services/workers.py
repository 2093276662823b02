"""The Celery workers of a project: one for each queue, and beat."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from screening.errors import ServiceError
from screening.services import machine, processes
from screening.services.state import Addresses, addresses, locked, log_tail, prepare_home, read_state, write_state
from screening.settings import Settings

APP = "workers.app"
QUEUES = ("cpu", "gpu")
_NAMES = (*(f"worker-{queue}" for queue in QUEUES), "beat")
_MEMORY_PER_PROCESS = 2 * 2**30  # of the queue `gpu`: scanning takes up to 1.5 GB
_START_S = 180.0  # imports from a cold disk, on busy cores
_GRACE_S = 15.0  # a worker gives its units back after 3 s, and then has to reach the database


def start_workers(settings: Settings, *, cpu: int | None = None, gpu: int | None = None, app: str = APP) -> None:
    """Start Celery workers for the queues `cpu` and `gpu` with so many processes each, and beat.

    Returns when they take work. Workers of this project that run with another number of processes, or with other
    addresses of the services, are stopped and started anew; the others are left alone.

    Args:
        cpu: number of processes; None leaves a worker that runs as it is, and else means `default_processes`. Zero
            starts none.
        gpu: the same.

    Raises:
        ServiceError: a worker did not start; with the end of its log.
    """
    home = settings.home
    found = addresses(settings)
    prepare_home(home)
    with locked(home):
        wanted = _stop_outdated(home, found, {"cpu": cpu, "gpu": gpu}, device=settings.device)
        started = {}
        for queue, n_processes in wanted.items():
            arguments = [
                "worker", "--queues", queue, "--concurrency", str(n_processes), "--loglevel", "INFO",
                "--hostname", f"{queue}@%h", "--without-gossip", "--without-mingle",
            ]  # fmt: skip
            if processes.running_pid(_pid_file(home, f"worker-{queue}")) is None:
                environment = _environment(settings, found, queue=queue, n_processes=n_processes)
                started[f"worker-{queue}"] = _start(home, f"worker-{queue}", [app, *arguments], environment)
        if processes.running_pid(_pid_file(home, "beat")) is None:
            arguments = ["beat", "--schedule", str(home / "run" / "beat"), "--pidfile", "", "--loglevel", "INFO"]
            environment = _environment(settings, found, queue="cpu", n_processes=1)
            started["beat"] = _start(home, "beat", [app, *arguments], environment)
        _wait_until_ready(home, started)


def default_processes(queue: str, device: str) -> int:
    """How many processes serve a queue if nobody says: of `gpu` one for each GPU, without one for each core.

    A calculation has threads of its own, and the scoring of a chunk on a CPU has one.
    """
    if queue == "cpu":
        return 1
    devices = [] if device == "cpu" else machine.cuda_devices()
    if devices or device == "cuda":
        return max(1, len(devices))
    return max(1, min(machine.n_cores(), machine.memory_bytes() // _MEMORY_PER_PROCESS))


def _stop_outdated(home: Path, found: Addresses, given: Mapping[str, int | None], *, device: str) -> dict[str, int]:
    """Stop all workers if they have other addresses, else those with another number of processes than given.

    Returns:
        The number of processes of each queue that should have a worker and may have none.
    """
    state = read_state(home)
    digest = hashlib.sha256(f"{found.database_url} {found.redis_url}".encode()).hexdigest()
    known: dict[str, int] = state.get("workers_processes", {})
    running = [queue for queue in given if processes.running_pid(_pid_file(home, f"worker-{queue}")) is not None]
    if state.get("workers_addresses") != digest:
        stop(home)
    wanted = {queue: n for queue, n in given.items() if n}
    for queue in (queue for queue, n in given.items() if n is None):
        wanted[queue] = known.get(queue, 1) if queue in running else default_processes(queue, device)
    changed = [queue for queue, n_processes in wanted.items() if known.get(queue) != n_processes]
    processes.stop(*(_pid_file(home, f"worker-{queue}") for queue in changed), grace_s=_GRACE_S)
    write_state(home, {**state, "workers_addresses": digest, "workers_processes": {**known, **wanted}})
    return wanted


def stop_workers(settings: Settings) -> None:
    """Stop the workers and beat of a project; a unit of work that runs is given up and resumed later."""
    if settings.home.exists():
        with locked(settings.home):
            stop(settings.home)


def stop(home: Path) -> None:
    """End workers soon; they give back what they are doing, and the next ones do it."""
    processes.stop(*pid_files(home), grace_s=_GRACE_S)


def n_processes(settings: Settings, queue: str) -> int:
    """How many processes of this project's worker for a queue run here; zero if it does not run."""
    if processes.running_pid(_pid_file(settings.home, f"worker-{queue}")) is None:
        return 0
    return int(read_state(settings.home).get("workers_processes", {}).get(queue, 1))


def pid_files(home: Path) -> list[Path]:
    """The pid files of the workers that were started once, whether they run or not."""
    return [path for path in (_pid_file(home, name) for name in _NAMES) if path.exists()]


def _pid_file(home: Path, name: str) -> Path:
    return home / "run" / f"{name}.pid"


def _log(home: Path, name: str) -> Path:
    return home / "logs" / f"{name}.log"


def _environment(settings: Settings, found: Addresses, *, queue: str, n_processes: int) -> dict[str, str]:
    """Addresses go to workers in their environment, where `ps` does not show them.

    The processes of a queue share the cores: a training gains nothing from a second thread, as its arrays are small
    (0.38 s per epoch with one, 0.47 s with two), and the scoring of a chunk has one. Threads wait asleep: by default
    they spin, and where another process wants their core a step of training takes ten times as long. The GPUs are
    named, and each process takes one of them (workers.app).
    """
    n_threads = max(1, machine.n_cores() // n_processes)
    devices = machine.cuda_devices() if queue == "gpu" and settings.device != "cpu" else []
    return {
        "OMP_NUM_THREADS": str(n_threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        **({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}),
        **os.environ,
        "SCREENING_HOME": str(settings.home),
        "SCREENING_DATABASE_URL": found.database_url,
        "SCREENING_REDIS_URL": found.redis_url,
        "SCREENING_DEVICE": settings.device if queue == "gpu" else "cpu",
    }


def _start(home: Path, name: str, arguments: list[str], environment: Mapping[str, str]) -> int:
    """Start a Celery process; the size of its log before."""
    pid_file = _pid_file(home, name)
    processes.stop(pid_file, grace_s=0.0)  # children of one that was killed
    log = _log(home, name)
    size = log.stat().st_size if log.exists() else 0
    command = [sys.executable, "-m", "celery", "--app", *arguments]
    processes.start(pid_file, command, log=log, directory=home, environment=environment)
    return size


def _wait_until_ready(home: Path, started: Mapping[str, int]) -> None:
    """Wait until each log says so: `cpu@node ready.` of a worker, `beat: Starting` of beat."""
    deadline = time.monotonic() + _START_S
    for name, size in started.items():
        sign = "beat: Starting" if name == "beat" else " ready."
        log = _log(home, name)
        while sign not in log.read_bytes()[size:].decode(errors="replace"):
            if not processes.is_held(_pid_file(home, name)):
                raise ServiceError(f"{name} stopped at once; {log_tail(log)}")
            if time.monotonic() > deadline:
                raise ServiceError(f"{name} did not become ready in {_START_S:.0f} s; {log_tail(log)}")
            time.sleep(0.1)
