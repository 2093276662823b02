from typing import Any

import pytest
from scipy.stats import norm
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.design_query import DesignQuery, Window
from screening.defects.defect_types import Configuration, DefectType, parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.defects.limits import Limits
from screening.errors import InputError
from screening.pipeline.campaign_choice import describe_space
from screening.pipeline.designs import run_design_query, sql_of, store_ranking
from screening.pipeline.hosts import add_configurations, add_supercell
from tests.pipeline.made_campaigns import add_finished
from tests.synthetic_results import mos2

PROPERTIES = ["formation_energy_per_site", "homo_lumo_gap_min"]


def predicted(i: int) -> dict[str, float]:
    """Predictions of the i-th candidate: energies that fall and rise again, gaps between 0 and 2 eV."""
    return {
        "formation_energy_per_site_mean": abs(i % 40 - 20.25) / 8,
        "formation_energy_per_site_std": 0.05,
        "homo_lumo_gap_min_mean": (i * 7 % 41) / 20,
        "homo_lumo_gap_min_std": 0.05 + (i % 3) / 10,
    }


def add_model(session: Session, name: str, level_id: int) -> tables.TrainedModel:
    model = tables.TrainedModel(
        name=name, level_id=level_id, properties=PROPERTIES, settings={}, seed=0, state="finished", weights=b"w"
    )
    session.add(model)
    session.flush()
    return model


def add_level(session: Session) -> int:
    level = tables.LevelOfTheory(name="PBE", code="VASP", functional="PBE", settings={}, digest="d")
    session.add(level)
    session.flush()
    return level.id


def scored(session: Session, model: tables.TrainedModel, max_defects: int = 2, **limits: Any) -> tables.Campaign:
    """A complete search space of 4x4 MoS2 with v_S and Se_S, scored by a model."""
    stored = add_supercell(session, mos2())
    space = SearchSpace(stored.supercell, parse_defect_types("v_S,Se_S"), max_defects, **limits)
    return add_finished(session, stored, space, model, lambda i, _: predicted(i))


def predictions_of(session: Session, campaign: tables.Campaign) -> dict[int, dict[str, float]]:
    """What was stored, by candidate."""
    ids = session.scalars(
        select(tables.Candidate.id).where(tables.Candidate.campaign_id == campaign.id).order_by(tables.Candidate.id)
    ).all()
    return {candidate_id: predicted(i) for i, candidate_id in enumerate(ids)}


def probability(row: dict[str, float], low: float, high: float) -> float:
    gap = norm(row["homo_lumo_gap_min_mean"], row["homo_lumo_gap_min_std"])
    return float(gap.cdf(high) - gap.cdf(low))


def test_rows_are_those_that_numpy_selects_in_the_same_order(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    rows = predictions_of(session, scored(session, model))
    query = DesignQuery(host="MoS2", windows=(Window(property="homo_lumo_gap_min", low=0.5, high=1.25),), limit=1000)
    table = run_design_query(session, query)
    wanted = [i for i, row in rows.items() if probability(row, 0.5, 1.25) >= 0.5]
    wanted.sort(key=lambda i: (round(rows[i]["formation_energy_per_site_mean"], 5), i))
    assert 5 < len(wanted) < len(rows)
    assert [row["candidate"] for row in table.rows] == wanted
    for row in table.rows:
        assert row["probability"] == pytest.approx(probability(rows[row["candidate"]], 0.5, 1.25), abs=2e-6)


def test_the_sql_that_is_shown_gives_the_same_rows(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    scored(session, model)
    query = DesignQuery(host="MoS2", windows=(Window(property="homo_lumo_gap_min", low=1.0),), confidence=0.3, limit=9)
    table = run_design_query(session, query)
    again = session.connection().exec_driver_sql(table.sql.replace("%", "%%")).mappings().all()
    assert [row["candidate"] for row in again] == [row["candidate"] for row in table.rows]
    assert len(again) == 9


def test_a_row_names_the_defect_on_each_site_and_leaves_out_what_is_not_predicted(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    scored(session, model)
    row = next(r for r in run_design_query(session, DesignQuery(host="MoS2", limit=100)).rows if len(r["sites"]) == 2)
    assert len(row["defects"]) == 2
    assert set(row["defects"]) <= {"v_S", "Se_S"}
    assert not [name for name in row if name.startswith(("total_mag", "homo_mean", "lumo"))]


def test_fewer_defects_can_be_asked_of_a_larger_search_space(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    scored(session, model, 2)
    table = run_design_query(session, DesignQuery(host="MoS2", max_defects=1))
    assert sorted(row["configuration"] for row in table.rows) == ["Se_S", "v_S"]


def test_a_calculated_candidate_is_marked_at_the_models_level_only(session: Session) -> None:
    level_id = add_level(session)
    scored(session, add_model(session, "m", level_id))
    stored = add_supercell(session, mos2())
    site = stored.supercell.species.index("S")
    v_s, se_s = (t.code for t in parse_defect_types("v_S,Se_S"))
    ids = add_configurations(session, stored, [Configuration((site,), (v_s,)), Configuration((site,), (se_s,))])
    other = tables.LevelOfTheory(name="other", code="VASP", functional="HSE", settings={}, digest="e")
    session.add(other)
    session.flush()
    session.add(tables.Calculation(configuration_id=ids[0], level_id=level_id, state="finished"))
    session.add(tables.Calculation(configuration_id=ids[1], level_id=other.id, state="finished"))
    session.flush()
    table = run_design_query(session, DesignQuery(host="MoS2", limit=1000))
    assert [row["configuration"] for row in table.rows if row["calculated"]] == ["v_S"]


def test_the_newest_model_that_scored_completely_is_asked(session: Session) -> None:
    level_id = add_level(session)
    done = scored(session, add_model(session, "old", level_id))
    new = add_model(session, "new", level_id)
    session.add(
        tables.Campaign(
            name="at work", search_space_id=done.search_space_id, model_id=new.id, storage="all", state="running"
        )
    )
    session.flush()
    assert run_design_query(session, DesignQuery(host="MoS2")).model == "old"
    with pytest.raises(InputError, match="model new has scored no search space"):
        run_design_query(session, DesignQuery(host="MoS2"), model_name="new")


def test_more_defects_than_were_scored_are_refused(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    scored(session, model, 2)
    with pytest.raises(InputError, match=r"model m has scored 1 to 2 of v_S, Se_S .* up to 3"):
        run_design_query(session, DesignQuery(host="MoS2", max_defects=3))


V_S = parse_defect_types("v_S")[0]


def test_a_space_of_one_composition_does_not_stand_for_all(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    part = scored(session, model, 4, composition={V_S: 4}).search_space_id  # more candidates than the whole
    whole = scored(session, model, 2).search_space_id
    for query in (DesignQuery(host="MoS2", max_defects=2, limit=1000), DesignQuery(host="MoS2", limit=1000)):
        table = run_design_query(session, query)
        assert (table.search_space_id, table.search_space) == (whole, "1 to 2 of v_S, Se_S")
        assert table.candidates < session.get_one(tables.SearchSpace, part).expected
        assert {len(row["sites"]) for row in table.rows} == {1, 2}


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (Limits({V_S: (0, 1)}), "1 to 4 of v_S (0-1), Se_S (0-4)"),
        (Limits(min_separation=2.0), "1 to 4 of v_S, Se_S, at least 2 A apart"),
        (Limits(max_separation=6.5), "1 to 4 of v_S, Se_S, at most 6.5 A apart"),
    ],
)
def test_a_space_with_limits_does_not_stand_for_all(session: Session, limits: Limits, named: str) -> None:
    model = add_model(session, "m", add_level(session))
    whole = scored(session, model, 2)
    part = scored(session, model, 4, limits=limits)
    supercell_id = session.get_one(tables.SearchSpace, part.search_space_id).supercell_id
    assert queries.scored_campaign(session, model.id, supercell_id) == whole
    assert queries.scored_campaign(session, model.id, supercell_id, max_defects=4) == part
    assert describe_space(session.get_one(tables.SearchSpace, part.search_space_id)) == named


def test_a_restricted_space_is_used_and_named_where_no_other_holds_the_query(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    part = scored(session, model, 4, composition={V_S: 4}).search_space_id
    table = run_design_query(session, DesignQuery(host="MoS2", max_defects=4))
    assert (table.search_space_id, table.search_space) == (part, "exactly 4*v_S")
    assert {row["configuration"] for row in table.rows} == {"4*v_S"}
    with pytest.raises(InputError, match=r"model m has scored exactly 4\*v_S .* the query asks for up to 3 defects"):
        run_design_query(session, DesignQuery(host="MoS2", max_defects=3))


def test_a_space_without_single_defects_comes_after_one_with_them(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    pairs = scored(session, model, 2, min_defects=2).search_space_id
    whole = scored(session, model, 1).search_space_id
    assert run_design_query(session, DesignQuery(host="MoS2")).search_space_id == whole
    table = run_design_query(session, DesignQuery(host="MoS2", max_defects=2))
    assert (table.search_space_id, table.search_space) == (pairs, "exactly 2 of v_S, Se_S")


def test_the_newest_model_that_can_answer_is_asked(session: Session) -> None:
    level_id = add_level(session)
    scored(session, add_model(session, "old", level_id), 2)
    scored(session, add_model(session, "new", level_id), 3, composition={V_S: 3})
    assert run_design_query(session, DesignQuery(host="MoS2", max_defects=2)).model == "old"
    assert run_design_query(session, DesignQuery(host="MoS2", max_defects=3)).model == "new"


def test_a_property_that_the_model_lacks_is_named(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    scored(session, model)
    query = DesignQuery(host="MoS2", windows=(Window(property="total_mag", low=1.0),))
    with pytest.raises(InputError, match="model m does not predict total_mag; it predicts formation_energy_per_site"):
        run_design_query(session, query)


def test_a_ranking_keeps_the_query_and_the_order(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    scored(session, model)
    query = DesignQuery(host="MoS2", direction="highest", limit=5)
    table = run_design_query(session, query)
    ranking_id = store_ranking(session, query, table)
    kept = session.scalars(
        select(tables.RankingRow).where(tables.RankingRow.ranking_id == ranking_id).order_by(tables.RankingRow.rank)
    ).all()
    assert [row.candidate_id for row in kept] == [row["candidate"] for row in table.rows]
    names = {code: DefectType.from_code(code).name for row in kept for code in row.defect_types}
    assert [(row.sites, [names[code] for code in row.defect_types], row.multiplicity) for row in kept] == [
        (row["sites"], row["defects"], row["multiplicity"]) for row in table.rows
    ]
    ranking = session.get_one(tables.Ranking, ranking_id)
    assert DesignQuery.model_validate(ranking.query) == query
    assert session.scalar(text("SELECT count(*) FROM rankings")) == 1


def test_an_empty_ranking_can_be_kept(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    scored(session, model)
    query = DesignQuery(host="MoS2", windows=(Window(property="homo_lumo_gap_min", low=90.0),))
    table = run_design_query(session, query)
    assert table.rows == []
    store_ranking(session, query, table)
    assert session.scalar(select(func.count()).select_from(tables.RankingRow)) == 0


def test_a_place_that_is_named_twice_is_refused(session: Session) -> None:
    scored(session, add_model(session, "m", add_level(session)))
    with pytest.raises(InputError, match=r"the places MoS2 4x4 and MoS2 .*are the same one, which campaign m-\d+ answ"):
        run_design_query(session, DesignQuery.of(places=["MoS2 4x4", "MoS2"], limit=3))


def test_a_cursor_is_of_the_campaign_that_answered(session: Session) -> None:
    level_id = add_level(session)
    scored(session, add_model(session, "m", level_id))
    query = DesignQuery.of(host="MoS2", limit=5)
    first = run_design_query(session, query)
    second = run_design_query(session, query, after=first.after)
    assert second.rows
    assert sql_of(session, query, after=first.after) == second.sql
    scored(session, add_model(session, "newer", level_id))
    with pytest.raises(InputError, match="another campaign or other chemical potentials answer it now"):
        run_design_query(session, query, after=first.after)
