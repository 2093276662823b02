"""Draws the lines of bench_learning_curve, and says how many labels a choice saves.

    python -m tests.benchmarks.learning_curve_figure learning_curve.jsonl docs/learning_curve.svg

Error against number of labels on logarithmic axes, a panel for each subset and property: the mean of the seeds, and
their range as a shade. The colours are those of Okabe and Ito, which people of every colour vision can tell apart.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter
from numpy.typing import NDArray

LOOKS = {"random": ("#D55E00", "o", "random choice"), "informative": ("#0072B2", "s", "screening next --learn")}
NAMES = {"formation_energy_per_site": "formation energy per site", "homo_lumo_gap_min": "HOMO-LUMO gap"}
TICKS = (1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100)

Curve = dict[int, list[float]]
"""Errors of the seeds by number of labels."""


def read_curves(path: Path, learner: str) -> dict[tuple[str, str], dict[str, Curve]]:
    """Curves by subset and property, then by way of choosing; numbers of labels that every curve has."""
    found: dict[tuple[str, str], dict[str, Curve]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for line in map(json.loads, path.read_text().splitlines()):
        if line["learner"] == learner:
            for name, error in line["mae_mev"].items():
                found[line["subset"], name][line["strategy"]][line["labels"]].append(error)
    return {place: _complete(curves) for place, curves in sorted(found.items())}


def saved(curves: Mapping[str, Curve]) -> list[tuple[int, float]]:
    """By number of chosen labels: how many times as many random ones have the same error.

    Between the measured numbers the curve of the random choice is a straight line on logarithmic axes; where none of
    its errors is as small there is no answer, and none is given.
    """
    labels, errors = _means(curves["random"])
    falling = np.minimum.accumulate(errors)
    ratios = []
    for n, error in zip(*_means(curves["informative"]), strict=True):
        if falling[-1] <= error < falling[0]:
            same = np.exp(np.interp(-np.log(error), -np.log(falling), np.log(labels)))
            ratios.append((int(n), float(same / n)))
    return ratios


def draw(curves: Mapping[tuple[str, str], Mapping[str, Curve]], output: Path) -> None:
    """Draw all panels into a file whose ending says its format."""
    subsets = list(dict.fromkeys(subset for subset, _ in curves))
    with mpl.rc_context({"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "learning curve"}):
        figure = Figure(figsize=(8.4, 0.8 + 3.3 * len(subsets)), layout="constrained")
        panels = figure.subplots(len(subsets), len(NAMES), squeeze=False)
        for row, subset in zip(panels, subsets, strict=True):
            for axes, (name, title) in zip(row, NAMES.items(), strict=True):
                _draw_panel(axes, curves[subset, name])
                axes.set_title(f"{subset.rsplit('/', 1)[-1]}: {title}", fontsize=11, loc="left")
        for axes in panels[-1]:
            axes.set_xlabel("labels")
        for axes in panels[:, 0]:
            axes.set_ylabel("mean absolute error, meV")
        panels[0, 0].legend(frameon=False, loc="upper right")
        figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None, dpi=160)


def _draw_panel(axes: Axes, curves: Mapping[str, Curve]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for strategy, (colour, marker, label) in LOOKS.items():
        curve = curves[strategy]
        labels, errors = _means(curve)
        low, high = ([f(curve[n]) for n in labels] for f in (min, max))
        axes.fill_between(labels, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(labels, errors, color=colour, marker=marker, markersize=5, linewidth=1.8, label=label)
    axes.xaxis.set_major_locator(FixedLocator(list(labels)))
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    axes.grid(color="#d9d9d9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _complete(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """Only the numbers of labels that have as many seeds as most in every curve."""
    n_seeds = {n: min(len(curves.get(strategy, {}).get(n, ())) for strategy in LOOKS) for n in curves["random"]}
    kept = sorted(n for n, seeds in n_seeds.items() if seeds)
    return {strategy: {n: list(curves[strategy][n][: n_seeds[n]]) for n in kept} for strategy in LOOKS}


def _means(curve: Curve) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    return np.array(sorted(curve)), np.array([np.mean(curve[n]) for n in sorted(curve)])


def main(arguments: Sequence[str]) -> None:
    """Draw, and print a JSON line for each panel."""
    path, output = Path(arguments[0]), Path(arguments[1])
    learner = arguments[2] if len(arguments) > 2 else "network"
    curves = read_curves(path, learner)
    for (subset, name), panel in curves.items():
        line: dict[str, Any] = {"figure": "labels saved", "subset": subset, "property": name, "learner": learner}
        line["times_as_many_random_labels"] = {n: round(ratio, 2) for n, ratio in saved(panel)}
        print(json.dumps(line))
    draw(curves, output)


if __name__ == "__main__":
    main(sys.argv[1:])
