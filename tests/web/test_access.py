"""Who may do what: tokens, cookies, forged requests, the rate limit."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from screening.database.session import session_scope
from screening.database.tokens import add_token, revoke_token
from screening.settings import Settings
from screening.web.access import Admin, Reader, Submitter
from screening.web.app import create_app
from tests.web.conftest import ADDRESS, AsRole

PAGE = {"accept": "text/html"}


def add_probes(app: FastAPI) -> None:
    @app.get("/api/probe")
    def read(caller: Reader) -> str:
        return caller.name

    @app.post("/api/probe")
    def submit(caller: Submitter) -> str:
        return caller.name

    @app.delete("/api/probe")
    def remove(caller: Admin) -> str:
        return caller.name


@pytest.fixture
def browser(app: FastAPI, clean_engine: Engine) -> TestClient:
    """A browser in which somebody who may submit has logged in."""
    add_probes(app)
    with session_scope(clean_engine) as session:
        token = add_token(session, "ana", "submit")
    client = TestClient(app, base_url=ADDRESS)
    answer = client.post("/login", data={"token": token, "next": "/docs"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/docs")
    return client


def csrf_of(client: TestClient) -> str:
    page = client.get("/nothing-is-here", headers=PAGE).text
    found = re.search(r'name="csrf_token" value="([0-9a-f]{64})"', page)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    ("role", "statuses"),
    [("nobody", [401, 401, 401]), ("read", [200, 403, 403]), ("submit", [200, 200, 403]), ("admin", [200, 200, 200])],
)
def test_a_role_may_what_smaller_ones_may_and_no_more(
    app: FastAPI, as_role: AsRole, role: str, statuses: list[int]
) -> None:
    add_probes(app)
    client = as_role(role)
    assert [client.request(method, "/api/probe").status_code for method in ("GET", "POST", "DELETE")] == statuses


def test_a_refusal_says_what_is_needed(app: FastAPI, as_role: AsRole) -> None:
    add_probes(app)
    answer = as_role("read").post("/api/probe")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == "this needs the role submit; the token of the read of the tests has read"
    answer = as_role("nobody").get("/api/probe")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "screening token create" in answer.json()["detail"]


@pytest.mark.parametrize("header", ["Bearer scr_guessed", "Bearer ", "Basic YTpi", "scr_guessed"])
def test_a_wrong_token_is_refused_even_where_anybody_may_read(
    clean_services: Settings, clean_engine: Engine, header: str
) -> None:
    app = create_app(clean_services.model_copy(update={"web_anonymous_read": True}))
    add_probes(app)
    with TestClient(app, base_url=ADDRESS) as client:
        assert client.get("/api/probe").json() == "anonymous"
        assert client.post("/api/probe").status_code == 403
        assert client.get("/api/probe", headers={"Authorization": header}).status_code == 401


def test_a_revoked_token_is_refused_at_once(app: FastAPI, clean_engine: Engine, as_role: AsRole) -> None:
    add_probes(app)
    client = as_role("read")
    assert client.get("/api/probe").status_code == 200
    with session_scope(clean_engine) as session:
        revoke_token(session, "the read of the tests")
    assert client.get("/api/probe").status_code == 401


def test_the_cookie_of_a_login_is_not_the_token_and_is_kept_from_scripts_and_other_sites(browser: TestClient) -> None:
    (cookie,) = browser.cookies.jar
    assert cookie.secure
    assert not (cookie.value or "").startswith("scr_")
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "strict"


def test_a_browser_reads_with_its_cookie_and_changes_with_the_token_of_its_page(browser: TestClient) -> None:
    assert browser.get("/api/probe").json() == "ana"
    assert browser.post("/api/probe").status_code == 403
    assert browser.post("/api/probe", headers={"x-csrf-token": "0" * 64}).status_code == 403
    csrf = csrf_of(browser)
    assert browser.post("/api/probe", headers={"x-csrf-token": csrf}).json() == "ana"
    assert browser.post("/api/probe", data={"csrf_token": csrf}).json() == "ana"
    assert browser.post("/api/probe", files={"file": b"x"}, data={"csrf_token": csrf}).json() == "ana"


def test_a_request_from_a_page_of_another_site_is_refused(browser: TestClient) -> None:
    headers = {"x-csrf-token": csrf_of(browser), "origin": "https://elsewhere.example"}
    answer = browser.post("/api/probe", headers=headers)
    assert answer.status_code == 403
    assert "https://elsewhere.example" in answer.json()["detail"]
    assert browser.post("/api/probe", headers={**headers, "origin": ADDRESS}).status_code == 200


def test_who_logs_out_is_asked_to_log_in(browser: TestClient) -> None:
    cookie = browser.cookies["screening_login"]
    answer = browser.post("/logout", data={"csrf_token": csrf_of(browser)}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    browser.cookies.set("screening_login", cookie)
    assert browser.get("/api/probe").status_code == 401


def test_a_wrong_token_does_not_log_in(app: FastAPI) -> None:
    client = TestClient(app, base_url=ADDRESS)
    answer = client.post("/login", data={"token": "scr_guessed"}, headers=PAGE)
    assert answer.status_code == 401
    assert "unknown, revoked or expired" in answer.text
    assert not client.cookies


@pytest.mark.parametrize("target", ["https://elsewhere.example", "//elsewhere.example", "/\\elsewhere.example", "x"])
def test_nobody_is_sent_elsewhere_after_logging_in(app: FastAPI, clean_engine: Engine, target: str) -> None:
    with session_scope(clean_engine) as session:
        token = add_token(session, "ana", "read")
    client = TestClient(app, base_url=ADDRESS)
    answer = client.post("/login", data={"token": token, "next": target}, follow_redirects=False)
    assert answer.headers["location"] == "/"


def test_guessing_tokens_is_stopped(app: FastAPI) -> None:
    add_probes(app)
    client = TestClient(app, base_url=ADDRESS)
    guesses = [client.get("/api/probe", headers={"Authorization": f"Bearer scr_{n}"}) for n in range(31)]
    assert {answer.status_code for answer in guesses[:30]} == {401}
    assert guesses[30].status_code == 429
    assert client.post("/login", data={"token": "scr_x"}).status_code == 429


def test_the_rate_limit_counts_each_token_for_itself(clean_services: Settings, clean_engine: Engine) -> None:
    app = create_app(clean_services.model_copy(update={"web_rate": "3/minute"}))
    add_probes(app)
    with session_scope(clean_engine) as session:
        headers = [{"Authorization": f"Bearer {add_token(session, name, 'read')}"} for name in ("ana", "ben")]
    with TestClient(app, base_url=ADDRESS) as client:
        statuses = [client.get("/api/probe", headers=headers[0]).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        assert client.get("/api/probe", headers=headers[1]).status_code == 200
        answer = client.get("/api/probe", headers=headers[0])
        assert answer.headers["retry-after"] == "60"
