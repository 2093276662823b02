"""Bytes on disk of a candidate and of its predictions by one model, with all their indexes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.bulk_copy import copy_rows
from screening.database.session import session_scope
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import parse_defect_types
from screening.defects.enumeration import SearchSpace, enumerate_chunk
from screening.defects.host import Supercell
from screening.pipeline import searches
from screening.pipeline.hosts import add_supercell

N_ROWS = 60_000


def bench_bytes_of_a_candidate(clean_engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """8x8 MoS2, four types, 3 to 5 defects as enumeration stores them; every property predicted.

    The constants of screening.pipeline.costs are the line through these numbers.
    """
    supercell = Supercell.parse(catalogue_host("MoS2"), "8x8")
    types = parse_defect_types("v_S,Se_S,v_Mo,W_Mo")
    for n_defects in (3, 4, 5):
        with session_scope(clean_engine) as session:
            session.execute(text("TRUNCATE candidates, predictions, trained_models CASCADE"))
            stored = add_supercell(session, supercell)
            space = SearchSpace(supercell, types, n_defects, min_defects=n_defects)
            space_id = searches.add_search_space(session, stored, space)
            rows = session.scalars(select(tables.Chunk).where(tables.Chunk.search_space_id == space_id))
            n_stored = 0
            for row in rows.all():
                if n_stored >= N_ROWS:
                    break
                prefix = searches.Configuration(tuple(row.prefix_sites), tuple(row.prefix_defect_types))
                for block in enumerate_chunk(space, stored.symmetry, searches.Chunk(n_defects, prefix)):
                    n_stored += searches._store_candidates(session, row, block)
            _predict(session)
            size = {
                name: session.scalar(select(func.pg_total_relation_size(name))) / n_stored
                for name in ("candidates", "predictions")
            }
        line = {"figure": "bytes of a row with its indexes", "defects": n_defects, "rows": n_stored, **size}
        with capsys.disabled():
            print(json.dumps(line), flush=True)


def _predict(session: Session) -> None:
    session.execute(text("DELETE FROM levels_of_theory"))
    level = tables.LevelOfTheory(name="PBE", code="VASP", functional="PBE", settings={}, digest="d")
    session.add(level)
    session.flush()
    model = tables.TrainedModel(
        name="m", level_id=level.id, properties=[], settings={}, seed=0, state="finished", weights=b"w"
    )
    session.add(model)
    session.flush()
    ids = np.array(session.scalars(select(tables.Candidate.id).order_by(tables.Candidate.id)).all(), np.int64)
    generator = np.random.default_rng(0)
    columns = {"candidate_id": ids, "model_id": np.full(len(ids), model.id, np.int32)}
    for name in tables.PROPERTY_COMMENTS:
        columns[f"{name}_mean"] = generator.normal(size=len(ids)).astype(np.float32)
        columns[f"{name}_std"] = generator.random(len(ids)).astype(np.float32)
    copy_rows(session, "predictions", columns)
