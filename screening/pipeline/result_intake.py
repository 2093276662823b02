"""Files of finished calculations into the database: VASP runs, extxyz frames, CSV tables.

A file is a transaction: one that cannot be used is refused with its reason and the others are taken in. Structures
are matched to the hosts of the database and of the catalogue; a bulk run of VASP that fits none of them brings its
own host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from screening import __version__
from screening.database import queries, tables
from screening.database.session import session_scope
from screening.defects.catalogue import catalogue_host, host_names
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Host, Supercell
from screening.defects.matching import Matcher, Structure, find_supercell
from screening.dft.result_files import FoundResult, find_result_files, kind_of, read_extxyz, read_result_table
from screening.dft.results import CalculationResult, LevelOfTheory
from screening.dft.vasp import host_of_bulk, read_vasprun
from screening.errors import InputError, StructureError, UnknownNameError
from screening.pipeline.hosts import StoredSupercell, add_supercell, host_of, load_supercell
from screening.pipeline.references import add_level, fill_formation_energies, join_vasp_level, level_of_name
from screening.pipeline.result_rows import IntakeReport, Ledger, NewResult, Origin, record_failures, store_results

_PARSER = f"screening {__version__}"


@dataclass(frozen=True)
class _Options:
    level_name: str | None
    new_level: bool
    host_name: str | None
    chemical_potentials: Mapping[str, float]


@dataclass(eq=False)
class _Group:
    """Results of one supercell at one level of theory."""

    rows: list[NewResult] = field(default_factory=list)
    failures: list[tuple[Configuration, str]] = field(default_factory=list)


def add_result_files(
    engine: Engine, paths: Sequence[Path], *,
    level_name: str | None = None, new_level: bool = False, host_name: str | None = None,
    chemical_potentials: Mapping[str, float] | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> IntakeReport:  # fmt: skip
    """Take in finished calculations from files, each file in a transaction of its own; again changes nothing.

    VASP runs say their level of theory themselves, and a bulk run brings its host and the pristine energy; runs of
    defects that came before it are tried once more. Calculations that did not converge are refused, and kept as
    failed with their reason.

    Args:
        paths: vasprun.xml(.gz), extxyz or CSV files, or folders of them.
        level_name: level of theory of extxyz and CSV files; VASP runs must belong to it if it is given.
        new_level: let a name that is not known be a new level.
        host_name: host of the structures, where several would do; name of the host that a bulk run brings.
        chemical_potentials: eV per atom by element, for the levels of these files.
        on_progress: called with files done, files in all, and what is at hand.

    Raises:
        UnknownNameError: no level of theory has this name.
        FileFormatError: a path is not there, or of no known kind.
    """
    options = _Options(level_name, new_level, host_name, dict(chemical_potentials or {}))
    ledger = Ledger()
    files = sorted(find_result_files(paths), key=lambda path: kind_of(path) != "vasprun")
    if level_name is not None and not new_level:
        with session_scope(engine) as session:
            _named_level(session, options)
    n_files = len(files)
    while files:
        homeless: dict[Path, str] = {}
        n_hosts = n_hosts_before = -1
        for n, path in enumerate(files):
            if on_progress is not None:
                on_progress(n_files - len(files) + n, n_files, path.name)
            try:
                with session_scope(engine) as session:
                    n_hosts = _count_hosts(session)
                    n_hosts_before = n_hosts if n_hosts_before < 0 else n_hosts_before
                    found = _take_file(session, path, options)
                    n_hosts = _count_hosts(session)
            except StructureError as error:
                homeless[path] = str(error)
            except InputError as error:
                ledger.refusals.append((str(path), str(error)))
            else:
                ledger.add(found)
        files = list(homeless) if n_hosts > n_hosts_before else []
        if not files:
            ledger.refusals += [(str(path), reason) for path, reason in homeless.items()]
    with session_scope(engine) as session:
        _drop_completed(session, ledger)
    return ledger.report()


class _Places:
    """Finds the supercell and configuration of each result, and stores what is new of them."""

    def __init__(self, session: Session, options: _Options) -> None:
        self._session = session
        self.options = options
        self._hosts = _known_hosts(session, options.host_name)
        self._by_lattice: dict[tuple[bytes, frozenset[str]], int] = {}
        self._matchers: dict[int, Matcher] = {}
        self.stored: dict[int, StoredSupercell] = {}

    def place(self, found: FoundResult) -> tuple[StoredSupercell, Configuration]:
        """Supercell and configuration of a result.

        Raises:
            StructureError: the structure fits no known host.
            InputError: sites are given without the supercell they are numbered in.
        """
        if found.structure is None:
            return self._numbered(found)
        structure = found.structure
        key = (structure.lattice.tobytes(), frozenset(structure.species))
        if key not in self._by_lattice:
            self._by_lattice[key] = self._keep(self._add_supercell(structure, may_bring_host=found.level is not None))
        identifier = self._by_lattice[key]
        if identifier not in self._matchers:
            self._matchers[identifier] = Matcher(self.stored[identifier].supercell)
        return self.stored[identifier], self._matchers[identifier].match(structure)

    def _add_supercell(self, structure: Structure, *, may_bring_host: bool) -> StoredSupercell:
        try:
            return add_supercell(self._session, find_supercell(structure, self._hosts))
        except StructureError:
            host = host_of_bulk(structure, self.options.host_name) if may_bring_host else None
            if host is None:
                raise
            return add_supercell(self._session, find_supercell(structure, [host]))

    def _numbered(self, found: FoundResult) -> tuple[StoredSupercell, Configuration]:
        if self.options.host_name is None:
            raise InputError("sites are numbers in a supercell; name its host with --host")
        assert found.configuration is not None
        identifier = queries.supercell_id_of(self._session, self.options.host_name, found.supercell)
        if identifier not in self.stored:
            self._keep(load_supercell(self._session, identifier))
        stored = self.stored[identifier]
        check_numbering(found.configuration, stored.supercell)
        return stored, found.configuration

    def _keep(self, stored: StoredSupercell) -> int:
        self.stored[stored.id] = stored
        return stored.id


def _known_hosts(session: Session, host_name: str | None) -> list[Host]:
    """Hosts of the database, and those of the catalogue that it does not hold; only one if it is named."""
    hosts = {row.name: host_of(row) for row in session.scalars(select(tables.Host).order_by(tables.Host.id))}
    for name in host_names():
        hosts.setdefault(name, catalogue_host(name))
    return [host for name, host in hosts.items() if host_name in (None, name)]


def _count_hosts(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(tables.Host)) or 0


def _take_file(session: Session, path: Path, options: _Options) -> Ledger:
    """Take the results of one file in; what became of them.

    Raises:
        InputError: the file cannot be used as a whole.
    """
    kind = kind_of(path)
    assert kind is not None
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    found = _read(path, kind)
    file_id = queries.add_source_file(
        session, sha256=digest, path=str(path), kind=kind, size=len(content), version=_PARSER
    )
    ledger = Ledger()
    places = _Places(session, options)
    groups: dict[tuple[int, int], _Group] = {}
    for result in found:
        name = f"{path.parent.name}/{result.name} {digest[:12]}"
        try:
            _sort_in(session, groups, places, result, name=name)
            if result.problem is not None:
                raise InputError(result.problem)
        except StructureError as error:
            if kind == "vasprun":  # its host may come with a later file
                raise
            ledger.refusals.append((name, str(error)))
        except InputError as error:
            ledger.refusals.append((name, str(error)))
    for (supercell_id, level_id), group in groups.items():
        _add_given_potentials(session, level_id, options)
        ledger.add(_store_group(session, places.stored[supercell_id], level_id, group, file_id=file_id))
    return ledger


def _sort_in(
    session: Session, groups: dict[tuple[int, int], _Group], places: _Places, result: FoundResult, *, name: str
) -> None:
    """Put a result with what belongs to its supercell and level of theory."""
    if result.structure is None and result.configuration is None:
        return
    stored, configuration = places.place(result)
    group = groups.setdefault((stored.id, _level_of(session, result, places.options)), _Group())
    if result.problem is not None:
        group.failures.append((configuration, result.problem))
    else:
        group.rows.append(NewResult(name, CalculationResult(configuration, result.energy, result.properties)))


def _read(path: Path, kind: str) -> list[FoundResult]:
    if kind == "extxyz":
        return read_extxyz(path)
    if kind == "csv":
        return read_result_table(path)
    return [read_vasprun(path)]


def _store_group(session: Session, stored: StoredSupercell, level_id: int, group: _Group, *, file_id: int) -> Ledger:
    level = session.get_one(tables.LevelOfTheory, level_id)
    origin = Origin(f"{stored.supercell.host.name} files at {level.name}", file_id)
    ledger = store_results(session, stored, level_id, group.rows, origin=origin)
    record_failures(session, stored, level_id, group.failures)
    fill_formation_energies(session, stored.id, level_id)
    return ledger


def _level_of(session: Session, result: FoundResult, options: _Options) -> int:
    """The level of theory that a result is at: the one its file says, or the one that is named."""
    if result.level is not None:
        return join_vasp_level(session, result.level, options.level_name)
    if options.level_name is None:
        raise InputError("the file does not say its level of theory; name it with --level")
    return _named_level(session, options)


def _named_level(session: Session, options: _Options) -> int:
    """The level of theory of the name that is given, added where that is allowed."""
    assert options.level_name is not None
    try:
        return level_of_name(session, options.level_name)
    except UnknownNameError as error:
        if not options.new_level:
            raise UnknownNameError(f"{error}; --new-level makes a new one of this name") from error
        return add_level(session, LevelOfTheory(options.level_name, "named by the user", options.level_name))


def _add_given_potentials(session: Session, level_id: int, options: _Options) -> None:
    rows = {element: (energy, "given with results") for element, energy in options.chemical_potentials.items()}
    queries.add_chemical_potentials(session, level_id, rows)


def check_numbering(configuration: Configuration, supercell: Supercell) -> None:
    """Make sure that every defect sits on a site of the species that it removes.

    Raises:
        InputError: one does not.
    """
    for site, code in zip(configuration.sites, configuration.defect_types, strict=True):
        defect_type = DefectType.from_code(code)
        if not 0 <= site < supercell.n_sites or supercell.species[site] != defect_type.removed:
            raise InputError(
                f"{defect_type.name} is on site {site}; {supercell.label} {supercell.host.name} has "
                f"{defect_type.removed} on the sites {supercell.allowed(defect_type).tolist()}"
            )


def _drop_completed(session: Session, ledger: Ledger) -> None:
    """Forget remarks on formation energies that a later file has completed."""
    if ledger.incomplete:
        row = tables.CalculationResult
        empty = select(row.row_name).where(row.row_name.in_(ledger.incomplete), row.formation_energy.is_(None))
        left = set(session.scalars(empty))
        ledger.incomplete = {name: reason for name, reason in ledger.incomplete.items() if name in left}
