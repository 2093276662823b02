"""Calibration of the standard deviation."""

from __future__ import annotations

import numpy as np

from screening.learning.dataset import LabelledRows
from screening.learning.ensemble import Ensemble, calibrate
from screening.learning.scorer import score_configurations


def test_calibration_finds_floor_and_factor_of_normal_errors() -> None:
    rng = np.random.default_rng(0)
    spread = rng.gamma(2.0, 0.05, (20_000, 1))
    errors = rng.normal(0.0, np.hypot(0.03, 2.0 * spread))
    found = calibrate(errors, spread, [1.0])
    assert abs(found.factor[0] / 2.0 - 1.0) < 0.15
    std = found.std(spread)
    assert abs((np.abs(errors) < std).mean() - 0.683) < 0.02
    assert abs((np.abs(errors) < 1.96 * std).mean() - 0.95) < 0.01


def test_an_output_without_labels_keeps_a_wide_distribution() -> None:
    found = calibrate(np.full((5, 1), np.nan), np.ones((5, 1)), [0.7])
    assert found.floor[0] == 0.7


def test_the_ensembles_intervals_hold_on_its_validation_rows(ensemble: Ensemble, rows: LabelledRows) -> None:
    chosen = np.flatnonzero(rows.is_validation)
    mean, std = score_configurations(
        ensemble, rows.supercells[0], [rows.configurations[i] for i in chosen], device="cpu"
    )
    inside = np.abs(mean - rows.labels[chosen]) < 2.0 * std
    assert 0.85 < inside.mean() <= 1.0
