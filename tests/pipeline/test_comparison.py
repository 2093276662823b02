"""Champion against challenger: noise decides nothing, a loss that is more than noise keeps the champion."""

from __future__ import annotations

import numpy as np
import pytest

from screening.pipeline.comparison import WORST_RATIO, ratio_of

GROUPS = np.repeat([0, 1], [150, 50])


def errors(seed: int, *, n_rows: int = 200, scale: float = 1.0) -> np.ndarray:
    """Absolute errors of two properties, one of them a hundred times the other."""
    return np.abs(np.random.default_rng(seed).normal(size=(n_rows, 2))) * [0.002, 0.2] * scale


def test_the_ratio_is_the_geometric_mean_over_groups_and_properties() -> None:
    champion = errors(0)
    factors = np.array([[0.5, 2.0], [1.0, 4.0]])  # of each group, of each property
    found = ratio_of(champion, champion * factors[GROUPS], GROUPS, seed=0)
    assert found is not None
    assert found.value == pytest.approx((0.5 * 2.0 * 1.0 * 4.0) ** 0.25, rel=0.05)  # errors below 0.1 meV are none


def test_equal_models_are_within_the_noise_and_the_challenger_is_let_in() -> None:
    verdicts = [ratio_of(errors(2 * i), errors(2 * i + 1), GROUPS, seed=i) for i in range(40)]
    assert all(found is not None and found.low < found.value < found.high for found in verdicts)
    refused = sum(found.is_worse for found in verdicts if found is not None)
    assert refused <= 4  # 2.5 % of them are expected to look worse by chance


def test_a_challenger_that_is_worse_by_a_third_is_refused() -> None:
    for i in range(20):
        found = ratio_of(errors(2 * i), errors(2 * i + 1, scale=1.35), GROUPS, seed=i)
        assert found is not None
        assert found.is_worse


def test_a_small_loss_that_every_row_shows_is_refused() -> None:
    champion = errors(0)
    found = ratio_of(champion, 1.02 * champion, GROUPS, seed=0)
    assert found is not None
    assert found.low > 1.0
    assert found.is_worse


def test_few_rows_do_not_excuse_a_large_loss() -> None:
    champion = np.full((6, 1), 0.1)
    challenger = np.array([[0.02], [0.02], [0.02], [0.02], [0.6], [0.6]])
    found = ratio_of(champion, challenger, np.zeros(6, np.int64), seed=0)
    assert found is not None
    assert found.low < 1.0  # four rows of six speak for it
    assert found.value > WORST_RATIO
    assert found.is_worse


def test_a_property_that_both_know_exactly_does_not_decide() -> None:
    champion, challenger = errors(0), errors(1)
    champion[:, 0], challenger[:, 0] = 1e-12, 1e-6
    both = ratio_of(champion, challenger, GROUPS, seed=0)
    gap = ratio_of(champion[:, 1:], challenger[:, 1:], GROUPS, seed=0)
    assert both is not None
    assert gap is not None
    assert both.value == pytest.approx(gap.value, rel=1e-12)


def test_rows_without_a_label_are_left_out_of_both() -> None:
    champion, challenger = errors(0), errors(1)
    some = np.arange(200) % 3 == 0
    blind = [np.where(some[:, None], np.nan, found) for found in (champion, challenger)]
    found = ratio_of(*blind, GROUPS, seed=0)
    fewer = ratio_of(champion[~some], challenger[~some], GROUPS[~some], seed=0)
    assert found is not None
    assert fewer is not None
    assert found.value == pytest.approx(fewer.value, rel=1e-12)


def test_nothing_in_common_is_no_ratio() -> None:
    assert ratio_of(np.full((9, 2), np.nan), errors(1, n_rows=9), np.zeros(9, np.int64), seed=0) is None
