"""Graphs, one step of training, and scoring of three-defect configurations of 8x8 MoS2."""

from __future__ import annotations

import numpy as np
import torch

from screening.defects.catalogue import catalogue_host
from screening.defects.host import Supercell
from screening.learning.ensemble import Calibration, Ensemble
from screening.learning.gnn import Architecture, SparseDefectNetwork
from screening.learning.graph import block_graphs, pair_table
from screening.learning.references import References
from screening.learning.scorer import score_block
from tests.benchmarks.conftest import Measure

CODES = (5376, 2048, 2082)  # v_Mo, v_S, Se_S
OUTPUTS = ("formation_energy_per_site", "homo_lumo_gap_min", "homo", "lumo")


def bench_scoring(measure: Measure) -> None:
    """Four members, all properties, one thread; untrained weights cost the same."""
    torch.set_num_threads(1)
    supercell = Supercell.parse(catalogue_host("MoS2"), "8x8")
    rng = np.random.default_rng(0)
    n_rows = 4096
    sites = np.stack(
        [rng.integers(0, 64, n_rows), rng.integers(64, 128, n_rows), rng.integers(128, 192, n_rows)], axis=1
    ).astype(np.int16)
    codes = np.tile(np.array(CODES, np.int16), (n_rows, 1))
    network = SparseDefectNetwork(Architecture(n_members=4, n_hosts=1, n_outputs=len(OUTPUTS))).eval()
    references = References(("MoS2",), tuple(sorted(CODES)), OUTPUTS, np.ones((1, 3)), np.zeros((1, 4)), np.ones(4))
    ensemble = Ensemble(network, references, Calibration(np.zeros(4), np.ones(4)), OUTPUTS)
    table = pair_table(supercell)
    measure("pair table of 8x8 MoS2", 1, ours=lambda: pair_table.__wrapped__(supercell))
    measure("graphs of 3 defects", n_rows, ours=lambda: block_graphs(table, sites, codes, 0))
    measure(
        "scoring of 3 defects, 4 members, 1 thread",
        n_rows,
        repeats=3,
        ours=lambda: score_block(ensemble, supercell, sites, codes, device="cpu"),
    )
    graphs = block_graphs(table, sites[:128], codes[:128], 0)

    def step() -> None:
        network.zero_grad()
        network(graphs).square().mean().backward()

    measure("gradient of a batch of 128 graphs of 3 defects, 4 members, 1 thread", 128, ours=step)
