"""The calls of docs/web.md are answered, and its table has every setting of the web server."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from screening.settings import Settings
from tests.web.conftest import client_of, made, made_app, made_once
from tests.web.made_project import Made

__all__ = ["made", "made_app", "made_once"]  # fixtures

PAGE = (Path(__file__).parents[2] / "docs" / "web.md").read_text()


def test_every_call_of_the_page_is_answered(made_app: FastAPI, made: tuple[Engine, Made]) -> None:
    (calls,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    with client_of(made_app, made[0], "submit") as client:
        for line in calls.splitlines():
            answer = call(client, shlex.split(line))
            assert answer < 300, line


def call(client: TestClient, words: list[str]) -> int:
    """The status of a call of curl."""
    path = next(word for word in words if word.startswith("$A")).removeprefix("$A")
    given = [words[n + 1] for n, word in enumerate(words) if word == "-H"]
    headers = dict(text.split(": ", 1) for text in given if not text.startswith("Authorization"))
    if "--json" not in words:
        return client.get(path, headers=headers).status_code
    body = json.loads(words[words.index("--json") + 1])
    return client.post(path, json=body, headers=headers).status_code


def test_the_filter_of_the_page_finds_something(made_app: FastAPI, made: tuple[Engine, Made]) -> None:
    (found,) = re.findall(r"structures\?filter=(.*)", PAGE)
    with client_of(made_app, made[0], "read") as client:
        answer = client.get("/optimade/v1/structures", params={"filter": found})
    assert answer.status_code == 200
    assert answer.json()["meta"]["data_returned"] > 0


def test_every_setting_of_the_web_server_is_in_the_table_of_the_page() -> None:
    table = "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))
    names = [name for name in Settings.model_fields if name.startswith("web_")]
    assert [name for name in names if f"`SCREENING_{name.upper()}`" not in table] == []
