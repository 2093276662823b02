"""Design queries of many fields: several places, distances between defects, correlated properties, wide intervals.

Rankings say what they were made of: campaigns, chemical potentials, predicted values and the reason of each row. What
is stored of a design query names its places and leaves out what was not asked for.

Revision: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

FUNCTION = """
CREATE OR REPLACE FUNCTION index_campaign_partition(campaign integer) RETURNS void LANGUAGE plpgsql AS $$
-- a campaign is loaded chunk by chunk, so that ids rise along the table and a BRIN index is enough for them
DECLARE name text := format('candidates_%s', campaign);
BEGIN
    EXECUTE format('CREATE INDEX IF NOT EXISTS %I ON %I USING brin (id)', name || '_id', name);
    IF EXISTS (SELECT FROM campaigns WHERE id = campaign AND model_id IS NOT NULL) THEN
        EXECUTE format('CREATE INDEX IF NOT EXISTS %I ON %I (formation_energy_per_site_mean, homo_lumo_gap_min_mean)',
            name || '_energy', name);
        EXECUTE format('CREATE INDEX IF NOT EXISTS %I ON %I (homo_lumo_gap_min_mean, formation_energy_per_site_mean)',
            name || '_gap', name);
        EXECUTE format('CREATE INDEX IF NOT EXISTS %I ON %I '
            '(arrangement_id, formation_energy_per_site_mean, homo_lumo_gap_min_mean)', name || '_arrangement', name);
    END IF;
    EXECUTE format('ANALYZE %I', name);
    -- what the planner knows of the small tables that every query joins decides whether it walks an index
    ANALYZE compositions;
    ANALYZE arrangements;
    ANALYZE search_spaces;
END $$;
"""
PLACES = """
UPDATE {table} SET query = jsonb_strip_nulls(
    query - '{{host,supercell}}'::text[]
        - CASE WHEN query -> 'windows' = '[]' THEN 'windows' ELSE '' END
        - CASE WHEN query ->> 'sort' = 'formation_energy_per_site' THEN 'sort' ELSE '' END
        - CASE WHEN query ->> 'direction' = 'lowest' THEN 'direction' ELSE '' END
        - CASE WHEN query -> 'confidence' = '0.5' THEN 'confidence' ELSE '' END
    || jsonb_build_object('places', jsonb_build_array(
        jsonb_build_object('host', query -> 'host', 'supercell', query -> 'supercell'))))
WHERE query ? 'host'
"""
HOST_AND_SUPERCELL = """
UPDATE {table} SET query = '{{"supercell": null, "max_defects": null, "sort": "formation_energy_per_site",
        "direction": "lowest", "confidence": 0.5}}'::jsonb
    || (query - 'places') || (query -> 'places' -> 0)
    || jsonb_build_object('windows', (
        SELECT coalesce(jsonb_agg('{{"low": null, "high": null}}'::jsonb || one ORDER BY number), '[]')
        FROM jsonb_array_elements(coalesce(query -> 'windows', '[]')) WITH ORDINALITY AS of_query (one, number)))
WHERE query ? 'places'
"""
UNKNOWN = """
DO $$ BEGIN IF EXISTS (
    SELECT FROM (SELECT query FROM campaigns UNION ALL SELECT query FROM rankings UNION ALL SELECT query FROM rounds)
    WHERE jsonb_array_length(query -> 'places') > 1
        OR query - '{places,max_defects,windows,sort,direction,confidence,limit}'::text[] <> '{}'
        OR query ->> 'direction' = 'closest' OR query ->> 'sort' = 'concentration'
) THEN RAISE EXCEPTION 'design queries are stored with fields or several places that version 0004 does not know: '
    'delete their campaigns, rankings and rounds before the downgrade'; END IF; END $$
"""
OF_QUERIES = ("campaigns", "rankings", "rounds")


def upgrade() -> None:
    _widen_candidates()
    _create_distributions()
    _widen_rankings()
    _create_parts_of_rankings()
    for table in OF_QUERIES:
        op.execute(PLACES.format(table=table))
    op.execute(FUNCTION)
    op.execute("SELECT index_campaign_partition(id) FROM campaigns WHERE state = 'finished' ORDER BY id")


def downgrade() -> None:
    op.execute(UNKNOWN)
    for table in OF_QUERIES:
        op.execute(HOST_AND_SUPERCELL.format(table=table))
    _restore_function()
    for table in (
        "ranking_values", "ranking_references", "ranking_campaigns", "campaign_correlations", "interval_multiples",
    ):  # fmt: skip
        op.drop_table(table)
    for column in ("composition_id", "place", "key", "concentration", "is_calculated", "reason"):
        op.drop_column("ranking_rows", column)
    for column in ("name", "level_id", "temperature"):
        op.drop_column("rankings", column)
    for column in ("closest", "farthest"):
        op.drop_column("candidates", column)
    comments = {"model_id": None, "search_space_id": None, "campaign_id": "null once the campaign is deleted"}
    for column, comment in comments.items():
        op.alter_column("rankings", column, existing_type=sa.Integer(), comment=comment)
    op.alter_column(
        "ranking_rows", "candidate_id", existing_type=sa.BigInteger(),
        comment="candidates.id in the ranking's campaign",
    )  # fmt: skip


def _restore_function() -> None:
    """The indexes of version 0003."""
    op.execute(
        "DO $$ DECLARE campaign integer; BEGIN FOR campaign IN SELECT id FROM campaigns LOOP "
        "EXECUTE format('DROP INDEX IF EXISTS candidates_%s_arrangement', campaign); END LOOP; END $$"
    )
    functions = context.script.get_revision("0003").module.FUNCTIONS
    (before,) = (part for part in functions.split("CREATE FUNCTION ") if part.startswith("index_campaign_partition"))
    op.execute(f"CREATE OR REPLACE FUNCTION {before}")


def _widen_candidates() -> None:
    op.add_column(
        "candidates",
        sa.Column(
            "closest",
            sa.REAL(),
            nullable=True,
            comment="shortest distance between two of its defects, angstrom; null for one defect",
        ),
    )
    op.add_column(
        "candidates",
        sa.Column(
            "farthest",
            sa.REAL(),
            nullable=True,
            comment="longest distance between two of its defects, angstrom; null for one defect",
        ),
    )


def _create_distributions() -> None:
    """What the probability of a window needs besides mean and standard deviation."""
    op.create_table(
        "interval_multiples",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False, comment="name of the host"),
        sa.Column("n_defects", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("property", sa.Text(), nullable=False),
        sa.Column(
            "multiple", sa.Double(), nullable=False, comment="half of the 95 % interval over the standard deviation"
        ),
        sa.CheckConstraint("multiple >= 1 AND multiple < 'Infinity'", name=op.f("ck_interval_multiples_multiple")),
        sa.ForeignKeyConstraint(
            ["model_id"], ["trained_models.id"], name=op.f("fk_interval_multiples_model_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("model_id", "host", "n_defects", "property", name=op.f("pk_interval_multiples")),
        comment="half widths of 95 % intervals in standard deviations; 1.96 where nothing is said",
    )
    op.create_table(
        "campaign_correlations",
        sa.Column("campaign_id", sa.Integer(), nullable=False),
        sa.Column("n_defects", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("property", sa.Text(), nullable=False),
        sa.Column("other", sa.Text(), nullable=False, comment="the other property; later in the alphabet"),
        sa.Column(
            "correlation", sa.Double(), nullable=False, comment="of what the two predictions may be wrong by, -1 to 1"
        ),
        sa.CheckConstraint("correlation BETWEEN -1 AND 1", name=op.f("ck_campaign_correlations_correlation")),
        sa.CheckConstraint("property < other", name=op.f("ck_campaign_correlations_pair")),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaigns.id"], name=op.f("fk_campaign_correlations_campaign_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("campaign_id", "n_defects", "property", "other", name=op.f("pk_campaign_correlations")),
        comment="correlations between predicted properties, from the members of a campaign's ensemble",
    )


def _widen_rankings() -> None:
    op.add_column("rankings", sa.Column("name", sa.Text(), nullable=True, comment="if it was given one"))
    op.add_column("rankings", sa.Column("level_id", sa.Integer(), nullable=True, comment="of all its predictions"))
    op.add_column("rankings", sa.Column("temperature", sa.Double(), nullable=True, comment="of the concentrations, K"))
    op.alter_column(
        "rankings", "model_id", existing_type=sa.INTEGER(), comment="of its first place", existing_nullable=False
    )
    op.alter_column(
        "rankings", "search_space_id", existing_type=sa.INTEGER(), comment="of its first place", existing_nullable=False
    )
    op.alter_column(
        "rankings",
        "campaign_id",
        existing_type=sa.INTEGER(),
        comment="of its first place; null once the campaign is deleted",
        existing_comment="null once the campaign is deleted",
        existing_nullable=True,
    )
    op.create_unique_constraint(op.f("uq_rankings_name"), "rankings", ["name"])
    op.execute(
        "UPDATE rankings SET level_id = trained_models.level_id FROM trained_models WHERE trained_models.id = model_id"
    )
    op.alter_column("rankings", "level_id", nullable=False)
    op.create_foreign_key(op.f("fk_rankings_level_id"), "rankings", "levels_of_theory", ["level_id"], ["id"])
    op.add_column(
        "ranking_rows",
        sa.Column("place", sa.SmallInteger(), server_default="0", nullable=False, comment="ranking_campaigns.place"),
    )
    op.add_column(
        "ranking_rows",
        sa.Column("composition_id", sa.Integer(), nullable=True, comment="how many defects of each type"),
    )
    op.add_column(
        "ranking_rows",
        sa.Column(
            "key", sa.Double(), nullable=True, comment="what it is ranked by, the smaller the better; null of a front"
        ),
    )
    op.add_column(
        "ranking_rows",
        sa.Column(
            "concentration",
            sa.Double(),
            nullable=True,
            comment="estimate at the ranking's temperature, per cm^2 of a layer, per cm^3 of a crystal",
        ),
    )
    op.add_column(
        "ranking_rows",
        sa.Column(
            "is_calculated",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="a finished calculation of it existed when the ranking was made",
        ),
    )
    op.add_column(
        "ranking_rows",
        sa.Column(
            "reason", sa.Text(), server_default="", nullable=False, comment="why it is in the ranking, with numbers"
        ),
    )
    op.alter_column(
        "ranking_rows",
        "candidate_id",
        existing_type=sa.BIGINT(),
        comment="candidates.id in the campaign of its place",
        existing_comment="candidates.id in the ranking's campaign",
        existing_nullable=False,
    )
    op.create_index(op.f("ix_ranking_rows_composition_id"), "ranking_rows", ["composition_id"], unique=False)
    op.create_foreign_key(
        op.f("fk_ranking_rows_composition_id"), "ranking_rows", "compositions", ["composition_id"], ["id"]
    )
    op.create_check_constraint(
        op.f("ck_ranking_rows_concentration"), "ranking_rows", "concentration >= 0 AND concentration < 'Infinity'"
    )
    op.execute(
        "UPDATE ranking_rows SET composition_id = arrangements.composition_id FROM arrangements "
        "WHERE arrangements.defect_types = ranking_rows.defect_types"
    )


def _create_parts_of_rankings() -> None:
    """What rankings were made of; those there are have one place, and no values that are still known."""
    op.create_table(
        "ranking_campaigns",
        sa.Column("ranking_id", sa.Integer(), nullable=False),
        sa.Column(
            "place",
            sa.SmallInteger(),
            autoincrement=False,
            nullable=False,
            comment="from 0 on, in the order of the query",
        ),
        sa.Column("campaign_id", sa.Integer(), nullable=True, comment="null once the campaign is deleted"),
        sa.Column("campaign", sa.Text(), nullable=False, comment="name of the campaign when the ranking was made"),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("supercell_id", sa.Integer(), nullable=False),
        sa.Column("search_space_id", sa.Integer(), nullable=False),
        sa.CheckConstraint("place >= 0", name=op.f("ck_ranking_campaigns_place")),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaigns.id"], name=op.f("fk_ranking_campaigns_campaign_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["model_id"], ["trained_models.id"], name=op.f("fk_ranking_campaigns_model_id")),
        sa.ForeignKeyConstraint(
            ["ranking_id"], ["rankings.id"], name=op.f("fk_ranking_campaigns_ranking_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["search_space_id"], ["search_spaces.id"], name=op.f("fk_ranking_campaigns_search_space_id")
        ),
        sa.ForeignKeyConstraint(["supercell_id"], ["supercells.id"], name=op.f("fk_ranking_campaigns_supercell_id")),
        sa.PrimaryKeyConstraint("ranking_id", "place", name=op.f("pk_ranking_campaigns")),
        comment="the campaigns that rankings were made of; their names outlive them",
    )
    op.create_index(op.f("ix_ranking_campaigns_campaign_id"), "ranking_campaigns", ["campaign_id"], unique=False)
    op.create_index(op.f("ix_ranking_campaigns_model_id"), "ranking_campaigns", ["model_id"], unique=False)
    op.create_index(
        op.f("ix_ranking_campaigns_search_space_id"), "ranking_campaigns", ["search_space_id"], unique=False
    )
    op.create_table(
        "ranking_references",
        sa.Column("ranking_id", sa.Integer(), nullable=False),
        sa.Column("place", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("element", sa.Text(), nullable=False),
        sa.Column("energy", sa.Double(), nullable=False, comment="chemical potential, eV per atom"),
        sa.Column("source", sa.Text(), nullable=False, comment="the reference phase or condition it comes from"),
        sa.Column(
            "shift",
            sa.Double(),
            nullable=False,
            comment="energy less that of the reference that the model learnt with, eV",
        ),
        sa.CheckConstraint(
            "abs(energy) < 'Infinity' AND abs(shift) < 'Infinity'",
            name=op.f("ck_ranking_references_energies_are_finite"),
        ),
        sa.ForeignKeyConstraint(
            ["ranking_id", "place"],
            ["ranking_campaigns.ranking_id", "ranking_campaigns.place"],
            name=op.f("fk_ranking_references_ranking_id_place"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("ranking_id", "place", "element", name=op.f("pk_ranking_references")),
        comment="chemical potentials of rankings",
    )
    op.create_table(
        "ranking_values",
        sa.Column("ranking_id", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("property", sa.Text(), nullable=False),
        sa.Column("mean", sa.Double(), nullable=False, comment="predicted, eV or Bohr magneton"),
        sa.Column("std", sa.Double(), nullable=False, comment="standard deviation, eV or Bohr magneton"),
        sa.Column(
            "probability", sa.Double(), nullable=True, comment="that the query's window on it holds; null without one"
        ),
        sa.CheckConstraint(
            "std >= 0 AND std < 'Infinity' AND abs(mean) < 'Infinity'", name=op.f("ck_ranking_values_distribution")
        ),
        sa.CheckConstraint("probability BETWEEN 0 AND 1", name=op.f("ck_ranking_values_probability")),
        sa.ForeignKeyConstraint(
            ["ranking_id", "rank"],
            ["ranking_rows.ranking_id", "ranking_rows.rank"],
            name=op.f("fk_ranking_values_ranking_id_rank"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("ranking_id", "rank", "property", name=op.f("pk_ranking_values")),
        comment="predictions of the rows of rankings, with the ranking's chemical potentials",
    )
    op.execute(
        "INSERT INTO ranking_campaigns (ranking_id, place, campaign_id, campaign, model_id, supercell_id, "
        "search_space_id) SELECT rankings.id, 0, campaign_id, coalesce(campaigns.name, 'a campaign that is deleted'), "
        "rankings.model_id, supercell_id, search_spaces.id FROM rankings "
        "JOIN search_spaces ON search_spaces.id = rankings.search_space_id "
        "LEFT JOIN campaigns ON campaigns.id = campaign_id"
    )
