"""Telling the workers that there is work.

A message says "there is work of this kind" and nothing else; the work itself is rows (screening.database.leases),
so a message may be lost, repeated or late without harm. What has to hold is only that a kind with claimable units
is announced again until it has none: commands announce after they have committed, a worker announces the rest
when it claims a unit, and beat announces every few seconds what is still there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from screening.database import campaigns, tables
from screening.database.leases import Unit, has_claimable
from screening.database.loops import designs_to_rank, loops_to_advance
from screening.database.policies import lines_to_tend
from screening.errors import ServiceError
from screening.services import without_password

if TYPE_CHECKING:
    from celery import Celery

Kind = Literal["enumerate", "calculate", "train", "score", "intake", "predict", "tend", "advance"]

UNITS: dict[Kind, Unit] = {
    "enumerate": tables.Chunk,
    "calculate": tables.Calculation,
    "train": tables.TrainedModel,
    "score": tables.Chunk,
    "intake": tables.Upload,
    "predict": tables.Upload,
}
CONDITIONS: dict[Kind, tuple[ColumnElement[bool], ...]] = {
    "enumerate": (tables.Chunk.scores.is_(False),),
    "calculate": (),
    "train": (),
    "score": (tables.Chunk.scores.is_(True),),
    "intake": (tables.Upload.purpose == "results",),
    "predict": (tables.Upload.purpose == "prediction",),
}
QUEUES: dict[Kind, Literal["cpu", "gpu"]] = {
    "enumerate": "cpu", "calculate": "cpu", "train": "gpu", "score": "gpu", "intake": "cpu",
    "predict": "gpu", "tend": "gpu", "advance": "gpu",
}  # fmt: skip

EXPIRES_S = 60.0  # a worker that was busy for longer hears of what is left from beat
LONGEST_QUEUE = 16  # messages; more say nothing new, and no worker may be there to read them
_TIMEOUT_S = 5.0


def task_name(kind: Kind) -> str:
    """Name of the Celery task that works on this kind."""
    return f"workers.{kind}"


def claimable_kinds(session: Session) -> list[Kind]:
    """The kinds of which a unit waits, or has lost its worker, or a campaign waits for its end.

    Model lines are tended where a policy wants something or an open design is to be ranked again, loops are advanced
    where they do not wait.
    """
    kinds = [kind for kind, table in UNITS.items() if has_claimable(session, table, *CONDITIONS[kind])]
    over: set[Kind] = {"score" if scores else "enumerate" for scores in campaigns.campaigns_over(session).values()}
    wanted: list[Kind] = ["tend"] if lines_to_tend(session) or designs_to_rank(session) else []
    if loops_to_advance(session):
        wanted.append("advance")
    return [*(kind for kind in UNITS if kind in over.union(kinds)), *wanted]


def announce(redis_url: str, *kinds: Kind) -> None:
    """Tell the workers that there is work of these kinds; to be called after the work is committed.

    A queue that is full of such messages gets no more of them. Gives up after a few seconds.

    Raises:
        ServiceError: the broker does not answer; no work is lost, beat announces it when the broker is back.
    """
    from kombu.exceptions import OperationalError
    from redis import Redis, RedisError

    try:
        with (
            Redis.from_url(redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S) as client,
            _sender(redis_url) as sender,
        ):
            for kind in kinds:
                queue = QUEUES[kind]
                if client.llen(queue) < LONGEST_QUEUE:
                    sender.send_task(task_name(kind), queue=queue, expires=EXPIRES_S, ignore_result=True, retry=False)
    except (RedisError, OperationalError) as error:
        raise ServiceError(
            f"the broker {without_password(redis_url)} does not answer ({error}); the work is stored and nothing is "
            "lost: start the broker (`screening up`), and the workers will find the work within seconds"
        ) from error


def _sender(redis_url: str) -> Celery:
    """A Celery application that only sends, and never waits long."""
    from celery import Celery

    sender = Celery("announcements", broker=redis_url, set_as_current=False)
    sender.conf.update(
        task_serializer="json",
        broker_transport_options={
            "max_retries": 0,
            "socket_timeout": _TIMEOUT_S,
            "socket_connect_timeout": _TIMEOUT_S,
        },
    )
    return sender
