"""Real workers bring a loop further: nobody asks for the next stage but the rows."""

from __future__ import annotations

from sqlalchemy import Engine, select, update

from screening.database import tables
from screening.database.loops import list_loops, steps_of
from screening.database.session import session_scope
from screening.pipeline.loops import pause, resume
from screening.services import start_workers, stop_workers
from screening.settings import Settings
from tests.pipeline.made_loops import calculate_round, make_world, start
from tests.workers.real_workers import wait_until


def stage_of(engine: Engine) -> tuple[str, str]:
    with session_scope(engine) as session:
        (loop,) = list_loops(session)
        return loop["state"], loop["stage"]


def test_workers_bring_a_loop_to_its_round_and_from_its_results_to_a_training(
    project: Settings, clean_engine: Engine
) -> None:
    make_world(clean_engine)
    loop_id = start(clean_engine)
    start_workers(project, cpu=0, gpu=1)
    wait_until(lambda: stage_of(clean_engine) == ("running", "calculate"), project)
    with session_scope(clean_engine) as session:
        pause(session, "loop")
    stop_workers(project)
    calculate_round(clean_engine, loop_id)
    assert stage_of(clean_engine) == ("paused", "calculate")
    with session_scope(clean_engine) as session:
        resume(session, "loop")
        # the made model has no weights that could be trained: the training fails, and the loop says so
        session.execute(update(tables.TrainedModel).values(weights=b"no weights"))
    start_workers(project, cpu=0, gpu=1)
    wait_until(lambda: stage_of(clean_engine)[0] == "failed", project)
    with session_scope(clean_engine) as session:
        loop = session.scalars(select(tables.Loop)).one()
        assert loop.error is not None
        assert loop.error.startswith("the training of first@2 failed: ")
        assert [step["stage"] for step in steps_of(session, loop_id)] == ["rank", "propose", "calculate", "learn"]
