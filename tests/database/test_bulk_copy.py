"""Binary COPY against what an ordinary SELECT reads back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from psycopg import DataError
from psycopg.errors import CheckViolation
from sqlalchemy import text
from sqlalchemy.orm import Session

from screening.database.bulk_copy import copy_rows
from screening.database.tables import Candidate


@pytest.fixture
def table(session: Session) -> str:
    session.execute(
        text(
            "CREATE TEMPORARY TABLE every_type (small smallint, number integer, big bigint, value real, "
            "list smallint[], untouched integer DEFAULT 7) ON COMMIT DROP"
        )
    )
    return "every_type"


def columns(n: int, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "small": rng.integers(-(2**15), 2**15, n).astype(np.int16),
        "number": rng.integers(-(2**31), 2**31, n).astype(np.int32),
        "big": rng.integers(-(2**63), 2**63 - 1, n),
        "value": rng.normal(0, 1e10, n).astype(np.float32),
        "list": rng.integers(-(2**15), 2**15, (n, 5)).astype(np.int16),
    }


def read(session: Session, table: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in session.execute(text(f"SELECT small, number, big, value, list FROM {table}"))]


def test_every_type_comes_back_as_it_was_given(session: Session, table: str) -> None:
    given = columns(1000, np.random.default_rng(1))
    given["value"][:4] = [np.nan, np.inf, -np.inf, np.float32(1e-45)]
    assert copy_rows(session, table, given) == 1000
    found = read(session, table)
    for position, column in enumerate(given.values()):
        np.testing.assert_array_equal(np.array([row[position] for row in found], column.dtype), column)
    assert session.scalars(text(f"SELECT DISTINCT untouched FROM {table}")).all() == [7]


def test_more_rows_than_one_write_holds_keep_their_order(session: Session, table: str) -> None:
    given = columns(100_000, np.random.default_rng(2))
    copy_rows(session, table, given)
    numbers = session.scalars(text(f"SELECT big FROM {table}")).all()
    np.testing.assert_array_equal(numbers, given["big"])
    sums = session.execute(text(f"SELECT sum(list[1]), sum(list[5]), count(*) FROM {table}")).one()
    assert tuple(sums) == (given["list"][:, 0].sum(dtype=int), given["list"][:, 4].sum(dtype=int), 100_000)


def test_strided_and_big_endian_columns_are_read_by_value(session: Session, table: str) -> None:
    given = columns(20, np.random.default_rng(3))
    views = {name: column[::-2] for name, column in given.items()}
    views["number"] = views["number"].astype(">i4")
    copy_rows(session, table, views)
    found = read(session, table)
    assert [row[1] for row in found] == given["number"][::-2].tolist()
    assert [row[4] for row in found] == given["list"][::-2].tolist()


def test_no_rows_are_no_rows(session: Session, table: str) -> None:
    assert copy_rows(session, table, columns(0, np.random.default_rng(4))) == 0
    assert read(session, table) == []


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("value", np.zeros(3)),
        ("small", np.zeros(3, np.uint16)),
        ("list", np.full((3, 2), 70_000)),
        ("list", np.zeros((3, 0), np.int16)),
        ("small", np.zeros(4, np.int16)),
    ],
    ids=["double for real", "unsigned", "wide integers in an array", "empty arrays", "another number of rows"],
)
def test_what_the_stream_cannot_hold_is_a_bug_of_the_caller(
    session: Session, table: str, name: str, column: Any
) -> None:
    with pytest.raises(AssertionError, match=f"column {name} of {table}"):
        copy_rows(session, table, {"number": np.zeros(3, np.int32), name: column})


def test_a_type_that_is_not_the_columns_is_refused_by_the_server(session: Session, table: str) -> None:
    with pytest.raises(DataError, match="incorrect binary data format"), session.begin_nested():
        copy_rows(session, table, {"small": np.zeros(3, np.int32)})


def test_names_are_quoted(session: Session) -> None:
    session.execute(text('CREATE TEMPORARY TABLE "odd; name" ("select" integer) ON COMMIT DROP'))
    copy_rows(session, "odd; name", {"select": np.arange(3, dtype=np.int32)})
    assert session.scalars(text('SELECT "select" FROM "odd; name"')).all() == [0, 1, 2]


def candidates(ids: Any, n: int) -> dict[str, Any]:
    """Single vacancies on different sites."""
    return {
        "id": np.arange(n, dtype=np.int64), "campaign_id": np.full(n, ids.campaign, np.int32),
        "arrangement_id": np.full(n, ids.one, np.int32), "multiplicity": np.ones(n, np.int32),
        "sites": np.arange(n, dtype=np.int16)[:, None],
    }  # fmt: skip


def test_candidates_are_copied_into_their_partition_in_the_transaction_of_the_session(
    session: Session, ids: Any
) -> None:
    n = 500
    means = np.linspace(-6, -5, n, dtype=np.float32)
    scores = {"homo_mean": means, "homo_std": np.full(n, 0.1, np.float32)}
    with session.begin_nested():
        copy_rows(session, f"candidates_{ids.campaign}", candidates(ids, n) | scores)
    found = session.query(Candidate).order_by(Candidate.id).all()
    assert [candidate.sites for candidate in found] == [[site] for site in range(n)]
    np.testing.assert_array_equal(np.array([row.homo_mean for row in found], np.float32), means)
    assert {row.lumo_mean for row in found} == {None}


def test_a_copied_row_that_breaks_a_rule_is_refused_with_all_others(session: Session, ids: Any) -> None:
    bad = candidates(ids, 3) | {"multiplicity": np.array([1, 0, 1], np.int32)}
    with pytest.raises(CheckViolation, match="ck_candidates_configuration"), session.begin_nested():
        copy_rows(session, f"candidates_{ids.campaign}", bad)
    assert session.query(Candidate).count() == 0


def test_a_row_of_another_campaign_is_refused_by_the_partition(session: Session, ids: Any) -> None:
    other = candidates(ids, 3) | {"campaign_id": np.full(3, ids.campaign + 1, np.int32)}
    with pytest.raises(CheckViolation, match="violates partition constraint"), session.begin_nested():
        copy_rows(session, f"candidates_{ids.campaign}", other)
