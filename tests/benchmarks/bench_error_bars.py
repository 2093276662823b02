"""Error bars on 2DMD: do the intervals hold what they promise on rows that no training has used, and beyond them?

One ensemble is trained on the training rows, without a look at the validation rows, and judged on these: coverage by
subset, property and number of defects, and how often a window holds that a design query gives a probability for. Others
are trained without what is then asked for: the numbers of defects at the ends of the subsets, and a host, which is
refused. An hour on a core.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, atomic_number
from screening.defects.host import Supercell
from screening.errors import InputError
from screening.learning.calibration import Calibration
from screening.learning.dataset import LabelledRows
from screening.learning.ensemble import Ensemble
from screening.learning.scorer import score_configurations
from screening.learning.settings import TrainingSettings
from screening.learning.training import train_ensemble
from screening.pipeline.labelled_files import read_labelled
from tests.benchmarks.bench_learning import CODES, N_ROWS, many_seen_compositions, random_block
from tests.benchmarks.conftest import Measure, PrintLine

SETTINGS = TrainingSettings(epochs=100, device="cpu")
LEVELS = (0.68, 0.95)
TWINS = {"MoS2": "WSe2", "WSe2": "MoS2"}  # hosts of one structure whose sites are numbered alike
WINDOW_ENDS = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])  # quantiles of a property in its subset


@dataclass(frozen=True, eq=False)
class Judged:
    """Predictions of rows, and their subsets.

    Attributes:
        rows: numbers of them among all labelled rows, (n,).
        errors: (n, n_properties), mean minus label.
        std: (n, n_properties).
        half_widths: (n, n_properties) for each level.
    """

    rows: NDArray[np.int64]
    mean: NDArray[np.float64]
    errors: NDArray[np.float64]
    std: NDArray[np.float64]
    half_widths: dict[float, NDArray[np.float64]]

    def coverage(self, level: float, chosen: NDArray[np.bool_] | slice = slice(None)) -> NDArray[np.float64]:
        """(n_properties,) share of the chosen rows whose label is in its interval."""
        inside = np.abs(self.errors) <= self.half_widths[level]
        return np.asarray(inside[chosen].mean(axis=0))


@dataclass(frozen=True, eq=False)
class Release:
    """All labelled rows and the names of their subsets."""

    rows: LabelledRows
    subsets: tuple[str, ...]

    @property
    def hosts(self) -> NDArray[np.str_]:
        """(n,) name of the host of each row."""
        return np.array([supercell.host.name for supercell in self.rows.supercells])[self.rows.supercell_of_row]


@pytest.fixture(scope="module")
def release(shared_data: Path) -> Release:
    """2DMD with its own validation rows."""
    files = read_labelled(shared_data / "2dmd")
    rows = LabelledRows(
        supercells=files.supercells,
        supercell_of_row=files.supercell_of_row,
        configurations=files.configurations,
        properties=files.properties,
        labels=files.labels,
        is_validation=np.array([split == "validation" for split in files.splits]),
        group_of_row=files.group_of_row,
    )
    return Release(rows, files.subsets)


@pytest.fixture(scope="module")
def judged(release: Release) -> Judged:
    """The validation rows under an ensemble of the training rows."""
    return judge(train(release.rows), release.rows, np.flatnonzero(release.rows.is_validation))


def bench_coverage_on_rows_never_used(print_line: PrintLine, release: Release, judged: Judged) -> None:
    """Shares of labels within the 68 and 95 % intervals by subset, property and number of defects."""
    group, n_defects = release.rows.group_of_row[judged.rows], release.rows.n_defects[judged.rows]
    of_subsets = []
    for number, subset in enumerate(release.subsets):
        of_subset = group == number
        varies = np.ptp(release.rows.labels[judged.rows[of_subset]], axis=0) > 0  # no spin, no magnetisation to miss
        shares = {level: judged.coverage(level, of_subset) for level in LEVELS}
        of_subsets.append({level: share[varies].mean() for level, share in shares.items()})
        for p, name in enumerate(release.rows.properties):
            print_line(
                coverage_line(subset, int(of_subset.sum()), {level: share[p] for level, share in shares.items()})
                | {"property": name, "mae": rounded(np.abs(judged.errors[of_subset, p]).mean())}
                | {"mean_std": rounded(judged.std[of_subset, p].mean())}
            )
        for k in np.unique(n_defects[of_subset]).tolist():
            chosen = of_subset & (n_defects == k)
            shares_of_k = {level: judged.coverage(level, chosen)[varies].mean() for level in LEVELS}
            print_line(coverage_line(subset, int(chosen.sum()), shares_of_k) | {"n_defects": k})
        print_line(coverage_line(subset, int(of_subset.sum()), of_subsets[-1]))
    means = {level: np.mean([shares[level] for shares in of_subsets]) for level in LEVELS}
    print_line(coverage_line("mean of subsets", len(group), means))


def bench_probabilities_of_windows(print_line: PrintLine, release: Release, judged: Judged) -> None:
    """How often a window holds that design queries give a probability for, by probability."""
    predicted, observed = [], []
    group = release.rows.group_of_row
    for number in range(len(release.subsets)):
        chosen = group[judged.rows] == number
        for p in range(len(release.rows.properties)):
            of_subset = release.rows.labels[group == number, p]
            if np.ptp(of_subset) == 0.0:
                continue
            ends = np.quantile(of_subset, WINDOW_ENDS)
            mean, std = judged.mean[chosen, p, None], np.maximum(judged.std[chosen, p, None], 1e-6)
            predicted.append(np.diff(norm.cdf((ends - mean) / std), axis=1).ravel())
            label = mean - judged.errors[chosen, p, None]
            observed.append(((label >= ends[:-1]) & (label < ends[1:])).ravel())
    chances, hits = np.concatenate(predicted), np.concatenate(observed)
    for low in np.arange(0.0, 1.0, 0.1).round(1).tolist():
        in_bin = (chances >= low) & (chances < low + 0.1 if low < 0.9 else chances <= 1.0)
        print_line(
            {
                "figure": "probability that a window holds",
                "from": low,
                "windows": int(in_bin.sum()),
                "predicted": rounded(chances[in_bin].mean()),
                "observed": rounded(hits[in_bin].mean()),
            }
        )


@pytest.mark.parametrize("k", [3, 5])
def bench_cost_of_error_bars(measure: Measure, k: int) -> None:
    """Of a block whose scoring `bench_learning` times; one thread."""
    supercell = Supercell.parse(catalogue_host("MoS2"), "8x8")
    sites, codes = random_block(supercell, k)
    novelty, shape = many_seen_compositions(CODES), (2, 24, 6)
    calibration = Calibration(np.full(shape, 0.01), np.ones(shape), np.full(shape, 2.0))
    spreads = np.random.default_rng(0).random((N_ROWS, 6))
    novelty.widening(supercell, sites, codes)  # compiled, or loaded
    measure(
        f"error bars of {k} defects",
        N_ROWS,
        widening=lambda: novelty.widening(supercell, sites, codes),
        calibration=lambda: calibration.std(spreads, 0, k),
    )


@pytest.mark.parametrize("left_out", ["most", "fewest"])
def bench_numbers_of_defects_never_seen(print_line: PrintLine, release: Release, left_out: str) -> None:
    """Trained without the most or the fewest defects of the high-density subsets: coverage of these."""
    rows = release.rows
    is_end = np.zeros(len(rows.configurations), bool)
    for number, subset in enumerate(release.subsets):
        if subset.startswith("high"):
            of_subset = rows.group_of_row == number
            k = rows.n_defects[of_subset]
            is_end[of_subset] = rows.n_defects[of_subset] == (k.max() if left_out == "most" else k.min())
    spare = np.array([host in ("MoS2", "WSe2") for host in release.hosts]) & (left_out == "fewest")
    is_end &= ~spare  # these have fewer in their low-density subsets
    judged = judge(train(replace(rows, is_validation=rows.is_validation | is_end)), rows, np.flatnonzero(is_end))
    for number, subset in enumerate(release.subsets):
        chosen = rows.group_of_row[judged.rows] == number
        if chosen.any():
            shares = {level: judged.coverage(level, chosen).mean() for level in LEVELS}
            k = int(rows.n_defects[judged.rows[chosen]][0])
            print_line(coverage_line(subset, int(chosen.sum()), shares) | {"never_seen_n_defects": k})


@pytest.mark.parametrize("host", ["MoS2", "WSe2", "GaSe", "InSe", "BP", "h-BN"])
def bench_leave_one_host_out(print_line: PrintLine, release: Release, host: str) -> None:
    """Trained without a host: that it is refused, and the errors of taking it for the one of the same structure.

    To beat are the deviations of its labels from their mean, and even that mean would not be known.
    """
    rows, is_of_host = release.rows, release.hosts == host
    epochs = 40 if host in TWINS else 2  # where nothing is predicted, nothing has to be learnt well
    ensemble = train(with_rows(rows, np.flatnonzero(~is_of_host)), epochs=epochs)
    chosen = np.flatnonzero(is_of_host & rows.is_validation)
    supercell = rows.supercells[rows.supercell_of_row[chosen[0]]]
    with pytest.raises(InputError, match=host) as refusal:
        score_configurations(ensemble, supercell, [rows.configurations[chosen[0]]], device="cpu")
    line = {"figure": "leave one host out", "host": host, "answer": str(refusal.value)}
    deviations = np.abs(rows.labels[chosen] - rows.labels[chosen].mean(axis=0)).mean(axis=0)
    named = {name: rounded(value) for name, value in zip(rows.properties, deviations, strict=True)}
    print_line(line | {"mean_deviation_of_labels": named})
    if host in TWINS:
        as_twin = judge(ensemble, as_the_twin(rows, chosen), np.arange(len(chosen)))
        for p, name in enumerate(rows.properties):
            print_line(
                coverage_line(
                    f"{host} taken for {TWINS[host]}", len(chosen), {v: as_twin.coverage(v)[p] for v in LEVELS}
                )
                | {"property": name, "mae": rounded(np.abs(as_twin.errors[:, p]).mean())}
                | {"mean_std": rounded(as_twin.std[:, p].mean())}
            )


def train(rows: LabelledRows, *, epochs: int = SETTINGS.epochs) -> Ensemble:
    """An ensemble of the rows that are not for validation."""
    return train_ensemble(rows, replace(SETTINGS, epochs=epochs), seed=0, on_progress=lambda progress, checkpoint: None)


def judge(ensemble: Ensemble, rows: LabelledRows, numbers: NDArray[np.int64]) -> Judged:
    """What the ensemble says of rows, beside their labels."""
    mean, std = np.empty((2, len(numbers), len(rows.properties)))
    for s in np.unique(rows.supercell_of_row[numbers]).tolist():
        of_cell = np.flatnonzero(rows.supercell_of_row[numbers] == s)
        configurations = [rows.configurations[numbers[i]] for i in of_cell]
        mean[of_cell], std[of_cell] = score_configurations(ensemble, rows.supercells[s], configurations, device="cpu")
    hosts = [rows.supercells[s].host.name for s in rows.supercell_of_row[numbers]]
    n_defects = rows.n_defects[numbers]
    widths = {level: ensemble.half_width(level, std, hosts, n_defects) for level in LEVELS}
    return Judged(numbers, mean, mean - rows.labels[numbers], std, widths)


def with_rows(rows: LabelledRows, numbers: NDArray[np.int64]) -> LabelledRows:
    """Some rows, and only the supercells and groups that they have."""
    chosen = rows.chosen(numbers)
    supercells, supercell_of_row = np.unique(chosen.supercell_of_row, return_inverse=True)
    _, group_of_row = np.unique(chosen.group_of_row, return_inverse=True)
    kept = tuple(rows.supercells[s] for s in supercells)
    return replace(chosen, supercells=kept, supercell_of_row=supercell_of_row, group_of_row=group_of_row)


def as_the_twin(rows: LabelledRows, numbers: NDArray[np.int64]) -> LabelledRows:
    """Rows of one host as if they were of the other host of its structure, species by species."""
    chosen = with_rows(replace(rows, is_validation=np.zeros_like(rows.is_validation)), numbers)
    supercells = []
    for cell in chosen.supercells:
        name = TWINS[cell.host.name]
        twins = [other for other in rows.supercells if other.host.name == name and other.n_sites == cell.n_sites]
        supercells.append(twins[0])
    exchanged = dict(zip(supercells[0].species, chosen.supercells[0].species, strict=True))
    number_of = {atomic_number(old): atomic_number(new) for new, old in exchanged.items()}
    number_of |= {new: old for old, new in number_of.items()}
    for cell, twin in zip(chosen.supercells, supercells, strict=True):
        assert [exchanged[species] for species in twin.species] == list(cell.species)
        np.testing.assert_allclose(twin.pair_distances, cell.pair_distances, rtol=0.1)

    def moved(code: int) -> int:
        removed, added = divmod(code, 128)
        return 128 * number_of[removed] + number_of.get(added, added)

    configurations = tuple(Configuration(c.sites, tuple(map(moved, c.defect_types))) for c in chosen.configurations)
    return replace(chosen, supercells=tuple(supercells), configurations=configurations)


def coverage_line(subset: str, n_rows: int, shares: dict[float, float]) -> dict[str, object]:
    """A figure: shares of labels within their intervals."""
    return {"figure": "coverage", "subset": subset, "rows": n_rows} | {
        f"within_{100 * level:.0f}": rounded(share) for level, share in shares.items()
    }


def rounded(value: float) -> float:
    """To four digits after the point."""
    return round(float(value), 4)
