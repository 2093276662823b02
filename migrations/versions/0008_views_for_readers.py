"""Views for people who read with SQL, and the role that may read nothing else.

Names and columns of these views stay as they are: programs of others depend on them. Every column has a comment with
its unit, from which docs/data-dictionary.md is made. A view runs with the rights of its owner, so that the role
`screening_reader` needs none on the tables.

A role belongs to the whole server, the rights that it is given here to this database. A server that does not let us
make one is no reason to fail: `screening sql` then says what an administrator has to do.

Revision: 0008
Revises: 0007
"""

# ruff: noqa: S608 - the SQL is put together of constants of this file
from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
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

# Named IMMUTABLE though it reads a table, so that the planner knows the partition before it plans: a partition that is
# only found when the query starts is planned together with all others, and those that are still being filled have no
# index. It is safe: ids are never used twice, and a campaign comes and goes with its partition, which makes the server
# throw away every plan that was made for the table.
FUNCTIONS = """
CREATE FUNCTION campaign(name text) RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE found integer;
BEGIN
    SELECT id INTO found FROM campaigns WHERE campaigns.name = campaign.name;
    IF found IS NULL THEN
        RAISE EXCEPTION 'no campaign is called "%"', campaign.name
            USING HINT = 'SELECT campaign, state FROM campaign_progress shows those there are.',
            ERRCODE = 'no_data_found';
    END IF;
    RETURN found;
END $$;
COMMENT ON FUNCTION campaign IS
    'id of the campaign of this name: WHERE campaign_id = campaign(''gaps'') reads nothing of any other';

CREATE FUNCTION grant_to_readers() RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
-- the views by name: what comes later is not shown before somebody has thought of it
DECLARE relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY[{views}]
    LOOP
        EXECUTE format('GRANT SELECT ON %I TO screening_reader', relation);
    END LOOP;
    GRANT SELECT ON alembic_version TO screening_reader; -- `screening sql` of a reader looks whether it fits
    GRANT USAGE ON SCHEMA public TO screening_reader;
    GRANT EXECUTE ON FUNCTION campaign TO screening_reader;
END $$;
COMMENT ON FUNCTION grant_to_readers IS 'lets the role screening_reader read the documented views of this database';
REVOKE EXECUTE ON FUNCTION campaign, grant_to_readers FROM PUBLIC;
"""

# Two databases of a server may be migrated at once, and only one of them makes the role. Whoever makes a role may hand
# it on, but has to do so to take it itself (SET ROLE).
ROLE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'screening_reader') THEN
        BEGIN
            CREATE ROLE screening_reader NOLOGIN;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN RAISE NOTICE 'the role screening_reader could not be made';
        END;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'screening_reader') THEN
        PERFORM grant_to_readers();
        IF NOT pg_has_role('screening_reader', 'SET') THEN
            BEGIN
                EXECUTE format('GRANT screening_reader TO %I', current_user);
            EXCEPTION
                WHEN insufficient_privilege OR unique_violation THEN
                    RAISE NOTICE 'the role screening_reader could not be taken by %', current_user;
            END;
        END IF;
    END IF;
END $$;
"""

TYPES = """
    coalesce((SELECT array_agg(name ORDER BY defect_types.id) FROM defect_types
        WHERE defect_types.id = ANY (compositions.defect_types)), '{}') AS types,
    coalesce((SELECT jsonb_object_agg(name, n) FROM unnest(compositions.defect_types, compositions.counts)
        AS counted (id, n) JOIN defect_types USING (id)), '{}') AS counts"""


def defects(sites: str, defect_types: str) -> str:
    """Defects at their sites, `{v_S@16,Se_S@20}`; only worked out for the rows that are shown."""
    return (
        f"coalesce((SELECT array_agg(name || '@' || site ORDER BY site) FROM unnest({sites}, {defect_types}) "
        "AS placed (site, id) JOIN defect_types USING (id)), '{}') AS defects"
    )


PREDICTED = ",\n    ".join(
    f"candidates.{name}_mean AS {name}, candidates.{name}_std AS {name}_std" for name in PROPERTIES
)
SAVED = ",\n    ".join(
    f"max(mean) FILTER (WHERE property = '{name}') AS {name}, max(std) FILTER (WHERE property = '{name}') AS {name}_std"
    for name in PROPERTIES
)
CALCULATED = ", ".join(f"calculation_results.{name}" for name in PROPERTIES)

# That the number of defects is that of the composition is true anyway. The planner takes it for a condition that few
# rows satisfy, and so for a good reason to begin with the arrangements of a composition where one is asked for: it
# does not know that a composition and its energies go together, and would walk along the energies until it has met
# enough of it (4.6 s instead of 0.03 s for 2*v_S+Se_S among 10 million).
VIEWS = {
    "candidate_predictions": f"""
SELECT campaigns.name || ':' || candidates.id AS candidate, candidates.campaign_id, candidates.id AS candidate_id,
    campaigns.name AS campaign, hosts.name AS host, supercells.label AS supercell,
    compositions.label AS configuration, compositions.n_defects,{TYPES},
    {defects("candidates.sites", "arrangements.defect_types")},
    candidates.sites, candidates.multiplicity, candidates.closest, candidates.farthest,
    {PREDICTED},
    EXISTS (SELECT FROM configurations JOIN calculations ON configuration_id = configurations.id
        WHERE configurations.supercell_id = search_spaces.supercell_id AND configurations.sites = candidates.sites
            AND configurations.defect_types = arrangements.defect_types
            AND calculations.level_id = trained_models.level_id AND calculations.state = 'finished') AS is_calculated,
    trained_models.name AS model, model_lines.name AS line,
    EXISTS (SELECT FROM models_in_production WHERE model_id = trained_models.id) AS is_in_production,
    levels_of_theory.name AS level_of_theory, campaigns.finished_at AS predicted_at,
    now() - campaigns.finished_at AS age
FROM candidates JOIN arrangements ON arrangements.id = candidates.arrangement_id
    JOIN compositions ON compositions.id = arrangements.composition_id
        AND compositions.n_defects = cardinality(candidates.sites)
    JOIN campaigns ON campaigns.id = candidates.campaign_id
    JOIN search_spaces ON search_spaces.id = campaigns.search_space_id
    JOIN supercells ON supercells.id = search_spaces.supercell_id
    JOIN hosts ON hosts.id = supercells.host_id
    LEFT JOIN trained_models ON trained_models.id = campaigns.model_id
    LEFT JOIN model_lines ON model_lines.id = trained_models.line_id
    LEFT JOIN levels_of_theory ON levels_of_theory.id = trained_models.level_id""",
    "current_predictions": """
SELECT candidate_predictions.* FROM candidate_predictions JOIN (
    SELECT DISTINCT ON (campaigns.search_space_id, models_in_production.line_id) campaigns.id
    FROM campaigns JOIN models_in_production USING (model_id)
    WHERE campaigns.state = 'finished' AND campaigns.storage = 'all'
    ORDER BY campaigns.search_space_id, models_in_production.line_id, campaigns.id DESC
) AS newest ON newest.id = candidate_predictions.campaign_id""",
    "campaign_compositions": f"""
SELECT campaigns.id AS campaign_id, campaigns.name AS campaign, hosts.name AS host, supercells.label AS supercell,
    compositions.label AS configuration, compositions.n_defects,{TYPES},
    search_space_counts.expected AS candidates, coalesce(counted.n_candidates, 0) AS candidates_done,
    counted.n_matching AS candidates_matching
FROM campaigns JOIN search_spaces ON search_spaces.id = campaigns.search_space_id
    JOIN supercells ON supercells.id = search_spaces.supercell_id
    JOIN hosts ON hosts.id = supercells.host_id
    JOIN search_space_counts ON search_space_counts.search_space_id = search_spaces.id
    JOIN compositions ON compositions.id = search_space_counts.composition_id
    LEFT JOIN (
        SELECT campaign_id, composition_id, sum(chunk_counts.n_candidates)::bigint AS n_candidates,
            sum(chunk_counts.n_matching)::bigint AS n_matching
        FROM chunks JOIN chunk_counts ON chunk_id = chunks.id GROUP BY campaign_id, composition_id
    ) AS counted ON counted.campaign_id = campaigns.id AND counted.composition_id = compositions.id""",
    "calculated_results": f"""
SELECT calculation_results.id AS result_id, hosts.name AS host, supercells.label AS supercell,
    compositions.label AS configuration, configurations.n_defects,{TYPES},
    {defects("configurations.sites", "configurations.defect_types")},
    configurations.sites, configurations.multiplicity, levels_of_theory.name AS level_of_theory,
    calculation_results.energy, {CALCULATED},
    CASE WHEN retracted_at IS NOT NULL THEN 'retracted' WHEN quarantined_results.state = 'rejected' THEN 'rejected'
        WHEN quarantined_results.state = 'open' THEN 'aside' ELSE 'usable' END AS standing,
    CASE WHEN retracted_at IS NOT NULL THEN retraction
        WHEN quarantined_results.state IN ('open', 'rejected') THEN quarantined_results.reason END AS remark,
    dataset, row_name, calculation_id, round_id, path AS file, sha256, parser_version, taken_in_at
FROM calculation_results JOIN calculations ON calculations.id = calculation_id
    JOIN configurations ON configurations.id = configuration_id
    JOIN compositions ON compositions.id = configurations.composition_id
    JOIN supercells ON supercells.id = configurations.supercell_id
    JOIN hosts ON hosts.id = supercells.host_id
    JOIN levels_of_theory ON levels_of_theory.id = calculations.level_id
    LEFT JOIN source_files ON source_files.id = source_file_id
    LEFT JOIN quarantined_results ON quarantined_results.result_id = calculation_results.id""",
    "models_and_errors": """
SELECT trained_models.id AS model_id, trained_models.name AS model, model_lines.name AS line, trained_models.version,
    levels_of_theory.name AS level_of_theory,
    EXISTS (SELECT FROM models_in_production WHERE model_id = trained_models.id) AS is_in_production,
    parents.name AS parent, trained_models.finished_at AS trained_at, trained_models.training_time_s,
    (SELECT count(*) FROM model_training_results WHERE model_id = trained_models.id AND role = 'train') AS n_training,
    dataset, property, n_rows, mae, rmse
FROM trained_models JOIN model_lines ON model_lines.id = trained_models.line_id
    JOIN levels_of_theory ON levels_of_theory.id = trained_models.level_id
    LEFT JOIN trained_models AS parents ON parents.id = trained_models.parent_id
    LEFT JOIN model_metrics ON model_id = trained_models.id
WHERE trained_models.state = 'finished'""",
    "host_supercells": """
SELECT hosts.name AS host, formula, is_layer, hosts.source, supercells.id AS supercell_id, label AS supercell, matrix,
    n_sites, n_operations, lattice
FROM hosts LEFT JOIN supercells ON host_id = hosts.id""",
    "reference_energies": """
SELECT levels_of_theory.name AS level_of_theory, code, functional, settings, element, energy AS chemical_potential,
    chemical_potentials.source
FROM levels_of_theory LEFT JOIN chemical_potentials ON level_id = levels_of_theory.id""",
    "saved_rankings": """
SELECT rankings.id AS ranking_id, coalesce(rankings.name, 'ranking ' || rankings.id) AS ranking,
    designs.name AS design, trained_models.name AS model, levels_of_theory.name AS level_of_theory,
    (SELECT array_agg(campaign ORDER BY place) FROM ranking_campaigns WHERE ranking_id = rankings.id) AS campaigns,
    (SELECT count(*) FROM ranking_rows WHERE ranking_id = rankings.id) AS n_rows, temperature,
    (SELECT jsonb_object_agg(element, energy) FROM ranking_references
        WHERE ranking_id = rankings.id AND place = 0) AS chemical_potentials,
    rankings.query, rankings.sql, rankings.created_at,
    EXISTS (SELECT FROM rests_on_retracted WHERE kind = 'ranking' AND id = rankings.id) AS rests_on_retracted
FROM rankings JOIN trained_models ON trained_models.id = rankings.model_id
    JOIN levels_of_theory ON levels_of_theory.id = rankings.level_id
    LEFT JOIN designs ON designs.id = rankings.design_id""",
    "saved_ranking_rows": f"""
SELECT rankings.id AS ranking_id, coalesce(rankings.name, 'ranking ' || rankings.id) AS ranking, ranking_rows.rank,
    campaign || ':' || candidate_id AS candidate, hosts.name AS host, supercells.label AS supercell,
    compositions.label AS configuration, cardinality(ranking_rows.sites) AS n_defects,
    {defects("ranking_rows.sites", "ranking_rows.defect_types")},
    ranking_rows.sites, multiplicity, probability, concentration, is_calculated, reason,
    {", ".join(f"{name}, {name}_std" for name in PROPERTIES)}
FROM rankings JOIN ranking_rows ON ranking_rows.ranking_id = rankings.id
    LEFT JOIN ranking_campaigns ON ranking_campaigns.ranking_id = rankings.id
        AND ranking_campaigns.place = ranking_rows.place
    LEFT JOIN compositions ON compositions.id = ranking_rows.composition_id
    LEFT JOIN supercells ON supercells.id = ranking_campaigns.supercell_id
    LEFT JOIN hosts ON hosts.id = supercells.host_id
    CROSS JOIN LATERAL (
    SELECT {SAVED}
    FROM ranking_values WHERE ranking_id = rankings.id AND ranking_values.rank = ranking_rows.rank
    ) AS predicted""",
    "proposed_calculations": f"""
SELECT calculations.id AS calculation_id, round_id, coalesce(rounds.name, 'round ' || round_id) AS round,
    hosts.name AS host, supercells.label AS supercell, compositions.label AS configuration, configurations.n_defects,
    {defects("configurations.sites", "configurations.defect_types")}, configurations.sites,
    levels_of_theory.name AS level_of_theory, calculations.state, proposal AS reason, worth, expected_s, attempts,
    coalesce(error, (SELECT reason FROM calculation_failures WHERE calculation_id = calculations.id
        ORDER BY attempt DESC LIMIT 1)) AS error,
    job, calculations.created_at, exported_at, submitted_at, started_at, finished_at
FROM calculations JOIN rounds ON rounds.id = round_id
    JOIN configurations ON configurations.id = configuration_id
    JOIN compositions ON compositions.id = configurations.composition_id
    JOIN supercells ON supercells.id = configurations.supercell_id
    JOIN hosts ON hosts.id = supercells.host_id
    JOIN levels_of_theory ON levels_of_theory.id = calculations.level_id""",
    "design_loops": """
SELECT loops.id AS loop_id, loops.name AS loop, designs.name AS design, model_lines.name AS line,
    levels_of_theory.name AS level_of_theory, loops.state, loops.stage, coalesce(loops.error, loops.remark) AS remark,
    loops.batch, loops.max_calculations, number AS step, loop_steps.stage AS step_stage, trained_models.name AS model,
    ranking_id, loop_steps.round_id, n_calculated, best, n_changed, mae, loop_steps.started_at, loop_steps.finished_at
FROM loops JOIN designs ON designs.id = design_id
    JOIN model_lines ON model_lines.id = loops.line_id
    JOIN levels_of_theory ON levels_of_theory.id = loops.level_id
    LEFT JOIN loop_steps ON loop_id = loops.id
    LEFT JOIN trained_models ON trained_models.id = model_id""",
}
VIEW_COMMENTS = {
    "candidate_predictions": "candidates of all campaigns with what is predicted of them; a row each",
    "current_predictions": "of each search space and model line, the candidates of the newest complete campaign that "
    "the version in production has scored",
    "campaign_compositions": "how many candidates of each composition a campaign has",
    "calculated_results": "results of calculations, those that no model learns from among them",
    "models_and_errors": "trained models with their errors on results that they have not learnt from; a row for each "
    "model, data set and property",
    "host_supercells": "pristine materials with their supercells",
    "reference_energies": "levels of theory with the chemical potentials of their references; a row for each element",
    "saved_rankings": "rankings that were saved: what was asked, of which model, and when",
    "saved_ranking_rows": "rows of saved rankings with what was predicted then, in the ranking's chemical potentials",
    "proposed_calculations": "calculations that rounds propose, with their reasons and how far they are",
    "design_loops": "loops of ranking, calculating and learning; a row for each stage that they have been through",
}
OLDER_VIEWS = (
    "campaign_progress", "campaign_workers", "campaign_histograms", "models_in_production", "round_progress",
    "rests_on_retracted",
)  # fmt: skip

COLUMNS = {
    "candidate": "name of a candidate, campaign:number, as `screening why` takes it",
    "candidate_id": "number of the candidate within its campaign",
    "campaign_id": "number of the campaign; campaign('name') is that of a name",
    "campaign": "name of the campaign, the scan of a search space by one model",
    "host": "name of the pristine material",
    "supercell": "repeats of the unit cell: 8x8",
    "configuration": "how often each defect type occurs: 2*v_S+Se_S",
    "n_defects": "number of defects",
    "types": "defect types that occur, each once: {v_S,Se_S}",
    "counts": 'number of each defect type: {"v_S": 2, "Se_S": 1}',
    "defects": "defect types at their sites: {v_S@16,Se_S@20}",
    "sites": "numbered sites of the supercell, ascending",
    "multiplicity": "number of configurations that symmetry makes of it, itself among them",
    "closest": "shortest distance between two of its defects, angstrom; null for one defect",
    "farthest": "longest distance between two of its defects, angstrom; null for one defect",
    "is_calculated": "whether a finished calculation of it exists at the model's level of theory",
    "model": "name of the trained model",
    "model_id": "number of the trained model",
    "line": "name of the model whose version it is",
    "line_id": "number of the model whose version it is",
    "version": "number of the version in its line, from 1 on",
    "is_in_production": "whether the model is in production now",
    "level_of_theory": "what makes energies comparable: code, functional and settings",
    "predicted_at": "when the campaign was finished; null before",
    "age": "time since the campaign was finished; null before",
    "result_id": "number of the result, as `screening affected` takes it",
    "calculation_id": "number of the calculation",
    "round_id": "number of the round that proposed the calculation",
    "round": "name of the round",
    "energy": "total energy of the supercell, eV",
    "standing": "usable, aside (in quarantine), rejected or retracted; models learn from usable ones only",
    "remark": "why it is not used, or what it waits for",
    "dataset": "where it comes from: low_density_defects/MoS2, round 3",
    "row_name": "its name there",
    "file": "path of the file it was read from",
    "sha256": "digest of this file",
    "parser_version": "version of the program that read it",
    "taken_in_at": "when it was read",
    "candidates": "number of candidates, exactly",
    "candidates_done": "of them, those that are done",
    "candidates_matching": "of them, those that satisfy the campaign's query; null where it has none",
    "candidates_left": "of them, those that are still to be done",
    "parent": "model that it was retrained from",
    "trained_at": "when its training was finished",
    "training_time_s": "how long that took, seconds",
    "n_training": "number of results that it has learnt from",
    "property": "name of the property",
    "n_rows": "number of rows",
    "mae": "mean absolute error, eV or Bohr magneton",
    "rmse": "root mean square error, eV or Bohr magneton",
    "formula": "composition of the unit cell",
    "is_layer": "periodic along the first two lattice vectors only",
    "source": "where it comes from",
    "supercell_id": "number of the supercell",
    "matrix": "nine integers: supercell vectors in those of the unit cell",
    "n_sites": "number of sites of the supercell",
    "n_operations": "symmetry operations of the supercell, as permutations of its sites",
    "lattice": "lattice vectors of the unit cell, nine numbers, angstrom",
    "code": "program of the calculations",
    "functional": "functional or Hamiltonian",
    "settings": "everything else that changes an energy",
    "element": "chemical symbol",
    "chemical_potential": "energy of the element in its reference, eV per atom",
    "chemical_potentials": "of the ranking's first place, by element, eV per atom",
    "ranking_id": "number of the ranking",
    "ranking": "name of the ranking, or `ranking 3`",
    "design": "name of the open design",
    "campaigns": "names of the campaigns that were ranked",
    "temperature": "of the concentrations, K",
    "query": "the design query",
    "sql": "the SELECT that it was compiled to",
    "created_at": "when it was made",
    "rests_on_retracted": "whether its model has learnt from a result that was withdrawn since",
    "rank": "place in the ranking, from 1 on",
    "probability": "that every window of the query holds, 0 to 1",
    "concentration": "estimate at the ranking's temperature, per cm^2 of a layer, per cm^3 of a crystal",
    "reason": "why it was chosen, with numbers",
    "state": "planned, proposed, waiting, running, finished and so on",
    "worth": "what its result was expected to be worth, as its round says",
    "expected_s": "how long it was expected to take, seconds",
    "attempts": "how often it was begun",
    "error": "why it failed",
    "job": "its number on the machine that calculates it",
    "exported_at": "when its inputs were written",
    "submitted_at": "when it was given to another machine",
    "started_at": "when it was begun",
    "finished_at": "when it was finished",
    "loop_id": "number of the loop",
    "loop": "name of the loop",
    "stage": "what the loop does now: rank, propose, calculate, learn or rescore",
    "batch": "calculations of a round",
    "max_calculations": "the loop ends when so many were made",
    "step": "number of the stage that was gone through, from 1 on",
    "step_stage": "which stage that was: rank, propose, calculate, learn or rescore",
    "n_calculated": "calculations made until then",
    "best": "best calculated value of what the design sorts by, eV or Bohr magneton",
    "n_changed": "of the best rows, those that were not among them before",
    "storage": "all: every candidate is kept; best: those that the query ranks first",
    "search_space_id": "number of the search space",
    "chunks": "number of independent parts",
    "chunks_done": "of them, those that are done",
    "chunks_running": "of them, those that a worker holds",
    "chunks_failed": "of them, those that have failed",
    "workers": "processes that work on it now",
    "per_second": "candidates per second, of late",
    "seconds_left": "at this rate",
    "production": "name of the model that is in production instead",
    "is_stale": "whether another version of its model is in production",
    "worker": "host and process",
    "is_working": "whether it holds a part now",
    "heartbeat": "when it last said that it is alive",
    "peak_memory_mb": "largest resident size, MB",
    "bin": "number of the bin; 0 is open below, the last one above",
    "low": "lower end of the bin, eV or Bohr magneton; null where it is open",
    "high": "upper end of the bin, eV or Bohr magneton; null where it is open",
    "promotion_id": "number of the promotion",
    "promoted_at": "when it went into production",
    "calculations": "number of calculations",
    "proposed": "of them, those that wait for a person",
    "exported": "of them, those whose inputs are written",
    "submitted": "of them, those that run elsewhere",
    "waiting": "of them, those that wait for a worker",
    "running": "of them, those that a worker calculates",
    "finished": "of them, those that have a result",
    "failed": "of them, those that have failed",
    "folder": "where the inputs were written last",
    "last_finished_at": "when the last calculation was finished",
    "kind": "model, campaign or ranking",
    "id": "its number",
    "name": "its name",
    **{name: f"calculated {comment}" for name, comment in PROPERTIES.items()},
}
PREDICTING = ("candidate_predictions", "current_predictions", "saved_ranking_rows")


def upgrade() -> None:
    connection = op.get_bind()
    for view, sql in VIEWS.items():
        _run(connection, f"CREATE VIEW {view} AS {sql}")
        _run(connection, f"COMMENT ON VIEW {view} IS {_quoted(VIEW_COMMENTS[view])}")
    readable = (*VIEWS, *OLDER_VIEWS)
    _comment_on_columns(connection, readable)
    _run(connection, FUNCTIONS.format(views=", ".join(map(_quoted, readable))))
    _run(connection, ROLE)


def downgrade() -> None:
    connection = op.get_bind()
    _run(connection, "DROP FUNCTION grant_to_readers, campaign")
    for view in reversed(VIEWS):
        _run(connection, f"DROP VIEW {view}")
    for view, column in _columns_of(connection, OLDER_VIEWS):
        _run(connection, f"COMMENT ON COLUMN {view}.{column} IS NULL")
    if _has_reader(connection):
        _run(connection, f"REVOKE ALL ON alembic_version, {', '.join(OLDER_VIEWS)} FROM screening_reader")
        _run(connection, "REVOKE ALL ON SCHEMA public FROM screening_reader")


def _run(connection: sa.Connection, sql: str) -> None:
    """As it is: neither `:name` nor `%` stands for a parameter."""
    connection.exec_driver_sql(sql.replace("%", "%%"))


def _comment_on_columns(connection: sa.Connection, views: tuple[str, ...]) -> None:
    predicted = {
        **{name: f"predicted {comment}" for name, comment in PROPERTIES.items()},
        **{f"{name}_std": f"standard deviation of the predicted {comment}" for name, comment in PROPERTIES.items()},
    }
    for view, column in _columns_of(connection, views):
        comments = COLUMNS | predicted if view in PREDICTING else COLUMNS
        _run(connection, f"COMMENT ON COLUMN {view}.{column} IS {_quoted(comments[column])}")


def _columns_of(connection: sa.Connection, views: tuple[str, ...]) -> list[tuple[str, str]]:
    found = connection.execute(
        sa.text(
            "SELECT relname, attname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid "
            "WHERE relnamespace = 'public'::regnamespace AND relname = ANY (:views) AND attnum > 0 ORDER BY 1, attnum"
        ),
        {"views": list(views)},
    )
    return [(str(view), str(column)) for view, column in found]


def _has_reader(connection: sa.Connection) -> bool:
    return bool(connection.scalar(sa.text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'screening_reader')")))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
