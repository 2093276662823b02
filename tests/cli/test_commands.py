"""Commands that need no services, and what they say when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from screening.cli.output import duration, size_on_disk
from screening.cli.query_options import build_query
from screening.cli.services import parse_workers
from screening.errors import InputError

MOS2 = ("--host", "MoS2", "--supercell", "8x8", "--types", "v_S,Se_S,v_Mo,W_Mo")


def screening(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a home without services."""
    return subprocess.run(
        [sys.executable, "-c", "from screening.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "SCREENING_HOME": str(home), "OMP_NUM_THREADS": "1"},
    )


def test_counts_are_the_exact_numbers_of_the_paper(tmp_path: Path) -> None:
    """4 + 159 + 13,446, and v_Mo+2v_S 743 (Huang et al., npj 2D Mater. Appl. 7, 6 (2023))."""
    finished = screening("count", *MOS2, "--max-defects", "3", "--json", home=tmp_path)
    assert finished.returncode == 0, finished.stderr
    counted = json.loads(finished.stdout)
    assert counted["total"] == 13_609
    assert counted["by_defects"] == {"1": 4, "2": 159, "3": 13_446}
    assert counted["by_composition"]["2*v_S+v_Mo"] == 743
    assert sum(counted["by_composition"].values()) == 13_609


def test_a_composition_needs_no_largest_number(tmp_path: Path) -> None:
    finished = screening("count", *MOS2, "--composition", "v_S:1,Se_S:1,v_Mo:1", "--json", home=tmp_path)
    counted = json.loads(finished.stdout)
    assert {key: counted[key] for key in ("total", "by_defects", "by_composition")} == {
        "total": 1415,
        "by_defects": {"3": 1415},
        "by_composition": {"v_S+Se_S+v_Mo": 1415},
    }


def test_a_count_says_what_the_search_space_will_cost(tmp_path: Path) -> None:
    arguments = (*MOS2, "--max-defects", "3")
    counted = json.loads(screening("count", *arguments, "--json", home=tmp_path).stdout)
    assert 13_609 * 100 < counted["disk_bytes"] < 13_609 * 1000
    assert 0 < counted["seconds"] < 10
    assert counted["scoring_seconds"] is None  # no services, no scoring to learn from
    text = screening("count", *arguments, home=tmp_path).stdout
    assert "MB with the predictions of one model" in text
    assert "score: not known" in text


def test_limits_make_a_part_of_the_space(tmp_path: Path) -> None:
    """Of the 19 pairs of v_S two are nearer than 4 A: across the layer, and a lattice constant of 3.18 A apart."""
    arguments = (
        *MOS2,
        "--max-defects",
        "2",
        "--limit",
        "v_S:0-2,Se_S:0-0",
        "--limit",
        "v_Mo:0-0",
        "--limit",
        "W_Mo:0-0",
    )
    every = json.loads(screening("count", *arguments, "--require", "v_S", "--json", home=tmp_path).stdout)
    assert every["by_composition"] == {"v_S": 1, "2*v_S": 19}
    apart = json.loads(screening("count", *arguments, "--min-separation", "4", "--json", home=tmp_path).stdout)
    near = json.loads(screening("count", *arguments, "--max-separation", "4", "--json", home=tmp_path).stdout)
    assert apart["by_defects"]["2"] + near["by_defects"]["2"] == 19
    assert near["by_defects"] == {"1": 1, "2": 2}
    walked = screening("enumerate", *arguments, "--max-separation", "4", "--no-store", "--json", home=tmp_path)
    assert json.loads(walked.stdout)["candidates"] == 3


def test_enumerating_without_storing_needs_no_services(tmp_path: Path) -> None:
    finished = screening("enumerate", *MOS2, "--max-defects", "3", "--no-store", "--json", home=tmp_path)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["candidates"] == found["expected"] == 13_609
    assert set(found) == {"candidates", "expected", "seconds", "per_second", "peak_memory_mb"}
    assert found["per_second"] == pytest.approx(13_609 / found["seconds"], rel=0.01)


def test_a_sample_is_printed_with_its_seed_and_the_exact_number_of_the_space(tmp_path: Path) -> None:
    arguments = ("enumerate", *MOS2, "--composition", "v_Mo:1,v_S:2", "--sample", "20", "--no-store")
    first, again, other = (
        json.loads(screening(*arguments, "--seed", seed, "--json", home=tmp_path).stdout) for seed in ("7", "7", "8")
    )
    assert (first["expected"], first["candidates"], first["sampled"], first["seed"]) == (743, 20, 20, 7)
    assert first["configurations"] == again["configurations"] != other["configurations"]
    assert {row["configuration"] for row in first["configurations"]} == {"2*v_S+v_Mo"}
    assert len({(*row["sites"], *row["defects"]) for row in first["configurations"]}) == 20
    table = screening(*arguments, "--seed", "7", home=tmp_path).stdout
    assert table.count("v_Mo@") == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("count", "--host", "MoTe2", "--supercell", "8x8", "--types", "v_Te", "--max-defects", "2"),
            "no host 'MoTe2'",
        ),
        (
            ("count", "--host", "MoS2", "--supercell", "8by8", "--types", "v_S", "--max-defects", "2"),
            "'8by8' cannot be",
        ),
        (
            ("count", "--host", "MoS2", "--supercell", "8x8", "--types", "v_Te", "--max-defects", "2"),
            "no site of species",
        ),
        (("count", "--host", "MoS2", "--supercell", "8x8", "--types", "sulphur", "--max-defects", "2"), "write v_S"),
        (("count", *MOS2), "give --max-defects"),
        (("count", *MOS2, "--composition", "v_S=2"), "write v_S:2,Se_S:1"),
        (("count", *MOS2, "--max-defects", "2", "--limit", "v_S=2"), "write v_S:0-2"),
        (("count", *MOS2, "--composition", "v_S:2", "--require", "v_S"), "leave the limits"),
        (("count", *MOS2, "--max-defects", "2", "--min-separation", "-1"), "expected a finite number above 0"),
        (("enumerate", *MOS2, "--max-defects", "2", "--sample", "5"), "add --no-store"),
        (("enumerate", *MOS2, "--max-defects", "1", "--sample", "5", "--no-store"), "search space has 4"),
        (("count", *MOS2, "--composition", "C_S:2"), "names C_S, which is not among"),
        (("up", "--workers", "many"), "write cpu=1,gpu=1"),
        (("design", "--host", "MoS2", "--gap", "1.2:1.0"), "low must be below high"),
        (("status",), "run `screening up`"),
        (("host", "add", "nowhere.cif", "--supercell", "4x4"), "no host 'nowhere.cif'"),
        (("predict", "x.cif", "-o", "x.csv"), "no services are known"),
    ],
)
def test_errors_say_what_to_do(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    finished = screening(*arguments, home=tmp_path / "home")
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.returncode == 1


def test_an_unknown_option_is_a_usage_error(tmp_path: Path) -> None:
    assert screening("count", "--hosts", "MoS2", home=tmp_path).returncode == 2


def test_an_option_that_is_missing_is_explained(tmp_path: Path) -> None:
    finished = screening("host", "add", "MoS2", home=tmp_path)
    assert finished.returncode == 2
    assert "Usage: screening host add" in finished.stderr.replace("-c", "screening")
    assert "Missing option '--supercell'. Repeats of the unit cell: 8x8" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("count", *MOS2, "--json"), 1, "the search space has no end; give --max-defects, or --composition"),
        (("campaign", "list", "--json"), 1, "no services are known in"),
        (("host", "add", "MoS2", "--json"), 2, "Missing option '--supercell'"),
        (("count", *MOS2, "--max-defects", "many", "--json"), 2, "Invalid value for '--max-defects'"),
    ],
)
def test_an_error_is_one_json_object_for_programs(
    arguments: tuple[str, ...], exit_code: int, message: str, tmp_path: Path
) -> None:
    finished = screening(*arguments, home=tmp_path)
    assert finished.returncode == exit_code
    assert list(json.loads(finished.stdout)) == ["error"]
    assert message in json.loads(finished.stdout)["error"]
    assert message in finished.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.4, "9.4 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min"),
     (97200, "1 d 3 h")],
)  # fmt: skip
def test_times_are_told_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("n_bytes", "text"), [(8192, "8.2 kB"), (234_567, "0.2 MB"), (14_731_000_000, "14.7 GB")])
def test_sizes_are_told_as_people_say_them(n_bytes: int, text: str) -> None:
    assert size_on_disk(n_bytes) == text


@pytest.mark.parametrize(
    "command",
    ["up", "down", "status", "doctor", "count", "enumerate", "score", "train", "predict", "design", "next", "calculate",
     "demo", "demo-2dmd", "host add", "host list", "host show", "import 2dmd", "import builtin", "results add",
     "model list", "model show", "dataset build", "campaign plan", "campaign start", "campaign status",
     "campaign pause", "campaign resume", "campaign cancel", "campaign list", "campaign delete"],
)  # fmt: skip
def test_every_command_explains_itself(command: str, tmp_path: Path) -> None:
    finished = screening(*command.split(), "--help", home=tmp_path)
    assert finished.returncode == 0
    assert "Usage:" in finished.stdout
    assert "--json" in finished.stdout


def test_the_start_of_a_command_imports_nothing_heavy() -> None:
    heavy = "torch", "pymatgen", "numba", "sqlalchemy", "celery", "matplotlib", "ase", "tblite"
    code = f"import sys, screening.cli; print([name for name in {heavy!r} if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


@pytest.mark.parametrize(("text", "counts"), [("cpu=2,gpu=1", (2, 1)), ("gpu=3", (0, 3)), ("none", (0, 0))])
def test_workers_are_read(text: str, counts: tuple[int, int]) -> None:
    assert parse_workers(text) == {"cpu": counts[0], "gpu": counts[1]}


def test_options_become_a_design_query() -> None:
    query = build_query(
        host="MoS2", gap="1.0:1.2", window=["total_mag=0.5:"], max_defects=3, sort="formation_energy", highest=True
    )
    assert [(w.property, w.low, w.high) for w in query.windows] == [
        ("homo_lumo_gap_min", 1.0, 1.2),
        ("total_mag", 0.5, None),
    ]
    assert query.direction == "highest"


def test_a_faulty_option_of_a_design_query_is_named() -> None:
    with pytest.raises(InputError, match=r"limit: .*\(found 0\)"):
        build_query(host="MoS2", limit=0)
    with pytest.raises(InputError, match="no property is called 'bandgap'"):
        build_query(host="MoS2", window=["bandgap=1:2"])
    with pytest.raises(InputError, match="write property=low:high"):
        build_query(host="MoS2", window=["1:2"])


@pytest.mark.parametrize(
    "option",
    [
        ("--gap", "1:1.2"), ("--window", "homo=:1"), ("--sort", "lumo"), ("--highest",), ("--closest", "0"),
        ("--mu", "S-rich"), ("--temperature", "300"),
    ],
)  # fmt: skip
def test_what_serves_the_model_serves_no_query(option: tuple[str, ...], tmp_path: Path) -> None:
    finished = screening("next", "--host", "MoS2", "--learn", *option, home=tmp_path)
    assert finished.returncode == 1
    assert "leave --gap, --window, --mu, --temperature, --sort, --highest and --closest out" in finished.stderr
