"""The compiled form of the network against its definition in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from screening.defects.catalogue import catalogue_host
from screening.defects.host import Supercell
from screening.learning.compiled import block_outputs, fold_network
from screening.learning.gnn import Architecture, SparseDefectNetwork
from screening.learning.graph import block_graphs, pair_table

CODES = (16 * 128, 16 * 128 + 34, 42 * 128, 42 * 128 + 74)  # v_S, Se_S, v_Mo, W_Mo


@pytest.fixture(scope="module")
def supercell() -> Supercell:
    return Supercell.parse(catalogue_host("MoS2"), "8x8")


def random_block(supercell: Supercell, n_rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sites (n_rows, k), and for each the number of a code that its species can have."""
    rng = np.random.default_rng(k)
    sites = np.array([np.sort(rng.choice(supercell.n_sites, k, replace=False)) for _ in range(n_rows)], np.int16)
    is_metal = np.array([species == "Mo" for species in supercell.species])
    return sites, 2 * is_metal[sites] + rng.integers(0, 2, sites.shape)


@pytest.mark.parametrize("n_blocks", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_compiled_outputs_are_those_of_the_network_to_float32_rounding(
    supercell: Supercell, n_blocks: int, k: int
) -> None:
    """150 rows are some passes and a part of one."""
    torch.manual_seed(k)
    network = SparseDefectNetwork(Architecture(n_members=3, n_outputs=4, width=24, n_blocks=n_blocks))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 2.0  # first weights are small: without this, outputs would hardly depend on the graph
    sites, kinds = random_block(supercell, 150, k)
    outputs = block_outputs(fold_network(network, supercell, CODES, k), supercell, sites, kinds)
    with torch.no_grad():
        graphs = block_graphs(pair_table(supercell), sites, np.array(CODES, np.int16)[kinds])
        expected = network(graphs).numpy()
    assert outputs.shape == (3, 150, 4)
    assert expected.std(axis=1).min() > 0.05
    np.testing.assert_allclose(outputs, expected, atol=3e-6 * np.abs(expected).max())


def test_large_sums_do_not_overflow_the_activation(supercell: Supercell) -> None:
    """SiLU of large numbers is the number itself, or 0."""
    torch.manual_seed(0)
    network = SparseDefectNetwork(Architecture(n_members=1, n_outputs=2, width=16))
    with torch.no_grad():
        network.message.weight *= 3e3
        network.read_in.weight *= 1e2
    sites, kinds = random_block(supercell, 40, 4)
    outputs = block_outputs(fold_network(network, supercell, CODES, 4), supercell, sites, kinds)
    with torch.no_grad():
        graphs = block_graphs(pair_table(supercell), sites, np.array(CODES, np.int16)[kinds])
        expected = network(graphs).numpy()
    assert np.abs(expected).max() > 100
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_rows_that_do_not_lie_together_in_memory_are_understood(supercell: Supercell) -> None:
    torch.manual_seed(0)
    network = SparseDefectNetwork(Architecture(n_members=2, n_outputs=3, width=16))
    folded = fold_network(network, supercell, CODES, 3)
    sites, kinds = random_block(supercell, 100, 3)
    apart = block_outputs(folded, supercell, np.asfortranarray(sites)[::2], np.asfortranarray(kinds)[::2])
    np.testing.assert_array_equal(apart, block_outputs(folded, supercell, sites[::2].copy(), kinds[::2].copy()))
