"""A new screening: a form that shows the exact count, the cost and the time as one types, and starts the campaign."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.datastructures import FormData, QueryParams

from screening.database import listings
from screening.defects.catalogue import catalogue_host, host_names
from screening.errors import InputError
from screening.pipeline import plans
from screening.pipeline.space_requests import SpaceRequest, known_host, space_of
from screening.web.access import Reader, Submitter
from screening.web.api.campaigns import NewCampaign, plan_new
from screening.web.forms import Fields, FormOf
from screening.web.server import Transaction
from screening.web.sizes import check_space
from screening.web.templating import render

router = APIRouter(prefix="/screening")

_SPACE = ("host", "supercell", "defect_types", "min_defects", "max_defects", "composition", "min_separation",
          "max_separation")  # fmt: skip
_DEFAULTS = {"host": "MoS2", "supercell": "8x8", "min_defects": "1", "max_defects": "3", "keep": "all",
             "keep_rows": "10000", "confidence": "0.5"}  # fmt: skip


@router.get("/new")
def show_form(request: Request, session: Transaction, _: Reader) -> Response:
    """The form, empty or with what is given."""
    return _page(request, session, _fields(request.query_params))


@router.get("/estimate")
def show_estimate(request: Request, session: Transaction, _: Reader) -> Response:
    """Exact count, cost and time of what is typed so far, or what is wrong with it."""
    return render(request, "estimate.html", **_estimate(session, _fields(request.query_params)))


@router.post("/new")
def start_screening(
    request: Request, session: Transaction, _: Submitter, form: FormOf
) -> Response:  # fmt: skip
    """Plan the campaign, and start it if that was the button."""
    given = _fields(form)
    try:
        with session.begin_nested():
            found = plan_new(session, _campaign(given, start=form.get("do") != "plan"))
    except (InputError, ValidationError) as error:
        return _page(request, session, given, fault=_words(error))
    return RedirectResponse(f"/campaigns/{found['campaign']}", 303)


def _page(request: Request, session: Session, given: Fields, *, fault: str | None = None) -> Response:
    rows = listings.list_hosts(session)
    hosts = list(dict.fromkeys([row["host"] for row in rows] + [catalogue_host(name).name for name in host_names()]))
    models = [row["model"] for row in listings.list_models(session) if row["state"] == "finished"]
    estimate = {"fault": None, "found": None} if not given.get("defect_types") else _estimate(session, given)
    return render(
        request, "new_screening.html", given=given, hosts=hosts, supercells=sorted({row["supercell"] for row in rows}),
        models=models, sentence=fault, estimate=estimate, status=200 if fault is None else 422,
    )  # fmt: skip


def _fields(sent: QueryParams | FormData) -> Fields:
    """What is typed, over the defaults."""
    return _DEFAULTS | {name: str(value).strip() for name, value in sent.items() if isinstance(value, str)}


def _space(given: Fields) -> SpaceRequest:
    found: dict[str, Any] = {name: given[name] for name in _SPACE if given.get(name)}
    for name in ("limits", "required"):
        found[name] = tuple(part.strip() for part in given.get(name, "").split(",") if part.strip())
    return SpaceRequest(**found)


def _campaign(given: Fields, *, start: bool) -> NewCampaign:
    keep: dict[str, Any] | None = None
    if given["keep"] == "best":
        keep = {"limit": given["keep_rows"], "confidence": given["confidence"]}
        if given.get("windows"):
            keep["windows"] = given["windows"]
        if given.get("sort"):
            keep["sort"] = given["sort"]
        if given.get("direction"):
            keep["direction"] = given["direction"]
    return NewCampaign(
        space=_space(given), model=given.get("model") or None, is_scored=given.get("scored", "yes") == "yes",
        keep=keep, name=given.get("name") or None, start=start,
    )  # fmt: skip


def _estimate(session: Session, given: Fields) -> dict[str, Any]:
    """The count, or the sentence that says what is wrong."""
    try:
        request = _space(given)
        host = known_host(session, request.host)
        check_space(host, request)
        space = space_of(host, request)
        kept = int(given["keep_rows"]) if given["keep"] == "best" and given["keep_rows"].isdecimal() else None
        return {"found": plans.estimate(session, space, kept=kept), "fault": None}
    except (InputError, ValidationError) as error:
        return {"found": None, "fault": _words(error)}


def _words(error: InputError | ValidationError) -> str:
    """What is wrong, in a sentence."""
    if isinstance(error, InputError):
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, fault['loc'])).removeprefix('space.')}: {fault['msg']} (found {fault['input']!r})"
        for fault in error.errors()
    )
