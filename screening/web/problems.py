"""An answer that is no success, as code that answers requests raises it."""

from __future__ import annotations

from collections.abc import Mapping


class ProblemError(Exception):
    """An answer that is no success, with its status and what to do about it."""

    def __init__(self, status: int, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
