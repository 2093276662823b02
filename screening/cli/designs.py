"""Design queries and what follows from them: design, next, calculate, results add."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.cli.options import AsJson, HostName, LevelName, MaxDefects, ModelName, SomeSupercell, Wait
from screening.cli.output import Tick, note, print_json, print_table, progress_bar, wait_for
from screening.cli.project import Project, stored_host_name
from screening.errors import InputError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from screening.database.design_query import DesignQuery, Window

Gap = Annotated[str | None, typer.Option("--gap", help="Window on homo_lumo_gap_min in eV: 1.0:1.2, 1.0: or :1.2.")]
Windows = Annotated[
    list[str] | None,
    typer.Option("--window", help="Window on any property: formation_energy_per_site=:3.0; may be repeated."),
]
Sort = Annotated[str, typer.Option("--sort", help="Property to rank by, or `probability`.")]
Highest = Annotated[bool, typer.Option("--highest", help="Rank the highest first, not the lowest.")]
Confidence = Annotated[
    float, typer.Option("--confidence", help="Smallest probability that every window holds, 0 to 1.")
]


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(design)
    app.command("next")(next_)
    app.command()(calculate)
    results = typer.Typer(help="Results of calculations.", no_args_is_help=True)
    results.command("add")(results_add)
    app.add_typer(results, name="results")


def design(
    host: HostName,
    supercell: SomeSupercell = None,
    gap: Gap = None,
    window: Windows = None,
    max_defects: MaxDefects = None,
    sort: Sort = "formation_energy_per_site",
    highest: Highest = False,
    confidence: Confidence = 0.5,
    limit: Annotated[int, typer.Option("--limit", help="Rows at most.")] = 20,
    model: ModelName = None,
    save: Annotated[bool, typer.Option("--save", help="Keep the ranking as a snapshot.")] = False,
    as_json: AsJson = False,
) -> None:
    """Rank the scored candidates that have the properties you want."""
    from screening.pipeline.designs import run_design_query, store_ranking

    query = build_query(
        host=host, supercell=supercell, gap=gap, window=window, max_defects=max_defects, sort=sort,
        highest=highest, confidence=confidence, limit=limit,
    )  # fmt: skip
    ranking = None
    with Project().transaction() as session:
        query = with_stored_host(session, query)
        table = run_design_query(session, query, model_name=model)
        if save:
            ranking = store_ranking(session, query, table)
    if as_json:
        space = {"id": table.search_space_id, "description": table.search_space, "candidates": table.candidates}
        print_json(
            {"sql": table.sql, "model": table.model, "search_space": space, "rows": table.rows, "ranking": ranking}
        )
        return
    if not table.rows:
        print(describe_nothing(query, table.candidates))
    else:
        print_ranking(table.rows, query)
    print(
        f"\n{len(table.rows)} rows by model {table.model}, of the {table.candidates} candidates of search space "
        f"{table.search_space_id} ({table.search_space})" + (f", kept as ranking {ranking}" if save else "")
    )


def build_query(
    *,
    host: str,
    supercell: str | None = None,
    gap: str | None = None,
    window: Sequence[str] | None = None,
    **others: Any,
) -> DesignQuery:
    """The design query of a command's options.

    Raises:
        InputError: an option cannot be read.
    """
    from pydantic import ValidationError

    from screening.database.design_query import DesignQuery, Window

    windows = [Window.parse("homo_lumo_gap_min", gap)] if gap else []
    for text in window or ():
        name, separator, limits = text.partition("=")
        if not separator:
            raise InputError(f"--window {text!r} cannot be read; write property=low:high")
        windows.append(Window.parse(name.strip(), limits))
    others["direction"] = "highest" if others.pop("highest", False) else "lowest"
    try:
        return DesignQuery(host=host, supercell=supercell, windows=tuple(windows), **others)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']} (found {e['input']!r})" for e in error.errors())
        raise InputError(f"the design query is not acceptable: {faults}") from error


def with_stored_host(session: Session, query: DesignQuery) -> DesignQuery:
    """The query under the name by which the database knows its host: h-BN for hBN."""
    return query.model_copy(update={"host": stored_host_name(session, query.host)})


def print_ranking(rows: list[dict[str, Any]], query: DesignQuery) -> None:
    """Print ranked rows with the properties that the query speaks of."""
    sort = [query.sort] if query.sort != "probability" else []
    shown = list(dict.fromkeys([*sort, *(window.property for window in query.windows), "homo_lumo_gap_min"]))
    shown = [name for name in shown if not rows or f"{name}_mean" in rows[0]]
    columns = ["rank", "candidate", "configuration", "sites", "probability", *shown, "calculated"]
    table = []
    for rank, row in enumerate(rows, start=1):
        values = [f"{row[f'{name}_mean']:.3f} +- {row[f'{name}_std']:.3f}" for name in shown]
        calculated = "yes" if row["calculated"] else ""
        sites = " ".join(f"{d}@{s}" for d, s in zip(row["defects"], row["sites"], strict=True))
        table.append(
            [rank, row["candidate"], row["configuration"], sites, round(row["probability"], 3), *values, calculated]
        )
    print_table(columns, table)


def describe_nothing(query: DesignQuery, candidates: int) -> str:
    """Why a ranking may be empty, and what to change."""
    if not query.windows:
        return f"the search space has {candidates} candidates; score another one"
    windows = " and ".join(f"{w.property} {_ends(w)}" for w in query.windows)
    return (
        f"none of the {candidates} candidates has {windows} with a probability of {query.confidence:g} or more; lower "
        "--confidence, or widen the windows"
    )


def _ends(window: Window) -> str:
    """The window as its option is written: `1.0:1.2`."""
    return ":".join("" if end is None else f"{end:g}" for end in (window.low, window.high))


def next_(
    host: HostName,
    supercell: SomeSupercell = None,
    gap: Gap = None,
    window: Windows = None,
    max_defects: MaxDefects = None,
    sort: Sort = "formation_energy_per_site",
    highest: Highest = False,
    n: Annotated[int, typer.Option("--n", help="How many calculations to propose.")] = 5,
    model: ModelName = None,
    level: Annotated[
        str | None,
        typer.Option(
            "--level", help='Level of theory of the calculations: "GFN1-xTB relaxed"; the model\'s if not given.'
        ),
    ] = None,
    only_stored: Annotated[
        bool, typer.Option("--only-stored", help="Only configurations that an import brought without results.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed, kept with the round.")] = 0,
    structures: Annotated[
        Path | None,
        typer.Option("--structures", help="Folder for a POSCAR of each proposal, to calculate it elsewhere."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Propose the next calculations for a design query, and store them as a round."""
    query = build_query(
        host=host, supercell=supercell, gap=gap, window=window, max_defects=max_defects, sort=sort, highest=highest
    )
    proposals = propose_stored(
        Project(), query, structures, n=n, model_name=model, level_name=level, only_stored=only_stored, seed=seed
    )
    if as_json:
        print_json({"proposals": proposals})
    else:
        print_proposals(proposals)
        if structures is not None:
            print(f"\n{len(proposals)} structures in {structures}; `screening results add` takes their results in")


def propose_stored(
    project: Project, query: DesignQuery, structures: Path | None = None, **choice: Any
) -> list[dict[str, Any]]:
    """Store a round of proposals, chosen as `screening.pipeline.rounds.propose` is told; one row each.

    Args:
        structures: folder for a structure file of each proposal; the round is stored once they are written.
    """
    from dataclasses import asdict

    from screening.pipeline.rounds import propose, write_structures

    with project.transaction() as session:
        found = propose(session, with_stored_host(session, query), **choice)
        rows = [asdict(proposal) for proposal in found]
        if structures is not None:
            paths = write_structures(session, [proposal.calculation_id for proposal in found], structures)
            rows = [row | {"structure": paths[row["calculation_id"]]} for row in rows]
        return rows


def print_proposals(proposals: list[dict[str, Any]]) -> None:
    """Print a round."""
    columns = ["calculation_id", "candidate_id", "configuration", "sites", "reason"]
    print_table(columns, [[proposal[column] for column in columns] for proposal in proposals])


def calculate(
    level: LevelName = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Calculations at most.")] = None,
    failed_too: Annotated[bool, typer.Option("--retry-failed", help="Also those that failed before.")] = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Hand the proposed calculations to the workers, who run the built-in calculator on them (GFN1-xTB).

    Exit code 1 if one of them failed; its reason is kept.
    """
    project = Project()
    found = calculate_stored(project, level=level, limit=limit, failed_too=failed_too, wait=wait)
    if as_json:
        print_json({"calculations": found})
    elif not found:
        print(describe_calculations(project, level or builtin_level()))
    else:
        print_calculations(found)
    if wait and any(row["state"] == "failed" for row in found):
        raise typer.Exit(1)


def calculate_stored(
    project: Project,
    *,
    level: str | None = None,
    limit: int | None = None,
    failed_too: bool = False,
    wait: bool = True,
) -> list[dict[str, Any]]:
    """Release proposed calculations of a level, and wait for them and for what waited or ran there; one row each."""
    from screening.database.listings import calculation_rows, open_calculations
    from screening.pipeline.rounds import release_calculations

    with project.transaction() as session:
        release_calculations(session, level or builtin_level(), limit, failed_too=failed_too)
        ids = open_calculations(session, level or builtin_level())
    if not ids:
        return []
    project.announce("calculate")

    def look() -> Tick:
        with project.transaction() as session:
            states = [row["state"] for row in calculation_rows(session, ids)]
        done = sum(state in ("finished", "failed") for state in states)
        return Tick(done, len(ids), "", started="running" in states, over=done == len(ids))

    if wait:
        wait_for(look, label="calculate")
    with project.transaction() as session:
        return calculation_rows(session, ids)


def describe_calculations(project: Project, level: str) -> str:
    """What there is instead of proposals at a level of theory."""
    from screening.database.listings import calculation_counts

    with project.transaction() as session:
        rows = calculation_counts(session)
    others = [f"{row['calculations']} {row['state']} at {row['level']}" for row in rows]
    advice = "`screening next` proposes some"
    if any(row["state"] == "failed" and row["level"] == level for row in rows):
        advice += ", --retry-failed tries failed ones again"
    return f"no calculation is proposed at {level}; there are: {', '.join(others) or 'none'}; {advice}"


def builtin_level() -> str:
    """Name of the level of theory of the built-in calculator."""
    from screening.dft.xtb import level_of_theory

    return level_of_theory().name


def print_calculations(rows: list[dict[str, Any]]) -> None:
    """Print calculations with their outcome."""
    properties = ("formation_energy_per_site", "homo_lumo_gap_min")
    columns = ["calculation", "configuration", "sites", "state", *properties, "error"]
    print_table(columns, [[row.get(column) for column in columns] for row in rows])


def results_add(
    paths: Annotated[list[Path], typer.Argument(help="vasprun.xml(.gz), extxyz or CSV files, or folders of them.")],
    level: Annotated[
        str | None,
        typer.Option("--level", help="Level of theory of extxyz and CSV files; VASP runs say it themselves."),
    ] = None,
    new_level: Annotated[
        bool, typer.Option("--new-level", help="Let the name of --level be that of a new level of theory.")
    ] = False,
    host: Annotated[str | None, typer.Option("--host", help="Host of the structures, where it is not clear.")] = None,
    mu: Annotated[
        list[str] | None, typer.Option("--mu", help="Chemical potential in eV per atom: Mg=-1.5; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take in finished calculations; a file that was taken in before changes nothing.

    A file that cannot be taken in is named with its reason, the others are taken in, and the exit code is 1.
    """
    from dataclasses import asdict

    from screening.pipeline.results import add_result_files

    if new_level and level is None:
        raise InputError("--new-level says that the name of --level is new; give --level too")
    potentials = dict(_chemical_potential(text) for text in mu or ())
    project = Project()
    if host is not None:
        with project.transaction() as session:
            host = stored_host_name(session, host)
    with progress_bar("results") as show:
        report = add_result_files(
            project.engine, paths, level_name=level, new_level=new_level, host_name=host,
            chemical_potentials=potentials, on_progress=show,
        )  # fmt: skip
    if as_json:
        print_json(asdict(report))
    else:
        print(f"read {report.read}, new {report.new}, known {report.known}, refused {report.refused}")
        for name, text in report.notes:
            print(f"{name}: {text}")
        for name, reason in report.refusals:
            note(f"refused {name}: {reason}")
    if report.refused:
        raise typer.Exit(1)


def _chemical_potential(text: str) -> tuple[str, float]:
    """Read `Mg=-1.5`."""
    from screening.defects.defect_types import atomic_number

    symbol, _, energy = text.partition("=")
    atomic_number(symbol.strip())
    try:
        return symbol.strip(), float(energy)
    except ValueError as error:
        raise InputError(f"--mu {text!r} cannot be read; write element=eV per atom: Mg=-1.5") from error
