"""Claiming units of work.

A unit of work is a row of a `Leased` table. A worker claims the oldest open one by `FOR UPDATE SKIP LOCKED`,
keeps the lease alive from a thread while it works, and ends the unit in the transaction that writes its
results. A lease that runs out (the worker died, or hung) opens the unit to the next worker; if the first one
wakes up again, its end of the unit finds another owner and its transaction is rolled back. After
`MAX_ATTEMPTS` a unit is set aside as failed, until somebody opens it again. An owner's name holds its
host and process, so that a unit of a process that died on this host need not wait for the lease to run out.
A worker that is stopped on purpose gives its units back, and the attempt does not count.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, Engine, and_, exists, func, or_, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from screening.database.session import session_scope
from screening.database.tables import Calculation, Chunk, TrainedModel, Upload
from screening.errors import LeaseLostError, ServiceError

LEASE_S = 30.0
MAX_ATTEMPTS = 3

Unit = type[Chunk] | type[TrainedModel] | type[Calculation] | type[Upload]


def new_owner() -> str:
    """A name for the holder of a lease that no other process or earlier life of this one has."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def worker_of(owner: str) -> str:
    """Host and process of the holder of a lease: what stays the same from one unit to the next."""
    return owner.rpartition(":")[0]


def claim_next(session: Session, table: Unit, owner: str, *conditions: ColumnElement[bool]) -> int | None:
    """Claim the oldest open unit of a table that fulfils the conditions; its id, or None when there is none.

    Units whose lease ran out for the last allowed time are set aside as failed on the way. A claim looks at the
    units up to the one that it takes, not at all that wait.
    """
    oldest = (
        select(table.id, table.attempts)
        .where(_is_claimable(table), *conditions)
        .order_by(table.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    while (found := session.execute(oldest).first()) is not None:
        unit_id, attempts = found
        taken = update(table).where(table.id == unit_id)
        if attempts < MAX_ATTEMPTS:
            session.execute(
                taken.values(
                    state="running", lease_owner=owner, lease_until=_lease_end(), attempts=attempts + 1,
                    started_at=func.now(), **_first_beat(table),
                )
            )  # fmt: skip
            return int(unit_id)
        session.execute(
            taken.values(
                state="failed", lease_owner=None, lease_until=None, finished_at=func.now(),
                error=f"the worker died or hung {MAX_ATTEMPTS} times while it held this unit",
            )
        )  # fmt: skip
    return None


def has_claimable(session: Session, table: Unit, *conditions: ColumnElement[bool]) -> bool:
    """Whether a unit that fulfils the conditions waits, or its lease has run out."""
    return bool(session.scalar(select(exists().where(_is_claimable(table), *conditions))))


def release_dead(session: Session, table: Unit, is_alive: Callable[[int], bool]) -> int:
    """Let the leases run out whose processes died on this host; their number.

    A process that is wrongly taken for dead (a container with this host's name) loses its lease and with it
    nothing but time.

    Args:
        is_alive: whether a process of this host with this id runs.
    """
    n_released = 0
    for unit_id, owner, pid in _held_here(session, table):
        if not is_alive(pid):
            n_released += _held(session, table, unit_id, owner, lease_until=func.now() - timedelta(seconds=1))
    return n_released


def sign(session: Session, owner: str) -> None:
    """Let the server know whose transaction this is, so that it can be ended when it outlives the lease."""
    session.execute(select(func.set_config("application_name", owner, True)))


def end_overdue(session: Session, table: Unit) -> int:
    """End the signed transactions of holders whose leases ran out long ago; their number.

    Such a process hangs, and if it does so between the end of its unit and its commit, it holds the unit's row, which
    everybody else passes by.
    """
    signature = func.left(table.lease_owner, 63)  # as much as the server keeps of a name
    overdue = select(signature).where(
        table.state == "running", table.lease_until < func.now() - timedelta(seconds=LEASE_S)
    )
    activity = func.pg_stat_get_activity(None).table_valued("pid", "application_name")
    strays = select(func.pg_terminate_backend(activity.c.pid)).where(activity.c.application_name.in_(overdue))
    return sum(session.scalars(strays))


def release_stopped(session: Session, table: Unit, pids: Collection[int]) -> int:
    """Open the units of processes of this host that were stopped on purpose; their number.

    The attempt does not count: a unit is not to blame for it. The processes must have ended.
    """
    n_released = 0
    values = {"state": "waiting", "lease_owner": None, "lease_until": None}
    for unit_id, owner, pid in _held_here(session, table):
        if pid in pids:
            n_released += _held(
                session, table, unit_id, owner, attempts=func.greatest(table.attempts - 1, 0), **values
            )  # fmt: skip
    return n_released


@contextmanager
def lease_kept(
    engine: Engine, table: Unit, unit_id: int, owner: str, *, tell: Callable[[], dict[str, Any]] = dict
) -> Iterator[threading.Event]:
    """Keep a lease alive from a thread while the block runs; the event is set once the lease is lost.

    Args:
        tell: columns of the unit to write with every beat: how far it is.
    """
    stop, lost = threading.Event(), threading.Event()

    def beat() -> None:
        while not stop.wait(LEASE_S / 3):
            try:
                with session_scope(engine) as session:
                    session.execute(select(func.set_config("lock_timeout", f"{1000 * LEASE_S / 3:.0f}ms", True)))
                    extended = _held(session, table, unit_id, owner, lease_until=_lease_end(), **tell())
            except (OperationalError, ServiceError):
                continue  # the server restarts, or the block's own transaction holds the row: the lease may outlive it
            if not extended:
                lost.set()
                return

    thread = threading.Thread(target=beat, name=f"lease of {table.__tablename__} {unit_id}", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        stop.set()
        thread.join()


def record(session: Session, table: Unit, unit_id: int, owner: str, **values: Any) -> None:
    """Write columns of a unit that is held.

    Raises:
        LeaseLostError: another worker holds it, or nobody.
    """
    if not _held(session, table, unit_id, owner, lease_until=_lease_end(), **values):
        raise LeaseLostError(f"{table.__tablename__} {unit_id} is no longer held by {owner}")


def finish(session: Session, table: Unit, unit_id: int, owner: str, **values: Any) -> None:
    """End a unit in the transaction that wrote its results.

    Raises:
        LeaseLostError: another worker holds it by now; the caller's transaction must not be committed.
    """
    values |= {"state": "finished", "lease_owner": None, "lease_until": None, "error": None}
    # not now(), which is the begin of the transaction and so of the work
    if not _held(session, table, unit_id, owner, finished_at=func.clock_timestamp(), **values):
        raise LeaseLostError(f"{table.__tablename__} {unit_id} is no longer held by {owner}")


def fail(session: Session, table: Unit, unit_id: int, owner: str, *, error: str) -> None:
    """Set a unit aside as failed, for good; nothing changes if another worker holds it by now."""
    _held(
        session, table, unit_id, owner,
        state="failed", error=error, lease_owner=None, lease_until=None, finished_at=func.now(),
    )  # fmt: skip


def give_back(session: Session, table: Unit, unit_id: int, owner: str, *, error: str) -> None:
    """Open a unit for another attempt after an error, or set it aside after the last one."""
    attempts = session.scalar(select(table.attempts).where(table.id == unit_id))
    if attempts is not None and attempts >= MAX_ATTEMPTS:
        fail(session, table, unit_id, owner, error=error)
    else:
        _held(session, table, unit_id, owner, state="waiting", error=error, lease_owner=None, lease_until=None)


def _held_here(session: Session, table: Unit) -> list[tuple[int, str, int]]:
    """Units whose leases processes of this host hold: id, owner, process id."""
    here = f"{socket.gethostname()}:"
    held = session.execute(
        select(table.id, table.lease_owner).where(
            table.state == "running",
            table.lease_until >= func.now(),
            table.lease_owner.startswith(here, autoescape=True),
        )
    )
    found = []
    for unit_id, owner in held.all():
        assert owner is not None  # the constraint `lease`
        found.append((unit_id, owner, int(owner.removeprefix(here).split(":")[0])))
    return found


def _is_expired(table: Unit) -> ColumnElement[bool]:
    return and_(table.state == "running", table.lease_until < func.now())


def _is_claimable(table: Unit) -> ColumnElement[bool]:
    return or_(table.state == "waiting", _is_expired(table))


def _first_beat(table: Unit) -> dict[str, Any]:
    """What a new attempt at a unit begins with, beside its lease."""
    return {"heartbeat": func.now(), "rows_done": 0} if table is Chunk else {}


def _lease_end() -> Any:
    """From the moment of the statement; `now()` is that of the transaction, which may have begun long ago."""
    return func.clock_timestamp() + timedelta(seconds=LEASE_S)


def _held(session: Session, table: Unit, unit_id: int, owner: str, **values: Any) -> bool:
    """Update a unit if this owner holds it; whether it did."""
    result = session.execute(
        update(table).where(table.id == unit_id, table.state == "running", table.lease_owner == owner).values(**values)
    )
    assert isinstance(result, CursorResult)
    return result.rowcount == 1
