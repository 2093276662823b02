"""Lines with a policy are retrained by themselves when something is due, once, and their campaigns follow."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from screening.database import models, tables
from screening.database.models import is_for_training
from screening.database.policies import Drift, drift_of, drifts, lines_to_tend
from screening.database.session import session_scope
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.errors import InputError
from screening.pipeline.dispatch import claimable_kinds
from screening.pipeline.hosts import add_supercell
from screening.pipeline.policies import OFF, Policy, Tended, set_policy, tend
from screening.pipeline.quarantine import list_quarantined
from screening.pipeline.training_rows import role_of
from tests.pipeline.made_campaigns import add_finished, add_trained, train_small
from tests.pipeline.trained_lines import bring
from tests.synthetic_results import add_results, mos2

NOTHING = Tended((), ())


def let(engine: Engine, policy: Policy) -> None:
    with session_scope(engine) as session:
        set_policy(session, "first", policy)


def end_training(engine: Engine, *, as_failed: bool = False) -> None:
    """Let the version that waits be rejected without being trained, or fail."""
    outcome = {"state": "failed", "error": "a test"} if as_failed else {"state": "finished", "weights": b"w"}
    with session_scope(engine) as session:
        waiting = tables.TrainedModel.state == "waiting"
        ended = session.execute(update(tables.TrainedModel).where(waiting).values(**outcome))
        assert ended.rowcount == 1  # type: ignore[attr-defined]


def n_versions(engine: Engine) -> int:
    with session_scope(engine) as session:
        return session.scalar(select(func.count()).select_from(tables.TrainedModel)) or 0


def test_a_line_is_retrained_once_there_are_so_many_new_results(trained: Engine) -> None:
    engine = trained
    let(engine, Policy(after_results=40))
    assert tend(engine, device="cpu") == NOTHING
    with session_scope(engine) as session:
        assert claimable_kinds(session) == []
    bring(engine)
    with session_scope(engine) as session:
        assert claimable_kinds(session) == ["tend"]
    assert tend(engine, device="cpu") == Tended(("first",), ())
    with session_scope(engine) as session:
        assert claimable_kinds(session) == ["train"]
    assert tend(engine, device="cpu") == NOTHING
    assert n_versions(engine) == 2


@pytest.mark.parametrize("as_failed", [False, True])
def test_what_was_rejected_or_failed_is_not_tried_again_by_itself(trained: Engine, as_failed: bool) -> None:
    engine = trained
    let(engine, Policy(after_results=1))
    bring(engine)
    assert tend(engine, device="cpu") == Tended(("first",), ())
    end_training(engine, as_failed=as_failed)
    assert tend(engine, device="cpu") == NOTHING
    with session_scope(engine) as session:
        assert lines_to_tend(session) == []


def test_too_few_new_results_or_none_for_training_are_no_reason(trained: Engine) -> None:
    engine = trained
    let(engine, Policy(after_results=41))
    bring(engine)
    assert tend(engine, device="cpu") == NOTHING
    let(engine, Policy(after_results=1))
    with session_scope(engine) as session:
        session.execute(update(tables.CalculationResult).values(split="validation"))
    assert tend(engine, device="cpu") == NOTHING


def test_new_results_wait_for_so_many_hours(trained: Engine) -> None:
    engine = trained
    let(engine, Policy(after_hours=2.0))
    later = bring(engine)
    assert tend(engine, device="cpu") == NOTHING
    with session_scope(engine) as session:
        session.execute(
            update(tables.CalculationResult)
            .where(tables.CalculationResult.id == later[0])
            .values(taken_in_at=func.now() - timedelta(hours=2.1))
        )
    assert tend(engine, device="cpu") == Tended(("first",), ())


def test_a_model_that_predicts_new_results_as_it_claims_does_not_drift(trained: Engine) -> None:
    engine = trained
    let(engine, Policy(when_drifting=True))
    later = bring(engine)
    with session_scope(engine) as session:
        assert claimable_kinds(session) == ["tend"]
    assert tend(engine, device="cpu") == NOTHING
    with session_scope(engine) as session:
        assert claimable_kinds(session) == []  # each new result is asked about once
        found = drift_of(session, session.scalars(select(tables.ModelLine)).one())
    assert {drift.property for drift in found} == {"formation_energy_per_site", "homo_lumo_gap_min"}
    assert {drift.n_values for drift in found} == {len(later)}


def test_a_model_that_is_outside_its_intervals_too_often_is_retrained(trained: Engine) -> None:
    """The gaps move by less than the quarantine calls wrong, but by more than the model claims."""
    engine = trained
    let(engine, Policy(when_drifting=True))
    bring(engine)
    assert tend(engine, device="cpu") == NOTHING
    said = tables.ResultPrediction
    with session_scope(engine) as session:
        for row in session.scalars(select(said).where(said.property == "homo_lumo_gap_min")):
            value = session.get_one(tables.CalculationResult, row.result_id)
            value.homo_lumo_gap_min = row.mean + 1.5 * row.half_width
    with session_scope(engine) as session:
        assert lines_to_tend(session) == [1]
    assert tend(engine, device="cpu") == Tended(("first",), ())


def test_results_are_put_aside_before_they_are_counted(trained: Engine) -> None:
    engine = trained
    let(engine, Policy(after_results=40, when_drifting=True))
    later = bring(engine)
    with session_scope(engine) as session:
        wrong = tables.CalculationResult.id.in_(later[:10])
        gap = 1000 * tables.CalculationResult.homo_lumo_gap_min
        session.execute(
            update(tables.CalculationResult).where(wrong).values(homo_lumo_gap_min=gap, dataset="another table")
        )
    assert tend(engine, device="cpu") == NOTHING
    with session_scope(engine) as session:
        assert [row["result"] for row in list_quarantined(session)] == sorted(later[:10])


def test_chance_is_no_drift() -> None:
    assert drifts([Drift("homo", 40, 5, 0.05), Drift("lumo", 10, 9, 1e-9)]) is None
    clear = Drift("homo", 40, 20, 1e-9)
    assert drifts([Drift("lumo", 40, 2, 0.6), clear]) is clear


def test_without_a_policy_nothing_is_done(trained: Engine) -> None:
    engine = trained
    let(engine, Policy(after_results=1))
    let(engine, OFF)
    bring(engine)
    assert tend(engine, device="cpu") == NOTHING


@pytest.mark.parametrize("policy", [Policy(after_results=0), Policy(after_hours=0.0), Policy(after_hours=float("inf"))])
def test_a_policy_that_makes_no_sense_is_refused(session: Session, policy: Policy) -> None:
    with pytest.raises(InputError, match="is asked for; expected"):
        set_policy(session, "first", policy)


def test_campaigns_follow_what_is_in_production(clean_engine: Engine) -> None:
    types = parse_defect_types("v_S,Se_S")
    weights = train_small()
    with session_scope(clean_engine) as session:
        stored = add_supercell(session, mos2())
        first = add_trained(session, stored, weights, types, name="first")
        space = SearchSpace(stored.supercell, types, 1)
        names = ("formation_energy", "formation_energy_per_site", "homo_lumo_gap_min")
        row = {f"{name}_{part}": 1.0 for name in names for part in ("mean", "std")}
        add_finished(session, stored, space, first, lambda number, configuration: row)
        second = tables.TrainedModel(
            name="first@2", line_id=first.line_id, parent_id=first.id, level_id=first.level_id,
            properties=first.properties, settings={}, seed=0, state="finished", weights=weights,
        )  # fmt: skip
        session.add(second)
        session.flush()
        set_policy(session, "first", Policy(rescore=True))
    assert tend(clean_engine, device="cpu") == NOTHING
    with session_scope(clean_engine) as session:
        models.promote(session, session.get_one(tables.TrainedModel, 2), reason="a test")
        assert lines_to_tend(session) == [1]
    assert tend(clean_engine, device="cpu") == Tended((), ("first-1@2",))
    assert tend(clean_engine, device="cpu") == NOTHING


def test_a_line_whose_policy_cannot_be_followed_does_not_hold_up_the_others(
    clean_engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    types = parse_defect_types("v_S,Se_S")
    weights = train_small()
    names = ("formation_energy", "formation_energy_per_site", "homo_lumo_gap_min")
    row = {f"{name}_{part}": 1.0 for name in names for part in ("mean", "std")}
    with session_scope(clean_engine) as session:
        stored = add_supercell(session, mos2())
        space = SearchSpace(stored.supercell, types, 1)
        for name in ("poor", "good"):
            first = add_trained(session, stored, weights, types, name=name)
            add_finished(session, stored, space, first, lambda number, configuration: row)
            second = tables.TrainedModel(
                name=f"{name}@2", line_id=first.line_id, parent_id=first.id, level_id=first.level_id,
                properties=first.properties, settings={}, seed=0, state="finished", weights=weights,
            )  # fmt: skip
            session.add(second)
            session.flush()
            set_policy(session, name, Policy(rescore=True))
            models.promote(session, second, reason="a test")
            if name == "poor":  # its campaign cannot be called as it should
                other = SearchSpace(stored.supercell, types[:1], 1)
                taken = add_finished(session, stored, other, second, lambda number, configuration: row)
                taken.name = "poor-1@2"
    assert tend(clean_engine, device="cpu") == Tended((), ("good-1@2",))
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("the policy of model poor cannot be followed: a campaign is called 'poor-1@2' already")


def test_the_role_in_sql_is_the_role(session: Session) -> None:
    add_results(session, 400)
    results = session.scalars(select(tables.CalculationResult).order_by(tables.CalculationResult.id)).all()
    results[0].split, results[1].split = "validation", "train"
    session.flush()
    trains = set(session.scalars(select(tables.CalculationResult.id).where(is_for_training())))
    assert trains == {row.id for row in results if role_of(row) == "train"}
    assert 0.05 < 1 - len(trains) / len(results) < 0.3
