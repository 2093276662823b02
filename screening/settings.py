"""Settings that differ between machines, from SCREENING_* variables; read by entry points only."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from screening.errors import InputError


class Settings(BaseSettings):
    """Addresses, directories, device, and limits of the web server; an empty variable counts as not set.

    Attributes:
        home: directory of the services' data, logs and state (SCREENING_HOME).
        database_url: PostgreSQL to use instead of our own (SCREENING_DATABASE_URL).
        redis_url: Redis or Valkey to use instead of our own (SCREENING_REDIS_URL).
        device: where networks run (SCREENING_DEVICE): `auto` takes a GPU where there is one.
        web_address: interface on which the web server listens (SCREENING_WEB_ADDRESS).
        web_port: its port; None takes a free one, which is remembered.
        web_anonymous_read: whether who shows no token may read.
        web_origins: other origins whose scripts may call the REST API, comma-separated (CORS); none by default.
        web_rate: requests that one token, or one address without a token, may make.
        web_query_s: longest time of the database work of one request, seconds.
        web_upload_mb: largest body of a request, MB.
    """

    model_config = SettingsConfigDict(env_prefix="SCREENING_", frozen=True, extra="ignore", env_ignore_empty=True)

    home: Path = Field(default=Path(".screening"))
    database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    web_address: str = "127.0.0.1"
    web_port: int | None = Field(default=None, ge=1, le=65535)
    web_anonymous_read: bool = False
    web_origins: str = ""
    web_rate: str = "1200/minute"
    web_query_s: float = Field(default=10.0, gt=0.0, le=600.0)
    web_upload_mb: float = Field(default=64.0, gt=0.0, le=900.0)

    @field_validator("web_rate")
    @classmethod
    def _rate(cls, rate: str) -> str:
        from limits import parse

        try:
            parse(rate)
        except ValueError as error:
            raise ValueError(f"{rate!r} is no rate; write 1200/minute or 50/second") from error
        return rate

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
