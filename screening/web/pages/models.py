"""Models: how good each version is, what it learnt from, and which one is in production."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from sqlalchemy.orm import Session

from screening.database import listings, validation
from screening.database.models import find_model, line_by_name, promotions_of, versions_of
from screening.database.provenance import retracted_below, sources_of
from screening.database.tables import PROPERTY_COMMENTS
from screening.errors import InputError, UnknownNameError
from screening.pipeline.quarantine import list_quarantined
from screening.pipeline.retraining import roll_back
from screening.web.access import Admin, Reader, Submitter
from screening.web.api.models import NewTraining, begin_training
from screening.web.server import Transaction
from screening.web.templating import render

router = APIRouter()


@router.get("/models")
def show_models(request: Request, session: Transaction, _: Reader) -> Response:
    """The versions of all models, newest first, and results that contradict one."""
    rows = listings.list_models(session)[::-1]
    return render(request, "models.html", rows=rows, quarantined=list_quarantined(session))


@router.get("/models/{model}")
def show_model(request: Request, session: Transaction, _: Reader, model: str) -> Response:
    """A version of a model; by the model's name the one in production."""
    return _page(request, session, model)


@router.get("/models/{model}/plots")
def show_plots(
    session: Transaction, _: Reader, model: str, property: Annotated[str, Query(max_length=50)]
) -> Response:  # fmt: skip
    """Parity and calibration on validation rows."""
    found = _model_id(session, model)
    if property not in PROPERTY_COMMENTS:
        raise InputError(f"there is no property {property!r}; the properties are {', '.join(PROPERTY_COMMENTS)}")
    return JSONResponse(
        {
            "title": PROPERTY_COMMENTS[property],
            "points": validation.parity_points(session, found, property),
            "levels": validation.LEVELS,
            "shares": validation.calibration(session, found, property),
        }
    )


@router.post("/models/{model}/production")
def promote(
    request: Request, session: Transaction, _: Admin, model: str,
    version: Annotated[int | None, Form(ge=1, lt=2**31)] = None,
) -> Response:  # fmt: skip
    """Put this version into production, or the one that was there before."""
    try:
        with session.begin_nested():
            now, _before = roll_back(session, line_by_name(session, model).name, version)
    except InputError as error:
        return _page(request, session, model, fault=str(error))
    return RedirectResponse(f"/models/{now}", 303)


@router.post("/models/{model}/retrain")
def retrain(request: Request, session: Transaction, _: Submitter, model: str) -> Response:
    """Let the model learn from what is new."""
    try:
        with session.begin_nested():
            begun = begin_training(session, model, NewTraining())
    except InputError as error:
        return _page(request, session, model, fault=str(error))
    if begun.model is None:
        return _page(request, session, model, remark=begun.remark)
    return RedirectResponse(f"/models/{begun.model}", 303)


def _model_id(session: Session, name: str) -> int:
    found = find_model(session, name)
    if found is None:
        raise UnknownNameError(f"no model is called {name!r}; /models lists them")
    return found.id


def _page(
    request: Request, session: Session, name: str, *, fault: str | None = None, remark: str | None = None
) -> Response:
    model_id = _model_id(session, name)
    found = listings.describe_version(session, model_id)
    line = line_by_name(session, found["line"])
    properties = validation.validated_properties(session, model_id)
    errors: dict[str, Any] = {
        part: validation.errors_by(session, model_id, part, properties) for part in ("dataset", "n_defects")
    }
    return render(
        request, "model.html", model=found, line=line, versions=versions_of(session, line.id)[::-1],
        promotions=promotions_of(session, line.id)[::-1], sources=sources_of(session, model_id), errors=errors,
        retracted=retracted_below(session, model_id), validated=properties, properties=PROPERTY_COMMENTS,
        quarantined=list_quarantined(session, line=line.name), fault=fault, remark=remark,
        status=200 if fault is None else 422,
    )  # fmt: skip
