"""Rounds that are calculated elsewhere: a folder of inputs for each calculation, and the way back.

`export_round` writes POSCAR, INCAR, KPOINTS and the names of the POTCARs of each calculation, a manifest that says
which folder is whose, and a script for Slurm; then the calculations count as exported. `import_round` reads the
folders again: what is done finishes its calculation, what failed fails it with the reason, and a run that is not of
the folder's configuration or not at the round's level is refused. Both can be repeated at any time.

Where the round's level has no pristine run of the supercell yet, the pristine supercell is calculated along: without
it there are no formation energies.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import queries, rounds, tables
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration
from screening.dft.results import LevelOfTheory
from screening.dft.slurm_array import array_script
from screening.dft.structures import write_structure
from screening.dft.vasp_inputs import input_settings, write_inputs
from screening.errors import InputError
from screening.pipeline.expected_runs import in_words, set_aside
from screening.pipeline.hosts import add_configurations, load_supercell
from screening.pipeline.references import elements_of
from screening.pipeline.result_intake import IntakeOptions, drop_completed, take_files
from screening.pipeline.result_rows import IntakeReport, Ledger, add_failure
from screening.pipeline.round_manifests import MANIFEST, expected_runs, read_manifest
from screening.pipeline.watched_folders import ABANDONED_S

SCRIPT = "run.sbatch"
_PRISTINE = "pristine reference of the formation energies of the round"


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        folders: of the calculations whose inputs were written, by id.
        notes: what the user should know: calculations that failed too often, references that are missing.
    """

    round_name: str
    folder: Path
    folders: Mapping[int, Path]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ImportReport:
    """What the folders of a round held.

    Attributes:
        intake: what became of the files.
        without_result: ids of the calculations in whose folders there is no output yet.
        being_written: ids of the calculations whose runs are still writing their output, which is left alone.
        states: how many calculations of the round are in each state afterwards.
    """

    round_name: str
    intake: IntakeReport
    without_result: tuple[int, ...]
    being_written: tuple[int, ...]
    states: Mapping[str, int]


@dataclass(frozen=True)
class _Inputs:
    """How inputs are written: settings beside those of the level, and structures alone."""

    level: LevelOfTheory
    extra: Mapping[str, Any] | None
    only_structures: bool


def export_round(
    session: Session, round_id: int, folder: Path, *, settings: Mapping[str, Any] | None = None,
    retry_failed: bool = False, only_structures: bool = False,
) -> ExportReport:  # fmt: skip
    """Write the inputs of a round's calculations that are proposed or exported; again writes the same.

    The caller ends the transaction: calculations count as exported once the files are there.

    Args:
        settings: what the level of theory leaves open (screening.dft.vasp_inputs).
        retry_failed: also those that failed, up to three attempts in all.
        only_structures: POSCARs and the manifest, for another code than VASP.

    Raises:
        InputError: nothing is to be exported, the folder holds something else, or inputs cannot be made.
    """
    round_ = session.get_one(tables.Round, round_id)
    row = rounds.level_of_round(session, round_)
    level = LevelOfTheory(row.name, row.code, row.functional, row.settings)
    inputs = _Inputs(level, settings, only_structures)
    known = read_manifest(folder, round_id=round_id) if folder.exists() else {}
    used = {} if only_structures else input_settings(level, settings)
    notes: list[str] = []
    _add_pristine(session, round_, notes)
    chosen = _choose(session, round_id, retry_failed=retry_failed, notes=notes)
    entries = {int(entry["calculation"]): entry for entry in known.get("calculations", [])}
    try:
        for calculation in chosen:
            before = entries.get(calculation.id)
            if before is not None and before["attempt"] < calculation.attempts:
                notes += set_aside(folder / before["folder"], before["attempt"])
            entries[calculation.id] = _write_calculation(session, folder, calculation, inputs)
        _write_round(folder, _name(round_), level, [f"calculation-{c.id}" for c in chosen], only_structures)
        of_round = {"round": round_id, "name": round_.name, "level": level.name, "settings": used}
        _write_json(folder / MANIFEST, of_round | {"calculations": [entries[i] for i in sorted(entries)]})
    except OSError as error:
        raise InputError(f"inputs cannot be written into {folder}: {error}; name another folder") from error
    round_.folder = str(folder.resolve())
    session.flush()
    notes += _missing_references(session, chosen, row.id)
    return ExportReport(_name(round_), folder, {c.id: folder / f"calculation-{c.id}" for c in chosen}, tuple(notes))


def import_round(
    engine: Engine, folder: Path, *, chemical_potentials: Mapping[str, float] | None = None,
    abandoned_s: float = ABANDONED_S, on_progress: Callable[[int, int, str], None] | None = None,
) -> ImportReport:  # fmt: skip
    """Take in what the folders of an exported round hold; again changes nothing.

    Args:
        abandoned_s: a run that is not complete and has not changed for so long was cut short.

    Raises:
        FileFormatError: the folder has no manifest of a round, or one that cannot be read.
        UnknownNameError: the database has no such round.
        InputError: the manifest is that of another database.
    """
    runs = expected_runs(engine, folder, abandoned_s=abandoned_s)
    options = IntakeOptions(runs.level_name, chemical_potentials=dict(chemical_potentials or {}))
    ledger = Ledger()
    for found in take_files(engine, list(runs.files), options, expected=runs.files, on_progress=on_progress).values():
        ledger.add(found)
    with session_scope(engine) as session:
        drop_completed(session, ledger)
        states = [row["state"] for row in rounds.round_rows(session, runs.round_id)]
    counts = {state: states.count(state) for state in rounds.STATES if state in states}
    return ImportReport(runs.round_name, ledger.report(), runs.without_result, runs.being_written, counts)


def fail_submitted(session: Session, round_id: int, reason: str, *, job: str | None = None) -> int:
    """Let what is submitted, of one job or of all, fail: the job was cancelled or lost; how many calculations.

    Raises:
        InputError: there is no reason, or nothing is submitted.
    """
    if not reason.strip():
        raise InputError("the reason is empty; say in a word what became of the job")
    submitted = rounds.lock_calculations(session, round_id, ["submitted"])
    lost = [calculation for calculation in submitted if job in (None, calculation.job)]
    if not lost:
        jobs = ", ".join(sorted({str(calculation.job) for calculation in submitted})) or "none"
        raise InputError(
            f"no calculation of the round is submitted{'' if job is None else f' as job {job}'}; submitted jobs: {jobs}"
        )
    for calculation in lost:
        calculation.state, calculation.error, calculation.finished_at = "failed", reason, func.now()
        add_failure(session, calculation.id, reason, file_id=None)
    session.flush()
    return len(lost)


def _name(round_: tables.Round) -> str:
    return round_.name or f"round {round_.id}"


def _choose(session: Session, round_id: int, *, retry_failed: bool, notes: list[str]) -> list[tables.Calculation]:
    """The calculations to write, which count as exported from now on."""
    failed = rounds.lock_calculations(session, round_id, ["failed"]) if retry_failed else []
    again = [calculation for calculation in failed if calculation.attempts < rounds.MOST_ATTEMPTS]
    notes += [
        f"calculation {c.id} failed {c.attempts} times, the last time because {c.error}; it is not exported again"
        for c in failed
        if c not in again
    ]
    new = rounds.lock_calculations(session, round_id, ["proposed"])
    chosen = sorted([*rounds.lock_calculations(session, round_id, ["exported"]), *new, *again], key=lambda c: c.id)
    if not chosen:
        counts = next(row for row in rounds.list_rounds(session) if row["round_id"] == round_id)
        there = ", ".join(f"{counts[state]} {state}" for state in rounds.STATES if counts[state])
        raise InputError(
            f"no calculation of {counts['round']} is left to export; it has {there or 'none'}"
            + ("; --retry-failed exports failed ones again" if counts["failed"] and not retry_failed else "")
        )
    for calculation in (*new, *again):
        calculation.state, calculation.exported_at = "exported", func.now()
        calculation.attempts += 1
        calculation.error = calculation.finished_at = calculation.submitted_at = calculation.job = None
    return chosen


def _add_pristine(session: Session, round_: tables.Round, notes: list[str]) -> None:
    """Let the round calculate pristine supercells that have no calculation at its level."""
    supercells = session.scalars(
        select(tables.Configuration.supercell_id)
        .distinct()
        .join(tables.Calculation, tables.Calculation.configuration_id == tables.Configuration.id)
        .where(tables.Calculation.round_id == round_.id)
    )
    for supercell_id in supercells.all():
        if queries.pristine_energy(session, supercell_id, round_.level_id) is not None:
            continue
        stored = load_supercell(session, supercell_id)
        (configuration_id,) = add_configurations(session, stored, [Configuration((), ())])
        added = session.scalar(
            insert(tables.Calculation)
            .values(
                configuration_id=configuration_id, level_id=round_.level_id, round_id=round_.id, state="proposed",
                proposal=_PRISTINE,
            )
            .on_conflict_do_nothing()
            .returning(tables.Calculation.id)
        )  # fmt: skip
        if added is not None:
            host = f"{stored.supercell.host.name} {stored.supercell.label}"
            notes.append(f"the pristine {host} has no result at this level; calculation {added} is that, in this round")


def _missing_references(session: Session, chosen: Sequence[tables.Calculation], level_id: int) -> list[str]:
    """What else formation energies need: chemical potentials of the elements that are removed and added."""
    elements: set[str] = set()
    for calculation in chosen:
        row = session.get_one(tables.Configuration, calculation.configuration_id)
        elements |= elements_of(Configuration(tuple(row.sites), tuple(row.defect_types)))
    missing = sorted(elements - queries.chemical_potentials(session, level_id).keys())
    if not missing:
        return []
    return [
        f"no chemical potential of {', '.join(missing)} at this level; give them to `screening round import` with "
        f"--mu {missing[0]}=ENERGY, in eV per atom"
    ]


def _write_calculation(
    session: Session, folder: Path, calculation: tables.Calculation, inputs: _Inputs
) -> dict[str, Any]:
    """Write the folder of a calculation; its entry in the manifest."""
    row = session.get_one(tables.Configuration, calculation.configuration_id)
    configuration = Configuration(tuple(row.sites), tuple(row.defect_types))
    supercell = load_supercell(session, row.supercell_id).supercell
    place = folder / f"calculation-{calculation.id}"
    place.mkdir(parents=True, exist_ok=True)
    if inputs.only_structures:
        write_structure(place / "POSCAR", supercell, configuration)
        files: Mapping[str, str] = {}
    else:
        files = write_inputs(place, supercell, configuration, inputs.level, extra=inputs.extra).sha256
    entry = {
        "calculation": calculation.id, "folder": place.name, "host": supercell.host.name,
        "supercell": supercell.label, "configuration": configuration.composition,
        "sites": list(configuration.sites), "defect_types": list(configuration.defect_types),
        "defects": in_words(configuration), "attempt": calculation.attempts, "reason": calculation.proposal,
        "sha256": dict(files),
    }  # fmt: skip
    _write_json(place / "calculation.json", entry)
    return entry


def _write_round(folder: Path, name: str, level: LevelOfTheory, folders: list[str], only_structures: bool) -> None:
    """Write the script that runs the calculations."""
    if only_structures:
        return
    place = shlex.quote(str(folder.resolve()))
    title = f"{name} at {level.name}"
    (folder / SCRIPT).write_text(array_script(folders, title=title, round_name=name, place=place), encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
