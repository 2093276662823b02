"""Real workers on real units of work, killed, told twice, and left without a broker."""

import json
import math
import signal
import time
from collections.abc import Iterator

import pytest
import redis
from sqlalchemy import Engine, func, select, text

from screening import services
from screening.database import leases, tables
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration, parse_defect_types
from screening.dft import xtb
from screening.errors import ServiceError
from screening.pipeline import campaigns, models
from screening.pipeline.dispatch import announce
from screening.pipeline.hosts import add_configurations, add_supercell
from screening.pipeline.models import TrainingRequest, submit_training
from screening.pipeline.policies import Policy, set_policy
from screening.pipeline.references import add_level
from screening.services import addresses, start_workers, status, stop_workers
from screening.settings import Settings
from tests.pipeline.trained_lines import bring, hold_back
from tests.synthetic_results import LEVEL, add_results, mos2, random_configurations
from tests.workers.real_workers import (
    add_space,
    command,
    kill,
    kill_workers,
    leader,
    log,
    multiplicities,
    n_blocked,
    progress,
    run_campaign,
    stuck,
    wait_until,
)

SMALL = {"n_members": 3, "width": 16, "n_blocks": 1, "epochs": 20, "batch_rows": 32}


def attempts(engine: Engine) -> list[int]:
    with session_scope(engine) as session:
        return sorted(session.scalars(select(tables.Chunk.attempts)))


def test_a_worker_enumerates_what_was_announced(project: Settings, clean_engine: Engine) -> None:
    campaign_id = run_campaign(clean_engine, add_space(clean_engine))
    announce(addresses(project).redis_url, "enumerate")
    start_workers(project, cpu=1, gpu=0)
    wait_until(lambda: progress(clean_engine, campaign_id).is_over, project)
    # 48 sites, two types each: every configuration is in the orbit of exactly one candidate
    assert multiplicities(clean_engine, campaign_id) == {1: 2 * 48, 2: 4 * math.comb(48, 2)}


def test_work_that_nobody_announced_is_found(project: Settings, clean_engine: Engine) -> None:
    start_workers(project, cpu=1, gpu=0)
    campaign_id = run_campaign(clean_engine, add_space(clean_engine))
    wait_until(lambda: progress(clean_engine, campaign_id).is_over, project, timeout_s=30)
    assert progress(clean_engine, campaign_id).chunks_done == 2


def test_the_same_message_twice_changes_nothing(project: Settings, clean_engine: Engine) -> None:
    campaign_id = run_campaign(clean_engine, add_space(clean_engine, max_defects=3), chunk_rows=100)
    for _ in range(8):
        announce(addresses(project).redis_url, "enumerate")
    broker = redis.Redis.from_url(addresses(project).redis_url)
    with broker:
        repeated = broker.lindex("cpu", 0)
        broker.lpush("cpu", repeated, repeated)
        assert json.loads(repeated)["headers"]["task"] == "workers.enumerate"
    start_workers(project, cpu=2, gpu=0)
    wait_until(lambda: progress(clean_engine, campaign_id).is_over, project)
    assert multiplicities(clean_engine, campaign_id)[3] == 8 * math.comb(48, 3)
    n_chunks = progress(clean_engine, campaign_id).chunks
    assert n_chunks > 3
    assert attempts(clean_engine) == [1] * n_chunks


def test_a_worker_killed_inside_a_chunk_loses_nothing_and_repeats_nothing(
    project: Settings, clean_engine: Engine
) -> None:
    campaign_id = run_campaign(clean_engine, add_space(clean_engine, max_defects=3), chunk_rows=100)
    with stuck(clean_engine, "candidates"):
        start_workers(project, cpu=1, gpu=0)
        wait_until(lambda: n_blocked(clean_engine) >= 1, project)
        kill_workers(project)
    assert progress(clean_engine, campaign_id).chunks_done == 0
    start_workers(project, cpu=1, gpu=0)
    wait_until(lambda: progress(clean_engine, campaign_id).is_over, project)
    assert progress(clean_engine, campaign_id).chunks_failed == 0
    assert multiplicities(clean_engine, campaign_id) == {n: 2**n * math.comb(48, n) for n in (1, 2, 3)}
    assert attempts(clean_engine) == [1] * (progress(clean_engine, campaign_id).chunks - 1) + [2]


def test_stopping_workers_again_and_again_is_no_failure_of_their_unit(project: Settings, clean_engine: Engine) -> None:
    campaign_id = run_campaign(clean_engine, add_space(clean_engine))
    with stuck(clean_engine, "candidates"):
        for n in range(leases.MAX_ATTEMPTS + 1):
            start_workers(project, cpu=1, gpu=0)
            # PostgreSQL notices that its client is gone when it has the lock
            wait_until(lambda n=n: n_blocked(clean_engine) > n, project)
            stop_workers(project)
            with session_scope(clean_engine) as session:
                assert session.execute(select(tables.Chunk.state, tables.Chunk.attempts)).all() == [("waiting", 0)] * 2
    start_workers(project, cpu=1, gpu=0)
    wait_until(lambda: progress(clean_engine, campaign_id).is_over, project)
    assert progress(clean_engine, campaign_id).chunks_failed == 0


def test_a_unit_that_is_nearly_ready_is_finished_when_its_worker_is_stopped(
    project: Settings, clean_engine: Engine
) -> None:
    campaign_id = run_campaign(clean_engine, add_space(clean_engine, max_defects=1))
    with stuck(clean_engine, "candidates"):
        start_workers(project, cpu=1, gpu=0)
        wait_until(lambda: n_blocked(clean_engine) >= 1, project)
        worker = leader(project, "worker-cpu")
        worker.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    wait_until(lambda: not any(process.pid == worker.pid for process in status(project)), project, timeout_s=10)
    assert progress(clean_engine, campaign_id).chunks_done == 1


def test_a_dead_workers_unit_does_not_wait_for_its_lease(project: Settings, clean_engine: Engine) -> None:
    campaign_id = run_campaign(clean_engine, add_space(clean_engine))
    with stuck(clean_engine, "candidates"):
        start_workers(project, cpu=1, gpu=0)
        wait_until(lambda: n_blocked(clean_engine) >= 1, project)
        kill_workers(project)
    started = time.monotonic()
    with session_scope(clean_engine) as session:
        left = session.scalar(select(func.max(tables.Chunk.lease_until) - func.now()))
    assert left is not None
    start_workers(project, cpu=1, gpu=0)
    wait_until(lambda: progress(clean_engine, campaign_id).is_over, project)
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
    campaign_id = run_campaign(clean_engine, add_space(clean_engine))
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
    wait_until(lambda: progress(clean_engine, campaign_id).is_over, project)
    assert progress(clean_engine, campaign_id).chunks_failed == 0
    assert multiplicities(clean_engine, campaign_id) == {1: 2 * 48, 2: 4 * math.comb(48, 2)}


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
    campaign_id = run_campaign(clean_engine, add_space(clean_engine))
    with clean_engine.begin() as connection:
        connection.execute(text("ALTER TABLE candidates ADD CONSTRAINT too_small CHECK (multiplicity < 0)"))
    start_workers(project, cpu=1, gpu=0)
    wait_until(lambda: progress(clean_engine, campaign_id).is_over, project)
    found = progress(clean_engine, campaign_id)
    assert (found.state, found.chunks_done, found.chunks_failed) == ("incomplete", 0, 2)
    assert "too_small" in (found.error or "")
    assert "Traceback" in log(project, "worker-cpu")
    assert attempts(clean_engine) == [leases.MAX_ATTEMPTS] * 2
    with clean_engine.begin() as connection:
        connection.execute(text("ALTER TABLE candidates DROP CONSTRAINT too_small"))
    command(clean_engine, campaigns.resume, campaign_id)
    wait_until(lambda: progress(clean_engine, campaign_id).is_over, project)
    assert progress(clean_engine, campaign_id).state == "finished"


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


def test_workers_follow_the_policy_of_a_model_by_themselves(project: Settings, clean_engine: Engine) -> None:
    """Nobody asks for the second version: new results come, beat says so, and workers train and settle it."""
    with session_scope(clean_engine) as session:
        add_results(session, 200)
        hold_back(session, 8)
        submit_training(
            session, TrainingRequest(LEVEL, name="first", settings={**SMALL, "epochs": 60, "drawn_rows": 0})
        )
        set_policy(session, "first", Policy(after_results=8))

    def states() -> dict[str, str]:
        with session_scope(clean_engine) as session:
            return dict(session.execute(select(tables.TrainedModel.name, tables.TrainedModel.state)).all())

    start_workers(project, cpu=0, gpu=1)
    wait_until(lambda: states() == {"first": "finished"}, project)
    bring(clean_engine)
    wait_until(lambda: states() == {"first": "finished", "first@2": "finished"}, project)
    with session_scope(clean_engine) as session:
        compared = session.scalars(select(tables.ModelComparison)).one()
        assert compared.n_rows > 0
        newest = session.scalars(select(tables.Promotion).order_by(tables.Promotion.id.desc())).first()
        assert newest is not None
        assert (newest.model_id == compared.challenger_id) == compared.is_promoted


def models_progress(engine: Engine, model_id: int) -> models.TrainingProgress:
    with session_scope(engine) as session:
        return models.progress(session, model_id)


@pytest.fixture
def own_broker(project: Settings) -> Iterator[Settings]:
    """The project with a broker of its own, which a test may kill."""
    own = project.model_copy(update={"redis_url": None})
    services.up(own)
    yield own
    services.down(own)


def test_workers_outlive_a_broker_that_was_killed_and_lost_everything(
    own_broker: Settings, clean_engine: Engine
) -> None:
    start_workers(own_broker, cpu=1, gpu=0)
    kill([leader(own_broker, "valkey")])
    for path in (own_broker.home / "valkey").rglob("*.aof"):
        path.write_bytes(b"")
    campaign_id = run_campaign(clean_engine, add_space(clean_engine))
    with pytest.raises(ServiceError, match="nothing is lost"):
        announce(addresses(own_broker).redis_url, "enumerate")
    services.up(own_broker)
    wait_until(lambda: progress(clean_engine, campaign_id).is_over, own_broker)
    assert progress(clean_engine, campaign_id).chunks_done == 2
