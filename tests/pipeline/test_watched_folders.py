"""Watched folders: what is taken when, and what is remembered."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select, text

from screening.database import queries, tables
from screening.database.session import session_scope
from screening.defects.catalogue import catalogue_host
from screening.defects.host import Supercell
from screening.dft.results import LevelOfTheory
from screening.errors import InputError, UnknownNameError
from screening.pipeline.hosts import add_supercell
from screening.pipeline.references import add_level
from screening.pipeline.result_intake import add_result_files
from screening.pipeline.watched_folders import SeenFile, list_watched, look, watch_folder

NOW = 1_800_000_000.0
TABLE = b"energy,sites,defect_types\n-100.0,,\n"  # of the pristine supercell
LEVEL = LevelOfTheory("some PBE", "some code", "PBE", {"cutoff": 500})


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


def mos2_at_a_level(engine: Engine) -> None:
    """2x2 MoS2 and a level of theory at which sulphur has a chemical potential of -4 eV."""
    with session_scope(engine) as session:
        add_supercell(session, Supercell.parse(catalogue_host("MoS2"), "2x2"))
        queries.add_chemical_potentials(session, add_level(session, LEVEL), {"S": (-4.0, "a test")})


def watch_as(engine: Engine, folder: Path, **options: str | None) -> int:
    with session_scope(engine) as session:
        return watch_folder(session, folder, **options)


def look_at(engine: Engine, folder_id: int, **options: dict[str, float]) -> list[tuple[str, str]]:
    return [(file.path, file.outcome) for file in look(engine, folder_id, now=NOW, **options)]


def test_odd_paths_do_not_keep_the_others_from_being_taken(clean_engine: Engine, tmp_path: Path) -> None:
    mos2_at_a_level(clean_engine)
    put(tmp_path / "z.csv", TABLE, age=300.0)
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "nowhere.csv").symlink_to(tmp_path / "absent.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "memory.csv").symlink_to("/proc/self/mem")  # a file that can be opened and not be read
    folder_id = watch_as(clean_engine, tmp_path, level_name=LEVEL.name, host_name="MoS2")
    found = look(clean_engine, folder_id, now=NOW)
    assert [(file.path, file.outcome) for file in found] == [
        ("loop.csv", "refused"), ("memory.csv", "refused"), ("z.csv", "taken"),
    ]  # fmt: skip
    assert "it cannot be read (Too many levels of symbolic links)" in (found[0].text or "")
    assert "memory.csv cannot be read (Input/output error)" in (found[1].text or "")
    assert "loop.csv" not in dict(look_at(clean_engine, folder_id))  # it is said once
    (tmp_path / "loop.csv").unlink()
    put(tmp_path / "loop.csv", TABLE, age=300.0)
    assert ("loop.csv", "known") in look_at(clean_engine, folder_id)


def test_a_refused_file_is_tried_again_with_another_level_or_host(clean_engine: Engine, tmp_path: Path) -> None:
    mos2_at_a_level(clean_engine)
    put(tmp_path / "done.csv", TABLE, age=300.0)
    folder_id = watch(clean_engine, tmp_path)
    (seen,) = look(clean_engine, folder_id, now=NOW)
    assert (seen.outcome, "name its host with --host" in (seen.text or "")) == ("refused", True)
    assert look_at(clean_engine, watch(clean_engine, tmp_path)) == []
    assert watch_as(clean_engine, tmp_path, host_name="MoS2") == folder_id
    (seen,) = look(clean_engine, folder_id, now=NOW)
    assert (seen.outcome, "name it with --level" in (seen.text or "")) == ("refused", True)
    assert watch_as(clean_engine, tmp_path, level_name=LEVEL.name, host_name="MoS2") == folder_id
    assert look_at(clean_engine, folder_id) == [("done.csv", "taken")]


def test_a_level_that_nobody_knows_may_be_a_new_one(clean_engine: Engine, tmp_path: Path) -> None:
    mos2_at_a_level(clean_engine)
    put(tmp_path / "done.csv", TABLE, age=300.0)
    folder_id = watch_as(clean_engine, tmp_path, level_name="another code", host_name="MoS2")
    with pytest.raises(UnknownNameError, match="--new-level makes a new one"):
        look_at(clean_engine, folder_id)
    assert look_at(clean_engine, folder_id, new_level=True) == [("done.csv", "taken")]


def test_a_refused_file_is_tried_again_with_other_chemical_potentials(clean_engine: Engine, tmp_path: Path) -> None:
    mos2_at_a_level(clean_engine)
    put(tmp_path / "done.csv", TABLE, age=300.0)
    folder_id = watch_as(clean_engine, tmp_path, level_name=LEVEL.name, host_name="MoS2")
    wrong = {"S": -5.0}
    assert look_at(clean_engine, folder_id, chemical_potentials=wrong) == [("done.csv", "refused")]
    assert look_at(clean_engine, folder_id, chemical_potentials=wrong) == []
    assert look_at(clean_engine, folder_id, chemical_potentials={"S": -4.0}) == [("done.csv", "taken")]


def test_a_refused_file_is_tried_again_when_a_host_came_from_elsewhere(
    clean_engine: Engine, shared_data: Path, tmp_path: Path
) -> None:
    run = shared_data / "vasp" / "GaN_v_N"
    put(tmp_path / "vasprun.xml.gz", (run / "defect" / "vasprun.xml.gz").read_bytes(), age=300.0)
    folder_id = watch(clean_engine, tmp_path)
    assert look_at(clean_engine, folder_id) == [("vasprun.xml.gz", "refused")]
    assert add_result_files(clean_engine, [run / "bulk"]).new == 1
    assert look_at(clean_engine, folder_id) == [("vasprun.xml.gz", "taken")]


def test_a_refused_file_is_tried_again_after_a_day(clean_engine: Engine, tmp_path: Path) -> None:
    put(tmp_path / "done.csv", TABLE, age=300.0)
    with session_scope(clean_engine) as session:
        add_level(session, LEVEL)
    folder_id = watch_as(clean_engine, tmp_path, level_name=LEVEL.name, host_name="MoS2")
    assert look_at(clean_engine, folder_id) == [("done.csv", "refused")]
    mos2_at_a_level(clean_engine)
    with session_scope(clean_engine) as session:  # as if the host had been there before
        session.execute(text("UPDATE hosts SET created_at = now() - interval '3 days'"))
    assert look_at(clean_engine, folder_id) == []
    with session_scope(clean_engine) as session:
        session.execute(text("UPDATE watched_files SET seen_at = now() - interval '25 hours'"))
    assert look_at(clean_engine, folder_id) == [("done.csv", "taken")]
