"""The network: what must hold whatever its weights are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import silu

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.defects.symmetry import find_symmetry
from screening.learning.gnn import Architecture, SparseDefectNetwork
from screening.learning.graph import Graphs, block_graphs, pair_table, ragged_graphs, select_graphs

V_S, SE_S, V_MO = 16 * 128, 16 * 128 + 34, 42 * 128


@pytest.fixture(scope="module")
def supercell() -> Supercell:
    return Supercell.parse(catalogue_host("MoS2"), "4x4")


@pytest.fixture(scope="module")
def network() -> SparseDefectNetwork:
    torch.manual_seed(3)
    return SparseDefectNetwork(Architecture(n_members=3, n_outputs=4, width=16)).eval()


def graphs_of(supercell: Supercell, configurations: list[Configuration]) -> Graphs:
    return ragged_graphs([pair_table(supercell)], np.zeros(len(configurations), np.int64), configurations)


@torch.no_grad()
def test_symmetry_equivalent_configurations_have_equal_outputs(
    supercell: Supercell, network: SparseDefectNetwork
) -> None:
    sites, codes = (2, 17, 25, 40), (V_MO, V_S, SE_S, V_S)
    images = []
    for permutation in find_symmetry(supercell).permutations[::5]:
        image = sorted((int(permutation[s]), c) for s, c in zip(sites, codes, strict=True))
        images.append(Configuration(tuple(s for s, _ in image), tuple(c for _, c in image)))
    outputs = network(graphs_of(supercell, images))  # (3, n_images, 4)
    assert (outputs - outputs[:, :1]).abs().max() < 2e-4
    other = network(graphs_of(supercell, [Configuration((2, 17, 25, 41), codes)]))
    assert (other - outputs[:, :1]).abs().max() > 1e-3


@torch.no_grad()
def test_output_does_not_depend_on_the_batch(supercell: Supercell, network: SparseDefectNetwork) -> None:
    """A single defect has no edges; the published code reads it out by its place in the batch."""
    configurations = [
        Configuration((2, 17, 25), (V_MO, V_S, SE_S)),
        Configuration((16,), (V_S,)),
        Configuration((3,), (V_MO,)),
        Configuration((17, 18), (V_S, V_S)),
    ]
    graphs = graphs_of(supercell, configurations)
    together = network(graphs)
    for number in range(4):
        alone = network(select_graphs(graphs, torch.tensor([number])))
        torch.testing.assert_close(alone[:, 0], together[:, number], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_member_is_the_network_with_its_weights_alone(supercell: Supercell, network: SparseDefectNetwork) -> None:
    sites = np.array([[2, 17], [16, 30]], np.int16)
    graphs = block_graphs(pair_table(supercell), sites, np.array([[V_MO, V_S], [V_S, SE_S]], np.int16))
    together = network(graphs)
    for member in range(3):
        alone = SparseDefectNetwork(Architecture(n_members=1, n_outputs=4, width=16)).eval()
        alone.load_state_dict({name: w[member : member + 1] for name, w in network.state_dict().items()})
        torch.testing.assert_close(alone(graphs)[0], together[member], atol=1e-5, rtol=1e-4)


def test_gradients_of_members_are_independent(supercell: Supercell, network: SparseDefectNetwork) -> None:
    sites = np.array([[2, 17]], np.int16)
    graphs = block_graphs(pair_table(supercell), sites, np.array([[V_MO, V_S]], np.int16))
    network.zero_grad()
    network(graphs)[1].sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[0].any()
        assert not parameter.grad[2].any()
    network.zero_grad()


@torch.no_grad()
def test_tables_made_once_give_what_tables_of_the_batch_give(
    supercell: Supercell, network: SparseDefectNetwork
) -> None:
    sites = np.array([[2, 17, 25], [3, 16, 30]], np.int16)
    graphs = block_graphs(pair_table(supercell), sites, np.array([[V_MO, V_S, SE_S]] * 2, np.int16))
    tables = network.tables(graphs.kinds, graphs.pair_kinds, graphs.pair_features)
    torch.testing.assert_close(network(graphs, tables), network(graphs), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_the_output_is_the_equation_of_the_module(supercell: Supercell) -> None:
    """One member, one configuration, defect by defect from the tables of messages and filters."""
    torch.manual_seed(1)
    network = SparseDefectNetwork(Architecture(n_members=1, n_outputs=3, width=8)).eval()
    sites, codes = np.array([[2, 17, 25]], np.int16), np.array([[V_MO, V_S, SE_S]], np.int16)
    graphs = block_graphs(pair_table(supercell), sites, codes)
    tables = network.tables(graphs.kinds, graphs.pair_kinds, graphs.pair_features)
    row = {(int(t), int(s)): int(e) for t, s, e in zip(graphs.target, graphs.source, graphs.edge, strict=True)}
    block = network.blocks[0]
    A, B = block.own_and_other.weight[0].chunk(2, dim=1)
    a, b = block.own_and_other.bias[0, 0].chunk(2)
    x, s1, h1, s2 = [], [], [], []
    for i in range(3):
        x.append(tables.start[0, graphs.node[i]])
        got = sum(tables.messages[0, row[i, j]] for j in range(3) if j != i) / 3**0.5
        s1.append(silu(tables.own[0, graphs.node[i]] + got))
        h1.append(x[i] + s1[i] @ block.update.weight[0] + block.update.bias[0, 0])
    for i in range(3):
        got = sum(tables.filters[0][0, row[i, j]] * (h1[j] @ B + b) for j in range(3) if j != i) / 3**0.5
        s2.append(silu(h1[i] @ A + a + got))
    mean = torch.cat([sum(s1), sum(s2)]) / 3
    largest = torch.stack(s2).max(dim=0).values
    features = torch.cat([mean, 3 * mean / 8, largest])
    hidden = silu(features @ network.read_in.weight[0] + network.read_in.bias[0, 0])
    expected = (
        torch.cat(
            [
                mean @ network.node_energy.weight[0] + network.node_energy.bias[0, 0],
                hidden @ network.read_out.weight[0] + network.read_out.bias[0, 0],
            ]
        )
        + sum(tables.pair_outputs[0, e] for e in row.values()) / 3
    )
    torch.testing.assert_close(network(graphs)[0, 0], expected, atol=1e-5, rtol=1e-4)
