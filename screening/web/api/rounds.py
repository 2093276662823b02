"""Rounds of calculations: propose, download the inputs, follow them."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path as FilePath
from tempfile import mkdtemp
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.encoders import jsonable_encoder
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session
from starlette.background import BackgroundTask

from screening.database.rounds import find_round, level_of_round, list_rounds, mark_submitted, name_round, round_rows
from screening.database.tables import PROPERTY_COMMENTS, Round
from screening.pipeline.informative_rounds import propose_informative
from screening.pipeline.round_files import export_round, fail_submitted
from screening.pipeline.rounds import propose
from screening.web.access import Reader, Submitter
from screening.web.api.answers import PROBLEMS
from screening.web.design_fields import read_design
from screening.web.idempotency import OncePerKey
from screening.web.paging import After, Limit, Page, id_of, page_of
from screening.web.server import Transaction

router = APIRouter(prefix="/rounds", tags=["rounds"], responses=PROBLEMS)

RoundName = Annotated[str, Path(max_length=200, description="name or number of the round")]
MOST_PROPOSED = 1000


class RoundRow(BaseModel):
    """How far a round is; numbers of calculations by their state."""

    model_config = ConfigDict(extra="ignore")

    round_id: int
    round: str
    model: str | None
    level_of_theory: str
    calculations: int
    proposed: int
    exported: int
    submitted: int
    waiting: int
    running: int
    finished: int
    failed: int
    folder: str | None


class CalculationRow(BaseModel):
    """A calculation of a round."""

    calculation: int
    host: str
    supercell: str
    configuration: str
    sites: list[int]
    state: str
    attempts: int
    job: str | None
    worth: float | None
    expected_s: float | None = Field(description="how long it is expected to take, s")
    reason: str | None = Field(description="why it was proposed")
    submitted_at: datetime | None
    finished_at: datetime | None
    error: str | None
    result: int | None
    values: dict[str, float] = Field(description="of the result, eV or Bohr magneton")


class RoundDetail(BaseModel):
    """A round with its calculations, what is worth most first."""

    round_id: int
    round: str
    level_of_theory: str
    query: dict[str, Any] | None
    states: dict[str, int]
    calculations: list[CalculationRow]


class NewRound(BaseModel):
    """What to propose."""

    model_config = ConfigDict(extra="forbid")

    query: dict[str, Any] = Field(
        description="fields of a design query", examples=[{"host": "MoS2", "windows": ["homo_lumo_gap_min=1.0:1.2"]}]
    )
    n: int = Field(default=5, ge=1, le=MOST_PROPOSED, description="how many calculations")
    learn: bool = Field(
        default=False, description="what makes the model better everywhere, not what satisfies the query"
    )
    name: str | None = Field(default=None, min_length=1, max_length=200)
    model: str | None = Field(default=None, max_length=200)
    campaign: str | None = Field(default=None, max_length=200)
    level: str | None = Field(default=None, max_length=200, description="level of theory; the model's if not given")
    only_stored: bool = Field(default=False, description="only configurations that an import brought without results")
    seed: int = Field(default=0, ge=0, lt=2**31)


class ProposedRow(BaseModel):
    """A calculation that is proposed."""

    calculation: int
    place: str = Field(description="host and supercell")
    candidate: int
    configuration: str
    sites: list[int]
    reason: str
    worth: float | None
    expected_s: float | None


class ProposedRound(BaseModel):
    """A round that was just proposed."""

    round: str
    calculations: list[ProposedRow]


class Submitted(BaseModel):
    """A job on another machine."""

    job: str = Field(min_length=1, max_length=200, description="its number")


class Lost(BaseModel):
    """A job that will not come back."""

    reason: str = Field(min_length=1, max_length=1000)
    job: str | None = Field(default=None, max_length=200, description="all that is submitted if not given")


class Number(BaseModel):
    """How many calculations were changed."""

    calculations: int


@router.get("")
def get_rounds(
    request: Request, session: Transaction, _: Reader, limit: Limit = 100, after: After = None
) -> Page[RoundRow]:  # fmt: skip
    """The rounds, newest first."""
    rows = [RoundRow(**row) for row in list_rounds(session, before=id_of(after), limit=limit + 1)]
    return Page[RoundRow](**page_of(request, rows, limit, ["round_id"]))


@router.post("", status_code=201, response_model=ProposedRound)
def add_round(session: Transaction, once: OncePerKey, new: NewRound) -> Any:
    """Propose the next calculations, and store them as a round."""
    if once.earlier:
        return once.earlier
    return once.keep(201, jsonable_encoder(propose_round(session, new)))


@router.get("/{round}")
def get_round(session: Transaction, _: Reader, round: RoundName) -> RoundDetail:  # as callers write it
    """A round with its calculations."""
    return describe_round(session, find_round(session, round))


@router.post("/{round}/inputs", response_class=Response)
def export_inputs(
    session: Transaction, _: Submitter, round: RoundName,
    only_structures: Annotated[bool, Query(description="POSCARs and the manifest alone")] = False,
    retry_failed: Annotated[bool, Query(description="also what failed, up to three attempts")] = False,
) -> Response:  # fmt: skip
    """The inputs of a round as a zip: POSCAR, INCAR, KPOINTS, names of POTCARs, manifest, script for Slurm.

    What is in it counts as exported.
    """
    return inputs_answer(
        session, find_round(session, round), only_structures=only_structures, retry_failed=retry_failed
    )


@router.post("/{round}/submitted")
def submit(session: Transaction, _: Submitter, round: RoundName, job: Submitted) -> Number:
    """Say that what is exported was submitted on another machine."""
    return Number(calculations=mark_submitted(session, find_round(session, round).id, job.job))


@router.post("/{round}/failed")
def give_up(session: Transaction, _: Submitter, round: RoundName, lost: Lost) -> Number:
    """Say that what is submitted will not come back."""
    found = find_round(session, round)
    return Number(calculations=fail_submitted(session, found.id, lost.reason, job=lost.job))


def propose_round(session: Session, new: NewRound) -> ProposedRound:
    """Choose and store a round."""
    choose = propose_informative if new.learn else propose
    found = choose(
        session, read_design(session, new.query), n=new.n, model_name=new.model, campaign_name=new.campaign,
        level_name=new.level, only_stored=new.only_stored, seed=new.seed,
    )  # fmt: skip
    round_id = found[0].round_id
    assert round_id is not None
    if new.name is not None:
        name_round(session, round_id, new.name)
    rows = [
        ProposedRow(
            calculation=row.calculation_id, place=row.place, candidate=row.candidate_id,
            configuration=row.configuration, sites=list(row.sites), reason=row.reason, worth=row.worth,
            expected_s=row.expected_s,
        )
        for row in found
    ]  # fmt: skip
    return ProposedRound(round=new.name or str(round_id), calculations=rows)


def describe_round(session: Session, found: Round) -> RoundDetail:
    """A round with its calculations."""
    rows = round_rows(session, found.id)
    states = [row["state"] for row in rows]
    calculations = [
        CalculationRow(
            **{name: row[name] for name in CalculationRow.model_fields if name != "values"},
            values={name: row[name] for name in PROPERTY_COMMENTS if row[name] is not None},
        )
        for row in rows
    ]
    return RoundDetail(
        round_id=found.id, round=found.name or f"round {found.id}", query=found.query,
        level_of_theory=level_of_round(session, found).name,
        states={state: states.count(state) for state in dict.fromkeys(states)}, calculations=calculations,
    )  # fmt: skip


def inputs_answer(
    session: Session, found: Round, *, only_structures: bool = False, retry_failed: bool = False
) -> FileResponse:  # fmt: skip
    """The inputs of a round as a zip; what is in it counts as exported once the transaction is committed."""
    title = f"round-{found.id}"
    scratch = FilePath(mkdtemp(prefix="screening-round-"))
    try:
        folder_before = found.folder
        export_round(
            session, found.id, scratch / title, only_structures=only_structures, retry_failed=retry_failed
        )  # fmt: skip
        found.folder = folder_before  # that of the server's disk is gone in a moment
        archive = shutil.make_archive(str(scratch / title), "zip", scratch, title)
        return FileResponse(archive, filename=f"{title}.zip", background=BackgroundTask(shutil.rmtree, scratch))
    except BaseException:
        shutil.rmtree(scratch)
        raise
