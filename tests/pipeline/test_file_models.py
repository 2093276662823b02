"""What a stored model says of the labels that it has learnt from."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Supercell
from screening.dft.results import CalculationResult, LevelOfTheory
from screening.pipeline.file_models import label_ranges
from screening.pipeline.hosts import add_supercell
from screening.pipeline.references import add_level
from screening.pipeline.result_rows import NewResult, Origin, store_results
from screening.pipeline.retraction import retract


def test_labels_that_were_emptied_with_their_pristine_result_keep_their_range(session: Session) -> None:
    stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "2x2"))
    level_id = add_level(session, LevelOfTheory("some PBE", "some code", "PBE", {"cutoff": 500}))
    queries.add_chemical_potentials(session, level_id, {"S": (-4.0, "a test")})
    vacancy = DefectType.parse("v_S")
    sites = stored.supercell.allowed(vacancy)
    energies = {0: -100.0, 1: -93.0, 2: -85.0}  # eV, by the number of vacancies
    rows = []
    for n, energy in energies.items():
        configuration = Configuration(tuple(sorted(int(site) for site in sites[:n])), (vacancy.code,) * n)
        rows.append(NewResult(f"{n}", CalculationResult(configuration, energy, {"homo_lumo_gap_min": 0.5 * n})))
    store_results(session, stored, level_id, rows, origin=Origin("a test"))
    model = tables.TrainedModel(
        name="first", level_id=level_id, properties=["formation_energy"], settings={}, seed=0, state="finished",
        weights=b"w",
    )  # fmt: skip
    session.add(model)
    session.flush()
    ids = dict(session.execute(select(tables.CalculationResult.row_name, tables.CalculationResult.id)).all())
    session.add_all(tables.ModelTrainingResult(model_id=model.id, result_id=ids[n], role="train") for n in ("1", "2"))
    session.flush()
    expected = {
        "formation_energy": pytest.approx((3.0, 7.0)),
        "formation_energy_per_site": pytest.approx((3.0, 3.5)),
        "homo_lumo_gap_min": (0.5, 1.0),
    }
    assert label_ranges(session, model.id) == expected
    retract(session, ids["0"], "wrong cell")
    assert label_ranges(session, model.id) == expected
