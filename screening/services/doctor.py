"""What a machine must have for a project to run, checked one by one, with advice where it has not.

Nothing is started or changed. The network libraries are not imported here: a GPU is asked for by
`nvidia-smi` and by a Python of its own.
"""

from __future__ import annotations

import locale
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import psutil

from screening.errors import AddressError, ServiceError
from screening.services import machine, postgresql, processes, valkey, workers
from screening.services.postgresql_binaries import binaries, unprivileged_account
from screening.services.state import addresses, port_is_free, read_state, without_password
from screening.settings import Settings

_PACKAGE = "screening"
_GIB = 2**30
_NETWORK = {
    "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "glusterfs", "gpfs", "lustre",
    "ncpfs", "nfs", "nfs4", "panfs", "pvfs2", "smb3", "smbfs",
}  # fmt: skip
_VOLATILE = {"ramfs", "tmpfs"}
_NEEDED_DISK = 1 * _GIB
_GOOD_DISK = 5 * _GIB
_GOOD_MEMORY = 4 * _GIB
_GPU_QUESTION = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'none')"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        ok: None is a warning: it works, but not well or not yet.
        advice: what to do; empty when nothing is to be done.
    """

    name: str
    ok: bool | None
    found: str
    advice: str = ""


def doctor(settings: Settings) -> list[Check]:
    """Look at everything a project needs; about a second, more where there is a GPU."""
    checks: tuple[Callable[[Settings], Check], ...] = (
        check_home, check_file_system, check_disk, check_memory, check_locale, check_python, check_packages,
        check_postgresql_programs, check_valkey_program, check_ports, check_processes, check_database,
        check_broker, check_gpu,
    )  # fmt: skip
    return [check(settings) for check in checks]


def check_home(settings: Settings) -> Check:
    """The home directory can be written, or made."""
    place = _existing(settings.home)
    if not place.is_dir():
        return Check("home", False, f"{place} is no directory", "set SCREENING_HOME to a directory")
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("home", False, f"{place} cannot be written", "set SCREENING_HOME to a directory of your own")
    made = "" if place == settings.home else " (made by `screening up`)"
    return Check("home", True, f"{settings.home}{made}")


def check_file_system(settings: Settings) -> Check:
    """Data do not lie on a network file system: locks and crash safety of the servers need a local one."""
    place = _data_place(settings)
    kind = file_system(place)
    found = f"{kind} at {place}"
    if settings.database_url is not None and settings.redis_url is not None:
        return Check("file system", True, f"{found}; the services are elsewhere")
    if kind in _NETWORK:
        return Check("file system", False, found, "set SCREENING_HOME to a directory on a local disk")
    if kind in _VOLATILE:
        return Check("file system", None, found, "data are lost when the machine restarts; set SCREENING_HOME")
    return Check("file system", True, found)


def check_disk(settings: Settings) -> Check:
    """There is room for data."""
    place = _data_place(settings)
    free = psutil.disk_usage(str(place)).free
    found = f"{free / _GIB:.1f} GiB free at {place}"
    advice = f"have {_GOOD_DISK / _GIB:.0f} GiB free, or set SCREENING_HOME to a larger disk"
    if free < _NEEDED_DISK:
        return Check("disk", False, found, advice)
    return Check("disk", True, found) if free >= _GOOD_DISK else Check("disk", None, found, advice)


def check_memory(settings: Settings) -> Check:
    """Memory and cores, of the machine or of the container."""
    memory = machine.memory_bytes()
    found = f"{memory / _GIB:.1f} GiB memory, {machine.n_cores()} cores"
    if memory < _GOOD_MEMORY:
        return Check("memory", None, found, f"training wants {_GOOD_MEMORY / _GIB:.0f} GiB; start fewer workers")
    return Check("memory", True, found)


def check_locale(settings: Settings) -> Check:
    """The locale of the environment exists and is UTF-8."""
    try:
        name = locale.setlocale(locale.LC_CTYPE, "")
    except locale.Error:
        wanted = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG")
        return Check("locale", None, f"{wanted} is not installed", "export LC_ALL=C.UTF-8")
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        return Check("locale", None, f"{name}, encoding {encoding}", "export LC_ALL=C.UTF-8")
    return Check("locale", True, f"{name}, encoding {encoding}")


def check_python(settings: Settings) -> Check:
    """Python is as new as the package needs."""
    from packaging.specifiers import SpecifierSet

    version = ".".join(map(str, sys.version_info[:3]))
    needed = metadata.metadata(_PACKAGE)["Requires-Python"]
    if version in SpecifierSet(needed):
        return Check("python", True, f"{version} ({sys.executable})")
    return Check("python", False, version, f"Python {needed} is needed; make .venv anew with a newer one")


def check_packages(settings: Settings) -> Check:
    """Every package that is needed is there, in a version that is good."""
    from packaging.requirements import Requirement

    wrong = []
    requirements = [Requirement(text) for text in metadata.requires(_PACKAGE) or ()]
    needed = [found for found in requirements if found.marker is None or found.marker.evaluate({"extra": ""})]
    for requirement in needed:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if wrong:
        return Check("packages", False, "; ".join(wrong), "make install")
    return Check("packages", True, f"all {len(needed)} are there")


def check_postgresql_programs(settings: Settings) -> Check:
    """The PostgreSQL of the wheel runs here, and fits the cluster."""
    if settings.database_url is not None:
        return Check("postgresql", True, "another server is used (SCREENING_DATABASE_URL)")
    try:
        user = unprivileged_account()
        version = _output([str(binaries(user) / "postgres"), "--version"])
    except (ServiceError, OSError, subprocess.SubprocessError) as error:
        return Check("postgresql", False, str(error), "set SCREENING_DATABASE_URL to a server of your own")
    major = version.split()[-1].split(".")[0]
    cluster = postgresql.data_directory(settings.home, read_state(settings.home)) / "PG_VERSION"
    made_by = cluster.read_text().strip() if cluster.exists() else major
    if made_by != major:
        advice = "install the wheel that made it, dump the database (pg_dump), then set SCREENING_HOME anew"
        return Check("postgresql", False, f"{version}, but {cluster.parent} is of version {made_by}", advice)
    return Check("postgresql", True, version)


def check_valkey_program(settings: Settings) -> Check:
    """The Valkey of the wheel runs here."""
    if settings.redis_url is not None:
        return Check("valkey", True, "another server is used (SCREENING_REDIS_URL)")
    try:
        return Check("valkey", True, _output([str(valkey.server_binary()), "--version"]))
    except (ServiceError, OSError, subprocess.SubprocessError) as error:
        return Check("valkey", False, str(error), "set SCREENING_REDIS_URL to a server of your own")


def check_ports(settings: Settings) -> Check:
    """Servers can listen on loopback, on the remembered ports if there are any."""
    if not port_is_free(0):
        return Check("ports", False, "nothing can listen on 127.0.0.1", "bring up the loopback interface")
    state = read_state(settings.home)
    running = {
        "postgres_port": postgresql.postmaster(postgresql.data_directory(settings.home, state)) is not None,
        "valkey_port": processes.is_held(settings.home / "run" / "valkey.pid"),
    }
    taken = [
        str(state[name])
        for name, runs in running.items()
        if name in state and not runs and not port_is_free(state[name])
    ]
    if taken:
        return Check("ports", None, f"others listen on {', '.join(taken)}", "nothing: `screening up` takes others")
    return Check("ports", True, ", ".join(f"{name} {state[name]}" for name in running if name in state) or "free")


def check_processes(settings: Settings) -> Check:
    """What was started here runs; all of it may be stopped, but not a part."""
    home = settings.home
    data = postgresql.data_directory(home, read_state(home))
    files = [*([home / "run" / "valkey.pid"] if settings.redis_url is None else []), *workers.pid_files(home)]
    runs = {file.stem: processes.running_pid(file) is not None for file in files if file.exists()}
    if settings.database_url is None and data.exists():
        runs["postgresql"] = postgresql.postmaster(data) is not None
    if not any(runs.values()) and not (data / "postmaster.pid").exists():  # a server that was stopped removes it
        return Check("processes", None, "nothing runs", "screening up")
    dead = sorted(name for name, is_running in runs.items() if not is_running)
    if dead:
        advice = f"screening up; {home / 'logs'} says why"
        return Check("processes", False, f"{', '.join(dead)} not running, though started once", advice)
    return Check("processes", True, ", ".join(sorted(runs)))


def check_database(settings: Settings) -> Check:
    """PostgreSQL answers, and its schema is at the newest migration."""
    import psycopg

    try:
        url = addresses(settings).database_url.replace("postgresql+psycopg://", "postgresql://", 1)
    except AddressError as error:
        return Check("database", False, str(error), "mend or unset it")
    except ServiceError as error:
        return Check("database", None, str(error), "screening up")
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            server = connection.info.server_version // 10000
            known = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone() if known == (True,) else None
    except psycopg.Error as error:
        found = f"{without_password(url)} does not answer ({error})"
        return _silent("database", found, settings.database_url is not None, "SCREENING_DATABASE_URL")
    if server < 16:  # erf() of design queries, and NULLS NOT DISTINCT
        return Check("database", False, f"PostgreSQL {server} at {without_password(url)}", "use PostgreSQL 16 or newer")
    found, head = row[0] if row else "none", _newest_migration()
    if found != head:
        return Check("database", False, f"migration {found}; this version needs {head}", "screening up")
    return Check("database", True, f"PostgreSQL {server} at {without_password(url)}, migration {head}")


def check_broker(settings: Settings) -> Check:
    """Redis or Valkey answers."""
    import redis

    try:
        url = addresses(settings).redis_url
        with redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=5) as client:
            client.ping()
    except AddressError as error:
        return Check("broker", False, str(error), "mend or unset it")
    except (ValueError, TypeError) as error:  # what redis-py says of options behind the `?`
        return Check("broker", False, f"{without_password(url)}: {error}", "mend SCREENING_REDIS_URL")
    except ServiceError as error:
        return Check("broker", None, str(error), "screening up")
    except redis.RedisError as error:
        return _silent("broker", str(error), settings.redis_url is not None, "SCREENING_REDIS_URL")
    return Check("broker", True, f"answers at {without_password(url)}")


def _silent(name: str, found: str, is_given: bool, variable: str) -> Check:
    """A server that does not answer: one that the user runs should, one of ours may be stopped."""
    if is_given:
        return Check(name, False, found, f"start the server, or mend {variable}")
    return Check(name, None, found, "screening up")


def check_gpu(settings: Settings) -> Check:
    """A GPU, if there is one, is one that torch can use."""
    listing = machine.gpu_listing()
    if not listing.startswith("GPU") and settings.device != "cuda":
        return Check("gpu", True, "none; networks run on the CPU")
    if settings.device == "cpu":
        return Check("gpu", True, f"{listing.splitlines()[0]}; not used (SCREENING_DEVICE=cpu)")
    usable = _output([sys.executable, "-c", _GPU_QUESTION])
    if usable == "none":
        advice = "install the torch wheel for your CUDA version, or set SCREENING_DEVICE=cpu"
        return Check("gpu", False if settings.device == "cuda" else None, "torch sees none", advice)
    return Check("gpu", True, usable)


def file_system(place: Path) -> str:
    """The kind of file system that holds a path, as in /proc/mounts."""
    resolved = place.resolve()
    mounts = {Path(found.mountpoint): found.fstype for found in psutil.disk_partitions(all=True)}
    return next((mounts[parent] for parent in (resolved, *resolved.parents) if parent in mounts), "unknown")


def _data_place(settings: Settings) -> Path:
    """Where the data are, or where they will be."""
    return _existing(postgresql.data_directory(settings.home, read_state(settings.home)))


def _existing(path: Path) -> Path:
    """The path, or the nearest of its parents that exists."""
    return next(found for found in (path, *path.parents) if found.exists())


def _newest_migration() -> str | None:
    from alembic.script import ScriptDirectory

    spec = find_spec("migrations")
    assert spec is not None
    assert spec.origin is not None
    return ScriptDirectory(Path(spec.origin).parent).get_current_head()


def _output(command: list[str]) -> str:
    """What a program says in a minute at most."""
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return (finished.stdout or finished.stderr).strip()
