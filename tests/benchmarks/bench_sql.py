"""SQL of readers over ten million candidates, and a million of them as files.

Made once and kept warm: two minutes, 2.5 GB of disk. Statements are those that docs/sql.md speaks of.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
from sqlalchemy import Engine, text

from screening.database.readers import AS_READER
from screening.database.session import session_scope
from screening.pipeline.export_sources import source_of_sql
from screening.pipeline.exports import export_table
from tests.benchmarks.conftest import Measure
from tests.database.made_predictions import add_predictions

N_ROWS, N_OTHER, N_EXPORTED = 10_000_000, 100_000, 1_000_000
ROW = (
    "SELECT candidate, configuration, defects, homo_lumo_gap_min, homo_lumo_gap_min_std, formation_energy_per_site, "
    "is_calculated, model FROM candidate_predictions WHERE campaign_id = campaign('ten')"
)
BY_ENERGY, BY_GAP = "ORDER BY formation_energy_per_site LIMIT 100", "ORDER BY homo_lumo_gap_min DESC LIMIT 100"
STATEMENTS = {
    "a gap of 1.0 to 1.2, lowest energies": f"{ROW} AND homo_lumo_gap_min BETWEEN 1.0 AND 1.2 {BY_ENERGY}",
    "a gap that is rare, lowest energies": f"{ROW} AND homo_lumo_gap_min BETWEEN 3.0 AND 3.2 {BY_ENERGY}",
    "a gap of high energies, lowest energies": f"{ROW} AND homo_lumo_gap_min BETWEEN 0.1 AND 0.2 {BY_ENERGY}",
    "energies below 0.5, largest gaps": f"{ROW} AND formation_energy_per_site < 0.5 {BY_GAP}",
    "a composition of 5 defects, lowest energies": f"{ROW} AND configuration = '2*v_S+3*Se_S' {BY_ENERGY}",
    "a composition of 3 defects, lowest energies": f"{ROW} AND configuration = '2*v_S+Se_S' {BY_ENERGY}",
    "two types only and a gap, lowest energies": (
        f"{ROW} AND types <@ '{{v_S,Se_S}}' AND homo_lumo_gap_min BETWEEN 1.0 AND 1.2 {BY_ENERGY}"
    ),
    "numbers and average gap of a composition": (
        "SELECT count(*), avg(homo_lumo_gap_min) FROM candidate_predictions "
        "WHERE campaign_id = campaign('ten') AND configuration = '2*v_S+3*Se_S'"
    ),
    "one candidate": f"{ROW} AND candidate_id = 5000000",
    "three or more v_S (a tenth of all), lowest energies": f"{ROW} AND counts['v_S']::int >= 3 {BY_ENERGY}",
}


def bench_sql(measure: Measure, clean_engine: Engine, tmp_path: Path) -> None:
    """As a reader, with everything in memory that the server keeps there."""
    with session_scope(clean_engine) as session:
        add_predictions(session, "finished", N_OTHER)
        add_predictions(session, "unfinished", N_OTHER, is_indexed=False)
        add_predictions(session, "ten", N_ROWS)
    with clean_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE candidates"))
    url = clean_engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, options=AS_READER, autocommit=True) as reader:
        for name, statement in STATEMENTS.items():
            reader.execute(statement).fetchall()
            measure(name, N_ROWS, repeats=3, sql=lambda s=statement: reader.execute(s).fetchall())
    with session_scope(clean_engine) as session:
        everything = source_of_sql(
            session,
            f"SELECT * FROM candidate_predictions WHERE campaign_id = campaign('ten') AND candidate_id < {N_EXPORTED}",
        )
    for kind, name in (("csv", "a.csv"), ("csv", "a.csv.gz"), ("parquet", "a.parquet")):
        measure(
            f"all columns of a million candidates into {name}", N_EXPORTED, repeats=1,
            export=lambda k=kind, n=name: export_table(clean_engine, everything, tmp_path / n, kind=k),
        )  # fmt: skip
