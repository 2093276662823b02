"""Which results weigh together, and the numbers that each keeps."""

from __future__ import annotations

from screening.database import tables
from screening.pipeline.training_rows import VALIDATION_SHARE, fold_of, groups_of, role_of


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
    ids = range(1, 20_001)
    roles = {i: role_of(tables.CalculationResult(id=i)) for i in ids}
    for n_members in (2, 3, 5, 7):
        for chosen in (ids, [i for i in ids if roles[i] == "validation"]):
            sizes = [sum(fold_of(i) % n_members == m for i in chosen) for m in range(n_members)]
            assert max(sizes) < 1.1 * len(chosen) / n_members


def test_a_share_of_the_results_validates() -> None:
    ids = range(1, 20_001)
    n_validation = sum(role_of(tables.CalculationResult(id=i)) == "validation" for i in ids)
    assert abs(n_validation / len(ids) - VALIDATION_SHARE) < 0.01
