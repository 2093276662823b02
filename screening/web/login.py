"""Logging in to the pages with a token, and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from screening.database import tokens
from screening.web.access import COOKIE, MaybeCaller, RateLimits, address_of
from screening.web.server import Transaction
from screening.web.templating import render

router = APIRouter(include_in_schema=False)


@router.get("/login")
def show_login(request: Request, next: str = "/") -> Response:
    """The form."""
    return render(request, "login.html", detail=None, next=_local(next))


@router.post("/login")
def log_in(
    request: Request, session: Transaction, token: Annotated[str, Form()], next: Annotated[str, Form()] = "/"
) -> Response:
    """Take a token for a cookie. The form needs no token against forgery: who forges it must know a token."""
    limits: RateLimits = request.app.state.limits
    limits.check_failures(address_of(request))
    known = tokens.find_token(session, token.strip())
    if known is None:
        limits.count_failure(address_of(request))
        return render(
            request, "login.html", status=401, detail="The token is unknown, revoked or expired.", next=_local(next)
        )
    cookie, lasts = tokens.add_login(session, known.id)
    answer = RedirectResponse(_local(next), 303)
    answer.set_cookie(COOKIE, cookie, max_age=int(lasts.total_seconds()), httponly=True, secure=True, samesite="strict")
    return answer


@router.post("/logout")
def log_out(request: Request, session: Transaction, caller: MaybeCaller) -> Response:
    """End the login of this browser."""
    if cookie := request.cookies.get(COOKIE):
        tokens.drop_login(session, cookie)
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, httponly=True, secure=True, samesite="strict")
    return answer


def _local(path: str) -> str:
    """A path on this server: nobody is sent elsewhere after logging in."""
    is_local = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_local else "/"
