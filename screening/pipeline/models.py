"""Training: results become rows with labels, rows become a version of a model.

A training is a row that waits; the worker that holds it writes its progress and checkpoints into the row, so
that whoever takes it over after a crash resumes it. What a version learns from is fixed when it is submitted
(screening.pipeline.training_requests). A further version of a line goes into production when it is not worse than the
version that is there (screening.pipeline.comparison).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.leases import finish, lease_kept, record
from screening.database.models import lock_line
from screening.database.session import session_scope
from screening.errors import LeaseLostError, ServiceError
from screening.pipeline.comparison import predictions_of, settle
from screening.pipeline.quarantine import examine_for
from screening.pipeline.training_requests import (
    RETRAINING_EPOCHS,
    TrainingRequest,
    submit_training,
    training_settings,
)
from screening.pipeline.training_rows import TrainingRows, changed_since, drop_unusable, load_rows

if TYPE_CHECKING:
    from screening.learning.ensemble import Ensemble
    from screening.learning.training import Progress

__all__ = [
    "RETRAINING_EPOCHS",
    "TrainingProgress",
    "TrainingRequest",
    "progress",
    "submit_training",
    "train_unit",
]

CHECKPOINT_S = 20.0  # a checkpoint of five networks is 5 MB
_ROWS_PER_INSERT = 5_000
PROGRESS_S = 1.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is.

    Attributes:
        state: waiting, running, finished or failed.
        latest: of the last epoch that was reported: `n_members`, `epoch`, `max_epochs`, `train_loss`,
            `validation_mae` by property, `elapsed_s`; empty before the first.
        error: why it failed, or why the last attempt did.
    """

    name: str
    state: str
    latest: Mapping[str, Any]
    error: str | None

    @property
    def is_over(self) -> bool:
        """Whether it neither waits nor runs."""
        return self.state in ("finished", "failed")


def progress(session: Session, model_id: int) -> TrainingProgress:
    """How far a training is."""
    row = session.execute(
        select(
            tables.TrainedModel.name,
            tables.TrainedModel.state,
            tables.TrainedModel.progress,
            tables.TrainedModel.error,
        ).where(tables.TrainedModel.id == model_id)
    ).one()
    return TrainingProgress(row.name, row.state, row.progress or {}, row.error)


def train_unit(engine: Engine, model_id: int, owner: str, *, device: str) -> None:
    """Train a model that `owner` holds, resuming from its checkpoint; transactions of its own.

    A further version of a line learns no new result that contradicts the version in production
    (screening.pipeline.quarantine). When it is ready it is compared with the version that is in production then, and
    takes its place if it is not worse, in the transaction that ends the training.

    Raises:
        InputError: there is no such training setting, or the rows cannot be learnt, or all that is new is put aside.
        LeaseLostError: another worker took the training over.
    """
    from screening.learning.artifacts import ensemble_from_bytes, ensemble_to_bytes
    from screening.learning.training import train_ensemble

    with lease_kept(engine, tables.TrainedModel, model_id, owner) as lost:
        examine_for(engine, model_id, device=device)
        with session_scope(engine) as session:
            model = session.get_one(tables.TrainedModel, model_id)
            drop_unusable(session, model_id)
            trained = load_rows(session, model)
            settings = training_settings(model.settings, device)
            seed, checkpoint = model.seed, model.checkpoint
            if model.snapshot_sha256 not in (None, trained.digest):  # results were put aside, or have labels by now
                checkpoint = None
            parent = session.get(tables.TrainedModel, model.parent_id) if model.parent_id else None
            start_from = ensemble_from_bytes(parent.weights) if parent is not None and parent.weights else None
            news = (
                changed_since(session, trained, parent.id) if parent is not None and start_from is not None else set()
            )
            record(session, tables.TrainedModel, model_id, owner, snapshot_sha256=trained.digest, checkpoint=checkpoint)
        writer = _ProgressWriter(engine, model_id, owner, lost.is_set)
        ensemble = train_ensemble(
            trained.rows, settings, seed=seed, on_progress=writer, resume_from=checkpoint, start_from=start_from,
            changed=news or None,
        )  # fmt: skip
        with session_scope(engine) as session:
            model = session.get_one(tables.TrainedModel, model_id)
            lock_line(session, model.line_id)
            _store_metrics(session, model_id, ensemble, trained, device=device)
            finish(
                session,
                tables.TrainedModel,
                model_id,
                owner,
                weights=ensemble_to_bytes(ensemble),
                checkpoint=None,
                training_time_s=writer.elapsed_s,
            )
            session.refresh(model)
            settle(session, model, ensemble, trained, device=device)


class _ProgressWriter:
    """Writes progress into the model's row every `PROGRESS_S` seconds and a checkpoint every `CHECKPOINT_S` seconds."""

    def __init__(self, engine: Engine, model_id: int, owner: str, is_lost: Callable[[], bool]) -> None:
        self._engine = engine
        self._model_id = model_id
        self._owner = owner
        self._is_lost = is_lost
        self._last_progress = 0.0
        self._last_checkpoint = time.monotonic()
        self.elapsed_s = 0.0  # training time of all attempts

    def __call__(self, progress: Progress, make_checkpoint: Callable[[], bytes]) -> None:
        if self._is_lost():
            raise LeaseLostError(f"the training of model {self._model_id} was taken over by another worker")
        self.elapsed_s = progress.elapsed_s
        now = time.monotonic()
        if now - self._last_progress < PROGRESS_S:
            return
        self._last_progress = now
        values: dict[str, Any] = {
            "progress": {
                "n_members": progress.n_members,
                "epoch": progress.epoch,
                "max_epochs": progress.max_epochs,
                "train_loss": _json_number(progress.train_loss),
                "validation_mae": {name: _json_number(mae) for name, mae in progress.validation_mae.items()},
                "elapsed_s": progress.elapsed_s,
            }
        }
        if now - self._last_checkpoint > CHECKPOINT_S:
            self._last_checkpoint = now
            # a training that gets on is not a poisonous one: only attempts without a checkpoint count
            values |= {"checkpoint": make_checkpoint(), "attempts": 0}
        try:
            with session_scope(self._engine) as session:
                record(session, tables.TrainedModel, self._model_id, self._owner, **values)
        except (OperationalError, ServiceError) as error:  # the server restarts; hours of training need not end with it
            _logger.warning("the progress of model %d is not written: %s", self._model_id, error)


def _json_number(value: float) -> float | None:
    """None for what JSON has no number for: a loss that has diverged, an error without rows."""
    return value if math.isfinite(value) else None


def _store_metrics(session: Session, model_id: int, ensemble: Ensemble, trained: TrainingRows, *, device: str) -> None:
    """Predictions of the validation rows, and errors by data set and property; all rounds are one data set."""
    session.execute(delete(tables.ModelMetric).where(tables.ModelMetric.model_id == model_id))
    chosen = np.flatnonzero(trained.rows.is_validation)
    means, stds = predictions_of(ensemble, trained.rows, chosen, device=device)
    _store_validation(session, model_id, trained, chosen, means, stds)
    residuals = means - trained.rows.labels[chosen]
    named = np.array(trained.datasets)[chosen]
    metrics = []
    for dataset in np.unique(named).tolist():
        for p, name in enumerate(trained.rows.properties):
            errors: NDArray[np.float64] = residuals[named == dataset, p]
            errors = errors[np.isfinite(errors)]
            if len(errors):
                metrics.append(
                    {
                        "model_id": model_id,
                        "dataset": dataset,
                        "property": name,
                        "n_rows": len(errors),
                        "mae": float(np.abs(errors).mean()),
                        "rmse": float(np.sqrt((errors**2).mean())),
                    }
                )
    if metrics:
        session.execute(insert(tables.ModelMetric), metrics)


def _store_validation(
    session: Session, model_id: int, trained: TrainingRows, chosen: NDArray[np.int64], means: NDArray[np.float64],
    stds: NDArray[np.float64],
) -> None:  # fmt: skip
    """Keep what was predicted of rows that the model was not trained on, for parity and calibration."""
    table = tables.ValidationPrediction
    session.execute(delete(table).where(table.model_id == model_id))
    rows = [
        {
            "model_id": model_id, "result_id": int(trained.result_ids[row]), "property": name,
            "mean": float(means[i, p]), "std": float(stds[i, p]),
        }
        for i, row in enumerate(chosen.tolist())
        for p, name in enumerate(trained.rows.properties)
        if np.isfinite(means[i, p]) and np.isfinite(trained.rows.labels[row, p])
    ]  # fmt: skip
    for start in range(0, len(rows), _ROWS_PER_INSERT):
        session.execute(insert(table), rows[start : start + _ROWS_PER_INSERT])
