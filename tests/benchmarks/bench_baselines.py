"""The yardsticks on 2DMD: errors of the pair expansion and of boosted trees on the validation rows, seconds to fit.

A line for each subset, property and model, then the means over the subsets: rows of docs/model.md. Reading and
matching the structures comes first and takes a minute or two.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from numpy.typing import NDArray

from screening.defects.matching import Matcher
from screening.dft.dataset_2dmd import Subset, open_release, read_subset
from screening.dft.structures import parse_cif
from screening.learning.boosted_trees import fit_boosted_trees
from screening.learning.dataset import LabelledRows
from screening.learning.pair_expansion import fit_pair_expansion
from tests.benchmarks.bench_learning import N_ROWS, random_block
from tests.benchmarks.conftest import Measure, PrintLine

PROPERTIES = ("formation_energy_per_site", "homo_lumo_gap_min")


@pytest.fixture(scope="module")
def subsets(shared_data: Path) -> dict[str, LabelledRows]:
    """The labelled rows of every subset by its name."""
    with open_release(shared_data / "2dmd") as places:
        return {place.name: rows_of_subset(read_subset(place)) for place in places}


@pytest.mark.parametrize("how", ["pair expansion", "boosted trees"])
def bench_errors_on_validation_rows(print_line: PrintLine, subsets: dict[str, LabelledRows], how: str) -> None:
    """Mean absolute errors, meV; each property has a fit of its own."""
    for p, name in enumerate(PROPERTIES):
        errors = []
        for subset, rows in subsets.items():
            chosen = replace(rows, properties=(name,), labels=rows.labels[:, p : p + 1])
            started = perf_counter()
            predicted = predictions_of(how, chosen)
            seconds = perf_counter() - started
            errors.append(1e3 * float(np.abs(predicted - chosen.labels[chosen.is_validation, 0]).mean()))
            print_line(error_line(how, subset, name, errors[-1]) | {"fit_s": round(seconds, 2)})
        print_line(error_line(how, "mean of subsets", name, float(np.mean(errors))))


@pytest.mark.parametrize("subset", ["MoS2_500", "GaSe_spin_500", "hBN_spin_500"])
def bench_errors_with_few_rows(print_line: PrintLine, subsets: dict[str, LabelledRows], subset: str) -> None:
    """The first rung for a new host: medians of ten random choices of training rows, against the rows' own mean."""
    rows = subsets[f"high_density_defects/{subset}"]
    for n_rows in (5, 10, 20, 50, 100, 300):
        pair_errors, mean_errors = [], []
        for seed in range(10 if n_rows < 300 else 1):
            few = with_few_training_rows(rows, n_rows, seed)
            expansion = fit_pair_expansion(few)
            known = np.flatnonzero(few.is_validation & expansion.columns.can_count(few.configurations))
            configurations = [few.configurations[row] for row in known]
            predicted = expansion.predict_configurations(few.supercells[0], configurations)[0]
            pair_errors.append(1e3 * np.abs(predicted - few.labels[known]).mean(axis=0))
            mean = few.labels[~few.is_validation].mean(axis=0)
            mean_errors.append(1e3 * np.abs(mean - few.labels[known]).mean(axis=0))
        for how, found in (("pair expansion", pair_errors), ("mean of the training rows", mean_errors)):
            medians = np.median(found, axis=0).round(1).tolist()
            for name, error in zip(PROPERTIES, medians, strict=True):
                print_line(error_line(how, subset, name, error) | {"training_rows": n_rows})


def bench_scoring_by_the_pair_expansion(measure: Measure, subsets: dict[str, LabelledRows]) -> None:
    """Four and five defects in 8x8 MoS2."""
    rows = subsets["low_density_defects/MoS2"]
    expansion, supercell = fit_pair_expansion(rows), rows.supercells[0]
    for k in (4, 5):
        sites, codes = random_block(supercell, k)
        measure(
            f"scoring of {k} defects by the pair expansion",
            N_ROWS,
            ours=lambda sites=sites, codes=codes: expansion.predict(supercell, sites, codes),
        )


def rows_of_subset(subset: Subset) -> LabelledRows:
    """The rows of a subset that split.csv assigns to training or validation, matched to its supercell."""
    supercell = subset.supercell()
    matcher = Matcher(supercell)
    configurations, labels, is_validation = [], [], []
    for name, cif in subset.read_structures():
        row = subset.rows.get(name)
        if row is None or row.split is None:
            continue
        configuration = matcher.match(parse_cif(cif, name))
        found = subset.properties(row, configuration)
        configurations.append(configuration)
        labels.append([found[name] for name in PROPERTIES])
        is_validation.append(row.split == "validation")
    zeros = np.zeros(len(configurations), np.int64)
    return LabelledRows(
        (supercell,), zeros, tuple(configurations), PROPERTIES, np.array(labels), np.array(is_validation), zeros
    )


def with_few_training_rows(rows: LabelledRows, n_rows: int, seed: int) -> LabelledRows:
    """All validation rows and a random choice of the training rows."""
    training = np.flatnonzero(~rows.is_validation)
    picked = np.random.default_rng(seed).choice(training, n_rows, replace=False)
    chosen = np.concatenate([picked, np.flatnonzero(rows.is_validation)])
    return rows.chosen(chosen)


def predictions_of(how: str, rows: LabelledRows) -> NDArray[np.float64]:
    """(n_validation,): fit the training rows and predict the one property of the validation rows."""
    pairs = zip(rows.configurations, rows.is_validation, strict=True)
    configurations = [configuration for configuration, is_held_out in pairs if is_held_out]
    if how == "boosted trees":
        return fit_boosted_trees(rows).predict(configurations)[:, 0]
    return fit_pair_expansion(rows).predict_configurations(rows.supercells[0], configurations)[0][:, 0]


def error_line(how: str, subset: str, name: str, error: float) -> dict[str, object]:
    """A figure of an error."""
    return {"figure": f"MAE on validation rows, {name}", "how": how, "subset": subset, "mae_mev": round(error, 1)}
