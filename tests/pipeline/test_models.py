from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import Engine, any_, func, literal, select, text, update
from sqlalchemy.orm import Session

from screening.database import leases, tables
from screening.database.session import session_scope
from screening.errors import InputError, LeaseLostError, UnknownNameError
from screening.learning.artifacts import ensemble_from_bytes
from screening.learning.scorer import score_configurations
from screening.pipeline import models
from screening.pipeline.models import TrainingRequest, submit_training, train_unit
from tests.synthetic_results import LEVEL, PROPERTIES, add_results, mos2, random_configurations, values

SMALL = {"n_members": 3, "width": 16, "n_blocks": 1, "epochs": 30, "batch_rows": 32}


def roles(session: Session, model_id: int) -> dict[int, str]:
    rows = session.execute(
        select(tables.ModelTrainingResult.result_id, tables.ModelTrainingResult.role).where(
            tables.ModelTrainingResult.model_id == model_id
        )
    )
    return dict(rows.all())


def test_a_training_fixes_the_results_it_will_learn_from(session: Session) -> None:
    n_results = add_results(session, 120)
    model_id = submit_training(session, TrainingRequest(LEVEL))
    found = roles(session, model_id)
    assert len(found) == n_results
    assert set(found.values()) == {"train", "validation"}
    assert session.get_one(tables.TrainedModel, model_id).properties == list(PROPERTIES)


def test_a_row_that_validated_once_never_trains_later(session: Session) -> None:
    add_results(session, 120)
    first = roles(session, submit_training(session, TrainingRequest(LEVEL)))
    stored = session.scalars(select(tables.CalculationResult)).all()
    session.execute(
        update(tables.CalculationResult)
        .where(tables.CalculationResult.id.in_([row.id for row in stored[:20]]))
        .values(dataset="round 1")
    )
    second = roles(session, submit_training(session, TrainingRequest(LEVEL)))
    assert second == first


def test_the_split_of_a_data_set_is_kept(session: Session) -> None:
    add_results(session, 120)
    session.execute(update(tables.CalculationResult).values(split="train"))
    held_back = session.scalars(select(tables.CalculationResult.id).limit(7)).all()
    session.execute(
        update(tables.CalculationResult).where(tables.CalculationResult.id.in_(held_back)).values(split="validation")
    )
    found = roles(session, submit_training(session, TrainingRequest(LEVEL)))
    assert {i for i, role in found.items() if role == "validation"} == set(held_back)


def test_too_few_results_are_refused(session: Session) -> None:
    add_results(session, 8)
    with pytest.raises(InputError, match=r"training needs 10 and 1"):
        submit_training(session, TrainingRequest(LEVEL))


def test_results_of_another_level_are_not_learnt_from(session: Session) -> None:
    n_results = add_results(session, 60)
    add_results(session, 60, level="another formula", seed=1)
    assert len(roles(session, submit_training(session, TrainingRequest(LEVEL)))) == n_results


def test_an_unknown_level_is_refused(session: Session) -> None:
    with pytest.raises(UnknownNameError, match="'PBE'"):
        submit_training(session, TrainingRequest("PBE"))


def test_a_name_is_given_once(session: Session) -> None:
    add_results(session, 120)
    submit_training(session, TrainingRequest(LEVEL, name="first"))
    with pytest.raises(InputError, match=r"'first' already.*--name"):
        submit_training(session, TrainingRequest(LEVEL, name="first"))


def test_names_that_are_not_given_are_numbered(session: Session) -> None:
    add_results(session, 120)
    ids = [submit_training(session, TrainingRequest(LEVEL, hosts=("MoS2",))) for _ in range(2)]
    assert [models.progress(session, i).name for i in ids] == ["mos2-formula-1", "mos2-formula-2"]


def test_a_property_that_most_results_lack_is_not_learnt(session: Session) -> None:
    n_results = add_results(session, 120)
    some = session.scalars(select(tables.CalculationResult.id).limit(n_results // 2 + 1)).all()
    session.execute(
        update(tables.CalculationResult).where(tables.CalculationResult.id.in_(some)).values(homo_lumo_gap_min=None)
    )
    model_id = submit_training(session, TrainingRequest(LEVEL))
    assert session.get_one(tables.TrainedModel, model_id).properties == list(PROPERTIES[:2])


def test_validation_rows_of_a_type_that_no_row_trains_are_left_out(session: Session) -> None:
    add_results(session, 120)
    vacancy = 42 * 128  # v_Mo
    with_it = set(
        session.scalars(
            select(tables.CalculationResult.id)
            .join(tables.Calculation, tables.Calculation.id == tables.CalculationResult.calculation_id)
            .join(tables.Configuration, tables.Configuration.id == tables.Calculation.configuration_id)
            .where(literal(vacancy) == any_(tables.Configuration.defect_types))
        )
    )
    session.execute(update(tables.CalculationResult).values(split="train"))
    others = select(tables.CalculationResult.id).where(tables.CalculationResult.id.not_in(with_it)).limit(5)
    for ids in (with_it, session.scalars(others).all()):
        session.execute(
            update(tables.CalculationResult).where(tables.CalculationResult.id.in_(ids)).values(split="validation")
        )
    found = roles(session, submit_training(session, TrainingRequest(LEVEL)))
    assert with_it.isdisjoint(found)
    assert list(found.values()).count("validation") == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"epochs": 0}, "epochs is 0"), ({"n_members": 1}, "at least 3"), ({"depth": 3}, "no training setting is called")],
)
def test_settings_are_checked_before_anything_is_stored(session: Session, settings: dict, message: str) -> None:
    add_results(session, 120)
    with pytest.raises(InputError, match=message):
        submit_training(session, TrainingRequest(LEVEL, name="x", settings=settings))
    assert session.scalar(select(func.count()).select_from(tables.TrainedModel)) == 0


def test_a_failed_training_gives_its_name_to_the_next_one(session: Session) -> None:
    add_results(session, 120)
    first = submit_training(session, TrainingRequest(LEVEL, name="x"))
    session.execute(update(tables.TrainedModel).values(state="failed", error="it diverged"))
    second = submit_training(session, TrainingRequest(LEVEL, name="x"))
    assert second != first
    assert session.scalars(select(tables.TrainedModel.id)).all() == [second]


def test_a_retraining_keeps_the_members_and_needs_fewer_epochs(session: Session) -> None:
    add_results(session, 120)
    submit_training(session, TrainingRequest(LEVEL, name="old"))
    session.execute(update(tables.TrainedModel).values(state="finished", weights=b"w"))
    with pytest.raises(InputError, match="n_members come from model old"):
        submit_training(session, TrainingRequest(LEVEL, parent="old", settings={"n_members": 5}))
    retrained = submit_training(session, TrainingRequest(LEVEL, parent="old"))
    assert session.get_one(tables.TrainedModel, retrained).settings == {"epochs": models.RETRAINING_EPOCHS}


def test_rounds_and_small_data_sets_weigh_as_rows_of_the_largest_one() -> None:
    """Groups weigh equally: six proposals in a group of their own would be half of all draws."""
    datasets = ["low"] * 300 + ["high"] * 150 + ["few"] * 20 + ["round 1"] * 5 + ["round 2"] * 120
    groups = models._groups([1] * len(datasets) + [2] * 7, [*datasets, *["round 1"] * 7])
    assert len(set(groups[:300])) == 1
    assert set(groups[450:595]) == set(groups[:300])
    assert set(groups[300:450]) != set(groups[:300])
    assert len(set(groups[595:])) == 1
    assert set(groups[595:]).isdisjoint(groups[:595])


@pytest.fixture
def waiting(clean_engine: Engine) -> tuple[Engine, int]:
    """A database with a training of a small ensemble that waits."""
    with session_scope(clean_engine) as session:
        add_results(session, 200)
        model_id = submit_training(session, TrainingRequest(LEVEL, name="small", settings=SMALL))
    return clean_engine, model_id


def claim(engine: Engine, owner: str) -> int:
    with session_scope(engine) as session:
        model_id = leases.claim_next(session, tables.TrainedModel, owner)
    assert model_id is not None
    return model_id


def test_a_training_ends_with_weights_metrics_and_its_last_progress(waiting: tuple[Engine, int]) -> None:
    engine, model_id = waiting
    assert claim(engine, "here:1:a") == model_id
    train_unit(engine, model_id, "here:1:a", device="cpu")
    with session_scope(engine) as session:
        progress = models.progress(session, model_id)
        assert (progress.state, progress.error, progress.is_over) == ("finished", None, True)
        assert progress.latest["max_epochs"] == SMALL["epochs"]
        model = session.get_one(tables.TrainedModel, model_id)
        assert model.checkpoint is None
        assert model.training_time_s is not None
        assert model.training_time_s > 0
        metrics = session.scalars(select(tables.ModelMetric)).all()
        assert {metric.property for metric in metrics} == set(PROPERTIES)
        n_validation = sum(role == "validation" for role in roles(session, model_id).values())
        assert all(metric.n_rows == n_validation and metric.mae <= metric.rmse for metric in metrics)


def test_stored_weights_predict_the_formula(waiting: tuple[Engine, int]) -> None:
    engine, model_id = waiting
    claim(engine, "here:1:a")
    train_unit(engine, model_id, "here:1:a", device="cpu")
    with session_scope(engine) as session:
        weights = session.get_one(tables.TrainedModel, model_id).weights
    assert weights is not None
    supercell = mos2()
    new = random_configurations(supercell, 100, seed=7)
    mean, _ = score_configurations(ensemble_from_bytes(weights), supercell, new, device="cpu")
    exact = np.array([[values(supercell, configuration)[name] for name in PROPERTIES] for configuration in new])
    guess = np.abs(exact - exact.mean(axis=0)).mean(axis=0)  # of one who knows nothing but the mean
    assert (np.abs(mean - exact).mean(axis=0) < 0.5 * guess).all()


def test_a_training_resumes_from_its_checkpoint(waiting: tuple[Engine, int], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, model_id = waiting
    monkeypatch.setattr(models, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(models, "PROGRESS_S", 0.0)
    claim(engine, "here:1:a")
    epochs: list[int] = []
    report = models._ProgressWriter.__call__

    def stop_in_the_middle(writer: models._ProgressWriter, progress, make_checkpoint) -> None:  # type: ignore[no-untyped-def]
        report(writer, progress, make_checkpoint)
        epochs.append(progress.epoch)
        if len(epochs) == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(models._ProgressWriter, "__call__", stop_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        train_unit(engine, model_id, "here:1:a", device="cpu")
    with session_scope(engine) as session:
        session.execute(update(tables.TrainedModel).values(lease_until=func.now() - timedelta(seconds=1)))
    assert claim(engine, "here:2:b") == model_id
    train_unit(engine, model_id, "here:2:b", device="cpu")
    assert epochs == list(range(1, SMALL["epochs"] + 1))
    with session_scope(engine) as session:
        assert models.progress(session, model_id).state == "finished"


def test_a_training_that_was_taken_over_stops(waiting: tuple[Engine, int]) -> None:
    engine, model_id = waiting
    claim(engine, "here:1:late")
    with session_scope(engine) as session:
        session.execute(update(tables.TrainedModel).values(lease_owner="here:2:next"))
    with pytest.raises(LeaseLostError):
        train_unit(engine, model_id, "here:1:late", device="cpu")
    with session_scope(engine) as session:
        model = session.get_one(tables.TrainedModel, model_id)
        assert (model.lease_owner, model.weights) == ("here:2:next", None)
        assert session.scalar(select(func.count()).select_from(tables.ModelMetric)) == 0


def test_an_unknown_setting_is_named(waiting: tuple[Engine, int]) -> None:
    engine, model_id = waiting
    with session_scope(engine) as session:
        session.execute(update(tables.TrainedModel).values(settings={"depth": 3}))
    claim(engine, "here:1:a")
    with pytest.raises(InputError, match=r"setting is called depth; there are .*epochs"):
        train_unit(engine, model_id, "here:1:a", device="cpu")


def test_a_training_outlives_connections_that_break(
    waiting: tuple[Engine, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, model_id = waiting
    monkeypatch.setattr(models, "PROGRESS_S", 0.0)
    claim(engine, "here:1:a")
    record = models.record

    def break_the_fifth(session: Session, *arguments: object, **values: object) -> None:
        record(session, *arguments, **values)  # type: ignore[arg-type]
        if values["progress"]["epoch"] == 5:  # type: ignore[index]
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    monkeypatch.setattr(models, "record", break_the_fifth)
    train_unit(engine, model_id, "here:1:a", device="cpu")
    with session_scope(engine) as session:
        assert models.progress(session, model_id).state == "finished"
    assert [r for r in caplog.records if f"progress of model {model_id} is not written" in r.getMessage()]
