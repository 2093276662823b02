"""Open designs, which are ranked again with every new version of a model, and loops that drive them.

Revision: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_designs()
    _create_loops()


def downgrade() -> None:
    for table in ("loop_steps", "loops"):
        op.drop_table(table)
    op.drop_column("rankings", "design_id")
    op.drop_table("designs")


def _create_designs() -> None:
    op.create_table(
        "designs",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("query", postgresql.JSONB(), nullable=False, comment="the design query, as rankings have it"),
        sa.Column("line_id", sa.Integer(), nullable=False, comment="whose versions it is ranked by"),
        sa.Column(
            "is_open", sa.Boolean(), server_default="true", nullable=False, comment="whether it is to be ranked again"
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["line_id"], ["model_lines.id"], name=op.f("fk_designs_line_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_designs")),
        sa.UniqueConstraint("name", name=op.f("uq_designs_name")),
        comment="design queries with names; open ones are ranked again with every new version",
    )
    op.add_column(
        "rankings", sa.Column("design_id", sa.Integer(), nullable=True, comment="the open design that it was made for")
    )
    op.create_index(op.f("ix_rankings_design_id"), "rankings", ["design_id"], unique=False)
    op.create_foreign_key(
        op.f("fk_rankings_design_id"), "rankings", "designs", ["design_id"], ["id"], ondelete="SET NULL"
    )


def _create_loops() -> None:
    op.create_table(
        "loops",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("design_id", sa.Integer(), nullable=False),
        sa.Column("line_id", sa.Integer(), nullable=False, comment="the model that learns"),
        sa.Column("level_id", sa.Integer(), nullable=False, comment="of the calculations"),
        sa.Column(
            "calculator",
            sa.Text(),
            nullable=False,
            comment="builtin: our workers calculate; external: somebody else does",
        ),
        sa.Column("batch", sa.Integer(), nullable=False, comment="calculations of a round"),
        sa.Column("max_calculations", sa.Integer(), nullable=False, comment="it ends when so many were made"),
        sa.Column(
            "patience",
            sa.Integer(),
            nullable=False,
            comment="it ends after so many rankings without a change among the best",
        ),
        sa.Column("top", sa.Integer(), nullable=False, comment="so many rows of a ranking count as its best"),
        sa.Column(
            "only_stored",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="whether only configurations are proposed that an import brought without results",
        ),
        sa.Column(
            "keep_campaigns",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="whether campaigns of versions before the last two stay",
        ),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column(
            "state",
            sa.Text(),
            server_default="running",
            nullable=False,
            comment="running, paused, stopped (by a person), finished or failed",
        ),
        sa.Column(
            "stage",
            sa.Text(),
            server_default="rank",
            nullable=False,
            comment="what is done now: rank, propose, calculate, learn or rescore",
        ),
        sa.Column("round_id", sa.Integer(), nullable=True, comment="the round that is calculated now"),
        sa.Column("error", sa.Text(), nullable=True, comment="why it failed"),
        sa.Column("remark", sa.Text(), nullable=True, comment="why it ended, or what it waits for"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state IN ('running', 'paused')) = (finished_at IS NULL)", name=op.f("ck_loops_finished_at")
        ),
        sa.CheckConstraint("calculator IN ('builtin', 'external')", name=op.f("ck_loops_calculator")),
        sa.CheckConstraint(
            "stage IN ('rank', 'propose', 'calculate', 'learn', 'rescore')", name=op.f("ck_loops_stage")
        ),
        sa.CheckConstraint("state <> 'failed' OR error IS NOT NULL", name=op.f("ck_loops_failed_has_error")),
        sa.CheckConstraint(
            "state IN ('running', 'paused', 'stopped', 'finished', 'failed')", name=op.f("ck_loops_state")
        ),
        sa.CheckConstraint(
            "batch > 0 AND max_calculations > 0 AND patience > 0 AND top > 0", name=op.f("ck_loops_numbers")
        ),
        sa.ForeignKeyConstraint(["design_id"], ["designs.id"], name=op.f("fk_loops_design_id")),
        sa.ForeignKeyConstraint(["level_id"], ["levels_of_theory.id"], name=op.f("fk_loops_level_id")),
        sa.ForeignKeyConstraint(["line_id"], ["model_lines.id"], name=op.f("fk_loops_line_id")),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name=op.f("fk_loops_round_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_loops")),
        sa.UniqueConstraint("name", name=op.f("uq_loops_name")),
        comment="loops of ranking, calculating and learning; a worker advances each by one stage at a time",
    )
    op.create_index(op.f("ix_loops_design_id"), "loops", ["design_id"], unique=False)
    op.create_index("ix_loops_running", "loops", ["id"], unique=False, postgresql_where=sa.text("state = 'running'"))
    op.create_table(
        "loop_steps",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("loop_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, comment="from 1 on, over all stages"),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=True, comment="the version that did it"),
        sa.Column("ranking_id", sa.Integer(), nullable=True),
        sa.Column("round_id", sa.Integer(), nullable=True),
        sa.Column("n_calculated", sa.Integer(), nullable=True, comment="calculations made so far"),
        sa.Column(
            "best",
            sa.Double(),
            nullable=True,
            comment="best calculated value of what the design sorts by, eV or Bohr magneton",
        ),
        sa.Column(
            "n_changed", sa.Integer(), nullable=True, comment="of the best rows, those that were not among them before"
        ),
        sa.Column(
            "mae",
            sa.Double(),
            nullable=True,
            comment="mean absolute error of the version on validation rows, eV or Bohr magneton",
        ),
        sa.Column(
            "started_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("remark", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "stage IN ('rank', 'propose', 'calculate', 'learn', 'rescore')", name=op.f("ck_loop_steps_stage")
        ),
        sa.CheckConstraint("number > 0", name=op.f("ck_loop_steps_number")),
        sa.ForeignKeyConstraint(["loop_id"], ["loops.id"], name=op.f("fk_loop_steps_loop_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["model_id"], ["trained_models.id"], name=op.f("fk_loop_steps_model_id")),
        sa.ForeignKeyConstraint(
            ["ranking_id"], ["rankings.id"], name=op.f("fk_loop_steps_ranking_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name=op.f("fk_loop_steps_round_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_loop_steps")),
        sa.UniqueConstraint("loop_id", "number", name=op.f("uq_loop_steps_loop_id_number")),
        comment="stages that loops have been through",
    )
