"""What the policies of model lines want: which of them are to be retrained, examined, or followed by campaigns.

SQL only, for beat asks every few seconds. New is a result that no version of a line has in its snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, case, exists, func, or_, select
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.models import in_production, is_for_training, is_usable, open_version
from screening.database.provenance import retracted_below

OUTSIDE = 0.05  # of the values, by the intervals
SURPRISE = 1e-3  # probability by chance, of all properties together, below which a model drifts
FEWEST_VALUES = 20  # that drift is told from
_DERIVED = "formation_energy"  # the energy per defect times their number


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


def lines_to_tend(session: Session) -> list[int]:
    """Ids of the lines of which a policy wants something now; SQL only, for beat."""
    line = tables.ModelLine
    has_policy = or_(line.after_results.is_not(None), line.after_hours.is_not(None), line.when_drifting, line.rescore)
    found = []
    for candidate in session.scalars(select(line).where(has_policy).order_by(line.id)):
        if why_due(session, candidate) or is_unexamined(session, candidate) or stale_campaigns(session, candidate):
            found.append(candidate.id)
    return found


def drift_of(session: Session, line: tables.ModelLine) -> list[Drift]:
    """How the new results of a line compare with what the version in production said of them, by property."""
    from scipy.stats import binomtest

    champion = in_production(session, line.id)
    if champion is None:
        return []
    said, result, learnt = tables.ResultPrediction, tables.CalculationResult, tables.ModelTrainingResult
    of_champion = select(learnt.result_id).where(learnt.model_id == champion.id)
    value = case(*((said.property == name, getattr(result, name)) for name in tables.PROPERTY_COMMENTS))
    rows = session.execute(
        select(said.property, func.count(), func.count().filter(func.abs(value - said.mean) > said.half_width))
        .join(result, result.id == said.result_id)
        .where(
            said.model_id == champion.id, value.is_not(None), result.id.not_in(of_champion), is_usable(),
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


def why_due(session: Session, line: tables.ModelLine) -> str | None:
    """Why a line is to be retrained now; None if it is not."""
    if open_version(session, line.id) is not None or in_production(session, line.id) is None:
        return None
    new = _new_results(
        line, func.count(), func.extract("epoch", func.now() - func.min(tables.CalculationResult.taken_in_at))
    )
    n_new, waiting_s = session.execute(new.where(is_for_training())).one()
    retrains = line.after_results is not None or line.after_hours is not None or line.when_drifting
    if retrains and (reason := _rests_on_withdrawn(session, line)) is not None:
        return reason
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


def _rests_on_withdrawn(session: Session, line: tables.ModelLine) -> str | None:
    """That the version in production rests on a withdrawn result, if no version was trained since it was withdrawn.

    A training that failed is no version; it is tried again once another result of the level has come since, which may
    be what it lacked: a pristine result that was withdrawn leaves nothing to train on until it is calculated again.
    """
    champion = in_production(session, line.id)
    result, version = tables.CalculationResult, tables.TrainedModel
    latest = session.scalar(select(func.max(result.retracted_at)))
    if champion is None or latest is None:
        return None
    has_come = (
        exists()
        .where(result.taken_in_at > version.created_at, result.retracted_at.is_(None))
        .where(tables.Calculation.id == result.calculation_id, tables.Calculation.level_id == line.level_id)
        .correlate(version)
    )
    tried = select(version.id).where(
        version.line_id == line.id, version.created_at > latest, or_(version.state == "finished", ~has_come)
    )
    if session.scalar(tried.limit(1)) is not None:
        return None
    ids = retracted_below(session, champion.id)
    return f"{champion.name} rests on retracted results: {', '.join(map(str, ids))}" if ids else None


def is_unexamined(session: Session, line: tables.ModelLine) -> bool:
    """Whether a new result has come that the version in production has not been asked about, though drift matters."""
    champion = in_production(session, line.id) if line.when_drifting else None
    if champion is None or open_version(session, line.id) is not None:
        return False
    is_later = tables.CalculationResult.id > (champion.examined_to or 0)
    return session.execute(_new_results(line, tables.CalculationResult.id).where(is_later).limit(1)).first() is not None


def stale_campaigns(session: Session, line: tables.ModelLine) -> list[tables.Campaign]:
    """The finished campaigns that are to follow the version in production and have not been started with it."""
    champion = in_production(session, line.id) if line.rescore else None
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


def find_same(session: Session, campaign: tables.Campaign, model_id: int) -> tables.Campaign | None:
    """The campaign of another model with the search space, storage and query of this one."""
    row = tables.Campaign
    return session.scalar(
        select(row)
        .where(
            row.search_space_id == campaign.search_space_id, row.model_id == model_id, row.storage == campaign.storage,
            row.query.is_not_distinct_from(campaign.query),
        )
        .order_by(row.id.desc())
        .limit(1)
    )  # fmt: skip


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
            is_usable(),
            ~in_a_snapshot,
        )
    )
    if line.hosts:
        statement = statement.where(tables.Host.name.in_(line.hosts))
    return statement.where(result.dataset.in_(line.datasets)) if line.datasets else statement
