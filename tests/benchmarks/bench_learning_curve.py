"""Errors against the number of labels on 2DMD, labels chosen at random or as `screening next --learn` chooses them.

Both begin with the same random 5 % of the training rows of a subset, and what is added is predicted by nothing but what
was there before: the chosen ones follow the standard deviations of the model of the moment. After each addition a model
is trained from scratch, with the same settings and seed for both, and judged on the validation rows of split.csv, which
no model and no choice looks at. A line for each subset, learner, seed, way of choosing and number of labels.

The lines are also written to a file, LEARNING_CURVE_FILE (learning_curve.jsonl in the temporary directory if not set),
and what is in it is not measured again, so that the hours this takes may be spread. LEARNING_CURVE=quick measures one
seed of the pair expansion with few labels. `python -m tests.benchmarks.learning_curve_figure` draws the file.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration
from screening.learning.dataset import LabelledRows
from screening.learning.informative import choose_informative, pair_features, posterior_covariance, spread_of
from screening.learning.pair_columns import pair_columns
from screening.learning.pair_expansion import fit_pair_expansion
from screening.learning.scorer import score_configurations
from screening.learning.settings import TrainingSettings
from screening.learning.training import train_ensemble
from screening.pipeline.labelled_files import Selection, read_labelled
from tests.benchmarks.conftest import PrintLine

PROPERTIES = ("formation_energy_per_site", "homo_lumo_gap_min")
STRATEGIES = ("informative", "random")
SUBSETS = ("low_density_defects/MoS2", "low_density_defects/WSe2")
FOLDS = 5  # of the network's members
SETTINGS = TrainingSettings(drawn_rows=0, device="cpu")
IS_QUICK = os.environ.get("LEARNING_CURVE") == "quick"
FILE = Path(os.environ.get("LEARNING_CURVE_FILE", Path(tempfile.gettempdir()) / "learning_curve.jsonl"))

Predictions = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Means and standard deviations (n, n_properties)."""


@dataclass(frozen=True)
class Plan:
    """What is measured of one kind of model.

    Attributes:
        shares: of the training rows, ascending; the first is chosen at random.
        n_seeds: seeds of the choice and of the training.
        learn: fits rows and predicts configurations.
    """

    shares: tuple[float, ...]
    n_seeds: int
    learn: Callable[[LabelledRows, tuple[Configuration, ...], int], Predictions]


@pytest.mark.parametrize("subset", SUBSETS[:1] if IS_QUICK else SUBSETS)
@pytest.mark.parametrize("learner", ["pair expansion"] if IS_QUICK else ["network", "pair expansion"])
def bench_learning_curve(print_line: PrintLine, shared_data: Path, learner: str, subset: str) -> None:
    """All seeds and both ways of choosing with few labels first, then with more."""
    plan = PLANS[learner]
    rows = read_subset(shared_data, subset)
    training = np.flatnonzero(~rows.is_validation)
    sizes = [round(share * len(training)) for share in plan.shares]
    for depth in range(2 if IS_QUICK else len(sizes)):
        for seed in range(1 if IS_QUICK else plan.n_seeds):
            for strategy in STRATEGIES:
                case = {"subset": subset, "learner": learner, "seed": seed, "strategy": strategy}
                known = lines_of(case)
                if sizes[depth] not in known:
                    chosen = chosen_before(known, training, sizes[: depth + 1], seed=seed)
                    n_next = sizes[min(depth + 1, len(sizes) - 1)] - sizes[depth]
                    measured = measure(rows, plan, chosen, strategy, seed=seed, n_next=n_next)
                    with FILE.open("a") as file:
                        file.write(json.dumps({"figure": "learning curve", **case, **measured}) + "\n")
                    known = lines_of(case)
                line = known[sizes[depth]]
                print_line({name: value for name, value in line.items() if name != "next_rows"})


def measure(
    rows: LabelledRows, plan: Plan, chosen: NDArray[np.int64], strategy: str, *, seed: int, n_next: int
) -> dict[str, object]:
    """The errors of a model that has learnt from the chosen rows, and the rows to be chosen next."""
    started = time.process_time()
    mean, std = plan.learn(only_rows(rows, chosen), rows.configurations, seed)
    seconds = time.process_time() - started
    errors = 1e3 * np.abs(mean - rows.labels)[rows.is_validation].mean(axis=0)
    pool = np.setdiff1d(np.flatnonzero(~rows.is_validation), chosen)
    picked = pick(strategy, rows, chosen, pool, std[pool], n=n_next, seed=seed)
    return {
        "labels": len(chosen),
        "mae_mev": dict(zip(PROPERTIES, errors.round(3).tolist(), strict=True)),
        "fit_cpu_s": round(seconds, 1),
        "next_rows": pool[picked].tolist(),
    }


def chosen_before(
    known: Mapping[int, Mapping[str, Any]], training: NDArray[np.int64], sizes: list[int], *, seed: int
) -> NDArray[np.int64]:
    """The rows that are labelled at the last size: the first ones at random, then what the lines before it chose."""
    first = np.random.default_rng(seed).choice(training, sizes[0], replace=False)
    return np.concatenate([first, *(np.array(known[size]["next_rows"], np.int64) for size in sizes[:-1])])


def pick(
    strategy: str, rows: LabelledRows, chosen: NDArray[np.int64], pool: NDArray[np.int64], std: NDArray[np.float64],
    *, n: int, seed: int,
) -> NDArray[np.int64]:  # fmt: skip
    """Places in the pool of the next n labels.

    Args:
        std: (len(pool), n_properties) of the model that has learnt from the chosen rows.
    """
    if strategy == "random":
        return np.random.default_rng([seed, len(chosen)]).choice(len(pool), n, replace=False)
    codes = sorted({code for configuration in rows.configurations for code in configuration.defect_types})
    features = pair_features(pair_columns(rows.supercells[0], codes), rows.configurations)
    covariance = posterior_covariance(features[pool], features[chosen])
    return choose_informative(covariance, spread_of(std, features[pool], features[chosen]), n)[0]


def by_pair_expansion(rows: LabelledRows, configurations: tuple[Configuration, ...], seed: int) -> Predictions:
    """The yardstick: no randomness in it."""
    return fit_pair_expansion(rows).predict_configurations(rows.supercells[0], configurations)


def by_network(rows: LabelledRows, configurations: tuple[Configuration, ...], seed: int) -> Predictions:
    """The ensemble as `screening train` makes it."""
    fold = np.random.default_rng(seed).permutation(len(rows.configurations)) % FOLDS
    ensemble = train_ensemble(
        replace(rows, fold=fold), SETTINGS, seed=seed, on_progress=lambda progress, checkpoint: None
    )
    return score_configurations(ensemble, rows.supercells[0], configurations, device="cpu")


PLANS = {
    "pair expansion": Plan((0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5), 5, by_pair_expansion),
    "network": Plan((0.05, 0.1, 0.2, 0.35, 0.5), 3, by_network),
}


def lines_of(case: Mapping[str, object]) -> dict[int, dict[str, Any]]:
    """What the file has of a curve, by the number of labels."""
    if not FILE.is_file():
        return {}
    lines = [json.loads(line) for line in FILE.read_text().splitlines()]
    return {line["labels"]: line for line in lines if all(line[name] == value for name, value in case.items())}


def read_subset(shared_data: Path, subset: str) -> LabelledRows:
    """Training and validation rows of a subset."""
    files = read_labelled(shared_data / "2dmd", selection=Selection([subset], ("train", "validation")))
    places = [files.properties.index(name) for name in PROPERTIES]
    return replace(files.rows(), properties=PROPERTIES, labels=files.labels[:, places])


def only_rows(rows: LabelledRows, chosen: NDArray[np.int64]) -> LabelledRows:
    """Labelled rows and no others; the folds of members are by place."""
    return replace(rows.chosen(chosen), fold=np.arange(len(chosen)))
