"""Bytes on disk of a candidate in the partition of its campaign, without and with its indexes."""

from __future__ import annotations

import numpy as np
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.bulk_copy import Column, copy_rows
from screening.database.campaigns import (
    add_partition,
    drop_partition,
    index_partition,
    partition_bytes,
    partition_name,
)
from screening.database.session import session_scope
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace, enumerate_space
from screening.defects.host import Supercell
from screening.pipeline import costs, searches
from screening.pipeline.hosts import StoredSupercell, add_supercell
from tests.benchmarks.conftest import PrintLine

N_ROWS = 200_000
TYPES = parse_defect_types("v_S,Se_S,v_Mo,W_Mo")


def bench_bytes_of_a_candidate(clean_engine: Engine, print_line: PrintLine) -> None:
    """8x8 MoS2, four types, 3 to 5 defects; properties that are predicted: none, two, three and all eight.

    The constants of screening.pipeline.costs are the line through these numbers.
    """
    with session_scope(clean_engine) as session:
        stored = add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "8x8"))
        model_id = _add_model(session)
    for n_defects in (3, 4, 5):
        for n_properties in (0, 2, 3, 8):
            with session_scope(clean_engine) as session:
                space = SearchSpace(stored.supercell, TYPES, n_defects, min_defects=n_defects)
                campaign = tables.Campaign(
                    name="c", search_space_id=searches.add_search_space(session, stored, space),
                    model_id=model_id if n_properties else None, storage="all",
                )  # fmt: skip
                session.add(campaign)
                session.flush()
                add_partition(session, campaign.id)
                n_rows = _store(session, stored, space, campaign.id, n_properties)
                heap = session.execute(select(func.pg_relation_size(partition_name(campaign.id)))).scalar_one()
                index_partition(session, campaign.id)
                whole = partition_bytes(session, campaign.id)
                drop_partition(session, campaign.id)
                session.delete(campaign)
            print_line(
                {
                    "figure": "bytes of a candidate", "defects": n_defects, "properties": n_properties, "rows": n_rows,
                    "heap": round(heap / n_rows, 1), "with_indexes": round(whole / n_rows, 1),
                    "estimated": costs.disk_bytes(n_rows, n_properties=n_properties) / n_rows,
                }
            )  # fmt: skip


def _store(session: Session, stored: StoredSupercell, space: SearchSpace, campaign_id: int, n_properties: int) -> int:
    """The first candidates of a search space with made predictions; their number."""
    generator = np.random.default_rng(0)
    n_rows = 0
    for block in enumerate_space(space, stored.symmetry):
        n = min(len(block), N_ROWS - n_rows)
        columns: dict[str, Column] = {
            "id": n_rows + np.arange(n), "campaign_id": np.full(n, campaign_id, np.int32),
            "arrangement_id": np.ones(n, np.int32), "multiplicity": block.multiplicity[:n],
        }  # fmt: skip
        for name in list(tables.PROPERTY_COMMENTS)[:n_properties]:
            columns[f"{name}_mean"] = generator.normal(size=n).astype(np.float32)
            columns[f"{name}_std"] = generator.random(n).astype(np.float32)
        distances = {name: np.full(n, 4.0, np.float32) for name in ("closest", "farthest")}
        copy_rows(session, partition_name(campaign_id), columns | {"sites": block.sites[:n], **distances})
        n_rows += n
        if n_rows == N_ROWS:
            break
    return n_rows


def _add_model(session: Session) -> int:
    level = tables.LevelOfTheory(name="PBE", code="VASP", functional="PBE", settings={}, digest="d")
    session.add(level)
    session.flush()
    model = tables.TrainedModel(
        name="m", level_id=level.id, properties=[], settings={}, seed=0, state="finished", weights=b"w"
    )
    session.add(model)
    session.flush()
    return model.id
