"""Evaluate, as a user runs it: a model file without services, and a model of a project."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, insert, select

from screening.cli import main
from screening.database import tables
from screening.database.session import make_engine as real_make_engine
from screening.database.session import session_scope
from screening.dft.dataset_2dmd import LEVEL
from screening.learning.artifacts import ensemble_to_bytes
from screening.learning.fingerprints import fingerprints_of_rows
from screening.pipeline.imports import import_2dmd
from screening.pipeline.labelled_files import read_labelled
from screening.pipeline.pretrained import ModelFile, unpack_model, with_card, write_model_file
from screening.settings import Settings
from tests.pipeline.made_models import small_model
from tests.synthetic_2dmd import PRISTINE_ENERGY, Row, write_subset

SUBSET = "low_density_defects/MoS2"
ROWS = (
    Row("train-1", ((16, "v_S"),), 2.75),
    Row("train-2", ((3, "v_Mo"),), 7.5),
    Row("validation-1", ((20, "Se_S"),), 0.125, split="validation"),
    Row("validation-2", ((16, "v_S"), (32, "v_S")), 5.375, split="validation"),
    Row("unknown type", ((7, "W_Mo"),), -0.25),
    Row("without results", ((0, "v_Mo"), (25, "v_S")), None),
)

Screening = Callable[..., tuple[int, str, str]]


def model_of(learnt: np.ndarray | None) -> ModelFile:
    """The small model at the level of theory of 2DMD; it knows v_S, Se_S and v_Mo in MoS2."""
    small = small_model()
    ensemble = replace(small.ensemble(), extra={} if learnt is None else {"learnt": np.sort(learnt)})
    return unpack_model(with_card(ensemble_to_bytes(ensemble), replace(small.card, level=LEVEL)), "small")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    write_subset(tmp_path / "release" / SUBSET, ROWS)
    return tmp_path / "release"


@pytest.fixture
def model(release: Path, tmp_path: Path) -> Path:
    """A model file that has learnt from the rows for training."""
    rows = read_labelled(release)
    learnt = fingerprints_of_rows(rows)[[split == "train" for split in rows.splits]]
    write_model_file(tmp_path / "small.safetensors", model_of(learnt))
    return tmp_path / "small.safetensors"


@pytest.fixture
def screening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Screening:
    """Run a command in a home without services: exit code, output, and what is said to the person."""
    monkeypatch.setenv("SCREENING_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCREENING_DEVICE", "cpu")

    engines: list[Engine] = []  # a command of its own ends with its process; here its connections are closed for it

    def make_engine(url: str) -> Engine:
        engines.append(real_make_engine(url))
        return engines[-1]

    monkeypatch.setattr("screening.database.session.make_engine", make_engine)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["screening", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        while engines:
            engines.pop().dispose()
        return int(ended.value.code or 0), written.out, written.err

    return run


def evaluated(screening: Screening, *arguments: object) -> dict[str, Any]:
    code, out, err = screening("evaluate", *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_model_file_is_evaluated_on_rows_it_has_not_learnt_from(
    screening: Screening, release: Path, model: Path, tmp_path: Path
) -> None:
    code, out, err = screening("evaluate", "--model", model, "--data", release)
    assert code == 0, err
    assert "model small (2DMD PBE) on 2 labelled rows" in out
    assert "left out: 3 rows that the model has learnt from" in out  # W_Mo among them, though it cannot predict it
    assert "without labels: 1 structure" in out
    assert "MAE of formation_energy_per_site, meV" in out
    assert "published sparse MEGNet" in out
    assert "better than this model on MoS2 low: published sparse MEGNet" in out
    assert out.count("--yardsticks shows simple models beside it") == 1
    (folder,) = (tmp_path / "home" / "evaluations").iterdir()
    assert f"stored: {folder}" in out
    assert {"evaluation.json", "rows.csv", "parity.png"} <= {path.name for path in folder.iterdir()}


def test_a_program_gets_one_object(screening: Screening, release: Path, model: Path, tmp_path: Path) -> None:
    found = evaluated(screening, "--model", model, "--data", release, "--output", tmp_path / "here")
    assert (found["n_rows"], found["n_left_out"], found["n_unlabelled"]) == (2, 3, 1)
    energies = [row for row in found["metrics"] if row["property"] == "formation_energy_per_site"]
    assert {(row["subset"], row["n_defects"]): row["n_rows"] for row in energies} == {
        (SUBSET, None): 2, (SUBSET, 1): 1, (SUBSET, 2): 1,
    }  # fmt: skip
    stored = json.loads((tmp_path / "here" / "evaluation.json").read_text())
    assert {key: found[key] for key in stored} == stored
    assert not (tmp_path / "home" / "evaluations").exists()


def test_learnt_rows_are_counted_on_request_and_said_to_be(screening: Screening, release: Path, model: Path) -> None:
    code, out, err = screening("evaluate", "--model", model, "--data", release, "--include-learnt")
    assert code == 0
    assert "INCLUDED: 2 rows that the model has learnt from; these errors are too small" in out
    assert "refused unknown type" in err
    assert "never seen W_Mo" in err


def test_only_rows_of_the_wanted_split_count(screening: Screening, release: Path, model: Path) -> None:
    found = evaluated(screening, "--model", model, "--data", release, "--split", "validation")
    assert (found["n_rows"], found["n_left_out"], found["splits"]) == (2, 0, ["validation"])
    code, _, err = screening("evaluate", "--model", model, "--data", release, "--split", "train")
    assert code == 1
    assert "none of 3 labelled rows is left" in err
    code, _, err = screening("evaluate", "--model", model, "--data", release, "--split", "tset")
    assert "--split 'tset' is not known; expected train, validation, test, none, all" in err


def test_a_model_that_does_not_say_what_it_learnt_is_refused(
    screening: Screening, release: Path, tmp_path: Path
) -> None:
    write_model_file(tmp_path / "silent.safetensors", model_of(None))
    code, _, err = screening("evaluate", "--model", tmp_path / "silent.safetensors", "--data", release)
    assert code == 1
    assert "does not say what it has learnt from" in err
    _, out, _ = screening("evaluate", "--model", tmp_path / "silent.safetensors", "--data", release, "--include-learnt")
    assert "CAUTION: the model does not say what it has learnt from" in out


def test_properties_and_numbers_of_defects_on_request(screening: Screening, release: Path, model: Path) -> None:
    _, out, _ = screening(
        "evaluate", "--model", model, "--data", release, "--property", "formation_energy", "--by-defects"
    )
    assert "MAE of formation_energy, meV" in out
    assert "homo_lumo_gap_min" not in out
    assert "defects" in out
    _, out, _ = screening("evaluate", "--model", model, "--data", release, "--all-properties")
    assert all(f"MAE of {name}, meV" in out for name in ("formation_energy", "homo_lumo_gap_min"))


def test_a_table_of_results_needs_its_host_and_chemical_potentials(
    screening: Screening, model: Path, tmp_path: Path
) -> None:
    table = tmp_path / "done.csv"
    table.write_text(
        "name,energy,sites,defect_types,supercell,homo_lumo_gap_min\n"
        f"bulk,{PRISTINE_ENERGY},,,4x4,\n"
        f"pair,{PRISTINE_ENERGY + 5.5 + 2 * 4.25},16 33,v_S v_S,4x4,1.25\n"
    )
    arguments = ("--model", model, "--data", table, "--host", "MoS2", "--output", tmp_path / "out")
    found = evaluated(screening, *arguments, "--mu", "S=-4.25")
    assert {row["property"] for row in found["metrics"]} == {
        "formation_energy", "formation_energy_per_site", "homo_lumo_gap_min",
    }  # fmt: skip
    assert "formation_energy_per_site_label" in (tmp_path / "out" / "rows.csv").read_text().splitlines()[0]
    code, out, err = screening("evaluate", *arguments)
    assert code == 0
    assert "done.csv: pair: no formation energy" in err
    assert "MAE of homo_lumo_gap_min" in out


def test_a_model_of_the_project_is_known_by_its_results(
    screening: Screening, release: Path, clean_services: Settings, clean_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert clean_services.database_url is not None
    assert clean_services.redis_url is not None
    monkeypatch.setenv("SCREENING_HOME", str(clean_services.home))
    monkeypatch.setenv("SCREENING_DATABASE_URL", clean_services.database_url.get_secret_value())
    monkeypatch.setenv("SCREENING_REDIS_URL", clean_services.redis_url.get_secret_value())
    import_2dmd(clean_engine, release)
    with session_scope(clean_engine) as session:
        file = model_of(None)
        row = tables.TrainedModel(
            name="stored", level_id=session.scalars(select(tables.LevelOfTheory.id)).one(), seed=0, settings={},
            properties=list(file.card.properties), state="finished", weights=file.packed,
        )  # fmt: skip
        session.add(row)
        session.flush()
        results = session.scalars(
            select(tables.CalculationResult).where(tables.CalculationResult.row_name.in_(["train-1", "validation-1"]))
        )
        session.execute(
            insert(tables.ModelTrainingResult),
            [{"model_id": row.id, "result_id": result.id, "role": result.split} for result in results],
        )
    found = evaluated(screening, "--data", release)
    assert (found["model"], found["level"]) == ("stored", "2DMD PBE")
    assert (found["n_rows"], found["n_left_out"]) == (3, 1)  # W_Mo is refused, train-1 is learnt
    assert [row["name"] for row in found["refused"]] == ["unknown type"]
    (folder,) = (clean_services.home / "evaluations").iterdir()
    assert (folder / "evaluation.json").is_file()


def test_yardsticks_exclude_learnt_rows_and_need_some(screening: Screening, release: Path, model: Path) -> None:
    arguments = ("evaluate", "--model", model, "--data", release, "--yardsticks")
    code, _, err = screening(*arguments, "--include-learnt")
    assert code == 1
    assert "leave --include-learnt out" in err
    code, _, err = screening(*arguments)
    assert code == 1
    assert "the data hold 3 rows that the model has learnt from, too few" in err


def test_data_that_are_not_there_are_an_error(screening: Screening, model: Path, tmp_path: Path) -> None:
    code, out, err = screening("evaluate", "--model", model, "--data", tmp_path / "nothing", "--json")
    assert code == 1
    assert "there is no" in json.loads(out)["error"]
    assert "nothing" in err


def test_a_yardstick_that_is_better_is_printed_and_stored(screening: Screening, tmp_path: Path) -> None:
    """Energies are sums over the defects, which the pair expansion finds; the small model has learnt other ones."""
    energies = {"v_S": 20.0, "Se_S": 10.0, "v_Mo": 40.0}
    rows = [Row(f"single {name}", ((site, name),), energies[name]) for site, name in ((16, "v_S"), (20, "Se_S"))]
    for site in range(16, 48):
        for name in ("v_S", "Se_S"):
            split = "validation" if site % 4 == 3 else "train"
            rows.append(Row(f"{name} {site}", ((0, "v_Mo"), (site, name)), 40.0 + energies[name], split=split))
    release = write_subset(tmp_path / "release" / SUBSET, tuple(rows)).parent.parent
    labelled = read_labelled(release)
    learnt = fingerprints_of_rows(labelled)[[split == "train" for split in labelled.splits]]
    write_model_file(tmp_path / "model.safetensors", model_of(learnt))
    arguments = ("--model", tmp_path / "model.safetensors", "--data", release, "--yardsticks")
    code, out, err = screening("evaluate", *arguments, "--property", "formation_energy_per_site")
    assert code == 0, err
    assert "pair expansion on the same rows" in out
    assert "boosted trees on the same rows" in out
    assert "better than this model on MoS2 low: pair expansion, boosted trees, published sparse MEGNet" in out
    assert "--yardsticks" not in out
    (folder,) = (tmp_path / "home" / "evaluations").iterdir()
    (stored,) = json.loads((folder / "evaluation.json").read_text())["better"]
    assert (stored["property"], stored["subset"]) == ("formation_energy_per_site", SUBSET)
    assert stored["methods"][:2] == ["pair expansion", "boosted trees"]
