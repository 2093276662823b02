"""Rounds: propose calculations, download their inputs, drop the results, see what became of each."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from screening.database.design_query import DesignQuery
from screening.database.rounds import find_round, list_rounds, mark_submitted
from screening.database.tables import PROPERTY_COMMENTS
from screening.database.uploads import find_upload, list_uploads
from screening.errors import InputError
from screening.pipeline.query_words import describe_query
from screening.pipeline.round_files import fail_submitted
from screening.web.access import Reader, Submitter
from screening.web.api.rounds import NewRound, describe_round, inputs_answer, propose_round
from screening.web.api.uploads import store
from screening.web.forms import FormOf
from screening.web.pages.explore import design_of, fields_of
from screening.web.server import Transaction
from screening.web.templating import render

router = APIRouter()

_SHOWN = ("formation_energy_per_site", "homo_lumo_gap_min", "total_mag")


@router.get("/rounds")
def show_rounds(request: Request, session: Transaction, _: Reader) -> Response:
    """The rounds, and what was sent."""
    return _list(request, session)


@router.post("/rounds/new")
def propose(request: Request, session: Transaction, _: Submitter, form: FormOf) -> Response:
    """Propose calculations for the design query of the form."""
    given = fields_of(form)
    try:
        with session.begin_nested():
            query = design_of(session, given)
            new = NewRound(
                query=query.stored(), n=int(given.get("n", "5")) if given.get("n", "5").isdecimal() else 0,
                learn=given.get("learn") == "yes", name=given.get("round_name"), model=given.get("model"),
                campaign=given.get("campaign"),
            )  # fmt: skip
            made = propose_round(session, new)
    except (InputError, ValidationError) as error:
        said = str(error) if isinstance(error, InputError) else "; ".join(f["msg"] for f in error.errors())
        return _list(request, session, fault=said, given=given)
    return RedirectResponse(f"/rounds/{find_round(session, made.round).id}", 303)


@router.post("/results")
def send_results(
    request: Request, session: Transaction, caller: Submitter, files: Annotated[list[UploadFile], File()],
    level: Annotated[str, Form(max_length=200)] = "", round: Annotated[str, Form(max_length=200)] = "",
) -> Response:  # fmt: skip
    """Store what was dropped, for the workers."""
    back = f"/rounds/{round}" if round else "/rounds"
    try:
        with session.begin_nested():
            for file in files:
                store(
                    session, "results", file, {"level": level.strip()}, token_id=caller.token_id,
                    round_name=round or None,
                )  # fmt: skip
    except InputError as error:
        if round:
            return _page(request, session, round, fault=str(error))
        return _list(request, session, fault=str(error))
    return RedirectResponse(f"{back}#uploads", 303)


@router.get("/rounds/{round}")
def show_round(request: Request, session: Transaction, _: Reader, round: str) -> Response:
    """A round with its calculations."""
    return _page(request, session, round)


@router.get("/rounds/{round}/uploads")
def show_round_uploads(request: Request, session: Transaction, _: Reader, round: str) -> Response:
    """What was sent for a round, as a part of its page."""
    found = find_round(session, round)
    return render(request, "uploads_part.html", uploads=list_uploads(session, limit=20, round_id=found.id))


@router.get("/uploads")
def show_uploads(request: Request, session: Transaction, _: Reader) -> Response:
    """What was sent, as a part of the page of the rounds."""
    if request.headers.get("hx-request") != "true":
        return RedirectResponse("/rounds#uploads", 303)
    return render(request, "uploads_part.html", uploads=list_uploads(session, limit=20))


@router.get("/uploads/{upload}")
def show_upload(request: Request, session: Transaction, _: Reader, upload: int) -> Response:
    """What became of each result of a file that was sent."""
    return render(request, "upload.html", upload=find_upload(session, upload))


@router.post("/rounds/{round}/inputs")
def download_inputs(
    request: Request, session: Transaction, _: Submitter, round: str,
    only_structures: Annotated[bool, Form()] = False, retry_failed: Annotated[bool, Form()] = False,
) -> Response:  # fmt: skip
    """The inputs as a zip; they count as exported from then on."""
    try:
        with session.begin_nested():
            return inputs_answer(
                session, find_round(session, round), only_structures=only_structures, retry_failed=retry_failed
            )
    except InputError as error:
        return _page(request, session, round, fault=str(error))


@router.post("/rounds/{round}/submitted")
def submitted(
    request: Request, session: Transaction, _: Submitter, round: str,
    job: Annotated[str, Form(min_length=1, max_length=200)],
) -> Response:  # fmt: skip
    """Say that what is exported was submitted elsewhere."""
    try:
        with session.begin_nested():
            mark_submitted(session, find_round(session, round).id, job)
    except InputError as error:
        return _page(request, session, round, fault=str(error))
    return RedirectResponse(f"/rounds/{round}", 303)


@router.post("/rounds/{round}/failed")
def failed(
    request: Request, session: Transaction, _: Submitter, round: str,
    reason: Annotated[str, Form(max_length=1000)] = "",
) -> Response:  # fmt: skip
    """Say that what is submitted will not come back."""
    try:
        with session.begin_nested():
            fail_submitted(session, find_round(session, round).id, reason)
    except InputError as error:
        return _page(request, session, round, fault=str(error))
    return RedirectResponse(f"/rounds/{round}", 303)


def _list(
    request: Request, session: Session, *, fault: str | None = None, given: dict[str, str] | None = None
) -> Response:
    return render(
        request, "rounds.html", rows=list_rounds(session), uploads=list_uploads(session, limit=20), fault=fault,
        given=given or {}, status=200 if fault is None else 422,
    )  # fmt: skip


def _page(request: Request, session: Session, name: str, *, fault: str | None = None) -> Response:
    row = find_round(session, name)
    found = describe_round(session, row)
    shown: list[str] = [p for p in _SHOWN if any(p in c.values for c in found.calculations)]
    values: dict[str, Any] = {"round": found, "shown": shown, "properties": PROPERTY_COMMENTS}
    return render(
        request, "round.html", **values, words=_words(found.query), fault=fault,
        uploads=list_uploads(session, limit=20, round_id=row.id), status=200 if fault is None else 422,
    )  # fmt: skip


def _words(query: dict[str, Any] | None) -> str:
    return "chosen by hand or by a model's own uncertainty" if not query else describe_query(DesignQuery.of(**query))
