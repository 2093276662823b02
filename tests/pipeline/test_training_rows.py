"""Which results weigh together, and the numbers that each keeps."""

from __future__ import annotations

from screening.pipeline.training_rows import groups_of


def test_rounds_and_small_data_sets_weigh_as_rows_of_the_largest_one() -> None:
    """Groups weigh equally: six proposals in a group of their own would be half of all draws."""
    datasets = ["low"] * 300 + ["high"] * 150 + ["few"] * 20 + ["round 1"] * 5 + ["round 2"] * 120
    groups = groups_of([1] * len(datasets) + [2] * 7, [*datasets, *["round 1"] * 7])
    assert len(set(groups[:300])) == 1
    assert set(groups[450:595]) == set(groups[:300])
    assert set(groups[300:450]) != set(groups[:300])
    assert len(set(groups[595:])) == 1
    assert set(groups[595:]).isdisjoint(groups[:595])
