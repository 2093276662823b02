"""Retraining: a line learns from what is new, and its versions go into production and back.

A retraining starts from the version in production and learns from all usable results of its line, old and new. It is a
training like any other (screening.pipeline.models): a worker does it, and settles in the transaction that ends it
whether the new version takes the place of the one in production. So nothing is lost with the command that asked for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from screening.database import models, tables
from screening.database.provenance import retracted_below
from screening.errors import InputError, UnknownNameError
from screening.pipeline.training_requests import NewVersion, add_version, checked_settings, labelled_rows, roles_of
from screening.pipeline.training_rows import predictable

_INHERITED = ("batch_rows", "drawn_rows", "learning_rate", "weight_decay")  # size and length are other questions


@dataclass(frozen=True)
class Retraining:
    """What became of the wish to retrain a line.

    Attributes:
        champion: name of the version in production.
        model_id: the version that waits for its training or is trained; None where there is nothing to learn.
        n_new: results to train on that the champion has not learnt from.
        is_joined: whether somebody else had asked for it before.
        remark: why there is nothing to learn.
    """

    line: str
    champion: str
    model_id: int | None
    n_new: int
    is_joined: bool = False
    remark: str = ""


def submit_retraining(
    session: Session, line_name: str | None = None, *, settings: Mapping[str, Any] | None = None, seed: int = 0
) -> Retraining:
    """Store the training of the next version of a line, if there is something new to learn.

    New is what has come since the snapshot of the version in production. The same training as the last one of the
    line, on the same results from the same version with the same settings and seed, is not done again.

    Where the version in production rests on results that were withdrawn since, the next one is due even if nothing is
    new. It starts from the newest version it goes back to that does not, or from nothing: what was learnt from a wrong
    result is not handed on.

    Args:
        line_name: name of a line or of a version of it; the only line if None.
        settings: fields of TrainingSettings that differ from those of a training from a finished model; how rows are
            learnt is as with the version in production.

    Raises:
        UnknownNameError: there is no such line.
        InputError: the line has no finished version, or a setting makes no sense.
    """
    line = models.lock_line(session, models.line_by_name(session, line_name).id)
    champion = models.in_production(session, line.id)
    running = models.open_version(session, line.id)
    if champion is None:
        what = f"{running.name} is {running.state}; wait" if running is not None else "train it first"
        raise InputError(f"model {line.name} has no finished version to start from: {what} (`screening train`)")
    withdrawn = retracted_below(session, champion.id)
    parent = _standing_ancestor(session, champion) if withdrawn else champion
    checked = _settings(session, champion, parent, settings or {})
    rows = labelled_rows(session, line.level_id, hosts=line.hosts, datasets=line.datasets)
    roles = roles_of(session, rows, parent)
    kept = {row.CalculationResult.id: roles[row.CalculationResult.id] for row in predictable(rows, roles)}
    known = _snapshot(session, champion.id)
    n_new = sum(role == "train" for identifier, role in kept.items() if identifier not in known)
    if running is not None:
        return Retraining(line.name, champion.name, running.id, n_new, is_joined=True)
    if n_new == 0 and not withdrawn:
        n_other = sum(identifier not in known for identifier in kept)
        beside = f"; {n_other} new ones are for validation" if n_other else ""
        return Retraining(line.name, champion.name, None, 0, remark=f"no result to train on is new{beside}")
    version = NewVersion(
        name=None,
        parent_id=None if parent is None else parent.id,
        seed=seed,
        settings=checked,
        properties=champion.properties,
        roles=kept,
    )
    if (last := _same_as_last(session, line, version)) is not None:
        remark = (
            f"{last.name} has learnt from the same {n_new} new results and is not in production; more results, or "
            "another --seed or --epochs, make a difference"
        )
        return Retraining(line.name, champion.name, None, n_new, remark=remark)
    return Retraining(line.name, champion.name, add_version(session, line, version), n_new)


def roll_back(session: Session, line_name: str, version: int | None = None) -> tuple[str, str]:
    """Put another version of a line into production: an older one that was there before, or any finished one.

    Args:
        version: its number; the newest below the one in production that was in production if None.

    Returns:
        Names of the version that is in production now, and of the one that was.

    Raises:
        UnknownNameError: there is no such line or version.
        InputError: it is in production already, or not finished, or there is no older one.
    """
    line = models.lock_line(session, models.line_by_name(session, line_name).id)
    current = models.in_production(session, line.id)
    if current is None:
        raise InputError(f"model {line.name} has nothing in production yet; wait for its training, or train it again")
    chosen = _older(session, line, current) if version is None else _numbered(session, line, version)
    if chosen.id == current.id:
        raise InputError(f"{chosen.name} is in production of {line.name} already")
    if chosen.state != "finished":
        raise InputError(f"{chosen.name} is {chosen.state}; only a finished version can be in production")
    models.promote(session, chosen, reason=f"rolled back from {current.name} by hand")
    return chosen.name, current.name


def _older(session: Session, line: tables.ModelLine, current: tables.TrainedModel) -> tables.TrainedModel:
    found = session.scalar(
        select(tables.TrainedModel)
        .join(tables.Promotion, tables.Promotion.model_id == tables.TrainedModel.id)
        .where(tables.TrainedModel.line_id == line.id, tables.TrainedModel.version < current.version)
        .order_by(tables.TrainedModel.version.desc())
        .limit(1)
    )
    if found is None:
        raise InputError(
            f"no version older than {current.name} was in production of {line.name}; "
            f"--to takes any finished version (`screening model history {line.name}`)"
        )
    return found


def _numbered(session: Session, line: tables.ModelLine, version: int) -> tables.TrainedModel:
    found = session.scalar(
        select(tables.TrainedModel).where(
            tables.TrainedModel.line_id == line.id, tables.TrainedModel.version == version
        )
    )
    if found is None:
        numbers = session.scalars(
            select(tables.TrainedModel.version)
            .where(tables.TrainedModel.line_id == line.id)
            .order_by(tables.TrainedModel.version)
        )
        raise UnknownNameError(f"{line.name} has no version {version}; it has {', '.join(map(str, numbers))}")
    return found


def _snapshot(session: Session, model_id: int) -> set[int]:
    """Ids of the results in the snapshot of a model."""
    learnt = tables.ModelTrainingResult
    return set(session.scalars(select(learnt.result_id).where(learnt.model_id == model_id)))


def _same_as_last(session: Session, line: tables.ModelLine, version: NewVersion) -> tables.TrainedModel | None:
    """The newest finished version of a line, if this one would be the same again."""
    last = session.scalar(
        select(tables.TrainedModel)
        .where(tables.TrainedModel.line_id == line.id, tables.TrainedModel.state == "finished")
        .order_by(tables.TrainedModel.version.desc())
        .limit(1)
    )
    if last is None or (last.parent_id, last.seed, last.settings) != (
        version.parent_id,
        version.seed,
        dict(version.settings),
    ):
        return None
    is_known = set(version.roles) <= _snapshot(session, last.id) and not retracted_below(session, last.id)
    return last if is_known else None


def _standing_ancestor(session: Session, champion: tables.TrainedModel) -> tables.TrainedModel | None:
    """The newest version that a champion goes back to and that rests on no withdrawn result."""
    parent_id = champion.parent_id
    while parent_id is not None and retracted_below(session, parent_id):
        parent_id = session.get_one(tables.TrainedModel, parent_id).parent_id
    return None if parent_id is None else session.get_one(tables.TrainedModel, parent_id)


def settings_to_go_on(session: Session, model: tables.TrainedModel) -> dict[str, Any]:
    """The settings of a version that goes on from a finished one, if nobody gives others."""
    return _settings(session, model, model, {})


def _settings(
    session: Session,
    champion: tables.TrainedModel,
    parent: tables.TrainedModel | None,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """The settings of the next version: how rows are learnt as with the champion, from nothing also its sizes."""
    inherited = {name: value for name, value in champion.settings.items() if name in _INHERITED}
    if parent is None:
        first = champion
        while first.parent_id is not None:
            first = session.get_one(tables.TrainedModel, first.parent_id)
        inherited = {**first.settings, **inherited}
    return checked_settings({**inherited, **given}, None if parent is None else parent.name)
