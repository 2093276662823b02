"""The folder of an evaluation: metrics, rows, plots, and what vouches for them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from screening.errors import InputError
from screening.learning.ensemble import Ensemble
from screening.pipeline.evaluation import EvaluatedModel
from screening.pipeline.evaluation_files import EvaluationOrigin, all_metrics, store_evaluation
from screening.pipeline.yardsticks import Yardstick
from tests.pipeline.made_evaluations import HIGH, LOW, MOS2, made_evaluation
from tests.pipeline.made_models import LEVEL, small_model


def ensemble() -> Ensemble:
    return small_model().ensemble()


def origin_of(name: str = "runs/mos2 v1") -> EvaluationOrigin:
    model = EvaluatedModel(name, LEVEL, "a" * 64, small_model().card.hosts, ensemble(), np.array([3], np.uint64))
    return EvaluationOrigin.of(model, made_evaluation(), Path("release"), splits=["validation"], includes_learnt=True)


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_rows_have_label_prediction_and_interval(tmp_path: Path) -> None:
    store_evaluation(made_evaluation(), origin_of(), tmp_path)
    first, pair, _, last = read(tmp_path / "rows.csv")
    assert {key: first[key] for key in list(first)[:9]} == {
        "id": "row 0", "subset": LOW, "split": "validation", "learnt": "1", "host": "MoS2", "supercell": "8x8",
        "composition": "v_S", "n_defects": "1", "closest_pair": "",
    }  # fmt: skip
    assert [first[f"formation_energy_per_site_{part}"] for part in ("label", "mean", "std", "half_width_95")] == [
        "1.000000", "1.010000", "0.020000", "0.050000",
    ]  # fmt: skip
    assert float(pair["closest_pair"]) == pytest.approx(MOS2.pair_distances[0, 64], abs=1e-6)
    assert (pair["composition"], pair["learnt"]) == ("v_S+v_Mo", "0")
    assert (last["subset"], last["split"], last["formation_energy_per_site_label"]) == (HIGH, "", "")


def test_metrics_are_those_of_subsets_and_numbers_of_defects(tmp_path: Path) -> None:
    store_evaluation(made_evaluation(), origin_of(), tmp_path)
    found = [row for row in read(tmp_path / "metrics.csv") if row["property"] == "homo_lumo_gap_min"]
    assert [(row["subset"], row["n_defects"], row["n_rows"]) for row in found] == [
        ("mean of subsets", "", "4"), (LOW, "", "3"), (HIGH, "", "1"),
        (LOW, "1", "1"), (LOW, "2", "1"), (LOW, "3", "1"), (HIGH, "4", "1"),
    ]  # fmt: skip
    assert float(found[2]["mae"]) == pytest.approx(0.3)


def test_the_summary_says_what_was_evaluated_and_what_was_not(tmp_path: Path) -> None:
    origin = origin_of()
    store_evaluation(made_evaluation(), origin, tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert {key: found[key] for key in ("model", "weights_sha256", "level", "data", "data_digest", "splits")} == {
        "model": "runs/mos2 v1", "weights_sha256": "a" * 64, "level": "formula", "data": "release",
        "data_digest": "d" * 64, "splits": ["validation"],
    }  # fmt: skip
    assert (found["n_rows"], found["n_learnt"], found["n_left_out"], found["n_unlabelled"]) == (4, 1, 3, 2)
    assert found["includes_learnt"] is True
    assert [row["name"] for row in found["refused"]] == ["bad", "far"]
    assert len(found["metrics"]) == len(all_metrics(made_evaluation()))
    time = datetime.fromisoformat(found["evaluated_at"])
    assert abs(time - datetime.now().astimezone()) < timedelta(minutes=10)


def test_the_summary_says_which_yardstick_is_better_in_which_subset(tmp_path: Path) -> None:
    made = made_evaluation()  # energies 10, 20 and 30 meV too high, gaps 100 and 300 meV too low
    rows = replace(made.rows, subsets=("mine", "yours"))
    ruler = Yardstick("ruler", made.labels + np.array([0.03, 0.2]))
    store_evaluation(replace(made, rows=rows), origin_of(), tmp_path, yardsticks=[ruler])
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["better"] == [{"property": "homo_lumo_gap_min", "subset": "yours", "methods": ["ruler"]}]
    assert [(row["property"], row["subset"], round(row["mae"], 9)) for row in found["yardsticks"]] == [
        ("formation_energy_per_site", "mine", 0.03), ("homo_lumo_gap_min", "mine", 0.2),
        ("homo_lumo_gap_min", "yours", 0.2),
    ]  # fmt: skip


def test_every_file_that_is_named_is_there(tmp_path: Path) -> None:
    written = store_evaluation(made_evaluation(extra_pairs=4), origin_of(), tmp_path / "new" / "folder")
    assert [path.name for path in written] == [
        "evaluation.json", "metrics.csv", "rows.csv", "parity.png", "error_by_distance.png", "distance_curve.png",
        "calibration.png", "residuals_formation_energy_per_site.png", "residuals_homo_lumo_gap_min.png",
    ]  # fmt: skip
    assert all(path.stat().st_size > 0 for path in written)


def test_folders_are_named_by_time_and_model_and_never_shared(tmp_path: Path) -> None:
    origin = origin_of()
    first = origin.folder(tmp_path)
    assert first.name == f"{origin.evaluated_at:%Y%m%d-%H%M%S}-mos2-v1"
    first.mkdir(parents=True)
    assert origin.folder(tmp_path).name == f"{first.name}-2"


def test_a_folder_that_cannot_be_written_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot be written into .*file.*--output"):
        store_evaluation(made_evaluation(), origin_of(), tmp_path / "file")


def test_an_old_summary_does_not_vouch_for_new_files(tmp_path: Path) -> None:
    store_evaluation(made_evaluation(), origin_of(), tmp_path)
    (tmp_path / "parity.png").unlink()
    (tmp_path / "parity.png").mkdir()  # the second time it cannot be written
    with pytest.raises(InputError):
        store_evaluation(made_evaluation(), origin_of(), tmp_path)
    assert not (tmp_path / "evaluation.json").exists()
