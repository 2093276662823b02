"""REST v1 on a made project: what it answers is what the pipeline finds, and what is wrong is told."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
from fastapi.testclient import TestClient
from pymatgen.core.structure import Structure
from sqlalchemy import Engine

from screening.database.design_query import DesignQuery
from screening.database.session import session_scope
from screening.pipeline.designs import run_design_query
from tests.web.conftest import API
from tests.web.made_project import QUERY, Made

SPACE = {"host": "MoS2", "supercell": "8x8", "defect_types": "v_S,Se_S,v_Mo,W_Mo", "max_defects": 3}


@pytest.fixture(scope="module")
def ranked(made: tuple[Engine, Made]) -> Iterator[list[dict[str, Any]]]:
    """What the design query of the tests finds."""
    with session_scope(made[0]) as session:
        yield run_design_query(session, DesignQuery.of(**QUERY)).rows


def test_hosts_are_listed_with_what_the_catalogue_has_besides(reader: TestClient) -> None:
    found = reader.get(f"{API}/hosts").json()
    (row,) = found["rows"]
    assert (row["host"], row["supercell"], row["n_sites"]) == ("MoS2", "4x4", 48)
    assert row["results"] > 0
    assert "WSe2" in found["catalogue"]
    assert "MoS2" not in found["catalogue"]


def test_a_host_of_the_catalogue_can_be_looked_at_before_it_is_added(reader: TestClient) -> None:
    found = reader.get(f"{API}/hosts/hBN").json()
    assert (found["host"], found["species"], found["supercells"]) == ("h-BN", ["B", "N"], [])


def test_a_search_space_is_counted_exactly(reader: TestClient) -> None:
    found = reader.post(f"{API}/search-spaces/count", json=SPACE).json()
    assert found["by_defects"]["3"] == 13_446  # of the paper
    assert found["total"] == sum(found["by_composition"].values())
    assert found["disk_bytes"] > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"host": "MoSe2x"}, "MoSe2x"),
        ({"max_defects": None}, "no end"),
        ({"defect_types": "v_S,Xx"}, "Xx"),
        ({"supercell": "huge"}, "huge"),
        ({"supercell": "100000x100000"}, "has 30000000000 sites"),
        ({"supercell": f"{10**30}x1"}, "cannot be read"),
        ({"max_defects": 100}, "up to 12 are counted"),
        ({"min_separation": -1}, "min_separation"),
        ({"max_distance": 3}, "max_distance"),
    ],
)
def test_a_search_space_that_is_not_acceptable_is_refused_in_words(
    reader: TestClient, change: dict[str, Any], said: str
) -> None:
    answer = reader.post(f"{API}/search-spaces/count", json=SPACE | change)
    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"]


def test_a_design_query_ranks_as_the_pipeline_does(reader: TestClient, ranked: list[dict[str, Any]]) -> None:
    found = reader.post(f"{API}/designs/run", json={"query": QUERY}).json()
    assert [row["candidate"] for row in found["rows"]] == [row["candidate"] for row in ranked]
    first = found["rows"][0]
    assert first["campaign"] == "pairs"
    gap = first["values"]["homo_lumo_gap_min"]
    assert gap["mean"] == pytest.approx(ranked[0]["homo_lumo_gap_min_mean"])
    assert gap["std"] > 0
    assert found["model"] == "small"
    assert "SELECT" in found["sql"]


def test_pages_of_a_design_query_follow_each_other(reader: TestClient) -> None:
    everything = reader.post(f"{API}/designs/run", json={"query": QUERY | {"limit": 100}}).json()["rows"]
    body: dict[str, Any] = {"query": QUERY}
    walked: list[dict[str, Any]] = []
    while True:
        page = reader.post(f"{API}/designs/run", json=body).json()
        walked += page["rows"]
        if page["after"] is None:
            break
        body["after"] = page["after"]
    assert [row["candidate"] for row in walked] == [row["candidate"] for row in everything]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"host": "MoS2", "windows": ["band_gap=1:2"]}, "band_gap"),
        ({"host": "MoS2", "limit": 5000}, "page with `after`, or export"),
        ({"windows": []}, "places: it is missing"),
        ({"host": "WSe2"}, "WSe2"),
    ],
)
def test_a_design_query_that_is_not_acceptable_is_refused_in_words(
    reader: TestClient, query: dict[str, Any], said: str
) -> None:
    answer = reader.post(f"{API}/designs/run", json={"query": query})
    assert answer.status_code in (404, 422)
    assert said in answer.json()["detail"]


def test_the_sql_of_a_design_query_is_shown_and_explained(reader: TestClient) -> None:
    assert "homo_lumo_gap_min" in reader.post(f"{API}/designs/sql", json={"query": QUERY}).json()["text"]
    assert "Execution Time" in reader.post(f"{API}/designs/explain", json={"query": QUERY}).json()["text"]


def test_a_ranking_is_kept_compared_and_deleted(submitter: TestClient) -> None:
    kept = submitter.post(f"{API}/rankings", json={"query": QUERY | {"limit": 3}, "name": "second"}).json()
    assert (kept["name"], kept["rows"]) == ("second", 3)
    found = submitter.get(f"{API}/rankings/second").json()
    assert [row["rank"] for row in found["rows"]] == [1, 2, 3]
    changes = submitter.get(f"{API}/rankings/second/changes", params={"since": "first"}).json()["rows"]
    assert {row["what"] for row in changes} == {"went"}  # of five rows three are left
    assert submitter.delete(f"{API}/rankings/second").status_code == 204
    assert submitter.get(f"{API}/rankings/second").status_code == 404


def test_a_post_that_comes_twice_is_done_once(submitter: TestClient) -> None:
    body = {"query": QUERY, "name": "once"}
    first = submitter.post(f"{API}/rankings", json=body, headers={"idempotency-key": "k1"})
    again = submitter.post(f"{API}/rankings", json=body, headers={"idempotency-key": "k1"})
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    other = submitter.post(f"{API}/rankings", json=body | {"name": "another"}, headers={"idempotency-key": "k1"})
    assert other.status_code == 422
    assert submitter.post(f"{API}/rankings", json=body).status_code == 422  # the name is taken
    submitter.delete(f"{API}/rankings/once")


def test_rankings_and_rounds_come_in_pages(submitter: TestClient) -> None:
    for n in range(3):
        submitter.post(f"{API}/rankings", json={"query": QUERY | {"limit": 1}, "name": f"page {n}"})
        submitter.post(f"{API}/rounds", json={"query": QUERY, "n": 1})
    for path, key in (("rankings", "id"), ("rounds", "round_id")):
        everything = submitter.get(f"{API}/{path}").json()["rows"]
        walked, following = [], f"{API}/{path}?limit=2"
        while following:
            page = submitter.get(following).json()
            assert len(page["rows"]) <= 2
            walked += page["rows"]
            following = page["next"]
        assert walked == everything
        assert len({row[key] for row in walked}) == len(walked) >= 3
        assert submitter.get(f"{API}/{path}", params={"after": "x"}).status_code == 422


def test_an_answer_that_has_not_changed_is_not_sent_again(reader: TestClient) -> None:
    first = reader.get(f"{API}/hosts")
    again = reader.get(f"{API}/hosts", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(("format_", "read"), [("csv", pd.read_csv), ("parquet", pd.read_parquet)])
def test_a_ranking_is_exported_as_a_table(reader: TestClient, format_: str, read: Any) -> None:
    answer = reader.get(f"{API}/rankings/first/export", params={"format": format_})
    assert answer.headers["content-disposition"] == f'attachment; filename="ranking-first.{format_}"'
    assert read(io.BytesIO(answer.content))["rank"].tolist() == [1, 2, 3, 4, 5]


def test_a_design_query_is_exported_as_structures(reader: TestClient) -> None:
    answer = reader.post(f"{API}/designs/export", params={"format": "poscar"}, json={"query": QUERY})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert sum("POSCAR" in name for name in archive.namelist()) == 5


def test_a_candidate_has_its_structure_and_its_reasons(reader: TestClient, ranked: list[dict[str, Any]]) -> None:
    number = ranked[0]["candidate"]
    path = f"{API}/candidates/pairs/{number}"
    found = reader.get(path).json()
    assert found["defects"] == ranked[0]["defects"]
    structure = Structure.from_dict(reader.get(f"{path}/structure", params={"format": "json"}).json())
    assert len(structure) == 48 - sum(name.startswith("v_") for name in found["defects"])
    why = reader.get(f"{path}/why").json()
    assert why["versions"][0]["model"] == "small"
    assert 0 < why["nearest"][0]["likeness"] <= 1
    assert reader.get(f"{API}/candidates/pairs/999999999").status_code == 404


def test_a_campaign_is_planned_started_paused_and_cancelled(submitter: TestClient, admin: TestClient) -> None:
    space = {"host": "MoS2", "supercell": "4x4", "defect_types": "v_S,Se_S", "max_defects": 3, "min_defects": 3}
    planned = submitter.post(f"{API}/campaigns", json={"space": space, "name": "triples"})
    assert planned.status_code == 201, planned.text
    assert planned.json()["state"] == "planned"
    assert planned.json()["candidates"] == planned.json()["by_defects"]["3"]
    path = f"{API}/campaigns/triples"
    assert submitter.post(f"{path}/start").json()["state"] == "running"
    assert submitter.post(f"{path}/pause").json()["state"] == "paused"
    assert submitter.post(f"{path}/resume").json()["state"] == "running"
    assert submitter.post(f"{path}/cancel").json()["state"] == "cancelled"
    assert submitter.get(path).json()["search_space"] == "exactly 3 of v_S, Se_S"
    assert submitter.get(f"{path}/events").text.endswith("event: over\ndata: {}\n\n")
    assert submitter.delete(path).status_code == 403
    assert admin.delete(path).status_code == 204
    assert submitter.get(path).status_code == 404


def test_a_campaign_that_keeps_the_best_has_their_design_query(submitter: TestClient) -> None:
    space = {"host": "MoS2", "supercell": "4x4", "defect_types": "v_S", "max_defects": 3}
    keep = {"windows": ["homo_lumo_gap_min=1:1.2"], "limit": 10}
    body = {"space": space, "name": "best", "keep": keep, "start": True}
    found = submitter.post(f"{API}/campaigns", json=body).json()
    assert (found["state"], found["storage"]) == ("running", "best")
    assert found["query"]["limit"] == 10


def test_who_may_read_may_not_submit(reader: TestClient) -> None:
    answer = reader.post(f"{API}/rankings", json={"query": QUERY})
    assert answer.status_code == 403
    assert "this needs the role submit" in answer.json()["detail"]


def test_models_are_shown_with_metrics_and_history(reader: TestClient, admin: TestClient) -> None:
    (row,) = reader.get(f"{API}/models").json()["rows"]
    assert (row["model"], row["standing"]) == ("small", "production")
    metrics = reader.get(f"{API}/models/small").json()["metrics"]
    assert {metric["property"] for metric in metrics} >= {"homo_lumo_gap_min"}
    assert reader.get(f"{API}/models/small/history").json()["promotions"][0]["model"] == "small"
    assert reader.post(f"{API}/models/small/production", json={}).status_code == 403
    refused = admin.post(f"{API}/models/small/production", json={})
    assert refused.status_code == 422
    assert "small" in refused.json()["detail"]


def test_a_retraining_without_new_results_says_so(submitter: TestClient) -> None:
    found = submitter.post(f"{API}/models/small/trainings", json={}).json()
    assert found["model"] is None
    assert "no result to train on is new" in found["remark"]


def test_a_round_is_proposed_and_its_inputs_are_downloaded(submitter: TestClient) -> None:
    made = submitter.post(f"{API}/rounds", json={"query": QUERY, "n": 2, "name": "one"})
    assert made.status_code == 201, made.text
    assert len(made.json()["calculations"]) == 2
    archive = submitter.post(f"{API}/rounds/one/inputs", params={"only_structures": True})
    with zipfile.ZipFile(io.BytesIO(archive.content)) as inputs:
        (manifest,) = (name for name in inputs.namelist() if name.endswith("manifest.json"))
        calculations = json.loads(inputs.read(manifest))["calculations"]
        folders = [name for name in inputs.namelist() if name.endswith("POSCAR")]
    assert len(folders) == 3  # the pristine supercell is calculated along
    found = submitter.get(f"{API}/rounds/one").json()
    assert found["states"] == {"exported": 3}
    assert {row["calculation"] for row in found["calculations"]} <= {entry["calculation"] for entry in calculations}
    assert submitter.post(f"{API}/rounds/one/submitted", json={"job": "17"}).json() == {"calculations": 3}
    assert submitter.post(f"{API}/rounds/one/failed", json={"reason": "cancelled"}).json() == {"calculations": 3}
