"""Design queries over a campaign of a million candidates with the indexes of its partition."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import Engine, text

from screening.database import queries
from screening.database.bulk_copy import copy_rows
from screening.database.campaigns import index_partition, partition_name
from screening.database.design_query import DesignQuery, Window
from screening.database.query_sql import Branch, compile_query
from screening.database.session import session_scope
from tests.benchmarks.bench_database import block_of, empty_campaign
from tests.benchmarks.conftest import Measure

N_BLOCKS, N_BLOCK = 16, 65_536
GAP, ENERGY = "homo_lumo_gap_min", "formation_energy_per_site"
GAP_WINDOW = Window(property=GAP, low=1.0, high=1.2)
QUERIES = {
    "lowest energies": DesignQuery(host="c"),
    "lowest energies of up to 4 defects": DesignQuery(host="c", max_defects=4),
    "a gap, lowest energies": DesignQuery(host="c", windows=(GAP_WINDOW,)),
    "a gap and an energy, confidence 0.8": DesignQuery(
        host="c", windows=(GAP_WINDOW, Window(property=ENERGY, high=0.5)), confidence=0.8
    ),
    "a gap that is rare": DesignQuery(host="c", windows=(Window(property=GAP, low=2.9, high=3.1),)),
    "a gap, largest first": DesignQuery(
        host="c", windows=(Window(property=GAP, low=2.0),), sort=GAP, direction="highest"
    ),
    "a gap, 1000 likeliest": DesignQuery(host="c", windows=(GAP_WINDOW,), sort="probability", limit=1000),
    "little confidence": DesignQuery(host="c", windows=(GAP_WINDOW,), confidence=0.1),
}  # fmt: skip


@pytest.mark.parametrize("is_indexed", [True, False], ids=["indexed", "not indexed"])
def bench_design_queries(measure: Measure, clean_engine: Engine, is_indexed: bool) -> None:
    """Twenty rows of each, in the transaction that filled the table."""
    n_rows = N_BLOCKS * N_BLOCK
    with session_scope(clean_engine) as session:
        campaign_id = empty_campaign(session, "c")
        compositions = queries.composition_ids(
            session,
            {f"{n}*v_S": {"defect_types": [2048], "counts": [n], "n_defects": n} for n in (4, 5)},
        )
        rows = {(n, n): compositions[f"{4 + n % 2}*v_S"] for n in range(1024)}
        arrangements = sorted(queries.arrangement_ids(session, rows).values())
        rng = np.random.default_rng(1)
        for number in range(N_BLOCKS):
            columns = block_of(N_BLOCK, 3, campaign_id)
            columns["id"] = number * N_BLOCK + np.arange(N_BLOCK)
            columns["arrangement_id"] = rng.choice(arrangements, N_BLOCK).astype(np.int32)
            columns[f"{ENERGY}_mean"] = rng.normal(1.0, 0.5, N_BLOCK).astype(np.float32)
            columns[f"{GAP}_mean"] = rng.normal(1.5, 0.4, N_BLOCK).astype(np.float32)
            copy_rows(session, partition_name(campaign_id), columns)
        if is_indexed:
            measure(
                "indexes of a million candidates", n_rows, repeats=1, ours=lambda: index_partition(session, campaign_id)
            )
        session.execute(text("ANALYZE candidates, arrangements, compositions"))
    with session_scope(clean_engine) as session:
        for name, query in QUERIES.items():
            statement = compile_query(query, [Branch(campaign_id)])
            how = {"indexed" if is_indexed else "not_indexed": lambda s=statement: session.execute(s).all()}
            measure(f"design query: {name}", n_rows, repeats=3, **how)
