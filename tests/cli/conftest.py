"""The command `screening` in the process of the tests."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from screening.cli import main
from screening.database.session import make_engine as real_make_engine
from screening.settings import Settings

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_here(
    clean_services: Settings, clean_engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """The command on a database of the test's own, without a process for it; its exit code, output and errors."""
    assert clean_services.database_url is not None
    assert clean_services.redis_url is not None
    monkeypatch.setenv("SCREENING_HOME", str(clean_services.home))
    monkeypatch.setenv("SCREENING_DATABASE_URL", clean_services.database_url.get_secret_value())
    monkeypatch.setenv("SCREENING_REDIS_URL", clean_services.redis_url.get_secret_value())
    monkeypatch.setenv("COLUMNS", "200")
    engines: list[Engine] = []

    def make_engine(url: str) -> Engine:
        engines.append(real_make_engine(url))
        return engines[-1]

    monkeypatch.setattr("screening.database.session.make_engine", make_engine)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["screening", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        while engines:
            engines.pop().dispose()
        return (ended.value.code if isinstance(ended.value.code, int) else 0), output.out, output.err

    return run
