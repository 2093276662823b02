"""The query of docs/design-queries.md is one, and its table names every field."""

from __future__ import annotations

import re
from pathlib import Path

from screening.cli.query_options import build_query
from screening.database.design_query import DesignQuery, read_query

PAGE = (Path(__file__).parent.parent.parent / "docs" / "design-queries.md").read_text()


def test_the_file_of_the_page_is_what_its_options_say(tmp_path: Path) -> None:
    (content,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "query.toml"
    path.write_text(content)
    options = {
        "host": "MoS2",
        "supercell": "8x8",
        "types": "v_S,Se_S,W_Mo",
        "require": "v_S",
        "forbid": "v_Mo",
        "count": ["v_S:1-2", "W_Mo:0-1"],
        "min_defects": 2,
        "max_defects": 4,
        "density": ":2e14cm-2",
        "min_separation": 3.0,
        "gap": "1.0:1.2",
        "window": ["total_mag=0.5:"],
        "level": "2DMD PBE",
        "mu": "metal-rich",
        "confidence": 0.6,
        "limit": 50,
    }
    assert read_query(path) == build_query(**options)


def test_every_field_is_in_the_table_of_the_page() -> None:
    table = "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))
    assert [name for name in DesignQuery.model_fields if f"`{name}`" not in table] == []
