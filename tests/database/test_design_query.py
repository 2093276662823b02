"""Design queries against a plain numpy twin that looks at every candidate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from screening.database.bulk_copy import copy_rows
from screening.database.campaigns import IDS_PER_CHUNK, add_partition, index_partition, partition_name
from screening.database.design_query import DesignQuery, Window
from screening.database.query_sql import compile_query, sort_key, to_sql
from screening.database.query_terms import Branch
from screening.database.tables import PROPERTY_COMMENTS, Campaign, Candidate
from screening.errors import InputError

N = 400
GAP, ENERGY = "homo_lumo_gap_min", "formation_energy_per_site"


@dataclass(frozen=True)
class Predictions:
    """What is stored: ids (n,), number of defects (n,), mean and std by property (n,) float32."""

    ids: NDArray[np.int64]
    n_defects: NDArray[np.int64]
    mean: dict[str, NDArray[np.float32]]
    std: dict[str, NDArray[np.float32]]


@pytest.fixture
def stored(session: Session, ids: Any) -> Predictions:
    """Candidates of one or two defects; means on a grid, so that some lie on the ends of windows and some tie."""
    rng = np.random.default_rng(7)
    mean = {name: (rng.integers(0, 25, N) / 10).astype(np.float32) for name in (GAP, ENERGY, "total_mag")}
    std = {name: rng.choice([0.0, 0.05, 0.3, 1.0], N).astype(np.float32) for name in mean}
    identifiers = np.arange(N, dtype=np.int64) + 7 * IDS_PER_CHUNK
    for n_defects, arrangement in ((1, ids.one), (2, ids.two)):
        half = slice((n_defects - 1) * N // 2, n_defects * N // 2)
        columns: dict[str, Any] = {
            "id": identifiers[half],
            "campaign_id": np.full(N // 2, ids.campaign, np.int32),
            "arrangement_id": np.full(N // 2, arrangement, np.int32),
            "multiplicity": np.ones(N // 2, np.int32),
            "sites": np.arange(N // 2 * n_defects, dtype=np.int16).reshape(-1, n_defects),
        }
        for name in mean:
            columns |= {f"{name}_mean": mean[name][half], f"{name}_std": std[name][half]}
        copy_rows(session, partition_name(ids.campaign), columns)
    return Predictions(identifiers, np.repeat([1, 2], N // 2), mean, std)


def probabilities(stored: Predictions, query: DesignQuery) -> NDArray[np.float64]:
    """Product of the integrals of normal distributions over the windows, candidate by candidate."""
    found = np.ones(N)
    for window in query.windows:
        for row in range(N):
            mean = float(stored.mean[window.property][row])
            std = max(float(stored.std[window.property][row]), 1e-6)
            ends = (-math.inf if window.low is None else window.low, math.inf if window.high is None else window.high)
            low, high = (0.5 * math.erfc((mean - end) / (std * math.sqrt(2))) for end in ends)
            found[row] *= high - low
    return found


def twin(stored: Predictions, query: DesignQuery) -> list[tuple[int, float]]:
    """Candidates in their order, with the probability rounded as it is shown."""
    probability = probabilities(stored, query)
    wanted = probability >= query.confidence - 1e-12 if query.windows else np.ones(N, bool)
    if query.max_defects is not None:
        wanted &= stored.n_defects <= query.max_defects
    rows = np.flatnonzero(wanted)
    if query.sort == "probability":
        key = -np.round(probability[rows], 6)
    else:
        key = stored.mean[query.sort][rows] * (1 if query.direction == "lowest" else -1)
    rows = rows[np.lexsort((stored.ids[rows], key))][: query.limit]
    return [(int(stored.ids[row]), round(float(probability[row]), 6)) for row in rows]


QUERIES = {
    "no window": DesignQuery(host="MoS2"),
    "one window": DesignQuery(host="MoS2", windows=(Window(property=GAP, low=1.0, high=1.23),), limit=1000),
    "open above": DesignQuery(host="MoS2", windows=(Window(property=GAP, low=1.55),), limit=1000),
    "open below": DesignQuery(host="MoS2", windows=(Window(property=GAP, high=1.17),), limit=1000),
    "two windows": DesignQuery(
        host="MoS2", windows=(Window(property=GAP, low=0.85, high=2.05), Window(property=ENERGY, high=1.83)), limit=1000
    ),
    "open above, and open below": DesignQuery(
        host="MoS2", windows=(Window(property=GAP, low=0.85), Window(property=ENERGY, high=1.75)), limit=1000
    ),
    "little confidence": DesignQuery(
        host="MoS2", windows=(Window(property=GAP, low=1.0, high=1.23),), confidence=0.05, limit=1000
    ),
    "no confidence": DesignQuery(
        host="MoS2", windows=(Window(property=GAP, low=1.0, high=1.23),), confidence=0.0, limit=1000
    ),
    "much confidence": DesignQuery(
        host="MoS2", windows=(Window(property=GAP, low=0.5, high=2.0), Window(property=ENERGY, low=0.33)),
        confidence=0.95, limit=1000,
    ),
    "few defects, highest first": DesignQuery(
        host="MoS2", max_defects=1, windows=(Window(property=GAP, low=1.0),), sort="total_mag", direction="highest",
        limit=17,
    ),
    "by probability": DesignQuery(
        host="MoS2", windows=(Window(property=GAP, low=1.03, high=1.94),), sort="probability", limit=60
    ),
}  # fmt: skip


def rows_of(session: Session, ids: Any, query: DesignQuery) -> list[tuple[int, float]]:
    statement = compile_query(query, [Branch(ids.campaign)])
    return [(row.candidate, row.probability) for row in session.execute(statement)]


@pytest.mark.parametrize("name", QUERIES)
def test_rows_order_and_probability_are_those_of_the_plain_twin(
    session: Session, ids: Any, stored: Predictions, name: str
) -> None:
    expected = twin(stored, QUERIES[name])
    found = rows_of(session, ids, QUERIES[name])
    assert len(expected) > 5
    assert [candidate for candidate, _ in found] == [candidate for candidate, _ in expected]
    np.testing.assert_allclose([p for _, p in found], [p for _, p in expected], atol=1.01e-6)


@pytest.mark.parametrize("name", QUERIES)
def test_the_printed_sql_gives_the_same_rows(session: Session, ids: Any, stored: Predictions, name: str) -> None:
    statement = compile_query(QUERIES[name], [Branch(ids.campaign)])
    printed = to_sql(statement)
    assert printed.count("SELECT") == 2  # the other one asks whether it is calculated
    driver = session.connection().connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    found = driver.execute(printed.encode()).fetchall()
    assert found == [tuple(row) for row in session.execute(statement)]


def test_a_window_whose_end_is_the_mean_holds_half_of_it(session: Session, ids: Any, stored: Predictions) -> None:
    on_the_end = np.flatnonzero(stored.mean[GAP] == np.float32(1.5))  # exact in binary
    query = DesignQuery(host="MoS2", windows=(Window(property=GAP, low=1.5),), confidence=0.5, limit=1000)
    found = dict(rows_of(session, ids, query))
    assert len(on_the_end) > 0
    assert {found[int(stored.ids[row])] for row in on_the_end} == {0.5}


def test_candidates_of_other_campaigns_are_left_out(session: Session, ids: Any, stored: Predictions) -> None:
    other = Campaign(name="c2", search_space_id=ids.search_space, storage="all")
    session.add(other)
    session.flush()
    add_partition(session, other.id)
    assert session.execute(compile_query(QUERIES["no window"], [Branch(other.id)])).all() == []


def test_candidates_without_the_property_are_not_ranked_and_satisfy_no_window(
    session: Session, ids: Any, stored: Predictions
) -> None:
    session.execute(
        text(f"UPDATE candidates SET {GAP}_mean = NULL, {GAP}_std = NULL WHERE id = :id"),
        {"id": int(stored.ids[0])},
    )
    window = Window(property=GAP, low=-99.0)
    for query in (
        DesignQuery(host="MoS2", sort=GAP, limit=1000),
        DesignQuery(host="MoS2", sort=GAP, direction="highest", limit=1000),
        DesignQuery(host="MoS2", windows=(window,), confidence=0.0, limit=1000),
        DesignQuery(host="MoS2", windows=(window,), limit=1000),
    ):
        found = dict(rows_of(session, ids, query))
        assert stored.ids[0] not in found
        assert len(found) == N - 1


@pytest.mark.parametrize("direction", ["lowest", "highest"])
@pytest.mark.parametrize("sort", [GAP, ENERGY])
def test_the_first_rows_come_from_an_index_in_both_directions(
    session: Session, ids: Any, stored: Predictions, sort: str, direction: Literal["lowest", "highest"]
) -> None:
    index_partition(session, ids.campaign)
    session.execute(text("SET LOCAL enable_seqscan = off"))  # 400 rows are sorted faster than they are walked in order
    session.execute(text("SET LOCAL enable_sort = off"))
    query = DesignQuery(host="MoS2", sort=sort, direction=direction, limit=3)
    statement = to_sql(compile_query(query, [Branch(ids.campaign)]))
    plan = "\n".join(session.scalars(text(f"EXPLAIN {statement}")))
    suffix = "gap" if sort == GAP else "energy"
    assert f"Index Scan{' Backward' * (direction == 'highest')} using candidates_{ids.campaign}_{suffix}" in plan
    assert f"Presorted Key: candidates.{sort}_mean" in plan


def test_the_planner_knows_the_small_tables_after_a_campaign_is_indexed(
    session: Session, ids: Any, stored: Predictions
) -> None:
    index_partition(session, ids.campaign)
    known = "SELECT relname, reltuples FROM pg_class WHERE relname IN ('arrangements', 'compositions', 'search_spaces')"
    assert dict(session.execute(text(known)).all()) == {"arrangements": 2, "compositions": 2, "search_spaces": 1}


def test_a_finished_calculation_at_the_level_of_the_model_is_shown(
    session: Session, ids: Any, stored: Predictions
) -> None:
    def calculated() -> list[int]:
        statement = compile_query(DesignQuery(host="MoS2", limit=1000), [Branch(ids.campaign)])
        return [row.sites[0] for row in session.execute(statement) if row.calculated]

    session.execute(
        text(
            "INSERT INTO configurations (supercell_id, composition_id, n_defects, sites, defect_types, multiplicity) "
            "VALUES (:supercell, :vacancy, 1, '{17}', '{2048}', 1), (:supercell, :vacancy, 1, '{18}', '{2112}', 1)"
        ),
        vars(ids),
    )
    session.execute(
        text("INSERT INTO calculations (configuration_id, level_id) SELECT id, :level FROM configurations"), vars(ids)
    )
    assert calculated() == []
    session.execute(text("UPDATE calculations SET state = 'finished'"))
    assert calculated() == [17]  # on site 18 the calculation is of another defect
    session.execute(
        text(
            "INSERT INTO levels_of_theory (name, code, functional, settings, digest) "
            "VALUES ('HSE', 'VASP', 'HSE06', '{}', 'd2')"
        )
    )
    session.execute(text("UPDATE calculations SET level_id = (SELECT id FROM levels_of_theory WHERE name = 'HSE')"))
    assert calculated() == []


@pytest.mark.parametrize(
    ("text_", "low", "high"),
    [("1.0:1.2", 1.0, 1.2), ("1:", 1.0, None), (":-0.5", None, -0.5), (" 1e-1 : 2 ", 0.1, 2.0)],
)
def test_a_window_is_read_from_text(text_: str, low: float | None, high: float | None) -> None:
    found = Window.parse(GAP, text_)
    assert (found.low, found.high) == (low, high)


@pytest.mark.parametrize("text_", ["", ":", "1.2", "1.2:1.0", "1:1", "1:2:3", "a:b", "nan:1", "1:inf"])
def test_text_that_is_no_window_is_an_input_error(text_: str) -> None:
    with pytest.raises(InputError, match="is no window on homo_lumo_gap_min; write low:high"):
        Window.parse(GAP, text_)


def test_an_unknown_property_is_an_input_error_that_names_those_there_are() -> None:
    for make in (
        lambda: Window.parse("band_gap", "1:2"),
        lambda: DesignQuery.of(host="MoS2", windows=[{"property": "band_gap", "low": 1.0}]),
        lambda: DesignQuery.of(host="MoS2", sort="band_gap"),
    ):
        with pytest.raises(InputError, match="no property is called 'band_gap'") as caught:
            make()
        assert all(name in str(caught.value) for name in PROPERTY_COMMENTS)


def test_two_windows_on_one_property_are_refused() -> None:
    # they are not independent: together they are one window
    with pytest.raises(ValidationError, match="several windows on homo_lumo_gap_min; give one for each, as low:high"):
        DesignQuery(host="MoS2", windows=(Window(property=GAP, low=1.0), Window(property=GAP, high=2.0)))


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"confidence": 1.0}, {"max_defects": 0}, {"unknown": 1}])
def test_a_query_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DesignQuery(host="MoS2", **wrong)


@pytest.mark.parametrize("name", QUERIES)
def test_the_sort_key_ranks_as_the_query_does(session: Session, ids: Any, stored: Predictions, name: str) -> None:
    query = QUERIES[name]
    keys = dict(session.execute(select(Candidate.id, sort_key(query, Branch(ids.campaign)))).all())
    found = [candidate for candidate, _ in rows_of(session, ids, query)]
    assert found == sorted(found, key=lambda candidate: (keys[candidate], candidate))
    assert max(keys[candidate] for candidate in found) > min(keys[candidate] for candidate in found)


def kept_query(**changes: Any) -> DesignQuery:
    """The query of a campaign that keeps its best, or one that differs from it."""
    window = Window(property=GAP, low=1.0, high=1.5)
    given = {"host": "MoS2", "windows": (window,), "max_defects": 3, "limit": 100, "confidence": 0.6}
    return DesignQuery.model_validate(given | changes)


@pytest.mark.parametrize("changes", [{}, {"limit": 99}, {"supercell": "8x8", "limit": 1}])
def test_the_first_rows_of_a_query_are_those_of_the_same_one_with_a_smaller_limit(changes: dict[str, Any]) -> None:
    assert kept_query(**changes).ranks_as(kept_query())


@pytest.mark.parametrize(
    "changes",
    [
        {"limit": 101}, {"confidence": 0.7}, {"max_defects": 2}, {"max_defects": None}, {"direction": "highest"},
        {"sort": GAP}, {"windows": ()}, {"windows": (Window(property=GAP, low=1.0, high=1.4),)},
    ],
)  # fmt: skip
def test_a_query_that_ranks_otherwise_or_selects_otherwise_has_other_first_rows(changes: dict[str, Any]) -> None:
    """A narrower one too: its best may come behind the rows that are kept."""
    assert not kept_query(**changes).ranks_as(kept_query())


@pytest.mark.parametrize(
    ("changes", "is_narrower"),
    [
        ({}, True),
        ({"sort": GAP, "direction": "highest", "limit": 1_000_000}, True),
        ({"max_defects": 2}, True),
        ({"max_defects": 4}, False),
        ({"max_defects": None}, False),
        ({"confidence": 0.9}, True),
        ({"confidence": 0.5}, False),
        ({"windows": ()}, False),
        ({"windows": (Window(property=GAP, low=1.1, high=1.5),)}, True),
        ({"windows": (Window(property=GAP, low=1.1),)}, False),
        ({"windows": (Window(property=GAP, low=0.9, high=1.5),)}, False),
        ({"windows": (Window(property=ENERGY, low=1.1, high=1.4),)}, False),
        ({"windows": (Window(property=ENERGY, high=0.0), Window(property=GAP, low=1.0, high=1.5))}, True),
    ],
)
def test_a_narrower_query_asks_for_no_more_whatever_it_sorts_by(changes: dict[str, Any], is_narrower: bool) -> None:
    assert kept_query(**changes).is_narrower_than(kept_query()) is is_narrower


@pytest.mark.parametrize("name", QUERIES)
@pytest.mark.parametrize("other", QUERIES)
def test_a_query_that_is_said_to_be_narrower_finds_nothing_else(stored: Predictions, name: str, other: str) -> None:
    queries = [QUERIES[n].model_copy(update={"limit": 1_000_000}) for n in (name, other)]
    mine, others = ({candidate for candidate, _ in twin(stored, query)} for query in queries)
    assert mine <= others or not queries[0].is_narrower_than(queries[1])


def test_a_query_survives_json() -> None:
    query = QUERIES["much confidence"]
    assert DesignQuery.model_validate_json(query.model_dump_json()) == query
    assert DesignQuery.model_validate(query.stored()) == query
