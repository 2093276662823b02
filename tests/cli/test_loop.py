"""The whole loop by its commands: real services, real workers, the shipped data, live calculations."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.dft.structures import write_structure

SPACE = ("--host", "MoS2", "--supercell", "4x4", "--types", "v_S,Se_S,v_Mo,W_Mo", "--max-defects", "3")
N_CANDIDATES = 1003  # 4 + 53 + 946 by Burnside's lemma
PROPERTIES = ("formation_energy", "formation_energy_per_site", "homo_lumo_gap_min", "homo", "lumo")


def screening(*arguments: str, home: Path, exit_code: int = 0) -> Any:
    """Run a command; what it printed, as JSON where it is."""
    finished = subprocess.run(
        [sys.executable, "-c", "from screening.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SCREENING_HOME": str(home), "SCREENING_DEVICE": "cpu"},
    )
    assert finished.returncode == exit_code, finished.stderr
    return json.loads(finished.stdout) if "--json" in arguments else finished.stdout


def test_the_loop_closes_and_another_run_adds_a_round(home: Path, tmp_path: Path) -> None:
    first = screening("demo", "--output", str(tmp_path), "--n", "2", "--epochs", "6", "--json", home=home)
    assert first["candidates"] == N_CANDIDATES
    assert (first["model"], first["retrained"]) == ("demo-1", "demo-2")
    assert [row["state"] for row in first["calculated"]] == ["finished", "finished"]
    assert {row["property"] for row in first["compared"]} == {"formation_energy_per_site", "homo_lumo_gap_min"}
    assert Path(first["plot"]).read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "ranking.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(first["rows"])

    models = {row["model"]: row for row in screening("model", "list", "--json", home=home)["models"]}
    assert models["demo-2"]["parent"] == "demo-1"
    learnt = [models[name]["n_train"] + models[name]["n_validation"] for name in ("demo-1", "demo-2")]
    assert learnt[1] == learnt[0] + 2

    second = screening("demo", "--output", str(tmp_path), "--n", "2", "--epochs", "6", "--json", home=home)
    assert (second["model"], second["retrained"]) == ("demo-2", "demo-3")
    done = {row["calculation"] for row in first["calculated"]}
    assert done.isdisjoint(row["calculation"] for row in second["calculated"])
    _check_commands(home, tmp_path)
    assert "stopped" in screening("down", home=home)
    states = [row["running"] for row in screening("status", "--json", home=home, exit_code=1)["services"]]
    assert not any(states)


def _check_commands(home: Path, folder: Path) -> None:
    """The commands step by step, on what the demo left."""
    enumerated = screening("enumerate", *SPACE, "--json", home=home)
    assert enumerated["candidates"] == enumerated["expected"] == N_CANDIDATES
    assert enumerated["seconds"] > 0
    assert enumerated["peak_memory_mb"] > 50

    scored = screening("score", *SPACE, "--json", home=home)
    assert (scored["model"], scored["predictions"]) == ("demo-3", N_CANDIDATES)

    design = screening("design", "--host", "MoS2", "--window", "formation_energy_per_site=:2.0", "--json", home=home)
    assert design["model"] == "demo-3"
    assert design["sql"].startswith("SELECT")
    energies = [row["formation_energy_per_site_mean"] for row in design["rows"]]
    assert energies == sorted(energies)
    assert all(row["probability"] >= 0.5 for row in design["rows"])
    assert design["search_space"]["description"] == "1 to 3 of v_S, Se_S, v_Mo, W_Mo"
    assert design["search_space"]["candidates"] == N_CANDIDATES
    assert "configuration" in screening("design", "--host", "MoS2", home=home)
    assert "lower --confidence" in screening("design", "--host", "MoS2", "--gap", "90:91", home=home)

    unknown = screening("score", *SPACE[:4], "--types", "v_S,O_S", "--max-defects", "1", home=home, exit_code=1)
    assert unknown == ""
    relaxed = (
        "next",
        "--host",
        "MoS2",
        "--n",
        "2",
        "--level",
        "GFN1-xTB relaxed",
        "--structures",
        str(folder / "next"),
    )
    proposals = screening(*relaxed, "--json", home=home)["proposals"]
    assert [Path(row["structure"]).name for row in proposals] == [
        f"calculation-{row['calculation_id']}.vasp" for row in proposals
    ]
    assert all(Path(row["structure"]).is_file() for row in proposals)
    assert "2 proposed at GFN1-xTB relaxed" in screening("calculate", home=home)

    again = screening("import", "builtin", "--json", home=home)
    assert (again["new"], again["refused"]) == (0, 0)
    assert again["known"] == again["read"]
    hosts = screening("host", "list", "--json", home=home)
    assert [(row["host"], row["supercell"]) for row in hosts["hosts"]] == [("MoS2", "4x4")]
    assert screening("host", "show", "MoS2", "--json", home=home)["n_operations"] == 12
    assert screening("doctor", "--json", home=home)["ok"]
    _check_predict(home, folder)


def _check_predict(home: Path, folder: Path) -> None:
    """The same configuration in every format has the same prediction; what cannot be predicted is named."""
    supercell = Supercell.parse(catalogue_host("MoS2"), "4x4")
    configuration = Configuration((3, 20), (42 * 128, 16 * 128 + 34))
    files = [folder / name for name in ("one.cif", "POSCAR_two.vasp", "three.extxyz")]
    for path in files:
        write_structure(path, supercell, configuration)
    output = folder / "predicted.csv"
    report = screening("predict", *map(str, files), "--output", str(output), "--json", home=home)
    assert (report["rows"], report["refused"]) == (3, [])
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [path.stem for path in files]
    assert {row["configuration"] for row in rows} == {"Se_S+v_Mo"}
    assert {row["n_defects"] for row in rows} == {"2"}
    for name in PROPERTIES:
        means = [float(row[f"{name}_mean"]) for row in rows]
        assert max(means) - min(means) < 1e-4
        assert all(float(row[f"{name}_std"]) > 0 for row in rows)

    pristine = folder / "pristine.cif"
    write_structure(pristine, supercell, Configuration((), ()))
    other = folder / "other.cif"
    write_structure(other, Supercell.parse(catalogue_host("h-BN"), "4x4"), Configuration((1,), (5 * 128,)))
    unseen = folder / "unseen.cif"
    write_structure(unseen, supercell, Configuration((20,), (16 * 128 + 8,)))
    arguments = [str(path) for path in (pristine, other, unseen, files[0])]
    report = screening("predict", *arguments, "--output", str(output), "--json", home=home, exit_code=1)
    assert report["rows"] == 1
    reasons = {row["name"]: row["reason"] for row in report["refused"]}
    assert "pristine" in reasons["pristine"]
    assert "lattice" in reasons["other"]
    assert "has never seen O_S in MoS2" in reasons["unseen"]


@pytest.mark.parametrize("epochs", ["2"])
def test_the_loop_closes_on_the_dft_data_of_2dmd(home: Path, tmp_path: Path, shared_data: Path, epochs: str) -> None:
    found = screening(
        "demo-2dmd", str(shared_data / "2dmd"), "--output", str(tmp_path), "--n", "5", "--epochs", epochs, "--json",
        home=home,
    )  # fmt: skip
    assert found["candidates"] == 13_609
    assert [row["state"] for row in found["calculated"]].count("finished") >= 1
    assert Path(found["plot"]).exists()
