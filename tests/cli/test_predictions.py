"""Predictions at the command line: from files of models, without services, and beside a project."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from screening.cli import app, predictions
from screening.cli.project import Project
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.dft.structures import write_structure
from screening.errors import FileFormatError, ServiceError, UnknownNameError
from screening.pipeline import pretrained
from screening.pipeline.model_transfer import add_model_file
from screening.pipeline.pretrained import DEFAULT_MODEL, write_model_file
from screening.settings import Settings
from tests.pipeline.made_models import small_model

V_S = 16 * 128
UNUSED_PORT = "postgresql://somebody@127.0.0.1:1/nothing"


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    write_model_file(tmp_path / "small.safetensors", small_model())
    return tmp_path / "small.safetensors"


@pytest.fixture
def structure(tmp_path: Path) -> Path:
    path = tmp_path / "vacancy.vasp"
    write_structure(path, Supercell.parse(catalogue_host("MoS2"), "6x6"), Configuration((40,), (V_S,)))
    return path


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package shipped the small model."""
    folder = tmp_path / "pretrained"
    folder.mkdir()
    write_model_file(folder / f"{DEFAULT_MODEL}.safetensors", small_model())
    monkeypatch.setattr(pretrained, "_folder", lambda: folder)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory where nothing of a project is."""
    folder = tmp_path / "alone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SCREENING_HOME", str(folder / ".screening"))
    return folder


def predict(*arguments: str | Path) -> int:
    """Exit code of the command in this process."""
    code = app(["predict", *map(str, arguments)], standalone_mode=False)
    return code if isinstance(code, int) else 0


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_file_of_a_model_is_enough(model_file: Path, structure: Path, tmp_path: Path) -> None:
    """In a process and a directory of its own, with no services, nothing is written but the table."""
    folder = tmp_path / "empty"
    folder.mkdir()
    finished = subprocess.run(
        [
            sys.executable, "-c", "from screening.cli import main; main()", "predict", str(structure),
            "--model", str(model_file), "-o", "out.csv", "--json",
        ],
        cwd=folder, capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["model"] == "small"
    (row,) = rows_of(folder / "out.csv")
    assert (row["name"], row["configuration"], row["supercell"]) == ("vacancy", "v_S", "6x6")
    assert [path.name for path in folder.iterdir()] == ["out.csv"]


@pytest.mark.usefixtures("shipped")
def test_without_a_project_the_shipped_model_predicts_and_says_so(
    structure: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(structure, "-o", "out.csv") == 0
    printed = capsys.readouterr()
    assert "no services are known in" in printed.err
    assert "predicting with small, which comes with the package (formula; MoS2)" in printed.err
    assert "1 rows by model small" in printed.out
    head, row = (line.split() for line in printed.out.splitlines()[:2])
    assert head[:3] == ["name", "host", "configuration"]
    assert row[:4] == ["vacancy", "MoS2", "6x6", "v_S"]
    assert len(rows_of(alone / "out.csv")) == 1


@pytest.mark.usefixtures("shipped", "alone")
def test_a_shipped_model_that_is_named_needs_no_words(structure: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(structure, "-o", "out.csv", "--model", DEFAULT_MODEL) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("alone")
def test_refused_structures_cost_their_rows_and_the_exit_code(
    model_file: Path, structure: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (alone / "garbage.cif").write_text("no crystal")
    assert predict("garbage.cif", structure, "--model", model_file, "-o", "out.csv") == 1
    assert "refused garbage: CIF garbage cannot be read" in capsys.readouterr().err
    assert [row["name"] for row in rows_of(alone / "out.csv")] == ["vacancy"]


@pytest.mark.usefixtures("alone")
def test_a_faulty_model_is_refused_with_its_name(structure: Path, tmp_path: Path) -> None:
    (tmp_path / "faulty.safetensors").write_bytes(small_model().packed[:1000])
    with pytest.raises(FileFormatError, match=r"faulty\.safetensors is no whole safetensors file"):
        predict(structure, "-o", "out.csv", "--model", tmp_path / "faulty.safetensors")


@pytest.mark.usefixtures("shipped", "alone")
def test_a_name_that_nobody_knows_is_refused_with_those_that_are_known(structure: Path) -> None:
    with pytest.raises(UnknownNameError, match=f"nobody is neither a file nor .* those are {DEFAULT_MODEL}"):
        predict(structure, "-o", "out.csv", "--model", "nobody")


@pytest.mark.usefixtures("shipped", "alone")
def test_a_database_that_does_not_answer_is_not_passed_over(
    structure: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its models may be others; whoever names a model that needs no database gets that."""
    monkeypatch.setenv("SCREENING_DATABASE_URL", UNUSED_PORT)
    monkeypatch.setenv("SCREENING_REDIS_URL", "redis://127.0.0.1:1/0")
    with pytest.raises(ServiceError, match=f"with --model a model that needs no database .* or {DEFAULT_MODEL}"):
        predict(structure, "-o", "out.csv")
    assert predict(structure, "-o", "out.csv", "--model", DEFAULT_MODEL) == 0
    assert predict(structure, "-o", "out.csv", "--model", model_file) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("shipped", "alone")
def test_the_models_of_a_database_come_first(
    clean_services: Settings, structure: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(clean_services)
    monkeypatch.setattr(predictions, "Project", lambda: project)
    assert predict(structure, "-o", "out.csv") == 0
    assert "the database has no model: predicting with small" in capsys.readouterr().err
    with project.transaction() as session:
        add_model_file(session, small_model(), "stored")
    assert predict(structure, "-o", "out.csv") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "1 rows by model stored" in printed.out
    project.engine.dispose()


def test_a_project_knows_whether_it_has_a_database(tmp_path: Path, clean_services: Settings) -> None:
    assert not Project(Settings(home=tmp_path)).has_database
    assert Project(clean_services).has_database
