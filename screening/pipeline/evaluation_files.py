"""Evaluations on disk: a folder with the metrics, every row, and the plots.

An evaluation is about files as often as about results of the database, and a model that comes with the package is
evaluated where no database is; so evaluations are folders, by default below ``evaluations`` in the project's home:

* ``evaluation.json``: model with the digest of its weights, level of theory, data with their digest, time, version,
  what was left out, all metrics, the errors of the yardsticks, and which methods (yardsticks and published ones) are
  better in which subset; written last, so that a folder without it is incomplete;
* ``metrics.csv``: metrics by property, subset and number of defects (empty: all of them);
* ``rows.csv``: every row with label, prediction, standard deviation and half width of the 95 % interval;
* the plots of `evaluation_plots`.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from screening import __version__
from screening.errors import InputError
from screening.pipeline.evaluation import (
    EvaluatedModel,
    Evaluation,
    MetricRow,
    metrics_by_defects,
    metrics_by_subset,
)
from screening.pipeline.evaluation_plots import closest_pairs, write_plots
from screening.pipeline.evaluation_tables import better_methods
from screening.pipeline.yardsticks import Yardstick, yardstick_errors

FOLDER = "evaluations"  # in the project's home
_ROW_COLUMNS = (
    "id", "subset", "split", "learnt", "host", "supercell", "composition", "n_defects", "closest_pair",
)  # fmt: skip
_NOT_IN_NAMES = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True)
class EvaluationOrigin:
    """What was evaluated, on what and when.

    Attributes:
        weights_sha256: of the model's weights, or of its file.
        data: path of the data, as it was given.
        data_digest: SHA-256 of the contents of its files.
        splits: which splits were asked for; all rows if empty.
        knows_learnt: whether the model says what it has learnt from.
    """

    model: str
    weights_sha256: str
    level: str
    data: str
    data_digest: str
    splits: tuple[str, ...]
    includes_learnt: bool
    knows_learnt: bool
    evaluated_at: datetime

    @classmethod
    def of(
        cls, model: EvaluatedModel, evaluation: Evaluation, data: Path, *, splits: Sequence[str], includes_learnt: bool
    ) -> EvaluationOrigin:
        """The origin of an evaluation of now."""
        return cls(
            model.name, model.sha256, model.level.name, str(data), evaluation.rows.digest, tuple(splits),
            includes_learnt, model.learnt is not None, datetime.now().astimezone(),
        )  # fmt: skip

    def folder(self, home: Path) -> Path:
        """A folder of its own below a project's home, by time and model."""
        name = _NOT_IN_NAMES.sub("-", Path(self.model).name)
        stem = f"{self.evaluated_at:%Y%m%d-%H%M%S}-{name}"
        taken = (home / FOLDER / f"{stem}{'' if n == 1 else f'-{n}'}" for n in range(1, 10_000))
        return next(path for path in taken if not path.exists())


def all_metrics(evaluation: Evaluation) -> list[MetricRow]:
    """The metrics of every property by subset, and by number of defects in these."""
    found = []
    for name in evaluation.properties:
        found += metrics_by_subset(evaluation, name)
        found += metrics_by_defects(evaluation, name)
    return found


def store_evaluation(
    evaluation: Evaluation, origin: EvaluationOrigin, folder: Path, *, yardsticks: Sequence[Yardstick] = ()
) -> list[Path]:
    """Write an evaluation into a folder, which is made if it is not there; the files.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").unlink(missing_ok=True)  # it vouches for the other files
        written = [_write_metrics(folder / "metrics.csv", evaluation), _write_rows(folder / "rows.csv", evaluation)]
        written += write_plots(evaluation, folder)
        summary = json.dumps(evaluation_to_json(evaluation, origin, yardsticks), indent=1, allow_nan=False)
        (folder / "evaluation.json").write_text(summary + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"the evaluation cannot be written into {folder} ({error}); give another --output") from error
    return [folder / "evaluation.json", *written]


def evaluation_to_json(
    evaluation: Evaluation, origin: EvaluationOrigin, yardsticks: Sequence[Yardstick] = ()
) -> dict[str, Any]:
    """What `evaluation.json` holds, in plain JSON types; energies in eV."""
    return {
        **asdict(origin),
        "evaluated_at": origin.evaluated_at.isoformat(timespec="seconds"),
        "splits": list(origin.splits),
        "version": __version__,
        "n_rows": evaluation.rows.n_rows,
        "n_learnt": int(evaluation.is_learnt.sum()),
        "n_left_out": evaluation.n_left_out,
        "n_unlabelled": evaluation.rows.n_unlabelled,
        "refused": [{"name": name, "reason": reason} for name, reason in _refusals(evaluation)],
        "metrics": [_metric_to_json(row) for row in all_metrics(evaluation)],
        "yardsticks": [
            {"method": yardstick.name, "property": name, "subset": subset, "mae": mae}
            for yardstick in yardsticks
            for name in evaluation.properties
            for subset, mae in yardstick_errors(evaluation, yardstick, name).items()
        ],
        "better": [
            {"property": name, "subset": subset, "methods": list(methods)}
            for name in evaluation.properties
            for subset, methods in better_methods(evaluation, name, yardsticks).items()
        ],
    }


def _refusals(evaluation: Evaluation) -> list[tuple[str, str]]:
    return [*evaluation.rows.refusals, *evaluation.refusals]


def _metric_to_json(row: MetricRow) -> dict[str, Any]:
    numbers = {name: value if math.isfinite(value) else None for name, value in asdict(row.metrics).items()}
    return {"property": row.property, "subset": row.subset, "n_defects": row.n_defects, **numbers}


def _write_metrics(path: Path, evaluation: Evaluation) -> Path:
    rows = [_metric_to_json(row) for row in all_metrics(evaluation)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _write_rows(path: Path, evaluation: Evaluation) -> Path:
    rows = evaluation.rows
    columns = [f"{name}_{part}" for name in evaluation.properties for part in ("label", "mean", "std", "half_width_95")]
    distances = closest_pairs(evaluation)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "id",
                "subset",
                "split",
                "learnt",
                "host",
                "supercell",
                "composition",
                "n_defects",
                "closest_pair",
                *columns,
            ]
        )
        for i, configuration in enumerate(rows.configurations):
            supercell = rows.supercells[rows.supercell_of_row[i]]
            arrays = (evaluation.labels[i], evaluation.means[i], evaluation.stds[i], evaluation.half_widths[i])
            numbers = [value for of_property in zip(*arrays, strict=True) for value in of_property]
            writer.writerow(
                [
                    rows.names[i], rows.subsets[rows.group_of_row[i]], rows.splits[i] or "",
                    int(evaluation.is_learnt[i]), supercell.host.name, supercell.label, configuration.composition,
                    configuration.n_defects, *(_cell(value) for value in (distances[i], *numbers)),
                ]
            )  # fmt: skip
    return path


def _cell(value: float) -> str:
    """Micro-eV; empty for what is not there (no label, no pair)."""
    return f"{value:.6f}" if math.isfinite(value) else ""
