"""Design queries in words."""

from __future__ import annotations

from screening.database.design_query import DesignQuery


def describe_query(query: DesignQuery) -> str:
    """A design query in words: `homo_lumo_gap_min 1:1.2 (probability 0.5 or more), lowest formation_energy first`."""
    windows = f"{describe_windows(query)} (probability {query.confidence:g} or more), " if query.windows else ""
    if query.pareto:
        return f"{windows}front of " + ", ".join(f"{goal.direction} {goal.property}" for goal in query.pareto)
    order = {"probability": "likeliest", "concentration": "most frequent"}.get(query.sort)
    if query.target is not None:
        order = f"{query.sort} closest to {query.target:g}"
    return f"{windows}{order or f'{query.direction} {query.sort}'} first"


def describe_windows(query: DesignQuery) -> str:
    """The windows as their options are written: `homo_lumo_gap_min 1:1.2 and total_mag 0.5:`."""
    return " and ".join(map(str, query.windows))


def describe_nothing(query: DesignQuery, candidates: int) -> str:
    """Why a ranking may be empty, and what to change."""
    if not query.windows:
        return f"none of the {candidates} candidates is what the query asks for; ask for less, or score another space"
    return (
        f"none of the {candidates} candidates has {describe_windows(query)} with a probability of "
        f"{query.confidence:g} or more; lower --confidence, or widen the windows"
    )
