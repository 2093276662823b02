"""The manifest of an exported round: which folder is whose, and what lies in it by now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from screening.database import rounds, tables
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration
from screening.errors import FileFormatError, InputError
from screening.pipeline.expected_runs import ExpectedRun, is_being_written, output_of

MANIFEST = "manifest.json"
_ENTRY = {"calculation": int, "folder": str, "sites": list, "defect_types": list, "defects": str, "attempt": int}


@dataclass(frozen=True)
class RoundRuns:
    """What lies in the folders of a round.

    Attributes:
        files: output files, with the calculation in whose folder each lies.
        without_result, being_written: as in `ImportReport`.
    """

    round_id: int
    round_name: str
    level_name: str
    files: Mapping[Path, ExpectedRun]
    without_result: tuple[int, ...]
    being_written: tuple[int, ...]


def expected_runs(engine: Engine, folder: Path, *, abandoned_s: float = 0.0) -> RoundRuns:
    """What is in the folders of an exported round, and for which calculations.

    Raises:
        FileFormatError, UnknownNameError, InputError: as `import_round`.
    """
    manifest = read_manifest(folder, round_id=None)
    expected: dict[Path, ExpectedRun] = {}
    without_result, being_written = [], []
    with session_scope(engine) as session:
        round_ = rounds.find_round(session, str(manifest["round"]))
        for entry in manifest["calculations"]:
            run = _expected_run(session, round_, entry, manifest["settings"])
            files = output_of(folder / entry["folder"])
            growing = [path for path in files if is_being_written(path, abandoned_s)]
            expected |= dict.fromkeys((path for path in files if path not in growing), run)
            if growing:
                being_written.append(run.calculation_id)
            elif not files:
                without_result.append(run.calculation_id)
        level_name = rounds.level_of_round(session, round_).name
    name = manifest["name"] or f"round {manifest['round']}"
    return RoundRuns(
        int(manifest["round"]), name, level_name, expected, tuple(without_result), tuple(being_written)
    )  # fmt: skip


def read_manifest(folder: Path, *, round_id: int | None) -> dict[str, Any]:
    """The manifest of a folder; empty for an empty folder that a round is written into.

    Raises:
        FileFormatError: it is not there, or cannot be read.
        InputError: the folder is that of another round, or holds something else.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if round_id is None:
            raise FileFormatError(f"{folder} has no {MANIFEST}; expected a folder that `screening round export` wrote")
        if not folder.is_dir() or any(folder.iterdir()):
            raise InputError(f"{folder} is there and holds something else; name a folder that is empty or new")
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        wrong = {"round", "name", "level", "settings", "calculations"} - found.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{path} cannot be read ({error}); export the round again") from error
    if wrong:
        raise FileFormatError(f"{path} lacks {', '.join(sorted(wrong))}; export the round again")
    _check_entries(path, found)
    if round_id not in (None, found["round"]):
        raise InputError(f"{folder} is the folder of round {found['round']}, not of round {round_id}; name another one")
    assert isinstance(found, dict)
    return found


def _check_entries(path: Path, manifest: Mapping[str, Any]) -> None:
    """Make sure that a manifest says of each calculation what is read from it, and names no folder elsewhere.

    Raises:
        FileFormatError: it does not.
    """
    entries = manifest["calculations"]
    if not isinstance(entries, list) or not isinstance(manifest["settings"], dict):
        raise FileFormatError(f"{path} has no list of calculations, or no settings by name; export the round again")
    for n, entry in enumerate(entries, start=1):
        found = entry if isinstance(entry, dict) else {}
        wrong = [key for key, kind in _ENTRY.items() if not isinstance(found.get(key), kind)]
        if wrong:
            raise FileFormatError(
                f"{path}: calculation {n} of its list lacks {', '.join(wrong)}; export the round again"
            )
        name = found["folder"]
        if name in ("", ".", "..") or Path(name).name != name:
            raise FileFormatError(
                f"{path}: the folder of calculation {found['calculation']} is {name!r}; expected the name of one "
                "beside the manifest: export the round again"
            )


def _expected_run(
    session: Session, round_: tables.Round, entry: Mapping[str, Any], settings: Mapping[str, Any]
) -> ExpectedRun:
    """What a folder of the manifest is for.

    Raises:
        InputError: the database says otherwise.
    """
    calculation = session.get(tables.Calculation, entry["calculation"])
    row = None if calculation is None else session.get_one(tables.Configuration, calculation.configuration_id)
    wanted = (list(entry["sites"]), list(entry["defect_types"]))
    if (
        calculation is None
        or row is None
        or calculation.round_id != round_.id
        or (row.sites, row.defect_types) != wanted
    ):
        raise InputError(
            f"the manifest says that calculation {entry['calculation']} is {entry['defects']} of round {round_.id}; in "
            "this database it is not: is the folder that of another project? `screening results add` takes its files in"
        )
    configuration = Configuration(tuple(row.sites), tuple(row.defect_types))
    return ExpectedRun(calculation.id, row.supercell_id, round_.level_id, configuration, settings)
