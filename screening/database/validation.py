"""How good a model is on the results that it was validated on: parity, calibration, errors by subset and by defects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Float, case, cast, func, literal_column, select, union_all
from sqlalchemy.orm import Session

from screening.database.models import stands
from screening.database.tables import (
    PROPERTY_COMMENTS,
    Calculation,
    CalculationResult,
    Composition,
    Configuration,
    ValidationPrediction,
)

MOST_POINTS = 5_000
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_QUANTILES = (0.12566, 0.25335, 0.38532, 0.52440, 0.67449, 0.84162, 1.03643, 1.28155, 1.64485, 1.95996)


@dataclass(frozen=True)
class Errors:
    """Errors of a part of the validation rows, eV or Bohr magneton.

    Attributes:
        part: a data set, or a number of defects.
        inside: share of the values inside their 95 % interval of a normal distribution, 0 to 1.
    """

    part: str
    property: str
    n_rows: int
    mae: float
    rmse: float
    inside: float


def validated_properties(session: Session, model_id: int) -> list[str]:
    """The properties that predictions of validation rows are kept of."""
    said = ValidationPrediction
    found = set(session.scalars(select(said.property).where(said.model_id == model_id).distinct()))
    return [name for name in PROPERTY_COMMENTS if name in found]


def parity_points(session: Session, model_id: int, name: str) -> list[dict[str, Any]]:
    """Up to `MOST_POINTS` validation rows: `label`, `mean`, `std`, `configuration`, `n_defects`, `result`."""
    said = ValidationPrediction
    rows = session.execute(
        select(
            _label(name).label("label"), said.mean, said.std, Composition.label.label("configuration"),
            Configuration.n_defects, said.result_id.label("result"),
        )
        .select_from(_joined())
        .where(said.model_id == model_id, said.property == name, stands())
        .order_by(said.result_id)
        .limit(MOST_POINTS)
    ).mappings()  # fmt: skip
    return [dict(row) for row in rows]


def calibration(session: Session, model_id: int, name: str) -> list[float]:
    """Shares of the values inside the central intervals of `LEVELS` of the predicted normal distributions."""
    said = ValidationPrediction
    z = func.abs(said.mean - _label(name)) / func.nullif(said.std, 0.0)
    shares = [func.avg(case((z <= limit, 1.0), else_=0.0)) for limit in _QUANTILES]
    row = session.execute(
        select(*shares).select_from(_joined()).where(said.model_id == model_id, said.property == name, stands())
    ).one()
    return [float(share) for share in row if share is not None]


def errors_by(session: Session, model_id: int, part: str, properties: Sequence[str]) -> list[Errors]:
    """Errors by part, `dataset` or `n_defects`."""
    said = ValidationPrediction
    of_part: Any = CalculationResult.dataset if part == "dataset" else Configuration.n_defects
    if not properties:
        return []
    statements = []
    for order, name in enumerate(properties):
        error = said.mean - _label(name)
        statements.append(
            select(
                of_part.label("part"), literal_column(str(order)).label("property"), func.count().label("n"),
                func.avg(func.abs(error)).label("mae"), func.sqrt(func.avg(error * error)).label("rmse"),
                func.avg(case((func.abs(error) <= _QUANTILES[-1] * said.std, 1.0), else_=0.0)).label("inside"),
            )
            .select_from(_joined())
            .where(said.model_id == model_id, said.property == name, stands())
            .group_by(of_part)
        )  # fmt: skip
    together = union_all(*statements).subquery()
    rows = session.execute(select(together).order_by(together.c.part, together.c.property))
    return [
        Errors(str(row.part), properties[int(row.property)], row.n, float(row.mae), float(row.rmse), float(row.inside))
        for row in rows
    ]


def _label(name: str) -> ColumnElement[float]:
    return cast(getattr(CalculationResult, name), Float)


def _joined() -> Any:
    said = ValidationPrediction.__table__
    return (
        said.join(CalculationResult, CalculationResult.id == said.c.result_id)
        .join(Calculation, Calculation.id == CalculationResult.calculation_id)
        .join(Configuration, Configuration.id == Calculation.configuration_id)
        .join(Composition, Composition.id == Configuration.composition_id)
    )
