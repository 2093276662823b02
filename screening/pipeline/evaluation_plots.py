"""Plots of an evaluation, as PNG: parity, error by distance, calibration, residuals by number of defects.

Every subset has one colour and one marker in all plots; colours are told apart by colour-blind people too (after
Okabe and Ito, Color Universal Design (2008), yellow darkened). Large subsets are drawn first, so that small ones
stay visible. Where rows that the model has learnt from are among them, every plot says so.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import DefectType
from screening.learning.metrics import coverage_at, measure
from screening.pipeline.evaluation import Evaluation
from screening.pipeline.evaluation_tables import short_name, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAIN_PROPERTIES = ("formation_energy_per_site", "homo_lumo_gap_min")
CURVE = (DefectType.parse("v_Mo"), DefectType.parse("v_S"))  # whose energy by distance science has a curve of

_WORDS = {
    "formation_energy": "formation energy, eV",
    "formation_energy_per_site": "formation energy per site, eV",
    "homo_lumo_gap_min": "gap, eV",
    "homo_lumo_gap_majority": "gap of the majority spin, eV",
    "homo_lumo_gap_minority": "gap of the minority spin, eV",
    "homo": "HOMO, eV",
    "lumo": "LUMO, eV",
    "total_mag": "magnetisation, Bohr magneton",
}
_COLOURS = ("#0072B2", "#D55E00", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#7A5195", "#444444")
_MARKERS = "osD^vPX*"
_DPI = 150
_MILLI = 1e3
_FEW_DEFECTS = (2, 3)  # of which the closest pair says most
_FEWEST_ON_CURVE = 4
_FEWEST_FOR_MEDIANS = 50
_SMALLEST_SHOWN = 0.1  # meV; smaller errors mean nothing and are drawn there
_MEDIANS_NOTE = f"lines: medians of bins with about equally many rows; errors below {_SMALLEST_SHOWN} are drawn there"
_BARS_NOTE = "markers at 68 and 95 %, set apart; bars: 95 % noise of the share"
_BOXES_NOTE = "quartiles, whiskers from 5 to 95 %, dashes: mean predicted standard deviation"
_CHARACTERS = 13  # that fit into an inch
_SUBSET_INCHES = 1.25  # of its name in a legend


def main_properties(evaluation: Evaluation) -> list[str]:
    """Energy per site and gap, as far as they are evaluated; else the first property."""
    return [name for name in MAIN_PROPERTIES if name in evaluation.properties] or list(evaluation.properties[:1])


def write_plots(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Draw every plot that the rows allow; the paths of those that were written."""
    shown = main_properties(evaluation)
    figures: dict[str, Figure | None] = {
        "parity": plot_parity(evaluation),
        "error_by_distance": plot_error_by_distance(evaluation, shown),
        "distance_curve": plot_distance_curve(evaluation),
        "calibration": plot_calibration(evaluation, shown),
        **{f"residuals_{name}": plot_residuals(evaluation, name) for name in shown},
    }
    written = []
    for stem, figure in figures.items():
        if figure is not None:
            written.append(folder / f"{stem}.png")
            figure.savefig(written[-1], dpi=_DPI)
    return written


def plot_parity(evaluation: Evaluation) -> Figure:
    """Predicted against calculated values with standard deviations, a panel for each property."""
    names = evaluation.properties
    figure, panels = _panels(len(names), width=3.9, height=3.7)
    for name, axes in zip(names, panels, strict=True):
        p = names.index(name)
        labels, means, stds = (array[:, p] for array in (evaluation.labels, evaluation.means, evaluation.stds))
        for group, rows in _subsets_by_size(evaluation, np.isfinite(labels)):
            colour, marker = _style(group)
            alpha = float(np.clip(60 / len(rows) ** 0.7, 0.3, 0.8))  # one outlier in 4,747 shows
            axes.errorbar(
                labels[rows], means[rows], yerr=stds[rows], fmt="none", ecolor=colour, elinewidth=0.6, alpha=alpha / 2
            )
            axes.plot(
                labels[rows], means[rows], marker, color=colour, markersize=2.6, markeredgewidth=0, alpha=alpha,
            )  # fmt: skip
        known = np.isfinite(labels)
        both = np.concatenate([labels[known], means[known]])
        ends = np.array([both.min(), both.max()])
        ends += np.array([-0.04, 0.04]) * max(float(np.ptp(ends)), 0.1)
        axes.plot(ends, ends, color="black", linewidth=0.7, zorder=5)
        axes.set(xlim=ends, ylim=ends, aspect="equal", title=_WORDS[name], xlabel="calculated", ylabel="predicted")
        found = measure(evaluation.errors(name))
        text = f"{found.n_rows:,} rows\nMAE {_MILLI * found.mae:.1f}\nRMSE {_MILLI * found.rmse:.1f}\n({unit_of(name)})"
        axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top", fontsize=8)
    _legend(figure, evaluation)
    return figure


def plot_error_by_distance(evaluation: Evaluation, names: Sequence[str]) -> Figure | None:
    """Absolute errors of rows with two or three defects by the distance of their closest pair; None without any."""
    distances = closest_pairs(evaluation)
    few = np.isin(evaluation.rows.n_defects, _FEW_DEFECTS)
    if not few.any():
        return None
    figure, panels = _panels(len(names), width=5.6, height=4.2)
    for name, axes in zip(names, panels, strict=True):
        sizes = _MILLI * np.abs(evaluation.errors(name).errors)
        for group, rows in _subsets_by_size(evaluation, few & np.isfinite(sizes)):
            colour, marker = _style(group)
            alpha = float(np.clip(60 / len(rows) ** 0.7, 0.3, 0.7))
            axes.plot(
                distances[rows], np.maximum(sizes[rows], _SMALLEST_SHOWN), marker, color=colour, markersize=3,
                markeredgewidth=0, alpha=alpha,
            )  # fmt: skip
            if len(rows) >= _FEWEST_FOR_MEDIANS:
                middle, medians = _running_median(distances[rows], sizes[rows])
                axes.plot(
                    middle, medians, marker + "-", color=colour, linewidth=1.8, markersize=5.5, markeredgecolor="white",
                    markeredgewidth=0.7, zorder=4,
                )  # fmt: skip
        axes.set_yscale("log")
        axes.set(
            title=_WORDS[name].split(",")[0],
            xlabel="distance of the closest pair of defects, Å",
            ylabel=f"absolute error, {unit_of(name)}",
        )
        axes.grid(alpha=0.25, linewidth=0.5)
    _legend(figure, evaluation, few, note=_MEDIANS_NOTE)
    return figure


def plot_distance_curve(evaluation: Evaluation) -> Figure | None:
    """Formation energy per site of v_Mo + v_S in MoS2 by distance, predicted and calculated; None with few of them."""
    name = "formation_energy_per_site"
    codes = tuple(sorted(t.code for t in CURVE))
    if name not in evaluation.properties:
        return None
    errors = evaluation.errors(name)
    is_pair = np.array([tuple(sorted(c.defect_types)) == codes for c in evaluation.rows.configurations], bool)
    rows = np.flatnonzero(is_pair & np.isfinite(errors.errors))
    if len(rows) < _FEWEST_ON_CURVE:
        return None
    distances = closest_pairs(evaluation)[rows]
    rows, distances = rows[np.argsort(distances)], np.sort(distances)
    p = evaluation.properties.index(name)
    labels, means = evaluation.labels[rows, p], evaluation.means[rows, p]
    figure, (axes,) = _panels(1, width=6.4, height=4.4)
    axes.fill_between(distances, means - errors.half_widths[rows], means + errors.half_widths[rows],
                      color=_COLOURS[0], alpha=0.12, linewidth=0, label="95 % interval")  # fmt: skip
    axes.errorbar(
        distances, means, yerr=evaluation.stds[rows, p], fmt="o-", color=_COLOURS[0], markersize=5, linewidth=1.4,
        elinewidth=1, capsize=2, label="predicted, with standard deviation",
    )  # fmt: skip
    axes.plot(distances, labels, "D--", color="black", markersize=4.5, linewidth=1, label="calculated")
    shift = float((means - labels).mean())
    mae, of_shape = (_MILLI * np.abs(means - labels - part).mean() for part in (0.0, shift))
    errors_of = f"MAE {mae:.0f} meV, {of_shape:.0f} meV without the shift of {_MILLI * shift:+.0f} meV"
    title = _lines(figure, f"v_Mo + v_S in MoS2, {len(rows)} configurations", errors_of, _caution(evaluation))
    axes.set_title(title, fontsize=9)
    axes.set(xlabel="distance of v_Mo and v_S, Å", ylabel=_WORDS[name])
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.legend(frameon=False, loc="lower right")
    return figure


def plot_calibration(evaluation: Evaluation, names: Sequence[str]) -> Figure:
    """Observed against nominal coverage by subset, a panel for each property.

    Intervals of 68 and 95 % are those of the model (marked); the others are interpolated between them by the quantiles
    of the normal distribution.
    """
    figure, panels = _panels(len(names), width=5.0, height=4.8)
    nominal, marked = np.append(np.linspace(0.05, 0.95, 19), 0.99), np.array([0.68, 0.95])
    for name, axes in zip(names, panels, strict=True):
        errors = evaluation.errors(name)
        shown = _subsets_by_size(evaluation, np.isfinite(errors.errors))
        places = 0.011 * (np.arange(len(shown)) - (len(shown) - 1) / 2)
        for (group, rows), apart in zip(sorted(shown), places, strict=True):
            colour, marker = _style(group)
            observed = coverage_at(errors.chosen(rows), nominal)
            axes.plot(nominal, observed, color=colour, linewidth=1.2, alpha=0.9)
            found = coverage_at(errors.chosen(rows), marked)
            noise = 1.96 * np.sqrt(found * (1 - found) / len(rows))
            axes.errorbar(
                marked + apart, found, yerr=noise, fmt=marker, color=colour, markersize=4.5, markeredgecolor="white",
                markeredgewidth=0.5, elinewidth=0.9, zorder=4,
            )  # fmt: skip
        axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, zorder=1)
        axes.fill_between([0, 1], [0, 1], [1, 1], color="black", alpha=0.035, linewidth=0)
        axes.text(0.03, 0.95, "error bars too wide", fontsize=8, color="#555555", va="top")
        axes.text(0.97, 0.05, "error bars too narrow", fontsize=8, color="#555555", ha="right")
        axes.set(
            xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal", title=_WORDS[name].split(",")[0],
            xlabel="share of labels the interval should hold", ylabel="share it holds",
        )  # fmt: skip
    _legend(figure, evaluation, note=_BARS_NOTE)
    return figure


def plot_residuals(evaluation: Evaluation, name: str) -> Figure:
    """Errors by number of defects, a panel for each subset: quartiles, whiskers from 5 to 95 %, predicted bars."""
    errors = evaluation.errors(name)
    groups = sorted(_subsets_by_size(evaluation, np.isfinite(errors.errors)))
    width, height = (3.5, 3.0) if len(groups) > 1 else (6.0, 4.2)
    figure, panels = _panels(len(groups), width=width, height=height)
    for (group, rows), axes in zip(groups, panels, strict=True):
        colour, _ = _style(group)
        sizes = evaluation.rows.n_defects[rows]
        numbers = np.unique(sizes)
        samples = [_MILLI * errors.errors[rows[sizes == k]] for k in numbers]
        axes.boxplot(
            samples, whis=(5, 95), widths=0.5, showfliers=False, patch_artist=True,
            boxprops={"facecolor": colour, "alpha": 0.55, "linewidth": 0.6},
            medianprops={"color": "black", "linewidth": 1.2}, whiskerprops={"linewidth": 0.8},
            capprops={"linewidth": 0.8},
        )  # fmt: skip
        widths = [_MILLI * errors.stds[rows[sizes == k]].mean() for k in numbers]
        for sign in (-1, 1):
            axes.plot(np.arange(1, len(numbers) + 1), sign * np.array(widths), "_", color="black", markersize=16,
                      markeredgewidth=1.0, alpha=0.6)  # fmt: skip
        axes.axhline(0.0, color="black", linewidth=0.6)
        axes.set_xticks(range(1, len(numbers) + 1), [f"{k}\n{len(s):,}" for k, s in zip(numbers, samples, strict=True)])
        found = measure(errors.chosen(rows))
        axes.set_title(f"{short_name(evaluation.rows.subsets[group])}: MAE {_MILLI * found.mae:.1f}", fontsize=10)
    figure.supxlabel("number of defects, and number of rows", fontsize=10)
    figure.supylabel(f"predicted - calculated, {unit_of(name)}", fontsize=10)
    title = f"{_WORDS[name].split(',')[0]}: {_BOXES_NOTE}"
    figure.suptitle(_lines(figure, title, _caution(evaluation)), fontsize=10)
    return figure


def closest_pairs(evaluation: Evaluation) -> NDArray[np.float64]:
    """(n,) float64, angstrom: distance of the closest pair of defects of each row; inf for a single defect."""
    rows = evaluation.rows
    distances = np.full(rows.n_rows, np.inf)
    for i, configuration in enumerate(rows.configurations):
        sites = np.array(configuration.sites)
        one, other = np.triu_indices(len(sites), k=1)
        table = rows.supercells[rows.supercell_of_row[i]].pair_distances
        distances[i] = table[sites[one], sites[other]].min(initial=np.inf)
    return distances


def _panels(n: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with n panels, at most four in a row; width and height of a panel in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_rows = -(-n // 4)
    n_columns = -(-n // n_rows)
    figure = Figure(figsize=(width * n_columns, height * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(n_rows, n_columns, i + 1) for i in range(n)]


def _legend(figure: Figure, evaluation: Evaluation, rows: NDArray[np.bool_] | None = None, *, note: str = "") -> None:
    """Name the subsets that have any of these rows (all by default), below the panels."""
    from matplotlib.lines import Line2D

    handles = []
    groups = evaluation.rows.group_of_row
    for group in np.unique(groups if rows is None else groups[rows]).tolist():
        colour, marker = _style(group)
        label = short_name(evaluation.rows.subsets[group])
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=6, linestyle="", label=label))
    n_columns = int(np.clip(figure.get_figwidth() / _SUBSET_INCHES, 1, min(len(handles), 8)))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=n_columns, frameon=False, fontsize=9,
        title=_lines(figure, note, _caution(evaluation)) or None, title_fontsize=8,
    )  # fmt: skip


def _caution(evaluation: Evaluation) -> str:
    """What plots must say where rows are among them that the model has learnt from."""
    n_learnt, n_rows = int(evaluation.is_learnt.sum()), evaluation.rows.n_rows
    return f"the model has learnt from {n_learnt:,} of {n_rows:,} rows: errors are too small" if n_learnt else ""


def _lines(figure: Figure, *texts: str) -> str:
    """Texts, each on lines that fit into the width of a figure."""
    width = int(_CHARACTERS * figure.get_figwidth())
    return "\n".join(textwrap.fill(text, width) for text in texts if text)


def _style(group: int) -> tuple[str, str]:
    return _COLOURS[group % len(_COLOURS)], _MARKERS[group % len(_MARKERS)]


def _subsets_by_size(evaluation: Evaluation, chosen: NDArray[np.bool_]) -> list[tuple[int, NDArray[np.int64]]]:
    """Number and chosen rows of each subset that has any, the largest first."""
    found = [
        (group, np.flatnonzero(chosen & (evaluation.rows.group_of_row == group)))
        for group in range(len(evaluation.rows.subsets))
    ]
    return sorted(((group, rows) for group, rows in found if len(rows)), key=lambda pair: -len(pair[1]))


def _running_median(
    distances: NDArray[np.float64], sizes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Medians in bins with about equally many rows: mean distance and median size of each."""
    order = np.argsort(distances)
    n_bins = int(np.clip(len(order) // 25, 1, 12))
    bins = np.array_split(order, n_bins)
    return np.array([distances[b].mean() for b in bins]), np.array([np.median(sizes[b]) for b in bins])
