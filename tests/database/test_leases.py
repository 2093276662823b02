"""Units of work are claimed once, expire, and come to one end."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from screening.database import leases
from screening.database.leases import (
    MAX_ATTEMPTS,
    claim_next,
    fail,
    finish,
    give_back,
    has_claimable,
    lease_kept,
    new_owner,
    record,
    release_dead,
    release_stopped,
    worker_of,
)
from screening.database.session import make_engine, migrate, session_scope
from screening.database.tables import Calculation, Chunk, TrainedModel
from screening.errors import LeaseLostError
from screening.services import addresses, down, up
from screening.settings import Settings


def expire(session: Session) -> None:
    session.execute(text("UPDATE chunks SET lease_until = now() - interval '1 second' WHERE state = 'running'"))


COUNTED = {"n_candidates": 5, "n_configurations": 9, "checksum": -3, "worker": "here:1", "worked_s": 0.5}


def waiting_chunk(ids: Any, number: int, *, scores: bool = True) -> Chunk:
    return Chunk(
        campaign_id=ids.campaign, number=number, scores=scores, n_defects=2, first_sites=[], first_defect_types=[],
        last_sites=[], last_defect_types=[],
    )  # fmt: skip


def write_and_finish(engine: Engine, unit: int, owner: str) -> None:
    with session_scope(engine) as session:
        session.execute(text("UPDATE hosts SET source = 'written by slow'"))
        finish(session, Chunk, unit, owner, **COUNTED)


@pytest.fixture
def chunks(session: Session, ids: Any) -> list[int]:
    """Three waiting chunks, oldest first."""
    more = [waiting_chunk(ids, number) for number in (1, 2)]
    session.add_all(more)
    session.flush()
    return [ids.chunk, *(chunk.id for chunk in more)]


def test_units_are_claimed_oldest_first_until_there_is_none(session: Session, chunks: list[int]) -> None:
    assert has_claimable(session, Chunk)
    assert [claim_next(session, Chunk, "me") for _ in range(4)] == [*chunks, None]
    assert not has_claimable(session, Chunk)


def test_a_claimed_unit_is_running_and_held_for_a_while(session: Session, chunks: list[int]) -> None:
    claim_next(session, Chunk, "me")
    chunk = session.get_one(Chunk, chunks[0], populate_existing=True)
    assert (chunk.state, chunk.lease_owner, chunk.attempts) == ("running", "me", 1)
    left = session.scalar(text("SELECT extract(epoch FROM lease_until - clock_timestamp()) FROM chunks ORDER BY id"))
    assert leases.LEASE_S - 5 < float(left or 0) <= leases.LEASE_S


def test_two_sessions_that_claim_at_once_get_different_units(clean_engine: Engine, committed_ids: Any) -> None:
    with session_scope(clean_engine) as session:
        session.add(waiting_chunk(committed_ids, 1))
    with Session(clean_engine) as first, Session(clean_engine) as second:
        mine = claim_next(first, Chunk, "first")
        yours = claim_next(second, Chunk, "second")  # does not wait for the first to commit
        assert None not in (mine, yours)
        assert mine != yours
        assert claim_next(second, Chunk, "second") is None
        first.rollback()
        assert claim_next(second, Chunk, "second") == mine
        second.rollback()


def test_many_threads_claim_every_unit_once(clean_engine: Engine, committed_ids: Any) -> None:
    with session_scope(clean_engine) as session:
        session.add_all(waiting_chunk(committed_ids, number) for number in range(1, 40))
    claimed: list[int] = []

    def work(owner: str) -> None:
        while True:
            with session_scope(clean_engine) as session:
                found = claim_next(session, Chunk, owner)
            if found is None:
                return
            claimed.append(found)

    threads = [threading.Thread(target=work, args=(f"owner {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == 40
    assert len(set(claimed)) == 40


def test_a_unit_whose_lease_ran_out_is_claimed_again(session: Session, chunks: list[int]) -> None:
    assert claim_next(session, Chunk, "dead") == chunks[0]
    expire(session)
    assert claim_next(session, Chunk, "next") == chunks[0]
    assert session.get_one(Chunk, chunks[0], populate_existing=True).attempts == 2


def test_a_unit_that_kills_its_workers_is_set_aside(session: Session, chunks: list[int]) -> None:
    for _ in range(MAX_ATTEMPTS):
        assert claim_next(session, Chunk, "dead") == chunks[0]
        expire(session)
    assert claim_next(session, Chunk, "next") == chunks[1]
    chunk = session.get_one(Chunk, chunks[0], populate_existing=True)
    assert chunk.state == "failed"
    assert chunk.error == f"the worker died or hung {MAX_ATTEMPTS} times while it held this unit"
    assert chunk.finished_at is not None


def test_a_claim_does_not_wait_for_a_unit_that_is_just_being_finished(clean_engine: Engine, committed_ids: Any) -> None:
    with session_scope(clean_engine) as session:
        claim_next(session, Chunk, "slow")
        expire(session)
        session.execute(text("UPDATE chunks SET attempts = :most"), {"most": MAX_ATTEMPTS})
    with Session(clean_engine) as slow, Session(clean_engine) as next_:
        finish(slow, Chunk, committed_ids.chunk, "slow", **COUNTED)
        next_.execute(text("SET LOCAL lock_timeout = '2s'"))
        assert claim_next(next_, Chunk, "next") is None
        next_.commit()
        slow.commit()
    with session_scope(clean_engine) as session:
        assert session.scalar(select(Chunk.state)) == "finished"


def test_finishing_writes_the_outcome_and_ends_the_lease(session: Session, chunks: list[int]) -> None:
    claim_next(session, Chunk, "me")
    finish(session, Chunk, chunks[0], "me", **COUNTED)
    chunk = session.get_one(Chunk, chunks[0], populate_existing=True)
    assert (chunk.state, chunk.n_candidates, chunk.lease_owner, chunk.lease_until) == ("finished", 5, None, None)


@pytest.mark.parametrize("end", [lambda *args: finish(*args, **COUNTED), lambda *args: record(*args, rows_done=7)])
def test_who_lost_the_lease_cannot_write(session: Session, chunks: list[int], end: Any) -> None:
    claim_next(session, Chunk, "slow")
    expire(session)
    claim_next(session, Chunk, "next")
    with pytest.raises(LeaseLostError, match=f"chunks {chunks[0]} is no longer held by slow"):
        end(session, Chunk, chunks[0], "slow")
    chunk = session.get_one(Chunk, chunks[0], populate_existing=True)
    assert (chunk.state, chunk.lease_owner) == ("running", "next")


def test_who_lost_the_lease_can_neither_fail_nor_give_back(session: Session, chunks: list[int]) -> None:
    claim_next(session, Chunk, "slow")
    expire(session)
    claim_next(session, Chunk, "next")
    fail(session, Chunk, chunks[0], "slow", error="late")
    give_back(session, Chunk, chunks[0], "slow", error="late")
    chunk = session.get_one(Chunk, chunks[0], populate_existing=True)
    assert (chunk.state, chunk.lease_owner, chunk.error) == ("running", "next", None)


def test_the_results_of_who_lost_the_lease_are_rolled_back(clean_engine: Engine, committed_ids: Any) -> None:
    with session_scope(clean_engine) as session:
        claim_next(session, Chunk, "slow")
        expire(session)
    with session_scope(clean_engine) as session:
        claim_next(session, Chunk, "next")
    with pytest.raises(LeaseLostError):
        write_and_finish(clean_engine, committed_ids.chunk, "slow")
    with session_scope(clean_engine) as session:
        assert session.scalar(text("SELECT source FROM hosts")) == "test"


def test_a_unit_that_is_given_back_waits_with_its_error_until_the_last_attempt(
    session: Session, chunks: list[int]
) -> None:
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert claim_next(session, Chunk, "me") == chunks[0]
        give_back(session, Chunk, chunks[0], "me", error=f"error {attempt}")
        chunk = session.get_one(Chunk, chunks[0], populate_existing=True)
        assert chunk.error == f"error {attempt}"
        assert chunk.state == ("waiting" if attempt < MAX_ATTEMPTS else "failed")
    assert claim_next(session, Chunk, "me") == chunks[1]


def test_a_failed_unit_is_not_claimed(session: Session, chunks: list[int]) -> None:
    claim_next(session, Chunk, "me")
    fail(session, Chunk, chunks[0], "me", error="why")
    assert claim_next(session, Chunk, "me") == chunks[1]


def test_only_units_that_fulfil_the_conditions_are_claimed(session: Session, ids: Any, chunks: list[int]) -> None:
    plain = waiting_chunk(ids, 3, scores=False)
    session.add(plain)
    session.flush()
    assert claim_next(session, Chunk, "cpu", Chunk.scores.is_(False)) == plain.id
    assert claim_next(session, Chunk, "cpu", Chunk.scores.is_(False)) is None
    assert not has_claimable(session, Chunk, Chunk.scores.is_(False))
    assert [claim_next(session, Chunk, "gpu", Chunk.scores.is_(True)) for _ in range(4)] == [*chunks, None]


def test_a_new_attempt_begins_without_the_figures_of_the_last_one(session: Session, chunks: list[int]) -> None:
    claim_next(session, Chunk, "first")
    record(session, Chunk, chunks[0], "first", rows_done=700)
    session.execute(
        text("UPDATE chunks SET heartbeat = heartbeat - interval '1 day', started_at = started_at - interval '1 day'")
    )
    expire(session)
    claim_next(session, Chunk, "next")
    chunk = session.get_one(Chunk, chunks[0], populate_existing=True)
    assert chunk.rows_done == 0
    now = session.execute(text("SELECT now()")).scalar_one()
    assert (chunk.started_at, chunk.heartbeat) == (now, now)


def test_the_worker_of_an_owner_stays_the_same_from_unit_to_unit() -> None:
    assert worker_of("host:12:1a") == worker_of("host:12:2b") == "host:12"


def test_leases_of_processes_that_died_here_run_out_at_once(session: Session, chunks: list[int]) -> None:
    here = socket.gethostname()
    owners = [f"{here}:{os.getpid()}:a", f"{here}:999999:b", "elsewhere:999999:c"]
    for owner in owners:
        claim_next(session, Chunk, owner)
    assert release_dead(session, Chunk, lambda pid: pid == os.getpid()) == 1
    assert claim_next(session, Chunk, "next") == chunks[1]
    assert claim_next(session, Chunk, "next") is None


def test_an_attempt_that_was_stopped_on_purpose_does_not_count(session: Session, chunks: list[int]) -> None:
    here = f"{socket.gethostname()}:{os.getpid()}"
    for n in range(2 * MAX_ATTEMPTS):
        assert claim_next(session, Chunk, f"{here}:{n}") == chunks[0]
        assert release_stopped(session, Chunk, {os.getpid()}) == 1
        chunk = session.get_one(Chunk, chunks[0], populate_existing=True)
        assert (chunk.state, chunk.attempts, chunk.lease_owner, chunk.lease_until) == ("waiting", 0, None, None)


def test_only_units_of_processes_that_were_stopped_here_are_released(session: Session, chunks: list[int]) -> None:
    here, pid = socket.gethostname(), os.getpid()
    for owner in (f"{here}:{pid}:a", f"{here}:{pid}0:b", f"elsewhere:{pid}:c"):
        claim_next(session, Chunk, owner)
    assert release_stopped(session, Chunk, {pid}) == 1
    assert session.scalars(select(Chunk.state).order_by(Chunk.id)).all() == ["waiting", "running", "running"]


def test_a_stopped_training_whose_attempts_were_forgotten_is_released(session: Session, ids: Any) -> None:
    claim_next(session, TrainedModel, owner := f"{socket.gethostname()}:{os.getpid()}:a")
    record(session, TrainedModel, ids.model, owner, attempts=0)  # as with each checkpoint
    assert release_stopped(session, TrainedModel, {os.getpid()}) == 1
    assert session.scalar(select(TrainedModel.attempts)) == 0


def test_owners_are_never_the_same() -> None:
    owners = {new_owner() for _ in range(100)}
    assert len(owners) == 100
    assert all(owner.startswith(f"{socket.gethostname()}:{os.getpid()}:") for owner in owners)


def test_a_proposed_calculation_is_not_claimed(session: Session, ids: Any) -> None:
    session.execute(
        text(
            "INSERT INTO configurations (supercell_id, composition_id, n_defects, sites, defect_types, multiplicity) "
            "VALUES (:supercell, :vacancy, 1, '{3}', '{2048}', 128)"
        ),
        vars(ids),
    )
    session.execute(
        text(
            "INSERT INTO calculations (configuration_id, level_id, state) "
            "SELECT id, :level, 'proposed' FROM configurations"
        ),
        vars(ids),
    )
    assert claim_next(session, Calculation, "me") is None
    session.execute(text("UPDATE calculations SET state = 'waiting'"))
    assert claim_next(session, Calculation, "me") is not None


def test_trainings_are_claimed_like_chunks(session: Session, ids: Any) -> None:
    assert claim_next(session, TrainedModel, "me") == ids.model
    record(session, TrainedModel, ids.model, "me", progress={"epoch": 3}, checkpoint=b"c")
    finish(session, TrainedModel, ids.model, "me", weights=b"w", checkpoint=None)
    assert session.scalar(select(TrainedModel.progress)) == {"epoch": 3}


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(leases, "LEASE_S", 3.0)
    return 3.0


def claim(engine: Engine, owner: str) -> int:
    with session_scope(engine) as session:
        found = claim_next(session, Chunk, owner)
    assert found is not None
    return found


def test_a_lease_is_kept_while_the_block_runs_and_no_longer(
    clean_engine: Engine, committed_ids: Any, short_lease: float
) -> None:
    unit = claim(clean_engine, "me")
    with lease_kept(clean_engine, Chunk, unit, "me") as lost:
        time.sleep(1.5 * short_lease)
        assert not lost.is_set()
        with session_scope(clean_engine) as session:
            assert claim_next(session, Chunk, "next") is None
    time.sleep(1.1 * short_lease)
    assert claim(clean_engine, "next") == unit


def test_a_lease_that_is_kept_tells_how_far_its_unit_is(
    clean_engine: Engine, committed_ids: Any, short_lease: float
) -> None:
    unit, done = claim(clean_engine, "me"), iter(range(100, 1000, 100))
    with lease_kept(clean_engine, Chunk, unit, "me", tell=lambda: {"rows_done": next(done)}):
        time.sleep(short_lease)
        with session_scope(clean_engine) as session:
            told = session.scalar(select(Chunk.rows_done))
    assert told in (100, 200, 300)


def test_the_block_learns_that_its_lease_is_lost(clean_engine: Engine, committed_ids: Any, short_lease: float) -> None:
    unit = claim(clean_engine, "slow")
    with lease_kept(clean_engine, Chunk, unit, "slow") as lost:
        with session_scope(clean_engine) as session:
            expire(session)
            claim_next(session, Chunk, "next")
        assert lost.wait(2 * short_lease)


def test_a_block_that_ends_inside_its_own_transaction_does_not_wait_for_itself(
    clean_engine: Engine, committed_ids: Any, short_lease: float
) -> None:
    unit = claim(clean_engine, "me")
    began = time.monotonic()
    with session_scope(clean_engine) as session, lease_kept(clean_engine, Chunk, unit, "me"):
        record(session, Chunk, unit, "me")  # holds the row, which the lease's thread wants
        time.sleep(0.6 * short_lease)
    assert time.monotonic() - began < 3 * short_lease


@pytest.fixture
def own_server(home: Path) -> Iterator[Settings]:
    settings = Settings(home=home, database_url=None, redis_url=None)
    up(settings)
    yield settings
    down(settings)


def test_a_lease_outlives_a_restart_of_the_server(own_server: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 9.0)
    engine = make_engine(addresses(own_server).database_url)
    migrate(engine)
    with session_scope(engine) as session:
        session.execute(
            text(
                "INSERT INTO levels_of_theory (name, code, functional, settings, digest) "
                "VALUES ('a', 'b', 'c', '{}', 'd')"
            )
        )
        session.execute(
            text(
                "INSERT INTO trained_models (name, level_id, properties, settings, seed) "
                "SELECT 'm', id, '{}', '{}', 1 FROM levels_of_theory"
            )
        )
        unit = claim_next(session, TrainedModel, "me")
    assert unit is not None
    with lease_kept(engine, TrainedModel, unit, "me") as lost:
        down(own_server)
        time.sleep(3.5)  # the thread has met a server that is not there
        up(own_server)
        time.sleep(7.5)  # longer than what was left of the first lease
        with session_scope(engine) as session:
            assert claim_next(session, TrainedModel, "next") is None
        assert not lost.is_set()
    engine.dispose()
