"""The whole data flow: hosts, levels of theory, calculations, search spaces, models, predictions, rankings.

Revision: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

PROPERTIES = (
    "formation_energy",
    "formation_energy_per_site",
    "homo_lumo_gap_min",
    "homo_lumo_gap_majority",
    "homo_lumo_gap_minority",
    "homo",
    "lumo",
    "total_mag",
)


def _is_distribution(name: str) -> sa.CheckConstraint:
    mean, std = f"{name}_mean", f"{name}_std"
    condition = f"num_nulls({mean}, {std}) <> 1 AND abs({mean}) < 'Infinity' AND {std} >= 0 AND {std} < 'Infinity'"
    return sa.CheckConstraint(condition, name=op.f(f"ck_predictions_{name}"))


def upgrade() -> None:
    op.create_table(
        "compositions",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("label", sa.Text(), nullable=False, comment="2*v_S+Se_S, or pristine"),
        sa.Column(
            "defect_types", sa.ARRAY(sa.SmallInteger()), nullable=False, comment="ids of defect types, ascending"
        ),
        sa.Column("counts", sa.ARRAY(sa.SmallInteger()), nullable=False, comment="number of each of them"),
        sa.Column("n_defects", sa.SmallInteger(), nullable=False),
        sa.CheckConstraint("cardinality(defect_types) = cardinality(counts)", name=op.f("ck_compositions_counts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_compositions")),
        sa.UniqueConstraint("label", name=op.f("uq_compositions_label")),
        comment="how many defects of each type",
    )
    op.create_table(
        "defect_types",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="v_S, Se_S"),
        sa.Column("removed", sa.Text(), nullable=False),
        sa.Column("added", sa.Text(), nullable=True, comment="null for a vacancy"),
        sa.CheckConstraint("name = coalesce(added, 'v') || '_' || removed", name=op.f("ck_defect_types_name")),
        sa.CheckConstraint("added IS DISTINCT FROM removed", name=op.f("ck_defect_types_is_a_defect")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_defect_types")),
        sa.UniqueConstraint("name", name=op.f("uq_defect_types_name")),
        comment="defect types; id = 128 * Z_removed + Z_added (0 for a vacancy)",
    )
    op.create_table(
        "hosts",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("formula", sa.Text(), nullable=False),
        sa.Column(
            "lattice",
            sa.ARRAY(sa.Double()),
            nullable=False,
            comment="nine numbers, lattice vectors one after another, angstrom",
        ),
        sa.Column(
            "species", sa.ARRAY(sa.Text()), nullable=False, comment="chemical symbol of each site of the unit cell"
        ),
        sa.Column("positions", sa.ARRAY(sa.Double()), nullable=False, comment="fractional coordinates, three per site"),
        sa.Column(
            "is_layer", sa.Boolean(), nullable=False, comment="periodic along the first two lattice vectors only"
        ),
        sa.Column("source", sa.Text(), nullable=False, comment="where lattice and positions come from"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("cardinality(lattice) = 9", name=op.f("ck_hosts_lattice")),
        sa.CheckConstraint("cardinality(positions) = 3 * cardinality(species)", name=op.f("ck_hosts_positions")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hosts")),
        sa.UniqueConstraint("name", name=op.f("uq_hosts_name")),
        comment="pristine materials",
    )
    op.create_table(
        "levels_of_theory",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("functional", sa.Text(), nullable=False),
        sa.Column("settings", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False, comment="SHA-256 of code, functional and settings"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_levels_of_theory")),
        sa.UniqueConstraint("digest", name=op.f("uq_levels_of_theory_digest")),
        sa.UniqueConstraint("name", name=op.f("uq_levels_of_theory_name")),
        comment="code, functional and settings of calculations",
    )
    op.create_table(
        "source_files",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False, comment="as it was given when the file was first read"),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="bytes"),
        sa.Column("parser_version", sa.Text(), nullable=False),
        sa.Column("read_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_source_files")),
        sa.UniqueConstraint("sha256", name=op.f("uq_source_files_sha256")),
        comment="files that results were read from",
    )
    op.create_table(
        "chemical_potentials",
        sa.Column("level_id", sa.Integer(), nullable=False),
        sa.Column("element", sa.Text(), nullable=False),
        sa.Column("energy", sa.Double(), nullable=False, comment="eV per atom"),
        sa.Column("source", sa.Text(), nullable=False, comment="the reference phase"),
        sa.CheckConstraint("abs(energy) < 'Infinity'", name=op.f("ck_chemical_potentials_energy_is_finite")),
        sa.ForeignKeyConstraint(["level_id"], ["levels_of_theory.id"], name=op.f("fk_chemical_potentials_level_id")),
        sa.PrimaryKeyConstraint("level_id", "element", name=op.f("pk_chemical_potentials")),
        comment="references of formation energies",
    )
    op.create_table(
        "supercells",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("host_id", sa.Integer(), nullable=False),
        sa.Column(
            "matrix",
            sa.ARRAY(sa.SmallInteger()),
            nullable=False,
            comment="nine integers: supercell vectors in those of the unit cell",
        ),
        sa.Column("label", sa.Text(), nullable=False, comment="8x8"),
        sa.Column("n_sites", sa.Integer(), nullable=False),
        sa.Column(
            "n_operations", sa.Integer(), nullable=False, comment="distinct site permutations of its symmetry group"
        ),
        sa.CheckConstraint("cardinality(matrix) = 9", name=op.f("ck_supercells_matrix")),
        sa.CheckConstraint("n_sites > 0 AND n_operations > 0", name=op.f("ck_supercells_sizes")),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("fk_supercells_host_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_supercells")),
        sa.UniqueConstraint("host_id", "matrix", name=op.f("uq_supercells_host_id_matrix")),
        comment="supercells whose sites are numbered",
    )
    op.create_table(
        "trained_models",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=True, comment="retrained from"),
        sa.Column("level_id", sa.Integer(), nullable=False),
        sa.Column("properties", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column(
            "settings",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="screening.learning.training.TrainingSettings",
        ),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column(
            "progress",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="member, epoch, loss and validation errors of the last epoch",
        ),
        sa.Column("checkpoint", sa.LargeBinary(), nullable=True, comment="safetensors, to resume from"),
        sa.Column("weights", sa.LargeBinary(), nullable=True, comment="safetensors"),
        sa.Column(
            "weights_sha256",
            sa.Text(),
            sa.Computed("encode(sha256(weights), 'hex')", persisted=True),
            nullable=True,
            comment="of the weights",
        ),
        sa.Column("training_time_s", sa.Double(), nullable=True, comment="seconds"),
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
            "(state = 'finished') = (weights IS NOT NULL)", name=op.f("ck_trained_models_finished_has_weights")
        ),
        sa.CheckConstraint(
            "(state = 'running') = (lease_owner IS NOT NULL AND lease_until IS NOT NULL)",
            name=op.f("ck_trained_models_lease"),
        ),
        sa.CheckConstraint("state <> 'failed' OR error IS NOT NULL", name=op.f("ck_trained_models_failed_has_error")),
        sa.CheckConstraint(
            "state <> 'finished' OR checkpoint IS NULL", name=op.f("ck_trained_models_finished_drops_checkpoint")
        ),
        sa.CheckConstraint(
            "state IN ('waiting', 'running', 'finished', 'failed')", name=op.f("ck_trained_models_state")
        ),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_trained_models_attempts")),
        sa.ForeignKeyConstraint(["level_id"], ["levels_of_theory.id"], name=op.f("fk_trained_models_level_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["trained_models.id"], name=op.f("fk_trained_models_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trained_models")),
        sa.UniqueConstraint("name", name=op.f("uq_trained_models_name")),
        comment="trained models, one level of theory each",
    )
    op.create_index(
        "ix_trained_models_open",
        "trained_models",
        ["id"],
        unique=False,
        postgresql_where=sa.text("state IN ('waiting', 'running')"),
    )
    op.create_table(
        "configurations",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("supercell_id", sa.Integer(), nullable=False),
        sa.Column("composition_id", sa.Integer(), nullable=False),
        sa.Column("n_defects", sa.SmallInteger(), nullable=False),
        sa.Column("sites", sa.ARRAY(sa.SmallInteger()), nullable=False, comment="numbered sites, ascending"),
        sa.Column(
            "defect_types", sa.ARRAY(sa.SmallInteger()), nullable=False, comment="defect type on each of these sites"
        ),
        sa.Column("multiplicity", sa.Integer(), nullable=False, comment="size of its symmetry orbit"),
        sa.CheckConstraint(
            "cardinality(sites) = n_defects AND cardinality(defect_types) = n_defects",
            name=op.f("ck_configurations_n_defects"),
        ),
        sa.CheckConstraint("multiplicity > 0", name=op.f("ck_configurations_multiplicity")),
        sa.ForeignKeyConstraint(["composition_id"], ["compositions.id"], name=op.f("fk_configurations_composition_id")),
        sa.ForeignKeyConstraint(["supercell_id"], ["supercells.id"], name=op.f("fk_configurations_supercell_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_configurations")),
        sa.UniqueConstraint(
            "supercell_id", "sites", "defect_types", name=op.f("uq_configurations_supercell_id_sites_defect_types")
        ),
        comment="canonical configurations: smallest under the supercell's symmetry",
    )
    op.create_index(op.f("ix_configurations_composition_id"), "configurations", ["composition_id"], unique=False)
    op.create_table(
        "model_metrics",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("dataset", sa.Text(), nullable=False),
        sa.Column("property", sa.Text(), nullable=False),
        sa.Column("n_rows", sa.Integer(), nullable=False),
        sa.Column("mae", sa.Double(), nullable=False, comment="mean absolute error, eV or Bohr magneton"),
        sa.Column("rmse", sa.Double(), nullable=False, comment="root mean square error, eV or Bohr magneton"),
        sa.ForeignKeyConstraint(
            ["model_id"], ["trained_models.id"], name=op.f("fk_model_metrics_model_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("model_id", "dataset", "property", name=op.f("pk_model_metrics")),
        comment="errors of models on validation rows never trained on",
    )
    op.create_table(
        "rounds",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False, comment="whose predictions chose them"),
        sa.Column("level_id", sa.Integer(), nullable=False),
        sa.Column(
            "query",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="the design query that the choice serves",
        ),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["level_id"], ["levels_of_theory.id"], name=op.f("fk_rounds_level_id")),
        sa.ForeignKeyConstraint(["model_id"], ["trained_models.id"], name=op.f("fk_rounds_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rounds")),
        comment="batches of proposed calculations",
    )
    op.create_table(
        "search_spaces",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("supercell_id", sa.Integer(), nullable=False),
        sa.Column("defect_types", sa.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column("min_defects", sa.SmallInteger(), nullable=False),
        sa.Column("max_defects", sa.SmallInteger(), nullable=False),
        sa.Column(
            "composition",
            sa.ARRAY(sa.SmallInteger()),
            nullable=True,
            comment="if given, the exact number of each defect type",
        ),
        sa.Column("expected", sa.BigInteger(), nullable=False, comment="number of candidates by Burnside's lemma"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("min_defects BETWEEN 1 AND max_defects", name=op.f("ck_search_spaces_defects")),
        sa.ForeignKeyConstraint(["supercell_id"], ["supercells.id"], name=op.f("fk_search_spaces_supercell_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_search_spaces")),
        sa.UniqueConstraint(
            "supercell_id",
            "defect_types",
            "min_defects",
            "max_defects",
            "composition",
            name="uq_search_spaces_definition",
            postgresql_nulls_not_distinct=True,
        ),
        comment="what is enumerated",
    )
    op.create_table(
        "calculations",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("configuration_id", sa.Integer(), nullable=False),
        sa.Column("level_id", sa.Integer(), nullable=False),
        sa.Column("round_id", sa.Integer(), nullable=True),
        sa.Column("proposal", sa.Text(), nullable=True, comment="why it was proposed"),
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
            "(state = 'running') = (lease_owner IS NOT NULL AND lease_until IS NOT NULL)",
            name=op.f("ck_calculations_lease"),
        ),
        sa.CheckConstraint("state <> 'failed' OR error IS NOT NULL", name=op.f("ck_calculations_failed_has_error")),
        sa.CheckConstraint(
            "state IN ('proposed', 'waiting', 'running', 'finished', 'failed')", name=op.f("ck_calculations_state")
        ),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_calculations_attempts")),
        sa.ForeignKeyConstraint(
            ["configuration_id"], ["configurations.id"], name=op.f("fk_calculations_configuration_id")
        ),
        sa.ForeignKeyConstraint(["level_id"], ["levels_of_theory.id"], name=op.f("fk_calculations_level_id")),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name=op.f("fk_calculations_round_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_calculations")),
        sa.UniqueConstraint("configuration_id", "level_id", name=op.f("uq_calculations_configuration_id_level_id")),
        comment="calculations; proposed ones wait for a person, waiting ones for a worker",
    )
    op.create_index(op.f("ix_calculations_level_id"), "calculations", ["level_id"], unique=False)
    op.create_index(
        "ix_calculations_open",
        "calculations",
        ["id"],
        unique=False,
        postgresql_where=sa.text("state IN ('waiting', 'running')"),
    )
    op.create_index(op.f("ix_calculations_round_id"), "calculations", ["round_id"], unique=False)
    op.create_table(
        "rankings",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("search_space_id", sa.Integer(), nullable=False),
        sa.Column(
            "query",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="the design query, as it was given",
        ),
        sa.Column("sql", sa.Text(), nullable=False, comment="the SELECT it was compiled to"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["trained_models.id"], name=op.f("fk_rankings_model_id")),
        sa.ForeignKeyConstraint(["search_space_id"], ["search_spaces.id"], name=op.f("fk_rankings_search_space_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rankings")),
        comment="snapshots of design queries",
    )
    op.create_table(
        "calculation_results",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("calculation_id", sa.Integer(), nullable=False),
        sa.Column("source_file_id", sa.Integer(), nullable=True),
        sa.Column(
            "dataset", sa.Text(), nullable=False, comment="where it comes from: low_density_defects/MoS2, round 3"
        ),
        sa.Column("row_name", sa.Text(), nullable=False, comment="its name there"),
        sa.Column("split", sa.Text(), nullable=True, comment="train or validation, where the data set says so"),
        sa.Column("energy", sa.Double(), nullable=False, comment="total energy of the supercell, eV"),
        sa.Column("formation_energy", sa.Double(), nullable=True, comment="formation energy, eV"),
        sa.Column(
            "formation_energy_per_site", sa.Double(), nullable=True, comment="formation energy per defect site, eV"
        ),
        sa.Column(
            "homo_lumo_gap_min",
            sa.Double(),
            nullable=True,
            comment="smaller HOMO-LUMO gap of the two spin channels, eV",
        ),
        sa.Column(
            "homo_lumo_gap_majority",
            sa.Double(),
            nullable=True,
            comment="HOMO-LUMO gap of the majority spin channel, eV",
        ),
        sa.Column(
            "homo_lumo_gap_minority",
            sa.Double(),
            nullable=True,
            comment="HOMO-LUMO gap of the minority spin channel, eV",
        ),
        sa.Column("homo", sa.Double(), nullable=True, comment="highest occupied level of either spin, eV"),
        sa.Column("lumo", sa.Double(), nullable=True, comment="lowest unoccupied level of either spin, eV"),
        sa.Column("total_mag", sa.Double(), nullable=True, comment="total magnetisation, Bohr magneton"),
        sa.Column("taken_in_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("abs(energy) < 'Infinity'", name=op.f("ck_calculation_results_energy_is_finite")),
        sa.CheckConstraint(
            " AND ".join(f"abs({name}) < 'Infinity'" for name in PROPERTIES),
            name=op.f("ck_calculation_results_properties_are_finite"),
        ),
        sa.CheckConstraint("split IN ('train', 'validation')", name=op.f("ck_calculation_results_split")),
        sa.ForeignKeyConstraint(
            ["calculation_id"], ["calculations.id"], name=op.f("fk_calculation_results_calculation_id")
        ),
        sa.ForeignKeyConstraint(
            ["source_file_id"], ["source_files.id"], name=op.f("fk_calculation_results_source_file_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_calculation_results")),
        sa.UniqueConstraint("calculation_id", name=op.f("uq_calculation_results_calculation_id")),
        sa.UniqueConstraint("dataset", "row_name", name=op.f("uq_calculation_results_dataset_row_name")),
        comment="results of finished calculations",
    )
    op.create_index(
        op.f("ix_calculation_results_source_file_id"), "calculation_results", ["source_file_id"], unique=False
    )
    op.create_table(
        "model_training_results",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("result_id", sa.Integer(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.CheckConstraint("role IN ('train', 'validation')", name=op.f("ck_model_training_results_role")),
        sa.ForeignKeyConstraint(
            ["model_id"], ["trained_models.id"], name=op.f("fk_model_training_results_model_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["result_id"], ["calculation_results.id"], name=op.f("fk_model_training_results_result_id")
        ),
        sa.PrimaryKeyConstraint("model_id", "result_id", name=op.f("pk_model_training_results")),
        comment="which results a model learnt from, and which it was chosen on",
    )
    op.create_index(op.f("ix_model_training_results_result_id"), "model_training_results", ["result_id"], unique=False)
    create_candidates()
    op.create_table(
        "ranking_rows",
        sa.Column("ranking_id", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("candidate_id", sa.BigInteger(), nullable=False),
        sa.Column("probability", sa.Double(), nullable=False, comment="that all constraints of the query hold"),
        sa.CheckConstraint("probability BETWEEN 0 AND 1", name=op.f("ck_ranking_rows_probability")),
        sa.ForeignKeyConstraint(["candidate_id"], ["candidates.id"], name=op.f("fk_ranking_rows_candidate_id")),
        sa.ForeignKeyConstraint(
            ["ranking_id"], ["rankings.id"], name=op.f("fk_ranking_rows_ranking_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("ranking_id", "rank", name=op.f("pk_ranking_rows")),
        comment="candidates of a ranking in their order",
    )


def create_candidates() -> None:
    """Chunks, candidates and predictions; a function because 0003 replaces them and its downgrade brings them back."""
    op.create_table(
        "chunks",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("search_space_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("n_defects", sa.SmallInteger(), nullable=False),
        sa.Column("prefix_sites", sa.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column("prefix_defect_types", sa.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column("n_candidates", sa.BigInteger(), nullable=True),
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
            "(state = 'finished') = (n_candidates IS NOT NULL)", name=op.f("ck_chunks_finished_is_counted")
        ),
        sa.CheckConstraint(
            "(state = 'running') = (lease_owner IS NOT NULL AND lease_until IS NOT NULL)", name=op.f("ck_chunks_lease")
        ),
        sa.CheckConstraint("state <> 'failed' OR error IS NOT NULL", name=op.f("ck_chunks_failed_has_error")),
        sa.CheckConstraint("state IN ('waiting', 'running', 'finished', 'failed')", name=op.f("ck_chunks_state")),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_chunks_attempts")),
        sa.CheckConstraint(
            "cardinality(prefix_sites) = cardinality(prefix_defect_types)", name=op.f("ck_chunks_prefix")
        ),
        sa.ForeignKeyConstraint(
            ["search_space_id"], ["search_spaces.id"], name=op.f("fk_chunks_search_space_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chunks")),
        sa.UniqueConstraint("search_space_id", "number", name=op.f("uq_chunks_search_space_id_number")),
        comment="parts of search spaces: all configurations that begin with a prefix",
    )
    op.create_index(
        "ix_chunks_open", "chunks", ["id"], unique=False, postgresql_where=sa.text("state IN ('waiting', 'running')")
    )
    op.create_table(
        "candidates",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("search_space_id", sa.Integer(), nullable=False),
        sa.Column("chunk_id", sa.Integer(), nullable=False),
        sa.Column("composition_id", sa.Integer(), nullable=False),
        sa.Column("multiplicity", sa.Integer(), nullable=False),
        sa.Column("sites", sa.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column("defect_types", sa.ARRAY(sa.SmallInteger()), nullable=False),
        sa.CheckConstraint(
            "cardinality(sites) > 0 AND cardinality(defect_types) = cardinality(sites)",
            name=op.f("ck_candidates_defects"),
        ),
        sa.CheckConstraint("multiplicity > 0", name=op.f("ck_candidates_multiplicity")),
        sa.ForeignKeyConstraint(["chunk_id"], ["chunks.id"], name=op.f("fk_candidates_chunk_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["composition_id"], ["compositions.id"], name=op.f("fk_candidates_composition_id")),
        sa.ForeignKeyConstraint(
            ["search_space_id"], ["search_spaces.id"], name=op.f("fk_candidates_search_space_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_candidates")),
        sa.UniqueConstraint(
            "search_space_id", "sites", "defect_types", name=op.f("uq_candidates_search_space_id_sites_defect_types")
        ),
        comment="enumerated canonical configurations",
    )
    op.create_index("ix_candidates_chunk_id", "candidates", ["chunk_id"], unique=False)
    op.create_index(
        "ix_candidates_search_space_id_composition_id",
        "candidates",
        ["search_space_id", "composition_id"],
        unique=False,
    )
    op.create_table(
        "scoring_chunks",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("chunk_id", sa.Integer(), nullable=False),
        sa.Column("n_predictions", sa.BigInteger(), nullable=True),
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
            "(state = 'finished') = (n_predictions IS NOT NULL)", name=op.f("ck_scoring_chunks_finished_is_counted")
        ),
        sa.CheckConstraint(
            "(state = 'running') = (lease_owner IS NOT NULL AND lease_until IS NOT NULL)",
            name=op.f("ck_scoring_chunks_lease"),
        ),
        sa.CheckConstraint("state <> 'failed' OR error IS NOT NULL", name=op.f("ck_scoring_chunks_failed_has_error")),
        sa.CheckConstraint(
            "state IN ('waiting', 'running', 'finished', 'failed')", name=op.f("ck_scoring_chunks_state")
        ),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_scoring_chunks_attempts")),
        sa.ForeignKeyConstraint(
            ["chunk_id"], ["chunks.id"], name=op.f("fk_scoring_chunks_chunk_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["model_id"], ["trained_models.id"], name=op.f("fk_scoring_chunks_model_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scoring_chunks")),
        sa.UniqueConstraint("model_id", "chunk_id", name=op.f("uq_scoring_chunks_model_id_chunk_id")),
        comment="units of scoring work",
    )
    op.create_index(
        "ix_scoring_chunks_open",
        "scoring_chunks",
        ["id"],
        unique=False,
        postgresql_where=sa.text("state IN ('waiting', 'running')"),
    )
    op.create_table(
        "predictions",
        sa.Column("candidate_id", sa.BigInteger(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("formation_energy_mean", sa.REAL(), nullable=True, comment="predicted formation energy, eV"),
        sa.Column(
            "formation_energy_std",
            sa.REAL(),
            nullable=True,
            comment="standard deviation of the predicted formation energy, eV",
        ),
        sa.Column(
            "formation_energy_per_site_mean",
            sa.REAL(),
            nullable=True,
            comment="predicted formation energy per defect site, eV",
        ),
        sa.Column(
            "formation_energy_per_site_std",
            sa.REAL(),
            nullable=True,
            comment="standard deviation of the predicted formation energy per defect site, eV",
        ),
        sa.Column(
            "homo_lumo_gap_min_mean",
            sa.REAL(),
            nullable=True,
            comment="predicted smaller HOMO-LUMO gap of the two spin channels, eV",
        ),
        sa.Column(
            "homo_lumo_gap_min_std",
            sa.REAL(),
            nullable=True,
            comment="standard deviation of the predicted smaller HOMO-LUMO gap of the two spin channels, eV",
        ),
        sa.Column(
            "homo_lumo_gap_majority_mean",
            sa.REAL(),
            nullable=True,
            comment="predicted HOMO-LUMO gap of the majority spin channel, eV",
        ),
        sa.Column(
            "homo_lumo_gap_majority_std",
            sa.REAL(),
            nullable=True,
            comment="standard deviation of the predicted HOMO-LUMO gap of the majority spin channel, eV",
        ),
        sa.Column(
            "homo_lumo_gap_minority_mean",
            sa.REAL(),
            nullable=True,
            comment="predicted HOMO-LUMO gap of the minority spin channel, eV",
        ),
        sa.Column(
            "homo_lumo_gap_minority_std",
            sa.REAL(),
            nullable=True,
            comment="standard deviation of the predicted HOMO-LUMO gap of the minority spin channel, eV",
        ),
        sa.Column("homo_mean", sa.REAL(), nullable=True, comment="predicted highest occupied level of either spin, eV"),
        sa.Column(
            "homo_std",
            sa.REAL(),
            nullable=True,
            comment="standard deviation of the predicted highest occupied level of either spin, eV",
        ),
        sa.Column(
            "lumo_mean", sa.REAL(), nullable=True, comment="predicted lowest unoccupied level of either spin, eV"
        ),
        sa.Column(
            "lumo_std",
            sa.REAL(),
            nullable=True,
            comment="standard deviation of the predicted lowest unoccupied level of either spin, eV",
        ),
        sa.Column("total_mag_mean", sa.REAL(), nullable=True, comment="predicted total magnetisation, Bohr magneton"),
        sa.Column(
            "total_mag_std",
            sa.REAL(),
            nullable=True,
            comment="standard deviation of the predicted total magnetisation, Bohr magneton",
        ),
        *(_is_distribution(name) for name in PROPERTIES),
        sa.ForeignKeyConstraint(
            ["candidate_id"], ["candidates.id"], name=op.f("fk_predictions_candidate_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["model_id"], ["trained_models.id"], name=op.f("fk_predictions_model_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("candidate_id", "model_id", name=op.f("pk_predictions")),
        comment="predictions, append-only per model",
    )
    op.create_index(
        "ix_predictions_model_id_energy", "predictions", ["model_id", "formation_energy_per_site_mean"], unique=False
    )
    op.create_index(
        "ix_predictions_model_id_homo_lumo_gap_min", "predictions", ["model_id", "homo_lumo_gap_min_mean"], unique=False
    )


def drop_candidates() -> None:
    """What create_candidates has made."""
    for name in ("predictions", "scoring_chunks", "candidates", "chunks"):
        op.drop_table(name)


def downgrade() -> None:
    op.drop_table("ranking_rows")
    drop_candidates()
    op.drop_index(op.f("ix_model_training_results_result_id"), table_name="model_training_results")
    op.drop_table("model_training_results")
    op.drop_index(op.f("ix_calculation_results_source_file_id"), table_name="calculation_results")
    op.drop_table("calculation_results")
    op.drop_table("rankings")
    op.drop_index(op.f("ix_calculations_round_id"), table_name="calculations")
    op.drop_index(
        "ix_calculations_open", table_name="calculations", postgresql_where=sa.text("state IN ('waiting', 'running')")
    )
    op.drop_index(op.f("ix_calculations_level_id"), table_name="calculations")
    op.drop_table("calculations")
    op.drop_table("search_spaces")
    op.drop_table("rounds")
    op.drop_table("model_metrics")
    op.drop_index(op.f("ix_configurations_composition_id"), table_name="configurations")
    op.drop_table("configurations")
    op.drop_index(
        "ix_trained_models_open",
        table_name="trained_models",
        postgresql_where=sa.text("state IN ('waiting', 'running')"),
    )
    op.drop_table("trained_models")
    op.drop_table("supercells")
    op.drop_table("chemical_potentials")
    op.drop_table("source_files")
    op.drop_table("levels_of_theory")
    op.drop_table("hosts")
    op.drop_table("defect_types")
    op.drop_table("compositions")
