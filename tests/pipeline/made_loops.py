"""A model, a campaign and results that are made up, for loops that need no training and no calculation."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from screening.database import models, tables
from screening.database.design_query import DesignQuery
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration, parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.dft import xtb
from screening.pipeline.hosts import StoredSupercell, add_supercell
from screening.pipeline.loop_stages import Advanced, advance
from screening.pipeline.loops import LoopRequest, start_loop
from screening.pipeline.training_rows import role_of
from tests.pipeline.made_campaigns import add_finished
from tests.synthetic_results import LEVEL, PROPERTIES, add_results, mos2, values

QUERY = DesignQuery(host="MoS2", supercell="4x4", sort="formation_energy_per_site", limit=5)
TYPES = "v_S,Se_S"
Shift = Callable[[Configuration], float]


def no_shift(configuration: Configuration) -> float:
    return 0.0


def other_order(configuration: Configuration) -> float:
    """Turns the order of the energies round: vacancies come first."""
    return -8.0 * sum(code % 128 == 0 for code in configuration.defect_types)


def make_world(engine: Engine, *, as_builtin: bool = False) -> None:
    """The finished model `first` with its campaign and 40 results; 4x4 MoS2."""
    with session_scope(engine) as session:
        add_results(session, 40)
        if as_builtin:  # the level is called as that of the built-in calculator, which computes at no other
            level = xtb.level_of_theory()
            session.execute(
                update(tables.LevelOfTheory)
                .where(tables.LevelOfTheory.name == LEVEL)
                .values(name=level.name, digest=level.digest, code=level.code, settings=dict(level.settings))
            )
        level_id = session.scalars(select(tables.LevelOfTheory.id)).one()
        model = tables.TrainedModel(
            name="first", level_id=level_id, properties=list(PROPERTIES), settings={}, seed=0, state="finished",
            weights=b"first",
        )  # fmt: skip
        session.add(model)
        session.flush()
        for result in session.scalars(select(tables.CalculationResult)).all():
            session.add(tables.ModelTrainingResult(model_id=model.id, result_id=result.id, role=role_of(result)))
        add_scored(session, model)


def add_scored(
    session: Session, model: tables.TrainedModel, shift: Shift = no_shift, *, types: str = TYPES
) -> tables.Campaign:
    """A finished campaign of a model: the formula, and what a shift adds to the energy per site."""
    stored = add_supercell(session, mos2())
    space = SearchSpace(stored.supercell, parse_defect_types(types), 2)

    def predict(number: int, configuration: Configuration) -> dict[str, float]:
        said = values(stored.supercell, configuration)
        said["formation_energy_per_site"] += shift(configuration)
        row = {f"{name}_mean": value for name, value in said.items()}
        return row | {f"{name}_std": 0.1 for name in said}

    return add_finished(session, stored, space, model, predict)


def start(engine: Engine, **changes: object) -> int:
    options = {"batch": 3, "max_calculations": 100, "patience": 2, "top": 5, "calculator": "external"} | changes
    with session_scope(engine) as session:
        return start_loop(session, LoopRequest("loop", QUERY, "first", **options)).id  # type: ignore[arg-type]


def step(engine: Engine, loop_id: int) -> str | None:
    """What the next step was; None if there was none."""
    found: Advanced | None = advance(engine, loop_id)
    return None if found is None else found.stage


def calculate_round(engine: Engine, loop_id: int, *, failing: bool = False) -> list[int]:
    """End the calculations of a loop's round, with results by the formula or with an error; their ids."""
    with session_scope(engine) as session:
        round_id = session.get_one(tables.Loop, loop_id).round_id
        stored: StoredSupercell = add_supercell(session, mos2())
        rows = session.execute(
            select(tables.Calculation, tables.Configuration)
            .join(tables.Configuration, tables.Configuration.id == tables.Calculation.configuration_id)
            .where(tables.Calculation.round_id == round_id)
            .order_by(tables.Calculation.id)
        ).all()
        for calculation, row in rows:
            if failing:
                calculation.state, calculation.error = "failed", "no convergence"
                continue
            calculation.state = "finished"
            found = values(stored.supercell, Configuration(tuple(row.sites), tuple(row.defect_types)))
            session.add(
                tables.CalculationResult(
                    calculation_id=calculation.id, dataset=f"round {round_id}", row_name=f"{calculation.id}",
                    split="train", energy=-350.0, **found,
                )
            )  # fmt: skip
        return [calculation.id for calculation, _ in rows]


def end_training(engine: Engine, *, promoted: bool = True, shift: Shift | None = no_shift) -> None:
    """Finish the version that waits, promote it or not, and give it a finished campaign unless `shift` is None."""
    with session_scope(engine) as session:
        model = session.scalars(select(tables.TrainedModel).where(tables.TrainedModel.state == "waiting")).one()
        champion = models.in_production(session, model.line_id)
        assert champion is not None
        model.state, model.weights = "finished", model.name.encode()
        session.flush()
        session.add(
            tables.ModelComparison(
                challenger_id=model.id, champion_id=champion.id, n_rows=6, is_promoted=promoted,
                reason="better: a test" if promoted else "worse: a test",
            )
        )  # fmt: skip
        if promoted:
            models.promote(session, model, reason="a test")
            if shift is not None:
                add_scored(session, model, shift)
