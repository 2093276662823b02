"""Workers of a test: real Celery processes on a database and a Redis database of their own."""

from collections.abc import Iterator

import pytest

from screening.services import stop_workers
from screening.settings import Settings


@pytest.fixture
def project(clean_services: Settings) -> Iterator[Settings]:
    """Settings of one test, whose workers are stopped after it."""
    yield clean_services
    stop_workers(clean_services)
