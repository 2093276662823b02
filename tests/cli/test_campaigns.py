"""Campaigns by their commands: planned, scanned by a worker of this process, watched, stopped, ranked."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, func, select, text

from screening.cli import main
from screening.cli.campaigns import storage_advice
from screening.database import leases, tables
from screening.database.session import make_engine as real_make_engine
from screening.database.session import session_scope
from screening.pipeline.campaigns import close_over
from screening.pipeline.dispatch import CONDITIONS, Kind
from screening.pipeline.models import TrainingRequest, submit_training, train_unit
from screening.pipeline.scanning import scan_unit
from screening.settings import Settings
from tests.synthetic_results import LEVEL, add_results

SPACE = ("--host", "MoS2", "--supercell", "4x4", "--types", "v_S,Se_S,v_Mo,W_Mo")
N_CANDIDATES = {1: 4, 2: 53, 3: 946}  # of so many defects, by Burnside's lemma


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    exit_code: int
    output: str
    errors: str

    @property
    def found(self) -> Any:
        """The one JSON object it printed."""
        return json.loads(self.output)


@pytest.fixture
def screening(
    clean_services: Settings, clean_engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Finished]:
    """The command `screening`, in this process, on the services of one test with a trained model `small`."""
    assert clean_services.database_url is not None
    assert clean_services.redis_url is not None
    monkeypatch.setenv("SCREENING_HOME", str(clean_services.home))
    monkeypatch.setenv("SCREENING_DATABASE_URL", clean_services.database_url.get_secret_value())
    monkeypatch.setenv("SCREENING_REDIS_URL", clean_services.redis_url.get_secret_value())
    monkeypatch.setenv("COLUMNS", "100")
    with session_scope(clean_engine) as session:
        add_results(session, 60)
        request = TrainingRequest(
            LEVEL, name="small", settings={"n_members": 3, "width": 8, "n_blocks": 1, "epochs": 2}
        )
        model_id = submit_training(session, request)
    with session_scope(clean_engine) as session:
        assert leases.claim_next(session, tables.TrainedModel, "test:1:t") == model_id
    train_unit(clean_engine, model_id, "test:1:t", device="cpu")

    engines: list[Engine] = []  # a command of its own ends with its process; here its connections are closed for it

    def make_engine(url: str) -> Engine:
        engines.append(real_make_engine(url))
        return engines[-1]

    monkeypatch.setattr("screening.database.session.make_engine", make_engine)

    def run(*arguments: str) -> Finished:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["screening", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO())  # nobody answers
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        while engines:
            engines.pop().dispose()
        code = ended.value.code
        return Finished(code if isinstance(code, int) else 0, output.out, output.err)

    return run


def work(engine: Engine, kind: Kind = "score", *, n: int | None = None) -> int:
    """Scan chunks as a worker does, all that are open or only so many; their number."""
    done = 0
    while done != n:
        owner = leases.new_owner()
        with session_scope(engine) as session:
            chunk_id = leases.claim_next(session, tables.Chunk, owner, *CONDITIONS[kind])
        if chunk_id is None:
            break
        scan_unit(engine, chunk_id, owner, device="cpu")
        done += 1
    close_over(engine)
    return done


@contextmanager
def worker(engine: Engine, kind: Kind = "score") -> Iterator[None]:
    """A worker in a thread while a command waits."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(0.1):
            work(engine, kind)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def n_messages(settings: Settings, queue: str) -> int:
    assert settings.redis_url is not None
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as client:
        return int(client.llen(queue))


def test_a_plan_says_the_cost_and_nothing_begins(
    screening: Any, clean_engine: Engine, clean_services: Settings
) -> None:
    planned = screening("campaign", "plan", *SPACE, "--max-defects", "3", "--json").found
    assert (planned["campaign"], planned["state"], planned["model"]) == ("MoS2-4x4-3-small", "planned", "small")
    assert planned["by_defects"] == {str(n): number for n, number in N_CANDIDATES.items()}
    assert planned["candidates"] == sum(N_CANDIDATES.values())
    assert planned["search_space"] == "1 to 3 of v_S, Se_S, v_Mo, W_Mo"
    assert 1003 * 50 < planned["disk_bytes"] < 1003 * 300
    assert planned["seconds"] > 0.0  # nothing has been scored: the model was timed here
    assert planned["workers"] == 0
    assert work(clean_engine) == 0
    assert n_messages(clean_services, "gpu") == 0

    printed = screening("campaign", "plan", *SPACE, "--max-defects", "3")
    assert "campaign MoS2-4x4-3-small (planned): 1 to 3 of v_S, Se_S, v_Mo, W_Mo in MoS2 4x4" in printed.output
    assert "every candidate with its predictions" in printed.output
    assert "by one worker; none runs here, `screening up --workers gpu=2` starts two" in printed.output
    assert printed.output.rstrip().endswith("start it with `screening campaign start MoS2-4x4-3-small`")
    assert len(screening("campaign", "list", "--json").found["campaigns"]) == 1


def test_a_campaign_goes_from_its_plan_to_its_end(
    screening: Any, clean_engine: Engine, clean_services: Settings
) -> None:
    screening("campaign", "plan", *SPACE, "--max-defects", "3", "--name", "three")
    started = screening("campaign", "start", "three")
    assert started.output.startswith("campaign three is running: 0 of 3 chunks are done")
    assert n_messages(clean_services, "gpu") == 1

    assert work(clean_engine, n=1) == 1
    half = screening("campaign", "status", "three", "--json").found
    assert (half["state"], half["chunks_done"], half["chunks"]) == ("running", 1, 3)
    assert half["candidates_done"] + half["candidates_left"] == half["candidates"] == 1003
    assert half["stored_rows"] == half["candidates_done"] == 4

    assert work(clean_engine) == 2
    done = screening("campaign", "status", "three", "--json").found
    assert (done["state"], done["candidates_done"], done["candidates_left"]) == ("finished", 1003, 0)
    with session_scope(clean_engine) as session:
        assert session.scalar(select(func.count()).select_from(tables.Candidate)) == done["stored_rows"] == 1003
        columns = set(session.execute(text("SELECT * FROM campaign_progress")).keys())
    assert columns < set(done)
    assert done["disk_bytes"] > 1003 * 50
    (by,) = done["by_worker"]
    assert (by["chunks_done"], by["candidates"]) == (3, 1003)
    assert by["peak_memory_mb"] > 50

    shown = screening("campaign", "status", "three").output
    for expected in ("1,003 of 1,003 candidates (100.0 %)", "3 done of 3", "1 to 3 of v_S, Se_S, v_Mo, W_Mo in MoS2"):
        assert expected in shown
    assert "finished" in screening("campaign", "status").output
    again = screening("campaign", "plan", *SPACE, "--max-defects", "3", "--start")
    assert "finished already" in again.output
    assert screening("campaign", "start", "three").exit_code == 1


def test_a_paused_campaign_hands_out_nothing_until_it_is_resumed(screening: Any, clean_engine: Engine) -> None:
    screening("campaign", "plan", *SPACE, "--max-defects", "2", "--name", "two", "--start")
    work(clean_engine, n=1)
    paused = screening("campaign", "pause", "two")
    assert paused.output == (
        "campaign two is paused: 1 of 2 chunks are done, 0 more come to their end; "
        "`screening campaign resume two` goes on\n"
    )
    assert work(clean_engine) == 0
    assert screening("campaign", "status", "two", "--watch", "--json").found["state"] == "paused"
    assert screening("campaign", "resume", "two", "--json").found == {"campaign": "two", "state": "running"}
    assert work(clean_engine) == 1
    assert screening("campaign", "status", "two", "--json").found["state"] == "finished"


def test_a_cancelled_campaign_keeps_what_is_done_and_can_be_deleted(screening: Any, clean_engine: Engine) -> None:
    screening("campaign", "plan", *SPACE, "--max-defects", "2", "--name", "two", "--start")
    work(clean_engine, n=1)
    running = screening("campaign", "delete", "two", "--yes", "--json")
    assert (running.exit_code, running.found) == (1, {"error": "campaign two is running; cancel it first"})
    assert "1 of 2 chunks are done and stay" in screening("campaign", "cancel", "two").output
    assert work(clean_engine) == 0
    kept = screening("campaign", "status", "two", "--json").found
    assert (kept["state"], kept["stored_rows"]) == ("cancelled", 4)
    assert screening("campaign", "delete", "two", "--yes").exit_code == 0
    assert screening("campaign", "list", "--json").found == {"campaigns": []}
    with session_scope(clean_engine) as session:
        assert session.scalar(select(func.count()).select_from(tables.Candidate)) == 0


def test_nothing_is_deleted_without_a_confirmation(screening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screening("campaign", "plan", *SPACE, "--max-defects", "1", "--name", "one")
    refused = screening("campaign", "delete", "one", "--json")
    assert (refused.exit_code, refused.found) == (1, {"error": "not confirmed; nothing was done"})
    assert [row["campaign"] for row in screening("campaign", "list", "--json").found["campaigns"]] == ["one"]


def test_the_best_are_those_that_a_ranking_of_all_begins_with(screening: Any, clean_engine: Engine) -> None:
    """And `design --campaign` asks the campaign's own query where no other is given."""
    wanted = ("--window", "formation_energy_per_site=:3.0", "--sort", "homo_lumo_gap_min", "--confidence", "0.2")
    screening("campaign", "plan", *SPACE, "--max-defects", "3", "--name", "all", "--start")
    plan = screening("campaign", "plan", *SPACE, "--max-defects", "3", "--keep", "12", *wanted, "--name", "best")
    assert (
        "the best 12: formation_energy_per_site :3 (probability 0.2 or more), lowest homo_lumo_gap_min" in plan.output
    )
    screening("campaign", "start", "best")
    assert work(clean_engine) == 6

    every = screening("design", "--campaign", "all", *wanted, "--limit", "1000", "--json").found
    best = screening("design", "--campaign", "best", "--json").found
    assert (best["campaign"], best["search_space"]["candidates"], len(best["rows"])) == ("best", 1003, 12)
    assert len(every["rows"]) > 12
    rows, first = (
        [{name: value for name, value in row.items() if name != "campaign_id"} for row in found]
        for found in (best["rows"], every["rows"][:12])
    )
    assert rows == first
    kept = screening("campaign", "status", "best", "--json").found
    assert (kept["stored_rows"], kept["candidates_matching"]) == (12, len(every["rows"]))
    assert len(screening("design", "--campaign", "best", "--limit", "3", "--json").found["rows"]) == 3
    assert "candidates of campaign best (1 to 3 of" in screening("design", "--campaign", "best").output

    other = screening("design", "--campaign", "best", "--highest")
    assert (other.exit_code, "the best of another one may not be among them" in other.errors) == (1, True)
    proposed = screening("next", "--campaign", "best", "--n", "1", "--json").found["proposals"]
    assert proposed[0]["candidate_id"] in [row["candidate"] for row in best["rows"]]


def test_watching_tells_every_change_and_ends_with_the_campaign(screening: Any, clean_engine: Engine) -> None:
    screening("campaign", "plan", *SPACE, "--max-defects", "2", "--name", "two", "--start")
    with worker(clean_engine):
        watched = screening("campaign", "status", "two", "--watch")
    assert watched.exit_code == 0
    assert "finished 100.0 %: 57 of 57 candidates" in watched.output
    assert "state         finished" in watched.output


def test_watching_a_campaign_that_ends_incomplete_fails(screening: Any, clean_engine: Engine) -> None:
    screening("campaign", "plan", *SPACE, "--max-defects", "2", "--name", "two", "--start")
    with session_scope(clean_engine) as session:
        chunk_id = leases.claim_next(session, tables.Chunk, "test:1:t")
        assert chunk_id is not None
        leases.fail(session, tables.Chunk, chunk_id, "test:1:t", error="[poison] no such site")
    assert work(clean_engine) == 1
    watched = screening("campaign", "status", "two", "--watch")
    assert watched.exit_code == 1
    assert "incomplete" in watched.output
    assert "1 chunks failed, the first (number 0) with: [poison] no such site" in watched.output
    assert "1 done, 1 failed of 2" in watched.output
    waited = screening("score", *SPACE, "--max-defects", "2", "--no-wait", "--json").found
    assert (waited["state"], waited["campaign"]) == ("running", "two")
    assert work(clean_engine) == 1
    assert screening("campaign", "status", "two", "--json").found["state"] == "finished"


def test_scoring_waits_for_its_campaign_and_says_when_there_was_nothing_to_do(
    screening: Any, clean_engine: Engine
) -> None:
    with worker(clean_engine):
        scored = screening("score", *SPACE, "--max-defects", "2", "--json").found
    assert (scored["predictions"], scored["expected"], scored["was_finished"]) == (57, 57, False)
    assert scored["per_second"] == pytest.approx(57 / scored["seconds"], rel=0.01)
    again = screening("score", *SPACE, "--max-defects", "2", "--json").found
    assert again == scored | {"was_finished": True}
    assert screening("score", *SPACE, "--max-defects", "2").output == (
        "model small has scored these 57 candidates before, as campaign MoS2-4x4-2-small\n"
    )
    with worker(clean_engine, "enumerate"):
        assert "57 candidates, as many as Burnside" in screening("enumerate", *SPACE, "--max-defects", "2").output
    assert "has stored these 57 candidates before" in screening("enumerate", *SPACE, "--max-defects", "2").output
    queued = screening("enumerate", *SPACE, "--max-defects", "1", "--no-wait").output
    assert queued == (
        "queued: 4 candidates as campaign MoS2-4x4-1 (running); "
        "`screening campaign status MoS2-4x4-1 --watch` shows how far it is\n"
    )


def test_what_is_refused_says_what_to_do(screening: Any) -> None:
    plan = ("plan", *SPACE, "--max-defects", "2")
    refusals = {
        (*plan, "--gap", "1:2"): "add --keep 10000",
        (*plan, "--no-model", "--model", "small"): "leave one of them out",
        (*plan, "--no-model", "--keep", "5"): "name a model, or keep all",
        (*plan, "--keep", "0"): "limit: Input should be greater than or equal to 1",
        (*plan, "--keep", "5", "--sort", "homo"): "does not predict homo",
        ("plan", *SPACE[:4], "--types", "v_S,O_S", "--max-defects", "2"): "has never seen O_S in MoS2",
        (*plan, "--model", "large"): "no model is called 'large'",
        ("start", "nowhere"): "no campaign is called 'nowhere'; there are: none",
        ("status", "--watch"): "screening campaign list",
    }
    for arguments, message in refusals.items():
        refused = screening("campaign", *arguments, "--json")
        assert refused.exit_code == 1
        assert message in refused.found["error"]
        assert message in refused.errors
    assert screening("campaign", "list", "--json").found == {"campaigns": []}
    usage = screening("campaign", "start", "--json")
    assert (usage.exit_code, usage.found) == (2, {"error": "Missing argument 'NAME'. Name of the campaign."})


@pytest.mark.parametrize(
    ("storage", "disk_bytes", "free", "advice"),
    [
        ("all", 14e9, 70e9, None),
        ("all", 14e9, 10e9, "14.0 GB are much to store, and 10.0 GB are free here; --keep 10000"),
        ("all", 850e9, float("inf"), "850.0 GB are much to store; --keep 10000"),
        ("best", 850e9, 1e9, None),
    ],
)
def test_what_is_too_much_to_store_is_told_beforehand(
    storage: str, disk_bytes: float, free: float, advice: str | None
) -> None:
    found = storage_advice({"storage": storage, "disk_bytes": disk_bytes}, free)
    assert found is None if advice is None else found is not None and found.startswith(advice)
