"""Loops: rank, propose, calculate, learn, rescore, and again, until the best candidates of a design stand still.

    rank       the design is ranked by the version in production; the loop ends when the best rows have not changed for
               so many rankings, or when enough was calculated
    propose    the next calculations for the design are chosen and, for the built-in calculator, given to the workers
    calculate  is over when every calculation of the round is finished or failed, whoever made it
    learn      the model is retrained (screening.pipeline.retraining), and promoted if it is not worse
    rescore    the campaign of the version in production is scored; back to rank

A loop is a row with a stage, and each stage it goes through is a row of `loop_steps`; what a worker does in a stage is
in `loop_stages`. Pausing, stopping and resuming change the state of the row and of what waits for a worker; nothing
that is done is lost.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from screening.database import loops as rows
from screening.database import models, tables
from screening.database.design_query import DesignQuery
from screening.database.policies import find_same
from screening.dft import xtb
from screening.errors import InputError
from screening.pipeline import campaigns
from screening.pipeline.designs import run_design_query
from screening.pipeline.loop_steps import (
    champion_of,
    current_step,
    end,
    enter,
    finish_step,
    hold,
    last_campaign,
    release,
)
from screening.pipeline.open_designs import add_design, newest_ranking, query_of
from screening.pipeline.query_context import Answer, resolve
from screening.pipeline.rankings import store_ranking


@dataclass(frozen=True)
class LoopRequest:
    """What a loop is to do.

    Attributes:
        name: of the loop and of its design.
        line: name of the model that learns, with a version in production that has scored the design's search space.
        calculator: builtin: our workers calculate; external: somebody else does, and takes the results in.
        batch: calculations of a round.
        max_calculations: after so many it ends.
        patience: rankings without a change among the best after which it ends.
        top: so many rows of a ranking count as its best.
        campaign: rank and choose among what this campaign keeps, and its successors; the one that keeps every
            prediction of the version in production if None.
        only_stored: calculate only configurations that an import has brought without results.
        keep_campaigns: keep the campaigns of all versions, not only of the last two.
        seed: of proposals and trainings.
    """

    name: str
    query: DesignQuery
    line: str
    calculator: str = "builtin"
    batch: int = 10
    max_calculations: int = 200
    patience: int = 2
    top: int = 10
    campaign: str | None = None
    only_stored: bool = False
    keep_campaigns: bool = False
    seed: int = 0


def start_loop(session: Session, request: LoopRequest) -> tables.Loop:
    """Store a loop, which the workers bring further from now on.

    Raises:
        UnknownNameError: there is no such model.
        InputError: a number makes no sense, the name is taken, the campaign cannot be ranked by the version in
            production, or the model cannot learn what is calculated.
    """
    _check_numbers(request)
    if len(request.query.places) > 1:
        raise InputError("a loop is about one host and supercell, the design names several; start a loop for each")
    if session.scalar(select(tables.Loop.id).where(tables.Loop.name == request.name)):
        raise InputError(f"a loop is called {request.name!r} already; choose another name")
    line = models.lock_line(session, models.line_by_name(session, request.line).id)
    champion = models.in_production(session, line.id)
    if champion is None:
        raise InputError(f"model {line.name} has no finished version yet; train it first (`screening train`)")
    if line.datasets:
        raise InputError(
            f"model {line.name} learns only from {', '.join(line.datasets)}, and what a loop calculates is none of "
            "these; train one without --dataset (`screening train --host`)"
        )
    level = session.get_one(tables.LevelOfTheory, line.level_id)
    if request.calculator == "builtin" and level.digest not in [known.digest for known in xtb.levels_of_theory()]:
        raise InputError(
            f"model {line.name} has learnt at {level.name!r}, where the built-in calculator does not compute; start "
            "the loop with --external and calculate its rounds elsewhere"
        )
    query = request.query.model_copy(update={"limit": max(request.query.limit, request.top)})
    table = run_design_query(session, query, model_name=champion.name, campaign_name=request.campaign)
    if table.model_id != champion.id:
        raise InputError(
            f"campaign {table.campaign} is scored by {table.model}, and {champion.name} is in production: "
            f"`screening campaign rescore {table.campaign}` first"
        )
    design = add_design(session, request.name, request.query, line, is_open=False)  # the loop itself ranks it
    if request.campaign is not None:  # all rankings of a design are of the campaign of its first one
        store_ranking(session, query, table, design_id=design.id)
    loop = tables.Loop(
        name=request.name, design_id=design.id, line_id=line.id, level_id=line.level_id,
        calculator=request.calculator, batch=request.batch, max_calculations=request.max_calculations,
        patience=request.patience, top=request.top, only_stored=request.only_stored,
        keep_campaigns=request.keep_campaigns, seed=request.seed, state="running", stage="rank",
    )  # fmt: skip
    session.add(loop)
    session.flush()
    enter(session, loop, "rank")
    return loop


def ranked_first(session: Session, loop: tables.Loop) -> Answer:
    """The campaign that a loop that was just started is ranked from; the later ones have its search space."""
    query = query_of(session.get_one(tables.Design, loop.design_id))
    if newest_ranking(session, loop.design_id) is None:
        (answer,) = resolve(session, query, model_name=champion_of(session, loop).name)
    else:
        (answer,) = resolve(session, query, campaign_name=last_campaign(session, loop).name)
    return answer


def pause(session: Session, name: str | None) -> tables.Loop:
    """Let a loop begin nothing more: calculations and chunks that run come to their end, so does a training.

    Raises:
        InputError: it is over.
    """
    loop = _locked(session, name)
    if loop.state not in ("running", "paused"):
        raise InputError(f"loop {loop.name} is {loop.state}; only one that runs can be paused")
    loop.state, loop.remark = "paused", None
    hold(session, loop)
    campaign = _scanning(session, loop)
    if campaign is not None and campaign.state == "running":
        campaigns.pause(session, campaign)
    session.flush()
    return loop


def stop(session: Session, name: str | None) -> tables.Loop:
    """End a loop at once: its training and its campaign are dropped, calculations that run come to their end.

    What is finished stays, and `resume` goes on from there.

    Raises:
        InputError: it is over.
    """
    loop = _locked(session, name)
    if loop.state not in ("running", "paused"):
        raise InputError(f"loop {loop.name} is {loop.state} already; nothing of it runs")
    hold(session, loop)
    step = current_step(session, loop)
    if loop.stage == "learn" and step.model_id is not None:
        _drop_training(session, step.model_id, f"loop {loop.name} was stopped")
    campaign = _scanning(session, loop)
    if campaign is not None and campaign.state in ("running", "paused"):
        campaigns.cancel(session, campaign)
    end(session, loop, "stopped", "stopped by a person")
    return loop


def resume(session: Session, name: str | None) -> tables.Loop:
    """Go on with a loop that was paused or stopped, or try again what failed.

    Raises:
        InputError: it runs, or has come to its end.
    """
    loop = _locked(session, name)
    if loop.state in ("running", "finished"):
        what = "runs" if loop.state == "running" else f"has come to its end ({loop.remark}); start another one with it"
        raise InputError(f"loop {loop.name} {what}; there is nothing to resume")
    if loop.state in ("stopped", "failed"):
        finish_step(current_step(session, loop), loop.error or loop.remark)
        enter(session, loop, loop.stage)
    loop.state, loop.error, loop.remark, loop.finished_at = "running", None, None, None
    if loop.calculator == "builtin" and loop.stage == "calculate":
        release(session, loop, ("proposed", "failed") if rows.n_under_way(session, loop.round_id) == 0
                 else ("proposed",))  # fmt: skip
    campaign = _scanning(session, loop)
    if campaign is not None and campaign.state in ("paused", "cancelled", "incomplete"):
        campaigns.resume(session, campaign)
    session.flush()
    return loop


def _check_numbers(request: LoopRequest) -> None:
    for name in ("batch", "max_calculations", "patience", "top"):
        if (number := getattr(request, name)) < 1:
            raise InputError(f"{name.replace('_', '-')} is {number}; expected 1 or more")
    if request.calculator not in ("builtin", "external"):
        raise InputError(f"the calculator is {request.calculator!r}; expected builtin or external")


def _locked(session: Session, name: str | None) -> tables.Loop:
    """A loop that no worker advances meanwhile."""
    loop = rows.loop_by_name(session, name)
    session.refresh(loop, with_for_update={"key_share": True})
    return loop


def _drop_training(session: Session, model_id: int, reason: str) -> None:
    """Set a training aside; the worker that is at it loses its lease and drops it."""
    model = tables.TrainedModel
    session.execute(
        update(model)
        .where(model.id == model_id, model.state.in_(("waiting", "running")))
        .values(state="failed", error=reason, lease_owner=None, lease_until=None, finished_at=func.now())
    )


def _scanning(session: Session, loop: tables.Loop) -> tables.Campaign | None:
    """The campaign that a loop waits for."""
    step = current_step(session, loop)
    if loop.stage != "rescore" or step.model_id is None:
        return None
    return find_same(session, last_campaign(session, loop), step.model_id)
