"""Settings that differ between machines, from SCREENING_* variables; read by entry points only."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from screening.errors import InputError


class Settings(BaseSettings):
    """Addresses, directories and device; an empty variable counts as not set.

    Attributes:
        home: directory of the services' data, logs and state (SCREENING_HOME).
        database_url: PostgreSQL to use instead of our own (SCREENING_DATABASE_URL).
        redis_url: Redis or Valkey to use instead of our own (SCREENING_REDIS_URL).
        device: where networks run (SCREENING_DEVICE): `auto` takes a GPU where there is one.
    """

    model_config = SettingsConfigDict(env_prefix="SCREENING_", frozen=True, extra="ignore", env_ignore_empty=True)

    home: Path = Field(default=Path(".screening"))
    database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        InputError: a variable has a value that is not allowed.
    """
    try:
        return Settings()
    except ValidationError as error:
        reasons = [f"SCREENING_{'_'.join(map(str, found['loc'])).upper()}: {found['msg']}" for found in error.errors()]
        raise InputError(f"{'; '.join(reasons)}; mend or unset it") from error
