"""Watched folders: what is taken when, and what is remembered."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from screening.database import tables
from screening.database.session import session_scope
from screening.errors import InputError
from screening.pipeline.watched_folders import SeenFile, list_watched, look, watch_folder

NOW = 1_800_000_000.0


def put(path: Path, content: bytes, *, age: float) -> None:
    """Write a file that was changed so many seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (NOW - age, NOW - age))


def bulk_of(shared_data: Path) -> bytes:
    return gzip.decompress((shared_data / "vasp" / "GaN_v_N" / "bulk" / "vasprun.xml.gz").read_bytes())


def watch(engine: Engine, folder: Path) -> int:
    with session_scope(engine) as session:
        return watch_folder(session, folder)


def outcomes(engine: Engine) -> dict[str, str]:
    with session_scope(engine) as session:
        return dict(session.execute(select(tables.WatchedFile.path, tables.WatchedFile.outcome)).all())


def n_results(engine: Engine) -> int:
    with session_scope(engine) as session:
        return session.scalar(select(func.count()).select_from(tables.CalculationResult)) or 0


def test_a_file_written_in_two_halves_is_taken_once_it_is_whole(
    clean_engine: Engine, shared_data: Path, tmp_path: Path
) -> None:
    content, path = bulk_of(shared_data), tmp_path / "run" / "vasprun.xml"
    folder_id = watch(clean_engine, tmp_path)
    put(path, content[: len(content) // 2], age=300.0)
    for _ in range(2):  # it stands still, but a run writes its file for hours
        assert look(clean_engine, folder_id, now=NOW) == []
    assert outcomes(clean_engine) == {"run/vasprun.xml": "growing"}
    put(path, content, age=1.0)
    assert look(clean_engine, folder_id, now=NOW) == []  # seen once with this size
    assert look(clean_engine, folder_id, now=NOW + 30) == [SeenFile("run/vasprun.xml", "taken", None)]
    assert look(clean_engine, folder_id, now=NOW + 60) == []
    assert (outcomes(clean_engine), n_results(clean_engine)) == ({"run/vasprun.xml": "taken"}, 1)


def test_a_watch_that_is_started_again_reads_nothing_twice(
    clean_engine: Engine, shared_data: Path, tmp_path: Path
) -> None:
    put(tmp_path / "a" / "vasprun.xml", bulk_of(shared_data), age=300.0)
    folder_id = watch(clean_engine, tmp_path)
    assert [file.outcome for file in look(clean_engine, folder_id, now=NOW)] == ["taken"]
    assert watch(clean_engine, tmp_path) == folder_id
    put(tmp_path / "b" / "vasprun.xml", bulk_of(shared_data), age=200.0)
    assert [(file.path, file.outcome) for file in look(clean_engine, folder_id, now=NOW)] == [
        ("b/vasprun.xml", "known")
    ]
    with session_scope(clean_engine) as session:
        (row,) = list_watched(session)
        assert (row["folder"], row["taken"], row["known"]) == (str(tmp_path), 1, 1)


def test_a_run_that_nobody_writes_any_more_was_cut_short(
    clean_engine: Engine, shared_data: Path, tmp_path: Path
) -> None:
    content = bulk_of(shared_data)
    put(tmp_path / "vasprun.xml", content[: len(content) // 2], age=7200.0)
    folder_id = watch(clean_engine, tmp_path)
    assert look(clean_engine, folder_id, now=NOW) == []
    (seen,) = look(clean_engine, folder_id, now=NOW, abandoned_s=3600.0)
    assert seen.outcome == "failed"
    assert "cut short" in (seen.text or "")
    put(tmp_path / "vasprun.xml", content, age=100.0)
    assert [file.outcome for file in look(clean_engine, folder_id, now=NOW)] == ["taken"]


def test_what_fitted_no_host_is_tried_again_when_one_has_come(
    clean_engine: Engine, shared_data: Path, tmp_path: Path
) -> None:
    defect = (shared_data / "vasp" / "GaN_v_N" / "defect" / "vasprun.xml.gz").read_bytes()
    put(tmp_path / "defect" / "vasprun.xml.gz", defect, age=300.0)
    folder_id = watch(clean_engine, tmp_path)
    (seen,) = look(clean_engine, folder_id, now=NOW)
    assert seen.outcome == "refused"
    assert look(clean_engine, folder_id, now=NOW) == []
    put(tmp_path / "pristine" / "vasprun.xml", bulk_of(shared_data), age=300.0)
    found = look(clean_engine, folder_id, now=NOW)
    assert [(file.path, file.outcome) for file in found] == [
        ("pristine/vasprun.xml", "taken"), ("defect/vasprun.xml.gz", "taken"),
    ]  # fmt: skip


def test_a_folder_that_is_not_there_is_refused(clean_engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder that can be read"):
        watch(clean_engine, tmp_path / "absent")
    (tmp_path / "there").mkdir()
    folder_id = watch(clean_engine, tmp_path / "there")
    (tmp_path / "there").rmdir()
    with pytest.raises(InputError, match="is gone"):
        look(clean_engine, folder_id, now=NOW)
