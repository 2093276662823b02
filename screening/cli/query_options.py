"""The options of a design query, which several commands share, and the query that they and a file make together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.errors import InputError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from screening.database.design_query import DesignQuery

QueryFile = Annotated[
    Path | None,
    typer.Option("--query", help="TOML or JSON file of a design query; other options take the place of its fields."),
]
Gap = Annotated[str | None, typer.Option("--gap", help="Window on homo_lumo_gap_min in eV: 1.0:1.2, 1.0: or :1.2.")]
Spin = Annotated[
    str | None, typer.Option("--spin", help="Channel that --gap is about: min (the smaller gap), majority, minority.")
]
Windows = Annotated[
    list[str] | None,
    typer.Option("--window", help="Window on any property: formation_energy_per_site=:3.0; may be repeated."),
]
Sort = Annotated[
    str | None,
    typer.Option(
        "--sort",
        help="Property to rank by, `probability`, or `concentration`; formation_energy_per_site if not given.",
    ),
]
Highest = Annotated[bool, typer.Option("--highest", help="Rank the highest first, not the lowest.")]
Closest = Annotated[
    float | None, typer.Option("--closest", help="Rank those first whose --sort property is closest to this value.")
]
Pareto = Annotated[
    str | None,
    typer.Option(
        "--pareto", help="Two or three goals: gap=highest,formation_energy=lowest; the rows that none beats in all."
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option("--confidence", help="Smallest probability that every window holds, 0 to 1; 0.5 if not given."),
]
AllowedTypes = Annotated[
    str | None, typer.Option("--types", help="Defect types that may occur: v_S,Se_S; any if not given.")
]
Required = Annotated[str | None, typer.Option("--require", help="Defect types each of which occurs: v_Mo,Se_S.")]
Forbidden = Annotated[str | None, typer.Option("--forbid", help="Defect types none of which occurs.")]
Counts = Annotated[
    list[str] | None, typer.Option("--count", help="How often a type occurs: v_S:2, v_S:0-2, v_S:1-; may be repeated.")
]
FewestDefects = Annotated[
    int | None, typer.Option("--min-defects", help="Only candidates of so many defects at least.")
]
MostDefects = Annotated[int | None, typer.Option("--max-defects", help="Only candidates of so many defects at most.")]
DensityText = Annotated[
    str | None,
    typer.Option("--density", help="Defects per unit cell, cm^2 or cm^3: 0.01:0.05cell, 1e13:5e13cm-2, :1e20cm-3."),
]
Nearest = Annotated[
    float | None, typer.Option("--min-separation", help="Least distance between any two defects, angstrom.")
]
Farthest = Annotated[
    float | None, typer.Option("--max-separation", help="Largest distance between any two defects, angstrom.")
]
Mu = Annotated[
    str | None,
    typer.Option(
        "--mu",
        help="Chemical potentials: metal-rich, chalcogen-rich, S-rich, or eV per atom as Mo=-10.9,Se=-3.5; "
        "the references if not given. Nothing is scored again.",
    ),
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", help="Estimate equilibrium concentrations at so many K.")
]
LevelAsked = Annotated[
    str | None, typer.Option("--level", help="Level of theory that the predictions must be of: '2DMD PBE'.")
]
SomeHost = Annotated[
    str | None,
    typer.Option(
        "--host", help="Name of the host: MoS2; several with commas: 'MoS2 8x8,WS2 8x8'; that of --campaign if given."
    ),
]

_TEXTS = {
    "types": "types", "require": "required", "forbid": "forbidden", "count": "counts", "min_defects": "min_defects",
    "max_defects": "max_defects", "density": "density", "min_separation": "min_separation",
    "max_separation": "max_separation", "mu": "potentials", "temperature": "temperature", "level": "level",
    "sort": "sort", "pareto": "pareto", "confidence": "confidence", "limit": "limit",
}  # fmt: skip


def query_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a design query from the options of a command; those that are not given are left to the file.

    Raises:
        InputError: the file cannot be read, or options contradict each other.
    """
    from screening.database.design_query import read_fields

    path = options.get("query")
    fields = {} if path is None else read_fields(path)
    if options.get("host") is not None:
        for name in ("host", "supercell", "places"):
            fields.pop(name, None)
        fields |= _places(options["host"], options.get("supercell"))
    elif options.get("supercell") is not None:
        if "places" in fields:
            raise InputError("the file names places; give --host with --supercell, or leave --supercell out")
        fields["supercell"] = options["supercell"]
    windows = [*_gap(options), *(options.get("window") or ())]
    if windows:
        fields["windows"] = windows
    for option, name in _TEXTS.items():
        if options.get(option) is not None and options[option] != []:
            fields[name] = options[option]
    _set_direction(fields, options)
    return fields


def _places(host: str, supercell: str | None) -> dict[str, Any]:
    hosts = [part.strip() for part in host.split(",") if part.strip()]
    if len(hosts) > 1 and supercell is not None:
        return {"places": [{"host": name, "supercell": supercell} for name in hosts]}
    return {"places": hosts} if supercell is None else {"host": host, "supercell": supercell}


def _gap(options: Mapping[str, Any]) -> list[str]:
    gap, spin = options.get("gap"), options.get("spin")
    if gap is None:
        if spin is not None:
            raise InputError(f"--spin {spin} says which gap --gap is about; give --gap too, such as --gap 1.0:1.2")
        return []
    if spin not in (None, "min", "majority", "minority"):
        raise InputError(f"--spin is {spin!r}; expected min, majority or minority")
    return [f"homo_lumo_gap_{spin or 'min'}={gap}"]


def _set_direction(fields: dict[str, Any], options: Mapping[str, Any]) -> None:
    """--highest and --closest are directions; either takes the place of the file's."""
    highest, closest = options.get("highest"), options.get("closest")
    if highest and closest is not None:
        raise InputError("--highest and --closest are two orders; give one of them")
    if highest or closest is not None:
        fields.pop("target", None)
        fields["direction"] = "highest" if highest else "closest"
    if closest is not None:
        fields["target"] = closest


def build_query(**options: Any) -> DesignQuery:
    """The design query of a command's options.

    Raises:
        InputError: an option cannot be read.
    """
    from screening.database.design_query import DesignQuery

    return DesignQuery.of(**query_fields(options))


def find_query(session: Session, campaign_name: str | None, **options: Any) -> DesignQuery:
    """The design query of a command's options; what they leave open is that of the campaign.

    A campaign that keeps the rows of a query answers that query where the options say nothing of another one.

    Raises:
        InputError: an option cannot be read, or nothing says which host.
        UnknownNameError: there is no such campaign.
    """
    from screening.database import queries
    from screening.database.design_query import DesignQuery
    from screening.database.tables import Host, SearchSpace, Supercell
    from screening.pipeline.query_context import with_stored_host

    fields = query_fields(options)
    if campaign_name is None:
        if not {"host", "places"} & fields.keys():
            raise InputError("a design query is about a host; give --host, --campaign, or --query with a host")
        return with_stored_host(session, DesignQuery.of(**fields))
    campaign = queries.campaign_by_name(session, campaign_name)
    supercell = session.get_one(Supercell, session.get_one(SearchSpace, campaign.search_space_id).supercell_id)
    if "places" not in fields:
        host = fields.get("host") or session.get_one(Host, supercell.host_id).name
        fields |= {"host": host, "supercell": fields.get("supercell") or supercell.label}
    if campaign.query is not None:
        kept = campaign.query["limit"]
        fields["limit"] = kept if fields.get("limit") is None else min(fields["limit"], kept)
        if fields.keys() <= {"host", "supercell", "places", "limit"}:
            fields = {name: value for name, value in campaign.query.items() if name != "places"} | fields
    return with_stored_host(session, DesignQuery.of(**fields))
