"""What all tables share: naming of constraints, types of columns, the properties, and the columns of units of work."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import ARRAY, CheckConstraint, DateTime, Double, Index, MetaData, SmallInteger, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

PROPERTY_COMMENTS = {
    "formation_energy": "formation energy, eV",
    "formation_energy_per_site": "formation energy per defect site, eV",
    "homo_lumo_gap_min": "smaller HOMO-LUMO gap of the two spin channels, eV",
    "homo_lumo_gap_majority": "HOMO-LUMO gap of the majority spin channel, eV",
    "homo_lumo_gap_minority": "HOMO-LUMO gap of the minority spin channel, eV",
    "homo": "highest occupied level of either spin, eV",
    "lumo": "lowest unoccupied level of either spin, eV",
    "total_mag": "total magnetisation, Bohr magneton",
}


class Table(DeclarativeBase):
    """Declarative base: one naming convention for all constraints, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        str: Text,
        float: Double,
        datetime: DateTime(timezone=True),
        list[int]: ARRAY(SmallInteger),
        list[float]: ARRAY(Double),
        list[str]: ARRAY(Text),
        dict[str, Any]: JSONB,
    }


class Leased:
    """Columns of a unit of work: state, lease and outcome."""

    state: Mapped[str] = mapped_column(server_default="waiting", comment="waiting, running, finished or failed")
    attempts: Mapped[int] = mapped_column(server_default="0", comment="how often a worker has begun it")
    lease_owner: Mapped[str | None] = mapped_column(comment="worker that holds it")
    lease_until: Mapped[datetime | None] = mapped_column(comment="after this time another worker may take it")
    error: Mapped[str | None] = mapped_column(comment="why it failed, or why the last attempt did")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


def lease_rules(table_name: str) -> tuple[CheckConstraint | Index, ...]:
    """Rules of the columns of `Leased`, the one on the states first, and the index of what is open."""
    return (
        CheckConstraint("state IN ('waiting', 'running', 'finished', 'failed')", name="state"),
        CheckConstraint("(state = 'running') = (lease_owner IS NOT NULL AND lease_until IS NOT NULL)", name="lease"),
        CheckConstraint("state <> 'failed' OR error IS NOT NULL", name="failed_has_error"),
        CheckConstraint("attempts >= 0", name="attempts"),
        Index(
            f"ix_{table_name}_open", "id", postgresql_where=text("state IN ('waiting', 'running')")
        ),  # claims walk this index
    )
