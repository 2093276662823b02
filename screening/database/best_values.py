"""The best calculated value of what a design query looks for: what a next calculation has to improve on."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Float, cast, func, select
from sqlalchemy.orm import Session

from screening.database.composition_conditions import of_composition, shift_of_composition
from screening.database.design_query import CONCENTRATION, PROBABILITY, DesignQuery
from screening.database.models import is_usable
from screening.database.query_terms import ENERGY, PER_SITE, Branch
from screening.database.tables import Calculation, CalculationResult, Composition, Configuration


def best_value(
    session: Session, query: DesignQuery, branch: Branch, *, supercell_id: int, level_id: int
) -> float | None:
    """Best calculated value of the property a design query sorts by, among results that satisfy it, eV.

    The lowest, the highest, or that which is closest to the target; energies are at the query's chemical potentials.
    Only results of the supercell that is ranked: a concentration of defects, and at one k-point even the host's own
    levels, belong to a supercell. None where nothing is known, and of what is no property (probability, concentration,
    a front). Separations of defects are not kept of results, and not asked for.

    Args:
        branch: what answers the query in that supercell.
    """
    if query.sort in (PROBABILITY, CONCENTRATION) or query.pareto:
        return None
    shift = shift_of_composition(branch)

    def value(name: str) -> ColumnElement[Any]:
        stored: ColumnElement[Any] = getattr(CalculationResult, name)
        if shift is None or name not in (ENERGY, PER_SITE):
            return stored
        return stored + (shift if name == ENERGY else shift / cast(Configuration.n_defects, Float))

    sorted_by = value(query.sort)
    statement = (
        select(sorted_by)
        .select_from(CalculationResult)
        .join(Calculation, Calculation.id == CalculationResult.calculation_id)
        .join(Configuration, Configuration.id == Calculation.configuration_id)
        .join(Composition, Composition.id == Configuration.composition_id)
        .where(
            Configuration.supercell_id == supercell_id, Calculation.level_id == level_id, Configuration.n_defects > 0,
            sorted_by.is_not(None), is_usable(), *of_composition(query, branch),
        )
        .limit(1)
    )  # fmt: skip
    for window in query.windows:
        if window.low is not None:
            statement = statement.where(value(window.property) >= window.low)
        if window.high is not None:
            statement = statement.where(value(window.property) <= window.high)
    if query.target is not None:
        return session.scalar(statement.order_by(func.abs(sorted_by - query.target)))
    return session.scalar(statement.order_by(sorted_by if query.direction == "lowest" else sorted_by.desc()))
