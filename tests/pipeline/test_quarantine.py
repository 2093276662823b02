"""New results that cannot be right are put aside before a version learns from them, and a person decides."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.session import session_scope
from screening.errors import InputError
from screening.pipeline.models import progress
from screening.pipeline.quarantine import list_quarantined, reject, release
from screening.pipeline.retraining import submit_retraining
from screening.pipeline.training_requests import TrainingRequest, submit_training
from tests.pipeline.trained_lines import FEW, N_LATER, SMALL, bring, hold_back, retrain, work
from tests.synthetic_results import LEVEL, add_results


def spoil(engine: Engine, ids: Collection[int], **columns: object) -> None:
    with session_scope(engine) as session:
        session.execute(update(tables.CalculationResult).where(tables.CalculationResult.id.in_(ids)).values(**columns))


def learnt(session: Session, model: str) -> set[int]:
    """Results that a model was trained on, as long as they are not put aside."""
    aside = select(tables.QuarantinedResult.result_id).where(tables.QuarantinedResult.state != "released")
    return set(
        session.scalars(
            select(tables.ModelTrainingResult.result_id)
            .join(tables.TrainedModel, tables.TrainedModel.id == tables.ModelTrainingResult.model_id)
            .where(tables.TrainedModel.name == model, tables.ModelTrainingResult.result_id.not_in(aside))
        )
    )


def test_honest_results_are_learnt_and_what_was_said_of_them_is_kept(trained: Engine) -> None:
    engine, later = trained, bring(trained)
    retrain(engine)
    with session_scope(engine) as session:
        assert list_quarantined(session) == []
        assert set(later) <= learnt(session, "first@2")
        said = session.scalars(
            select(tables.ResultPrediction).where(tables.ResultPrediction.property == "homo_lumo_gap_min")
        ).all()
        assert {row.result_id for row in said} == set(later)
        inside = 0
        for row in said:
            value = session.get_one(tables.CalculationResult, row.result_id).homo_lumo_gap_min
            assert value is not None
            inside += abs(value - row.mean) <= row.half_width
        assert inside >= 0.8 * N_LATER


def test_a_batch_in_another_unit_is_put_aside_and_the_rest_is_learnt(trained: Engine) -> None:
    engine, later = trained, bring(trained)
    wrong = later[:8]
    gap = tables.CalculationResult.homo_lumo_gap_min
    spoil(engine, wrong, homo_lumo_gap_min=1000 * gap, dataset="somebody's table")
    retrain(engine)
    with session_scope(engine) as session:
        found = list_quarantined(session, line="first")
        assert [row["result"] for row in found] == sorted(wrong)
        assert {row["batch"] for row in found} == {"somebody's table"}
        assert all(row["reason"].startswith("homo_lumo_gap_min: looks like meV given as eV (ratio") for row in found)
        assert {row["model"] for row in found} == {"first"}
        assert set(later[8:]) <= learnt(session, "first@2")
        assert set(wrong).isdisjoint(learnt(session, "first@2"))
        compared = session.scalars(select(tables.ModelComparison)).one()
        assert compared.n_rows > 0


def test_nothing_is_trained_where_all_that_is_new_is_put_aside(trained: Engine) -> None:
    engine, later = trained, bring(trained)
    spoil(engine, later, homo_lumo_gap_min=1000 * tables.CalculationResult.homo_lumo_gap_min)
    with session_scope(engine) as session:
        model_id = submit_retraining(session, "first", settings=FEW).model_id
    assert model_id is not None
    with pytest.raises(InputError, match="all 40 new results contradict first and are put aside"):
        work(engine, model_id)
    with session_scope(engine) as session:
        assert len(list_quarantined(session)) == N_LATER
        assert progress(session, model_id).state == "running"  # the worker sets it aside with this reason


def test_an_unconverged_run_is_put_aside_alone(trained: Engine) -> None:
    engine, later = trained, bring(trained)
    result = tables.CalculationResult
    spoil(
        engine, later[:1], formation_energy=result.formation_energy + 9.0,
        formation_energy_per_site=result.formation_energy_per_site + 4.5,
    )  # fmt: skip
    retrain(engine)
    with session_scope(engine) as session:
        (row,) = list_quarantined(session)
        assert (row["result"], row["batch"]) == (later[0], None)
        assert "half widths away, as an unconverged run is" in row["reason"]
        assert set(later[1:]) <= learnt(session, "first@2")


def test_what_the_model_does_not_know_is_not_condemned(clean_engine: Engine) -> None:
    """Energies that are wrong, but of a defect type that was never seen, say nothing: the model cannot judge them."""
    with session_scope(clean_engine) as session:
        add_results(session, 500)
        new_type = hold_back(session, 0, with_type=42 * 128)  # v_Mo
        model_id = submit_training(session, TrainingRequest(LEVEL, name="first", settings=SMALL))
    work(clean_engine, model_id)
    bring(clean_engine)
    spoil(clean_engine, new_type, formation_energy=50.0, formation_energy_per_site=30.0)
    retrain(clean_engine)
    with session_scope(clean_engine) as session:
        assert list_quarantined(session) == []
        assert len(learnt(session, "first@2") & set(new_type)) > 5


def test_what_a_person_releases_is_learnt_and_not_asked_again(trained: Engine) -> None:
    engine, later = trained, bring(trained)
    spoil(engine, later[:8], homo_lumo_gap_min=1000.0, dataset="somebody's table")
    retrain(engine)
    with session_scope(engine) as session:
        assert release(session, batch="somebody's table") == sorted(later[:8])
        assert list_quarantined(session) == []
        assert {row["state"] for row in list_quarantined(session, open_only=False)} == {"released"}
    found = retrain(engine)
    assert found.n_new == 8
    with session_scope(engine) as session:
        assert list_quarantined(session) == []
        assert set(later) <= learnt(session, "first@3")


def test_what_a_person_rejects_is_never_learnt(trained: Engine) -> None:
    engine, later = trained, bring(trained)
    with session_scope(engine) as session:
        assert reject(session, ids=later[:5], reason="the wrong functional") == sorted(later[:5])
    assert retrain(engine).n_new == N_LATER - 5
    with session_scope(engine) as session:
        assert set(later[:5]).isdisjoint(learnt(session, "first@2"))
        assert {row["reason"] for row in list_quarantined(session, open_only=False)} == {"the wrong functional"}
        assert release(session, ids=later[:2]) == sorted(later[:2])
    assert retrain(engine).n_new == 2


@pytest.mark.parametrize(
    ("ids", "batch", "message"),
    [
        ([7], None, "result 7 is not put aside; `screening results quarantine` lists what is"),
        ([], "nobody's", 'no open batch is called "nobody\'s"; there are: none'),
        ([], None, "name results by their ids, or a batch"),
    ],
)
def test_what_is_not_put_aside_cannot_be_released(
    session: Session, ids: list[int], batch: str | None, message: str
) -> None:
    add_results(session, 60)
    with pytest.raises(InputError) as caught:
        release(session, ids=ids, batch=batch)
    assert message in str(caught.value)


def test_a_result_that_is_not_there_cannot_be_rejected(session: Session) -> None:
    with pytest.raises(InputError, match="there is no result 12345"):
        reject(session, ids=[12345], reason="a test")
