"""Hosts and their supercells, and exact counts of search spaces."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from screening.database import listings, queries
from screening.defects.catalogue import catalogue_host, host_names
from screening.defects.defect_types import Configuration
from screening.defects.symmetry import unit_cell_operations
from screening.pipeline.hosts import add_supercell, load_supercell
from screening.pipeline.plans import estimate
from screening.pipeline.space_requests import SpaceRequest, known_host, space_of
from screening.web.access import Reader
from screening.web.api.answers import PROBLEMS
from screening.web.idempotency import OncePerKey
from screening.web.server import Transaction
from screening.web.sizes import check_space, check_supercell
from screening.web.structures import Format, structure_answer

router = APIRouter(tags=["hosts"], responses=PROBLEMS)

HostName = Annotated[str, Path(max_length=200, examples=["MoS2"])]


class SupercellRow(BaseModel):
    """A supercell of a host."""

    host: str
    formula: str
    supercell: str = Field(description="label: repeats of the unit cell")
    n_sites: int
    n_operations: int = Field(description="site permutations of its symmetry group")
    configurations: int = Field(description="that were calculated or proposed")
    results: int


class Hosts(BaseModel):
    """What hosts there are."""

    rows: list[SupercellRow]
    catalogue: list[str] = Field(description="hosts that can be added by name")


class HostDetail(BaseModel):
    """A pristine material."""

    host: str
    formula: str
    is_layer: bool
    lattice: list[list[float]] = Field(description="lattice vectors of the unit cell as rows, angstrom")
    species: list[str]
    positions: list[list[float]] = Field(description="fractional coordinates")
    n_operations: int = Field(description="operations of the unit cell")
    source: str
    supercells: list[SupercellRow]


class NewSupercell(BaseModel):
    """A supercell to be added, with its host if that is new."""

    host: str = Field(min_length=1, max_length=200, description="of the database or the catalogue", examples=["MoS2"])
    supercell: str = Field(min_length=1, max_length=50, examples=["4x4"])


class AddedSupercell(BaseModel):
    """A supercell whose sites are numbered."""

    host: str
    supercell: str
    n_sites: int
    n_operations: int


class Count(BaseModel):
    """Exact numbers of symmetry-distinct configurations, and what a campaign over them costs."""

    total: int
    by_defects: dict[str, int]
    by_composition: dict[str, int]
    disk_bytes: int = Field(description="with the predictions of one model")
    seconds: float = Field(description="to enumerate them, one process")
    scoring_seconds: float | None = Field(description="to score them, one process; null where nothing was scored yet")


@router.get("/hosts")
def list_hosts(session: Transaction, _: Reader) -> Hosts:
    """Hosts with their supercells, and the names of the catalogue."""
    rows = listings.list_hosts(session)
    known = {row["host"] for row in rows}
    catalogue = [name for name in host_names() if catalogue_host(name).name not in known]
    return Hosts(rows=[SupercellRow(**row) for row in rows], catalogue=catalogue)


@router.get("/hosts/{host}")
def get_host(session: Transaction, _: Reader, host: HostName) -> HostDetail:
    """A host of the database or of the catalogue."""
    found = known_host(session, host)
    return HostDetail(
        host=found.name, formula=found.formula, is_layer=found.is_layer, lattice=found.lattice.tolist(),
        species=list(found.species), positions=found.positions.tolist(), source=found.source,
        n_operations=len(unit_cell_operations(found)[0]),
        supercells=[SupercellRow(**row) for row in listings.list_hosts(session) if row["host"] == found.name],
    )  # fmt: skip


@router.post("/hosts", status_code=201, response_model=AddedSupercell)
def add_host(session: Transaction, once: OncePerKey, new: NewSupercell) -> Any:
    """Add a supercell of a host; again changes nothing."""
    if once.earlier:
        return once.earlier
    stored = add_supercell(session, check_supercell(known_host(session, new.host), new.supercell))
    answer = AddedSupercell(
        host=stored.supercell.host.name, supercell=stored.supercell.label, n_sites=stored.supercell.n_sites,
        n_operations=stored.symmetry.n_operations,
    )  # fmt: skip
    return once.keep(201, answer.model_dump())


@router.get("/hosts/{host}/{supercell}/structure", response_class=Response)
def get_pristine_structure(
    session: Transaction, _: Reader, host: HostName, supercell: Annotated[str, Path(max_length=50)],
    format: Annotated[Format, Query(description="json is that of pymatgen")] = "poscar",  # as callers write it
) -> Response:  # fmt: skip
    """The pristine supercell as a file."""
    stored = load_supercell(session, queries.supercell_id_of(session, host, supercell))
    return structure_answer(stored.supercell, Configuration((), ()), format, name=f"{host}-{supercell}")


@router.post("/search-spaces/count", response_model=Count)
def count_search_space(session: Transaction, _: Reader, request: SpaceRequest) -> Any:
    """Count a search space exactly, by Burnside's lemma; nothing is stored."""
    host = known_host(session, request.host)
    check_space(host, request)
    return JSONResponse(estimate(session, space_of(host, request)))
