"""Pages on a made project: each shows what is there, forms do what they say, and what is wrong is said at the form."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy import Engine

from screening.database.session import session_scope
from screening.database.tokens import add_token
from screening.web import templating
from tests.web.conftest import ADDRESS
from tests.web.made_project import Made, scan_all

QUERY = {"host": "MoS2", "supercell": "4x4", "low1": "0.5", "high1": "1.5", "confidence": "0", "limit": "5"}


@pytest.fixture(scope="module")
def browser(made_app: FastAPI, made: tuple[Engine, Made]) -> Iterator[TestClient]:
    """A browser in which an admin has logged in."""
    with session_scope(made[0]) as session:
        token = add_token(session, "ana", "admin")
    with TestClient(made_app, base_url=ADDRESS, headers={"accept": "text/html"}) as client:
        client.post("/login", data={"token": token})
        yield client


def send(browser: TestClient, path: str, **fields: object) -> Response:
    """Send a form as its page does."""
    found = re.search(r'data-csrf="([0-9a-f]{64})"', browser.get("/").text)
    assert found is not None
    files = fields.pop("files", None)
    return browser.post(path, data={"csrf_token": found[1], **fields}, files=files, follow_redirects=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/", ["Waiting for you", 'campaign <a href="/campaigns/pairs">', "Start a new screening"]),
        ("/hosts", ["4x4", "symmetry operations"]),
        ("/hosts/MoS2", ["16 Mo, 32 S", "1 to 2 of v_S, Se_S", 'aria-label="MoS2 4x4 from the top, no defects"']),
        ("/screening/new", ["Defect types", "Name the defect types to see the exact number"]),
        ("/campaigns", ["pairs", "100.0 %"]),
        ("/campaigns/pairs", ["every candidate with its predictions", "Explore"]),
        ("/explore", ["Design query", "Finished campaigns"]),
        ("/rankings", ["first"]),
        ("/rankings/first", ["5 rows", "homo_lumo_gap_min 0.5:1.5"]),
        ("/models", ["small", "production"]),
        ("/models/small", ["By number of defects", "validated on", "formula/MoS2"]),
        ("/rounds", ["Propose calculations", "Send results"]),
    ],
)
def test_a_page_shows_what_is_there(browser: TestClient, path: str, shown: list[str]) -> None:
    answer = browser.get(path)
    assert answer.status_code == 200
    for text in shown:
        assert text in answer.text
    assert answer.text.count("<h1>") == 1


@pytest.mark.parametrize(
    "path", ["/hosts/Xx", "/campaigns/none", "/candidates/pairs/99", "/rankings/none", "/models/none", "/rounds/99"]
)
def test_a_page_of_what_is_not_there_says_so_and_keeps_the_navigation(browser: TestClient, path: str) -> None:
    answer = browser.get(path)
    assert answer.status_code == 404
    assert 'href="/campaigns"' in answer.text
    assert "there" in answer.text or "no " in answer.text


def test_who_is_not_logged_in_is_sent_to_where_they_wanted(made_app: FastAPI) -> None:
    with TestClient(made_app, base_url=ADDRESS, headers={"accept": "text/html"}) as client:
        answer = client.get("/models/small")
        assert answer.status_code == 401
        assert 'name="next" value="/models/small"' in answer.text


def test_the_estimate_is_exact_and_says_what_is_wrong(browser: TestClient) -> None:
    fields = {"host": "MoS2", "supercell": "8x8", "defect_types": "v_S,Se_S,v_Mo,W_Mo", "max_defects": "3"}
    assert "13\u202f446" in browser.get("/screening/estimate", params=fields).text  # of the paper
    assert "Xx" in browser.get("/screening/estimate", params=fields | {"defect_types": "Xx_S"}).text
    wrong = browser.get("/screening/estimate", params=fields | {"max_defects": "many"}).text
    assert "max_defects" in wrong
    assert "many" in wrong


def test_a_screening_is_started_and_its_progress_comes_as_events(
    browser: TestClient, made: tuple[Engine, Made]
) -> None:
    fields = {"host": "MoS2", "supercell": "4x4", "defect_types": "v_S,Se_S", "min_defects": "3", "max_defects": "3"}
    started = send(browser, "/screening/new", **fields, name="triples", do="start")
    assert (started.status_code, started.headers["location"]) == (303, "/campaigns/triples")
    assert "Pause" in browser.get("/campaigns/triples").text
    scan_all(made[0])
    events = browser.get("/campaigns/triples/events").text
    assert '"state": "finished"' in events
    assert events.endswith("event: over\ndata: {}\n\n")
    again = send(browser, "/screening/new", **fields, name="other", do="start")
    assert again.status_code == 422
    assert "this campaign exists as" in again.text


def test_where_node_is_absent_pages_do_without_its_scripts(
    browser: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(templating, "VENDOR", tmp_path)
    for path in ("/", "/hosts/MoS2", "/screening/new", "/candidates/pairs/10000003", "/rounds", "/docs"):
        answer = browser.get(path)
        assert answer.status_code == 200
        assert "/static/vendor/" not in answer.text
        assert "hx-get" not in answer.text
    assert 'class="supercell"' in browser.get("/hosts/MoS2").text
    assert "/api/v1/designs/run" in browser.get("/docs").text


def test_a_campaign_is_paused_resumed_cancelled_and_deleted_by_its_name(browser: TestClient) -> None:
    fields = {"host": "MoS2", "supercell": "4x4", "defect_types": "v_S", "max_defects": "3", "keep": "best"}
    assert send(browser, "/screening/new", **fields, name="few", do="plan").status_code == 303
    for verb in ("start", "pause", "resume", "cancel"):
        assert send(browser, f"/campaigns/few/{verb}").status_code == 303
    assert "planned" in send(browser, "/campaigns/few/start").text
    assert "nothing was deleted" in send(browser, "/campaigns/few/delete", sure="").text
    assert send(browser, "/campaigns/few/delete", sure="few").status_code == 303
    assert browser.get("/campaigns/few").status_code == 404


def test_a_supercell_is_added_and_a_wrong_one_is_told_at_the_form(browser: TestClient) -> None:
    added = send(browser, "/hosts", host="hBN", supercell="3x3")
    assert added.headers["location"] == "/hosts/h-BN?supercell=3x3"
    assert "9 B, 9 N" in browser.get(added.headers["location"]).text
    wrong = send(browser, "/hosts", host="hBN", supercell="big")
    assert wrong.status_code == 422
    assert 'value="big"' in wrong.text
    assert "cannot be read" in wrong.text


def test_a_search_is_kept_in_its_address_and_pages_follow_each_other(browser: TestClient) -> None:
    first = browser.get("/explore", params=QUERY).text
    assert "5 rows" in first
    following = re.search(r'href="(/explore\?[^"]+)" rel="next"', first)
    assert following is not None
    second = browser.get(following[1].replace("&amp;", "&")).text
    rows = [re.findall(r'value="(pairs:\d+)"', page) for page in (first, second)]
    assert len(rows[0]) == 5
    assert not set(rows[0]) & set(rows[1])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"low1": "2", "high1": "1"}, "low must be below high"),
        ({"types": "Xx"}, "Xx"),
        ({"direction": "closest"}, "target"),
        ({"limit": "5000"}, "export"),
        ({"potentials": "sulphur-rich"}, "sulphur-rich"),
    ],
)
def test_a_search_that_is_not_acceptable_is_told_above_the_form(
    browser: TestClient, fields: dict[str, str], said: str
) -> None:
    answer = browser.get("/explore", params=QUERY | fields)
    assert answer.status_code == 422
    assert said in answer.text
    assert 'value="MoS2"' in answer.text


def test_the_plot_has_the_rows_of_the_table_and_all_candidates_in_its_density(browser: TestClient) -> None:
    axes = {"x": "homo_lumo_gap_min", "y": "formation_energy_per_site"}
    found = browser.get("/explore/points", params=QUERY | axes).json()
    assert len(found["points"]) == 25
    assert all(point["dx"] > 0 for point in found["points"])
    assert sum(map(sum, found["density"]["counts"])) == found["density"]["n_rows"] == 25
    assert found["windows"] == {"homo_lumo_gap_min": [0.5, 1.5]}
    best = browser.get("/explore", params=QUERY).text
    assert found["points"][0]["path"] in best
    front = QUERY | {"goal1": "homo_lumo_gap_min=highest", "goal2": "formation_energy_per_site=lowest"}
    assert browser.get("/explore/points", params=front | axes).json()["front"]
    assert browser.get("/explore/points", params=QUERY | {"x": "homo", "y": "lumo"}).status_code == 422


def test_ticked_rows_become_a_ranking_that_is_compared_and_exported(browser: TestClient) -> None:
    page = browser.get("/explore", params=QUERY).text
    ticked = re.findall(r'value="(pairs:\d+)"', page)[1:3]
    kept = send(browser, "/explore/save", **QUERY, chosen=ticked, name="ticked")
    assert kept.status_code == 303
    ranking = browser.get(kept.headers["location"], params={"since": "first"})
    assert "2 rows" in ranking.text
    assert "Since first" in ranking.text
    assert "went" in ranking.text
    export = browser.get(kept.headers["location"] + "/export", params={"format": "csv"})
    assert len(export.text.splitlines()) == 3
    taken = send(browser, "/explore/save", **QUERY, name="ticked")
    assert taken.status_code == 422
    assert "a ranking is called" in taken.text
    assert send(browser, f"{kept.headers['location']}/delete").status_code == 303


def test_a_candidate_is_drawn_with_its_defects_and_its_reasons(browser: TestClient) -> None:
    path = re.search(
        r'href="(/candidates/pairs/\d+)">v_S\+Se_S<', browser.get("/explore", params=QUERY | {"limit": "25"}).text
    )
    assert path is not None
    page = browser.get(path[1]).text
    assert page.count('class="defect vacancy"') == 3  # top, side, legend
    assert page.count('class="defect substitution"') == 3
    why = browser.get(f"{path[1]}/why")
    assert "Nearest calculated relatives" in why.text
    part = browser.get(f"{path[1]}/why", headers={"hx-request": "true"})
    assert "<html" not in part.text
    assert "Nearest calculated relatives" in part.text


def test_calculations_are_proposed_downloaded_and_their_results_sent(browser: TestClient) -> None:
    proposed = send(browser, "/rounds/new", **QUERY, n="2", round_name="next two")
    assert proposed.status_code == 303
    path = proposed.headers["location"]
    assert "2 <span" in browser.get(path).text
    archive = send(browser, f"{path}/inputs", only_structures="true")
    with zipfile.ZipFile(io.BytesIO(archive.content)) as inputs:
        assert any(name.endswith("manifest.json") for name in inputs.namelist())
    assert send(browser, f"{path}/submitted", job="17").status_code == 303
    sent = send(
        browser, "/results", round=path.rsplit("/", 1)[1],
        files=[("files", ("a.csv", b"structure,energy\n")), ("files", ("b.csv", b"structure,energy\n"))],
    )  # fmt: skip
    assert sent.status_code == 303
    uploads = browser.get(f"{path}/uploads", headers={"hx-request": "true"}).text
    assert uploads.count("waiting") >= 2
    assert send(browser, f"{path}/failed", reason="cancelled").status_code == 303
    assert "cancelled" in browser.get(path).text
    wrong = send(browser, "/rounds/new", host="MoS2", n="0")
    assert wrong.status_code == 422


def test_parity_and_calibration_are_of_rows_that_were_not_trained_on(browser: TestClient) -> None:
    found = browser.get("/models/small/plots", params={"property": "homo_lumo_gap_min"}).json()
    assert len(found["points"]) == 3
    assert len(found["levels"]) == len(found["shares"])
    assert found["shares"] == sorted(found["shares"])
    page = browser.get("/models/small").text
    error = sum(abs(point["mean"] - point["label"]) for point in found["points"]) / 3
    assert f"{error:.3f}" in page
    retrain = send(browser, "/models/small/retrain")
    assert "no result to train on is new" in retrain.text
