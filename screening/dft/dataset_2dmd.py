"""The 2DMD data set: DFT (VASP, PBE) results for point defects in 2D materials.

Source: Huang et al., npj 2D Mater. Appl. 7, 6 (2023), doi 10.1038/s41699-023-00369-1. A release is a folder, or a
zip of one, with a folder per subset. Of each subset are read

* ``descriptors.csv``: the host's formula and the cell only. Its defects are keyed by the formula of the cell and
  wrong where one species can sit on two sublattices (114 of 500 in h-BN), so defects come from the structures;
* ``elements.csv`` (chemical potentials) and ``initial_structures.csv`` (energies of pristine supercells);
* ``defects.csv.gz`` (total energies) and ``targets.csv.gz`` (properties made from them), also without ``.gz``;
* ``split.csv``, where there is one: which rows are for training, which for validation and which for a test;
* ``initial.tar.gz``: an unrelaxed CIF for each ``_id``, also for those that have no row of results.

Spin sets have levels of two channels, the others the same numbers twice; `homo` is the higher of the two channels'
highest occupied levels (``homo_max`` of the files) and `lumo` the lower of the lowest unoccupied (``lumo_min``).
A fault of a whole file is an error; a fault of one row is a refusal of that row, with its reason.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from screening.defects.catalogue import catalogue_host, host_names
from screening.defects.defect_types import Configuration
from screening.defects.host import Host, Supercell
from screening.dft.archives import archive_members, unpacked
from screening.dft.csv_tables import number, number_of_file, read_table, rows_by
from screening.dft.results import LevelOfTheory, formation_energy
from screening.dft.structures import read_host
from screening.errors import FileFormatError, InputError, UnknownNameError, UnsafeArchiveError

SUBSETS = (
    "low_density_defects/MoS2",
    "low_density_defects/WSe2",
    "high_density_defects/MoS2_500",
    "high_density_defects/WSe2_500",
    "high_density_defects/BP_spin_500",
    "high_density_defects/GaSe_spin_500",
    "high_density_defects/InSe_spin_500",
    "high_density_defects/hBN_spin_500",
)
LEVEL = LevelOfTheory("2DMD PBE", "VASP", "PBE", {"reference": "doi:10.1038/s41699-023-00369-1"})
SPLITS = ("train", "validation", "test")
AGREEMENT = 1e-6  # eV; the files' energies have 8 decimals

_HOST_NAMES = {"BN": "h-BN", "P": "BP"}  # the catalogue's names for the formulas of the files
_MARKS = ("defects.csv", "targets.csv", "initial.tar.gz")
_DEPTH = 4  # folders down to a subset, at most
_CELL = re.compile(r"[\[(]\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*[\])]")
_CHANNEL_COLUMNS = ("homo_majority", "homo_minority", "lumo_majority", "lumo_minority")
_COPIED_COLUMNS = ("homo_lumo_gap_min", "homo_lumo_gap_majority", "homo_lumo_gap_minority", "total_mag")
_TARGET_COLUMNS = ("energy", "formation_energy", "formation_energy_per_site", *_COPIED_COLUMNS, *_CHANNEL_COLUMNS)


@dataclass(frozen=True)
class DataFile:
    """A file of a subset.

    Attributes:
        path: as the user would write it; below the zip's own path where the release is a zip.
        size: bytes.
    """

    path: str
    kind: str
    sha256: str
    size: int


@dataclass(frozen=True)
class ResultRow:
    """One row of results.

    Attributes:
        energy: total energy of the supercell, eV.
        numbers: the other numbers of the row by their columns in ``targets.csv``.
        split: one of `SPLITS`, or None where the release does not say.
    """

    name: str
    energy: float
    numbers: Mapping[str, float]
    split: str | None


@dataclass(frozen=True)
class SubsetFolder:
    """Where a subset lies.

    Attributes:
        name: `low_density_defects/MoS2`.
        shown: the folder as the user would write it.
    """

    name: str
    folder: Path
    shown: str

    def find(self, *names: str) -> Path:
        """The first of these files that is there.

        Raises:
            FileFormatError: none is.
        """
        for name in names:
            if (self.folder / name).is_file():
                return self.folder / name
        raise FileFormatError(f"{self.shown} has no {' or '.join(names)}; a subset of 2DMD needs it")


@dataclass(frozen=True, eq=False)
class Subset:
    """A subset whose tables are read and checked; its structures are read from the archive as a stream.

    Attributes:
        formula: of the host, as in the files: `BN`.
        repeats: numbers of unit cells along the three axes.
        pristine_energy: total energy of the pristine supercell, eV.
        chemical_potentials: (eV per atom, reference phase) by element.
        rows: good rows of results by ``_id``, in the order of the file.
        refusals: reasons by ``_id`` of rows that cannot be used.
        structures: the ``_id`` of every structure of the archive, in its order.
        files: what was read, by kind: defects, targets, structures, pristine.
    """

    place: SubsetFolder
    formula: str
    repeats: tuple[int, int, int]
    pristine_energy: float
    chemical_potentials: Mapping[str, tuple[float, str]]
    rows: Mapping[str, ResultRow]
    refusals: Mapping[str, str]
    structures: Sequence[str]
    files: Mapping[str, DataFile]

    @property
    def name(self) -> str:
        """`low_density_defects/MoS2`."""
        return self.place.name

    def supercell(self) -> Supercell:
        """The supercell of all structures, of the catalogue's host or, if it has none, of the subset's unit cell."""
        name = _HOST_NAMES.get(self.formula, self.formula)
        if name in host_names():
            host: Host = catalogue_host(name)
        else:
            host = read_host(self.place.find(f"unit_cells/{self.formula}.cif"), name)
        repeats = self.repeats[:2] if host.is_layer else self.repeats
        return Supercell.parse(host, "x".join(map(str, repeats)))

    def read_structures(self) -> Iterator[tuple[str, str]]:
        """``_id`` and CIF of every structure, one at a time."""
        for member, content in archive_members(self.place.find("initial.tar.gz")):
            if (name := _structure_name(member)) is not None:
                yield name, content.decode("utf-8", "replace")

    def properties(self, row: ResultRow, configuration: Configuration) -> dict[str, float]:
        """The properties of a row, by the names of `results.PROPERTIES`, for the configuration of its structure.

        The formation energy is computed from total energies and chemical potentials.

        Raises:
            InputError: it is not that of the file, or the structure has no defect.
        """
        if configuration.n_defects == 0:
            raise InputError("its structure is the pristine supercell; expected at least one defect")
        energy = formation_energy(
            configuration,
            row.energy,
            pristine_energy=self.pristine_energy,
            chemical_potentials={element: mu for element, (mu, _) in self.chemical_potentials.items()},
        )
        found = {"formation_energy": energy, "formation_energy_per_site": energy / configuration.n_defects}
        for name, value in found.items():
            if abs(value - row.numbers[name]) > AGREEMENT:
                raise InputError(
                    f"its {name} is {row.numbers[name]:.8f} eV in the file and {value:.8f} eV from its total energy, "
                    f"the chemical potentials and its defects {configuration.composition}; expected the same"
                )
        levels = row.numbers
        return {
            **found,
            **{name: levels[name] for name in _COPIED_COLUMNS},
            "homo": max(levels["homo_majority"], levels["homo_minority"]),
            "lumo": min(levels["lumo_majority"], levels["lumo_minority"]),
        }


@contextmanager
def open_release(path: Path) -> Iterator[list[SubsetFolder]]:
    """The subsets of a release, in the order of `SUBSETS`: a folder, a zip, or the folder of one subset.

    A zip is unpacked into a temporary folder for the length of the block.

    Raises:
        FileFormatError: nothing there looks like a subset.
        UnsafeArchiveError: the zip has a path, a link or a size that is not allowed.
    """
    if path.is_dir():
        yield find_subsets(path, str(path))
        return
    if not path.is_file():
        raise FileFormatError(f"there is no {path}; expected the folder or the zip of a release of 2DMD")
    with unpacked(path) as root:  # a zip of one subset is called by its own name
        yield find_subsets(root, str(path))


def is_release(root: Path) -> bool:
    """Whether a folder is a subset or holds one."""
    return bool(_marked_folders(root))


def find_subsets(root: Path, shown: str) -> list[SubsetFolder]:
    """The subsets in a folder, in the order of `SUBSETS`.

    Args:
        shown: the folder as the user would write it.

    Raises:
        FileFormatError: nothing there looks like a subset, or two are called the same.
    """
    found = _marked_folders(root)
    if not found:
        raise FileFormatError(
            f"{shown} holds no subset of 2DMD; expected folders such as {SUBSETS[0]} with targets.csv.gz, "
            "defects.csv.gz and initial.tar.gz"
        )
    places = []
    for folder in found:
        absolute = folder.resolve()
        inside = absolute.parent.name in {name.partition("/")[0] for name in SUBSETS}
        name = f"{absolute.parent.name}/{absolute.name}" if inside else absolute.name
        relative = folder.relative_to(root)
        places.append(SubsetFolder(name, folder, str(Path(shown) / relative)))
    twice = [name for name, count in Counter(place.name for place in places).items() if count > 1]
    if twice:
        raise FileFormatError(
            f"{shown} holds more than one subset called {twice[0]}; expected one: give its own folder"
        )
    order = {name: i for i, name in enumerate(SUBSETS)}
    return sorted(places, key=lambda place: (order.get(place.name, len(SUBSETS)), place.name))


def choose_subsets(found: Sequence[SubsetFolder], names: Sequence[str]) -> list[SubsetFolder]:
    """The subsets with these names, in full or by an unambiguous last part; all of them without names.

    Raises:
        UnknownNameError: a name fits none of them, or several.
    """
    chosen = []
    for name in names:
        fitting = [s for s in found if s.name == name] or [s for s in found if s.name.rpartition("/")[2] == name]
        if len(fitting) != 1:
            raise UnknownNameError(
                f"{len(fitting)} subsets are called {name!r}; there are {', '.join(s.name for s in found)}"
            )
        chosen += fitting
    return [s for s in found if s in chosen] if names else list(found)


def read_subset(place: SubsetFolder) -> Subset:
    """Read and check the tables of a subset, and list its structures.

    Raises:
        FileFormatError: a file is absent, cut short, or lacks a column; there is more than one host or cell.
        UnsafeArchiveError: the archive of structures has a path, a link or a size that is not allowed.
    """
    try:
        return _read_subset(place)
    except (FileFormatError, UnsafeArchiveError) as error:
        raise type(error)(f"subset {place.name}: {error}") from error


def _read_subset(place: SubsetFolder) -> Subset:
    paths = {
        "defects": place.find("defects.csv.gz", "defects.csv"),
        "targets": place.find("targets.csv.gz", "targets.csv"),
        "structures": place.find("initial.tar.gz"),
        "pristine": place.find("initial_structures.csv"),
    }
    formula, repeats = _host_and_cell(place)
    rows, refusals = _read_rows(place, paths["defects"], paths["targets"])
    structures, repeated = _list_structures(paths["structures"])
    refusals |= {name: f"initial.tar.gz has more than one structure {name}.cif; expected one" for name in repeated}
    for name in rows.keys() - set(structures):
        refusals.setdefault(name, f"initial.tar.gz has no structure {name}.cif for this row of results")
    return Subset(
        place,
        formula,
        repeats,
        _pristine_energy(paths["pristine"], formula, repeats),
        _chemical_potentials(place.find("elements.csv")),
        {name: row for name, row in rows.items() if name not in refusals},
        refusals,
        structures,
        {kind: _data_file(place, path, kind) for kind, path in paths.items()},
    )


def _marked_folders(root: Path) -> list[Path]:
    """The folders below a root (or the root itself) that hold a table of results or structures."""
    folders = [root]
    found = []
    for _ in range(_DEPTH + 1):
        marked = [f for f in folders if any((f / m).is_file() or (f / f"{m}.gz").is_file() for m in _MARKS)]
        found += marked
        folders = [d for f in folders if f not in marked for d in sorted(f.iterdir()) if d.is_dir()]
    return found


def _read_rows(place: SubsetFolder, defects: Path, targets: Path) -> tuple[dict[str, ResultRow], dict[str, str]]:
    """Good rows, and reasons for the others, by ``_id``."""
    energies = rows_by("_id", read_table(defects, ("_id", "energy")))
    properties = rows_by("_id", read_table(targets, ("_id", *_TARGET_COLUMNS)))
    splits = _read_splits(place.folder / "split.csv")
    rows: dict[str, ResultRow] = {}
    refusals: dict[str, str] = {}
    for name in dict.fromkeys([*properties, *energies]):
        try:
            _check_once(name, {defects.name: energies, targets.name: properties})
            numbers = {column: number(properties[name][0], column) for column in _TARGET_COLUMNS}
            energy = number(energies[name][0], "energy")
            if abs(energy - numbers["energy"]) > AGREEMENT:
                raise InputError(
                    f"its energy is {energy:.8f} eV in {defects.name} and {numbers['energy']:.8f} eV in "
                    f"{targets.name}; expected the same"
                )
            rows[name] = ResultRow(name, energy, numbers, splits.get(name))
        except InputError as error:
            refusals[name] = str(error)
    return rows, refusals


def _check_once(name: str, tables: Mapping[str, Mapping[str, Sequence[object]]]) -> None:
    """Make sure that an ``_id`` has one row in each table."""
    for file_name, table in tables.items():
        count = len(table.get(name, ()))
        if count == 0:
            raise InputError(f"unknown _id: {file_name} has no row of it, another table has; expected one in each")
        if count > 1:
            raise InputError(f"duplicate _id: {file_name} has {count} rows of it; expected one")


def _read_splits(path: Path) -> dict[str, str]:
    """One of `SPLITS` by ``_id``; empty without a file, as in the public release."""
    if not path.is_file():
        return {}
    splits = {}
    for row in read_table(path, ("_id", "split")):
        split = row["split"]
        if split not in SPLITS:
            raise FileFormatError(f"{path.name} has the split {split!r}; expected {', '.join(SPLITS)}")
        splits[row["_id"] or ""] = split
    return splits


def _host_and_cell(place: SubsetFolder) -> tuple[str, tuple[int, int, int]]:
    """The formula of the host and the supercell, of which a subset has one."""
    table = read_table(place.find("descriptors.csv"), ("base", "cell"))
    found = {(row["base"] or "", _repeats(row["cell"], "descriptors.csv")) for row in table}
    if len(found) != 1:
        raise FileFormatError(
            f"{place.shown}/descriptors.csv has {len(found)} combinations of host and cell; expected one host "
            "and one cell in a subset"
        )
    return found.pop()


def _repeats(text: str | None, file_name: str) -> tuple[int, int, int]:
    match = _CELL.fullmatch((text or "").strip())
    if match is None:
        raise FileFormatError(f"{file_name} has the cell {text!r}; expected three integers such as [8, 8, 1]")
    a, b, c = map(int, match.groups())
    return a, b, c


def _pristine_energy(path: Path, formula: str, repeats: tuple[int, int, int]) -> float:
    for row in read_table(path, ("base", "cell_size", "energy")):
        if row["base"] == formula and _repeats(row["cell_size"], path.name) == repeats:
            return number_of_file(row, "energy", path)
    raise FileFormatError(f"{path.name} has no pristine energy of {formula} {list(repeats)}; add its row")


def _chemical_potentials(path: Path) -> dict[str, tuple[float, str]]:
    table = read_table(path, ("element", "chemical_potential", "note"))
    return {
        row["element"] or "": (number_of_file(row, "chemical_potential", path), f"2DMD, {row['note']}") for row in table
    }


def _list_structures(path: Path) -> tuple[list[str], set[str]]:
    """The ``_id`` of every structure of an archive, and those that occur twice."""
    names = [name for member, _ in archive_members(path) if (name := _structure_name(member)) is not None]
    counts = Counter(names)
    return list(counts), {name for name, count in counts.items() if count > 1}


def _structure_name(member: str) -> str | None:
    path = PurePosixPath(member)
    return path.stem if path.suffix == ".cif" else None


def _data_file(place: SubsetFolder, path: Path, kind: str) -> DataFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return DataFile(f"{place.shown}/{path.name}", f"2DMD {kind}", digest, path.stat().st_size)
