"""Counting, enumerating, and structures to configurations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.checksum import checksum
from screening.defects.defect_types import Configuration, parse_defect_types
from screening.defects.enumeration import Chunk, SearchSpace, enumerate_chunk, enumerate_space, plan_chunks
from screening.defects.host import Supercell
from screening.defects.matching import Matcher
from screening.defects.symmetry import Symmetry, find_symmetry
from screening.dft.structures import parse_cif, write_structure
from tests.benchmarks.conftest import Measure, PrintLine


def bench_count_and_enumerate(measure: Measure) -> None:
    """8x8 MoS2 with four defect types: the count of 5 defects, all 1,170,765 configurations of 4, a sample of 5."""
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
    for n_defects, every in ((4, 1), (5, 20)):
        space = SearchSpace(supercell, types, n_defects, min_defects=n_defects)
        chunks = plan_chunks(space, symmetry)
        measure(
            f"plan of the {len(chunks)} chunks of {n_defects} defects", 1, repeats=3,
            ours=lambda space=space: plan_chunks(space, symmetry),
        )  # fmt: skip
        n_rows = sum(_walked(space, symmetry, chunks[::every]))
        measure(
            f"enumeration, 8x8 MoS2, {n_defects} defects of 4 types, {len(chunks[::every])} of {len(chunks)} chunks",
            n_rows,
            repeats=3,
            ours=lambda space=space, chunks=chunks[::every]: _walked(space, symmetry, chunks),
        )
        block = next(enumerate_chunk(space, symmetry, chunks[0]))
        measure(f"checksum of {n_defects} defects", len(block), ours=lambda block=block: checksum(block))


def bench_chunk_sizes(print_line: PrintLine) -> None:
    """Rows of each chunk of 5 defects in 8x8 MoS2, planned for 300,000; all 86,498,034 are walked."""
    supercell = Supercell.parse(catalogue_host("MoS2"), "8x8")
    symmetry = find_symmetry(supercell)
    space = SearchSpace(supercell, parse_defect_types("v_S,Se_S,v_Mo,W_Mo"), 5, min_defects=5)
    rows = np.array(_walked(space, symmetry, plan_chunks(space, symmetry)))
    assert rows.sum() == sum(space.counts(symmetry).values())
    names = ("min", "percentile 5", "median", "percentile 95", "max")
    line = {name: int(value) for name, value in zip(names, np.percentile(rows, [0, 5, 50, 95, 100]), strict=True)}
    print_line({"figure": "rows of a chunk, 5 defects in 8x8 MoS2", "chunks": len(rows), **line})


def _walked(space: SearchSpace, symmetry: Symmetry, chunks: Sequence[Chunk]) -> list[int]:
    """Rows of each chunk."""
    return [sum(map(len, enumerate_chunk(space, symmetry, chunk))) for chunk in chunks]


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
