"""What REST answers share: problems, energies with their spread, and JSON of what the pipeline returns."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """An error (RFC 9457): what was found, what was expected and what to do."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str | None = Field(default=None, description="the line of the server's log that belongs to it")
    error: str | None = Field(default=None, description="class of the error")
    faults: list[dict[str, Any]] | None = Field(
        default=None, description="field by field, where a request does not fit"
    )


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": description, "content": {"application/problem+json": {}}}
    for status, description in {
        401: "no token, or one that does not hold",
        403: "the role of the token is too small",
        404: "a name that is not known",
        413: "a body that is too large",
        422: "something that is not acceptable, and why",
        429: "too many requests",
        503: "a service does not answer, or the query takes too long",
    }.items()
}
