from typing import Any

import pytest
from scipy.stats import norm
from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.design_query import DesignQuery, Window
from screening.defects.defect_types import Configuration, parse_defect_types
from screening.defects.enumeration import SearchSpace, enumerate_space
from screening.defects.limits import Limits
from screening.errors import InputError
from screening.pipeline import searches
from screening.pipeline.designs import describe_space, run_design_query, store_ranking
from screening.pipeline.hosts import add_configurations, add_supercell
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


def enumerated(session: Session, max_defects: int = 2, **limits: Any) -> int:
    """A complete search space of 4x4 MoS2 with v_S and Se_S."""
    stored = add_supercell(session, mos2())
    space = SearchSpace(stored.supercell, parse_defect_types("v_S,Se_S"), max_defects, **limits)
    space_id = searches.add_search_space(session, stored, space)
    compositions = dict(session.execute(select(tables.Composition.label, tables.Composition.id)).all())
    chunks = session.scalars(select(tables.Chunk).where(tables.Chunk.search_space_id == space_id)).all()
    chunk_ids = {chunk.n_defects: chunk.id for chunk in chunks}
    for block in enumerate_space(space, stored.symmetry):
        rows = zip(block.sites.tolist(), block.defect_types.tolist(), block.multiplicity.tolist(), strict=True)
        for sites, codes, multiplicity in rows:
            label = Configuration(tuple(sites), tuple(codes)).composition
            session.add(
                tables.Candidate(
                    search_space_id=space_id,
                    chunk_id=chunk_ids[len(sites)],
                    sites=sites,
                    defect_types=codes,
                    composition_id=compositions[label],
                    multiplicity=multiplicity,
                )
            )
    session.execute(
        update(tables.Chunk).where(tables.Chunk.search_space_id == space_id).values(state="finished", n_candidates=0)
    )
    session.flush()
    return space_id


def score(session: Session, model: tables.TrainedModel, space_id: int) -> dict[int, dict[str, float]]:
    """Predictions of all candidates of a search space; by candidate."""
    ids = session.scalars(
        select(tables.Candidate.id).where(tables.Candidate.search_space_id == space_id).order_by(tables.Candidate.id)
    ).all()
    found = {candidate_id: predicted(i) for i, candidate_id in enumerate(ids)}
    session.execute(
        insert(tables.Prediction), [{"candidate_id": i, "model_id": model.id, **row} for i, row in found.items()]
    )
    searches.add_scoring(session, model.id, space_id)
    session.execute(
        update(tables.ScoringChunk)
        .where(tables.ScoringChunk.model_id == model.id)
        .values(state="finished", n_predictions=0)
    )
    return found


def probability(row: dict[str, float], low: float, high: float) -> float:
    gap = norm(row["homo_lumo_gap_min_mean"], row["homo_lumo_gap_min_std"])
    return float(gap.cdf(high) - gap.cdf(low))


def test_rows_are_those_that_numpy_selects_in_the_same_order(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    rows = score(session, model, enumerated(session))
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
    score(session, model, enumerated(session))
    query = DesignQuery(host="MoS2", windows=(Window(property="homo_lumo_gap_min", low=1.0),), confidence=0.3, limit=9)
    table = run_design_query(session, query)
    again = session.connection().exec_driver_sql(table.sql.replace("%", "%%")).mappings().all()
    assert [row["candidate"] for row in again] == [row["candidate"] for row in table.rows]
    assert len(again) == 9


def test_a_row_names_the_defect_on_each_site_and_leaves_out_what_is_not_predicted(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    score(session, model, enumerated(session))
    row = next(r for r in run_design_query(session, DesignQuery(host="MoS2", limit=100)).rows if len(r["sites"]) == 2)
    assert len(row["defects"]) == 2
    assert set(row["defects"]) <= {"v_S", "Se_S"}
    assert not [name for name in row if name.startswith(("total_mag", "homo_mean", "lumo"))]


def test_fewer_defects_can_be_asked_of_a_larger_search_space(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    score(session, model, enumerated(session, 2))
    table = run_design_query(session, DesignQuery(host="MoS2", max_defects=1))
    assert sorted(row["configuration"] for row in table.rows) == ["Se_S", "v_S"]


def test_a_calculated_candidate_is_marked_at_the_models_level_only(session: Session) -> None:
    level_id = add_level(session)
    space_id = enumerated(session)
    score(session, add_model(session, "m", level_id), space_id)
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
    space_id = enumerated(session)
    old = add_model(session, "old", level_id)
    score(session, old, space_id)
    new = add_model(session, "new", level_id)
    searches.add_scoring(session, new.id, space_id)  # is being scored
    assert run_design_query(session, DesignQuery(host="MoS2")).model == "old"
    with pytest.raises(InputError, match="model new has scored no search space"):
        run_design_query(session, DesignQuery(host="MoS2"), model_name="new")


def test_more_defects_than_were_scored_are_refused(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    score(session, model, enumerated(session, 2))
    with pytest.raises(InputError, match=r"model m has scored 1 to 2 of v_S, Se_S .* up to 3"):
        run_design_query(session, DesignQuery(host="MoS2", max_defects=3))


V_S = parse_defect_types("v_S")[0]


def test_a_space_of_one_composition_does_not_stand_for_all(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    whole = enumerated(session, 2)
    part = enumerated(session, 4, composition={V_S: 4})  # more candidates than the whole
    for space_id in (part, whole):
        score(session, model, space_id)
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
    whole = add_scored(session, model.id, 3)
    part = add_scored(session, model.id, 4, limits=limits)
    assert queries.scored_search_space(session, model.id, whole[1]) == whole[0]
    assert queries.scored_search_space(session, model.id, whole[1], max_defects=4) == part[0]
    assert describe_space(session.get_one(tables.SearchSpace, part[0])) == named


def add_scored(session: Session, model_id: int, max_defects: int, **options: Any) -> tuple[int, int]:
    """A search space all of whose chunks count as scored, without candidates; its id and its supercell's."""
    stored = add_supercell(session, mos2())
    space = SearchSpace(stored.supercell, parse_defect_types("v_S,Se_S"), max_defects, **options)
    space_id = searches.add_search_space(session, stored, space)
    for chunk_id in session.scalars(select(tables.Chunk.id).where(tables.Chunk.search_space_id == space_id)):
        session.add(tables.ScoringChunk(model_id=model_id, chunk_id=chunk_id, state="finished", n_predictions=0))
    session.flush()
    return space_id, stored.id


def test_a_restricted_space_is_used_and_named_where_no_other_holds_the_query(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    part = enumerated(session, 4, composition={V_S: 4})
    score(session, model, part)
    table = run_design_query(session, DesignQuery(host="MoS2", max_defects=4))
    assert (table.search_space_id, table.search_space) == (part, "exactly 4*v_S")
    assert {row["configuration"] for row in table.rows} == {"4*v_S"}
    with pytest.raises(InputError, match=r"model m has scored exactly 4\*v_S .* the query asks for up to 3 defects"):
        run_design_query(session, DesignQuery(host="MoS2", max_defects=3))


def test_a_space_without_single_defects_comes_after_one_with_them(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    whole = enumerated(session, 1)
    pairs = enumerated(session, 2, min_defects=2)
    for space_id in (pairs, whole):
        score(session, model, space_id)
    assert run_design_query(session, DesignQuery(host="MoS2")).search_space_id == whole
    table = run_design_query(session, DesignQuery(host="MoS2", max_defects=2))
    assert (table.search_space_id, table.search_space) == (pairs, "exactly 2 of v_S, Se_S")


def test_the_newest_model_that_can_answer_is_asked(session: Session) -> None:
    level_id = add_level(session)
    score(session, add_model(session, "old", level_id), enumerated(session, 2))
    score(session, add_model(session, "new", level_id), enumerated(session, 3, composition={V_S: 3}))
    assert run_design_query(session, DesignQuery(host="MoS2", max_defects=2)).model == "old"
    assert run_design_query(session, DesignQuery(host="MoS2", max_defects=3)).model == "new"


def test_a_property_that_the_model_lacks_is_named(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    score(session, model, enumerated(session))
    query = DesignQuery(host="MoS2", windows=(Window(property="total_mag", low=1.0),))
    with pytest.raises(InputError, match="model m does not predict total_mag; it predicts formation_energy_per_site"):
        run_design_query(session, query)


def test_a_ranking_keeps_the_query_and_the_order(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    score(session, model, enumerated(session))
    query = DesignQuery(host="MoS2", direction="highest", limit=5)
    table = run_design_query(session, query)
    ranking_id = store_ranking(session, query, table)
    kept = session.scalars(
        select(tables.RankingRow).where(tables.RankingRow.ranking_id == ranking_id).order_by(tables.RankingRow.rank)
    ).all()
    assert [row.candidate_id for row in kept] == [row["candidate"] for row in table.rows]
    ranking = session.get_one(tables.Ranking, ranking_id)
    assert DesignQuery.model_validate(ranking.query) == query
    assert session.scalar(text("SELECT count(*) FROM rankings")) == 1


def test_an_empty_ranking_can_be_kept(session: Session) -> None:
    model = add_model(session, "m", add_level(session))
    score(session, model, enumerated(session))
    query = DesignQuery(host="MoS2", windows=(Window(property="homo_lumo_gap_min", low=90.0),))
    table = run_design_query(session, query)
    assert table.rows == []
    store_ranking(session, query, table)
    assert session.scalar(select(func.count()).select_from(tables.RankingRow)) == 0
