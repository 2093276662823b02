import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration, parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.defects.host import Host, Supercell
from screening.defects.limits import Limits, parse_limits
from screening.defects.symmetry import find_symmetry
from screening.errors import InputError
from screening.pipeline import searches
from screening.pipeline.hosts import StoredSupercell, add_configurations, add_supercell

TYPES = "v_S,Se_S,v_Mo,W_Mo"


def mos2(label: str) -> Supercell:
    a, z = 3.19, 1.56 / 15.0
    lattice = np.array([[a, 0, 0], [-a / 2, a * 3**0.5 / 2, 0], [0, 0, 15.0]])
    positions = np.array([[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5 + z], [2 / 3, 1 / 3, 0.5 - z]])
    return Supercell.parse(Host.from_cell("MoS2", lattice, ("Mo", "S", "S"), positions, source="a test"), label)


def add(session: Session, label: str, max_defects: int, **options: Any) -> tuple[StoredSupercell, int]:
    stored = add_supercell(session, mos2(label))
    space = SearchSpace(stored.supercell, parse_defect_types(TYPES), max_defects, **options)
    return stored, searches.add_search_space(session, stored, space)


def in_threads(*calls: Callable[[], object]) -> list[BaseException | None]:
    """Run calls at once; what each of them raised."""
    raised: list[BaseException | None] = [None] * len(calls)

    def run(i: int) -> None:
        try:
            calls[i]()
        except Exception as error:
            raised[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60.0)
        assert not thread.is_alive()
    return raised


def test_counts_are_those_of_the_reference(shared_data: Path) -> None:
    reference = json.loads((shared_data / "enumeration_counts.json").read_text())["MoS2_8x8"]
    supercell = mos2("8x8")
    table = searches.count_table(SearchSpace(supercell, parse_defect_types(TYPES), 3), find_symmetry(supercell))
    assert table["by_defects"] == {n: reference["totals_by_number_of_defects"][n] for n in ("1", "2", "3")}
    assert table["total"] == sum(table["by_defects"].values())
    expected: dict[str, int] = {}
    for n in ("1", "2", "3"):
        expected |= reference["by_composition"][n]
    assert {_sorted_label(k): n for k, n in table["by_composition"].items()} == {
        _sorted_label(k): n for k, n in expected.items()
    }


def _sorted_label(label: str) -> tuple[str, ...]:
    return tuple(sorted(label.split("+")))


def stored_counts(session: Session, space_id: int) -> dict[str, int]:
    counted = tables.SearchSpaceCount
    rows = session.execute(
        select(tables.Composition.label, counted.expected)
        .join(counted, counted.composition_id == tables.Composition.id)
        .where(counted.search_space_id == space_id)
    )
    return dict(rows.all())


def test_exact_counts_are_stored_by_composition(session: Session) -> None:
    """The numbers of structures in 2DMD, low density: npj 2D Mater. Appl. 7, 6 (2023)."""
    _, space_id = add(session, "8x8", 2)
    found = stored_counts(session, space_id)
    published = {"v_S": 1, "2*v_S": 19, "v_S+Se_S": 29, "v_S+v_Mo": 15}
    assert {name: found[name] for name in published} == published
    assert sum(found.values()) == session.get_one(tables.SearchSpace, space_id).expected == 4 + 159


def test_compositions_that_do_not_occur_are_not_counted(session: Session) -> None:
    _, space_id = add(session, "3x3", 2, limits=Limits(min_separation=50.0))
    assert set(stored_counts(session, space_id)) == {"v_S", "Se_S", "v_Mo", "W_Mo"}


def test_a_search_space_without_candidates_is_refused(session: Session) -> None:
    with pytest.raises(InputError, match="no configuration keeps the limits of this search space; loosen them"):
        add(session, "3x3", 2, min_defects=2, limits=Limits(min_separation=50.0))


def test_the_same_search_space_again_changes_nothing(session: Session) -> None:
    _, first = add(session, "4x4", 3)
    before = stored_counts(session, first)
    _, second = add(session, "4x4", 3)
    assert second == first
    assert stored_counts(session, first) == before


def test_a_search_space_of_an_older_version_gets_its_counts_when_it_is_asked_for(session: Session) -> None:
    _, space_id = add(session, "4x4", 2)
    before = stored_counts(session, space_id)
    session.execute(text("DELETE FROM search_space_counts"))
    assert add(session, "4x4", 2)[1] == space_id
    assert stored_counts(session, space_id) == before


def test_search_spaces_that_differ_in_the_composition_are_two(session: Session) -> None:
    v_s = parse_defect_types("v_S")[0]
    _, whole = add(session, "4x4", 2)
    _, part = add(session, "4x4", 2, composition={v_s: 2})
    assert part != whole
    assert add(session, "4x4", 2, composition={v_s: 2})[1] == part


def test_two_callers_at_once_add_one_search_space(clean_engine: Engine) -> None:
    found: list[int] = []
    with session_scope(clean_engine) as session:
        add_supercell(session, mos2("4x4"))
    start = threading.Barrier(2)

    def call() -> None:
        with session_scope(clean_engine) as session:
            stored = add_supercell(session, mos2("4x4"))
            start.wait(timeout=30)
            space = SearchSpace(stored.supercell, parse_defect_types(TYPES), 3)
            found.append(searches.add_search_space(session, stored, space))
            if len(found) == 1:
                _wait_for_a_blocked_query(clean_engine)  # so that the second caller always meets the uncommitted row

    assert in_threads(call, call) == [None, None]
    assert len(set(found)) == 1
    with session_scope(clean_engine) as session:
        assert session.scalar(select(func.count()).select_from(tables.SearchSpace)) == 1
        assert sum(stored_counts(session, found[0]).values()) == session.scalar(select(tables.SearchSpace.expected))


def _wait_for_a_blocked_query(engine: Engine, n: int = 1) -> None:
    blocked = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    for _ in range(300):
        with engine.connect() as connection:
            if (connection.scalar(blocked) or 0) >= n:
                return
        threading.Event().wait(0.1)
    pytest.fail(f"{n} queries were expected to wait for a lock within 30 s")


def test_a_search_space_comes_back_from_its_row(session: Session) -> None:
    se_s, w_mo = parse_defect_types("Se_S")[0], parse_defect_types("W_Mo")[0]
    _, space_id = add(session, "4x4", 3, min_defects=2, composition={w_mo: 1, se_s: 2})
    _, space = searches.load_search_space(session, space_id)
    assert [t.name for t in space.defect_types] == ["v_S", "Se_S", "v_Mo", "W_Mo"]
    assert space.max_counts == (0, 2, 0, 1)
    assert (space.min_defects, space.max_defects) == (2, 3)


def test_limits_come_back_from_the_row_and_tell_search_spaces_apart(session: Session) -> None:
    limits = Limits(parse_limits(["v_S:0-2"], ["W_Mo"]), 3.0, 6.5)
    _, space_id = add(session, "4x4", 3, limits=limits)
    _, space = searches.load_search_space(session, space_id)
    assert (space.min_counts, space.max_counts) == ((0, 0, 0, 1), (2, 3, 3, 3))
    assert (space.limits.min_separation, space.limits.max_separation) == (3.0, 6.5)
    assert add(session, "4x4", 3, limits=limits)[1] == space_id
    others = [
        Limits(limits.counts, 3.0),
        Limits(limits.counts, None, 6.5),
        Limits({}, 3.0, 6.5),
        Limits(parse_limits(["v_S:0-1"], ["W_Mo"]), 3.0, 6.5),
        Limits(),
    ]
    assert len({space_id, *(add(session, "4x4", 3, limits=other)[1] for other in others)}) == 6


def test_limits_that_forbid_nothing_make_no_other_search_space(session: Session) -> None:
    _, space_id = add(session, "4x4", 2)
    assert add(session, "4x4", 2, limits=Limits(parse_limits(["v_S:0-5"])))[1] == space_id


def test_a_search_space_ends_at_the_largest_number_that_its_limits_leave(session: Session) -> None:
    none = ["Se_S:0-0", "v_Mo:0-0"]
    _, space_id = add(session, "4x4", 3, limits=Limits(parse_limits([*none, "v_S:0-1", "W_Mo:1-1"])))
    row = session.get_one(tables.SearchSpace, space_id)
    assert (row.min_defects, row.max_defects) == (1, 2)
    assert row.max_counts == [1, 0, 0, 1]


def trained_model(session: Session) -> tables.TrainedModel:
    level = tables.LevelOfTheory(name="PBE", code="VASP", functional="PBE", settings={}, digest="d")
    session.add(level)
    session.flush()
    model = tables.TrainedModel(
        name="m", level_id=level.id, properties=["homo"], settings={}, seed=0, state="finished",
        weights=b"w",
    )  # fmt: skip
    session.add(model)
    session.flush()
    return model


def learns(session: Session, model: tables.TrainedModel, stored: StoredSupercell, name: str, role: str) -> None:
    """Let a model have learnt from, or be validated on, a result of one defect."""
    (defect_type,) = parse_defect_types(name)
    site = int(stored.supercell.allowed(defect_type)[0])
    (configuration_id,) = add_configurations(session, stored, [Configuration((site,), (defect_type.code,))])
    calculation = tables.Calculation(configuration_id=configuration_id, level_id=model.level_id, state="finished")
    session.add(calculation)
    session.flush()
    result = tables.CalculationResult(
        calculation_id=calculation.id, dataset="d", row_name=f"{name} of {model.name}", energy=-1.0
    )
    session.add(result)
    session.flush()
    session.add(tables.ModelTrainingResult(model_id=model.id, result_id=result.id, role=role))
    session.flush()


def test_types_that_a_model_has_never_seen_are_refused_before_anything_is_queued(session: Session) -> None:
    stored, space_id = add(session, "4x4", 2)
    model = trained_model(session)
    with pytest.raises(InputError, match="model m has never seen v_S, Se_S, v_Mo, W_Mo in MoS2; it knows nothing"):
        searches.check_trained_types(session, model, space_id)
    for name, role in (("v_S", "train"), ("Se_S", "train"), ("v_Mo", "train"), ("W_Mo", "validation")):
        learns(session, model, stored, name, role)
    with pytest.raises(InputError, match="model m has never seen W_Mo in MoS2; it knows v_S, Se_S, v_Mo: train it"):
        searches.check_trained_types(session, model, space_id)
    v_s = parse_defect_types("v_S")[0]
    searches.check_trained_types(session, model, add(session, "4x4", 2, composition={v_s: 2})[1])
    child = tables.TrainedModel(
        name="child", parent_id=model.id, level_id=model.level_id, properties=["homo"], settings={}, seed=0,
        state="finished", weights=b"w",
    )  # fmt: skip
    session.add(child)
    session.flush()
    other, _ = add(session, "3x3", 1)  # another supercell of the host
    learns(session, child, other, "W_Mo", "train")
    searches.check_trained_types(session, child, space_id)
