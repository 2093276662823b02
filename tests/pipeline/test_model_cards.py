"""Cards of models: what goes into JSON comes back, damaged ones are refused, people can read them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from screening.errors import FileFormatError
from screening.pipeline.model_cards import FORMAT, ModelCard, card_from_json, card_text, card_to_json
from tests.pipeline.made_models import small_model


def parsed(card: ModelCard) -> Any:
    return json.loads(json.dumps(card_to_json(card), allow_nan=False))


def test_a_card_comes_back_from_json_as_it_was() -> None:
    card = small_model().card
    again = card_from_json(parsed(card))
    assert parsed(again) == parsed(card)
    (host,), (original,) = again.hosts, card.hosts
    assert (host.name, host.species, host.is_layer) == ("MoS2", ("Mo", "S", "S"), True)
    np.testing.assert_array_equal(host.lattice, original.lattice)
    np.testing.assert_array_equal(host.positions, original.positions)
    assert again.level.digest == card.level.digest
    assert again.metrics == card.metrics
    assert again.supercells == {"MoS2": ("4x4",)}
    assert again.label_ranges["formation_energy"] == (-1.0, 12.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.update(format="screening model card 0"), f"reads '{FORMAT}'"),
        (lambda found: found.pop("level"), "damaged .KeyError"),
        (lambda found: found["level"].update(colour="red"), "damaged .TypeError"),
        (lambda found: found["hosts"][0]["positions"].pop(), "positions .2, 3"),
        (lambda found: found["hosts"][0].update(lattice=[[0.0] * 3] * 3), "flat cell"),
        (lambda found: found["properties"].append("colour"), "names the properties colour"),
        (lambda found: found.update(label_ranges={"homo": [1.0]}), "damaged .ValueError"),
        (lambda found: found.update(metrics=3), "damaged .TypeError"),
    ],
)
def test_a_damaged_card_is_refused(change: Any, message: str) -> None:
    found = parsed(small_model().card)
    change(found)
    with pytest.raises(FileFormatError, match=message):
        card_from_json(found)


@pytest.mark.parametrize("found", [None, [], "card", {}])
def test_what_is_no_card_is_refused(found: Any) -> None:
    with pytest.raises(FileFormatError, match="this version of screening reads"):
        card_from_json(found)


def test_the_text_says_data_errors_and_limits_and_leaves_empty_sections_out() -> None:
    card = small_model().card
    text = card_text(card)
    assert text.startswith("# Model small\n")
    assert "| made/MoS2 | formation_energy_per_site | 48 | 12.5 | 20.0 | 83 | 70 | 94 |" in text
    assert "| made/MoS2 | 192 | 48 |" in text
    assert "point defects in MoS2 (4x4), as none with none gives them" in text
    for line in ("Licence: none.", "- knows three defect types", "- nobody et al.", "- settings: epochs 2"):
        assert line in text
    bare = card_text(replace(card, limits=(), metrics=(), citations=()))
    assert "## Limits" not in bare
    assert "## Errors" not in bare
    assert "## Data" in bare
