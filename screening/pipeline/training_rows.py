"""Results as rows to learn from: which role each has, which weigh together, and their labels.

The role of a result is fixed: its data set's own split, else a share by its id. So a row that validated once never
trains later, and every version of a model is judged on rows that none of them has learnt from.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.models import ROLE_MULTIPLIER, VALIDATION_SHARE, is_usable
from screening.defects.defect_types import Configuration
from screening.dft.results import PROPERTIES
from screening.pipeline.hosts import load_supercell

if TYPE_CHECKING:
    from screening.learning.dataset import LabelledRows

SMALLEST_GROUP = 100  # rows of a data set that weighs as much as any other
ROUNDS = "rounds"  # what the results of all rounds are called together


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """Rows with where they come from.

    Attributes:
        result_ids: (n,) int64, ascending.
        datasets: name of the data set of each row; all rounds are one data set.
        digest: SHA-256 of the results, roles and labels.
    """

    rows: LabelledRows
    result_ids: NDArray[np.int64]
    datasets: tuple[str, ...]
    digest: str


def role_of(result: tables.CalculationResult) -> str:
    """Train or validation: the data set's own split, else a fixed share by the result's id."""
    if result.split is not None:
        return result.split
    return "validation" if (result.id * ROLE_MULTIPLIER % 2**32) / 2**32 < VALIDATION_SHARE else "train"


def predictable(rows: Sequence[Any], roles: Mapping[int, str]) -> list[Any]:
    """The rows without those validation rows whose defect types no training row of their supercell's host has."""
    learnt: dict[int, set[int]] = {}
    for row in rows:
        if roles[row.CalculationResult.id] == "train":
            learnt.setdefault(row.host_id, set()).update(row.defect_types)
    return [
        row
        for row in rows
        if roles[row.CalculationResult.id] == "train" or set(row.defect_types) <= learnt.get(row.host_id, set())
    ]


def properties_present(rows: Sequence[Any]) -> list[str]:
    """The properties for which, in every host, at least half of the results have a value."""
    of_host: dict[int, list[tables.CalculationResult]] = {}
    for row in rows:
        of_host.setdefault(row.host_id, []).append(row.CalculationResult)
    return [
        name
        for name in PROPERTIES
        if all(2 * sum(getattr(r, name) is not None for r in results) >= len(results) for results in of_host.values())
    ]


def drop_unusable(session: Session, model_id: int) -> None:
    """Take what has been put aside since out of the snapshot of a model that is about to be trained."""
    learnt = tables.ModelTrainingResult
    unusable = select(tables.CalculationResult.id).where(~is_usable())
    session.execute(
        delete(learnt)
        .where(learnt.model_id == model_id, learnt.result_id.in_(unusable))
        .execution_options(synchronize_session=False)
    )


def load_rows(session: Session, model: tables.TrainedModel) -> TrainingRows:
    """The rows of a model's snapshot."""
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
    names = tuple(row.CalculationResult.dataset for row in found)
    labels = np.array([[_number(getattr(row.CalculationResult, name)) for name in model.properties] for row in found])
    rows = LabelledRows(
        supercells=tuple(load_supercell(session, i).supercell for i in supercell_ids),
        supercell_of_row=np.array([supercell_ids.index(row.supercell_id) for row in found], np.int64),
        configurations=tuple(Configuration(tuple(row.sites), tuple(row.defect_types)) for row in found),
        properties=tuple(model.properties),
        labels=labels,
        is_validation=np.array([row.role == "validation" for row in found]),
        group_of_row=groups_of([row.supercell_id for row in found], names),
    )
    result_ids = np.array([row.CalculationResult.id for row in found], np.int64)
    return TrainingRows(rows, result_ids, tuple(map(dataset_name, names)), _digest(rows, result_ids))


def changed_since(session: Session, trained: TrainingRows, parent_id: int) -> set[tuple[str, int]]:
    """Hosts and numbers of defects whose training rows are not those that the parent has learnt from."""
    learnt = tables.ModelTrainingResult
    before = set(
        session.scalars(select(learnt.result_id).where(learnt.model_id == parent_id, learnt.role == "train")).all()
    )
    rows, sizes = trained.rows, trained.rows.n_defects
    now = {int(trained.result_ids[row]): row for row in np.flatnonzero(~rows.is_validation).tolist()}
    added = {
        (rows.supercells[rows.supercell_of_row[row]].host.name, int(sizes[row]))
        for result, row in now.items()
        if result not in before
    }
    gone = (
        select(tables.Host.name, func.cardinality(tables.Configuration.sites))
        .join(tables.Supercell, tables.Supercell.host_id == tables.Host.id)
        .join(tables.Configuration, tables.Configuration.supercell_id == tables.Supercell.id)
        .join(tables.Calculation, tables.Calculation.configuration_id == tables.Configuration.id)
        .join(tables.CalculationResult, tables.CalculationResult.calculation_id == tables.Calculation.id)
        .where(tables.CalculationResult.id.in_(before - set(now)))
    )
    return added | {(host, n) for host, n in session.execute(gone)}


def dataset_name(name: str) -> str:
    """The data set under which errors are listed."""
    return ROUNDS if name.startswith("round ") else name


def groups_of(supercell_ids: Sequence[int], datasets: Sequence[str]) -> NDArray[np.int64]:
    """(n,) int64: rows that weigh together: a data set of a supercell.

    Groups of few rows weigh more in training than their rows do, so a data set of few, and the rounds of proposals,
    which were chosen to be alike, belong to the largest data set of their supercell.
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


def _digest(rows: LabelledRows, result_ids: NDArray[np.int64]) -> str:
    """SHA-256 of ids, roles, folds and labels as little-endian bytes, and of the names of the labels."""
    digest = hashlib.sha256(" ".join(rows.properties).encode())
    for array, kind in (
        (result_ids, "<i8"), (rows.is_validation, "|u1"), (rows.fold, "<i8"), (rows.labels, "<f8"),
    ):  # fmt: skip
        digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
    return digest.hexdigest()


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
