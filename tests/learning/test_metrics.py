import math

import numpy as np
import pytest

from screening.learning.metrics import ErrorBars, Metrics, coverage_at, mean_of_groups, measure, measure_groups

NAN = float("nan")


def bars(errors: list[float], stds: list[float], half_widths: list[float]) -> ErrorBars:
    return ErrorBars(np.array(errors), np.array(stds), np.array(half_widths))


# errors of 10, 20, 30 and 40 meV; the third row is outside of its 68 % interval, the fourth also of the 95 % one
FOUR = bars([0.01, -0.02, 0.03, -0.04], [0.01, 0.03, 0.02, 0.02], [0.02, 0.06, 0.04, 0.03])


def test_four_rows_by_hand() -> None:
    found = measure(FOUR)
    assert found.n_rows == 4
    assert found.mae == pytest.approx(0.025)
    assert found.rmse == pytest.approx(math.sqrt((1 + 4 + 9 + 16) / 4) / 100)
    assert found.within == 0.5  # 20 meV counts
    assert found.coverage_68 == 0.5
    assert found.coverage_95 == 0.75
    assert found.mean_std == pytest.approx(0.02)
    # deviations from the mean of 25 meV: 15, 5, 5, 15
    assert found.mae_noise == pytest.approx(math.sqrt((225 + 25 + 25 + 225) / 4 / 4) / 1000)


def test_the_noise_is_that_of_resampled_rows() -> None:
    generator = np.random.default_rng(5)
    errors = generator.standard_t(3, 60)
    resampled = np.abs(errors[generator.integers(60, size=(20_000, 60))]).mean(axis=1)
    found = measure(ErrorBars(errors, np.ones(60), np.ones(60)))
    assert found.mae_noise == pytest.approx(resampled.std(), rel=0.03)


def test_rows_without_a_label_do_not_count() -> None:
    with_gap = bars([0.01, NAN, -0.02, 0.03, -0.04], [0.01, 9.0, 0.03, 0.02, 0.02], [0.02, 9.0, 0.06, 0.04, 0.03])
    assert measure(with_gap) == measure(FOUR)


def test_no_row_has_no_metrics() -> None:
    found = measure(bars([NAN], [1.0], [1.0]))
    assert found.n_rows == 0
    assert all(math.isnan(value) for name, value in vars(found).items() if name != "n_rows")
    assert mean_of_groups([]).n_rows == 0


def test_groups_are_measured_apart_and_those_without_labels_left_out() -> None:
    errors = bars([0.1, -0.3, NAN, 0.5], [1.0] * 4, [2.0] * 4)
    found = measure_groups(errors, np.array([7, 7, 3, 5]))
    assert list(found) == [5, 7]
    assert found[7].mae == pytest.approx(0.2)
    assert (found[5].n_rows, found[5].mae) == (1, 0.5)
    assert math.isnan(found[5].mae_noise)  # a single row has no scatter


def test_the_mean_of_groups_weighs_each_the_same() -> None:
    one = Metrics(1000, 0.002, 0.003, 0.004, 0.9, 0.7, 0.95, 0.01)
    other = Metrics(10, 0.1, 0.004, 0.2, 0.1, 0.5, 0.85, 0.05)
    found = mean_of_groups([one, other])
    assert found.n_rows == 1010
    assert found.mae == pytest.approx(0.051)
    assert found.mae_noise == pytest.approx(0.0025)  # sqrt(3^2 + 4^2) / 2
    assert (found.within, found.coverage_68, found.coverage_95) == pytest.approx((0.5, 0.6, 0.9))


def test_coverage_at_the_given_intervals_is_that_of_the_metrics() -> None:
    assert coverage_at(FOUR, np.array([0.68, 0.95])).tolist() == [0.5, 0.75]


def test_errors_of_a_normal_distribution_are_covered_as_they_should_be() -> None:
    errors = np.random.default_rng(2).normal(0.0, 0.3, 40_000)
    found = ErrorBars(errors, np.full(40_000, 0.3 * 0.99446), np.full(40_000, 0.3 * 1.95996))
    shares = np.array([0.1, 0.5, 0.8, 0.99])
    np.testing.assert_allclose(coverage_at(found, shares), shares, atol=0.008)


def test_no_label_has_no_coverage() -> None:
    assert np.isnan(coverage_at(bars([NAN], [1.0], [2.0]), np.array([0.5]))).all()
