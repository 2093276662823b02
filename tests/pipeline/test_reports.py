"""Predictions beside results: which rows are compared, and with which prediction."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from screening.database import tables
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.defects.host import Supercell
from screening.pipeline.hosts import StoredSupercell, add_configurations, add_supercell
from screening.pipeline.reports import ComparedRow, compared_rows, plot_parity
from tests.pipeline.made_campaigns import add_finished

ENERGY = "formation_energy_per_site"
V_S, SE_S = (t.code for t in parse_defect_types("v_S,Se_S"))


@pytest.fixture
def stored(session: Session) -> StoredSupercell:
    return add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "2x2"))


def predicted(_: int, configuration: Configuration) -> dict[str, float]:
    return {f"{ENERGY}_mean": sum(configuration.sites) / 8, f"{ENERGY}_std": 0.25}


def add_level(session: Session, name: str) -> tables.LevelOfTheory:
    level = tables.LevelOfTheory(name=name, code="VASP", functional=name, settings={}, digest=name)
    session.add(level)
    session.flush()
    return level


def add_model(session: Session, stored: StoredSupercell, *, name: str, level_id: int, sizes: tuple[int, ...]) -> int:
    """A model with a finished campaign of each of these largest numbers of defects; its id."""
    model = tables.TrainedModel(
        name=name, level_id=level_id, properties=[ENERGY], settings={}, seed=0, state="finished", weights=b"w"
    )
    session.add(model)
    session.flush()
    for max_defects in sizes:
        space = SearchSpace(stored.supercell, parse_defect_types("v_S,Se_S"), max_defects)
        add_finished(session, stored, space, model, predicted)
    return model.id


def add_result(
    session: Session, stored: StoredSupercell, configuration: Configuration, *, level_id: int, value: float,
    round_id: int | None = None,
) -> int:  # fmt: skip
    """The result of a calculation, of a round or not; its id."""
    (configuration_id,) = add_configurations(session, stored, [configuration])
    calculation = tables.Calculation(
        configuration_id=configuration_id, level_id=level_id, round_id=round_id, state="finished"
    )
    session.add(calculation)
    session.flush()
    result = tables.CalculationResult(
        calculation_id=calculation.id, dataset="d", row_name=str(calculation.id), energy=-1.0,
        formation_energy_per_site=value,
    )  # fmt: skip
    session.add(result)
    session.flush()
    return result.id


def candidates_of(session: Session) -> list[Configuration]:
    rows = session.query(tables.Candidate.sites, tables.Arrangement.defect_types).join(
        tables.Arrangement, tables.Arrangement.id == tables.Candidate.arrangement_id
    )
    return sorted({Configuration(tuple(sites), tuple(types)) for sites, types in rows}, key=lambda c: c.sites)


def test_what_a_model_did_not_learn_is_compared_once_with_what_it_predicted(
    session: Session, stored: StoredSupercell
) -> None:
    """The configurations are in two campaigns of the model, and in one of another model."""
    level_id = add_level(session, "PBE").id
    model_id = add_model(session, stored, name="m", level_id=level_id, sizes=(1, 2))
    other = add_model(session, stored, name="other", level_id=level_id, sizes=(2,))
    rounds = [tables.Round(model_id=i, level_id=level_id, query={}, seed=0) for i in (model_id, other)]
    session.add_all(rounds)
    session.flush()
    chosen = candidates_of(session)[:5]
    ids = [
        add_result(session, stored, configuration, level_id=level_id, value=float(n), round_id=round_id)
        for n, (configuration, round_id) in enumerate(
            zip(chosen, [None, None, rounds[0].id, rounds[1].id, None], strict=True)
        )
    ]
    for result_id, role in ((ids[0], "train"), (ids[1], "validation")):
        session.add(tables.ModelTrainingResult(model_id=model_id, result_id=result_id, role=role))
    session.flush()
    assert compared_rows(session, model_id, [ENERGY]) == [
        ComparedRow("validation", chosen[1].composition, ENERGY, sum(chosen[1].sites) / 8, 0.25, 1.0),
        ComparedRow("proposed", chosen[2].composition, ENERGY, sum(chosen[2].sites) / 8, 0.25, 2.0),
    ]


def test_results_at_another_level_than_the_model_learnt_are_not_compared(
    session: Session, stored: StoredSupercell
) -> None:
    pbe, hse = add_level(session, "PBE").id, add_level(session, "HSE").id
    model_id = add_model(session, stored, name="m", level_id=pbe, sizes=(1,))
    round_ = tables.Round(model_id=model_id, level_id=hse, query={}, seed=0)
    session.add(round_)
    session.flush()
    add_result(session, stored, candidates_of(session)[0], level_id=hse, value=1.0, round_id=round_.id)
    assert compared_rows(session, model_id, [ENERGY]) == []


def test_a_result_of_the_same_sites_with_other_defects_is_another_configuration(
    session: Session, stored: StoredSupercell
) -> None:
    level_id = add_level(session, "PBE").id
    model_id = add_model(session, stored, name="m", level_id=level_id, sizes=(1,))
    round_ = tables.Round(model_id=model_id, level_id=level_id, query={}, seed=0)
    session.add(round_)
    session.flush()
    (site,) = {c.sites for c in candidates_of(session)}
    add_result(session, stored, Configuration(site, (SE_S,)), level_id=level_id, value=1.0, round_id=round_.id)
    assert [row.configuration for row in compared_rows(session, model_id, [ENERGY])] == ["Se_S"]


def test_properties_that_a_result_lacks_are_left_out(session: Session, stored: StoredSupercell) -> None:
    level_id = add_level(session, "PBE").id
    model_id = add_model(session, stored, name="m", level_id=level_id, sizes=(1,))
    round_ = tables.Round(model_id=model_id, level_id=level_id, query={}, seed=0)
    session.add(round_)
    session.flush()
    add_result(session, stored, candidates_of(session)[0], level_id=level_id, value=1.0, round_id=round_.id)
    assert [row.property for row in compared_rows(session, model_id, ["homo", ENERGY])] == [ENERGY]


def test_the_picture_has_a_panel_for_each_property(tmp_path: Path) -> None:
    from matplotlib.image import imread

    rows = [ComparedRow("validation", "v_S", ENERGY, 1.0, 0.1, 1.1), ComparedRow("proposed", "v_S", ENERGY, 2, 0, 2.5)]
    sizes = []
    for properties in ([ENERGY], [ENERGY, "homo"]):  # of the second one there are no rows
        plot_parity(rows, properties, tmp_path / "parity.png", title="a model")
        height, width, _ = imread(tmp_path / "parity.png").shape
        sizes.append((height, width))
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] == 2 * sizes[0][1]
