"""Design queries and what they propose: design, next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.cli.options import AsJson, ModelName, SomeSupercell
from screening.cli.output import note, print_json, print_table
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
Sort = Annotated[
    str | None,
    typer.Option("--sort", help="Property to rank by, or `probability`; formation_energy_per_site if not given."),
]
Highest = Annotated[bool, typer.Option("--highest", help="Rank the highest first, not the lowest.")]
Confidence = Annotated[
    float | None,
    typer.Option("--confidence", help="Smallest probability that every window holds, 0 to 1; 0.5 if not given."),
]
SomeHost = Annotated[str | None, typer.Option("--host", help="Name of the host: MoS2; that of --campaign if given.")]
MostDefects = Annotated[int | None, typer.Option("--max-defects", help="Only candidates of so many defects at most.")]
CampaignName = Annotated[
    str | None,
    typer.Option("--campaign", help="Rank what this campaign has kept; by its own query if no other is given."),
]


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(design)
    app.command("next")(next_)


def design(
    host: SomeHost = None,
    supercell: SomeSupercell = None,
    gap: Gap = None,
    window: Windows = None,
    max_defects: MostDefects = None,
    sort: Sort = None,
    highest: Highest = False,
    confidence: Confidence = None,
    campaign: CampaignName = None,
    limit: Annotated[int, typer.Option("--limit", help="Rows at most.")] = 20,
    model: ModelName = None,
    save: Annotated[bool, typer.Option("--save", help="Keep the ranking as a snapshot.")] = False,
    as_json: AsJson = False,
) -> None:
    """Rank the scored candidates that have the properties you want."""
    from screening.pipeline.designs import run_design_query, store_ranking

    parse_windows(gap, window)  # what is wrong with them needs no database
    ranking = None
    with Project().transaction() as session:
        query = find_query(
            session, campaign, host=host, supercell=supercell, gap=gap, window=window, max_defects=max_defects,
            sort=sort, highest=highest, confidence=confidence, limit=limit,
        )  # fmt: skip
        table = run_design_query(session, query, model_name=model, campaign_name=campaign)
        if save:
            ranking = store_ranking(session, query, table)
    if as_json:
        space = {"id": table.search_space_id, "description": table.search_space, "candidates": table.candidates}
        print_json(
            {
                "sql": table.sql, "model": table.model, "newer": table.newer, "campaign": table.campaign,
                "search_space": space, "rows": table.rows, "ranking": ranking,
            }
        )  # fmt: skip
        return
    if not table.rows:
        print(describe_nothing(query, table.candidates))
    else:
        print_ranking(table.rows, query)
    print(
        f"\n{len(table.rows)} rows by model {table.model}, of the {table.candidates:,} candidates of campaign "
        f"{table.campaign} ({table.search_space})" + (f", kept as ranking {ranking}" if save else "")
    )
    note_stale(table.model, table.newer, table.campaign)


def note_stale(model: str, newer: str | None, campaign: str) -> None:
    """Say it where predictions are those of a version that is no longer in production."""
    if newer is not None:
        note(
            f"stale: {newer} is in production instead of {model}; `screening campaign rescore {campaign}` scores again"
        )


def find_query(session: Session, campaign_name: str | None, **options: Any) -> DesignQuery:
    """The design query of a command's options; what they leave open is that of the campaign.

    A campaign that keeps the rows of a query answers that query where the options say nothing of another one.

    Raises:
        InputError: an option cannot be read, or nothing says which host.
        UnknownNameError: there is no such campaign.
    """
    from screening.database import queries
    from screening.database.tables import Host, SearchSpace, Supercell

    if campaign_name is None:
        if options["host"] is None:
            raise InputError("a design query is about a host; give --host, or --campaign")
        return with_stored_host(session, build_query(**options))
    campaign = queries.campaign_by_name(session, campaign_name)
    supercell = session.get_one(Supercell, session.get_one(SearchSpace, campaign.search_space_id).supercell_id)
    host = options.pop("host") or session.get_one(Host, supercell.host_id).name
    place = {"host": host, "supercell": options.pop("supercell") or supercell.label}
    if campaign.query is not None:
        kept = campaign.query["limit"]
        options["limit"] = kept if options.get("limit") is None else min(options["limit"], kept)
        if all(value is None or value is False or name == "limit" for name, value in options.items()):
            return with_stored_host(session, _validated(**{**campaign.query, **place, "limit": options["limit"]}))
    return with_stored_host(session, build_query(**place, **options))


def build_query(
    *,
    host: str,
    supercell: str | None = None,
    gap: str | None = None,
    window: Sequence[str] | None = None,
    **others: Any,
) -> DesignQuery:
    """The design query of a command's options.

    Args:
        others: fields of DesignQuery, None where they are not given, and `highest`.

    Raises:
        InputError: an option cannot be read.
    """
    others["direction"] = "highest" if others.pop("highest", False) else "lowest"
    given = {name: value for name, value in others.items() if value is not None}
    return _validated(host=host, supercell=supercell, windows=parse_windows(gap, window), **given)


def parse_windows(gap: str | None, window: Sequence[str] | None) -> tuple[Window, ...]:
    """Read --gap and --window.

    Raises:
        InputError: one cannot be read.
    """
    from screening.database.design_query import Window

    windows = [Window.parse("homo_lumo_gap_min", gap)] if gap else []
    for text in window or ():
        name, separator, limits = text.partition("=")
        if not separator:
            raise InputError(f"--window {text!r} cannot be read; write property=low:high")
        windows.append(Window.parse(name.strip(), limits))
    return tuple(windows)


def _validated(**fields: Any) -> DesignQuery:
    from pydantic import ValidationError

    from screening.database.design_query import DesignQuery

    try:
        return DesignQuery(**fields)
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
    return (
        f"none of the {candidates} candidates has {describe_windows(query)} with a probability of "
        f"{query.confidence:g} or more; lower --confidence, or widen the windows"
    )


def describe_query(query: DesignQuery) -> str:
    """A design query in words: `homo_lumo_gap_min 1:1.2 (probability 0.5 or more), lowest formation_energy first`."""
    windows = f"{describe_windows(query)} (probability {query.confidence:g} or more), " if query.windows else ""
    order = "likeliest" if query.sort == "probability" else f"{query.direction} {query.sort}"
    return f"{windows}{order} first"


def describe_windows(query: DesignQuery) -> str:
    """The windows as their options are written: `homo_lumo_gap_min 1:1.2 and total_mag 0.5:`."""
    return " and ".join(f"{window.property} {_ends(window)}" for window in query.windows)


def _ends(window: Window) -> str:
    """The window as its option is written: `1.0:1.2`."""
    return ":".join("" if end is None else f"{end:g}" for end in (window.low, window.high))


def next_(
    host: SomeHost = None,
    supercell: SomeSupercell = None,
    gap: Gap = None,
    window: Windows = None,
    max_defects: MostDefects = None,
    sort: Sort = None,
    highest: Highest = False,
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
    as_json: AsJson = False,
) -> None:
    """Propose the next calculations for a design query, or for the model itself, and store them as a round."""
    from screening.database.models import newer_in_production
    from screening.pipeline.designs import find_campaign

    if learn and (gap or window or sort or highest):
        raise InputError(
            "--learn chooses what makes the model better everywhere; leave --gap, --window, --sort and --highest out"
        )
    parse_windows(gap, window)
    project = Project()
    with project.transaction() as session:
        query = find_query(
            session, campaign, host=host, supercell=supercell, gap=gap, window=window, max_defects=max_defects,
            sort=sort, highest=highest,
        )  # fmt: skip
        answering, scorer = find_campaign(session, query, model_name=model, campaign_name=campaign)
        stale = (scorer.name, newer_in_production(session, scorer.id), answering.name)
    proposals = propose_stored(
        project, query, structures, learn=learn, n=n, model_name=model, campaign_name=campaign, level_name=level,
        only_stored=only_stored, seed=seed,
    )  # fmt: skip
    if as_json:
        print_json({"model": stale[0], "newer": stale[1], "campaign": stale[2], "proposals": proposals})
    else:
        print_proposals(proposals)
        note_stale(*stale)
        if structures is not None:
            print(f"\n{len(proposals)} structures in {structures}; `screening results add` takes their results in")


def propose_stored(
    project: Project, query: DesignQuery, structures: Path | None = None, *, learn: bool = False, **choice: Any
) -> list[dict[str, Any]]:
    """Store a round of proposals, one row each.

    Args:
        structures: folder for a structure file of each proposal; the round is stored once they are written.
        learn: choose what makes the model better everywhere, not what satisfies the query.
        choice: what `screening.pipeline.rounds.propose` and `informative_rounds.propose_informative` are told.
    """
    from dataclasses import asdict

    from screening.pipeline.informative_rounds import propose_informative
    from screening.pipeline.rounds import propose, write_structures

    with project.transaction() as session:
        choose = propose_informative if learn else propose
        found = choose(session, with_stored_host(session, query), **choice)
        rows = [asdict(proposal) for proposal in found]
        if structures is not None:
            paths = write_structures(session, [proposal.calculation_id for proposal in found], structures)
            rows = [row | {"structure": paths[row["calculation_id"]]} for row in rows]
        return rows


def print_proposals(proposals: list[dict[str, Any]]) -> None:
    """Print a round."""
    columns = ["calculation_id", "candidate_id", "configuration", "sites", "reason"]
    print_table(columns, [[proposal[column] for column in columns] for proposal in proposals])
