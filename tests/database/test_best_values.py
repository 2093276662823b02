"""The best calculated value of what a design query looks for."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm import Session

from screening.database.best_values import best_value
from screening.database.design_query import DesignQuery, Window
from screening.database.query_terms import Branch
from screening.database.tables import Supercell
from tests.database.conftest import SE_S, V_S
from tests.database.test_queries import add_result


def test_the_best_value_is_that_of_results_inside_the_windows(session: Session, ids: Any) -> None:
    for site, (energy, gap) in enumerate([(1.0, 0.5), (2.0, 1.5), (3.0, 1.6), (0.5, None)]):
        add_result(session, ids, [site], formation_energy_per_site=energy, homo_lumo_gap_min=gap)
    add_result(session, ids, [7, 8], formation_energy_per_site=0.1, homo_lumo_gap_min=1.5)
    add_result(session, ids, [], formation_energy_per_site=0.0, homo_lumo_gap_min=1.5)

    def best(**query: Any) -> float | None:
        asked = DesignQuery(host="MoS2", **query)
        return best_value(session, asked, Branch(0), supercell_id=ids.supercell, level_id=ids.level)

    window = (Window(property="homo_lumo_gap_min", low=1.0),)
    assert best() == 0.1
    assert best(max_defects=1) == 0.5
    assert best(max_defects=1, windows=window) == 2.0
    assert best(max_defects=1, windows=window, direction="highest") == 3.0
    assert best(windows=(Window(property="homo_lumo_gap_min", high=0.1),)) is None
    assert best(sort="probability") is None


def test_the_best_value_is_that_of_the_supercell_that_is_ranked(session: Session, ids: Any) -> None:
    smaller = Supercell(host_id=ids.host, matrix=[4, 0, 0, 0, 4, 0, 0, 0, 1], label="4x4", n_sites=48, n_operations=192)
    session.add(smaller)
    session.flush()
    add_result(session, ids, [0], formation_energy_per_site=2.0)
    add_result(session, ids, [1], supercell=smaller.id, formation_energy_per_site=1.0)
    query = DesignQuery(host="MoS2")
    assert best_value(session, query, Branch(0), supercell_id=ids.supercell, level_id=ids.level) == 2.0
    assert best_value(session, query, Branch(0), supercell_id=smaller.id, level_id=ids.level) == 1.0


def test_the_best_value_is_at_the_chemical_potentials_of_the_query(session: Session, ids: Any) -> None:
    add_result(session, ids, [0], formation_energy=1.0, formation_energy_per_site=1.0)
    add_result(session, ids, [1, 2], formation_energy=1.9, formation_energy_per_site=0.95)
    shifted = Branch(0, shifts={V_S: -0.5, SE_S: -0.5})  # eV for each defect: per site the same, for the pair twice

    def best(branch: Branch, **query: Any) -> float | None:
        asked = DesignQuery(host="MoS2", **query)
        return best_value(session, asked, branch, supercell_id=ids.supercell, level_id=ids.level)

    assert best(Branch(0), sort="formation_energy") == 1.0
    assert best(shifted, sort="formation_energy") == pytest.approx(0.5)
    assert best(shifted, sort="formation_energy", direction="highest") == pytest.approx(0.9)
    assert best(shifted) == pytest.approx(0.45)
    window = (Window(property="formation_energy_per_site", low=0.48),)
    assert best(shifted, windows=window) == pytest.approx(0.5)


def test_the_best_value_is_the_one_that_is_closest_to_a_target(session: Session, ids: Any) -> None:
    for site, gap in enumerate([0.5, 1.5, 1.1]):
        add_result(session, ids, [site], homo_lumo_gap_min=gap)
    for target, expected in ((0.0, 0.5), (1.25, 1.1), (1.4, 1.5)):
        query = DesignQuery(host="MoS2", sort="homo_lumo_gap_min", direction="closest", target=target)
        found = best_value(session, query, Branch(0), supercell_id=ids.supercell, level_id=ids.level)
        assert found == expected


def test_the_best_value_has_the_types_that_the_query_asks_for(session: Session, ids: Any) -> None:
    add_result(session, ids, [0], formation_energy_per_site=1.0)
    for query, branch, expected in (
        (DesignQuery(host="MoS2", required=("v_S",)), Branch(0, codes={"v_S": V_S}), 1.0),
        (DesignQuery(host="MoS2", forbidden=("v_S",)), Branch(0, codes={"v_S": V_S}), None),
        (DesignQuery(host="MoS2", required=("Se_S",)), Branch(0), None),
    ):
        assert best_value(session, query, branch, supercell_id=ids.supercell, level_id=ids.level) == expected
