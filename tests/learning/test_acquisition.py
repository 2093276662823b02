"""Choosing the next calculations."""

from __future__ import annotations

import numpy as np
import pytest

from screening.learning.acquisition import (
    LEAST_NOVELTY,
    choose_batch,
    expected_approach,
    expected_improvement,
    novelty_of,
)


def test_expected_improvement_is_the_mean_over_the_distribution() -> None:
    rng = np.random.default_rng(0)
    mean, std = np.array([0.5, 1.0, 2.0]), np.array([0.3, 1.0, 0.2])
    drawn = rng.normal(mean, std, (400_000, 3))
    sampled = np.maximum(1.1 - drawn, 0.0).mean(axis=0)
    np.testing.assert_allclose(expected_improvement(mean, std, 1.1), sampled, atol=3e-3)


def test_without_spread_the_improvement_is_the_difference() -> None:
    found = expected_improvement(np.array([0.5, 2.0]), np.zeros(2), 1.0)
    np.testing.assert_allclose(found, [0.5, 0.0], atol=1e-12)


def test_expected_approach_is_the_mean_over_the_distribution() -> None:
    rng = np.random.default_rng(0)
    mean, std = np.array([0.5, 1.0, 2.0, 1.3]), np.array([0.3, 1.0, 0.2, 0.01])
    drawn = rng.normal(mean, std, (400_000, 4))
    sampled = np.maximum(0.4 - np.abs(drawn - 1.2), 0.0).mean(axis=0)
    np.testing.assert_allclose(expected_approach(mean, std, 1.2, 0.4), sampled, atol=3e-3)


def test_nothing_comes_nearer_than_the_target_itself() -> None:
    found = expected_approach(np.array([1.2, 5.0]), np.array([0.1, 0.1]), 1.2, 0.0)
    np.testing.assert_allclose(found, [0.0, 0.0], atol=1e-12)


def test_values_of_a_batch_are_worth_less_what_is_shared_with_rows_before() -> None:
    features = np.array([[0.0], [1.0], [50.0], [100.0]])
    rows, values = choose_batch(np.array([1.0, 0.9, 0.4, 0.2]), features, 4)
    assert rows.tolist() == [0, 2, 3, 1]
    assert values[:3] == pytest.approx([1.0, 0.4, 0.2], abs=1e-3)
    assert values[3] < 0.01
    assert (np.diff(values) <= 0).all()


def test_a_batch_starts_with_the_best_and_never_takes_equal_rows() -> None:
    features = np.array([[0.0], [0.0], [0.01], [4.0], [9.0]])
    worth = np.array([1.0, 1.0, 0.99, 0.5, 0.1])
    assert choose_batch(worth, features, 3)[0].tolist() == [0, 3, 4]


def test_worth_decides_among_rows_that_are_far_apart() -> None:
    features = np.eye(6) * 10
    worth = np.array([0.1, 0.6, 0.3, 0.9, 0.2, 0.5])
    assert choose_batch(worth, features, 4)[0].tolist() == [3, 1, 5, 2]


def test_rows_of_no_worth_come_last_however_unlike_they_are() -> None:
    features = np.array([[0.0], [0.1], [0.2], [100.0]])
    worth = np.array([1e-9, 5e-10, 2e-10, 0.0])
    assert choose_batch(worth, features, 4)[0].tolist()[3] == 3


@pytest.mark.parametrize("n", [0, 1, 5, 50])
def test_a_batch_has_no_row_twice_and_at_most_all(n: int) -> None:
    rng = np.random.default_rng(1)
    chosen, _ = choose_batch(np.zeros(20), rng.normal(size=(20, 3)), n)
    assert len(set(chosen.tolist())) == len(chosen) == min(n, 20)


def test_what_is_like_a_known_row_is_worth_less() -> None:
    features = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]])
    worth = np.array([1.0, 0.9, 0.1, 0.1, 0.1, 0.7])
    assert choose_batch(worth, features, 2)[0].tolist() == [0, 1]
    assert choose_batch(worth, features, 2, known=np.array([[0.0]]))[0].tolist() == [1, 5]
    novelty = novelty_of(features, np.array([[0.0], [0.0], [9.0]]))
    assert novelty[0] == LEAST_NOVELTY
    assert novelty[2:5] == pytest.approx(1.0, abs=1e-3)
    # by hand: the median distance is 2 (of 1 to 5, five to one times), so l = 0.5 and d = 1 gives 1 - exp(-2)
    assert novelty[1] == pytest.approx(1.0 - np.exp(-2.0))


def test_without_known_rows_everything_is_new() -> None:
    features = np.array([[0.0], [1.0]])
    assert novelty_of(features, np.zeros((0, 1))).tolist() == [1.0, 1.0]
