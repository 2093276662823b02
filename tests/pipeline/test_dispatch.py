import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from sqlalchemy import func, update
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.leases import LEASE_S, claim_next
from screening.errors import ServiceError
from screening.pipeline.dispatch import LONGEST_QUEUE, announce, claimable_kinds
from screening.services import addresses
from screening.settings import Settings


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


def test_only_kinds_with_work_to_claim_are_claimable(session: Session, chunk: tables.Chunk) -> None:
    assert claimable_kinds(session) == ["enumerate"]
    claim_next(session, tables.Chunk, "someone:1:a")
    assert claimable_kinds(session) == []


def test_a_unit_whose_lease_has_run_out_is_claimable(session: Session, chunk: tables.Chunk) -> None:
    claim_next(session, tables.Chunk, "someone:1:a")
    session.execute(update(tables.Chunk).values(lease_until=func.now() - timedelta(seconds=LEASE_S)))
    assert claimable_kinds(session) == ["enumerate"]


@pytest.fixture
def chunk(session: Session) -> tables.Chunk:
    """The only unit of work of the database."""
    host = tables.Host(
        name="MoS2", formula="MoS2", lattice=[1.0] * 9, species=["Mo"], positions=[0.0] * 3, is_layer=True, source="-"
    )
    session.add(host)
    session.flush()
    supercell = tables.Supercell(host_id=host.id, matrix=[1] * 9, label="1x1", n_sites=1, n_operations=1)
    session.add(supercell)
    session.flush()
    space = tables.SearchSpace(supercell_id=supercell.id, defect_types=[5376], min_defects=1, max_defects=1, expected=1)
    session.add(space)
    session.flush()
    found = tables.Chunk(search_space_id=space.id, number=0, n_defects=1, prefix_sites=[], prefix_defect_types=[])
    session.add(found)
    session.flush()
    return found
