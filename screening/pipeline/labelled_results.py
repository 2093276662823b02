"""Files of finished calculations as labelled configurations, without a database.

What `result_intake` does with rows of the database is done here in memory: the host is one of the catalogue's or
comes with a bulk run of VASP, the supercell is found by the first structure of each lattice, the pristine
calculation among the files gives the reference of the formation energies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from screening.defects.catalogue import catalogue_host, host_names
from screening.defects.defect_types import Configuration
from screening.defects.enumeration import canonical_form
from screening.defects.host import Host, Supercell
from screening.defects.matching import Matcher, Structure, find_supercell
from screening.defects.symmetry import Symmetry, find_symmetry
from screening.dft.result_files import FoundResult, find_result_files, kind_of, read_extxyz, read_result_table
from screening.dft.results import CalculationResult, LevelOfTheory
from screening.dft.vasp import agree, host_of_bulk, merge, read_vasprun
from screening.errors import InputError, StructureError, UnknownNameError
from screening.pipeline.references import derived_energies
from screening.pipeline.result_places import check_numbering

_READERS: Mapping[str, Callable[[Path], list[FoundResult]]] = {
    "vasprun": lambda path: [read_vasprun(path)],
    "extxyz": read_extxyz,
    "csv": read_result_table,
}


@dataclass(frozen=True)
class GivenReferences:
    """What single files do not say of themselves.

    Attributes:
        host_name: of the catalogue or a bulk run, where several hosts would do, or where sites are numbers.
        chemical_potentials: eV per atom by element.
    """

    host_name: str | None = None
    chemical_potentials: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PlacedResult:
    """A finished calculation with its place; the configuration is in canonical form."""

    name: str
    supercell: Supercell
    configuration: Configuration
    energy: float
    properties: Mapping[str, float]
    level: LevelOfTheory | None


@dataclass(eq=False)
class ResultReading:
    """What files of finished calculations hold.

    Attributes:
        refusals: (name, reason) of what cannot be used.
        notes: (name, remark) of calculations without a formation energy.
        digests: SHA-256 of each file.
    """

    results: list[PlacedResult] = field(default_factory=list)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)


def read_results(
    path: Path, references: GivenReferences, *, on_progress: Callable[[int, int, str], None] | None = None
) -> ResultReading:
    """The calculations of a file or a folder, formation energies derived where the references are there.

    Raises:
        FileFormatError: the path is of no known kind, or a folder without results.
        UnknownNameError: a host is named that neither the catalogue nor a bulk run has.
    """
    reading = ResultReading()
    files = sorted(find_result_files([path]), key=lambda found: kind_of(found) != "vasprun")
    found: list[tuple[str, FoundResult]] = []
    for done, file in enumerate(files, start=1):
        reading.digests.append(hashlib.sha256(file.read_bytes()).hexdigest())
        try:
            kind = kind_of(file)
            assert kind is not None
            found += [(_shown(file, path, result.name), result) for result in _READERS[kind](file)]
        except InputError as error:
            reading.refusals.append((_shown(file, path, ""), str(error)))
        if on_progress is not None:
            on_progress(done, len(files), file.name)
    places = _Places(references.host_name, [result for _, result in found])
    levels = _joined_levels([result.level for _, result in found])
    for (name, result), level in zip(found, levels, strict=True):
        try:
            reading.results.append(_placed(places, name, replace(result, level=level)))
        except InputError as error:
            reading.refusals.append((name, str(error)))
    _derive_energies(reading, references.chemical_potentials)
    return reading


@dataclass(frozen=True, eq=False)
class _Place:
    """A supercell with what matching to it needs."""

    supercell: Supercell
    matcher: Matcher
    symmetry: Symmetry

    @classmethod
    def of(cls, supercell: Supercell) -> _Place:
        return cls(supercell, Matcher(supercell), find_symmetry(supercell))


class _Places:
    """Finds the supercell and the canonical configuration of each calculation."""

    def __init__(self, host_name: str | None, found: list[FoundResult]) -> None:
        self._host_name = host_name
        self._hosts = _known_hosts(host_name)
        self._hosts += _hosts_of_bulks(self._hosts, host_name, found)
        if not self._hosts:
            raise UnknownNameError(
                f"no host is called {host_name!r}; the catalogue has {', '.join(host_names())}, and a bulk run "
                "brings another one"
            )
        self._by_lattice: dict[tuple[bytes, frozenset[str]], _Place] = {}
        self._by_label: dict[str, _Place] = {}

    def place(self, found: FoundResult) -> tuple[Supercell, Configuration]:
        """Supercell and canonical configuration.

        Raises:
            StructureError: the structure fits no known host.
            InputError: sites are given without host or supercell.
        """
        if found.structure is not None:
            place = self._of_lattice(found.structure)
            configuration = place.matcher.match(found.structure)
        else:
            assert found.configuration is not None
            place, configuration = self._of_label(found.supercell), found.configuration
            check_numbering(found.configuration, place.supercell)
        return place.supercell, canonical_form(place.symmetry, configuration)[0]

    def _of_lattice(self, structure: Structure) -> _Place:
        key = (structure.lattice.tobytes(), frozenset(structure.species))
        if key not in self._by_lattice:
            found = find_supercell(structure, self._hosts)
            known = [p for p in self._by_lattice.values() if _is_same(p.supercell, found)]
            self._by_lattice[key] = known[0] if known else _Place.of(found)
        return self._by_lattice[key]

    def _of_label(self, label: str | None) -> _Place:
        if self._host_name is None or label is None:
            raise InputError(
                "sites are numbers in a supercell; name its host with --host, and give the table a column `supercell`"
            )
        if label not in self._by_label:
            self._by_label[label] = _Place.of(Supercell.parse(self._hosts[0], label))
        return self._by_label[label]


def _known_hosts(host_name: str | None) -> list[Host]:
    if host_name is None:
        return [catalogue_host(name) for name in host_names()]
    try:
        return [catalogue_host(host_name)]
    except UnknownNameError:
        return []  # a bulk run may bring it


def _hosts_of_bulks(known: list[Host], host_name: str | None, found: list[FoundResult]) -> list[Host]:
    """Hosts of those bulk runs that are no supercell of a host that is known."""
    hosts: list[Host] = []
    for result in found:
        if result.level is None or result.structure is None:
            continue
        try:
            find_supercell(result.structure, [*known, *hosts])
        except StructureError:
            host = host_of_bulk(result.structure, host_name)
            hosts += [] if host is None else [host]
    return hosts


def _joined_levels(levels: Sequence[LevelOfTheory | None]) -> list[LevelOfTheory | None]:
    """Each level, joined with those that agree with it on the elements that both have, as in `join_vasp_level`."""
    joined: list[LevelOfTheory] = []
    numbers: list[int | None] = []
    for level in levels:
        if level is None:
            numbers.append(None)
            continue
        fitting = {
            n: shared
            for n, known in enumerate(joined)
            if known.functional == level.functional and (shared := agree(known.settings, level.settings)) is not None
        }
        if fitting:
            number = max(fitting, key=lambda n: fitting[n])
            joined[number] = replace(joined[number], settings=merge(joined[number].settings, level.settings))
        else:
            number = len(joined)
            n_same = sum(known.name.startswith(level.name) for known in joined)
            joined.append(replace(level, name=f"{level.name} ({n_same + 1})") if n_same else level)
        numbers.append(number)
    return [None if number is None else joined[number] for number in numbers]


def _shown(file: Path, path: Path, result: str) -> str:
    """Name of a result: the file below the folder that was given, and the result's name in the file."""
    below = str(file.relative_to(path)) if path.is_dir() else file.name
    return below if result in ("", file.name) else f"{below}: {result}"


def _is_same(one: Supercell, other: Supercell) -> bool:
    return one.host is other.host and one.label == other.label


def _placed(places: _Places, name: str, found: FoundResult) -> PlacedResult:
    if found.structure is None and found.configuration is None:
        raise InputError(found.problem or "it has neither a structure nor sites")
    supercell, configuration = places.place(found)
    if found.problem is not None:
        raise InputError(found.problem)
    return PlacedResult(name, supercell, configuration, found.energy, found.properties, found.level)


def _derive_energies(reading: ResultReading, chemical_potentials: Mapping[str, float]) -> None:
    """Add formation energies to the properties, for which the pristine supercell is among the results."""
    pristine = {_key(r): r.energy for r in reversed(reading.results) if r.configuration.n_defects == 0}
    results, reading.results = reading.results, []
    for result in results:
        energies: Mapping[str, float] = {}
        try:
            energies = derived_energies(
                CalculationResult(result.configuration, result.energy, {}),
                pristine_energy=pristine.get(_key(result)),
                chemical_potentials=chemical_potentials,
            )
        except InputError as error:
            reading.notes.append((result.name, f"no formation energy: {error}"))
        if result.configuration.n_defects > 0:
            properties = {**result.properties, **energies}
            reading.results.append(
                PlacedResult(
                    result.name, result.supercell, result.configuration, result.energy, properties, result.level
                )
            )


def _key(result: PlacedResult) -> tuple[str, str, str | None]:
    """Host, supercell and level of theory: what makes energies comparable."""
    supercell = result.supercell
    return supercell.host.name, supercell.label, result.level.digest if result.level is not None else None
