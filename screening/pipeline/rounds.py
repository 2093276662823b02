"""Rounds: proposing the next calculations, calculating them, and taking their results in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.design_query import DesignQuery, compile_query
from screening.database.leases import finish, lease_kept
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.dft.results import LevelOfTheory
from screening.errors import CalculationError, InputError
from screening.pipeline.designs import choose_model
from screening.pipeline.hosts import StoredSupercell, add_configurations, load_supercell
from screening.pipeline.imports import add_level, add_references, store_result

POOL_ROWS = 100_000  # the likeliest candidates, among which a round is chosen


@dataclass(frozen=True)
class Proposal:
    """A calculation that a round proposes, with the reason."""

    calculation_id: int
    candidate_id: int
    configuration: str
    sites: tuple[int, ...]
    reason: str


@dataclass(frozen=True, eq=False)
class _Pool:
    """Candidates among which a round is chosen; one row each in every array."""

    candidate_ids: list[int]
    configurations: list[Configuration]
    probability: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def propose(
    session: Session,
    query: DesignQuery,
    *,
    n: int,
    level: LevelOfTheory,
    model_name: str | None = None,
    seed: int = 0,
) -> list[Proposal]:
    """Choose the next calculations for a design query and store them as a round of proposed calculations.

    A candidate's worth is the probability that every window holds times the improvement that is to be expected
    of the property the query sorts by (Jones et al., J. Glob. Optim. 13, 455 (1998)); the batch is spread over
    unlike configurations. What is calculated, running or proposed at this level is never chosen.

    Raises:
        InputError: nothing is left to propose.
    """
    supercell_id = queries.supercell_id_of(session, query.host, query.supercell)
    stored = load_supercell(session, supercell_id)
    model = choose_model(session, supercell_id, model_name)
    level_id = add_level(session, level)
    if level_id != model.level_id:
        raise InputError(f"model {model.name} was not trained at level {level.name!r}; choose the level it learnt")
    pool = _read_pool(session, query, model.id, supercell_id, level_id)
    if not pool.candidate_ids:
        raise InputError("every candidate of the design query is calculated or proposed; widen the query")
    worth, chosen = _choose(session, pool, query, stored.supercell, n=n, level_id=level_id, seed=seed)
    round_ = tables.Round(model_id=model.id, level_id=level_id, query=query.model_dump(mode="json"), seed=seed)
    session.add(round_)
    session.flush()
    return [_store_proposal(session, stored, pool, round_, int(i), worth[i]) for i in chosen]


def release_calculations(session: Session, level_name: str, limit: int | None = None) -> list[int]:
    """Hand proposed calculations of a level of theory to the workers; their ids."""
    level_id = queries.level_id_of(session, level_name)
    proposed = (
        select(tables.Calculation.id)
        .where(tables.Calculation.level_id == level_id, tables.Calculation.state == "proposed")
        .order_by(tables.Calculation.id)
        .limit(limit)
        .with_for_update()
    )
    return list(
        session.scalars(
            update(tables.Calculation)
            .where(tables.Calculation.id.in_(proposed.scalar_subquery()))
            .values(state="waiting")
            .returning(tables.Calculation.id)
        )
    )


def calculate_unit(engine: Engine, calculation_id: int, owner: str) -> None:
    """Run a calculation that `owner` holds with the built-in calculator and take its result in.

    The references that its formation energy needs (pristine supercell, chemical potentials) are calculated and
    stored first where they are missing. Transactions of its own.

    Raises:
        CalculationError: the calculation failed; the message is the reason.
        LeaseLostError: another worker took it over; nothing was written.
    """
    from screening.dft import xtb

    with session_scope(engine) as session:
        calculation = session.get_one(tables.Calculation, calculation_id)
        row = session.get_one(tables.Configuration, calculation.configuration_id)
        level_row = session.get_one(tables.LevelOfTheory, calculation.level_id)
        stored = load_supercell(session, row.supercell_id)
        configuration = Configuration(tuple(row.sites), tuple(row.defect_types))
        round_id = calculation.round_id
    relax = level_row.name == xtb.level_of_theory(relax=True).name
    level = xtb.level_of_theory(relax=relax)
    if level.digest != level_row.digest:
        raise CalculationError(
            f"the built-in calculator computes at {level.name!r}, this calculation is at {level_row.name!r}; "
            "calculate it elsewhere and take the result in with `screening results add`"
        )
    with lease_kept(engine, tables.Calculation, calculation_id, owner):
        with session_scope(engine) as session:
            add_references(session, stored, configuration, level)
        result = xtb.calculate(stored.supercell, configuration, relax=relax)
        with session_scope(engine) as session:
            store_result(
                session,
                stored,
                calculation_id,
                result,
                dataset=f"round {round_id}" if round_id else "calculations",
                row_name=f"calculation {calculation_id}",
            )
            finish(session, tables.Calculation, calculation_id, owner)


def _read_pool(session: Session, query: DesignQuery, model_id: int, supercell_id: int, level_id: int) -> _Pool:
    """The candidates that could be proposed, the likeliest first."""
    space_id = queries.scored_search_space(session, model_id, supercell_id)
    if space_id is None:
        raise InputError(f"no search space of host {query.host} is scored; run `screening score` first")
    wide = query.model_copy(update={"confidence": 0.0, "limit": POOL_ROWS, "sort": "probability"})
    by = _sort_property(query)
    found = session.execute(compile_query(wide, model_id=model_id, search_space_id=space_id)).mappings().all()
    taken = queries.known_configurations(session, supercell_id, level_id)
    rows = [row for row in found if (tuple(row["sites"]), tuple(row["defect_types"])) not in taken]
    return _Pool(
        [row["candidate"] for row in rows],
        [Configuration(tuple(row["sites"]), tuple(row["defect_types"])) for row in rows],
        np.array([row["probability"] for row in rows], np.float64),
        np.array([row[f"{by}_mean"] for row in rows], np.float64),
        np.array([row[f"{by}_std"] for row in rows], np.float64),
    )


def _choose(
    session: Session, pool: _Pool, query: DesignQuery, supercell: Supercell, *, n: int, level_id: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Worth of every row of the pool, and the rows that are proposed, best first."""
    from screening.learning.acquisition import choose_batch, expected_improvement

    sign = -1.0 if query.direction == "highest" else 1.0
    best = queries.best_value(session, query, level_id)
    target = sign * best if best is not None else float(np.median(sign * pool.mean))
    improvement = expected_improvement(sign * pool.mean, pool.std, target)
    if query.sort == "probability":
        worth = pool.probability * (1.0 - pool.probability) + 1e-3 * pool.probability
    else:
        worth = pool.probability * improvement
    shortlist = np.argsort(-worth, kind="stable")[: max(50 * n, 500)]
    features = np.stack([_features(pool.configurations[i], supercell) for i in shortlist])
    return worth, shortlist[choose_batch(worth[shortlist], features, n)]


def _sort_property(query: DesignQuery) -> str:
    """The property whose improvement counts: what the query sorts by, else its first window's property."""
    if query.sort != "probability":
        return query.sort
    return query.windows[0].property if query.windows else "formation_energy_per_site"


def _features(configuration: Configuration, supercell: Supercell) -> NDArray[np.float64]:
    """What makes two configurations alike: numbers of each defect type and inverse pair distances by pair of types.

    (64,) float64, hashed into fixed positions, so that configurations of all sizes can be compared.
    """
    vector = np.zeros(64)
    for i, code in enumerate(configuration.defect_types):
        vector[code % 31] += 1.0
        for j in range(i):
            first, second = sorted((code, configuration.defect_types[j]))
            distance = supercell.pair_distances[configuration.sites[i], configuration.sites[j]]
            vector[31 + (first * 7 + second) % 33] += 3.0 / distance
    return vector


def _store_proposal(
    session: Session, stored: StoredSupercell, pool: _Pool, round_: tables.Round, i: int, worth: float
) -> Proposal:
    configuration = pool.configurations[i]
    (configuration_id,) = add_configurations(session, stored, [configuration])
    reason = (
        f"probability {pool.probability[i]:.2f} that every window holds, predicted "
        f"{pool.mean[i]:.3f} +- {pool.std[i]:.3f}, worth {worth:.4f}"
    )
    calculation_id = session.scalar(
        insert(tables.Calculation)
        .values(
            configuration_id=configuration_id,
            level_id=round_.level_id,
            round_id=round_.id,
            state="proposed",
            proposal=reason,
        )
        .returning(tables.Calculation.id)
    )
    assert calculation_id is not None
    return Proposal(calculation_id, pool.candidate_ids[i], configuration.composition, configuration.sites, reason)


def failed_calculations(session: Session, ids: list[int]) -> list[dict[str, Any]]:
    """The failed ones among these calculations, with their reasons."""
    rows = session.execute(
        select(tables.Calculation.id, tables.Calculation.error).where(
            tables.Calculation.id.in_(ids), tables.Calculation.state == "failed"
        )
    )
    return [{"calculation": row.id, "reason": row.error} for row in rows]
