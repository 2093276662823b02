"""Predictions for structure files: which configuration each of them is, then mean and standard deviation.

The supercell is found once and tried for every following structure; only a structure that does not match it is
compared with all hosts again. Nothing is stored; the result is a CSV file that is written in one step.
"""

from __future__ import annotations

import csv
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sqlalchemy import Engine, select

from screening.database import queries, tables
from screening.database.session import session_scope
from screening.defects.host import Host, Supercell
from screening.defects.matching import Matcher, Structure, find_supercell
from screening.dft.bulk_matching import Match, MatchingPool
from screening.dft.structures import archive_members, is_archive, parse_structures
from screening.errors import FileFormatError, InputError
from screening.pipeline.hosts import host_of

if TYPE_CHECKING:
    from screening.learning.ensemble import Ensemble

_ROWS_PER_SCORING = 8192


@dataclass(frozen=True)
class PredictionReport:
    """What became of the structures.

    Attributes:
        rows: structures that were predicted.
        refusals: name and reason of each one that was not.
    """

    model: str
    rows: int
    seconds: float
    refusals: list[tuple[str, str]]


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
        except InputError as error:
            return -1, Match(structure.name, None, reason=str(error))

    def number_of(self, supercell: Supercell) -> int:
        """Number of a supercell, remembered if it is new."""
        for number, known in enumerate(self.supercells):
            if known.host is supercell.host and (known.matrix == supercell.matrix).all():
                return number
        self.supercells.append(supercell)
        self.matchers.append(Matcher(supercell))
        return len(self.supercells) - 1


def predict_files(
    engine: Engine,
    files: Sequence[Path],
    output: Path,
    *,
    model_name: str | None = None,
    device: str = "auto",
    on_progress: Callable[[int], None] | None = None,
) -> PredictionReport:
    """Predict the properties of every structure in files and archives, and write them as CSV.

    Columns: `name`, `configuration`, `n_defects`, then `<property>_mean` and `<property>_std` (eV, Bohr magneton), then
    `sites`, `host`, `supercell`, `model` and its `level` of theory. Structures that cannot be predicted are in the
    report, not in the file, which is replaced in one step at the end.

    Raises:
        InputError: a file is not there, or an archive as a whole cannot be read; nothing is written.
    """
    from screening.learning.artifacts import ensemble_from_bytes

    started = time.monotonic()
    for path in files:
        if not path.is_file():
            raise FileFormatError(f"{path} is not a file; give structure files, or an archive of them")
    if not output.parent.is_dir():
        raise InputError(f"there is no folder {output.parent} for the file {output.name}; make it first")
    with session_scope(engine) as session:
        model = queries.model_by_name(session, model_name)
        assert model.weights is not None
        ensemble, name = ensemble_from_bytes(model.weights), model.name
        level = session.get_one(tables.LevelOfTheory, model.level_id).name
        rows = session.scalars(select(tables.Host).where(tables.Host.name.in_(ensemble.references.hosts)))
        hosts = [host_of(row) for row in rows]
    reader = _Reader(hosts)
    matches: list[tuple[int, Match]] = []
    for match in itertools.chain.from_iterable(_read(path, reader) for path in files):
        matches.append(match)
        if on_progress is not None and len(matches) % 50 == 0:
            on_progress(len(matches))
    matches = [_checked(number, match, reader, ensemble) for number, match in matches]
    _write(output, (name, level), reader, ensemble, matches, device)
    refusals = [(match.name, match.reason) for _, match in matches if match.configuration is None]
    return PredictionReport(name, len(matches) - len(refusals), round(time.monotonic() - started, 2), refusals)


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
    output: Path,
    origin: tuple[str, str],
    reader: _Reader,
    ensemble: Ensemble,
    matches: Sequence[tuple[int, Match]],
    device: str,
) -> None:
    """Score block by block in the order of the structures, and replace the file at the end."""
    values = [f"{name}_{part}" for name in ensemble.properties for part in ("mean", "std")]
    accepted = [(number, match) for number, match in matches if match.configuration is not None]
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["name", "configuration", "n_defects", *values, "sites", "host", "supercell", "model", "level"]
            )
            for start in range(0, len(accepted), _ROWS_PER_SCORING):
                writer.writerows(_rows(origin, reader, ensemble, accepted[start : start + _ROWS_PER_SCORING], device))
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _rows(
    origin: tuple[str, str], reader: _Reader, ensemble: Ensemble, block: Sequence[tuple[int, Match]], device: str
) -> list[list[object]]:
    """CSV rows of a block of matches; `origin` is the model and its level of theory."""
    from screening.learning.scorer import score_configurations

    rows: list[list[object]] = [[]] * len(block)
    for number in {number for number, _ in block}:
        supercell = reader.supercells[number]
        chosen = [i for i, (n, _) in enumerate(block) if n == number]
        configurations = [found for i in chosen if (found := block[i][1].configuration) is not None]
        mean, std = score_configurations(ensemble, supercell, configurations, device=device)
        for row, i in enumerate(chosen):
            configuration = configurations[row]
            predicted = [f"{v:.6f}" for pair in zip(mean[row], std[row], strict=True) for v in pair]
            sites = " ".join(map(str, configuration.sites))
            rows[i] = [
                block[i][1].name, configuration.composition, configuration.n_defects, *predicted,
                sites, supercell.host.name, supercell.label, *origin,
            ]  # fmt: skip
    return rows
