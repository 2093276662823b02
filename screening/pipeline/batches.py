"""A batch of calculations: of those that are worth most, unlike each other and unlike what is known, by their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from screening.database import tables
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.pipeline.calculation_costs import CostLaw, atoms_of

KNOWN_ROWS = 5000  # calculations that a batch is compared with, the newest; 0.5 s


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows that were chosen, best first.

    Attributes:
        rows: (n,) int64.
        novelty: (n,) of each: 1 where it is unlike all that is known, towards 0 where it is nearly the same.
        value: (n,) what each was worth when it was chosen, for its time, less what it shares with others; it falls.
        seconds: (n,) what each is expected to take; None where nothing is known of it.
    """

    rows: NDArray[np.int64]
    value: NDArray[np.float64]
    novelty: NDArray[np.float64]
    seconds: NDArray[np.float64] | None


def known_configurations(session: Session, supercell_id: int, level_id: int) -> list[Configuration]:
    """Configurations of a supercell that are calculated at a level of theory, or will be; failed ones are not."""
    rows = session.execute(
        select(tables.Configuration.sites, tables.Configuration.defect_types)
        .join(tables.Calculation, tables.Calculation.configuration_id == tables.Configuration.id)
        .where(
            tables.Configuration.supercell_id == supercell_id,
            tables.Configuration.n_defects > 0,
            tables.Calculation.level_id == level_id,
            tables.Calculation.state != "failed",
        )
        .order_by(tables.Calculation.id.desc())
        .limit(KNOWN_ROWS)
    )
    return [Configuration(tuple(row.sites), tuple(row.defect_types)) for row in rows]


def choose(
    worth: NDArray[np.float64], configurations: Sequence[Configuration], supercell: Supercell, *, n: int,
    known: Sequence[Configuration] = (), cost: CostLaw | None = None,
) -> Batch:  # fmt: skip
    """Choose a batch among the configurations that are worth most; their rows.

    What counts is the worth for the time: of two that are worth the same the one with fewer atoms comes first. Where
    no time is known, all cost the same.

    Args:
        worth: (m,) what the calculation of each configuration is worth.
        known: what is calculated or will be.
    """
    from screening.learning.acquisition import choose_batch, novelty_of

    seconds = None if cost is None else cost.seconds(atoms_of(supercell, configurations))
    value = worth if seconds is None else worth / seconds
    shortlist = np.argsort(-value, kind="stable")[: max(50 * n, 500)]
    features = features_of([*(configurations[i] for i in shortlist), *known], supercell)
    mine, others = features[: len(shortlist)], features[len(shortlist) :]
    chosen, values = choose_batch(value[shortlist], mine, n, known=others)
    rows = np.asarray(shortlist[chosen], np.int64)
    return Batch(rows, values, novelty_of(mine, others)[chosen], None if seconds is None else seconds[rows])


def features_of(configurations: Sequence[Configuration], supercell: Supercell) -> NDArray[np.float64]:
    """What makes configurations alike: (n, n_types + n_type_pairs) float64.

    Numbers of each defect type, and inverse distances (3 angstrom over the distance) summed over the pairs of two
    types.
    """
    codes = sorted({code for configuration in configurations for code in configuration.defect_types})
    column: dict[tuple[int, ...], int] = {(code,): i for i, code in enumerate(codes)}
    for i, first in enumerate(codes):
        column |= {(first, second): len(column) + j for j, second in enumerate(codes[i:])}
    features = np.zeros((len(configurations), len(column)))
    for row, configuration in zip(features, configurations, strict=True):
        for i, (site, code) in enumerate(zip(configuration.sites, configuration.defect_types, strict=True)):
            row[column[(code,)]] += 1.0
            for other, other_code in zip(configuration.sites[:i], configuration.defect_types[:i], strict=True):
                first, second = sorted((code, other_code))
                row[column[first, second]] += 3.0 / supercell.pair_distances[site, other]
    return features
