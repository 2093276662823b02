"""The loop end to end by its commands, small: real services and workers, a data set played back, live calculations."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import DefectType, parse_defect_types
from screening.defects.enumeration import SearchSpace, enumerate_space
from screening.defects.host import Supercell
from screening.defects.symmetry import find_symmetry
from screening.services import down
from screening.settings import Settings
from tests.cli.test_loop import screening
from tests.conftest import temporary_home
from tests.synthetic_2dmd import Row, write_subset
from tests.synthetic_results import values

N_TEST = 12


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """One home for both: starting the services takes longer than what runs on them."""
    with temporary_home() as found:
        yield found
        down(Settings(home=found, database_url=None, redis_url=None))


def data_set(folder: Path) -> Path:
    """All configurations of one and two of three types in 4x4 MoS2, and some of three, by the formula; shuffled."""
    supercell = Supercell.parse(catalogue_host("MoS2"), "4x4")
    space = SearchSpace(supercell, parse_defect_types("v_S,Se_S,W_Mo"), 3)
    blocks = list(enumerate_space(space, find_symmetry(supercell)))
    configurations = [block.configuration(i) for block in blocks for i in range(len(block.multiplicity))]
    chosen = [c for i, c in enumerate(configurations) if c.n_defects < 3 or i % 10 == 0]
    rows = []
    for i in np.random.default_rng(0).permutation(len(chosen)).tolist():
        configuration = chosen[i]
        names = [DefectType.from_code(code).name for code in configuration.defect_types]
        energy = values(supercell, configuration)["formation_energy"]
        split = "validation" if len(rows) < N_TEST else "train"
        rows.append(Row(f"row-{i}", tuple(zip(configuration.sites, names, strict=True)), energy, split))
    return write_subset(folder / "low_density_defects" / "MoS2", tuple(rows))


def test_a_data_set_is_played_back_until_the_calculations_are_made(home: Path, tmp_path: Path) -> None:
    options = ("--first", "20", "--batch", "5", "--max-calculations", "5", "--top", "3", "--gap", "0.5:")
    places = (str(data_set(tmp_path)), "--output", str(tmp_path / "report"))
    found = screening("loop", "demo-2dmd", *places, *options, "--epochs", "6", "--json", home=home)
    assert (found["state"], found["n_test"]) == ("finished", N_TEST)
    assert [(p["n_calculated"], p["n_made"]) for p in found["points"]] == [(20, 0), (25, 5)]
    first, last = found["points"][0], found["points"][-1]
    assert first["random_mae"] == first["mae"] > 0  # both begin with the same version
    assert last["random_mae"] not in (None, last["mae"])
    assert found["known_best"] <= last["best"] <= first["best"]
    with (tmp_path / "report" / "loop.csv").open() as file:
        assert [row["n_calculated"] for row in csv.DictReader(file)] == ["20", "25"]
    again = screening("loop", "demo-2dmd", *places, *options, "--no-random-errors", "--json", home=home)
    assert [p["random_mae"] for p in again["points"]] == [None] * 2  # the same loop, reported anew
    assert [p["mae"] for p in again["points"]] == [p["mae"] for p in found["points"]]


def test_a_loop_runs_live(home: Path, tmp_path: Path) -> None:
    options = ("--first", "20", "--batch", "2", "--max-calculations", "2", "--top", "3", "--epochs", "6")
    found = screening("loop", "demo-xtb", *options, "--output", str(tmp_path / "report"), "--json", home=home)
    assert (found["state"], found["ended"]) == ("finished", "2 calculations were made")
    assert [p["n_made"] for p in found["points"]] == [0, 2]
    assert Path(found["plot"]).read_bytes().startswith(b"\x89PNG")
    assert found["n_test"] == 4  # every fifth of the first
    newest, *_ = screening("round", "list", "--json", home=home)["rounds"]
    assert (newest["calculations"], newest["finished"]) == (2, 2)
