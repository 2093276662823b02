"""Rows of finished calculations: one calculation and one result per configuration and level of theory.

A result is never overwritten. It finishes a calculation that is proposed, runs elsewhere, waits or failed; one that a
worker is running is left to the worker. The same result again, or a second calculation of a configuration, changes
nothing; one that was withdrawn is refused, another one takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ARRAY, Integer, and_, func, literal, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.models import stands
from screening.defects.defect_types import Configuration
from screening.defects.enumeration import canonical_form
from screening.dft.results import PROPERTIES, CalculationResult
from screening.errors import InputError
from screening.pipeline.hosts import StoredSupercell, add_configurations
from screening.pipeline.references import derived_energies, fill_formation_energies

_SAME_ENERGY = 1e-3  # eV; a repeated calculation that differs by more is worth a note
_RUNNING = "a worker is calculating this configuration; add the result afterwards"
_IS_OPEN = and_(tables.Calculation.state != "finished", tables.Calculation.state != "running")
FINISHED: Mapping[str, Any] = {
    "state": "finished", "lease_owner": None, "lease_until": None, "error": None, "finished_at": func.now(),
}  # fmt: skip


@dataclass(frozen=True)
class NewResult:
    """A result to take in, with its name in its data set and, where that says so, its split."""

    name: str
    result: CalculationResult
    split: str | None = None


@dataclass(frozen=True)
class Origin:
    """Where results come from."""

    dataset: str
    source_file_id: int | None = None


@dataclass(frozen=True)
class IntakeReport:
    """What was taken in: ``read = new + known + refused``.

    Attributes:
        failed: those of the refused that are kept as failed calculations.
        refusals: (name, reason) of what cannot be used.
        notes: (name, remark) of what was taken in or known: no formation energy yet, another energy than before.
    """

    read: int
    new: int
    known: int
    refused: int
    refusals: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...]
    failed: int = 0


@dataclass(eq=False)
class Ledger:
    """What became of results, by their names.

    Attributes:
        notes: (name, remark) of results that were known, or taken in, with something to say about.
        incomplete: of results that were taken in, why they have no formation energy.
        failed: names of those refused that are kept as failed calculations.
    """

    new: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    incomplete: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def add(self, other: Ledger) -> None:
        """Take over what another ledger says."""
        self.new += other.new
        self.known += other.known
        self.refusals += other.refusals
        self.notes += other.notes
        self.incomplete |= other.incomplete
        self.failed += other.failed

    def refuse_failed(self, name: str, reason: str | None) -> None:
        """Refuse what is kept as a failed calculation; nothing where there is no reason to."""
        if reason is not None:
            self.refusals.append((name, reason))
            self.failed.append(name)

    def report(self) -> IntakeReport:
        """Counts, refusals and notes."""
        counts = (len(self.new), len(self.known), len(self.refusals))
        incomplete = [(name, f"no formation energy yet: {reason}") for name, reason in self.incomplete.items()]
        return IntakeReport(sum(counts), *counts, tuple(self.refusals), (*self.notes, *incomplete), len(self.failed))


def lock_results(session: Session, supercell_id: int) -> None:
    """Let one transaction at a time take results of a supercell in, or withdraw them.

    Who adds configurations is not held up.
    """
    row = tables.Supercell
    session.execute(select(row.id).where(row.id == supercell_id).with_for_update(key_share=True))


def store_results(
    session: Session, stored: StoredSupercell, level_id: int, rows: Sequence[NewResult], *, origin: Origin
) -> Ledger:
    """Take results of a supercell at a level of theory in; what became of each. Their names are distinct.

    Formation energies are derived where the references are there; `incomplete` says where they are not. A pristine
    result completes those that were left empty for want of it.
    """
    assert len({row.name for row in rows}) == len(rows)
    ledger = Ledger()
    lock_results(session, stored.id)
    good = [row for row in rows if _is_finite(row, ledger)]
    ids = add_configurations(session, stored, [row.result.configuration for row in good])
    placed = dict(zip((row.name for row in good), ids, strict=True))
    standing = _refuse_withdrawn(session, level_id, placed, good, origin=origin, ledger=ledger)
    chosen = _choose(session, level_id, placed, standing, ledger=ledger)
    calculations = finish_calculations(session, level_id, chosen)
    ledger.refusals += [(row.name, _RUNNING) for i, row in chosen.items() if i not in calculations]  # claimed just now
    chosen = {i: row for i, row in chosen.items() if i in calculations}
    pristine = next((r.result.energy for r in chosen.values() if r.result.configuration.n_defects == 0), None)
    references: dict[str, Any] = {
        "pristine_energy": queries.pristine_energy(session, stored.id, level_id) if pristine is None else pristine,
        "chemical_potentials": queries.chemical_potentials(session, level_id),
    }
    values = []
    for configuration_id, row in chosen.items():
        energies: dict[str, float] = {}
        try:
            energies = derived_energies(row.result, **references)
        except InputError as error:
            ledger.incomplete[row.name] = str(error)
        values.append(_values(row, origin, calculations[configuration_id], energies))
        ledger.new.append(row.name)
    if values:
        session.execute(insert(tables.CalculationResult), values)
    if pristine is not None:
        fill_formation_energies(session, stored.id, level_id)
    return ledger


def store_result(
    session: Session, stored: StoredSupercell, calculation_id: int, result: CalculationResult, *,
    dataset: str, row_name: str, source_file_id: int | None = None, split: str | None = None,
) -> int:  # fmt: skip
    """Write the result of a calculation that the caller holds and ends; the result's id.

    Raises:
        InputError: a number is not finite, or a reference of the formation energy is missing.
    """
    row = NewResult(row_name, result, split)
    ledger = Ledger()
    if not _is_finite(row, ledger):
        raise InputError(f"the result of calculation {calculation_id} cannot be stored: {ledger.refusals[0][1]}")
    lock_results(session, stored.id)  # a pristine result that is withdrawn meanwhile is no reference
    calculation = session.get_one(tables.Calculation, calculation_id)
    held = session.get_one(tables.Configuration, calculation.configuration_id)
    canonical, _ = canonical_form(stored.symmetry, result.configuration)
    assert (canonical.sites, canonical.defect_types) == (tuple(held.sites), tuple(held.defect_types))
    energies = derived_energies(
        result,
        pristine_energy=queries.pristine_energy(session, stored.id, calculation.level_id),
        chemical_potentials=queries.chemical_potentials(session, calculation.level_id),
    )
    values = _values(row, Origin(dataset, source_file_id), calculation_id, energies)
    added = session.execute(insert(tables.CalculationResult).values(values).returning(tables.CalculationResult.id))
    if result.configuration.n_defects == 0:
        fill_formation_energies(session, stored.id, calculation.level_id)
    return added.scalar_one()


def finish_calculations(session: Session, level_id: int, configuration_ids: Iterable[int]) -> dict[int, int]:
    """Ids of calculations by configuration, new ones and open or failed ones that are finished now."""
    ids = func.unnest(literal(list(configuration_ids), ARRAY(Integer))).column_valued("configuration_id")
    columns = {
        "configuration_id": ids,
        "level_id": literal(level_id),
        "state": literal("finished"),
        "finished_at": func.now(),
    }
    statement = (
        insert(tables.Calculation)
        .from_select(list(columns), select(*columns.values()))
        .on_conflict_do_update(index_elements=["configuration_id", "level_id"], set_=FINISHED, where=_IS_OPEN)
        .returning(tables.Calculation.configuration_id, tables.Calculation.id)
    )
    return dict(session.execute(statement).all())


def record_failures(
    session: Session, stored: StoredSupercell, level_id: int, failures: Sequence[tuple[Configuration, str]], *,
    file_id: int | None = None,
) -> None:  # fmt: skip
    """Keep calculations that failed, with their reasons and their file.

    One that is finished or running stays as it is, and so does one of which this file was read before: it may have
    been begun again since.
    """
    ids = add_configurations(session, stored, [configuration for configuration, _ in failures])
    reasons = {i: reason for i, (_, reason) in zip(ids, failures, strict=True)}
    if file_id is not None:
        for known in _failed_before(session, level_id, file_id):
            reasons.pop(known, None)
    if not reasons:
        return
    row = tables.Calculation
    statement = insert(row).values(state="failed", finished_at=func.now())
    ended = session.execute(
        statement.on_conflict_do_update(
            index_elements=["configuration_id", "level_id"],
            set_={"state": "failed", "error": statement.excluded.error, "finished_at": func.now()},
            where=_IS_OPEN,
        ).returning(row.id, row.error),
        [{"configuration_id": i, "level_id": level_id, "error": reason} for i, reason in reasons.items()],
    ).all()
    for calculation_id, reason in ended:
        add_failure(session, calculation_id, str(reason), file_id=file_id)


def add_failure(session: Session, calculation_id: int, reason: str, *, file_id: int | None) -> None:
    """Keep why an attempt at a calculation failed."""
    row = tables.CalculationFailure
    last = select(func.max(row.attempt)).where(row.calculation_id == calculation_id).scalar_subquery()
    values = {"calculation_id": calculation_id, "source_file_id": file_id, "reason": reason}
    session.execute(insert(row).values(attempt=func.coalesce(last, 0) + 1, **values))


def _failed_before(session: Session, level_id: int, file_id: int) -> set[int]:
    """Ids of the configurations whose calculations at a level failed by this file."""
    row = tables.CalculationFailure
    return set(
        session.scalars(
            select(tables.Calculation.configuration_id)
            .join(row, row.calculation_id == tables.Calculation.id)
            .where(tables.Calculation.level_id == level_id, row.source_file_id == file_id)
        )
    )


def _is_finite(row: NewResult, ledger: Ledger) -> bool:
    """Whether all numbers of a result are finite; otherwise it is refused."""
    numbers = {"energy": row.result.energy, **row.result.properties}
    wrong = [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
    unknown = row.result.properties.keys() - set(PROPERTIES)
    assert not unknown, f"no property is called {', '.join(sorted(unknown))}"
    if wrong:
        ledger.refusals.append((row.name, f"its {', '.join(wrong)}; expected finite numbers"))
    return not wrong


def free_name(session: Session, dataset: str, name: str) -> str:
    """A name for a result that is calculated again because the one of this name was withdrawn: `name (2)`."""
    result = tables.CalculationResult
    taken = set(
        session.scalars(
            select(result.row_name).where(result.dataset == dataset, result.row_name.startswith(name, autoescape=True))
        )
    )
    numbered = (f"{name} ({n})" for n in range(2, len(taken) + 3))
    return next(found for found in (name, *numbered) if found not in taken)


def _refuse_withdrawn(
    session: Session, level_id: int, ids: Mapping[str, int], rows: Sequence[NewResult], *, origin: Origin,
    ledger: Ledger,
) -> list[NewResult]:  # fmt: skip
    """The rows that are not, by their name or their file, results that were withdrawn."""
    result = tables.CalculationResult
    found = session.execute(
        select(
            tables.Calculation.configuration_id, result.dataset, result.row_name, result.source_file_id,
            result.retraction, result.retracted_at,
        )
        .join(tables.Calculation, tables.Calculation.id == result.calculation_id)
        .where(
            tables.Calculation.level_id == level_id,
            tables.Calculation.configuration_id.in_(set(ids.values())),
            result.retracted_at.is_not(None),
        )
    )  # fmt: skip
    of_name: dict[str, str] = {}
    of_file: dict[int, str] = {}
    for configuration_id, dataset, name, file_id, retraction, retracted_at in found:
        assert retracted_at is not None
        reason = (
            f"this result was withdrawn on {retracted_at.astimezone():%Y-%m-%d}: {retraction}; calculate it again and "
            "add the new file"
        )
        if dataset == origin.dataset:
            of_name[name] = reason
        if file_id is not None and file_id == origin.source_file_id:
            of_file[configuration_id] = reason
    reasons = {row.name: of_name.get(row.name) or of_file.get(ids[row.name]) for row in rows}
    ledger.refusals += [(name, reason) for name, reason in reasons.items() if reason is not None]
    return [row for row in rows if reasons[row.name] is None]


def _choose(
    session: Session, level_id: int, ids: Mapping[str, int], rows: Sequence[NewResult], *, ledger: Ledger
) -> dict[int, NewResult]:
    """By configuration, the results to take in: where there is none yet, and no worker is at it."""
    energies = _known_energies(session, level_id, set(ids.values()))
    running = set(
        session.scalars(
            select(tables.Calculation.configuration_id).where(
                tables.Calculation.level_id == level_id,
                tables.Calculation.state == "running",
                tables.Calculation.configuration_id.in_(set(ids.values())),
            )
        )
    )
    chosen: dict[int, NewResult] = {}
    for row in rows:
        identifier = ids[row.name]
        if identifier in energies:
            ledger.known.append(row.name)
            if abs(energies[identifier] - row.result.energy) > _SAME_ENERGY:
                note = (
                    f"its energy is {row.result.energy:.6f} eV; its configuration "
                    f"{row.result.configuration.composition} has a result with {energies[identifier]:.6f} eV, "
                    "which is kept"
                )
                ledger.notes.append((row.name, note))
        elif identifier in running:
            ledger.refusals.append((row.name, _RUNNING))
        else:
            chosen[identifier] = row
            energies[identifier] = row.result.energy
    return chosen


def _known_energies(session: Session, level_id: int, configuration_ids: set[int]) -> dict[int, float]:
    """Energies of the configurations that have a result at a level of theory."""
    found = session.execute(
        select(tables.Calculation.configuration_id, tables.CalculationResult.energy)
        .join(tables.CalculationResult, tables.CalculationResult.calculation_id == tables.Calculation.id)
        .where(tables.Calculation.level_id == level_id, tables.Calculation.configuration_id.in_(configuration_ids))
        .where(stands())
    )
    return {row.configuration_id: row.energy for row in found}


def _values(row: NewResult, origin: Origin, calculation_id: int, energies: Mapping[str, float]) -> dict[str, Any]:
    """Columns of a result; every property has one, so that rows can be inserted together."""
    properties = dict.fromkeys(PROPERTIES) | dict(row.result.properties) | dict(energies)
    return {
        "calculation_id": calculation_id,
        "source_file_id": origin.source_file_id,
        "dataset": origin.dataset,
        "row_name": row.name,
        "split": row.split,
        "energy": row.result.energy,
        **properties,
    }
