"""The doctor on this machine, before and after `up`, and on machines that are wrong in one way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from sqlalchemy import Engine, text

from screening.database.session import session_scope
from screening.services import Check, doctor, down, status, up
from screening.services.doctor import (
    check_broker,
    check_database,
    check_disk,
    check_file_system,
    check_gpu,
    check_home,
    check_locale,
    check_packages,
    check_ports,
    check_postgresql_programs,
    check_processes,
    check_python,
    check_valkey_program,
    file_system,
)
from screening.settings import Settings


def named(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def on_file_system(monkeypatch: pytest.MonkeyPatch, home: Path, kind: str) -> None:
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(home), fstype=kind)]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)


def test_running_services_at_head_are_well(services: Settings) -> None:
    checks = doctor(services)
    assert [check.name for check in checks if check.ok is False] == []
    assert named(checks, "database").ok
    assert named(checks, "broker").ok
    assert len({check.name for check in checks}) == len(checks)


def test_whatever_is_not_well_comes_with_advice(home: Path) -> None:
    checks = doctor(Settings(home=home, database_url=None, redis_url=None))
    assert all(check.advice for check in checks if not check.ok)
    assert named(checks, "database") == Check("database", None, named(checks, "broker").found, "screening up")


def test_the_doctor_starts_and_writes_nothing(home: Path) -> None:
    settings = Settings(home=home, database_url=None, redis_url=None)
    doctor(settings)
    assert list(home.iterdir()) == []
    assert not any(row.running for row in status(settings))


def test_the_doctor_does_not_import_torch() -> None:
    program = (
        "import sys, pathlib; from screening.services import doctor; from screening.settings import Settings; "
        f"doctor(Settings(home=pathlib.Path({os.devnull!r}).parent)); "
        "sys.exit(sum(name in sys.modules for name in ('torch', 'pymatgen', 'numba')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "gpfs", "cifs", "fuse.sshfs"])
def test_a_home_on_a_network_file_system_is_refused(monkeypatch: pytest.MonkeyPatch, home: Path, kind: str) -> None:
    on_file_system(monkeypatch, home, kind)
    found = check_file_system(Settings(home=home / "not" / "made" / "yet", database_url=None, redis_url=None))
    assert found.ok is False
    assert kind in found.found
    assert "SCREENING_HOME" in found.advice


def test_a_network_file_system_is_fine_when_the_services_are_elsewhere(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    on_file_system(monkeypatch, home, "nfs4")
    assert check_file_system(Settings(home=home, database_url="postgresql://host/db", redis_url="redis://host")).ok


def test_a_home_in_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    on_file_system(monkeypatch, home, "tmpfs")
    assert check_file_system(Settings(home=home, database_url=None, redis_url=None)).ok is None


def test_the_file_system_of_a_path_is_that_of_its_innermost_mount() -> None:
    assert file_system(Path("/proc/self")) == "proc"
    kind = subprocess.run(["stat", "-f", "-c", "%T", "/proc"], capture_output=True, text=True, check=True).stdout
    assert kind.strip() == "proc"


@pytest.mark.parametrize(("free_gib", "ok"), [(0.5, False), (3.0, None), (50.0, True)])
def test_a_disk_that_is_nearly_full_is_told(
    monkeypatch: pytest.MonkeyPatch, home: Path, free_gib: float, ok: bool | None
) -> None:
    monkeypatch.setattr(psutil, "disk_usage", lambda path: SimpleNamespace(free=int(free_gib * 2**30)))
    found = check_disk(Settings(home=home, database_url=None, redis_url=None))
    assert found.ok is ok
    assert f"{free_gib} GiB" in found.found


def test_a_home_that_is_a_file_is_told(home: Path) -> None:
    (home / "file").touch()
    assert check_home(Settings(home=home / "file")).ok is False
    assert check_home(Settings(home=home / "file" / "below")).ok is False


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written_is_told(home: Path) -> None:
    home.chmod(0o500)
    assert check_home(Settings(home=home)).ok is False
    home.chmod(0o700)


def test_a_locale_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("LC_ALL", "xx_YY.UTF-8")
    found = check_locale(Settings(home=home))
    assert found.ok is None
    assert "xx_YY.UTF-8" in found.found


def test_a_package_that_is_missing_or_too_old_is_told(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    needed = ["numpy>=99", "no-such-package>=1", "psutil>=1", "pytest>=99; extra == 'dev'"]
    monkeypatch.setattr(metadata, "requires", lambda name: needed)
    found = check_packages(Settings(home=home))
    assert found.ok is False
    assert found.found == f"numpy is {metadata.version('numpy')}, not >=99; no-such-package is not installed"


def test_python_is_new_enough(home: Path) -> None:
    found = check_python(Settings(home=home))
    assert found.ok
    assert found.found.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")


def test_the_programs_of_the_wheels_run(home: Path) -> None:
    settings = Settings(home=home, database_url=None, redis_url=None)
    assert "PostgreSQL" in check_postgresql_programs(settings).found
    assert "Valkey" in check_valkey_program(settings).found


def test_a_cluster_of_another_version_is_told(home: Path) -> None:
    (home / "postgres").mkdir()
    (home / "postgres" / "PG_VERSION").write_text("9\n")
    found = check_postgresql_programs(Settings(home=home, database_url=None, redis_url=None))
    assert found.ok is False
    assert "is of version 9" in found.found


def test_remembered_ports_that_others_have_taken_are_told(home: Path) -> None:
    settings = Settings(home=home, database_url=None, redis_url=None)
    assert check_ports(settings).ok
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        (home / "state.json").write_text(f'{{"postgres_port": {port}}}')
        found = check_ports(settings)
    assert found.ok is None
    assert str(port) in found.found


def test_a_schema_that_is_not_at_head_is_told(clean_services: Settings, clean_engine: Engine) -> None:
    assert check_database(clean_services).ok
    with session_scope(clean_engine) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    found = check_database(clean_services)
    assert found.ok is False
    assert "migration 0000; this version needs" in found.found


def test_a_database_without_tables_is_told(home: Path) -> None:
    settings = Settings(home=home, database_url=None, redis_url=None)
    up(settings)
    assert "migration none" in check_database(settings).found
    down(settings)
    assert check_database(settings).ok is None


def test_servers_that_do_not_answer_are_told_without_their_passwords(home: Path) -> None:
    absent = Settings(
        home=home, database_url="postgresql://me:secret@127.0.0.1:9/db", redis_url="redis://:secret@127.0.0.1:9"
    )
    for found in (check_database(absent), check_broker(absent)):
        assert found.ok is False
        assert found.advice.startswith("start the server, or mend SCREENING_")
        assert "secret" not in found.found


def test_all_may_be_stopped_but_none_may_be_dead(home: Path) -> None:
    settings = Settings(home=home, database_url=None, redis_url=None)
    assert check_processes(settings).ok is None
    up(settings)
    assert check_processes(settings) == Check("processes", True, "postgresql, valkey")
    killed = psutil.Process(int((home / "run" / "valkey.pid").read_text()))
    killed.kill()
    killed.wait(10)
    found = check_processes(settings)
    assert (found.ok, found.found) == (False, "valkey not running, though started once")
    down(settings)
    assert check_processes(settings) == Check("processes", None, "nothing runs", "screening up")


@pytest.mark.parametrize("broker", ["redis://:sec/ret@127.0.0.1:9/0", "redis://127.0.0.1:9/0?db=x", "redis://h?no=1"])
def test_an_address_that_cannot_be_read_is_told(home: Path, broker: str) -> None:
    found = check_broker(Settings(home=home, database_url="postgresql://host/db", redis_url=broker))
    assert found.ok is False
    assert "SCREENING_REDIS_URL" in found.found + found.advice
    assert "sec" not in found.found


def test_a_gpu_that_is_wanted_and_not_there_is_told(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = check_gpu(Settings(home=home, device="cuda"))
    assert found.ok is False
    assert "SCREENING_DEVICE=cpu" in found.advice


def test_no_gpu_is_fine_unless_it_is_wanted(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("PATH", str(home))  # no nvidia-smi
    assert check_gpu(Settings(home=home, device="auto")).ok
    assert check_gpu(Settings(home=home, device="cpu")).ok
