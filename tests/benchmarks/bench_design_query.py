"""Candidates and predictions into their tables, with all rules and indexes, and a design query over them."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import Engine, text

from screening.database.bulk_copy import copy_rows
from screening.database.design_query import DesignQuery, Window, compile_query
from screening.database.session import session_scope
from screening.database.tables import PROPERTY_COMMENTS
from tests.benchmarks.conftest import Measure

N = 200_000


def add_owners(engine: Engine) -> None:
    with session_scope(engine) as session:
        for statement in (
            "INSERT INTO hosts (name, formula, lattice, species, positions, is_layer, source) "
            "VALUES ('X', 'X', '{1,0,0,0,1,0,0,0,1}', '{S}', '{0,0,0}', true, '')",
            "INSERT INTO supercells (host_id, matrix, label, n_sites, n_operations) "
            "SELECT id, '{1,0,0,0,1,0,0,0,1}', '1x1', 1, 1 FROM hosts",
            "INSERT INTO compositions (label, defect_types, counts, n_defects) VALUES ('3*v_S', '{2048}', '{3}', 3)",
            "INSERT INTO search_spaces (supercell_id, defect_types, min_defects, max_defects, expected) "
            "SELECT id, '{2048}', 1, 3, 1 FROM supercells",
            "INSERT INTO chunks (search_space_id, number, n_defects, prefix_sites, prefix_defect_types) "
            "SELECT id, 0, 3, '{}', '{}' FROM search_spaces",
            "INSERT INTO levels_of_theory (name, code, functional, settings, digest) VALUES ('L', '', '', '{}', '')",
            "INSERT INTO trained_models (name, level_id, properties, settings, seed) "
            "SELECT 'm', id, '{}', '{}', 1 FROM levels_of_theory",
        ):
            session.execute(text(statement))


def bench_copies_and_a_design_query(measure: Measure, clean_engine: Engine) -> None:
    add_owners(clean_engine)
    rng = np.random.default_rng(1)
    sites = np.stack([np.arange(N) // 5000, np.arange(N) // 5000 + 1, np.arange(N) % 5000 + 100], axis=1)
    with session_scope(clean_engine) as session:
        owner = {
            name: np.full(N, session.scalar(text(f"SELECT max(id) FROM {name}s")), np.int32)
            for name in ("search_space", "chunk", "composition")
        }
        candidates = {f"{name}_id": column for name, column in owner.items()} | {
            "multiplicity": np.ones(N, np.int32), "sites": sites.astype(np.int16),
            "defect_types": np.full((N, 3), 2048, np.int16),
        }  # fmt: skip
        measure("candidates by COPY", N, repeats=1, ours=lambda: copy_rows(session, "candidates", candidates))
    with session_scope(clean_engine) as session:
        identifiers = np.array(session.scalars(text("SELECT id FROM candidates ORDER BY id")).all(), np.int64)
        model, space = (session.scalar(text(f"SELECT id FROM {name}")) for name in ("trained_models", "search_spaces"))
        predictions: dict[str, Any] = {"candidate_id": identifiers, "model_id": np.full(N, model, np.int32)}
        for name in PROPERTY_COMMENTS:
            predictions[f"{name}_mean"] = rng.normal(1, 0.5, N).astype(np.float32)
            predictions[f"{name}_std"] = rng.uniform(0.01, 0.2, N).astype(np.float32)
        measure("predictions by COPY", N, repeats=1, ours=lambda: copy_rows(session, "predictions", predictions))
    query = DesignQuery(host="X", windows=(Window(property="homo_lumo_gap_min", low=1.0, high=1.2),))
    with session_scope(clean_engine) as session:
        session.execute(text("ANALYZE"))
        statement = compile_query(query, model_id=model or 0, search_space_id=space or 0)
        measure("design query, 20 best of 200,000", N, ours=lambda: session.execute(statement).all())
