"""Campaigns: chunks with their counters, and candidates with their predictions.

A candidate and its predictions are one row of about 100 bytes, in a partition for each campaign: loaded without
foreign keys and indexes, which campaign partitions get when they are complete (migrations 0003 and 0005 have the
functions that make, index and check them, and the views `campaign_progress`, `campaign_workers` and
`campaign_histograms`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    SmallInteger,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, REAL
from sqlalchemy.orm import Mapped, mapped_column

from screening.database.tables.base import PROPERTY_COMMENTS, Leased, Table, lease_rules


class Campaign(Table):
    """The scan of a search space: every candidate is enumerated and, where there is a model, scored."""

    __tablename__ = "campaigns"
    __table_args__ = (
        CheckConstraint(
            "state IN ('planned', 'running', 'paused', 'cancelled', 'incomplete', 'finished')", name="state"
        ),
        CheckConstraint("storage IN ('all', 'best')", name="storage"),
        CheckConstraint("(storage = 'best') = (query IS NOT NULL)", name="best_has_query"),
        CheckConstraint("storage = 'all' OR model_id IS NOT NULL", name="best_has_model"),
        CheckConstraint("(state = 'finished') = (finished_at IS NOT NULL)", name="finished_at"),
        CheckConstraint("state <> 'incomplete' OR error IS NOT NULL", name="incomplete_has_error"),
        Index(
            "uq_campaigns_all", "search_space_id", "model_id",
            unique=True, postgresql_nulls_not_distinct=True, postgresql_where=text("storage = 'all'"),
        ),
        {"comment": "scans of search spaces; finished only when the exact count is reached, which a trigger checks"},
    )  # fmt: skip

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    search_space_id: Mapped[int] = mapped_column(ForeignKey("search_spaces.id"))
    model_id: Mapped[int | None] = mapped_column(
        ForeignKey("trained_models.id"), index=True, comment="that scores the candidates; null: they are only stored"
    )
    storage: Mapped[str] = mapped_column(comment="all: every candidate is kept; best: those that the query ranks first")
    query: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB(none_as_null=True), comment="the design query of storage best, with its limit"
    )
    cutoff: Mapped[float | None] = mapped_column(
        comment="sort key (design_query.sort_key) beyond which rows are no longer among the best"
    )
    state: Mapped[str] = mapped_column(
        server_default="planned",
        comment="planned, running, paused, cancelled, incomplete (some chunks failed) or finished",
    )
    error: Mapped[str | None] = mapped_column(comment="why it is incomplete")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None] = mapped_column(comment="when it was first started")
    finished_at: Mapped[datetime | None]


class Chunk(Leased, Table):
    """An independently enumerable part of a campaign's search space."""

    __tablename__ = "chunks"
    __table_args__ = (
        UniqueConstraint("campaign_id", "number"),
        CheckConstraint("state IN ('planned', 'waiting', 'running', 'finished', 'failed')", name="state"),
        CheckConstraint(
            "num_nulls(n_candidates, n_configurations, checksum, worker, worked_s) "
            "= CASE state WHEN 'finished' THEN 0 ELSE 5 END",
            name="finished_is_counted",
        ),
        CheckConstraint("n_matching <= n_candidates AND n_candidates <= n_configurations", name="numbers"),
        CheckConstraint(
            "cardinality(first_sites) = cardinality(first_defect_types) "
            "AND cardinality(last_sites) = cardinality(last_defect_types) "
            "AND cardinality(first_sites) = cardinality(last_sites)",
            name="prefixes",
        ),
        *lease_rules("chunks")[1:],
        Index("ix_chunks_campaign_id_open", "campaign_id", postgresql_where=text("state IN ('waiting', 'running')")),
        {"comment": "parts of campaigns: all configurations that begin with a prefix between two prefixes"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id", ondelete="CASCADE"))
    number: Mapped[int]
    scores: Mapped[bool] = mapped_column(comment="whether a model scores it: work for the queue gpu, else cpu")
    n_defects: Mapped[int] = mapped_column(SmallInteger)
    first_sites: Mapped[list[int]] = mapped_column(comment="sites of the first prefix")
    first_defect_types: Mapped[list[int]]
    last_sites: Mapped[list[int]] = mapped_column(comment="sites of the last prefix, which belongs to the chunk")
    last_defect_types: Mapped[list[int]]
    heartbeat: Mapped[datetime | None] = mapped_column(comment="when its worker last said that it is alive")
    rows_done: Mapped[int] = mapped_column(
        BigInteger, server_default="0", comment="candidates that the present attempt has been through"
    )
    n_candidates: Mapped[int | None] = mapped_column(BigInteger, comment="candidates, exactly")
    n_configurations: Mapped[int | None] = mapped_column(BigInteger, comment="sum of their multiplicities")
    n_matching: Mapped[int | None] = mapped_column(BigInteger, comment="candidates that satisfy the campaign's query")
    checksum: Mapped[int | None] = mapped_column(
        BigInteger, comment="of sites, defect types and multiplicities, whatever their order"
    )
    worker: Mapped[str | None] = mapped_column(comment="host and process that finished it")
    worked_s: Mapped[float | None] = mapped_column(comment="seconds that this took")
    peak_memory_mb: Mapped[float | None] = mapped_column(comment="largest resident size of the worker so far, MB")


class ChunkCount(Table):
    """How many candidates of a composition a finished chunk has, and how many of them satisfy the query."""

    __tablename__ = "chunk_counts"
    __table_args__ = (
        CheckConstraint("n_candidates > 0 AND n_matching <= n_candidates", name="numbers"),
        {"comment": "exact coverage by composition"},
    )

    chunk_id: Mapped[int] = mapped_column(ForeignKey("chunks.id", ondelete="CASCADE"), primary_key=True)
    composition_id: Mapped[int] = mapped_column(ForeignKey("compositions.id"), primary_key=True)
    n_candidates: Mapped[int] = mapped_column(BigInteger)
    n_matching: Mapped[int | None] = mapped_column(BigInteger, comment="null where the campaign has no query")


class CampaignBins(Table):
    """The bins of the histogram of a property's predictions."""

    __tablename__ = "campaign_bins"
    __table_args__ = (
        CheckConstraint("low < high AND n_bins > 0", name="bins"),
        {"comment": "bins of the histograms of predicted means"},
    )

    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id", ondelete="CASCADE"), primary_key=True)
    property: Mapped[str] = mapped_column(primary_key=True)
    low: Mapped[float] = mapped_column(comment="lower end of the first bin, eV or Bohr magneton")
    high: Mapped[float] = mapped_column(comment="upper end of the last bin, eV or Bohr magneton")
    n_bins: Mapped[int] = mapped_column(comment="bins of equal width between them")


class ChunkHistogram(Table):
    """The histogram of a property's predicted means in a finished chunk."""

    __tablename__ = "chunk_histograms"
    __table_args__ = ({"comment": "histograms by chunk; the view campaign_histograms adds them up"},)

    chunk_id: Mapped[int] = mapped_column(ForeignKey("chunks.id", ondelete="CASCADE"), primary_key=True)
    property: Mapped[str] = mapped_column(primary_key=True)
    counts: Mapped[list[int]] = mapped_column(
        ARRAY(Integer), comment="candidates below the first bin, in each bin, and above the last"
    )


def _mean(name: str) -> Mapped[float | None]:
    return mapped_column(REAL, comment=f"predicted {PROPERTY_COMMENTS[name]}")


def _std(name: str) -> Mapped[float | None]:
    return mapped_column(REAL, comment=f"standard deviation of the predicted {PROPERTY_COMMENTS[name]}")


def _is_distribution(name: str) -> CheckConstraint:
    """Mean and standard deviation are both there, or both absent; NaN is larger than everything in PostgreSQL."""
    mean, std = f"{name}_mean", f"{name}_std"
    condition = f"num_nulls({mean}, {std}) <> 1 AND abs({mean}) < 'Infinity' AND {std} >= 0 AND {std} < 'Infinity'"
    return CheckConstraint(condition, name=name)


class Candidate(Table):
    """A symmetry-distinct configuration of a campaign with its predictions; never overwritten."""

    __tablename__ = "candidates"
    __table_args__ = (
        CheckConstraint("cardinality(sites) > 0 AND multiplicity > 0", name="configuration"),
        *(_is_distribution(name) for name in PROPERTY_COMMENTS),
        {
            "comment": "candidates with the mean and standard deviation of each property; a partition per campaign",
            "postgresql_partition_by": "LIST (campaign_id)",
        },
    )

    id: Mapped[int] = mapped_column(
        BigInteger, autoincrement=False, comment="number of the chunk times 10^7, plus the position in the chunk"
    )
    campaign_id: Mapped[int] = mapped_column(Integer)
    arrangement_id: Mapped[int] = mapped_column(comment="arrangements.id: the defect types on the sites")
    multiplicity: Mapped[int] = mapped_column(comment="size of its symmetry orbit")
    formation_energy_mean: Mapped[float | None] = _mean("formation_energy")
    formation_energy_std: Mapped[float | None] = _std("formation_energy")
    formation_energy_per_site_mean: Mapped[float | None] = _mean("formation_energy_per_site")
    formation_energy_per_site_std: Mapped[float | None] = _std("formation_energy_per_site")
    homo_lumo_gap_min_mean: Mapped[float | None] = _mean("homo_lumo_gap_min")
    homo_lumo_gap_min_std: Mapped[float | None] = _std("homo_lumo_gap_min")
    homo_lumo_gap_majority_mean: Mapped[float | None] = _mean("homo_lumo_gap_majority")
    homo_lumo_gap_majority_std: Mapped[float | None] = _std("homo_lumo_gap_majority")
    homo_lumo_gap_minority_mean: Mapped[float | None] = _mean("homo_lumo_gap_minority")
    homo_lumo_gap_minority_std: Mapped[float | None] = _std("homo_lumo_gap_minority")
    homo_mean: Mapped[float | None] = _mean("homo")
    homo_std: Mapped[float | None] = _std("homo")
    lumo_mean: Mapped[float | None] = _mean("lumo")
    lumo_std: Mapped[float | None] = _std("lumo")
    total_mag_mean: Mapped[float | None] = _mean("total_mag")
    total_mag_std: Mapped[float | None] = _std("total_mag")
    sites: Mapped[list[int]] = mapped_column(comment="numbered sites, ascending")
    closest: Mapped[float | None] = mapped_column(
        REAL, comment="shortest distance between two of its defects, angstrom; null for one defect"
    )
    farthest: Mapped[float | None] = mapped_column(
        REAL, comment="longest distance between two of its defects, angstrom; null for one defect"
    )

    __mapper_args__ = {"primary_key": (campaign_id, id)}  # noqa: RUF012 - no index of the table: 22 bytes a row


class CampaignCorrelation(Table):
    """How the errors of two predicted properties go together, by the number of defects."""

    __tablename__ = "campaign_correlations"
    __table_args__ = (
        CheckConstraint("correlation BETWEEN -1 AND 1", name="correlation"),
        CheckConstraint("property < other", name="pair"),
        {"comment": "correlations between predicted properties, from the members of a campaign's ensemble"},
    )

    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id", ondelete="CASCADE"), primary_key=True)
    n_defects: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    property: Mapped[str] = mapped_column(primary_key=True)
    other: Mapped[str] = mapped_column(primary_key=True, comment="the other property; later in the alphabet")
    correlation: Mapped[float] = mapped_column(comment="of what the two predictions may be wrong by, -1 to 1")
