"""Design queries and calculations by their commands, on a database of one test; no worker runs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ase.io import read
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from screening.cli.calculations import builtin_level, calculate_stored, describe_calculations
from screening.cli.designs import design, propose_stored
from screening.cli.project import Project
from screening.cli.query_options import build_query
from screening.database import tables
from screening.database.session import session_scope
from screening.defects.catalogue import catalogue_host
from screening.defects.host import Supercell
from screening.dft import xtb
from screening.errors import InputError
from screening.pipeline.hosts import add_configurations, add_supercell
from screening.pipeline.query_context import with_stored_host
from screening.pipeline.query_words import describe_nothing
from screening.pipeline.references import add_level
from screening.settings import Settings
from tests.cli.conftest import Run
from tests.pipeline.test_round_pools import World
from tests.pipeline.test_rounds import scored
from tests.synthetic_results import mos2, random_configurations


@pytest.fixture
def project(clean_services: Settings) -> Iterator[Project]:
    """The services of a test; its engine is closed at the end."""
    found = Project(clean_services)
    yield found
    found.engine.dispose()


def add_calculations(session: Session, *states: str, relax: bool = False) -> list[int]:
    """Calculations of 4x4 MoS2 in these states; their ids."""
    stored = add_supercell(session, mos2())
    level_id = add_level(session, xtb.level_of_theory(relax))
    distinct = dict.fromkeys(add_configurations(session, stored, random_configurations(stored.supercell, 40)))
    ids = []
    for configuration_id, state in zip(distinct, states, strict=False):
        row = tables.Calculation(
            configuration_id=configuration_id, level_id=level_id, state=state,
            error="did not converge" if state == "failed" else None,
        )  # fmt: skip
        session.add(row)
        session.flush()
        ids.append(row.id)
    return ids


def test_calculate_says_what_there_is_instead_of_proposals(project: Project, clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        add_calculations(session, "failed", "failed")
        add_calculations(session, "proposed", relax=True)
    assert calculate_stored(project) == []
    assert describe_calculations(project, builtin_level()) == (
        "no calculation is proposed at GFN1-xTB single point; there are: 1 proposed at GFN1-xTB relaxed, "
        "2 failed at GFN1-xTB single point; `screening next` proposes some, --retry-failed tries failed ones again"
    )


def test_calculate_waits_for_what_an_interrupted_one_released(project: Project, clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        ids = add_calculations(session, "waiting", "finished")
    queued = calculate_stored(project, wait=False)
    assert [(row["calculation"], row["state"]) for row in queued] == [(ids[0], "waiting")]

    def finish_later() -> None:
        time.sleep(1.0)
        with session_scope(clean_engine) as session:
            session.execute(update(tables.Calculation).values(state="finished", finished_at=func.now()))

    worker = threading.Thread(target=finish_later)
    worker.start()
    found = calculate_stored(project)
    worker.join()
    assert [(row["calculation"], row["state"]) for row in found] == [(ids[0], "finished")]


def test_calculate_refuses_a_level_of_another_code(project: Project, clean_engine: Engine) -> None:
    with session_scope(clean_engine) as session:
        add_calculations(session, "proposed")
        session.execute(update(tables.LevelOfTheory).values(name="2DMD PBE", digest="d"))
    with pytest.raises(InputError, match="does not compute at '2DMD PBE'"):
        calculate_stored(project, level="2DMD PBE")
    with session_scope(clean_engine) as session:
        assert session.scalars(select(tables.Calculation.state)).all() == ["proposed"]


def test_an_empty_ranking_says_what_to_change() -> None:
    query = build_query(host="MoS2", gap="1.0:1.2", window=["total_mag=0.5:"], confidence=0.9)
    assert describe_nothing(query, 13_609) == (
        "none of the 13609 candidates has homo_lumo_gap_min 1:1.2 and total_mag 0.5: with a probability of 0.9 or "
        "more; lower --confidence, or widen the windows"
    )


def test_a_page_that_begins_later_is_not_kept_as_a_ranking() -> None:
    with pytest.raises(InputError, match="--save keeps a ranking from its first row, --after begins later"):
        design(host="MoS2", save=True, after="a cursor")


def test_a_front_that_its_limit_may_have_cut_says_so(
    project: Project, clean_engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("screening.cli.designs.Project", lambda: project)
    with session_scope(clean_engine) as session:
        scored(session)
    for limit, says in (
        (1, "the front has 1 rows, which is the limit, or more; raise --limit for all of it\n"),
        (99, ""),
    ):
        design(host="MoS2", pareto="gap=highest,formation_energy_per_site=lowest", limit=limit)
        assert capsys.readouterr().err == says


def test_a_query_may_name_a_host_as_the_catalogue_also_does(project: Project) -> None:
    with project.transaction() as session:
        add_supercell(session, Supercell.parse(catalogue_host("h-BN"), "3x3"))
        assert with_stored_host(session, build_query(host="hBN")).host == "h-BN"
        assert with_stored_host(session, build_query(host="my own")).host == "my own"


def test_what_serves_the_model_has_its_structures(project: Project, clean_engine: Engine, tmp_path: Path) -> None:
    with session_scope(clean_engine) as session:
        scored(session)
    rows = propose_stored(project, build_query(host="MoS2"), tmp_path / "next", learn=True, n=3, seed=2)
    assert all("of the uncertainty of all candidates" in row["reason"] for row in rows)
    assert [row["structure"].is_file() for row in rows] == [True] * 3
    with session_scope(clean_engine) as session:
        stored = session.scalars(select(tables.Calculation).order_by(tables.Calculation.id)).all()
        assert {row.id: row.state for row in stored} == {row["calculation_id"]: "proposed" for row in rows}


def test_a_round_of_two_supercells_says_which_of_them(run_here: Run, clean_engine: Engine, tmp_path: Path) -> None:
    with session_scope(clean_engine) as session:
        world = World(session)
        names = [f"{world.model.name}-{space}" for space in session.scalars(select(tables.SearchSpace.id))]
    both = ("--host", "MoS2 2x2,MoS2 3x3")
    code, shown, errors = run_here("next", *both, "--gap", "0.8:1.4", "--mu", "metal-rich", "--n", "8", "--name", "two")
    assert code == 0, errors
    assert [sum(place in line for line in shown.splitlines()) > 0 for place in ("MoS2 2x2", "MoS2 3x3")] == [True] * 2
    code, shown, _ = run_here("round", "status", "two")
    assert shown.splitlines()[0].split()[:3] == ["calculation", "host", "supercell"]
    code, shown, errors = run_here("round", "export", "two", str(tmp_path / "out"), "--structures-only")
    assert code == 0, errors
    sizes = {len(read(path)) for path in (tmp_path / "out").glob("calculation-*/POSCAR")}
    assert min(sizes) <= 12 < max(sizes)
    closest = ("--sort", "formation_energy", "--closest", "1.9", "--n", "1", "--json")
    found = json.loads(run_here("next", "--host", "MoS2", "--supercell", "3x3", *closest)[1])
    assert found["proposals"][0]["place"] == "MoS2 3x3"
    found = json.loads(run_here("next", *both, "--n", "2", "--json")[1])
    assert found["campaign"] == ", ".join(names)
    code, _, errors = run_here("next", *both, "--learn")
    assert (code, "is about MoS2 2x2, MoS2 3x3; here it must be about one of them" in errors) == (1, True)
