"""Retraining a line: what is new is learnt, the better version is in production, and everything is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.models import comparison_of, promotions_of, versions_of
from screening.database.session import session_scope
from screening.dft.dataset_2dmd import LEVEL as LEVEL_2DMD
from screening.errors import InputError, UnknownNameError
from screening.learning.artifacts import ensemble_to_bytes
from screening.learning.fingerprints import fingerprints_of_rows
from screening.learning.settings import TrainingSettings
from screening.learning.training import train_ensemble
from screening.pipeline import comparison, models
from screening.pipeline.evaluation import LEARNT, evaluate_model, find_model
from screening.pipeline.imports import import_2dmd
from screening.pipeline.labelled_files import read_labelled
from screening.pipeline.model_transfer import add_model_file
from screening.pipeline.pretrained import unpack_model, with_card
from screening.pipeline.retraining import roll_back, submit_retraining
from screening.pipeline.training_requests import TrainingRequest, submit_training
from tests.pipeline.made_models import small_model
from tests.pipeline.trained_lines import FEW, N_LATER, SMALL, bring, retrain, work
from tests.synthetic_2dmd import Row, write_subset
from tests.synthetic_results import LEVEL, PROPERTIES, add_results


def production(engine: Engine) -> str:
    with session_scope(engine) as session:
        return queries.model_by_name(session, "first").name


def test_a_retraining_learns_old_and_new_results_and_goes_into_production(trained: Engine) -> None:
    bring(trained)
    found = retrain(trained)
    assert (found.line, found.champion, found.n_new, found.is_joined) == ("first", "first", N_LATER, False)
    with session_scope(trained) as session:
        first, second = session.scalars(select(tables.TrainedModel).order_by(tables.TrainedModel.id))
        assert (second.name, second.version, second.parent_id) == ("first@2", 2, first.id)
        learnt = select(tables.ModelTrainingResult.result_id).where(
            tables.ModelTrainingResult.model_id == second.id, tables.ModelTrainingResult.role == "train"
        )
        old = select(tables.ModelTrainingResult.result_id).where(
            tables.ModelTrainingResult.model_id == first.id, tables.ModelTrainingResult.role == "train"
        )
        assert len(set(session.scalars(learnt)) - set(session.scalars(old))) == N_LATER
        assert set(session.scalars(old)) < set(session.scalars(learnt))
        assert second.snapshot_sha256 != first.snapshot_sha256
        assert None not in (first.snapshot_sha256, second.snapshot_sha256)
        compared = comparison_of(session, second.id)
        assert compared is not None
        assert compared["is_promoted"]
        assert {error["property"] for error in compared["errors"]} == set(PROPERTIES)
        n_frozen = session.scalar(
            select(func.count()).where(
                tables.ModelTrainingResult.model_id == second.id, tables.ModelTrainingResult.role == "validation"
            )
        )
        assert compared["n_rows"] == n_frozen
        mae = {m.property: m.mae for m in session.scalars(select(tables.ModelMetric).where(
            tables.ModelMetric.model_id == second.id))}  # fmt: skip
        of_challenger = {error["property"]: error["challenger_mae"] for error in compared["errors"]}
        assert of_challenger == pytest.approx(mae)  # the same rows, measured by another function
        _, promotion = promotions_of(session, second.line_id)
        assert (promotion["model"], promotion["replaced"], promotion["reason"]) == (
            "first@2", "first", compared["reason"],
        )  # fmt: skip
    assert production(trained) == "first@2"


def test_a_worse_version_is_kept_as_rejected(trained: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(trained)

    def forget(*arguments: object, **options: object) -> object:
        return train_ensemble(*arguments, **(options | {"start_from": None}))  # type: ignore[arg-type]

    monkeypatch.setattr("screening.learning.training.train_ensemble", forget)
    with session_scope(trained) as session:
        found = submit_retraining(session, "first", settings={"epochs": 1})
        assert found.model_id is not None
        model = session.get_one(tables.TrainedModel, found.model_id)
        model.settings = {**SMALL, "epochs": 1}
    work(trained, found.model_id)
    assert production(trained) == "first"
    with session_scope(trained) as session:
        _, second = versions_of(session, session.get_one(tables.TrainedModel, found.model_id).line_id)
        assert (second["standing"], second["state"]) == ("rejected", "finished")
        assert second["ratio"] > 1
        assert second["verdict"].startswith("worse: ")
        assert len(promotions_of(session, 1)) == 1


def test_nothing_new_is_nothing_to_do(trained: Engine) -> None:
    found = retrain(trained)
    assert (found.model_id, found.n_new) == (None, 0)
    assert "no result to train on is new" in found.remark
    bring(trained)
    assert retrain(trained).n_new == N_LATER
    assert retrain(trained).model_id is None
    with session_scope(trained) as session:
        assert session.scalar(select(func.count()).select_from(tables.TrainedModel)) == 2


def test_a_rejected_training_is_not_done_again_unless_something_differs(
    trained: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(trained)
    monkeypatch.setattr(comparison, "WORST_RATIO", 0.0)
    retrain(trained)
    assert production(trained) == "first"
    again = retrain(trained)
    assert again.model_id is None
    assert "first@2 has learnt from the same 40 new results" in again.remark
    assert retrain(trained, seed=1).model_id is not None


def test_two_retrainings_of_a_line_are_one(trained: Engine) -> None:
    bring(trained)
    with session_scope(trained) as session:
        first = submit_retraining(session, "first")
        second = submit_retraining(session, "first")
    assert second.is_joined
    assert second.model_id == first.model_id


def test_the_champion_is_the_version_in_production_when_the_training_ends(
    trained: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(trained)
    retrain(trained)
    with session_scope(trained) as session:
        session.execute(
            update(tables.CalculationResult)
            .where(tables.CalculationResult.id == select(func.max(tables.CalculationResult.id)).scalar_subquery())
            .values(split="train")
        )
        n_old = session.scalar(select(func.count()).where(tables.ModelTrainingResult.model_id == 2))
        row = session.scalars(
            select(tables.ModelTrainingResult).where(tables.ModelTrainingResult.model_id == 2)
        ).first()
        assert n_old
        session.delete(row)  # as if that result were new
    with session_scope(trained) as session:
        found = submit_retraining(session, "first", settings=FEW, seed=3)
        assert found.champion == "first@2"

    def train_while_somebody_rolls_back(*arguments: object, **options: object) -> object:
        with session_scope(trained) as session:
            assert roll_back(session, "first") == ("first", "first@2")
        return train_ensemble(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("screening.learning.training.train_ensemble", train_while_somebody_rolls_back)
    assert found.model_id is not None
    work(trained, found.model_id)
    with session_scope(trained) as session:
        compared = comparison_of(session, found.model_id)
        assert compared is not None
        assert compared["champion"] == "first"


def test_a_retraining_goes_on_where_its_worker_died(trained: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(trained)
    monkeypatch.setattr(models, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(models, "PROGRESS_S", 0.0)
    epochs: list[int] = []
    report = models._ProgressWriter.__call__

    def die_after_two(writer: models._ProgressWriter, progress, make_checkpoint: Callable[[], bytes]) -> None:  # type: ignore[no-untyped-def]
        report(writer, progress, make_checkpoint)
        epochs.append(progress.epoch)
        if len(epochs) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(models._ProgressWriter, "__call__", die_after_two)
    with session_scope(trained) as session:
        model_id = submit_retraining(session, "first", settings=FEW).model_id
    assert model_id is not None
    with pytest.raises(KeyboardInterrupt):
        work(trained, model_id)
    with session_scope(trained) as session:
        session.execute(update(tables.TrainedModel).values(lease_until=func.now()).where(
            tables.TrainedModel.id == model_id))  # fmt: skip
    work(trained, model_id)
    assert epochs == [1, 2, 3, 4]
    with session_scope(trained) as session:
        assert comparison_of(session, model_id) is not None


def test_what_was_put_aside_since_is_left_out_and_the_checkpoint_with_it(
    trained: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(trained)
    with session_scope(trained) as session:
        model_id = submit_retraining(session, "first", settings=FEW).model_id
        assert model_id is not None
        model = session.get_one(tables.TrainedModel, model_id)
        model.checkpoint, model.snapshot_sha256 = b"of other rows", "another digest"
        ids = session.scalars(
            select(tables.ModelTrainingResult.result_id)
            .where(tables.ModelTrainingResult.model_id == model_id)
            .order_by(tables.ModelTrainingResult.result_id)
            .limit(3)
        ).all()
        session.add_all(tables.QuarantinedResult(result_id=i, reason="a test") for i in ids)
    seen: list[int] = []

    def count_rows(rows, *arguments: object, **options: object) -> object:  # type: ignore[no-untyped-def]
        seen.append(len(rows.configurations))
        return train_ensemble(rows, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("screening.learning.training.train_ensemble", count_rows)
    work(trained, model_id)
    with session_scope(trained) as session:
        n_rows = session.scalar(select(func.count()).where(tables.ModelTrainingResult.model_id == model_id))
    assert seen == [n_rows]
    with session_scope(trained) as session:
        left = select(tables.ModelTrainingResult.result_id).where(tables.ModelTrainingResult.model_id == model_id)
        assert set(session.scalars(left)).isdisjoint(ids)


def test_rolling_back_is_another_promotion(trained: Engine) -> None:
    bring(trained)
    retrain(trained)
    with session_scope(trained) as session:
        assert roll_back(session, "first") == ("first", "first@2")
    assert production(trained) == "first"
    with session_scope(trained) as session:
        with pytest.raises(InputError, match="no version older than first was in production"):
            roll_back(session, "first")
        with pytest.raises(UnknownNameError, match="first has no version 7; it has 1, 2"):
            roll_back(session, "first", 7)
        assert roll_back(session, "first", 2) == ("first@2", "first")
        with pytest.raises(InputError, match="first@2 is in production of first already"):
            roll_back(session, "first@2", 2)
        assert [(row["model"], row["replaced"]) for row in promotions_of(session, 1)] == [
            ("first", None), ("first@2", "first"), ("first", "first@2"), ("first@2", "first"),
        ]  # fmt: skip


def test_a_line_without_a_finished_version_is_not_retrained(session: Session) -> None:
    add_results(session, 120)
    submit_training(session, TrainingRequest(LEVEL, name="first"))
    with pytest.raises(InputError, match="first has no finished version to start from: first is waiting; wait"):
        submit_retraining(session)


def test_of_several_lines_one_is_named(session: Session) -> None:
    add_results(session, 120)
    for name in ("first", "second"):
        submit_training(session, TrainingRequest(LEVEL, name=name))
    with pytest.raises(InputError, match="several models; name one of first, second"):
        submit_retraining(session)


def test_what_a_parent_out_of_a_file_has_learnt_is_left_out_when_its_child_is_evaluated(
    clean_engine: Engine, tmp_path: Path
) -> None:
    """The weights of the child hold no fingerprints, nor does the database hold the rows of the parent: its file does.

    The parent has learnt from `released`, the child from `here`; the rows of both are in the data, and `unseen`.
    """
    triples = [((0, metal), (16, "v_S"), (site, "Se_S")) for metal in ("v_Mo", "W_Mo") for site in range(17, 48)]
    rows = tuple(
        Row(f"{part} {i}", defects, 8.0 + 0.01 * i, split="validation" if part == "unseen" else "train")
        for n, part in enumerate(("released", "here", "unseen"))
        for i, defects in enumerate(triples[n::3])
    )
    data = read_labelled(write_subset(tmp_path / "all" / "low_density_defects" / "MoS2", rows))
    is_released = np.array([name.startswith("released") for name in data.names])
    settings = TrainingSettings(n_members=3, width=16, n_blocks=1, epochs=2, drawn_rows=0, device="cpu")
    of_rows = data.rows(~is_released)
    parent = train_ensemble(of_rows, settings, seed=0, on_progress=lambda progress, checkpoint: None)
    carried = replace(parent, extra={LEARNT: np.unique(fingerprints_of_rows(data.chosen(is_released)))})
    card = replace(small_model().card, name="released", level=LEVEL_2DMD, properties=parent.properties)
    of_database = tuple(row for row in rows if not row.name.startswith("released"))
    import_2dmd(clean_engine, write_subset(tmp_path / "low_density_defects" / "MoS2", of_database))
    with session_scope(clean_engine) as session:
        add_model_file(session, unpack_model(with_card(ensemble_to_bytes(carried), card), "released"))
        found = submit_retraining(session, "released", settings=FEW)
        assert found.model_id is not None
    work(clean_engine, found.model_id)
    child = find_model(clean_engine, "released@2")
    assert LEARNT not in child.ensemble.extra
    evaluation = evaluate_model(child, data, device="cpu")
    assert {name.split()[0] for name in evaluation.rows.names} == {"unseen"}
    assert evaluation.n_left_out == data.n_rows - evaluation.rows.n_rows
