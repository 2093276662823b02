"""`screening token`: who may use the web server. `screening serve` and `up` stand in tests/services/test_web.py."""

from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient

from screening.settings import Settings
from screening.web.access import Submitter
from screening.web.app import create_app
from tests.cli.conftest import Run


def test_a_token_that_was_made_holds_until_it_is_revoked(run_here: Run, clean_services: Settings) -> None:
    code, out, _ = run_here("token", "create", "ana", "--role", "submit", "--json")
    assert code == 0
    made = json.loads(out)
    assert (made["name"], made["role"]) == ("ana", "submit")
    header = {"Authorization": f"Bearer {made['token']}"}
    app = create_app(clean_services)

    @app.get("/api/probe")
    def probe(caller: Submitter) -> str:
        return caller.name

    with TestClient(app, headers=header) as client:
        assert client.get("/api/probe").json() == "ana"
        assert run_here("token", "revoke", "ana")[0] == 0
        assert client.get("/api/probe").status_code == 401


def test_the_list_of_tokens_shows_roles_and_times_and_no_token(run_here: Run) -> None:
    token = run_here("token", "create", "ana", "--expires", "90d")[1].strip()
    assert token.startswith("scr_")
    run_here("token", "create", "ben", "--role", "admin")
    run_here("token", "revoke", "ben")
    table = run_here("token", "list")[1]
    assert token not in table
    assert table.splitlines()[0].split() == ["name", "role", "created", "expires", "revoked", "last", "used"]
    ana, ben = json.loads(run_here("token", "list", "--json")[1])
    assert (ana["name"], ana["role"], ana["revoked_at"], ana["last_used_at"]) == ("ana", "read", None, None)
    assert ana["expires_at"] > ana["created_at"]
    assert ben["revoked_at"] is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "ana", "--role", "root"), "the roles are read, submit, admin"),
        (("create", " "), "a token needs a name"),
        (("create", "ana", "--expires", "soon"), "write 12h, 90d or 8w"),
        (("create", "ana", "--expires", "0d"), "give a time above zero"),
        (("revoke", "nobody"), "`screening token list` shows them"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_is_stored(
    run_here: Run, arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = run_here("token", *arguments)
    assert (code, out) == (1, "")
    assert said in err
    assert json.loads(run_here("token", "list", "--json")[1]) == []


def test_two_tokens_of_one_name_are_refused(run_here: Run) -> None:
    run_here("token", "create", "ana")
    code, _, err = run_here("token", "create", "ana")
    assert code == 1
    assert 'there is a token "ana" already' in err
