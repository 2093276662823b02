"""A saved ranking that was opened is made again with every version that goes into production, once."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, select, update

from screening.database import models, tables
from screening.database.loops import designs_to_rank, list_designs
from screening.database.session import session_scope
from screening.errors import InputError, UnknownNameError
from screening.pipeline.designs import run_design_query
from screening.pipeline.dispatch import claimable_kinds
from screening.pipeline.open_designs import close_design, obstacles, open_ranking, rank_open_designs
from screening.pipeline.rankings import store_ranking
from tests.pipeline.made_loops import QUERY, add_scored, make_world, other_order

NOTHING: tuple[list[str], list[str]] = ([], [])


@pytest.fixture
def world(clean_engine: Engine) -> Engine:
    """A model, its campaign and the open design `wanted` with ranking 1."""
    make_world(clean_engine)
    with session_scope(clean_engine) as session:
        ranking = store_ranking(session, QUERY, run_design_query(session, QUERY, model_name="first"))
        open_ranking(session, "wanted", ranking)
    return clean_engine


def promote_second(engine: Engine) -> None:
    with session_scope(engine) as session:
        first = session.scalars(select(tables.TrainedModel)).one()
        second = tables.TrainedModel(
            name="first@2", line_id=first.line_id, parent_id=first.id, level_id=first.level_id,
            properties=first.properties, settings={}, seed=0, state="finished", weights=b"second",
        )  # fmt: skip
        session.add(second)
        session.flush()
        models.promote(session, second, reason="a test")


def kinds(engine: Engine) -> list[str]:
    with session_scope(engine) as session:
        return list(claimable_kinds(session))


def test_a_new_version_scores_the_design_and_ranks_it(world: Engine) -> None:
    assert (kinds(world), rank_open_designs(world)) == ([], NOTHING)
    promote_second(world)
    assert kinds(world) == ["tend"]
    ((campaign,), ranked) = rank_open_designs(world)
    assert (ranked, kinds(world)) == ([], ["score"])
    assert rank_open_designs(world) == NOTHING
    with session_scope(world) as session:
        started = session.scalars(select(tables.Campaign).where(tables.Campaign.name == campaign)).one()
        assert (started.model_id, started.state) == (2, "running")
        session.delete(started)
        session.flush()
        add_scored(session, session.get_one(tables.TrainedModel, 2), other_order)
    assert kinds(world) == ["tend"]
    assert rank_open_designs(world) == ([], ["wanted"])
    assert (kinds(world), rank_open_designs(world)) == ([], NOTHING)
    with session_scope(world) as session:
        (row,) = list_designs(session)
        assert (row["rankings"], row["newest"], row["model"], row["current"]) == (2, 2, "first@2", "first@2")


def test_a_design_is_ranked_from_the_search_space_of_its_first_ranking_only(world: Engine) -> None:
    promote_second(world)
    with session_scope(world) as session:
        second = session.get_one(tables.TrainedModel, 2)
        wider = add_scored(session, second, types="v_S,Se_S,W_Mo")
        assert wider.state == "finished"
        wider_id, space_id = wider.id, session.get_one(tables.Ranking, 1).search_space_id
    ((campaign,), ranked) = rank_open_designs(world)
    assert ranked == []
    with session_scope(world) as session:
        started = session.scalars(select(tables.Campaign).where(tables.Campaign.name == campaign)).one()
        assert started.search_space_id == space_id
        session.delete(started)
        session.flush()
        same = add_scored(session, session.get_one(tables.TrainedModel, 2), other_order).id
    assert rank_open_designs(world) == ([], ["wanted"])
    with session_scope(world) as session:
        newest = session.get_one(tables.Ranking, 2)
        assert (newest.campaign_id, newest.search_space_id) == (same, space_id)
        assert wider_id != same


def test_a_design_whose_campaign_was_deleted_is_ranked_from_its_search_space(world: Engine) -> None:
    promote_second(world)
    with session_scope(world) as session:
        session.get_one(tables.Ranking, 1).campaign_id = None
        second = session.get_one(tables.TrainedModel, 2)
        same = add_scored(session, second).id
        add_scored(session, second, types="v_S,Se_S,W_Mo")
    assert rank_open_designs(world) == ([], ["wanted"])
    with session_scope(world) as session:
        assert session.get_one(tables.Ranking, 2).campaign_id == same


def test_a_design_that_can_be_ranked_no_more_is_closed_and_the_others_go_on(
    world: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with session_scope(world) as session:
        other = store_ranking(session, QUERY, run_design_query(session, QUERY, model_name="first"))
        open_ranking(session, "later", other)
        session.get_one(tables.Ranking, 1).campaign_id = None
    promote_second(world)
    scored, ranked = rank_open_designs(world)
    assert (len(scored), ranked) == (1, [])
    with session_scope(world) as session:
        assert {row["design"]: row["is_open"] for row in list_designs(session)} == {"wanted": False, "later": True}
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("design wanted is closed, it can be ranked no more: the campaign of ranking 1 was deleted")
    assert rank_open_designs(world) == NOTHING


def test_a_ranking_of_several_places_is_not_followed(world: Engine) -> None:
    query = QUERY.model_dump(mode="json", exclude_defaults=True)
    query["places"] = [{"host": "MoS2", "supercell": "4x4"}, {"host": "MoS2", "supercell": "5x5"}]
    with session_scope(world) as session:
        other = store_ranking(session, QUERY, run_design_query(session, QUERY, model_name="first"))
        session.get_one(tables.Ranking, other).query = query
        session.flush()
        with pytest.raises(InputError, match=r"is about MoS2.*5x5; one of a single host and supercell can be followed"):
            open_ranking(session, "both", other)


def test_a_design_that_was_closed_is_left_alone(world: Engine) -> None:
    promote_second(world)
    with session_scope(world) as session:
        close_design(session, "wanted")
        assert designs_to_rank(session) == []
        with pytest.raises(UnknownNameError, match="no design is called 'x'; there are: wanted"):
            close_design(session, "x")


def test_what_stands_in_the_way_of_a_closed_design_is_what_its_ranking_would_fail_with(world: Engine) -> None:
    promote_second(world)
    with session_scope(world) as session:
        close_design(session, "wanted")
        assert obstacles(session) == {}  # a person has closed it, and it could go on
        session.get_one(tables.TrainedModel, 2).properties = ["homo"]
        add_scored(session, session.get_one(tables.TrainedModel, 2))
        assert obstacles(session) == {
            "wanted": "model first@2 does not predict formation_energy_per_site; it predicts homo"
        }


def test_a_campaign_that_was_stopped_is_not_started_again_by_itself(world: Engine) -> None:
    promote_second(world)
    rank_open_designs(world)
    with session_scope(world) as session:
        session.execute(update(tables.Campaign).where(tables.Campaign.model_id == 2).values(state="cancelled"))
    assert rank_open_designs(world) == NOTHING


def test_rankings_that_cannot_be_followed_are_refused(world: Engine) -> None:
    with session_scope(world) as session:
        with pytest.raises(InputError, match="belongs to design wanted already"):
            open_ranking(session, "again", 1)
        with pytest.raises(UnknownNameError, match="there is no ranking 9"):
            open_ranking(session, "again", 9)
        other = store_ranking(session, QUERY, run_design_query(session, QUERY, model_name="first"))
        with pytest.raises(InputError, match="a design is called 'wanted' already"):
            open_ranking(session, "wanted", other)
        session.get_one(tables.Ranking, other).campaign_id = None
        session.flush()
        with pytest.raises(InputError, match="was deleted; rank again"):
            open_ranking(session, "again", other)
