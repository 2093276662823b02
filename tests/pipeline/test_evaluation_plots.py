"""What the plots show, read from their axes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.text import Text

from screening.pipeline.evaluation import Evaluation
from screening.pipeline.evaluation_plots import (
    closest_pairs,
    main_properties,
    plot_calibration,
    plot_distance_curve,
    plot_error_by_distance,
    plot_parity,
    plot_residuals,
)
from tests.pipeline.made_evaluations import MOS2, made_evaluation

ENERGY, GAP = "formation_energy_per_site", "homo_lumo_gap_min"


def points(axes, label: str | None = None) -> np.ndarray:  # type: ignore[no-untyped-def]
    """(n, 2) points of the lines of a panel that are drawn with markers."""
    lines = [line for line in axes.get_lines() if line.get_marker() not in ("None", "_")]
    return np.concatenate([np.stack(line.get_data(), axis=1) for line in lines if label in (None, line.get_label())])


def test_the_closest_pair_counts_and_a_single_defect_has_none() -> None:
    found = closest_pairs(made_evaluation())
    assert found[0] == np.inf
    sites = [1, 70, 130]
    pairs = [MOS2.pair_distances[a, b] for i, a in enumerate(sites) for b in sites[:i]]
    assert found[2] == pytest.approx(min(pairs))


def test_parity_has_a_panel_for_each_property_with_every_labelled_row() -> None:
    made = made_evaluation()
    energy, gap = plot_parity(made).axes
    drawn = sorted(map(tuple, points(energy).round(9).tolist()))
    assert drawn == sorted(map(tuple, np.stack([made.labels[:3, 0], made.means[:3, 0]], axis=1).round(9).tolist()))
    assert len(points(gap)) == 4
    assert energy.get_xlim() == energy.get_ylim()
    assert all(energy.get_ylim()[0] < value < energy.get_ylim()[1] for value in made.means[:3, 0])


def test_errors_by_distance_are_those_of_pairs_and_triples() -> None:
    made = made_evaluation()
    figure = plot_error_by_distance(made, [GAP])
    assert figure is not None
    drawn = points(figure.axes[0])
    assert sorted(drawn[:, 0]) == pytest.approx(sorted(closest_pairs(made)[1:3]))
    np.testing.assert_allclose(drawn[:, 1], 100.0)  # meV
    single = replace(made, rows=made.rows.chosen(np.array([0])), labels=made.labels[:1], means=made.means[:1])
    assert plot_error_by_distance(single, [GAP]) is None


def test_the_curve_of_a_pair_is_drawn_by_distance_when_there_are_enough() -> None:
    assert plot_distance_curve(made_evaluation()) is None
    made = made_evaluation(extra_pairs=5)
    figure = plot_distance_curve(made)
    assert figure is not None
    calculated = points(figure.axes[0], "calculated")
    assert len(calculated) == 6
    assert (np.diff(calculated[:, 0]) >= 0).all()
    distances = {round(float(MOS2.pair_distances[0, 64 + i]), 6) for i in range(6)}
    assert {round(x, 6) for x in calculated[:, 0]} == distances
    assert "MAE 20 meV, 0 meV without the shift of +20 meV" in figure.axes[0].get_title()


def test_calibration_marks_the_observed_shares_of_the_intervals() -> None:
    axes = plot_calibration(made_evaluation(extra_pairs=7), [GAP]).axes[0]
    marked = points(axes)
    assert len(marked) == 4  # two subsets at 68 and 95 %
    assert sorted(marked[:, 1]) == [0.0, 1.0, 1.0, 1.0]  # the one row of the second subset is outside of 68 %


def test_marks_of_a_single_subset_stand_at_68_and_95_percent() -> None:
    made = made_evaluation(extra_pairs=7)
    one = replace(made, rows=replace(made.rows, group_of_row=np.zeros(made.rows.n_rows, np.int64)))
    assert points(plot_calibration(one, [GAP]).axes[0])[:, 0].tolist() == [0.68, 0.95]


def test_every_plot_says_that_learnt_rows_are_among_the_rows() -> None:
    def said(made: Evaluation) -> list[str]:
        figures = [
            plot_parity(made), plot_error_by_distance(made, [GAP]), plot_distance_curve(made),
            plot_calibration(made, [GAP]), plot_residuals(made, GAP),
        ]  # fmt: skip
        texts = [" ".join(text.get_text() for text in figure.findobj(Text)) for figure in figures if figure is not None]
        assert len(texts) == 5
        return [" ".join(text.split()) for text in texts]

    learnt = made_evaluation(extra_pairs=5)
    words = "the model has learnt from 1 of 9 rows: errors are too small"
    assert all(words in text for text in said(learnt))
    unseen = replace(learnt, is_learnt=np.zeros_like(learnt.is_learnt))
    assert not any("learnt" in text for text in said(unseen))


@pytest.mark.parametrize("extra_pairs", [0, 5])
def test_titles_and_legends_fit_into_a_narrow_figure(extra_pairs: int) -> None:
    made = made_evaluation(extra_pairs=extra_pairs)
    many = 6
    rows = replace(
        made.rows,
        subsets=tuple(f"a subset {i}" for i in range(many)),
        levels=(None,) * many,
        group_of_row=np.arange(made.rows.n_rows) % many,
    )
    for figure in (
        plot_parity(replace(made, rows=rows, properties=(GAP,))),
        plot_calibration(replace(made, rows=rows), [GAP]),
        plot_residuals(replace(made, rows=replace(made.rows, group_of_row=np.zeros(made.rows.n_rows, np.int64))), GAP),
    ):
        figure.draw_without_rendering()
        width = figure.bbox.width
        shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        for box in (text.get_window_extent() for text in shown):
            assert box.x0 >= -1
            assert box.x1 <= width + 1


def test_residuals_have_a_panel_for_each_subset_and_a_box_for_each_size() -> None:
    figure = plot_residuals(made_evaluation(extra_pairs=3), GAP)
    low, high = figure.axes
    assert [text.get_text() for text in low.get_xticklabels()] == ["1\n1", "2\n4", "3\n1"]
    assert [text.get_text() for text in high.get_xticklabels()] == ["4\n1"]
    assert (low.get_title(), high.get_title()) == ("MoS2 low: MAE 100.0", "MoS2 high: MAE 300.0")


def test_energy_and_gap_come_first_and_else_the_first_property() -> None:
    made = made_evaluation()
    assert main_properties(made) == [ENERGY, GAP]
    assert main_properties(replace(made, properties=("homo", "lumo"))) == ["homo"]
