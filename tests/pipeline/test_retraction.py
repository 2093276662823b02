"""After a result was withdrawn the next version is trained without it, and without what was learnt from it."""

from __future__ import annotations

from sqlalchemy import Engine, func, select

from screening.database import tables
from screening.database.policies import why_due
from screening.database.provenance import retracted_below
from screening.database.session import session_scope
from screening.pipeline.policies import Policy, set_policy, tend
from screening.pipeline.retraction import retract
from screening.pipeline.retraining import submit_retraining
from tests.pipeline.trained_lines import SMALL, bring, retrain, work


def learnt_by(engine: Engine, model_id: int) -> set[int]:
    learnt = tables.ModelTrainingResult
    with session_scope(engine) as session:
        return set(session.scalars(select(learnt.result_id).where(learnt.model_id == model_id)))


def test_the_next_version_starts_from_nothing_where_the_first_has_learnt_it(trained: Engine) -> None:
    with session_scope(trained) as session:
        wrong = session.scalars(select(tables.ModelTrainingResult.result_id).limit(1)).one()
        retract(session, wrong, "a test")
    with session_scope(trained) as session:
        found = submit_retraining(session, "first", settings={"epochs": 2})
        assert found.model_id is not None
        version = session.get_one(tables.TrainedModel, found.model_id)
        assert version.parent_id is None
        assert {name: version.settings[name] for name in ("n_members", "width", "n_blocks")} == {
            name: SMALL[name] for name in ("n_members", "width", "n_blocks")
        }
    assert learnt_by(trained, found.model_id) == learnt_by(trained, 1) - {wrong}
    work(trained, found.model_id)
    with session_scope(trained) as session:
        version = session.get_one(tables.TrainedModel, found.model_id)
        assert version.state == "finished"
        assert retracted_below(session, version.id) == []
        assert retracted_below(session, 1) == [wrong]
    with session_scope(trained) as session:  # rejected or not, the same is not done again
        again = submit_retraining(session, "first", settings={"epochs": 2})
    assert again.model_id is None


def test_the_next_version_starts_from_the_newest_that_does_not_rest_on_it(trained: Engine) -> None:
    later = bring(trained)
    assert retrain(trained).model_id == 2
    with session_scope(trained) as session:
        is_learnt = tables.ModelTrainingResult.role == "train"
        wrong = session.scalars(
            select(tables.ModelTrainingResult.result_id).where(
                tables.ModelTrainingResult.result_id.in_(later), is_learnt
            ).limit(1)
        ).one()  # fmt: skip
        retract(session, wrong, "a test")
    with session_scope(trained) as session:
        found = submit_retraining(session, "first")
        assert found.model_id is not None
        assert session.get_one(tables.TrainedModel, found.model_id).parent_id == 1


def test_a_policy_retrains_a_version_that_rests_on_a_withdrawn_result_once(trained: Engine) -> None:
    with session_scope(trained) as session:
        line = set_policy(session, "first", Policy(after_results=1000))
        wrong = session.scalars(select(tables.ModelTrainingResult.result_id).limit(1)).one()
        assert why_due(session, line) is None
        retract(session, wrong, "a test")
    with session_scope(trained) as session:
        line = session.scalars(select(tables.ModelLine)).one()
        assert why_due(session, line) == f"first rests on retracted results: {wrong}"
    assert tend(trained, device="cpu").trainings == ("first",)
    with session_scope(trained) as session:
        waiting = session.get_one(tables.TrainedModel, 2)
        waiting.state, waiting.error = "failed", "a test"
    assert tend(trained, device="cpu").trainings == ()
    with session_scope(trained) as session:  # another result has come, which may be what the training lacked
        session.get_one(tables.CalculationResult, min(learnt_by(trained, 1) - {wrong})).taken_in_at = func.now()
    assert tend(trained, device="cpu").trainings == ("first",)
    with session_scope(trained) as session:
        waiting = session.get_one(tables.TrainedModel, 3)
        waiting.state, waiting.weights = "finished", b"rejected"
        session.get_one(tables.CalculationResult, min(learnt_by(trained, 1) - {wrong})).taken_in_at = func.now()
    assert tend(trained, device="cpu").trainings == ()
