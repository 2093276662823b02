"""Model lines and their versions: trained, judged on validation rows, promoted."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    FetchedValue,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    LargeBinary,
    SmallInteger,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from screening.database.tables.base import Leased, Table, lease_rules


class ModelLine(Table):
    """A model that lives on in versions: what it learns from, and when it learns again by itself."""

    __tablename__ = "model_lines"
    __table_args__ = (
        UniqueConstraint("id", "level_id"),
        CheckConstraint("after_results > 0", name="after_results"),
        CheckConstraint("after_hours > 0 AND after_hours < 'Infinity'", name="after_hours"),
        {"comment": "models that live on in versions: what they learn from, and when they learn again"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    level_id: Mapped[int] = mapped_column(ForeignKey("levels_of_theory.id"))
    hosts: Mapped[list[str]] = mapped_column(
        server_default="{}", comment="names of the hosts whose results it learns from; empty: all"
    )
    datasets: Mapped[list[str]] = mapped_column(
        server_default="{}", comment="names of the data sets that it learns from; empty: all"
    )
    after_results: Mapped[int | None] = mapped_column(comment="retrain by itself after so many new results")
    after_hours: Mapped[float | None] = mapped_column(
        comment="retrain by itself when new results have waited so long, hours"
    )
    when_drifting: Mapped[bool] = mapped_column(
        server_default="false", comment="retrain by itself when new results are outside the intervals too often"
    )
    rescore: Mapped[bool] = mapped_column(
        server_default="false", comment="start campaigns again with each version that a retraining promotes"
    )
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class TrainedModel(Leased, Table):
    """An ensemble of networks: how it is trained, how far it is, and its weights.

    Written without a line it founds one of its name; the first finished version of a line goes into production
    (triggers of migration 0004). Two versions of a line are never trained at once.
    """

    __tablename__ = "trained_models"
    __table_args__ = (
        UniqueConstraint("line_id", "version"),
        UniqueConstraint("line_id", "id"),
        ForeignKeyConstraint(["line_id", "level_id"], ["model_lines.id", "model_lines.level_id"]),
        Index(
            "uq_trained_models_open", "line_id", unique=True, postgresql_where=text("state IN ('waiting', 'running')")
        ),
        CheckConstraint("(state = 'finished') = (weights IS NOT NULL)", name="finished_has_weights"),
        CheckConstraint("state <> 'finished' OR checkpoint IS NULL", name="finished_drops_checkpoint"),
        *lease_rules("trained_models"),
        {"comment": "trained models, one level of theory each"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    line_id: Mapped[int] = mapped_column(server_default=FetchedValue())
    version: Mapped[int] = mapped_column(server_default=FetchedValue(), comment="number in its line, from 1 on")
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("trained_models.id"), comment="retrained from")
    level_id: Mapped[int] = mapped_column(ForeignKey("levels_of_theory.id"))
    properties: Mapped[list[str]]
    settings: Mapped[dict[str, Any]] = mapped_column(comment="screening.learning.training.TrainingSettings")
    seed: Mapped[int] = mapped_column(BigInteger)
    progress: Mapped[dict[str, Any] | None] = mapped_column(
        comment="member, epoch, loss and validation errors of the last epoch"
    )
    checkpoint: Mapped[bytes | None] = mapped_column(LargeBinary, comment="safetensors, to resume from")
    weights: Mapped[bytes | None] = mapped_column(LargeBinary, comment="safetensors")
    weights_sha256: Mapped[str | None] = mapped_column(
        Computed("encode(sha256(weights), 'hex')", persisted=True), comment="of the weights"
    )
    training_time_s: Mapped[float | None] = mapped_column(comment="seconds")
    snapshot_sha256: Mapped[str | None] = mapped_column(
        comment="digest of the results, roles and labels that it learnt from"
    )
    examined_to: Mapped[int | None] = mapped_column(
        comment="largest id of the new results that it was asked about while it was in production"
    )


class ModelMetric(Table):
    """Error of a model on validation rows."""

    __tablename__ = "model_metrics"
    __table_args__ = ({"comment": "errors of models on validation rows never trained on"},)

    model_id: Mapped[int] = mapped_column(ForeignKey("trained_models.id", ondelete="CASCADE"), primary_key=True)
    dataset: Mapped[str] = mapped_column(primary_key=True)
    property: Mapped[str] = mapped_column(primary_key=True)
    n_rows: Mapped[int]
    mae: Mapped[float] = mapped_column(comment="mean absolute error, eV or Bohr magneton")
    rmse: Mapped[float] = mapped_column(comment="root mean square error, eV or Bohr magneton")


class Promotion(Table):
    """A version went into production of its line, which it is until the next promotion."""

    __tablename__ = "promotions"
    __table_args__ = (
        ForeignKeyConstraint(["line_id", "model_id"], ["trained_models.line_id", "trained_models.id"]),
        ForeignKeyConstraint(["line_id", "replaced_id"], ["trained_models.line_id", "trained_models.id"]),
        CheckConstraint("replaced_id <> model_id", name="replaced"),
        Index("ix_promotions_line_id_id", "line_id", "id"),
        {"comment": "which version of a line went into production and when; the last one is there; never overwritten"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    line_id: Mapped[int]
    model_id: Mapped[int] = mapped_column(comment="the version that is in production from then on")
    replaced_id: Mapped[int | None] = mapped_column(comment="the version that was in production before")
    reason: Mapped[str] = mapped_column(comment="with the errors that were measured")
    promoted_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class ModelComparison(Table):
    """A retrained version against the version in production, on rows that neither has learnt from."""

    __tablename__ = "model_comparisons"
    __table_args__ = (
        CheckConstraint("num_nulls(ratio, ratio_low, ratio_high) IN (0, 3)", name="ratio"),
        {"comment": "retrained versions against the version in production, on the same rows"},
    )

    challenger_id: Mapped[int] = mapped_column(
        ForeignKey("trained_models.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    champion_id: Mapped[int] = mapped_column(
        ForeignKey("trained_models.id"), comment="in production when the challenger was ready"
    )
    n_rows: Mapped[int] = mapped_column(comment="rows that neither of them has learnt from")
    ratio: Mapped[float | None] = mapped_column(comment="errors of the challenger over those of the champion")
    ratio_low: Mapped[float | None] = mapped_column(comment="lower end of its 95 % interval")
    ratio_high: Mapped[float | None] = mapped_column(comment="upper end of its 95 % interval")
    is_promoted: Mapped[bool]
    reason: Mapped[str] = mapped_column(comment="why it is promoted, or is not")
    compared_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class ModelComparisonError(Table):
    """Errors of a comparison, of a property in a data set."""

    __tablename__ = "model_comparison_errors"
    __table_args__ = ({"comment": "errors of challenger and champion on rows that neither of them has learnt from"},)

    challenger_id: Mapped[int] = mapped_column(
        ForeignKey("model_comparisons.challenger_id", ondelete="CASCADE"), primary_key=True
    )
    dataset: Mapped[str] = mapped_column(primary_key=True)
    property: Mapped[str] = mapped_column(primary_key=True)
    n_rows: Mapped[int]
    champion_mae: Mapped[float] = mapped_column(comment="mean absolute error of the champion, eV or Bohr magneton")
    challenger_mae: Mapped[float] = mapped_column(comment="mean absolute error of the challenger, eV or Bohr magneton")


class IntervalMultiple(Table):
    """How many standard deviations the 95 % interval of a model reaches to either side of the mean."""

    __tablename__ = "interval_multiples"
    __table_args__ = (
        CheckConstraint("multiple >= 1 AND multiple < 'Infinity'", name="multiple"),
        {"comment": "half widths of 95 % intervals in standard deviations; 1.96 where nothing is said"},
    )

    model_id: Mapped[int] = mapped_column(ForeignKey("trained_models.id", ondelete="CASCADE"), primary_key=True)
    host: Mapped[str] = mapped_column(primary_key=True, comment="name of the host")
    n_defects: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    property: Mapped[str] = mapped_column(primary_key=True)
    multiple: Mapped[float] = mapped_column(comment="half of the 95 % interval over the standard deviation")
