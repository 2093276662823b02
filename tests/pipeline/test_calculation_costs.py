"""Expected times: a power law by hand, and from rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlalchemy.orm import Session

from screening.database import tables
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Supercell
from screening.dft.results import LevelOfTheory
from screening.pipeline.calculation_costs import atoms_of, cost_law, fit_cost
from screening.pipeline.hosts import add_configurations, add_supercell
from screening.pipeline.references import add_level


def test_the_exponent_is_fitted_where_sizes_differ() -> None:
    n_atoms = np.array([12.0, 27.0, 48.0, 75.0])
    law = fit_cost(n_atoms, 0.02 * n_atoms**2.5)
    assert (law.prefactor, law.exponent) == (pytest.approx(0.02), pytest.approx(2.5))
    assert law.seconds(np.array([100.0])).tolist() == [pytest.approx(0.02 * 1e5)]


def test_of_one_size_the_median_counts_and_time_grows_with_the_cube() -> None:
    law = fit_cost(np.array([47.0, 48.0, 48.0]), np.array([10.0, 12.0, 600.0]))
    assert law.exponent == 3.0
    assert law.seconds(np.array([48.0]))[0] == pytest.approx(12.0)
    assert law.seconds(np.array([96.0]))[0] == pytest.approx(96.0)


def test_times_of_finished_calculations_at_the_level_make_the_law(session: Session) -> None:
    level_id = add_level(session, LevelOfTheory("some PBE", "some code", "PBE", {"cutoff": 500}))
    other_id = add_level(session, LevelOfTheory("another", "some code", "PBE", {"cutoff": 400}))
    assert cost_law(session, level_id) is None
    began = datetime(2026, 1, 1, tzinfo=UTC)
    vacancy = DefectType.parse("v_S")
    for label, seconds in (("2x2", 11.0**2), ("4x4", 47.0**2)):  # one atom less than 12 and 48
        stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), label))
        configuration = Configuration((int(stored.supercell.allowed(vacancy)[0]),), (vacancy.code,))
        assert atoms_of(stored.supercell, [configuration]).tolist() == [seconds**0.5]
        (configuration_id,) = add_configurations(session, stored, [configuration])
        for level, time_s in ((level_id, seconds), (other_id, 1.0)):
            session.add(
                tables.Calculation(
                    configuration_id=configuration_id, level_id=level, state="finished", started_at=began,
                    finished_at=began + timedelta(seconds=time_s),
                )
            )  # fmt: skip
    session.flush()
    law = cost_law(session, level_id)
    assert law is not None
    assert (law.exponent, law.n_measured) == (pytest.approx(2.0), 2)
    assert law.seconds(np.array([192.0]))[0] == pytest.approx(192.0**2)


def test_calculations_without_a_time_are_no_measure(session: Session) -> None:
    level_id = add_level(session, LevelOfTheory("some PBE", "some code", "PBE", {"cutoff": 500}))
    stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "2x2"))
    (configuration_id,) = add_configurations(session, stored, [Configuration((), ())])
    session.add(
        tables.Calculation(
            configuration_id=configuration_id, level_id=level_id, state="finished", finished_at=datetime.now(UTC)
        )
    )
    session.flush()
    assert cost_law(session, level_id) is None
