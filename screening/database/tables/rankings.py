"""Rankings: snapshots of what design queries returned, which outlive the campaigns that they were made of."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Integer,
    SmallInteger,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column

from screening.database.tables.base import Table


class Ranking(Table):
    """A snapshot of what a design query returned."""

    __tablename__ = "rankings"
    __table_args__ = ({"comment": "snapshots of design queries"},)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str | None] = mapped_column(unique=True, comment="if it was given one")
    design_id: Mapped[int | None] = mapped_column(
        ForeignKey("designs.id", ondelete="SET NULL"), index=True, comment="the open design that it was made for"
    )
    model_id: Mapped[int] = mapped_column(ForeignKey("trained_models.id"), comment="of its first place")
    search_space_id: Mapped[int] = mapped_column(ForeignKey("search_spaces.id"), comment="of its first place")
    campaign_id: Mapped[int | None] = mapped_column(
        ForeignKey("campaigns.id", ondelete="SET NULL"),
        index=True,
        comment="of its first place; null once the campaign is deleted",
    )
    level_id: Mapped[int] = mapped_column(ForeignKey("levels_of_theory.id"), comment="of all its predictions")
    temperature: Mapped[float | None] = mapped_column(comment="of the concentrations, K")
    query: Mapped[dict[str, Any]] = mapped_column(comment="the design query, as it was given")
    sql: Mapped[str] = mapped_column(comment="the SELECT it was compiled to")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class RankingRow(Table):
    """One row of a ranking."""

    __tablename__ = "ranking_rows"
    __table_args__ = (
        CheckConstraint("probability BETWEEN 0 AND 1", name="probability"),
        CheckConstraint("cardinality(sites) = cardinality(defect_types)", name="defects"),
        CheckConstraint("concentration >= 0 AND concentration < 'Infinity'", name="concentration"),
        {"comment": "candidates of a ranking in their order; they outlive their campaign"},
    )

    ranking_id: Mapped[int] = mapped_column(ForeignKey("rankings.id", ondelete="CASCADE"), primary_key=True)
    rank: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    place: Mapped[int] = mapped_column(SmallInteger, server_default="0", comment="ranking_campaigns.place")
    candidate_id: Mapped[int] = mapped_column(BigInteger, comment="candidates.id in the campaign of its place")
    composition_id: Mapped[int | None] = mapped_column(
        ForeignKey("compositions.id"), index=True, comment="how many defects of each type"
    )
    sites: Mapped[list[int]]
    defect_types: Mapped[list[int]]
    multiplicity: Mapped[int]
    key: Mapped[float | None] = mapped_column(comment="what it is ranked by, the smaller the better; null of a front")
    probability: Mapped[float] = mapped_column(comment="that all constraints of the query hold")
    concentration: Mapped[float | None] = mapped_column(
        comment="estimate at the ranking's temperature, per cm^2 of a layer, per cm^3 of a crystal"
    )
    is_calculated: Mapped[bool] = mapped_column(
        server_default="false", comment="a finished calculation of it existed when the ranking was made"
    )
    reason: Mapped[str] = mapped_column(server_default="", comment="why it is in the ranking, with numbers")


class RankingCampaign(Table):
    """A campaign whose candidates a ranking is made of: one for each host and supercell of its query."""

    __tablename__ = "ranking_campaigns"
    __table_args__ = (
        CheckConstraint("place >= 0", name="place"),
        {"comment": "the campaigns that rankings were made of; their names outlive them"},
    )

    ranking_id: Mapped[int] = mapped_column(ForeignKey("rankings.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(
        SmallInteger, primary_key=True, autoincrement=False, comment="from 0 on, in the order of the query"
    )
    campaign_id: Mapped[int | None] = mapped_column(
        ForeignKey("campaigns.id", ondelete="SET NULL"), index=True, comment="null once the campaign is deleted"
    )
    campaign: Mapped[str] = mapped_column(comment="name of the campaign when the ranking was made")
    model_id: Mapped[int] = mapped_column(ForeignKey("trained_models.id"), index=True)
    supercell_id: Mapped[int] = mapped_column(ForeignKey("supercells.id"))
    search_space_id: Mapped[int] = mapped_column(ForeignKey("search_spaces.id"), index=True)


class RankingReference(Table):
    """The chemical potential of an element in a ranking."""

    __tablename__ = "ranking_references"
    __table_args__ = (
        CheckConstraint("abs(energy) < 'Infinity' AND abs(shift) < 'Infinity'", name="energies_are_finite"),
        ForeignKeyConstraint(
            ["ranking_id", "place"], ["ranking_campaigns.ranking_id", "ranking_campaigns.place"], ondelete="CASCADE"
        ),
        {"comment": "chemical potentials of rankings"},
    )

    ranking_id: Mapped[int] = mapped_column(primary_key=True)
    place: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    element: Mapped[str] = mapped_column(primary_key=True)
    energy: Mapped[float] = mapped_column(comment="chemical potential, eV per atom")
    source: Mapped[str] = mapped_column(comment="the reference phase or condition it comes from")
    shift: Mapped[float] = mapped_column(comment="energy less that of the reference that the model learnt with, eV")


class RankingValue(Table):
    """What was predicted of a property of a row of a ranking."""

    __tablename__ = "ranking_values"
    __table_args__ = (
        ForeignKeyConstraint(
            ["ranking_id", "rank"], ["ranking_rows.ranking_id", "ranking_rows.rank"], ondelete="CASCADE"
        ),
        CheckConstraint("std >= 0 AND std < 'Infinity' AND abs(mean) < 'Infinity'", name="distribution"),
        CheckConstraint("probability BETWEEN 0 AND 1", name="probability"),
        {"comment": "predictions of the rows of rankings, with the ranking's chemical potentials"},
    )

    ranking_id: Mapped[int] = mapped_column(primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    property: Mapped[str] = mapped_column(primary_key=True)
    mean: Mapped[float] = mapped_column(comment="predicted, eV or Bohr magneton")
    std: Mapped[float] = mapped_column(comment="standard deviation, eV or Bohr magneton")
    probability: Mapped[float | None] = mapped_column(comment="that the query's window on it holds; null without one")
