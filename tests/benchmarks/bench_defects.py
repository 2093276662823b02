"""Counting, enumerating, and structures to configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, parse_defect_types
from screening.defects.enumeration import SearchSpace, enumerate_space
from screening.defects.host import Supercell
from screening.defects.matching import Matcher
from screening.defects.symmetry import find_symmetry
from screening.dft.structures import parse_cif, write_structure
from tests.benchmarks.conftest import Measure


def bench_count_and_enumerate(measure: Measure) -> None:
    """8x8 MoS2 with four defect types: the count of 5 defects, and all 1,170,765 configurations of 4."""
    supercell = Supercell.parse(catalogue_host("MoS2"), "8x8")
    symmetry = find_symmetry(supercell)
    types = parse_defect_types("v_S,Se_S,v_Mo,W_Mo")
    small = SearchSpace(supercell, types, 2)
    sum(len(block) for block in enumerate_space(small, symmetry))  # numba compiles
    measure(
        "symmetry of 8x8 MoS2, and the exact count of its 86,498,034 configurations of 5 defects",
        1,
        repeats=3,
        ours=lambda: SearchSpace(supercell, types, 5, min_defects=5).counts(find_symmetry(supercell)),
    )
    space = SearchSpace(supercell, types, 4, min_defects=4)
    n_expected = sum(space.counts(symmetry).values())
    measure(
        "enumeration, 8x8 MoS2, 4 defects of 4 types",
        n_expected,
        repeats=3,
        ours=lambda: [len(block) for block in enumerate_space(space, symmetry)],
    )


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")  # pymatgen rounds 1/3
def bench_structures(measure: Measure, tmp_path: Path) -> None:
    """CIFs of 8x8 MoS2 with three defects: read by pymatgen and by gemmi, and matched to the supercell."""
    from pymatgen.io.cif import CifParser

    supercell = Supercell.parse(catalogue_host("MoS2"), "8x8")
    texts = []
    for n in range(20):
        path = tmp_path / f"{n}.cif"
        write_structure(path, supercell, Configuration((n, 70 + n, 150 + n), (5376, 2048, 2082)))
        texts.append(path.read_text())
    structures = [parse_cif(text, "x") for text in texts]
    matcher = Matcher(supercell)
    measure(
        "CIF of 192 sites to structure",
        len(texts),
        repeats=3,
        gemmi=lambda: [parse_cif(text, "x") for text in texts],
        pymatgen=lambda: [CifParser.from_str(text).parse_structures(primitive=False) for text in texts],
    )
    measure("structure to configuration", len(structures), ours=lambda: [matcher.match(found) for found in structures])
