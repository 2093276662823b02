"""A data set plays the cluster: what a loop proposes is answered from its labels, and only that."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete, func, select, update

from screening.database import tables
from screening.database.design_query import DesignQuery
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration
from screening.errors import InputError
from screening.pipeline.hosts import add_configurations, add_supercell
from screening.pipeline.loop_report import LoopPoint, LoopReport, report, write_report
from screening.pipeline.replay import NO_RESULT, Replay, begin, play, read_replay
from screening.pipeline.retraction import retract
from tests.pipeline.made_loops import calculate_round, end_training, make_world, other_order, start, step
from tests.synthetic_2dmd import ROWS, write_subset

N_TRAIN = sum(row.split == "train" and row.formation_energy is not None for row in ROWS)
N_TEST = sum(row.split == "validation" for row in ROWS)


@pytest.fixture
def replay(tmp_path: Path) -> Replay:
    return read_replay(write_subset(tmp_path / "low_density_defects" / "MoS2"))


def result_names(engine: Engine) -> set[str]:
    with session_scope(engine) as session:
        return set(session.scalars(select(tables.CalculationResult.row_name)))


def add_round(engine: Engine, replay: Replay, configurations: list[Configuration]) -> int:
    """A loop whose round has these configurations, at the level of the data; its id."""
    with session_scope(engine) as session:
        stored = add_supercell(session, replay.supercell)
        level_id = session.scalars(select(tables.LevelOfTheory.id)).one()
        model = tables.TrainedModel(
            name="m", level_id=level_id, properties=["homo"], settings={}, seed=0, state="finished", weights=b"w"
        )
        session.add(model)
        session.flush()
        round_ = tables.Round(model_id=model.id, level_id=level_id, query={}, seed=0)
        design = tables.Design(name="d", query={}, line_id=model.line_id)
        session.add_all([round_, design])
        session.flush()
        for i in add_configurations(session, stored, configurations):
            session.add(tables.Calculation(configuration_id=i, level_id=level_id, round_id=round_.id, state="proposed"))
        loop = tables.Loop(
            name="l", design_id=design.id, line_id=model.line_id, level_id=level_id, calculator="external", batch=1,
            max_calculations=9, patience=1, top=1, seed=0, stage="calculate", round_id=round_.id,
        )  # fmt: skip
        session.add(loop)
        session.flush()
        return loop.id


def test_labels_are_those_of_the_files_and_test_rows_stay_apart(replay: Replay) -> None:
    energies = {row.name: row.formation_energy for row in ROWS if row.formation_energy is not None}
    assert {label.name for label in replay.pool} == {r.name for r in ROWS if r.split == "train" and r.name in energies}
    assert {label.name for label in replay.test} == {r.name for r in ROWS if r.split == "validation"}
    for label in (*replay.pool, *replay.test):
        assert label.properties["formation_energy"] == pytest.approx(energies[label.name], abs=1e-6)


def test_the_beginning_takes_so_many_in_and_again_changes_nothing(clean_engine: Engine, replay: Replay) -> None:
    for _ in range(2):
        with session_scope(clean_engine) as session:
            begin(session, replay, n_first=2, seed=3)
    names = result_names(clean_engine)
    assert len(names) == 3
    assert "pristine" in names
    assert names < {"pristine", *(label.name for label in replay.pool)}
    with session_scope(clean_engine) as session:
        n_stored = session.scalar(
            select(func.count()).select_from(tables.Configuration).where(tables.Configuration.n_defects > 0)
        )
        with pytest.raises(InputError, match=f"can give 1 to {N_TRAIN}"):
            begin(session, replay, n_first=N_TRAIN + 1)
    assert n_stored == N_TRAIN  # those of the test rows are not stored: nobody may propose them


def test_what_a_loop_has_proposed_is_answered(clean_engine: Engine, replay: Replay) -> None:
    with session_scope(clean_engine) as session:
        begin(session, replay, n_first=1, seed=0)
    left = [label for label in replay.pool if label.name not in result_names(clean_engine)]
    unknown = Configuration((16, 33), (16 * 128 + 34, 16 * 128 + 34))
    loop_id = add_round(clean_engine, replay, [left[0].configuration, left[1].configuration, unknown])
    assert play(clean_engine, replay, loop_id) == 3
    assert play(clean_engine, replay, loop_id) == 0
    names = result_names(clean_engine)
    assert {left[0].name, left[1].name} < names
    assert len(names) == 4
    with session_scope(clean_engine) as session:
        rows = session.execute(
            select(tables.Calculation.state, tables.Calculation.error).where(tables.Calculation.round_id.is_not(None))
        ).all()
        assert sorted(map(tuple, rows), key=str) == [("failed", NO_RESULT), ("finished", None), ("finished", None)]
        of_pool = tables.CalculationResult.row_name == left[0].name
        result = session.scalars(select(tables.CalculationResult).where(of_pool)).one()
        assert result.formation_energy == pytest.approx(left[0].properties["formation_energy"], abs=1e-6)
        assert result.homo_lumo_gap_min == left[0].properties["homo_lumo_gap_min"]
        assert result.source_file_id is not None


def test_a_loop_that_does_not_run_is_not_played(clean_engine: Engine, replay: Replay) -> None:
    with session_scope(clean_engine) as session:
        begin(session, replay, n_first=1, seed=0)
    known = result_names(clean_engine)
    left = [label.configuration for label in replay.pool if label.name not in known]
    loop_id = add_round(clean_engine, replay, left)
    with session_scope(clean_engine) as session:
        session.execute(update(tables.Loop).values(state="paused"))
    assert play(clean_engine, replay, loop_id) == 0


def test_a_report_has_a_point_for_each_ranking(clean_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of made models predict nothing, so that errors are taken as known here."""
    errors = {1: 0.5, 2: 0.25}
    monkeypatch.setattr("screening.pipeline.loop_report._mae", lambda session, model_id, *a, **o: errors[model_id])
    make_world(clean_engine)
    loop_id = start(clean_engine)
    for _ in range(2):
        step(clean_engine, loop_id)
    calculate_round(clean_engine, loop_id)
    for _ in range(2):
        step(clean_engine, loop_id)
    end_training(clean_engine, shift=other_order)
    for _ in range(3):
        step(clean_engine, loop_id)
    with session_scope(clean_engine) as session:
        found = report(session, "loop")
        n_first = session.scalar(select(func.count()).where(tables.ModelTrainingResult.model_id == 1))
        lowest = session.scalar(select(func.min(tables.CalculationResult.formation_energy_per_site)))
    assert [(p.n_calculated, p.n_made, p.model, p.mae, p.n_changed) for p in found.points] == [
        (n_first, 0, "first", 0.5, None), (n_first + 3, 3, "first@2", 0.25, 5),
    ]  # fmt: skip
    assert found.points[1].best == lowest
    assert (found.property, found.direction) == ("formation_energy_per_site", "lowest")


def test_a_withdrawn_result_does_not_count_to_the_error_of_its_round(clean_engine: Engine) -> None:
    from screening.pipeline.loop_report import _proposed_mae

    make_world(clean_engine)
    loop_id = start(clean_engine)
    for _ in range(2):
        step(clean_engine, loop_id)
    calculate_round(clean_engine, loop_id)
    what, errors = "formation_energy_per_site", (1.0, 2.0, 6.0)
    with session_scope(clean_engine) as session:
        round_id = session.get_one(tables.Loop, loop_id).round_id
        found = session.scalars(
            select(tables.CalculationResult)
            .join(tables.Calculation, tables.Calculation.id == tables.CalculationResult.calculation_id)
            .where(tables.Calculation.round_id == round_id)
            .order_by(tables.CalculationResult.id)
        ).all()
        session.execute(delete(tables.ResultPrediction))
        for row, error in zip(found, errors, strict=True):
            assert row.formation_energy_per_site is not None
            said = {"mean": row.formation_energy_per_site + error, "std": 0.1, "half_width": 0.2}
            session.add(tables.ResultPrediction(result_id=row.id, model_id=1, property=what, **said))
        session.flush()
        assert _proposed_mae(session, round_id, what) == pytest.approx(3.0)
        retract(session, found[2].id, "wrong")
        assert _proposed_mae(session, round_id, what) == pytest.approx(1.5)


def test_a_report_is_a_table_and_plots(tmp_path: Path) -> None:
    points = (
        LoopPoint(30, 0, "m", 1.5, 0.3, None, None, 1.2, 1.6, None),
        LoopPoint(40, 10, "m@2", None, 0.2, 0.4, 3, 1.1, 1.5, 1.9),
    )
    found = LoopReport("l", "finished", "it stands still", "homo_lumo_gap_min", "lowest", points, 12, 1.0)
    table, plot = write_report(found, tmp_path / "report")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["n_calculated"] for row in rows] == ["30", "40"]
    assert (rows[1]["best"], rows[1]["n_changed"]) == ("", "3")
    assert plot.read_bytes().startswith(b"\x89PNG")
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(InputError, match="name another folder"):
        write_report(found, blocked)


def test_random_choice_is_that_of_the_labels(replay: Replay) -> None:
    from screening.pipeline.loop_report import _random

    query = DesignQuery(host="MoS2", sort="formation_energy_per_site")
    lowest = min(label.properties["formation_energy_per_site"] for label in replay.pool)
    assert _random(query, replay, N_TRAIN) == pytest.approx((lowest,) * 3)
    highest = DesignQuery(host="MoS2", sort="formation_energy_per_site", direction="highest")
    low, median, high = _random(highest, replay, 1)
    values = {round(label.properties["formation_energy_per_site"], 9) for label in replay.pool}
    assert None not in (low, median, high)
    assert {round(v, 9) for v in (low, median, high) if v is not None} <= values
    closest = DesignQuery(host="MoS2", sort="formation_energy", direction="closest", target=3.0)
    assert _random(closest, replay, N_TRAIN) == pytest.approx((2.75,) * 3)  # of 2.75, 7.5, -0.25 and 5.375
    none = DesignQuery.of(host="MoS2", windows=["formation_energy_per_site=90:91"])
    assert _random(none, replay, N_TRAIN) == (None, None, None)
