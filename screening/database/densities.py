"""Where the candidates of a campaign lie in the plane of two predicted properties: counts in a grid.

Of a large campaign random pages of its partition are read instead of all, so that millions of rows cost no more than
some ten thousand; the counts are then those of the sample, and the fraction is said.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Float, Integer, cast, func, select
from sqlalchemy.orm import Session

from screening.database.tables import PROPERTY_COMMENTS, Candidate
from screening.errors import InputError

MOST_READ = 50_000  # rows; 0.2 s, of ten million as of two hundred thousand
_TABLE = Candidate.__table__


@dataclass(frozen=True)
class Density:
    """Counts in a grid.

    Attributes:
        edges_x, edges_y: (n_bins + 1) values, eV or Bohr magneton.
        counts: (n_bins, n_bins), rows along y.
        n_rows: that were counted.
        fraction: of the campaign's rows that was read, 1 where all were.
    """

    edges_x: list[float]
    edges_y: list[float]
    counts: list[list[int]]
    n_rows: int
    fraction: float


def density_of(session: Session, campaign_id: int, n_candidates: int, *, x: str, y: str, n_bins: int = 60) -> Density:
    """Counts of the candidates of a campaign by the predicted means of two properties.

    Args:
        n_candidates: of the campaign, about.

    Raises:
        InputError: there is no such property.
    """
    for name in (x, y):
        if name not in PROPERTY_COMMENTS:
            raise InputError(f"there is no property {name!r}; the properties are {', '.join(PROPERTY_COMMENTS)}")
    fraction = min(1.0, MOST_READ / max(n_candidates, 1))
    rows = _TABLE if fraction == 1.0 else _TABLE.tablesample(func.system(100.0 * fraction))
    values = (
        select(cast(rows.c[f"{x}_mean"], Float).label("x"), cast(rows.c[f"{y}_mean"], Float).label("y"))
        .where(rows.c.campaign_id == campaign_id, rows.c[f"{x}_mean"].is_not(None), rows.c[f"{y}_mean"].is_not(None))
        .cte("values")
    )  # fmt: skip
    ends = select(
        func.min(values.c.x).label("x0"), func.max(values.c.x).label("x1"), func.min(values.c.y).label("y0"),
        func.max(values.c.y).label("y1"),
    ).cte("ends")  # fmt: skip

    def bin_of(name: str) -> ColumnElement[int]:
        low, high = ends.c[f"{name}0"], ends.c[f"{name}1"]
        place = (values.c[name] - low) / func.nullif(high - low, 0.0) * n_bins
        return func.least(n_bins - 1, cast(func.floor(func.coalesce(place, 0.0)), Integer)).label(f"{name}_bin")

    found = session.execute(
        select(bin_of("x"), bin_of("y"), func.count().label("n"), ends.c.x0, ends.c.x1, ends.c.y0, ends.c.y1)
        .select_from(values.join(ends, ends.c.x0.is_not(None)))
        .group_by("x_bin", "y_bin", ends.c.x0, ends.c.x1, ends.c.y0, ends.c.y1)
    ).all()
    counts = [[0] * n_bins for _ in range(n_bins)]
    if not found:
        return Density([], [], [], 0, fraction)
    for row in found:
        counts[row.y_bin][row.x_bin] = row.n
    first = found[0]
    return Density(
        _edges(first.x0, first.x1, n_bins), _edges(first.y0, first.y1, n_bins), counts, sum(row.n for row in found),
        fraction,
    )  # fmt: skip


def _edges(low: float, high: float, n_bins: int) -> list[float]:
    return [low + (high - low) * n / n_bins for n in range(n_bins + 1)]
