"""Files in the folder of a calculation that was exported: which are output, of that calculation, at its level."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from screening.database import tables
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.enumeration import canonical_form
from screening.dft.result_files import kind_of
from screening.dft.results import LevelOfTheory
from screening.dft.vasp import differences, is_complete
from screening.errors import InputError, LevelOfTheoryError
from screening.pipeline.hosts import StoredSupercell
from screening.pipeline.references import join_vasp_level

_POTENTIALS = "pseudopotentials"


@dataclass(frozen=True)
class ExpectedRun:
    """What the manifest of a round says of a folder.

    Attributes:
        configuration: canonical, in the numbering of the supercell.
        settings: of the inputs that were written; all there is to compare with where the level itself has none.
    """

    calculation_id: int
    supercell_id: int
    level_id: int
    configuration: Configuration
    settings: Mapping[str, Any] = field(default_factory=dict)


def check_configuration(expected: ExpectedRun, stored: StoredSupercell, found: Configuration) -> None:
    """Make sure that what a file calculates is what its folder is for.

    Raises:
        InputError: it is another configuration.
    """
    canonical, _ = canonical_form(stored.symmetry, found)
    wanted = expected.configuration
    is_it = (canonical.sites, canonical.defect_types) == (wanted.sites, wanted.defect_types)
    if stored.id != expected.supercell_id or not is_it:
        supercell = stored.supercell
        raise InputError(
            f"it calculates {in_words(canonical)} of {supercell.host.name} {supercell.label}; its folder is that of "
            f"calculation {expected.calculation_id}, {in_words(wanted)}: put it where it belongs, or take it in with "
            "`screening results add`"
        )


def level_of_run(session: Session, expected: ExpectedRun, level: LevelOfTheory | None) -> int:
    """The level of theory of a file in the folder of a calculation, which is that of the calculation; its id.

    Args:
        level: as the file says; None where it does not.

    Raises:
        LevelOfTheoryError: the run has another code, functional or other settings, or nothing says what they should be.
    """
    if level is None:
        return expected.level_id
    row = session.get_one(tables.LevelOfTheory, expected.level_id)
    stored = LevelOfTheory(row.name, row.code, row.functional, row.settings)
    if level.code != row.code:
        wrong = [f"code {level.code} against {row.code}"]
    elif _POTENTIALS in row.settings:
        wrong = differences(level, stored)
    else:
        wrong = _differences_from_inputs(level, stored, expected.settings)
    if not (wrong or expected.settings or _POTENTIALS in row.settings):
        raise LevelOfTheoryError(
            f"it was run at {level.name!r}; neither the round's level {row.name!r} nor the manifest has settings to "
            "compare it with: export the round again with --settings and without --structures-only, or take the file "
            "in as another level with `screening results add`"
        )
    if wrong:
        raise LevelOfTheoryError(
            f"it was not run at the round's level {row.name!r}: {'; '.join(wrong)}; run it with the inputs that were "
            "exported, or take it in as another level with `screening results add`"
        )
    return join_vasp_level(session, level, row.name) if _POTENTIALS in row.settings else expected.level_id


def in_words(configuration: Configuration) -> str:
    """`v_S@12 Se_S@14`, or `the pristine supercell`."""
    pairs = zip(configuration.sites, configuration.defect_types, strict=True)
    return " ".join(f"{DefectType.from_code(code).name}@{site}" for site, code in pairs) or "the pristine supercell"


def output_of(folder: Path) -> list[Path]:
    """Result files in the folder of a calculation; of several runs of VASP the one that was written last."""
    files = sorted(path for path in folder.glob("*") if path.is_file() and kind_of(path) is not None)
    runs = [path for path in files if kind_of(path) == "vasprun"]
    newest = max(runs, key=lambda path: path.stat().st_mtime, default=None)
    return [path for path in files if path not in runs or path == newest]


def is_being_written(path: Path, abandoned_s: float) -> bool:
    """Whether a run of VASP, which writes its file from the first step on, may still go on."""
    if kind_of(path) != "vasprun" or time.time() - path.stat().st_mtime >= abandoned_s:
        return False
    return not is_complete(path)


def set_aside(folder: Path, attempt: int) -> list[str]:
    """Rename the output of an attempt, which the script would take for that of the next; remarks on it."""
    notes = []
    for path in sorted(path for path in folder.glob("*") if path.is_file() and kind_of(path) is not None):
        name = f"{path.name}.attempt-{attempt}"  # which is no name of a result file
        numbered = (folder / (name if n == 1 else f"{name}.{n}") for n in count(1))
        kept = path.rename(next(found for found in numbered if not found.exists()))
        notes.append(f"{folder.name}: {path.name} is that of attempt {attempt}; it is kept as {kept.name}")
    return notes


def _differences_from_inputs(level: LevelOfTheory, wanted: LevelOfTheory, inputs: Mapping[str, Any]) -> list[str]:
    """What a run does otherwise than its level's functional and the settings that its inputs were written from."""
    wrong = []
    run: Mapping[str, Any] = level.settings
    if _functional(level, inputs) != _functional(wanted, inputs):
        wrong.append(f"functional {level.functional} against {wanted.functional}")
    for key in sorted(inputs.keys() & run.keys()):
        if isinstance(inputs[key], Mapping):
            for element in sorted(inputs[key].keys() & run[key].keys()):
                ours, theirs = _short(run[key][element]), _short(inputs[key][element])
                if ours != theirs:
                    wrong.append(f"{key} of {element} {ours} against {theirs}")
        elif _short(run[key]) != _short(inputs[key]):
            wrong.append(f"{key} {run[key]} against {inputs[key]}")
    return wrong


def _functional(level: LevelOfTheory, inputs: Mapping[str, Any]) -> str:
    """A functional without the Hubbard U and dispersion that inputs say themselves, where they are compared."""
    base, plus, dispersion = level.functional.partition("+vdW-")
    if "hubbard_u" in inputs:
        base = base.removesuffix("+U")
    return base if "dispersion" in inputs else base + plus + dispersion


def _short(value: Any) -> Any:
    """A value as both sides write it: `Ga_d` of a POTCAR's title, a mesh without its shift of nothing."""
    if not isinstance(value, str):
        return value
    words = value.split()
    if len(words) == 3 and words[0].startswith("PAW"):
        return words[1]
    return value.removesuffix(" shift 0 0 0")
