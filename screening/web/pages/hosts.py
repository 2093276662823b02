"""Hosts: what there is, a host with its structure, symmetry and search spaces, and adding one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from screening.database import listings, queries, tables
from screening.defects.catalogue import catalogue_host, host_names
from screening.defects.host import Supercell
from screening.defects.symmetry import unit_cell_operations
from screening.errors import InputError
from screening.pipeline.campaign_choice import describe_space
from screening.pipeline.hosts import add_supercell, host_of
from screening.pipeline.space_requests import known_host
from screening.web.access import Reader, Submitter
from screening.web.drawing import species_colours, supercell_svg
from screening.web.server import Transaction
from screening.web.sizes import check_supercell
from screening.web.templating import render

router = APIRouter()


@router.get("/hosts")
def show_hosts(request: Request, session: Transaction, _: Reader) -> Response:
    """The hosts and their supercells."""
    return _list(request, session)


@router.post("/hosts")
def add_host(
    request: Request, session: Transaction, _: Submitter, host: Annotated[str, Form(max_length=200)],
    supercell: Annotated[str, Form(max_length=50)],
) -> Response:  # fmt: skip
    """Add a supercell of a host of the catalogue or of the database."""
    try:
        stored = add_supercell(session, check_supercell(known_host(session, host.strip()), supercell.strip()))
    except InputError as error:
        return _list(request, session, fault=str(error), given={"host": host, "supercell": supercell})
    return RedirectResponse(f"/hosts/{stored.supercell.host.name}?supercell={stored.supercell.label}", 303)


@router.get("/hosts/{host}")
def show_host(
    request: Request, session: Transaction, _: Reader, host: str, supercell: str | None = None
) -> Response:  # fmt: skip
    """A host with one of its supercells drawn."""
    found = host_of(queries.get_host(session, host))
    rows = [row for row in listings.list_hosts(session) if row["host"] == found.name]
    label = supercell or rows[-1]["supercell"]
    queries.supercell_id_of(session, found.name, label)  # an unknown one is told
    shown = Supercell.parse(found, label)
    return render(
        request, "host.html", host=found, rows=rows, shown=shown, label=label,
        n_operations=len(unit_cell_operations(found)[0]), colours=species_colours(shown),
        top=supercell_svg(shown), side=supercell_svg(shown, view="side"),
        spaces=_spaces(session, found.name), levels=_levels(session, found.name),
    )  # fmt: skip


def _list(
    request: Request, session: Session, *, fault: str | None = None, given: dict[str, str] | None = None
) -> Response:
    rows = listings.list_hosts(session)
    known = {row["host"] for row in rows}
    catalogue = [catalogue_host(name) for name in host_names()]
    return render(
        request, "hosts.html", rows=rows, catalogue=[host for host in catalogue if host.name not in known],
        names=[host.name for host in catalogue], fault=fault, given=given or {"host": "", "supercell": "4x4"},
        status=200 if fault is None else 422,
    )  # fmt: skip


def _spaces(session: Session, host: str) -> list[dict[str, Any]]:
    """Search spaces of a host with their exact counts and campaigns, newest first."""
    space, supercell = tables.SearchSpace, tables.Supercell
    found = session.execute(
        select(space, supercell.label)
        .join(supercell, supercell.id == space.supercell_id)
        .join(tables.Host, tables.Host.id == supercell.host_id)
        .where(tables.Host.name == host)
        .order_by(space.id.desc())
        .limit(50)
    ).all()
    campaigns = session.execute(
        select(tables.Campaign.search_space_id, tables.Campaign.name, tables.Campaign.state)
        .where(tables.Campaign.search_space_id.in_([row.id for row, _ in found]))
        .order_by(tables.Campaign.id)
    ).all()
    return [
        {
            "supercell": label, "description": describe_space(row), "candidates": row.expected,
            "campaigns": [(c.name, c.state) for c in campaigns if c.search_space_id == row.id],
        }
        for row, label in found
    ]  # fmt: skip


def _levels(session: Session, host: str) -> list[dict[str, Any]]:
    """Levels of theory at which configurations of a host have results: level, supercell, results."""
    level, supercell = tables.LevelOfTheory, tables.Supercell
    rows = session.execute(
        select(level.name.label("level"), supercell.label.label("supercell"), func.count().label("results"))
        .select_from(tables.CalculationResult)
        .join(tables.Calculation, tables.Calculation.id == tables.CalculationResult.calculation_id)
        .join(level, level.id == tables.Calculation.level_id)
        .join(tables.Configuration, tables.Configuration.id == tables.Calculation.configuration_id)
        .join(supercell, supercell.id == tables.Configuration.supercell_id)
        .join(tables.Host, tables.Host.id == supercell.host_id)
        .where(tables.Host.name == host, tables.CalculationResult.retracted_at.is_(None))
        .group_by(level.name, supercell.label)
        .order_by(level.name, supercell.label)
    ).mappings()
    return [dict(row) for row in rows]
