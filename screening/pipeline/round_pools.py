"""Candidates among which a round is chosen: which are open, what each is worth, and the batch of them.

A query may be about several supercells. Each has a pool of its own, from the campaign that answers it; what a
candidate is worth is one number over all pools, for they are ranked together. Likeness is a matter of one supercell:
an energy per site at another concentration is another number. So a batch is chosen in each pool, and the batches are
put together by the value that each row had when it was chosen, which never rises within a pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.best_values import best_value
from screening.database.composition_conditions import shift_of_composition
from screening.database.design_query import CONCENTRATION, PROBABILITY, DesignQuery
from screening.database.query_sql import compile_query
from screening.database.query_terms import ENERGY, PER_SITE, Branch, Terms
from screening.defects.defect_types import Configuration
from screening.errors import InputError
from screening.pipeline.batches import Batch, choose, known_configurations
from screening.pipeline.calculation_costs import cost_law
from screening.pipeline.hosts import StoredSupercell, load_supercell
from screening.pipeline.query_context import Answer

POOL_ROWS = 100_000  # the likeliest candidates of a supercell, among which a round is chosen
_LIKE = 0.9  # a novelty below this is worth a word


@dataclass(frozen=True)
class Choice:
    """Why a candidate is proposed, what it is worth, and how long it is expected to take, seconds."""

    reason: str
    worth: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Pool:
    """Candidates among which a round is chosen."""

    candidate_ids: list[int]
    configurations: list[Configuration]


@dataclass(frozen=True, eq=False)
class PredictedPool(Pool):
    """Candidates of one supercell with what a query asks of them; one row each in every array.

    Attributes:
        probability: that every window holds.
        mean: of the property that is to improve, at the query's chemical potentials; `std` its standard deviation.
        key: what the query ranks by, the smaller the better.
        best: the best key of what is calculated; None where nothing is.
    """

    stored: StoredSupercell
    probability: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    key: NDArray[np.float64]
    best: float | None


def check_objective(query: DesignQuery) -> None:
    """Make sure that calculations can be chosen for what a query ranks by.

    Raises:
        InputError: it asks for a front.
    """
    if query.pareto:
        goals = ", ".join(f"{goal.property}={goal.direction}" for goal in query.pareto)
        raise InputError(
            f"the design query asks for the front of {goals}; what a calculation is worth is known for one goal only: "
            "sort by one of them, with windows on the others, or propose with sort = probability"
        )


def improved_property(query: DesignQuery) -> str:
    """What a round is to improve: what the query sorts by, else its first window's property."""
    if query.sort == CONCENTRATION:
        return ENERGY
    if query.sort != PROBABILITY:
        return query.sort
    return query.windows[0].property if query.windows else PER_SITE


def key_of(query: DesignQuery, value: float) -> float:
    """What a query ranks a value of the property it sorts by, the smaller the better."""
    if query.target is not None:
        return abs(value - query.target)
    return -value if query.direction == "highest" else value


def open_candidates(
    query: DesignQuery, branch: Branch, space: tables.SearchSpace, *, level_id: int, only_stored: bool
) -> Select[Any]:
    """The SELECT of the candidates that could be proposed at a level of theory, the likeliest first.

    Of those that are as likely, which without a window are all, the ones that the query ranks first. The column
    `wanted` is what it ranks by.

    Raises:
        InputError: the query asks for a front.
    """
    check_objective(query)
    wide = query.model_copy(
        update={
            "confidence": 0.0, "limit": POOL_ROWS, "sort": PROBABILITY, "direction": "lowest", "target": None,
            "temperature": None,
        }
    )  # fmt: skip
    same = (
        select(tables.Configuration.id)
        .where(
            tables.Configuration.supercell_id == space.supercell_id,
            tables.Configuration.sites == tables.Candidate.sites,
            tables.Configuration.defect_types == tables.Arrangement.defect_types,
        )
        .correlate(tables.Candidate, tables.Arrangement)
    )
    taken = same.join(tables.Calculation, tables.Calculation.configuration_id == tables.Configuration.id).where(
        tables.Calculation.level_id == level_id
    )
    wanted = Terms(query, branch, tables.Candidate.__table__.c, shift_of_composition(branch)).key()
    statement = compile_query(wide, [branch]).where(~taken.exists()).add_columns(wanted.label("wanted"))
    likeliest = statement.selected_columns["probability"].desc()
    order = [likeliest] if query.sort == PROBABILITY else [likeliest, wanted]
    statement = statement.order_by(None).order_by(*order, tables.Candidate.id)
    return statement.where(same.exists()) if only_stored else statement


def read_pool(
    session: Session, query: DesignQuery, answer: Answer, *, level_id: int, only_stored: bool
) -> PredictedPool:
    """The candidates of a supercell that could be proposed, with what is predicted of them.

    Args:
        level_id: level of theory of the calculations.

    Raises:
        InputError: the query asks for a front, or for what the model does not predict.
    """
    improved = improved_property(query)
    if improved not in answer.properties:
        raise InputError(
            f"model {answer.model} does not predict {improved}; it predicts {', '.join(answer.properties)}"
        )
    space = session.get_one(tables.SearchSpace, answer.search_space_id)
    statement = open_candidates(query, answer.branch, space, level_id=level_id, only_stored=only_stored)
    rows = session.execute(statement).mappings().all()
    best = best_value(session, query, answer.branch, supercell_id=answer.supercell_id, level_id=answer.level_id)

    def column(name: str) -> NDArray[np.float64]:
        return np.array([row[name] for row in rows], np.float64)

    return PredictedPool(
        [row["candidate"] for row in rows],
        [Configuration(tuple(row["sites"]), tuple(row["defect_types"])) for row in rows],
        load_supercell(session, answer.supercell_id),
        column("probability"), column(f"{improved}_mean"), column(f"{improved}_std"), column("wanted"),
        None if best is None else key_of(query, best),
    )  # fmt: skip


def choose_round(
    session: Session, query: DesignQuery, pools: Sequence[PredictedPool], *, n: int, level_id: int, seed: int
) -> list[tuple[int, int, Choice]]:
    """The batch of all pools: number of the pool, row of the pool and why, what is worth most first."""
    worth = _worth(query, pools, n=n)
    generator = np.random.default_rng(seed)
    chosen: list[tuple[float, int, int, Choice]] = []
    for number, (pool, of_pool) in enumerate(zip(pools, worth, strict=True)):
        if not pool.candidate_ids:
            continue
        order = generator.permutation(len(pool.candidate_ids))  # decides between candidates of equal worth
        batch = choose(
            of_pool[order], [pool.configurations[i] for i in order], pool.stored.supercell, n=n,
            known=known_configurations(session, pool.stored.id, level_id), cost=cost_law(session, level_id),
        )  # fmt: skip
        for place, row in enumerate(order[batch.rows].tolist()):
            reason = _choice(pool, of_pool, row, batch, place)
            chosen.append((float(batch.value[place]), number, row, reason))
    chosen.sort(key=lambda found: -found[0])
    return [(number, row, choice) for _, number, row, choice in chosen[:n]]


def _worth(query: DesignQuery, pools: Sequence[PredictedPool], *, n: int) -> list[NDArray[np.float64]]:
    """What the calculation of each row of each pool is worth."""
    from screening.learning.acquisition import expected_approach, expected_improvement

    probability, mean, std, key = (
        np.concatenate([getattr(pool, name) for pool in pools]) for name in ("probability", "mean", "std", "key")
    )
    if query.sort == PROBABILITY:  # where it is least certain whether the windows hold, the likelier first
        worth = probability * (1.0 - probability) + 1e-3 * probability
    else:
        likely = probability >= min(0.5, np.sort(probability)[-n:][0])
        to_beat = float(np.sort(key[likely])[:n][-1])
        known = [pool.best for pool in pools if pool.best is not None]
        if known:
            to_beat = max(to_beat, min(known))
        gain = (
            expected_improvement(key, std, to_beat) if query.target is None
            else expected_approach(mean, std, query.target, to_beat)
        )  # fmt: skip
        worth = probability * gain
    ends = np.cumsum([len(pool.candidate_ids) for pool in pools])[:-1]
    return np.split(np.asarray(worth, np.float64), ends)


def _choice(pool: PredictedPool, worth: NDArray[np.float64], row: int, batch: Batch, place: int) -> Choice:
    """Why a row of a pool is in its batch."""
    seconds = None if batch.seconds is None else float(batch.seconds[place])
    reason = (
        f"probability {pool.probability[row]:.2f} that every window holds, predicted "
        f"{pool.mean[row]:.3f} +- {pool.std[row]:.3f}, worth {worth[row]:.2g}"
    )
    if batch.novelty[place] < _LIKE:
        reason += f", though {1.0 - batch.novelty[place]:.0%} like what is calculated or will be"
    if seconds is not None:
        reason += f", about {seconds:.3g} s"
    return Choice(reason, float(worth[row]), seconds)
