"""Rounds: proposing the next calculations, calculating them, and taking their results in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.design_query import DesignQuery
from screening.database.leases import finish, lease_kept
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration
from screening.dft import xtb
from screening.dft.structures import write_structure
from screening.errors import CalculationError, InputError, NothingLeftError
from screening.pipeline.hosts import StoredSupercell, add_configurations, load_supercell
from screening.pipeline.query_context import Answer, resolve
from screening.pipeline.references import level_of_name
from screening.pipeline.result_rows import free_name
from screening.pipeline.results import add_references, store_result
from screening.pipeline.round_pools import Choice, Pool, check_objective, choose_round, read_pool


@dataclass(frozen=True)
class Proposal:
    """A calculation that a round proposes, with the reason.

    Attributes:
        worth: what its result is expected to be worth, in the units of its round; larger is better.
        expected_s: how long it is expected to take, seconds, where that is known.
        place: host and supercell.
    """

    calculation_id: int
    candidate_id: int
    configuration: str
    sites: tuple[int, ...]
    reason: str
    worth: float | None = None
    expected_s: float | None = None
    round_id: int | None = None
    place: str = ""


def propose(
    session: Session, query: DesignQuery, *, n: int, model_name: str | None = None, level_name: str | None = None,
    campaign_name: str | None = None, only_stored: bool = False, seed: int = 0,
) -> list[Proposal]:  # fmt: skip
    """Choose the next calculations for a design query and store them as a round.

    A candidate's worth is the probability that every window holds times the improvement that is to be expected
    of the property the query sorts by (Jones et al., J. Glob. Optim. 13, 455 (1998)), over the best value known at
    the model's level or over the n-th best prediction where that is worse: once the best is found, its neighbours in
    the ranking are still worth calculating. Closest to a target, improvement is to come nearer to it than that.
    Energies are at the query's chemical potentials, of predictions as of results. The batch is spread over
    configurations that are unlike each other and unlike what is calculated or will be; where times are known, worth
    counts by the time that it costs (screening.pipeline.batches). What has a calculation at the round's level, whatever
    became of it, is never chosen. Of several supercells those are chosen that are worth most in all
    (screening.pipeline.round_pools).

    Args:
        level_name: level of theory of the calculations, a known one or one of the built-in calculator's; the level
            that the model learnt if not given. A model may propose for another level: single points choose what is
            worth relaxing.
        campaign_name: choose among what this campaign has kept.
        only_stored: choose only among configurations that an import brought without a result.
        seed: decides between candidates of equal worth; kept with the round.

    Raises:
        InputError: nothing is left to propose, the query asks for a front or several models answer it, or the model
            lacks a property of the query.
    """
    if n < 1:
        raise InputError(f"{n} calculations are asked for; expected at least 1")
    check_objective(query)
    _lock_supercells(session, query)
    answers = resolve(session, query, model_name=model_name, campaign_name=campaign_name)
    model = _only_model(session, answers)
    level_id = model.level_id if level_name is None else level_of_name(session, level_name)
    pools = [read_pool(session, query, found, level_id=level_id, only_stored=only_stored) for found in answers]
    if not any(pool.candidate_ids for pool in pools):
        spaces = "; ".join(f"{found.candidates} candidates, {found.search_space}" for found in answers)
        raise NothingLeftError(
            "every candidate of the design query has a calculation"
            f"{' or no stored configuration' if only_stored else ''}; it is answered from {spaces}: "
            "widen it, or enumerate and score a larger search space"
        )
    chosen = choose_round(session, query, pools, n=n, level_id=level_id, seed=seed)
    round_ = tables.Round(model_id=model.id, level_id=level_id, query=query.stored(), seed=seed)
    session.add(round_)
    session.flush()
    found: dict[tuple[int, int], Proposal] = {}
    for number, pool in enumerate(pools):
        choices = {row: choice for of_pool, row, choice in chosen if of_pool == number}
        if choices:
            stored = store_proposals(session, pool.stored, pool, round_, choices=choices)
            found |= {(number, row): proposal for row, proposal in zip(choices, stored, strict=True)}
    return [found[number, row] for number, row, _ in chosen]


def _lock_supercells(session: Session, query: DesignQuery) -> None:
    """Let no other round choose the same candidates until the end of the transaction."""
    ids = [queries.supercell_id_of(session, place.host, place.supercell) for place in query.places]
    row = tables.Supercell
    session.execute(select(row.id).where(row.id.in_(ids)).order_by(row.id).with_for_update(key_share=True))


def _only_model(session: Session, answers: Sequence[Answer]) -> tables.TrainedModel:
    """The model that answers for all places.

    Raises:
        InputError: several do.
    """
    if len({found.model_id for found in answers}) > 1:
        models = ", ".join(f"{found.model} for {found.host} {found.supercell}" for found in answers)
        raise InputError(
            f"the places are answered by {models}; a round is chosen by one model: name one that has scored all of "
            "them (--model), or propose a round for each"
        )
    return session.get_one(tables.TrainedModel, answers[0].model_id)


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
    place = f"{stored.supercell.host.name} {stored.supercell.label}"
    return [
        Proposal(
            calculation_ids[configuration_id], pool.candidate_ids[i], pool.configurations[i].composition,
            pool.configurations[i].sites, choice.reason, choice.worth, choice.seconds, round_.id, place,
        )
        for configuration_id, (i, choice) in zip(configuration_ids, choices.items(), strict=True)
    ]  # fmt: skip
