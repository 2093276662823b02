"""Loops, open designs and provenance by their commands, as a person meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from screening.database import models, tables
from screening.database.session import session_scope
from screening.pipeline.designs import run_design_query
from screening.pipeline.rankings import store_ranking
from tests.pipeline.made_loops import QUERY, calculate_round, make_world, step

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def screening(run_here: Run, clean_engine: Engine) -> Run:
    """The command `screening` on a made model with its campaign; its exit code, output and errors."""
    make_world(clean_engine)
    return run_here


def succeed(found: tuple[int, str, str]) -> str:
    code, output, errors = found
    assert code == 0, errors
    return output


def test_a_loop_is_started_shown_paused_resumed_and_stopped(screening: Run, clean_engine: Engine) -> None:
    assert "there is no loop" in succeed(screening("loop", "status"))
    with session_scope(clean_engine) as session:
        campaign = session.scalars(select(tables.Campaign.name)).one()
    options = ("--model", "first", "--campaign", campaign, "--batch", "3", "--top", "5", "--external")
    said = succeed(screening("loop", "start", "wanted", *options))
    assert "loop wanted runs" in said
    with session_scope(clean_engine) as session:
        n = session.scalar(select(func.count()).select_from(tables.Candidate))
    assert f"campaign {campaign}, {n} candidates (1 to 2 of v_S, Se_S)" in said
    for _ in range(2):
        step(clean_engine, 1)
    assert "calculate (3 of round 1 open)" in succeed(screening("loop", "status"))
    assert "is paused at stage calculate" in succeed(screening("loop", "pause", "wanted"))
    shown = json.loads(succeed(screening("loop", "status", "wanted", "--json")))
    assert [loop["state"] for loop in shown["loops"]] == ["paused"]
    assert [found["stage"] for found in shown["steps"]] == ["rank", "propose", "calculate"]
    code, _, errors = screening("loop", "pause", "another")
    assert (code, "no loop is called 'another'; there are: wanted (paused)" in errors) == (1, True)
    assert "is running at stage calculate" in succeed(screening("loop", "resume"))
    calculate_round(clean_engine, 1)
    step(clean_engine, 1)
    steps = succeed(screening("loop", "status", "wanted"))
    assert "3 finished, 0 failed" in steps
    assert "is stopped at stage learn" in succeed(screening("loop", "stop", "wanted"))
    loops = json.loads(screening("status", "--json")[1])["loops"]
    assert [(loop["loop"], loop["state"]) for loop in loops] == [("wanted", "stopped")]


def test_what_a_loop_cannot_do_is_said(screening: Run) -> None:
    code, _, errors = screening("loop", "start", "x", "--model", "first", "--host", "MoS2")
    assert (code, "the built-in calculator does not compute; start the loop with --external" in errors) == (1, True)
    code, _, errors = screening("loop", "report")
    assert (code, "there is no loop; start one" in errors) == (1, True)


def test_a_saved_ranking_is_followed(screening: Run, clean_engine: Engine) -> None:
    assert "no design is followed" in succeed(screening("follow", "list"))
    with session_scope(clean_engine) as session:
        ranking = store_ranking(session, QUERY, run_design_query(session, QUERY, model_name="first"))
    assert "ranking 1 is followed" in succeed(screening("follow", "add", "wanted", "--ranking", str(ranking)))
    (row,) = json.loads(succeed(screening("follow", "list", "--json")))["designs"]
    assert (row["design"], row["is_open"], row["rankings"]) == ("wanted", True, 1)
    assert "wanted" in succeed(screening("follow", "list"))
    assert "is ranked no more" in succeed(screening("follow", "end", "wanted"))
    assert json.loads(screening("status", "--json")[1])["closed_designs"] == {}
    with session_scope(clean_engine) as session:  # a version that knows less takes over
        first = session.scalars(select(tables.TrainedModel)).one()
        second = tables.TrainedModel(
            name="first@2", line_id=first.line_id, parent_id=first.id, level_id=first.level_id, properties=["homo"],
            settings={}, seed=0, state="finished", weights=b"second",
        )  # fmt: skip
        session.add(second)
        session.flush()
        models.promote(session, second, reason="a test")
        session.get_one(tables.Ranking, ranking).campaign_id = None
    reason = "the campaign of ranking 1 was deleted, so that design wanted cannot be scored again"
    assert reason in succeed(screening("follow", "list"))
    assert f"design wanted is closed, it cannot be ranked any more: {reason}" in screening("status")[1]


def test_a_prediction_is_explained_and_a_result_withdrawn(screening: Run, clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        store_ranking(session, QUERY, run_design_query(session, QUERY, model_name="first"))
        campaign = session.scalars(select(tables.Campaign.name)).one()
        candidate = session.scalars(select(tables.Candidate.id).order_by(tables.Candidate.id).limit(1)).one()
        learnt = tables.ModelTrainingResult
        result = session.scalars(select(learnt.result_id).where(learnt.role == "train").limit(1)).one()
    said = succeed(screening("why", f"{campaign}:{candidate}"))
    assert "predicted by first at formula" in said
    assert "most alike of the" in said
    assert succeed(screening("why", "1", "--ranking", "1")).startswith("rank 1 of ranking 1: ")
    found = json.loads(succeed(screening("affected", str(result), "--json")))
    assert [model["model"] for model in found["models"]] == ["first"]
    assert "campaign" in succeed(screening("affected", str(result)))
    said = succeed(screening("results", "retract", str(result), "--reason", "wrong cell"))
    assert f"result {result} is withdrawn: wrong cell" in said
    assert "`screening retrain first` trains a version without it" in said
    code, _, errors = screening("results", "retract", str(result), "--reason", "again")
    assert (code, "was withdrawn on" in errors) == (1, True)
    _, _, errors = screening("design", "--host", "MoS2", "--supercell", "4x4")
    assert f"first rests on a retracted result ({result})" in errors
    assert f"first rests on retracted results: {result}" in succeed(screening("model", "history", "first"))
    code, _, errors = screening("why", "nothing:here")
    assert (code, "write CAMPAIGN:ID" in errors) == (1, True)


def test_a_loop_that_has_not_ranked_has_no_report(screening: Run, tmp_path: Path) -> None:
    options = ("--model", "first", "--host", "MoS2", "--supercell", "4x4", "--external")
    succeed(screening("loop", "start", "wanted", *options))
    code, _, errors = screening("loop", "report", "--output", str(tmp_path))
    assert (code, "has not ranked anything yet" in errors) == (1, True)
