"""A database with a line whose first version is trained once for all tests, and copied for each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from sqlalchemy import Engine, text

from screening.database.session import make_engine, migrate, session_scope
from screening.pipeline.training_requests import TrainingRequest, submit_training
from tests.pipeline.trained_lines import N_LATER, SMALL, hold_back, work
from tests.synthetic_results import LEVEL, add_results

_TEMPLATE = "trained"
_NUMBERS = count(1)


@pytest.fixture(scope="session")
def trained_template(migrated_template: Engine) -> Engine:
    """Engine that creates databases; `trained` is their template: the version `first`, and 40 results held back."""
    with migrated_template.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {_TEMPLATE}"))
    template = _engine(migrated_template, _TEMPLATE)
    migrate(template)
    with session_scope(template) as session:
        add_results(session, 400, max_defects=3)
        hold_back(session, N_LATER)
        model_id = submit_training(session, TrainingRequest(LEVEL, name="first", settings=SMALL))
    work(template, model_id)
    template.dispose()  # CREATE DATABASE wants its template without connections
    return migrated_template


@pytest.fixture
def trained(trained_template: Engine) -> Iterator[Engine]:
    """A database with a trained model `first`; 40 results that it has not learnt from come with `bring`."""
    name = f"line_{next(_NUMBERS)}"
    with trained_template.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}"))
    found = _engine(trained_template, name)
    yield found
    found.dispose()
    with trained_template.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def _engine(administrator: Engine, name: str) -> Engine:
    return make_engine(administrator.url.set(database=name).render_as_string(hide_password=False))
