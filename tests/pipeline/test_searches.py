import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session

from screening.database import leases, queries, tables
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration, parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.defects.host import Host, Supercell
from screening.defects.limits import Limits, parse_limits
from screening.defects.symmetry import find_symmetry
from screening.errors import CountMismatchError, InputError, LeaseLostError
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


def add_to(engine: Engine, label: str, max_defects: int, **options: Any) -> int:
    with session_scope(engine) as session:
        return add(session, label, max_defects, **options)[1]


def claim(engine: Engine, table: leases.Unit, owner: str) -> int | None:
    with session_scope(engine) as session:
        return leases.claim_next(session, table, owner)


def enumerate_all(engine: Engine) -> None:
    while (chunk_id := claim(engine, tables.Chunk, "here:1:a")) is not None:
        searches.enumerate_unit(engine, chunk_id, "here:1:a")


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


def test_the_same_search_space_again_changes_nothing(session: Session) -> None:
    _, first = add(session, "4x4", 3)
    chunks = session.scalar(select(func.count()).select_from(tables.Chunk))
    _, second = add(session, "4x4", 3)
    assert second == first
    assert session.scalar(select(func.count()).select_from(tables.Chunk)) == chunks


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
        assert searches.progress(session, found[0]).total == 6  # one each for 1 and 2 defects, four prefixes for 3


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


def test_limited_candidates_are_stored_as_many_as_counted(clean_engine: Engine) -> None:
    limits = Limits(parse_limits(["v_S:0-1"], ["Se_S"]), 3.5)
    space_id = add_to(clean_engine, "4x4", 3, limits=limits)
    enumerate_all(clean_engine)
    with session_scope(clean_engine) as session:
        _, space = searches.load_search_space(session, space_id)
        assert searches.progress(session, space_id).is_over
        found = session.execute(
            select(tables.Candidate.sites, tables.Candidate.defect_types).where(
                tables.Candidate.search_space_id == space_id
            )
        ).all()
        assert len(found) == session.get_one(tables.SearchSpace, space_id).expected > 100
        v_s, se_s = (t.code for t in parse_defect_types("v_S,Se_S"))
        for sites, codes in found:
            assert codes.count(v_s) <= 1 <= codes.count(se_s)
            apart = space.supercell.pair_distances[np.ix_(sites, sites)][np.triu_indices(len(sites), 1)]
            assert (apart > 3.5 - 1e-3).all()


def test_stored_candidates_stand_for_every_configuration_once(clean_engine: Engine) -> None:
    space_id = add_to(clean_engine, "4x4", 2)
    enumerate_all(clean_engine)
    sites = {"S": 32, "Mo": 16}
    singles = 2 * sites["S"] + 2 * sites["Mo"]
    # each site is free or carries one of two types: choose sites, then types
    pairs = 4 * math.comb(sites["S"] + sites["Mo"], 2)
    with session_scope(clean_engine) as session:
        by_size = dict(
            session.execute(
                select(func.cardinality(tables.Candidate.sites), func.sum(tables.Candidate.multiplicity))
                .where(tables.Candidate.search_space_id == space_id)
                .group_by(func.cardinality(tables.Candidate.sites))
            ).all()
        )
        assert by_size == {1: singles, 2: pairs}
        progress = searches.progress(session, space_id)
        assert progress.is_over
        assert (progress.done, progress.failed) == (2, 0)
        assert progress.stored_rows == queries.count_candidates(session, space_id)


def test_candidates_carry_their_composition(clean_engine: Engine) -> None:
    space_id = add_to(clean_engine, "8x8", 2)
    enumerate_all(clean_engine)
    with session_scope(clean_engine) as session:
        found = dict(
            session.execute(
                select(tables.Composition.label, func.count())
                .join(tables.Candidate, tables.Candidate.composition_id == tables.Composition.id)
                .where(tables.Candidate.search_space_id == space_id)
                .group_by(tables.Composition.label)
            ).all()
        )
    # the numbers of structures in 2DMD, low density: npj 2D Mater. Appl. 7, 6 (2023)
    assert {name: found[name] for name in ("v_S", "2*v_S", "v_S+Se_S", "v_S+v_Mo")} == {
        "v_S": 1,
        "2*v_S": 19,
        "v_S+Se_S": 29,
        "v_S+v_Mo": 15,
    }
    assert sum(found.values()) == 4 + 159


def test_figures_of_an_enumeration_come_from_its_chunks(clean_engine: Engine) -> None:
    space_id = add_to(clean_engine, "4x4", 2)
    with session_scope(clean_engine) as session:
        nothing = searches.enumeration_figures(session, space_id)
    assert (nothing["candidates"], nothing["seconds"], nothing["per_second"]) == (0, 0.0, 0.0)
    started = time.monotonic()
    enumerate_all(clean_engine)
    elapsed = time.monotonic() - started
    with session_scope(clean_engine) as session:
        found = searches.enumeration_figures(session, space_id)
        assert found["candidates"] == found["expected"] == queries.count_candidates(session, space_id)
    assert 0 < found["seconds"] <= elapsed
    assert found["per_second"] == pytest.approx(found["candidates"] / found["seconds"], rel=0.05)
    assert 20 < found["peak_memory_mb"] < 20_000  # python with numpy, and less than the machine has


def test_the_last_two_chunks_at_once_do_not_block_each_other(clean_engine: Engine) -> None:
    space_id = add_to(clean_engine, "4x4", 2)
    owners = ("here:1:a", "here:2:b")
    claimed = [claim(clean_engine, tables.Chunk, owner) for owner in owners]
    with clean_engine.connect() as connection, connection.begin():
        # both have stored their candidates and wait here to compare the counts
        connection.execute(text("SELECT 1 FROM search_spaces FOR NO KEY UPDATE"))
        both = threading.Thread(target=_wait_and_release, args=(clean_engine, connection))
        both.start()
        raised = in_threads(
            *(
                lambda c=c, o=o: searches.enumerate_unit(clean_engine, c, o)
                for c, o in zip(claimed, owners, strict=True)
            )
        )
        both.join()
    assert raised == [None, None]
    with session_scope(clean_engine) as session:
        assert searches.progress(session, space_id).done == 2


def _wait_and_release(engine: Engine, connection: Any) -> None:
    _wait_for_a_blocked_query(engine, 2)
    connection.commit()


def test_a_count_that_is_not_burnsides_ends_the_last_chunk(clean_engine: Engine) -> None:
    space_id = add_to(clean_engine, "4x4", 2)
    with session_scope(clean_engine) as session:
        session.execute(update(tables.SearchSpace).values(expected=tables.SearchSpace.expected + 1))
    first = claim(clean_engine, tables.Chunk, "here:1:a")
    assert first is not None
    searches.enumerate_unit(clean_engine, first, "here:1:a")
    second = claim(clean_engine, tables.Chunk, "here:1:a")
    assert second is not None
    with pytest.raises(CountMismatchError, match="Burnside"):
        searches.enumerate_unit(clean_engine, second, "here:1:a")
    with session_scope(clean_engine) as session:
        assert searches.progress(session, space_id).stored_rows == 4
        assert queries.count_candidates(session, space_id) == 4  # nothing of the last chunk is kept


def test_a_chunk_that_was_taken_over_leaves_nothing_behind(clean_engine: Engine) -> None:
    space_id = add_to(clean_engine, "4x4", 2)
    chunk_id = claim(clean_engine, tables.Chunk, "here:1:late")
    assert chunk_id is not None
    with session_scope(clean_engine) as session:
        session.execute(update(tables.Chunk).where(tables.Chunk.id == chunk_id).values(lease_owner="here:2:next"))
    with pytest.raises(LeaseLostError, match=f"chunks {chunk_id}"):
        searches.enumerate_unit(clean_engine, chunk_id, "here:1:late")
    with session_scope(clean_engine) as session:
        assert queries.count_candidates(session, space_id) == 0


def test_failed_chunks_are_reported_and_can_be_opened_again(session: Session) -> None:
    _, space_id = add(session, "4x4", 3)
    chunk_id = leases.claim_next(session, tables.Chunk, "here:1:a")
    assert chunk_id is not None
    leases.fail(session, tables.Chunk, chunk_id, "here:1:a", error="the disk is full")
    progress = searches.progress(session, space_id)
    assert (progress.failed, progress.first_error, progress.is_over) == (1, "the disk is full", False)
    assert searches.retry_failed(session, space_id) == 1
    assert searches.progress(session, space_id).failed == 0
    assert leases.claim_next(session, tables.Chunk, "here:1:b") == chunk_id


def test_a_chunk_runs_while_a_worker_holds_it(session: Session) -> None:
    _, space_id = add(session, "4x4", 3)
    assert searches.progress(session, space_id).running == 0
    chunk_id = leases.claim_next(session, tables.Chunk, "here:1:a")
    assert chunk_id is not None
    progress = searches.progress(session, space_id)
    assert (progress.running, progress.done, progress.is_over) == (1, 0, False)
    session.execute(
        update(tables.Chunk).where(tables.Chunk.id == chunk_id).values(lease_until=text("now() - '1s'::interval"))
    )
    assert searches.progress(session, space_id).running == 0  # its worker is dead
    session.execute(
        update(tables.Chunk).where(tables.Chunk.id == chunk_id).values(lease_until=text("now() + '1s'::interval"))
    )
    leases.finish(session, tables.Chunk, chunk_id, "here:1:a", n_candidates=4)
    progress = searches.progress(session, space_id)
    assert (progress.running, progress.done, progress.is_over) == (0, 1, False)


def trained_model(session: Session, *, state: str = "finished") -> tables.TrainedModel:
    level = tables.LevelOfTheory(name="PBE", code="VASP", functional="PBE", settings={}, digest="d")
    session.add(level)
    session.flush()
    model = tables.TrainedModel(
        name="m", level_id=level.id, properties=["homo"], settings={}, seed=0, state=state,
        weights=b"w" if state == "finished" else None,
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


def finish_chunks(session: Session, space_id: int) -> None:
    session.execute(
        update(tables.Chunk).where(tables.Chunk.search_space_id == space_id).values(state="finished", n_candidates=0)
    )


def test_a_search_space_is_scored_only_when_it_is_complete(session: Session) -> None:
    _, space_id = add(session, "4x4", 3)
    model = trained_model(session)
    with pytest.raises(InputError, match=r"6 chunks .*screening enumerate"):
        searches.add_scoring(session, model.id, space_id)


def test_a_model_that_is_not_trained_scores_nothing(session: Session) -> None:
    _, space_id = add(session, "4x4", 2)
    finish_chunks(session, space_id)
    model = trained_model(session, state="waiting")
    with pytest.raises(InputError, match="model m is waiting"):
        searches.add_scoring(session, model.id, space_id)


def test_scoring_is_added_once_for_each_chunk(session: Session) -> None:
    _, space_id = add(session, "4x4", 3)
    _, other_id = add(session, "3x3", 2)
    for identifier in (space_id, other_id):
        finish_chunks(session, identifier)
    model = trained_model(session)
    assert searches.add_scoring(session, model.id, space_id) == 6
    assert searches.add_scoring(session, model.id, space_id) == 0
    assert searches.progress(session, space_id, model_id=model.id).total == 6
    assert searches.progress(session, other_id, model_id=model.id).total == 0


def test_failed_scoring_is_opened_for_one_model_only(session: Session) -> None:
    _, space_id = add(session, "4x4", 2)
    finish_chunks(session, space_id)
    model = trained_model(session)
    searches.add_scoring(session, model.id, space_id)
    for _ in range(2):
        unit_id = leases.claim_next(session, tables.ScoringChunk, "here:1:a")
        assert unit_id is not None
        leases.fail(session, tables.ScoringChunk, unit_id, "here:1:a", error="out of memory")
    assert searches.retry_failed(session, space_id, model_id=model.id + 1) == 0
    assert searches.progress(session, space_id, model_id=model.id).is_over
    assert searches.retry_failed(session, space_id, model_id=model.id) == 2
    assert not searches.progress(session, space_id, model_id=model.id).is_over
