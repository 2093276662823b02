"""Costs of a search space: bytes against a filled table, seconds against the whole walk and against the chunks."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.bulk_copy import copy_rows
from screening.database.leases import claim_next
from screening.database.session import session_scope
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace, enumerate_chunk, plan_chunks
from screening.defects.host import Supercell
from screening.defects.limits import Limits
from screening.defects.symmetry import find_symmetry
from screening.pipeline import costs, searches
from screening.pipeline.hosts import add_supercell

TYPES = parse_defect_types("v_S,Se_S,v_Mo,W_Mo")


def test_the_disk_that_a_space_takes_is_estimated_within_a_third(clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "8x8"))
        searches.add_search_space(session, stored, SearchSpace(stored.supercell, TYPES, 3))
    while True:
        with session_scope(clean_engine) as session:
            chunk_id = claim_next(session, tables.Chunk, "here:1:a")
        if chunk_id is None:
            break
        searches.enumerate_unit(clean_engine, chunk_id, "here:1:a")
    with session_scope(clean_engine) as session:
        model_id = add_model(session, "m")
        ids = np.array(session.scalars(select(tables.Candidate.id)).all(), np.int64)
        generator = np.random.default_rng(0)
        columns = {"candidate_id": ids, "model_id": np.full(len(ids), model_id, np.int32)}
        for name in tables.PROPERTY_COMMENTS:
            columns[f"{name}_mean"] = generator.normal(size=len(ids)).astype(np.float32)
            columns[f"{name}_std"] = generator.random(len(ids)).astype(np.float32)
        copy_rows(session, "predictions", columns)
        taken = session.scalar(
            text("SELECT pg_total_relation_size('candidates') + pg_total_relation_size('predictions')")
        )
    assert len(ids) == 13_609
    assert costs.disk_bytes(len(ids)) == pytest.approx(taken, rel=1 / 3)


def test_the_time_of_a_walk_follows_from_the_rate_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which the first chunk takes one second."""
    supercell = Supercell.parse(catalogue_host("MoS2"), "4x4")
    symmetry = find_symmetry(supercell)
    space = SearchSpace(supercell, TYPES, 4)
    n_candidates = sum(space.counts(symmetry).values())
    readings = iter([0.0])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(readings, 1.0))
    estimated = costs.enumeration_seconds(space, symmetry, n_candidates)
    assert estimated is not None
    sizes = {
        sum(len(block) for block in enumerate_chunk(space, symmetry, chunk))
        for chunk in plan_chunks(space, symmetry)
        if chunk.n_defects == 4
    }
    assert any(estimated == pytest.approx(n_candidates / size) for size in sizes if size)


def test_the_time_of_more_defects_than_can_be_planned_is_not_known() -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), "8x8")
    space = SearchSpace(supercell, TYPES, 24)
    assert costs.enumeration_seconds(space, find_symmetry(supercell), 10**34) is None


def test_an_empty_search_space_takes_no_time() -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), "3x3")
    symmetry = find_symmetry(supercell)
    space = SearchSpace(supercell, TYPES, 3, min_defects=3, limits=Limits(min_separation=50.0))
    assert costs.enumeration_seconds(space, symmetry, 0) == 0.0


def add_model(session: Session, name: str) -> int:
    level = tables.LevelOfTheory(name=name, code="VASP", functional="PBE", settings={}, digest=name)
    session.add(level)
    session.flush()
    model = tables.TrainedModel(
        name=name, level_id=level.id, properties=[], settings={}, seed=0, state="finished", weights=b"w"
    )
    session.add(model)
    session.flush()
    return model.id


def scored_chunk(session: Session, model_name: str, n_predictions: int, seconds: float) -> None:
    """A finished scoring by a model of this name."""
    stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "4x4"))
    space_id = searches.add_search_space(session, stored, SearchSpace(stored.supercell, TYPES, 1))
    model_id = add_model(session, model_name)
    session.execute(
        text(
            "INSERT INTO scoring_chunks (model_id, chunk_id, state, n_predictions, started_at, finished_at) "
            "SELECT :model, id, 'finished', :n, now(), now() + make_interval(secs => :seconds) "
            "FROM chunks WHERE search_space_id = :space"
        ),
        {"model": model_id, "n": n_predictions, "seconds": seconds, "space": space_id},
    )


def test_the_time_of_a_scoring_is_that_of_the_last_model(session: Session) -> None:
    assert costs.scoring_seconds(session, 1000) is None
    scored_chunk(session, "old", 100, 50.0)
    scored_chunk(session, "new", 200, 4.0)
    assert costs.scoring_seconds(session, 1000) == pytest.approx(20.0)
