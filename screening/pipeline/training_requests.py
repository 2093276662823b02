"""What is to be trained: requests become versions of lines, with the results they will learn from.

Which results a version learns from is fixed here, before any worker sees it; only what is put aside since is left out.
A version that is trained from another belongs to its line where it learns from the same hosts and data sets; every
other one begins a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import models, queries, tables
from screening.errors import InputError
from screening.pipeline.model_transfer import learnt_from_files
from screening.pipeline.training_rows import predictable, properties_present, role_of

if TYPE_CHECKING:
    from screening.learning.settings import TrainingSettings

SMALLEST_TRAINING_SET = 10
RETRAINING_EPOCHS = 90  # a finished model needs fewer than a new one


@dataclass(frozen=True)
class TrainingRequest:
    """What a model shall learn from.

    Attributes:
        level: name of the level of theory.
        name: what to call the version, and the line if it begins one; made up if not given.
        hosts: names of hosts; if empty those of the parent's line, or all hosts with results at this level.
        datasets: names of data sets; if empty those of the parent's line, or all.
        parent: a finished model to start from.
        settings: fields of `screening.learning.training.TrainingSettings` that differ from its defaults.
        learn_from_all: train on every result and validate on none, for a model that goes to other people.
    """

    level: str
    name: str | None = None
    hosts: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    parent: str | None = None
    seed: int = 0
    settings: Mapping[str, Any] | None = None
    learn_from_all: bool = False


@dataclass(frozen=True)
class NewVersion:
    """A version that is added to a line.

    Attributes:
        name: its own name; that of the line with its number if None.
        settings: fields of TrainingSettings, checked.
        roles: train or validation by the id of each result.
    """

    name: str | None
    parent_id: int | None
    seed: int
    settings: Mapping[str, Any]
    properties: Sequence[str]
    roles: Mapping[int, str]


def submit_training(session: Session, request: TrainingRequest) -> int:
    """Store a training that waits for a worker, with the results it will learn from; its id.

    Results that belong to the validation split of their data set stay there; where a data set has no split,
    every result is assigned by its id, so that a row that validated once never trains later. Validation results with
    a host or a defect type that no training result has are left out: a model cannot predict them.

    Raises:
        InputError: there are too few results, the name is taken, another version of the line is trained now, or a
            setting makes no sense.
    """
    parent = queries.model_by_name(session, request.parent) if request.parent else None
    settings = checked_settings(request.settings or {}, None if parent is None else parent.name)
    level_id = queries.level_id_of(session, request.level)
    if parent is not None and parent.level_id != level_id:
        raise InputError(f"model {parent.name} was trained at another level of theory than {request.level!r}")
    line = _continued_line(session, request, parent)
    hosts, datasets = (request.hosts, request.datasets) if line is None else (line.hosts, line.datasets)
    rows = labelled_rows(session, level_id, hosts=hosts, datasets=datasets)
    roles = roles_of(session, rows, parent, learn_from_all=request.learn_from_all)
    rows = predictable(rows, roles)
    version = NewVersion(
        name=request.name,
        parent_id=None if parent is None else parent.id,
        seed=request.seed,
        settings=settings,
        properties=properties_present(rows),
        roles={row.CalculationResult.id: roles[row.CalculationResult.id] for row in rows},
    )
    _check_numbers(version.roles, request)
    if line is None:
        line, name = _add_line(session, request, level_id)
        version = replace(version, name=name)
    return add_version(session, line, version)


def roles_of(
    session: Session, rows: Sequence[Any], parent: tables.TrainedModel | None, *, learn_from_all: bool = False
) -> dict[int, str]:
    """The role of each result; what the parent was trained on is never validated on by what comes of it."""
    learnt: set[int] = set()
    if parent is not None:
        learnt = models.learnt_results(session, parent.id) | learnt_from_files(session, parent.id, rows)
    return {
        row.CalculationResult.id: "train"
        if learn_from_all or row.CalculationResult.id in learnt
        else role_of(row.CalculationResult)
        for row in rows
    }


def add_version(session: Session, line: tables.ModelLine, version: NewVersion) -> int:
    """Store a version of a line, which waits for a worker, with its snapshot; its id. The line is locked meanwhile.

    A training that failed gives its name to the next one.

    Raises:
        InputError: its name is taken, or another version of the line is trained now.
    """
    models.lock_line(session, line.id)
    if version.name is not None:
        session.execute(delete(tables.TrainedModel).where(*_failed(version.name)))
    if (other := models.open_version(session, line.id)) is not None:
        raise InputError(
            f"model {line.name} is trained already: {other.name} is {other.state}, and two trainings of a model would "
            f"overtake each other; wait (`screening model show {other.name}`), then train again"
        )
    taken = select(func.coalesce(func.max(tables.TrainedModel.version), 0)).where(
        tables.TrainedModel.line_id == line.id
    )
    number = session.execute(taken).scalar_one() + 1
    added: int | None = session.scalar(
        insert(tables.TrainedModel)
        .values(
            name=version.name or models.version_name(line.name, number), line_id=line.id, version=number,
            level_id=line.level_id, parent_id=version.parent_id, seed=version.seed, settings=dict(version.settings),
            properties=list(version.properties),
        )
        .on_conflict_do_nothing(index_elements=["name"])
        .returning(tables.TrainedModel.id)
    )  # fmt: skip
    if added is None:
        assert version.name is not None
        raise _name_is_taken(session, version.name)
    session.execute(
        insert(tables.ModelTrainingResult),
        [{"model_id": added, "result_id": identifier, "role": role} for identifier, role in version.roles.items()],
    )
    return added


def labelled_rows(
    session: Session, level_id: int, *, hosts: Sequence[str] = (), datasets: Sequence[str] = ()
) -> Sequence[Any]:
    """Results of these hosts and data sets, or of all, as `queries.labelled_rows` has them; none that is put aside.

    Raises:
        UnknownNameError: there is no host of one of these names.
    """
    host_ids = [queries.get_host(session, name).id for name in hosts]
    return queries.labelled_rows(session, level_id=level_id, host_ids=host_ids, datasets=datasets)


def checked_settings(given: Mapping[str, Any], parent: str | None) -> dict[str, Any]:
    """The settings to store with a training, from the model of this name or from scratch.

    Raises:
        InputError: there is no such setting, or its value makes no sense.
    """
    settings = dict(given)
    if parent is not None:
        if fixed := sorted({"n_members", "width", "n_blocks"} & set(settings)):
            raise InputError(f"{', '.join(fixed)} come from model {parent}, which the training starts from")
        settings.setdefault("epochs", RETRAINING_EPOCHS)
    training_settings(settings, "cpu")
    return settings


def training_settings(stored: Mapping[str, Any], device: str) -> TrainingSettings:
    """Settings of training from what is stored.

    Raises:
        InputError: there is no such setting, or its value makes no sense.
    """
    from screening.learning.settings import TrainingSettings

    known = {field.name for field in fields(TrainingSettings)}
    if unknown := sorted(set(stored) - known):
        raise InputError(f"no training setting is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return TrainingSettings(**{"device": device, **stored})


def _continued_line(
    session: Session, request: TrainingRequest, parent: tables.TrainedModel | None
) -> tables.ModelLine | None:
    """The line of the parent, if the request is to learn from what that learns from; locked."""
    if parent is None:
        return None
    line = models.lock_line(session, parent.line_id)
    given = ((request.hosts, line.hosts), (request.datasets, line.datasets))
    return line if all(not wanted or sorted(wanted) == sorted(known) for wanted, known in given) else None


def _check_numbers(roles: Mapping[int, str], request: TrainingRequest) -> None:
    n_train = sum(role == "train" for role in roles.values())
    if n_train < SMALLEST_TRAINING_SET or (n_train == len(roles) and not request.learn_from_all):
        raise InputError(
            f"found {n_train} results to train on and {len(roles) - n_train} to validate on at level "
            f"{request.level!r}; training needs {SMALLEST_TRAINING_SET} and 1: import or calculate more"
        )


def _add_line(session: Session, request: TrainingRequest, level_id: int) -> tuple[tables.ModelLine, str]:
    """A new line of the name that was asked for, or of the next free one, and its name.

    Raises:
        InputError: the name is taken, or not allowed.
    """
    if request.name is not None and models.VERSION_MARK in request.name:
        raise InputError(
            f"a model cannot be called {request.name!r}: {models.VERSION_MARK} stands before the number of a version; "
            "choose another name with --name"
        )
    name = request.name or _free_name(session, request)
    session.execute(delete(tables.TrainedModel).where(*_failed(name)))
    line = tables.ModelLine
    session.execute(delete(line).where(line.name == name, ~exists().where(tables.TrainedModel.line_id == line.id)))
    added: tables.ModelLine | None = None
    if not models.name_is_taken(session, name):
        added = session.scalar(
            insert(line)
            .values(name=name, level_id=level_id, hosts=list(request.hosts), datasets=list(request.datasets))
            .on_conflict_do_nothing(index_elements=["name"])
            .returning(line)
        )
    if added is not None:
        return added, name
    if request.name is not None:
        raise _name_is_taken(session, name)
    return _add_line(session, request, level_id)  # somebody else has taken the free name since


def _failed(name: str) -> tuple[ColumnElement[bool], ...]:
    return tables.TrainedModel.name == name, tables.TrainedModel.state == "failed"


def _name_is_taken(session: Session, name: str) -> InputError:
    model = models.find_model(session, name)
    state = "being added" if model is None else model.state
    return InputError(
        f"a model is called {name!r} already, and it is {state} (`screening model show {name}`); "
        "choose another name with --name"
    )


def _free_name(session: Session, request: TrainingRequest) -> str:
    """A name made of hosts, level of theory and the next free number."""
    stem = "-".join((*request.hosts, request.level)).lower().replace(" ", "-")
    taken = {
        name
        for table in (tables.TrainedModel, tables.ModelLine)
        for name in session.scalars(select(table.name).where(table.name.startswith(stem, autoescape=True)))
    }
    return next(name for n in range(1, len(taken) + 2) if (name := f"{stem}-{n}") not in taken)
