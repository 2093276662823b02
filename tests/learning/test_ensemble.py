"""What an ensemble makes of the outputs of its members."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from screening.learning.calibration import Calibration
from screening.learning.dataset import LabelledRows
from screening.learning.ensemble import Ensemble
from screening.learning.scorer import score_configurations


def test_the_ensembles_intervals_hold_on_its_validation_rows(ensemble: Ensemble, rows: LabelledRows) -> None:
    chosen = np.flatnonzero(rows.is_validation)
    mean, std = score_configurations(
        ensemble, rows.supercells[0], [rows.configurations[i] for i in chosen], device="cpu"
    )
    hosts, n_defects = ["MoS2"] * len(chosen), rows.n_defects[chosen]
    # labels without noise: a mean errs far less than its members, from which the intervals are
    for level, low, high in ((0.68, 0.6, 0.97), (0.95, 0.88, 1.0)):
        widths = ensemble.half_width(level, std, hosts, n_defects)
        assert low < (np.abs(mean - rows.labels[chosen]) <= widths).mean() <= high


def test_a_widened_prediction_has_the_same_mean_and_a_larger_standard_deviation(ensemble: Ensemble) -> None:
    outputs = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    offsets, widening = np.ones((4, 2)), np.array([1.0, 1.0, 2.0, 3.0])
    plain = ensemble.predict(outputs, offsets, host="MoS2", n_defects=2, widening=np.ones(4))
    widened = ensemble.predict(outputs, offsets, host="MoS2", n_defects=2, widening=widening)
    np.testing.assert_array_equal(widened[0], plain[0])
    np.testing.assert_allclose(widened[1], plain[1] * widening[:, None])


def test_half_widths_are_multiples_by_host_number_of_defects_and_property(ensemble: Ensemble) -> None:
    """Total energy and energy per defect are one output of the network, the gap is the other."""
    multiples = np.array([[[2.0, 3.0], [4.0, 5.0]], [[6.0, 7.0], [8.0, 9.0]]])  # host or any other, size, output
    known = replace(ensemble, calibration=Calibration(multiples, multiples, multiples))
    widths = known.half_width(0.95, np.full((3, 3), 0.1), ["MoS2", "WSe2", "MoS2"], np.array([1, 1, 5]))
    np.testing.assert_allclose(widths, [[0.2, 0.2, 0.3], [0.6, 0.6, 0.7], [0.4, 0.4, 0.5]])
    np.testing.assert_allclose(known.half_width(0.68, widths, ["MoS2"] * 3, np.array([1, 1, 5])), widths)


def test_a_level_that_is_not_calibrated_is_a_bug(ensemble: Ensemble) -> None:
    with pytest.raises(AssertionError, match=r"not of 0\.9"):
        ensemble.half_width(0.9, np.ones((1, 3)), ["MoS2"], np.array([1]))
