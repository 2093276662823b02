"""Batches: worth for the time, and nothing that is nearly known."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy.orm import Session

from screening.database import tables
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Supercell
from screening.dft.results import LevelOfTheory
from screening.pipeline.batches import choose, known_configurations
from screening.pipeline.calculation_costs import CostLaw
from screening.pipeline.hosts import add_configurations, add_supercell
from screening.pipeline.references import add_level

SUPERCELL = Supercell.parse(catalogue_host("MoS2"), "4x4")
VACANCY, SELENIUM = (DefectType.parse(name) for name in ("v_S", "Se_S"))


def pairs(defect_type: DefectType, n: int) -> list[Configuration]:
    """Pairs of one type at n distances: the first sulphur site with others."""
    sites = [int(site) for site in SUPERCELL.allowed(defect_type)]
    by_distance = {round(float(SUPERCELL.pair_distances[sites[0], other]), 3): other for other in sites[:0:-1]}
    return [Configuration((sites[0], other), (defect_type.code,) * 2) for _, other in sorted(by_distance.items())][:n]


def test_what_is_equal_to_a_known_configuration_comes_after_what_is_not() -> None:
    found = pairs(VACANCY, 6)
    worth = np.linspace(1.0, 0.9, 6)
    alone = choose(worth, found, SUPERCELL, n=1)
    assert (alone.rows.tolist(), alone.novelty.tolist(), alone.seconds) == ([0], [1.0], None)
    batch = choose(worth, found, SUPERCELL, n=1, known=[found[0]])
    assert batch.rows.tolist() != [0]
    assert batch.novelty[0] > 0.5
    worst = choose(np.eye(6)[0], found, SUPERCELL, n=1, known=[found[0]])
    assert (worst.rows.tolist(), worst.novelty.tolist()) == ([0], [0.02])


def test_of_equal_worth_what_takes_less_time_comes_first() -> None:
    vacancies, substitutions = pairs(VACANCY, 3), pairs(SELENIUM, 3)
    worth = np.ones(6)
    law = CostLaw(prefactor=1e-3, exponent=3.0, n_measured=5)
    batch = choose(worth, [*substitutions, *vacancies], SUPERCELL, n=1, cost=law)
    assert int(batch.rows[0]) in (3, 4, 5)  # two atoms less
    assert batch.seconds is not None
    assert batch.seconds.tolist() == [pytest.approx(1e-3 * 46.0**3)]
    worth[0] = 1.3  # (48 / 46)^3 = 1.14
    assert int(choose(worth, [*substitutions, *vacancies], SUPERCELL, n=1, cost=law).rows[0]) == 0


def test_known_is_what_is_calculated_or_will_be_at_the_level_in_the_supercell(session: Session) -> None:
    stored = add_supercell(session, SUPERCELL)
    other = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "3x3"))
    levels = [add_level(session, LevelOfTheory(name, "a code", name, {})) for name in ("one", "two")]
    found = pairs(VACANCY, 2) + pairs(SELENIUM, 2)
    ids = add_configurations(session, stored, found)
    (elsewhere,) = add_configurations(
        session, other, [Configuration((int(other.supercell.allowed(VACANCY)[0]),), (VACANCY.code,))]
    )
    for state, configuration_id, level_id in zip(
        ("finished", "exported", "failed", "finished", "finished"),
        [*ids, elsewhere],
        [levels[0]] * 3 + [levels[1], levels[0]],
        strict=True,
    ):
        error = "why" if state == "failed" else None
        session.add(tables.Calculation(configuration_id=configuration_id, level_id=level_id, state=state, error=error))
    session.flush()
    rows = [session.get_one(tables.Configuration, i) for i in ids[:2]]
    known = {(c.sites, c.defect_types) for c in known_configurations(session, stored.id, levels[0])}
    assert known == {(tuple(row.sites), tuple(row.defect_types)) for row in rows}
