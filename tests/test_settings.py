"""Settings come from SCREENING_* variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from screening.errors import InputError
from screening.settings import Settings, load_settings


def test_without_variables_home_is_below_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = load_settings()
    assert found.home == tmp_path / ".screening"
    assert (found.database_url, found.redis_url, found.device) == (None, None, "auto")


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCREENING_HOME", str(tmp_path))
    monkeypatch.setenv("SCREENING_DATABASE_URL", "postgresql://host/db")
    monkeypatch.setenv("SCREENING_REDIS_URL", "redis://host")
    monkeypatch.setenv("SCREENING_DEVICE", "cuda")
    found = load_settings()
    assert found.home == tmp_path
    assert found.database_url is not None
    assert found.database_url.get_secret_value() == "postgresql://host/db"
    assert found.redis_url is not None
    assert found.redis_url.get_secret_value() == "redis://host"
    assert found.device == "cuda"


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCREENING_DATABASE_URL", "")
    assert load_settings().database_url is None


def test_the_home_of_the_user_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings(home=Path("~/project")).home == tmp_path / "project"


def test_a_device_that_does_not_exist_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCREENING_DEVICE", "tpu")
    with pytest.raises(InputError, match=r"SCREENING_DEVICE: Input should be 'auto', 'cpu' or 'cuda'"):
        load_settings()


def test_passwords_are_not_shown() -> None:
    assert "secret" not in repr(Settings(database_url="postgresql://me:secret@host/db"))
