import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.leases import LEASE_S, claim_next
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.errors import ServiceError
from screening.pipeline import searches
from screening.pipeline.campaigns import CampaignRequest, plan, start
from screening.pipeline.dispatch import CONDITIONS, LONGEST_QUEUE, UNITS, Kind, announce, claimable_kinds
from screening.pipeline.hosts import add_supercell
from screening.services import addresses
from screening.settings import Settings
from tests.synthetic_results import mos2


@pytest.fixture
def broker(services: Settings) -> Iterator[str]:
    """Address of an empty Redis database."""
    url = addresses(services).redis_url.removesuffix("/0") + "/2"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    yield url
    with redis.Redis.from_url(url) as client:
        client.flushdb()


def messages(broker: str, queue: str) -> list[dict[str, Any]]:
    with redis.Redis.from_url(broker) as client:
        return [json.loads(text) for text in client.lrange(queue, 0, -1)]


def test_each_kind_is_announced_on_its_queue(broker: str) -> None:
    announce(broker, "enumerate", "calculate", "train", "score")
    found = {queue: {m["headers"]["task"] for m in messages(broker, queue)} for queue in ("cpu", "gpu")}
    assert found == {
        "cpu": {"workers.enumerate", "workers.calculate"},
        "gpu": {"workers.train", "workers.score"},
    }


def test_a_message_is_json_without_content(broker: str) -> None:
    announce(broker, "train")
    (message,) = messages(broker, "gpu")
    assert message["content-type"] == "application/json"
    assert message["headers"]["argsrepr"] == "()"
    assert message["headers"]["kwargsrepr"] == "{}"
    assert message["headers"]["expires"] is not None


def test_messages_that_nobody_reads_do_not_pile_up(broker: str) -> None:
    for _ in range(LONGEST_QUEUE + 5):
        announce(broker, "score")
    assert len(messages(broker, "gpu")) == LONGEST_QUEUE


def test_an_absent_broker_is_an_error_within_seconds_and_keeps_the_password() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(ServiceError, match="nothing is lost") as caught:
        announce(f"redis://:hidden-word@127.0.0.1:{port}/0", "train")
    assert time.monotonic() - started < 5.0
    assert "hidden-word" not in str(caught.value)


def test_a_broker_that_hangs_is_an_error_within_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        accepted: list[socket.socket] = []
        listener = threading.Thread(target=lambda: accepted.append(silent.accept()[0]))
        listener.start()
        started = time.monotonic()
        with pytest.raises(ServiceError, match="does not answer"):
            announce(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", "train")
        assert time.monotonic() - started < 20.0
        listener.join()
        accepted[0].close()


@pytest.mark.parametrize(("scores", "kind"), [(False, "enumerate"), (True, "score")])
def test_only_kinds_with_work_to_claim_are_claimable(
    session: Session, chunk: tables.Chunk, scores: bool, kind: Kind
) -> None:
    chunk.scores = scores
    session.flush()
    assert claimable_kinds(session) == [kind]
    claim_next(session, UNITS[kind], "someone:1:a", *CONDITIONS[kind])
    assert claimable_kinds(session) == []


def test_chunks_of_a_campaign_that_is_not_started_are_not_claimable(session: Session, chunk: tables.Chunk) -> None:
    chunk.state = "planned"
    session.execute(update(tables.Campaign).values(state="planned"))
    assert claimable_kinds(session) == []


def test_a_unit_whose_lease_has_run_out_is_claimable(session: Session, chunk: tables.Chunk) -> None:
    claim_next(session, tables.Chunk, "someone:1:a")
    session.execute(update(tables.Chunk).values(lease_until=func.now() - timedelta(seconds=LEASE_S)))
    assert claimable_kinds(session) == ["enumerate"]


def test_a_campaign_that_waits_for_its_end_is_work_for_who_worked_on_it(session: Session, chunk: tables.Chunk) -> None:
    chunk.state, chunk.error = "failed", "the disk is full"
    session.flush()
    assert claimable_kinds(session) == ["enumerate"]
    level = tables.LevelOfTheory(name="a", code="a", functional="a", settings={}, digest="a")
    session.add(level)
    session.flush()
    model = tables.TrainedModel(
        name="m", level_id=level.id, properties=[], settings={}, seed=0, state="finished", weights=b""
    )
    session.add(model)
    session.flush()
    session.execute(update(tables.Campaign).values(model_id=model.id))
    assert claimable_kinds(session) == ["score"]
    session.execute(update(tables.Campaign).values(state="incomplete", error="1 chunks failed"))
    assert claimable_kinds(session) == []


@pytest.fixture
def chunk(session: Session) -> tables.Chunk:
    """The only unit of work of the database: the chunk of a running campaign without a model."""
    stored = add_supercell(session, mos2("2x2"))
    space = SearchSpace(stored.supercell, parse_defect_types("v_S"), 1)
    campaign = plan(session, searches.add_search_space(session, stored, space), CampaignRequest())
    start(session, campaign)
    return session.scalars(select(tables.Chunk)).one()
