"""What a review of campaigns found."""

from __future__ import annotations

import pytest

from screening.database.design_query import DesignQuery, Window, compile_query, to_sql

GAP = Window(property="homo_lumo_gap_min", low=1.0, high=1.2)


@pytest.mark.parametrize("sort", ["formation_energy_per_site", "probability"])
def test_no_probability_is_converted_to_numeric(sort: str) -> None:
    """A division by an expression of unknown type is one by numeric; over a campaign that takes most of the time."""
    query = DesignQuery(host="MoS2", windows=(GAP,), sort=sort)
    assert "numeric" not in to_sql(compile_query(query, campaign_id=1)).lower()
