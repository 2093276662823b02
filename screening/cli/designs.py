"""Design queries and what they propose: design, next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.cli.options import AsJson, ModelName, SomeSupercell
from screening.cli.output import note, print_json, print_table
from screening.cli.project import Project
from screening.cli.provenance import note_retracted
from screening.cli.query_options import (
    AllowedTypes,
    Closest,
    Confidence,
    Counts,
    DensityText,
    Farthest,
    FewestDefects,
    Forbidden,
    Gap,
    Highest,
    LevelAsked,
    MostDefects,
    Mu,
    Nearest,
    Pareto,
    QueryFile,
    Required,
    SomeHost,
    Sort,
    Spin,
    Temperature,
    Windows,
    find_query,
    query_fields,
)
from screening.errors import InputError

if TYPE_CHECKING:
    from screening.database.design_query import DesignQuery
    from screening.pipeline.designs import RankedTable

CampaignName = Annotated[
    str | None,
    typer.Option("--campaign", help="Rank what this campaign has kept; by its own query if no other is given."),
]


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands, and those on rankings."""
    from screening.cli import rankings

    rankings.add_commands(app)
    app.command()(design)
    app.command("next")(next_)


def design(
    query: QueryFile = None,
    host: SomeHost = None,
    supercell: SomeSupercell = None,
    gap: Gap = None,
    spin: Spin = None,
    window: Windows = None,
    types: AllowedTypes = None,
    require: Required = None,
    forbid: Forbidden = None,
    count: Counts = None,
    min_defects: FewestDefects = None,
    max_defects: MostDefects = None,
    density: DensityText = None,
    min_separation: Nearest = None,
    max_separation: Farthest = None,
    mu: Mu = None,
    temperature: Temperature = None,
    sort: Sort = None,
    highest: Highest = False,
    closest: Closest = None,
    pareto: Pareto = None,
    confidence: Confidence = None,
    level: LevelAsked = None,
    campaign: CampaignName = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Rows at most; 20 if nothing says how many.")] = None,
    model: ModelName = None,
    after: Annotated[
        str | None, typer.Option("--after", help="Cursor of the page before: the rows that come after it.")
    ] = None,
    why: Annotated[bool, typer.Option("--why", help="Say of every row why it is there.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Keep the ranking as a snapshot.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Name of the snapshot; goes with --save.")] = None,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SELECT, and run nothing.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Run it and print how the database did it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Rank the scored candidates that have the properties you want."""
    from screening.pipeline.designs import explain_design_query, run_design_query, sql_of
    from screening.pipeline.rankings import store_ranking

    options = {
        "query": query, "host": host, "supercell": supercell, "gap": gap, "spin": spin, "window": window,
        "types": types, "require": require, "forbid": forbid, "count": count, "min_defects": min_defects,
        "max_defects": max_defects, "density": density, "min_separation": min_separation,
        "max_separation": max_separation, "mu": mu, "temperature": temperature, "sort": sort, "highest": highest,
        "closest": closest, "pareto": pareto, "confidence": confidence, "level": level, "limit": limit,
    }  # fmt: skip
    _check_early(options, campaign, asks=[sql, explain, save or name is not None])
    if name is not None and not save:
        raise InputError("--name is the name of a snapshot; add --save")
    if save and after is not None:
        raise InputError("--save keeps a ranking from its first row, --after begins later; leave one of them out")
    ranking = None
    with Project().transaction() as session:
        asked = find_query(session, campaign, **options | _first_page(options, campaign))
        if sql or explain:
            say = sql_of if sql else explain_design_query
            print(say(session, asked, model_name=model, campaign_name=campaign, after=after))
            return
        table = run_design_query(session, asked, model_name=model, campaign_name=campaign, after=after)
        if save:
            ranking = store_ranking(session, asked, table, name=name)
    if asked.pareto and len(table.rows) == asked.limit:
        note(f"the front has {asked.limit} rows, which is the limit, or more; raise --limit for all of it")
    if as_json:
        _print_table_json(table, ranking)
        return
    if not table.rows:
        from screening.pipeline.query_words import describe_nothing

        print(describe_nothing(asked, table.candidates))
    else:
        print_ranking(table.rows, asked, why=why)
    print(
        f"\n{len(table.rows)} rows by model {table.model}, of the {table.candidates:,} candidates of "
        f"{_describe_campaigns(table)}" + (f", kept as ranking {name or ranking}" if save else "")
    )
    if table.after is not None:
        note(f"more rows: the same command with --after {table.after}")
    note_stale(table.model, table.newer, table.campaign)
    note_retracted(Project(), table.model_id, table.model)


def _check_early(options: dict[str, Any], campaign: str | None, *, asks: list[bool]) -> None:
    """What is wrong with a query needs no database to be found."""
    from screening.database.design_query import DesignQuery

    fields = query_fields(options)
    if sum(asks) > 1:
        raise InputError("--sql, --explain and --save are three things to do; give one of them")
    if {"host", "places"} & fields.keys() or campaign is not None:
        DesignQuery.of(**({"host": "any"} if not {"host", "places"} & fields.keys() else {}) | fields)


def _first_page(options: dict[str, Any], campaign: str | None) -> dict[str, Any]:
    """Twenty rows where nothing else says how many; a campaign's own query keeps more than one wants to read."""
    return {"limit": 20} if campaign is not None and options["limit"] is None and options["query"] is None else {}


def _print_table_json(table: RankedTable, ranking: int | None) -> None:
    space = {"id": table.search_space_id, "description": table.search_space, "candidates": table.candidates}
    potentials = {
        f"{answer.host} {answer.supercell}": {
            element: {"energy": p.energy, "source": p.source, "shift": p.shift}
            for element, p in answer.potentials.items()
        }
        for answer in table.answers
    }
    print_json(
        {
            "sql": table.sql, "model": table.model, "newer": table.newer, "campaign": table.campaign,
            "search_space": space, "potentials": potentials, "rows": table.rows, "after": table.after,
            "ranking": ranking,
        }
    )  # fmt: skip


def _describe_campaigns(table: RankedTable) -> str:
    if len(table.answers) == 1:
        return f"campaign {table.campaign} ({table.search_space})"
    return "campaigns " + ", ".join(answer.campaign for answer in table.answers)


def note_stale(model: str, newer: str | None, campaign: str) -> None:
    """Say it where predictions are those of a version that is no longer in production."""
    if newer is not None:
        note(
            f"stale: {newer} is in production instead of {model}; `screening campaign rescore {campaign}` scores again"
        )


def print_ranking(rows: list[dict[str, Any]], query: DesignQuery, *, why: bool = False) -> None:
    """Print ranked rows with the properties that the query speaks of, or with the reason of each."""
    shown = [] if why else _shown_properties(rows, query)
    several = len({(row["host"], row["supercell"]) for row in rows}) > 1
    estimate = query.temperature is not None
    columns = ["rank", *(["host"] if several else []), "candidate", "configuration", "sites", "probability", *shown]
    columns += ["concentration"] if estimate else []
    columns += ["why"] if why else ["calculated"]
    table = []
    for rank, row in enumerate(rows, start=1):
        values = [f"{row[f'{name}_mean']:.3f} +- {row[f'{name}_std']:.3f}" for name in shown]
        values += [f"{row['concentration']:.2e}"] if estimate else []
        values += [row["reason"] if why else "yes" if row["calculated"] else ""]
        sites = " ".join(f"{d}@{s}" for d, s in zip(row["defects"], row["sites"], strict=True))
        place = [f"{row['host']} {row['supercell']}"] if several else []
        table.append(
            [rank, *place, row["candidate"], row["configuration"], sites, round(row["probability"], 3), *values]
        )
    print_table(columns, table)


def _shown_properties(rows: list[dict[str, Any]], query: DesignQuery) -> list[str]:
    sort = [query.sort] if not query.pareto and query.sort not in ("probability", "concentration") else []
    goals = [goal.property for goal in query.pareto]
    windows = [window.property for window in query.windows]
    names = dict.fromkeys([*goals, *sort, *windows, "homo_lumo_gap_min"])
    return [name for name in names if all(f"{name}_mean" in row for row in rows)]


def next_(
    query: QueryFile = None,
    host: SomeHost = None,
    supercell: SomeSupercell = None,
    gap: Gap = None,
    window: Windows = None,
    max_defects: MostDefects = None,
    mu: Mu = None,
    temperature: Temperature = None,
    sort: Sort = None,
    highest: Highest = False,
    closest: Closest = None,
    campaign: CampaignName = None,
    learn: Annotated[
        bool, typer.Option("--learn", help="What makes the model better everywhere, not what satisfies windows.")
    ] = False,
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
    name: Annotated[str | None, typer.Option("--name", help="Name of the round; it has a number besides.")] = None,
    as_json: AsJson = False,
) -> None:
    """Propose the next calculations for a design query, or for the model itself, and store them as a round."""
    from screening.database.models import newer_in_production
    from screening.pipeline.query_context import resolve

    if learn and (gap or window or mu or temperature or sort or highest or closest is not None):
        raise InputError(
            "--learn chooses what makes the model better everywhere; leave --gap, --window, --mu, --temperature, "
            "--sort, --highest and --closest out"
        )
    options = {
        "query": query, "host": host, "supercell": supercell, "gap": gap, "window": window,
        "max_defects": max_defects, "mu": mu, "temperature": temperature, "sort": sort, "highest": highest,
        "closest": closest,
    }  # fmt: skip
    _check_early(options, campaign, asks=[])
    project = Project()
    with project.transaction() as session:
        asked = find_query(session, campaign, **options)
        answers = resolve(session, asked, model_name=model, campaign_name=campaign)
        scorer, campaigns = answers[0].model, ", ".join(found.campaign for found in answers)
        newer = newer_in_production(session, answers[0].model_id)
    proposals = propose_stored(
        project, asked, structures, learn=learn, n=n, model_name=model, campaign_name=campaign, level_name=level,
        only_stored=only_stored, seed=seed, name=name,
    )  # fmt: skip
    kept = name or str(proposals[0]["round_id"])
    if as_json:
        print_json({"model": scorer, "newer": newer, "campaign": campaigns, "round": kept, "proposals": proposals})
    else:
        print_proposals(proposals)
        print(f"\nkept as round {kept}; `screening round export {kept} FOLDER` writes inputs to calculate it elsewhere")
        for found in answers:
            note_stale(scorer, newer, found.campaign)
        if structures is not None:
            print(f"{len(proposals)} structures in {structures}; `screening results add` takes their results in")


def propose_stored(
    project: Project, query: DesignQuery, structures: Path | None = None, *, learn: bool = False,
    name: str | None = None, **choice: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Store a round of proposals, one row each.

    Args:
        structures: folder for a structure file of each proposal; the round is stored once they are written.
        learn: choose what makes the model better everywhere, not what satisfies the query.
        name: of the round, if it is to have one.
        choice: what `screening.pipeline.rounds.propose` and `informative_rounds.propose_informative` are told.
    """
    from dataclasses import asdict

    from screening.database.rounds import name_round
    from screening.pipeline.informative_rounds import propose_informative
    from screening.pipeline.query_context import with_stored_host
    from screening.pipeline.rounds import propose, write_structures

    with project.transaction() as session:
        choose = propose_informative if learn else propose
        found = choose(session, with_stored_host(session, query), **choice)
        if name is not None:
            assert found[0].round_id is not None
            name_round(session, found[0].round_id, name)
        rows = [asdict(proposal) for proposal in found]
        if structures is not None:
            paths = write_structures(session, [proposal.calculation_id for proposal in found], structures)
            rows = [row | {"structure": paths[row["calculation_id"]]} for row in rows]
        return rows


def print_proposals(proposals: list[dict[str, Any]]) -> None:
    """Print a round; where it is of several supercells, which of them a calculation is in."""
    several = len({proposal["place"] for proposal in proposals}) > 1
    columns = ["calculation_id", *(["place"] if several else []), "candidate_id", "configuration", "sites", "reason"]
    print_table(columns, [[proposal[column] for column in columns] for proposal in proposals])
