"""Replay: a data set of finished calculations plays the cluster on which the rounds of a loop are calculated.

The labels of a subset of 2DMD are read once. Those of its training split can be asked for: their configurations are
stored without results, a few are taken in at the beginning, and whenever a loop has proposed a round, the results of
the proposed ones are taken in as if they had been calculated. Those of its validation split are never taken in: what
the loop learns is measured on them, on rows that neither a network nor the choice between two versions has ever seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from screening import __version__
from screening.database import queries, tables
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.dft.bulk_matching import Match, MatchingPool
from screening.dft.dataset_2dmd import LEVEL, Subset, choose_subsets, open_release, read_subset
from screening.dft.results import CalculationResult
from screening.errors import FileFormatError, InputError
from screening.pipeline.hosts import add_configurations, add_supercell
from screening.pipeline.references import add_level
from screening.pipeline.result_rows import NewResult, Origin, store_results

NO_RESULT = "the data set has no result of this configuration"
_DERIVED = ("formation_energy", "formation_energy_per_site")
_OPEN = ("proposed", "exported", "submitted", "waiting")
_HELD_BACK = 0.2  # of the rows, for the measurement, where the data set has no split


@dataclass(frozen=True)
class Label:
    """A finished calculation of the data set.

    Attributes:
        properties: by the names of `screening.dft.results.PROPERTIES`, with the formation energies.
    """

    name: str
    configuration: Configuration
    energy: float
    properties: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Replay:
    """The labels of a subset.

    Attributes:
        dataset: `low_density_defects/MoS2 replayed`.
        supercell: of all of them.
        pool: those that can be asked for, one for each configuration.
        test: those that never can.
        subset: tables of the subset: references and files.
    """

    dataset: str
    supercell: Supercell
    pool: tuple[Label, ...]
    test: tuple[Label, ...]
    subset: Subset


def read_replay(
    path: Path, subset: str | None = None, on_progress: Callable[[int, int, str], None] | None = None
) -> Replay:
    """Read and match the labels of a subset of 2DMD; a few milliseconds for each structure.

    Args:
        path: folder or zip of a release, or of one subset.
        subset: its name in full or by its last part; needed where there are several.
        on_progress: called with structures done, structures in all, and the name of the subset.

    Raises:
        FileFormatError, UnsafeArchiveError: a file cannot be used.
        UnknownNameError: there is no such subset.
        InputError: there are several and none is named.
    """
    with open_release(path) as found, MatchingPool() as matching:
        places = choose_subsets(found, () if subset is None else (subset,))
        if len(places) != 1:
            raise InputError(f"{path} has the subsets {', '.join(p.name for p in places)}; choose one with --subset")
        read = read_subset(places[0])
        labelled = set(read.rows) - set(read.refusals)
        texts = [(name, text) for name, text in read.read_structures() if name in labelled]
        matches: list[Match] = []
        for match in matching.match(texts, read.supercell()):
            matches.append(match)
            if on_progress is not None:
                on_progress(len(matches), len(texts), read.name)
    return _split(read, matches)


def begin(session: Session, replay: Replay, *, n_first: int, seed: int = 0) -> int:
    """Store what the replay can be asked for, and take the results of a few in, drawn at random; their number.

    Again changes nothing.

    Raises:
        InputError: the pool is smaller.
        LevelOfTheoryError: the database has other references.
    """
    if not 0 < n_first <= len(replay.pool):
        raise InputError(
            f"{n_first} results to begin with are asked for; the data set can give 1 to {len(replay.pool)}"
        )
    level_id = add_level(session, LEVEL)
    stored = add_supercell(session, replay.supercell)
    queries.add_chemical_potentials(session, level_id, replay.subset.chemical_potentials)
    if queries.pristine_energy(session, stored.id, level_id) is None:
        pristine = CalculationResult(Configuration((), ()), replay.subset.pristine_energy, {})
        origin = Origin(replay.dataset, _file_id(session, replay, "pristine"))
        store_results(session, stored, level_id, [NewResult("pristine", pristine)], origin=origin)
    add_configurations(session, stored, [label.configuration for label in replay.pool])
    order = np.random.default_rng(seed).permutation(len(replay.pool))
    chosen = [replay.pool[i] for i in order[:n_first].tolist()]
    origin = Origin(replay.dataset, _file_id(session, replay, "targets"))
    store_results(session, stored, level_id, [_new_result(label) for label in chosen], origin=origin)
    return n_first


def play(engine: Engine, replay: Replay, loop_id: int) -> int:
    """Take in the results of what a loop has proposed; how many calculations have an outcome by that.

    A calculation that the data set has no result of fails with that reason.
    """
    with session_scope(engine) as session:
        loop = session.get_one(tables.Loop, loop_id)
        if loop.round_id is None or loop.state != "running":
            return 0
        stored = add_supercell(session, replay.supercell)
        labels = {_key(label.configuration): label for label in replay.pool}
        calculation, configuration = tables.Calculation, tables.Configuration
        proposed = session.execute(
            select(calculation.id, configuration.sites, configuration.defect_types)
            .join(configuration, configuration.id == calculation.configuration_id)
            .where(calculation.round_id == loop.round_id, calculation.state.in_(_OPEN))
            .where(configuration.supercell_id == stored.id)
            .with_for_update(of=calculation)
        ).all()
        if not proposed:
            return 0
        known = {row.id: labels.get((tuple(row.sites), tuple(row.defect_types))) for row in proposed}
        hopeless = [identifier for identifier, label in known.items() if label is None]
        session.execute(
            update(calculation)
            .where(calculation.id.in_(hopeless))
            .values(state="failed", error=NO_RESULT, finished_at=func.now())
        )
        found = [_new_result(label) for label in known.values() if label is not None]
        origin = Origin(replay.dataset, _file_id(session, replay, "targets"))
        store_results(session, stored, loop.level_id, found, origin=origin)
        return len(proposed)


def _split(subset: Subset, matches: Sequence[Match]) -> Replay:
    """Sort the labels into those that can be asked for and those that never can; one for each configuration."""
    labels: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[Label, bool]] = {}
    for match in matches:
        row = subset.rows[match.name]
        if match.configuration is None or match.configuration.n_defects == 0:
            continue
        try:
            properties = subset.properties(row, match.configuration)
        except InputError:
            continue  # an import refuses it with that reason; here it is a label less
        is_test = _is_held_back(match.name) if row.split is None else row.split != "train"
        label = Label(match.name, match.configuration, row.energy, properties)
        labels.setdefault(_key(match.configuration), (label, is_test))
    pool = tuple(label for label, is_test in labels.values() if not is_test)
    test = tuple(label for label, is_test in labels.values() if is_test)
    if not pool or not test:
        raise FileFormatError(
            f"{subset.place.shown} has {len(pool)} usable results to learn from and {len(test)} to measure on; "
            "a replay needs both"
        )
    return Replay(f"{subset.name} replayed", subset.supercell(), pool, test, subset)


def _is_held_back(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < _HELD_BACK * 2.0**64


def _new_result(label: Label) -> NewResult:
    given = {name: value for name, value in label.properties.items() if name not in _DERIVED}
    return NewResult(label.name, CalculationResult(label.configuration, label.energy, given))


def _key(configuration: Configuration) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return configuration.sites, configuration.defect_types


def _file_id(session: Session, replay: Replay, kind: str) -> int:
    file = replay.subset.files[kind]
    return queries.add_source_file(
        session, sha256=file.sha256, path=file.path, kind=file.kind, size=file.size, version=f"screening {__version__}"
    )
