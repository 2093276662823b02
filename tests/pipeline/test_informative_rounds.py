"""Rounds that serve the model, on a real database: 2x2 MoS2 with every configuration of one and two defects."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.design_query import DesignQuery
from screening.dft import xtb
from screening.errors import InputError
from screening.pipeline import informative_rounds
from screening.pipeline.hosts import add_configurations
from screening.pipeline.informative_rounds import propose_informative
from screening.pipeline.results import add_level
from screening.pipeline.rounds import Proposal, release_calculations
from tests.pipeline.test_rounds import calculations, candidates_of, scored

QUERY = DesignQuery(host="MoS2")


def compositions(proposals: list[Proposal]) -> list[str]:
    return [proposal.configuration for proposal in proposals]


def test_a_round_is_stored_with_its_reasons(session: Session) -> None:
    _, model = scored(session)
    proposals = propose_informative(session, QUERY, n=4, seed=7)
    rows = calculations(session, [proposal.calculation_id for proposal in proposals])
    round_ = session.scalars(select(tables.Round)).one()
    assert {(row.state, row.round_id) for row in rows} == {("proposed", round_.id)}
    assert (round_.model_id, round_.level_id, round_.seed) == (model.id, model.level_id, 7)
    assert DesignQuery.model_validate(round_.query).windows == ()
    left = [float(proposal.reason.split()[5].rstrip("%")) for proposal in proposals]
    assert 100 > left[0] > left[1] > left[2] > left[3] > 0
    assert release_calculations(session, xtb.level_of_theory().name) == sorted(p.calculation_id for p in proposals)


def test_unlike_configurations_are_chosen(session: Session) -> None:
    scored(session)
    chosen = compositions(propose_informative(session, QUERY, n=5))
    assert len(set(chosen)) >= 3


def test_a_second_round_goes_on_where_the_first_one_ended(session: Session) -> None:
    """What was only proposed counts as known."""
    scored(session)
    with session.begin_nested() as savepoint:
        at_once = [p.candidate_id for p in propose_informative(session, QUERY, n=5)]
        savepoint.rollback()
    first = [p.candidate_id for p in propose_informative(session, QUERY, n=3)]
    second = [p.candidate_id for p in propose_informative(session, QUERY, n=2)]
    assert first + second == at_once


@pytest.mark.parametrize(("state", "is_known"), [("proposed", True), ("finished", True), ("failed", False)])
def test_a_failed_calculation_tells_nothing(session: Session, state: str, is_known: bool) -> None:
    """Calculations of pairs may tell of single defects, for which a round is asked."""
    stored, model = scored(session)
    singles = QUERY.model_copy(update={"max_defects": 1})
    with session.begin_nested() as savepoint:
        before = [p.reason for p in propose_informative(session, singles, n=1)]
        savepoint.rollback()
    pairs = [c for c in candidates_of(session).values() if c.composition == "2*v_S"]
    for configuration_id in add_configurations(session, stored, pairs):
        row = tables.Calculation(configuration_id=configuration_id, level_id=model.level_id, state=state)
        row.error = "did not converge" if state == "failed" else None
        session.add(row)
    session.flush()
    assert ([p.reason for p in propose_informative(session, singles, n=1)] != before) == is_known


def test_uncertain_candidates_are_chosen_first(session: Session) -> None:
    scored(session)
    certain = (
        select(tables.Candidate.id)
        .join(tables.Arrangement, tables.Arrangement.id == tables.Candidate.arrangement_id)
        .join(tables.Composition, tables.Composition.id == tables.Arrangement.composition_id)
        .where(tables.Composition.label.contains("v_S"))
    )
    session.execute(
        update(tables.Candidate)
        .where(tables.Candidate.id.in_(certain))
        .values(formation_energy_per_site_std=1e-4, homo_lumo_gap_min_std=1e-4)
    )
    assert set(compositions(propose_informative(session, QUERY, n=2))) <= {"Se_S", "2*Se_S"}


def test_everything_is_proposed_once(session: Session) -> None:
    scored(session)
    n_candidates = len(session.scalars(select(tables.Candidate.id)).all())
    proposals = propose_informative(session, QUERY, n=n_candidates + 5)
    assert len({p.candidate_id for p in proposals}) == len(proposals) == n_candidates
    with pytest.raises(InputError, match=r"every candidate has a calculation; there are .* 1 to 2 of v_S, Se_S"):
        propose_informative(session, QUERY, n=1)


def test_only_stored_configurations_are_proposed_on_request(session: Session) -> None:
    stored, _ = scored(session)
    candidates = candidates_of(session)
    add_configurations(session, stored, list(candidates.values())[3:6])
    proposals = propose_informative(session, QUERY, n=10, only_stored=True)
    assert {p.candidate_id for p in proposals} == set(list(candidates)[3:6])
    with pytest.raises(InputError, match="every candidate that is stored as a configuration has a calculation"):
        propose_informative(session, QUERY, n=10, only_stored=True)


def test_a_round_is_about_as_many_defects_as_it_is_asked_for(session: Session) -> None:
    scored(session)
    proposals = propose_informative(session, QUERY.model_copy(update={"max_defects": 1}), n=10)
    assert sorted(compositions(proposals)) == ["Se_S", "v_S"]


def test_a_round_may_be_of_another_level(session: Session) -> None:
    _, model = scored(session)
    relaxed = add_level(session, xtb.level_of_theory(relax=True))
    first = propose_informative(session, QUERY, n=2)
    second = propose_informative(session, QUERY, n=2, level_name=xtb.level_of_theory(relax=True).name)
    assert [p.candidate_id for p in second] == [p.candidate_id for p in first]  # nothing is known at that level
    assert {row.level_id for row in calculations(session, [p.calculation_id for p in second])} == {relaxed}
    assert relaxed != model.level_id


def test_a_large_search_space_is_sampled_by_the_seed(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(session)
    monkeypatch.setattr(informative_rounds, "POOL_ROWS", 4)
    found = []
    for seed in (1, 1, 2, 3):
        with session.begin_nested() as savepoint:
            found.append({p.candidate_id for p in propose_informative(session, QUERY, n=4, seed=seed)})
            savepoint.rollback()
    assert found[0] == found[1]
    assert len({tuple(sorted(ids)) for ids in found}) > 1


@pytest.mark.parametrize("n", [0, 3001])
def test_a_round_has_a_size_that_can_be_compared(session: Session, n: int) -> None:
    with pytest.raises(InputError, match=f"{n} calculations are asked for; expected 1 to 3000"):
        propose_informative(session, QUERY, n=n)
