"""Campaigns: a search space, a model and how much of it is kept; candidates and predictions in one row.

Candidates and predictions of version 0002 are dropped: a campaign makes them again, 100 times faster than they were
made. Rankings keep what they had found. Functions make, index and check the partition of a campaign, so that no
program needs to know how; views show its progress.

Revision: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

PROPERTIES = {
    "formation_energy": "formation energy, eV",
    "formation_energy_per_site": "formation energy per defect site, eV",
    "homo_lumo_gap_min": "smaller HOMO-LUMO gap of the two spin channels, eV",
    "homo_lumo_gap_majority": "HOMO-LUMO gap of the majority spin channel, eV",
    "homo_lumo_gap_minority": "HOMO-LUMO gap of the minority spin channel, eV",
    "homo": "highest occupied level of either spin, eV",
    "lumo": "lowest unoccupied level of either spin, eV",
    "total_mag": "total magnetisation, Bohr magneton",
}

FUNCTIONS = """
CREATE FUNCTION add_campaign_partition(campaign integer) RETURNS void LANGUAGE plpgsql AS $$
-- attached, not created as a partition: that would lock out whoever reads or writes another campaign
BEGIN
    EXECUTE format('CREATE TABLE candidates_%s (LIKE candidates INCLUDING ALL)', campaign);
    EXECUTE format('ALTER TABLE candidates ATTACH PARTITION candidates_%s FOR VALUES IN (%s)', campaign, campaign);
END $$;

CREATE FUNCTION drop_campaign_partition(campaign integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('DROP TABLE candidates_%s', campaign);
END $$;

CREATE FUNCTION index_campaign_partition(campaign integer) RETURNS void LANGUAGE plpgsql AS $$
-- a campaign is loaded chunk by chunk, so that ids rise along the table and a BRIN index is enough for them
DECLARE name text := format('candidates_%s', campaign);
BEGIN
    EXECUTE format('CREATE INDEX IF NOT EXISTS %I ON %I USING brin (id)', name || '_id', name);
    IF EXISTS (SELECT FROM campaigns WHERE id = campaign AND model_id IS NOT NULL) THEN
        EXECUTE format('CREATE INDEX IF NOT EXISTS %I ON %I (formation_energy_per_site_mean, homo_lumo_gap_min_mean)',
            name || '_energy', name);
        EXECUTE format('CREATE INDEX IF NOT EXISTS %I ON %I (homo_lumo_gap_min_mean, formation_energy_per_site_mean)',
            name || '_gap', name);
    END IF;
    EXECUTE format('ANALYZE %I', name);
END $$;

CREATE FUNCTION check_campaign_is_complete() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    n_open bigint;
    counted bigint;
    matching bigint;
    wanted bigint;
    stored bigint;
    n_different bigint;
BEGIN
    SELECT count(*) FILTER (WHERE state <> 'finished'), coalesce(sum(n_candidates), 0), coalesce(sum(n_matching), 0)
        INTO n_open, counted, matching FROM chunks WHERE campaign_id = NEW.id;
    SELECT expected INTO wanted FROM search_spaces WHERE id = NEW.search_space_id;
    SELECT count(*) INTO n_different FROM (
        SELECT composition_id, sum(chunk_counts.n_candidates) AS counted_here
        FROM chunk_counts JOIN chunks ON chunks.id = chunk_id
        WHERE campaign_id = NEW.id GROUP BY composition_id
    ) AS of_chunks
    FULL JOIN (SELECT * FROM search_space_counts WHERE search_space_id = NEW.search_space_id) AS exact
        USING (composition_id)
    WHERE counted_here IS DISTINCT FROM expected;
    EXECUTE format('SELECT count(*) FROM candidates_%s', NEW.id) INTO stored;
    IF n_open > 0 OR counted <> wanted OR n_different > 0 OR (NEW.storage = 'all' AND stored <> wanted)
        OR (NEW.storage = 'best' AND stored <> least(matching, (NEW.query ->> 'limit')::bigint)) THEN
        RAISE EXCEPTION 'campaign % is not complete: % open chunks, % of % counted, % stored, % compositions differ',
            NEW.name, n_open, counted, wanted, stored, n_different
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_campaigns_is_complete', TABLE = 'campaigns';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER campaigns_finish BEFORE INSERT OR UPDATE OF state ON campaigns
    FOR EACH ROW WHEN (NEW.state = 'finished') EXECUTE FUNCTION check_campaign_is_complete();
"""

VIEWS = """
CREATE VIEW campaign_workers AS
SELECT campaign_id, worker, count(*) FILTER (WHERE is_finished) AS chunks_done, sum(n_rows)::bigint AS candidates,
    (sum(n_rows) FILTER (WHERE is_recent) / nullif(sum(seconds) FILTER (WHERE is_recent), 0))::double precision
        AS per_second,
    bool_or(is_held) AS is_working, max(heartbeat) AS heartbeat, max(peak_memory_mb) AS peak_memory_mb
FROM (
    SELECT campaign_id, worker, n_candidates AS n_rows, worked_s AS seconds, true AS is_finished, false AS is_held,
        finished_at > now() - interval '15 minutes' AS is_recent, finished_at AS heartbeat, peak_memory_mb
    FROM chunks WHERE state = 'finished'
    UNION ALL
    SELECT campaign_id, regexp_replace(lease_owner, ':[^:]*$', ''), rows_done,
        extract(epoch FROM heartbeat - started_at), false, lease_until >= now(), true, heartbeat, NULL
    FROM chunks WHERE state = 'running'
) AS worked GROUP BY campaign_id, worker;
COMMENT ON VIEW campaign_workers IS 'what each worker process has done for a campaign, and how fast of late';

CREATE VIEW campaign_progress AS
SELECT campaigns.id AS campaign_id, campaigns.name AS campaign, campaigns.state, storage, trained_models.name AS model,
    search_space_id, expected AS candidates, done AS candidates_done, expected - done AS candidates_left,
    n_matching AS candidates_matching, n_chunks AS chunks, chunks_done, chunks_running, chunks_failed,
    coalesce(n_workers, 0) AS workers, per_second, ((expected - done) / nullif(per_second, 0)) AS seconds_left,
    campaigns.started_at, campaigns.finished_at, coalesce(campaigns.error, chunk_error) AS error
FROM campaigns JOIN search_spaces ON search_spaces.id = search_space_id
    LEFT JOIN trained_models ON trained_models.id = model_id
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
COMMENT ON VIEW campaign_progress IS 'how far each campaign is; per_second of the workers that work on it now';

CREATE VIEW campaign_histograms AS
SELECT campaign_id, campaign_bins.property, (bin - 1)::integer AS bin,
    CASE WHEN bin > 1 THEN low + (bin - 2) * (high - low) / n_bins END AS low,
    CASE WHEN bin <= n_bins + 1 THEN low + (bin - 1) * (high - low) / n_bins END AS high,
    sum(n)::bigint AS candidates
FROM campaign_bins JOIN chunks USING (campaign_id)
    JOIN chunk_histograms ON chunk_id = chunks.id AND chunk_histograms.property = campaign_bins.property
    CROSS JOIN LATERAL unnest(counts) WITH ORDINALITY AS counted (n, bin)
GROUP BY campaign_id, campaign_bins.property, bin, campaign_bins.low, campaign_bins.high, n_bins;
COMMENT ON VIEW campaign_histograms IS
    'candidates by predicted mean: bin 0 is open below and the last one above, the others hold low <= mean < high';
"""


def upgrade() -> None:
    _create_definitions()
    _keep_rankings()
    context.script.get_revision("0001").module.drop_candidates()
    _create_chunks()
    _create_candidates()
    op.execute(FUNCTIONS)
    op.execute(VIEWS)


def downgrade() -> None:
    # the rows of a ranking point at candidates there, and there are none any more
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM rankings) THEN RAISE EXCEPTION 'rankings are stored, which version 0002 "
        "cannot keep without their candidates: delete them before the downgrade'; END IF; END $$"
    )
    for view in ("campaign_histograms", "campaign_progress", "campaign_workers"):
        op.execute(f"DROP VIEW {view}")
    op.drop_constraint(op.f("ck_ranking_rows_defects"), "ranking_rows", type_="check")
    for column in ("sites", "defect_types", "multiplicity"):
        op.drop_column("ranking_rows", column)
    op.drop_column("rankings", "campaign_id")
    for table in (
        "candidates", "chunk_histograms", "chunk_counts", "chunks", "campaign_bins", "campaigns",
        "search_space_counts", "arrangements",
    ):  # fmt: skip
        op.drop_table(table)
    op.execute(
        "DROP FUNCTION add_campaign_partition, drop_campaign_partition, index_campaign_partition, "
        "check_campaign_is_complete"
    )
    context.script.get_revision("0001").module.create_candidates()
    op.alter_column("ranking_rows", "candidate_id", existing_type=sa.BigInteger(), comment=None)
    op.create_table_comment("ranking_rows", "candidates of a ranking in their order")
    op.create_foreign_key(op.f("fk_ranking_rows_candidate_id"), "ranking_rows", "candidates", ["candidate_id"], ["id"])


def _create_definitions() -> None:
    op.create_table(
        "arrangements",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("composition_id", sa.Integer(), nullable=False),
        sa.Column("defect_types", sa.ARRAY(sa.SmallInteger()), nullable=False, comment="ids of defect types"),
        sa.CheckConstraint("cardinality(defect_types) > 0", name=op.f("ck_arrangements_defect_types")),
        sa.ForeignKeyConstraint(["composition_id"], ["compositions.id"], name=op.f("fk_arrangements_composition_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_arrangements")),
        sa.UniqueConstraint("defect_types", name=op.f("uq_arrangements_defect_types")),
        comment="defect types in the order of the sites of a configuration; candidates share them",
    )
    op.create_index(op.f("ix_arrangements_composition_id"), "arrangements", ["composition_id"], unique=False)
    op.create_table(
        "campaigns",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("search_space_id", sa.Integer(), nullable=False),
        sa.Column(
            "model_id", sa.Integer(), nullable=True, comment="that scores the candidates; null: they are only stored"
        ),
        sa.Column(
            "storage",
            sa.Text(),
            nullable=False,
            comment="all: every candidate is kept; best: those that the query ranks first",
        ),
        sa.Column(
            "query",
            postgresql.JSONB(),
            nullable=True,
            comment="the design query of storage best, with its limit",
        ),
        sa.Column(
            "cutoff",
            sa.Double(),
            nullable=True,
            comment="sort key (design_query.sort_key) beyond which rows are no longer among the best",
        ),
        sa.Column(
            "state",
            sa.Text(),
            server_default="planned",
            nullable=False,
            comment="planned, running, paused, cancelled, incomplete (some chunks failed) or finished",
        ),
        sa.Column("error", sa.Text(), nullable=True, comment="why it is incomplete"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True, comment="when it was first started"),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(state = 'finished') = (finished_at IS NOT NULL)", name=op.f("ck_campaigns_finished_at")),
        sa.CheckConstraint("(storage = 'best') = (query IS NOT NULL)", name=op.f("ck_campaigns_best_has_query")),
        sa.CheckConstraint(
            "state <> 'incomplete' OR error IS NOT NULL", name=op.f("ck_campaigns_incomplete_has_error")
        ),
        sa.CheckConstraint(
            "state IN ('planned', 'running', 'paused', 'cancelled', 'incomplete', 'finished')",
            name=op.f("ck_campaigns_state"),
        ),
        sa.CheckConstraint("storage = 'all' OR model_id IS NOT NULL", name=op.f("ck_campaigns_best_has_model")),
        sa.CheckConstraint("storage IN ('all', 'best')", name=op.f("ck_campaigns_storage")),
        sa.ForeignKeyConstraint(["model_id"], ["trained_models.id"], name=op.f("fk_campaigns_model_id")),
        sa.ForeignKeyConstraint(["search_space_id"], ["search_spaces.id"], name=op.f("fk_campaigns_search_space_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_campaigns")),
        sa.UniqueConstraint("name", name=op.f("uq_campaigns_name")),
        comment="scans of search spaces; finished only when the exact count is reached, which a trigger checks",
    )
    op.create_index(op.f("ix_campaigns_model_id"), "campaigns", ["model_id"], unique=False)
    op.create_index(
        "uq_campaigns_all",
        "campaigns",
        ["search_space_id", "model_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("storage = 'all'"),
    )
    op.create_table(
        "search_space_counts",
        sa.Column("search_space_id", sa.Integer(), nullable=False),
        sa.Column("composition_id", sa.Integer(), nullable=False),
        sa.Column("expected", sa.BigInteger(), nullable=False, comment="number of candidates by Burnside's lemma"),
        sa.CheckConstraint("expected > 0", name=op.f("ck_search_space_counts_expected")),
        sa.ForeignKeyConstraint(
            ["composition_id"], ["compositions.id"], name=op.f("fk_search_space_counts_composition_id")
        ),
        sa.ForeignKeyConstraint(
            ["search_space_id"],
            ["search_spaces.id"],
            name=op.f("fk_search_space_counts_search_space_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("search_space_id", "composition_id", name=op.f("pk_search_space_counts")),
        comment="exact numbers of candidates by composition",
    )
    op.create_table(
        "campaign_bins",
        sa.Column("campaign_id", sa.Integer(), nullable=False),
        sa.Column("property", sa.Text(), nullable=False),
        sa.Column("low", sa.Double(), nullable=False, comment="lower end of the first bin, eV or Bohr magneton"),
        sa.Column("high", sa.Double(), nullable=False, comment="upper end of the last bin, eV or Bohr magneton"),
        sa.Column("n_bins", sa.Integer(), nullable=False, comment="bins of equal width between them"),
        sa.CheckConstraint("low < high AND n_bins > 0", name=op.f("ck_campaign_bins_bins")),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaigns.id"], name=op.f("fk_campaign_bins_campaign_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("campaign_id", "property", name=op.f("pk_campaign_bins")),
        comment="bins of the histograms of predicted means",
    )


def _keep_rankings() -> None:
    """Rows of rankings get what they took from their candidates."""
    op.add_column(
        "rankings", sa.Column("campaign_id", sa.Integer(), nullable=True, comment="null once the campaign is deleted")
    )
    op.create_index(op.f("ix_rankings_campaign_id"), "rankings", ["campaign_id"], unique=False)
    op.create_foreign_key(
        op.f("fk_rankings_campaign_id"), "rankings", "campaigns", ["campaign_id"], ["id"], ondelete="SET NULL"
    )
    op.drop_constraint(op.f("fk_ranking_rows_candidate_id"), "ranking_rows", type_="foreignkey")
    op.add_column("ranking_rows", sa.Column("sites", sa.ARRAY(sa.SmallInteger())))
    op.add_column("ranking_rows", sa.Column("defect_types", sa.ARRAY(sa.SmallInteger())))
    op.add_column("ranking_rows", sa.Column("multiplicity", sa.Integer()))
    op.execute(
        "UPDATE ranking_rows SET sites = candidates.sites, defect_types = candidates.defect_types, "
        "multiplicity = candidates.multiplicity FROM candidates WHERE candidates.id = candidate_id"
    )
    for column in ("sites", "defect_types", "multiplicity"):
        op.alter_column("ranking_rows", column, nullable=False)
    op.alter_column(
        "ranking_rows", "candidate_id", existing_type=sa.BigInteger(), comment="candidates.id in the ranking's campaign"
    )
    op.create_check_constraint(
        op.f("ck_ranking_rows_defects"), "ranking_rows", "cardinality(sites) = cardinality(defect_types)"
    )
    op.create_table_comment("ranking_rows", "candidates of a ranking in their order; they outlive their campaign")


def _create_chunks() -> None:
    op.create_table(
        "chunks",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("campaign_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column(
            "scores",
            sa.Boolean(),
            nullable=False,
            comment="whether a model scores it: work for the queue gpu, else cpu",
        ),
        sa.Column("n_defects", sa.SmallInteger(), nullable=False),
        sa.Column("first_sites", sa.ARRAY(sa.SmallInteger()), nullable=False, comment="sites of the first prefix"),
        sa.Column("first_defect_types", sa.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column(
            "last_sites",
            sa.ARRAY(sa.SmallInteger()),
            nullable=False,
            comment="sites of the last prefix, which belongs to the chunk",
        ),
        sa.Column("last_defect_types", sa.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column(
            "heartbeat", sa.DateTime(timezone=True), nullable=True, comment="when its worker last said that it is alive"
        ),
        sa.Column(
            "rows_done",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="candidates that the present attempt has been through",
        ),
        sa.Column("n_candidates", sa.BigInteger(), nullable=True, comment="candidates, exactly"),
        sa.Column("n_configurations", sa.BigInteger(), nullable=True, comment="sum of their multiplicities"),
        sa.Column("n_matching", sa.BigInteger(), nullable=True, comment="candidates that satisfy the campaign's query"),
        sa.Column(
            "checksum",
            sa.BigInteger(),
            nullable=True,
            comment="of sites, defect types and multiplicities, whatever their order",
        ),
        sa.Column("worker", sa.Text(), nullable=True, comment="host and process that finished it"),
        sa.Column("worked_s", sa.Double(), nullable=True, comment="seconds that this took"),
        sa.Column(
            "peak_memory_mb", sa.Double(), nullable=True, comment="largest resident size of the worker so far, MB"
        ),
        sa.Column(
            "state", sa.Text(), server_default="waiting", nullable=False, comment="waiting, running, finished or failed"
        ),
        sa.Column(
            "attempts", sa.Integer(), server_default="0", nullable=False, comment="how often a worker has begun it"
        ),
        sa.Column("lease_owner", sa.Text(), nullable=True, comment="worker that holds it"),
        sa.Column(
            "lease_until",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="after this time another worker may take it",
        ),
        sa.Column("error", sa.Text(), nullable=True, comment="why it failed, or why the last attempt did"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'running') = (lease_owner IS NOT NULL AND lease_until IS NOT NULL)", name=op.f("ck_chunks_lease")
        ),
        sa.CheckConstraint(
            "num_nulls(n_candidates, n_configurations, checksum, worker, worked_s) "
            "= CASE state WHEN 'finished' THEN 0 ELSE 5 END",
            name=op.f("ck_chunks_finished_is_counted"),
        ),
        sa.CheckConstraint("state <> 'failed' OR error IS NOT NULL", name=op.f("ck_chunks_failed_has_error")),
        sa.CheckConstraint(
            "state IN ('planned', 'waiting', 'running', 'finished', 'failed')", name=op.f("ck_chunks_state")
        ),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_chunks_attempts")),
        sa.CheckConstraint(
            "cardinality(first_sites) = cardinality(first_defect_types) "
            "AND cardinality(last_sites) = cardinality(last_defect_types) "
            "AND cardinality(first_sites) = cardinality(last_sites)",
            name=op.f("ck_chunks_prefixes"),
        ),
        sa.CheckConstraint(
            "n_matching <= n_candidates AND n_candidates <= n_configurations", name=op.f("ck_chunks_numbers")
        ),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaigns.id"], name=op.f("fk_chunks_campaign_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chunks")),
        sa.UniqueConstraint("campaign_id", "number", name=op.f("uq_chunks_campaign_id_number")),
        comment="parts of campaigns: all configurations that begin with a prefix between two prefixes",
    )
    op.create_index(
        "ix_chunks_campaign_id_open",
        "chunks",
        ["campaign_id"],
        postgresql_where=sa.text("state IN ('waiting', 'running')"),
    )
    op.create_index(
        "ix_chunks_open", "chunks", ["id"], unique=False, postgresql_where=sa.text("state IN ('waiting', 'running')")
    )
    op.create_table(
        "chunk_counts",
        sa.Column("chunk_id", sa.Integer(), nullable=False),
        sa.Column("composition_id", sa.Integer(), nullable=False),
        sa.Column("n_candidates", sa.BigInteger(), nullable=False),
        sa.Column("n_matching", sa.BigInteger(), nullable=True, comment="null where the campaign has no query"),
        sa.CheckConstraint("n_candidates > 0 AND n_matching <= n_candidates", name=op.f("ck_chunk_counts_numbers")),
        sa.ForeignKeyConstraint(["chunk_id"], ["chunks.id"], name=op.f("fk_chunk_counts_chunk_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["composition_id"], ["compositions.id"], name=op.f("fk_chunk_counts_composition_id")),
        sa.PrimaryKeyConstraint("chunk_id", "composition_id", name=op.f("pk_chunk_counts")),
        comment="exact coverage by composition",
    )
    op.create_table(
        "chunk_histograms",
        sa.Column("chunk_id", sa.Integer(), nullable=False),
        sa.Column("property", sa.Text(), nullable=False),
        sa.Column(
            "counts",
            sa.ARRAY(sa.Integer()),
            nullable=False,
            comment="candidates below the first bin, in each bin, and above the last",
        ),
        sa.ForeignKeyConstraint(
            ["chunk_id"], ["chunks.id"], name=op.f("fk_chunk_histograms_chunk_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("chunk_id", "property", name=op.f("pk_chunk_histograms")),
        comment="histograms by chunk; the view campaign_histograms adds them up",
    )


def _create_candidates() -> None:
    predictions: list[sa.Column[float]] = [
        sa.Column(f"{name}_{part}", sa.REAL(), comment=f"{meaning} {comment}")
        for name, comment in PROPERTIES.items()
        for part, meaning in (("mean", "predicted"), ("std", "standard deviation of the predicted"))
    ]
    are_distributions = [
        sa.CheckConstraint(
            f"num_nulls({name}_mean, {name}_std) <> 1 AND abs({name}_mean) < 'Infinity' "
            f"AND {name}_std >= 0 AND {name}_std < 'Infinity'",
            name=op.f(f"ck_candidates_{name}"),
        )
        for name in PROPERTIES
    ]
    op.create_table(
        "candidates",
        sa.Column(
            "id",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="number of the chunk times 10^7, plus the position in the chunk",
        ),
        sa.Column("campaign_id", sa.Integer(), nullable=False),
        sa.Column(
            "arrangement_id", sa.Integer(), nullable=False, comment="arrangements.id: the defect types on the sites"
        ),
        sa.Column("multiplicity", sa.Integer(), nullable=False, comment="size of its symmetry orbit"),
        *predictions,
        sa.Column("sites", sa.ARRAY(sa.SmallInteger()), nullable=False, comment="numbered sites, ascending"),
        sa.CheckConstraint("cardinality(sites) > 0 AND multiplicity > 0", name=op.f("ck_candidates_configuration")),
        *are_distributions,
        comment="candidates with the mean and standard deviation of each property; a partition per campaign",
        postgresql_partition_by="LIST (campaign_id)",
    )
