"""Choosing the labels that make a model better everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Supercell
from screening.learning.informative import (
    LENGTH,
    NOISE,
    choose_informative,
    pair_features,
    posterior_covariance,
    spread_of,
)
from screening.learning.pair_columns import pair_columns

NOTHING = np.empty((0, 2))


def by_scikit_learn(features: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    """The posterior covariance as scikit-learn has it."""
    process = GaussianProcessRegressor(RBF(LENGTH), alpha=NOISE, optimizer=None)
    if len(known):
        process.fit(known, np.zeros(len(known)))
    return np.asarray(process.predict(features, return_cov=True)[1])


def mean_std(features: NDArray[np.float64], known: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.maximum(np.diag(by_scikit_learn(features, known)), 0.0)).mean())


def around(centre: tuple[float, float], n: int, seed: int = 0) -> NDArray[np.float64]:
    """A cloud of n rows much narrower than the covariance is long."""
    return np.random.default_rng(seed).normal(centre, 0.05, (n, 2))


@pytest.mark.parametrize("n_known", [0, 7])
def test_the_covariance_is_that_of_a_gaussian_process(n_known: int) -> None:
    rng = np.random.default_rng(3)
    features, known = rng.normal(size=(30, 2)), rng.normal(size=(n_known, 2))
    found = posterior_covariance(features, known)
    np.testing.assert_allclose(found, by_scikit_learn(features, known), atol=2e-4)


def test_one_of_many_alike_is_worth_more_than_an_outlier() -> None:
    features = np.concatenate([around((9.0, 0.0), 1), around((0.0, 0.0), 20)])
    rows, _ = choose_informative(posterior_covariance(features, NOTHING), np.ones((21, 1)), 2)
    assert rows[0] != 0
    assert rows[1] == 0  # the crowd is known by now


def test_a_crowd_with_a_label_is_left_for_one_without() -> None:
    features = np.concatenate([around((0.0, 0.0), 20), around((5.0, 0.0), 10)])
    rows, _ = choose_informative(posterior_covariance(features, around((0.0, 0.0), 1, seed=1)), np.ones((30, 1)), 1)
    assert rows[0] >= 20


def test_where_the_model_is_less_certain_is_chosen_first() -> None:
    features = np.concatenate([around((0.0, 0.0), 10), around((5.0, 0.0), 10)])
    covariance = posterior_covariance(features, NOTHING)
    for larger in (0, 10):
        spread = np.full((20, 2), 0.1)
        spread[larger : larger + 10, 1] = 0.3  # one property is enough
        assert larger <= choose_informative(covariance, spread, 1)[0][0] < larger + 10


def test_the_model_says_how_uncertain_what_it_has_not_learnt_yet_is() -> None:
    """What has become known since is taken off its standard deviations in the proportion of the covariance."""
    rng = np.random.default_rng(8)
    features, learnt, since = rng.normal(size=(40, 2)), rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    std = rng.uniform(0.1, 0.2, (40, 1))
    spread = spread_of(std, features, learnt)
    before = np.sqrt(np.diag(by_scikit_learn(features, learnt)))
    after = np.sqrt(np.diag(by_scikit_learn(features, np.concatenate([learnt, since]))))
    np.testing.assert_allclose(spread[:, 0] * before, std[:, 0], rtol=1e-2)
    left = posterior_covariance(features, np.concatenate([learnt, since])).diagonal()
    np.testing.assert_allclose(spread[:, 0] * np.sqrt(left), std[:, 0] * after / before, rtol=2e-2, atol=1e-4)


def test_units_of_properties_decide_nothing() -> None:
    rng = np.random.default_rng(4)
    covariance = posterior_covariance(rng.normal(size=(50, 2)), NOTHING)
    spread = rng.uniform(0.5, 1.5, (50, 2))
    expected = choose_informative(covariance, spread, 10)[0]
    np.testing.assert_array_equal(choose_informative(covariance, spread * [1000.0, 0.001], 10)[0], expected)


def test_what_is_left_is_the_uncertainty_once_the_batch_is_known() -> None:
    features = np.random.default_rng(5).normal(size=(60, 2))
    rows, left = choose_informative(posterior_covariance(features, NOTHING), np.ones((60, 1)), 6)
    expected = [mean_std(features, features[rows[: i + 1]]) for i in range(6)]
    np.testing.assert_allclose(left, expected, atol=2e-3)


def test_a_batch_leaves_less_than_random_ones_do() -> None:
    rng = np.random.default_rng(6)
    features = rng.normal(size=(200, 2)) * rng.choice([0.3, 2.0], (200, 1))
    rows, _ = choose_informative(posterior_covariance(features, NOTHING), np.ones((200, 1)), 12)
    at_random = [mean_std(features, features[rng.choice(200, 12, replace=False)]) for _ in range(30)]
    assert mean_std(features, features[rows]) < min(at_random)


@pytest.mark.parametrize("n", [0, 1, 20, 50])
def test_a_batch_has_no_row_twice_and_at_most_all(n: int) -> None:
    features = np.repeat(np.random.default_rng(7).normal(size=(10, 2)), 2, axis=0)  # each of them twice
    rows, left = choose_informative(posterior_covariance(features, NOTHING), np.ones((20, 1)), n)
    assert len(set(rows.tolist())) == len(rows) == len(left) == min(n, 20)


def test_equivalent_configurations_have_equal_features_and_near_pairs_weigh_more() -> None:
    supercell = Supercell.parse(catalogue_host("MoS2"), "4x4")
    code = DefectType.parse("v_S").code
    sites = supercell.allowed(DefectType.parse("v_S"))
    distances = np.round(supercell.pair_distances[sites[0], sites], 3)
    near, far = np.unique(distances)[[1, -1]]

    def pair(first: int, distance: float) -> Configuration:
        to = np.round(supercell.pair_distances[first, sites], 3)
        other = int(sites[np.flatnonzero(to == distance)[-1]])
        return Configuration(tuple(sorted((first, other))), (code, code))

    single = Configuration((int(sites[0]),), (code,))
    one, moved, apart = pair(int(sites[0]), near), pair(int(sites[5]), near), pair(int(sites[0]), far)
    features = pair_features(pair_columns(supercell, [code]), [one, moved, apart, single])
    np.testing.assert_array_equal(features[0], features[1])
    assert np.linalg.norm(features[0] - features[3]) > 2 * np.linalg.norm(features[2] - features[3]) > 0
