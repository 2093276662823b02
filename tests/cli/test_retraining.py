"""The life of a model by its commands: retrained, compared, rolled back, results put aside and released, a policy."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, update

from screening.database import leases, tables
from screening.database.session import session_scope
from screening.pipeline.models import train_unit
from screening.pipeline.training_requests import TrainingRequest, submit_training
from tests.pipeline.trained_lines import SMALL, bring, hold_back, work
from tests.synthetic_results import LEVEL, add_results

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def screening(run_here: Run, clean_engine: Engine) -> Run:
    """The command `screening`, in this process; its exit code, output and errors."""
    with session_scope(clean_engine) as session:
        add_results(session, 300, max_defects=3)
        hold_back(session, 20)
        model_id = submit_training(session, TrainingRequest(LEVEL, name="first", settings=SMALL))
    work(clean_engine, model_id)
    return run_here


def with_worker(engine: Engine, run: Callable[[], Any]) -> Any:
    """What a command returns while a worker in a thread trains what waits."""
    is_over = threading.Event()

    def train() -> None:
        while not is_over.wait(0.1):
            owner = leases.new_owner()
            with session_scope(engine) as session:
                model_id = leases.claim_next(session, tables.TrainedModel, owner)
            if model_id is not None:
                train_unit(engine, model_id, owner, device="cpu")

    thread = threading.Thread(target=train)
    thread.start()
    try:
        return run()
    finally:
        is_over.set()
        thread.join()


def test_a_model_lives_on_by_its_commands(screening: Run, clean_engine: Engine) -> None:
    code, output, _ = screening("retrain", "first")
    assert (code, output) == (0, "model first: no result to train on is new; first stays in production\n")

    later = bring(clean_engine)
    wrong = later[:6]
    with session_scope(clean_engine) as session:
        session.execute(
            update(tables.CalculationResult)
            .where(tables.CalculationResult.id.in_(wrong))
            .values(homo_lumo_gap_min=1000 * tables.CalculationResult.homo_lumo_gap_min, dataset="a table in meV")
        )
    code, output, errors = with_worker(clean_engine, lambda: screening("retrain", "--epochs", "4"))
    assert code == 0, errors
    assert "put aside, because they contradict the model, until a person decides: 6 results" in errors
    assert "batch 'a table in meV', 6 results: homo_lumo_gap_min: looks like meV given as eV" in errors
    assert "first@2 has learnt from" in output
    assert "MAE of first (1e-3)" in output
    promoted = "promoted: " in output
    assert promoted or "rejected: " in output

    found = json.loads(screening("results", "quarantine", "--json")[1])["quarantined"]
    assert [row["result"] for row in found] == sorted(wrong)
    assert "no open batch is called 'another'" in screening("results", "release", "--batch", "another")[2]
    code, output, _ = screening("results", "reject", str(wrong[0]))
    assert (code, output) == (0, f"1 result rejected: {wrong[0]}; no training takes them\n")
    code, output, _ = screening("results", "release", "--batch", "a table in meV")
    assert code == 0
    assert output.startswith("5 results released: ")
    assert screening("results", "quarantine")[1] == "no result is put aside\n"

    history = json.loads(screening("model", "history", "first", "--json")[1])
    assert [row["model"] for row in history["versions"]] == ["first", "first@2"]
    assert [row["standing"] for row in history["versions"]] == (
        ["replaced", "production"] if promoted else ["production", "rejected"]
    )
    listed = json.loads(screening("model", "list", "--json")[1])["models"]
    assert [(row["line"], row["version"]) for row in listed] == [("first", 1), ("first", 2)]

    code, output, _ = screening("model", "rollback", "first", "--to", "1" if promoted else "2")
    assert code == 0
    assert output.startswith("first is in production" if promoted else "first@2 is in production")
    shown = json.loads(screening("model", "show", "first", "--json")[1])
    assert (shown["model"], shown["standing"]) == ("first" if promoted else "first@2", "production")
    code, _, errors = screening("model", "rollback", "first", "--to", "9")
    assert (code, errors) == (1, "screening: first has no version 9; it has 1, 2\n")


def test_a_policy_is_set_shown_and_taken_back(screening: Run) -> None:
    assert screening("model", "policy", "first")[1] == "model first: not retrained by itself\n"
    options = ("--after-results", "50", "--after-hours", "24", "--when-drifting", "--rescore")
    code, output, _ = screening("model", "policy", "first", *options)
    assert code == 0
    assert output == (
        "model first: retrained by itself after 50 new results, or when new results have waited for 24 h, or when new "
        "results are outside its intervals too often; finished campaigns follow what is in production\n"
    )
    code, _, errors = screening("model", "policy", "first", "--off", "--rescore")
    assert code == 1
    assert "leave the other options out" in errors
    assert screening("model", "policy", "first", "--off")[1] == "model first: not retrained by itself\n"


def test_a_second_retraining_joins_the_first(screening: Run, clean_engine: Engine) -> None:
    bring(clean_engine)
    code, output, _ = screening("retrain", "--no-wait")
    assert (code, output) == (0, "queued: first@2; `screening model show first@2` tells how far it is\n")
    code, output, errors = screening("retrain", "--no-wait")
    assert code == 0
    assert "a training of model first is on its way already" in errors
    assert output.startswith("queued: first@2")
