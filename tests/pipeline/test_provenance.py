"""A prediction leads to its model, results and files; a result leads to everything that rests on it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.design_query import DesignQuery
from screening.database.provenance import retracted_below
from screening.defects.defect_types import Configuration, parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.errors import InputError, UnknownNameError
from screening.pipeline.designs import run_design_query
from screening.pipeline.hosts import add_supercell
from screening.pipeline.provenance import affected, defects_of, find_candidate, find_ranked, find_result, why
from screening.pipeline.rankings import store_ranking
from screening.pipeline.retraction import retract
from tests.pipeline.made_campaigns import add_finished
from tests.synthetic_results import LEVEL, add_results, mos2


@dataclass(frozen=True)
class Chain:
    """Results 0 to 9; `first` learns 0 to 4 and is chosen on 5; `first@2` goes back to it and learns 0 to 7; `other`
    learns 8 and 9. `pristine` carries all formation energies.
    """

    results: tuple[int, ...]
    pristine: int
    first: int
    second: int
    other: int
    campaign: str
    ranking: int


def learn(session: Session, model: tables.TrainedModel, ids: list[int], role: str = "train") -> None:
    session.add_all(tables.ModelTrainingResult(model_id=model.id, result_id=i, role=role) for i in ids)


def add_pristine(session: Session, supercell_id: int, level_id: int) -> int:
    nothing = tables.Composition(label="pristine", defect_types=[], counts=[], n_defects=0)
    session.add(nothing)
    session.flush()
    row = tables.Configuration(
        supercell_id=supercell_id, composition_id=nothing.id, n_defects=0, sites=[], defect_types=[], multiplicity=1
    )
    session.add(row)
    session.flush()
    calculation = tables.Calculation(configuration_id=row.id, level_id=level_id, state="finished")
    session.add(calculation)
    session.flush()
    result = tables.CalculationResult(
        calculation_id=calculation.id, dataset="formula/MoS2", row_name="pristine", energy=-340.0
    )
    session.add(result)
    session.flush()
    return result.id


@pytest.fixture
def chain(session: Session) -> Chain:
    add_results(session, 40)
    ids = list(session.scalars(select(tables.CalculationResult.id).order_by(tables.CalculationResult.id)))[:10]
    stored = add_supercell(session, mos2())
    level_id = session.scalars(select(tables.LevelOfTheory.id).where(tables.LevelOfTheory.name == LEVEL)).one()
    pristine = add_pristine(session, stored.id, level_id)
    file = tables.SourceFile(sha256="ab" * 32, path="runs/seven.xml", kind="vasprun", size=7, parser_version="p 1")
    session.add(file)
    session.flush()
    session.get_one(tables.CalculationResult, ids[7]).source_file_id = file.id
    made = []
    for name in ("first", "other"):
        made.append(
            tables.TrainedModel(
                name=name, level_id=level_id, properties=["formation_energy_per_site", "homo_lumo_gap_min"],
                settings={}, seed=0, state="finished", weights=b"w",
            )
        )  # fmt: skip
    session.add_all(made)
    session.flush()
    first, other = made
    second = tables.TrainedModel(
        name="first@2", line_id=first.line_id, parent_id=first.id, level_id=level_id, properties=first.properties,
        settings={}, seed=0, state="finished", weights=b"v",
    )  # fmt: skip
    session.add(second)
    session.flush()
    learn(session, first, ids[:5])
    learn(session, first, [ids[5]], "validation")
    learn(session, second, ids[:8])
    learn(session, other, ids[8:])
    session.flush()
    space = SearchSpace(stored.supercell, parse_defect_types("v_S,Se_S"), 2)
    row = {f"{p}_{part}": value for p in first.properties for part, value in (("mean", 1.5), ("std", 0.25))}
    campaign = add_finished(session, stored, space, second, lambda number, configuration: row)
    query = DesignQuery(host="MoS2", supercell="4x4", limit=3)
    ranking = store_ranking(session, query, run_design_query(session, query, model_name="first@2"))
    return Chain(tuple(ids), pristine, first.id, second.id, other.id, campaign.name, ranking)


def resting_by_hand(session: Session, result_id: int) -> set[int]:
    """Models that rest on a result, by plain SQL written for this test."""
    statement = (
        "WITH RECURSIVE r AS (SELECT model_id AS id FROM model_training_results WHERE result_id = :result "
        "UNION SELECT m.id FROM trained_models m JOIN r ON m.parent_id = r.id) SELECT id FROM r"
    )
    return set(session.scalars(text(statement), {"result": result_id}))


def models_of(session: Session, result_id: int) -> dict[str, str]:
    return {model["model"]: model["how"] for model in affected(session, result_id).models}


def test_a_result_leads_to_the_models_that_rest_on_it(session: Session, chain: Chain) -> None:
    assert models_of(session, chain.results[0]) == {"first": "trained", "first@2": "trained"}
    assert models_of(session, chain.results[5]) == {"first": "chosen", "first@2": "trained"}
    assert models_of(session, chain.results[7]) == {"first@2": "trained"}
    assert models_of(session, chain.results[9]) == {"other": "trained"}
    for result_id in chain.results:
        ids = {model["id"] for model in affected(session, result_id).models}
        assert ids == resting_by_hand(session, result_id)


def test_what_a_parent_learnt_is_inherited(session: Session, chain: Chain) -> None:
    session.execute(
        text("DELETE FROM model_training_results WHERE model_id = :m AND result_id = :r"),
        {"m": chain.second, "r": chain.results[0]},
    )
    assert models_of(session, chain.results[0]) == {"first": "trained", "first@2": "inherited"}


def test_campaigns_and_rankings_of_these_models_are_named(session: Session, chain: Chain) -> None:
    found = affected(session, chain.results[7])
    (campaign,) = found.campaigns
    n_candidates = session.scalar(select(func.count()).select_from(tables.Candidate))
    assert (campaign["campaign"], campaign["predictions"]) == (chain.campaign, n_candidates)
    assert [(r["ranking"], r["model"], r["rows"]) for r in found.rankings] == [(chain.ranking, "first@2", 3)]
    unaffected = affected(session, chain.results[9])
    assert (unaffected.campaigns, unaffected.rankings, unaffected.n_derived) == ((), (), 0)


def test_a_pristine_result_carries_all_that_learnt_formation_energies(session: Session, chain: Chain) -> None:
    found = affected(session, chain.pristine)
    assert {model["model"]: model["how"] for model in found.models} == dict.fromkeys(
        ("first", "first@2", "other"), "derived"
    )
    n_results = session.scalar(select(func.count()).select_from(tables.CalculationResult))
    assert found.n_derived == n_results - 1


def test_a_prediction_leads_to_its_model_results_and_files(session: Session, chain: Chain) -> None:
    candidate = session.scalars(select(tables.Candidate).order_by(tables.Candidate.id).limit(1)).one()
    found = why(session, find_candidate(session, f"{chain.campaign}:{candidate.id}"))
    assert (found.host, found.supercell) == ("MoS2", "4x4")
    assert found.candidate.predictions["homo_lumo_gap_min"] == (1.5, 0.25)
    assert [(v["model"], v["n_train"], v["n_validation"], v["n_new"]) for v in found.versions] == [
        ("first@2", 8, 0, 3), ("first", 5, 1, 5),
    ]  # fmt: skip
    assert {row["result"] for row in found.nearest} == set(chain.results[:8])
    assert found.n_learnt == 8
    likeness = [row["likeness"] for row in found.nearest]
    assert likeness == sorted(likeness, reverse=True)
    assert all(0 <= value <= 1.0001 for value in likeness)
    assert [(row["file"], row["results"]) for row in found.sources] == [(None, 7), ("runs/seven.xml", 1)]
    (of_file,) = [row for row in found.nearest if row["file"] is not None]
    assert (of_file["result"], of_file["sha256"], of_file["parser_version"]) == (chain.results[7], "ab" * 32, "p 1")


def test_the_result_of_the_very_configuration_is_the_most_alike(session: Session, chain: Chain) -> None:
    """A result that the model has learnt, asked for as a candidate."""
    stored = select(tables.Configuration).join(tables.Calculation).join(
        tables.CalculationResult, tables.CalculationResult.calculation_id == tables.Calculation.id
    )  # fmt: skip
    row = session.scalars(stored.where(tables.CalculationResult.id == chain.results[3])).one()
    candidate = find_ranked(session, str(chain.ranking), 1)
    asked = type(candidate)(
        "x", None, chain.second, row.supercell_id, Configuration(tuple(row.sites), tuple(row.defect_types)), 1, {}
    )
    found = why(session, asked)
    assert found.calculated is not None
    assert found.calculated["result"] == chain.results[3]
    assert found.nearest[0]["likeness"] == pytest.approx(1.0, abs=1e-5)
    alike = [r["result"] for r in found.nearest if r["likeness"] > 1 - 1e-5]
    assert chain.results[3] in alike
    assert found.defects == defects_of(row.sites, row.defect_types)


def test_rows_of_rankings_are_found_by_id(session: Session, chain: Chain) -> None:
    first, second = (find_ranked(session, str(chain.ranking), rank) for rank in (1, 2))
    assert (first.model_id, first.campaign) == (chain.second, chain.campaign)
    assert first.configuration != second.configuration
    with pytest.raises(UnknownNameError, match="no rank 4"):
        find_ranked(session, str(chain.ranking), 4)
    with pytest.raises(UnknownNameError, match="no ranking 'nothing'"):
        find_ranked(session, "nothing", 1)


def test_candidates_are_named_by_campaign_and_id_or_id_alone(session: Session, chain: Chain) -> None:
    identifier = session.scalar(select(func.min(tables.Candidate.id)))
    assert find_candidate(session, str(identifier)) == find_candidate(session, f"{chain.campaign}:{identifier}")
    assert find_candidate(session, str(identifier), chain.campaign).name == f"{chain.campaign}:{identifier}"
    with pytest.raises(UnknownNameError, match="no campaign has a candidate 999999"):
        find_candidate(session, "999999")
    with pytest.raises(UnknownNameError, match="has no candidate 999999"):
        find_candidate(session, f"{chain.campaign}:999999")
    with pytest.raises(InputError, match="CAMPAIGN:ID"):
        find_candidate(session, "v_S+Se_S")


def test_results_are_named_by_id_or_by_their_name(session: Session, chain: Chain) -> None:
    row = session.get_one(tables.CalculationResult, chain.results[2])
    names = (str(row.id), row.row_name, f"{row.dataset}:{row.row_name}")
    assert {find_result(session, name) for name in names} == {row.id}
    with pytest.raises(UnknownNameError, match="there is no result 'x'"):
        find_result(session, "x")
    session.get_one(tables.CalculationResult, chain.results[3]).dataset = "another"
    session.get_one(tables.CalculationResult, chain.results[3]).row_name = row.row_name
    session.flush()
    with pytest.raises(InputError, match="2 results are called"):
        find_result(session, row.row_name)


def test_a_withdrawn_result_stays_with_its_reason_and_its_calculation_can_be_made_again(
    session: Session, chain: Chain
) -> None:
    found = retract(session, chain.results[0], "wrong cutoff")
    assert {model["model"] for model in found.models} == {"first", "first@2"}
    assert found.result["standing"] == "retracted"
    row = session.get_one(tables.CalculationResult, chain.results[0])
    assert row.retraction == "wrong cutoff"
    calculation = session.get_one(tables.Calculation, row.calculation_id)
    assert (calculation.state, calculation.error) == ("failed", "its result was withdrawn: wrong cutoff")
    with pytest.raises(InputError, match=r"was withdrawn on .*: wrong cutoff"):
        retract(session, chain.results[0], "again")
    with pytest.raises(InputError, match="say why"):
        retract(session, chain.results[1], " ")


def test_models_are_marked_by_what_was_withdrawn_below_them(session: Session, chain: Chain) -> None:
    assert retracted_below(session, chain.second) == []
    retract(session, chain.results[0], "wrong")
    marks = {m: retracted_below(session, m) for m in (chain.first, chain.second, chain.other)}
    assert marks == {chain.first: [chain.results[0]], chain.second: [chain.results[0]], chain.other: []}
    assert why(session, find_ranked(session, str(chain.ranking), 1)).retracted == (chain.results[0],)


def test_with_a_pristine_result_go_the_formation_energies(session: Session, chain: Chain) -> None:
    retract(session, chain.pristine, "wrong cell")
    session.expire_all()
    row = session.get_one(tables.CalculationResult, chain.results[0])
    assert (row.formation_energy, row.formation_energy_per_site) == (None, None)
    assert row.homo_lumo_gap_min is not None
    assert retracted_below(session, chain.other) == [chain.pristine]


@pytest.mark.parametrize("number", ["99999999999", "9" * 30])
def test_a_number_that_no_id_can_be_is_not_found(session: Session, chain: Chain, number: str) -> None:
    with pytest.raises(UnknownNameError, match=f"no result '{number}'"):
        find_result(session, number)
    with pytest.raises(UnknownNameError, match=f"no candidate {number}"):
        find_candidate(session, f"{chain.campaign}:{number}")
    with pytest.raises(UnknownNameError, match=f"no ranking '{number}'"):
        find_ranked(session, number, 1)
    with pytest.raises(UnknownNameError, match=f"no rank {number}"):
        find_ranked(session, str(chain.ranking), int(number))
