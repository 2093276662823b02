"""The notebook runs from top to bottom against a live server, and its cells say what they should."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from fastapi import FastAPI
from nbclient import NotebookClient
from sqlalchemy import Engine

from screening.database.session import session_scope
from screening.database.tokens import add_token
from tests.web.browser import serving, working
from tests.web.conftest import made, made_app, made_once
from tests.web.made_project import Made

__all__ = ["made", "made_app", "made_once"]  # fixtures

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "client.ipynb"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of the kernel's own client
def test_the_notebook_runs_from_top_to_bottom(
    made_app: FastAPI, made: tuple[Engine, Made], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    with session_scope(made[0]) as session:
        monkeypatch.setenv("SCREENING_TOKEN", add_token(session, "the notebook", "submit"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with serving(made_app) as address, working(made[0]):
        monkeypatch.setenv("SCREENING_ADDRESS", address)
        NotebookClient(notebook, timeout=120).execute()
    shown = "\n".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    assert "13446" in shown  # of the paper
    assert "image/png" in shown
    assert "'likeness'" in shown or "Se_S" in shown
