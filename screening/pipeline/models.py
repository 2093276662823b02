"""Training: results become rows with labels, rows become a trained model.

A training is a row that waits; the worker that holds it writes its progress and checkpoints into the row, so
that whoever takes it over after a crash resumes it. Which results a model learns from is fixed when it is
submitted, before any worker sees it.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.leases import finish, lease_kept, record
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration
from screening.dft.results import PROPERTIES
from screening.errors import InputError, LeaseLostError, ServiceError
from screening.pipeline.hosts import load_supercell

if TYPE_CHECKING:
    from screening.learning.dataset import LabelledRows
    from screening.learning.ensemble import Ensemble
    from screening.learning.settings import TrainingSettings
    from screening.learning.training import Progress

CHECKPOINT_S = 20.0  # a checkpoint of five networks is 5 MB
VALIDATION_SHARE = 0.15
SMALLEST_TRAINING_SET = 10
SMALLEST_GROUP = 100  # rows of a data set that weighs as much as any other
RETRAINING_EPOCHS = 90  # a finished model needs fewer than the 300 of a new one
PROGRESS_S = 1.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRequest:
    """What a model shall learn from.

    Attributes:
        level: name of the level of theory.
        hosts: names of hosts; all hosts with results at this level if empty.
        datasets: names of data sets; all if empty.
        parent: a finished model to start from.
        settings: fields of `screening.learning.training.TrainingSettings` that differ from its defaults.
    """

    level: str
    name: str | None = None
    hosts: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    parent: str | None = None
    seed: int = 0
    settings: Mapping[str, Any] | None = None


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


def submit_training(session: Session, request: TrainingRequest) -> int:
    """Store a training that waits for a worker, with the results it will learn from; its id.

    Results that belong to the validation split of their data set stay there; where a data set has no split,
    every result is assigned by its id, so that a row that validated once never trains later. Validation results with
    a host or a defect type that no training result has are left out: a model cannot predict them.

    Raises:
        InputError: there are too few results, the name is taken, or a setting makes no sense.
    """
    parent = queries.model_by_name(session, request.parent) if request.parent else None
    settings = _checked_settings(request)
    level_id = queries.level_id_of(session, request.level)
    host_ids = [queries.get_host(session, name).id for name in request.hosts]
    rows = queries.labelled_rows(session, level_id=level_id, host_ids=host_ids, datasets=request.datasets)
    rows = _predictable(rows)
    roles = {row.CalculationResult.id: _role(row.CalculationResult) for row in rows}
    n_train = sum(role == "train" for role in roles.values())
    if n_train < SMALLEST_TRAINING_SET or n_train == len(roles):
        raise InputError(
            f"found {n_train} results to train on and {len(roles) - n_train} to validate on at level "
            f"{request.level!r}; training needs {SMALLEST_TRAINING_SET} and 1: import or calculate more"
        )
    if parent is not None and parent.level_id != level_id:
        raise InputError(f"model {parent.name} was trained at another level of theory than {request.level!r}")
    model_id = _add_model(
        session,
        request,
        parent_id=parent.id if parent else None,
        level_id=level_id,
        settings=settings,
        properties=_properties_present(rows),
    )
    session.execute(
        insert(tables.ModelTrainingResult),
        [{"model_id": model_id, "result_id": identifier, "role": role} for identifier, role in roles.items()],
    )
    return model_id


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

    Raises:
        InputError: there is no such training setting, or the rows cannot be learnt.
        LeaseLostError: another worker took the training over.
    """
    from screening.learning.artifacts import ensemble_from_bytes, ensemble_to_bytes
    from screening.learning.training import train_ensemble

    with lease_kept(engine, tables.TrainedModel, model_id, owner) as lost:
        with session_scope(engine) as session:
            model = session.get_one(tables.TrainedModel, model_id)
            rows, datasets = _training_rows(session, model)
            settings = _training_settings(model.settings, device)
            seed, checkpoint = model.seed, model.checkpoint
            parent = session.get(tables.TrainedModel, model.parent_id) if model.parent_id else None
            start_from = ensemble_from_bytes(parent.weights) if parent is not None and parent.weights else None
        writer = _ProgressWriter(engine, model_id, owner, lost.is_set)
        ensemble = train_ensemble(
            rows, settings, seed=seed, on_progress=writer, resume_from=checkpoint, start_from=start_from
        )
        with session_scope(engine) as session:
            _store_metrics(session, model_id, ensemble, rows, datasets, device=device)
            finish(
                session,
                tables.TrainedModel,
                model_id,
                owner,
                weights=ensemble_to_bytes(ensemble),
                checkpoint=None,
                training_time_s=writer.elapsed_s,
            )


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


def _checked_settings(request: TrainingRequest) -> dict[str, Any]:
    """The settings to store with a training.

    Raises:
        InputError: there is no such setting, or its value makes no sense.
    """
    settings = dict(request.settings or {})
    if request.parent is not None:
        if fixed := sorted({"n_members", "width", "n_blocks"} & set(settings)):
            raise InputError(f"{', '.join(fixed)} come from model {request.parent}, which the training starts from")
        settings.setdefault("epochs", RETRAINING_EPOCHS)
    _training_settings(settings, "cpu")
    return settings


def _training_settings(stored: Mapping[str, Any], device: str) -> TrainingSettings:
    from screening.learning.settings import TrainingSettings

    known = {field.name for field in fields(TrainingSettings)}
    if unknown := sorted(set(stored) - known):
        raise InputError(f"no training setting is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return TrainingSettings(**{"device": device, **stored})


def _predictable(rows: Sequence[Any]) -> list[Any]:
    """The rows without those validation rows whose defect types no training row of their supercell's host has."""
    learnt: dict[int, set[int]] = {}
    for row in rows:
        if _role(row.CalculationResult) == "train":
            learnt.setdefault(row.host_id, set()).update(row.defect_types)
    return [
        row
        for row in rows
        if _role(row.CalculationResult) == "train" or set(row.defect_types) <= learnt.get(row.host_id, set())
    ]


def _json_number(value: float) -> float | None:
    """None for what JSON has no number for: a loss that has diverged, an error without rows."""
    return value if math.isfinite(value) else None


def _role(result: tables.CalculationResult) -> str:
    """Train or validation: the data set's own split, else a fixed share by the result's id."""
    if result.split is not None:
        return result.split
    return "validation" if (result.id * 2654435761 % 2**32) / 2**32 < VALIDATION_SHARE else "train"


def _properties_present(rows: Sequence[Any]) -> list[str]:
    """The properties for which, in every host, at least half of the results have a value."""
    of_host: dict[int, list[tables.CalculationResult]] = {}
    for row in rows:
        of_host.setdefault(row.host_id, []).append(row.CalculationResult)
    return [
        name
        for name in PROPERTIES
        if all(2 * sum(getattr(r, name) is not None for r in results) >= len(results) for results in of_host.values())
    ]


def _add_model(session: Session, request: TrainingRequest, **columns: Any) -> int:
    """Add the row of a training under the name that was asked for, or under the next free one.

    A training that failed gives its name to the next one.
    """
    name = request.name or _free_name(session, request)
    session.execute(
        delete(tables.TrainedModel).where(tables.TrainedModel.name == name, tables.TrainedModel.state == "failed")
    )
    added: int | None = session.scalar(
        insert(tables.TrainedModel)
        .values(name=name, seed=request.seed, **columns)
        .on_conflict_do_nothing(index_elements=["name"])
        .returning(tables.TrainedModel.id)
    )
    if added is not None:
        return added
    if request.name is not None:
        state = session.scalar(select(tables.TrainedModel.state).where(tables.TrainedModel.name == name))
        raise InputError(
            f"a model is called {name!r} already, and it is {state} (`screening model show {name}`); "
            "choose another name with --name"
        )
    return _add_model(session, request, **columns)  # somebody else has taken the free name since


def _free_name(session: Session, request: TrainingRequest) -> str:
    """A name made of hosts, level of theory and the next free number."""
    stem = "-".join((*request.hosts, request.level)).lower().replace(" ", "-")
    taken = set(session.scalars(select(tables.TrainedModel.name).where(tables.TrainedModel.name.startswith(stem))))
    return next(name for n in range(1, len(taken) + 2) if (name := f"{stem}-{n}") not in taken)


def _training_rows(session: Session, model: tables.TrainedModel) -> tuple[LabelledRows, tuple[str, ...]]:
    """The rows a model learns from, and the data set of each."""
    from screening.learning.dataset import LabelledRows

    found = session.execute(
        select(
            tables.CalculationResult,
            tables.ModelTrainingResult.role,
            tables.Configuration.supercell_id,
            tables.Configuration.sites,
            tables.Configuration.defect_types,
        )
        .join(tables.ModelTrainingResult, tables.ModelTrainingResult.result_id == tables.CalculationResult.id)
        .join(tables.Calculation, tables.Calculation.id == tables.CalculationResult.calculation_id)
        .join(tables.Configuration, tables.Configuration.id == tables.Calculation.configuration_id)
        .where(tables.ModelTrainingResult.model_id == model.id)
        .order_by(tables.CalculationResult.id)
    ).all()
    supercell_ids = sorted({row.supercell_id for row in found})
    datasets = tuple(row.CalculationResult.dataset for row in found)
    labels = np.array([[_number(getattr(row.CalculationResult, name)) for name in model.properties] for row in found])
    rows = LabelledRows(
        supercells=tuple(load_supercell(session, i).supercell for i in supercell_ids),
        supercell_of_row=np.array([supercell_ids.index(row.supercell_id) for row in found], np.int64),
        configurations=tuple(Configuration(tuple(row.sites), tuple(row.defect_types)) for row in found),
        properties=tuple(model.properties),
        labels=labels,
        is_validation=np.array([row.role == "validation" for row in found]),
        group_of_row=_groups([row.supercell_id for row in found], datasets),
    )
    return rows, datasets


def _groups(supercell_ids: Sequence[int], datasets: Sequence[str]) -> NDArray[np.int64]:
    """(n,) int64: rows that weigh together: a data set of a supercell.

    Groups weigh equally in training, so a data set of few rows, and the rounds of proposals, which were chosen to
    be alike, belong to the largest data set of their supercell.
    """
    sizes = Counter(zip(supercell_ids, datasets, strict=True))
    largest = {
        supercell: max((n, name) for (s, name), n in sizes.items() if s == supercell)[1] for supercell, _ in sizes
    }
    joined = [
        (s, largest[s] if name.startswith("round ") or sizes[s, name] < SMALLEST_GROUP else name)
        for s, name in zip(supercell_ids, datasets, strict=True)
    ]
    numbers = {group: number for number, group in enumerate(sorted(set(joined)))}
    return np.array([numbers[group] for group in joined], np.int64)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _store_metrics(
    session: Session, model_id: int, ensemble: Ensemble, rows: LabelledRows, datasets: Sequence[str], *, device: str
) -> None:
    """Errors on the validation rows by data set and property; all rounds are one data set."""
    from screening.learning.scorer import score_configurations

    session.execute(delete(tables.ModelMetric).where(tables.ModelMetric.model_id == model_id))
    residuals = np.full(rows.labels.shape, np.nan)
    for s, supercell in enumerate(rows.supercells):
        chosen = np.flatnonzero(rows.is_validation & (rows.supercell_of_row == s))
        if len(chosen):
            mean, _ = score_configurations(ensemble, supercell, [rows.configurations[i] for i in chosen], device=device)
            residuals[chosen] = mean - rows.labels[chosen]
    metrics = []
    named = np.array(["rounds" if name.startswith("round ") else name for name in datasets])
    for dataset in np.unique(named).tolist():
        for p, name in enumerate(rows.properties):
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
