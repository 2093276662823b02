"""/docs: the OpenAPI document in Swagger UI, whose scripts come from npm; where they are absent, as a plain list."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from screening.web.templating import has_script, render

router = APIRouter(include_in_schema=False)

_METHODS = ("get", "post", "put", "patch", "delete")


@router.get("/docs")
def show_docs(request: Request) -> Response:
    """The page; it needs no token, since it says nothing of anybody's data."""
    if has_script("swagger-ui-bundle.js"):
        return render(request, "docs.html")
    return render(request, "docs_plain.html", operations=_operations(request.app.openapi()))


def _operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"method": method.upper(), "path": path, **operation}
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in _METHODS
    ]
