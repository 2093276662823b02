"""Tokens of the web server and logins of browsers."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from screening.database.tables import AccessToken, Login
from screening.database.tokens import (
    add_login,
    add_token,
    drop_login,
    find_login,
    find_token,
    list_tokens,
    revoke_token,
)
from screening.errors import InputError, UnknownNameError


def test_a_token_is_found_with_its_role_and_nothing_of_it_is_stored(session: Session) -> None:
    token = add_token(session, "ana", "submit")
    known = find_token(session, token)
    assert known is not None
    assert (known.name, known.role) == ("ana", "submit")
    stored = session.execute(text("SELECT access_tokens::text FROM access_tokens")).scalars().all()
    assert all(token not in row and token.removeprefix("scr_") not in row for row in stored)


def test_tokens_differ_and_others_are_not_found(session: Session) -> None:
    assert add_token(session, "ana", "read") != add_token(session, "ben", "read")
    assert find_token(session, "scr_guessed") is None


def test_a_token_that_has_expired_is_not_found(session: Session) -> None:
    token = add_token(session, "ana", "read", expires=timedelta(hours=1))
    assert find_token(session, token) is not None
    session.execute(update(AccessToken).values(expires_at=text("now() - interval '1 second'")))
    assert find_token(session, token) is None


def test_a_revoked_token_ends_its_logins_and_frees_its_name(session: Session) -> None:
    token = add_token(session, "ana", "admin")
    known = find_token(session, token)
    assert known is not None
    cookie, _ = add_login(session, known.id)
    assert find_login(session, cookie) == known
    revoke_token(session, "ana")
    assert find_token(session, token) is None
    assert find_login(session, cookie) is None
    assert find_token(session, add_token(session, "ana", "read")) is not None
    assert [row["revoked_at"] is not None for row in list_tokens(session)] == [True, False]


def test_a_login_that_is_over_or_logged_out_is_not_found(session: Session) -> None:
    known = find_token(session, add_token(session, "ana", "read"))
    assert known is not None
    first, _ = add_login(session, known.id)
    second, _ = add_login(session, known.id)
    drop_login(session, first)
    assert (find_login(session, first), find_login(session, second)) == (None, known)
    session.execute(update(Login).values(expires_at=text("now() - interval '1 second'")))
    assert find_login(session, second) is None
    add_login(session, known.id)
    assert len(session.scalars(select(Login)).all()) == 1


@pytest.mark.parametrize(
    ("name", "role", "message"),
    [("ana", "owner", "there is no role 'owner'; the roles are read, submit, admin"), (" ", "read", "needs a name")],
)
def test_a_token_that_cannot_be_is_refused(session: Session, name: str, role: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        add_token(session, name, role)


def test_a_name_is_given_once_and_an_unknown_one_is_not_revoked(session: Session) -> None:
    add_token(session, "ana", "read")
    with pytest.raises(InputError, match='there is a token "ana" already'):
        add_token(session, "ana", "admin")
    with pytest.raises(UnknownNameError, match='there is no token "ben"'):
        revoke_token(session, "ben")
