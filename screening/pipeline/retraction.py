"""Withdrawing results: a wrong calculation is taken back, and everything that rests on it is named.

Nothing is deleted. A withdrawn result stays with its reason, no training and no query takes it any more, and its
calculation counts as failed, so that it can be made again. With a pristine result go the formation energies that are
derived from it: they are emptied, and filled again once another pristine result of the supercell is there. Models,
campaigns and rankings that rest on it stay as they are and are marked wherever they are shown: that follows from what
they have learnt (screening.database.provenance), so that a mark can neither be forgotten nor be lost.
"""

from __future__ import annotations

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from screening.database import provenance as rows
from screening.database import tables
from screening.errors import InputError
from screening.pipeline.provenance import Affected, affected
from screening.pipeline.result_rows import lock_results


def retract(session: Session, result_id: int, reason: str) -> Affected:
    """Withdraw a result; everything that rests on it.

    Raises:
        UnknownNameError: there is no such result.
        InputError: it is withdrawn already, or no reason is given.
    """
    if not reason.strip():
        raise InputError("a result is withdrawn for a reason that others can read; say why")
    supercell_id = session.scalar(
        select(tables.Configuration.supercell_id)
        .join(tables.Calculation, tables.Calculation.configuration_id == tables.Configuration.id)
        .join(tables.CalculationResult, tables.CalculationResult.calculation_id == tables.Calculation.id)
        .where(tables.CalculationResult.id == result_id)
    )
    if supercell_id is not None:
        lock_results(session, supercell_id)  # what is taken in at this moment may be derived from it too
    found = affected(session, result_id)
    result = session.execute(
        select(tables.CalculationResult)
        .where(tables.CalculationResult.id == result_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).scalar_one()
    if result.retracted_at is not None:
        raise InputError(
            f"result {result_id} was withdrawn on {result.retracted_at.astimezone():%Y-%m-%d %H:%M}: "
            f"{result.retraction}; nothing is left to do"
        )
    derived = session.scalars(rows.derived_from(found.result)).all()
    if derived:
        session.execute(
            update(tables.CalculationResult)
            .where(tables.CalculationResult.id.in_(derived))
            .values(formation_energy=None, formation_energy_per_site=None)
        )
    result.retracted_at, result.retraction = func.now(), reason
    calculation = session.get_one(tables.Calculation, result.calculation_id, populate_existing=True)
    calculation.state, calculation.error = "failed", f"its result was withdrawn: {reason}"
    calculation.lease_owner = calculation.lease_until = None
    session.flush()
    session.refresh(result)
    return affected(session, result_id)
