"""A database with a finished campaign, a saved ranking of it, and results of some of its candidates."""

from __future__ import annotations

from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.design_query import DesignQuery
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.pipeline.designs import run_design_query
from screening.pipeline.hosts import add_configurations, add_supercell
from screening.pipeline.rankings import store_ranking
from tests.pipeline.made_campaigns import add_finished
from tests.synthetic_results import mos2, random_configurations


def fill(session: Session) -> None:
    """Campaign `gaps` of 4x4 MoS2, `ranking 1` of it, and results of some of its candidates."""
    level = tables.LevelOfTheory(name="PBE", code="VASP", functional="PBE", settings={}, digest="d")
    session.add(level)
    session.flush()
    properties = ["formation_energy_per_site", "homo_lumo_gap_min"]
    model = tables.TrainedModel(
        name="m", level_id=level.id, properties=properties, settings={}, seed=0, state="finished", weights=b"w"
    )
    session.add(model)
    session.flush()
    stored = add_supercell(session, mos2())
    space = SearchSpace(stored.supercell, parse_defect_types("v_S,Se_S"), 2)
    campaign = add_finished(session, stored, space, model, lambda i, _: predicted(i))
    campaign.name = "gaps"
    session.flush()
    query = DesignQuery.of(host="MoS2")
    store_ranking(session, query, run_design_query(session, query))
    ids = dict.fromkeys(add_configurations(session, stored, random_configurations(stored.supercell, 60)))
    for number, configuration_id in enumerate(ids):
        calculation = tables.Calculation(configuration_id=configuration_id, level_id=level.id, state="finished")
        session.add(calculation)
        session.flush()
        session.add(
            tables.CalculationResult(
                calculation_id=calculation.id, dataset="runs", row_name=str(number), energy=-1.0, homo_lumo_gap_min=1.5
            )
        )


def predicted(i: int) -> dict[str, float]:
    return {
        "formation_energy_per_site_mean": abs(i % 40 - 20.25) / 8, "formation_energy_per_site_std": 0.05,
        "homo_lumo_gap_min_mean": 0.9 + i % 5 / 10, "homo_lumo_gap_min_std": 0.1, "closest": 6.5, "farthest": 6.5,
    }  # fmt: skip
