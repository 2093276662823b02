"""What random choice learns from: all that the loop began with, then the other labels, each once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, delete, select

from screening.database import tables
from screening.database.session import session_scope
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace
from screening.errors import InputError
from screening.pipeline import searches
from screening.pipeline.hosts import add_supercell
from screening.pipeline.random_choice import random_choice
from screening.pipeline.replay import Replay, begin, read_replay
from tests.pipeline.made_campaigns import train_small
from tests.pipeline.test_replay import add_round
from tests.synthetic_2dmd import write_subset


@pytest.fixture
def replay(tmp_path: Path) -> Replay:
    return read_replay(write_subset(tmp_path / "low_density_defects" / "MoS2"))


def add_loop(engine: Engine, replay: Replay, n_first: int) -> list[str]:
    """A loop that began with so many labels, and has ranked then and after one more; their names in their order."""
    with session_scope(engine) as session:
        begin(session, replay, n_first=n_first, seed=5)
    add_round(engine, replay, [replay.pool[0].configuration])
    with session_scope(engine) as session:
        model = session.scalars(select(tables.TrainedModel)).one()
        model.weights, model.properties = train_small(), ["formation_energy_per_site", "homo_lumo_gap_min"]
        loop = session.scalars(select(tables.Loop)).one()
        session.get_one(tables.Design, loop.design_id).query = {"places": [{"host": "MoS2"}], "limit": 5}
        space = SearchSpace(replay.supercell, parse_defect_types("v_S"), 1)
        space_id = searches.add_search_space(session, add_supercell(session, replay.supercell), space)
        ranking = tables.Ranking(
            query={}, sql="", model_id=model.id, search_space_id=space_id, level_id=loop.level_id,
            design_id=loop.design_id,
        )  # fmt: skip
        session.add(ranking)
        session.flush()
        for number in (1, 2):
            session.add(tables.LoopStep(
                loop_id=loop.id, number=number, stage="rank", model_id=model.id, ranking_id=ranking.id,
                n_calculated=number - 1,
            ))  # fmt: skip
        learnt = session.scalars(
            select(tables.CalculationResult)
            .where(tables.CalculationResult.row_name != "pristine")
            .order_by(tables.CalculationResult.id)
        ).all()
        for i, result in enumerate(learnt):
            role = "validation" if i == 1 else "train"
            session.add(tables.ModelTrainingResult(model_id=model.id, result_id=result.id, role=role))
        return [result.row_name for result in learnt]


def test_it_begins_as_the_loop_did_and_takes_each_other_label_once(clean_engine: Engine, replay: Replay) -> None:
    names = add_loop(clean_engine, replay, 2)
    with session_scope(clean_engine) as session:
        chosen = random_choice(session, "l", replay)
    labels, configurations = {label.configuration: label for label in replay.pool}, chosen.labelled.configurations
    found = [labels[configuration].name for configuration in configurations]
    assert found[:2] == names
    assert sorted(found) == sorted(label.name for label in replay.pool)
    assert chosen.n_results == (2, 3)
    assert chosen.labelled.is_validation[:2].tolist() == [False, True]
    column = chosen.first.properties.index("formation_energy_per_site")
    energies = [label.properties["formation_energy_per_site"] for label in map(labels.__getitem__, configurations)]
    np.testing.assert_allclose(chosen.labelled.labels[:, column], energies)


def test_a_data_set_that_the_loop_has_not_played_is_refused(clean_engine: Engine, replay: Replay) -> None:
    add_loop(clean_engine, replay, 2)
    other = Replay(replay.dataset, replay.supercell, replay.pool[-1:], replay.test, replay.subset)
    with session_scope(clean_engine) as session:
        with pytest.raises(InputError, match=r"has learnt from 2 results, [12] of which the data set does not have"):
            random_choice(session, "l", other)
        session.execute(delete(tables.LoopStep))
        with pytest.raises(InputError, match="has not ranked anything yet"):
            random_choice(session, "l", replay)
