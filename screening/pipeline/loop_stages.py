"""What a loop does in each of its stages, and the one step that a worker does for it.

`advance` looks at the rows of a loop and at those of calculations, trainings and campaigns, does at most one thing, and
commits it with the stage that follows; so it may be called by anybody, at any time and again, and what dies in the
middle of it has done nothing. The work between two stages is that of the workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from screening.database import loops as rows
from screening.database import models, tables
from screening.database.best_values import best_value
from screening.database.session import session_scope
from screening.errors import InputError, NothingLeftError
from screening.pipeline import campaigns
from screening.pipeline.loop_steps import champion_of, current_step, end, enter, finish_step, last_campaign, release
from screening.pipeline.open_designs import (
    best_rows,
    newest_ranking,
    query_of,
    scored_again,
    store_ranking_of,
)
from screening.pipeline.query_context import resolve
from screening.pipeline.rescoring import rescore
from screening.pipeline.retraining import submit_retraining
from screening.pipeline.round_pools import improved_property
from screening.pipeline.rounds import propose

if TYPE_CHECKING:
    from screening.pipeline.dispatch import Kind

_KEPT_CAMPAIGNS = 2  # of the newest versions


@dataclass(frozen=True)
class Advanced:
    """What was done for a loop.

    Attributes:
        stage: in which.
        did: in words.
        kinds: of work that waits for a worker now.
    """

    stage: str
    did: str
    kinds: tuple[Kind, ...] = ()


def advance(engine: Engine, loop_id: int) -> Advanced | None:
    """Do what a running loop can do now, at most one thing; None where it waits, or somebody else is at it.

    A transaction of its own. What the user must mend ends the loop as failed, with the reason.
    """
    with session_scope(engine) as session:
        loop = session.scalar(
            select(tables.Loop)
            .where(tables.Loop.id == loop_id, tables.Loop.state == "running")
            .with_for_update(key_share=True, skip_locked=True)
        )
        if loop is None:
            return None
        stage = loop.stage
        try:
            with session.begin_nested():
                return _STAGES[stage](session, loop, current_step(session, loop))
        except NothingLeftError as error:
            finish_step(current_step(session, loop), "nothing is left to calculate")
            end(session, loop, "finished", f"nothing is left to calculate: {error}")
        except InputError as error:
            end(session, loop, "failed", str(error))
        return Advanced(stage, f"{loop.state}: {loop.error or loop.remark}")


def _rank(session: Session, loop: tables.Loop, step: tables.LoopStep) -> Advanced:
    design = session.get_one(tables.Design, loop.design_id)
    champion = champion_of(session, loop)
    query = query_of(design)
    ranking_id = store_ranking_of(session, design, champion, least_rows=loop.top)
    step.model_id, step.ranking_id, step.round_id = champion.id, ranking_id, loop.round_id
    step.n_calculated = rows.n_made(session, loop.id, finished_only=True)
    (answer,) = resolve(session, query, model_name=champion.name, campaign_name=last_campaign(session, loop).name)
    step.best = best_value(session, query, answer.branch, supercell_id=answer.supercell_id, level_id=loop.level_id)
    step.mae = _error(session, champion.id, improved_property(query))
    step.n_changed = _n_changed(session, loop, step)
    changed = "" if step.n_changed is None else f", {step.n_changed} of the best {loop.top} are others than before"
    finish_step(step, f"ranking {ranking_id} by {champion.name}{changed}")
    session.flush()
    n_unchanged, n_made = rows.n_unchanged(session, loop.id), rows.n_made(session, loop.id)
    if n_unchanged >= loop.patience:
        end(session, loop, "finished", f"the best {loop.top} have not changed for {n_unchanged} rankings")
    elif n_made >= loop.max_calculations:
        end(session, loop, "finished", f"{n_made} calculations were made")
    else:
        enter(session, loop, "propose")
    return Advanced("rank", str(step.remark))


def _propose(session: Session, loop: tables.Loop, step: tables.LoopStep) -> Advanced:
    query = query_of(session.get_one(tables.Design, loop.design_id))
    campaign = last_campaign(session, loop)
    n = min(loop.batch, loop.max_calculations - rows.n_made(session, loop.id))
    level = session.get_one(tables.LevelOfTheory, loop.level_id)
    proposals = propose(
        session, query, n=n, campaign_name=campaign.name, level_name=level.name, only_stored=loop.only_stored,
        seed=loop.seed + step.number,
    )  # fmt: skip
    first = session.get_one(tables.Calculation, proposals[0].calculation_id)
    loop.round_id = step.round_id = first.round_id
    step.model_id = campaign.model_id
    finish_step(step, f"{len(proposals)} calculations as round {loop.round_id}")
    enter(session, loop, "calculate")
    if loop.calculator != "builtin":
        return Advanced("propose", str(step.remark))
    release(session, loop, ("proposed",))
    return Advanced("propose", str(step.remark), ("calculate",))


def _calculate(session: Session, loop: tables.Loop, step: tables.LoopStep) -> Advanced | None:
    if rows.n_under_way(session, loop.round_id):
        return None
    calculation = tables.Calculation
    of_round = calculation.round_id == loop.round_id
    counts = dict(
        session.execute(select(calculation.state, func.count()).where(of_round).group_by(calculation.state)).all()
    )
    if not counts.get("finished"):
        reason = session.scalar(select(calculation.error).where(of_round).order_by(calculation.id).limit(1))
        raise InputError(
            f"none of the {sum(counts.values())} calculations of round {loop.round_id} finished, the first: {reason}; "
            "mend what is wrong, then `screening loop resume`"
        )
    step.n_calculated = rows.n_made(session, loop.id, finished_only=True)
    finish_step(step, f"{counts['finished']} finished, {counts.get('failed', 0)} failed")
    enter(session, loop, "learn")
    return Advanced("calculate", str(step.remark))


def _learn(session: Session, loop: tables.Loop, step: tables.LoopStep) -> Advanced | None:
    line = models.lock_line(session, loop.line_id)
    if step.model_id is None:
        if models.open_version(session, line.id) is not None:
            return None  # of somebody else; it may not know the newest results
        found = submit_retraining(session, line.name, seed=loop.seed)
        if found.model_id is not None:
            step.model_id = found.model_id
            return Advanced("learn", f"{found.n_new} new results are learnt", ("train",))
        finish_step(step, found.remark)
        enter(session, loop, "rescore")
        return Advanced("learn", found.remark)
    version = session.get_one(tables.TrainedModel, step.model_id)
    if version.state in ("waiting", "running"):
        return None
    if version.state == "failed":
        raise InputError(f"the training of {version.name} failed: {version.error}")
    comparison = session.get(tables.ModelComparison, version.id)
    verdict = comparison.reason if comparison is not None else "the first of its model"
    is_better = comparison is None or comparison.is_promoted
    step.mae = _error(session, version.id, improved_property(query_of(session.get_one(tables.Design, loop.design_id))))
    n_aside = _n_aside(session, loop.round_id)
    aside = f"; put aside, not learnt: {n_aside} of the round (`screening results quarantine`)" if n_aside else ""
    finish_step(step, f"{version.name} is {'promoted' if is_better else 'rejected'}: {verdict}{aside}")
    enter(session, loop, "rescore")
    return Advanced("learn", str(step.remark))


def _rescore(session: Session, loop: tables.Loop, step: tables.LoopStep) -> Advanced | None:
    champion = champion_of(session, loop)
    newest = newest_ranking(session, loop.design_id)
    assert newest is not None  # a loop begins with one
    found = scored_again(session, newest, champion.id)
    if found is not None and found.state == "finished":
        n_removed = 0 if loop.keep_campaigns else _remove_old(session, loop, keep=found.id)
        step.model_id = champion.id
        removed = f"; {n_removed} old campaigns are deleted" if n_removed else ""
        finish_step(step, f"campaign {found.name} is there{removed}")
        enter(session, loop, "rank")
        return Advanced("rescore", str(step.remark))
    if found is None or found.state == "planned":
        step.model_id = champion.id
        started = rescore(session, last_campaign(session, loop))
        return Advanced("rescore", f"campaign {started.name} is scored", ("score",))
    step.model_id = champion.id
    if found.state in ("running", "paused"):
        return None
    raise InputError(
        f"campaign {found.name} is {found.state}: {found.error or 'somebody has stopped it'}; "
        f"`screening loop resume {loop.name}` goes on with it"
    )


def _n_changed(session: Session, loop: tables.Loop, step: tables.LoopStep) -> int | None:
    """How many of the best rows have come, or have gone, since the ranking before; None where that says nothing.

    The larger of both numbers: a list that only gets shorter has changed. Nothing is said by the first ranking, one
    without rows after another, and one by the version that has made the last one.
    """
    table = tables.LoopStep
    before = session.scalar(
        select(table)
        .where(table.loop_id == loop.id, table.stage == "rank", table.number < step.number)
        .where(table.ranking_id.is_not(None))
        .order_by(table.number.desc())
        .limit(1)
    )
    assert step.ranking_id is not None
    if before is None or before.model_id == step.model_id or before.ranking_id is None:
        return None
    now, then = (best_rows(session, ranking_id, loop.top) for ranking_id in (step.ranking_id, before.ranking_id))
    return max(len(now - then), len(then - now)) if now or then else None


def _n_aside(session: Session, round_id: int | None) -> int:
    """Results of a round that contradict the model and were not learnt."""
    aside, result = tables.QuarantinedResult, tables.CalculationResult
    return session.execute(
        select(func.count())
        .select_from(aside)
        .join(result, result.id == aside.result_id)
        .join(tables.Calculation, tables.Calculation.id == result.calculation_id)
        .where(tables.Calculation.round_id == round_id, aside.state == "open")
    ).scalar_one()


def _error(session: Session, model_id: int, name: str) -> float | None:
    """Mean absolute error of a version on all its validation rows; None where that is not known."""
    metric = tables.ModelMetric
    total = func.sum(metric.mae * metric.n_rows) / func.nullif(func.sum(metric.n_rows), 0)
    return session.scalar(select(total).where(metric.model_id == model_id, metric.property == name))


def _remove_old(session: Session, loop: tables.Loop, *, keep: int) -> int:
    """Delete the campaigns of earlier rankings of a loop but for the first, which it has not made, and the last."""
    ranking = tables.Ranking
    ids = session.scalars(
        select(ranking.campaign_id)
        .where(ranking.design_id == loop.design_id, ranking.campaign_id.is_not(None))
        .order_by(ranking.id)
    ).all()
    distinct = [identifier for identifier in dict.fromkeys(ids) if identifier is not None and identifier != keep]
    old = [session.get_one(tables.Campaign, identifier) for identifier in distinct[1 : 1 - _KEPT_CAMPAIGNS or None]]
    removable = [campaign for campaign in old if campaign.state != "running"]
    for campaign in removable:
        campaigns.remove(session, campaign)
    return len(removable)


_STAGES: dict[str, Callable[[Session, tables.Loop, tables.LoopStep], Advanced | None]] = {
    "rank": _rank, "propose": _propose, "calculate": _calculate, "learn": _learn, "rescore": _rescore,
}  # fmt: skip
