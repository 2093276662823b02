"""Campaigns from their plan to their end: names, states, what they refuse, and two callers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, func, inspect, select, text, update
from sqlalchemy.orm import Session

from screening.database import leases, tables
from screening.database.campaigns import IDS_PER_CHUNK, partition_name, progress_of
from screening.database.design_query import DesignQuery, Window
from screening.database.session import session_scope
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.defects.host import Supercell
from screening.errors import CountMismatchError, InputError, LeaseLostError
from screening.pipeline import searches
from screening.pipeline.campaigns import CampaignRequest, cancel, close_over, pause, plan, remove, resume, start
from screening.pipeline.designs import run_design_query, store_ranking
from screening.pipeline.hosts import StoredSupercell, add_supercell
from screening.pipeline.scanning import scan_unit
from tests.pipeline.made_campaigns import OWNER, add_trained, claim, scan_waiting, train_small

TYPES = parse_defect_types("v_S,Se_S,v_Mo")
BEST = DesignQuery(host="MoS2", limit=30)
STORED_ONLY = CampaignRequest()
Action = Callable[[Session, tables.Campaign], None]


@pytest.fixture(scope="module")
def weights() -> bytes:
    return train_small()


def add_space(session: Session, max_defects: int = 2, types: Any = TYPES) -> tuple[StoredSupercell, int]:
    stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "4x4"))
    space = SearchSpace(stored.supercell, types, max_defects)
    return stored, searches.add_search_space(session, stored, space)


@pytest.fixture
def space_id(session: Session) -> int:
    return add_space(session)[1]


@pytest.fixture
def model(session: Session, space_id: int, weights: bytes) -> tables.TrainedModel:
    return add_trained(session, add_space(session)[0], weights, TYPES)


def test_a_plan_is_written_with_its_chunks_and_its_partition_and_waits(session: Session, space_id: int) -> None:
    campaign = plan(session, space_id, STORED_ONLY, chunk_rows=10)
    chunks = session.scalars(select(tables.Chunk).order_by(tables.Chunk.number)).all()
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert {(chunk.state, chunk.scores) for chunk in chunks} == {("planned", False)}
    assert [chunk.n_defects for chunk in chunks] == sorted(chunk.n_defects for chunk in chunks)
    assert (campaign.state, campaign.storage, campaign.started_at) == ("planned", "all", None)
    assert inspect(session.connection()).has_table(partition_name(campaign.id))
    assert leases.claim_next(session, tables.Chunk, OWNER) is None


def test_a_campaign_that_keeps_all_is_planned_once(session: Session, model: tables.TrainedModel, space_id: int) -> None:
    scored = plan(session, space_id, CampaignRequest(model.id))
    stored = plan(session, space_id, STORED_ONLY)
    n_chunks = session.scalar(select(func.count()).select_from(tables.Chunk))
    assert stored.id != scored.id
    assert plan(session, space_id, CampaignRequest(model.id)) is scored
    assert plan(session, space_id, CampaignRequest(model.id, name=scored.name)) is scored
    assert plan(session, space_id, STORED_ONLY) is stored
    assert session.scalar(select(func.count()).select_from(tables.Chunk)) == n_chunks
    with pytest.raises(InputError, match=rf"this campaign exists as '{scored.name}' \(planned\); use that name"):
        plan(session, space_id, CampaignRequest(model.id, name="other"))


@pytest.mark.parametrize("query", [BEST.at("WSe2"), BEST.at("MoS2", "9x9")])
def test_a_query_about_something_else_is_refused(
    session: Session, model: tables.TrainedModel, space_id: int, query: DesignQuery
) -> None:
    with pytest.raises(InputError, match=rf"the query is about {query.host} .*, the search space about MoS2 4x4"):
        plan(session, space_id, CampaignRequest(model.id, query))


def test_the_best_of_another_query_are_another_campaign(
    session: Session, model: tables.TrainedModel, space_id: int
) -> None:
    first = plan(session, space_id, CampaignRequest(model.id, BEST))
    again = plan(session, space_id, CampaignRequest(model.id, BEST))
    other = plan(session, space_id, CampaignRequest(model.id, BEST.model_copy(update={"limit": 31})))
    named = plan(session, space_id, CampaignRequest(model.id, BEST, "mine"))
    assert again is first
    assert len({first.id, other.id, named.id}) == 3
    assert plan(session, space_id, CampaignRequest(model.id, BEST, "mine")) is named
    assert DesignQuery.model_validate(first.query) == BEST


def test_campaigns_are_named_after_what_they_are_about(
    session: Session, model: tables.TrainedModel, space_id: int
) -> None:
    queries = [BEST.model_copy(update={"limit": n}) for n in (1, 2, 3)]
    requests = [STORED_ONLY, CampaignRequest(model.id), *(CampaignRequest(model.id, query) for query in queries)]
    assert [plan(session, space_id, request).name for request in requests] == [
        "MoS2-4x4-2", "MoS2-4x4-2-small", "MoS2-4x4-2-small-best", "MoS2-4x4-2-small-best-2", "MoS2-4x4-2-small-best-3",
    ]  # fmt: skip
    assert plan(session, add_space(session, 2, TYPES[:2])[1], STORED_ONLY).name == "MoS2-4x4-2-2"


def test_a_name_that_is_taken_is_refused(session: Session, model: tables.TrainedModel, space_id: int) -> None:
    plan(session, space_id, CampaignRequest(name="mine"))
    for request in (CampaignRequest(model.id, name="mine"), CampaignRequest(model.id, BEST, "mine")):
        with pytest.raises(InputError, match="a campaign is called 'mine' already; choose another name"):
            plan(session, space_id, request)


def test_two_callers_at_once_plan_one_campaign(clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        _, space_id = add_space(session)
    found: list[int] = []
    together = threading.Barrier(2)

    def call() -> None:
        with session_scope(clean_engine) as session:
            together.wait(timeout=30)
            found.append(plan(session, space_id, STORED_ONLY).id)
            if len(found) == 1:
                wait_for_blocked(clean_engine)

    in_threads(call, call)
    assert len(found) == 2
    assert len(set(found)) == 1
    with session_scope(clean_engine) as session:
        assert progress_of(session)[0].chunks == 2


def in_threads(*calls: Callable[[], object]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60.0)
        assert not thread.is_alive()


def wait_for_blocked(engine: Engine) -> None:
    """Until a query of this database waits for a lock."""
    blocked = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    for _ in range(300):
        with engine.connect() as connection:
            if connection.scalar(blocked):
                return
        threading.Event().wait(0.1)
    pytest.fail("a query was expected to wait for a lock within 30 s")


def test_the_best_are_those_of_a_model(session: Session, space_id: int) -> None:
    with pytest.raises(InputError, match="the best candidates are those of a model's predictions; name a model"):
        plan(session, space_id, CampaignRequest(query=BEST))


def test_a_model_that_is_not_trained_or_has_not_seen_a_type_scores_nothing(
    session: Session, model: tables.TrainedModel
) -> None:
    _, unknown = add_space(session, 2, parse_defect_types("v_S,W_Mo"))
    with pytest.raises(InputError, match="model small has never seen W_Mo in MoS2"):
        plan(session, unknown, CampaignRequest(model.id))
    model.state, model.weights = "waiting", None
    session.flush()
    with pytest.raises(InputError, match="model small is waiting; wait until it is trained"):
        plan(session, unknown, CampaignRequest(model.id))
    assert progress_of(session) == []


def test_a_query_asks_for_what_the_model_predicts(session: Session, model: tables.TrainedModel, space_id: int) -> None:
    query = DesignQuery(host="MoS2", windows=(Window(property="total_mag", low=1.0),), sort="lumo")
    with pytest.raises(InputError, match="model small does not predict lumo, total_mag; it predicts formation_energy"):
        plan(session, space_id, CampaignRequest(model.id, query))


def test_more_candidates_than_can_be_scanned_are_refused(session: Session) -> None:
    stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "8x8"))
    space_id = searches.add_search_space(session, stored, SearchSpace(stored.supercell, TYPES, 8, min_defects=8))
    with pytest.raises(InputError, match=r"candidates, which is more than can be scanned one by one; take fewer"):
        plan(session, space_id, STORED_ONLY)


def test_bins_lie_around_the_labels_that_the_model_learnt(
    session: Session, model: tables.TrainedModel, space_id: int
) -> None:
    """Labels of the helper: the code of each type over 4000."""
    plan(session, space_id, CampaignRequest(model.id))
    bins = {row.property: (row.low, row.high, row.n_bins) for row in session.scalars(select(tables.CampaignBins))}
    least, largest = min(t.code for t in TYPES) / 4000, max(t.code for t in TYPES) / 4000
    low, high = least - (largest - least) / 2, largest + (largest - least) / 2
    assert set(bins) == set(model.properties)
    assert bins["homo_lumo_gap_min"] == pytest.approx((low, high, 200))
    assert bins["formation_energy"] == pytest.approx((low, 2 * high, 200))  # of up to two defects
    session.execute(text("DELETE FROM campaign_bins"))
    plan(session, space_id, STORED_ONLY)
    assert session.scalar(select(func.count()).select_from(tables.CampaignBins)) == 0


STATES = {
    "planned": {start: "running", cancel: "cancelled"},
    "running": {start: "running", resume: "running", pause: "paused", cancel: "cancelled"},
    "paused": {resume: "running", pause: "paused", cancel: "cancelled"},
    "cancelled": {resume: "running", cancel: "cancelled"},
    "incomplete": {resume: "running", cancel: "cancelled"},
    "finished": {},
}
OPEN = {"running": "waiting", "paused": "planned", "cancelled": "planned"}


def bring(session: Session, space_id: int, state: str) -> tables.Campaign:
    """A campaign without a model in a state; where chunks are done, all but the last one are."""
    campaign = plan(session, space_id, STORED_ONLY, chunk_rows=10)
    if state == "planned":
        return campaign
    start(session, campaign)
    if state == "incomplete":
        campaign.state, campaign.error = state, "1 chunks failed"
        session.execute(update(tables.Chunk).where(tables.Chunk.number == 1).values(state="failed", error="why"))
    if state == "paused":
        pause(session, campaign)
    if state == "cancelled":
        cancel(session, campaign)
    if state == "finished":
        session.execute(text("ALTER TABLE campaigns DISABLE TRIGGER campaigns_finish"))
        session.execute(update(tables.Campaign).values(state="finished", finished_at=func.now()))
        session.execute(text("ALTER TABLE campaigns ENABLE TRIGGER campaigns_finish"))
    session.flush()
    return campaign


@pytest.mark.parametrize("action", [start, resume, pause, cancel], ids=lambda action: action.__name__)
@pytest.mark.parametrize("state", STATES)
def test_what_can_be_done_with_a_campaign_follows_from_its_state(
    session: Session, space_id: int, state: str, action: Action
) -> None:
    campaign = bring(session, space_id, state)
    becomes = STATES[state].get(action)
    if becomes is None:
        verb = {"start": "started", "cancel": "cancelled"}.get(action.__name__, f"{action.__name__}d")
        with pytest.raises(
            InputError, match=rf"campaign {campaign.name} is {state}; only one that is .* can be {verb}"
        ):
            action(session, campaign)
        assert campaign.state == state
        return
    action(session, campaign)
    session.expire_all()
    assert (campaign.state, campaign.error) == (becomes, campaign.error if becomes == "cancelled" else None)
    assert (campaign.started_at is None) == (state == "planned" and becomes == "cancelled")
    states = set(session.scalars(select(tables.Chunk.state)))
    assert states <= {OPEN[becomes], "failed"}
    assert becomes != "running" or "failed" not in states


@pytest.mark.parametrize("state", STATES)
def test_a_campaign_is_removed_unless_it_runs(session: Session, space_id: int, state: str) -> None:
    campaign = bring(session, space_id, state)
    name = partition_name(campaign.id)
    if state == "running":
        with pytest.raises(InputError, match=f"campaign {campaign.name} is running; cancel it first"):
            remove(session, campaign)
        return
    remove(session, campaign)
    assert progress_of(session) == []
    assert session.scalar(select(func.count()).select_from(tables.Chunk)) == 0
    assert not inspect(session.connection()).has_table(name)
    assert plan(session, space_id, STORED_ONLY).state == "planned"


@pytest.fixture
def stored_space(clean_engine: Engine) -> tuple[Engine, int]:
    """A database with a search space, for what commits."""
    with session_scope(clean_engine) as session:
        return clean_engine, add_space(session)[1]


def begin(engine: Engine, space_id: int, request: CampaignRequest = STORED_ONLY) -> int:
    with session_scope(engine) as session:
        campaign = plan(session, space_id, request, chunk_rows=10)
        start(session, campaign)
        return campaign.id


def act(engine: Engine, action: Action, campaign_id: int) -> None:
    with session_scope(engine) as session:
        action(session, session.get_one(tables.Campaign, campaign_id))


def seen(engine: Engine, campaign_id: int) -> Any:
    with session_scope(engine) as session:
        return progress_of(session, campaign_id)[0]


def check_finished(engine: Engine, campaign_id: int) -> None:
    """Finished, with the exact counts in the rows themselves, by composition."""
    with session_scope(engine) as session:
        campaign = session.get_one(tables.Campaign, campaign_id)
        assert (campaign.state, campaign.error) == ("finished", None)
        assert campaign.finished_at is not None
        stored = session.execute(
            select(tables.Arrangement.composition_id, func.count())
            .join(tables.Candidate, tables.Candidate.arrangement_id == tables.Arrangement.id)
            .where(tables.Candidate.campaign_id == campaign_id)
            .group_by(tables.Arrangement.composition_id)
        ).all()
        expected = session.execute(
            select(tables.SearchSpaceCount.composition_id, tables.SearchSpaceCount.expected).where(
                tables.SearchSpaceCount.search_space_id == campaign.search_space_id
            )
        ).all()
        assert dict(stored) == dict(expected)
        assert len(expected) == 9  # three of one defect, six of two
        indexes = inspect(session.connection()).get_indexes(partition_name(campaign_id))
        assert [index["name"] for index in indexes] == [f"{partition_name(campaign_id)}_id"]


def test_a_campaign_ends_with_the_last_chunk_and_not_before(stored_space: tuple[Engine, int]) -> None:
    engine, space_id = stored_space
    campaign_id = begin(engine, space_id)
    n_chunks = seen(engine, campaign_id).chunks
    assert n_chunks > 2
    for number in range(n_chunks):
        close_over(engine)
        assert (seen(engine, campaign_id).state, seen(engine, campaign_id).chunks_done) == ("running", number)
        scan_waiting(engine, campaign_id, [number])
    close_over(engine)
    check_finished(engine, campaign_id)
    close_over(engine)
    check_finished(engine, campaign_id)


def test_a_pause_lets_the_chunk_that_runs_come_to_its_end(stored_space: tuple[Engine, int]) -> None:
    engine, space_id = stored_space
    campaign_id = begin(engine, space_id)
    chunk_id = claim(engine)
    assert chunk_id is not None
    act(engine, pause, campaign_id)
    assert claim(engine) is None
    scan_unit(engine, chunk_id, OWNER, device="cpu")
    close_over(engine)
    assert (seen(engine, campaign_id).state, seen(engine, campaign_id).chunks_done) == ("paused", 1)
    act(engine, resume, campaign_id)
    scan_waiting(engine, campaign_id)
    close_over(engine)
    check_finished(engine, campaign_id)


def test_a_campaign_that_was_paused_in_its_last_chunk_is_resumed_to_its_end(stored_space: tuple[Engine, int]) -> None:
    engine, space_id = stored_space
    campaign_id = begin(engine, space_id)
    scan_waiting(engine, campaign_id)
    act(engine, pause, campaign_id)
    act(engine, resume, campaign_id)
    close_over(engine)
    check_finished(engine, campaign_id)


def test_a_cancellation_drops_the_chunk_that_runs_and_keeps_what_is_finished(stored_space: tuple[Engine, int]) -> None:
    """The worker has written its rows, and waits where a lock holds it, when the campaign is cancelled."""
    engine, space_id = stored_space
    campaign_id = begin(engine, space_id)
    scan_waiting(engine, campaign_id, [0])
    chunk_id = claim(engine)
    assert chunk_id is not None
    raised: list[BaseException] = []

    def scan() -> None:
        try:
            scan_unit(engine, chunk_id, OWNER, device="cpu")
        except LeaseLostError as error:
            raised.append(error)

    worker = threading.Thread(target=scan)
    with engine.connect() as connection, connection.begin():
        connection.execute(text(f"LOCK TABLE {partition_name(campaign_id)} IN SHARE MODE"))
        worker.start()
        wait_for_blocked(engine)
        act(engine, cancel, campaign_id)
    worker.join(timeout=60)
    assert len(raised) == 1
    with session_scope(engine) as session:
        chunks = set(session.scalars(select(tables.Candidate.id // IDS_PER_CHUNK)))
        assert chunks == {0}
        assert (
            session.scalars(select(tables.ChunkCount.chunk_id).where(tables.ChunkCount.chunk_id == chunk_id)).all()
            == []
        )
    assert claim(engine) is None
    act(engine, resume, campaign_id)
    scan_waiting(engine, campaign_id)
    close_over(engine)
    check_finished(engine, campaign_id)


def test_a_campaign_with_failed_chunks_is_incomplete_until_they_are_tried_again(
    stored_space: tuple[Engine, int],
) -> None:
    engine, space_id = stored_space
    campaign_id = begin(engine, space_id)
    for error in ("the disk is full", "later"):
        chunk_id = claim(engine)
        assert chunk_id is not None
        with session_scope(engine) as session:
            leases.fail(session, tables.Chunk, chunk_id, OWNER, error=error)
    scan_waiting(engine, campaign_id)
    close_over(engine)
    found = seen(engine, campaign_id)
    assert (found.state, found.chunks_failed, found.is_over) == ("incomplete", 2, True)
    assert found.error == "2 chunks failed, the first (number 0) with: the disk is full"
    act(engine, resume, campaign_id)
    assert (seen(engine, campaign_id).chunks_failed, seen(engine, campaign_id).error) == (0, None)
    scan_waiting(engine, campaign_id)
    close_over(engine)
    check_finished(engine, campaign_id)


def test_a_count_that_is_not_exact_leaves_the_campaign_incomplete_and_is_told(stored_space: tuple[Engine, int]) -> None:
    engine, space_id = stored_space
    campaign_id = begin(engine, space_id)
    scan_waiting(engine, campaign_id)
    with session_scope(engine) as session:
        session.execute(text("DELETE FROM candidates WHERE id = (SELECT max(id) FROM candidates)"))
    with pytest.raises(CountMismatchError, match=r"campaign MoS2-4x4-2 is not complete: 0 open chunks.*report it"):
        close_over(engine)
    found = seen(engine, campaign_id)
    assert found.state == "incomplete"
    assert "stored, 0 compositions differ" in (found.error or "")
    close_over(engine)


def test_two_callers_at_once_close_a_campaign_once(stored_space: tuple[Engine, int]) -> None:
    """The second one meets the first in the middle, and passes by."""
    engine, space_id = stored_space
    campaign_id = begin(engine, space_id)
    scan_waiting(engine, campaign_id)
    with engine.connect() as connection, connection.begin():
        connection.execute(text(f"LOCK TABLE {partition_name(campaign_id)}"))
        first = threading.Thread(target=close_over, args=(engine,))
        first.start()
        wait_for_blocked(engine)
        in_threads(lambda: close_over(engine))
        assert seen(engine, campaign_id).state == "running"
    first.join(timeout=60)
    check_finished(engine, campaign_id)


def test_a_campaign_does_not_end_while_a_chunk_runs_though_another_one_failed(stored_space: tuple[Engine, int]) -> None:
    engine, space_id = stored_space
    campaign_id = begin(engine, space_id)
    chunk_id = claim(engine)
    assert chunk_id is not None
    with session_scope(engine) as session:
        leases.fail(session, tables.Chunk, chunk_id, OWNER, error="why")
    assert claim(engine) is not None
    with session_scope(engine) as session:
        session.execute(text("UPDATE chunks SET state = 'planned' WHERE state = 'waiting'"))
    close_over(engine)
    assert seen(engine, campaign_id).state == "running"


def test_a_ranking_outlives_its_campaign(clean_engine: Engine, weights: bytes) -> None:
    with session_scope(clean_engine) as session:
        stored, space_id = add_space(session)
        model_id = add_trained(session, stored, weights, TYPES).id
    campaign_id = begin(clean_engine, space_id, CampaignRequest(model_id))
    scan_waiting(clean_engine, campaign_id)
    close_over(clean_engine)
    with session_scope(clean_engine) as session:
        table = run_design_query(session, BEST)
        ranking_id = store_ranking(session, BEST, table)
        assert session.get_one(tables.Ranking, ranking_id).campaign_id == campaign_id
        remove(session, session.get_one(tables.Campaign, campaign_id))
        session.expire_all()
        assert session.get_one(tables.Ranking, ranking_id).campaign_id is None
        kept = session.scalars(select(tables.RankingRow).order_by(tables.RankingRow.rank)).all()
        assert [(row.candidate_id, row.sites, row.multiplicity) for row in kept] == [
            (row["candidate"], row["sites"], row["multiplicity"]) for row in table.rows
        ]
        assert len(kept) == BEST.limit


def test_a_campaign_is_deleted_while_another_one_is_written(clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        done = plan(session, add_space(session)[1], STORED_ONLY)
        start(session, done)
        done_id = done.id
    scan_waiting(clean_engine, done_id)
    close_over(clean_engine)
    with session_scope(clean_engine) as session:
        other_id = plan(session, add_space(session, 1)[1], STORED_ONLY).id
    with session_scope(clean_engine) as writer:  # as a worker inside a chunk
        writer.execute(
            text(
                f"INSERT INTO {partition_name(other_id)} (id, campaign_id, arrangement_id, multiplicity, sites) "
                f"VALUES (1, {other_id}, 1, 1, '{{1}}')"
            )
        )
        with session_scope(clean_engine) as session:
            remove(session, session.get_one(tables.Campaign, done_id))
        with session_scope(clean_engine) as session:
            assert session.scalar(text(f"SELECT count(*) FROM {partition_name(done_id)}")) == 0
            assert session.get(tables.Campaign, done_id) is None
    with session_scope(clean_engine) as session:
        remove(session, session.get_one(tables.Campaign, other_id))
        partitions = inspect(session.connection()).get_table_names()
    assert not {partition_name(done_id), partition_name(other_id)} & set(partitions)
