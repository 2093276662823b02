"""Hosts, supercells, levels of theory, configurations, and the search spaces that are enumerated."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, SmallInteger, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from screening.database.tables.base import Table


class Host(Table):
    """A pristine material."""

    __tablename__ = "hosts"
    __table_args__ = (
        CheckConstraint("cardinality(lattice) = 9", name="lattice"),
        CheckConstraint("cardinality(positions) = 3 * cardinality(species)", name="positions"),
        {"comment": "pristine materials"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    formula: Mapped[str]
    lattice: Mapped[list[float]] = mapped_column(comment="nine numbers, lattice vectors one after another, angstrom")
    species: Mapped[list[str]] = mapped_column(comment="chemical symbol of each site of the unit cell")
    positions: Mapped[list[float]] = mapped_column(comment="fractional coordinates, three per site")
    is_layer: Mapped[bool] = mapped_column(comment="periodic along the first two lattice vectors only")
    source: Mapped[str] = mapped_column(comment="where lattice and positions come from")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Supercell(Table):
    """A supercell of a host; its sites are numbered by screening.defects.host."""

    __tablename__ = "supercells"
    __table_args__ = (
        UniqueConstraint("host_id", "matrix"),
        CheckConstraint("cardinality(matrix) = 9", name="matrix"),
        CheckConstraint("n_sites > 0 AND n_operations > 0", name="sizes"),
        {"comment": "supercells whose sites are numbered"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    host_id: Mapped[int] = mapped_column(ForeignKey("hosts.id"))
    matrix: Mapped[list[int]] = mapped_column(comment="nine integers: supercell vectors in those of the unit cell")
    label: Mapped[str] = mapped_column(comment="8x8")
    n_sites: Mapped[int]
    n_operations: Mapped[int] = mapped_column(comment="distinct site permutations of its symmetry group")


class DefectType(Table):
    """What happens on one site."""

    __tablename__ = "defect_types"
    __table_args__ = (
        CheckConstraint("added IS DISTINCT FROM removed", name="is_a_defect"),
        CheckConstraint("name = coalesce(added, 'v') || '_' || removed", name="name"),
        {"comment": "defect types; id = 128 * Z_removed + Z_added (0 for a vacancy)"},
    )

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(unique=True, comment="v_S, Se_S")
    removed: Mapped[str]
    added: Mapped[str | None] = mapped_column(comment="null for a vacancy")


class Composition(Table):
    """Which defect types occur how often."""

    __tablename__ = "compositions"
    __table_args__ = (
        CheckConstraint("cardinality(defect_types) = cardinality(counts)", name="counts"),
        {"comment": "how many defects of each type"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    label: Mapped[str] = mapped_column(unique=True, comment="2*v_S+Se_S, or pristine")
    defect_types: Mapped[list[int]] = mapped_column(comment="ids of defect types, ascending")
    counts: Mapped[list[int]] = mapped_column(comment="number of each of them")
    n_defects: Mapped[int] = mapped_column(SmallInteger)


class Arrangement(Table):
    """A composition spread over sites: the defect types in the order of their sites."""

    __tablename__ = "arrangements"
    __table_args__ = (
        CheckConstraint("cardinality(defect_types) > 0", name="defect_types"),
        {"comment": "defect types in the order of the sites of a configuration; candidates share them"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    composition_id: Mapped[int] = mapped_column(ForeignKey("compositions.id"), index=True)
    defect_types: Mapped[list[int]] = mapped_column(unique=True, comment="ids of defect types")


class LevelOfTheory(Table):
    """What makes energies comparable: rows of different levels are never mixed."""

    __tablename__ = "levels_of_theory"
    __table_args__ = ({"comment": "code, functional and settings of calculations"},)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    code: Mapped[str]
    functional: Mapped[str]
    settings: Mapped[dict[str, Any]]
    digest: Mapped[str] = mapped_column(unique=True, comment="SHA-256 of code, functional and settings")


class ChemicalPotential(Table):
    """Energy per atom of an element in its reference, at one level of theory."""

    __tablename__ = "chemical_potentials"
    __table_args__ = (
        CheckConstraint("abs(energy) < 'Infinity'", name="energy_is_finite"),
        {"comment": "references of formation energies"},
    )

    level_id: Mapped[int] = mapped_column(ForeignKey("levels_of_theory.id"), primary_key=True)
    element: Mapped[str] = mapped_column(primary_key=True)
    energy: Mapped[float] = mapped_column(comment="eV per atom")
    source: Mapped[str] = mapped_column(comment="the reference phase")


class SourceFile(Table):
    """A file from which results were taken."""

    __tablename__ = "source_files"
    __table_args__ = ({"comment": "files that results were read from"},)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    sha256: Mapped[str] = mapped_column(unique=True)
    path: Mapped[str] = mapped_column(comment="as it was given when the file was first read")
    kind: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger, comment="bytes")
    parser_version: Mapped[str]
    read_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Configuration(Table):
    """A canonical configuration that a calculation is about; the pristine supercell has no defects."""

    __tablename__ = "configurations"
    __table_args__ = (
        UniqueConstraint("supercell_id", "sites", "defect_types"),
        CheckConstraint("cardinality(sites) = n_defects AND cardinality(defect_types) = n_defects", name="n_defects"),
        CheckConstraint("multiplicity > 0", name="multiplicity"),
        {"comment": "canonical configurations: smallest under the supercell's symmetry"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    supercell_id: Mapped[int] = mapped_column(ForeignKey("supercells.id"))
    composition_id: Mapped[int] = mapped_column(ForeignKey("compositions.id"), index=True)
    n_defects: Mapped[int] = mapped_column(SmallInteger)
    sites: Mapped[list[int]] = mapped_column(comment="numbered sites, ascending")
    defect_types: Mapped[list[int]] = mapped_column(comment="defect type on each of these sites")
    multiplicity: Mapped[int] = mapped_column(comment="size of its symmetry orbit")


class SearchSpace(Table):
    """Supercell, defect types and limits, with the exact number of candidates."""

    __tablename__ = "search_spaces"
    __table_args__ = (
        UniqueConstraint(
            "supercell_id", "defect_types", "min_defects", "max_defects", "composition",
            "min_counts", "max_counts", "min_separation", "max_separation",
            name="uq_search_spaces_definition", postgresql_nulls_not_distinct=True,
        ),
        CheckConstraint("min_defects BETWEEN 1 AND max_defects", name="defects"),
        CheckConstraint(
            "num_nulls(min_counts, max_counts) <> 1 AND cardinality(min_counts) = cardinality(defect_types) "
            "AND cardinality(max_counts) = cardinality(defect_types) AND num_nulls(min_counts, composition) > 0",
            name="counts",
        ),
        CheckConstraint(
            "min_separation > 0 AND min_separation < 'Infinity' AND max_separation > 0 "
            "AND max_separation < 'Infinity' AND min_separation <= max_separation",
            name="separations",
        ),
        {"comment": "what is enumerated"},
    )  # fmt: skip

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    supercell_id: Mapped[int] = mapped_column(ForeignKey("supercells.id"))
    defect_types: Mapped[list[int]]
    min_defects: Mapped[int] = mapped_column(SmallInteger)
    max_defects: Mapped[int] = mapped_column(SmallInteger)
    composition: Mapped[list[int] | None] = mapped_column(comment="if given, the exact number of each defect type")
    min_counts: Mapped[list[int] | None] = mapped_column(comment="if limited, the least number of each defect type")
    max_counts: Mapped[list[int] | None] = mapped_column(comment="if limited, the largest number of each defect type")
    min_separation: Mapped[float | None] = mapped_column(comment="least distance between two defects, angstrom")
    max_separation: Mapped[float | None] = mapped_column(comment="largest distance between two defects, angstrom")
    expected: Mapped[int] = mapped_column(BigInteger, comment="number of candidates by Burnside's lemma")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class SearchSpaceCount(Table):
    """How many candidates of a composition a search space has, exactly."""

    __tablename__ = "search_space_counts"
    __table_args__ = (
        CheckConstraint("expected > 0", name="expected"),
        {"comment": "exact numbers of candidates by composition"},
    )

    search_space_id: Mapped[int] = mapped_column(ForeignKey("search_spaces.id", ondelete="CASCADE"), primary_key=True)
    composition_id: Mapped[int] = mapped_column(ForeignKey("compositions.id"), primary_key=True)
    expected: Mapped[int] = mapped_column(BigInteger, comment="number of candidates by Burnside's lemma")
