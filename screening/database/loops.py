"""Loops and open designs: which of them a worker can bring further now, and how far they are.

SQL only, for beat asks every few seconds. A loop is a row with a stage; what it waits for (calculations, a training, a
campaign) is rows as well, so that whether it can go on is a question to the database.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from screening.database import tables
from screening.database.models import production
from screening.errors import InputError, UnknownNameError

UNDER_WAY = ("proposed", "exported", "submitted", "waiting", "running")  # calculations that have no outcome yet
_BUSY = ("waiting", "running")


def loop_by_name(session: Session, name: str | None) -> tables.Loop:
    """The loop of this name, or the only one, or the only one that is not over.

    Raises:
        UnknownNameError: there is none.
        InputError: no name is given and there are several.
    """
    loops = session.scalars(select(tables.Loop).order_by(tables.Loop.id)).all()
    known = ", ".join(f"{loop.name} ({loop.state})" for loop in loops)
    if name is not None:
        found = [loop for loop in loops if loop.name == name]
        if not found:
            raise UnknownNameError(f"no loop is called {name!r}; there are: {known or 'none'} (`screening loop start`)")
        return found[0]
    alive = [loop for loop in loops if loop.finished_at is None]
    for some in (alive, loops):
        if len(some) == 1:
            return some[0]
    if loops:
        raise InputError(f"there are several loops; name one of {known}")
    raise UnknownNameError("there is no loop; start one with `screening loop start`")


def loops_to_advance(session: Session) -> list[int]:
    """Ids of the running loops that do not wait for a calculation, a training or a campaign."""
    loop, step, any_step = tables.Loop, tables.LoopStep, aliased(tables.LoopStep)
    latest = step.number == select(func.max(any_step.number)).where(any_step.loop_id == loop.id).scalar_subquery()
    rows = session.scalars(
        select(loop.id)
        .join(step, and_(step.loop_id == loop.id, latest))
        .where(loop.state == "running", ~_waits())
        .order_by(loop.id)
    )
    return list(rows)


def _waits() -> ColumnElement[bool]:
    """Whether a loop with its latest step waits for something that is not over."""
    loop, step, model = tables.Loop, tables.LoopStep, tables.TrainedModel
    calculates = exists().where(tables.Calculation.round_id == loop.round_id, tables.Calculation.state.in_(UNDER_WAY))
    its_own = and_(step.model_id.is_not(None), model.id == step.model_id)
    anybody = and_(step.model_id.is_(None), model.line_id == loop.line_id)
    trains = exists().where(or_(its_own, anybody), model.state.in_(_BUSY))
    campaign = tables.Campaign
    scans = exists().where(campaign.model_id == step.model_id, campaign.state.in_(("running", "paused")))
    return or_(
        and_(loop.stage == "calculate", calculates),
        and_(loop.stage == "learn", trains),
        and_(loop.stage == "rescore", scans),
    )


def designs_to_rank(session: Session) -> list[int]:
    """Ids of the open designs that the version in production of their line has not ranked.

    Those whose campaign is scored just now, or was stopped or failed, are left out.
    """
    design, ranking, campaign = tables.Design, tables.Ranking, tables.Campaign
    in_use = production()
    of_champion = exists().where(ranking.design_id == design.id, ranking.model_id == in_use.c.model_id)
    newest = (
        select(ranking.search_space_id)
        .where(ranking.design_id == design.id)
        .order_by(ranking.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    scans = exists().where(
        campaign.model_id == in_use.c.model_id, campaign.search_space_id == newest, campaign.state != "finished",
        campaign.storage == "all",
    )  # fmt: skip
    return list(
        session.scalars(
            select(design.id)
            .join(in_use, in_use.c.line_id == design.line_id)
            .where(design.is_open, ~of_champion, ~scans, newest.is_not(None))
            .order_by(design.id)
        )
    )


def list_designs(session: Session) -> list[dict[str, Any]]:
    """A row per design, oldest first: `design`, `line`, `is_open`, `loop`, `rankings`, `newest`, `model`, `current`.

    `newest` is the id of its newest ranking, `model` the version that made it, `current` the one in production.
    """
    design, ranking, any_ranking = tables.Design, tables.Ranking, aliased(tables.Ranking)
    in_use, current, made_by = production(), aliased(tables.TrainedModel), aliased(tables.TrainedModel)
    newest = select(func.max(any_ranking.id)).where(any_ranking.design_id == design.id).scalar_subquery()
    n_rankings = select(func.count()).where(any_ranking.design_id == design.id).scalar_subquery()
    loop = (
        select(tables.Loop.name)
        .where(tables.Loop.design_id == design.id)
        .order_by(tables.Loop.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    rows = session.execute(
        select(
            design.name.label("design"), tables.ModelLine.name.label("line"), design.is_open, loop.label("loop"),
            n_rankings.label("rankings"), newest.label("newest"), made_by.name.label("model"),
            current.name.label("current"),
        )
        .join(tables.ModelLine, tables.ModelLine.id == design.line_id)
        .outerjoin(in_use, in_use.c.line_id == design.line_id)
        .outerjoin(current, current.id == in_use.c.model_id)
        .outerjoin(ranking, ranking.id == newest)
        .outerjoin(made_by, made_by.id == ranking.model_id)
        .order_by(design.id)
    ).mappings()  # fmt: skip
    return [dict(row) for row in rows]


def list_loops(session: Session) -> list[dict[str, Any]]:
    """A row per loop, oldest first, with the numbers of its latest ranking.

    Columns: `loop`, `model` (its line), `state`, `stage`, `round`, `calculations` (made), `of` (at most), `under_way`
    (of the present round), `best`, `unchanged` (rankings in a row), `patience`, `remark`, `error`, `created_at`,
    `finished_at`, `stage_since`.
    """
    loop, step = tables.Loop, tables.LoopStep
    calculation = tables.Calculation
    rounds = select(step.round_id).where(step.loop_id == loop.id, step.stage == "propose").correlate(loop)
    made = (
        select(func.count())
        .where(calculation.round_id.in_(rounds), calculation.state.not_in(UNDER_WAY))
        .scalar_subquery()
    )
    under_way = (
        select(func.count())
        .where(calculation.round_id == loop.round_id, calculation.state.in_(UNDER_WAY))
        .scalar_subquery()
    )
    best = (
        select(step.best)
        .where(step.loop_id == loop.id, step.stage == "rank", step.finished_at.is_not(None))
        .order_by(step.number.desc())
        .limit(1)
        .scalar_subquery()
    )
    since = (
        select(step.started_at).where(step.loop_id == loop.id).order_by(step.number.desc()).limit(1).scalar_subquery()
    )
    rows = session.execute(
        select(
            loop.id, loop.name.label("loop"), tables.ModelLine.name.label("model"), loop.state, loop.stage,
            loop.round_id.label("round"), made.label("calculations"), loop.max_calculations.label("of"),
            under_way.label("under_way"), best.label("best"), loop.patience, loop.remark, loop.error,
            loop.created_at, loop.finished_at, since.label("stage_since"),
        )
        .join(tables.ModelLine, tables.ModelLine.id == loop.line_id)
        .order_by(loop.id)
    ).mappings()  # fmt: skip
    return [{**row, "unchanged": n_unchanged(session, row["id"])} for row in rows.all()]


def steps_of(session: Session, loop_id: int) -> list[dict[str, Any]]:
    """A row per step of a loop, in their order: the columns of `loop_steps`, with `model` the name of the version."""
    step = tables.LoopStep
    columns = [column for column in step.__table__.columns if column.name != "loop_id"]
    rows = session.execute(
        select(*columns, tables.TrainedModel.name.label("model"))
        .outerjoin(tables.TrainedModel, tables.TrainedModel.id == step.model_id)
        .where(step.loop_id == loop_id)
        .order_by(step.number)
    ).mappings()
    return [dict(row) for row in rows]


def n_unchanged(session: Session, loop_id: int) -> int:
    """How many of the latest rankings, one after the other, had the best rows of the ranking before.

    Rankings by a version that has made one before say nothing, and are passed over.
    """
    step = tables.LoopStep
    changes = session.scalars(
        select(step.n_changed)
        .where(step.loop_id == loop_id, step.stage == "rank", step.n_changed.is_not(None))
        .order_by(step.number.desc())
    )
    n = 0
    for n_changed in changes:
        if n_changed:
            break
        n += 1
    return n


def n_made(session: Session, loop_id: int, *, finished_only: bool = False) -> int:
    """Calculations of a loop's rounds that have an outcome."""
    step, calculation = tables.LoopStep, tables.Calculation
    rounds = select(step.round_id).where(step.loop_id == loop_id, step.stage == "propose")
    has_outcome = calculation.state == "finished" if finished_only else calculation.state.not_in(UNDER_WAY)
    return session.execute(select(func.count()).where(calculation.round_id.in_(rounds), has_outcome)).scalar_one()


def n_under_way(session: Session, round_id: int | None) -> int:
    """Calculations of a round that have no outcome yet."""
    calculation = tables.Calculation
    return session.execute(
        select(func.count()).where(calculation.round_id == round_id, calculation.state.in_(UNDER_WAY))
    ).scalar_one()
