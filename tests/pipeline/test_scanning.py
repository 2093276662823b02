"""Scanning against a brute-force twin, and the rows kept of the best against those of a campaign that keeps all."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from ase.data import chemical_symbols
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session

from screening.database import leases, tables
from screening.database.branches import load_branch
from screening.database.campaigns import IDS_PER_CHUNK, move_chunks
from screening.database.design_query import DesignQuery, Window
from screening.database.query_sql import compile_query
from screening.database.session import session_scope
from screening.defects.catalogue import catalogue_host
from screening.defects.checksum import add_checksums, checksum
from screening.defects.defect_types import Configuration, composition_label, parse_defect_types
from screening.defects.enumeration import Block, SearchSpace, enumerate_chunk, enumerate_space
from screening.defects.host import Supercell
from screening.errors import InputError, LeaseLostError
from screening.learning.artifacts import ensemble_from_bytes
from screening.learning.scorer import score_configurations
from screening.pipeline import campaigns, scanning, searches
from screening.pipeline.block_queries import QueryBlock, matching, probabilities, sort_keys
from screening.pipeline.campaigns import CampaignRequest, close_over
from screening.pipeline.designs import run_design_query
from screening.pipeline.hosts import StoredSupercell, add_supercell
from screening.pipeline.scanning import scan_unit
from tests.pipeline.made_campaigns import OWNER, add_trained, claim, scan_waiting, train_small

TYPES = parse_defect_types("v_S,Se_S,v_Mo")
GAP, ENERGY, TOTAL = "homo_lumo_gap_min", "formation_energy_per_site", "formation_energy"
CHUNK_ROWS = 60
BLOCK_ROWS = 25  # several blocks in a chunk


@dataclass(frozen=True)
class Project:
    """4x4 MoS2 with one to three of three types, and a model that knows them."""

    engine: Engine
    stored: StoredSupercell
    space: SearchSpace
    space_id: int
    model_id: int

    def run(self, query: DesignQuery | None = None, *, order: Any = None, scores: bool = True) -> int:
        """A campaign from its plan to its end; its id."""
        request = CampaignRequest(self.model_id if scores else None, query)
        with session_scope(self.engine) as session:
            campaign = campaigns.plan(session, self.space_id, request, chunk_rows=CHUNK_ROWS)
            campaigns.start(session, campaign)
            campaign_id = campaign.id
            n_chunks = session.scalar(select(func.count()).where(tables.Chunk.campaign_id == campaign_id))
        assert n_chunks is not None
        assert n_chunks > 6
        scan_waiting(self.engine, campaign_id, None if order is None else order.permutation(n_chunks))
        close_over(self.engine)
        return campaign_id


@pytest.fixture(scope="module")
def weights() -> bytes:
    return train_small()


@pytest.fixture
def project(clean_engine: Engine, weights: bytes, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr(scanning, "enumerate_chunk", partial(enumerate_chunk, block_rows=BLOCK_ROWS))
    with session_scope(clean_engine) as session:
        stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "4x4"))
        model_id = add_trained(session, stored, weights, TYPES).id
        space = SearchSpace(stored.supercell, TYPES, 3)
        return Project(clean_engine, stored, space, searches.add_search_space(session, stored, space), model_id)


def rows_of(engine: Engine, campaign_id: int) -> list[dict[str, Any]]:
    """Every row of a campaign, in the order of the ids."""
    with session_scope(engine) as session:
        statement = (
            select(tables.Candidate.__table__, tables.Arrangement.defect_types, tables.Composition.label)
            .join(tables.Arrangement, tables.Arrangement.id == tables.Candidate.arrangement_id)
            .join(tables.Composition, tables.Composition.id == tables.Arrangement.composition_id)
            .where(tables.Candidate.campaign_id == campaign_id)
            .order_by(tables.Candidate.id)
        )
        return [dict(row) for row in session.execute(statement).mappings()]


def test_distances_between_defects_are_stored_and_a_single_defect_has_none(project: Project) -> None:
    supercell = project.stored.supercell
    for row in rows_of(project.engine, project.run()):
        pairs = [supercell.pair_distances[a, b] for a in row["sites"] for b in row["sites"] if a < b]
        if pairs:
            assert (row["closest"], row["farthest"]) == pytest.approx((min(pairs), max(pairs)), rel=1e-6)
        else:
            assert (row["closest"], row["farthest"]) == (None, None)


def test_how_errors_spread_is_stored_before_anything_is_scored(project: Project, weights: bytes) -> None:
    ensemble = ensemble_from_bytes(weights)
    campaign_id = project.run()
    with session_scope(project.engine) as session:
        multiples = {
            (row.n_defects, row.property): row.multiple for row in session.scalars(select(tables.IntervalMultiple))
        }
        correlations = session.scalars(
            select(tables.CampaignCorrelation).where(tables.CampaignCorrelation.campaign_id == campaign_id)
        ).all()
        pairs = {(row.n_defects, row.property, row.other): row.correlation for row in correlations}
    expected = ensemble.half_width(0.95, np.ones((3, len(ensemble.properties))), ["MoS2"] * 3, np.arange(3) + 1)
    assert multiples == {
        (k + 1, name): pytest.approx(expected[k, p]) for k in range(3) for p, name in enumerate(ensemble.properties)
    }
    names = sorted(ensemble.properties)
    assert pairs.keys() == {(k, a, b) for k in (1, 2, 3) for i, a in enumerate(names) for b in names[i + 1 :]}
    assert pairs[2, "formation_energy", "formation_energy_per_site"] > 0.0


def n_stored(engine: Engine) -> int:
    with session_scope(engine) as session:
        return session.execute(select(func.count()).select_from(tables.Candidate)).scalar_one()


def configuration_of(row: dict[str, Any]) -> Configuration:
    return Configuration(tuple(row["sites"]), tuple(row["defect_types"]))


def test_a_campaign_that_keeps_all_is_what_brute_force_finds(project: Project, weights: bytes) -> None:
    rows = rows_of(project.engine, project.run(order=np.random.default_rng(1)))
    expected = {
        block.configuration(i): int(block.multiplicity[i])
        for block in enumerate_space(project.space, project.stored.symmetry)
        for i in range(len(block))
    }
    found = {configuration_of(row): row["multiplicity"] for row in rows}
    assert len(rows) == len(found)
    assert found == expected
    assert all(row["label"] == configuration_of(row).composition for row in rows)
    mean, std = score_configurations(ensemble_from_bytes(weights), project.stored.supercell, list(found), device="cpu")
    for p, name in enumerate((TOTAL, ENERGY, GAP)):
        np.testing.assert_allclose([row[f"{name}_mean"] for row in rows], mean[:, p], atol=1e-4)
        np.testing.assert_allclose([row[f"{name}_std"] for row in rows], std[:, p], atol=1e-4)
    assert {row["total_mag_mean"] for row in rows} == {None}


def test_candidates_stand_for_every_configuration_once(project: Project) -> None:
    """32 S sites with two types, 16 Mo sites with one: choose sites, then types."""
    by_size: Counter[int] = Counter()
    for row in rows_of(project.engine, project.run(scores=False)):
        by_size[len(row["sites"])] += row["multiplicity"]
    assert by_size == {n: sum(2**k * math.comb(32, k) * math.comb(16, n - k) for k in range(n + 1)) for n in (1, 2, 3)}


@pytest.mark.parametrize("scores", [True, False])
def test_counters_of_chunks_are_those_of_their_rows(project: Project, scores: bool) -> None:
    campaign_id = project.run(scores=scores)
    rows = rows_of(project.engine, campaign_id)
    identifiers = [row["id"] for row in rows]
    assert len(set(identifiers)) == len(identifiers)
    with session_scope(project.engine) as session:
        chunks = session.scalars(select(tables.Chunk).where(tables.Chunk.campaign_id == campaign_id)).all()
        for chunk in chunks:
            mine = [row for row in rows if row["id"] // IDS_PER_CHUNK == chunk.number]
            assert [row["id"] % IDS_PER_CHUNK for row in mine] == list(range(len(mine)))
            assert (chunk.n_candidates, chunk.rows_done, chunk.n_matching) == (len(mine), len(mine), None)
            assert chunk.n_configurations == sum(row["multiplicity"] for row in mine)
            assert (chunk.worker, chunk.lease_owner) == (OWNER.rpartition(":")[0], None)
            assert 0 < (chunk.worked_s or 0) < 60
            assert 20 < (chunk.peak_memory_mb or 0) < 20_000  # python with numpy, and less than the machine has
            assert counted_by_label(session, chunk.id) == {
                label: (n, None) for label, n in Counter(row["label"] for row in mine).items()
            }
        total = 0
        for chunk in chunks:
            assert chunk.checksum is not None
            total = add_checksums(total, chunk.checksum)
    whole = 0
    for block in enumerate_space(project.space, project.stored.symmetry):
        whole = add_checksums(whole, checksum(block))
    assert total == whole != 0


def counted_by_label(session: Session, chunk_id: int) -> dict[str, tuple[int, int | None]]:
    counted = tables.ChunkCount
    found = session.execute(
        select(tables.Composition.label, counted.n_candidates, counted.n_matching)
        .join(counted, counted.composition_id == tables.Composition.id)
        .where(counted.chunk_id == chunk_id)
    )
    return {row.label: (row.n_candidates, row.n_matching) for row in found}


def test_histograms_are_those_of_numpy_on_all_rows(project: Project) -> None:
    campaign_id = project.run()
    rows = rows_of(project.engine, campaign_id)
    with session_scope(project.engine) as session:
        found = session.execute(
            text("SELECT property, low, high, candidates FROM campaign_histograms ORDER BY property, bin")
        ).all()
    properties = {row.property for row in found}
    assert properties == {TOTAL, ENERGY, GAP}
    n_outside = 0
    for name in properties:
        mine = [row for row in found if row.property == name]
        edges = [row.low for row in mine[1:]]
        means = np.array([row[f"{name}_mean"] for row in rows], np.float64)
        counts, _ = np.histogram(means, [-np.inf, *edges, np.inf])
        assert [row.candidates for row in mine] == counts.tolist()
        assert [row.high for row in mine[:-1]] == edges
        assert sum(counts) == len(rows)
        n_outside += counts[0] + counts[-1]
    assert n_outside > 0  # the labels of this model say little of its predictions


QUERIES = {
    "lowest of all": {"limit": 50},
    "highest of all": {"limit": 50, "direction": "highest", "sort": TOTAL},
    "one row": {"limit": 1},
    "more than there are": {"limit": 100_000},
    "few defects": {"limit": 30, "max_defects": 2},
    "windows": {"windows": ((GAP, 0.9, 1.6), (ENERGY, None, 4.0)), "limit": 40},
    "more than match": {"windows": ((GAP, 0.6, 1.6),), "limit": 5000, "confidence": 0.8},
    "little confidence": {"windows": ((GAP, 0.8, 1.0),), "confidence": 0.11, "limit": 70, "sort": GAP},
    "no match": {"windows": ((GAP, 90.0, None),), "limit": 10},
    "by probability": {"windows": ((GAP, 0.9, 1.1),), "sort": "probability", "limit": 60, "confidence": 0.22},
    "by probability, nearly all the same": {
        "windows": ((GAP, -50.0, 50.0),), "sort": "probability", "limit": 60, "direction": "highest",
    },
}  # fmt: skip


def query_of(name: str, **changes: Any) -> DesignQuery:
    given = dict(QUERIES[name]) | changes
    windows = tuple(Window(property=p, low=low, high=high) for p, low, high in given.pop("windows", ()))
    return DesignQuery(host="MoS2", windows=windows, **given)


def ranked(engine: Engine, campaign_id: int, query: DesignQuery) -> list[dict[str, Any]]:
    """Rows of a design query: ids, sites, defect types, multiplicity, probability, and every prediction."""
    with session_scope(engine) as session:
        branch = load_branch(session, session.get_one(tables.Campaign, campaign_id), query)
        rows = session.execute(compile_query(query, [branch])).mappings()
        return [{name: value for name, value in row.items() if name != "campaign_id"} for row in rows]


def test_the_best_that_are_kept_are_the_first_rows_of_the_same_query_on_all(project: Project) -> None:
    """Chunks in another order for each query; bit by bit the same predictions."""
    whole = project.run()
    rows = rows_of(project.engine, whole)
    order = np.random.default_rng(7)
    for name in QUERIES:
        query = query_of(name)
        best = project.run(query, order=order)
        with session_scope(project.engine) as session:
            found = run_design_query(session, query, campaign_name=session.get_one(tables.Campaign, best).name)
        assert [row["candidate"] for row in found.rows] == [
            row["candidate"] for row in ranked(project.engine, best, query)
        ]
        expected = ranked(project.engine, whole, query)
        everything = ranked(project.engine, whole, query_of(name, limit=1_000_000))
        assert ranked(project.engine, best, query) == expected, name
        assert [row["id"] for row in rows_of(project.engine, best)] == sorted(row["candidate"] for row in expected), (
            name
        )
        check_counts(project.engine, best, rows, {row["candidate"] for row in everything})


def check_counts(engine: Engine, campaign_id: int, rows: list[dict[str, Any]], matching: set[int]) -> None:
    """Counters by composition are those of all rows, of which some satisfy the query."""
    with session_scope(engine) as session:
        chunks = session.execute(
            select(tables.Chunk.id, tables.Chunk.number, tables.Chunk.n_candidates, tables.Chunk.n_matching).where(
                tables.Chunk.campaign_id == campaign_id
            )
        ).all()
        for chunk in chunks:
            mine = [row for row in rows if row["id"] // IDS_PER_CHUNK == chunk.number]
            match = Counter(row["label"] for row in mine if row["id"] in matching)
            assert (chunk.n_candidates, chunk.n_matching) == (len(mine), match.total())
            assert counted_by_label(session, chunk.id) == {
                label: (n, match[label]) for label, n in Counter(row["label"] for row in mine).items()
            }


def test_queries_of_the_twin_are_worth_asking(project: Project) -> None:
    """Some match everything, some a part, one nothing; and equal keys occur."""
    whole = project.run()
    n_rows = n_stored(project.engine)
    n_matching = {name: len(ranked(project.engine, whole, query_of(name, limit=1_000_000))) for name in QUERIES}
    assert n_matching["no match"] == 0
    for name in ("windows", "more than match", "little confidence", "by probability"):
        assert 20 < n_matching[name] < n_rows - 20
    assert n_matching["windows"] > query_of("windows").limit
    same = ranked(project.engine, whole, query_of("by probability, nearly all the same", limit=1_000_000))
    assert len({row["probability"] for row in same}) < len(same) / 2


def test_rows_beyond_the_best_are_dropped_before_the_end(project: Project) -> None:
    """With storage best a campaign of any size takes the disk of a few times its limit."""
    query = query_of("lowest of all", limit=5)
    with session_scope(project.engine) as session:
        campaign = campaigns.plan(
            session, project.space_id, CampaignRequest(project.model_id, query), chunk_rows=CHUNK_ROWS
        )
        campaigns.start(session, campaign)
        numbers = list(session.scalars(select(tables.Chunk.number).where(tables.Chunk.campaign_id == campaign.id)))
        campaign_id = campaign.id
    cutoffs = []
    for number in numbers:
        scan_waiting(project.engine, campaign_id, [number])
        assert n_stored(project.engine) <= 2 * query.limit
        with session_scope(project.engine) as session:
            cutoffs.append(session.get_one(tables.Campaign, campaign_id).cutoff)
    known = [cutoff for cutoff in cutoffs if cutoff is not None]
    assert len(known) > 3
    assert known == sorted(known, reverse=True)  # what is kept only gets better


def waiting_chunk(project: Project, query: DesignQuery | None = None) -> int:
    """The first chunk of a campaign that was started, claimed."""
    with session_scope(project.engine) as session:
        request = CampaignRequest(project.model_id, query)
        campaigns.start(session, campaigns.plan(session, project.space_id, request, chunk_rows=CHUNK_ROWS))
    chunk_id = claim(project.engine)
    assert chunk_id is not None
    return chunk_id


def n_counted(engine: Engine) -> tuple[int, int]:
    with session_scope(engine) as session:
        return tuple(
            session.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (tables.ChunkCount, tables.ChunkHistogram)
        )  # type: ignore[return-value]


@pytest.mark.parametrize("query", [None, query_of("lowest of all")], ids=["all", "best"])
def test_a_chunk_that_is_finished_is_not_scanned_again(project: Project, query: DesignQuery | None) -> None:
    chunk_id = waiting_chunk(project, query)
    scan_unit(project.engine, chunk_id, OWNER, device="cpu")
    before = n_stored(project.engine), n_counted(project.engine)
    assert min(before[0], *before[1]) > 0
    with pytest.raises(LeaseLostError, match=f"chunks {chunk_id} is no longer held by {OWNER}"):
        scan_unit(project.engine, chunk_id, OWNER, device="cpu")
    assert (n_stored(project.engine), n_counted(project.engine)) == before


@pytest.mark.parametrize("query", [None, query_of("lowest of all")], ids=["all", "best"])
def test_a_chunk_that_was_taken_over_leaves_nothing_behind(project: Project, query: DesignQuery | None) -> None:
    chunk_id = waiting_chunk(project, query)
    with session_scope(project.engine) as session:
        session.execute(update(tables.Chunk).where(tables.Chunk.id == chunk_id).values(lease_owner="here:2:next"))
    with pytest.raises(LeaseLostError, match=f"chunks {chunk_id}"):
        scan_unit(project.engine, chunk_id, OWNER, device="cpu")
    assert (n_stored(project.engine), n_counted(project.engine)) == (0, (0, 0))
    scan_unit(project.engine, chunk_id, "here:2:next", device="cpu")
    assert n_stored(project.engine) > 0


def test_a_scan_stops_soon_after_its_campaign_was_cancelled(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.6)
    chunk_id = waiting_chunk(project)
    walked = []

    def cancelled_after_a_block(*arguments: Any) -> Iterator[Block]:
        for block in enumerate_chunk(*arguments, block_rows=1):
            walked.append(len(block))
            if len(walked) == 2:
                with session_scope(project.engine) as session:
                    campaigns.cancel(session, session.scalars(select(tables.Campaign)).one())
                time.sleep(1.0)  # a few beats
            yield block

    monkeypatch.setattr(scanning, "enumerate_chunk", cancelled_after_a_block)
    with pytest.raises(LeaseLostError, match="the lease ran out, or the campaign was cancelled"):
        scan_unit(project.engine, chunk_id, OWNER, device="cpu")
    assert walked == [1, 1]
    assert (n_stored(project.engine), n_counted(project.engine)) == (0, (0, 0))


def test_a_scan_tells_how_far_it_is(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.6)
    chunk_id = waiting_chunk(project)
    seen = []

    def slowly(*arguments: Any) -> Iterator[Block]:
        for n, block in enumerate(enumerate_chunk(*arguments, block_rows=1)):
            yield block
            if n == 1:
                time.sleep(1.0)
                with session_scope(project.engine) as session:
                    chunk = session.get_one(tables.Chunk, chunk_id)
                    seen.append((chunk.rows_done, chunk.heartbeat is not None, chunk.n_candidates))

    monkeypatch.setattr(scanning, "enumerate_chunk", slowly)
    scan_unit(project.engine, chunk_id, OWNER, device="cpu")
    assert seen == [(2, True, None)]


def test_two_workers_at_once_scan_what_one_does(project: Project) -> None:
    """Both meet new arrangements and both trim."""
    query = query_of("lowest of all", limit=10)
    alone = project.run(query)
    before = ranked(project.engine, alone, query)
    with session_scope(project.engine) as session:
        campaigns.remove(session, session.get_one(tables.Campaign, alone))
        session.execute(text("DELETE FROM arrangements"))
        campaign = campaigns.plan(
            session, project.space_id, CampaignRequest(project.model_id, query), chunk_rows=CHUNK_ROWS
        )
        campaigns.start(session, campaign)
        campaign_id = campaign.id
    raised: list[BaseException] = []

    def work(owner: str) -> None:
        try:
            while (chunk_id := claim(project.engine, owner=owner)) is not None:
                scan_unit(project.engine, chunk_id, owner, device="cpu")
            close_over(project.engine)
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(f"here:{n}:x",)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert raised == []
    close_over(project.engine)
    assert [row["candidate"] for row in ranked(project.engine, campaign_id, query)] == [
        row["candidate"] for row in before
    ]
    with session_scope(project.engine) as session:
        assert session.get_one(tables.Campaign, campaign_id).state == "finished"


def test_a_model_that_does_not_know_a_type_says_so(project: Project) -> None:
    with session_scope(project.engine) as session:
        campaign = campaigns.plan(session, project.space_id, CampaignRequest(project.model_id))
        campaigns.start(session, campaign)
        campaign_id = campaign.id
        types = [t.code for t in parse_defect_types("v_S,Se_S,v_Mo,W_Mo")]
        session.execute(update(tables.SearchSpace).values(defect_types=types))
    with pytest.raises(InputError, match="W_Mo"):
        scan_waiting(project.engine, campaign_id)


def test_a_campaign_that_keeps_its_best_answers_what_it_can(project: Project) -> None:
    """More match than are kept: only the same query, cut shorter."""
    query = query_of("windows")
    with session_scope(project.engine) as session:
        name = session.get_one(tables.Campaign, project.run(query)).name
    with session_scope(project.engine) as session:
        shorter = run_design_query(session, query_of("windows", limit=7), campaign_name=name)
        same = run_design_query(session, query, campaign_name=name)
        assert [row["candidate"] for row in shorter.rows] == [row["candidate"] for row in same.rows[:7]]
        assert (len(same.rows), same.campaign) == (40, name)
        for other in (
            query_of("windows", limit=41),
            query_of("windows", sort=GAP),
            query_of("windows", confidence=0.9),
            query_of("windows", max_defects=2),
        ):
            with pytest.raises(
                InputError, match=rf"campaign {name} keeps 40 of the \d+ candidates that satisfy .*plan"
            ):
                run_design_query(session, other, campaign_name=name)
        with pytest.raises(InputError, match="has scored no search space of host MoS2"):
            run_design_query(session, query)  # not by itself: it would have to keep all


def test_a_campaign_that_keeps_all_that_match_answers_every_narrower_query(project: Project) -> None:
    whole = project.run()
    with session_scope(project.engine) as session:
        name = session.get_one(tables.Campaign, project.run(query_of("more than match"))).name
    for other in (
        query_of("more than match", sort=GAP, direction="highest", limit=30),
        query_of("more than match", confidence=0.9, max_defects=2),
        query_of("more than match", windows=((GAP, 0.65, 1.5), (ENERGY, None, 5.0))),
    ):
        expected = ranked(project.engine, whole, other)
        with session_scope(project.engine) as session:
            found = run_design_query(session, other, campaign_name=name).rows
        assert [row["candidate"] for row in found] == [row["candidate"] for row in expected]
        assert len(found) > 3
    with session_scope(project.engine) as session, pytest.raises(InputError, match="keeps"):
        run_design_query(session, query_of("more than match", confidence=0.7), campaign_name=name)


def test_probabilities_and_keys_are_those_of_the_database(project: Project) -> None:
    whole = project.run()
    rows = rows_of(project.engine, whole)
    for name in QUERIES:
        query = query_of(name, limit=1_000_000)
        with session_scope(project.engine) as session:
            branch = load_branch(session, session.get_one(tables.Campaign, whole), query)
        found = {row["candidate"]: row for row in ranked(project.engine, whole, query)}
        n_matching = 0
        for n_defects in sorted({len(row["sites"]) for row in rows}):
            of_size = [row for row in rows if len(row["sites"]) == n_defects]
            scores = {
                column: np.array([row[column] for row in of_size], np.float32)
                for column in rows[0]
                if column.endswith(("_mean", "_std")) and rows[0][column] is not None
            }
            types, multiplicity = (
                np.array([row[column] for row in of_size], dtype)
                for column, dtype in (("defect_types", np.int16), ("multiplicity", np.int32))
            )
            distances = {
                column: np.array([row[column] for row in of_size], np.float32)
                for column in (("closest", "farthest") if n_defects > 1 else ())
            }
            block = QueryBlock(types, multiplicity, scores, **distances)
            probability = probabilities(query, branch.spreads, scores, n_defects)
            chosen = np.flatnonzero(matching(query, branch, block, probability))
            stored = [found[of_size[i]["id"]] for i in chosen]
            np.testing.assert_allclose([row["probability"] for row in stored], probability[chosen], atol=1e-6)
            keys = sort_keys(query, branch, block, probability)[chosen]
            np.testing.assert_allclose([row["key"] for row in stored], keys, atol=1.01e-6)
            n_matching += len(chosen)
        assert n_matching == len(found)


@pytest.mark.parametrize(("n_types", "n_defects"), [(3, 4), (40, 3), (40, 12), (90, 10)])
def test_arrangements_are_told_apart_however_many_types(clean_engine: Engine, n_types: int, n_defects: int) -> None:
    """40**12 and 90**10 arrangements are more than 64 bits can number."""
    symbols = [symbol for symbol in chemical_symbols[1:] if symbol != "S"][:n_types]
    types = parse_defect_types(",".join(f"{symbol}_S" for symbol in symbols))
    supercell = Supercell.parse(catalogue_host("MoS2"), "3x3")
    generator = np.random.default_rng(n_types)
    codes = np.array([t.code for t in types], np.int16)[generator.integers(0, n_types, (40, n_defects))]
    codes = codes[generator.integers(0, 40, 200)]  # each of them several times
    block = Block(np.zeros_like(codes), codes, np.ones(200, np.int32))
    seen = scanning._Arrangements(clean_engine, SearchSpace(supercell, types, n_defects))
    for _ in range(2):
        arrangement, composition = seen.of(block)
        with session_scope(clean_engine) as session:
            stored = {row.id: row for row in session.scalars(select(tables.Arrangement))}
            labels = dict(session.execute(select(tables.Composition.id, tables.Composition.label)).all())
            for row in range(200):
                of_row = stored[int(arrangement[row])]
                assert of_row.defect_types == codes[row].tolist()
                assert of_row.composition_id == composition[row]
                assert labels[of_row.composition_id] == composition_label(Counter(codes[row].tolist()))
        assert len(stored) == len(np.unique(codes, axis=0))


def test_a_chunk_that_is_open_again_is_scanned_as_if_never_begun(project: Project) -> None:
    chunk_id = waiting_chunk(project)
    with session_scope(project.engine) as session:
        campaign_id = session.get_one(tables.Chunk, chunk_id).campaign_id
        move_chunks(session, campaign_id, ["running"], "waiting")
    with pytest.raises(LeaseLostError):
        scan_unit(project.engine, chunk_id, OWNER, device="cpu")
    scan_waiting(project.engine, campaign_id)
    close_over(project.engine)
    with session_scope(project.engine) as session:
        campaign = session.get_one(tables.Campaign, campaign_id)
        expected = session.get_one(tables.SearchSpace, project.space_id).expected
        assert (campaign.state, n_stored(project.engine)) == ("finished", expected)
