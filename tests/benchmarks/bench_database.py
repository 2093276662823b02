"""Candidates with their predictions into the partition of a campaign."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import Engine, insert, text
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.bulk_copy import Column, _encode, copy_rows
from screening.database.campaigns import add_partition, partition_name
from tests.benchmarks.conftest import Measure

N_ROWS, N_FEW = 65_536, 4_000  # a block of a scan, and what executemany can do in a second or two


def block_of(n_rows: int, n_properties: int, campaign_id: int, *, n_defects: int = 5) -> dict[str, Column]:
    """Columns of candidates as scanning makes them."""
    rng = np.random.default_rng(0)
    columns: dict[str, Column] = {
        "id": np.arange(n_rows), "campaign_id": np.full(n_rows, campaign_id, np.int32),
        "arrangement_id": rng.integers(1, 1024, n_rows).astype(np.int32),
        "multiplicity": np.full(n_rows, 768, np.int32),
    }  # fmt: skip
    for name in list(tables.PROPERTY_COMMENTS)[:n_properties]:
        columns[f"{name}_mean"] = rng.normal(1.0, 0.5, n_rows).astype(np.float32)
        columns[f"{name}_std"] = rng.uniform(0.01, 0.2, n_rows).astype(np.float32)
    return columns | {"sites": np.sort(rng.integers(0, 192, (n_rows, n_defects)), axis=1).astype(np.int16)}


def empty_campaign(session: Session, name: str) -> int:
    """A campaign with a partition; nothing that it is about matters here."""
    host = tables.Host(
        name=name, formula="S", lattice=[1.0] * 9, species=["S"], positions=[0.0] * 3, is_layer=True, source=""
    )
    session.add(host)
    session.flush()
    supercell = tables.Supercell(host_id=host.id, matrix=[1] * 9, label="8x8", n_sites=192, n_operations=768)
    level = tables.LevelOfTheory(name=name, code="", functional="", settings={}, digest=name)
    session.add_all([supercell, level])
    session.flush()
    model = tables.TrainedModel(
        name=name, level_id=level.id, properties=[], settings={}, seed=0, state="finished", weights=b"w"
    )
    space = tables.SearchSpace(supercell_id=supercell.id, defect_types=[2048], min_defects=1, max_defects=5, expected=1)
    session.add_all([model, space])
    session.flush()
    campaign = tables.Campaign(name=name, search_space_id=space.id, model_id=model.id, storage="all")
    session.add(campaign)
    session.flush()
    add_partition(session, campaign.id)
    return campaign.id


def bench_copy(measure: Measure, clean_engine: Engine) -> None:
    """Candidates of five defects with predictions, and without, by binary COPY and by executemany."""
    with Session(clean_engine) as session:
        campaign_id = empty_campaign(session, "c")
        for n_properties in (0, 3, 8):
            columns = block_of(N_ROWS, n_properties, campaign_id)
            few = [
                dict(zip(columns, values, strict=True))
                for values in zip(*(column[:N_FEW].tolist() for column in columns.values()), strict=True)
            ]

            def by_copy(columns: dict[str, Column] = columns) -> None:
                copy_rows(session, partition_name(campaign_id), columns)

            def by_executemany(few: list[dict[str, Any]] = few) -> None:
                session.execute(insert(tables.Candidate), few)

            what = f"candidates with {n_properties} properties into PostgreSQL"
            measure(what, N_ROWS, binary_copy=by_copy)
            measure(what, N_FEW, repeats=3, executemany=by_executemany)
            measure(
                f"candidates with {n_properties} properties as a stream", N_ROWS, encode=lambda c=columns: _encode(c)
            )
            session.execute(text(f"TRUNCATE {partition_name(campaign_id)}"))
        session.rollback()
