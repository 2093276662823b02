"""Public tools beside ours, in one run on one thread each: enumeration, structures to graphs, and networks.

Both sides must find the number that Burnside's lemma counts. A peer's start (imports, symmetry) never counts into the
rate of its search.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, parse_composition
from screening.defects.enumeration import Block, Chunk, SearchSpace, enumerate_chunk
from screening.defects.host import Supercell
from screening.defects.symmetry import Symmetry, find_symmetry
from tests.benchmarks.conftest import PrintLine, figure_line, seconds_of
from tests.benchmarks.peer_environments import run_peer

REPEATS = 3
OURS_PER_PEER = 5  # ours is short; its median is taken over these too


def bench_enumeration_beside_bsym(print_line: PrintLine) -> None:
    """The 1,415 configurations of v_Mo+v_S+Se_S in 8x8 MoS2, whose labelled ones bsym visits one by one."""
    search = _Search.of("v_Mo:1,v_S:1,Se_S:1")
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(REPEATS):
        answer = run_peer("bsym", _cell(search.supercell))
        assert answer["n_found"] == answer["n_structures"] == search.n_expected
        times["bsym"].append(answer["search_s"])
        times["bsym, structures"].append(answer["whole_s"])
        for _ in range(OURS_PER_PEER):
            times["ours"].append(seconds_of(search.run))
            times["ours, structures"].append(seconds_of(lambda: _structures("v_Mo:1,v_S:1,Se_S:1")))
    what, n = "v_Mo+v_S+Se_S in 8x8 MoS2", search.n_expected
    _compare(print_line, f"{what}: search alone", n, ours=times["ours"], bsym=times["bsym"])
    _compare(
        print_line, f"{what}: what its user calls (bsym: symmetry, search, structures; ours: search)", n,
        ours=times["ours"], bsym=times["bsym, structures"],
    )  # fmt: skip
    _compare(
        print_line, f"{what}: symmetry, search, species and positions of each", n,
        ours=times["ours, structures"], bsym=times["bsym, structures"],
    )  # fmt: skip


def bench_enumeration_beside_shry(print_line: PrintLine) -> None:
    """The 84,364 configurations of 2*v_S+2*Se_S in 8x8 MoS2."""
    search = _Search.of("v_S:2,Se_S:2")
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(REPEATS):
        answer = run_peer("shry", _cell(search.supercell))
        assert answer["n_found"] == search.n_expected
        times["shry"].append(answer["search_s"])
        times["shry, start"].append(answer["start_s"])
        for _ in range(OURS_PER_PEER):
            times["ours"].append(seconds_of(search.run))
            times["ours, start"].append(seconds_of(_start))
    what = "2*v_S+2*Se_S in 8x8 MoS2"
    _compare(print_line, f"{what}: search alone", search.n_expected, ours=times["ours"], shry=times["shry"])
    _compare(print_line, f"{what}: start", 1, ours=times["ours, start"], shry=times["shry, start"])


@dataclass(frozen=True, eq=False)
class _Search:
    """A composition in 8x8 MoS2, with its exact count and the chunk that holds all of it."""

    supercell: Supercell
    symmetry: Symmetry
    space: SearchSpace
    n_expected: int

    @classmethod
    def of(cls, composition: str) -> _Search:
        """From nothing: host, symmetry, count."""
        supercell = Supercell.parse(catalogue_host("MoS2"), "8x8")
        symmetry = find_symmetry(supercell)
        counts = parse_composition(composition)
        types = tuple(sorted(counts, key=lambda defect_type: defect_type.code))
        space = SearchSpace(supercell, types, sum(counts.values()), composition=counts)
        (n_expected,) = space.counts(symmetry).values()
        search = cls(supercell, symmetry, space, n_expected)
        search.run()  # the walk is compiled, or loaded
        return search

    def run(self) -> list[Block]:
        """Find all configurations."""
        chunk = Chunk(self.space.max_defects, Configuration((), ()), Configuration((), ()))
        blocks = list(enumerate_chunk(self.space, self.symmetry, chunk))
        assert sum(map(len, blocks)) == self.n_expected
        return blocks


def _compare(print_line: PrintLine, what: str, n_items: int, *, ours: list[float], **peer: list[float]) -> None:
    """A line for each side, and their ratio."""
    ((name, theirs),) = peer.items()
    print_line(figure_line(what, "ours", n_items, ours))
    print_line(figure_line(what, name, n_items, theirs))
    ratio = statistics.median(theirs) / statistics.median(ours)
    print_line({"figure": what, "how": f"ours / {name}", "ratio": round(ratio, 1)})


def _start() -> None:
    """What ours needs before the first search of a supercell."""
    symmetry = find_symmetry(Supercell.parse(catalogue_host("MoS2"), "8x8"))
    assert len(symmetry.to_representative) == len(symmetry.representatives) == 192


def _structures(composition: str) -> list[tuple[tuple[str, ...], NDArray[np.float64]]]:
    """Species and positions of every configuration of a composition, from nothing."""
    search = _Search.of(composition)
    return [
        search.supercell.structure(block.configuration(row)) for block in search.run() for row in range(len(block))
    ]  # fmt: skip


def _cell(supercell: Supercell) -> dict[str, Any]:
    """A supercell as peers read it."""
    return {
        "lattice": supercell.lattice.tolist(),
        "species": list(supercell.species),
        "fractional_positions": (supercell.positions @ np.linalg.inv(supercell.lattice)).tolist(),
    }
