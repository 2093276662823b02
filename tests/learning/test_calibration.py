"""Standard deviations and intervals from errors of rows that were left out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from screening.learning.calibration import (
    Calibration,
    calibrate,
    conformal_quantile,
    errors_of_mean,
    spreads_of_left_out,
    uniform_calibration,
)

Errors = tuple[NDArray[np.float64], NDArray[np.float64]]


def normal_errors(n: int, *, seed: int, tails: float = np.inf) -> Errors:
    """Errors (n, 1) and spreads of the members that tell of half of their variance."""
    rng = np.random.default_rng(seed)
    spreads = rng.gamma(3.0, 0.02, (n, 1))
    noise = rng.standard_t(tails, (n, 1)) if np.isfinite(tails) else rng.normal(size=(n, 1))
    return noise * np.hypot(0.06, spreads), spreads


def calibrated(errors: NDArray[np.float64], spreads: NDArray[np.float64]) -> Calibration:
    """One host, three defects."""
    n = len(errors)
    return calibrate(errors, spreads, np.zeros(n, np.int64), np.full(n, 3), scales=np.ones(errors.shape[1]))


def held(calibration: Calibration, fresh: Errors, *, level: float, host: int = 0, n_defects: int = 3) -> int:
    """How many new errors are inside their intervals."""
    errors, spreads = fresh
    std = calibration.std(spreads, host, n_defects)
    return int((np.abs(errors) <= calibration.half_width(level, std, host, n_defects)).sum())


@pytest.mark.parametrize("tails", [np.inf, 5.0, 2.0])
@pytest.mark.parametrize("level", [0.68, 0.95])
def test_intervals_hold_what_they_promise_on_new_rows_of_any_tails(level: float, tails: float) -> None:
    calibration = calibrated(*normal_errors(20_000, seed=1, tails=tails))
    n = 4000
    inside = held(calibration, normal_errors(n, seed=2, tails=tails), level=level)
    low, high = binom.interval(0.9999, n, level)
    slack = 0.01 * n  # the calibration rows are finite too: two standard errors of a quantile of 20,000
    assert low - slack <= inside <= high + slack


def test_with_few_rows_intervals_hold_on_average_what_they_promise() -> None:
    """Thirty rows: any one calibration is off by ten per cent, the mean of many is not."""
    shares = {level: [] for level in (0.68, 0.95)}
    for seed in range(60):
        calibration = calibrated(*normal_errors(30, seed=seed))
        for level, found in shares.items():
            found.append(held(calibration, normal_errors(500, seed=1000 + seed), level=level) / 500)
    assert 0.65 < np.mean(shares[0.68]) < 0.71
    assert 0.94 < np.mean(shares[0.95]) < 0.97


def test_heavy_tails_widen_the_wide_interval_only() -> None:
    normal = calibrated(*normal_errors(5000, seed=3))
    heavy = calibrated(*normal_errors(5000, seed=3, tails=2.0))
    assert abs(normal.multiples[0, 2, 0] / 1.97 - 1.0) < 0.06
    assert abs(heavy.multiples[0, 2, 0] / 3.26 - 1.0) < 0.1  # quantiles of t with two degrees: 4.303 / 1.321


def test_outliers_move_the_standard_deviation_little() -> None:
    errors, spreads = normal_errors(400, seed=4)
    clean = calibrated(errors, spreads)
    errors[:4] = 1e3
    spoilt = calibrated(errors, spreads)
    typical = np.full((1, 1), 0.06)
    assert spoilt.std(typical, 0, 3) / clean.std(typical, 0, 3) < 1.1


def test_the_standard_deviation_follows_a_spread_that_tells_of_the_error() -> None:
    rng = np.random.default_rng(5)
    spreads = rng.gamma(2.0, 0.05, (4000, 1))
    calibration = calibrated(2.0 * spreads * rng.normal(size=(4000, 1)), spreads)
    small, large = calibration.std(np.array([[0.02], [0.2]]), 0, 3)[:, 0]
    assert 7.0 < large / small < 10.5
    assert abs(large / 0.4 - 1.0) < 0.1


def test_the_standard_deviation_ignores_a_spread_that_tells_nothing() -> None:
    rng = np.random.default_rng(6)
    calibration = calibrated(rng.normal(0.0, 0.3, (4000, 1)), rng.gamma(2.0, 0.05, (4000, 1)))
    small, large = calibration.std(np.array([[0.02], [0.2]]), 0, 3)[:, 0]
    assert large / small < 1.1
    assert abs(small / 0.3 - 1.0) < 0.06


def test_hosts_and_numbers_of_defects_have_errors_of_their_own() -> None:
    rng = np.random.default_rng(7)
    n = 4000
    host, n_defects = rng.integers(0, 2, n), rng.choice([3, 12], n)
    scale = np.where(host == 0, 0.01, 0.1) * np.where(n_defects == 3, 1.0, 4.0)
    errors = (scale * rng.normal(size=n))[:, None]
    calibration = calibrate(errors, np.full((n, 1), 0.02), host, n_defects, scales=np.ones(1))
    for h, k, wanted in ((0, 3, 0.01), (0, 12, 0.04), (1, 3, 0.1), (1, 12, 0.4)):
        std = calibration.std(np.full((1, 1), 0.02), h, k)[0, 0]
        assert abs(std / wanted - 1.0) < 0.1
    between = calibration.std(np.full((1, 1), 0.02), 0, 6)[0, 0]
    assert 0.012 < between < 0.035


def test_numbers_of_defects_never_seen_have_wider_intervals_than_those_beside_them() -> None:
    rng = np.random.default_rng(8)
    n_defects = rng.choice([3, 12], 1000)
    calibration = calibrate(
        rng.normal(0.0, 0.1, (1000, 1)), np.full((1000, 1), 0.1), np.zeros(1000, np.int64), n_defects, scales=np.ones(1)
    )
    widths = calibration.multiples[0, :, 0]
    assert widths[5] > 1.1 * widths[2]
    assert widths[5] > 1.1 * widths[11]


def test_a_host_with_few_rows_borrows_from_the_others() -> None:
    """Two rows that happen to be nearly right do not make a host of small errors."""
    rng = np.random.default_rng(9)
    host = np.array([0] * 500 + [1] * 500 + [2] * 2)
    errors = rng.normal(0.0, 0.1, (1002, 1))
    errors[-2:] = 0.01
    calibration = calibrate(errors, np.full((1002, 1), 0.1), host, np.full(1002, 3), scales=np.ones(1))
    std = calibration.std(np.full((1, 1), 0.1), 2, 3)[0, 0]
    assert 0.015 < std < 0.1
    assert calibration.half_width(0.95, np.array([[std]]), 2, 3)[0, 0] > 0.07


@pytest.mark.parametrize("host", [-1, 2, 7])
def test_a_host_without_rows_has_the_errors_of_all_and_more_doubt(host: int) -> None:
    rng = np.random.default_rng(10)
    of_row = rng.integers(0, 2, 1000)
    calibration = calibrate(
        rng.normal(0.0, 0.1, (1000, 1)), np.full((1000, 1), 0.1), of_row, np.full(1000, 3), scales=np.ones(1)
    )
    std = calibration.std(np.full((1, 1), 0.1), host, 3)
    assert abs(std[0, 0] / 0.1 - 1.0) < 0.15
    assert calibration.half_width(0.95, std, host, 3)[0, 0] > 0.4


def test_one_member_has_no_spread_and_still_a_standard_deviation() -> None:
    errors = np.random.default_rng(11).normal(0.0, 0.2, (500, 1))
    calibration = calibrated(errors, np.zeros((500, 1)))
    assert abs(calibration.std(np.zeros((1, 1)), 0, 3)[0, 0] / 0.2 - 1.0) < 0.1


def test_rows_without_a_label_change_nothing() -> None:
    errors, spreads = normal_errors(300, seed=12)
    with_gaps = np.concatenate([errors, np.full((50, 1), np.nan)])
    found = calibrated(with_gaps, np.concatenate([spreads, np.full((50, 1), 0.5)]))
    for name in ("floors", "factors", "multiples"):
        np.testing.assert_allclose(getattr(found, name), getattr(calibrated(errors, spreads), name))


def test_an_output_without_any_label_keeps_a_wide_distribution() -> None:
    n = 5
    found = calibrate(
        np.full((n, 1), np.nan), np.ones((n, 1)), np.zeros(n, np.int64), np.full(n, 3), scales=np.array([0.7])
    )
    assert found.std(np.zeros((1, 1)), 0, 3)[0, 0] == 0.7


def test_an_output_that_never_varies_has_no_width() -> None:
    errors = np.concatenate([np.full((40, 1), np.nan), np.zeros((40, 1))], axis=1)
    n = len(errors)
    found = calibrate(errors, np.zeros((n, 2)), np.zeros(n, np.int64), np.full(n, 3), scales=np.zeros(2))
    std = found.std(np.zeros((1, 2)), 0, 3)
    np.testing.assert_allclose(std, 0.0, atol=1e-5)
    assert np.isfinite(found.half_width(0.95, std, 0, 3)).all()


def test_more_defects_than_calibrated_are_as_the_most_that_were() -> None:
    calibration = calibrated(*normal_errors(300, seed=13))
    spread = np.full((1, 1), 0.1)
    assert calibration.std(spread, 0, 40) == calibration.std(spread, 0, 3)


def test_a_conformal_quantile_is_the_order_statistic_a_new_value_is_below() -> None:
    """Among n + 1 exchangeable values, the new one is below the j-th of the others with probability j / (n + 1)."""
    assert conformal_quantile(np.arange(1.0, 100.0), 0.95) == 95.0
    assert conformal_quantile(np.arange(1.0, 10.0), 0.95) == 9.0
    rng = np.random.default_rng(14)
    drawn = rng.normal(size=(4000, 20))
    inside = [row[-1] <= conformal_quantile(row[:-1], 0.68) for row in drawn]
    low, high = binom.interval(0.9999, 4000, 0.68)
    assert low <= sum(inside) <= high


def test_a_uniform_calibration_is_the_same_everywhere() -> None:
    calibration = uniform_calibration(np.array([0.3]), np.array([2.0]), n_hosts=2)
    for host, n_defects in ((0, 1), (1, 9), (-1, 3)):
        assert calibration.std(np.full((1, 1), 0.2), host, n_defects)[0, 0] == pytest.approx(0.5)


def test_errors_of_single_members_shrink_to_those_of_their_mean() -> None:
    """Members with a common error of 0.1 and 0.2 of their own: 0.224 alone, 0.134 as the mean of five."""
    rng = np.random.default_rng(15)
    n, n_members = 6000, 5
    members = 0.1 * rng.normal(size=n) + 0.2 * rng.normal(size=(n_members, n))
    shrunk = errors_of_mean(
        members[0][:, None],
        members.std(axis=0, ddof=1)[:, None],
        np.zeros(n, np.int64),
        np.full(n, 3),
        n_members=n_members,
    )
    wanted = members.mean(axis=0)
    assert abs(np.quantile(np.abs(shrunk), 0.68) / np.quantile(np.abs(wanted), 0.68) - 1.0) < 0.05


@pytest.mark.parametrize("n_rows", [3, 400])
def test_errors_never_shrink_below_what_averaging_can_do(n_rows: int) -> None:
    errors = np.full((n_rows, 1), 0.1)
    shrunk = errors_of_mean(
        errors, np.full((n_rows, 1), 5.0), np.zeros(n_rows, np.int64), np.full(n_rows, 3), n_members=4
    )
    np.testing.assert_allclose(shrunk, 0.05)


def test_errors_of_one_member_stay_and_so_do_missing_ones() -> None:
    errors = np.array([[0.1, np.nan], [0.2, np.nan]])
    place = (np.zeros(2, np.int64), np.full(2, 3))
    np.testing.assert_array_equal(errors_of_mean(errors, np.zeros((2, 2)), *place, n_members=1), errors)
    shrunk = errors_of_mean(errors, np.full((2, 2), 0.05), *place, n_members=5)
    assert np.isnan(shrunk[:, 1]).all()
    assert np.isfinite(shrunk[:, 0]).all()


def test_a_calibration_of_some_hosts_is_completed_by_an_earlier_one() -> None:
    """Retrained on host 1, with host 2 new; five defects where there were three."""
    earlier = uniform_calibration(np.array([0.3]), np.array([2.0]), n_hosts=2)
    table = np.arange(1.0, 21.0).reshape(4, 5, 1)  # hosts 0, 1, 2 and any other
    found = Calibration(table, table, table).completed(earlier, lambda host, k: host > 0)
    assert found.floors[:, :, 0].tolist() == [[0.3] * 5, [6, 7, 8, 9, 10], [11, 12, 13, 14, 15], [0.3] * 5]
    assert found.factors[0, 4, 0] == 2.0
    smaller = earlier.completed(Calibration(table, table, table), lambda host, k: host == 0)
    assert smaller.floors[0, :, 0].tolist() == [0.3] * 5
    assert smaller.floors[1, :, 0].tolist() == [6, 7, 8, 9, 10]


def test_numbers_of_defects_that_were_not_measured_keep_what_they_had() -> None:
    earlier = uniform_calibration(np.array([0.3]), np.array([2.0]), n_hosts=1)
    table = np.arange(1.0, 11.0).reshape(2, 5, 1)
    found = Calibration(table, table, table).completed(earlier, lambda host, k: k <= 3)
    assert found.floors[0, :, 0].tolist() == [1, 2, 3, 0.3, 0.3]


def cross_fitted(n: int, *, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Outputs (5, n, 1) of members whose label is 0: the one that left a row out errs, the others fit it closely."""
    rng = np.random.default_rng(seed)
    fold = np.arange(n) % 5
    outputs = rng.normal(0.0, 0.02, (5, n, 1))
    outputs[fold, np.arange(n), 0] = rng.normal(0.0, 0.3, n)
    return outputs, fold


def test_spreads_of_left_out_rows_do_not_know_the_error() -> None:
    """The standard deviation over all members is nearly the error by the root of five, which new rows do not tell."""
    outputs, fold = cross_fitted(4000, seed=16)
    sizes = np.full(4000, 3)
    errors = np.abs(outputs[fold, np.arange(4000), 0])
    spreads = spreads_of_left_out(outputs, fold, sizes)
    assert np.corrcoef(outputs.std(axis=0, ddof=1)[:, 0], errors)[0, 1] > 0.95
    assert abs(np.corrcoef(spreads[:, 0], errors)[0, 1]) < 0.05
    np.testing.assert_allclose(np.median(spreads), np.median(outputs.std(axis=0, ddof=1)))


def test_a_few_rows_that_are_missed_by_far_do_not_enlarge_the_spreads_of_the_others() -> None:
    outputs, fold = cross_fitted(4000, seed=16)
    plain = spreads_of_left_out(outputs, fold, np.full(4000, 3))
    outputs[fold[:80], np.arange(80)] += 100.0 * outputs.std()
    np.testing.assert_allclose(spreads_of_left_out(outputs, fold, np.full(4000, 3))[80:], plain[80:], rtol=0.1)


def test_spreads_of_left_out_rows_are_as_large_as_those_of_all_members_by_number_of_defects() -> None:
    outputs, fold = cross_fitted(400, seed=17)
    sizes = np.repeat([2, 9], 200)
    outputs[:, sizes == 9] *= 10.0
    spreads = spreads_of_left_out(outputs, fold, sizes)
    for size in (2, 9):
        of_all = outputs[:, sizes == size].std(axis=0, ddof=1)
        np.testing.assert_allclose(np.median(spreads[sizes == size]), np.median(of_all))


def test_two_members_have_the_spread_that_they_have() -> None:
    outputs = np.random.default_rng(18).normal(size=(2, 30, 2))
    found = spreads_of_left_out(outputs, np.arange(30) % 2, np.full(30, 3))
    np.testing.assert_allclose(found, outputs.std(axis=0, ddof=1))
