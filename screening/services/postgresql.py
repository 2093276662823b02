"""PostgreSQL: a cluster of our own on loopback, with a password.

PostgreSQL refuses to run as root; then it runs as an unprivileged user, and if that user cannot reach the
home directory or the wheel, cluster and binaries are put below /var/tmp. A cluster belongs to the user that
made it, and is always served as that user.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from screening.errors import ServiceError
from screening.services.postgresql_binaries import START_S, run_tool, unprivileged_account
from screening.services.state import free_port, log_tail, port_is_free, write_state

_PORTS_TRIED = 3  # somebody may take a free port before the server does
_ORPHANS_S = 10.0
_UNFINISHED = "initdb-unfinished-"
_CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
shared_buffers = 512MB
work_mem = 64MB
maintenance_work_mem = 256MB
max_wal_size = 4GB
timezone = 'UTC'
log_timezone = 'UTC'
"""


def start(home: Path, state: dict[str, Any]) -> None:
    """Initialise the cluster if need be, start the server, wait until it answers.

    Raises:
        ServiceError: it did not start; with the end of its log.
    """
    if "postgres_data" not in state:
        state["postgres_data"] = str(_place_for_cluster(home))
        state["postgres_password"] = secrets.token_urlsafe(24)
        write_state(home, state)
    data = data_directory(home, state)
    if not (data / "PG_VERSION").exists():
        _initialise(home, state, data)
    if postmaster(data) is None:
        _end_orphans(data)
        _start_server(home, state, data)
    _link_log(home, data / "server.log")
    state["postgres_port"] = _port(data)
    location = f"127.0.0.1:{state['postgres_port']}"
    state["database_url"] = f"postgresql+psycopg://screening:{quote(state['postgres_password'])}@{location}/screening"
    write_state(home, state)
    _wait_for_database(data, state)


def stop(home: Path, state: Mapping[str, Any]) -> None:
    """Stop the server of a project, if it runs.

    Raises:
        ServiceError: it did not stop; with the end of its log.
    """
    data = data_directory(home, state)
    if postmaster(data) is not None:
        seconds = str(int(START_S))
        run_tool(home, data, "pg_ctl", "stop", "-D", str(data), "-m", "fast", "-w", "-t", seconds)
    elif not data.exists():
        _end_processes_in(data)  # somebody deleted it below them


def data_directory(home: Path, state: Mapping[str, Any]) -> Path:
    """The cluster of a project; remembered relative to its home, which may be moved."""
    return home / str(state.get("postgres_data", "postgres"))


def postmaster(data: Path) -> int | None:
    """Pid of the server of a data directory, if it runs; a pid file left by a dead one does not count."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        process = psutil.Process(pid)
        arguments = process.cmdline()
        is_ours = bool(arguments) and "postgres" in Path(arguments[0]).name and str(data) in arguments
        return pid if is_ours and process.status() != psutil.STATUS_ZOMBIE else None
    except (FileNotFoundError, NotADirectoryError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def _place_for_cluster(home: Path) -> Path:
    """Where the cluster goes: below home, or below /var/tmp when the unprivileged user cannot reach home."""
    user = unprivileged_account()
    if user is None or user.reaches(home):
        return Path("postgres")
    parent = Path(tempfile.mkdtemp(prefix="screening-", dir="/var/tmp"))
    os.chown(parent, user.uid, user.gid)
    return parent / "postgres"


def _initialise(home: Path, state: Mapping[str, Any], data: Path) -> None:
    """Make a cluster next to its place and move it there when it is complete: initdb may be interrupted."""
    if data.exists() and any(data.iterdir()):
        raise ServiceError(
            f"{data} holds files but no PostgreSQL cluster; move it away and run `screening up`, "
            "or set SCREENING_HOME to another directory"
        )
    for leftover in data.parent.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)  # an initdb whose caller was killed may still write there
    staging = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=data.parent))
    password_file, cluster = staging / "password", staging / "cluster"
    cluster.mkdir(mode=0o700)
    password_file.touch(mode=0o600)
    password_file.write_text(state["postgres_password"] + "\n")
    user = unprivileged_account()
    if user is not None:
        for path in (staging, password_file, cluster):
            os.chown(path, user.uid, user.gid)
    try:
        run_tool(
            home, cluster, "initdb", "-D", str(cluster), "-U", "screening", "--pwfile", str(password_file),
            "--auth", "scram-sha-256", "--locale", "C", "--encoding", "UTF8", "--data-checksums",
        )  # fmt: skip
        with (cluster / "postgresql.conf").open("a") as configuration:
            configuration.write(_CONFIGURATION)
        cluster.replace(data)
    finally:
        shutil.rmtree(staging)


def _start_server(home: Path, state: dict[str, Any], data: Path) -> None:
    """Start the server on the remembered port, or another free one."""
    for attempt in range(1, _PORTS_TRIED + 1):
        port = state["postgres_port"] = free_port(state.get("postgres_port"))
        try:
            run_tool(
                home, data, "pg_ctl", "start", "-D", str(data), "-w", "-t", str(int(START_S)),
                "-l", str(data / "server.log"), "-o", f"-p {port}",
            )  # fmt: skip
        except ServiceError:
            if attempt == _PORTS_TRIED or port_is_free(port) or postmaster(data) is not None:
                raise
        else:
            return


def _end_orphans(data: Path) -> None:
    """End what a killed server left behind, then forget it.

    Its children notice only when they next wait; a second server that writes the same files beside them
    would damage the cluster. A server refuses to start while the pid in `postmaster.pid` is alive, and after
    a crash that pid may be anyone's.
    """
    pid_file = data / "postmaster.pid"
    if pid_file.exists():
        _end_processes_in(data)
        pid_file.unlink()


def _end_processes_in(data: Path) -> None:
    """End the processes that work in a cluster's directory.

    Raises:
        ServiceError: one cannot be ended.
    """
    place = str(data.resolve())
    orphans = [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == place]
    _, alive = psutil.wait_procs(orphans, timeout=0.5)
    for sign in (signal.SIGQUIT, signal.SIGKILL):
        for process in alive:
            if process.is_running():
                process.send_signal(sign)
        _, alive = psutil.wait_procs(alive, timeout=_ORPHANS_S)
    if alive:
        pids = ", ".join(str(process.pid) for process in alive)
        raise ServiceError(f"processes {pids} of a PostgreSQL server that was killed cannot be ended; end them first")


def _port(data: Path) -> int:
    """The port of a running server: the fourth line of its pid file."""
    return int((data / "postmaster.pid").read_text().splitlines()[3])


def _link_log(home: Path, log: Path) -> None:
    link = home / "logs" / "postgresql.log"
    if not link.is_symlink() or link.readlink() != log:
        link.unlink(missing_ok=True)
        link.symlink_to(log)


def _wait_for_database(data: Path, state: Mapping[str, Any]) -> None:
    """Wait until the server answers, and create the database `screening`."""
    import psycopg  # a quarter of a second, which commands that start nothing need not wait

    deadline = time.monotonic() + START_S
    parameters = {
        "host": "127.0.0.1", "port": state["postgres_port"], "user": "screening", "dbname": "postgres",
        "password": state["postgres_password"], "connect_timeout": 10,
    }  # fmt: skip
    while True:
        try:
            with psycopg.connect(autocommit=True, **parameters) as connection:
                if connection.execute("SELECT 1 FROM pg_database WHERE datname = 'screening'").fetchone() is None:
                    connection.execute("CREATE DATABASE screening")
                return
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline or postmaster(data) is None or "password" in str(error):
                raise ServiceError(
                    f"PostgreSQL does not answer on port {state['postgres_port']} ({error}); "
                    f"{log_tail(data / 'server.log')}"
                ) from error
            time.sleep(0.2)
