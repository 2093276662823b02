import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from sqlalchemy import Engine, text

from screening.errors import ServiceError
from screening.services import addresses, start_workers, status
from screening.settings import Settings
from tests.workers.real_workers import kill, leader, log, wait_until


def test_workers_refuse_a_database_that_is_not_migrated(project: Settings, clean_engine: Engine) -> None:
    with clean_engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'older'"))
    with pytest.raises(ServiceError, match=r"(?s)the database is at migration older.*screening up"):
        start_workers(project, cpu=1, gpu=0)
    assert not [process for process in status(project) if process.name == "worker-cpu" and process.running]


def test_beat_refuses_a_database_that_is_not_migrated(project: Settings, clean_engine: Engine) -> None:
    with clean_engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    with pytest.raises(ServiceError, match=r"(?s)beat stopped at once.*the database is at migration none"):
        start_workers(project, cpu=0, gpu=0)


def test_a_worker_takes_json_only_and_shows_no_password(project: Settings) -> None:
    start_workers(project, cpu=1, gpu=0)
    found = addresses(project)
    for name in ("worker-cpu", "beat"):
        for url in (found.database_url, found.redis_url):
            password = re.search(r":([^:@/]+)@", url)
            assert password is not None
            assert password[1] not in log(project, name)
    assert re.search(
        r"database postgresql\+psycopg://screening:\*\*\*@.*, broker redis://:\*\*\*@.*, device cpu",
        log(project, "worker-cpu"),
    )
    assert "pickle" not in log(project, "worker-cpu")


def test_torch_is_not_loaded_by_a_worker_that_waits(project: Settings) -> None:
    start_workers(project, cpu=0, gpu=1)
    (worker,) = [process for process in status(project) if process.name == "worker-gpu"]
    assert worker.pid is not None
    main = psutil.Process(worker.pid)
    processes = [main, *main.children(recursive=True)]
    assert len(processes) == 2
    for process in processes:
        assert not [m.path for m in process.memory_maps() if "libtorch" in m.path]


def test_each_process_of_a_worker_has_a_gpu_of_its_own(project: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a,GPU-2b,GPU-3c")
    start_workers(project.model_copy(update={"device": "cuda"}), cpu=0, gpu=3)
    wait_until(lambda: log(project, "worker-gpu").count("has GPU") == 3, project)
    found = re.findall(r"process (\d+) has GPU (\S+)", log(project, "worker-gpu"))
    assert {device for _, device in found} == {"GPU-1a", "GPU-2b", "GPU-3c"}
    children = leader(project, "worker-gpu").children()
    assert {int(pid) for pid, _ in found} == {child.pid for child in children}


def test_a_process_that_is_replaced_leaves_its_gpu_to_the_next(
    project: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a,GPU-2b")
    start_workers(project.model_copy(update={"device": "cuda"}), cpu=0, gpu=2)
    kill([leader(project, "worker-gpu").children()[0]])
    wait_until(lambda: log(project, "worker-gpu").count("has GPU") == 3, project)
    of_process = dict(re.findall(r"process (\d+) has GPU (\S+)", log(project, "worker-gpu")))
    alive = {of_process[str(child.pid)] for child in leader(project, "worker-gpu").children()}
    assert alive == {"GPU-1a", "GPU-2b"}


def test_without_services_a_worker_says_what_to_do(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "celery", "--app", "workers.app", "worker"],
        env={"SCREENING_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert finished.returncode != 0
    assert "run `screening up`" in finished.stdout + finished.stderr
