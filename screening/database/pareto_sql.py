"""The Pareto front of a design query: the candidates that no other one beats in all of two or three goals.

A candidate dominates another one if it is at least as good in every goal and better in one. To compare all with all
costs the square of their number, so a few strong ones, the first in the order of each goal, strike out nearly
everything in one pass, and what is left is compared with itself: exact, because a strong candidate is a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import CTE, ColumnElement, FromClause, Select, and_, exists, or_, select, union_all

STRONG = 64  # candidates in the order of each goal
PREFIX = "goal_"


def front_of(parts: Sequence[Select[Any]], n_goals: int) -> CTE:
    """A CTE of the candidates that are not dominated: `campaign_id` and `candidate`.

    Args:
        parts: statements with the columns campaign_id, candidate and goal_1, goal_2, ..., the smaller the better.
    """
    fitting = union_all(*parts).cte("fitting") if len(parts) > 1 else parts[0].cte("fitting")
    fitting = fitting.prefix_with("MATERIALIZED")
    names = [f"{PREFIX}{n}" for n in range(1, n_goals + 1)]
    firsts = [_first(fitting, names[n:] + names[:n]) for n in range(n_goals)]
    strong = union_all(*(select(first) for first in firsts)).cte("strong").prefix_with("MATERIALIZED")
    left = select(fitting).where(~_is_dominated(fitting, strong, names)).cte("remaining").prefix_with("MATERIALIZED")
    other = left.alias("other")
    return (
        select(left.c.campaign_id, left.c.candidate).where(~_is_dominated(left, other, names)).cte("front")
    ).prefix_with("MATERIALIZED")


def _first(fitting: CTE, order: Sequence[str]) -> FromClause:
    """The first candidates in the order of a goal, ties by the next ones."""
    by = [fitting.c[name] for name in order]
    return select(*(fitting.c[name] for name in sorted(order))).order_by(*by).limit(STRONG).subquery()


def _is_dominated(candidate: FromClause, others: FromClause, names: Sequence[str]) -> ColumnElement[bool]:
    as_good = [others.c[name] <= candidate.c[name] for name in names]
    better = [others.c[name] < candidate.c[name] for name in names]
    return exists(select(1).select_from(others).where(and_(*as_good), or_(*better)).correlate(candidate))
