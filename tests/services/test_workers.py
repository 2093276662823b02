"""Real Celery workers of a small application, started, killed and found again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
from celery import Celery

from screening.errors import ServiceError
from screening.services import addresses, start_workers, status, stop_workers
from screening.settings import Settings

APPLICATION = """
import os, time
from celery import Celery
app = Celery(broker=os.environ["SCREENING_REDIS_URL"], backend=os.environ["SCREENING_REDIS_URL"])
app.conf.task_routes = {"on_cpu": "cpu", "on_gpu": "gpu"}
app.conf.beat_schedule = {"tick": {"task": "on_cpu", "schedule": 1.0, "args": ["tick"]}}
def environment(name):
    names = ("SCREENING_HOME", "SCREENING_DATABASE_URL", "SCREENING_DEVICE", "OMP_NUM_THREADS")
    return {key: os.environ.get(key) for key in names} | {"pid": os.getpid()}
app.task(name="on_cpu")(environment)
app.task(name="on_gpu")(environment)
@app.task(name="sleep")
def sleep(key):
    app.backend.client.set(key, os.getpid())
    while True:  # computes, and does not notice that its parent is dead
        time.sleep(0.1)
"""


@pytest.fixture
def settings(clean_services: Settings) -> Iterator[Settings]:
    (clean_services.home / "small_app.py").write_text(APPLICATION)
    yield clean_services
    stop_workers(clean_services)


@pytest.fixture
def application(settings: Settings) -> Iterator[Celery]:
    url = addresses(settings).redis_url
    with Celery(broker=url, backend=url) as app:
        yield app


def ask(application: Celery, task: str, queue: str) -> dict[str, object]:
    found = application.send_task(task, args=["test"], queue=queue).get(timeout=30)
    assert isinstance(found, dict)
    return found


def running(settings: Settings) -> dict[str, int]:
    return {row.name: row.pid for row in status(settings) if row.pid is not None}


def eventually(fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_workers_take_tasks_of_their_queue_with_the_settings_of_the_project(
    settings: Settings, application: Celery
) -> None:
    start_workers(settings, app="small_app")
    on_cpu, on_gpu = ask(application, "on_cpu", "cpu"), ask(application, "on_gpu", "gpu")
    assert on_cpu["pid"] != on_gpu["pid"]
    for found in (on_cpu, on_gpu):
        assert found["SCREENING_HOME"] == str(settings.home)
        assert found["SCREENING_DATABASE_URL"] == addresses(settings).database_url
    assert set(running(settings)) == {"worker-cpu", "worker-gpu", "beat"}


def test_the_device_is_for_the_gpu_queue_only(settings: Settings, application: Celery) -> None:
    with_device = settings.model_copy(update={"device": "cuda"})
    start_workers(with_device, app="small_app")
    assert ask(application, "on_cpu", "cpu")["SCREENING_DEVICE"] == "cpu"
    assert ask(application, "on_gpu", "gpu")["SCREENING_DEVICE"] == "cuda"


def test_beat_sends_what_is_scheduled(settings: Settings) -> None:
    start_workers(settings, cpu=0, gpu=0, app="small_app")
    assert set(running(settings)) == {"beat"}
    with redis.Redis.from_url(addresses(settings).redis_url) as client:
        eventually(lambda: client.llen("cpu") >= 2)


def test_a_worker_has_as_many_processes_as_asked_for(settings: Settings) -> None:
    start_workers(settings, cpu=3, gpu=0, app="small_app")
    assert set(running(settings)) == {"worker-cpu", "beat"}
    assert len(psutil.Process(running(settings)["worker-cpu"]).children()) == 3


def test_starting_again_leaves_running_workers_alone(settings: Settings) -> None:
    start_workers(settings, app="small_app")
    before = running(settings)
    start_workers(settings, app="small_app")
    assert running(settings) == before


def test_another_number_of_processes_restarts_that_worker_only(settings: Settings) -> None:
    start_workers(settings, cpu=1, gpu=1, app="small_app")
    before = running(settings)
    start_workers(settings, cpu=3, app="small_app")
    after = running(settings)
    assert len(psutil.Process(after["worker-cpu"]).children()) == 3
    assert after["worker-cpu"] != before["worker-cpu"]
    assert {name: after[name] for name in ("worker-gpu", "beat")} == {
        name: before[name] for name in ("worker-gpu", "beat")
    }
    start_workers(settings, app="small_app")
    assert running(settings) == after


def test_a_worker_that_runs_is_left_alone_when_none_of_its_queue_is_asked_for(settings: Settings) -> None:
    start_workers(settings, cpu=1, gpu=1, app="small_app")
    before = running(settings)
    start_workers(settings, cpu=0, gpu=1, app="small_app")
    assert running(settings) == before


def test_workers_are_started_anew_when_the_services_have_other_addresses(settings: Settings) -> None:
    start_workers(settings, cpu=2, gpu=0, app="small_app")
    before = running(settings)
    broker = addresses(settings).redis_url.removesuffix("/1") + "/2"
    moved = Settings(home=settings.home, database_url=settings.database_url, redis_url=broker)
    start_workers(moved, gpu=0, app="small_app")
    assert set(running(moved).values()).isdisjoint(before.values())
    assert len(psutil.Process(running(moved)["worker-cpu"]).children()) == 2


def test_stopping_ends_workers_and_their_children_even_in_the_middle_of_a_task(
    settings: Settings, application: Celery
) -> None:
    start_workers(settings, gpu=0, app="small_app")
    application.send_task("sleep", args=["sleeper"], queue="cpu")
    with redis.Redis.from_url(addresses(settings).redis_url) as client:
        eventually(lambda: client.exists("sleeper"))
        sleeper = psutil.Process(int(client.get("sleeper") or 0))
    stop_workers(settings)
    assert running(settings) == {}
    eventually(lambda: not sleeper.is_running())


def test_children_of_a_killed_worker_are_ended_before_the_next_one_starts(
    settings: Settings, application: Celery
) -> None:
    start_workers(settings, gpu=0, app="small_app")
    application.send_task("sleep", args=["sleeper"], queue="cpu")
    with redis.Redis.from_url(addresses(settings).redis_url) as client:
        eventually(lambda: client.exists("sleeper"))
        sleeper = psutil.Process(int(client.get("sleeper") or 0))
    psutil.Process(running(settings)["worker-cpu"]).kill()
    eventually(lambda: "worker-cpu" not in running(settings))
    assert sleeper.is_running()
    start_workers(settings, gpu=0, app="small_app")
    eventually(lambda: not sleeper.is_running())
    assert ask(application, "on_cpu", "cpu")["pid"] != sleeper.pid


def test_a_worker_that_does_not_start_says_why_with_the_end_of_its_log(settings: Settings) -> None:
    (settings.home / "broken_app.py").write_text("raise RuntimeError('this application is broken')\n")
    with pytest.raises(ServiceError, match=r"worker-cpu stopped at once; [^$]*this application is broken"):
        start_workers(settings, app="broken_app")


def test_addresses_do_not_show_in_the_arguments_of_workers(settings: Settings) -> None:
    start_workers(settings, gpu=0, app="small_app")
    password = addresses(settings).redis_url.split("@")[0].rsplit(":", 1)[1]
    for pid in running(settings).values():
        assert password not in " ".join(psutil.Process(pid).cmdline())


def test_stopping_where_nothing_runs_is_no_error(tmp_path: Path) -> None:
    stop_workers(Settings(home=tmp_path / "absent"))
    stop_workers(Settings(home=tmp_path))


def test_the_threads_of_a_worker_share_the_cores(settings: Settings, application: Celery) -> None:
    n_cores = len(os.sched_getaffinity(0))
    start_workers(settings, cpu=n_cores, gpu=1, app="small_app")
    given = os.environ.get("OMP_NUM_THREADS")
    assert ask(application, "on_cpu", "cpu")["OMP_NUM_THREADS"] == (given or "1")
    assert ask(application, "on_gpu", "gpu")["OMP_NUM_THREADS"] == (given or str(n_cores))


def test_without_a_gpu_each_core_has_a_process_that_scores(settings: Settings) -> None:
    n_cores = len(os.sched_getaffinity(0))
    start_workers(settings.model_copy(update={"device": "cpu"}), app="small_app")
    assert len(psutil.Process(running(settings)["worker-cpu"]).children()) == 1
    n_processes = len(psutil.Process(running(settings)["worker-gpu"]).children())
    assert n_processes == max(1, min(n_cores, psutil.virtual_memory().total // 2**31))
