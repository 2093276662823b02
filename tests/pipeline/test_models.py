from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session

from screening.database import leases, tables
from screening.database.session import session_scope
from screening.errors import InputError, LeaseLostError
from screening.learning.artifacts import ensemble_from_bytes
from screening.learning.scorer import score_configurations
from screening.pipeline import models
from screening.pipeline.models import TrainingRequest, submit_training, train_unit
from tests.synthetic_results import LEVEL, PROPERTIES, add_results, mos2, random_configurations, values

SMALL = {"n_members": 3, "width": 16, "n_blocks": 1, "epochs": 30, "batch_rows": 32}
EPOCHS = SMALL["epochs"] + SMALL["epochs"] // 10  # those with drawn configurations


def roles(session: Session, model_id: int) -> dict[int, str]:
    rows = session.execute(
        select(tables.ModelTrainingResult.result_id, tables.ModelTrainingResult.role).where(
            tables.ModelTrainingResult.model_id == model_id
        )
    )
    return dict(rows.all())


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
        assert progress.latest["max_epochs"] == EPOCHS
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
    assert epochs == list(range(1, EPOCHS + 1))
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
        if values.get("progress", {}).get("epoch") == 5:  # type: ignore[index]
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    monkeypatch.setattr(models, "record", break_the_fifth)
    train_unit(engine, model_id, "here:1:a", device="cpu")
    with session_scope(engine) as session:
        assert models.progress(session, model_id).state == "finished"
    assert [r for r in caplog.records if f"progress of model {model_id} is not written" in r.getMessage()]
