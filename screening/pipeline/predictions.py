"""Predictions for structure files: which configuration each of them is, then mean and standard deviation.

A model comes from the database or from a file, with the hosts it has learnt from; which supercell of which host a
structure is, its lattice and atoms say, so supercells that no training has seen are found all the same.
The supercell is found once and tried for every following structure; only a structure that does not match it is
compared with all hosts again. Nothing is stored; the result is a CSV file that is written in one step.
"""

from __future__ import annotations

import csv
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import Engine, select

from screening.database import queries, tables
from screening.database.session import session_scope
from screening.defects.catalogue import catalogue_host, host_names
from screening.defects.host import Host, Supercell
from screening.defects.lattices import reduced_basis
from screening.defects.matching import Matcher, Structure, find_supercell
from screening.dft.bulk_matching import Match, MatchingPool
from screening.dft.structures import archive_members, is_archive, parse_structures
from screening.errors import FileFormatError, InputError, LatticeError, UnknownNameError
from screening.pipeline.file_models import seen_supercells
from screening.pipeline.hosts import host_of
from screening.pipeline.pretrained import DEFAULT_MODEL, ModelFile, is_model_path, read_model_file, shipped_models

if TYPE_CHECKING:
    from screening.learning.ensemble import Ensemble

FIRST_ROWS = 20  # that a report has
_ROWS_PER_SCORING = 8192
_WIDE = 0.95
_SAME_DISTANCE = 0.1  # angstrom


@dataclass(frozen=True)
class PredictionReport:
    """What became of the structures.

    Attributes:
        rows: structures that were predicted.
        refusals: name and reason of each one that was not.
        first: the first rows of the file, by column.
    """

    model: str
    rows: int
    seconds: float
    refusals: list[tuple[str, str]]
    first: list[dict[str, object]]


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model with what it needs to predict for structures.

    Attributes:
        level: name of its level of theory.
        hosts: those it has learnt from.
        image_distances: by host, how far apart images of a defect are in the smallest supercell that it has learnt
            from, angstrom.
        is_of_file: whether it came from a file, not from the database.
    """

    name: str
    level: str
    hosts: tuple[Host, ...]
    image_distances: Mapping[str, float]
    ensemble: Ensemble
    is_of_file: bool


@dataclass(eq=False)
class _Reader:
    """Structures to configurations, remembering the supercells that occurred."""

    hosts: Sequence[Host]
    supercells: list[Supercell] = field(default_factory=list)
    matchers: list[Matcher] = field(default_factory=list)

    def identify(self, structure: Structure) -> tuple[int, Match]:
        """Number of the supercell and match of a structure; -1 where it matches no supercell of any host."""
        try:
            number = self.number_of(find_supercell(structure, self.hosts))
            return number, Match(structure.name, self.matchers[number].match(structure))
        except LatticeError as error:
            return -1, Match(structure.name, None, reason=self._other_host(structure) or str(error))
        except InputError as error:
            return -1, Match(structure.name, None, reason=str(error))

    def _other_host(self, structure: Structure) -> str | None:
        """That a structure is of a host of the catalogue which the model has not learnt from, if it is."""
        known = [host.name for host in self.hosts]
        try:
            found = find_supercell(structure, [catalogue_host(name) for name in host_names() if name not in known])
        except InputError:
            return None
        return (
            f"structure {structure.name} has the lattice of the {found.label} supercell of {found.host.name}; the "
            f"model has learnt from the hosts {', '.join(known)}: train one on results of {found.host.name}"
        )

    def number_of(self, supercell: Supercell) -> int:
        """Number of a supercell, remembered if it is new."""
        for number, known in enumerate(self.supercells):
            if known.host is supercell.host and (known.matrix == supercell.matrix).all():
                return number
        self.supercells.append(supercell)
        self.matchers.append(Matcher(supercell))
        return len(self.supercells) - 1


def stored_predictor(engine: Engine, name: str | None = None) -> Predictor:
    """A model of the database, by default the one that `screening.database.queries.model_by_name` takes.

    Raises:
        UnknownNameError: there is none.
        InputError: it is not finished.
    """
    from screening.learning.artifacts import ensemble_from_bytes

    with session_scope(engine) as session:
        model = queries.model_by_name(session, name)
        assert model.weights is not None
        ensemble = ensemble_from_bytes(model.weights)
        level = session.get_one(tables.LevelOfTheory, model.level_id).name
        rows = session.scalars(select(tables.Host).where(tables.Host.name.in_(ensemble.references.hosts)))
        hosts = tuple(host_of(row) for row in rows)
        distances = _image_distances(hosts, seen_supercells(session, model.id))
        return Predictor(model.name, level, hosts, distances, ensemble, is_of_file=False)


def file_predictor(model: ModelFile) -> Predictor:
    """A model of a file.

    Raises:
        FileFormatError: its weights and its card do not fit each other, or this version.
    """
    ensemble = model.ensemble()
    hosts = tuple(host for host in model.card.hosts if host.name in ensemble.references.hosts)
    distances = _image_distances(hosts, model.card.supercells)
    return Predictor(model.card.name, model.card.level.name, hosts, distances, ensemble, is_of_file=True)


def choose_predictor(engine: Engine | None, name: str | None = None) -> Predictor:
    """The model to predict with: one of the database where it has any, else one that comes with the package.

    Args:
        engine: of the project's database; None where there is no project.
        name: a model of the database, one that the package ships, or the path of a file; the database's newest, or
            else the package's own, if not given.

    Raises:
        UnknownNameError: there is none of this name.
        FileFormatError: a file is no model that this version reads.
    """
    if name is not None and is_model_path(name):
        return file_predictor(read_model_file(Path(name)))
    if engine is not None:
        try:
            return stored_predictor(engine, name)
        except UnknownNameError:
            if name is not None and name not in shipped_models():
                raise
    return file_predictor(read_model_file(name or DEFAULT_MODEL))


def predict_files(
    predictor: Predictor,
    files: Sequence[Path],
    output: Path,
    *,
    device: str = "auto",
    on_progress: Callable[[int], None] | None = None,
) -> PredictionReport:
    """Predict the properties of every structure in files and archives, and write them as CSV.

    Columns: `name`, `configuration`, `n_defects`, then `<property>_mean` and `<property>_std` (eV, Bohr magneton), then
    `sites`, `host`, `supercell`, `model` and its `level` of theory, then `<property>_half_width_95` of the interval
    around the mean that should hold 95 % of the true values, and `beyond_training`: why the configuration is far from
    what the model has learnt from, empty where it is not. Structures that cannot be predicted are in the report, not in
    the file, which is replaced in one step at the end.

    Raises:
        InputError: a file is not there, or an archive as a whole cannot be read; nothing is written.
    """
    started = time.monotonic()
    for path in files:
        if not path.is_file():
            raise FileFormatError(f"{path} is not a file; give structure files, or an archive of them")
    if not output.parent.is_dir():
        raise InputError(f"there is no folder {output.parent} for the file {output.name}; make it first")
    reader = _Reader(predictor.hosts)
    matches: list[tuple[int, Match]] = []
    for match in itertools.chain.from_iterable(_read(path, reader) for path in files):
        matches.append(match)
        if on_progress is not None and len(matches) % 50 == 0:
            on_progress(len(matches))
    matches = [_checked(number, match, reader, predictor.ensemble) for number, match in matches]
    first = _write(output, predictor, reader, matches, device=device)
    refusals = [(match.name, match.reason) for _, match in matches if match.configuration is None]
    seconds = round(time.monotonic() - started, 2)
    return PredictionReport(predictor.name, len(matches) - len(refusals), seconds, refusals, first)


def _read(path: Path, reader: _Reader) -> Iterator[tuple[int, Match]]:
    """Matches of the structures of one file, in its order."""
    if not is_archive(path):
        yield from _one(path.name, path.read_bytes(), reader)
        return
    members = archive_members(path)
    for name, content in members:
        found = list(_one(name, content, reader))
        yield from found
        if PurePosixPath(name).suffix == ".cif" and found[0][0] >= 0:
            yield from _read_likes(members, found[0][0], reader)


def _read_likes(members: Iterator[tuple[str, bytes]], number: int, reader: _Reader) -> Iterator[tuple[int, Match]]:
    """Matches of the remaining files of an archive, which are CIFs of one supercell for the most part.

    They go to processes; what does not match there is looked at again.
    """
    ahead: deque[tuple[str, bytes]] = deque()

    def texts() -> Iterator[tuple[str, str]]:
        for name, content in members:
            ahead.append((name, content))
            yield PurePosixPath(name).stem, content.decode(errors="replace")

    with MatchingPool() as pool:
        for match in pool.match(texts(), reader.supercells[number]):
            name, content = ahead.popleft()  # matches come in the order of the texts
            if match.configuration is not None:
                yield number, match
            else:
                yield from _one(name, content, reader)


def _one(name: str, content: bytes, reader: _Reader) -> Iterator[tuple[int, Match]]:
    """Matches of one file, alone or of an archive; a file that cannot be read costs its own row only."""
    try:
        structures = parse_structures(name, content)
    except InputError as error:
        yield -1, Match(PurePosixPath(name).stem, None, reason=str(error))
        return
    yield from map(reader.identify, structures)


def _checked(number: int, match: Match, reader: _Reader, ensemble: Ensemble) -> tuple[int, Match]:
    """The match, or its refusal where the model cannot say anything of the configuration."""
    if match.configuration is None:
        return number, match
    if match.configuration.n_defects == 0:
        return number, Match(match.name, None, reason="it is the pristine supercell; the model predicts defects")
    try:
        ensemble.references.check(reader.supercells[number].host.name, match.configuration.defect_types)
    except InputError as error:
        return number, Match(match.name, None, reason=str(error))
    return number, match


def _write(
    output: Path, predictor: Predictor, reader: _Reader, matches: Sequence[tuple[int, Match]], *, device: str
) -> list[dict[str, object]]:
    """Score block by block in the order of the structures, and replace the file at the end; its first rows."""
    properties = predictor.ensemble.properties
    columns = [
        "name", "configuration", "n_defects",
        *(f"{name}_{part}" for name in properties for part in ("mean", "std")),
        "sites", "host", "supercell", "model", "level",
        *(f"{name}_half_width_95" for name in properties), "beyond_training",
    ]  # fmt: skip
    accepted = [(number, match) for number, match in matches if match.configuration is not None]
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    first: list[dict[str, object]] = []
    try:
        with partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for start in range(0, len(accepted), _ROWS_PER_SCORING):
                block = accepted[start : start + _ROWS_PER_SCORING]
                rows = _rows(predictor, reader, block, device=device)
                writer.writerows(rows)
                first += [dict(zip(columns, row, strict=True)) for row in rows[: FIRST_ROWS - len(first)]]
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return first


def _rows(
    predictor: Predictor, reader: _Reader, block: Sequence[tuple[int, Match]], *, device: str
) -> list[list[object]]:
    """CSV rows of a block of matches."""
    from screening.learning.scorer import score_configurations

    ensemble = predictor.ensemble
    rows: list[list[object]] = [[]] * len(block)
    for number in {number for number, _ in block}:
        supercell = reader.supercells[number]
        chosen = [i for i, (n, _) in enumerate(block) if n == number]
        configurations = [found for i in chosen if (found := block[i][1].configuration) is not None]
        mean, std = score_configurations(ensemble, supercell, configurations, device=device)
        n_defects = np.array([configuration.n_defects for configuration in configurations], np.int64)
        half_width = ensemble.half_width(_WIDE, std, [supercell.host.name] * len(chosen), n_defects)
        too_small = _near_images(supercell, predictor)
        beyond = [
            "; ".join(filter(None, (too_small, reason)))
            for reason in ensemble.novelty.reasons(supercell, configurations)
        ]
        for row, i in enumerate(chosen):
            configuration = configurations[row]
            rows[i] = [
                block[i][1].name, configuration.composition, configuration.n_defects,
                *(f"{v:.6f}" for pair in zip(mean[row], std[row], strict=True) for v in pair),
                " ".join(map(str, configuration.sites)), supercell.host.name, supercell.label, predictor.name,
                predictor.level, *(f"{v:.6f}" for v in half_width[row]), beyond[row],
            ]  # fmt: skip
    return rows


def _near_images(supercell: Supercell, predictor: Predictor) -> str:
    """That images of a defect are nearer in a supercell than in any that was learnt from; empty if they are not."""
    seen, distance = predictor.image_distances.get(supercell.host.name, 0.0), _image_distance(supercell)
    if distance > seen - _SAME_DISTANCE:
        return ""
    return f"images of a defect are {distance:.1f} angstrom apart, at least {seen:.1f} were seen"


def _image_distances(hosts: Sequence[Host], labels: Mapping[str, Sequence[str]]) -> dict[str, float]:
    return {
        host.name: min(_image_distance(Supercell.parse(host, label)) for label in labels[host.name])
        for host in hosts
        if labels.get(host.name)
    }


def _image_distance(supercell: Supercell) -> float:
    """Distance from a site to its nearest periodic image, angstrom."""
    periodic = supercell.lattice[: 2 if supercell.host.is_layer else 3]
    return float(np.linalg.norm(reduced_basis(periodic), axis=1).min())
