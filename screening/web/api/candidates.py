"""One candidate: its predictions, its structure, and where they come from."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.encoders import jsonable_encoder
from fastapi.responses import Response
from pydantic import BaseModel, Field

from screening.pipeline.hosts import load_supercell
from screening.pipeline.provenance import FoundCandidate, defects_of, find_candidate, why
from screening.web.access import Reader
from screening.web.api.answers import PROBLEMS
from screening.web.api.designs import Predicted
from screening.web.server import Transaction
from screening.web.structures import Format, structure_answer

router = APIRouter(prefix="/candidates", tags=["candidates"], responses=PROBLEMS)

CampaignName = Annotated[str, Path(max_length=200)]
CandidateId = Annotated[int, Path(ge=0, lt=2**63)]
N_NEAREST = 8


class CandidateDetail(BaseModel):
    """A candidate and what is predicted of it."""

    campaign: str
    candidate: int
    host: str
    supercell: str
    configuration: str
    sites: list[int]
    defects: list[str]
    multiplicity: int
    values: dict[str, Predicted] = Field(description="by property")


class WhyCandidate(BaseModel):
    """What a prediction comes from; the rows are those of `screening why --json`."""

    versions: list[dict[str, Any]] = Field(description="the model and what it goes back to, newest first")
    calculated: dict[str, Any] | None = Field(description="the result of this very configuration")
    nearest: list[dict[str, Any]] = Field(description="results it learnt from that are most like it")
    n_learnt: int
    sources: list[dict[str, Any]] = Field(description="files and data sets of all that was learnt")
    retracted: list[int] = Field(description="results that the model rests on and that were withdrawn since")


@router.get("/{campaign}/{candidate}")
def get_candidate(session: Transaction, _: Reader, campaign: CampaignName, candidate: CandidateId) -> CandidateDetail:
    """A candidate with its predictions."""
    found = find_candidate(session, str(candidate), campaign)
    supercell = load_supercell(session, found.supercell_id).supercell
    defects = [defect.split("@")[0] for defect in _defects(found)]
    return CandidateDetail(
        campaign=campaign, candidate=candidate, host=supercell.host.name, supercell=supercell.label,
        configuration=found.configuration.composition, sites=list(found.configuration.sites), defects=defects,
        multiplicity=found.multiplicity,
        values={name: Predicted(mean=mean, std=std) for name, (mean, std) in found.predictions.items()},
    )  # fmt: skip


@router.get("/{campaign}/{candidate}/why")
def get_why(session: Transaction, _: Reader, campaign: CampaignName, candidate: CandidateId) -> WhyCandidate:
    """From a prediction to its model, the results that it learnt from, and their files."""
    found = why(session, find_candidate(session, str(candidate), campaign), n_nearest=N_NEAREST)
    return WhyCandidate(**{name: jsonable_encoder(getattr(found, name)) for name in WhyCandidate.model_fields})


@router.get("/{campaign}/{candidate}/structure", response_class=Response)
def get_structure(
    session: Transaction, _: Reader, campaign: CampaignName, candidate: CandidateId,
    format: Annotated[Format, Query(description="json is that of pymatgen")] = "poscar",
) -> Response:  # fmt: skip
    """The unrelaxed structure of a candidate as a file."""
    found = find_candidate(session, str(candidate), campaign)
    supercell = load_supercell(session, found.supercell_id).supercell
    return structure_answer(supercell, found.configuration, format, name=f"{campaign}-{candidate}")


def _defects(found: FoundCandidate) -> tuple[str, ...]:
    return defects_of(found.configuration.sites, found.configuration.defect_types)
