from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from screening.database import leases, tables
from screening.database.design_query import DesignQuery, Window
from screening.database.session import session_scope
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.enumeration import SearchSpace
from screening.defects.host import Supercell
from screening.dft import xtb
from screening.errors import CalculationError, InputError, LeaseLostError, UnknownNameError
from screening.pipeline.hosts import StoredSupercell, add_configurations, add_supercell
from screening.pipeline.results import add_level, add_result_files
from screening.pipeline.rounds import calculate_unit, propose, release_calculations, write_structures
from tests.pipeline.made_campaigns import add_finished

PROPERTIES = ["formation_energy_per_site", "homo_lumo_gap_min"]
QUERY = DesignQuery(host="MoS2", windows=(Window(property="homo_lumo_gap_min", low=0.9, high=1.1),))
GAPS = {"v_S": 1.0, "Se_S": 2.0}  # eV; predicted by the first defect


def scored(session: Session, *, std: float = 0.05) -> tuple[StoredSupercell, tables.TrainedModel]:
    """2x2 MoS2 with every configuration of one and two of v_S and Se_S, and a model's predictions of them."""
    stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "2x2"))
    types = tuple(sorted((DefectType.parse(name) for name in GAPS), key=lambda t: t.code))
    space = SearchSpace(stored.supercell, types, 2)
    model = tables.TrainedModel(
        name="a model", level_id=add_level(session, xtb.level_of_theory()), properties=PROPERTIES, settings={}, seed=0,
        state="finished", weights=b"w",
    )  # fmt: skip
    session.add(model)
    session.flush()

    def predict(_: int, configuration: Configuration) -> dict[str, float]:
        gap = GAPS[DefectType.from_code(configuration.defect_types[0]).name]
        return {
            "formation_energy_per_site_mean": sum(configuration.sites) / 100, "formation_energy_per_site_std": std,
            "homo_lumo_gap_min_mean": gap, "homo_lumo_gap_min_std": std,
        }  # fmt: skip

    add_finished(session, stored, space, model, predict)
    return stored, model


def candidates_of(session: Session) -> dict[int, Configuration]:
    """Every candidate by its id, in their order."""
    rows = session.execute(
        select(tables.Candidate.id, tables.Candidate.sites, tables.Arrangement.defect_types)
        .join(tables.Arrangement, tables.Arrangement.id == tables.Candidate.arrangement_id)
        .order_by(tables.Candidate.id)
    )
    return {row.id: Configuration(tuple(row.sites), tuple(row.defect_types)) for row in rows}


def calculations(session: Session, ids: Sequence[int]) -> list[tables.Calculation]:
    return list(session.scalars(select(tables.Calculation).where(tables.Calculation.id.in_(ids))))


def test_a_round_proposes_what_probably_satisfies_the_query(session: Session) -> None:
    _, model = scored(session)
    proposals = propose(session, QUERY, n=3, seed=7)
    assert len({proposal.candidate_id for proposal in proposals}) == 3
    rows = calculations(session, [proposal.calculation_id for proposal in proposals])
    assert {row.state for row in rows} == {"proposed"}
    assert all("probability 0.95" in (row.proposal or "") for row in rows)  # two standard deviations: 0.9545
    round_ = session.scalars(select(tables.Round)).one()
    assert {row.round_id for row in rows} == {round_.id}
    assert (round_.model_id, round_.level_id, round_.seed) == (model.id, model.level_id, 7)
    assert DesignQuery.model_validate(round_.query) == QUERY
    for proposal in proposals:
        assert proposal.configuration.startswith("v_S") or proposal.configuration == "2*v_S"


def test_the_best_proposal_is_the_lowest_where_all_is_equally_uncertain(session: Session) -> None:
    scored(session, std=0.01)
    (first,) = propose(session, DesignQuery(host="MoS2"), n=1)
    lowest = session.execute(
        select(tables.Candidate.id).order_by(tables.Candidate.formation_energy_per_site_mean)
    ).first()
    assert lowest is not None
    assert first.candidate_id == lowest.id


def test_a_batch_is_spread_over_unlike_configurations(session: Session) -> None:
    scored(session, std=0.5)
    proposals = propose(session, DesignQuery(host="MoS2"), n=4)
    assert len({proposal.configuration for proposal in proposals}) >= 3


def test_nothing_is_proposed_twice_until_nothing_is_left(session: Session) -> None:
    scored(session)
    n_candidates = len(session.scalars(select(tables.Candidate.id)).all())
    first = propose(session, QUERY, n=n_candidates - 2)
    second = propose(session, QUERY, n=n_candidates)
    assert len(first) == n_candidates - 2
    assert len(second) == 2
    assert not {p.candidate_id for p in first} & {p.candidate_id for p in second}
    with pytest.raises(
        InputError, match=r"every candidate of the design query has a calculation; .* 1 to 2 of v_S, Se_S"
    ):
        propose(session, QUERY, n=1)


def test_only_stored_configurations_are_proposed_on_request(session: Session) -> None:
    stored, _ = scored(session)
    candidates = candidates_of(session)
    wanted = list(candidates.values())[3:6]
    ids = add_configurations(session, stored, wanted)
    proposals = propose(session, QUERY, n=10, only_stored=True)
    assert {p.candidate_id for p in proposals} == set(list(candidates)[3:6])
    assert {row.configuration_id for row in calculations(session, [p.calculation_id for p in proposals])} == set(ids)
    with pytest.raises(InputError, match="or no stored configuration"):
        propose(session, QUERY, n=10, only_stored=True)


def test_a_calculation_at_another_level_does_not_count(session: Session) -> None:
    stored, model = scored(session)
    every = list(candidates_of(session).values())
    relaxed = add_level(session, xtb.level_of_theory(relax=True))
    assert relaxed != model.level_id
    for configuration_id in add_configurations(session, stored, every):
        session.add(tables.Calculation(configuration_id=configuration_id, level_id=relaxed, state="finished"))
    session.flush()
    assert len(propose(session, QUERY, n=2)) == 2


def test_equal_worth_is_decided_by_the_seed(session: Session) -> None:
    scored(session)
    session.execute(update(tables.Candidate).values(formation_energy_per_site_mean=1.0, homo_lumo_gap_min_mean=1.0))
    first = set()
    for seed in range(6):
        with session.begin_nested() as savepoint:
            first.add(propose(session, QUERY, n=1, seed=seed)[0].candidate_id)
            savepoint.rollback()
    assert len(first) > 1


def test_a_model_must_predict_what_the_query_asks(session: Session) -> None:
    scored(session)
    query = DesignQuery(host="MoS2", windows=(Window(property="total_mag", low=1.0),))
    with pytest.raises(InputError, match="a model does not predict total_mag; it predicts formation_energy_per_site"):
        propose(session, query, n=1)


def test_a_round_needs_a_calculation(session: Session) -> None:
    with pytest.raises(InputError, match="0 calculations are asked for"):
        propose(session, QUERY, n=0)


def test_proposals_are_released_in_order_up_to_a_limit(session: Session) -> None:
    scored(session)
    proposed = sorted(p.calculation_id for p in propose(session, QUERY, n=5))
    level = xtb.level_of_theory().name
    assert release_calculations(session, level, 2) == proposed[:2]
    assert release_calculations(session, level) == proposed[2:]
    assert release_calculations(session, level) == []
    session.execute(
        update(tables.Calculation)
        .where(tables.Calculation.id == proposed[0])
        .values(state="failed", attempts=3, error="did not converge", finished_at=func.now())
    )
    assert release_calculations(session, level) == []
    assert release_calculations(session, level, failed_too=True) == proposed[:1]
    again = session.get_one(tables.Calculation, proposed[0], populate_existing=True)
    assert (again.state, again.attempts, again.error) == ("waiting", 0, None)
    assert {row.state for row in calculations(session, proposed)} == {"waiting"}


def test_levels_of_other_codes_are_not_released(session: Session) -> None:
    scored(session)
    proposals = propose(session, QUERY, n=2)
    row = tables.LevelOfTheory(name="PBE", code="VASP", functional="PBE", settings={}, digest="d")
    session.add(row)
    session.flush()
    session.execute(update(tables.Calculation).values(level_id=row.id))
    with pytest.raises(
        InputError, match=r"does not compute at 'PBE', only at GFN1-xTB single point and GFN1-xTB relax"
    ):
        release_calculations(session, "PBE")
    states = {c.state for c in calculations(session, [p.calculation_id for p in proposals])}
    assert states == {"proposed"}
    with pytest.raises(UnknownNameError, match="'HSE'; known are GFN1-xTB single point, PBE"):
        release_calculations(session, "HSE")


def test_a_level_of_the_calculator_without_proposals_releases_nothing(session: Session) -> None:
    assert release_calculations(session, xtb.level_of_theory(relax=True).name) == []


def waiting(engine: Engine, *names: str, level_id: int | None = None) -> int:
    """A waiting calculation of 2x2 MoS2; its id."""
    with session_scope(engine) as session:
        stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "2x2"))
        pairs = []
        for number, name in enumerate(names):
            defect_type = DefectType.parse(name)
            pairs.append((int(stored.supercell.allowed(defect_type)[number]), defect_type.code))
        pairs.sort()
        configuration = Configuration(tuple(s for s, _ in pairs), tuple(c for _, c in pairs))
        (configuration_id,) = add_configurations(session, stored, [configuration])
        calculation = tables.Calculation(
            configuration_id=configuration_id,
            level_id=level_id or add_level(session, xtb.level_of_theory()),
            state="waiting",
        )
        session.add(calculation)
        session.flush()
        return calculation.id


def claim(engine: Engine, owner: str = "worker") -> int:
    with session_scope(engine) as session:
        claimed = leases.claim_next(session, tables.Calculation, owner)
        assert claimed is not None
        return claimed


def test_a_calculation_brings_its_result_and_its_references(clean_engine: Engine) -> None:
    calculation_id = waiting(clean_engine, "Se_S", "v_S")
    assert claim(clean_engine) == calculation_id
    calculate_unit(clean_engine, calculation_id, "worker")
    with session_scope(clean_engine) as session:
        calculation = session.get_one(tables.Calculation, calculation_id)
        assert (calculation.state, calculation.error, calculation.lease_owner) == ("finished", None, None)
        row = session.scalars(
            select(tables.CalculationResult).where(tables.CalculationResult.calculation_id == calculation_id)
        ).one()
        configuration = session.get_one(tables.Configuration, calculation.configuration_id)
        supercell = Supercell.parse(catalogue_host("MoS2"), "2x2")
        pristine = xtb.calculate(supercell, Configuration((), ())).energy
        defective = xtb.calculate(
            supercell, Configuration(tuple(configuration.sites), tuple(configuration.defect_types))
        )
        sulphur, selenium = xtb.reference("S")[0], xtb.reference("Se")[0]
        expected = defective.energy - pristine + 2 * sulphur - selenium
        assert row.energy == pytest.approx(defective.energy, abs=1e-5)
        assert row.formation_energy == pytest.approx(expected, abs=1e-4)
        assert row.formation_energy_per_site == pytest.approx(expected / 2, abs=1e-4)
        assert row.homo_lumo_gap_min == pytest.approx(defective.properties["homo_lumo_gap_min"], abs=1e-4)
        assert (row.dataset, row.row_name) == ("calculations", f"calculation {calculation_id}")


def test_a_round_of_relaxations_is_proposed_by_a_model_of_single_points(clean_engine: Engine) -> None:
    level = xtb.level_of_theory(relax=True)
    with session_scope(clean_engine) as session:
        _, model = scored(session)
        (at_sites,) = propose(session, DesignQuery(host="MoS2", max_defects=1), n=1)
        both = propose(session, DesignQuery(host="MoS2", max_defects=1), n=5, level_name=level.name)
        assert at_sites.candidate_id in {p.candidate_id for p in both}  # its single point is another calculation
        rounds = session.scalars(select(tables.Round).order_by(tables.Round.id)).all()
        assert [r.model_id for r in rounds] == [model.id, model.id]
        assert session.get_one(tables.LevelOfTheory, rounds[1].level_id).digest == level.digest
        round_id = rounds[1].id
        (relaxed,) = [p for p in both if p.configuration == "v_S"]
        assert relaxed.calculation_id in release_calculations(session, level.name)
    claimed = 0
    while claimed != relaxed.calculation_id:
        claimed = claim(clean_engine)
    calculate_unit(clean_engine, relaxed.calculation_id, "worker")
    with session_scope(clean_engine) as session:
        assert session.get_one(tables.Calculation, relaxed.calculation_id).state == "finished"
        row = session.scalars(
            select(tables.CalculationResult).where(tables.CalculationResult.calculation_id == relaxed.calculation_id)
        ).one()
        supercell = Supercell.parse(catalogue_host("MoS2"), "2x2")
        pristine = xtb.calculate(supercell, Configuration((), ()), relax=True).energy
        ideal = xtb.calculate(supercell, Configuration(relaxed.sites, (DefectType.parse("v_S").code,)))
        assert row.energy < ideal.energy - 0.01
        expected = row.energy - pristine + xtb.reference("S", relax=True)[0]
        assert row.formation_energy == pytest.approx(expected, abs=1e-4)
        assert row.dataset == f"round {round_id}"


def test_an_unknown_level_is_not_proposed_for(session: Session) -> None:
    scored(session)
    with pytest.raises(UnknownNameError, match="'GFN1-xTB relax'; known are GFN1-xTB single point"):
        propose(session, QUERY, n=1, level_name="GFN1-xTB relax")


def test_structures_of_a_round_come_back_as_results_that_finish_it(clean_engine: Engine, tmp_path: Path) -> None:
    with session_scope(clean_engine) as session:
        scored(session)
        ids = [p.calculation_id for p in propose(session, QUERY, n=3)]
        paths = write_structures(session, ids, tmp_path / "to calculate")
        round_id = session.scalars(select(tables.Round.id)).one()
    assert sorted(path.name for path in paths.values()) == sorted(f"calculation-{i}.vasp" for i in ids)
    table = tmp_path / "to calculate" / "done.csv"
    lines = [f"calculation-{i}.vasp,{-50.0 - i}" for i in ids[:2]]
    table.write_text("\n".join(["structure,energy", *lines, ""]))
    report = add_result_files(clean_engine, [table], level_name=xtb.level_of_theory().name)
    assert (report.new, report.refused) == (2, 0)
    with session_scope(clean_engine) as session:
        rows = {c.id: (c.state, c.round_id) for c in session.scalars(select(tables.Calculation))}
        assert rows == {i: ("proposed" if i == ids[2] else "finished", round_id) for i in ids}
        found = session.execute(select(tables.CalculationResult.calculation_id, tables.CalculationResult.energy)).all()
        assert dict(found) == {i: -50.0 - i for i in ids[:2]}


def test_a_folder_that_cannot_be_written_is_named(session: Session, tmp_path: Path) -> None:
    scored(session)
    (tmp_path / "file").write_text("")
    ids = [p.calculation_id for p in propose(session, QUERY, n=1)]
    with pytest.raises(InputError, match=r"structures cannot be written into .*file"):
        write_structures(session, ids, tmp_path / "file")


def test_a_calculation_that_fails_says_why_and_writes_nothing(
    clean_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calculation_id = waiting(clean_engine, "v_S")
    claim(clean_engine)
    monkeypatch.setattr(xtb, "_MIXINGS", ((0.4, 2),))
    xtb.reference.cache_clear()
    with pytest.raises(CalculationError, match="SCF not converged in 2 cycles"):
        calculate_unit(clean_engine, calculation_id, "worker")
    with session_scope(clean_engine) as session:
        assert session.scalars(select(tables.CalculationResult)).all() == []
        assert session.get_one(tables.Calculation, calculation_id).state == "running"  # its end is the task's


def test_a_calculation_that_was_taken_over_writes_nothing(
    clean_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calculation_id = waiting(clean_engine, "v_S")
    claim(clean_engine)
    calculate = xtb.calculate

    def slow(supercell: Supercell, configuration: Configuration, *, relax: bool = False) -> object:
        if configuration.n_defects:
            with session_scope(clean_engine) as session:
                session.execute(update(tables.Calculation).values(lease_owner="another"))
        return calculate(supercell, configuration, relax=relax)

    monkeypatch.setattr(xtb, "calculate", slow)
    with pytest.raises(LeaseLostError):
        calculate_unit(clean_engine, calculation_id, "worker")
    with session_scope(clean_engine) as session:
        results = session.scalars(select(tables.CalculationResult.calculation_id)).all()
        assert calculation_id not in results


def test_the_built_in_calculator_leaves_other_levels_alone(clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        row = tables.LevelOfTheory(name="PBE", code="VASP", functional="PBE", settings={}, digest="d")
        session.add(row)
        session.flush()
        level_id = row.id
    calculation_id = waiting(clean_engine, "v_S", level_id=level_id)
    claim(clean_engine)
    with pytest.raises(CalculationError, match=r"does not compute at 'PBE'.*`screening results add`"):
        calculate_unit(clean_engine, calculation_id, "worker")


def test_numbers_of_a_proposal_are_those_of_its_prediction(session: Session) -> None:
    scored(session)
    (proposal,) = propose(session, QUERY, n=1)
    predicted = session.scalars(
        select(tables.Candidate.formation_energy_per_site_mean).where(tables.Candidate.id == proposal.candidate_id)
    ).one()
    assert f"predicted {predicted:.3f} +- 0.050" in proposal.reason
    assert np.isclose(predicted, sum(proposal.sites) / 100, atol=1e-6)
