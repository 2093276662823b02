"""Importing data sets of calculations: today 2DMD.

Tables are read and checked, structures are matched, and then a subset is written in one transaction, so that
a subset is there as a whole or not at all. What is there already is found by the name of its row and left
alone, so that an import can be repeated; an import that was stopped goes on where it is repeated.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening import __version__
from screening.database import queries, tables
from screening.database.models import stands
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration
from screening.dft.bulk_matching import Match, MatchingPool
from screening.dft.dataset_2dmd import (
    AGREEMENT,
    LEVEL,
    DataFile,
    ResultRow,
    Subset,
    choose_subsets,
    open_release,
    read_subset,
)
from screening.errors import InputError, LevelOfTheoryError
from screening.pipeline.hosts import StoredSupercell, add_compositions, add_supercell
from screening.pipeline.references import add_level, fill_formation_energies, refuse_withdrawn_pristine
from screening.pipeline.result_rows import FINISHED, finish_calculations, free_name

PRISTINE_ROW = "pristine"
NO_RESULT = "the data set has no result of this structure"
_PARSER = f"screening {__version__}"
_OPEN = ("proposed", "waiting")
Outcome = Literal["new", "known", "refused", "uncalculated", "held_back"]


@dataclass(frozen=True)
class SubsetReport:
    """What an import did with a subset.

    Every ``_id`` of its tables and of its structures counts once:
    ``read = new + known + refused + uncalculated + held_back``.

    Attributes:
        new: results that were taken in.
        known: results that were there already, and second calculations of a configuration that has one.
        refused: rows, or structures without a row, that cannot be used.
        uncalculated: structures without a row of results, kept as configurations not yet calculated.
        held_back: results left out on purpose, those for a test too; their configurations are kept without results.
        ended: of the uncalculated, proposed calculations that are set aside as failed, since no result will come.
        seconds: from opening the subset's first file to the end of its transaction.
        refusals: (``_id``, reason) of the refused.
        repeats: (``_id``, which configuration it repeats) of second calculations.
    """

    name: str
    read: int
    new: int
    known: int
    refused: int
    uncalculated: int
    held_back: int
    ended: int
    seconds: float
    refusals: Sequence[tuple[str, str]]
    repeats: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class _Selection:
    """Which results are taken in."""

    hold_back: float
    proposed_only: bool
    seed: int

    def holds_back(self, row: ResultRow) -> bool:
        """Whether a row is held back: every test row, and of the others but validation rows a share, by their names."""
        if row.split == "test" or self.proposed_only:
            return row.split == "test"
        digest = hashlib.sha256(f"{self.seed}:{row.name}".encode()).digest()
        return row.split != "validation" and int.from_bytes(digest[:8]) < self.hold_back * 2.0**64


@dataclass(eq=False)
class _Ledger:
    """What became of each ``_id``; one outcome each."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    repeats: list[tuple[str, str]] = field(default_factory=list)
    ended: int = 0

    def refuse(self, name: str, reason: str) -> None:
        self.outcomes[name] = "refused"
        self.refusals.append((name, reason))

    def repeat(self, name: str, reason: str) -> None:
        self.outcomes[name] = "known"
        self.repeats.append((name, reason))

    def report(self, name: str, seconds: float) -> SubsetReport:
        counts = Counter(self.outcomes.values())
        return SubsetReport(
            name, len(self.outcomes), counts["new"], counts["known"], counts["refused"], counts["uncalculated"],
            counts["held_back"], self.ended, seconds, tuple(self.refusals), tuple(self.repeats),
        )  # fmt: skip


def import_2dmd(
    engine: Engine,
    path: Path,
    *,
    subsets: Sequence[str] = (),
    hold_back: float = 0.0,
    proposed_only: bool = False,
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> list[SubsetReport]:
    """Take in results of 2DMD, each subset in a transaction of its own; what is there already stays as it is.

    A file that cannot be used stops the import; of its subset nothing is in, the subsets before it are.

    Args:
        path: folder or zip of a release, or the folder of one subset.
        subsets: names in full or by their last part; all by default.
        hold_back: share of the rows that are not for validation whose results are left out, so that they can be
            taken in later as if they had been calculated; always the same rows for a seed.
        proposed_only: take in only results of calculations that are proposed or waiting; those of them whose
            structure has no result in the data set are set aside as failed, so that they are not waited for.
        on_progress: called with structures done, structures in all, and the name of the subset.

    Raises:
        FileFormatError, UnsafeArchiveError: a file of a subset cannot be used.
        UnknownNameError: a subset is not there.
        LevelOfTheoryError: chemical potentials or pristine energies differ from those of the database.
    """
    if not 0.0 <= hold_back <= 1.0:
        raise InputError(f"the share to hold back is {hold_back}; expected a number from 0 to 1")
    selection = _Selection(hold_back, proposed_only, seed)
    reports = []
    with open_release(path) as found, MatchingPool() as pool:
        for place in choose_subsets(found, subsets):
            started = time.monotonic()
            subset = read_subset(place)
            with session_scope(engine) as session:
                known = _known_rows(session, subset.name)
            matches = _match(subset, set(subset.structures) - set(subset.refusals) - set(known), pool, on_progress)
            with session_scope(engine) as session:
                ledger = _store_subset(session, subset, matches, selection)
            reports.append(ledger.report(subset.name, time.monotonic() - started))
    return reports


def _known_rows(session: Session, dataset: str) -> dict[str, float]:
    """Energies of the results of a data set that are there, by the names of their rows."""
    rows = session.execute(
        select(tables.CalculationResult.row_name, tables.CalculationResult.energy).where(
            tables.CalculationResult.dataset == dataset
        )
    )
    return dict(rows.all())


def _match(
    subset: Subset, wanted: set[str], pool: MatchingPool, on_progress: Callable[[int, int, str], None] | None
) -> dict[str, Match]:
    """Canonical configurations of structures, by name."""
    texts: Iterable[tuple[str, str]] = ((n, text) for n, text in subset.read_structures() if n in wanted)
    matches = {}
    for match in pool.match(texts if wanted else (), subset.supercell()):
        matches[match.name] = match
        if on_progress is not None:
            on_progress(len(matches), len(wanted), subset.name)
    return matches


def _store_subset(session: Session, subset: Subset, matches: Mapping[str, Match], selection: _Selection) -> _Ledger:
    """Write a subset; what became of each ``_id``."""
    level_id = add_level(session, LEVEL)
    stored = add_supercell(session, subset.supercell())
    # one transaction at a time writes references of the level and results of the supercell; whoever proposes
    # calculations is not held up
    for row, identifier in ((tables.LevelOfTheory, level_id), (tables.Supercell, stored.id)):
        session.execute(select(row.id).where(row.id == identifier).with_for_update(key_share=True))
    queries.add_chemical_potentials(session, level_id, subset.chemical_potentials)
    files = {kind: _add_file(session, file) for kind, file in subset.files.items()}
    _add_pristine(session, stored, subset, level_id=level_id, file_id=files["pristine"])
    ledger, results = _sort_rows(subset, matches, _known_rows(session, subset.name), selection)
    ids = _configuration_ids(session, stored, matches, ledger, selection)
    chosen = _one_each(subset, results, ids, _taken(session, stored.id, level_id), ledger)
    if selection.proposed_only:
        ledger.ended = _end_hopeless(session, level_id, ids, ledger)
    finished = (_finish_open if selection.proposed_only else finish_calculations)(session, level_id, chosen)
    for configuration_id, name in chosen.items():
        if configuration_id in finished:
            ledger.outcomes[name] = "new"
        elif selection.proposed_only:
            ledger.outcomes[name] = "held_back"
        else:
            ledger.refuse(name, "a worker is calculating its configuration; import again when it has ended")
    _insert_results(
        session,
        [
            {
                "calculation_id": calculation_id, "source_file_id": files["targets"], "dataset": subset.name,
                "row_name": name, "split": subset.rows[name].split, "energy": subset.rows[name].energy, **results[name],
            }
            for configuration_id, calculation_id in finished.items()
            for name in (chosen[configuration_id],)
        ],
    )  # fmt: skip
    return ledger


def _add_file(session: Session, file: DataFile) -> int:
    return queries.add_source_file(
        session, sha256=file.sha256, path=file.path, kind=file.kind, size=file.size, version=_PARSER
    )


def _add_pristine(session: Session, stored: StoredSupercell, subset: Subset, *, level_id: int, file_id: int) -> None:
    """Store the pristine supercell's calculation; one that is there must agree, and none that was withdrawn counts."""
    known = queries.pristine_energy(session, stored.id, level_id)
    if known is None:
        refuse_withdrawn_pristine(session, stored.id, level_id, subset.pristine_energy)
        pristine = Match("", Configuration((), ()), 1)
        (configuration_id,) = _add_canonical(session, stored, [pristine]).values()
        (calculation_id,) = finish_calculations(session, level_id, [configuration_id]).values()
        row = {"calculation_id": calculation_id, "source_file_id": file_id, "dataset": subset.name}
        row |= {"row_name": free_name(session, subset.name, PRISTINE_ROW), "energy": subset.pristine_energy}
        _insert_results(session, [row])
        fill_formation_energies(session, stored.id, level_id)
    elif abs(known - subset.pristine_energy) > AGREEMENT:
        raise LevelOfTheoryError(
            f"the pristine {subset.formula} supercell {stored.supercell.label} has {known:.6f} eV in the database and "
            f"{subset.pristine_energy:.6f} eV in {subset.name}; formation energies would not be comparable"
        )


def _sort_rows(
    subset: Subset, matches: Mapping[str, Match], known: Mapping[str, float], selection: _Selection
) -> tuple[_Ledger, dict[str, dict[str, float]]]:
    """What becomes of each ``_id``, and the properties of those that are to be taken in."""
    ledger = _Ledger()
    results: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys([*subset.refusals, *subset.rows, *subset.structures]):
        row, match = subset.rows.get(name), matches.get(name)
        try:
            if name in subset.refusals:
                raise InputError(subset.refusals[name])
            if name in known:
                _check_known(known[name], row)
                ledger.outcomes[name] = "known"
            elif match is not None and match.configuration is None:
                raise InputError(match.reason)
            elif row is None:
                ledger.outcomes[name] = "uncalculated"
            else:
                assert match is not None
                assert match.configuration is not None
                results[name] = subset.properties(row, match.configuration)
        except InputError as error:
            ledger.refuse(name, str(error))
    for name in [name for name in results if selection.holds_back(subset.rows[name])]:
        ledger.outcomes[name] = "held_back"
        del results[name]
    return ledger, results


def _check_known(known: float, row: ResultRow | None) -> None:
    """Make sure that a row still says what the database has of it."""
    if row is not None and abs(known - row.energy) > AGREEMENT:
        raise InputError(
            f"its energy is {known:.8f} eV in the database and {row.energy:.8f} eV in the file; "
            "results are never overwritten: import a changed data set into another database"
        )


def _configuration_ids(
    session: Session, stored: StoredSupercell, matches: Mapping[str, Match], ledger: _Ledger, selection: _Selection
) -> dict[str, int]:
    """Ids of the configurations of all structures that are not refused, by name; stored unless only proposed count."""
    good = [match for name, match in matches.items() if ledger.outcomes.get(name) != "refused"]
    if not selection.proposed_only:
        return _add_canonical(session, stored, good)
    ids = queries.find_configurations(session, stored.id, map(_key, good))
    return {match.name: ids[key] for match in good if (key := _key(match)) in ids}


def _add_canonical(session: Session, stored: StoredSupercell, matches: Sequence[Match]) -> dict[str, int]:
    """Store configurations that are in canonical form already; ids by name."""
    counts: dict[str, Counter[int]] = {}
    rows: dict[tuple[tuple[int, ...], tuple[int, ...]], dict[str, Any]] = {}
    for match in matches:
        assert match.configuration is not None
        label = match.configuration.composition
        sites, codes = _key(match)
        counts[label] = Counter(codes)
        rows[sites, codes] = {
            "composition_id": label, "n_defects": len(sites), "sites": list(sites), "defect_types": list(codes),
            "multiplicity": match.multiplicity,
        }  # fmt: skip
    compositions = add_compositions(session, list(counts.values()))
    for row in rows.values():
        row["composition_id"] = compositions[row["composition_id"]]
    ids = queries.configuration_ids(session, stored.id, list(rows.values()))
    return {match.name: ids[_key(match)] for match in matches}


def _key(match: Match) -> tuple[tuple[int, ...], tuple[int, ...]]:
    assert match.configuration is not None
    return match.configuration.sites, match.configuration.defect_types


def _taken(session: Session, supercell_id: int, level_id: int) -> dict[int, tuple[str, float]]:
    """Name and energy of the result that a configuration has, by its id."""
    result = tables.CalculationResult
    known = session.execute(
        select(tables.Calculation.configuration_id, result.dataset, result.row_name, result.energy)
        .join(tables.Calculation, tables.Calculation.id == result.calculation_id)
        .join(tables.Configuration, tables.Configuration.id == tables.Calculation.configuration_id)
        .where(tables.Calculation.level_id == level_id, tables.Configuration.supercell_id == supercell_id, stands())
    )
    return {i: (f"{row_name} of {dataset}", energy) for i, dataset, row_name, energy in known}


def _one_each(
    subset: Subset, names: Iterable[str], ids: Mapping[str, int], taken: dict[int, tuple[str, float]], ledger: _Ledger
) -> dict[int, str]:
    """The row whose result each configuration gets: the first one, unless it is taken.

    Rows without a configuration in the database are held back: only proposed calculations are wanted.
    """
    chosen: dict[int, str] = {}
    for name in names:
        configuration_id = ids.get(name)
        if configuration_id is None:
            ledger.outcomes[name] = "held_back"
        elif configuration_id in taken:
            other, energy = taken[configuration_id]
            ledger.repeat(
                name,
                f"the same configuration as {other}; energies {subset.rows[name].energy:.6f} and {energy:.6f} eV",
            )
        else:
            taken[configuration_id] = (f"{name} of {subset.name}", subset.rows[name].energy)
            chosen[configuration_id] = name
    return chosen


def _finish_open(session: Session, level_id: int, configuration_ids: Iterable[int]) -> dict[int, int]:
    """Finish those calculations of these configurations that are proposed or wait; their ids by configuration."""
    wanted = set(configuration_ids)
    found = session.execute(
        select(tables.Calculation.configuration_id, tables.Calculation.id)
        .where(tables.Calculation.level_id == level_id, tables.Calculation.state.in_(_OPEN))
        .with_for_update()
    )
    finished = {i: calculation_id for i, calculation_id in found if i in wanted}
    session.execute(update(tables.Calculation).where(tables.Calculation.id.in_(finished.values())).values(**FINISHED))
    return finished


def _end_hopeless(session: Session, level_id: int, ids: Mapping[str, int], ledger: _Ledger) -> int:
    """Set proposed and waiting calculations aside whose structures have no result in the subset; their number."""
    hopeless = {ids[name] for name, outcome in ledger.outcomes.items() if outcome == "uncalculated" and name in ids}
    hopeful = {identifier for name, identifier in ids.items() if ledger.outcomes.get(name) != "uncalculated"}
    ended = session.scalars(
        update(tables.Calculation)
        .where(
            tables.Calculation.configuration_id.in_(hopeless - hopeful),
            tables.Calculation.level_id == level_id,
            tables.Calculation.state.in_(_OPEN),
        )
        .values(state="failed", error=NO_RESULT, finished_at=func.now())
        .returning(tables.Calculation.id)
    )
    return len(ended.all())


def _insert_results(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        session.execute(insert(tables.CalculationResult), list(rows))
