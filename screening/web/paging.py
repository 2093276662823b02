"""Keyset paging: a page says where the next begins, by the keys of its last row. Never OFFSET."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query, Request
from pydantic import BaseModel, Field

from screening.errors import InputError

LARGEST_PAGE = 1000

Row = TypeVar("Row")

Limit = Annotated[int, Query(ge=1, le=LARGEST_PAGE, description="rows of a page")]
After = Annotated[str | None, Query(max_length=2000, description="cursor of the page before: its `next_cursor`")]


class Page(BaseModel, Generic[Row]):
    """Some rows, and where to go on."""

    rows: list[Row]
    next_cursor: str | None = Field(description="give it as `after` for the next page; null on the last one")
    next: str | None = Field(description="path of the next page")


def page_of(request: Request, rows: Sequence[Any], limit: int, keys: Sequence[str]) -> dict[str, Any]:
    """A page of rows that were read with one more than its limit, in the order of these keys."""
    shown = list(rows[:limit])
    cursor = encode([_value(shown[-1], key) for key in keys]) if len(rows) > limit else None
    following = request.url.include_query_params(after=cursor) if cursor else None
    return {
        "rows": shown,
        "next_cursor": cursor,
        "next": f"{following.path}?{following.query}" if following else None,
    }


def id_of(after: str | None) -> int | None:
    """The id that a cursor of a list by ids holds; None without one.

    Raises:
        InputError: it is none of ours.
    """
    keys = decode(after, int)
    if keys is None:
        return None
    if not 0 <= keys[0] < 2**31:
        raise _bad(str(after))
    found: int = keys[0]
    return found


def encode(keys: Sequence[Any]) -> str:
    """A cursor of JSON values."""
    return base64.urlsafe_b64encode(json.dumps(list(keys), default=str).encode()).decode().rstrip("=")


def decode(cursor: str | None, *types: type) -> list[Any] | None:
    """The keys in a cursor; None without one.

    Raises:
        InputError: it is none of ours.
    """
    if cursor is None:
        return None
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError) as error:
        raise _bad(cursor) from error
    if not isinstance(found, list) or [type(value) for value in found] != list(types):
        raise _bad(cursor)
    return found


def _value(row: Any, key: str) -> Any:
    return row[key] if isinstance(row, dict) else getattr(row, key)


def _bad(cursor: str) -> InputError:
    return InputError(f"after={cursor[:40]!r} is no cursor of this list; give the `next_cursor` of the page before")
