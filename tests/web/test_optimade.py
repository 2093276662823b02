"""OPTIMADE: its own validator passes, and filters find what the same conditions find in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from optimade.validator import ImplementationValidator
from pydantic import SecretStr
from sqlalchemy import Engine

from screening.settings import Settings
from screening.web.app import create_app
from tests.conftest import broker_of
from tests.web.browser import serving
from tests.web.conftest import ADDRESS
from tests.web.made_project import Made

BASE = "/optimade/v1"
Entry = dict[str, Any]


@pytest.fixture(scope="module")
def open_app(services: Settings, made: tuple[Engine, Made]) -> Iterator[FastAPI]:
    """The application where anybody may read, as OPTIMADE expects it."""
    url = SecretStr(made[0].url.render_as_string(hide_password=False))
    update = {
        "database_url": url,
        "redis_url": broker_of(services),
        "web_anonymous_read": True,
        "web_rate": "100000/minute",
    }
    found = create_app(services.model_copy(update=update))
    yield found
    found.state.server.engine.dispose()


@pytest.fixture(scope="module")
def client(open_app: FastAPI) -> Iterator[TestClient]:
    with TestClient(open_app, base_url=ADDRESS) as found:
        yield found


@pytest.fixture(scope="module")
def entries(client: TestClient) -> list[Entry]:
    """All structures."""
    found = client.get(f"{BASE}/structures", params={"page_limit": 500}).json()
    assert not found["meta"]["more_data_available"]
    return [{"id": entry["id"], "type": entry["type"], **entry["attributes"]} for entry in found["data"]]


@pytest.mark.filterwarnings("default")  # the validator's own, which it would take for faults
def test_the_validator_passes(open_app: FastAPI) -> None:
    with serving(open_app) as address:
        validator = ImplementationValidator(base_url=f"{address}/optimade", verbosity=0, http_headers={})
        validator.validate_implementation()
    results = validator.results
    assert results.failure_count == 0, results.failure_messages
    assert results.internal_failure_count == 0, results.internal_failure_messages
    assert results.success_count > 35


def test_a_structure_is_written_as_the_specification_says(entries: list[Entry]) -> None:
    vacancy = next(entry for entry in entries if entry["_screening_configuration"] == "v_S")
    assert vacancy["chemical_formula_reduced"] == "Mo16S31"
    assert vacancy["chemical_formula_anonymous"] == "A31B16"
    assert vacancy["elements_ratios"] == pytest.approx([16 / 47, 31 / 47])
    assert (vacancy["nsites"], len(vacancy["cartesian_site_positions"])) == (48, 48)
    assert vacancy["species_at_sites"].count("vacancy") == 1
    assert {"name": "vacancy", "chemical_symbols": ["vacancy"], "concentration": [1.0]} in vacancy["species"]
    assert vacancy["dimension_types"] == [1, 1, 0]
    assert {entry["_screening_is_calculated"] for entry in entries} == {True, False}
    for entry in entries:
        is_predicted = entry["_screening_homo_lumo_gap_min_std"] is not None
        assert is_predicted != entry["_screening_is_calculated"]


def known(name: str, holds: Callable[[Any], bool]) -> Callable[[Entry], bool]:
    return lambda entry: entry[name] is not None and holds(entry[name])


FILTERS: list[tuple[str, Callable[[Entry], bool]]] = [
    ("nelements=3", lambda e: e["nelements"] == 3),
    ("NOT nelements=3", lambda e: e["nelements"] != 3),
    ("nsites>47 AND nsites<49", lambda e: True),
    ("3>nelements", lambda e: e["nelements"] < 3),
    ('elements HAS "Se"', lambda e: "Se" in e["elements"]),
    ('elements HAS ALL "Mo","Se"', lambda e: {"Mo", "Se"} <= set(e["elements"])),
    ('elements HAS ANY "Se","W"', lambda e: bool({"Se", "W"} & set(e["elements"]))),
    ('elements HAS ONLY "Mo","S"', lambda e: set(e["elements"]) <= {"Mo", "S"}),
    ('NOT elements HAS "Se"', lambda e: "Se" not in e["elements"]),
    ("elements LENGTH 3", lambda e: len(e["elements"]) == 3),
    ("species_at_sites LENGTH >= 48", lambda e: True),
    ('species_at_sites HAS "vacancy"', lambda e: "vacancy" in e["species_at_sites"]),
    ("dimension_types HAS 0", lambda e: 0 in e["dimension_types"]),
    ("structure_features LENGTH 0", lambda e: True),
    ('chemical_formula_reduced="Mo16S31"', lambda e: e["chemical_formula_reduced"] == "Mo16S31"),
    ('chemical_formula_reduced STARTS WITH "Mo16"', lambda e: e["chemical_formula_reduced"].startswith("Mo16")),
    ('chemical_formula_descriptive CONTAINS "v_S"', lambda e: "v_S" in e["chemical_formula_descriptive"]),
    ('_screening_configuration ENDS WITH "Se_S"', lambda e: e["_screening_configuration"].endswith("Se_S")),
    ("_screening_homo_lumo_gap_min > 1.2", known("_screening_homo_lumo_gap_min", lambda v: v > 1.2)),
    ("NOT _screening_homo_lumo_gap_min > 1.2", known("_screening_homo_lumo_gap_min", lambda v: v <= 1.2)),
    ("_screening_probability IS UNKNOWN", lambda e: e["_screening_probability"] is None),
    ("_screening_probability IS KNOWN", lambda e: e["_screening_probability"] is not None),
    ("_screening_probability < 0.5 OR _screening_n_defects = 1",
     lambda e: known("_screening_probability", lambda v: v < 0.5)(e) or e["_screening_n_defects"] == 1),
    ("_screening_is_calculated = TRUE", lambda e: e["_screening_is_calculated"]),
    ("_screening_is_calculated != TRUE", lambda e: not e["_screening_is_calculated"]),
    ('_screening_model = "small"', known("_screening_model", lambda v: v == "small")),
    ('_screening_defect_types HAS ONLY "v_S"', lambda e: e["_screening_defect_types"] == ["v_S"]),
    ('(nelements=2 OR nelements=3) AND NOT (elements HAS "Se" AND _screening_n_defects=2)',
     lambda e: e["nelements"] in (2, 3) and not ("Se" in e["elements"] and e["_screening_n_defects"] == 2)),
    ('last_modified > "2020-01-01T00:00:00Z"', lambda e: True),
    ("_exmpl_property IS UNKNOWN", lambda e: True),
    ("_exmpl_property = 3", lambda e: False),
    ("lattice_vectors IS KNOWN", lambda e: True),
    ('id="calculated-1"', lambda e: e["id"] == "calculated-1"),
]  # fmt: skip


@pytest.mark.parametrize(("filter_", "holds"), FILTERS, ids=[filter_ for filter_, _ in FILTERS])
def test_a_filter_finds_what_the_same_condition_finds_in_python(
    client: TestClient, entries: list[Entry], filter_: str, holds: Callable[[Entry], bool]
) -> None:
    answer = client.get(f"{BASE}/structures", params={"filter": filter_, "page_limit": 500})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [entry["id"] for entry in found["data"]] == [entry["id"] for entry in entries if holds(entry)]
    assert found["meta"]["data_returned"] == len(found["data"])


@pytest.mark.parametrize(
    ("filter_", "status", "said"),
    [
        ("nelements=", 400, "cannot be read"),
        ("colour=3", 400, "there is no property colour"),
        ("nelements='3'", 400, "cannot be read"),
        ('nelements="3"', 400, "expected a number"),
        ("elements=3", 400, "ask with HAS"),
        ("nelements LENGTH 3", 400, "only lists"),
        ('elements:elements_ratios HAS "Mo":0.5', 501, "correlated"),
        ('elements HAS > "Mo"', 501, "operators within HAS"),
        ("nelements=nsites", 501, "right side"),
        ('last_modified > "soon"', 400, "is no time"),
        ("(" * 100 + "nelements=1" + ")" * 100, 400, "brackets"),
    ],
)
def test_a_filter_that_cannot_be_answered_is_told(client: TestClient, filter_: str, status: int, said: str) -> None:
    answer = client.get(f"{BASE}/structures", params={"filter": filter_})
    assert answer.status_code == status
    assert said in answer.json()["errors"][0]["detail"]


def test_pages_follow_each_other_and_fields_are_chosen(client: TestClient, entries: list[Entry]) -> None:
    url: str | None = f"{BASE}/structures?page_limit=7&response_fields=nsites"
    walked: list[str] = []
    while url:
        found = client.get(url).json()
        walked += [entry["id"] for entry in found["data"]]
        assert all(set(entry["attributes"]) == {"nsites"} for entry in found["data"])
        url = found["links"]["next"]
    assert walked == [entry["id"] for entry in entries]


def test_one_structure_is_served_by_its_id_and_another_version_is_not(client: TestClient, entries: list[Entry]) -> None:
    found = client.get(f"{BASE}/structures/{entries[0]['id']}").json()["data"]
    assert found["attributes"]["nsites"] == 48
    assert client.get(f"{BASE}/structures/none").json()["data"] is None
    assert client.get("/optimade/v0/info").status_code == 553
    assert client.get("/optimade/versions").text == "version\n1"


def test_where_anonymous_reading_is_off_a_token_is_asked_for(made_app: FastAPI) -> None:
    with TestClient(made_app, base_url=ADDRESS) as nobody:
        answer = nobody.get(f"{BASE}/structures")
    assert answer.status_code == 401
    assert "log in with a token" in answer.json()["errors"][0]["detail"]
