"""Rows into PostgreSQL."""

from __future__ import annotations

import numpy as np
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from screening.database.bulk_copy import copy_rows
from tests.benchmarks.conftest import Measure


def bench_copy(measure: Measure, clean_engine: Engine) -> None:
    """Candidate-like rows by binary COPY, and by executemany."""
    n_rows = 100_000
    rng = np.random.default_rng(0)
    columns = {
        "sites": np.sort(rng.integers(0, 192, (n_rows, 3)), axis=1).astype(np.int16),
        "energy": rng.normal(size=n_rows).astype(np.float32),
        "gap": rng.normal(size=n_rows).astype(np.float32),
    }
    with Session(clean_engine) as session:
        session.execute(text("CREATE TABLE rows (sites smallint[], energy real, gap real)"))

        def by_copy() -> None:
            copy_rows(session, "rows", columns)

        few = [
            {"sites": s, "energy": float(e), "gap": float(g)}
            for s, e, g in zip(columns["sites"][:5000].tolist(), columns["energy"], columns["gap"], strict=False)
        ]

        def by_executemany() -> None:
            session.execute(text("INSERT INTO rows VALUES (:sites, :energy, :gap)"), few)

        measure("rows into PostgreSQL", n_rows, binary_copy=by_copy)
        measure("rows into PostgreSQL", len(few), executemany=by_executemany)
        session.rollback()
