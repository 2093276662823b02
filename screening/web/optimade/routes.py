"""The endpoints of OPTIMADE below /optimade: versions, info, links, structures."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from screening import __version__
from screening.web.access import Reader
from screening.web.optimade.filters import FilterError, compile_filter
from screening.web.optimade.properties import PREFIX, PROPERTIES
from screening.web.optimade.structures import Structures, attributes_of
from screening.web.server import Transaction

API_VERSION = "1.2.0"
_SCHEMA = "https://schemas.optimade.org/openapi/v1.2/optimade.json"
_MEDIA = "application/vnd.api+json"
_LARGEST_PAGE = 500
_TOP = ("id", "type")
_DEFAULT_FIELDS = tuple(PROPERTIES)

router = APIRouter(include_in_schema=False)
_versioned = APIRouter()


@_versioned.get("/info")
def show_info(request: Request, _: Reader) -> Response:
    """What this implementation offers."""
    attributes = {
        "api_version": API_VERSION,
        "available_api_versions": [{"url": f"{_base(request)}/v1", "version": API_VERSION}],
        "formats": ["json"],
        "available_endpoints": ["info", "links", "structures"],
        "entry_types_by_format": {"json": ["structures"]},
        "is_index": False,
    }
    return _answer(request, {"id": "/", "type": "info", "attributes": attributes})


@_versioned.get("/info/{entry}")
def show_entry_info(request: Request, _: Reader, entry: str) -> Response:
    """The properties of structures."""
    if entry != "structures":
        return _error(request, 404, f"there are no {entry}; the entries are structures")
    properties = {
        found.name: {
            "description": found.description, "sortable": found.name == "id", "type": found.type,
            **({"unit": found.unit} if found.unit else {}),
        }
        for found in PROPERTIES.values()
    }  # fmt: skip
    return _answer(
        request,
        {
            "id": "structures",
            "type": "info",
            "description": "defective supercells: calculated ones, and the best-ranked candidates with predictions",
            "formats": ["json"],
            "properties": properties,
            "output_fields_by_format": {"json": list(PROPERTIES)},
        },
    )


@_versioned.get("/links")
def show_links(request: Request, _: Reader) -> Response:
    """Where else to look: only here."""
    attributes = {
        "name": "screening", "description": "defective supercells of this server", "base_url": _base(request),
        "homepage": _home(request), "link_type": "root",
    }  # fmt: skip
    return _answer(request, [{"id": "screening", "type": "links", "attributes": attributes}], available=1, returned=1)


@_versioned.get("/structures")
def list_structures(
    request: Request, session: Transaction, _: Reader,
    filter: str = "", response_fields: str = "", response_format: str = "json",
    page_limit: Annotated[str, Query()] = "20", page_after: str | None = None, sort: str = "",
) -> Response:  # fmt: skip
    """Structures that satisfy a filter, in the order of their ids."""
    fault = _refused(response_format, sort)
    if fault is not None:
        return _error(request, *fault)
    if not page_limit.isdecimal() or len(page_limit) > 9:
        return _error(request, 400, f"page_limit is {page_limit!r}; expected a whole number of 0 or more")
    if int(page_limit) > _LARGEST_PAGE:
        return _error(request, 403, f"page_limit is {page_limit}; pages have {_LARGEST_PAGE} structures at most")
    limit = int(page_limit)
    found = Structures(session)
    try:
        condition = compile_filter(filter, found.columns)
    except FilterError as error:
        return _error(request, error.status, error.detail)
    rows = found.page(condition, after=page_after, limit=limit + 1)
    shown = rows[:limit]
    data = [_entry(row["id"], attributes_of(session, row), response_fields) for row in shown]
    following = None
    if len(rows) > limit and shown:
        url = request.url.include_query_params(page_after=shown[-1]["id"])
        following = f"{_home(request)}{url.path}?{url.query}"
    available = found.count(compile_filter("", found.columns))
    returned = available if not filter.strip() else found.count(condition)
    return _answer(
        request, data, available=available, returned=returned, more=len(rows) > limit, links={"next": following}
    )


@_versioned.get("/structures/{identifier:path}")
def get_structure(
    request: Request, session: Transaction, _: Reader, identifier: str, response_fields: str = "",
    response_format: str = "json",
) -> Response:  # fmt: skip
    """One structure; `data` is null where there is none of this id."""
    fault = _refused(response_format, "")
    if fault is not None:
        return _error(request, *fault)
    found = Structures(session)
    rows = found.page(found.columns["id"] == identifier, after=None, limit=1) if "\0" not in identifier else []
    data = _entry(rows[0]["id"], attributes_of(session, rows[0]), response_fields) if rows else None
    available = found.count(compile_filter("", found.columns))
    return _answer(request, data, available=available, returned=len(rows))


@router.get("/optimade/versions")
def show_versions() -> Response:
    """The major versions that are served."""
    return PlainTextResponse("version\n1", media_type="text/csv; header=present")


for prefix in ("/optimade/v1", "/optimade/v1.2", "/optimade/v1.2.0", "/optimade"):
    router.include_router(_versioned, prefix=prefix)


@router.get("/optimade/v{version}/{rest:path}")
def refuse_version(request: Request, version: str, rest: str) -> Response:
    """Another version of the specification."""
    detail = f"version {version} is not served for {rest or 'anything'}; use v1"
    return _error(request, 553, detail, "Version Not Supported")


def _refused(response_format: str, sort: str) -> tuple[int, str] | None:
    if response_format != "json":
        return 400, f"response_format is {response_format!r}; json is served"
    if sort not in ("", "id"):
        return 501, f"sort is {sort!r}; structures come in the order of their ids"
    return None


def _entry(identifier: str, attributes: Mapping[str, Any], response_fields: str) -> dict[str, Any]:
    """A structure with the fields that are asked for; a field of another provider is not known here."""
    wanted = [name.strip() for name in response_fields.split(",") if name.strip()]
    shown = {name: attributes.get(name) for name in (wanted or _DEFAULT_FIELDS) if name not in _TOP}
    return {"id": identifier, "type": "structures", "attributes": shown}


def _answer(
    request: Request, data: Any, *, available: int | None = None, returned: int | None = None, more: bool = False,
    links: Mapping[str, str | None] | None = None,
) -> Response:  # fmt: skip
    content: dict[str, Any] = {"data": data, "meta": _meta(request, more=more)}
    if available is not None:
        content["meta"] |= {"data_available": available, "data_returned": returned}
    if links is not None:
        content["links"] = dict(links)
    return JSONResponse(content, media_type=_MEDIA)


def _error(request: Request, status: int, detail: str, title: str | None = None) -> Response:
    return JSONResponse(error_content(request, status, detail, title), status, media_type=_MEDIA)


def error_content(request: Request, status: int, detail: str, title: str | None = None) -> dict[str, Any]:
    """An error as OPTIMADE writes it."""
    error = {"status": str(status), "title": title or "the query cannot be answered", "detail": detail}
    return {"errors": [error], "meta": _meta(request, more=False)}


def _meta(request: Request, *, more: bool) -> dict[str, Any]:
    path = request.url.path.removeprefix("/optimade")
    query = f"?{request.url.query}" if request.url.query else ""
    return {
        "query": {"representation": f"{path}{query}"},
        "api_version": API_VERSION,
        "more_data_available": more,
        "schema": _SCHEMA,
        "time_stamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "provider": {
            "name": "screening", "description": "combinations of point defects in 2D materials",
            "prefix": PREFIX.strip("_"),
        },
        "implementation": {"name": "screening", "version": __version__},
    }  # fmt: skip


def _home(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _base(request: Request) -> str:
    return f"{_home(request)}/optimade"
