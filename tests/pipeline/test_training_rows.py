"""Which results weigh together, and the numbers that each keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sqlalchemy import Engine, select

from screening.database import tables
from screening.database.session import session_scope
from screening.learning.dataset import LabelledRows
from screening.pipeline.imports import import_2dmd
from screening.pipeline.labelled_files import read_labelled
from screening.pipeline.training_rows import VALIDATION_SHARE, groups_of, load_rows, role_of
from tests.synthetic_2dmd import N_RESULTS, ROWS, write_subset
from tests.synthetic_results import mos2, random_configurations


def test_rounds_and_small_data_sets_weigh_as_rows_of_the_largest_one() -> None:
    """Groups weigh equally: six proposals in a group of their own would be half of all draws."""
    datasets = ["low"] * 300 + ["high"] * 150 + ["few"] * 20 + ["round 1"] * 5 + ["round 2"] * 120
    groups = groups_of([1] * len(datasets) + [2] * 7, [*datasets, *["round 1"] * 7])
    assert len(set(groups[:300])) == 1
    assert set(groups[450:595]) == set(groups[:300])
    assert set(groups[300:450]) != set(groups[:300])
    assert len(set(groups[595:])) == 1
    assert set(groups[595:]).isdisjoint(groups[:595])


def test_folds_are_even_and_have_nothing_to_do_with_roles() -> None:
    supercell = mos2("8x8")
    configurations = tuple(dict.fromkeys(random_configurations(supercell, 20_000, max_defects=3)))
    n_rows = len(configurations)
    held = np.array([role_of(tables.CalculationResult(id=i)) == "validation" for i in range(1, n_rows + 1)])
    nothing = np.zeros(n_rows, np.int64)
    rows = LabelledRows((supercell,), nothing, configurations, ("homo",), np.zeros((n_rows, 1)), held, nothing)
    for n_members in (2, 3, 5, 7):
        for chosen in (rows.fold, rows.fold[held]):
            sizes = np.bincount(chosen % n_members, minlength=n_members)
            assert max(sizes) < 1.1 * len(chosen) / n_members


def test_a_configuration_has_the_same_fold_in_files_and_in_a_database(clean_engine: Engine, tmp_path: Path) -> None:
    """What a shipped model has left out, models of a database that go on from it leave out as well."""
    folder = write_subset(tmp_path / "low_density_defects" / "MoS2", tuple(reversed(ROWS)))
    of_files = read_labelled(folder).rows()
    expected = dict(zip(of_files.configurations, of_files.fold.tolist(), strict=True))
    import_2dmd(clean_engine, write_subset(tmp_path / "again" / "low_density_defects" / "MoS2"))
    with session_scope(clean_engine) as session:
        of_rows = tables.CalculationResult.row_name.in_([row.name for row in ROWS])  # not that of the pristine cell
        results = session.scalars(select(tables.CalculationResult).where(of_rows)).all()
        model = tables.TrainedModel(
            name="any", level_id=session.scalars(select(tables.LevelOfTheory.id)).one(), seed=0, settings={},
            properties=["formation_energy"], state="waiting",
        )  # fmt: skip
        session.add(model)
        session.flush()
        session.add_all(
            tables.ModelTrainingResult(model_id=model.id, result_id=row.id, role=role_of(row)) for row in results
        )
        session.flush()
        found = load_rows(session, model).rows
    assert len(found.fold) == len(set(found.fold.tolist())) == N_RESULTS
    assert dict(zip(found.configurations, found.fold.tolist(), strict=True)) == expected


def test_a_share_of_the_results_validates() -> None:
    ids = range(1, 20_001)
    n_validation = sum(role_of(tables.CalculationResult(id=i)) == "validation" for i in ids)
    assert abs(n_validation / len(ids) - VALIDATION_SHARE) < 0.01
