import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.host import Supercell
from screening.dft import bulk_matching
from screening.dft.bulk_matching import Match, MatchingPool
from tests.synthetic_2dmd import cif

SUPERCELL = Supercell.parse(catalogue_host("MoS2"), "4x4")
TEXTS = [
    *((f"vacancy {site}", cif(((site, "v_S"),))) for site in range(16, 48)),
    *((f"tungsten {site}", cif(((site, "W_Mo"),))) for site in range(16)),
]

ENDLESS_PARENT = """
import itertools
import sys
from pathlib import Path
from screening.defects.catalogue import catalogue_host
from screening.defects.host import Supercell
from screening.dft.bulk_matching import MatchingPool

if __name__ == "__main__":
    supercell = Supercell.parse(catalogue_host("MoS2"), "4x4")
    vacancy = ("vacancy", Path(sys.argv[1]).read_text())
    with MatchingPool(2) as pool:
        for match in pool.match(itertools.repeat(vacancy), supercell):
            print(match.name, flush=True)
"""


def match_all(pool: MatchingPool) -> list[Match]:
    return list(pool.match(iter(TEXTS), SUPERCELL))


def test_every_vacancy_of_one_orbit_is_one_canonical_configuration() -> None:
    with MatchingPool() as pool:
        matches = match_all(pool)
    assert [match.name for match in matches] == [name for name, _ in TEXTS]
    vacancies = {match.configuration for match in matches[:32]}
    assert len(vacancies) == 1
    assert {match.multiplicity for match in matches} == {32, 16}  # 2 S and 1 Mo in each of 16 unit cells


def test_processes_find_what_one_process_finds_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with MatchingPool(1) as pool:
        expected = match_all(pool)
    monkeypatch.setattr(bulk_matching, "FEW", 2)
    monkeypatch.setattr(bulk_matching, "_BATCH", 5)
    with MatchingPool(2) as pool:
        assert match_all(pool) == expected
        assert match_all(pool) == expected  # the pool serves several subsets


def test_what_does_not_match_comes_back_with_its_reason() -> None:
    texts = [
        ("wrong cell", cif(((16, "v_S"),), scale=1.2)),
        ("adatom", cif(((16, "v_S"),), adatom=True)),
        ("no CIF", "Mo S S"),
        ("good", cif(((16, "v_S"),))),
    ]
    with MatchingPool() as pool:
        matches = list(pool.match(texts, SUPERCELL))
    assert [match.configuration is None for match in matches] == [True, True, True, False]
    assert all(match.reason for match in matches[:3])


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(ENDLESS_PARENT)
    structure = tmp_path / "vacancy.cif"
    structure.write_text(cif(((16, "v_S"),)))
    with subprocess.Popen([sys.executable, script, structure], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "vacancy\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
        _, alive = psutil.wait_procs(children, timeout=30)
    assert len(children) >= 2
    assert alive == []
