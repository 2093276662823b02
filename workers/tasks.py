"""One task per kind of work. A task claims one unit, does it, and tells the others that there may be more.

A message is a token that goes round: the task that claims a unit announces its kind again before it starts, so
that a free process joins in and the next unit follows this one; the task that finds nothing to claim says nothing.
Between two units a worker can be stopped, and kinds that share a queue take turns. Nothing is done twice, whoever
gets how many messages: a unit is held by a lease, and its results are committed with its end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from screening.database import leases
from screening.database.loops import loops_to_advance
from screening.database.session import session_scope
from screening.errors import CalculationError, CountMismatchError, InputError, LeaseLostError, ServiceError
from screening.pipeline.campaigns import close_over
from screening.pipeline.dispatch import CONDITIONS, UNITS, Kind, announce, task_name
from screening.pipeline.loop_stages import advance
from screening.pipeline.models import train_unit
from screening.pipeline.open_designs import rank_open_designs
from screening.pipeline.policies import tend
from screening.pipeline.rounds import calculate_unit
from screening.pipeline.scanning import scan_unit
from screening.pipeline.uploads import predict_upload, take_upload
from workers.app import app

_LONGEST_ERROR = 2000  # characters; some drivers quote whole statements

_logger = logging.getLogger(__name__)


@app.task(name=task_name("enumerate"))
def enumerate_next() -> None:
    """Scan a chunk of a campaign without a model, or end campaigns that have none left."""
    _work("enumerate", partial(scan_unit, device="cpu"))
    _close_campaigns()


@app.task(name=task_name("calculate"))
def calculate_next() -> None:
    """Run a calculation."""
    _work("calculate", calculate_unit)


@app.task(name=task_name("train"))
def train_next() -> None:
    """Train a model."""
    _work("train", partial(train_unit, device=app.settings.device))


@app.task(name=task_name("score"))
def score_next() -> None:
    """Scan a chunk of a campaign with its model."""
    _work("score", partial(scan_unit, device=app.settings.device))
    _close_campaigns()


@app.task(name=task_name("intake"))
def take_next_upload() -> None:
    """Take in the results of an upload."""
    _work("intake", take_upload)


@app.task(name=task_name("predict"))
def predict_next_upload() -> None:
    """Predict the structures of an upload."""
    _work("predict", partial(predict_upload, device=app.settings.device))


@app.task(name=task_name("tend"))
def tend_lines() -> None:
    """Look after the model lines that have a policy, then after open designs: retrain, let campaigns follow, rank."""
    try:
        found = tend(app.engine, device=app.settings.device)
        scored, ranked = rank_open_designs(app.engine)
    except (OperationalError, ServiceError) as error:
        _logger.warning("the models are tended later: %s", error)
        return
    if found.trainings:
        _announce_rest("train")
    if ranked:
        _logger.info("ranked again: %s", ", ".join(ranked))
    if campaigns := [*found.campaigns, *scored]:
        _logger.info("scored again: %s", ", ".join(campaigns))
        _announce_rest("score")


@app.task(name=task_name("advance"))
def advance_loops() -> None:
    """Bring every loop further that does not wait, by one stage; who is told once more does the next."""
    try:
        with session_scope(app.engine) as session:
            wanted = loops_to_advance(session)
        done = [found for loop_id in wanted if (found := advance(app.engine, loop_id)) is not None]
    except (OperationalError, ServiceError) as error:
        _logger.warning("the loops are advanced later: %s", error)
        return
    for found in done:
        _logger.info("%s: %s", found.stage, found.did)
    kinds: list[Kind] = [kind for found in done for kind in found.kinds]
    for kind in dict.fromkeys([*kinds, "advance"] if done else []):
        _announce_rest(kind)


def _work(kind: Kind, do_unit: Callable[[Engine, int, str], None]) -> None:
    """Claim the next unit of a kind, announce the rest, and do it; errors end in the unit's row."""
    owner = leases.new_owner()
    try:
        with session_scope(app.engine) as session:
            unit_id = leases.claim_next(session, UNITS[kind], owner, *CONDITIONS[kind])
    except (OperationalError, ServiceError) as error:
        _logger.warning("no %s was claimed, beat will announce it again: %s", kind, error)
        return
    if unit_id is None:
        return
    _announce_rest(kind)
    try:
        do_unit(app.engine, unit_id, owner)
    except LeaseLostError as error:
        _logger.warning("%s %d was taken over and its results here are dropped: %s", kind, unit_id, error)
    except (CalculationError, CountMismatchError, InputError) as error:  # a repetition would end the same way
        _logger.error("%s %d failed: %s", kind, unit_id, error)
        _end(kind, unit_id, leases.fail, owner=owner, error=str(error))
    except Exception as error:  # whatever it was, the unit must not stay with a worker that has left it
        _logger.exception("%s %d is given back", kind, unit_id)
        _end(kind, unit_id, leases.give_back, owner=owner, error=f"{type(error).__name__}: {error}")
    else:
        _logger.info("%s %d finished", kind, unit_id)


def _close_campaigns() -> None:
    try:
        close_over(app.engine)
    except CountMismatchError as error:
        _logger.error("%s", error)
    except (OperationalError, ServiceError) as error:
        _logger.warning("campaigns that are over are ended later: %s", error)


def _announce_rest(kind: Kind) -> None:
    try:
        announce(app.addresses.redis_url, kind)
    except ServiceError as error:
        _logger.warning("%s", error)


def _end(kind: Kind, unit_id: int, end: Callable[..., None], *, owner: str, error: str) -> None:
    """Write the outcome of a unit into its row; where the database is away, the lease runs out instead."""
    try:
        with session_scope(app.engine) as session:
            end(session, UNITS[kind], unit_id, owner, error=error[:_LONGEST_ERROR])
    except (OperationalError, ServiceError) as unreachable:
        _logger.warning("%s %d is left until its lease runs out: %s", kind, unit_id, unreachable)
