"""Errors as answers: problem+json (RFC 9457) with the text of our error tree; for a browser's page the same as HTML.

What a caller can mend is said in `detail`; a fault of ours says nothing but its request id, and the log has the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from psycopg import errors as postgresql
from sqlalchemy.exc import DBAPIError, TimeoutError
from starlette.exceptions import HTTPException

from screening.errors import InputError, LeaseLostError, ScreeningError, ServiceError, UnknownNameError
from screening.web.access import remember_browser
from screening.web.problems import ProblemError
from screening.web.templating import is_page, render

_logger = logging.getLogger(__name__)

TOO_LARGE = (
    "the body is larger than this server takes (SCREENING_WEB_UPLOAD_MB); send fewer files at a time, or compress them"
)
_UNEXPECTED = "something went wrong here; the log of the server has the reason under this request id"


def add_handlers(app: FastAPI) -> None:
    """Answer each kind of error."""
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(ScreeningError, _screening_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DBAPIError, _database)
    app.add_exception_handler(TimeoutError, _busy)
    app.add_exception_handler(Exception, _fault)


def status_of(error: ScreeningError) -> int:
    """The HTTP status of an error of our tree."""
    if isinstance(error, UnknownNameError):
        return HTTPStatus.NOT_FOUND
    if isinstance(error, InputError):
        return HTTPStatus.UNPROCESSABLE_ENTITY
    if isinstance(error, ServiceError):
        return HTTPStatus.SERVICE_UNAVAILABLE
    if isinstance(error, LeaseLostError):
        return HTTPStatus.CONFLICT
    return HTTPStatus.INTERNAL_SERVER_ERROR


def answer(
    request: Request, status: int, detail: str, *, headers: Mapping[str, str] | None = None, **further: Any
) -> Response:
    """An error as problem+json, or as a page where a browser asked for one."""
    title = HTTPStatus(status).phrase
    request_id = getattr(request.state, "request_id", None)
    if status == HTTPStatus.UNAUTHORIZED and is_page(request):
        return render(request, "login.html", status=status, detail=detail, next=str(request.url.path))
    if is_page(request):
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:  # else the database may be what fails
            remember_browser(request)
        return render(
            request, "problem.html", status=status, code=int(status), title=title, detail=detail,
            request_id=request_id, headers=headers,
        )  # fmt: skip
    if request.url.path.startswith("/optimade"):
        errors = [{"status": str(int(status)), "title": title, "detail": detail}]
        return JSONResponse(
            {"errors": errors, "meta": {"request_id": request_id}}, status, headers=dict(headers or {}),
            media_type="application/vnd.api+json",
        )  # fmt: skip
    content = {
        "type": "about:blank", "title": title, "status": status, "detail": detail, "request_id": request_id, **further,
    }  # fmt: skip
    return JSONResponse(content, status, headers=dict(headers or {}), media_type="application/problem+json")


def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return answer(request, error.status, error.detail, headers=error.headers)


def _screening_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ScreeningError)
    status = status_of(error)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _logger.warning("%s: %s", type(error).__name__, error)
    return answer(request, status, str(error), error=type(error).__name__)


def _invalid(request: Request, error: Exception) -> Response:
    """What a request has that its schema does not allow, field by field."""
    assert isinstance(error, RequestValidationError)
    faults = [
        {"field": ".".join(map(str, found["loc"])), "found": _short(found.get("input")), "expected": found["msg"]}
        for found in error.errors()
    ]
    detail = "; ".join(f"{fault['field']}: found {fault['found']}, {fault['expected']}" for fault in faults)
    return answer(request, HTTPStatus.UNPROCESSABLE_ENTITY, detail, faults=faults)


def _short(found: Any) -> str:
    text = repr(found)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == HTTPStatus.NOT_FOUND and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = f"there is nothing at {request.url.path}; /docs lists the REST API, / is the overview"
    if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        detail = TOO_LARGE
    return answer(request, error.status_code, detail, headers=error.headers)


def _database(request: Request, error: Exception) -> Response:
    """A statement that took too long, a number that no column holds, a server that went away; the rest are faults."""
    assert isinstance(error, DBAPIError)
    original = error.orig
    if isinstance(original, postgresql.QueryCanceled):
        return answer(
            request, HTTPStatus.SERVICE_UNAVAILABLE,
            "the database took longer than a request may (SCREENING_WEB_QUERY_S); narrow what is asked for: fewer "
            "hosts, a window on what is sorted by, fewer rows",
        )  # fmt: skip
    if isinstance(original, postgresql.DataError):
        return answer(
            request, HTTPStatus.UNPROCESSABLE_ENTITY, f"a value cannot be stored: {original.diag.message_primary}"
        )
    if isinstance(original, postgresql.OperationalError):
        _logger.warning("the database does not answer: %s", original)
        return answer(
            request,
            HTTPStatus.SERVICE_UNAVAILABLE,
            "the database does not answer; try again",
            headers={"Retry-After": "5"},
        )
    return _fault(request, error)


def _busy(request: Request, error: Exception) -> Response:
    return answer(
        request, HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at once; try again", headers={"Retry-After": "2"}
    )


def _fault(request: Request, error: Exception) -> Response:
    _logger.error("request %s", getattr(request.state, "request_id", None), exc_info=error)
    return answer(request, HTTPStatus.INTERNAL_SERVER_ERROR, _UNEXPECTED)
