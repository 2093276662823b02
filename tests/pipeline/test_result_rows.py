"""Results that were withdrawn: they are nowhere any more, and another one takes their place."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session

from screening.database import listings, models, queries, tables
from screening.database.best_values import best_value
from screening.database.design_query import DesignQuery
from screening.database.query_terms import Branch
from screening.database.session import session_scope
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Supercell
from screening.dft import xtb
from screening.dft.results import CalculationResult, LevelOfTheory
from screening.pipeline.hosts import StoredSupercell, add_supercell
from screening.pipeline.references import add_level, fill_formation_energies
from screening.pipeline.result_rows import Ledger, NewResult, Origin, free_name, store_result, store_results
from screening.pipeline.results import add_references
from screening.pipeline.retraction import retract

LEVEL = LevelOfTheory("some PBE", "some code", "PBE", {"cutoff": 500})
PRISTINE = Configuration((), ())


def add(session: Session, stored: StoredSupercell, level_id: int, origin: Origin, **rows: tuple[str, float]) -> Ledger:
    """Take results in, by their names: defects of one type (none: pristine) and energy."""
    new = []
    for name, (defects, energy) in rows.items():
        types = [DefectType.parse(defect) for defect in defects.split()]
        sites = sorted(int(site) for site in stored.supercell.allowed(types[0])[: len(types)]) if types else []
        configuration = Configuration(tuple(sites), tuple(defect_type.code for defect_type in types))
        new.append(NewResult(name, CalculationResult(configuration, energy, {"homo_lumo_gap_min": 1.0})))
    return store_results(session, stored, level_id, new, origin=origin)


def prepared(session: Session, origin: Origin = Origin("a test")) -> tuple[StoredSupercell, int]:  # noqa: B008
    """2x2 MoS2 with a pristine result and that of a vacancy."""
    stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "2x2"))
    level_id = add_level(session, LEVEL)
    queries.add_chemical_potentials(session, level_id, {"S": (-4.0, "a test")})
    add(session, stored, level_id, origin, pristine=("", -100.0))
    ledger = add(session, stored, level_id, origin, vacancy=("v_S", -93.0))
    assert (ledger.new, ledger.incomplete) == (["vacancy"], {})
    return stored, level_id


def withdraw(session: Session, name: str) -> int:
    """Mark a result as withdrawn, and its calculation as failed; the calculation's id."""
    row = tables.CalculationResult
    calculation_id = session.scalars(
        update(row).where(row.row_name == name).values(retracted_at=func.now(), retraction="wrong")
        .returning(row.calculation_id)
    ).one()  # fmt: skip
    session.execute(
        update(tables.Calculation).where(tables.Calculation.id == calculation_id).values(state="failed", error="wrong")
    )
    return calculation_id


def test_a_withdrawn_result_is_no_result_of_its_calculation(session: Session) -> None:
    stored, level_id = prepared(session)
    query = DesignQuery(host="MoS2")

    def seen() -> tuple[object, ...]:
        (host,) = listings.list_hosts(session)
        return (
            len(queries.labelled_rows(session, level_id=level_id)),
            best_value(session, query, Branch(0), supercell_id=stored.id, level_id=level_id),
            host["results"],
            listings.levels_with_results(session),
            listings.calculation_rows(session, [calculation_id])[0].get("energy"),
            session.scalar(select(func.count()).select_from(tables.CalculationResult).where(models.is_usable())),
        )

    calculation_id = session.scalars(
        select(tables.CalculationResult.calculation_id).where(tables.CalculationResult.row_name == "vacancy")
    ).one()
    assert seen() == (1, pytest.approx(3.0), 1, ["some PBE"], -93.0, 2)
    assert withdraw(session, "vacancy") == calculation_id
    assert seen() == (0, None, 0, [], None, 1)


def test_a_withdrawn_pristine_result_is_no_reference(session: Session) -> None:
    stored, level_id = prepared(session)
    withdraw(session, "pristine")
    assert queries.pristine_energy(session, stored.id, level_id) is None
    ledger = add(session, stored, level_id, Origin("a test"), other=("Se_S", -95.0))
    assert "no energy of the pristine supercell" in ledger.incomplete["other"]
    assert fill_formation_energies(session, stored.id, level_id) == 0


def test_another_result_takes_the_place_of_a_withdrawn_one(session: Session) -> None:
    stored, level_id = prepared(session)
    calculation_id = withdraw(session, "vacancy")
    ledger = add(session, stored, level_id, Origin("another test"), again=("v_S", -93.5))
    assert (ledger.new, ledger.refusals, ledger.known) == (["again"], [], [])
    (row,) = queries.labelled_rows(session, level_id=level_id)
    assert (row.CalculationResult.row_name, row.CalculationResult.calculation_id) == ("again", calculation_id)
    assert listings.calculation_rows(session, [calculation_id])[0]["state"] == "finished"
    third = add(session, stored, level_id, Origin("a third test"), third=("v_S", -93.5))
    assert third.known == ["third"]


@pytest.mark.parametrize("name", ["vacancy", "moved"])
def test_a_withdrawn_result_is_not_taken_in_again(session: Session, name: str) -> None:
    file_id = queries.add_source_file(session, sha256="5", path="some", kind="csv", size=1, version="1")
    origin = Origin("a test", file_id)
    stored, level_id = prepared(session, origin)
    withdraw(session, "vacancy")
    ledger = add(session, stored, level_id, origin, **{name: ("v_S", -93.0), "other": ("Se_S", -95.0)})
    assert ledger.new == ["other"]
    ((refused, reason),) = ledger.refusals
    assert refused == name
    assert "this result was withdrawn on" in reason
    assert ": wrong; calculate it again" in reason


def test_what_is_calculated_again_has_a_name_of_its_own(session: Session) -> None:
    prepared(session)
    assert free_name(session, "a test", "new") == "new"
    assert free_name(session, "a test", "vacancy") == "vacancy (2)"
    assert free_name(session, "another", "vacancy") == "vacancy"


def test_references_that_were_withdrawn_are_calculated_again(session: Session) -> None:
    stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "2x2"))
    level = xtb.level_of_theory()
    add_references(session, stored, PRISTINE, level)
    energy = queries.pristine_energy(session, stored.id, add_level(session, level))
    withdraw(session, "MoS2 2x2 pristine")
    add_references(session, stored, PRISTINE, level)
    assert queries.pristine_energy(session, stored.id, add_level(session, level)) == pytest.approx(energy, abs=1e-5)
    names = session.scalars(select(tables.CalculationResult.row_name).order_by(tables.CalculationResult.id)).all()
    assert names == ["MoS2 2x2 pristine", "MoS2 2x2 pristine (2)"]


def result_named(session: Session, name: str) -> tables.CalculationResult:
    session.expire_all()
    return session.scalars(select(tables.CalculationResult).where(tables.CalculationResult.row_name == name)).one()


def test_another_pristine_result_fills_what_the_withdrawn_one_left_empty(session: Session) -> None:
    stored, level_id = prepared(session)
    retract(session, result_named(session, "pristine").id, "wrong cell")
    assert result_named(session, "vacancy").formation_energy is None
    ledger = add(session, stored, level_id, Origin("another test"), again=("", -101.0))
    assert ledger.new == ["again"]
    assert result_named(session, "vacancy").formation_energy == pytest.approx(4.0)
    assert result_named(session, "vacancy").formation_energy_per_site == pytest.approx(4.0)


def test_a_pristine_calculation_that_is_made_again_fills_them_too(session: Session) -> None:
    stored, _ = prepared(session)
    pristine = result_named(session, "pristine")
    retract(session, pristine.id, "wrong cell")
    result = CalculationResult(PRISTINE, -101.0, {})
    store_result(session, stored, pristine.calculation_id, result, dataset="calculations", row_name="pristine again")
    assert result_named(session, "vacancy").formation_energy == pytest.approx(4.0)


def wait_until_held_up(engine: Engine, running: Future[Any]) -> None:
    """Wait until a statement of another connection waits for a lock, or what runs has ended."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    while not running.done():
        with engine.connect() as connection:
            if connection.execute(waiting).scalar_one():
                return
        time.sleep(0.01)


def test_what_is_taken_in_while_its_pristine_result_is_withdrawn_is_emptied_too(clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        stored, level_id = prepared(session)
        pristine = result_named(session, "pristine").id

    def withdraw_pristine() -> int:
        with session_scope(clean_engine) as session:
            return retract(session, pristine, "wrong cell").n_derived

    with ThreadPoolExecutor(1) as pool:
        with session_scope(clean_engine) as session:
            add(session, stored, level_id, Origin("another test"), pair=("v_S v_S", -85.0))
            assert result_named(session, "pair").formation_energy == pytest.approx(7.0)
            running = pool.submit(withdraw_pristine)
            wait_until_held_up(clean_engine, running)
        assert running.result() == 2
    with session_scope(clean_engine) as session:
        assert result_named(session, "pair").formation_energy is None


def test_what_a_worker_claims_meanwhile_is_refused(clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        stored, level_id = prepared(session)
        calculation_id = withdraw(session, "vacancy")

    def take_in() -> Ledger:
        with session_scope(clean_engine) as session:
            rows = {"again": ("v_S", -93.5), "pair": ("v_S v_S", -85.0)}
            return add(session, stored, level_id, Origin("another test"), **rows)

    with ThreadPoolExecutor(1) as pool:
        with session_scope(clean_engine) as session:
            claimed = {"state": "running", "lease_owner": "here:1:a", "lease_until": func.now(), "error": None}
            session.execute(update(tables.Calculation).where(tables.Calculation.id == calculation_id).values(claimed))
            running = pool.submit(take_in)
            wait_until_held_up(clean_engine, running)
        ledger = running.result()
    assert ledger.new == ["pair"]
    assert ledger.refusals == [("again", "a worker is calculating this configuration; add the result afterwards")]
