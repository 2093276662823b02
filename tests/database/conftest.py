"""Rows that database tests begin with: one host, level of theory, search space, model, running campaign and chunk."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from sqlalchemy import Engine, func
from sqlalchemy.orm import Session

from screening.database.campaigns import add_partition
from screening.database.session import session_scope
from screening.database.tables import (
    Arrangement,
    Campaign,
    Chunk,
    Composition,
    DefectType,
    Host,
    LevelOfTheory,
    SearchSpace,
    Supercell,
    TrainedModel,
)

V_S, SE_S = 128 * 16, 128 * 16 + 34


@dataclass(frozen=True)
class Ids:
    """Ids of the rows; `one` and `two` are arrangements of v_S, and of v_S and Se_S."""

    host: int
    supercell: int
    level: int
    vacancy: int
    pair: int
    search_space: int
    campaign: int
    chunk: int
    model: int
    one: int
    two: int


def add_rows(session: Session) -> Ids:
    host = Host(
        name="MoS2", formula="MoS2", lattice=[3.19, 0.0, 0.0, -1.595, 2.763, 0.0, 0.0, 0.0, 20.0],
        species=["Mo", "S", "S"], positions=[0.0] * 9, is_layer=True, source="test",
    )  # fmt: skip
    level = LevelOfTheory(name="PBE", code="VASP", functional="PBE", settings={}, digest="d1")
    vacancy = Composition(label="v_S", defect_types=[V_S], counts=[1], n_defects=1)
    pair = Composition(label="v_S+Se_S", defect_types=[V_S, SE_S], counts=[1, 1], n_defects=2)
    types = [DefectType(id=V_S, name="v_S", removed="S"), DefectType(id=SE_S, name="Se_S", removed="S", added="Se")]
    session.add_all([host, level, vacancy, pair, *types])
    session.flush()
    supercell = Supercell(
        host_id=host.id, matrix=[8, 0, 0, 0, 8, 0, 0, 0, 1], label="8x8", n_sites=192, n_operations=768
    )
    model = TrainedModel(name="m1", level_id=level.id, properties=["homo"], settings={}, seed=1)
    session.add_all([supercell, model])
    session.flush()
    space = SearchSpace(supercell_id=supercell.id, defect_types=[V_S, SE_S], min_defects=1, max_defects=2, expected=10)
    session.add(space)
    session.flush()
    campaign = Campaign(
        name="c1", search_space_id=space.id, model_id=model.id, storage="all", state="running", started_at=func.now()
    )
    arrangements = [
        Arrangement(composition_id=vacancy.id, defect_types=[V_S]),
        Arrangement(composition_id=pair.id, defect_types=[V_S, SE_S]),
    ]
    session.add_all([campaign, *arrangements])
    session.flush()
    add_partition(session, campaign.id)
    chunk = Chunk(
        campaign_id=campaign.id, number=0, scores=True, n_defects=2, first_sites=[], first_defect_types=[],
        last_sites=[], last_defect_types=[],
    )  # fmt: skip
    session.add(chunk)
    session.flush()
    one, two = (arrangement.id for arrangement in arrangements)
    return Ids(
        host.id, supercell.id, level.id, vacancy.id, pair.id, space.id, campaign.id, chunk.id, model.id, one, two
    )


@pytest.fixture
def ids(session: Session) -> Ids:
    """The rows in the session that is rolled back."""
    return add_rows(session)


@pytest.fixture
def committed_ids(clean_engine: Engine) -> Ids:
    """The rows in a database of the test's own."""
    with session_scope(clean_engine) as session:
        return add_rows(session)
