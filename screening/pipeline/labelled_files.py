"""Labelled configurations out of files, without a database: for evaluations, and for trainings outside of a project.

Read are a release in the layout of 2DMD (folder, archive, or one subset of it), finished calculations as `screening
results add` takes them (vasprun.xml, extxyz and CSV files, their folder or an archive of them), and the data set
that the package ships. The parsers and the matching are those of the import. Configurations are in canonical form,
and of several calculations of one configuration at one level of theory the first one counts, so that rows from
files are the rows that a database would hold.

Formation energies of single files need the pristine supercell among them and chemical potentials; where these are
missing, the label is absent and `notes` says why.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.dft import builtin
from screening.dft.archives import is_archive, unpacked
from screening.dft.bulk_matching import MatchingPool
from screening.dft.dataset_2dmd import LEVEL, SubsetFolder, choose_subsets, find_subsets, is_release, read_subset
from screening.dft.result_files import kind_of
from screening.dft.results import PROPERTIES, LevelOfTheory
from screening.errors import FileFormatError, InputError
from screening.pipeline.labelled_results import GivenReferences, ResultReading, read_results

if TYPE_CHECKING:
    from screening.learning.dataset import LabelledRows

_CARD = b"# {"  # how the text of a shipped data set begins
OnProgress = Callable[[int, int, str], None]
"""Called with structures done, structures in all, and the name of the subset or file."""


@dataclass(frozen=True)
class Selection:
    """Which rows are wanted; what is not wanted is not matched, which is most of the time.

    Attributes:
        subsets: of a release: names in full or by their last part; all if empty.
        splits: train, validation, test, or none for rows that their data set assigns to no split; all rows if empty.
    """

    subsets: Collection[str] = ()
    splits: Collection[str] = ()

    def takes(self, split: str | None) -> bool:
        """Whether rows of this split are wanted."""
        return not self.splits or (split or "none") in self.splits


EVERYTHING = Selection()
NO_REFERENCES = GivenReferences()


@dataclass(frozen=True, eq=False)
class LabelledFiles:
    """Labelled configurations; n of them, none pristine, each once at its level of theory.

    Attributes:
        supercells: the supercells that occur, each once.
        supercell_of_row: (n,) int64, index into them.
        configurations: in canonical form.
        properties: names of the columns of `labels`: those that any row has, in the order of `results.PROPERTIES`.
        labels: (n, n_properties) float64, eV or Bohr magneton, NaN where a value is absent.
        subsets: names of the subsets, `low_density_defects/MoS2`.
        group_of_row: (n,) int64, index into them.
        names: identifier of each row in its subset.
        splits: train, validation or test of each row; None where its data set does not say.
        levels: level of theory of each subset; None where its files do not say.
        n_unlabelled: structures and rows without any label.
        refusals: (name, reason) of what cannot be used.
        repeats: (name, which row it repeats) of further calculations of a configuration.
        notes: (name, remark) of rows without a formation energy.
        digest: SHA-256 of the contents of the files that were read.
    """

    supercells: tuple[Supercell, ...]
    supercell_of_row: NDArray[np.int64]
    configurations: tuple[Configuration, ...]
    properties: tuple[str, ...]
    labels: NDArray[np.float64]
    subsets: tuple[str, ...]
    group_of_row: NDArray[np.int64]
    names: tuple[str, ...]
    splits: tuple[str | None, ...]
    levels: tuple[LevelOfTheory | None, ...]
    n_unlabelled: int
    refusals: tuple[tuple[str, str], ...]
    repeats: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...]
    digest: str

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.names)

    @property
    def n_defects(self) -> NDArray[np.int64]:
        """(n,) int64: number of defects of each row."""
        return np.array([configuration.n_defects for configuration in self.configurations], np.int64)

    def chosen(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> LabelledFiles:
        """The same with these rows only, by a mask (n,) or by their numbers; subsets keep their numbers."""
        numbers = np.arange(self.n_rows)[rows].tolist()
        return replace(
            self,
            supercell_of_row=self.supercell_of_row[numbers],
            configurations=tuple(self.configurations[i] for i in numbers),
            labels=self.labels[numbers],
            group_of_row=self.group_of_row[numbers],
            names=tuple(self.names[i] for i in numbers),
            splits=tuple(self.splits[i] for i in numbers),
        )

    def rows(self, is_validation: NDArray[np.bool_] | None = None) -> LabelledRows:
        """The rows as a training takes them.

        Args:
            is_validation: (n,) which rows a training must not see; by default those of the splits validation and
                test.

        Raises:
            InputError: as `LabelledRows` says.
        """
        from screening.learning.dataset import LabelledRows

        if is_validation is None:
            is_validation = np.array([split in ("validation", "test") for split in self.splits], bool)
        return LabelledRows(
            supercells=self.supercells,
            supercell_of_row=self.supercell_of_row,
            configurations=self.configurations,
            properties=self.properties,
            labels=self.labels,
            is_validation=is_validation,
            group_of_row=self.group_of_row,
        )


def read_labelled(
    path: Path,
    *,
    selection: Selection = EVERYTHING,
    references: GivenReferences = NO_REFERENCES,
    on_progress: OnProgress | None = None,
) -> LabelledFiles:
    """Read labelled configurations; 2DMD's 11,893 rows take 40 s on two cores.

    Raises:
        FileFormatError: nothing there is of a known layout, or a file of a subset cannot be used as a whole.
        UnsafeArchiveError: an archive has a path, link or size that is not allowed.
        UnknownNameError: a subset is not there.
        InputError: no row is left.
    """
    collected = _Collected()
    with _folder_or_file(path) as place:
        if place.is_dir() and is_release(place):
            places = choose_subsets(find_subsets(place, str(path)), list(selection.subsets))
            _collect_release(collected, places, selection, on_progress)
        elif place.is_file() and _is_shipped(place):
            _collect_shipped(collected, builtin.read(place), selection)
        else:
            _collect_results(collected, read_results(place, references, on_progress=on_progress), selection)
    return collected.finished(str(path), selection)


@dataclass(frozen=True)
class _Row:
    name: str
    subset: int
    supercell: int
    configuration: Configuration
    properties: Mapping[str, float]
    split: str | None


class _Collected:
    """Rows as they are found, and what became of the others."""

    def __init__(self) -> None:
        self.refusals: list[tuple[str, str]] = []
        self.repeats: list[tuple[str, str]] = []
        self.notes: list[tuple[str, str]] = []
        self.digests: list[str] = []
        self.n_unlabelled = 0
        self._rows: list[_Row] = []
        self._subsets: dict[str, int] = {}
        self._levels: list[LevelOfTheory | None] = []
        self._supercells: list[Supercell] = []
        self._numbers: dict[tuple[str, bytes, bytes], int] = {}
        self._taken: dict[tuple[int, str | None, Configuration], str] = {}

    def subset(self, name: str, level: LevelOfTheory | None) -> int:
        """Number of a subset."""
        if name not in self._subsets:
            self._levels.append(level)
        return self._subsets.setdefault(name, len(self._subsets))

    def supercell(self, supercell: Supercell) -> int:
        """Number of a supercell; equal ones have one number, since graphs and symmetry are kept by object."""
        host = supercell.host
        key = (host.name, (supercell.matrix @ host.lattice).tobytes(), host.positions.tobytes())
        if key not in self._numbers:
            self._supercells.append(supercell)
        return self._numbers.setdefault(key, len(self._numbers))

    def add(self, row: _Row) -> None:
        """Take a row in, unless its configuration has one at its level of theory or it has no label."""
        if not row.properties:
            self.n_unlabelled += 1
            return
        level = self._levels[row.subset]
        key = (row.supercell, level.digest if level is not None else None, row.configuration)
        if key in self._taken:
            self.repeats.append((row.name, f"the same configuration as {self._taken[key]}"))
            return
        self._taken[key] = row.name
        self._rows.append(row)

    def finished(self, shown: str, selection: Selection) -> LabelledFiles:
        """What was found, as arrays."""
        if not self._rows:
            wanted = f" of the splits {', '.join(selection.splits)}" if selection.splits else ""
            first = "; the first of them: {}: {}".format(*self.refusals[0]) if self.refusals else ""
            raise InputError(
                f"{shown} has no labelled row{wanted}: {self.n_unlabelled} have no label, {len(self.refusals)} are "
                f"refused{first}"
            )
        rows = self._rows
        properties = tuple(name for name in PROPERTIES if any(name in row.properties for row in rows))
        labels = [[row.properties.get(name, np.nan) for name in properties] for row in rows]
        return LabelledFiles(
            supercells=tuple(self._supercells),
            supercell_of_row=np.array([row.supercell for row in rows], np.int64),
            configurations=tuple(row.configuration for row in rows),
            properties=properties,
            labels=np.array(labels, np.float64),
            subsets=tuple(self._subsets),
            group_of_row=np.array([row.subset for row in rows], np.int64),
            names=tuple(row.name for row in rows),
            splits=tuple(row.split for row in rows),
            levels=tuple(self._levels),
            n_unlabelled=self.n_unlabelled,
            refusals=tuple(self.refusals),
            repeats=tuple(self.repeats),
            notes=tuple(self.notes),
            digest=hashlib.sha256("".join(sorted(self.digests)).encode()).hexdigest(),
        )


@contextmanager
def _folder_or_file(path: Path) -> Iterator[Path]:
    """The path itself, or the folder that an archive is unpacked into for the length of the block."""
    if path.is_file() and is_archive(path):
        with unpacked(path) as root:
            yield root
        return
    if not path.exists():
        raise FileFormatError(
            f"there is no {path}; expected a release in the layout of 2DMD, or vasprun.xml(.gz), extxyz or CSV files"
        )
    yield path


def _collect_release(
    collected: _Collected, places: Sequence[SubsetFolder], selection: Selection, on_progress: OnProgress | None
) -> None:
    with MatchingPool() as pool:
        for place in places:
            subset = read_subset(place)
            number = collected.subset(subset.name, LEVEL)
            supercell = subset.supercell()
            supercell_number = collected.supercell(supercell)
            collected.digests += [file.sha256 for file in subset.files.values()]
            collected.refusals += subset.refusals.items()
            known = subset.rows.keys() | subset.refusals.keys()
            collected.n_unlabelled += sum(name not in known for name in subset.structures)
            wanted = {name for name, row in subset.rows.items() if selection.takes(row.split)}
            texts = ((name, text) for name, text in subset.read_structures() if name in wanted)
            for done, match in enumerate(pool.match(texts if wanted else (), supercell), start=1):
                if on_progress is not None:
                    on_progress(done, len(wanted), subset.name)
                row = subset.rows[match.name]
                try:
                    if match.configuration is None:
                        raise InputError(match.reason)
                    properties = subset.properties(row, match.configuration)
                except InputError as error:
                    collected.refusals.append((match.name, str(error)))
                    continue
                collected.add(_Row(match.name, number, supercell_number, match.configuration, properties, row.split))


def _is_shipped(path: Path) -> bool:
    """Whether a file is a data set as `screening dataset build` writes it."""
    if kind_of(path) != "csv" or path.suffix != ".gz":
        return False
    try:
        with gzip.open(path) as stream:
            return stream.read(len(_CARD)) == _CARD
    except (OSError, EOFError):
        return False  # whoever reads it as a table says what is wrong with it


def _collect_shipped(collected: _Collected, dataset: builtin.BuiltinDataset, selection: Selection) -> None:
    card = dataset.card
    number = collected.subset(card.name, card.level_of_theory)
    supercell_number = collected.supercell(dataset.supercell)
    collected.digests.append(dataset.sha256)
    for row in dataset.rows:
        if row.error is not None:
            collected.refusals.append((row.name, row.error))
        elif selection.takes(row.split):
            properties = {name: row.numbers[name] for name in PROPERTIES if name in row.numbers}
            properties["formation_energy_per_site"] = properties["formation_energy"] / row.configuration.n_defects
            collected.add(_Row(row.name, number, supercell_number, row.configuration, properties, row.split))


def _collect_results(collected: _Collected, reading: ResultReading, selection: Selection) -> None:
    collected.refusals += reading.refusals
    collected.notes += reading.notes
    collected.digests += reading.digests
    for result in reading.results:
        supercell = result.supercell
        of_level = "" if result.level is None else f" {result.level.name}"
        number = collected.subset(f"{supercell.host.name} {supercell.label}{of_level}", result.level)
        if selection.takes(None):
            collected.add(
                _Row(result.name, number, collected.supercell(supercell), result.configuration, result.properties, None)
            )
