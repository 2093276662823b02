"""Rounds of calculations on other machines, files that fail, and results that are withdrawn.

A calculation is exported and submitted there, without a lease of ours. A result that is withdrawn stays, marked, and
another one may take its place; the view `rests_on_retracted` says what rests on it.

Revision: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

VIEWS = """
CREATE VIEW round_progress AS
SELECT rounds.id AS round_id, coalesce(rounds.name, 'round ' || rounds.id) AS round, trained_models.name AS model,
    levels_of_theory.name AS level_of_theory, count(of_it.id) AS calculations,
    count(*) FILTER (WHERE of_it.state = 'proposed') AS proposed,
    count(*) FILTER (WHERE of_it.state = 'exported') AS exported,
    count(*) FILTER (WHERE of_it.state = 'submitted') AS submitted,
    count(*) FILTER (WHERE of_it.state = 'waiting') AS waiting,
    count(*) FILTER (WHERE of_it.state = 'running') AS running,
    count(*) FILTER (WHERE of_it.state = 'finished') AS finished,
    count(*) FILTER (WHERE of_it.state = 'failed') AS failed,
    folder, rounds.created_at,
    max(of_it.finished_at) AS last_finished_at
FROM rounds JOIN trained_models ON trained_models.id = rounds.model_id
    JOIN levels_of_theory ON levels_of_theory.id = rounds.level_id
    LEFT JOIN calculations AS of_it ON of_it.round_id = rounds.id
GROUP BY rounds.id, trained_models.name, levels_of_theory.name;
COMMENT ON VIEW round_progress IS 'how many calculations of each round are in which state';

CREATE VIEW rests_on_retracted AS
WITH RECURSIVE ancestry (model_id, ancestor_id) AS (
    SELECT id, id FROM trained_models
    UNION SELECT model_id, parent_id FROM ancestry JOIN trained_models ON trained_models.id = ancestor_id
    WHERE parent_id IS NOT NULL
), marked AS (
    SELECT DISTINCT ancestry.model_id, result_id FROM calculation_results
        JOIN model_training_results ON result_id = calculation_results.id
        JOIN ancestry ON ancestor_id = model_training_results.model_id
    WHERE retracted_at IS NOT NULL
)
SELECT 'model' AS kind, id, name, result_id FROM trained_models JOIN marked ON model_id = id
UNION ALL
SELECT 'campaign', id, name, result_id FROM campaigns JOIN marked USING (model_id)
UNION ALL
SELECT DISTINCT 'ranking', id, coalesce(name, 'ranking ' || id), result_id
FROM ranking_campaigns JOIN rankings ON id = ranking_id JOIN marked ON marked.model_id = ranking_campaigns.model_id;
COMMENT ON VIEW rests_on_retracted IS 'models, campaigns and rankings that rest on results which were withdrawn since';
"""
STATES = "state IN ('proposed', 'waiting', 'running', 'finished', 'failed')"
STATES_ELSEWHERE = "state IN ('proposed', 'exported', 'submitted', 'waiting', 'running', 'finished', 'failed')"


def upgrade() -> None:
    _widen_rounds()
    _create_failures()
    _let_results_be_withdrawn()
    _create_watched()
    op.execute(VIEWS)


def downgrade() -> None:
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM calculations WHERE state IN ('exported', 'submitted')) OR EXISTS "
        "(SELECT FROM calculation_results WHERE retracted_at IS NOT NULL) THEN RAISE EXCEPTION 'calculations that run "
        "elsewhere or results that are withdrawn are stored, which version 0005 does not know: finish or delete them "
        "before the downgrade'; END IF; END $$"
    )
    for view in ("rests_on_retracted", "round_progress"):
        op.execute(f"DROP VIEW {view}")
    for table in ("watched_files", "watched_folders", "calculation_failures"):
        op.drop_table(table)
    for index in ("uq_calculation_results_standing", op.f("ix_calculation_results_calculation_id")):
        op.drop_index(index, table_name="calculation_results")
    for column in ("retracted_at", "retraction"):
        op.drop_column("calculation_results", column)
    op.create_unique_constraint(
        op.f("uq_calculation_results_calculation_id"), "calculation_results", ["calculation_id"]
    )
    for column in ("worth", "expected_s", "exported_at", "submitted_at", "job"):
        op.drop_column("calculations", column)
    op.drop_constraint(op.f("ck_calculations_state"), "calculations", type_="check")
    op.create_check_constraint(op.f("ck_calculations_state"), "calculations", STATES)
    op.create_table_comment("calculations", "calculations; proposed ones wait for a person, waiting ones for a worker")
    for column in ("name", "folder"):
        op.drop_column("rounds", column)


def _widen_rounds() -> None:
    op.add_column("rounds", sa.Column("name", sa.Text(), nullable=True, comment="if it was given one"))
    op.add_column("rounds", sa.Column("folder", sa.Text(), nullable=True, comment="where its inputs were written last"))
    op.create_unique_constraint(op.f("uq_rounds_name"), "rounds", ["name"])
    op.add_column(
        "calculations",
        sa.Column(
            "worth", sa.Double(), nullable=True, comment="what its result is expected to be worth; as its round says"
        ),
    )
    op.add_column(
        "calculations",
        sa.Column("expected_s", sa.Double(), nullable=True, comment="how long it is expected to take, seconds"),
    )
    op.add_column(
        "calculations",
        sa.Column("exported_at", sa.DateTime(timezone=True), nullable=True, comment="when its inputs were written"),
    )
    op.add_column(
        "calculations",
        sa.Column(
            "submitted_at", sa.DateTime(timezone=True), nullable=True, comment="when it was given to another machine"
        ),
    )
    op.add_column("calculations", sa.Column("job", sa.Text(), nullable=True, comment="its number there"))
    op.create_table_comment(
        "calculations",
        "calculations; proposed ones wait for a person, waiting ones for a worker, exported ones for their submission, "
        "submitted ones run elsewhere",
        existing_comment="calculations; proposed ones wait for a person, waiting ones for a worker",
    )
    op.drop_constraint(op.f("ck_calculations_state"), "calculations", type_="check")
    rules = {
        "state": STATES_ELSEWHERE,
        "expected_s": "expected_s > 0 AND expected_s < 'Infinity'",
        "submitted_at": "state <> 'submitted' OR submitted_at IS NOT NULL",
    }
    for name, rule in rules.items():
        op.create_check_constraint(op.f(f"ck_calculations_{name}"), "calculations", rule)


def _create_failures() -> None:
    op.create_table(
        "calculation_failures",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("calculation_id", sa.Integer(), nullable=False),
        sa.Column("source_file_id", sa.Integer(), nullable=True, comment="the file that says so; null without one"),
        sa.Column("attempt", sa.Integer(), nullable=False, comment="from 1 on"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("failed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("attempt > 0", name=op.f("ck_calculation_failures_attempt")),
        sa.ForeignKeyConstraint(
            ["calculation_id"],
            ["calculations.id"],
            name=op.f("fk_calculation_failures_calculation_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["source_file_id"], ["source_files.id"], name=op.f("fk_calculation_failures_source_file_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_calculation_failures")),
        sa.UniqueConstraint("calculation_id", "attempt", name=op.f("uq_calculation_failures_calculation_id_attempt")),
        comment="failed attempts at calculations, with their reasons and files",
    )
    op.create_index(
        op.f("ix_calculation_failures_source_file_id"), "calculation_failures", ["source_file_id"], unique=False
    )


def _let_results_be_withdrawn() -> None:
    op.add_column(
        "calculation_results",
        sa.Column(
            "retracted_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when it was withdrawn; null while it stands",
        ),
    )
    op.add_column(
        "calculation_results", sa.Column("retraction", sa.Text(), nullable=True, comment="why it was withdrawn")
    )
    op.drop_constraint(op.f("uq_calculation_results_calculation_id"), "calculation_results", type_="unique")
    op.create_index(
        op.f("ix_calculation_results_calculation_id"), "calculation_results", ["calculation_id"], unique=False
    )
    op.create_index(
        "uq_calculation_results_standing",
        "calculation_results",
        ["calculation_id"],
        unique=True,
        postgresql_where=sa.text("retracted_at IS NULL"),
    )
    op.create_check_constraint(
        op.f("ck_calculation_results_retraction"),
        "calculation_results",
        "(retracted_at IS NULL) = (retraction IS NULL)",
    )


def _create_watched() -> None:
    op.create_table(
        "watched_folders",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("machine", sa.Text(), nullable=False, comment="name of the machine that sees the path"),
        sa.Column("path", sa.Text(), nullable=False, comment="absolute"),
        sa.Column("level_name", sa.Text(), nullable=True, comment="level of theory of files that do not say theirs"),
        sa.Column("host", sa.Text(), nullable=True, comment="name of the host of files that do not say theirs"),
        sa.Column(
            "is_on", sa.Boolean(), server_default="true", nullable=False, comment="whether it is to be looked at"
        ),
        sa.Column("looked_at", sa.DateTime(timezone=True), nullable=True, comment="when that was done last"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_watched_folders")),
        sa.UniqueConstraint("machine", "path", name=op.f("uq_watched_folders_machine_path")),
        comment="folders from which results are taken as they appear",
    )
    op.create_table(
        "watched_files",
        sa.Column("folder_id", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False, comment="relative to the folder"),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="bytes"),
        sa.Column("modified", sa.Double(), nullable=False, comment="time of its last change, seconds since 1970"),
        sa.Column("sha256", sa.Text(), nullable=True, comment="of its content, once it has been read"),
        sa.Column(
            "outcome",
            sa.Text(),
            nullable=False,
            comment="growing (not read yet), taken, known, failed (the calculation) or refused (the file)",
        ),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('growing', 'taken', 'known', 'failed', 'refused')", name=op.f("ck_watched_files_outcome")
        ),
        sa.CheckConstraint(
            "outcome NOT IN ('failed', 'refused') OR reason IS NOT NULL", name=op.f("ck_watched_files_reason")
        ),
        sa.CheckConstraint("size >= 0", name=op.f("ck_watched_files_size")),
        sa.ForeignKeyConstraint(
            ["folder_id"], ["watched_folders.id"], name=op.f("fk_watched_files_folder_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("folder_id", "path", name=op.f("pk_watched_files")),
        comment="files of watched folders, and what became of them",
    )
