"""Campaigns in the database: what views say of hand-made rows, what the trigger refuses, what trimming leaves."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from sqlalchemy import Engine, inspect, select, text
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from screening.database.bulk_copy import copy_rows
from screening.database.campaigns import (
    add_partition,
    campaigns_over,
    drop_partition,
    index_partition,
    move_chunks,
    partition_bytes,
    partition_name,
    progress_of,
    trim,
    workers_of,
)
from screening.database.design_query import DesignQuery, Window
from screening.database.tables import Campaign, Candidate, Chunk

GAP, ENERGY = "homo_lumo_gap_min", "formation_energy_per_site"
FINISHED = """
    UPDATE chunks SET state = 'finished', n_candidates = 4, n_configurations = 512, checksum = 1, worker = 'h:1',
        worked_s = 1.0, finished_at = now() WHERE number = 0;
    INSERT INTO chunks (campaign_id, number, scores, n_defects, first_sites, first_defect_types, last_sites,
            last_defect_types, state, n_candidates, n_configurations, checksum, worker, worked_s, finished_at)
        SELECT campaign_id, 1, true, 2, '{}', '{}', '{}', '{}', 'finished', 6, 600, 2, 'h:1', 1.0, now() FROM chunks;
    INSERT INTO search_space_counts SELECT search_space_id, :vacancy, 4 FROM campaigns
        UNION ALL SELECT search_space_id, :pair, 6 FROM campaigns;
    INSERT INTO chunk_counts SELECT id, CASE number WHEN 0 THEN :vacancy ELSE :pair END, n_candidates FROM chunks;
    INSERT INTO candidates (id, campaign_id, arrangement_id, multiplicity, sites)
        SELECT n, :campaign, :one, 1, ARRAY[n]::smallint[] FROM generate_series(1, 10) AS n"""
FINISH = "UPDATE campaigns SET state = 'finished', finished_at = now()"


def run(session: Session, script: str, ids: Any) -> None:
    """Run statements one after another; a name after a colon stands for an id."""
    for statement in script.split(";"):
        session.execute(text(statement), {name: n for name, n in vars(ids).items() if f":{name}" in statement})


def add_chunk(session: Session, ids: Any, number: int, state: str, **columns: Any) -> None:
    """A chunk; of columns that are text, the SQL is meant."""
    names = "campaign_id, number, scores, n_defects, first_sites, first_defect_types, last_sites, last_defect_types"
    given = ", ".join(columns)
    values = ", ".join(str(value) for value in columns.values())
    session.execute(
        text(
            f"INSERT INTO chunks ({names}, state{', ' * bool(given)}{given}) VALUES (:campaign, :number, true, 2, "
            f"'{{}}', '{{}}', '{{}}', '{{}}', :state{', ' * bool(given)}{values})"
        ),
        {"campaign": ids.campaign, "number": number, "state": state},
    )


@pytest.fixture
def at_work(session: Session, ids: Any) -> Any:
    """A campaign of 1000 candidates in the middle of it; `now()` stands still in a transaction."""
    session.execute(text("UPDATE search_spaces SET expected = 1000"))
    done = {"n_configurations": 9999, "checksum": 1}
    add_chunk(
        session, ids, 1, "finished", n_candidates=300, worker="'h:1'", worked_s=10.0, peak_memory_mb=500,
        finished_at="now() - interval '1 minute'", **done,
    )  # fmt: skip
    add_chunk(
        session, ids, 2, "finished", n_candidates=100, worker="'h:2'", worked_s=20.0, peak_memory_mb=700,
        finished_at="now() - interval '1 hour'", **done,
    )  # fmt: skip
    add_chunk(
        session, ids, 3, "running", rows_done=50, lease_owner="'h:1:ab'", lease_until="now() + interval '20 s'",
        heartbeat="now() - interval '2 s'", started_at="now() - interval '7 s'",
    )  # fmt: skip
    add_chunk(
        session, ids, 4, "running", rows_done=7, lease_owner="'other-host:3:cd'", lease_until="now() - interval '1 s'",
        heartbeat="now() - interval '30 s'", started_at="now() - interval '32 s'",
    )  # fmt: skip
    add_chunk(session, ids, 5, "failed", error="'the disk is full'")
    add_chunk(session, ids, 6, "failed", error="'later'")
    add_chunk(session, ids, 7, "planned")
    return ids


def test_progress_adds_up_finished_chunks_and_what_running_ones_have_been_through(
    session: Session, at_work: Any
) -> None:
    (seen,) = progress_of(session, at_work.campaign)
    assert (seen.campaign, seen.state, seen.storage, seen.model) == ("c1", "running", "all", "m1")
    assert (seen.candidates, seen.candidates_done, seen.candidates_left) == (1000, 457, 543)
    assert seen.candidates_matching is None
    assert (seen.chunks, seen.chunks_done, seen.chunks_running, seen.chunks_failed) == (8, 2, 1, 2)
    assert (seen.error, seen.finished_at, seen.is_over) == ("the disk is full", None, False)


def test_the_speed_is_that_of_the_workers_that_work_now(session: Session, at_work: Any) -> None:
    (seen,) = progress_of(session, at_work.campaign)
    assert seen.workers == 1
    assert seen.per_second == pytest.approx((300 + 50) / (10 + 5))
    assert seen.seconds_left == pytest.approx(543 * 15 / 350)
    session.execute(text("UPDATE chunks SET lease_until = now() - interval '1 s' WHERE state = 'running'"))
    (seen,) = progress_of(session, at_work.campaign)
    assert (seen.workers, seen.per_second, seen.seconds_left, seen.chunks_running) == (0, None, None, 0)


def test_a_worker_that_has_just_begun_has_no_speed_yet(session: Session, ids: Any) -> None:
    session.execute(
        text(
            "UPDATE chunks SET state = 'running', lease_owner = 'h:1:a', lease_until = now(), "
            "heartbeat = now(), started_at = now()"
        )
    )
    (seen,) = progress_of(session, ids.campaign)
    assert (seen.workers, seen.per_second, seen.seconds_left) == (1, None, None)


def test_workers_are_named_by_host_and_process_with_what_they_have_done(session: Session, at_work: Any) -> None:
    first, second, dead = workers_of(session, at_work.campaign)
    now = session.execute(text("SELECT now()")).scalar_one()
    assert (first.worker, first.chunks_done, first.candidates, first.is_working) == ("h:1", 1, 350, True)
    assert (first.peak_memory_mb, first.heartbeat) == (500.0, now - timedelta(seconds=2))
    assert (second.worker, second.chunks_done, second.candidates, second.is_working) == ("h:2", 1, 100, False)
    assert (second.per_second, second.heartbeat) == (None, now - timedelta(hours=1))
    assert (dead.worker, dead.chunks_done, dead.candidates, dead.is_working) == ("other-host:3", 0, 7, False)


def test_every_campaign_is_listed_with_or_without_chunks_and_model(session: Session, ids: Any) -> None:
    session.add(Campaign(name="c2", search_space_id=ids.search_space, storage="all"))
    session.flush()
    first, second = progress_of(session)
    assert (first.campaign, second.campaign, second.model) == ("c1", "c2", None)
    assert (second.chunks, second.candidates_done, second.candidates_left, second.workers) == (0, 0, 10, 0)
    assert progress_of(session, first.campaign_id) == [first]
    assert progress_of(session, second.campaign_id + 1) == []


def test_histograms_of_chunks_are_added_up_with_the_ends_of_their_bins(session: Session, ids: Any) -> None:
    add_chunk(session, ids, 1, "planned")
    run(
        session,
        """INSERT INTO campaign_bins VALUES (:campaign, 'homo', -6.0, -5.0, 4), (:campaign, 'lumo', 0.0, 2.0, 1);
        INSERT INTO chunk_histograms SELECT id, 'homo', CASE number WHEN 0 THEN '{1,2,0,3,4,5}'::integer[]
            ELSE '{0,1,1,0,0,2000000000}' END FROM chunks;
        INSERT INTO chunk_histograms SELECT id, 'lumo', '{0,7,2000000000}' FROM chunks""",
        ids,
    )
    found = session.execute(text("SELECT * FROM campaign_histograms ORDER BY property, bin")).all()
    assert [tuple(row)[1:] for row in found] == [
        ("homo", 0, None, -6.0, 1),
        ("homo", 1, -6.0, -5.75, 3),
        ("homo", 2, -5.75, -5.5, 1),
        ("homo", 3, -5.5, -5.25, 3),
        ("homo", 4, -5.25, -5.0, 4),
        ("homo", 5, -5.0, None, 2_000_000_005),
        ("lumo", 0, None, 0.0, 0),
        ("lumo", 1, 0.0, 2.0, 14),
        ("lumo", 2, 2.0, None, 4_000_000_000),
    ]


def test_a_complete_campaign_is_finished(session: Session, ids: Any) -> None:
    run(session, FINISHED, ids)
    session.execute(text(FINISH))
    (seen,) = progress_of(session, ids.campaign)
    assert (seen.state, seen.candidates_done, seen.candidates_left, seen.is_over) == ("finished", 10, 0, True)


BEST = "UPDATE campaigns SET storage = 'best', query = '{\"limit\": %d}'"
UNCOUNTED = "n_candidates = NULL, n_configurations = NULL, checksum = NULL, worker = NULL, worked_s = NULL"
BREACHES = {
    "a chunk that waits": (
        "DELETE FROM chunk_counts WHERE n_candidates = 6;"
        f"UPDATE chunks SET state = 'waiting', {UNCOUNTED} WHERE number = 1",
        "1 open chunks, 4 of 10 counted, 10 stored, 1 compositions differ",
    ),
    "a chunk that failed": (f"UPDATE chunks SET state = 'failed', error = 'x', {UNCOUNTED}", "2 open chunks"),
    "too few": ("UPDATE search_spaces SET expected = 11", "0 open chunks, 10 of 11 counted, 10 stored"),
    "too many": ("UPDATE search_spaces SET expected = 9", "10 of 9 counted"),
    "other compositions": ("UPDATE chunk_counts SET n_candidates = 5", "10 of 10 counted, 10 stored, 2 compositions"),
    "a composition that is not counted": ("DELETE FROM chunk_counts WHERE n_candidates = 4", "1 compositions differ"),
    "a composition that is not expected": (
        "INSERT INTO compositions (label, defect_types, counts, n_defects) VALUES ('Te_S', '{2100}', '{1}', 1);"
        "INSERT INTO chunk_counts SELECT chunks.id, compositions.id, 1 FROM chunks, compositions "
        "WHERE number = 0 AND label = 'Te_S'",
        "10 of 10 counted, 10 stored, 1 compositions differ",
    ),
    "a row that is not stored": ("DELETE FROM candidates WHERE id = 3", "10 of 10 counted, 9 stored, 0 compositions"),
    "a row that is stored twice": (
        "INSERT INTO candidates SELECT * FROM candidates WHERE id = 3",
        "10 of 10 counted, 11 stored, 0 compositions",
    ),
    "more than the limit of the query": (f"UPDATE chunks SET n_matching = n_candidates;{BEST % 9}", "10 stored"),
    "fewer than the limit and than match": (f"UPDATE chunks SET n_matching = n_candidates;{BEST % 11};"
                                            "DELETE FROM candidates WHERE id = 3", "9 stored"),
    "more than match": (f"UPDATE chunks SET n_matching = 4;{BEST % 20}", "10 stored"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREACHES)
def test_a_campaign_is_not_finished_with(session: Session, ids: Any, name: str) -> None:
    breach, reason = BREACHES[name]
    run(session, FINISHED, ids)
    run(session, breach, ids)
    with pytest.raises(IntegrityError, match=f"campaign c1 is not complete: .*{reason}") as caught:
        session.execute(text(FINISH))
    assert caught.value.orig.diag.constraint_name == "ck_campaigns_is_complete"  # type: ignore[union-attr]


@pytest.mark.parametrize(("limit", "n_matching", "n_stored"), [(7, 4, 7), (8, 4, 8), (9, 4, 8), (9, 0, 0)])
def test_of_the_best_as_many_are_stored_as_match_up_to_the_limit(
    session: Session, ids: Any, limit: int, n_matching: int, n_stored: int
) -> None:
    """Each of the two chunks has as many that match."""
    run(session, FINISHED, ids)
    run(session, f"UPDATE chunks SET n_matching = {n_matching};{BEST % limit}", ids)
    session.execute(text("DELETE FROM candidates WHERE id > :n"), {"n": n_stored})
    session.execute(text(FINISH))
    (seen,) = progress_of(session, ids.campaign)
    assert (seen.state, seen.candidates_matching) == ("finished", 2 * n_matching)


def test_a_campaign_does_not_begin_as_finished(session: Session, ids: Any) -> None:
    with pytest.raises(ProgrammingError, match=r"candidates_\d+.* does not exist"):
        session.execute(
            text(
                "INSERT INTO campaigns (name, search_space_id, storage, state, finished_at) "
                "VALUES ('c2', :search_space, 'all', 'finished', now())"
            ),
            vars(ids),
        )


def add_campaign(session: Session, ids: Any, **columns: Any) -> Campaign:
    campaign = Campaign(**{"name": "c2", "search_space_id": ids.search_space, "storage": "all"} | columns)
    session.add(campaign)
    session.flush()
    add_partition(session, campaign.id)
    return campaign


def test_rows_of_campaigns_are_in_partitions_of_their_own(session: Session, ids: Any) -> None:
    other = add_campaign(session, ids)
    for campaign_id in (ids.campaign, other.id):
        session.add(Candidate(id=1, campaign_id=campaign_id, arrangement_id=ids.one, multiplicity=1, sites=[3]))
        session.flush()
        assert session.scalar(text(f"SELECT campaign_id FROM {partition_name(campaign_id)}")) == campaign_id
    drop_partition(session, other.id)
    assert session.scalars(text("SELECT campaign_id FROM candidates")).all() == [ids.campaign]
    with pytest.raises(IntegrityError, match="no partition of relation"):
        session.execute(
            text(
                "INSERT INTO candidates (id, campaign_id, arrangement_id, multiplicity, sites) "
                "VALUES (1, :campaign, 1, 1, '{1}')"
            ),
            {"campaign": other.id},
        )


def indexes_of(session: Session, campaign_id: int) -> dict[str, list[str | None]]:
    name = partition_name(campaign_id)
    found = inspect(session.connection()).get_indexes(name)
    return {str(index["name"]).removeprefix(name): index["column_names"] for index in found}


def test_a_partition_gets_its_indexes_once(session: Session, ids: Any) -> None:
    assert indexes_of(session, ids.campaign) == {}
    for _ in range(2):
        index_partition(session, ids.campaign)
    assert indexes_of(session, ids.campaign) == {
        "_id": ["id"],
        "_energy": [f"{ENERGY}_mean", f"{GAP}_mean"],
        "_gap": [f"{GAP}_mean", f"{ENERGY}_mean"],
        "_arrangement": ["arrangement_id", f"{ENERGY}_mean", f"{GAP}_mean"],
    }


def test_candidates_without_predictions_are_indexed_by_id_only(session: Session, ids: Any) -> None:
    other = add_campaign(session, ids)
    index_partition(session, other.id)
    assert indexes_of(session, other.id) == {"_id": ["id"]}


def test_a_partition_is_as_large_as_its_rows_and_indexes(session: Session, ids: Any) -> None:
    assert partition_bytes(session, ids.campaign) <= 16384
    store(session, ids, np.zeros(5000, np.float32), np.zeros(5000, np.float32))
    rows_only = partition_bytes(session, ids.campaign)
    assert 5000 * 60 < rows_only < 5000 * 200
    index_partition(session, ids.campaign)
    assert partition_bytes(session, ids.campaign) > rows_only


def test_a_campaign_is_added_while_another_one_is_read_and_written(clean_engine: Engine, committed_ids: Any) -> None:
    ids = committed_ids
    with Session(clean_engine) as busy, Session(clean_engine) as planner:
        store(busy, ids, np.zeros(5, np.float32), np.zeros(5, np.float32))
        assert busy.scalar(text("SELECT count(*) FROM candidates")) == 5
        planner.execute(text("SET LOCAL lock_timeout = '2s'"))
        other = add_campaign(planner, ids)
        busy.execute(text("SET LOCAL lock_timeout = '2s'"))
        assert busy.scalar(text(f"SELECT count(*) FROM {partition_name(ids.campaign)}")) == 5
        campaign_id = other.id
        planner.commit()
        busy.commit()
    with Session(clean_engine) as session:
        assert indexes_of(session, campaign_id) == {}


def test_a_campaign_whose_rows_are_being_written_is_not_dropped(clean_engine: Engine, committed_ids: Any) -> None:
    ids = committed_ids
    with Session(clean_engine) as busy, Session(clean_engine) as other:
        store(busy, ids, np.zeros(5, np.float32), np.zeros(5, np.float32))
        other.execute(text("SET LOCAL lock_timeout = '200ms'"))
        with pytest.raises(OperationalError, match="lock timeout"):
            drop_partition(other, ids.campaign)
        busy.commit()
    with Session(clean_engine) as session:
        assert session.scalar(text("SELECT count(*) FROM candidates")) == 5


def store(session: Session, ids: Any, energy: np.ndarray, gap: np.ndarray) -> None:
    """Candidates 1, 2, ... with these means; standard deviations 0.1 and 0.2."""
    n = len(energy)
    copy_rows(
        session,
        partition_name(ids.campaign),
        {
            "id": np.arange(1, n + 1), "campaign_id": np.full(n, ids.campaign, np.int32),
            "arrangement_id": np.full(n, ids.one, np.int32), "multiplicity": np.ones(n, np.int32),
            "sites": np.arange(n, dtype=np.int16)[:, None],
            f"{ENERGY}_mean": energy, f"{ENERGY}_std": np.full(n, 0.1, np.float32),
            f"{GAP}_mean": gap, f"{GAP}_std": np.full(n, 0.2, np.float32),
        },
    )  # fmt: skip


def best_of(session: Session, ids: Any, **query: Any) -> Campaign:
    """The campaign, which keeps the best of a query."""
    campaign = session.get_one(Campaign, ids.campaign, populate_existing=True)
    campaign.storage, campaign.query = "best", DesignQuery(host="MoS2", **query).stored()
    session.flush()
    return campaign


def kept(session: Session) -> list[int]:
    return list(session.scalars(select(Candidate.id).order_by(Candidate.id)))


@pytest.mark.parametrize("limit", [1, 7, 40, 99, 100])
@pytest.mark.parametrize("direction", ["lowest", "highest"])
def test_trimming_leaves_the_first_rows_of_a_plain_sort_ties_by_id(
    session: Session, ids: Any, direction: str, limit: int
) -> None:
    energy = (np.random.default_rng(3).integers(-6, 6, 100) / 10).astype(np.float32)  # every value many times
    store(session, ids, energy, np.zeros(100, np.float32))
    cutoff = trim(session, best_of(session, ids, limit=limit, direction=direction))
    sign = 1 if direction == "lowest" else -1
    ranked = sorted((sign * float(value), n) for n, value in enumerate(energy, start=1))[:limit]
    assert kept(session) == sorted(n for _, n in ranked)
    assert cutoff == (ranked[-1][0] if limit < 100 else None)


def test_trimming_by_probability_ranks_six_digits_of_it(session: Session, ids: Any) -> None:
    """Beside the middle of a window the probability is nearly flat: of equal digits the smaller id stays."""
    gap = np.float32(1.0) + np.random.default_rng(4).integers(-40, 40, 200).astype(np.float32) * np.float32(2e-4)
    store(session, ids, np.zeros(200, np.float32), gap)
    window = Window(property=GAP, low=0.8, high=1.2)
    cutoff = trim(session, best_of(session, ids, limit=60, sort="probability", windows=(window,)))
    spread = norm(np.float64(gap), np.float64(np.float32(0.2)))
    probability = np.round(spread.cdf(1.2) - spread.cdf(0.8), 6)
    ranked = sorted(zip((-probability).tolist(), range(1, 201), strict=True))[:60]
    assert len({value for value, _ in ranked}) < 30
    assert kept(session) == sorted(n for _, n in ranked)
    assert cutoff == pytest.approx(ranked[-1][0], abs=1e-9)


def test_nothing_is_trimmed_within_the_slack_and_the_cutoff_stays(session: Session, ids: Any) -> None:
    store(session, ids, np.arange(100, dtype=np.float32), np.zeros(100, np.float32))
    campaign = best_of(session, ids, limit=60)
    campaign.cutoff = 77.5
    assert trim(session, campaign, slack=40) == 77.5
    assert len(kept(session)) == 100
    assert trim(session, campaign, slack=39) == 59.0
    assert kept(session) == list(range(1, 61))


def test_other_campaigns_are_not_trimmed(session: Session, ids: Any) -> None:
    other = add_campaign(session, ids)
    for n in range(1, 6):
        session.add(Candidate(id=n, campaign_id=other.id, arrangement_id=ids.one, multiplicity=1, sites=[n]))
    session.flush()
    store(session, ids, np.arange(9, dtype=np.float32), np.zeros(9, np.float32))
    trim(session, best_of(session, ids, limit=2))
    assert session.execute(text("SELECT campaign_id, count(*) FROM candidates GROUP BY 1 ORDER BY 1")).all() == [
        (ids.campaign, 2),
        (other.id, 5),
    ]


def test_chunks_are_moved_as_if_never_begun_and_finished_ones_stay(session: Session, at_work: Any) -> None:
    session.execute(text("UPDATE chunks SET attempts = 3"))
    assert move_chunks(session, at_work.campaign, ["running", "failed"], "planned") == 4
    moved = session.scalars(select(Chunk).where(Chunk.number.in_([3, 4, 5, 6])).order_by(Chunk.number)).all()
    for chunk in moved:
        session.refresh(chunk)
        assert (chunk.state, chunk.attempts, chunk.lease_owner, chunk.lease_until) == ("planned", 0, None, None)
        assert (chunk.heartbeat, chunk.started_at, chunk.rows_done, chunk.error) == (None, None, 0, None)
    states = dict(session.execute(select(Chunk.number, Chunk.state)).all())
    assert states == dict(enumerate(["waiting", "finished", "finished", *["planned"] * 5]))


def test_chunks_of_other_campaigns_are_not_moved(session: Session, at_work: Any) -> None:
    assert move_chunks(session, at_work.campaign + 1, ["waiting", "failed"], "planned") == 0


@pytest.mark.parametrize(
    ("change", "is_over"),
    [
        ("SELECT 1", False),
        ("DELETE FROM chunks WHERE number = 0", False),
        ("DELETE FROM chunks WHERE number IN (0, 3, 4)", True),
        ("DELETE FROM chunks WHERE number IN (0, 3, 4); UPDATE campaigns SET state = 'paused'", False),
    ],
)
def test_a_running_campaign_is_over_when_no_chunk_waits_or_runs(
    session: Session, at_work: Any, change: str, is_over: bool
) -> None:
    run(session, change, at_work)
    assert list(campaigns_over(session)) == ([at_work.campaign] if is_over else [])
