"""The Celery application: `python -m celery --app workers.app worker --queues cpu`, and `... beat`.

Rows are the truth and messages only say that there is work (screening.pipeline.dispatch). Therefore messages are
acknowledged before their task runs: Redis gives a message that is acknowledged late to a second worker once its
visibility time-out has passed, so that a long training would be started again and again. A worker that dies takes
its message with it; the lease of its unit runs out, and beat announces the unit to the next worker. A worker that
is asked to stop (SIGTERM) gives its units back within seconds, and is not said to have died with them.

Queues: `cpu` enumerates and calculates, `gpu` trains and scores; there each process has one GPU, if there are any.
Messages are JSON and there is no result store: the outcome of a unit of work is in its row. The engine is created by
each process on first use, and torch is imported by the process that runs a task, so nothing of either is shared across
a fork.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from functools import cached_property
from typing import Any

import psutil
from billiard import current_process
from celery import Celery
from celery.beat import Scheduler
from celery.signals import (
    beat_init,
    celeryd_after_setup,
    import_modules,
    worker_process_init,
    worker_shutting_down,
)
from kombu.transport.redis import Channel
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from screening.database.leases import end_overdue, release_dead, release_stopped
from screening.database.session import check_schema, make_engine, session_scope
from screening.errors import ServiceError
from screening.pipeline.dispatch import UNITS, announce, claimable_kinds
from screening.services import addresses, without_password
from screening.settings import load_settings

SWEEP_S = 5.0  # how long a unit of work that nobody was told of may wait for a free worker
FINISH_S = 3.0  # for a unit that is nearly ready when its worker is stopped; Celery ends idle processes in 2 s

_logger = logging.getLogger(__name__)


class WorkerApplication(Celery):
    """Celery with the settings of this machine and an engine for each process."""

    def __init__(self) -> None:
        self.settings = load_settings()
        self.addresses = addresses(self.settings)
        super().__init__("workers", broker=self.addresses.redis_url, include=["workers.tasks"])
        self.conf.update(
            accept_content=["json"],
            task_serializer="json",
            result_serializer="json",
            task_ignore_result=True,
            worker_prefetch_multiplier=1,
            broker_connection_retry_on_startup=True,
            broker_connection_max_retries=None,
            beat_scheduler="workers.app:Sweep",
        )

    @cached_property
    def engine(self) -> Engine:
        """The engine of this process."""
        return make_engine(self.addresses.database_url)


class Sweep(Scheduler):
    """Beat without a schedule: every few seconds it announces each kind of work that a worker could claim.

    It keeps no file. The leases of processes that died on this machine are ended on the way.
    """

    def tick(self, *_args: Any, **_kwargs: Any) -> float:
        """Sweep once; the seconds until the next time."""
        assert isinstance(self.app, WorkerApplication)
        try:
            with session_scope(self.app.engine) as session:
                for table in set(UNITS.values()):
                    if n_ended := end_overdue(session, table):
                        _logger.warning("%d transactions of processes that hang were ended", n_ended)
                    if n_released := release_dead(session, table, _runs):
                        _logger.warning("%d %s were held by processes that died", n_released, table.__tablename__)
                session.flush()
                kinds = claimable_kinds(session)
            if kinds:
                announce(self.app.addresses.redis_url, *kinds)
                _logger.info("announced: %s", ", ".join(kinds))
        except (OperationalError, ServiceError) as error:  # a server restarts; the next sweep is soon
            _logger.warning("nothing could be announced: %s", error)
        return SWEEP_S


Channel.do_restore = False  # messages are tokens; putting them back into a broker that is gone ends the worker
app = WorkerApplication()


@import_modules.connect
def _check_database(**_arguments: Any) -> None:
    """Refuse to start on a database of another version of this package, or on none: worker and beat alike."""
    engine = make_engine(app.addresses.database_url)
    try:
        check_schema(engine)
    except ServiceError as error:
        raise SystemExit(f"refused to start: {error}") from error
    finally:
        engine.dispose()  # no connection is left to the processes that will be forked


@worker_shutting_down.connect
def _stop(**_arguments: Any) -> None:
    """Leave the handler of the signal at once; the thread keeps the process until the units are given back."""
    threading.Thread(target=_give_up_units, name="giving up units").start()


def _give_up_units() -> None:
    """Wait a little for what is nearly ready, end the processes of this worker, then open their units again.

    Only units of processes that have ended are given back, so nobody works on one that another has claimed.
    """
    deadline = time.monotonic() + FINISH_S
    while (busy := _own_processes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in busy:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    while any(_runs(process.pid) for process in busy):
        time.sleep(0.02)
    if not busy:
        return
    engine = make_engine(app.addresses.database_url)
    try:
        with session_scope(engine) as session:
            session.execute(text("SET LOCAL lock_timeout = '2s'"))
            n_released = sum(release_stopped(session, table, {p.pid for p in busy}) for table in set(UNITS.values()))
        _logger.info("%d units were given up for the next worker", n_released)
    except (OperationalError, ServiceError) as error:
        _logger.warning("units of this worker wait until their leases run out: %s", error)
    finally:
        engine.dispose()


def _own_processes() -> list[psutil.Process]:
    """The processes of this worker that have not ended."""
    return [process for process in psutil.Process().children(recursive=True) if _runs(process.pid)]


@celeryd_after_setup.connect
@beat_init.connect
def _log_addresses(**_arguments: Any) -> None:
    """Say in the log what this process works with."""
    database = without_password(app.addresses.database_url)
    broker = without_password(app.addresses.redis_url)
    _logger.info("database %s, broker %s, device %s", database, broker, app.settings.device)


@worker_process_init.connect
def _take_gpu(**_arguments: Any) -> None:
    """See one of the GPUs that this worker was given, another one than its other processes; torch comes later."""
    devices = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    if devices and app.settings.device != "cpu":
        own = devices[current_process().index % len(devices)]  # type: ignore[attr-defined]
        os.environ["CUDA_VISIBLE_DEVICES"] = own
        _logger.info("process %d has GPU %s", os.getpid(), own)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
