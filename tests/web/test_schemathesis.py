"""Schemathesis over the OpenAPI document: whatever is sent, the answer is one that the document says, and no fault."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import Engine

from screening.database.session import session_scope
from screening.database.tokens import add_token
from tests.web.made_project import QUERY, Made

KNOWN = {
    "host": "MoS2", "supercell": "4x4", "campaign": "pairs", "candidate": 10000003, "ranking": "first",
    "model": "small", "upload": 1, "round": "1",
}  # fmt: skip
_EXAMPLES = 12  # of each operation
_CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


@pytest.mark.parametrize("is_known", [False, True], ids=["made up", "known names"])
def test_every_answer_is_one_that_the_document_says(
    made_app: FastAPI, made: tuple[Engine, Made], *, is_known: bool
) -> None:
    """With names that are made up nearly all is refused; with known ones the pipeline is reached."""
    with session_scope(made[0]) as session:
        token = add_token(session, f"schemathesis {is_known}", "admin")
    schema = schemathesis.openapi.from_asgi("/openapi.json", made_app)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 30
    faults, statuses = [], Counter[int]()
    for operation in operations:
        if is_known and operation.method.upper() == "DELETE":
            continue  # what the others know
        try:
            statuses += _try(operation, {"Authorization": f"Bearer {token}"}, is_known=is_known)
        except BaseExceptionGroup as group:
            faults += [f"{operation.label}: {error}" for error in group.exceptions]
        except Exception as error:  # of any check; all operations are tried before the first is told
            faults.append(f"{operation.label}: {error}")
    assert not faults, "\n\n".join(faults)
    if is_known:
        assert statuses[200] + statuses[201] + statuses[202] > 100


def _try(operation: Any, headers: dict[str, str], *, is_known: bool) -> Counter[int]:
    """Send examples of an operation, the same ones in each run; how often each status was answered."""
    statuses: Counter[int] = Counter()

    @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE) if is_known else operation.as_strategy())
    @settings(
        max_examples=_EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate],
    )  # fmt: skip
    def send(case: Any) -> None:
        if is_known:
            case.path_parameters.update({k: v for k, v in KNOWN.items() if k in case.path_parameters})
            if isinstance(case.body, dict):
                _name_known(case.body)
            if "since" in case.query:
                case.query["since"] = "first"
        statuses[case.call_and_validate(headers=headers, checks=_CHECKS).status_code] += 1

    send()
    return statuses


def _name_known(body: dict[str, Any]) -> None:
    """Put names that are there into a body."""
    for name in ("model", "campaign", "level", "keep"):
        body.pop(name, None)
    if "query" in body:
        body["query"] = QUERY | {key: value for key, value in body["query"].items() if key in ("temperature", "level")}
    for place in (body, body.get("space")):
        if isinstance(place, dict) and "supercell" in place:
            place |= {"host": "MoS2", "supercell": "4x4"}
            if "defect_types" in place:
                place |= {"defect_types": "v_S,Se_S", "max_defects": 2, "min_defects": 1}
                for name in ("limits", "required", "composition"):
                    place.pop(name, None)
