"""Policies: when a line is retrained by itself, and whether its campaigns follow.

A policy asks for a retraining after so many new results, or when new results have waited for so many hours, or when
the model drifts: when more of the new results than can be chance are outside its 95 % intervals (binomial test). New is
what no version of the line has in its snapshot, so that a training that was rejected or failed is not repeated by
itself until there is more. Beat looks for lines that want something and says so; a worker tends them, since to know of
a drift it has to predict. Nothing of it is done twice, whoever gets how many messages: a line is locked while it is
tended, and the rows that are written are the ones that are looked for.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from screening.database import models, tables
from screening.database.policies import is_unexamined, lines_to_tend, stale_campaigns, why_due
from screening.database.session import session_scope
from screening.errors import InputError
from screening.pipeline.quarantine import examine
from screening.pipeline.rescoring import rescore
from screening.pipeline.retraining import submit_retraining

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Policy:
    """When a line is retrained by itself.

    Attributes:
        after_results: number of new results; never for that reason if None.
        after_hours: how long a new result waits; never for that reason if None.
        when_drifting: whether new results outside the intervals are a reason.
        rescore: whether finished campaigns are started again with each version that goes into production.
    """

    after_results: int | None = None
    after_hours: float | None = None
    when_drifting: bool = False
    rescore: bool = False


OFF = Policy()


@dataclass(frozen=True)
class Tended:
    """What was begun for the lines.

    Attributes:
        trainings: names of lines whose retraining waits for a worker.
        campaigns: names of campaigns that were started.
    """

    trainings: tuple[str, ...]
    campaigns: tuple[str, ...]


def set_policy(session: Session, line_name: str, policy: Policy) -> tables.ModelLine:
    """Let a line be retrained by itself from now on, or no longer; the line.

    Raises:
        UnknownNameError: there is no such line.
        InputError: a number makes no sense.
    """
    if policy.after_results is not None and policy.after_results < 1:
        raise InputError(f"a retraining after {policy.after_results} results is asked for; expected 1 or more")
    if policy.after_hours is not None and not 0 < policy.after_hours < float("inf"):
        raise InputError(f"a retraining after {policy.after_hours:g} hours is asked for; expected more than 0")
    line = models.lock_line(session, models.line_by_name(session, line_name).id)
    line.after_results, line.after_hours = policy.after_results, policy.after_hours
    line.when_drifting, line.rescore = policy.when_drifting, policy.rescore
    session.flush()
    return line


def tend(engine: Engine, *, device: str) -> Tended:
    """Do what the policies of the lines want; a transaction for each line.

    A line that somebody else tends, or that is trained to its end just now, is passed by. One whose policy cannot be
    followed is left as it is, and the reason is logged, so that the others go on.
    """
    with session_scope(engine) as session:
        wanted = lines_to_tend(session)
    trainings: list[str] = []
    campaigns: list[str] = []
    for line_id in wanted:
        try:
            with session_scope(engine) as session:
                found = _tend_line(session, line_id, device=device)
        except InputError as error:
            with session_scope(engine) as session:
                name = session.get_one(tables.ModelLine, line_id).name
            _logger.error("the policy of model %s cannot be followed: %s", name, error)
            continue
        trainings += found.trainings
        campaigns += found.campaigns
    return Tended(tuple(trainings), tuple(campaigns))


def _tend_line(session: Session, line_id: int, *, device: str) -> Tended:
    line = session.scalar(
        select(tables.ModelLine).where(tables.ModelLine.id == line_id).with_for_update(key_share=True, skip_locked=True)
    )
    if line is None:
        return Tended((), ())
    trainings: list[str] = []
    campaigns: list[str] = []
    if is_unexamined(session, line):
        _examine(session, line, device=device)
    if (reason := why_due(session, line)) is not None:
        found = submit_retraining(session, line.name)
        if found.model_id is not None and not found.is_joined:
            _logger.info("model %s is retrained: %s", line.name, reason)
            trainings.append(line.name)
    while stale := stale_campaigns(session, line):  # two of them may be followed by one
        campaigns.append(rescore(session, stale[0]).name)
    return Tended(tuple(trainings), tuple(campaigns))


def _examine(session: Session, line: tables.ModelLine, *, device: str) -> None:
    from screening.learning.artifacts import ensemble_from_bytes

    champion = models.in_production(session, line.id)
    assert champion is not None
    assert champion.weights is not None
    n_aside = examine(session, line, champion, ensemble_from_bytes(champion.weights), device=device)
    if n_aside:
        _logger.warning("%d new results contradict %s and are put aside", n_aside, champion.name)
