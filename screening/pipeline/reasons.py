"""Why a row is in a ranking: what is predicted of its windows and of what it is ranked by, with numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from screening.database.design_query import CONCENTRATION, PROBABILITY, DesignQuery
from screening.database.query_terms import Branch
from screening.pipeline.block_queries import window_probability


def window_probabilities(row: Mapping[str, Any], query: DesignQuery, branch: Branch) -> dict[str, float]:
    """The probability that each window holds, by property."""
    found = {}
    for window in query.windows:
        mean, std = (np.array([row[f"{window.property}_{part}"]], np.float64) for part in ("mean", "std"))
        found[window.property] = float(window_probability(window, branch.spreads, mean, std, len(row["sites"]))[0])
    return found


def reason_of(row: Mapping[str, Any], query: DesignQuery, branch: Branch) -> str:
    """Why a row is where it is, in a sentence."""
    parts = []
    of_windows = window_probabilities(row, query, branch)
    for window in query.windows:
        ends = str(window).removeprefix(f"{window.property} ")
        parts.append(
            f"{window.property} {_value(row, window.property)} is in {ends} with probability "
            f"{of_windows[window.property]:.3f}"
        )
    if len(query.windows) > 1:
        how = "correlated" if branch.spreads.loadings else "independent"
        parts.append(f"all windows hold with {row['probability']:.3f} ({how})")
    if query.pareto:
        goals = ", ".join(f"{goal.direction} {goal.property} {_value(row, goal.property)}" for goal in query.pareto)
        parts.append(f"no candidate is better in all of: {goals}")
    elif query.target is not None:
        away = abs(row[f"{query.sort}_mean"] - query.target)
        parts.append(f"{query.sort} {_value(row, query.sort)} is {away:.3f} from {query.target:g}")
    elif query.sort not in (PROBABILITY, CONCENTRATION) and query.sort not in of_windows:
        parts.append(f"{query.direction} {query.sort}: {_value(row, query.sort)}")
    if query.temperature is not None:
        beyond = ", more than a dilute estimate holds for" if row["formation_energy_mean"] < 0.0 else ""
        parts.append(f"about {row['concentration']:.2g} per cm^2 or cm^3 at {query.temperature:g} K{beyond}")
    if branch.shifts:
        parts.append(f"potentials {query.potentials}")
    if row.get("calculated"):
        parts.append("calculated")
    return "; ".join(parts)


def _value(row: Mapping[str, Any], name: str) -> str:
    return f"{row[f'{name}_mean']:.3f} +- {row[f'{name}_std']:.3f}"
