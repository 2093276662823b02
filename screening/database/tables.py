"""Every table, in the order of the data flow: hosts, levels of theory, configurations, search spaces, models,
campaigns, candidates with their predictions, rankings, rounds, calculations, results, and what is made of them.

Units: eV, angstrom, Bohr magneton. Rows are the truth: a unit of work (a chunk, a training, a calculation) is a
row with a state and a lease, and its results are committed together with its state.
The code of a defect type, ``128 * Z_removed + Z_added``, is its primary key, so that arrays of defect types
can be read without a look-up.

A candidate and its predictions are one row of about 100 bytes, in a partition for each campaign: loaded without
foreign keys and indexes, which campaign partitions get when they are complete (migration 0003 has the functions that
make, index and check them, and the views `campaign_progress`, `campaign_workers` and `campaign_histograms`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Computed,
    DateTime,
    Double,
    FetchedValue,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, REAL
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


def _lease_rules(table_name: str) -> tuple[CheckConstraint | Index, ...]:
    return (
        CheckConstraint("state IN ('waiting', 'running', 'finished', 'failed')", name="state"),
        CheckConstraint("(state = 'running') = (lease_owner IS NOT NULL AND lease_until IS NOT NULL)", name="lease"),
        CheckConstraint("state <> 'failed' OR error IS NOT NULL", name="failed_has_error"),
        CheckConstraint("attempts >= 0", name="attempts"),
        Index(
            f"ix_{table_name}_open", "id", postgresql_where=text("state IN ('waiting', 'running')")
        ),  # claims walk this index
    )


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


class ModelLine(Table):
    """A model that lives on in versions: what it learns from, and when it learns again by itself."""

    __tablename__ = "model_lines"
    __table_args__ = (
        UniqueConstraint("id", "level_id"),
        CheckConstraint("after_results > 0", name="after_results"),
        CheckConstraint("after_hours > 0 AND after_hours < 'Infinity'", name="after_hours"),
        {"comment": "models that live on in versions: what they learn from, and when they learn again"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    level_id: Mapped[int] = mapped_column(ForeignKey("levels_of_theory.id"))
    hosts: Mapped[list[str]] = mapped_column(
        server_default="{}", comment="names of the hosts whose results it learns from; empty: all"
    )
    datasets: Mapped[list[str]] = mapped_column(
        server_default="{}", comment="names of the data sets that it learns from; empty: all"
    )
    after_results: Mapped[int | None] = mapped_column(comment="retrain by itself after so many new results")
    after_hours: Mapped[float | None] = mapped_column(
        comment="retrain by itself when new results have waited so long, hours"
    )
    when_drifting: Mapped[bool] = mapped_column(
        server_default="false", comment="retrain by itself when new results are outside the intervals too often"
    )
    rescore: Mapped[bool] = mapped_column(
        server_default="false", comment="start campaigns again with each version that a retraining promotes"
    )
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class TrainedModel(Leased, Table):
    """An ensemble of networks: how it is trained, how far it is, and its weights.

    Written without a line it founds one of its name; the first finished version of a line goes into production
    (triggers of migration 0004). Two versions of a line are never trained at once.
    """

    __tablename__ = "trained_models"
    __table_args__ = (
        UniqueConstraint("line_id", "version"),
        UniqueConstraint("line_id", "id"),
        ForeignKeyConstraint(["line_id", "level_id"], ["model_lines.id", "model_lines.level_id"]),
        Index(
            "uq_trained_models_open", "line_id", unique=True, postgresql_where=text("state IN ('waiting', 'running')")
        ),
        CheckConstraint("(state = 'finished') = (weights IS NOT NULL)", name="finished_has_weights"),
        CheckConstraint("state <> 'finished' OR checkpoint IS NULL", name="finished_drops_checkpoint"),
        *_lease_rules("trained_models"),
        {"comment": "trained models, one level of theory each"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    line_id: Mapped[int] = mapped_column(server_default=FetchedValue())
    version: Mapped[int] = mapped_column(server_default=FetchedValue(), comment="number in its line, from 1 on")
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("trained_models.id"), comment="retrained from")
    level_id: Mapped[int] = mapped_column(ForeignKey("levels_of_theory.id"))
    properties: Mapped[list[str]]
    settings: Mapped[dict[str, Any]] = mapped_column(comment="screening.learning.training.TrainingSettings")
    seed: Mapped[int] = mapped_column(BigInteger)
    progress: Mapped[dict[str, Any] | None] = mapped_column(
        comment="member, epoch, loss and validation errors of the last epoch"
    )
    checkpoint: Mapped[bytes | None] = mapped_column(LargeBinary, comment="safetensors, to resume from")
    weights: Mapped[bytes | None] = mapped_column(LargeBinary, comment="safetensors")
    weights_sha256: Mapped[str | None] = mapped_column(
        Computed("encode(sha256(weights), 'hex')", persisted=True), comment="of the weights"
    )
    training_time_s: Mapped[float | None] = mapped_column(comment="seconds")
    snapshot_sha256: Mapped[str | None] = mapped_column(
        comment="digest of the results, roles and labels that it learnt from"
    )
    examined_to: Mapped[int | None] = mapped_column(
        comment="largest id of the new results that it was asked about while it was in production"
    )


class ModelMetric(Table):
    """Error of a model on validation rows."""

    __tablename__ = "model_metrics"
    __table_args__ = ({"comment": "errors of models on validation rows never trained on"},)

    model_id: Mapped[int] = mapped_column(ForeignKey("trained_models.id", ondelete="CASCADE"), primary_key=True)
    dataset: Mapped[str] = mapped_column(primary_key=True)
    property: Mapped[str] = mapped_column(primary_key=True)
    n_rows: Mapped[int]
    mae: Mapped[float] = mapped_column(comment="mean absolute error, eV or Bohr magneton")
    rmse: Mapped[float] = mapped_column(comment="root mean square error, eV or Bohr magneton")


class Promotion(Table):
    """A version went into production of its line, which it is until the next promotion."""

    __tablename__ = "promotions"
    __table_args__ = (
        ForeignKeyConstraint(["line_id", "model_id"], ["trained_models.line_id", "trained_models.id"]),
        ForeignKeyConstraint(["line_id", "replaced_id"], ["trained_models.line_id", "trained_models.id"]),
        CheckConstraint("replaced_id <> model_id", name="replaced"),
        Index("ix_promotions_line_id_id", "line_id", "id"),
        {"comment": "which version of a line went into production and when; the last one is there; never overwritten"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    line_id: Mapped[int]
    model_id: Mapped[int] = mapped_column(comment="the version that is in production from then on")
    replaced_id: Mapped[int | None] = mapped_column(comment="the version that was in production before")
    reason: Mapped[str] = mapped_column(comment="with the errors that were measured")
    promoted_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class ModelComparison(Table):
    """A retrained version against the version in production, on rows that neither has learnt from."""

    __tablename__ = "model_comparisons"
    __table_args__ = (
        CheckConstraint("num_nulls(ratio, ratio_low, ratio_high) IN (0, 3)", name="ratio"),
        {"comment": "retrained versions against the version in production, on the same rows"},
    )

    challenger_id: Mapped[int] = mapped_column(
        ForeignKey("trained_models.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    champion_id: Mapped[int] = mapped_column(
        ForeignKey("trained_models.id"), comment="in production when the challenger was ready"
    )
    n_rows: Mapped[int] = mapped_column(comment="rows that neither of them has learnt from")
    ratio: Mapped[float | None] = mapped_column(comment="errors of the challenger over those of the champion")
    ratio_low: Mapped[float | None] = mapped_column(comment="lower end of its 95 % interval")
    ratio_high: Mapped[float | None] = mapped_column(comment="upper end of its 95 % interval")
    is_promoted: Mapped[bool]
    reason: Mapped[str] = mapped_column(comment="why it is promoted, or is not")
    compared_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class ModelComparisonError(Table):
    """Errors of a comparison, of a property in a data set."""

    __tablename__ = "model_comparison_errors"
    __table_args__ = ({"comment": "errors of challenger and champion on rows that neither of them has learnt from"},)

    challenger_id: Mapped[int] = mapped_column(
        ForeignKey("model_comparisons.challenger_id", ondelete="CASCADE"), primary_key=True
    )
    dataset: Mapped[str] = mapped_column(primary_key=True)
    property: Mapped[str] = mapped_column(primary_key=True)
    n_rows: Mapped[int]
    champion_mae: Mapped[float] = mapped_column(comment="mean absolute error of the champion, eV or Bohr magneton")
    challenger_mae: Mapped[float] = mapped_column(comment="mean absolute error of the challenger, eV or Bohr magneton")


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
        *_lease_rules("chunks")[1:],
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

    __mapper_args__ = {"primary_key": (campaign_id, id)}  # noqa: RUF012 - no index of the table: 22 bytes a row


class Ranking(Table):
    """A snapshot of what a design query returned."""

    __tablename__ = "rankings"
    __table_args__ = ({"comment": "snapshots of design queries"},)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("trained_models.id"))
    search_space_id: Mapped[int] = mapped_column(ForeignKey("search_spaces.id"))
    campaign_id: Mapped[int | None] = mapped_column(
        ForeignKey("campaigns.id", ondelete="SET NULL"), index=True, comment="null once the campaign is deleted"
    )
    query: Mapped[dict[str, Any]] = mapped_column(comment="the design query, as it was given")
    sql: Mapped[str] = mapped_column(comment="the SELECT it was compiled to")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class RankingRow(Table):
    """One row of a ranking."""

    __tablename__ = "ranking_rows"
    __table_args__ = (
        CheckConstraint("probability BETWEEN 0 AND 1", name="probability"),
        CheckConstraint("cardinality(sites) = cardinality(defect_types)", name="defects"),
        {"comment": "candidates of a ranking in their order; they outlive their campaign"},
    )

    ranking_id: Mapped[int] = mapped_column(ForeignKey("rankings.id", ondelete="CASCADE"), primary_key=True)
    rank: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    candidate_id: Mapped[int] = mapped_column(BigInteger, comment="candidates.id in the ranking's campaign")
    sites: Mapped[list[int]]
    defect_types: Mapped[list[int]]
    multiplicity: Mapped[int]
    probability: Mapped[float] = mapped_column(comment="that all constraints of the query hold")


class Round(Table):
    """A batch of proposed calculations."""

    __tablename__ = "rounds"
    __table_args__ = ({"comment": "batches of proposed calculations"},)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("trained_models.id"), comment="whose predictions chose them")
    level_id: Mapped[int] = mapped_column(ForeignKey("levels_of_theory.id"))
    query: Mapped[dict[str, Any]] = mapped_column(comment="the design query that the choice serves")
    seed: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Calculation(Leased, Table):
    """A calculation of a configuration at a level of theory: proposed, running, finished or failed."""

    __tablename__ = "calculations"
    __table_args__ = (
        UniqueConstraint("configuration_id", "level_id"),
        CheckConstraint("state IN ('proposed', 'waiting', 'running', 'finished', 'failed')", name="state"),
        *_lease_rules("calculations")[1:],
        {"comment": "calculations; proposed ones wait for a person, waiting ones for a worker"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    configuration_id: Mapped[int] = mapped_column(ForeignKey("configurations.id"))
    level_id: Mapped[int] = mapped_column(ForeignKey("levels_of_theory.id"), index=True)
    round_id: Mapped[int | None] = mapped_column(ForeignKey("rounds.id"), index=True)
    proposal: Mapped[str | None] = mapped_column(comment="why it was proposed")


class CalculationResult(Table):
    """What a finished calculation says."""

    __tablename__ = "calculation_results"
    __table_args__ = (
        UniqueConstraint("dataset", "row_name"),
        CheckConstraint("split IN ('train', 'validation')", name="split"),
        CheckConstraint("abs(energy) < 'Infinity'", name="energy_is_finite"),
        CheckConstraint(
            " AND ".join(f"abs({name}) < 'Infinity'" for name in PROPERTY_COMMENTS), name="properties_are_finite"
        ),
        {"comment": "results of finished calculations"},
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    calculation_id: Mapped[int] = mapped_column(ForeignKey("calculations.id"), unique=True)
    source_file_id: Mapped[int | None] = mapped_column(ForeignKey("source_files.id"), index=True)
    dataset: Mapped[str] = mapped_column(comment="where it comes from: low_density_defects/MoS2, round 3")
    row_name: Mapped[str] = mapped_column(comment="its name there")
    split: Mapped[str | None] = mapped_column(comment="train or validation, where the data set says so")
    energy: Mapped[float] = mapped_column(comment="total energy of the supercell, eV")
    formation_energy: Mapped[float | None] = mapped_column(comment=PROPERTY_COMMENTS["formation_energy"])
    formation_energy_per_site: Mapped[float | None] = mapped_column(
        comment=PROPERTY_COMMENTS["formation_energy_per_site"]
    )
    homo_lumo_gap_min: Mapped[float | None] = mapped_column(comment=PROPERTY_COMMENTS["homo_lumo_gap_min"])
    homo_lumo_gap_majority: Mapped[float | None] = mapped_column(comment=PROPERTY_COMMENTS["homo_lumo_gap_majority"])
    homo_lumo_gap_minority: Mapped[float | None] = mapped_column(comment=PROPERTY_COMMENTS["homo_lumo_gap_minority"])
    homo: Mapped[float | None] = mapped_column(comment=PROPERTY_COMMENTS["homo"])
    lumo: Mapped[float | None] = mapped_column(comment=PROPERTY_COMMENTS["lumo"])
    total_mag: Mapped[float | None] = mapped_column(comment=PROPERTY_COMMENTS["total_mag"])
    taken_in_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ModelTrainingResult(Table):
    """Which results a model learnt from."""

    __tablename__ = "model_training_results"
    __table_args__ = (
        CheckConstraint("role IN ('train', 'validation')", name="role"),
        {"comment": "which results a model learnt from, and which it was chosen on"},
    )

    model_id: Mapped[int] = mapped_column(ForeignKey("trained_models.id", ondelete="CASCADE"), primary_key=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("calculation_results.id"), primary_key=True, index=True)
    role: Mapped[str]


class ResultPrediction(Table):
    """What a version in production said of a result before its line learnt from it."""

    __tablename__ = "result_predictions"
    __table_args__ = ({"comment": "what a version in production said of results before its line learnt from them"},)

    model_id: Mapped[int] = mapped_column(ForeignKey("trained_models.id", ondelete="CASCADE"), primary_key=True)
    result_id: Mapped[int] = mapped_column(
        ForeignKey("calculation_results.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    property: Mapped[str] = mapped_column(primary_key=True)
    mean: Mapped[float] = mapped_column(comment="predicted, eV or Bohr magneton")
    std: Mapped[float] = mapped_column(comment="standard deviation, eV or Bohr magneton")
    half_width: Mapped[float] = mapped_column(comment="half of the 95 % interval, eV or Bohr magneton")


class QuarantinedResult(Table):
    """A result that no model learns from or is judged by, until a person releases it."""

    __tablename__ = "quarantined_results"
    __table_args__ = (
        CheckConstraint("state IN ('open', 'released', 'rejected')", name="state"),
        CheckConstraint("(state = 'open') = (decided_at IS NULL)", name="decided_at"),
        {"comment": "results that no model learns from or is judged by, until a person releases them"},
    )

    result_id: Mapped[int] = mapped_column(
        ForeignKey("calculation_results.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    model_id: Mapped[int | None] = mapped_column(
        ForeignKey("trained_models.id"), comment="whose predictions it contradicts; null: a person put it aside"
    )
    state: Mapped[str] = mapped_column(server_default="open", comment="open, released or rejected")
    batch: Mapped[str | None] = mapped_column(comment="the results that are put aside together; null for one alone")
    reason: Mapped[str] = mapped_column(comment="what is wrong with it, with numbers")
    put_aside_at: Mapped[datetime] = mapped_column(server_default=func.now())
    decided_at: Mapped[datetime | None] = mapped_column(comment="when a person released or rejected it")
