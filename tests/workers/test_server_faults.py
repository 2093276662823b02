"""Campaigns whose servers are killed or have no disk left, and chunks that nobody can scan: `resume` ends them."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.exc import OperationalError

from screening import services
from screening.database import leases, tables
from screening.database.session import session_scope
from screening.pipeline import campaigns
from screening.pipeline.campaigns import CampaignRequest
from screening.services import start_workers
from screening.settings import Settings
from tests.workers.campaign_outcome import (
    CAMPAIGNS,
    Outcome,
    campaign_id_of,
    check_exact,
    check_same,
    inside_a_chunk,
    outcome,
    scan_undisturbed,
)
from tests.workers.real_workers import (
    add_space,
    command,
    kill,
    leader,
    log,
    plan_campaign,
    progress,
    run_campaign,
    wait_until,
)

FULL = 2**24 + 4096  # bytes; a file of the write-ahead log has 2^24, and no page of 8192 ends here


@contextmanager
def full_disk(servers: Settings) -> Iterator[None]:
    """No file of PostgreSQL can grow beyond `FULL` until the block ends, as if there were no disk for it."""

    def limit(size: int | str) -> None:
        postmaster = leader(servers, "postgresql")
        for process in (postmaster, *postmaster.children()):
            # as the server's user: root of a container may not be allowed to
            command = ["prlimit", "--pid", str(process.pid), f"--fsize={size}:unlimited"]
            subprocess.run(command, user=process.uids().real, group=process.gids().real, check=process == postmaster)

    limit(FULL)
    try:
        yield
    finally:
        limit("unlimited")


def failed_chunks(engine: Engine, campaign_id: int) -> list[tables.Chunk]:
    of_campaign = select(tables.Chunk).where(tables.Chunk.campaign_id == campaign_id, tables.Chunk.state == "failed")
    with session_scope(engine) as session:
        session.expire_on_commit = False
        return list(session.scalars(of_campaign))


def expire_leases(engine: Engine) -> None:
    """What the workers hold is open at once, and not after half a minute."""
    past = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 1)
    with session_scope(engine) as session:
        session.execute(update(tables.Chunk).where(tables.Chunk.state == "running").values(lease_until=past))


def stop_database_inside_a_chunk(servers: Settings, engine: Engine, project: Settings, name: str) -> None:
    with inside_a_chunk(engine, project, name, processes=2):
        server = leader(servers, "postgresql")
        server.send_signal(signal.SIGQUIT)  # "immediate": the write-ahead log is replayed at the next start
        psutil.wait_procs([server], timeout=30)


def test_a_broker_killed_with_all_its_data_and_started_again(
    own_servers: Settings, breakable: Settings, planned_engine: Engine, undisturbed: dict[str, Outcome]
) -> None:
    start_workers(breakable, cpu=0, gpu=2)
    for name in CAMPAIGNS:
        with inside_a_chunk(planned_engine, breakable, name, processes=2) as campaign_id:
            kill([leader(own_servers, "valkey")])
            shutil.rmtree(own_servers.home / "valkey")
        wait_until(lambda n=campaign_id: progress(planned_engine, n).chunks_done >= 2, breakable)
        services.up(own_servers)
        check_same(planned_engine, breakable, name, undisturbed[name])


def test_a_database_stopped_inside_a_chunk_without_a_checkpoint_and_started_again(
    own_servers: Settings, breakable: Settings, planned_engine: Engine, undisturbed: dict[str, Outcome]
) -> None:
    start_workers(breakable, cpu=0, gpu=2)
    n_given_back = 0
    for name in CAMPAIGNS:
        # the lock that holds the workers is gone with the server
        with pytest.raises(OperationalError):
            stop_database_inside_a_chunk(own_servers, planned_engine, breakable, name)
        services.up(own_servers)
        n_given_back += 2
        wait_until(lambda n=n_given_back: log(breakable, "worker-gpu").count("is given back") >= n, breakable)
        assert progress(planned_engine, campaign_id_of(planned_engine, name)).chunks_done == 0
        expire_leases(planned_engine)
        check_same(planned_engine, breakable, name, undisturbed[name])


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit of util-linux limits the files of a server")
def test_a_full_disk_stops_one_campaign_which_is_resumed_when_there_is_room(
    own_servers: Settings, breakable: Settings, planned_engine: Engine
) -> None:
    large = plan_campaign(planned_engine, add_space(planned_engine, max_defects=5), CampaignRequest(name="large"))
    start_workers(breakable, cpu=1, gpu=0)
    with full_disk(own_servers):
        command(planned_engine, campaigns.start, large)
        wait_until(lambda: progress(planned_engine, large).is_over, breakable)
        found = progress(planned_engine, large)
        assert found.state == "incomplete"
        assert "Check free disk space" in (found.error or "")
        assert found.chunks_done + found.chunks_failed == found.chunks
        assert found.chunks_done > 5
        failed = failed_chunks(planned_engine, large)
        assert {chunk.attempts for chunk in failed} == {leases.MAX_ATTEMPTS}
        assert all("could not extend file" in (chunk.error or "") for chunk in failed)
        small = run_campaign(planned_engine, add_space(planned_engine, max_defects=2))
        wait_until(lambda: progress(planned_engine, small).is_over, breakable)
        check_exact(planned_engine, small, max_defects=2)
    command(planned_engine, campaigns.resume, large)
    wait_until(lambda: progress(planned_engine, large).is_over, breakable)
    check_exact(planned_engine, large, max_defects=5)
    resumed = outcome(planned_engine, large)
    command(planned_engine, campaigns.remove, large)
    services.stop_workers(breakable)
    plan_campaign(planned_engine, add_space(planned_engine, max_defects=5), CampaignRequest(name="large"))
    assert resumed == scan_undisturbed(planned_engine, "large", max_defects=5)


def test_a_chunk_that_nobody_can_scan_is_set_aside_and_the_rest_goes_on(
    breakable: Settings, planned_engine: Engine, undisturbed: dict[str, Outcome]
) -> None:
    chunk = tables.Chunk
    start_workers(breakable, cpu=0, gpu=2)
    for name in CAMPAIGNS:
        campaign_id = campaign_id_of(planned_engine, name)
        of_campaign = chunk.campaign_id == campaign_id
        with session_scope(planned_engine) as session:
            poisonous = session.scalars(select(chunk).where(of_campaign, chunk.number == 5)).one()
            number, types = poisonous.id, list(poisonous.first_defect_types)
            assert types
            poisonous.first_defect_types = [1] * len(types)  # hydrogen is no defect type of the space
        command(planned_engine, campaigns.start, campaign_id)
        wait_until(lambda n=campaign_id: progress(planned_engine, n).is_over, breakable)
        (failed,) = failed_chunks(planned_engine, campaign_id)
        assert (failed.id, failed.attempts) == (number, leases.MAX_ATTEMPTS)
        assert failed.error
        found = progress(planned_engine, campaign_id)
        assert (found.state, found.chunks_failed, found.chunks_done) == ("incomplete", 1, found.chunks - 1)
        assert found.error == f"1 chunks failed, the first (number 5) with: {failed.error}"
        with session_scope(planned_engine) as session:
            session.get_one(chunk, number).first_defect_types = types
        command(planned_engine, campaigns.resume, campaign_id)
        check_same(planned_engine, breakable, name, undisturbed[name])


def test_a_model_whose_weights_are_damaged_fails_every_chunk_until_it_is_mended(
    breakable: Settings, planned_engine: Engine, undisturbed: dict[str, Outcome]
) -> None:
    campaign_id = campaign_id_of(planned_engine, "best")
    with session_scope(planned_engine) as session:
        model = session.scalars(select(tables.TrainedModel)).one()
        weights = model.weights
        assert weights is not None
        model.weights = weights[: len(weights) // 2]
    start_workers(breakable, cpu=0, gpu=1)
    command(planned_engine, campaigns.start, campaign_id)
    wait_until(lambda: progress(planned_engine, campaign_id).is_over, breakable)
    found = progress(planned_engine, campaign_id)
    assert (found.state, found.chunks_failed) == ("incomplete", found.chunks)
    with session_scope(planned_engine) as session:
        session.scalars(select(tables.TrainedModel)).one().weights = weights
    command(planned_engine, campaigns.resume, campaign_id)
    check_same(planned_engine, breakable, "best", undisturbed["best"])
