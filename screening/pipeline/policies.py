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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Select, case, exists, func, or_, select
from sqlalchemy.orm import Session

from screening.database import models, tables
from screening.database.session import session_scope
from screening.errors import InputError
from screening.pipeline.quarantine import examine
from screening.pipeline.rescoring import find_same, rescore
from screening.pipeline.retraining import submit_retraining
from screening.pipeline.training_rows import is_for_training

OUTSIDE = 0.05  # of the values, by the intervals
SURPRISE = 1e-3  # probability by chance, of all properties together, below which a model drifts
FEWEST_VALUES = 20  # that drift is told from
_DERIVED = "formation_energy"  # the energy per defect times their number

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
class Drift:
    """How many values of a property of new results are outside the 95 % intervals.

    Attributes:
        probability: that chance alone puts so many or more there.
    """

    property: str
    n_values: int
    n_outside: int
    probability: float


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


def lines_to_tend(session: Session) -> list[int]:
    """Ids of the lines of which a policy wants something now; SQL only, for beat."""
    line = tables.ModelLine
    has_policy = or_(line.after_results.is_not(None), line.after_hours.is_not(None), line.when_drifting, line.rescore)
    found = []
    for candidate in session.scalars(select(line).where(has_policy).order_by(line.id)):
        if _is_due(session, candidate) or _is_unexamined(session, candidate) or _stale_campaigns(session, candidate):
            found.append(candidate.id)
    return found


def tend(engine: Engine, *, device: str) -> Tended:
    """Do what the policies of the lines want; a transaction for each line.

    A line that somebody else tends, or that is trained to its end just now, is passed by.
    """
    with session_scope(engine) as session:
        wanted = lines_to_tend(session)
    trainings: list[str] = []
    campaigns: list[str] = []
    for line_id in wanted:
        with session_scope(engine) as session:
            line = session.scalar(
                select(tables.ModelLine)
                .where(tables.ModelLine.id == line_id)
                .with_for_update(key_share=True, skip_locked=True)
            )
            if line is None:
                continue
            if _is_unexamined(session, line):
                _examine(session, line, device=device)
            if (reason := _is_due(session, line)) is not None:
                found = submit_retraining(session, line.name)
                if found.model_id is not None and not found.is_joined:
                    _logger.info("model %s is retrained: %s", line.name, reason)
                    trainings.append(line.name)
            while stale := _stale_campaigns(session, line):  # two of them may be followed by one
                campaigns.append(rescore(session, stale[0]).name)
    return Tended(tuple(trainings), tuple(campaigns))


def drift_of(session: Session, line: tables.ModelLine) -> list[Drift]:
    """How the new results of a line compare with what the version in production said of them, by property."""
    from scipy.stats import binomtest

    champion = models.in_production(session, line.id)
    if champion is None:
        return []
    said, result, learnt = tables.ResultPrediction, tables.CalculationResult, tables.ModelTrainingResult
    of_champion = select(learnt.result_id).where(learnt.model_id == champion.id)
    value = case(*((said.property == name, getattr(result, name)) for name in tables.PROPERTY_COMMENTS))
    rows = session.execute(
        select(said.property, func.count(), func.count().filter(func.abs(value - said.mean) > said.half_width))
        .join(result, result.id == said.result_id)
        .where(
            said.model_id == champion.id, value.is_not(None), result.id.not_in(of_champion), models.is_usable(),
            said.property != _DERIVED,
        )
        .group_by(said.property)
        .order_by(said.property)
    )  # fmt: skip
    return [
        Drift(name, n, n_outside, float(binomtest(n_outside, n, OUTSIDE, alternative="greater").pvalue))
        for name, n, n_outside in rows
    ]


def drifts(found: Sequence[Drift]) -> Drift | None:
    """The property whose new values are outside the intervals more often than chance allows, if there is one."""
    clear = [d for d in found if d.n_values >= FEWEST_VALUES and d.probability * len(found) < SURPRISE]
    return min(clear, key=lambda d: d.probability, default=None)


def _is_due(session: Session, line: tables.ModelLine) -> str | None:
    """Why a line is to be retrained now; None if it is not."""
    if models.open_version(session, line.id) is not None or models.in_production(session, line.id) is None:
        return None
    new = _new_results(
        line, func.count(), func.extract("epoch", func.now() - func.min(tables.CalculationResult.taken_in_at))
    )
    n_new, waiting_s = session.execute(new.where(is_for_training())).one()
    if n_new == 0:
        return None
    if line.after_results is not None and n_new >= line.after_results:
        return f"there are {n_new} new results"
    if line.after_hours is not None and waiting_s >= 3600 * line.after_hours:
        return f"{n_new} new results have waited for {waiting_s / 3600:.1f} hours"
    if line.when_drifting and (drift := drifts(drift_of(session, line))) is not None:
        return (
            f"{drift.n_outside} of {drift.n_values} new values of {drift.property} are outside the 95 % intervals "
            f"(probability {drift.probability:.1g} by chance)"
        )
    return None


def _is_unexamined(session: Session, line: tables.ModelLine) -> bool:
    """Whether a new result has come that the version in production has not been asked about, though drift matters."""
    champion = models.in_production(session, line.id) if line.when_drifting else None
    if champion is None or models.open_version(session, line.id) is not None:
        return False
    is_later = tables.CalculationResult.id > (champion.examined_to or 0)
    return session.execute(_new_results(line, tables.CalculationResult.id).where(is_later).limit(1)).first() is not None


def _new_results(line: tables.ModelLine, *columns: Any) -> Select[Any]:
    """The SELECT of the usable results of a line that no version of it has in its snapshot."""
    result, configuration = tables.CalculationResult, tables.Configuration
    learnt, version = tables.ModelTrainingResult, tables.TrainedModel
    in_a_snapshot = (
        exists().where(learnt.result_id == result.id).where(version.id == learnt.model_id, version.line_id == line.id)
    )
    statement = (
        select(*columns)
        .select_from(result)
        .join(tables.Calculation, tables.Calculation.id == result.calculation_id)
        .join(configuration, configuration.id == tables.Calculation.configuration_id)
        .join(tables.Supercell, tables.Supercell.id == configuration.supercell_id)
        .join(tables.Host, tables.Host.id == tables.Supercell.host_id)
        .where(
            tables.Calculation.level_id == line.level_id,
            configuration.n_defects > 0,
            models.is_usable(),
            ~in_a_snapshot,
        )
    )
    if line.hosts:
        statement = statement.where(tables.Host.name.in_(line.hosts))
    return statement.where(result.dataset.in_(line.datasets)) if line.datasets else statement


def _stale_campaigns(session: Session, line: tables.ModelLine) -> list[tables.Campaign]:
    """The finished campaigns that are to follow the version in production and have not been started with it."""
    champion = models.in_production(session, line.id) if line.rescore else None
    if champion is None:
        return []
    stale = session.scalars(
        select(tables.Campaign)
        .join(tables.TrainedModel, tables.TrainedModel.id == tables.Campaign.model_id)
        .where(
            tables.TrainedModel.line_id == line.id, tables.TrainedModel.id != champion.id,
            tables.Campaign.state == "finished",
        )
        .order_by(tables.Campaign.id)
    )  # fmt: skip
    return [campaign for campaign in stale if find_same(session, campaign, champion.id) is None]


def _examine(session: Session, line: tables.ModelLine, *, device: str) -> None:
    from screening.learning.artifacts import ensemble_from_bytes

    champion = models.in_production(session, line.id)
    assert champion is not None
    assert champion.weights is not None
    n_aside = examine(session, line, champion, ensemble_from_bytes(champion.weights), device=device)
    if n_aside:
        _logger.warning("%d new results contradict %s and are put aside", n_aside, champion.name)
