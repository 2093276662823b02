"""Who asks, and what they may do: tokens with roles, cookies of logged-in browsers, CSRF, the rate limit.

A program shows its token as `Authorization: Bearer scr_...`. A browser logs in with it once and then has a cookie
(HttpOnly, Secure, SameSite=Strict) that is not the token. What changes something must come, from a browser, with the
token against forged requests (CSRF) that its page holds: a digest of the cookie, which another site cannot know.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from screening.database import tokens
from screening.database.tables.web import ROLES
from screening.database.tokens import KnownToken, Role
from screening.web.problems import ProblemError
from screening.web.server import Server, server_of

COOKIE = "screening_login"
CSRF_FIELD = "csrf_token"
CSRF_HEADER = "x-csrf-token"
_FAILURES = parse("30/minute")  # wrong tokens from one address
_SAFE = ("GET", "HEAD", "OPTIONS")
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        token_id: None for who shows no token.
        csrf: what forms of this browser's pages must send; empty for programs.
    """

    name: str
    role: Role
    token_id: int | None = None
    csrf: str = ""

    def may(self, role: Role) -> bool:
        """Whether this role is among what the caller's allows."""
        return ROLES.index(self.role) >= ROLES.index(role)


class RateLimits:
    """Requests of each token or address in the current minute; of this process."""

    def __init__(self, rate: str) -> None:
        self._rate = parse(rate)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    def count(self, who: str) -> None:
        """Count a request.

        Raises:
            ProblemError: there were too many.
        """
        if not self._limiter.hit(self._rate, who):
            raise _too_many(str(self._rate), self._rate.get_expiry())

    def check_failures(self, address: str) -> None:
        """Refuse an address that showed too many wrong tokens.

        Raises:
            ProblemError: it did.
        """
        if not self._limiter.test(_FAILURES, "failures", address):
            raise _too_many(f"{_FAILURES} with wrong tokens", _FAILURES.get_expiry())

    def count_failure(self, address: str) -> None:
        """Count a wrong token."""
        self._limiter.hit(_FAILURES, "failures", address)


def address_of(request: Request) -> str:
    """The address that a request came from."""
    return request.client.host if request.client else "unknown"


def csrf_of(cookie: str) -> str:
    """What the forms of a browser with this cookie must send."""
    return hashlib.sha256(f"csrf {cookie}".encode()).hexdigest()


async def _sent_csrf(request: Request) -> AsyncIterator[str | None]:
    """The token against forged requests, from the header or the form, whose files are closed at the end."""
    is_form = request.headers.get("content-type", "").split(";")[0] in _FORMS
    if request.method in _SAFE or CSRF_HEADER in request.headers or not is_form:
        yield request.headers.get(CSRF_HEADER)
        return
    form = await request.form()
    try:
        found = form.get(CSRF_FIELD)
        yield found if isinstance(found, str) else None
    finally:
        await form.close()


def find_caller(request: Request, sent_csrf: Annotated[str | None, Depends(_sent_csrf)]) -> Caller | None:
    """Who asks; None for who shows nothing and may not read either.

    Raises:
        ProblemError: a token that does not hold, a forged request, or too many requests.
    """
    server, limits = server_of(request), request.app.state.limits
    found = _by_token(request, server, limits) or _by_cookie(request, server, sent_csrf)
    if found is None and server.settings.web_anonymous_read:
        found = Caller("anonymous", "read")
    limits.count(f"token {found.token_id}" if found and found.token_id else f"address {address_of(request)}")
    request.state.caller = found
    return found


MaybeCaller = Annotated[Caller | None, Depends(find_caller)]


def remember_browser(request: Request) -> None:
    """Let an error's page know who is logged in, where the request failed before that was asked."""
    if getattr(request.state, "caller", None) is None:
        request.state.caller = _known_browser(request, server_of(request))


def _known_browser(request: Request, server: Server) -> Caller | None:
    cookie = request.cookies.get(COOKIE)
    if not cookie:
        return None
    with server.transaction(read_only=True) as session:
        known = tokens.find_login(session, cookie)
    return None if known is None else Caller(known.name, known.role, known.id, csrf_of(cookie))


def _by_token(request: Request, server: Server, limits: RateLimits) -> Caller | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not scheme:
        return None
    limits.check_failures(address_of(request))
    known: KnownToken | None = None
    if scheme.lower() == "bearer" and token.isascii():
        with server.transaction(read_only=False) as session:
            known = tokens.find_token(session, token.strip())
    if known is None:
        limits.count_failure(address_of(request))
        raise _unauthorized(
            "the token is unknown, revoked or expired; send `Authorization: Bearer scr_...` with one that "
            "`screening token create` made"
        )
    return Caller(known.name, known.role, known.id)


def _by_cookie(request: Request, server: Server, sent_csrf: str | None) -> Caller | None:
    found = _known_browser(request, server)
    if found is not None and request.method not in _SAFE:
        _check_origin(request)
        if sent_csrf is None or not hmac.compare_digest(sent_csrf.encode(), found.csrf.encode()):
            raise ProblemError(
                403, "the form did not come from a page of this server, or is from before you logged in; load it again"
            )
    return found


def _check_origin(request: Request) -> None:
    """Refuse what a page of another site sent; browsers say where it came from."""
    origin = request.headers.get("origin")
    if origin and urlsplit(origin).netloc != request.headers.get("host"):
        raise ProblemError(403, f"the request came from a page of {origin}, not of this server")


class _Needs:
    """The caller, who has a role or more."""

    def __init__(self, role: Role) -> None:
        self.role = role

    def __call__(self, caller: MaybeCaller) -> Caller:
        """The caller.

        Raises:
            ProblemError: they show no token, or their role is too small.
        """
        if caller is None:
            raise _unauthorized(
                "log in with a token, or send it as `Authorization: Bearer scr_...`; `screening token create NAME` "
                "makes one"
            )
        if not caller.may(self.role):
            raise ProblemError(403, f"this needs the role {self.role}; the token of {caller.name} has {caller.role}")
        return caller


Reader = Annotated[Caller, Depends(_Needs("read"))]
Submitter = Annotated[Caller, Depends(_Needs("submit"))]
Admin = Annotated[Caller, Depends(_Needs("admin"))]


def _unauthorized(detail: str) -> ProblemError:
    return ProblemError(401, detail, headers={"WWW-Authenticate": 'Bearer realm="screening"'})


def _too_many(rate: str, seconds: int) -> ProblemError:
    return ProblemError(429, f"more than {rate}; wait a little", headers={"Retry-After": str(seconds)})
