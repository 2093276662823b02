"""Costs of a search space: bytes against a filled table, seconds against the whole walk and against the chunks."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.bulk_copy import Column, copy_rows
from screening.database.campaigns import add_partition, index_partition, partition_bytes, partition_name
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace, enumerate_chunk, enumerate_space, plan_chunks
from screening.defects.host import Supercell
from screening.defects.limits import Limits
from screening.defects.symmetry import find_symmetry
from screening.pipeline import costs, searches
from screening.pipeline.hosts import add_supercell
from tests.pipeline.made_campaigns import add_trained, train_small

TYPES = parse_defect_types("v_S,Se_S,v_Mo,W_Mo")


@pytest.mark.parametrize("n_properties", [0, 2, 8])
def test_the_disk_that_a_campaign_takes_is_estimated_within_a_fifth(session: Session, n_properties: int) -> None:
    """A block of 65,536 rows: PostgreSQL extends a table by up to half a megabyte at once."""
    stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "8x8"))
    space = SearchSpace(stored.supercell, TYPES, 4, min_defects=4)
    campaign = tables.Campaign(
        name="c", search_space_id=searches.add_search_space(session, stored, space), storage="all",
        model_id=add_model(session, "m") if n_properties else None,
    )  # fmt: skip
    session.add(campaign)
    session.flush()
    add_partition(session, campaign.id)
    block = next(enumerate_space(space, stored.symmetry))
    n = len(block)
    generator = np.random.default_rng(0)
    columns: dict[str, Column] = {
        "id": np.arange(n), "campaign_id": np.full(n, campaign.id, np.int32),
        "arrangement_id": np.ones(n, np.int32), "multiplicity": block.multiplicity,
    }  # fmt: skip
    for name in list(tables.PROPERTY_COMMENTS)[:n_properties]:
        columns[f"{name}_mean"] = generator.normal(size=n).astype(np.float32)
        columns[f"{name}_std"] = generator.random(n).astype(np.float32)
    distances = {name: np.full(n, 4.0, np.float32) for name in ("closest", "farthest")}
    copy_rows(session, partition_name(campaign.id), columns | {"sites": block.sites, **distances})
    index_partition(session, campaign.id)
    taken = partition_bytes(session, campaign.id)
    assert costs.disk_bytes(n, n_properties=n_properties) == pytest.approx(taken, rel=1 / 5)


def test_the_time_of_a_walk_follows_from_the_rate_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which the first block takes one second."""
    supercell = Supercell.parse(catalogue_host("MoS2"), "4x4")
    symmetry = find_symmetry(supercell)
    space = SearchSpace(supercell, TYPES, 4)
    n_candidates = sum(space.counts(symmetry).values())
    readings = iter([0.0])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(readings, 1.0))
    estimated = costs.enumeration_seconds(space, symmetry, n_candidates)
    sizes = {
        len(block)
        for chunk in plan_chunks(space, symmetry)
        if chunk.n_defects == 4
        for block in enumerate_chunk(space, symmetry, chunk)
    }
    assert any(estimated == pytest.approx(n_candidates / size) for size in sizes)


def test_the_time_of_a_walk_that_never_ends_is_known_too() -> None:
    """At a billion a second it would be a lower bound."""
    supercell = Supercell.parse(catalogue_host("MoS2"), "8x8")
    n_candidates = 2 * 10**19
    assert costs.enumeration_seconds(SearchSpace(supercell, TYPES, 12), find_symmetry(supercell), n_candidates) > 2e10


def test_a_space_whose_largest_configurations_are_forbidden_takes_the_time_of_looking_for_them() -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), "3x3")
    space = SearchSpace(supercell, TYPES, 3, limits=Limits(min_separation=50.0))
    assert 0.0 <= costs.enumeration_seconds(space, find_symmetry(supercell), 4) < 60.0


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


def scored_chunk(session: Session, model_name: str, n_candidates: int, seconds: float) -> None:
    """A campaign of a model of this name with a chunk that was scored."""
    stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "4x4"))
    space_id = searches.add_search_space(session, stored, SearchSpace(stored.supercell, TYPES, 1))
    campaign = tables.Campaign(
        name=model_name, search_space_id=space_id, model_id=add_model(session, model_name), storage="all"
    )
    session.add(campaign)
    session.flush()
    for number, state in enumerate(["finished", "planned"]):
        chunk = tables.Chunk(
            campaign_id=campaign.id, number=number, scores=True, n_defects=1, state=state, first_sites=[],
            first_defect_types=[], last_sites=[], last_defect_types=[],
        )  # fmt: skip
        if state == "finished":
            chunk.n_candidates, chunk.n_configurations, chunk.checksum = n_candidates, n_candidates, 0
            chunk.worker, chunk.worked_s = "here:1", seconds
        session.add(chunk)
    session.flush()


def test_the_time_of_a_scoring_is_that_of_the_last_model(session: Session) -> None:
    assert costs.scoring_seconds(session, 1000) is None
    scored_chunk(session, "old", 10_000, 50.0)
    scored_chunk(session, "new", 20_000, 40.0)
    scored_chunk(session, "newest", 100, 5.0)  # the time of a small chunk is that of loading the model
    assert costs.scoring_seconds(session, 1000) == pytest.approx(2.0)


def test_a_model_that_has_scored_nothing_is_timed_on_candidates_of_the_largest_size(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = parse_defect_types("v_S,Se_S,v_Mo")
    stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "4x4"))
    model = add_trained(session, stored, train_small(), types)
    space = SearchSpace(stored.supercell, types, 2)
    pairs = SearchSpace(stored.supercell, types, 2, min_defects=2)
    n_of_two = sum(len(block) for block in enumerate_space(pairs, stored.symmetry))
    ticks = iter(range(100))
    monkeypatch.setattr(costs.time, "perf_counter", lambda: float(next(ticks)))  # the scoring takes a second
    found = costs.timed_scoring_seconds(session, model.id, space, stored.symmetry, 10_000)
    assert found == pytest.approx(10_000 / n_of_two)


def test_a_model_is_timed_on_smaller_candidates_where_the_largest_are_forbidden(session: Session) -> None:
    types = parse_defect_types("v_S,Se_S,v_Mo")
    stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "4x4"))
    model = add_trained(session, stored, train_small(), types)
    space = SearchSpace(stored.supercell, types, 3, limits=Limits(min_separation=50.0))
    assert costs.timed_scoring_seconds(session, model.id, space, stored.symmetry, 3) > 0.0
