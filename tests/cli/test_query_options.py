"""A design query is the same object whether it is written in Python, TOML, JSON or as options of a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from screening.cli.query_options import build_query
from screening.database.design_query import DesignQuery, read_query
from screening.database.query_parts import Count, Density, Goal, Place, Potentials, Window
from screening.errors import FileFormatError, InputError

GAP = "homo_lumo_gap_min"
# Python, TOML, options
WRITTEN: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "a host": ({"places": (Place(host="MoS2"),)}, 'host = "MoS2"', {"host": "MoS2"}),
    "a supercell": (
        {"places": (Place(host="MoS2", supercell="8x8"),)}, 'host = "MoS2"\nsupercell = "8x8"',
        {"host": "MoS2", "supercell": "8x8"},
    ),
    "several places": (
        {"places": (Place(host="MoS2", supercell="8x8"), Place(host="h-BN"))}, 'places = ["MoS2 8x8", "h-BN"]',
        {"host": "MoS2 8x8, h-BN"},
    ),
    "a supercell of several hosts": (
        {"places": (Place(host="MoS2", supercell="8x8"), Place(host="WSe2", supercell="8x8"))},
        '[[places]]\nhost = "MoS2"\nsupercell = "8x8"\n[[places]]\nhost = "WSe2"\nsupercell = "8x8"',
        {"host": "MoS2,WSe2", "supercell": "8x8"},
    ),
    "types": ({"types": ("v_S", "Se_S")}, 'types = ["v_S", "Se_S"]', {"types": "v_S,Se_S"}),
    "required and forbidden": (
        {"required": ("v_Mo",), "forbidden": ("W_Mo", "Se_S")}, 'required = "v_Mo"\nforbidden = ["W_Mo", "Se_S"]',
        {"require": "v_Mo", "forbid": "W_Mo,Se_S"},
    ),
    "counts": (
        {"counts": (Count(type="v_S", most=2), Count(type="Se_S", least=1), Count(type="v_Mo", least=1, most=1))},
        'counts = ["v_S:0-2", {type = "Se_S", least = 1}, "v_Mo:1"]', {"count": ["v_S:0-2", "Se_S:1-", "v_Mo:1"]},
    ),
    "numbers of defects": (
        {"min_defects": 2, "max_defects": 4}, "min_defects = 2\nmax_defects = 4", {"min_defects": 2, "max_defects": 4},
    ),
    "density per cm2": (
        {"density": Density(low=1e13, high=5e13, unit="cm-2")}, 'density = {low = 1e13, high = 5e13, unit = "cm-2"}',
        {"density": "1e13:5e13cm-2"},
    ),
    "density per cell": ({"density": Density(high=0.05)}, 'density = ":0.05cell"', {"density": ":0.05"}),
    "separation": (
        {"min_separation": 3.0, "max_separation": 9.5}, "min_separation = 3.0\nmax_separation = 9.5",
        {"min_separation": 3.0, "max_separation": 9.5},
    ),
    "a gap": (
        {"windows": (Window(property=GAP, low=1.0, high=1.2),)}, 'windows = ["gap=1.0:1.2"]', {"gap": "1.0:1.2"},
    ),
    "a gap of a spin": (
        {"windows": (Window(property="homo_lumo_gap_majority", low=1.0),)},
        '[[windows]]\nproperty = "homo_lumo_gap"\nspin = "majority"\nlow = 1.0', {"gap": "1:", "spin": "majority"},
    ),
    "windows": (
        {"windows": (Window(property=GAP, high=2.0), Window(property="total_mag", low=0.5))},
        f'[[windows]]\nproperty = "{GAP}"\nhigh = 2\n[[windows]]\nproperty = "total_mag"\nlow = 0.5',
        {"window": [f"{GAP}=:2", "total_mag=0.5:"]},
    ),
    "a level": ({"level": "2DMD PBE"}, 'level = "2DMD PBE"', {"level": "2DMD PBE"}),
    "metal-rich": (
        {"potentials": Potentials(condition="metal-rich")}, 'potentials = "metal-rich"', {"mu": "metal-rich"},
    ),
    "given potentials": (
        {"potentials": Potentials(given={"Mo": -10.95, "Se": -3.5})}, "[potentials.given]\nMo = -10.95\nSe = -3.5",
        {"mu": "Mo=-10.95, Se=-3.5"},
    ),
    "both": (
        {"potentials": Potentials(condition="S-rich", given={"Se": -3.5})},
        'potentials = {condition = "S-rich", given = {Se = -3.5}}', {"mu": "S-rich,Se=-3.5"},
    ),
    "temperature": (
        {"temperature": 900.0, "sort": "concentration"}, 'temperature = 900\nsort = "concentration"',
        {"temperature": 900.0, "sort": "concentration"},
    ),
    "highest": (
        {"sort": "total_mag", "direction": "highest"}, 'sort = "total_mag"\ndirection = "highest"',
        {"sort": "total_mag", "highest": True},
    ),
    "closest": (
        {"sort": GAP, "direction": "closest", "target": 1.1}, 'sort = "gap"\ndirection = "closest"\ntarget = 1.1',
        {"sort": "gap", "closest": 1.1},
    ),
    "pareto": (
        {"pareto": (Goal(property=GAP, direction="highest"), Goal(property="formation_energy"))},
        'pareto = ["gap=highest", {property = "formation_energy"}]', {"pareto": "gap=highest,formation_energy=lowest"},
    ),
    "likeliest": (
        {"sort": "probability", "confidence": 0.2, "limit": 7}, 'sort = "probability"\nconfidence = 0.2\nlimit = 7',
        {"sort": "probability", "confidence": 0.2, "limit": 7},
    ),
}  # fmt: skip


def with_host(fields: dict[str, Any]) -> dict[str, Any]:
    return fields if {"host", "places"} & fields.keys() else {"host": "MoS2"} | fields


@pytest.mark.parametrize("name", WRITTEN)
def test_python_toml_json_and_options_give_the_same_object(name: str, tmp_path: Path) -> None:
    fields, toml, options = WRITTEN[name]
    expected = DesignQuery(**with_host(fields))
    toml_path, json_path = tmp_path / "query.toml", tmp_path / "query.json"
    toml_path.write_text(toml if "host" in toml or "places" in toml else f'host = "MoS2"\n{toml}')
    json_path.write_text(json.dumps(expected.stored()))
    given = with_host(options)
    assert (
        read_query(toml_path)
        == read_query(json_path)
        == build_query(**given)
        == build_query(query=toml_path)
        == expected
    )
    assert expected == DesignQuery(host="MoS2") or expected.stored() != DesignQuery(host="MoS2").stored()


def test_options_take_the_place_of_the_fields_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "query.toml"
    path.write_text(
        'host = "MoS2"\nsupercell = "8x8"\nwindows = ["gap=1:2", "total_mag=0.5:"]\nsort = "gap"\n'
        'direction = "closest"\ntarget = 1.1\nlimit = 50'
    )
    found = build_query(query=path, host="WS2", window=["lumo=:-3"], highest=True, limit=5)
    assert found == DesignQuery(
        host="WS2", windows=(Window(property="lumo", high=-3.0),), sort=GAP, direction="highest", limit=5
    )
    assert build_query(query=path).limit == 50


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sort": "band_gap"},
            r"sort: no property is called 'band_gap'; the properties are formation_energy, .*total_mag",
        ),
        ({"windw": 1}, r"windw: no field is called so; the fields are host, supercell, places, types"),
        (
            {"windows": [{"property": "gap", "lo": 1}]},
            r"windows\.0\.lo: no field is called so; the fields are property, low",
        ),
        (
            {"windows": "gap=2:1"},
            r"windows\.0: the window on homo_lumo_gap_min goes from 2 to 1; low must be below high",
        ),
        ({"windows": [{"property": "lumo", "spin": "min", "low": 1}]}, "only gaps have one"),
        ({"windows": [{"property": "gap", "spin": "up", "low": 1}]}, "spin is 'up'; expected min, majority, minority"),
        ({"windows": ["formation_energy=:1", "formation_energy_per_site=:1"]}, "which are one prediction"),
        ({"direction": "up"}, r"direction: Input should be 'lowest', 'highest' or 'closest' \(found 'up'\)"),
        ({"direction": "closest"}, "direction is closest, target None; closest, and only it, has a target"),
        ({"types": "vS"}, r"types\.0: 'vS' is no defect type; write v_S for a vacancy"),
        ({"counts": "v_S:x"}, r"counts\.0: 'v_S:x' is no count; write v_S:2, v_S:0-2"),
        ({"required": "v_S", "forbidden": "v_S"}, "v_S are required and forbidden"),
        ({"required": "v_S", "types": "Se_S"}, "v_S are required, but types allows Se_S only"),
        ({"density": "5"}, r"density: '5' is no density; write 0\.01:0\.05cell"),
        ({"potentials": "rich"}, "the condition is 'rich'; expected reference, metal-rich"),
        ({"sort": "concentration"}, "depends on the temperature: give temperature, in K"),
        ({"pareto": "gap=highest"}, "pareto has 1 goals; give two or three"),
        ({"pareto": "gap=best,lumo"}, r"pareto\.0\.direction: Input should be 'lowest' or 'highest' \(found 'best'\)"),
        ({"limit": 0}, r"limit: .*greater than or equal to 1 \(found 0\)"),
        ({"min_defects": 3, "max_defects": 2}, "min_defects is 3, above max_defects, which is 2"),
        ({"places": ["BP"]}, "give host and supercell, or places, not both"),
        ({"level": "A", "windows": [{"property": "gap", "low": 1, "level": "B"}]}, "levels of theory are A, B"),
    ],
)
def test_what_is_wrong_is_said_with_the_field_what_was_found_and_what_is_allowed(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        DesignQuery.of(host="MoS2", **fields)


def test_a_query_without_a_host_asks_for_one() -> None:
    with pytest.raises(InputError, match="places: it is missing; give host, such as MoS2"):
        DesignQuery.of(sort=GAP)
    with pytest.raises(InputError, match="supercell is '4x4' without a host"):
        DesignQuery.of(supercell="4x4")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("query.yaml", "host: MoS2", "expected a file that ends in .toml or .json"),
        ("query.toml", "host = ", "is no TOML"),
        ("query.json", "[1]", "holds a list; expected the fields of a design query"),
    ],
)
def test_a_file_that_is_no_query_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FileFormatError, match=message):
        read_query(tmp_path / name)


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="--highest and --closest are two orders"):
        build_query(host="MoS2", highest=True, closest=1.0)
    with pytest.raises(InputError, match="give --gap too"):
        build_query(host="MoS2", spin="majority")
