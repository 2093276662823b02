"""What there is, for people."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from screening.database.listings import (
    calculation_counts,
    calculation_rows,
    describe_model,
    levels_with_results,
    list_hosts,
    list_models,
    newest_model,
    open_calculations,
)
from screening.database.tables import (
    Calculation,
    CalculationResult,
    Configuration,
    LevelOfTheory,
    ModelMetric,
    ModelTrainingResult,
    TrainedModel,
)
from screening.errors import UnknownNameError


def add_calculation(session: Session, ids: Any, site: int, *, state: str = "finished") -> tuple[int, int | None]:
    """A calculation of one vacancy, with a result where it is finished; their ids."""
    configuration = Configuration(
        supercell_id=ids.supercell, composition_id=ids.vacancy, n_defects=1, sites=[site], defect_types=[2048],
        multiplicity=128,
    )  # fmt: skip
    session.add(configuration)
    session.flush()
    error = "it did not converge" if state == "failed" else None
    calculation = Calculation(configuration_id=configuration.id, level_id=ids.level, state=state, error=error)
    session.add(calculation)
    session.flush()
    if state != "finished":
        return calculation.id, None
    result = CalculationResult(calculation_id=calculation.id, dataset="d", row_name=str(site), energy=-1.0, homo=0.25)
    session.add(result)
    session.flush()
    return calculation.id, result.id


def test_hosts_come_with_what_is_known_of_them(session: Session, ids: Any) -> None:
    add_calculation(session, ids, 3)
    add_calculation(session, ids, 4, state="proposed")
    (row,) = list_hosts(session)
    assert (row["host"], row["supercell"], row["n_sites"]) == ("MoS2", "8x8", 192)
    assert (row["configurations"], row["results"]) == (2, 1)


def test_a_level_without_results_is_not_offered(session: Session, ids: Any) -> None:
    session.add(LevelOfTheory(name="HSE", code="VASP", functional="HSE06", settings={}, digest="d2"))
    assert levels_with_results(session) == []
    add_calculation(session, ids, 3)
    assert levels_with_results(session) == ["PBE"]


def test_a_model_is_described_with_its_rows_and_its_errors_in_the_order_of_the_properties(
    session: Session, ids: Any
) -> None:
    for site, role in ((3, "train"), (4, "train"), (5, "validation")):
        _, result = add_calculation(session, ids, site)
        session.add(ModelTrainingResult(model_id=ids.model, result_id=result, role=role))
    for name in ("homo", "formation_energy"):
        session.add(ModelMetric(model_id=ids.model, dataset="d", property=name, n_rows=1, mae=0.1, rmse=0.2))
    session.flush()
    found = describe_model(session, "m1")
    assert (found["model"], found["level"], found["parent"]) == ("m1", "PBE", None)
    assert (found["n_train"], found["n_validation"]) == (2, 1)
    assert [metric["property"] for metric in found["metrics"]] == ["formation_energy", "homo"]
    assert [row["model"] for row in list_models(session)] == ["m1"]
    with pytest.raises(UnknownNameError, match="no model is called 'm2'; known are m1"):
        describe_model(session, "m2")


def test_the_newest_model_is_one_that_is_finished_and_knows_the_host(session: Session, ids: Any) -> None:
    with pytest.raises(UnknownNameError, match="no finished model has learnt from results of MoS2"):
        newest_model(session, ids.supercell)
    _, result = add_calculation(session, ids, 3)
    for name, knows in (("old", True), ("new", True), ("other", False)):
        model = TrainedModel(
            name=name, level_id=ids.level, properties=["homo"], settings={}, seed=1, state="finished", weights=b"w"
        )
        session.add(model)
        session.flush()
        if knows:
            session.add(ModelTrainingResult(model_id=model.id, result_id=result, role="train"))
    session.flush()
    assert newest_model(session, ids.supercell) == "new"


def test_calculations_come_with_their_result_or_their_reason(session: Session, ids: Any) -> None:
    done, _ = add_calculation(session, ids, 3)
    failed, _ = add_calculation(session, ids, 4, state="failed")
    add_calculation(session, ids, 5, state="proposed")
    first, second = calculation_rows(session, [failed, done])
    assert first["calculation"] == done
    assert (first["configuration"], first["sites"], first["state"], first["homo"]) == ("v_S", [3], "finished", 0.25)
    assert (second["state"], second["error"]) == ("failed", "it did not converge")
    assert "energy" not in second


def test_calculations_are_counted_by_level_and_state(session: Session, ids: Any) -> None:
    for site, state in enumerate(["proposed", "proposed", "failed", "finished"]):
        add_calculation(session, ids, site, state=state)
    hse = LevelOfTheory(name="HSE", code="VASP", functional="HSE06", settings={}, digest="d2")
    session.add(hse)
    session.flush()
    some = session.scalars(select(Calculation).where(Calculation.state == "proposed").limit(1)).one()
    some.level_id = hse.id
    session.flush()
    found = [(row["level"], row["state"], row["calculations"]) for row in calculation_counts(session)]
    assert found == [("HSE", "proposed", 1), ("PBE", "failed", 1), ("PBE", "finished", 1), ("PBE", "proposed", 1)]


def test_open_calculations_wait_or_run_at_the_level(session: Session, ids: Any) -> None:
    made = {state: add_calculation(session, ids, n, state=state)[0] for n, state in enumerate(["waiting", "failed"])}
    assert open_calculations(session, "PBE") == [made["waiting"]]
    session.execute(
        update(Calculation)
        .where(Calculation.id == made["waiting"])
        .values(state="running", lease_owner="w", lease_until=func.now())
    )
    assert open_calculations(session, "PBE") == [made["waiting"]]
    assert open_calculations(session, "HSE") == []
