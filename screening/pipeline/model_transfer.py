"""Models into a database and out of it, as files.

A model that comes from a file has none of the results it has learnt from in this database. What other stages ask of
these results is answered by what the file brings along: the weights know hosts and defect types and the fingerprints
of the rows, the card the errors and the ranges of the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from screening.database import models, queries, tables
from screening.defects.defect_types import Configuration
from screening.dft.results import PROPERTIES, LevelOfTheory
from screening.errors import InputError
from screening.learning.fingerprints import fingerprints
from screening.learning.settings import TrainingSettings
from screening.pipeline.evaluation import LEARNT, MEAN_OF_SUBSETS, carried_by, learnt_by
from screening.pipeline.file_models import label_ranges, seen_supercells
from screening.pipeline.hosts import add_host, host_of, load_supercell
from screening.pipeline.model_cards import CardMetric, DataShare, ModelCard
from screening.pipeline.pretrained import ModelFile, has_card, unpack_model, with_card
from screening.pipeline.references import add_level

_EXPORTED_LIMITS = (
    "Neutral vacancies and substitutions only: no charged defects, interstitials, adatoms or edges.",
    "Only the hosts named above with the defect types they were seen with; anything else is refused.",
)


def add_model_file(session: Session, model: ModelFile, name: str | None = None) -> tuple[str, bool]:
    """Store a model of a file as a finished one, in a line of its own; its name, and whether it is new.

    Its hosts and its level of theory are stored with it. The same file again under the same name changes nothing.

    Args:
        name: what to call it; as its card does if not given.

    Raises:
        FileFormatError: the weights are not those of a network of this version.
        InputError: the name is taken, or not allowed, or one of the hosts is another material here.
        LevelOfTheoryError: its level of theory has other settings here.
    """
    model.ensemble()  # what cannot predict has no place in the database
    card = model.card if name is None else replace(model.card, name=name)
    packed = model.packed if name is None else with_card(model.packed, card)
    if models.VERSION_MARK in card.name:
        raise InputError(
            f"a model cannot be called {card.name!r}: {models.VERSION_MARK} stands before the number of a version; "
            "choose another name with --name"
        )
    if models.name_is_taken(session, card.name):
        known = models.find_model(session, card.name)
        if known is not None and known.weights == packed:
            return card.name, False
        raise InputError(
            f"a model is called {card.name!r} already (`screening model show {card.name}`); choose another name with "
            "--name"
        )
    for host in card.hosts:
        add_host(session, host)
    level_id = add_level(session, card.level)
    line = tables.ModelLine(name=card.name, level_id=level_id, hosts=[host.name for host in card.hosts])
    session.add(line)
    session.flush()
    stored = tables.TrainedModel(
        name=card.name, line_id=line.id, version=1, level_id=level_id, properties=list(card.properties),
        settings=_known_settings(card.training.get("settings")), seed=_seed(card),
        state="finished", finished_at=func.now(), weights=packed,
    )  # fmt: skip
    session.add(stored)
    session.flush()
    _add_metrics(session, stored.id, card)
    return card.name, True


def export_model(session: Session, name: str | None) -> ModelFile:
    """A stored model with a card, of this name or that in production.

    A model that came from a file keeps its card.

    Raises:
        UnknownNameError: there is none.
        InputError: it is not finished.
    """
    from screening.learning.artifacts import ensemble_from_bytes, ensemble_to_bytes

    model = queries.model_by_name(session, name)
    assert model.weights is not None
    if has_card(model.weights):
        return unpack_model(model.weights, model.name)
    ensemble = ensemble_from_bytes(model.weights)
    ensemble = replace(ensemble, extra={**ensemble.extra, LEARNT: learnt_by(session, model.id)})
    rows = session.scalars(select(tables.Host).where(tables.Host.name.in_(ensemble.references.hosts)))
    hosts = {row.name: host_of(row) for row in rows}
    level = session.get_one(tables.LevelOfTheory, model.level_id)
    card = ModelCard(
        name=model.name,
        level=LevelOfTheory(level.name, level.code, level.functional, level.settings),
        hosts=tuple(hosts[host] for host in ensemble.references.hosts),
        properties=ensemble.properties,
        supercells=seen_supercells(session, model.id),
        data=_shares(session, model.id),
        label_ranges=label_ranges(session, model.id),
        source="Results of calculations in the database that the model was exported from.",
        split="Rows for validation are never learnt; the errors are those on them.",
        training=_training(session, model),
        metrics=_metrics(session, model.id),
        limits=_EXPORTED_LIMITS,
    )
    return unpack_model(with_card(ensemble_to_bytes(ensemble), card), model.name)


def learnt_from_files(session: Session, model_id: int, rows: Sequence[Any]) -> set[int]:
    """Ids of those results that a model, or what it goes back to, has learnt from before it came here in a file.

    Args:
        rows: of `screening.database.queries.labelled_rows`.
    """
    if not len(carried := carried_by(session, model_id)):
        return set()
    of_supercell: dict[int, list[Any]] = {}
    for row in rows:
        of_supercell.setdefault(row.supercell_id, []).append(row)
    learnt: set[int] = set()
    for supercell_id, some in of_supercell.items():
        configurations = [Configuration(tuple(row.sites), tuple(row.defect_types)) for row in some]
        hashed = fingerprints(load_supercell(session, supercell_id).supercell, configurations)
        is_learnt = np.isin(hashed, carried)
        learnt.update(row.CalculationResult.id for row, yes in zip(some, is_learnt, strict=True) if yes)
    return learnt


def _known_settings(found: object) -> dict[str, Any]:
    """Those settings of a card that are settings of a training here."""
    if not isinstance(found, Mapping):
        return {}
    names = {field.name for field in fields(TrainingSettings)}
    return {str(name): value for name, value in found.items() if name in names}


def _seed(card: ModelCard) -> int:
    found = card.training.get("seed")
    return found if isinstance(found, int) else 0


def _add_metrics(session: Session, model_id: int, card: ModelCard) -> None:
    rows = [
        {
            "model_id": model_id,
            "dataset": m.dataset,
            "property": m.property,
            "n_rows": m.n_rows,
            "mae": m.mae,
            "rmse": m.rmse,
        }
        for m in card.metrics
        if m.dataset != MEAN_OF_SUBSETS
    ]
    if rows:
        session.execute(insert(tables.ModelMetric), rows)


def _metrics(session: Session, model_id: int) -> tuple[CardMetric, ...]:
    row = tables.ModelMetric
    order = {name: n for n, name in enumerate(PROPERTIES)}
    found = session.scalars(select(row).where(row.model_id == model_id)).all()
    return tuple(
        CardMetric(m.dataset, m.property, m.n_rows, m.mae, m.rmse)
        for m in sorted(found, key=lambda m: (order[m.property], m.dataset))
    )


def _shares(session: Session, model_id: int) -> tuple[DataShare, ...]:
    role, dataset = tables.ModelTrainingResult.role, tables.CalculationResult.dataset
    rows = session.execute(
        select(dataset, func.count().filter(role == "train"), func.count().filter(role == "validation"))
        .join(tables.ModelTrainingResult, tables.ModelTrainingResult.result_id == tables.CalculationResult.id)
        .where(tables.ModelTrainingResult.model_id == model_id)
        .group_by(dataset)
        .order_by(dataset)
    )
    return tuple(DataShare(name, n_train, n_validation) for name, n_train, n_validation in rows)


def _training(session: Session, model: tables.TrainedModel) -> dict[str, Any]:
    parent = None if model.parent_id is None else session.get_one(tables.TrainedModel, model.parent_id)
    found = {
        "seed": model.seed,
        "settings": dict(model.settings),
        "training time (s)": model.training_time_s,
        "trained from": None if parent is None else parent.name,
        "version": model.version,
        "snapshot sha256": model.snapshot_sha256,
        "made at": None if model.finished_at is None else model.finished_at.date().isoformat(),
    }
    return {name: value for name, value in found.items() if value is not None}
