"""Campaigns: what they will cost, how far they are, start, pause, resume, cancel."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from fastapi.encoders import jsonable_encoder
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from screening.database.campaigns import CampaignProgress, progress_of, workers_of
from screening.database.queries import campaign_by_name
from screening.pipeline import campaigns, plans
from screening.pipeline.campaigns import CampaignRequest
from screening.pipeline.space_requests import SpaceRequest, known_host, model_id_for, space_of
from screening.web.access import Admin, Reader, Submitter
from screening.web.api.answers import PROBLEMS
from screening.web.campaign_events import events_answer
from screening.web.design_fields import read_design
from screening.web.idempotency import OncePerKey
from screening.web.server import Transaction, tell_workers
from screening.web.sizes import check_space

router = APIRouter(prefix="/campaigns", tags=["campaigns"], responses=PROBLEMS)

CampaignName = Annotated[str, Path(max_length=200, description="name of the campaign")]


class Progress(BaseModel):
    """How far a campaign is."""

    model_config = ConfigDict(from_attributes=True)

    campaign: str
    state: str = Field(description="planned, running, paused, cancelled, incomplete or finished")
    storage: str = Field(description="all candidates are stored, or the best")
    model: str | None
    candidates: int = Field(description="by Burnside's lemma")
    candidates_done: int
    candidates_matching: int | None = Field(description="of the finished chunks, that satisfy the query")
    chunks: int
    chunks_done: int
    chunks_running: int
    chunks_failed: int
    workers: int
    per_second: float | None = Field(description="candidates, of the workers that work on it now")
    seconds_left: float | None
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None
    production: str | None = Field(description="version of the model that is in production")
    is_stale: bool = Field(description="whether that is another one than the model that scores it")


class Campaigns(BaseModel):
    """The campaigns, oldest first."""

    rows: list[Progress]


class WorkerRow(BaseModel):
    """What a worker process has done for a campaign."""

    model_config = ConfigDict(from_attributes=True)

    worker: str
    chunks_done: int
    candidates: int
    per_second: float | None
    is_working: bool
    heartbeat: datetime | None
    peak_memory_mb: float | None


class CampaignDetail(Progress):
    """A campaign: what it is and how far it is."""

    host: str
    supercell: str
    search_space: str = Field(description="its defect types and numbers, in words")
    query: dict[str, Any] | None = Field(description="design query whose best rows are kept; null keeps all")
    worker_rows: list[WorkerRow]


class NewCampaign(BaseModel):
    """A campaign to be planned."""

    model_config = ConfigDict(extra="forbid")

    space: SpaceRequest
    model: str | None = Field(
        default=None, max_length=200, description="that scores it; the newest of the host if not given"
    )
    is_scored: bool = Field(default=True, description="false stores the candidates without predictions")
    keep: dict[str, Any] | None = Field(
        default=None,
        description="design query without a host: its best rows, up to its limit, are kept instead of all",
        examples=[{"windows": ["homo_lumo_gap_min=1.0:1.2"], "limit": 10000}],
    )  # fmt: skip
    name: str | None = Field(default=None, min_length=1, max_length=200)
    start: bool = Field(default=False, description="start it at once")


class PlannedCampaign(BaseModel):
    """A campaign and what it will cost."""

    campaign: str
    state: str
    host: str
    supercell: str
    search_space: str
    model: str | None
    storage: str
    query: dict[str, Any] | None
    candidates: int
    by_defects: dict[str, int]
    chunks: int
    disk_bytes: int
    seconds: float = Field(description="of one worker process")


@router.get("")
def list_campaigns(session: Transaction, _: Reader) -> Campaigns:
    """How far the campaigns are."""
    return Campaigns(rows=[Progress.model_validate(row) for row in progress_of(session)])


@router.get("/{campaign}")
def get_campaign(session: Transaction, _: Reader, campaign: CampaignName) -> CampaignDetail:
    """A campaign: what it is, how far it is, and who works on it."""
    found = campaign_by_name(session, campaign)
    (progress,) = progress_of(session, found.id)
    of = plans.describe_campaign(session, found)
    return CampaignDetail(
        **Progress.model_validate(progress).model_dump(), host=of["host"], supercell=of["supercell"],
        search_space=of["search_space"], query=of["query"],
        worker_rows=[WorkerRow.model_validate(row) for row in workers_of(session, found.id)],
    )  # fmt: skip


@router.get(
    "/{campaign}/events", response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "the last event is `over`"}},
)  # fmt: skip
def follow_campaign(request: Request, session: Transaction, _: Reader, campaign: CampaignName) -> StreamingResponse:
    """Progress as server-sent events, one whenever something has changed, until the campaign is over."""
    return events_answer(request, campaign_by_name(session, campaign).id)


@router.post("", status_code=201, response_model=PlannedCampaign)
def add_campaign(session: Transaction, once: OncePerKey, new: NewCampaign) -> Any:
    """Plan a campaign, and start it if asked to. One that keeps all is there once, and found again."""
    if once.earlier:
        return once.earlier
    found = plan_new(session, new)
    return once.keep(201, jsonable_encoder(found, exclude={"search_space_id"}))


@router.post("/{campaign}/{verb}")
def change_campaign(
    session: Transaction, _: Submitter, campaign: CampaignName, verb: Literal["start", "pause", "resume", "cancel"]
) -> Progress:
    """Start, pause, resume or cancel a campaign; what is done stays."""
    return Progress.model_validate(change(session, campaign, verb))


@router.delete("/{campaign}", status_code=204)
def delete_campaign(session: Transaction, _: Admin, campaign: CampaignName) -> None:
    """Delete a campaign with its candidates; rankings stay."""
    campaigns.remove(session, campaign_by_name(session, campaign))


def plan_new(session: Session, new: NewCampaign) -> dict[str, Any]:
    """Plan a campaign and start it if that is asked for; as `plans.plan_campaign` describes it."""
    host = known_host(session, new.space.host)
    check_space(host, new.space)
    space = space_of(host, new.space)
    model_id = model_id_for(session, space, new.model) if new.is_scored else None
    query = None
    if new.keep is not None:
        place = {"host": space.supercell.host.name, "supercell": space.supercell.label}
        query = read_design(session, {**new.keep, **place})
    found = plans.plan_campaign(session, space, CampaignRequest(model_id, query, new.name))
    if new.start and found["state"] != "finished":
        found["state"] = change(
            session, found["campaign"], "start" if found["state"] == "planned" else "resume"
        ).state  # fmt: skip
    return found


def change(session: Session, name: str, verb: plans.Change) -> CampaignProgress:
    """Change the state of a campaign, and tell the workers once that is committed."""
    campaign = campaign_by_name(session, name)
    kind = plans.change(session, campaign, verb)
    if kind is not None:
        tell_workers(session, kind)
    session.flush()
    (found,) = progress_of(session, campaign.id)
    return found
