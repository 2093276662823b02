"""Public tools beside ours, in one run on one thread each: enumeration, structures to graphs, and networks.

Both sides must find the number that Burnside's lemma counts. A peer's start (imports, symmetry) never counts into the
rate of its search.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType, parse_composition
from screening.defects.enumeration import Block, Chunk, SearchSpace, enumerate_chunk
from screening.defects.host import Supercell
from screening.defects.symmetry import Symmetry, find_symmetry
from screening.learning.calibration import uniform_calibration
from screening.learning.ensemble import Domain, Ensemble
from screening.learning.gnn import Architecture, SparseDefectNetwork
from screening.learning.references import References
from screening.learning.scorer import score_block
from screening.learning.settings import TrainingSettings
from tests.benchmarks.bench_learning import many_seen_compositions
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


def bench_scoring_beside_megnetsparse(print_line: PrintLine) -> None:
    """Three defects in 8x8 MoS2: MEGNetSparse's way to one output of one network, ours to all of an ensemble."""
    torch.set_num_threads(1)
    search = _Search.of("v_Mo:1,v_S:1,Se_S:1")
    (block,) = search.run()
    question = {
        "structures": [_defect_cell(search.supercell, block.configuration(row)) for row in range(0, len(block), 30)],
        "unit_cell": _cell(Supercell.parse(search.supercell.host, "1x1")),
        "repeats": [8, 8, 1],
    }
    ensemble = _untrained(search.space.defect_types)
    sites, codes = np.tile(block.sites, (10, 1)), np.tile(block.defect_types, (10, 1))
    score_block(ensemble, search.supercell, sites, codes, device="cpu")  # compiled, or loaded
    times: dict[str, list[float]] = defaultdict(list)  # of 1000
    for _ in range(REPEATS):
        answer = run_peer("megnetsparse", question)
        assert answer["n_nodes"] == [3]
        assert answer["n_edges"] >= 6
        for stage, n in (("sparse", "n_structures"), ("graph", "n_structures"), ("network", "n_graphs")):
            times[stage].append(1000 * answer[f"{stage}_s"] / answer[n])
        for _ in range(OURS_PER_PEER):
            seconds = seconds_of(lambda: score_block(ensemble, search.supercell, sites, codes, device="cpu"))
            times["ours"].append(1000 * seconds / len(sites))
    what = "3 defects in 8x8 MoS2"
    print_line(figure_line(f"{what}: structure to sparse structure", "megnetsparse", 1000, times["sparse"]))
    print_line(figure_line(f"{what}: sparse structure to graph", "megnetsparse", 1000, times["graph"]))
    network = f"{what}: one network of {answer['n_parameters']} parameters on ready graphs; ours from sites, 5 members"
    _compare(print_line, network, 1000, ours=times["ours"], megnetsparse=times["network"])
    way = [sum(stages) for stages in zip(times["sparse"], times["graph"], times["network"], strict=True)]
    _compare(
        print_line, f"{what}: structure to output of one network; ours from sites, 5 members", 1000,
        ours=times["ours"], megnetsparse=way,
    )  # fmt: skip


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


def _untrained(defect_types: Sequence[DefectType]) -> Ensemble:
    """Five members of the default size; the weights do not matter to the time."""
    settings = TrainingSettings()
    torch.manual_seed(0)
    outputs = ("formation_energy_per_site", "homo_lumo_gap_min", "homo", "lumo")
    n = len(outputs)
    architecture = Architecture(5, n, width=settings.width, n_blocks=settings.n_blocks)
    codes = tuple(sorted(t.code for t in defect_types))
    references = References(("MoS2",), codes, outputs, np.ones((1, len(codes))), np.zeros((1, n)), np.ones(n))
    network = SparseDefectNetwork(architecture).eval()
    calibration = uniform_calibration(np.full(n, 0.01), np.ones(n), n_hosts=1)
    return Ensemble((Domain("MoS2"),), (network,), references, calibration, many_seen_compositions(codes), outputs)


def _cell(supercell: Supercell) -> dict[str, Any]:
    """A supercell as peers read it."""
    return _defect_cell(supercell, Configuration((), ()))


def _defect_cell(supercell: Supercell, configuration: Configuration) -> dict[str, Any]:
    """A supercell with defects as peers read it."""
    species, positions = supercell.structure(configuration)
    return {
        "lattice": supercell.lattice.tolist(),
        "species": list(species),
        "fractional_positions": (positions @ np.linalg.inv(supercell.lattice)).tolist(),
    }
