"""Rounds of calculations, their results, what models learnt from them, and what is put aside or withdrawn."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from screening.database.tables.base import PROPERTY_COMMENTS, Leased, Table, lease_rules


class Round(Table):
    """A batch of proposed calculations; the view `round_progress` says how far each is."""

    __tablename__ = "rounds"
    __table_args__ = ({"comment": "batches of proposed calculations"},)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str | None] = mapped_column(unique=True, comment="if it was given one")
    folder: Mapped[str | None] = mapped_column(comment="where its inputs were written last")
    model_id: Mapped[int] = mapped_column(ForeignKey("trained_models.id"), comment="whose predictions chose them")
    level_id: Mapped[int] = mapped_column(ForeignKey("levels_of_theory.id"))
    query: Mapped[dict[str, Any]] = mapped_column(comment="the design query that the choice serves")
    seed: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Calculation(Leased, Table):
    """A calculation of a configuration at a level of theory: proposed, running, finished or failed.

    One that runs elsewhere has no lease of ours: it is exported, then submitted.
    """

    __tablename__ = "calculations"
    __table_args__ = (
        UniqueConstraint("configuration_id", "level_id"),
        CheckConstraint(
            "state IN ('proposed', 'exported', 'submitted', 'waiting', 'running', 'finished', 'failed')", name="state"
        ),
        CheckConstraint("expected_s > 0 AND expected_s < 'Infinity'", name="expected_s"),
        CheckConstraint("state <> 'submitted' OR submitted_at IS NOT NULL", name="submitted_at"),
        *lease_rules("calculations")[1:],
        {
            "comment": "calculations; proposed ones wait for a person, waiting ones for a worker, exported ones for "
            "their submission, submitted ones run elsewhere"
        },
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    configuration_id: Mapped[int] = mapped_column(ForeignKey("configurations.id"))
    level_id: Mapped[int] = mapped_column(ForeignKey("levels_of_theory.id"), index=True)
    round_id: Mapped[int | None] = mapped_column(ForeignKey("rounds.id"), index=True)
    proposal: Mapped[str | None] = mapped_column(comment="why it was proposed")
    worth: Mapped[float | None] = mapped_column(comment="what its result is expected to be worth; as its round says")
    expected_s: Mapped[float | None] = mapped_column(comment="how long it is expected to take, seconds")
    exported_at: Mapped[datetime | None] = mapped_column(comment="when its inputs were written")
    submitted_at: Mapped[datetime | None] = mapped_column(comment="when it was given to another machine")
    job: Mapped[str | None] = mapped_column(comment="its number there")


class CalculationFailure(Table):
    """An attempt at a calculation that failed."""

    __tablename__ = "calculation_failures"
    __table_args__ = (
        UniqueConstraint("calculation_id", "attempt"),
        CheckConstraint("attempt > 0", name="attempt"),
        {"comment": "failed attempts at calculations, with their reasons and files"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    calculation_id: Mapped[int] = mapped_column(ForeignKey("calculations.id", ondelete="CASCADE"))
    source_file_id: Mapped[int | None] = mapped_column(
        ForeignKey("source_files.id"), index=True, comment="the file that says so; null without one"
    )
    attempt: Mapped[int] = mapped_column(comment="from 1 on")
    reason: Mapped[str]
    failed_at: Mapped[datetime] = mapped_column(server_default=func.now())


class CalculationResult(Table):
    """What a finished calculation says."""

    __tablename__ = "calculation_results"
    __table_args__ = (
        UniqueConstraint("dataset", "row_name"),
        Index(
            "uq_calculation_results_standing",
            "calculation_id",
            unique=True,
            postgresql_where=text("retracted_at IS NULL"),
        ),
        CheckConstraint("(retracted_at IS NULL) = (retraction IS NULL)", name="retraction"),
        CheckConstraint("split IN ('train', 'validation')", name="split"),
        CheckConstraint("abs(energy) < 'Infinity'", name="energy_is_finite"),
        CheckConstraint(
            " AND ".join(f"abs({name}) < 'Infinity'" for name in PROPERTY_COMMENTS), name="properties_are_finite"
        ),
        {"comment": "results of finished calculations"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    calculation_id: Mapped[int] = mapped_column(ForeignKey("calculations.id"), index=True)
    source_file_id: Mapped[int | None] = mapped_column(ForeignKey("source_files.id"), index=True)
    dataset: Mapped[str] = mapped_column(comment="where it comes from: low_density_defects/MoS2, round 3")
    row_name: Mapped[str] = mapped_column(comment="its name there")
    split: Mapped[str | None] = mapped_column(comment="train or validation, where the data set says so")
    energy: Mapped[float] = mapped_column(comment="total energy of the supercell, eV")
    formation_energy: Mapped[float | None] = mapped_column(comment=PROPERTY_COMMENTS["formation_energy"])
    formation_energy_per_site: Mapped[float | None] = mapped_column(
        comment=PROPERTY_COMMENTS["formation_energy_per_site"]
    )
    homo_lumo_gap_min: Mapped[float | None] = mapped_column(comment=PROPERTY_COMMENTS["homo_lumo_gap_min"])
    homo_lumo_gap_majority: Mapped[float | None] = mapped_column(comment=PROPERTY_COMMENTS["homo_lumo_gap_majority"])
    homo_lumo_gap_minority: Mapped[float | None] = mapped_column(comment=PROPERTY_COMMENTS["homo_lumo_gap_minority"])
    homo: Mapped[float | None] = mapped_column(comment=PROPERTY_COMMENTS["homo"])
    lumo: Mapped[float | None] = mapped_column(comment=PROPERTY_COMMENTS["lumo"])
    total_mag: Mapped[float | None] = mapped_column(comment=PROPERTY_COMMENTS["total_mag"])
    taken_in_at: Mapped[datetime] = mapped_column(server_default=func.now())
    retracted_at: Mapped[datetime | None] = mapped_column(comment="when it was withdrawn; null while it stands")
    retraction: Mapped[str | None] = mapped_column(comment="why it was withdrawn")


class ModelTrainingResult(Table):
    """Which results a model learnt from."""

    __tablename__ = "model_training_results"
    __table_args__ = (
        CheckConstraint("role IN ('train', 'validation')", name="role"),
        {"comment": "which results a model learnt from, and which it was chosen on"},
    )

    model_id: Mapped[int] = mapped_column(ForeignKey("trained_models.id", ondelete="CASCADE"), primary_key=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("calculation_results.id"), primary_key=True, index=True)
    role: Mapped[str]


class ResultPrediction(Table):
    """What a version in production said of a result before its line learnt from it."""

    __tablename__ = "result_predictions"
    __table_args__ = ({"comment": "what a version in production said of results before its line learnt from them"},)

    model_id: Mapped[int] = mapped_column(ForeignKey("trained_models.id", ondelete="CASCADE"), primary_key=True)
    result_id: Mapped[int] = mapped_column(
        ForeignKey("calculation_results.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    property: Mapped[str] = mapped_column(primary_key=True)
    mean: Mapped[float] = mapped_column(comment="predicted, eV or Bohr magneton")
    std: Mapped[float] = mapped_column(comment="standard deviation, eV or Bohr magneton")
    half_width: Mapped[float] = mapped_column(comment="half of the 95 % interval, eV or Bohr magneton")


class ValidationPrediction(Table):
    """What a model predicts of a result that it was validated on and never trained on."""

    __tablename__ = "validation_predictions"
    __table_args__ = ({"comment": "what models predict of the results that they were validated on"},)

    model_id: Mapped[int] = mapped_column(ForeignKey("trained_models.id", ondelete="CASCADE"), primary_key=True)
    result_id: Mapped[int] = mapped_column(
        ForeignKey("calculation_results.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    property: Mapped[str] = mapped_column(primary_key=True)
    mean: Mapped[float] = mapped_column(comment="predicted, eV or Bohr magneton")
    std: Mapped[float] = mapped_column(comment="standard deviation, eV or Bohr magneton")


class QuarantinedResult(Table):
    """A result that no model learns from or is judged by, until a person releases it."""

    __tablename__ = "quarantined_results"
    __table_args__ = (
        CheckConstraint("state IN ('open', 'released', 'rejected')", name="state"),
        CheckConstraint("(state = 'open') = (decided_at IS NULL)", name="decided_at"),
        {"comment": "results that no model learns from or is judged by, until a person releases them"},
    )

    result_id: Mapped[int] = mapped_column(
        ForeignKey("calculation_results.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    model_id: Mapped[int | None] = mapped_column(
        ForeignKey("trained_models.id"), comment="whose predictions it contradicts; null: a person put it aside"
    )
    state: Mapped[str] = mapped_column(server_default="open", comment="open, released or rejected")
    batch: Mapped[str | None] = mapped_column(comment="the results that are put aside together; null for one alone")
    reason: Mapped[str] = mapped_column(comment="what is wrong with it, with numbers")
    put_aside_at: Mapped[datetime] = mapped_column(server_default=func.now())
    decided_at: Mapped[datetime | None] = mapped_column(comment="when a person released or rejected it")


class WatchedFolder(Table):
    """A folder from which results are taken as they appear."""

    __tablename__ = "watched_folders"
    __table_args__ = (
        UniqueConstraint("machine", "path"),
        {"comment": "folders from which results are taken as they appear"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    machine: Mapped[str] = mapped_column(comment="name of the machine that sees the path")
    path: Mapped[str] = mapped_column(comment="absolute")
    level_name: Mapped[str | None] = mapped_column(comment="level of theory of files that do not say theirs")
    host: Mapped[str | None] = mapped_column(comment="name of the host of files that do not say theirs")
    is_on: Mapped[bool] = mapped_column(server_default="true", comment="whether it is to be looked at")
    looked_at: Mapped[datetime | None] = mapped_column(comment="when that was done last")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WatchedFile(Table):
    """A file of a watched folder, as it was when it was seen last."""

    __tablename__ = "watched_files"
    __table_args__ = (
        CheckConstraint("outcome IN ('growing', 'taken', 'known', 'failed', 'refused')", name="outcome"),
        CheckConstraint("outcome NOT IN ('failed', 'refused') OR reason IS NOT NULL", name="reason"),
        CheckConstraint("size >= 0", name="size"),
        {"comment": "files of watched folders, and what became of them"},
    )

    folder_id: Mapped[int] = mapped_column(ForeignKey("watched_folders.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True, comment="relative to the folder")
    size: Mapped[int] = mapped_column(BigInteger, comment="bytes")
    modified: Mapped[float] = mapped_column(comment="time of its last change, seconds since 1970")
    sha256: Mapped[str | None] = mapped_column(comment="of its content, once it has been read")
    outcome: Mapped[str] = mapped_column(
        comment="growing (not read yet), taken, known, failed (the calculation) or refused (the file)"
    )
    reason: Mapped[str | None]
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
