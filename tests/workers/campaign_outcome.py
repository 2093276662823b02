"""Two campaigns, one of each storage mode, and all that they come to: what a disturbed one must come to as well."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, func, select, text

from screening.database import leases, tables
from screening.database.design_query import DesignQuery
from screening.database.session import session_scope
from screening.pipeline import campaigns
from screening.pipeline.campaigns import CampaignRequest
from screening.pipeline.dispatch import announce
from screening.pipeline.scanning import scan_unit
from screening.services import addresses
from screening.settings import Settings
from tests.workers.real_workers import add_space, command, n_blocked, plan_campaign, progress, stuck, wait_until

CAMPAIGNS = ("all", "best")  # their names are their storage modes
MAX_DEFECTS = 4
CHUNK_ROWS = 1500
QUERY = DesignQuery(host="MoS2", limit=700)

_CANDIDATES = """
SELECT candidates.id, multiplicity, sites, arrangements.defect_types, {predictions}
FROM candidates JOIN arrangements ON arrangements.id = arrangement_id WHERE campaign_id = {campaign_id} ORDER BY 1
"""
_CHUNKS = """
SELECT number, n_defects, state, rows_done, n_candidates, n_configurations, n_matching, checksum,
    (SELECT array_agg((label, c.n_candidates, c.n_matching)::text ORDER BY label)
     FROM chunk_counts AS c JOIN compositions ON compositions.id = composition_id WHERE chunk_id = chunks.id),
    (SELECT array_agg((property, counts)::text ORDER BY property) FROM chunk_histograms WHERE chunk_id = chunks.id)
FROM chunks WHERE campaign_id = :campaign_id ORDER BY number
"""


@dataclass(frozen=True)
class Outcome:
    """What a campaign has come to.

    Attributes:
        rows: number of stored candidates.
        digest: SHA-256 of all of them in the order of their ids, bit by bit: sites, defect types, predictions.
        chunks: what was counted in each, with its checksum.
        cutoff: of storage `best`.
    """

    state: str
    rows: int
    digest: str
    chunks: tuple[tuple[Any, ...], ...]
    cutoff: float | None


def plan_campaigns(engine: Engine, model_id: int) -> None:
    space_id = add_space(engine, max_defects=MAX_DEFECTS)
    for name, query in (("all", None), ("best", QUERY)):
        plan_campaign(engine, space_id, CampaignRequest(model_id, query, name), chunk_rows=CHUNK_ROWS)


def campaign_id_of(engine: Engine, name: str) -> int:
    with session_scope(engine) as session:
        return session.execute(select(tables.Campaign.id).where(tables.Campaign.name == name)).scalar_one()


def scan_undisturbed(engine: Engine, name: str, *, max_defects: int = MAX_DEFECTS) -> Outcome:
    """Scan a campaign in this process, chunk by chunk."""
    campaign_id = campaign_id_of(engine, name)
    command(engine, campaigns.start, campaign_id)
    while True:
        owner = leases.new_owner()
        with session_scope(engine) as session:
            chunk_id = leases.claim_next(session, tables.Chunk, owner)
        if chunk_id is None:
            break
        scan_unit(engine, chunk_id, owner, device="cpu")
    campaigns.close_over(engine)
    check_exact(engine, campaign_id, max_defects=max_defects)
    return outcome(engine, campaign_id)


def outcome(engine: Engine, campaign_id: int) -> Outcome:
    predictions = [c.name for c in tables.Candidate.__table__.columns if c.name.endswith(("_mean", "_std"))]
    statement = _CANDIDATES.format(predictions=", ".join(predictions), campaign_id=campaign_id)
    digest = hashlib.sha256()
    with session_scope(engine) as session:
        campaign = session.get_one(tables.Campaign, campaign_id)
        n_rows = select(func.count()).where(tables.Candidate.campaign_id == campaign_id)
        driver: Any = session.connection().connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(f"COPY ({statement}) TO STDOUT (FORMAT BINARY)") as copy:
            for part in copy:
                digest.update(part)
        chunks = session.execute(text(_CHUNKS), {"campaign_id": campaign_id}).all()
        as_tuples = tuple(tuple(tuple(v) if isinstance(v, list) else v for v in chunk) for chunk in chunks)
        return Outcome(
            campaign.state, session.execute(n_rows).scalar_one(), digest.hexdigest(), as_tuples, campaign.cutoff
        )


def check_exact(engine: Engine, campaign_id: int, *, max_defects: int = MAX_DEFECTS) -> None:
    """Every configuration is in the orbit of exactly one candidate, and no candidate is there twice."""
    # 4x4 MoS2 has 48 sites, and two of the four defect types fit on each
    configurations = {n: 2**n * math.comb(48, n) for n in range(1, max_defects + 1)}
    chunk, candidate, size = tables.Chunk, tables.Candidate, func.cardinality(tables.Candidate.sites)
    of_chunks = (
        select(chunk.n_defects, func.sum(chunk.n_configurations), func.sum(chunk.n_candidates))
        .where(chunk.campaign_id == campaign_id)
        .group_by(chunk.n_defects)
    )
    of_candidates = (
        select(
            size, func.sum(candidate.multiplicity), func.count(),
            func.count(func.distinct(func.row(candidate.sites, candidate.arrangement_id))),
        )
        .where(candidate.campaign_id == campaign_id)
        .group_by(size)
    )  # fmt: skip
    with session_scope(engine) as session:
        campaign = session.get_one(tables.Campaign, campaign_id)
        assert (campaign.state, campaign.error) == ("finished", None)
        expected = session.get_one(tables.SearchSpace, campaign.search_space_id).expected
        counted = session.execute(of_chunks).all()
        assert {n: total for n, total, _ in counted} == configurations
        assert sum(n for _, _, n in counted) == expected
        stored = session.execute(of_candidates).all()
        assert all(n == n_distinct for _, _, n, n_distinct in stored)
        if campaign.storage == "all":
            assert {n: total for n, total, _, _ in stored} == configurations
            assert sum(n for _, _, n, _ in stored) == expected
        else:
            assert sum(n for _, _, n, _ in stored) == min(QUERY.limit, expected)


@contextmanager
def inside_a_chunk(engine: Engine, project: Settings, name: str, *, processes: int = 1) -> Iterator[int]:
    """Start a campaign, whose number is given; so many processes wait inside a chunk until the block ends."""
    campaign_id = campaign_id_of(engine, name)
    with stuck(engine, "candidates"):
        command(engine, campaigns.start, campaign_id)
        announce(addresses(project).redis_url, "score")
        wait_until(lambda: n_blocked(engine) >= processes, project)
        yield campaign_id


def check_same(engine: Engine, project: Settings, name: str, expected: Outcome) -> None:
    """A campaign ends, exact, and bit by bit as the undisturbed one did."""
    campaign_id = campaign_id_of(engine, name)
    wait_until(lambda: progress(engine, campaign_id).is_over, project)
    check_exact(engine, campaign_id)
    assert outcome(engine, campaign_id) == expected
