"""Commands on files of models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from screening.cli import app, model_files
from screening.cli.project import Project
from screening.errors import FileFormatError
from screening.pipeline.pretrained import read_model_file, write_model_file
from screening.settings import Settings
from tests.pipeline.made_models import small_model
from tests.pipeline.test_reproduction import rows_of_subset
from tests.synthetic_2dmd import write_subset


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    write_model_file(tmp_path / "small.safetensors", small_model())
    return tmp_path / "small.safetensors"


def run(*arguments: str | Path) -> None:
    app(["model", *map(str, arguments)], standalone_mode=False)


def test_a_card_is_shown_to_people_and_programs(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCREENING_HOME", str(tmp_path / "nowhere"))
    run("card", model_file)
    assert capsys.readouterr().out.startswith("# Model small\n")
    run("card", model_file, "--json")
    assert json.loads(capsys.readouterr().out)["citations"] == ["nobody et al."]


def test_a_model_goes_into_the_database_and_out_again(
    clean_services: Settings, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    project = Project(clean_services)
    monkeypatch.setattr(model_files, "Project", lambda: project)
    run("add", model_file)
    assert capsys.readouterr().out.startswith("added model small (formula; MoS2)")
    run("add", model_file)
    assert "nothing was changed" in capsys.readouterr().out
    run("export", "small", tmp_path / "again.safetensors")
    assert "model small in" in capsys.readouterr().out
    assert (tmp_path / "again.safetensors").read_bytes() == model_file.read_bytes()
    run("add", model_file, "--name", "other", "--json")
    assert json.loads(capsys.readouterr().out) == {"model": "other", "new": True, "level": "formula"}
    with pytest.raises(FileFormatError, match=r"should end in \.safetensors"):
        run("export", "small", tmp_path / "again.pt")
    project.engine.dispose()


def test_the_whole_reproduction_is_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCREENING_DEVICE", "cpu")
    folder = write_subset(tmp_path / "2dmd" / "low_density_defects" / "MoS2", rows_of_subset())
    output = tmp_path / "made.safetensors"
    run("reproduce", folder.parent.parent, "--output", output, "--members", "3", "--epochs", "2", "--seed", "5")
    printed = capsys.readouterr()
    assert "mean absolute errors on rows that were not learnt" in printed.out
    assert "low_density_defects/MoS2" in printed.out
    assert "labelled rows of 1 subsets" in printed.err
    assert "epoch 1 of at most" in printed.err
    card = read_model_file(output).card
    assert (card.training["seed"], card.training["settings"]["epochs"]) == (5, 2)
    assert output.with_suffix(".md").is_file()


def test_a_wrong_output_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="there is no folder"):
        run("reproduce", tmp_path / "no data", "--output", tmp_path / "absent" / "made.safetensors")
