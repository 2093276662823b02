"""How errors spread, stored where SQL can use it: multiples of a model's intervals, correlations of a campaign's.

Both are only inside the model's weights. A worker that scans a chunk writes them before it scores anything, if they
are not there: they are the same whoever writes them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import tables
from screening.defects.enumeration import SearchSpace, enumerate_chunk, plan_chunks
from screening.pipeline.hosts import StoredSupercell

if TYPE_CHECKING:
    from screening.learning.ensemble import Ensemble

N_CHUNKS, ROWS_OF_CHUNK = 25, 20  # parts of the space whose first configurations are looked at


def store_multiples(session: Session, model_id: int, ensemble: Ensemble, host: str, n_sizes: int) -> None:
    """Keep how many standard deviations the 95 % intervals reach, for 1, 2, ... `n_sizes` defects."""
    multiples = ensemble.multiples(host, n_sizes)
    rows = [
        {"model_id": model_id, "host": host, "n_defects": k + 1, "property": name, "multiple": float(multiples[k, p])}
        for k in range(n_sizes)
        for p, name in enumerate(ensemble.properties)
    ]
    session.execute(insert(tables.IntervalMultiple).on_conflict_do_nothing(), rows)


def store_correlations(
    session: Session,
    campaign_id: int,
    ensemble: Ensemble,
    stored: StoredSupercell,
    space: SearchSpace,
    *,
    n_defects: int,
    device: str,
) -> None:
    """Keep the correlations between the errors of a campaign's predictions of a number of defects, if they are new."""
    table = tables.CampaignCorrelation
    if len(ensemble.properties) < 2 or session.scalar(
        select(table.n_defects).where(table.campaign_id == campaign_id, table.n_defects == n_defects).limit(1)
    ):
        return
    from screening.learning.correlations import member_correlations

    found = member_correlations(ensemble, stored.supercell, *_spread_out(stored, space, n_defects), device=device)
    pairs = combinations(sorted(ensemble.properties), 2)
    place = {name: p for p, name in enumerate(ensemble.properties)}
    session.execute(
        insert(table).on_conflict_do_nothing(),
        [
            {
                "campaign_id": campaign_id,
                "n_defects": n_defects,
                "property": name,
                "other": other,
                "correlation": float(found[place[name], place[other]]),
            }
            for name, other in pairs
        ],
    )


def _spread_out(
    stored: StoredSupercell, space: SearchSpace, n_defects: int
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Sites and defect types (n, n_defects) of some configurations from all over a search space."""
    of_size = space if space.composition is not None else replace(space, min_defects=n_defects, max_defects=n_defects)
    chunks = plan_chunks(of_size, stored.symmetry)
    chosen = np.unique(np.linspace(0, len(chunks) - 1, N_CHUNKS).round().astype(int))
    blocks = [
        next(enumerate_chunk(of_size, stored.symmetry, chunks[i], block_rows=ROWS_OF_CHUNK), None) for i in chosen
    ]
    found = [block for block in blocks if block is not None]
    if not found:  # separations leave nothing there
        return np.empty((0, n_defects), np.int16), np.empty((0, n_defects), np.int16)
    return np.concatenate([b.sites for b in found]), np.concatenate([b.defect_types for b in found])
