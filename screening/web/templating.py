"""Jinja2: one environment for all pages, with the formats that tables use."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from screening import __version__

FOLDER = Path(str(files("screening.web")))
STATIC = FOLDER / "static"
VENDOR = STATIC / "vendor"  # scripts that `make install` takes from npm; not in git
_NO_PAGES = ("/api/", "/optimade/", "/static/", "/health", "/metrics", "/openapi.json")


def is_page(request: Request) -> bool:
    """Whether a browser's page, or a part of one, was asked for."""
    path = request.url.path
    accepts = request.headers.get("accept", "")
    return not path.startswith(_NO_PAGES) and ("text/html" in accepts or request.headers.get("hx-request") == "true")


def render(
    request: Request, template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """A page of a template; it sees the request, who asks (`caller`, None if nobody is logged in) and the values."""
    caller = getattr(request.state, "caller", None)
    text = environment().get_template(template).render(request=request, caller=caller, **values)
    return HTMLResponse(text, status, headers=dict(headers or {}))


@lru_cache(1)
def environment() -> Environment:
    """The environment of the templates."""
    found = Environment(
        loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.globals.update(version=__version__, has_script=has_script, number=number)
    found.filters.update(number=number, energy=energy, when=when, duration=duration)
    return found


def has_script(name: str) -> bool:
    """Whether a script from npm is installed: where Node was absent it is not, and pages do without."""
    return (VENDOR / name).is_file()


def number(value: float | None) -> str:
    """A count with its thousands apart; nothing for None."""
    return "" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def energy(value: float | None, digits: int = 3) -> str:
    """A quantity in eV or Bohr magneton; nothing for None."""
    return "" if value is None else f"{value:.{digits}f}".replace("-", "\u2212")


def when(time: datetime | None) -> str:
    """A time as people read it, to the minute, in UTC."""
    return "" if time is None else f"{time:%Y-%m-%d %H:%M}"


def duration(seconds: float | None) -> str:
    """A time in the unit that people would use: 40 s, 12 min, 3.5 h, 2.1 d; nothing for None."""
    if seconds is None:
        return ""
    for limit, size, unit in ((90.0, 1.0, "s"), (5400.0, 60.0, "min"), (172_800.0, 3600.0, "h")):
        if seconds < limit:
            value = seconds / size
            return f"{value:.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86_400:.1f} d"
