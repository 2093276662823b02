"""Files of finished calculations into the database: VASP runs, extxyz frames, ASE databases, CSV tables.

A file is a transaction: one that cannot be used is refused with its reason and the others are taken in. Structures
are matched to the hosts of the database and of the catalogue; a bulk run of VASP that fits none of them brings its
own host. A run of a defect is only taken in with the settings of the pristine run that it is to be compared with.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from screening import __version__
from screening.database import queries, tables
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration
from screening.dft.ase_database import read_ase_db
from screening.dft.result_files import FoundResult, find_result_files, kind_of, read_extxyz, read_result_table
from screening.dft.results import CalculationResult, LevelOfTheory
from screening.dft.vasp import read_vasprun
from screening.errors import FileFormatError, InputError, StructureError, UnknownNameError
from screening.pipeline.expected_runs import ExpectedRun, check_configuration, level_of_run
from screening.pipeline.hosts import StoredSupercell, add_configurations, load_supercell
from screening.pipeline.references import (
    add_level,
    fill_formation_energies,
    has_pristine_run,
    join_vasp_level,
    level_of_name,
)
from screening.pipeline.result_places import Places, count_hosts
from screening.pipeline.result_rows import IntakeReport, Ledger, NewResult, Origin, record_failures, store_results

_PARSER = f"screening {__version__}"
_EQUAL_ENERGY = 1e-8  # eV; the same number, as a code prints it


@dataclass(frozen=True)
class IntakeOptions:
    """How files are to be understood.

    Attributes:
        level_name: level of theory of files that do not say theirs; VASP runs must belong to it if it is given.
        new_level: let a name that is not known be a new level.
        host_name: host of the structures, where several would do; name of the host that a bulk run brings.
        chemical_potentials: eV per atom by element, for the levels of the files.
        folder: where the files are for the time being; what is kept of their paths is below it.
    """

    level_name: str | None = None
    new_level: bool = False
    host_name: str | None = None
    chemical_potentials: Mapping[str, float] = field(default_factory=dict)
    folder: Path | None = None

    def shown(self, path: Path) -> str:
        """How a file's path is kept."""
        return str(path if self.folder is None else path.relative_to(self.folder))


@dataclass(eq=False)
class _Group:
    """Results of one supercell at one level of theory."""

    rows: list[NewResult] = field(default_factory=list)
    failures: list[tuple[Configuration, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Source:
    """The file that results are from; `is_expected`: it lies in the folder of a calculation that was exported."""

    file_id: int
    kind: str
    is_expected: bool


class _PutOffError(Exception):
    """A run of a defect came before the pristine run that it is compared with, which may be among the files."""


def add_result_files(
    engine: Engine, paths: Sequence[Path], *,
    level_name: str | None = None, new_level: bool = False, host_name: str | None = None,
    chemical_potentials: Mapping[str, float] | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> IntakeReport:  # fmt: skip
    """Take in finished calculations from files, each file in a transaction of its own; again changes nothing.

    VASP runs say their level of theory themselves, and a bulk run brings its host and the pristine energy; runs of
    defects that came before it are tried once more. Calculations that were cut short or did not converge are refused,
    and kept as failed with their reason and their file.

    Args:
        paths: vasprun.xml(.gz), extxyz, ASE database or CSV files, or folders of them.
        level_name, new_level, host_name, chemical_potentials: as in `IntakeOptions`.
        on_progress: called with files done, files in all, and what is at hand.

    Raises:
        UnknownNameError: no level of theory has this name.
        FileFormatError: a path is not there, or of no known kind.
    """
    options = IntakeOptions(level_name, new_level, host_name, dict(chemical_potentials or {}))
    files = sorted(find_result_files(paths), key=lambda path: kind_of(path) != "vasprun")
    ledger = Ledger()
    for found in take_files(engine, files, options, on_progress=on_progress).values():
        ledger.add(found)
    with session_scope(engine) as session:
        drop_completed(session, ledger)
    return ledger.report()


def take_files(
    engine: Engine, files: Sequence[Path], options: IntakeOptions, *,
    expected: Mapping[Path, ExpectedRun] | None = None, on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[Path, Ledger]:  # fmt: skip
    """Take in files, and what became of each; as `add_result_files`.

    Args:
        expected: the calculations in whose folders files lie.
    """
    if options.level_name is not None and not options.new_level:
        with session_scope(engine) as session:
            _named_level(session, options)
    intake = _Intake(engine, options, expected or {})
    outcomes: dict[Path, Ledger] = {}
    pending, is_first = list(files), True
    while pending:
        n_hosts = intake.n_hosts()
        put_off: list[Path] = []
        homeless: list[Path] = []
        for n, path in enumerate(pending):
            if on_progress is not None:
                on_progress(len(files) - len(pending) + n, len(files), path.name)
            try:
                outcomes[path] = intake.take(path, is_first=is_first)
            except _PutOffError:
                put_off.append(path)
            except InputError as error:
                outcomes[path] = Ledger(refusals=[(str(path), str(error))])
                homeless += [path] * isinstance(error, StructureError)
        pending = put_off + (homeless if intake.n_hosts() > n_hosts else [])
        is_first = False
    return {path: outcomes[path] for path in files}


def file_digest(path: Path) -> str:
    """SHA-256 of what a file holds, by which it is known again, packed by gzip or not; cut short, of its bytes."""
    if path.name.lower().endswith(".gz"):
        digest = hashlib.sha256()
        try:
            with gzip.open(path, "rb") as unpacked:
                while block := unpacked.read(2**20):
                    digest.update(block)
            return digest.hexdigest()
        except (EOFError, zlib.error, gzip.BadGzipFile):
            pass  # it has no other content; its reader says what is wrong with it
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Intake:
    """Takes files in one by one; a file that is taken again is not read again."""

    def __init__(self, engine: Engine, options: IntakeOptions, expected: Mapping[Path, ExpectedRun]) -> None:
        self._engine = engine
        self._options = options
        self._expected = expected
        self._read: dict[Path, tuple[str, int, list[FoundResult]]] = {}

    def n_hosts(self) -> int:
        with session_scope(self._engine) as session:
            return count_hosts(session)

    def take(self, path: Path, *, is_first: bool) -> Ledger:
        """Take the results of a file in; what became of them.

        Raises:
            InputError: the file cannot be used as a whole.
            _PutOffError: it had better be taken after the other files.
        """
        kind = kind_of(path)
        assert kind is not None
        try:
            digest, size, found = self._content(path, kind)
        except FileFormatError as error:
            if path not in self._expected:
                raise
            return self._fail(path, kind, str(error))
        with session_scope(self._engine) as session:
            places, groups, ledger = Places(session, self._options.host_name), dict[tuple[int, int], _Group](), Ledger()
            file_id = queries.add_source_file(
                session, sha256=digest, path=self._options.shown(path), kind=kind, size=size, version=_PARSER
            )
            for result in found:
                name = f"{path.parent.name}/{result.name} {digest[:12]}"
                try:
                    key, configuration = self._sort(session, path, result, places, is_first=is_first)
                except StructureError as error:
                    if kind == "vasprun":  # its host may come with a later file
                        raise
                    ledger.refusals.append((name, str(error)))
                except InputError as error:
                    ledger.refusals.append((name, str(error)))
                else:
                    _add(groups.setdefault(key, _Group()), configuration, result, name=name)
                    ledger.refuse_failed(name, result.problem)
            for (supercell_id, level_id), group in groups.items():
                _add_given_potentials(session, level_id, self._options)
                source = _Source(file_id, kind, path in self._expected)
                ledger.add(_store_group(session, places.stored[supercell_id], level_id, group, source=source))
            return ledger

    def _fail(self, path: Path, kind: str, reason: str) -> Ledger:
        """Let the calculation fail in whose folder a file lies that cannot be read."""
        expected, digest, ledger = self._expected[path], file_digest(path), Ledger()
        with session_scope(self._engine) as session:
            stored = load_supercell(session, expected.supercell_id)
            file_id = queries.add_source_file(
                session,
                sha256=digest,
                path=self._options.shown(path),
                kind=kind,
                size=path.stat().st_size,
                version=_PARSER,
            )
            failures = [(expected.configuration, reason)]
            record_failures(session, stored, expected.level_id, failures, file_id=file_id)
        ledger.refuse_failed(f"{path.parent.name}/{path.name} {digest[:12]}", reason)
        return ledger

    def _content(self, path: Path, kind: str) -> tuple[str, int, list[FoundResult]]:
        """Digest, size and results of a file.

        Raises:
            InputError: it cannot be read or understood.
        """
        if path in self._read:
            return self._read[path]
        try:
            found = file_digest(path), path.stat().st_size, _read(path, kind)
        except OSError as error:  # without rights, or moved on meanwhile
            raise InputError(
                f"{path} cannot be read ({error.strerror or error}); make it readable, or bring it back"
            ) from error
        if kind == "vasprun":  # the others are taken, or refused, at once
            self._read[path] = found
        return found

    def _sort(
        self, session: Session, path: Path, result: FoundResult, places: Places, *, is_first: bool
    ) -> tuple[tuple[int, int], Configuration]:
        """Ids of the supercell and the level of theory of a result, and its configuration.

        Raises:
            InputError: it cannot be told, or does not go together with what is there.
        """
        if result.structure is None and result.configuration is None:
            raise InputError(result.problem or "it has no structure")
        stored, configuration = places.place(result)
        expected = self._expected.get(path)
        if expected is not None:
            check_configuration(expected, stored, configuration)
            return (stored.id, level_of_run(session, expected, result.level)), configuration
        of_defect = configuration.n_defects > 0 and self._options.level_name is None
        if result.level is not None and of_defect:
            is_alone = not has_pristine_run(session, stored.id, result.level)
            if is_alone and is_first:
                raise _PutOffError
        return (stored.id, _level_of(session, result, self._options)), configuration


def _add(group: _Group, configuration: Configuration, result: FoundResult, *, name: str) -> None:
    if result.problem is not None:
        group.failures.append((configuration, result.problem))
    else:
        group.rows.append(NewResult(name, CalculationResult(configuration, result.energy, result.properties)))


def _read(path: Path, kind: str) -> list[FoundResult]:
    readers = {"extxyz": read_extxyz, "csv": read_result_table, "ase": read_ase_db}
    return [read_vasprun(path)] if kind == "vasprun" else readers[kind](path)


def _store_group(session: Session, stored: StoredSupercell, level_id: int, group: _Group, *, source: _Source) -> Ledger:
    level = session.get_one(tables.LevelOfTheory, level_id)
    origin = Origin(f"{stored.supercell.host.name} files at {level.name}", source.file_id)
    ledger, rows = Ledger(), group.rows
    if source.kind in ("extxyz", "ase"):
        rows = _last_frames(session, stored, rows, ledger)
    if not source.is_expected:  # one that was exported again may well find the same energy
        rows = _refuse_withdrawn_energies(session, stored, level_id, rows, ledger=ledger)
    ledger.add(store_results(session, stored, level_id, rows, origin=origin))
    record_failures(session, stored, level_id, group.failures, file_id=source.file_id)
    fill_formation_energies(session, stored.id, level_id)
    return ledger


def _last_frames(
    session: Session, stored: StoredSupercell, rows: Sequence[NewResult], ledger: Ledger
) -> list[NewResult]:
    """The frames without the earlier steps of relaxations: of those of a configuration that differ in energy."""
    ids = add_configurations(session, stored, [row.result.configuration for row in rows])
    frames: dict[int, list[NewResult]] = {}
    for configuration_id, row in zip(ids, rows, strict=True):
        frames.setdefault(configuration_id, []).append(row)
    kept: list[NewResult] = []
    for steps in frames.values():
        energies = [row.result.energy for row in steps]
        if max(energies) - min(energies) <= _EQUAL_ENERGY:
            kept += steps
            continue
        note = (
            f"it is the last of {len(steps)} frames of its configuration, {energies[-1]:.6f} eV, and is taken as the "
            f"result; the earlier ones, from {energies[0]:.6f} eV on, are steps of its relaxation"
        )
        ledger.notes.append((steps[-1].name, note))
        kept.append(steps[-1])
    return kept


def _refuse_withdrawn_energies(
    session: Session, stored: StoredSupercell, level_id: int, rows: Sequence[NewResult], *, ledger: Ledger
) -> list[NewResult]:
    """The rows that are not, by configuration and energy, results that were withdrawn: the same in another file."""
    ids = add_configurations(session, stored, [row.result.configuration for row in rows])
    result, calculation = tables.CalculationResult, tables.Calculation
    found = session.execute(
        select(calculation.configuration_id, result.energy, result.retraction)
        .join(calculation, calculation.id == result.calculation_id)
        .where(calculation.level_id == level_id, calculation.configuration_id.in_(ids))
        .where(result.retracted_at.is_not(None))
    ).all()
    kept = []
    for configuration_id, row in zip(ids, rows, strict=True):
        energy = row.result.energy
        reason = next((r for i, e, r in found if i == configuration_id and abs(e - energy) <= _EQUAL_ENERGY), None)
        if reason is None:
            kept.append(row)
            continue
        refusal = (
            f"its energy is {energy:.6f} eV, that of a result of its configuration that was withdrawn: {reason}; if a "
            "new calculation gives the same, bring it back by a round: `screening round export ROUND FOLDER "
            "--retry-failed`, calculate it, `screening round import FOLDER`"
        )
        ledger.refusals.append((row.name, refusal))
    return kept


def _level_of(session: Session, result: FoundResult, options: IntakeOptions) -> int:
    """The level of theory that a result is at: the one its file says, or the one that is named."""
    if result.level is not None:
        return join_vasp_level(session, result.level, options.level_name)
    if options.level_name is None:
        raise InputError("the file does not say its level of theory; name it with --level")
    return _named_level(session, options)


def _named_level(session: Session, options: IntakeOptions) -> int:
    """The level of theory of the name that is given, added where that is allowed."""
    assert options.level_name is not None
    try:
        return level_of_name(session, options.level_name)
    except UnknownNameError as error:
        if not options.new_level:
            raise UnknownNameError(f"{error}; --new-level makes a new one of this name") from error
        return add_level(session, LevelOfTheory(options.level_name, "named by the user", options.level_name))


def _add_given_potentials(session: Session, level_id: int, options: IntakeOptions) -> None:
    rows = {element: (energy, "given with results") for element, energy in options.chemical_potentials.items()}
    queries.add_chemical_potentials(session, level_id, rows)


def drop_completed(session: Session, ledger: Ledger) -> None:
    """Forget remarks on formation energies that a later file has completed."""
    if ledger.incomplete:
        row = tables.CalculationResult
        empty = select(row.row_name).where(row.row_name.in_(ledger.incomplete), row.formation_energy.is_(None))
        left = set(session.scalars(empty))
        ledger.incomplete = {name: reason for name, reason in ledger.incomplete.items() if name in left}
