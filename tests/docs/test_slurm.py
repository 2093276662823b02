"""The job script for Slurm: its options, what it refuses, and the workers that it starts and stops."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
import pytest
from sqlalchemy import Engine, select

from screening.database import tables
from screening.database.session import session_scope
from screening.pipeline.dispatch import QUEUES, announce
from screening.services import addresses
from screening.settings import Settings
from tests.workers.real_workers import add_space, n_blocked, progress, run_campaign, stuck, wait_until

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "docs" / "slurm" / "workers.sbatch"
EXAMPLE = ROOT / "docs" / "slurm" / "addresses.env.example"
END_S = 60.0  # what is waited for takes five seconds
OPTIONS = {  # of sbatch that the script gives, and what their values look like
    "job-name": r"\w+",
    "array": r"\d+-\d+",
    "ntasks": r"1",
    "cpus-per-task": r"\d+",
    "mem-per-cpu": r"\d+M",
    "time": r"\d\d:\d\d:\d\d",
    "signal": r"B:TERM@\d+",
    "output": r"screening-%A_%a\.log",
}


def options() -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", SCRIPT.read_text(), re.MULTILINE))


def addresses_file(directory: Path, project: Settings, *, mode: int = 0o600) -> Path:
    found = addresses(project)
    path = directory / "addresses.env"
    path.write_text(f"SCREENING_DATABASE_URL='{found.database_url}'\nSCREENING_REDIS_URL='{found.redis_url}'\n")
    path.chmod(mode)
    return path


def environment(path: Path, **others: str) -> dict[str, str]:
    """As Slurm gives it to a job of the array, with the installed commands in PATH."""
    commands = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", "TMPDIR")}
    return {**kept, "PATH": commands, "ADDRESSES": str(path), "SLURM_JOB_ID": "7", **others}


@contextmanager
def job(log: IO[bytes], **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A job of the array; all that is left of it is killed at the end."""
    process = subprocess.Popen(["bash", SCRIPT], env=variables, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else []
        for member in family:
            member.kill()
        process.wait()


def test_sbatch_understands_the_options_and_all_stand_before_the_first_command() -> None:
    lines = SCRIPT.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    given = [n for n, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert given == list(range(1, len(given) + 1))
    assert max(given) < first_command
    assert set(options()) == set(OPTIONS)
    assert len(given) == len(OPTIONS)
    for name, value in options().items():
        assert re.fullmatch(OPTIONS[name], value), name


def test_the_workers_have_time_to_give_back_what_they_do_before_the_job_ends() -> None:
    found = re.search(r"^FINISH_S = ([\d.]+)", (ROOT / "workers" / "app.py").read_text(), re.MULTILINE)
    assert found is not None
    assert int(options()["signal"].partition("@")[2]) > 4 * float(found[1])


def test_a_process_has_the_memory_that_it_needs_at_most() -> None:
    assert int(options()["mem-per-cpu"].removesuffix("M")) >= 1536


def test_the_script_is_well_formed() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0


def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    checked = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True, check=False)
    assert checked.stdout == ""
    assert checked.returncode == 0


def test_the_example_sets_the_addresses_and_holds_no_password() -> None:
    names = re.findall(r"^(\w+)=", EXAMPLE.read_text(), re.MULTILINE)
    assert names == ["SCREENING_DATABASE_URL", "SCREENING_REDIS_URL"]
    assert set(re.findall(r":([^:@/'\s]+)@", EXAMPLE.read_text())) == {"PASSWORD"}


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_addresses_that_others_can_read_are_refused(tmp_path: Path, clean_services: Settings, mode: int) -> None:
    path = addresses_file(tmp_path, clean_services, mode=mode)
    finished = subprocess.run(
        ["bash", SCRIPT], env=environment(path), capture_output=True, text=True, check=False, timeout=END_S
    )
    assert finished.returncode == 2
    assert f"chmod 600 {path}" in finished.stderr


def test_without_addresses_the_script_says_what_to_do(tmp_path: Path) -> None:
    finished = subprocess.run(
        ["bash", SCRIPT], env=environment(tmp_path / "absent"), capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    assert "addresses.env.example" in finished.stderr


def test_a_worker_that_does_not_start_ends_the_job_with_its_error(tmp_path: Path) -> None:
    path = tmp_path / "addresses.env"
    path.write_text("SCREENING_DATABASE_URL='mysql://server/screening'\nSCREENING_REDIS_URL='redis://server'\n")
    path.chmod(0o600)
    finished = subprocess.run(
        ["bash", SCRIPT], env=environment(path), capture_output=True, text=True, check=False, timeout=END_S
    )
    assert finished.returncode != 0
    assert "it should begin with postgresql://" in finished.stderr


def test_a_job_does_a_campaign_and_ends_when_it_is_told_to(
    tmp_path: Path, clean_services: Settings, clean_engine: Engine
) -> None:
    campaign_id = run_campaign(clean_engine, add_space(clean_engine))
    announce(addresses(clean_services).redis_url, "enumerate")
    path = addresses_file(tmp_path, clean_services)
    places = tmp_path / "node"
    places.mkdir()
    log = tmp_path / "job.log"
    variables = environment(path, SLURM_CPUS_PER_TASK="2", TMPDIR=str(places))
    with log.open("wb") as out, job(out, **variables) as process:
        wait_until(lambda: progress(clean_engine, campaign_id).is_over, clean_services)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(list(places.glob("screening-7-*"))) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=END_S) == 0, log.read_text()
        assert not [worker for worker in workers if worker.is_running() and worker.status() != "zombie"]
    assert list(places.glob("screening-*")) == []
    assert progress(clean_engine, campaign_id).state == "finished"
    assert "password" not in log.read_text().lower()
    assert addresses(clean_services).database_url.split(":")[2].split("@")[0] not in log.read_text()


def test_a_job_that_is_told_to_end_gives_back_its_chunk(
    tmp_path: Path, clean_services: Settings, clean_engine: Engine
) -> None:
    campaign_id = run_campaign(clean_engine, add_space(clean_engine))
    announce(addresses(clean_services).redis_url, "enumerate")
    path = addresses_file(tmp_path, clean_services)
    log = tmp_path / "job.log"
    with log.open("wb") as out, job(out, **environment(path)) as process:
        with stuck(clean_engine, "candidates"):
            wait_until(lambda: n_blocked(clean_engine) >= 1, clean_services)
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=END_S)
        with session_scope(clean_engine) as session:
            chunks = session.execute(select(tables.Chunk.state, tables.Chunk.attempts, tables.Chunk.lease_owner)).all()
        assert set(chunks) == {("waiting", 0, None)}, log.read_text()
    assert not progress(clean_engine, campaign_id).is_over


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("0,1", [("0", "gpu0-7@%h", "gpu", "1", "cuda", "4"), ("1", "gpu1-7@%h", "gpu", "1", "cuda", "4")]),
        ("NoDevFiles", [("NoDevFiles", "cpu-7@%h", "cpu,gpu", "8", "cpu", "1")]),
    ],
)
def test_each_gpu_has_a_process_of_its_own_and_else_each_core(
    tmp_path: Path, clean_services: Settings, devices: str, expected: list[tuple[str, ...]]
) -> None:
    # in the place of Celery, which would need the GPUs: what it is called with, until it is stopped
    listener = tmp_path / "bin" / "celery"
    listener.parent.mkdir()
    listener.write_text(
        textwrap.dedent(f"""\
            #!{sys.executable}
            import json, os, signal, sys
            path = os.path.join({str(tmp_path)!r}, f"called-{{os.getpid()}}")
            with open(path + ".part", "w") as file:
                json.dump([sys.argv[1:], dict(os.environ)], file)
            os.rename(path + ".part", path)
            signal.pause()
            """)
    )
    listener.chmod(0o755)
    variables = environment(
        addresses_file(tmp_path, clean_services), SLURM_CPUS_PER_TASK="8", CUDA_VISIBLE_DEVICES=devices
    )
    variables["PATH"] = f"{listener.parent}:{variables['PATH']}"

    def calls() -> list[Path]:
        return [path for path in tmp_path.glob("called-*") if path.suffix != ".part"]

    with (tmp_path / "job.log").open("wb") as out, job(out, **variables) as process:
        wait_until(lambda: len(calls()) == len(expected), clean_services)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=END_S)
    found = []
    for path in calls():
        arguments, given = json.loads(path.read_text())
        option: Callable[[str], str] = dict(zip(arguments[3::2], arguments[4::2], strict=False)).__getitem__
        assert arguments[:3] == ["--app", "workers.app", "worker"]
        assert set(option("--queues").split(",")) <= set(QUEUES.values())
        found.append(
            (
                given["CUDA_VISIBLE_DEVICES"], option("--hostname"), option("--queues"), option("--concurrency"),
                given["SCREENING_DEVICE"], given["OMP_NUM_THREADS"],
            )
        )  # fmt: skip
    assert sorted(found) == expected
