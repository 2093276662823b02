"""Model lines: versions of a model, which of them is in production, and results that are put aside.

Every trained model becomes the first version of a line of its own, in production if it is finished. Two triggers keep
that so for what is written later: a model without a line founds one, and the first finished version of a line goes
into production. That two trainings of a line never run at once is a partial unique index.

Revision: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TRIGGERS = """
CREATE FUNCTION join_model_line() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.line_id IS NULL THEN
        INSERT INTO model_lines (name, level_id) VALUES (NEW.name, NEW.level_id) RETURNING id INTO NEW.line_id;
    END IF;
    IF NEW.version IS NULL THEN
        SELECT coalesce(max(version), 0) + 1 INTO NEW.version FROM trained_models WHERE line_id = NEW.line_id;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER trained_models_join BEFORE INSERT ON trained_models FOR EACH ROW EXECUTE FUNCTION join_model_line();

CREATE FUNCTION promote_first_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO promotions (line_id, model_id, reason)
        SELECT NEW.line_id, NEW.id, 'the first version of its line that is finished'
        WHERE NOT EXISTS (SELECT FROM promotions WHERE line_id = NEW.line_id);
    RETURN NULL;
END $$;

CREATE TRIGGER trained_models_promote AFTER INSERT OR UPDATE OF state ON trained_models
    FOR EACH ROW WHEN (NEW.state = 'finished') EXECUTE FUNCTION promote_first_version();
"""

VIEWS = """
CREATE VIEW models_in_production AS
SELECT DISTINCT ON (promotions.line_id) promotions.line_id, model_lines.name AS line, model_id,
    trained_models.name AS model, version, promotions.id AS promotion_id, promoted_at
FROM promotions JOIN model_lines ON model_lines.id = promotions.line_id
    JOIN trained_models ON trained_models.id = model_id
ORDER BY promotions.line_id, promotions.id DESC;
COMMENT ON VIEW models_in_production IS 'the version of each line that was promoted last';

CREATE VIEW campaign_progress AS
SELECT campaigns.id AS campaign_id, campaigns.name AS campaign, campaigns.state, storage, trained_models.name AS model,
    search_space_id, expected AS candidates, done AS candidates_done, expected - done AS candidates_left,
    n_matching AS candidates_matching, n_chunks AS chunks, chunks_done, chunks_running, chunks_failed,
    coalesce(n_workers, 0) AS workers, per_second, ((expected - done) / nullif(per_second, 0)) AS seconds_left,
    campaigns.started_at, campaigns.finished_at, coalesce(campaigns.error, chunk_error) AS error,
    models_in_production.model AS production, coalesce(models_in_production.model_id <> campaigns.model_id, false)
        AS is_stale
FROM campaigns JOIN search_spaces ON search_spaces.id = search_space_id
    LEFT JOIN trained_models ON trained_models.id = model_id
    LEFT JOIN models_in_production ON models_in_production.line_id = trained_models.line_id
    CROSS JOIN LATERAL (
        SELECT count(*) AS n_chunks, count(*) FILTER (WHERE chunks.state = 'finished') AS chunks_done,
            count(*) FILTER (WHERE chunks.state = 'running' AND lease_until >= now()) AS chunks_running,
            count(*) FILTER (WHERE chunks.state = 'failed') AS chunks_failed,
            coalesce(sum(coalesce(n_candidates, CASE chunks.state WHEN 'running' THEN rows_done END)), 0)::bigint
                AS done,
            sum(n_matching)::bigint AS n_matching,
            (array_agg(chunks.error ORDER BY chunks.id) FILTER (WHERE chunks.state = 'failed'))[1] AS chunk_error
        FROM chunks WHERE campaign_id = campaigns.id
    ) AS of_chunks
    LEFT JOIN LATERAL (
        SELECT count(*) AS n_workers, sum(campaign_workers.per_second) AS per_second
        FROM campaign_workers WHERE campaign_id = campaigns.id AND is_working
    ) AS of_workers ON true;
COMMENT ON VIEW campaign_progress IS
    'how far each campaign is; per_second of the workers that work on it now; stale: another model is in production';
"""


def upgrade() -> None:
    _create_lines()
    _number_versions()
    _create_history()
    _create_judgements()
    op.execute(TRIGGERS)
    op.execute("DROP VIEW campaign_progress")
    op.execute(VIEWS)


def downgrade() -> None:
    for view in ("campaign_progress", "models_in_production", "campaign_histograms", "campaign_workers"):
        op.execute(f"DROP VIEW {view}")
    op.execute("DROP TRIGGER trained_models_promote ON trained_models")
    op.execute("DROP TRIGGER trained_models_join ON trained_models")
    op.execute("DROP FUNCTION promote_first_version, join_model_line")
    for table in (
        "quarantined_results", "result_predictions", "model_comparison_errors", "model_comparisons", "promotions",
    ):  # fmt: skip
        op.drop_table(table)
    op.drop_index("uq_trained_models_open", table_name="trained_models")
    op.drop_constraint(op.f("fk_trained_models_line_id_level_id"), "trained_models", type_="foreignkey")
    for columns in ("line_id_version", "line_id_id"):
        op.drop_constraint(op.f(f"uq_trained_models_{columns}"), "trained_models", type_="unique")
    for column in ("examined_to", "snapshot_sha256", "version", "line_id"):
        op.drop_column("trained_models", column)
    op.drop_table("model_lines")
    op.execute(context.script.get_revision("0003").module.VIEWS)


def _create_lines() -> None:
    op.create_table(
        "model_lines",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("level_id", sa.Integer(), nullable=False),
        sa.Column(
            "hosts",
            sa.ARRAY(sa.Text()),
            server_default="{}",
            nullable=False,
            comment="names of the hosts whose results it learns from; empty: all",
        ),
        sa.Column(
            "datasets",
            sa.ARRAY(sa.Text()),
            server_default="{}",
            nullable=False,
            comment="names of the data sets that it learns from; empty: all",
        ),
        sa.Column("after_results", sa.Integer(), comment="retrain by itself after so many new results"),
        sa.Column("after_hours", sa.Double(), comment="retrain by itself when new results have waited so long, hours"),
        sa.Column(
            "when_drifting",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="retrain by itself when new results are outside the intervals too often",
        ),
        sa.Column(
            "rescore",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="start campaigns again with each version that a retraining promotes",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("after_results > 0", name=op.f("ck_model_lines_after_results")),
        sa.CheckConstraint("after_hours > 0 AND after_hours < 'Infinity'", name=op.f("ck_model_lines_after_hours")),
        sa.ForeignKeyConstraint(["level_id"], ["levels_of_theory.id"], name=op.f("fk_model_lines_level_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_lines")),
        sa.UniqueConstraint("name", name=op.f("uq_model_lines_name")),
        sa.UniqueConstraint("id", "level_id", name=op.f("uq_model_lines_id_level_id")),
        comment="models that live on in versions: what they learn from, and when they learn again",
    )


def _number_versions() -> None:
    """Every model is the first version of a line of its own, about the hosts that it has learnt from."""
    op.add_column("trained_models", sa.Column("line_id", sa.Integer()))
    op.add_column("trained_models", sa.Column("version", sa.Integer(), comment="number in its line, from 1 on"))
    op.add_column(
        "trained_models",
        sa.Column("snapshot_sha256", sa.Text(), comment="digest of the results, roles and labels that it learnt from"),
    )
    op.add_column(
        "trained_models",
        sa.Column(
            "examined_to",
            sa.Integer(),
            comment="largest id of the new results that it was asked about while it was in production",
        ),
    )
    op.execute(
        "INSERT INTO model_lines (name, level_id, hosts, created_at) SELECT name, level_id, "
        "ARRAY(SELECT DISTINCT hosts.name FROM model_training_results "
        "JOIN calculation_results ON calculation_results.id = result_id "
        "JOIN calculations ON calculations.id = calculation_id "
        "JOIN configurations ON configurations.id = configuration_id "
        "JOIN supercells ON supercells.id = supercell_id JOIN hosts ON hosts.id = host_id "
        "WHERE model_id = trained_models.id ORDER BY hosts.name), created_at FROM trained_models ORDER BY id"
    )
    op.execute(
        "UPDATE trained_models SET version = 1, line_id = model_lines.id FROM model_lines "
        "WHERE model_lines.name = trained_models.name"
    )
    for column in ("line_id", "version"):
        op.alter_column("trained_models", column, nullable=False)
    op.create_unique_constraint(op.f("uq_trained_models_line_id_version"), "trained_models", ["line_id", "version"])
    op.create_unique_constraint(op.f("uq_trained_models_line_id_id"), "trained_models", ["line_id", "id"])
    op.create_foreign_key(
        op.f("fk_trained_models_line_id_level_id"),
        "trained_models",
        "model_lines",
        ["line_id", "level_id"],
        ["id", "level_id"],
    )
    op.create_index(
        "uq_trained_models_open",
        "trained_models",
        ["line_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('waiting', 'running')"),
    )


def _create_history() -> None:
    op.create_table(
        "promotions",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("line_id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False, comment="the version that is in production from then on"),
        sa.Column("replaced_id", sa.Integer(), comment="the version that was in production before"),
        sa.Column("reason", sa.Text(), nullable=False, comment="with the errors that were measured"),
        sa.Column(
            "promoted_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("replaced_id <> model_id", name=op.f("ck_promotions_replaced")),
        sa.ForeignKeyConstraint(
            ["line_id", "model_id"],
            ["trained_models.line_id", "trained_models.id"],
            name=op.f("fk_promotions_line_id_model_id"),
        ),
        sa.ForeignKeyConstraint(
            ["line_id", "replaced_id"],
            ["trained_models.line_id", "trained_models.id"],
            name=op.f("fk_promotions_line_id_replaced_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_promotions")),
        comment="which version of a line went into production and when; the last one is there; never overwritten",
    )
    op.create_index(op.f("ix_promotions_line_id_id"), "promotions", ["line_id", "id"], unique=False)
    op.execute(
        "INSERT INTO promotions (line_id, model_id, reason, promoted_at) SELECT line_id, id, "
        "'the first version of its line that is finished', coalesce(finished_at, created_at) "
        "FROM trained_models WHERE state = 'finished' ORDER BY id"
    )
    op.create_table(
        "model_comparisons",
        sa.Column("challenger_id", sa.Integer(), nullable=False),
        sa.Column("champion_id", sa.Integer(), nullable=False, comment="in production when the challenger was ready"),
        sa.Column("n_rows", sa.Integer(), nullable=False, comment="rows that neither of them has learnt from"),
        sa.Column("ratio", sa.Double(), comment="errors of the challenger over those of the champion"),
        sa.Column("ratio_low", sa.Double(), comment="lower end of its 95 % interval"),
        sa.Column("ratio_high", sa.Double(), comment="upper end of its 95 % interval"),
        sa.Column("is_promoted", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False, comment="why it is promoted, or is not"),
        sa.Column(
            "compared_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint(
            "num_nulls(ratio, ratio_low, ratio_high) IN (0, 3)", name=op.f("ck_model_comparisons_ratio")
        ),
        sa.ForeignKeyConstraint(
            ["challenger_id"],
            ["trained_models.id"],
            name=op.f("fk_model_comparisons_challenger_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["champion_id"], ["trained_models.id"], name=op.f("fk_model_comparisons_champion_id")),
        sa.PrimaryKeyConstraint("challenger_id", name=op.f("pk_model_comparisons")),
        comment="retrained versions against the version in production, on the same rows",
    )
    op.create_table(
        "model_comparison_errors",
        sa.Column("challenger_id", sa.Integer(), nullable=False),
        sa.Column("dataset", sa.Text(), nullable=False),
        sa.Column("property", sa.Text(), nullable=False),
        sa.Column("n_rows", sa.Integer(), nullable=False),
        sa.Column(
            "champion_mae",
            sa.Double(),
            nullable=False,
            comment="mean absolute error of the champion, eV or Bohr magneton",
        ),
        sa.Column(
            "challenger_mae",
            sa.Double(),
            nullable=False,
            comment="mean absolute error of the challenger, eV or Bohr magneton",
        ),
        sa.ForeignKeyConstraint(
            ["challenger_id"],
            ["model_comparisons.challenger_id"],
            name=op.f("fk_model_comparison_errors_challenger_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("challenger_id", "dataset", "property", name=op.f("pk_model_comparison_errors")),
        comment="errors of challenger and champion on rows that neither of them has learnt from",
    )


def _create_judgements() -> None:
    op.create_table(
        "result_predictions",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("result_id", sa.Integer(), nullable=False),
        sa.Column("property", sa.Text(), nullable=False),
        sa.Column("mean", sa.Double(), nullable=False, comment="predicted, eV or Bohr magneton"),
        sa.Column("std", sa.Double(), nullable=False, comment="standard deviation, eV or Bohr magneton"),
        sa.Column("half_width", sa.Double(), nullable=False, comment="half of the 95 % interval, eV or Bohr magneton"),
        sa.ForeignKeyConstraint(
            ["model_id"], ["trained_models.id"], name=op.f("fk_result_predictions_model_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["result_id"],
            ["calculation_results.id"],
            name=op.f("fk_result_predictions_result_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("model_id", "result_id", "property", name=op.f("pk_result_predictions")),
        comment="what a version in production said of results before its line learnt from them",
    )
    op.create_index(op.f("ix_result_predictions_result_id"), "result_predictions", ["result_id"], unique=False)
    op.create_table(
        "quarantined_results",
        sa.Column("result_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("model_id", sa.Integer(), comment="whose predictions it contradicts; null: a person put it aside"),
        sa.Column("state", sa.Text(), server_default="open", nullable=False, comment="open, released or rejected"),
        sa.Column("batch", sa.Text(), comment="the results that are put aside together; null for one alone"),
        sa.Column("reason", sa.Text(), nullable=False, comment="what is wrong with it, with numbers"),
        sa.Column("put_aside_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), comment="when a person released or rejected it"),
        sa.CheckConstraint("state IN ('open', 'released', 'rejected')", name=op.f("ck_quarantined_results_state")),
        sa.CheckConstraint("(state = 'open') = (decided_at IS NULL)", name=op.f("ck_quarantined_results_decided_at")),
        sa.ForeignKeyConstraint(["model_id"], ["trained_models.id"], name=op.f("fk_quarantined_results_model_id")),
        sa.ForeignKeyConstraint(
            ["result_id"],
            ["calculation_results.id"],
            name=op.f("fk_quarantined_results_result_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("result_id", name=op.f("pk_quarantined_results")),
        comment="results that no model learns from or is judged by, until a person releases them",
    )
