"""The rows of loops: the stage each is in, and what begins, ends and holds it."""

from __future__ import annotations

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from screening.database import models, tables
from screening.errors import InputError


def current_step(session: Session, loop: tables.Loop) -> tables.LoopStep:
    """The step that a loop is in."""
    step = tables.LoopStep
    return session.scalars(select(step).where(step.loop_id == loop.id).order_by(step.number.desc()).limit(1)).one()


def enter(session: Session, loop: tables.Loop, stage: str) -> None:
    """Begin a stage."""
    last = select(func.coalesce(func.max(tables.LoopStep.number), 0)).where(tables.LoopStep.loop_id == loop.id)
    number = session.execute(last).scalar_one() + 1
    loop.stage, loop.remark = stage, None
    round_id = loop.round_id if stage in ("calculate", "learn", "rescore") else None
    session.add(tables.LoopStep(loop_id=loop.id, number=number, stage=stage, round_id=round_id))
    session.flush()


def finish_step(step: tables.LoopStep, remark: str | None) -> None:
    """End a step with what came of it."""
    step.finished_at, step.remark = func.clock_timestamp(), remark


def end(session: Session, loop: tables.Loop, state: str, reason: str) -> None:
    """End a loop: as finished or stopped with a remark, or as failed with an error."""
    loop.state, loop.finished_at = state, func.clock_timestamp()
    if state == "failed":
        loop.error = reason
    else:
        loop.remark = reason
    session.flush()


def champion_of(session: Session, loop: tables.Loop) -> tables.TrainedModel:
    """The version that is in production of the model that a loop teaches."""
    champion = models.in_production(session, loop.line_id)
    assert champion is not None  # a line keeps a version in production
    return champion


def last_campaign(session: Session, loop: tables.Loop) -> tables.Campaign:
    """The campaign that the design was ranked from last.

    Raises:
        InputError: it was deleted.
    """
    ranking = tables.Ranking
    newest = session.scalars(
        select(ranking).where(ranking.design_id == loop.design_id).order_by(ranking.id.desc()).limit(1)
    ).one()
    if newest.campaign_id is None:
        raise InputError(
            f"the campaign of ranking {newest.id} was deleted, so that nothing says what is to be scored again; "
            "`screening score` the search space, then `screening loop resume`"
        )
    return session.get_one(tables.Campaign, newest.campaign_id)


def release(session: Session, loop: tables.Loop, states: tuple[str, ...]) -> None:
    """Hand the calculations of the present round to the workers."""
    calculation = tables.Calculation
    session.execute(
        update(calculation)
        .where(calculation.round_id == loop.round_id, calculation.state.in_(states))
        .values(state="waiting", attempts=0, error=None, started_at=None, finished_at=None)
    )


def hold(session: Session, loop: tables.Loop) -> None:
    """Hand no more calculations of the present round to the workers."""
    calculation = tables.Calculation
    session.execute(
        update(calculation)
        .where(calculation.round_id == loop.round_id, calculation.state == "waiting")
        .values(state="proposed")
    )
