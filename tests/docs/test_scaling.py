"""docs/scaling.md names what there is."""

from __future__ import annotations

import re
from pathlib import Path

from screening.database.campaigns import IDS_PER_CHUNK
from screening.database.leases import LEASE_S, MAX_ATTEMPTS
from screening.defects.enumeration import CHUNK_ROWS
from screening.services.postgresql import _CONFIGURATION
from screening.settings import Settings

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "scaling.md").read_text()


def test_every_file_that_is_named_exists() -> None:
    names = set(re.findall(r"`((?:docs|tests)/[\w./-]+|docker-compose\.yml)`", TEXT))
    assert {"docs/compose.cluster.yml", "tests/benchmarks/bench_scaling.py"} <= names
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_variable_is_one_that_settings_read() -> None:
    assert set(re.findall(r"SCREENING_\w+", TEXT)) <= {f"SCREENING_{name.upper()}" for name in Settings.model_fields}


def test_the_numbers_are_those_of_the_code() -> None:
    words = " ".join(TEXT.split())
    assert f"The {CHUNK_ROWS:,} of large campaigns" in words
    assert f"cannot have more than {IDS_PER_CHUNK:,}" in words
    assert f"runs out within {LEASE_S:.0f} s" in words
    assert MAX_ATTEMPTS == 3
    assert "lost its worker three times" in words
    (connections,) = re.findall(r"max_connections = \d+", _CONFIGURATION)
    assert f"`{connections}`" in words
