"""Uploads, read by a worker: results are taken in, structures are predicted, and the report says of what.

The file goes to a folder of the worker's for the length of the reading; archives are unpacked there with checks of
paths and sizes. Reading a file twice changes nothing, so that a worker that dies in between costs nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import undefer

from screening.database import rounds, tables
from screening.database.leases import finish, lease_kept
from screening.database.session import session_scope
from screening.dft.archives import ArchiveLimits, is_archive, unpacked
from screening.dft.result_files import find_result_files, kind_of
from screening.errors import InputError
from screening.pipeline.expected_runs import ExpectedRun
from screening.pipeline.predictions import choose_predictor, predict_files
from screening.pipeline.pretrained import is_model_path
from screening.pipeline.result_intake import IntakeOptions, drop_completed, take_files
from screening.pipeline.result_rows import Ledger
from screening.pipeline.round_manifests import MANIFEST, expected_runs

LIMITS = ArchiveLimits(member_bytes=256 * 2**20, total_bytes=2**30, members=10_000)
MOST_PREDICTED = 1000  # structures of which the report has the predictions


@dataclass(frozen=True)
class _Unit:
    """An upload that a worker reads."""

    id: int
    name: str
    content: bytes
    options: dict[str, Any]
    round_id: int | None


def take_upload(engine: Engine, upload_id: int, owner: str) -> None:
    """Take in the results of an upload that `owner` holds. Transactions of its own.

    The report has an entry for each file: `name`, `outcome` (new, known, failed or refused) and `reason`.

    Raises:
        InputError: the upload holds no results, or is no archive that may be unpacked.
        LeaseLostError: another worker took it over; that it was read stays.
    """
    with lease_kept(engine, tables.Upload, upload_id, owner), _unit_file(engine, upload_id) as (unit, path):
        report = _take(engine, unit, path)
        with session_scope(engine) as session:
            finish(session, tables.Upload, upload_id, owner, report=report, content=None)


def predict_upload(engine: Engine, upload_id: int, owner: str, *, device: str) -> None:
    """Predict the structures of an upload that `owner` holds.

    The report has `model`, `predicted` (a number), `rows` (of the first structures, with the columns of `screening
    predict`) and `refusals` (`name` and `reason`).

    Raises:
        InputError: there is no such model, or the upload cannot be read as a whole.
        LeaseLostError: another worker took it over.
    """
    with lease_kept(engine, tables.Upload, upload_id, owner), _unit_file(engine, upload_id) as (unit, path):
        model = unit.options.get("model")
        if model is not None and is_model_path(model):
            raise InputError(f"{model!r} reads like a path; give the name of a model of the database")
        predictor = choose_predictor(engine, model)
        output = path.parent / "predictions.csv"
        found = predict_files(predictor, [path], output, device=device)
        with output.open(newline="", encoding="utf-8") as stream:
            rows = [row for row, _ in zip(csv.DictReader(stream), range(MOST_PREDICTED), strict=False)]
        report = {
            "model": found.model, "predicted": found.rows, "rows": rows,
            "refusals": [{"name": name, "reason": reason} for name, reason in found.refusals],
        }  # fmt: skip
        with session_scope(engine) as session:
            finish(session, tables.Upload, upload_id, owner, report=report, content=None)


@contextmanager
def _unit_file(engine: Engine, upload_id: int) -> Iterator[tuple[_Unit, Path]]:
    """An upload with its file in a folder that is there for the length of the block."""
    with session_scope(engine) as session:
        row = session.get_one(tables.Upload, upload_id, options=[undefer(tables.Upload.content)])
        assert row.content is not None, "an open upload has its content"
        unit = _Unit(row.id, row.name, row.content, row.options, row.round_id)
    with TemporaryDirectory(prefix="screening-") as scratch:
        folder = Path(scratch, f"upload {upload_id}")
        folder.mkdir()
        path = folder / unit.name
        path.write_bytes(unit.content)
        yield unit, path


def _take(engine: Engine, unit: _Unit, path: Path) -> dict[str, Any]:
    if not is_archive(path):
        return _take_files(engine, unit, path.parent, find_result_files([path]), scratch=path.parent.parent)
    with unpacked(path, limits=LIMITS) as folder:
        return _take_files(engine, unit, folder, find_result_files([folder]), scratch=folder.parent)


def _take_files(engine: Engine, unit: _Unit, folder: Path, files: list[Path], *, scratch: Path) -> dict[str, Any]:
    """Take files in; those of folders that a round's export wrote belong to its calculations."""
    expected: dict[Path, ExpectedRun] = {}
    for manifest in sorted(folder.rglob(MANIFEST)):
        found = expected_runs(engine, manifest.parent)
        files = [file for file in files if manifest.parent not in file.parents or file in found.files]
        expected |= found.files
    options = IntakeOptions(
        _level_name(engine, unit), new_level=bool(unit.options.get("new_level")),
        host_name=unit.options.get("host"), chemical_potentials=unit.options.get("chemical_potentials") or {},
        folder=scratch,
    )  # fmt: skip
    files.sort(key=lambda file: kind_of(file) != "vasprun")
    outcomes = take_files(engine, files, options, expected=expected)
    ledger = Ledger()
    for of_file in outcomes.values():
        ledger.add(of_file)
    with session_scope(engine) as session:
        drop_completed(session, ledger)
    counts = ledger.report()
    rows = [row for file, of_file in outcomes.items() for row in _rows(str(file.relative_to(scratch)), of_file)]
    for row in rows:  # what people read has no folder of the worker's
        row |= {key: text and text.replace(f"{scratch}/", "") for key, text in row.items()}
    return {
        "read": counts.read, "new": counts.new, "known": counts.known, "refused": counts.refused,
        "failed": counts.failed, "files": rows,
    }  # fmt: skip


def _rows(file: str, ledger: Ledger) -> Iterator[dict[str, str | None]]:
    """What became of the results of a file."""
    remarks = dict(ledger.notes) | {
        name: f"no formation energy yet: {reason}" for name, reason in ledger.incomplete.items()
    }
    for outcome, names in (("new", ledger.new), ("known", ledger.known)):
        for name in names:
            yield {"file": file, "name": name, "outcome": outcome, "reason": remarks.get(name)}
    for name, reason in ledger.refusals:
        outcome = "failed" if name in ledger.failed else "refused"
        yield {"file": file, "name": name, "outcome": outcome, "reason": reason}


def _level_name(engine: Engine, unit: _Unit) -> str | None:
    """The level of theory that is given, or else that of the round."""
    given: str | None = unit.options.get("level")
    if given is not None or unit.round_id is None:
        return given
    with session_scope(engine) as session:
        round_ = session.get(tables.Round, unit.round_id)
        if round_ is None:
            raise InputError(f"round {unit.round_id} was deleted; send the files without a round")
        return rounds.level_of_round(session, round_).name
