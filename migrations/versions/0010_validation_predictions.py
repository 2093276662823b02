"""What models predict of the results that they were validated on, for parity and calibration.

Models of before have none until they are trained again.

Revision: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "validation_predictions",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("result_id", sa.Integer(), nullable=False),
        sa.Column("property", sa.Text(), nullable=False),
        sa.Column("mean", sa.Double(), nullable=False, comment="predicted, eV or Bohr magneton"),
        sa.Column("std", sa.Double(), nullable=False, comment="standard deviation, eV or Bohr magneton"),
        sa.ForeignKeyConstraint(
            ["model_id"], ["trained_models.id"], name=op.f("fk_validation_predictions_model_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["result_id"], ["calculation_results.id"],
            name=op.f("fk_validation_predictions_result_id"), ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("model_id", "result_id", "property", name=op.f("pk_validation_predictions")),
        comment="what models predict of the results that they were validated on",
    )  # fmt: skip
    op.create_index(op.f("ix_validation_predictions_result_id"), "validation_predictions", ["result_id"])


def downgrade() -> None:
    op.drop_table("validation_predictions")
