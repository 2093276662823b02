"""Rounds elsewhere and watched folders by their commands, with the real runs of GaN."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from screening.cli import main
from screening.database.session import make_engine, session_scope
from screening.settings import Settings
from tests.pipeline.test_round_files import gan_round, run_of

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(clean_services: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; exit code, standard output and standard error."""
    assert clean_services.database_url is not None
    assert clean_services.redis_url is not None
    monkeypatch.setenv("SCREENING_REDIS_URL", clean_services.redis_url.get_secret_value())
    monkeypatch.setenv("SCREENING_HOME", str(clean_services.home))
    monkeypatch.setenv("SCREENING_DATABASE_URL", clean_services.database_url.get_secret_value())
    engines: list[Engine] = []

    def kept(url: str) -> Engine:
        engines.append(make_engine(url))
        return engines[-1]

    monkeypatch.setattr("screening.database.session.make_engine", kept)

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["screening", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        while engines:
            engines.pop().dispose()
        return int(ended.value.code or 0), shown.out, shown.err

    return command


def test_a_round_goes_out_and_comes_back(run: Run, clean_engine: Engine, shared_data: Path, tmp_path: Path) -> None:
    code, out, _ = run("round", "list")
    assert (code, out) == (0, "there is no round; `screening round create` proposes the next calculations\n")
    with session_scope(clean_engine) as session:
        ids = gan_round(session, shared_data, "v_N", "v_Ga")
    folder = tmp_path / "out"
    code, out, err = run("round", "export", "first", folder)
    assert code == 0
    assert f"3 calculations of first in {folder}" in out
    assert "no chemical potential of Ga, N at this level" in err
    code, out, _ = run("round", "submitted", "first", "--job", "4711")
    assert out == "3 calculations of first submitted as job 4711\n"
    shutil.copy(run_of(shared_data, "GaN_v_N/defect"), folder / f"calculation-{ids['v_N']}")
    shutil.copy(run_of(shared_data, "GaN_v_N/defect"), folder / f"calculation-{ids['v_Ga']}")
    code, out, err = run("round", "import", folder, "--mu", "N=-8.3")
    assert code == 1  # one of them lies in the wrong folder
    assert "read 2, new 1, known 0, refused 1\n" in out
    assert "first: 2 submitted, 1 finished\n" in out
    assert "no result yet of 1 calculation" in out
    assert "its folder is that of calculation" in err
    code, out, _ = run("round", "status", "1", "--json")
    found = json.loads(out)
    assert (found["round"], found["states"]["submitted"], found["states"]["finished"]) == ("first", 2, 1)
    code, out, _ = run("round", "status", "first")
    assert "first: 2 submitted, 1 finished" in out
    code, out, _ = run("round", "failed", "first", "--job", "4711", "--reason", "cancelled")
    assert (code, out) == (0, "2 calculations of first failed: cancelled\n")
    (folder / f"calculation-{ids['v_Ga']}" / "vasprun.xml.gz").unlink()
    (folder / f"calculation-{ids['v_Ga']}" / "vasprun.xml").write_text("<modeling>")
    code, out, _ = run("round", "import", folder)
    assert (code, f"still being written: 1 calculation: {ids['v_Ga']}; --abandoned-after 0" in out) == (0, True)
    code, out, err = run("round", "import", folder, "--abandoned-after", "-1")
    assert (code, "expected a number of hours" in err) == (1, True)
    code, out, _ = run("round", "list")
    assert "first" in out
    code, _, err = run("round", "status", "second")
    assert (code, err) == (
        1, "screening: no round is called 'second'; the newest are first: `screening round create` proposes one\n",
    )  # fmt: skip


def test_a_folder_is_watched(run: Run, shared_data: Path, tmp_path: Path) -> None:
    assert run("results", "watch")[1].startswith("no folder is watched")
    shutil.copytree(shared_data / "vasp" / "GaN_v_N", tmp_path / "runs")
    for path in (tmp_path / "runs").rglob("vasprun.xml.gz"):
        os.utime(path, (1.7e9, 1.7e9))
    code, out, _ = run("results", "watch", tmp_path / "runs", "--once", "--mu", "N=-8.3")
    assert (code, out) == (0, "taken bulk/vasprun.xml.gz\ntaken defect/vasprun.xml.gz\n")
    assert run("results", "watch", tmp_path / "runs", "--once")[1] == "nothing new that stands still\n"
    (row,) = json.loads(run("results", "watch", "--json")[1])["folders"]
    assert (row["folder"], row["taken"], row["refused"]) == (str(tmp_path / "runs"), 2, 0)
