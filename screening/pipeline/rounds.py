"""Rounds: proposing the next calculations, calculating them, and taking their results in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, Select, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.branches import load_branch
from screening.database.design_query import CONCENTRATION, DesignQuery
from screening.database.leases import finish, lease_kept
from screening.database.query_sql import compile_query, sort_key
from screening.database.query_terms import Branch
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration
from screening.dft import xtb
from screening.dft.structures import write_structure
from screening.errors import CalculationError, InputError, NothingLeftError
from screening.pipeline.batches import Batch, choose, known_configurations
from screening.pipeline.calculation_costs import cost_law
from screening.pipeline.campaign_choice import describe_space, find_campaign
from screening.pipeline.hosts import StoredSupercell, add_configurations, load_supercell
from screening.pipeline.references import level_of_name
from screening.pipeline.result_rows import free_name
from screening.pipeline.results import add_references, store_result

POOL_ROWS = 100_000  # the likeliest candidates, among which a round is chosen
_LIKE = 0.9  # a novelty below this is worth a word


@dataclass(frozen=True)
class Proposal:
    """A calculation that a round proposes, with the reason.

    Attributes:
        worth: what its result is expected to be worth, in the units of its round; larger is better.
        expected_s: how long it is expected to take, seconds, where that is known.
    """

    calculation_id: int
    candidate_id: int
    configuration: str
    sites: tuple[int, ...]
    reason: str
    worth: float | None = None
    expected_s: float | None = None
    round_id: int | None = None


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
class _PredictedPool(Pool):
    """The same with what a query asks of them; one row each in every array."""

    probability: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def propose(
    session: Session, query: DesignQuery, *, n: int, model_name: str | None = None, level_name: str | None = None,
    campaign_name: str | None = None, only_stored: bool = False, seed: int = 0,
) -> list[Proposal]:  # fmt: skip
    """Choose the next calculations for a design query and store them as a round.

    A candidate's worth is the probability that every window holds times the improvement that is to be expected
    of the property the query sorts by (Jones et al., J. Glob. Optim. 13, 455 (1998)), over the best value known at
    the model's level or over the n-th best prediction where that is worse: once the best is found, its neighbours in
    the ranking are still worth calculating. The batch is spread over configurations that are unlike each other and
    unlike what is calculated or will be; where times are known, worth counts by the time that it costs
    (screening.pipeline.batches). What has a calculation at the round's level, whatever became of it, is never chosen.

    Args:
        level_name: level of theory of the calculations, a known one or one of the built-in calculator's; the level
            that the model learnt if not given. A model may propose for another level: single points choose what is
            worth relaxing.
        campaign_name: choose among what this campaign has kept.
        only_stored: choose only among configurations that an import brought without a result.
        seed: decides between candidates of equal worth; kept with the round.

    Raises:
        InputError: nothing is left to propose, or the model lacks a property of the query.
    """
    if n < 1:
        raise InputError(f"{n} calculations are asked for; expected at least 1")
    supercell_id = queries.supercell_id_of(session, query.host, query.supercell)
    # two rounds at once do not choose the same candidates
    session.execute(
        select(tables.Supercell.id).where(tables.Supercell.id == supercell_id).with_for_update(key_share=True)
    )
    campaign, model = find_campaign(session, query, model_name=model_name, campaign_name=campaign_name)
    _check_properties(query, model)
    level_id = model.level_id if level_name is None else level_of_name(session, level_name)
    space = session.get_one(tables.SearchSpace, campaign.search_space_id)
    branch = load_branch(session, campaign, query)
    pool = _read_pool(
        session, open_candidates(query, branch, space, level_id=level_id, only_stored=only_stored), _improved(query)
    )
    if not pool.candidate_ids:
        raise NothingLeftError(
            "every candidate of the design query has a calculation"
            f"{' or no stored configuration' if only_stored else ''}; it is answered from {space.expected} candidates, "
            f"{describe_space(space)}: widen it, or enumerate and score a larger search space"
        )
    stored = load_supercell(session, supercell_id)
    best = queries.best_value(session, query, supercell_id=supercell_id, level_id=model.level_id)
    order = np.random.default_rng(seed).permutation(len(pool.candidate_ids))
    worth = _worth(pool, query, best, n=n)
    batch = choose(
        worth[order], [pool.configurations[i] for i in order], stored.supercell, n=n,
        known=known_configurations(session, supercell_id, level_id), cost=cost_law(session, level_id),
    )  # fmt: skip
    round_ = tables.Round(model_id=model.id, level_id=level_id, query=query.stored(), seed=seed)
    session.add(round_)
    session.flush()
    return store_proposals(session, stored, pool, round_, choices=_choices(pool, worth, order, batch))


def write_structures(session: Session, calculation_ids: Sequence[int], folder: Path) -> dict[int, Path]:
    """Write the unrelaxed structure of each calculation as POSCAR, for a calculation elsewhere; paths by id.

    A result of such a file finishes its calculation: `screening results add` finds its configuration again.

    Raises:
        InputError: the folder cannot be written.
    """
    rows = session.execute(
        select(tables.Calculation.id, tables.Configuration)
        .join(tables.Configuration, tables.Configuration.id == tables.Calculation.configuration_id)
        .where(tables.Calculation.id.in_(calculation_ids))
        .order_by(tables.Calculation.id)
    )
    paths = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for identifier, row in rows:
            paths[identifier] = folder / f"calculation-{identifier}.vasp"
            supercell = load_supercell(session, row.supercell_id).supercell
            write_structure(paths[identifier], supercell, Configuration(tuple(row.sites), tuple(row.defect_types)))
    except OSError as error:
        raise InputError(f"structures cannot be written into {folder}: {error}; name another folder") from error
    return paths


def release_calculations(
    session: Session, level_name: str, limit: int | None = None, *, failed_too: bool = False
) -> list[int]:
    """Hand proposed calculations of a level of theory, and failed ones if wanted, to the workers; their ids.

    Raises:
        InputError: the built-in calculator, which the workers run, does not compute at this level.
    """
    level_id = level_of_name(session, level_name)
    names = [level.name for level in xtb.levels_of_theory()]
    if level_name not in names:
        raise InputError(
            f"the built-in calculator does not compute at {level_name!r}, only at {' and '.join(names)}; calculate "
            "elsewhere and take the results in with `screening results add`, or `screening import 2dmd --proposed-only`"
        )
    states = ("proposed", "failed") if failed_too else ("proposed",)
    proposed = (
        select(tables.Calculation.id)
        .where(tables.Calculation.level_id == level_id, tables.Calculation.state.in_(states))
        .order_by(tables.Calculation.id)
        .limit(limit)
        .with_for_update()
    )
    ids = session.scalars(proposed).all()
    session.execute(
        update(tables.Calculation)
        .where(tables.Calculation.id.in_(ids))
        .values(state="waiting", attempts=0, error=None, started_at=None, finished_at=None)
    )
    return list(ids)


def calculate_unit(engine: Engine, calculation_id: int, owner: str) -> None:
    """Run a calculation that `owner` holds with the built-in calculator and take its result in.

    The references that its formation energy needs (pristine supercell, chemical potentials) are calculated and
    stored first where they are missing. Transactions of its own.

    Raises:
        CalculationError: the calculation failed; the message is the reason.
        LeaseLostError: another worker took it over; nothing was written.
    """
    with session_scope(engine) as session:
        calculation = session.get_one(tables.Calculation, calculation_id)
        row = session.get_one(tables.Configuration, calculation.configuration_id)
        configuration = Configuration(tuple(row.sites), tuple(row.defect_types))
        stored = load_supercell(session, row.supercell_id)
        known = session.get_one(tables.LevelOfTheory, calculation.level_id)
        level_name, digest = known.name, known.digest
        dataset = f"round {calculation.round_id}" if calculation.round_id else "calculations"
    if digest not in [level.digest for level in xtb.levels_of_theory()]:
        raise CalculationError(
            f"the built-in calculator does not compute at {level_name!r}; "
            "calculate it elsewhere and take the result in with `screening results add`"
        )
    relax = digest == xtb.level_of_theory(relax=True).digest
    with lease_kept(engine, tables.Calculation, calculation_id, owner):
        with session_scope(engine) as session:
            add_references(session, stored, configuration, xtb.level_of_theory(relax))
        result = xtb.calculate(stored.supercell, configuration, relax=relax)
        with session_scope(engine) as session:
            name = free_name(session, dataset, f"calculation {calculation_id}")
            store_result(session, stored, calculation_id, result, dataset=dataset, row_name=name)
            finish(session, tables.Calculation, calculation_id, owner)


def _check_properties(query: DesignQuery, model: tables.TrainedModel) -> None:
    """Make sure that a model predicts what a query speaks of."""
    missing = {_improved(query), *(window.property for window in query.windows)} - set(model.properties)
    if missing:
        raise InputError(
            f"model {model.name} does not predict {', '.join(sorted(missing))}; "
            f"it predicts {', '.join(model.properties)}"
        )


def open_candidates(
    query: DesignQuery, branch: Branch, space: tables.SearchSpace, *, level_id: int, only_stored: bool
) -> Select[Any]:
    """The SELECT of the candidates that could be proposed at a level of theory, the likeliest first.

    Of those that are as likely, which without a window are all, the ones that the query ranks first.

    Raises:
        InputError: the query has another objective than the lowest or highest of a property, or probability; or it
            shifts energies.
    """
    if query.pareto or query.target is not None or query.sort == CONCENTRATION or not query.potentials.are_references:
        raise InputError(
            "calculations are proposed for the lowest or highest of a property, or for probability, at the reference "
            "chemical potentials; leave pareto, closest, concentration and potentials out of the design query"
        )
    wide = query.model_copy(
        update={
            "confidence": 0.0, "limit": POOL_ROWS, "sort": "probability", "direction": "lowest", "target": None,
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
    statement = compile_query(wide, [branch]).where(~taken.exists())
    if query.sort != "probability":
        likeliest = statement.selected_columns["probability"].desc()
        statement = statement.order_by(None).order_by(likeliest, sort_key(query, branch), tables.Candidate.id)
    return statement.where(same.exists()) if only_stored else statement


def _read_pool(session: Session, statement: Select[Any], improved: str) -> _PredictedPool:
    """What a SELECT of candidates returns, with the prediction of the property that is to improve."""
    rows = session.execute(statement).mappings().all()
    return _PredictedPool(
        [row["candidate"] for row in rows],
        [Configuration(tuple(row["sites"]), tuple(row["defect_types"])) for row in rows],
        np.array([row["probability"] for row in rows], np.float64),
        np.array([row[f"{improved}_mean"] for row in rows], np.float64),
        np.array([row[f"{improved}_std"] for row in rows], np.float64),
    )


def _improved(query: DesignQuery) -> str:
    """What the query sorts by, else its first window's property."""
    if query.sort != "probability":
        return query.sort
    return query.windows[0].property if query.windows else "formation_energy_per_site"


def _worth(pool: _PredictedPool, query: DesignQuery, best: float | None, *, n: int) -> NDArray[np.float64]:
    """What the calculation of each row of the pool is worth; `best` is the best value known."""
    from screening.learning.acquisition import expected_improvement

    if query.sort == "probability":  # where it is least certain whether the windows hold, the likelier first
        return pool.probability * (1.0 - pool.probability) + 1e-3 * pool.probability
    sign = -1.0 if query.direction == "highest" else 1.0
    likely = pool.probability >= min(0.5, np.sort(pool.probability)[-n:][0])
    target = float(np.sort(sign * pool.mean[likely])[:n][-1])
    if best is not None:
        target = max(target, sign * best)
    return np.asarray(pool.probability * expected_improvement(sign * pool.mean, pool.std, target), np.float64)


def _choices(
    pool: _PredictedPool, worth: NDArray[np.float64], order: NDArray[np.int64], batch: Batch
) -> dict[int, Choice]:
    """The chosen rows of the pool, with the reason of each."""
    choices = {}
    for place, row in enumerate(order[batch.rows]):
        i = int(row)
        seconds = None if batch.seconds is None else float(batch.seconds[place])
        reason = (
            f"probability {pool.probability[i]:.2f} that every window holds, predicted "
            f"{pool.mean[i]:.3f} +- {pool.std[i]:.3f}, worth {worth[i]:.2g}"
        )
        if batch.novelty[place] < _LIKE:
            reason += f", though {1.0 - batch.novelty[place]:.0%} like what is calculated or will be"
        if seconds is not None:
            reason += f", about {seconds:.3g} s"
        choices[i] = Choice(reason, float(worth[i]), seconds)
    return choices


def store_proposals(
    session: Session, stored: StoredSupercell, pool: Pool, round_: tables.Round, *, choices: Mapping[int, Choice]
) -> list[Proposal]:
    """Store rows of the pool as the proposed calculations of a round; choices by row."""
    configuration_ids = add_configurations(session, stored, [pool.configurations[i] for i in choices])
    added = session.execute(
        insert(tables.Calculation).returning(tables.Calculation.configuration_id, tables.Calculation.id),
        [
            {
                "configuration_id": configuration_id,
                "level_id": round_.level_id,
                "round_id": round_.id,
                "state": "proposed",
                "proposal": choice.reason,
                "worth": choice.worth,
                "expected_s": choice.seconds,
            }
            for configuration_id, choice in zip(configuration_ids, choices.values(), strict=True)
        ],
    )
    calculation_ids = dict(added.all())
    return [
        Proposal(
            calculation_ids[configuration_id], pool.candidate_ids[i], pool.configurations[i].composition,
            pool.configurations[i].sites, choice.reason, choice.worth, choice.seconds, round_.id,
        )
        for configuration_id, (i, choice) in zip(configuration_ids, choices.items(), strict=True)
    ]  # fmt: skip
