"""Trained models: what there is, how good it is, which version is in production; predictions of structures."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.encoders import jsonable_encoder
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from screening.database import listings
from screening.database.models import line_by_name, promotions_of, versions_of
from screening.pipeline.retraining import roll_back, submit_retraining
from screening.web.access import Admin, Reader
from screening.web.api.answers import PROBLEMS
from screening.web.idempotency import OncePerKey
from screening.web.server import Transaction, tell_workers

router = APIRouter(tags=["models"], responses=PROBLEMS)

ModelName = Annotated[str, Path(max_length=200, description="name of a model, or of a version of it")]


class ModelRow(BaseModel):
    """A version of a model."""

    model: str
    line: str = Field(description="the model whose version it is")
    version: int
    standing: str | None = Field(description="production, replaced or rejected; null before it is finished")
    state: str
    level: str = Field(description="level of theory")
    parent: str | None
    n_train: int
    n_validation: int
    training_time_s: float | None
    seed: int
    error: str | None
    created_at: datetime


class Models(BaseModel):
    """Versions of all models, oldest first."""

    rows: list[ModelRow]


class Metric(BaseModel):
    """An error on validation rows, eV or Bohr magneton."""

    dataset: str
    property: str
    n_rows: int
    mae: float
    rmse: float


class ModelDetail(ModelRow):
    """A version of a model, and how good it is."""

    metrics: list[Metric]
    comparison: dict[str, Any] | None = Field(description="how it fared against the version in production before")


class Promotion(BaseModel):
    """When a version went into production."""

    promoted_at: datetime
    version: int
    model: str
    replaced: str | None
    reason: str


class History(BaseModel):
    """The versions of a model, and which was in production when and why."""

    line: str
    versions: list[dict[str, Any]]
    promotions: list[Promotion]


class Production(BaseModel):
    """A version to be put into production."""

    model_config = ConfigDict(extra="forbid")

    version: int | None = Field(default=None, ge=1, lt=2**31, description="the one that was there before if not given")


class Promoted(BaseModel):
    """Which version is in production now, and which one was."""

    production: str
    replaced: str


class NewTraining(BaseModel):
    """How the next version is to be trained."""

    model_config = ConfigDict(extra="forbid")

    epochs: int | None = Field(default=None, ge=1, le=100_000)
    max_minutes: float | None = Field(default=None, gt=0, le=1e5, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=2**31)


class Training(BaseModel):
    """What was begun."""

    line: str
    champion: str = Field(description="version in production")
    new_results: int
    model: str | None = Field(description="the version that is being trained; null where there is nothing to do")
    is_joined: bool = Field(description="whether that training was on its way already")
    remark: str


@router.get("/models")
def list_models(session: Transaction, _: Reader) -> Models:
    """The versions of all models."""
    return Models(rows=[ModelRow(**row) for row in listings.list_models(session)])


@router.get("/models/{model}")
def get_model(session: Transaction, _: Reader, model: ModelName) -> ModelDetail:
    """A version of a model; by the model's name the one in production."""
    return ModelDetail(**listings.describe_model(session, model))


@router.get("/models/{model}/history")
def get_history(session: Transaction, _: Reader, model: ModelName) -> History:
    """The versions of a model."""
    line = line_by_name(session, model)
    return History(
        line=line.name, versions=jsonable_encoder(versions_of(session, line.id)),
        promotions=[Promotion(**row) for row in promotions_of(session, line.id)],
    )  # fmt: skip


@router.post("/models/{model}/production")
def put_into_production(session: Transaction, _: Admin, model: ModelName, chosen: Production) -> Promoted:
    """Promote a version, or roll back to the one that was in production before."""
    now, before = roll_back(session, line_by_name(session, model).name, chosen.version)
    return Promoted(production=now, replaced=before)


@router.post("/models/{model}/trainings", status_code=202, response_model=Training)
def retrain(session: Transaction, once: OncePerKey, model: ModelName, new: NewTraining) -> Any:
    """Let a model learn from new results; a worker does it, and puts the version into production if it is not worse."""
    if once.earlier:
        return once.earlier
    return once.keep(202, begin_training(session, model, new).model_dump())


def begin_training(session: Session, model: str, new: NewTraining) -> Training:
    """Queue the training of the next version of a model, and tell the workers."""
    settings = new.model_dump(exclude={"seed"}, exclude_none=True)
    begun = submit_retraining(session, model, settings=settings, seed=new.seed)
    name = None
    if begun.model_id is not None:
        tell_workers(session, "train")
        name = str(listings.describe_version(session, begun.model_id)["model"])
    return Training(
        line=begun.line, champion=begun.champion, new_results=begun.n_new, model=name, is_joined=begun.is_joined,
        remark=begun.remark,
    )  # fmt: skip
