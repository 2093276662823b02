"""What is around every request: ids, the log, headers, entity tags, limits, errors."""

from __future__ import annotations

import logging

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from screening.errors import InputError, ServiceError, UnknownNameError
from screening.settings import Settings
from screening.web.app import create_app
from screening.web.server import Transaction
from tests.web.conftest import ADDRESS, AsRole


def test_an_answer_has_the_request_id_of_the_client_or_one_of_ours(web: TestClient) -> None:
    assert web.get("/health", headers={"x-request-id": "job-7"}).headers["x-request-id"] == "job-7"
    ours = web.get("/health", headers={"x-request-id": "with blanks\tand more"}).headers["x-request-id"]
    assert len(ours) == 16
    assert web.get("/health").headers["x-request-id"] != ours


def test_the_log_has_a_line_for_a_request_and_no_token(web: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="screening.web")
    web.get("/api/nothing?token=scr_secret", headers={"x-request-id": "job-8"})
    (line,) = [record.getMessage() for record in caplog.records if record.name == "screening.web"]
    assert line.startswith("job-8 GET /api/nothing 404 ")
    assert "scr_" not in line


def test_pages_may_not_load_from_elsewhere_or_be_framed(web: TestClient) -> None:
    headers = web.get("/login").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_what_has_not_changed_is_not_sent_again(app: FastAPI, web: TestClient) -> None:
    content = {"rows": 1}

    @app.get("/api/probe")
    def probe() -> dict[str, int]:
        return content

    first = web.get("/api/probe")
    assert first.json() == {"rows": 1}
    again = web.get("/api/probe", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    content["rows"] = 2
    changed = web.get("/api/probe", headers={"if-none-match": first.headers["etag"]})
    assert (changed.status_code, changed.json()) == (200, {"rows": 2})


@pytest.mark.parametrize(
    ("error", "status"),
    [(UnknownNameError("no host Xx"), 404), (InputError("give a number"), 422), (ServiceError("not there"), 503)],
)
def test_an_error_of_ours_is_a_problem_with_its_text(
    app: FastAPI, web: TestClient, error: Exception, status: int
) -> None:
    @app.get("/api/probe")
    def probe() -> None:
        raise error

    answer = web.get("/api/probe")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == str(error)
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_a_fault_says_its_request_id_and_nothing_else(
    app: FastAPI, web: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/api/probe")
    def probe() -> None:
        raise RuntimeError("the password is swordfish")

    client = TestClient(app, base_url=ADDRESS, raise_server_exceptions=False)
    answer = client.get("/api/probe", headers={"x-request-id": "job-9"})
    assert answer.status_code == 500
    assert "swordfish" not in answer.text
    assert answer.json()["request_id"] == "job-9"
    assert "job-9" in caplog.text


def test_a_body_that_is_too_large_is_refused(clean_services: Settings) -> None:
    app = create_app(clean_services.model_copy(update={"web_upload_mb": 0.001}))
    with TestClient(app, base_url=ADDRESS) as client:
        answer = client.post("/login", data={"token": "x" * 2000})
        assert answer.status_code == 413
        assert "SCREENING_WEB_UPLOAD_MB" in answer.text
        chunks = (b"y" * 100 for _ in range(20))
        streamed = client.post("/login", content=chunks, headers={"content-type": "application/x-www-form-urlencoded"})
        assert streamed.status_code == 413


def test_a_query_that_takes_too_long_is_ended(clean_services: Settings) -> None:
    app = create_app(clean_services.model_copy(update={"web_query_s": 0.2}))

    @app.get("/api/probe")
    def probe(session: Transaction) -> None:
        session.execute(text("SELECT pg_sleep(5)"))

    with TestClient(app, base_url=ADDRESS) as client:
        answer = client.get("/api/probe")
        assert answer.status_code == 503
        assert "SCREENING_WEB_QUERY_S" in answer.json()["detail"]


def test_a_get_cannot_write_and_what_fails_is_not_written(app: FastAPI, web: TestClient) -> None:
    @app.get("/api/probe")
    def read(session: Transaction) -> None:
        session.execute(text("INSERT INTO hosts SELECT * FROM hosts"))

    @app.post("/api/probe")
    def write(session: Transaction) -> None:
        session.execute(text("CREATE TABLE half (id int)"))
        raise InputError("refused")

    client = TestClient(app, base_url=ADDRESS, raise_server_exceptions=False)
    assert client.get("/api/probe").status_code == 500
    assert client.post("/api/probe").status_code == 422
    with app.state.server.transaction(read_only=True) as session:
        assert session.scalar(text("SELECT to_regclass('half')")) is None


def test_health_needs_no_token_and_tells_what_does_not_answer(clean_services: Settings) -> None:
    app = create_app(clean_services)
    with TestClient(app, base_url=ADDRESS) as client:
        assert client.get("/health").json()["status"] == "ok"
        object.__setattr__(app.state.server, "redis_url", "redis://127.0.0.1:9/0")
        answer = client.get("/health")
        assert answer.status_code == 503
        assert (answer.json()["database"], answer.json()["broker"]) == (True, False)


def test_metrics_count_requests_and_work_for_who_may_read(as_role: AsRole) -> None:
    assert as_role("nobody").get("/metrics").status_code == 401
    reader = as_role("read")
    reader.get("/health")
    lines = reader.get("/metrics").text.splitlines()
    assert any(line.startswith('screening_request_seconds_count{method="GET",route="/health"') for line in lines)
    assert 'screening_queue_messages{queue="gpu"} 0.0' in lines
    assert "screening_candidates_per_second 0.0" in lines


def test_scripts_of_another_site_are_answered_only_where_they_are_allowed(clean_services: Settings) -> None:
    asked = {"origin": "https://notebook.example"}
    for origins, allowed in (("", None), ("https://notebook.example", "https://notebook.example")):
        app = create_app(clean_services.model_copy(update={"web_origins": origins}))
        with TestClient(app, base_url=ADDRESS) as client:
            assert client.get("/health", headers=asked).headers.get("access-control-allow-origin") == allowed
