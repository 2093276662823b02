"""A line with a trained version and results that are still to come, and what happens to both."""

from __future__ import annotations

from sqlalchemy import Engine, any_, literal, select, update
from sqlalchemy.orm import Session

from screening.database import leases, tables
from screening.database.session import session_scope
from screening.pipeline.models import train_unit
from screening.pipeline.retraining import Retraining, submit_retraining
from screening.pipeline.training_rows import role_of

SMALL = {"n_members": 3, "width": 16, "n_blocks": 1, "epochs": 60, "batch_rows": 32, "drawn_rows": 0}
FEW = {"epochs": 4, "drawn_rows": 0}
N_LATER = 40
OWNER = "here:1:a"


def hold_back(session: Session, n: int, *, with_type: int | None = None) -> list[int]:
    """Ids of n results to train on, or of all with a defect type, that no training sees until `bring` is called."""
    found = select(tables.CalculationResult).order_by(tables.CalculationResult.id * 7919 % 1009)
    if with_type is not None:
        found = found.join(tables.Calculation, tables.Calculation.id == tables.CalculationResult.calculation_id)
        found = found.join(tables.Configuration, tables.Configuration.id == tables.Calculation.configuration_id)
        has_it = literal(with_type) == any_(tables.Configuration.defect_types)
        chosen = [row.id for row in session.scalars(found.where(has_it))]
    else:
        chosen = [row.id for row in session.scalars(found) if role_of(row) == "train"][:n]
    session.execute(
        update(tables.CalculationResult).where(tables.CalculationResult.id.in_(chosen)).values(dataset="later")
    )
    session.add_all(tables.QuarantinedResult(result_id=i, reason="not there yet") for i in chosen)
    session.flush()
    return chosen


def bring(engine: Engine) -> list[int]:
    """What was held back has come by now; its ids, in the order in which it was held back."""
    with session_scope(engine) as session:
        found = session.scalars(select(tables.QuarantinedResult)).all()
        for row in found:
            session.delete(row)
        return sorted((row.result_id for row in found), key=lambda identifier: identifier * 7919 % 1009)


def work(engine: Engine, model_id: int) -> None:
    """Train what waits."""
    with session_scope(engine) as session:
        assert leases.claim_next(session, tables.TrainedModel, OWNER) == model_id
    train_unit(engine, model_id, OWNER, device="cpu")


def retrain(engine: Engine, **options: object) -> Retraining:
    """Retrain `first`, if there is something new."""
    with session_scope(engine) as session:
        found = submit_retraining(session, "first", settings=FEW, **options)  # type: ignore[arg-type]
    if found.model_id is not None:
        work(engine, found.model_id)
    return found
