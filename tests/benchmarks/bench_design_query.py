"""Design queries over a campaign of ten million candidates with the indexes of its partition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Engine, text

from screening.database import tables
from screening.database.branches import load_branch
from screening.database.design_query import DesignQuery
from screening.database.query_sql import compile_query
from screening.database.session import session_scope
from tests.benchmarks.conftest import Measure
from tests.database.made_predictions import add_predictions

N_ROWS = 10_000_000
SHIFTS = {128 * 16: -0.3, 128 * 16 + 34: 0.2}  # eV, of v_S and Se_S
QUERIES: dict[str, dict[str, Any]] = {
    "a gap, lowest energies": {"windows": "gap=1.0:1.2"},
    "a gap at the wrong end of the order": {"windows": "gap=0.2:0.3"},
    "an energy, highest gaps": {"windows": "formation_energy_per_site=:1.0", "sort": "gap", "direction": "highest"},
    "closest to a gap": {"sort": "gap", "direction": "closest", "target": 1.1},
    "two types": {"types": "v_S,Se_S"},
    "a composition": {"counts": ["v_S:2", "Se_S:1"]},
    "two types required, a gap": {"required": "v_Mo,v_S", "windows": "gap=1.0:1.2"},
    "other chemical potentials": {},
    "a gap, 1000 likeliest": {"windows": "gap=1.0:1.2", "sort": "probability", "limit": 1000},
    "front of gap and energy": {"pareto": "gap=highest,formation_energy_per_site=lowest"},
}


def bench_design_queries(measure: Measure, clean_engine: Engine) -> None:
    """A hundred rows of each, by one process; the second and third time is warm."""
    with session_scope(clean_engine) as session:
        campaign_id = add_predictions(session, "five", N_ROWS)
    with session_scope(clean_engine) as session:
        session.execute(text("SET LOCAL max_parallel_workers_per_gather = 0"))
        campaign = session.get_one(tables.Campaign, campaign_id)
        for name, fields in QUERIES.items():
            query = DesignQuery.of(host="MoS2", **{"limit": 100} | fields)
            branch = load_branch(session, campaign, query)
            if name == "other chemical potentials":
                branch = replace(branch, shifts=SHIFTS)
            statement = compile_query(query, [branch])
            measure(f"design query: {name}", N_ROWS, repeats=3, sql=lambda s=statement: session.execute(s).all())
