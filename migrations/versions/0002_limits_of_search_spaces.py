"""Limits of search spaces: how often each defect type occurs, and how far defects are apart.

Revision: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

DEFINITION = "uq_search_spaces_definition"
BEFORE = ("supercell_id", "defect_types", "min_defects", "max_defects", "composition")
LIMITS = ("min_counts", "max_counts", "min_separation", "max_separation")


def upgrade() -> None:
    op.add_column(
        "search_spaces",
        sa.Column(
            "min_counts", sa.ARRAY(sa.SmallInteger()), comment="if limited, the least number of each defect type"
        ),
    )
    op.add_column(
        "search_spaces",
        sa.Column(
            "max_counts", sa.ARRAY(sa.SmallInteger()), comment="if limited, the largest number of each defect type"
        ),
    )
    op.add_column(
        "search_spaces",
        sa.Column("min_separation", sa.Double(), comment="least distance between two defects, angstrom"),
    )
    op.add_column(
        "search_spaces",
        sa.Column("max_separation", sa.Double(), comment="largest distance between two defects, angstrom"),
    )
    op.create_check_constraint(
        op.f("ck_search_spaces_counts"),
        "search_spaces",
        "num_nulls(min_counts, max_counts) <> 1 AND cardinality(min_counts) = cardinality(defect_types) "
        "AND cardinality(max_counts) = cardinality(defect_types) AND num_nulls(min_counts, composition) > 0",
    )
    op.create_check_constraint(
        op.f("ck_search_spaces_separations"),
        "search_spaces",
        "min_separation > 0 AND min_separation < 'Infinity' AND max_separation > 0 AND max_separation < 'Infinity' "
        "AND min_separation <= max_separation",
    )
    op.drop_constraint(DEFINITION, "search_spaces", type_="unique")
    op.create_unique_constraint(DEFINITION, "search_spaces", [*BEFORE, *LIMITS], postgresql_nulls_not_distinct=True)


def downgrade() -> None:
    # without its limits such a space would pass for one with all its configurations
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM search_spaces WHERE num_nonnulls(min_counts, min_separation, "
        "max_separation) > 0) THEN RAISE EXCEPTION 'search spaces with limits are stored, which version 0001 cannot "
        "express: delete them before the downgrade'; END IF; END $$"
    )
    op.drop_constraint(DEFINITION, "search_spaces", type_="unique")
    op.create_unique_constraint(DEFINITION, "search_spaces", [*BEFORE], postgresql_nulls_not_distinct=True)
    op.drop_constraint(op.f("ck_search_spaces_separations"), "search_spaces", type_="check")
    op.drop_constraint(op.f("ck_search_spaces_counts"), "search_spaces", type_="check")
    for name in reversed(LIMITS):
        op.drop_column("search_spaces", name)
