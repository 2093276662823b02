"""Predictions beside the results that came later: the honest test of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import and_, case, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from screening.database.models import stands
from screening.database.tables import (
    PROPERTY_COMMENTS,
    Arrangement,
    Calculation,
    CalculationResult,
    Campaign,
    Candidate,
    Composition,
    Configuration,
    ModelTrainingResult,
    Round,
    SearchSpace,
    TrainedModel,
)

_COLOURS = {"validation": "#9aa5b1", "proposed": "#c2410c"}
_NAMES = {"validation": "validation rows", "proposed": "proposed, then calculated"}


@dataclass(frozen=True)
class ComparedRow:
    """A property of a configuration: predicted by a model that did not know it, and calculated.

    Attributes:
        kind: a validation row of the model, or a calculation that its predictions proposed.
        mean: predicted, eV or Bohr magneton, like `std` and `value`.
    """

    kind: Literal["validation", "proposed"]
    configuration: str
    property: str
    mean: float
    std: float
    value: float


def compared_rows(session: Session, model_id: int, properties: Sequence[str]) -> list[ComparedRow]:
    """Predictions of a model beside results that it did not learn from, in the order of the results."""
    level_id = select(TrainedModel.level_id).where(TrainedModel.id == model_id).scalar_subquery()
    is_proposed = and_(Round.model_id == model_id, Round.level_id == level_id)  # it may propose for another level
    statement = (
        select(
            case((is_proposed, "proposed"), else_="validation").label("kind"),
            Composition.label.label("configuration"),
            Candidate,
            CalculationResult,
        )
        .select_from(CalculationResult)
        .join(Calculation, Calculation.id == CalculationResult.calculation_id)
        .join(Configuration, Configuration.id == Calculation.configuration_id)
        .join(Composition, Composition.id == Configuration.composition_id)
        .join(Arrangement, Arrangement.defect_types == Configuration.defect_types)
        .join(SearchSpace, SearchSpace.supercell_id == Configuration.supercell_id)
        .join(Campaign, and_(Campaign.search_space_id == SearchSpace.id, Campaign.model_id == model_id))
        .join(
            Candidate,
            and_(
                Candidate.campaign_id == Campaign.id,
                Candidate.arrangement_id == Arrangement.id,
                Candidate.sites == Configuration.sites,
            ),
        )
        .outerjoin(Round, Round.id == Calculation.round_id)
        .outerjoin(
            ModelTrainingResult,
            and_(ModelTrainingResult.result_id == CalculationResult.id, ModelTrainingResult.model_id == model_id),
        )
        .where(stands(), is_proposed | (ModelTrainingResult.role == "validation"))
        .ext(distinct_on(CalculationResult.id))  # two campaigns may hold one configuration
        .order_by(CalculationResult.id, Campaign.id)
    )
    rows = []
    for kind, configuration, prediction, result in session.execute(statement):
        for name in properties:
            value = getattr(result, name)
            mean, std = getattr(prediction, f"{name}_mean"), getattr(prediction, f"{name}_std")
            if value is not None and mean is not None:
                rows.append(ComparedRow(kind, configuration, name, mean, std, value))
    return rows


def plot_parity(rows: Sequence[ComparedRow], properties: Sequence[str], path: Path, *, title: str) -> None:
    """Draw predicted against calculated values, a panel for each property; PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(properties), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    for n, name in enumerate(properties, start=1):
        axes = figure.add_subplot(1, len(properties), n)
        of_property = [row for row in rows if row.property == name]
        for kind, colour in _COLOURS.items():
            some = [row for row in of_property if row.kind == kind]
            if some:
                mae = sum(abs(row.mean - row.value) for row in some) / len(some)
                axes.errorbar(
                    [row.value for row in some], [row.mean for row in some], yerr=[row.std for row in some],
                    fmt="o", markersize=3 if kind == "validation" else 6, elinewidth=0.8, color=colour, alpha=0.8,
                    label=f"{_NAMES[kind]}: {len(some)}, MAE {1000 * mae:.1f} meV",
                    zorder=2 if kind == "validation" else 3,
                )  # fmt: skip
        ends = [value for row in of_property for value in (row.value, row.mean)] or [0.0, 1.0]
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="black", linewidth=0.8, zorder=1)
        axes.set_xlabel(f"calculated {PROPERTY_COMMENTS[name]}")
        axes.set_ylabel("predicted, eV")
        if of_property:
            axes.legend(loc="upper left", frameon=False, fontsize=9)
        axes.set_aspect("equal", adjustable="datalim")
    figure.suptitle(title)
    figure.savefig(path, dpi=140)
