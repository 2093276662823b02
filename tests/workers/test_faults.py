"""Campaigns whose workers are killed, stopped, told twice, cancelled: they come to what undisturbed ones come to."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import psutil
import pytest
import redis
from sqlalchemy import Engine, delete, func, select, text, update
from sqlalchemy.exc import IntegrityError

from screening.database import tables
from screening.database.leases import worker_of
from screening.database.session import session_scope
from screening.pipeline import campaigns
from screening.pipeline.dispatch import announce
from screening.services import addresses, start_workers
from screening.settings import Settings
from tests.workers.campaign_outcome import CAMPAIGNS, Outcome, campaign_id_of, check_same, inside_a_chunk, outcome
from tests.workers.real_workers import (
    command,
    kill,
    kill_workers,
    leader,
    log,
    n_blocked,
    n_ending,
    progress,
    stuck,
    wait_until,
)


def holders(engine: Engine) -> dict[int, int]:
    """Processes that hold chunks: id of the chunk by process id."""
    chunk = tables.Chunk
    with session_scope(engine) as session:
        held = session.execute(select(chunk.lease_owner, chunk.id).where(chunk.lease_owner.is_not(None)))
        return {int(worker_of(owner).rpartition(":")[2]): chunk_id for owner, chunk_id in held if owner}


def chunk_of(engine: Engine, chunk_id: int) -> tables.Chunk:
    with session_scope(engine) as session:
        session.expire_on_commit = False
        return session.get_one(tables.Chunk, chunk_id)


def expire_lease(engine: Engine, chunk_id: int) -> None:
    with session_scope(engine) as session:
        past = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 1)
        session.execute(update(tables.Chunk).where(tables.Chunk.id == chunk_id).values(lease_until=past))


def test_a_process_killed_inside_a_chunk_loses_nothing_and_repeats_nothing(
    breakable: Settings, planned_engine: Engine, undisturbed: dict[str, Outcome]
) -> None:
    start_workers(breakable, cpu=0, gpu=1)
    for name in CAMPAIGNS:
        with inside_a_chunk(planned_engine, breakable, name):
            ((pid, chunk_id),) = holders(planned_engine).items()
            kill([psutil.Process(pid)])
        check_same(planned_engine, breakable, name, undisturbed[name])
        killed = chunk_of(planned_engine, chunk_id)
        assert killed.attempts == 2
        assert int((killed.worker or "").rpartition(":")[2]) != pid


def test_all_workers_and_beat_killed_and_started_again(
    breakable: Settings, planned_engine: Engine, undisturbed: dict[str, Outcome]
) -> None:
    start_workers(breakable, cpu=0, gpu=2)
    command(planned_engine, campaigns.start, campaign_id_of(planned_engine, "best"))
    with inside_a_chunk(planned_engine, breakable, "all", processes=2):
        held = holders(planned_engine).values()
        kill_workers(breakable)
    assert len(held) == 2
    start_workers(breakable, cpu=0, gpu=2)
    for name in CAMPAIGNS:
        check_same(planned_engine, breakable, name, undisturbed[name])
    assert [chunk_of(planned_engine, chunk_id).attempts for chunk_id in held] == [2, 2]


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_results_of_a_process_that_wakes_up_after_its_lease_are_dropped(
    breakable: Settings, planned_engine: Engine, undisturbed: dict[str, Outcome], name: str
) -> None:
    start_workers(breakable, cpu=0, gpu=2)
    with inside_a_chunk(planned_engine, breakable, name, processes=2) as campaign_id:
        (pid, chunk_id), _ = sorted(holders(planned_engine).items())
        sleeper = psutil.Process(pid)
        sleeper.suspend()
        command(planned_engine, campaigns.pause, campaign_id)  # so that no other chunk is begun meanwhile
    expire_lease(planned_engine, chunk_id)
    wait_until(lambda: chunk_of(planned_engine, chunk_id).state == "finished", breakable)
    sleeper.resume()
    dropped = f"score {chunk_id} was taken over and its results here are dropped"
    wait_until(lambda: dropped in log(breakable, "worker-gpu"), breakable)
    command(planned_engine, campaigns.resume, campaign_id)
    check_same(planned_engine, breakable, name, undisturbed[name])
    taken_over = chunk_of(planned_engine, chunk_id)
    assert taken_over.attempts == 2
    assert int((taken_over.worker or "").rpartition(":")[2]) != pid


def test_a_process_that_hangs_in_a_transaction_does_not_keep_its_campaign_from_the_end(
    breakable: Settings, planned_engine: Engine, undisturbed: dict[str, Outcome]
) -> None:
    start_workers(breakable, cpu=0, gpu=2)
    with inside_a_chunk(planned_engine, breakable, "all", processes=2):
        (pid, chunk_id), _ = sorted(holders(planned_engine).items())
        sleeper = psutil.Process(pid)
        sleeper.suspend()
    expire_lease(planned_engine, chunk_id)
    check_same(planned_engine, breakable, "all", undisturbed["all"])
    sleeper.resume()
    wait_until(lambda: f"score {chunk_id} is given back" in log(breakable, "worker-gpu"), breakable)
    assert chunk_of(planned_engine, chunk_id).attempts == 2
    assert outcome(planned_engine, campaign_id_of(planned_engine, "all")) == undisturbed["all"]


def test_a_process_that_hangs_while_it_ends_a_chunk_does_not_keep_it(
    breakable: Settings, planned_engine: Engine, undisturbed: dict[str, Outcome]
) -> None:
    start_workers(breakable, cpu=0, gpu=2)
    with planned_engine.connect() as connection:
        with inside_a_chunk(planned_engine, breakable, "all", processes=2):
            connection.execute(text("LOCK TABLE chunks IN SHARE MODE"))
        wait_until(lambda: n_ending(planned_engine) == 2, breakable)
        (pid, chunk_id), _ = sorted(holders(planned_engine).items())
        sleeper = psutil.Process(pid)
        sleeper.suspend()
        chunk = tables.Chunk
        long_ago = func.now() - func.make_interval(0, 0, 0, 0, 1)
        connection.execute(update(chunk).where(chunk.id == chunk_id).values(lease_until=long_ago))
        connection.commit()
    check_same(planned_engine, breakable, "all", undisturbed["all"])
    assert "1 transactions of processes that hang were ended" in log(breakable, "beat")
    sleeper.resume()
    wait_until(lambda: f"score {chunk_id} is given back" in log(breakable, "worker-gpu"), breakable)
    assert chunk_of(planned_engine, chunk_id).attempts == 2
    assert outcome(planned_engine, campaign_id_of(planned_engine, "all")) == undisturbed["all"]


def test_a_message_that_is_delivered_twenty_times_changes_nothing(
    breakable: Settings, planned_engine: Engine, undisturbed: dict[str, Outcome]
) -> None:
    for name in CAMPAIGNS:
        command(planned_engine, campaigns.start, campaign_id_of(planned_engine, name))
    url = addresses(breakable).redis_url
    announce(url, "score")
    with redis.Redis.from_url(url) as broker:
        message = broker.lindex("gpu", 0)
        broker.lpush("gpu", *[message] * 20)
    start_workers(breakable, cpu=0, gpu=2)
    for name in CAMPAIGNS:
        check_same(planned_engine, breakable, name, undisturbed[name])
    with session_scope(planned_engine) as session:
        assert set(session.scalars(select(tables.Chunk.attempts))) == {1}


def test_cancelled_and_paused_inside_a_chunk_and_resumed(
    breakable: Settings, planned_engine: Engine, undisturbed: dict[str, Outcome]
) -> None:
    start_workers(breakable, cpu=0, gpu=1)
    for name in CAMPAIGNS:
        with inside_a_chunk(planned_engine, breakable, name) as campaign_id:
            ((_, cancelled),) = holders(planned_engine).items()
            command(planned_engine, campaigns.cancel, campaign_id)
        dropped = f"score {cancelled} was taken over and its results here are dropped"
        wait_until(lambda d=dropped: d in log(breakable, "worker-gpu"), breakable)
        found = progress(planned_engine, campaign_id)
        assert (found.state, found.chunks_done, found.candidates_done) == ("cancelled", 0, 0)
        with stuck(planned_engine, "candidates"):
            command(planned_engine, campaigns.resume, campaign_id)
            announce(addresses(breakable).redis_url, "score")
            wait_until(lambda: n_blocked(planned_engine) == 1, breakable)
            command(planned_engine, campaigns.pause, campaign_id)
        wait_until(lambda n=campaign_id: progress(planned_engine, n).chunks_running == 0, breakable)
        found = progress(planned_engine, campaign_id)
        assert (found.state, found.chunks_done) == ("paused", 1)
        command(planned_engine, campaigns.resume, campaign_id)
        check_same(planned_engine, breakable, name, undisturbed[name])


def test_the_model_of_a_campaign_cannot_be_deleted_while_it_runs(
    breakable: Settings, planned_engine: Engine, undisturbed: dict[str, Outcome]
) -> None:
    start_workers(breakable, cpu=0, gpu=1)
    with (
        inside_a_chunk(planned_engine, breakable, "best"),
        pytest.raises(IntegrityError, match="fk_campaigns_model_id"),
        session_scope(planned_engine) as session,
    ):
        session.execute(delete(tables.TrainedModel))
    check_same(planned_engine, breakable, "best", undisturbed["best"])
    assert leader(breakable, "worker-gpu").is_running()


@pytest.fixture(autouse=True)
def _awake() -> Iterator[None]:
    """Wake up what a failed test left suspended, so that it can be stopped."""
    yield
    for process in psutil.process_iter(["status", "cmdline"]):
        if process.info["status"] == psutil.STATUS_STOPPED and "workers.app" in (process.info["cmdline"] or ()):
            process.send_signal(signal.SIGCONT)
