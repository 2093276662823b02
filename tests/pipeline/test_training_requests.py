"""What is to be trained: the results of a version, its name, its line."""

from __future__ import annotations

import pytest
from sqlalchemy import any_, func, literal, select, update
from sqlalchemy.orm import Session

from screening.database import tables
from screening.errors import InputError, UnknownNameError
from screening.pipeline.models import progress
from screening.pipeline.training_requests import RETRAINING_EPOCHS, TrainingRequest, submit_training
from tests.synthetic_results import LEVEL, PROPERTIES, add_results


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
    assert [progress(session, i).name for i in ids] == ["mos2-formula-1", "mos2-formula-2"]


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
    assert session.get_one(tables.TrainedModel, retrained).settings == {"epochs": RETRAINING_EPOCHS}


def finish(session: Session, model_id: int) -> tables.TrainedModel:
    """Let a training have come to its end."""
    model = session.get_one(tables.TrainedModel, model_id)
    model.state, model.weights = "finished", b"w"
    session.flush()
    session.refresh(model)
    return model


def test_a_training_begins_a_line_of_its_name(session: Session) -> None:
    add_results(session, 120)
    model = session.get_one(
        tables.TrainedModel, submit_training(session, TrainingRequest(LEVEL, name="first", hosts=("MoS2",)))
    )
    line = session.get_one(tables.ModelLine, model.line_id)
    assert (line.name, line.hosts, line.datasets, model.version) == ("first", ["MoS2"], [], 1)


def test_a_training_from_a_model_is_its_next_version_and_learns_from_the_same(session: Session) -> None:
    add_results(session, 120)
    finish(session, submit_training(session, TrainingRequest(LEVEL, name="first", datasets=("formula/MoS2",))))
    other = select(tables.CalculationResult.id).order_by(tables.CalculationResult.id).limit(8)
    session.execute(
        update(tables.CalculationResult).where(tables.CalculationResult.id.in_(other)).values(dataset="another")
    )
    second = finish(session, submit_training(session, TrainingRequest(LEVEL, name="second", parent="first")))
    third = session.get_one(tables.TrainedModel, submit_training(session, TrainingRequest(LEVEL, parent="second")))
    assert [(m.name, m.version, m.line_id) for m in (second, third)] == [
        ("second", 2, second.line_id), ("first@3", 3, second.line_id),
    ]  # fmt: skip
    assert set(roles(session, second.id)).isdisjoint(session.scalars(other))


def test_a_training_from_a_model_on_other_results_begins_a_line(session: Session) -> None:
    add_results(session, 120)
    first = finish(session, submit_training(session, TrainingRequest(LEVEL, name="first")))
    request = TrainingRequest(LEVEL, name="second", parent="first", hosts=("MoS2",))
    second = session.get_one(tables.TrainedModel, submit_training(session, request))
    assert second.line_id != first.line_id
    assert (second.version, second.parent_id) == (1, first.id)


def test_a_line_is_trained_once_at_a_time(session: Session) -> None:
    add_results(session, 120)
    finish(session, submit_training(session, TrainingRequest(LEVEL, name="first")))
    submit_training(session, TrainingRequest(LEVEL, parent="first"))
    with pytest.raises(InputError, match="first is trained already: first@2 is waiting"):
        submit_training(session, TrainingRequest(LEVEL, parent="first", name="third"))


def test_a_failed_version_gives_its_name_and_number_to_the_next_one(session: Session) -> None:
    add_results(session, 120)
    finish(session, submit_training(session, TrainingRequest(LEVEL, name="first")))
    failed = session.get_one(
        tables.TrainedModel, submit_training(session, TrainingRequest(LEVEL, name="second", parent="first"))
    )
    failed.state, failed.error = "failed", "it diverged"
    session.flush()
    again = session.get_one(
        tables.TrainedModel, submit_training(session, TrainingRequest(LEVEL, name="second", parent="first"))
    )
    assert (again.name, again.version, again.state) == ("second", 2, "waiting")


@pytest.mark.parametrize("name", ["first", "second"])
def test_the_name_of_a_line_or_version_is_no_name_for_another_line(session: Session, name: str) -> None:
    add_results(session, 120)
    finish(session, submit_training(session, TrainingRequest(LEVEL, name="first")))
    finish(session, submit_training(session, TrainingRequest(LEVEL, name="second", parent="first")))
    with pytest.raises(InputError, match=f"'{name}' already, and it is finished"):
        submit_training(session, TrainingRequest(LEVEL, name=name))


def test_the_mark_of_versions_is_not_for_names(session: Session) -> None:
    add_results(session, 120)
    with pytest.raises(InputError, match="@ stands before the number of a version"):
        submit_training(session, TrainingRequest(LEVEL, name="first@2"))


def test_what_goes_to_other_people_learns_from_every_result(session: Session) -> None:
    n_results = add_results(session, 120)
    found = roles(session, submit_training(session, TrainingRequest(LEVEL, learn_from_all=True)))
    assert len(found) == n_results
    assert set(found.values()) == {"train"}


def test_what_a_model_was_trained_on_is_not_validated_on_by_what_comes_of_it(session: Session) -> None:
    add_results(session, 120)
    first = finish(session, submit_training(session, TrainingRequest(LEVEL, name="first", learn_from_all=True)))
    learnt = set(roles(session, first.id))
    add_results(session, 200, level="another", seed=5)
    moved = session.scalars(select(tables.LevelOfTheory.id).where(tables.LevelOfTheory.name == LEVEL)).one()
    taken = select(tables.Calculation.configuration_id).where(tables.Calculation.level_id == moved)
    session.execute(
        update(tables.Calculation)
        .where(tables.Calculation.level_id != moved, tables.Calculation.configuration_id.not_in(taken))
        .values(level_id=moved)
        .execution_options(synchronize_session=False)
    )
    second = roles(session, submit_training(session, TrainingRequest(LEVEL, parent="first")))
    assert {role for identifier, role in second.items() if identifier in learnt} == {"train"}
    assert {role for identifier, role in second.items() if identifier not in learnt} == {"train", "validation"}


@pytest.mark.parametrize("state", ["open", "rejected"])
def test_what_is_put_aside_is_neither_learnt_nor_validated_on(session: Session, state: str) -> None:
    n_results = add_results(session, 120)
    aside = session.scalars(select(tables.CalculationResult.id).limit(8)).all()
    decided_at = None if state == "open" else func.now()
    session.add_all(
        tables.QuarantinedResult(result_id=i, reason="a test", state=state, decided_at=decided_at) for i in aside
    )
    session.flush()
    found = roles(session, submit_training(session, TrainingRequest(LEVEL)))
    assert len(found) == n_results - 8
    assert set(found).isdisjoint(aside)
    session.execute(update(tables.QuarantinedResult).values(state="released", decided_at=func.now()))
    assert len(roles(session, submit_training(session, TrainingRequest(LEVEL)))) == n_results
