"""Scoring of four and five defects in 8x8 MoS2, against the floor of the machine; a step of training."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from screening.defects.catalogue import catalogue_host
from screening.defects.host import Supercell
from screening.learning.calibration import uniform_calibration
from screening.learning.compiled import Weights, fold_network
from screening.learning.ensemble import Domain, Ensemble
from screening.learning.gnn import Architecture, SparseDefectNetwork
from screening.learning.graph import block_graphs, pair_table
from screening.learning.novelty import Novelty
from screening.learning.references import References
from screening.learning.scorer import score_block, torch_outputs
from screening.learning.settings import TrainingSettings
from tests.benchmarks.conftest import Measure

CODES = (16 * 128, 16 * 128 + 34, 42 * 128, 42 * 128 + 74)  # v_S, Se_S, v_Mo, W_Mo
OUTPUTS = (
    "formation_energy_per_site",
    "homo_lumo_gap_min",
    "homo_lumo_gap_majority",
    "homo_lumo_gap_minority",
    "homo",
    "lumo",
)
PROPERTIES = ("formation_energy", *OUTPUTS)
N_ROWS = 16_384


@pytest.fixture(scope="module")
def supercell() -> Supercell:
    return Supercell.parse(catalogue_host("MoS2"), "8x8")


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    """Five members of the default size; untrained weights cost the same."""
    settings = TrainingSettings()
    torch.manual_seed(0)
    network = SparseDefectNetwork(
        Architecture(settings.n_members, len(OUTPUTS), width=settings.width, n_blocks=settings.n_blocks)
    ).eval()
    n = len(OUTPUTS)
    references = References(("MoS2",), CODES, OUTPUTS, np.ones((1, 4)), np.zeros((1, n)), np.ones(n))
    calibration = uniform_calibration(np.full(n, 0.01), np.ones(n), n_hosts=1)
    return Ensemble((Domain("MoS2"),), (network,), references, calibration, many_seen_compositions(CODES), PROPERTIES)


def many_seen_compositions(codes: tuple[int, ...]) -> Novelty:
    """As many as a host of 2DMD has: 500 of one to 24 defects."""
    rng = np.random.default_rng(0)
    n = len(codes)
    counts = [rng.multinomial(1 + row % 24, np.full(n, 1.0 / n)) for row in range(500)]
    return Novelty(("MoS2",), codes, np.insert(np.array(counts), 0, 0, axis=1), np.full((1, n, n), 2.0))


def random_block(supercell: Supercell, k: int) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Sites and codes (N_ROWS, k)."""
    rng = np.random.default_rng(k)
    sites = np.sort(rng.permuted(np.tile(np.arange(supercell.n_sites), (N_ROWS, 1)), axis=1)[:, :k], axis=1)
    is_metal = np.array([species == "Mo" for species in supercell.species])
    kinds = 2 * is_metal[sites] + rng.integers(0, 2, sites.shape)
    return sites.astype(np.int16), np.array(CODES, np.int16)[kinds]


@pytest.mark.parametrize("k", [4, 5])
def bench_scoring(measure: Measure, ensemble: Ensemble, supercell: Supercell, k: int) -> None:
    """Graphs, networks, references, mean and standard deviation of all properties; one thread."""
    torch.set_num_threads(1)
    sites, codes = random_block(supercell, k)
    kinds = np.searchsorted(CODES, codes)

    def in_torch(dtype: torch.dtype) -> None:
        torch_outputs(ensemble, supercell, sites[:2048], kinds[:2048], where=torch.device("cpu"), dtype=dtype)

    measure(
        f"scoring of {k} defects, {ensemble.n_members} members, 1 thread",
        N_ROWS,
        compiled=lambda: score_block(ensemble, supercell, sites, codes, device="cpu"),
    )
    measure(
        f"networks alone in torch, {k} defects, {ensemble.n_members} members, 1 thread",
        2048,
        repeats=3,
        float32=lambda: in_torch(torch.float32),
        float16=lambda: in_torch(torch.float16),
        bfloat16=lambda: in_torch(torch.bfloat16),
    )


@pytest.mark.parametrize("k", [4, 5])
def bench_floor_of_the_machine(
    capsys: pytest.CaptureFixture[str], ensemble: Ensemble, supercell: Supercell, k: int
) -> None:
    """How far scoring is from the matrix products it cannot do without, at the speed of one of fitting size."""
    torch.set_num_threads(1)
    sites, codes = random_block(supercell, k)
    members = fold_network(ensemble.networks[0], supercell, CODES, k).members
    products, additions, table_bytes = work_of(members[0], k)
    width = ensemble.networks[0].architecture.width
    multiply_adds_per_s = fastest_product(128 // k * k, width)
    seconds = best_of(5, lambda: score_block(ensemble, supercell, sites, codes, device="cpu"))
    rate, floor = N_ROWS / seconds, multiply_adds_per_s / (products * len(members))
    line = {
        "figure": f"floor of scoring {k} defects, {len(members)} members, 1 thread",
        "multiply_adds_in_products": products * len(members),
        "multiply_adds_elsewhere": additions * len(members),
        "bytes_of_tables_read": table_bytes * len(members),
        "bytes_in_and_out": 4 * k + 16 * len(PROPERTIES),
        "gflops_of_a_fitting_product": round(2e-9 * multiply_adds_per_s, 1),
        "per_second": round(rate, 1),
        "per_second_at_the_floor": round(floor, 1),
        "share_of_the_floor": round(rate / floor, 3),
    }
    with capsys.disabled():
        print(json.dumps(line), flush=True)


def bench_graphs_and_training(measure: Measure, ensemble: Ensemble, supercell: Supercell) -> None:
    """What is done once per model and supercell, and a batch of the default size."""
    torch.set_num_threads(1)
    sites, codes = random_block(supercell, 3)
    rows = TrainingSettings().batch_rows
    measure("pair table of 8x8 MoS2", 1, ours=lambda: pair_table.__wrapped__(supercell))
    measure("graphs of 3 defects in torch", N_ROWS, ours=lambda: block_graphs(pair_table(supercell), sites, codes))
    measure(
        "tables and folded weights of 5 defects in 8x8 MoS2",
        1,
        ours=lambda: fold_network.__wrapped__(ensemble.networks[0], supercell, CODES, 5),
    )
    graphs = block_graphs(pair_table(supercell), sites[:rows], codes[:rows])

    def step() -> None:
        ensemble.networks[0].zero_grad()
        ensemble.networks[0](graphs).square().mean().backward()

    measure(f"gradient of {rows} graphs of 3 defects, {ensemble.n_members} members, 1 thread", rows, ours=step)


def work_of(weights: Weights, k: int) -> tuple[int, int, int]:
    """Multiply-adds of a candidate in matrix products and elsewhere, and bytes read from tables, of one member."""
    n_features, twice = weights.read_in.shape
    width, n_layers, n_outputs = twice // 2, len(weights.filters), len(weights.bias)
    products = k * n_layers * (n_layers + 1) * width**2 + n_features * (twice + n_outputs) + twice * n_outputs
    n_edges = k * (k - 1)
    additions = n_edges * (width * (1 + n_layers) + n_outputs)
    return products, additions, 4 * (additions + 2 * k * width)


def fastest_product(n_rows: int, width: int) -> float:
    """Multiply-adds per second of (n_rows, width) times (width, 2 width), as the network has them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n_rows, width)).astype(np.float32)
    weights = rng.normal(size=(width, 2 * width)).astype(np.float32)
    out = np.empty((n_rows, 2 * width), np.float32)

    def many() -> None:
        for _ in range(200):
            np.dot(x, weights, out=out)

    return 200 * n_rows * width * 2 * width / best_of(7, many)


def best_of(n_repeats: int, work: object) -> float:
    """Shortest time of some runs, in seconds."""
    assert callable(work)
    times = []
    for _ in range(n_repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
