"""Designs that are ranked again with every new version of a model, and loops that calculate until they stand still."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from screening.database.tables.base import Table

STAGES = ("rank", "propose", "calculate", "learn", "rescore")
_STAGES = ", ".join(f"'{stage}'" for stage in STAGES)


class Design(Table):
    """A design query with a name, which is ranked again as the predictions get better while it is open."""

    __tablename__ = "designs"
    __table_args__ = ({"comment": "design queries with names; open ones are ranked again with every new version"},)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    query: Mapped[dict[str, Any]] = mapped_column(comment="the design query, as rankings have it")
    line_id: Mapped[int] = mapped_column(ForeignKey("model_lines.id"), comment="whose versions it is ranked by")
    is_open: Mapped[bool] = mapped_column(server_default="true", comment="whether it is to be ranked again")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Loop(Table):
    """Rank, propose, calculate, learn, rescore, and again until the best candidates of a design stand still."""

    __tablename__ = "loops"
    __table_args__ = (
        CheckConstraint("calculator IN ('builtin', 'external')", name="calculator"),
        CheckConstraint("state IN ('running', 'paused', 'stopped', 'finished', 'failed')", name="state"),
        CheckConstraint(f"stage IN ({_STAGES})", name="stage"),
        CheckConstraint("batch > 0 AND max_calculations > 0 AND patience > 0 AND top > 0", name="numbers"),
        CheckConstraint("state <> 'failed' OR error IS NOT NULL", name="failed_has_error"),
        CheckConstraint("(state IN ('running', 'paused')) = (finished_at IS NULL)", name="finished_at"),
        Index("ix_loops_running", "id", postgresql_where=text("state = 'running'")),
        {"comment": "loops of ranking, calculating and learning; a worker advances each by one stage at a time"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    design_id: Mapped[int] = mapped_column(ForeignKey("designs.id"), index=True)
    line_id: Mapped[int] = mapped_column(ForeignKey("model_lines.id"), comment="the model that learns")
    level_id: Mapped[int] = mapped_column(ForeignKey("levels_of_theory.id"), comment="of the calculations")
    calculator: Mapped[str] = mapped_column(comment="builtin: our workers calculate; external: somebody else does")
    batch: Mapped[int] = mapped_column(comment="calculations of a round")
    max_calculations: Mapped[int] = mapped_column(comment="it ends when so many were made")
    patience: Mapped[int] = mapped_column(comment="it ends after so many rankings without a change among the best")
    top: Mapped[int] = mapped_column(comment="so many rows of a ranking count as its best")
    only_stored: Mapped[bool] = mapped_column(
        server_default="false",
        comment="whether only configurations are proposed that an import brought without results",
    )
    keep_campaigns: Mapped[bool] = mapped_column(
        server_default="false", comment="whether campaigns of versions before the last two stay"
    )
    seed: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(
        server_default="running", comment="running, paused, stopped (by a person), finished or failed"
    )
    stage: Mapped[str] = mapped_column(
        server_default="rank", comment="what is done now: rank, propose, calculate, learn or rescore"
    )
    round_id: Mapped[int | None] = mapped_column(ForeignKey("rounds.id"), comment="the round that is calculated now")
    error: Mapped[str | None] = mapped_column(comment="why it failed")
    remark: Mapped[str | None] = mapped_column(comment="why it ended, or what it waits for")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class LoopStep(Table):
    """A stage that a loop has been through, with what came of it."""

    __tablename__ = "loop_steps"
    __table_args__ = (
        UniqueConstraint("loop_id", "number"),
        CheckConstraint("number > 0", name="number"),
        CheckConstraint(f"stage IN ({_STAGES})", name="stage"),
        {"comment": "stages that loops have been through"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    loop_id: Mapped[int] = mapped_column(ForeignKey("loops.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(comment="from 1 on, over all stages")
    stage: Mapped[str]
    model_id: Mapped[int | None] = mapped_column(ForeignKey("trained_models.id"), comment="the version that did it")
    ranking_id: Mapped[int | None] = mapped_column(ForeignKey("rankings.id", ondelete="SET NULL"))
    round_id: Mapped[int | None] = mapped_column(ForeignKey("rounds.id"))
    n_calculated: Mapped[int | None] = mapped_column(comment="calculations made so far")
    best: Mapped[float | None] = mapped_column(
        comment="best calculated value of what the design sorts by, eV or Bohr magneton"
    )
    n_changed: Mapped[int | None] = mapped_column(comment="of the best rows, those that were not among them before")
    mae: Mapped[float | None] = mapped_column(
        comment="mean absolute error of the version on validation rows, eV or Bohr magneton"
    )
    started_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    finished_at: Mapped[datetime | None]
    remark: Mapped[str | None]
