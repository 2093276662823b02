"""The first calculations of a search space: configurations drawn at random, before there is a model to choose."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import tables
from screening.defects.enumeration import SearchSpace
from screening.defects.sampling import Sampler
from screening.pipeline.hosts import add_configurations, add_supercell
from screening.pipeline.references import level_of_name


def add_random(session: Session, space: SearchSpace, level_name: str, n: int, generator: random.Random) -> list[int]:
    """Hand n different configurations of a search space to the workers, each with the same probability; their ids.

    What has a calculation at the level keeps it.

    Raises:
        UnknownNameError: there is no such level of theory.
        InputError: the space has fewer.
    """
    stored = add_supercell(session, space.supercell)
    level_id = level_of_name(session, level_name)
    drawn = [found.configuration for found in Sampler(space, stored.symmetry).draw_distinct(n, generator)]
    ids = add_configurations(session, stored, drawn)
    calculation = tables.Calculation
    session.execute(
        insert(calculation).on_conflict_do_nothing(),
        [{"configuration_id": i, "level_id": level_id, "state": "waiting"} for i in ids],
    )
    found = select(calculation.id).where(calculation.configuration_id.in_(ids), calculation.level_id == level_id)
    return list(session.scalars(found.order_by(calculation.id)))


def set_split(session: Session, calculation_ids: Sequence[int], *, every: int) -> int:
    """Let every so manieth of the results of calculations be for validation, the others for training; how many are.

    By their ids alone, few results might leave none for validation, and no version could be compared with another. What
    has a split keeps it.
    """
    result = tables.CalculationResult
    of_them = result.calculation_id.in_(calculation_ids), result.split.is_(None), result.retracted_at.is_(None)
    ids = session.scalars(select(result.id).where(*of_them).order_by(result.calculation_id)).all()
    chosen = ids[every - 1 :: every]
    for split, some in (("validation", chosen), ("train", [i for i in ids if i not in set(chosen)])):
        session.execute(update(result).where(result.id.in_(some)).values(split=split))
    return len(chosen)
