"""Model lines and their versions: names, what is in production, its history.

A name is that of a line, and means the version that is in production there; or that of one version: its own name, or
`LINE@3`. A line's first version is called as the line itself, so that no version of another line can take the name.
Nothing here commits.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import CTE, BigInteger, Subquery, and_, case, cast, exists, func, or_, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.elements import ColumnElement

from screening.database.tables import (
    CalculationResult,
    ModelComparison,
    ModelComparisonError,
    ModelLine,
    ModelTrainingResult,
    Promotion,
    QuarantinedResult,
    TrainedModel,
)
from screening.errors import InputError, UnknownNameError

VERSION_MARK = "@"
VALIDATION_SHARE = 0.15  # of the results of data sets without a split
ROLE_MULTIPLIER = 2654435761  # 2**32 by the golden ratio: ids one after the other fall everywhere


def version_name(line: str, version: int) -> str:
    """What a version is called that nobody gave a name: `first@2`."""
    return f"{line}{VERSION_MARK}{version}"


def find_model(session: Session, name: str) -> TrainedModel | None:
    """The version that a name means, whatever its state: of a line that has nothing in production its newest."""
    line = session.scalar(select(ModelLine).where(ModelLine.name == name))
    if line is not None:
        found = in_production(session, line.id) or session.scalar(
            select(TrainedModel).where(TrainedModel.line_id == line.id).order_by(TrainedModel.version.desc()).limit(1)
        )
        if found is not None:
            return found
    found = session.scalar(select(TrainedModel).where(TrainedModel.name == name))
    of_line, _, version = name.rpartition(VERSION_MARK)
    if found is None and version.isdecimal():
        found = session.scalar(
            select(TrainedModel)
            .join(ModelLine, ModelLine.id == TrainedModel.line_id)
            .where(ModelLine.name == of_line, TrainedModel.version == int(version))
        )
    return found


def line_by_name(session: Session, name: str | None) -> ModelLine:
    """The line of this name, or of a version of this name, or the only one.

    Raises:
        UnknownNameError: there is none.
        InputError: no name is given and there are several.
    """
    if name is None:
        lines = session.scalars(select(ModelLine).order_by(ModelLine.id)).all()
        if len(lines) == 1:
            return lines[0]
        known = ", ".join(line.name for line in lines)
        if lines:
            raise InputError(f"there are several models; name one of {known}")
        raise UnknownNameError(
            "there is no model; train one with `screening train`, or take the one that ships: "
            "`screening model add 2dmd-pbe`"
        )
    line = session.scalar(select(ModelLine).where(ModelLine.name == name))
    if line is not None:
        return line
    model = find_model(session, name)
    if model is None:
        raise UnknownNameError(f"no model is called {name!r}; there are: {_listed(session)}")
    return session.get_one(ModelLine, model.line_id)


def in_production(session: Session, line_id: int) -> TrainedModel | None:
    """The version of a line that was promoted last."""
    return session.scalar(
        select(TrainedModel)
        .join(Promotion, Promotion.model_id == TrainedModel.id)
        .where(Promotion.line_id == line_id)
        .order_by(Promotion.id.desc())
        .limit(1)
    )


def production() -> Subquery:
    """The versions in production: `line_id`, `model_id`, and `promotion_id`, which rises with the time."""
    return (
        select(Promotion.line_id, Promotion.model_id, Promotion.id.label("promotion_id"))
        .ext(distinct_on(Promotion.line_id))
        .order_by(Promotion.line_id, Promotion.id.desc())
        .subquery()
    )


def newest_in_production(session: Session) -> TrainedModel | None:
    """Of all versions in production that which was promoted last."""
    return session.scalar(
        select(TrainedModel)
        .join(Promotion, Promotion.model_id == TrainedModel.id)
        .order_by(Promotion.id.desc())
        .limit(1)
    )


def newer_in_production(session: Session, model_id: int) -> str | None:
    """Name of the version that is in production of a model's line, where that is another one."""
    model = session.get_one(TrainedModel, model_id)
    current = in_production(session, model.line_id)
    return None if current is None or current.id == model.id else current.name


def open_version(session: Session, line_id: int) -> TrainedModel | None:
    """The version of a line that waits for its training or is trained."""
    return session.scalar(
        select(TrainedModel).where(TrainedModel.line_id == line_id, TrainedModel.state.in_(("waiting", "running")))
    )


def lock_line(session: Session, line_id: int) -> ModelLine:
    """A line, whose production and versions nobody else changes until the end of the transaction."""
    return session.execute(
        select(ModelLine).where(ModelLine.id == line_id).with_for_update(key_share=True)
    ).scalar_one()


def promote(session: Session, model: TrainedModel, *, reason: str) -> None:
    """Put a finished version into production of its line, which the caller has locked; again changes nothing."""
    assert model.state == "finished"
    current = in_production(session, model.line_id)
    if current is not None and current.id == model.id:
        return
    replaced_id = None if current is None else current.id
    session.add(Promotion(line_id=model.line_id, model_id=model.id, replaced_id=replaced_id, reason=reason))
    session.flush()


def lineage(model_id: int) -> CTE:
    """Ids of a model and of all that it goes back to."""
    found = (
        select(TrainedModel.id, TrainedModel.parent_id)
        .where(TrainedModel.id == model_id)
        .cte("lineage", recursive=True)
    )
    return found.union(select(TrainedModel.id, TrainedModel.parent_id).where(TrainedModel.id == found.c.parent_id))


def learnt_results(session: Session, model_id: int) -> set[int]:
    """Ids of the results that a model, or one that it goes back to, was trained on."""
    of_it = lineage(model_id)
    return set(
        session.scalars(
            select(ModelTrainingResult.result_id)
            .distinct()
            .join(of_it, of_it.c.id == ModelTrainingResult.model_id)
            .where(ModelTrainingResult.role == "train")
        )
    )


def stands() -> ColumnElement[bool]:
    """Whether a result was not withdrawn; a condition on `CalculationResult`, of which a calculation has one at most.

    Whoever asks for the result of a calculation asks for the one that stands. What a model has learnt from it has
    learnt all the same.
    """
    return CalculationResult.retracted_at.is_(None)


def is_usable() -> ColumnElement[bool]:
    """Whether a result is neither withdrawn nor put aside; a condition on `CalculationResult`."""
    is_aside = exists().where(
        QuarantinedResult.result_id == CalculationResult.id, QuarantinedResult.state.in_(("open", "rejected"))
    )
    return and_(stands(), ~is_aside)


def is_for_training() -> ColumnElement[bool]:
    """Whether the role of a result is train (screening.pipeline.training_rows); a condition on `CalculationResult`."""
    place = (cast(CalculationResult.id, BigInteger) * ROLE_MULTIPLIER) % 2**32
    return func.coalesce(CalculationResult.split == "train", place >= VALIDATION_SHARE * 2**32)


def standing_of(in_use: Subquery) -> ColumnElement[str | None]:
    """What a version is to its line: production, replaced, rejected; null before it is finished.

    Args:
        in_use: `production()`, joined to the SELECT of `TrainedModel` by its line.
    """
    was_promoted = exists().where(Promotion.model_id == TrainedModel.id)
    return case(
        (TrainedModel.state != "finished", None),
        (in_use.c.model_id == TrainedModel.id, "production"),
        (was_promoted, "replaced"),
        else_="rejected",
    )


def versions_of(session: Session, line_id: int) -> list[dict[str, Any]]:
    """A row per version, oldest first: version, model, standing, state, parent, rows, ratio of the comparison ..."""
    in_use, parent = production(), aliased(TrainedModel)
    n_of = {
        role: select(func.count())
        .where(ModelTrainingResult.model_id == TrainedModel.id, ModelTrainingResult.role == role)
        .correlate(TrainedModel)
        .scalar_subquery()
        for role in ("train", "validation")
    }
    rows = session.execute(
        select(
            TrainedModel.id,
            TrainedModel.version,
            TrainedModel.name.label("model"),
            standing_of(in_use).label("standing"),
            TrainedModel.state,
            parent.name.label("parent"),
            n_of["train"].label("n_train"),
            n_of["validation"].label("n_validation"),
            TrainedModel.seed,
            TrainedModel.snapshot_sha256,
            TrainedModel.training_time_s,
            TrainedModel.created_at,
            TrainedModel.finished_at,
            TrainedModel.error,
            ModelComparison.n_rows.label("n_compared"),
            ModelComparison.ratio,
            ModelComparison.ratio_low,
            ModelComparison.ratio_high,
            ModelComparison.reason.label("verdict"),
        )
        .outerjoin(parent, parent.id == TrainedModel.parent_id)
        .outerjoin(in_use, in_use.c.line_id == TrainedModel.line_id)
        .outerjoin(ModelComparison, ModelComparison.challenger_id == TrainedModel.id)
        .where(TrainedModel.line_id == line_id)
        .order_by(TrainedModel.version)
    ).mappings()
    return [dict(row) for row in rows]


def promotions_of(session: Session, line_id: int) -> list[dict[str, Any]]:
    """A row per promotion, oldest first: promoted_at, version, model, replaced, reason."""
    replaced = aliased(TrainedModel)
    rows = session.execute(
        select(
            Promotion.promoted_at,
            TrainedModel.version,
            TrainedModel.name.label("model"),
            replaced.name.label("replaced"),
            Promotion.reason,
        )
        .join(TrainedModel, TrainedModel.id == Promotion.model_id)
        .outerjoin(replaced, replaced.id == Promotion.replaced_id)
        .where(Promotion.line_id == line_id)
        .order_by(Promotion.id)
    ).mappings()
    return [dict(row) for row in rows]


def comparison_of(session: Session, model_id: int) -> dict[str, Any] | None:
    """How a version fared against the version that was in production, with `errors` by data set and property."""
    champion = aliased(TrainedModel)
    row = session.execute(
        select(
            champion.name.label("champion"),
            ModelComparison.n_rows,
            ModelComparison.ratio,
            ModelComparison.ratio_low,
            ModelComparison.ratio_high,
            ModelComparison.is_promoted,
            ModelComparison.reason,
        )
        .join(champion, champion.id == ModelComparison.champion_id)
        .where(ModelComparison.challenger_id == model_id)
    ).mappings().first()  # fmt: skip
    if row is None:
        return None
    error = ModelComparisonError
    errors = session.execute(
        select(error.dataset, error.property, error.n_rows, error.champion_mae, error.challenger_mae)
        .where(error.challenger_id == model_id)
        .order_by(error.dataset, error.property)
    ).mappings()
    return {**row, "errors": [dict(found) for found in errors]}


def _listed(session: Session) -> str:
    known = session.execute(select(TrainedModel.name, TrainedModel.state).order_by(TrainedModel.id))
    return ", ".join(f"{row.name} ({row.state})" for row in known) or "none"


def name_is_taken(session: Session, name: str) -> bool:
    """Whether a line or a version has this name."""
    of_line = exists().where(ModelLine.name == name)
    return bool(session.scalar(select(or_(of_line, exists().where(TrainedModel.name == name)))))
