"""Tokens of the web server and logins of browsers: made, looked up by digest, revoked.

A token or a cookie is 256 random bits, so a plain SHA-256 of it is as good as a slow one and lets an index find it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session

from screening.database.tables import AccessToken, Login
from screening.database.tables.web import ROLES
from screening.errors import InputError, UnknownNameError

Role = Literal["read", "submit", "admin"]

PREFIX = "scr_"  # so that a token that leaked is recognised as one
_LOGIN_LASTS = timedelta(days=7)
_USED_EVERY = timedelta(minutes=1)  # so often the time of use is written


@dataclass(frozen=True)
class KnownToken:
    """A token that holds."""

    id: int
    name: str
    role: Role


def add_token(session: Session, name: str, role: str, *, expires: timedelta | None = None) -> str:
    """Make a token; it is returned this once.

    Raises:
        InputError: the name is taken or empty, or there is no such role.
    """
    if role not in ROLES:
        raise InputError(f"there is no role {role!r}; the roles are {', '.join(ROLES)}")
    if not name.strip():
        raise InputError("a token needs a name: of the person or program that will have it")
    if expires is not None and expires <= timedelta():
        raise InputError(f"a token that expires after {expires} would never hold; give a time above zero")
    if session.scalar(select(AccessToken.id).where(AccessToken.name == name)) is not None:
        raise InputError(f'there is a token "{name}" already; revoke it first, or choose another name')
    token = PREFIX + secrets.token_urlsafe(32)
    expires_at = datetime.now(UTC) + expires if expires is not None else None
    session.add(AccessToken(name=name, role=role, secret_sha256=digest(token), expires_at=expires_at))
    session.flush()
    return token


def revoke_token(session: Session, name: str) -> None:
    """Let a token hold no longer, and end its logins; its name is free again.

    Raises:
        UnknownNameError: there is none of this name that holds.
    """
    found = session.scalar(select(AccessToken).where(AccessToken.name == name, AccessToken.revoked_at.is_(None)))
    if found is None:
        raise UnknownNameError(f'there is no token "{name}"; `screening token list` shows them')
    session.execute(delete(Login).where(Login.token_id == found.id))
    found.revoked_at = datetime.now(UTC)
    found.name = f"{name} (revoked {found.id})"
    session.flush()


def list_tokens(session: Session) -> Sequence[dict[str, Any]]:
    """Who may use the server, without the tokens themselves."""
    columns = (
        AccessToken.name, AccessToken.role, AccessToken.created_at, AccessToken.expires_at, AccessToken.revoked_at,
        AccessToken.last_used_at,
    )  # fmt: skip
    return [dict(row._mapping) for row in session.execute(select(*columns).order_by(AccessToken.id))]


def find_token(session: Session, token: str) -> KnownToken | None:
    """Whose token this is; None if it is nobody's, or holds no longer."""
    found = session.execute(
        select(AccessToken.id, AccessToken.name, AccessToken.role, AccessToken.last_used_at).where(
            AccessToken.secret_sha256 == digest(token), *_holds()
        )
    ).first()
    if found is None:
        return None
    if found.last_used_at is None or datetime.now(UTC) - found.last_used_at > _USED_EVERY:
        session.execute(update(AccessToken).where(AccessToken.id == found.id).values(last_used_at=func.now()))
    return KnownToken(found.id, found.name, cast(Role, found.role))


def add_login(session: Session, token_id: int) -> tuple[str, timedelta]:
    """Log a browser in; its cookie, and how long it holds. Logins that are over are removed on the way."""
    session.execute(delete(Login).where(Login.expires_at < func.now()))
    cookie = secrets.token_urlsafe(32)
    session.add(Login(token_id=token_id, secret_sha256=digest(cookie), expires_at=datetime.now(UTC) + _LOGIN_LASTS))
    session.flush()
    return cookie, _LOGIN_LASTS


def find_login(session: Session, cookie: str) -> KnownToken | None:
    """Whose browser has this cookie; None if nobody's, or the login or its token is over."""
    found = session.execute(
        select(AccessToken.id, AccessToken.name, AccessToken.role)
        .join(Login, Login.token_id == AccessToken.id)
        .where(Login.secret_sha256 == digest(cookie), Login.expires_at > func.now(), *_holds())
    ).first()
    return KnownToken(found.id, found.name, cast(Role, found.role)) if found else None


def drop_login(session: Session, cookie: str) -> None:
    """Log a browser out."""
    session.execute(delete(Login).where(Login.secret_sha256 == digest(cookie)))


def digest(secret: str) -> bytes:
    """SHA-256 of a token or cookie."""
    return hashlib.sha256(secret.encode()).digest()


def _holds() -> tuple[ColumnElement[bool], ...]:
    return AccessToken.revoked_at.is_(None), or_(AccessToken.expires_at.is_(None), AccessToken.expires_at > func.now())
