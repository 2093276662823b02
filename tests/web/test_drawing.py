"""Drawings of supercells: every site once, defects marked and named, nothing outside, labels apart."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Host, Supercell
from screening.web.drawing import View, species_colours, supercell_svg

SVG = "{http://www.w3.org/2000/svg}"


def draw(supercell: Supercell, configuration: Configuration | None = None, view: View = "top") -> ElementTree.Element:
    return ElementTree.fromstring(str(supercell_svg(supercell, configuration, view=view)))  # noqa: S314  # our own


def pair() -> tuple[Supercell, Configuration]:
    supercell = Supercell.parse(catalogue_host("MoS2"), "4x4")
    sites = supercell.allowed(DefectType.parse("v_S"))[:2]
    codes = (DefectType.parse("v_S").code, DefectType.parse("Se_S").code)
    return supercell, Configuration(tuple(int(s) for s in sites), codes)


@pytest.mark.parametrize("view", ["top", "side"])
def test_every_site_is_drawn_once_and_a_vacancy_is_no_atom(view: View) -> None:
    supercell, configuration = pair()
    atoms = [node for node in draw(supercell, configuration, view).iter() if "atom" in node.get("class", "").split()]
    assert len(atoms) == supercell.n_sites - 1
    assert len([n for n in draw(supercell, None, view).iter() if "atom" in n.get("class", "").split()]) == 48


@pytest.mark.parametrize("view", ["top", "side"])
def test_everything_lies_within_the_frame(view: View) -> None:
    found = draw(*pair(), view)
    _, _, width, height = map(float, found.get("viewBox", "").split())
    for node in found.iter():
        if node.get("cx") is not None:
            assert 0 <= float(node.get("cx", "")) <= width
            assert 0 <= float(node.get("cy", "")) <= height


def test_defects_are_named_and_the_drawing_says_what_it_shows() -> None:
    found = draw(*pair())
    names = [node.text for node in found.iter() if node.tag.endswith("text")]
    assert sorted(names, key=str) == ["Se_S", "v_S"]
    assert found.get("aria-label") == "MoS2 4x4 from the top, v_S+Se_S"


def test_labels_of_neighbours_stand_on_lines_of_their_own() -> None:
    found = draw(*pair(), "side")
    labels = [(float(n.get("x", "")), float(n.get("y", ""))) for n in found.iter() if n.tag.endswith("text")]
    assert len({round(y) for _, y in labels}) == 2 or abs(labels[0][0] - labels[1][0]) > 100


def test_a_name_from_a_file_cannot_break_out_of_the_drawing() -> None:
    cell = Host("<script>alert(1)</script>", np.eye(3) * 3.0, ("Mo",), np.zeros((1, 3)), False, "a file")
    text = str(supercell_svg(Supercell.parse(cell, "1x1x1")))
    assert "<script>" not in text


def test_colours_begin_with_the_host() -> None:
    supercell, configuration = pair()
    assert species_colours(supercell, configuration) == {"Mo": 0, "S": 1, "Se": 2}
