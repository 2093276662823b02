"""What there is, for people: hosts, levels of theory, models, calculations.

Reads only; one SELECT each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from screening.database.models import comparison_of, find_model, production, standing_of, stands
from screening.database.tables import (
    PROPERTY_COMMENTS,
    Calculation,
    CalculationResult,
    Composition,
    Configuration,
    Host,
    LevelOfTheory,
    ModelLine,
    ModelMetric,
    ModelTrainingResult,
    Supercell,
    TrainedModel,
)
from screening.errors import UnknownNameError


def list_hosts(session: Session) -> list[dict[str, Any]]:
    """A row per supercell: host, formula, supercell, n_sites, n_operations, configurations, results."""
    rows = session.execute(
        select(
            Host.name.label("host"),
            Host.formula,
            Supercell.label.label("supercell"),
            Supercell.n_sites,
            Supercell.n_operations,
            func.count(Configuration.id.distinct()).filter(Configuration.n_defects > 0).label("configurations"),
            func.count(CalculationResult.id.distinct()).filter(Configuration.n_defects > 0).label("results"),
        )
        .join(Supercell, Supercell.host_id == Host.id)
        .outerjoin(Configuration, Configuration.supercell_id == Supercell.id)
        .outerjoin(Calculation, Calculation.configuration_id == Configuration.id)
        .outerjoin(CalculationResult, and_(CalculationResult.calculation_id == Calculation.id, stands()))
        .group_by(Host.id, Supercell.id)
        .order_by(Host.name, Supercell.id)
    ).mappings()
    return [dict(row) for row in rows]


def levels_with_results(session: Session) -> list[str]:
    """Names of the levels of theory at which a defective configuration has a result."""
    return list(
        session.scalars(
            select(LevelOfTheory.name)
            .where(
                exists()
                .where(Calculation.level_id == LevelOfTheory.id)
                .where(CalculationResult.calculation_id == Calculation.id, stands())
                .where(Configuration.id == Calculation.configuration_id, Configuration.n_defects > 0)
            )
            .order_by(LevelOfTheory.name)
        )
    )


def list_models(session: Session) -> list[dict[str, Any]]:
    """A row per model, oldest first: its name as `model`, line, version, standing, state, level, parent and more.

    The standing is what it is to its line: production, replaced or rejected; null before it is finished.
    """
    parent, in_use = aliased(TrainedModel), production()
    learnt = (
        select(
            ModelTrainingResult.model_id,
            func.count().filter(ModelTrainingResult.role == "train").label("n_train"),
            func.count().filter(ModelTrainingResult.role == "validation").label("n_validation"),
        )
        .group_by(ModelTrainingResult.model_id)
        .subquery()
    )
    rows = session.execute(
        select(
            TrainedModel.id,
            TrainedModel.name.label("model"),
            ModelLine.name.label("line"),
            TrainedModel.version,
            standing_of(in_use).label("standing"),
            TrainedModel.state,
            LevelOfTheory.name.label("level"),
            parent.name.label("parent"),
            func.coalesce(learnt.c.n_train, 0).label("n_train"),
            func.coalesce(learnt.c.n_validation, 0).label("n_validation"),
            TrainedModel.training_time_s,
            TrainedModel.seed,
            TrainedModel.progress,
            TrainedModel.error,
            TrainedModel.weights_sha256,
            TrainedModel.snapshot_sha256,
            TrainedModel.created_at,
        )
        .join(LevelOfTheory, LevelOfTheory.id == TrainedModel.level_id)
        .join(ModelLine, ModelLine.id == TrainedModel.line_id)
        .outerjoin(in_use, in_use.c.line_id == TrainedModel.line_id)
        .outerjoin(parent, parent.id == TrainedModel.parent_id)
        .outerjoin(learnt, learnt.c.model_id == TrainedModel.id)
        .order_by(TrainedModel.id)
    ).mappings()
    return [dict(row) for row in rows]


def describe_model(session: Session, name: str) -> dict[str, Any]:
    """The model that a name means (screening.database.models), as a row of `list_models` with more of it.

    `metrics` are its errors on validation rows, `comparison` how it fared against the version that was in production.

    Raises:
        UnknownNameError: there is no model of this name.
    """
    model = find_model(session, name)
    if model is None:
        known = ", ".join(row["model"] for row in list_models(session))
        raise UnknownNameError(f"no model is called {name!r}; known are {known or 'none'}")
    return describe_version(session, model.id)


def describe_version(session: Session, model_id: int) -> dict[str, Any]:
    """A model by its id, as `describe_model` has it."""
    (found,) = (row for row in list_models(session) if row["id"] == model_id)
    del found["id"]
    order = list(PROPERTY_COMMENTS)
    metrics = session.execute(
        select(ModelMetric.dataset, ModelMetric.property, ModelMetric.n_rows, ModelMetric.mae, ModelMetric.rmse)
        .where(ModelMetric.model_id == model_id)
        .order_by(ModelMetric.dataset)
    ).mappings()
    found["metrics"] = sorted((dict(row) for row in metrics), key=lambda m: (m["dataset"], order.index(m["property"])))
    found["comparison"] = comparison_of(session, model_id)
    return found


def newest_model(session: Session, supercell_id: int) -> str:
    """Name of that model in production which was promoted last of those that have learnt from a supercell's host.

    Raises:
        UnknownNameError: there is none.
    """
    host_id = session.scalar(select(Supercell.host_id).where(Supercell.id == supercell_id))
    learnt_from_it = (
        exists()
        .where(ModelTrainingResult.model_id == TrainedModel.id)
        .where(CalculationResult.id == ModelTrainingResult.result_id)
        .where(Calculation.id == CalculationResult.calculation_id)
        .where(Configuration.id == Calculation.configuration_id)
        .where(Supercell.id == Configuration.supercell_id, Supercell.host_id == host_id)
    )
    came_from_a_file = ~exists().where(ModelTrainingResult.model_id == TrainedModel.id)
    is_of_host = select(Host.name).where(Host.id == host_id).scalar_subquery() == ModelLine.hosts.any_()
    in_use = production()
    name = session.scalar(
        select(TrainedModel.name)
        .join(in_use, in_use.c.model_id == TrainedModel.id)
        .join(ModelLine, ModelLine.id == TrainedModel.line_id)
        .where(or_(learnt_from_it, and_(came_from_a_file, is_of_host)))
        .order_by(in_use.c.promotion_id.desc())
        .limit(1)
    )
    if name is None:
        host = session.scalar(select(Host.name).where(Host.id == host_id))
        raise UnknownNameError(
            f"no finished model has learnt from results of {host}; run `screening train --host {host}`"
        )
    return name


def calculation_counts(session: Session) -> list[dict[str, Any]]:
    """A row per level of theory and state that occur: level, state, calculations; the pristine ones do not count."""
    rows = session.execute(
        select(LevelOfTheory.name.label("level"), Calculation.state, func.count().label("calculations"))
        .join(LevelOfTheory, LevelOfTheory.id == Calculation.level_id)
        .join(Configuration, Configuration.id == Calculation.configuration_id)
        .where(Configuration.n_defects > 0)
        .group_by(LevelOfTheory.name, Calculation.state)
        .order_by(LevelOfTheory.name, Calculation.state)
    ).mappings()
    return [dict(row) for row in rows]


def open_calculations(session: Session, level_name: str) -> list[int]:
    """Ids of the calculations of a level of theory that wait for a worker or run."""
    return list(
        session.scalars(
            select(Calculation.id)
            .join(LevelOfTheory, LevelOfTheory.id == Calculation.level_id)
            .where(LevelOfTheory.name == level_name, Calculation.state.in_(("waiting", "running")))
            .order_by(Calculation.id)
        )
    )


def calculation_rows(session: Session, ids: Sequence[int]) -> list[dict[str, Any]]:
    """A row per calculation: calculation, configuration, sites, state, error, and the values of its result."""
    values = [getattr(CalculationResult, name) for name in PROPERTY_COMMENTS]
    rows = session.execute(
        select(
            Calculation.id.label("calculation"),
            Composition.label.label("configuration"),
            Configuration.sites,
            Calculation.state,
            Calculation.error,
            CalculationResult.energy,
            *values,
        )
        .join(Configuration, Configuration.id == Calculation.configuration_id)
        .join(Composition, Composition.id == Configuration.composition_id)
        .outerjoin(CalculationResult, and_(CalculationResult.calculation_id == Calculation.id, stands()))
        .where(Calculation.id.in_(ids))
        .order_by(Calculation.id)
    ).mappings()
    return [{key: value for key, value in row.items() if value is not None} for row in rows]
