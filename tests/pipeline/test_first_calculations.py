"""The first calculations are drawn without preference, and some of their results are for validation."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from screening.database import tables
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.dft import xtb
from screening.errors import InputError
from screening.pipeline.first_calculations import add_random, set_split
from tests.synthetic_results import mos2

LEVEL = xtb.level_of_theory().name


def space(max_defects: int = 2) -> SearchSpace:
    return SearchSpace(mos2(), parse_defect_types("v_S,Se_S"), max_defects)


def test_so_many_different_configurations_wait_for_the_workers(session: Session) -> None:
    ids = add_random(session, space(), LEVEL, 12, random.Random(1))
    assert len(set(ids)) == 12
    rows = session.execute(
        select(tables.Calculation.state, tables.Calculation.configuration_id).where(tables.Calculation.id.in_(ids))
    ).all()
    assert {row.state for row in rows} == {"waiting"}
    assert len({row.configuration_id for row in rows}) == 12
    assert add_random(session, space(), LEVEL, 12, random.Random(1)) == ids  # the same seed, the same calculations
    assert session.scalar(select(func.count()).select_from(tables.Calculation)) == 12


def test_more_than_there_are_is_refused(session: Session) -> None:
    with pytest.raises(InputError, match="the search space has 2"):
        add_random(session, space(1), LEVEL, 3, random.Random(1))


def test_every_so_manieth_result_is_for_validation(session: Session) -> None:
    ids = add_random(session, space(), LEVEL, 12, random.Random(1))
    for identifier in ids[1:]:  # the first one failed
        session.add(
            tables.CalculationResult(calculation_id=identifier, dataset="x", row_name=str(identifier), energy=-1.0)
        )
    session.flush()
    assert set_split(session, ids, every=5) == 2
    splits = session.scalars(
        select(tables.CalculationResult.split).order_by(tables.CalculationResult.calculation_id)
    ).all()
    assert [i for i, split in enumerate(splits) if split == "validation"] == [4, 9]
    assert splits.count("train") == 9
    assert set_split(session, ids, every=2) == 0  # a split stays
