"""Rankings that were kept: ranking list, show, compare, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.cli.options import AsJson
from screening.cli.output import note, print_json, print_table
from screening.cli.project import Project

if TYPE_CHECKING:
    from screening.pipeline.rankings import SavedRanking

NameOfRanking = Annotated[str, typer.Argument(metavar="RANKING", help="Name or number of the ranking.")]


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands."""
    ranking = typer.Typer(
        help="Rankings that `screening design --save` has kept: what they found, and how they differ.",
        no_args_is_help=True,
    )
    ranking.command("list")(ranking_list)
    ranking.command("show")(ranking_show)
    ranking.command("compare")(ranking_compare)
    ranking.command("delete")(ranking_delete)
    app.add_typer(ranking, name="ranking")


def ranking_list(as_json: AsJson = False) -> None:
    """List the rankings that were kept."""
    from screening.database.design_query import DesignQuery
    from screening.pipeline.query_words import describe_query
    from screening.pipeline.rankings import list_rankings

    with Project().transaction() as session:
        found = list_rankings(session)
    if as_json:
        print_json([row | {"created_at": row["created_at"].isoformat()} for row in found])
        return
    if not found:
        print("no ranking is kept; `screening design --save` keeps one")
        return
    table = []
    for row in found:
        query = DesignQuery.model_validate(row["query"])
        places = ", ".join(map(str, query.places))
        made = row["created_at"].strftime("%Y-%m-%d %H:%M")
        table.append([row["name"], places, describe_query(query), row["rows"], row["model"], row["level"], made])
    print_table(["ranking", "host", "query", "rows", "model", "level of theory", "made at"], table)


def ranking_show(
    name: NameOfRanking,
    why: Annotated[bool, typer.Option("--why", help="Say of every row why it is there.")] = False,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SELECT that made it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a ranking as it was when it was made, whatever has become of its campaign."""
    from screening.cli.designs import print_ranking
    from screening.pipeline.query_words import describe_query
    from screening.pipeline.rankings import find_ranking, load_ranking

    with Project().transaction() as session:
        found = load_ranking(session, find_ranking(session, name))
    if sql:
        print(found.sql)
        return
    if as_json:
        print_json(_as_json(found))
        return
    print_ranking([_flat(row) for row in found.rows], found.query, why=why)
    made_of = "; ".join(
        f"{p['host']} {p['supercell']}: campaign {p['campaign']}, model {p['model']}" for p in found.places
    )
    made = found.created_at.strftime("%Y-%m-%d %H:%M")
    print(f"\nranking {found.name} of {made}, {describe_query(found.query)}: {len(found.rows)} rows of {made_of}")
    shifted = [
        f"{element} {energy:.4f} eV ({source}, {shift:+.4f})"
        for (_, element), (energy, source, shift) in found.references.items()
        if shift
    ]
    if shifted:
        print(f"chemical potentials: {', '.join(shifted)}")


def ranking_compare(
    older: NameOfRanking,
    newer: Annotated[str, typer.Argument(metavar="LATER", help="Name or number of a later ranking.")],
    as_json: AsJson = False,
) -> None:
    """What rose, fell, came and went from one ranking to another, and why."""
    from screening.pipeline.ranking_changes import compare_rankings
    from screening.pipeline.rankings import find_ranking, load_ranking

    with Project().transaction() as session:
        both = [load_ranking(session, find_ranking(session, name)) for name in (older, newer)]
        changes = compare_rankings(session, *both)
    if both[0].created_at > both[1].created_at:
        note(f"ranking {newer} was made before {older}; `screening ranking compare {newer} {older}` is the other way")
    if as_json:
        print_json(
            [
                {
                    "what": c.what, "host": c.host, "configuration": c.configuration, "sites": c.sites,
                    "rank_before": c.rank_before, "rank_after": c.rank_after, "cause": c.cause,
                }
                for c in changes
            ]
        )  # fmt: skip
        return
    stayed = len(both[1].rows) - sum(c.rank_after is not None for c in changes)
    rows = [
        [c.what, c.rank_before or "", c.rank_after or "", c.host, c.configuration, " ".join(map(str, c.sites)), c.cause]
        for c in changes
    ]
    if rows:
        print_table(["what", "before", "after", "host", "configuration", "sites", "why"], rows)
    counts = {what: sum(c.what == what for c in changes) for what in ("rose", "fell", "came", "went")}
    print(f"\n{', '.join(f'{n} {what}' for what, n in counts.items())}, {stayed} stayed where they were")


def ranking_delete(name: NameOfRanking) -> None:
    """Delete a ranking; its campaign stays."""
    from screening.pipeline.rankings import find_ranking

    with Project().transaction() as session:
        session.delete(find_ranking(session, name))
    print(f"ranking {name} is deleted")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row as a ranked table has it."""
    values: dict[str, Any] = {}
    for name, (mean, std, _) in row["values"].items():
        values |= {f"{name}_mean": mean, f"{name}_std": std}
    return {key: value for key, value in row.items() if key not in ("values", "codes")} | values


def _as_json(found: SavedRanking) -> dict[str, Any]:
    references = [
        {"place": place, "element": element, "energy": energy, "source": source, "shift": shift}
        for (place, element), (energy, source, shift) in found.references.items()
    ]
    return {
        "id": found.id, "name": found.name, "query": found.query.stored(), "sql": found.sql,
        "made_at": found.created_at.isoformat(), "places": found.places, "references": references,
        "rows": [_flat(row) for row in found.rows],
    }  # fmt: skip
