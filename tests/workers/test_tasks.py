"""Real workers on real units of work, killed, told twice, and left without a broker."""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest
import redis
from sqlalchemy import Engine, func, select, text

from screening import services
from screening.database import leases, tables
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration, parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.dft import xtb
from screening.errors import ServiceError
from screening.pipeline import models, searches
from screening.pipeline.dispatch import announce
from screening.pipeline.hosts import add_configurations, add_supercell
from screening.pipeline.models import TrainingRequest, submit_training
from screening.pipeline.references import add_level
from screening.services import addresses, start_workers, status, stop_workers
from screening.settings import Settings
from tests.synthetic_results import LEVEL, add_results, mos2, random_configurations

TYPES = "v_S,Se_S,v_Mo,W_Mo"
SMALL = {"n_members": 3, "width": 16, "n_blocks": 1, "epochs": 20, "batch_rows": 32}
LONG_S = 120.0  # two busy cores; what is waited for takes seconds


def add_space(engine: Engine, label: str = "4x4", max_defects: int = 2, types: str = TYPES) -> int:
    with session_scope(engine) as session:
        stored = add_supercell(session, mos2(label))
        space = SearchSpace(stored.supercell, parse_defect_types(types), max_defects)
        return searches.add_search_space(session, stored, space)


def progress(engine: Engine, space_id: int, model_id: int | None = None) -> searches.UnitProgress:
    with session_scope(engine) as session:
        return searches.progress(session, space_id, model_id=model_id)


def wait_until(holds: Callable[[], bool], project: Settings, *, timeout_s: float = LONG_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            logs = "\n".join(services.log_tail(path) for path in sorted((project.home / "logs").glob("*.log")))
            pytest.fail(f"not within {timeout_s:.0f} s; {logs}")
        time.sleep(0.1)


def kill_workers(project: Settings) -> None:
    """Kill with signal 9 every worker, its children, and beat."""
    leaders = [process.pid for process in status(project) if process.name.startswith(("worker", "beat"))]
    processes = [psutil.Process(pid) for pid in leaders if pid is not None]
    family = [child for process in processes for child in process.children(recursive=True)] + processes
    assert family
    for process in family:
        os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs(family, timeout=10)


@contextmanager
def stuck(engine: Engine, table: str) -> Iterator[None]:
    """Whoever writes into a table waits until the block ends."""
    with engine.connect() as connection, connection.begin():
        connection.execute(text(f"LOCK TABLE {table} IN SHARE MODE"))
        yield


def n_blocked(engine: Engine) -> int:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with engine.connect() as connection:
        return int(connection.scalar(text(waiting)) or 0)


def multiplicities(engine: Engine, space_id: int) -> dict[int, int]:
    """Configurations that the candidates stand for, by number of defects."""
    size = func.cardinality(tables.Candidate.sites)
    with session_scope(engine) as session:
        rows = session.execute(
            select(size, func.sum(tables.Candidate.multiplicity))
            .where(tables.Candidate.search_space_id == space_id)
            .group_by(size)
        )
        return dict(rows.all())


def test_a_worker_enumerates_what_was_announced(project: Settings, clean_engine: Engine) -> None:
    space_id = add_space(clean_engine)
    announce(addresses(project).redis_url, "enumerate")
    start_workers(project, cpu=1, gpu=0)
    wait_until(lambda: progress(clean_engine, space_id).is_over, project)
    # 48 sites, two types each: every configuration is in the orbit of exactly one candidate
    assert multiplicities(clean_engine, space_id) == {1: 2 * 48, 2: 4 * math.comb(48, 2)}


def test_work_that_nobody_announced_is_found(project: Settings, clean_engine: Engine) -> None:
    start_workers(project, cpu=1, gpu=0)
    space_id = add_space(clean_engine)
    wait_until(lambda: progress(clean_engine, space_id).is_over, project, timeout_s=30)
    assert progress(clean_engine, space_id).done == 2


def test_the_same_message_twice_changes_nothing(project: Settings, clean_engine: Engine) -> None:
    space_id = add_space(clean_engine, max_defects=3)
    for _ in range(8):
        announce(addresses(project).redis_url, "enumerate")
    broker = redis.Redis.from_url(addresses(project).redis_url)
    with broker:
        repeated = broker.lindex("cpu", 0)
        broker.lpush("cpu", repeated, repeated)
        assert json.loads(repeated)["headers"]["task"] == "workers.enumerate"
    start_workers(project, cpu=2, gpu=0)
    wait_until(lambda: progress(clean_engine, space_id).is_over, project)
    assert multiplicities(clean_engine, space_id)[3] == 8 * math.comb(48, 3)
    with session_scope(clean_engine) as session:
        assert session.scalars(select(tables.Chunk.attempts)).all() == [1] * 6


def test_a_worker_killed_inside_a_chunk_loses_nothing_and_repeats_nothing(
    project: Settings, clean_engine: Engine
) -> None:
    space_id = add_space(clean_engine, max_defects=3)
    with stuck(clean_engine, "candidates"):
        start_workers(project, cpu=1, gpu=0)
        wait_until(lambda: n_blocked(clean_engine) >= 1, project)
        kill_workers(project)
    assert progress(clean_engine, space_id).done == 0
    start_workers(project, cpu=1, gpu=0)
    wait_until(lambda: progress(clean_engine, space_id).is_over, project)
    assert progress(clean_engine, space_id).failed == 0
    assert multiplicities(clean_engine, space_id) == {n: 2**n * math.comb(48, n) for n in (1, 2, 3)}
    with session_scope(clean_engine) as session:
        assert sorted(session.scalars(select(tables.Chunk.attempts)).all()) == [1] * 5 + [2]


def test_stopping_workers_again_and_again_is_no_failure_of_their_unit(project: Settings, clean_engine: Engine) -> None:
    space_id = add_space(clean_engine)
    with stuck(clean_engine, "candidates"):
        for n in range(leases.MAX_ATTEMPTS + 1):
            start_workers(project, cpu=1, gpu=0)
            # PostgreSQL notices that its client is gone when it has the lock
            wait_until(lambda n=n: n_blocked(clean_engine) > n, project)
            stop_workers(project)
            with session_scope(clean_engine) as session:
                assert session.execute(select(tables.Chunk.state, tables.Chunk.attempts)).all() == [("waiting", 0)] * 2
    start_workers(project, cpu=1, gpu=0)
    wait_until(lambda: progress(clean_engine, space_id).is_over, project)
    assert progress(clean_engine, space_id).failed == 0


def test_a_unit_that_is_nearly_ready_is_finished_when_its_worker_is_stopped(
    project: Settings, clean_engine: Engine
) -> None:
    space_id = add_space(clean_engine, max_defects=1)
    with stuck(clean_engine, "candidates"):
        start_workers(project, cpu=1, gpu=0)
        wait_until(lambda: n_blocked(clean_engine) >= 1, project)
        (worker,) = [process.pid for process in status(project) if process.name == "worker-cpu"]
        assert worker is not None
        os.kill(worker, signal.SIGTERM)
        time.sleep(0.3)
    wait_until(lambda: not any(process.pid == worker for process in status(project)), project, timeout_s=10)
    assert progress(clean_engine, space_id).done == 1


def test_a_dead_workers_unit_does_not_wait_for_its_lease(project: Settings, clean_engine: Engine) -> None:
    space_id = add_space(clean_engine)
    with stuck(clean_engine, "candidates"):
        start_workers(project, cpu=1, gpu=0)
        wait_until(lambda: n_blocked(clean_engine) >= 1, project)
        kill_workers(project)
    started = time.monotonic()
    with session_scope(clean_engine) as session:
        left = session.scalar(select(func.max(tables.Chunk.lease_until) - func.now()))
    assert left is not None
    start_workers(project, cpu=1, gpu=0)
    wait_until(lambda: progress(clean_engine, space_id).is_over, project)
    assert time.monotonic() - started < left.total_seconds()


def test_a_worker_calculates_and_takes_the_result_in(project: Settings, clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        stored = add_supercell(session, mos2("3x3"))
        sulphur = stored.supercell.species.index("S")
        (v_s,) = parse_defect_types("v_S")
        (configuration_id,) = add_configurations(session, stored, [Configuration((sulphur,), (v_s.code,))])
        level_id = add_level(session, xtb.level_of_theory())
        session.add(tables.Calculation(configuration_id=configuration_id, level_id=level_id, state="waiting"))
    start_workers(project, cpu=1, gpu=0)

    def states() -> list[str]:
        with session_scope(clean_engine) as session:
            statement = select(tables.Calculation.state).where(tables.Calculation.configuration_id == configuration_id)
            return list(session.scalars(statement))

    wait_until(lambda: not set(states()) & {"waiting", "running"}, project)
    assert states() == ["finished"]
    with session_scope(clean_engine) as session:
        (result,) = session.scalars(
            select(tables.CalculationResult)
            .join(tables.Calculation, tables.Calculation.id == tables.CalculationResult.calculation_id)
            .where(tables.Calculation.configuration_id == configuration_id)
        ).all()
        assert result.formation_energy is not None
        assert 0.0 < result.formation_energy < 10.0  # a sulphur vacancy costs energy: 2 to 3 eV in DFT
        assert result.homo_lumo_gap_min is not None
        assert 0.0 < result.homo_lumo_gap_min < 2.07  # the vacancy's level lies in the gap of the pristine layer


def test_a_worker_outlives_a_database_that_drops_its_connections(project: Settings, clean_engine: Engine) -> None:
    space_id = add_space(clean_engine)
    with stuck(clean_engine, "candidates"):
        start_workers(project, cpu=1, gpu=0)
        wait_until(lambda: n_blocked(clean_engine) >= 1, project)
        with clean_engine.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            )
    wait_until(lambda: progress(clean_engine, space_id).is_over, project)
    assert progress(clean_engine, space_id).failed == 0
    assert multiplicities(clean_engine, space_id) == {1: 2 * 48, 2: 4 * math.comb(48, 2)}


def test_a_failing_calculation_is_recorded_with_its_reason(project: Settings, clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        stored = add_supercell(session, mos2())
        level = tables.LevelOfTheory(name="2DMD PBE", code="VASP", functional="PBE", settings={}, digest="d")
        session.add(level)
        session.flush()
        (configuration_id,) = add_configurations(session, stored, random_configurations(stored.supercell, 1))
        calculation = tables.Calculation(configuration_id=configuration_id, level_id=level.id, state="waiting")
        session.add(calculation)
        session.flush()
        calculation_id = calculation.id

    def row() -> tables.Calculation:
        with session_scope(clean_engine) as session:
            session.expire_on_commit = False
            return session.get_one(tables.Calculation, calculation_id)

    announce(addresses(project).redis_url, "calculate")
    start_workers(project, cpu=1, gpu=0)
    wait_until(lambda: row().state == "failed", project)
    assert "'2DMD PBE'" in (row().error or "")
    assert "screening results add" in (row().error or "")
    assert row().attempts == 1  # it was not tried in vain again


def test_an_error_that_nobody_expected_is_tried_again_and_then_kept(project: Settings, clean_engine: Engine) -> None:
    space_id = add_space(clean_engine)
    with clean_engine.begin() as connection:
        connection.execute(text("ALTER TABLE candidates ADD CONSTRAINT too_small CHECK (multiplicity < 0)"))
    start_workers(project, cpu=1, gpu=0)
    wait_until(lambda: progress(clean_engine, space_id).is_over, project)
    found = progress(clean_engine, space_id)
    assert (found.done, found.failed) == (0, 2)
    assert "too_small" in (found.first_error or "")
    assert "Traceback" in (project.home / "logs" / "worker-cpu.log").read_text()
    with session_scope(clean_engine) as session:
        assert session.scalars(select(tables.Chunk.attempts)).all() == [leases.MAX_ATTEMPTS] * 2
    with clean_engine.begin() as connection:
        connection.execute(text("ALTER TABLE candidates DROP CONSTRAINT too_small"))
    with session_scope(clean_engine) as session:
        assert searches.retry_failed(session, space_id) == 2
    wait_until(lambda: progress(clean_engine, space_id).is_over, project)
    assert progress(clean_engine, space_id).done == 2


def test_a_training_killed_in_the_middle_is_resumed_and_finished_once(project: Settings, clean_engine: Engine) -> None:
    lasting = {**SMALL, "epochs": 100_000, "patience": 100_000, "max_minutes": 0.5}  # of all attempts together
    with session_scope(clean_engine) as session:
        n_results = add_results(session, 200)
        model_id = submit_training(session, TrainingRequest(LEVEL, settings=lasting))

    def look() -> tables.TrainedModel:
        with session_scope(clean_engine) as session:
            session.expire_on_commit = False
            return session.get_one(tables.TrainedModel, model_id)

    announce(addresses(project).redis_url, "train")
    start_workers(project, cpu=0, gpu=1)
    wait_until(lambda: look().checkpoint is not None, project)
    kept = look().progress
    assert kept is not None
    kill_workers(project)
    killed = look()
    assert killed.state == "running"
    start_workers(project, cpu=0, gpu=1)
    wait_until(lambda: look().lease_owner not in (None, killed.lease_owner), project)
    wait_until(lambda: look().progress != killed.progress, project)
    resumed = look().progress
    assert resumed is not None
    assert resumed["epoch"] >= kept["epoch"]
    assert resumed["elapsed_s"] > kept["elapsed_s"]
    wait_until(lambda: models_progress(clean_engine, model_id).is_over, project)
    after = look()
    assert (after.state, after.error, after.checkpoint) == ("finished", None, None)
    assert after.weights is not None
    with session_scope(clean_engine) as session:
        learnt = session.scalar(select(func.count()).where(tables.ModelTrainingResult.model_id == model_id))
        assert learnt == n_results
        assert session.scalar(select(func.count()).select_from(tables.TrainedModel)) == 1


def models_progress(engine: Engine, model_id: int) -> models.TrainingProgress:
    with session_scope(engine) as session:
        return models.progress(session, model_id)


def test_scoring_killed_inside_a_chunk_stores_every_prediction_once(project: Settings, clean_engine: Engine) -> None:
    space_id = add_space(clean_engine)
    with session_scope(clean_engine) as session:
        add_results(session, 200)
        model_id = submit_training(session, TrainingRequest(LEVEL, settings=SMALL))
    announce(addresses(project).redis_url, "enumerate", "train")
    start_workers(project, cpu=1, gpu=1)
    wait_until(lambda: progress(clean_engine, space_id).is_over, project)
    wait_until(lambda: models_progress(clean_engine, model_id).is_over, project)
    with stuck(clean_engine, "predictions"):
        with session_scope(clean_engine) as session:
            assert searches.add_scoring(session, model_id, space_id) == 2
        announce(addresses(project).redis_url, "score")
        wait_until(lambda: n_blocked(clean_engine) >= 1, project)
        kill_workers(project)
    assert progress(clean_engine, space_id, model_id).done == 0
    start_workers(project, cpu=0, gpu=1)
    wait_until(lambda: progress(clean_engine, space_id, model_id).is_over, project)
    found = progress(clean_engine, space_id, model_id)
    assert (found.done, found.failed) == (2, 0)
    with session_scope(clean_engine) as session:
        candidates = set(session.scalars(select(tables.Candidate.id)))
        predicted = session.scalars(select(tables.Prediction.candidate_id)).all()
    assert len(predicted) == len(candidates) == found.stored_rows
    assert set(predicted) == candidates


@pytest.fixture
def own_broker(project: Settings) -> Iterator[Settings]:
    """The project with a broker of its own, which a test may kill."""
    own = project.model_copy(update={"redis_url": None})
    services.up(own)
    yield own
    services.down(own)


def valkey(project: Settings) -> psutil.Process:
    (process,) = [found for found in status(project) if found.name == "valkey"]
    assert process.pid is not None
    return psutil.Process(process.pid)


def test_workers_outlive_a_broker_that_was_killed_and_lost_everything(
    own_broker: Settings, clean_engine: Engine
) -> None:
    start_workers(own_broker, cpu=1, gpu=0)
    broker = valkey(own_broker)
    os.kill(broker.pid, signal.SIGKILL)
    psutil.wait_procs([broker], timeout=10)
    for path in (own_broker.home / "valkey").rglob("*.aof"):
        path.write_bytes(b"")
    space_id = add_space(clean_engine)
    with pytest.raises(ServiceError, match="nothing is lost"):
        announce(addresses(own_broker).redis_url, "enumerate")
    services.up(own_broker)
    wait_until(lambda: progress(clean_engine, space_id).is_over, own_broker)
    assert progress(clean_engine, space_id).done == 2
