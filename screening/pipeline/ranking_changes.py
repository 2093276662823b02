"""What changed from one ranking to another: which candidates rose, fell, came or went, and why.

Rows are the same if supercell, sites and defect types are. Of a candidate that is in one of the two only, the other
campaign is asked what it predicts. The first cause that holds is given: a new result, then in the order of `_cause`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.branches import load_branch
from screening.database.design_query import DesignQuery
from screening.database.query_parts import ENERGIES
from screening.defects.defect_types import DefectType
from screening.pipeline.block_queries import probabilities
from screening.pipeline.rankings import SavedRanking

MOVED = 0.5  # standard deviations of before, by which a mean must move to be a cause
SHRANK = 0.8  # of the standard deviation before
_Key = tuple[int, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Change:
    """A candidate whose place is another one.

    Attributes:
        rank_before: None if it was not there, `rank_after` if it is not there any more.
        cause: in words, with numbers.
    """

    host: str
    configuration: str
    sites: tuple[int, ...]
    rank_before: int | None
    rank_after: int | None
    cause: str

    @property
    def what(self) -> Literal["rose", "fell", "came", "went"]:
        """What has become of it."""
        if self.rank_before is None:
            return "came"
        if self.rank_after is None:
            return "went"
        return "rose" if self.rank_after < self.rank_before else "fell"


def compare_rankings(session: Session, older: SavedRanking, newer: SavedRanking) -> list[Change]:
    """What changed from a ranking to a later one, by the new rank; what went comes last."""
    before, after = ({_key(row): row for row in ranking.rows} for ranking in (older, newer))
    changes = []
    for key in [*after, *(key for key in before if key not in after)]:
        old, new = before.get(key), after.get(key)
        rank_before = None if old is None else old["rank"]
        rank_after = None if new is None else new["rank"]
        if rank_before == rank_after:
            continue
        row = new or old
        assert row is not None
        if _is_calculated_since(session, old, new, older, newer):
            cause = "calculated since"
        else:
            cause = _cause(
                old or _looked_up(session, older, row), new or _looked_up(session, newer, row), older, newer,
                is_new=old is None,
            )  # fmt: skip
        changes.append(Change(row["host"], row["configuration"], tuple(row["sites"]), rank_before, rank_after, cause))
    return changes


def _key(row: dict[str, Any]) -> _Key:
    return row["supercell_id"], tuple(row["sites"]), tuple(row["codes"])


def _is_calculated_since(
    session: Session, old: dict[str, Any] | None, new: dict[str, Any] | None, older: SavedRanking, newer: SavedRanking
) -> bool:
    """Whether a row has a result that was not there when the older ranking was made."""
    if new is None or not new["calculated"] or (old is not None and old["calculated"]):
        return False
    calculation, configuration = tables.Calculation, tables.Configuration
    level_id = select(tables.Ranking.level_id).where(tables.Ranking.id == newer.id).scalar_subquery()
    before = (
        select(calculation.id)
        .join(configuration, configuration.id == calculation.configuration_id)
        .where(
            configuration.supercell_id == new["supercell_id"],
            configuration.sites == new["sites"],
            configuration.defect_types == new["codes"],
            calculation.level_id == level_id,
            calculation.state == "finished",
            func.coalesce(calculation.finished_at, calculation.created_at) < older.created_at,
        )
    )
    return session.scalar(before.limit(1)) is None


def _cause(
    old: dict[str, Any] | None, new: dict[str, Any] | None, older: SavedRanking, newer: SavedRanking, *, is_new: bool
) -> str:
    """The first of the causes that holds of a row without a new result."""
    if older.query.model_copy(update={"limit": newer.query.limit}) != newer.query:
        return f"another query: {_difference(older.query, newer.query)}"
    if old is None:
        return "new candidate: it was not among those that were scored before"
    if new is None:
        return "no longer among the candidates that are scored"
    confidence = newer.query.confidence
    if newer.query.windows and (old["probability"] >= confidence) != (new["probability"] >= confidence):
        verb = "rose to" if is_new else "fell below"
        return f"probability {verb} {confidence:g}: {old['probability']:.3f} before, {new['probability']:.3f} after"
    return _of_values(old, new, older, newer) or _of_limits(old, new, older, newer) or "displaced by others"


def _of_limits(old: dict[str, Any], new: dict[str, Any], older: SavedRanking, newer: SavedRanking) -> str | None:
    """That a row lies beyond the number of rows that the other ranking has; rows that were looked up have no rank."""
    if "rank" not in new and old["rank"] > newer.query.limit:
        return f"beyond the limit of {newer.query.limit} rows"
    if "rank" not in old and new["rank"] > older.query.limit:
        return f"beyond the limit of {older.query.limit} rows before"
    return None


def _of_values(old: dict[str, Any], new: dict[str, Any], older: SavedRanking, newer: SavedRanking) -> str | None:
    """What changed in the predictions themselves, of the properties that the query speaks of."""
    for name in sorted(newer.query.properties | {newer.query.sort} - {"probability", "concentration"}):
        if name not in old["values"] or name not in new["values"]:
            continue
        (mean, std, _), (mean_after, std_after, _) = old["values"][name], new["values"][name]
        if name in ENERGIES and _potentials(older) != _potentials(newer):
            return f"other chemical potentials: {name} {mean:.3f} before, {mean_after:.3f} after"
        if abs(mean_after - mean) > MOVED * max(std, 1e-6):
            by = (mean_after - mean) / max(std, 1e-6)
            return f"{name} moved by {by:+.1f} standard deviations: {mean:.3f} before, {mean_after:.3f} after"
        if std_after < SHRANK * std:
            return f"{name} is surer: +- {std:.3f} before, +- {std_after:.3f} after"
    return None


def _potentials(ranking: SavedRanking) -> dict[tuple[int, str], float]:
    return {place: round(energy, 6) for place, (energy, _, _) in ranking.references.items()}


def _difference(older: DesignQuery, newer: DesignQuery) -> str:
    before, after = older.stored(), newer.stored()
    names = [
        name for name in dict.fromkeys([*before, *after]) if name != "limit" and before.get(name) != after.get(name)
    ]
    return ", ".join(names)


def _looked_up(session: Session, ranking: SavedRanking, row: dict[str, Any]) -> dict[str, Any] | None:
    """What the campaign of a ranking says of a candidate that is not in the ranking; None if nothing."""
    place = next((p for p in ranking.places if p["supercell_id"] == row["supercell_id"]), None)
    if place is None or place["campaign_id"] is None:
        return None
    candidate = session.scalar(
        select(tables.Candidate)
        .join(tables.Arrangement, tables.Arrangement.id == tables.Candidate.arrangement_id)
        .where(
            tables.Candidate.campaign_id == place["campaign_id"],
            tables.Arrangement.defect_types == row["codes"],
            tables.Candidate.sites == row["sites"],
        )
    )
    if candidate is None:
        return None
    campaign = session.get_one(tables.Campaign, place["campaign_id"])
    return _as_row(session, candidate, campaign, ranking, place["place"], row)


def _as_row(
    session: Session,
    candidate: tables.Candidate,
    campaign: tables.Campaign,
    ranking: SavedRanking,
    place: int,
    row: dict[str, Any],
) -> dict[str, Any]:
    """A candidate of another campaign as a row of a ranking, with its chemical potentials."""
    shift = 0.0
    for code in row["codes"]:
        defect_type = DefectType.from_code(code)
        for element, sign in ((defect_type.removed, 1.0), (defect_type.added, -1.0)):
            if element is not None and (place, element) in ranking.references:
                shift += sign * ranking.references[place, element][2]
    values = {}
    for name in tables.PROPERTY_COMMENTS:
        mean, std = getattr(candidate, f"{name}_mean"), getattr(candidate, f"{name}_std")
        if mean is not None:
            per = len(row["codes"]) if name == "formation_energy_per_site" else 1
            values[name] = (mean + (shift / per if name in ENERGIES else 0.0), std, None)
    scores: dict[str, NDArray[np.float32]] = {}
    for name, (mean, std, _) in values.items():
        scores |= {f"{name}_mean": np.array([mean], np.float32), f"{name}_std": np.array([std], np.float32)}
    branch = load_branch(session, campaign, ranking.query)
    probability = probabilities(ranking.query, branch.spreads, scores, len(row["codes"]))
    return {"values": values, "probability": float(probability[0])}
