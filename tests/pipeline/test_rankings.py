"""Rankings that are kept: what they say of themselves, and how two of them differ."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.design_query import DesignQuery
from screening.errors import InputError, UnknownNameError
from screening.pipeline import campaigns
from screening.pipeline.designs import run_design_query
from screening.pipeline.ranking_changes import Change, compare_rankings
from screening.pipeline.rankings import SavedRanking, find_ranking, list_rankings, load_ranking, store_ranking
from tests.pipeline.test_designs import add_level, add_model, scored

QUERY = DesignQuery.of(host="MoS2", windows="gap=0.5:1.25", confidence=0.3, limit=6)


@pytest.fixture
def campaign(session: Session) -> tables.Campaign:
    return scored(session, add_model(session, "m", add_level(session)))


def kept(
    session: Session, query: DesignQuery = QUERY, name: str | None = None, model: str | None = None
) -> SavedRanking:
    number = store_ranking(session, query, run_design_query(session, query, model_name=model), name=name)
    return load_ranking(session, find_ranking(session, name or str(number)))


def test_a_ranking_says_what_it_was_made_of_when_its_campaign_is_gone(
    session: Session, campaign: tables.Campaign
) -> None:
    before = kept(session, name="first")
    campaigns.remove(session, campaign)
    session.expire_all()
    found = load_ranking(session, find_ranking(session, "first"))
    assert found.rows == before.rows
    assert found.query == QUERY
    (place,) = found.places
    assert (place["host"], place["supercell"], place["model"], place["campaign_id"]) == ("MoS2", "4x4", "m", None)
    assert place["campaign"] == before.places[0]["campaign"]


def test_every_row_says_why_it_is_there_with_its_numbers(session: Session, campaign: tables.Campaign) -> None:
    table = run_design_query(session, QUERY)
    for row in table.rows:
        mean, std = row["homo_lumo_gap_min_mean"], row["homo_lumo_gap_min_std"]
        energy = row["formation_energy_per_site_mean"]
        assert row["reason"] == (
            f"homo_lumo_gap_min {mean:.3f} +- {std:.3f} is in 0.5:1.25 with probability {row['probability']:.3f}; "
            f"lowest formation_energy_per_site: {energy:.3f} +- 0.050"
        )
    stored = kept(session)
    assert [row["reason"] for row in stored.rows] == [row["reason"] for row in table.rows]
    values = stored.rows[0]["values"]["homo_lumo_gap_min"]
    assert values[2] == pytest.approx(table.rows[0]["probability"], abs=1e-6)
    assert stored.rows[0]["values"]["formation_energy_per_site"][2] is None


def test_two_windows_say_whether_they_are_correlated(session: Session, campaign: tables.Campaign) -> None:
    query = DesignQuery.of(host="MoS2", windows=["gap=0.5:1.25", "formation_energy_per_site=:2"], confidence=0.2)
    assert "(independent)" in run_design_query(session, query).rows[0]["reason"]
    for n_defects in (1, 2):
        session.add(
            tables.CampaignCorrelation(
                campaign_id=campaign.id, n_defects=n_defects, property="formation_energy_per_site",
                other="homo_lumo_gap_min", correlation=0.4,
            )
        )  # fmt: skip
    session.flush()
    assert "(correlated)" in run_design_query(session, query).rows[0]["reason"]


def test_names_are_unique_and_a_missing_one_says_what_there_is(session: Session, campaign: tables.Campaign) -> None:
    kept(session, name="first")
    with pytest.raises(InputError, match="a ranking is called 'first' already"):
        kept(session, name="first")
    with pytest.raises(
        UnknownNameError, match=r"no ranking is called 'second'; the newest are first: `screening ranking"
    ):
        find_ranking(session, "second")
    assert [(row["name"], row["model"], row["rows"]) for row in list_rankings(session)] == [("first", "m", 6)]


def causes(session: Session, older: SavedRanking, newer: SavedRanking) -> dict[tuple[int | None, int | None], Change]:
    return {(c.rank_before, c.rank_after): c for c in compare_rankings(session, older, newer)}


def test_the_same_ranking_twice_has_no_change(session: Session, campaign: tables.Campaign) -> None:
    older = kept(session)
    assert compare_rankings(session, older, kept(session)) == []


def change(session: Session, candidate_id: int, **values: float) -> None:
    session.execute(update(tables.Candidate).where(tables.Candidate.id == candidate_id).values(**values))
    session.expire_all()


def test_what_moved_up_down_in_or_out_has_its_cause(session: Session, campaign: tables.Campaign) -> None:
    older = kept(session)
    copies = {row["rank"]: row["candidate"] for row in older.rows}
    # another campaign would hold the new numbers; here the snapshot keeps the old ones
    change(session, copies[5], formation_energy_per_site_mean=-3.0)
    newer = kept(session)
    found = causes(session, older, newer)
    assert found[5, 1].what == "rose"
    assert re.search(
        r"formation_energy_per_site moved by -\d+\.\d standard deviations: .* before, -3\.000 after", found[5, 1].cause
    )
    assert found[1, 2].what == "fell"
    assert found[1, 2].cause == "displaced by others"
    assert {c.what for c in found.values()} == {"rose", "fell"}


def test_a_candidate_whose_windows_fell_below_the_confidence_went(session: Session, campaign: tables.Campaign) -> None:
    older = kept(session)
    first = older.rows[0]["candidate"]
    change(session, first, homo_lumo_gap_min_mean=1.9, homo_lumo_gap_min_std=0.05)
    found = causes(session, older, kept(session))
    assert found[1, None].what == "went"
    assert re.fullmatch(r"probability fell below 0\.3: 0\.\d+ before, 0\.000 after", found[1, None].cause)
    came = [c for c in found.values() if c.what == "came"]
    assert len(came) == 1


def test_another_query_is_the_cause_of_all(session: Session, campaign: tables.Campaign) -> None:
    older = kept(session)
    newer = kept(
        session, DesignQuery.of(host="MoS2", windows="gap=0.5:1.25", confidence=0.3, limit=6, direction="highest")
    )
    assert {c.cause for c in compare_rankings(session, older, newer)} == {"another query: direction"}


def calculate(session: Session, row: dict[str, Any], finished_at: Any) -> None:
    """A finished calculation of a row."""
    composition = (
        select(tables.Composition.id).where(tables.Composition.label == row["configuration"]).scalar_subquery()
    )
    configuration = tables.Configuration(
        supercell_id=row["supercell_id"], composition_id=session.scalar(select(composition)),
        n_defects=len(row["sites"]), sites=row["sites"], defect_types=row["codes"], multiplicity=1,
    )  # fmt: skip
    session.add(configuration)
    session.flush()
    level_id = session.scalar(select(tables.LevelOfTheory.id))
    assert level_id is not None
    session.add(
        tables.Calculation(
            configuration_id=configuration.id, level_id=level_id, state="finished", finished_at=finished_at
        )
    )
    session.flush()


def test_what_was_calculated_since_is_said_first(session: Session, campaign: tables.Campaign) -> None:
    older = kept(session)
    row = older.rows[3]
    change(session, row["candidate"], formation_energy_per_site_mean=-2.0)
    calculate(session, row, func.now())
    assert causes(session, older, kept(session))[4, 1].cause == "calculated since"


def test_what_came_and_was_calculated_long_before_has_another_cause(
    session: Session, campaign: tables.Campaign
) -> None:
    whole = kept(session, QUERY.model_copy(update={"limit": 50}))
    older = kept(session)
    row = whole.rows[-1]
    assert row["rank"] > 6
    calculate(session, row, func.now() - timedelta(days=1))
    change(session, row["candidate"], formation_energy_per_site_mean=-2.0)
    newer = kept(session)
    assert newer.rows[0]["calculated"]
    # the one campaign holds the new number for both rankings, so that nothing moved
    assert causes(session, older, newer)[None, 1].cause == "displaced by others"


def test_rows_that_another_limit_takes_or_leaves_say_so(session: Session, campaign: tables.Campaign) -> None:
    few, many = kept(session), kept(session, QUERY.model_copy(update={"limit": 8}))
    assert [(c.rank_before, c.rank_after, c.cause) for c in compare_rankings(session, few, many)] == [
        (None, rank, "beyond the limit of 6 rows before") for rank in (7, 8)
    ]
    assert [(c.rank_before, c.rank_after, c.cause) for c in compare_rankings(session, many, few)] == [
        (rank, None, "beyond the limit of 6 rows") for rank in (7, 8)
    ]


def test_no_number_is_too_large_to_be_asked_for(session: Session) -> None:
    with pytest.raises(UnknownNameError, match="no ranking is called '99999999999'; the newest are none"):
        find_ranking(session, "99999999999")


def test_a_ranking_is_deleted_with_all_its_parts(session: Session, campaign: tables.Campaign) -> None:
    kept(session, name="first")
    session.delete(find_ranking(session, "first"))
    session.flush()
    for table in (tables.RankingRow, tables.RankingValue, tables.RankingCampaign, tables.RankingReference):
        assert session.scalar(select(func.count()).select_from(table)) == 0
