"""A loop goes through its stages by rows, once each, whatever happens to whoever advances it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.design_query import DesignQuery
from screening.database.loops import list_loops, loops_to_advance, steps_of
from screening.database.session import session_scope
from screening.defects.defect_types import DefectType
from screening.errors import InputError, UnknownNameError
from screening.pipeline import loop_stages
from screening.pipeline.dispatch import claimable_kinds
from screening.pipeline.loops import LoopRequest, pause, ranked_first, resume, start_loop, stop
from tests.pipeline.made_loops import (
    QUERY,
    add_scored,
    calculate_round,
    end_training,
    make_world,
    other_order,
    start,
    step,
)


@pytest.fixture
def world(clean_engine: Engine) -> Engine:
    make_world(clean_engine)
    return clean_engine


@pytest.fixture
def builtin_world(clean_engine: Engine) -> Engine:
    make_world(clean_engine, as_builtin=True)
    return clean_engine


def loop_of(engine: Engine) -> dict[str, Any]:
    with session_scope(engine) as session:
        (found,) = list_loops(session)
        return found


def everything(engine: Engine) -> dict[str, str]:
    """All rows of the tables that a loop writes into, as text."""
    names = ("loops", "loop_steps", "rankings", "rounds", "calculations", "trained_models", "campaigns", "chunks")
    with session_scope(engine) as session:
        return {n: str(session.execute(text(f"SELECT * FROM {n} ORDER BY id")).all()) for n in names}


def waits(engine: Engine, loop_id: int) -> bool:
    """Whether there is nothing to do for a loop: beat says so, and a step changes nothing."""
    with session_scope(engine) as session:
        is_said = loop_id not in loops_to_advance(session) and "advance" not in claimable_kinds(session)
    before = everything(engine)
    return is_said and step(engine, loop_id) is None and everything(engine) == before


def states(engine: Engine) -> list[str]:
    with session_scope(engine) as session:
        return list(
            session.scalars(
                select(tables.Calculation.state)
                .where(tables.Calculation.round_id.is_not(None))
                .order_by(tables.Calculation.id)
            )
        )


def test_a_loop_ranks_proposes_calculates_learns_and_scores_again(world: Engine) -> None:
    loop_id = start(world)
    with session_scope(world) as session:
        assert claimable_kinds(session) == ["advance"]
    assert [step(world, loop_id) for _ in range(2)] == ["rank", "propose"]
    assert states(world) == ["proposed"] * 3
    assert waits(world, loop_id)
    calculate_round(world, loop_id)
    assert [step(world, loop_id) for _ in range(2)] == ["calculate", "learn"]
    assert waits(world, loop_id)
    end_training(world, shift=other_order)
    assert [step(world, loop_id) for _ in range(3)] == ["learn", "rescore", "rank"]
    with session_scope(world) as session:
        steps = steps_of(session, loop_id)
        assert [s["stage"] for s in steps] == [
            "rank", "propose", "calculate", "learn", "rescore", "rank", "propose",
        ]  # fmt: skip
        assert [s["number"] for s in steps] == list(range(1, 8))
        assert all(s["finished_at"] is not None for s in steps[:-1])
        first, last = steps[0], steps[5]
        assert (first["model"], first["n_calculated"], first["n_changed"]) == ("first", 0, None)
        assert (last["model"], last["n_calculated"], last["n_changed"]) == ("first@2", 3, 5)
        rankings = session.scalars(select(tables.Ranking).order_by(tables.Ranking.id)).all()
        assert [r.id for r in rankings] == [first["ranking_id"], last["ranking_id"]]
        assert {r.design_id for r in rankings} == {session.scalars(select(tables.Design.id)).one()}


def test_the_best_value_is_the_best_calculated_one(world: Engine) -> None:
    loop_id = start(world)
    assert step(world, loop_id) == "rank"
    with session_scope(world) as session:
        lowest = session.scalar(select(func.min(tables.CalculationResult.formation_energy_per_site)))
        assert steps_of(session, loop_id)[0]["best"] == lowest


@pytest.mark.parametrize("n_steps", range(7))
def test_who_dies_inside_a_step_has_done_nothing(world: Engine, monkeypatch: pytest.MonkeyPatch, n_steps: int) -> None:
    loop_id = start(world)
    for _ in range(n_steps):
        bring_on(world, loop_id)
        assert step(world, loop_id) is not None
    bring_on(world, loop_id)
    before = everything(world)

    class KilledError(Exception):
        pass

    def die(*arguments: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("sqlalchemy.orm.Session.commit", die)
        with pytest.raises(KilledError):
            step(world, loop_id)
    assert everything(world) == before
    assert step(world, loop_id) is not None


def bring_on(engine: Engine, loop_id: int) -> None:
    """End what a loop waits for."""
    loop = loop_of(engine)
    if loop["stage"] == "calculate" and loop["under_way"]:
        calculate_round(engine, loop_id)
    with session_scope(engine) as session:
        trains = session.scalar(select(tables.TrainedModel.id).where(tables.TrainedModel.state == "waiting"))
    if trains is not None:
        end_training(engine)


def test_results_that_are_put_aside_are_said(world: Engine) -> None:
    loop_id = start(world)
    for _ in range(2):
        step(world, loop_id)
    first, *_ = calculate_round(world, loop_id)
    for _ in range(2):
        step(world, loop_id)
    with session_scope(world) as session:
        result = session.scalars(
            select(tables.CalculationResult).where(tables.CalculationResult.calculation_id == first)
        ).one()
        session.add(tables.QuarantinedResult(result_id=result.id, model_id=1, reason="a test"))
    end_training(world)
    found = loop_stages.advance(world, loop_id)
    assert found is not None
    assert found.did.endswith("; put aside, not learnt: 1 of the round (`screening results quarantine`)")


def test_two_workers_do_not_advance_one_loop_at_once(world: Engine) -> None:
    loop_id = start(world)
    with session_scope(world) as session:
        session.get_one(tables.Loop, loop_id, with_for_update=True)
        assert step(world, loop_id) is None
    assert step(world, loop_id) == "rank"


def test_it_ends_when_the_best_have_not_changed_for_so_many_rankings(world: Engine) -> None:
    loop_id = start(world, patience=2)
    for _ in range(30):
        bring_on(world, loop_id)
        if step(world, loop_id) is None:
            break
    loop = loop_of(world)
    assert (loop["state"], loop["unchanged"]) == ("finished", 2)
    assert loop["remark"] == "the best 5 have not changed for 2 rankings"
    with session_scope(world) as session:
        models = [s["model"] for s in steps_of(session, loop_id) if s["stage"] == "rank"]
    assert models == ["first", "first@2", "first@3"]
    assert waits(world, loop_id)


def test_a_ranking_by_the_same_version_says_nothing(world: Engine) -> None:
    loop_id = start(world, patience=1)
    for expected in ("rank", "propose", "calculate", "learn", "learn", "rescore", "rank"):
        if expected == "learn" and loop_of(world)["stage"] == "learn":
            with session_scope(world) as session:
                is_waiting = session.scalar(select(func.count()).where(tables.TrainedModel.state == "waiting"))
            if is_waiting:
                end_training(world, promoted=False)
        bring_on(world, loop_id) if expected == "calculate" else None
        assert step(world, loop_id) == expected
    with session_scope(world) as session:
        last = steps_of(session, loop_id)[-2]
    assert (last["stage"], last["model"], last["n_changed"]) == ("rank", "first", None)
    assert loop_of(world)["state"] == "running"


@pytest.mark.parametrize("n_left", [2, 0])
def test_a_list_of_the_best_that_gets_shorter_has_changed(world: Engine, n_left: int) -> None:
    loop_id = start(world, patience=1)
    for _ in range(4):
        bring_on(world, loop_id)
        step(world, loop_id)
    end_training(world)
    assert [step(world, loop_id) for _ in range(2)] == ["learn", "rescore"]
    with session_scope(world) as session:  # as if fewer satisfied the query from now on
        design = session.scalars(select(tables.Design)).one()
        energies = session.scalars(
            select(tables.RankingValue.mean)
            .where(tables.RankingValue.property == "formation_energy_per_site")
            .order_by(tables.RankingValue.rank)
        ).all()
        assert len(energies) == 5
        at_most = (energies[n_left - 1] + energies[n_left]) / 2 if n_left else energies[0] - 1.0
        window = {"property": "formation_energy_per_site", "high": at_most}
        design.query = QUERY.model_validate(QUERY.stored() | {"windows": [window]}).stored()
    assert step(world, loop_id) == "rank"
    with session_scope(world) as session:
        last = [found for found in steps_of(session, loop_id) if found["stage"] == "rank"][-1]
        assert last["n_changed"] == 5 - n_left
    assert loop_of(world)["state"] == "running"


def test_it_ends_after_so_many_calculations(world: Engine) -> None:
    loop_id = start(world, batch=3, max_calculations=4, patience=9)
    for _ in range(30):
        bring_on(world, loop_id)
        if step(world, loop_id) is None:
            break
    loop = loop_of(world)
    assert (loop["state"], loop["remark"], loop["calculations"]) == ("finished", "4 calculations were made", 4)
    with session_scope(world) as session:
        sizes = session.scalars(
            select(func.count()).where(tables.Calculation.round_id.is_not(None)).group_by(tables.Calculation.round_id)
            .order_by(tables.Calculation.round_id)
        ).all()  # fmt: skip
    assert list(sizes) == [3, 1]


def test_it_ends_when_nothing_is_left_to_calculate(world: Engine) -> None:
    loop_id = start(world, batch=1000, max_calculations=1000, patience=9)
    for _ in range(30):
        bring_on(world, loop_id)
        if step(world, loop_id) is None:
            break
    loop = loop_of(world)
    assert loop["state"] == "finished"
    assert loop["remark"].startswith("nothing is left to calculate")
    with session_scope(world) as session:
        last = steps_of(session, loop_id)[-1]
    assert (last["stage"], last["finished_at"] is not None) == ("propose", True)
    assert last["remark"] == "nothing is left to calculate"


def test_a_round_of_which_nothing_finished_ends_it_with_the_reason_until_it_is_resumed(world: Engine) -> None:
    loop_id = start(world)
    for _ in range(2):
        step(world, loop_id)
    calculate_round(world, loop_id, failing=True)
    assert step(world, loop_id) == "calculate"
    loop = loop_of(world)
    assert loop["state"] == "failed"
    assert "none of the 3 calculations" in loop["error"]
    assert "no convergence" in loop["error"]
    assert waits(world, loop_id)
    with session_scope(world) as session:
        resume(session, "loop")
    calculate_round(world, loop_id)
    assert step(world, loop_id) == "calculate"
    assert loop_of(world)["state"] == "running"


def test_a_training_that_failed_ends_it_with_the_reason_and_is_tried_again(world: Engine) -> None:
    loop_id = start(world)
    for _ in range(4):
        bring_on(world, loop_id)
        step(world, loop_id)
    with session_scope(world) as session:
        waiting = tables.TrainedModel.state == "waiting"
        session.execute(update(tables.TrainedModel).where(waiting).values(state="failed", error="all put aside"))
    assert step(world, loop_id) == "learn"
    loop = loop_of(world)
    assert (loop["state"], "all put aside" in loop["error"]) == ("failed", True)
    with session_scope(world) as session:
        resume(session, None)
    assert step(world, loop_id) == "learn"
    end_training(world)
    assert [step(world, loop_id) for _ in range(3)] == ["learn", "rescore", "rank"]


def test_the_campaign_of_the_new_version_is_planned_started_and_waited_for(world: Engine) -> None:
    loop_id = start(world)
    for _ in range(4):
        bring_on(world, loop_id)
        step(world, loop_id)
    end_training(world, shift=None)
    assert [step(world, loop_id) for _ in range(2)] == ["learn", "rescore"]
    with session_scope(world) as session:
        campaign = session.scalars(select(tables.Campaign).order_by(tables.Campaign.id.desc()).limit(1)).one()
        assert (campaign.state, campaign.model_id) == ("running", 2)
        campaign_id = campaign.id
        assert set(session.scalars(select(tables.Chunk.state).where(tables.Chunk.campaign_id == campaign_id))) == {
            "waiting"
        }
    assert waits(world, loop_id)
    with session_scope(world) as session:
        pause(session, "loop")
        assert session.get_one(tables.Campaign, campaign_id).state == "paused"
    assert waits(world, loop_id)
    with session_scope(world) as session:
        resume(session, "loop")
        assert session.get_one(tables.Campaign, campaign_id).state == "running"
    with session_scope(world) as session:
        stop(session, "loop")
        assert session.get_one(tables.Campaign, campaign_id).state == "cancelled"
    assert loop_of(world)["state"] == "stopped"


def test_a_loop_keeps_to_the_search_space_of_its_first_ranking(world: Engine) -> None:
    loop_id = start(world)
    for _ in range(4):
        bring_on(world, loop_id)
        step(world, loop_id)
    end_training(world, shift=None)
    assert step(world, loop_id) == "learn"
    with session_scope(world) as session:
        add_scored(session, session.get_one(tables.TrainedModel, 2), types="v_S,Se_S,W_Mo")
    assert step(world, loop_id) == "rescore"
    assert loop_of(world)["stage"] == "rescore"
    with session_scope(world) as session:
        started = session.scalars(select(tables.Campaign).where(tables.Campaign.state == "running")).one()
        session.delete(started)
        session.flush()
        same = add_scored(session, session.get_one(tables.TrainedModel, 2)).id
    assert [step(world, loop_id) for _ in range(2)] == ["rescore", "rank"]
    with session_scope(world) as session:
        rankings = session.scalars(select(tables.Ranking).order_by(tables.Ranking.id)).all()
        assert rankings[1].campaign_id == same
        assert rankings[0].search_space_id == rankings[1].search_space_id


def test_the_builtin_calculator_gets_the_round_and_a_pause_takes_it_back(builtin_world: Engine) -> None:
    loop_id = start(builtin_world, calculator="builtin")
    found = [loop_stages.advance(builtin_world, loop_id) for _ in range(2)]
    assert found[1] is not None
    assert found[1].kinds == ("calculate",)
    assert states(builtin_world) == ["waiting"] * 3
    with session_scope(builtin_world) as session:
        pause(session, "loop")
    assert states(builtin_world) == ["proposed"] * 3
    assert waits(builtin_world, loop_id)
    with session_scope(builtin_world) as session:
        resume(session, "loop")
    assert states(builtin_world) == ["waiting"] * 3
    with session_scope(builtin_world) as session:
        stop(session, "loop")
    assert states(builtin_world) == ["proposed"] * 3


def test_a_stop_drops_the_training(world: Engine) -> None:
    loop_id = start(world)
    for _ in range(4):
        bring_on(world, loop_id)
        step(world, loop_id)
    with session_scope(world) as session:
        stop(session, "loop")
        model = session.scalars(select(tables.TrainedModel).where(tables.TrainedModel.id == 2)).one()
        assert (model.state, model.error) == ("failed", "loop loop was stopped")
        with pytest.raises(InputError, match="is stopped already"):
            stop(session, "loop")
    with session_scope(world) as session:
        resume(session, "loop")
        with pytest.raises(InputError, match="runs; there is nothing to resume"):
            resume(session, "loop")
    assert step(world, loop_id) == "learn"
    with session_scope(world) as session:
        names = session.scalars(select(tables.TrainedModel.name).where(tables.TrainedModel.state == "waiting")).all()
    assert names == ["first@3"]


def test_old_campaigns_are_deleted_but_for_the_first_and_the_last(world: Engine) -> None:
    loop_id = start(world, patience=9, max_calculations=12)
    for _ in range(40):
        bring_on(world, loop_id)
        if step(world, loop_id) is None:
            break
    with session_scope(world) as session:
        left = session.scalars(
            select(tables.TrainedModel.version)
            .join(tables.Campaign, tables.Campaign.model_id == tables.TrainedModel.id)
            .order_by(tables.TrainedModel.version)
        ).all()
        n_rankings = session.scalar(select(func.count()).select_from(tables.Ranking))
    assert list(left) == [1, 4, 5]
    assert n_rankings == 5


def test_a_loop_begins_with_a_campaign_and_keeps_to_it(world: Engine) -> None:
    with session_scope(world) as session:
        model = session.get_one(tables.TrainedModel, 1)
        wider = add_scored(session, model, types="v_S,Se_S,W_Mo")
        row = session.scalars(select(tables.Campaign).where(tables.Campaign.id != wider.id)).one()
        chosen, space_id = row.name, row.search_space_id
        assert ranked_by(session, None) == wider.name  # the larger one, where nothing is said
        assert ranked_by(session, chosen) == chosen
    loop_id = start(world, campaign=chosen)
    assert [step(world, loop_id) for _ in range(2)] == ["rank", "propose"]
    with session_scope(world) as session:
        code = DefectType.parse("W_Mo").code
        proposed = session.scalars(
            select(tables.Configuration.defect_types)
            .join(tables.Calculation, tables.Calculation.configuration_id == tables.Configuration.id)
            .where(tables.Calculation.round_id.is_not(None))
        ).all()
        assert len(proposed) == 3
        assert not [types for types in proposed if code in types]
    calculate_round(world, loop_id)
    assert [step(world, loop_id) for _ in range(2)] == ["calculate", "learn"]
    end_training(world, shift=other_order)
    assert [step(world, loop_id) for _ in range(3)] == ["learn", "rescore", "rank"]
    with session_scope(world) as session:
        assert set(session.scalars(select(tables.Ranking.search_space_id))) == {space_id}
        second = LoopRequest("second", QUERY, "first", calculator="external", campaign=chosen)
        with pytest.raises(InputError, match=r"was not scored by model first@2"):
            start_loop(session, second)


def ranked_by(session: Session, campaign: str | None) -> str:
    """The campaign that a loop would begin with; nothing of it stays."""
    with session.begin_nested() as savepoint:
        loop = start_loop(session, LoopRequest("tried", QUERY, "first", calculator="external", campaign=campaign))
        name = ranked_first(session, loop).campaign
        savepoint.rollback()
    return name


def test_what_makes_no_sense_is_refused_before_anything_is_stored(world: Engine) -> None:
    def refused(match: str, line: str = "first", **changes: Any) -> None:
        with session_scope(world) as session, pytest.raises(InputError, match=match):
            start_loop(session, LoopRequest(**({"name": "x", "query": QUERY, "line": line} | changes)))

    refused("batch is 0; expected 1 or more", batch=0)
    refused("max-calculations is -1", max_calculations=-1)
    refused("the built-in calculator does not compute")
    refused("expected builtin or external", calculator="elsewhere")
    refused("no model is called 'nobody'", line="nobody")
    wide = QUERY.model_copy(update={"max_defects": 3})
    refused("has scored 1 to 2", query=wide, calculator="external")
    with session_scope(world) as session:
        assert session.scalar(select(func.count()).select_from(tables.Design)) == 0
        session.execute(update(tables.ModelLine).values(datasets=["formula/MoS2"]))
    refused("learns only from formula/MoS2", calculator="external")
    with session_scope(world) as session:
        session.execute(update(tables.ModelLine).values(datasets=[]))
    start(world)
    refused("a loop is called 'loop' already", name="loop", calculator="external")


def test_loops_are_found_by_name_or_when_there_is_one(world: Engine) -> None:
    with session_scope(world) as session, pytest.raises(UnknownNameError, match="there is no loop"):
        pause(session, None)
    start(world)
    with session_scope(world) as session:
        with pytest.raises(UnknownNameError, match=r"no loop is called 'x'; there are: loop \(running\)"):
            pause(session, "x")
        assert pause(session, None).name == "loop"


def test_designs_are_queries_with_defaults_left_out_or_not(world: Engine) -> None:
    start(world)
    with session_scope(world) as session:
        stored = session.scalars(select(tables.Design)).one()
        assert DesignQuery.model_validate(stored.query) == QUERY
        assert not stored.is_open
