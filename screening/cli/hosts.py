"""Hosts and data sets: host add, list, show; import 2dmd, builtin; dataset build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.cli.options import AsJson, SupercellText
from screening.cli.output import note, print_json, print_table, progress_bar
from screening.cli.project import Project

if TYPE_CHECKING:
    from screening.defects.host import Host


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands."""
    host = typer.Typer(help="Hosts: pristine materials and their supercells.", no_args_is_help=True)
    host.command("add")(host_add)
    host.command("list")(host_list)
    host.command("show")(host_show)
    app.add_typer(host, name="host")
    imports = typer.Typer(help="Take in data sets of calculated configurations.", no_args_is_help=True)
    imports.command("2dmd")(import_2dmd)
    imports.command("builtin")(import_builtin)
    app.add_typer(imports, name="import")
    dataset = typer.Typer(help="The data set that the package ships.", no_args_is_help=True)
    dataset.command("build")(dataset_build)
    app.add_typer(dataset, name="dataset")


def host_add(
    source: Annotated[str, typer.Argument(help="A name of the catalogue (MoS2), or a file of the unit cell.")],
    supercell: SupercellText,
    name: Annotated[str | None, typer.Option("--name", help="What to call a host read from a file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add a host and a supercell whose sites are numbered once."""
    from screening.defects.host import Supercell
    from screening.pipeline.hosts import add_supercell

    host = _read_host(source, name)
    project = Project()
    with project.transaction() as session:
        stored = add_supercell(session, Supercell.parse(host, supercell))
        found = {
            "host": host.name,
            "formula": host.formula,
            "is_layer": host.is_layer,
            "supercell": stored.supercell.label,
            "n_sites": stored.supercell.n_sites,
            "n_operations": stored.symmetry.n_operations,
        }
    if as_json:
        print_json(found)
    else:
        kind = "layer" if host.is_layer else "bulk"
        print(
            f"{host.name} ({host.formula}, {kind}), supercell {found['supercell']}: {found['n_sites']} sites, "
            f"{found['n_operations']} site permutations"
        )


def _read_host(source: str, name: str | None) -> Host:
    """A host of the catalogue, or of a file."""
    from screening.defects.catalogue import catalogue_host
    from screening.errors import InputError

    if Path(source).exists():
        from screening.dft.structures import read_host

        return read_host(Path(source), name)
    if name is not None:
        raise InputError(f"--name goes with a file of a unit cell, and there is no file {source!r}")
    return catalogue_host(source)


def host_list(as_json: AsJson = False) -> None:
    """List the hosts of the database, and those of the catalogue that are not in it."""
    from screening.database import listings
    from screening.defects.catalogue import catalogue_host, host_names

    with Project().transaction() as session:
        rows = listings.list_hosts(session)
    known = {row["host"] for row in rows}
    catalogue = [catalogue_host(name) for name in host_names() if name not in known]
    if as_json:
        print_json({"hosts": rows, "catalogue": [host.name for host in catalogue]})
        return
    columns = ["host", "formula", "supercell", "n_sites", "configurations", "results"]
    print_table(columns, [[row[column] for column in columns] for row in rows])
    if catalogue:
        print(f"\nin the catalogue: {', '.join(host.name for host in catalogue)}")


def host_show(name: Annotated[str, typer.Argument(help="Name of the host.")], as_json: AsJson = False) -> None:
    """Show a host: lattice, sites, symmetry, supercells."""
    from screening.cli.project import find_host
    from screening.database import listings
    from screening.defects.symmetry import unit_cell_operations
    from screening.errors import ServiceError

    project = Project()
    host = find_host(project, name)
    supercells: list[dict[str, Any]] = []
    try:
        with project.transaction() as session:
            supercells = [row for row in listings.list_hosts(session) if row["host"] == host.name]
    except ServiceError as error:
        note(f"screening: {error}")
    cartesian = host.positions @ host.lattice
    found = {
        "host": host.name,
        "formula": host.formula,
        "is_layer": host.is_layer,
        "lattice": host.lattice.round(6).tolist(),
        "species": list(host.species),
        "positions": host.positions.round(6).tolist(),
        "n_operations": len(unit_cell_operations(host)[0]),
        "source": host.source,
        "supercells": supercells,
    }
    if as_json:
        print_json(found)
        return
    print(f"{host.name}: {host.formula}, {'layer' if host.is_layer else 'bulk'}, {found['n_operations']} operations")
    print(f"source: {host.source}")
    print_table(["lattice vector", "x", "y", "z"], [["abc"[i], *map(float, v)] for i, v in enumerate(host.lattice)])
    rows = [[i, s, *map(float, p)] for i, (s, p) in enumerate(zip(host.species, cartesian, strict=True))]
    print_table(["site", "species", "x", "y", "z"], rows)
    columns = ["supercell", "n_sites", "configurations", "results"]
    print_table(columns, [[row[column] for column in columns] for row in supercells])


def import_2dmd(
    path: Annotated[Path, typer.Argument(help="Directory or zip of the public layout of 2DMD.")],
    subset: Annotated[list[str] | None, typer.Option("--subset", help="Only this subset; may be repeated.")] = None,
    hold_back: Annotated[
        float, typer.Option(help="Share of the training rows to keep without results, to be calculated later.")
    ] = 0.0,
    proposed_only: Annotated[
        bool, typer.Option("--proposed-only", help="Take in only results of calculations that are proposed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take in the DFT results of 2DMD; again changes nothing."""
    from dataclasses import asdict

    from screening.pipeline import imports

    project = Project()
    with progress_bar("2DMD") as show:
        reports = imports.import_2dmd(
            project.engine,
            path,
            subsets=tuple(subset or ()),
            hold_back=hold_back,
            proposed_only=proposed_only,
            on_progress=lambda done, total, name: show(done, total, name),
        )
    if as_json:
        print_json({report.name: asdict(report) for report in reports})
        return
    columns = ["read", "new", "known", "refused", "uncalculated", "held_back", "ended", "seconds"]
    print_table(["subset", *columns], [[r.name, *(getattr(r, c) for c in columns)] for r in reports])
    for report in reports:
        for row, reason in report.refusals:
            print(f"refused {report.name} {row}: {reason}")


def import_builtin(as_json: AsJson = False) -> None:
    """Take in the data set that the package ships: GFN1-xTB results of 4x4 MoS2."""
    from dataclasses import asdict

    from screening.pipeline.results import import_builtin as take_in

    with Project().transaction() as session, progress_bar("built-in data") as show:
        report = asdict(take_in(session, lambda done, total: show(done, total, "")))
    if as_json:
        print_json(report)
    else:
        print_table(list(report), [list(report.values())])


def dataset_build(
    output: Annotated[Path, typer.Argument(help="File to write; what it has already is not calculated again.")],
    sample: Annotated[int, typer.Option(help="Configurations of three defects, drawn at random.")] = 700,
    seed: Annotated[int, typer.Option(help="Seed of the draw and of the split.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Calculate the shipped data set anew; about 3 s a row on one core."""
    from dataclasses import asdict

    from screening.dft import builtin

    with progress_bar("GFN1-xTB") as show:
        report = asdict(
            builtin.build(output, sample=sample, seed=seed, on_progress=lambda done, total: show(done, total, ""))
        )
    if as_json:
        print_json({"file": output, **report})
    else:
        print_table(list(report), [list(report.values())])
