"""Training beside MEGNetSparse, in one run on one thread each: CPU time to an error of the gap on MoS2 low of 2DMD.

Both learn the training rows of split.csv and are measured on its validation rows, outside of the clock. Ours is the
ensemble of all members and all properties, from rows to calibrated model; since its learning rate comes down within the
time it is given, there is a training of its own for each length. MEGNetSparse is one network of the gap alone, with the
published settings, from ready graphs; it counts as there at the first epoch that is, which flatters a noisy curve.

CPU time does not count what else the machine does, though busy neighbours make colder caches and longer seconds; both
meet the same ones, since they run at the same time. TRAINING_PEER_CPU_S limits the peer (450 if not set), and
TRAINING_EPOCHS sets our lengths (12,15,20,30,60,100 if not set). Trainings of less than 30 epochs have twice the
learning rate, as long ones do not need it.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from screening.defects.defect_types import DefectType
from screening.defects.host import Supercell
from screening.learning.dataset import LabelledRows
from screening.learning.scorer import score_configurations
from screening.learning.settings import TrainingSettings
from screening.learning.training import Progress, train_ensemble
from screening.pipeline.labelled_files import Selection, read_labelled
from tests.benchmarks.conftest import PrintLine
from tests.benchmarks.peer_environments import DRIVERS, ONE_THREAD, _peer_python

SUBSET = "low_density_defects/MoS2"
PROPERTY = "homo_lumo_gap_min"
LEVELS_MEV = (9.0, 8.0, 7.0, 6.0, 5.0)
LENGTHS = [int(epochs) for epochs in os.environ.get("TRAINING_EPOCHS", "12,15,20,30,60,100").split(",")]
FEW_EPOCHS = 30
SHOWN_EPOCHS = 10  # every so many of the peer's


@dataclass(frozen=True)
class Point:
    """A model and what it took.

    Attributes:
        epochs: that were run.
        cpu_s: of the training, without the measurement.
        mae_mev: of the gap on the validation rows.
    """

    epochs: int
    cpu_s: float
    mae_mev: float


def bench_training_beside_megnetsparse(print_line: PrintLine, shared_data: Path, tmp_path: Path) -> None:
    """One training of the peer, one of ours for each length, at the same time."""
    torch.set_num_threads(1)
    rows = read_labelled(shared_data / "2dmd", selection=Selection([SUBSET], ("train", "validation"))).rows()
    train(rows, epochs=1)  # what is compiled or loaded once
    ours = []
    with running_peer(rows, tmp_path) as peer:
        for epochs in LENGTHS:
            ours.append(train(rows, epochs=epochs))
            print_line(line_of("ours", ours[-1]))
        assert peer.wait() == 0, f"the driver failed:\n{(tmp_path / 'errors').read_text()[-3000:]}"
    facts, theirs = read_curve(tmp_path / "answers")
    print_line({"figure": "MoS2 low: graphs of MEGNetSparse, not in its CPU time", **facts})
    for point in theirs[SHOWN_EPOCHS - 1 :: SHOWN_EPOCHS]:
        print_line(line_of("megnetsparse", point))
    for level in LEVELS_MEV:
        print_line(compare(level, ours, theirs))


def train(rows: LabelledRows, *, epochs: int) -> Point:
    """One ensemble without drawn rows, and the error of its mean."""
    finished = 0

    def count(progress: Progress, checkpoint: object) -> None:
        nonlocal finished
        finished = progress.epoch

    settings = TrainingSettings(epochs=epochs, drawn_rows=0, device="cpu")
    if epochs < FEW_EPOCHS:
        settings = replace(settings, learning_rate=2.0 * settings.learning_rate)
    started = time.process_time()
    ensemble = train_ensemble(rows, settings, seed=0, on_progress=count)
    seconds = time.process_time() - started
    asked = np.flatnonzero(rows.is_validation)
    configurations = [rows.configurations[row] for row in asked]
    mean, _ = score_configurations(ensemble, rows.supercells[0], configurations, device="cpu")
    column = rows.properties.index(PROPERTY)
    return Point(finished, seconds, 1e3 * float(np.abs(mean - rows.labels[asked])[:, column].mean()))


@contextmanager
def running_peer(rows: LabelledRows, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The peer's driver at work; its files `answers` and `errors` are in the folder, and it ends with the block."""
    python = _peer_python("megnetsparse")
    (folder / "question").write_text(json.dumps(question_of(rows)))
    with (
        (folder / "question").open() as question,
        (folder / "answers").open("w") as answers,
        (folder / "errors").open("w") as errors,
        subprocess.Popen(
            [python, DRIVERS / "run_megnetsparse_training.py"],
            stdin=question, stdout=answers, stderr=errors, text=True, env={**os.environ, **ONE_THREAD},
        ) as peer,
    ):  # fmt: skip
        try:
            yield peer
        finally:
            peer.kill()


def question_of(rows: LabelledRows) -> dict[str, Any]:
    """The rows as the driver takes them."""
    (supercell,) = rows.supercells
    return {
        "cell": cell_of(supercell),
        "unit_cell": cell_of(Supercell.parse(supercell.host, "1x1")),
        "repeats": np.diag(supercell.matrix).tolist(),
        "rows": [
            [(site, DefectType.from_code(code).added) for site, code in zip(c.sites, c.defect_types, strict=True)]
            for c in rows.configurations
        ],
        "property": PROPERTY,
        "labels": rows.labels[:, rows.properties.index(PROPERTY)].tolist(),
        "is_validation": rows.is_validation.tolist(),
    }


def cell_of(supercell: Supercell) -> dict[str, Any]:
    """A pristine supercell as peers read it."""
    return {
        "lattice": supercell.lattice.tolist(),
        "species": list(supercell.species),
        "fractional_positions": (supercell.positions @ np.linalg.inv(supercell.lattice)).tolist(),
    }


def read_curve(answers: Path) -> tuple[dict[str, float], list[Point]]:
    """What the driver has written so far: facts of the graphs, and a point for each epoch."""
    facts, *epochs = (json.loads(line) for line in answers.read_text().splitlines())
    return facts, [Point(line["epoch"], line["cpu_s"], 1e3 * line["mae"]) for line in epochs]


def line_of(how: str, point: Point) -> dict[str, object]:
    """A point as a figure."""
    return {
        "figure": "MoS2 low: a training and the MAE of the gap", "how": how, "epochs": point.epochs,
        "cpu_s": round(point.cpu_s, 1), "mae_mev": round(point.mae_mev, 2),
    }  # fmt: skip


def compare(level: float, ours: Sequence[Point], theirs: Sequence[Point]) -> dict[str, object]:
    """Least CPU time of either side to an error; where the peer does not reach it, the ratio is a lower bound."""
    line: dict[str, object] = {"figure": f"MoS2 low: CPU time to an MAE of the gap of {level:g} meV"}
    ours_s, theirs_s = (
        min((point.cpu_s for point in side if point.mae_mev <= level), default=None) for side in (ours, theirs)
    )
    line |= {"ours_s": ours_s and round(ours_s, 1), "megnetsparse_s": theirs_s and round(theirs_s, 1)}
    if ours_s is not None and theirs_s is not None:
        line["megnetsparse / ours"] = round(theirs_s / ours_s, 1)
    elif ours_s is not None:
        line["megnetsparse / ours, more than"] = round(theirs[-1].cpu_s / ours_s, 1)
    return line
