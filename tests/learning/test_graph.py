"""Graphs from the pair table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration
from screening.defects.host import Host, Supercell
from screening.defects.symmetry import find_symmetry
from screening.learning.graph import (
    Graphs,
    all_kinds,
    block_graphs,
    join_graphs,
    pair_table,
    ragged_graphs,
    select_graphs,
)

V_S = 16 * 128


def features_of_pairs(supercell: Supercell) -> np.ndarray:
    """(n_sites, n_sites, n_features)."""
    table = pair_table(supercell)
    return np.asarray(table.features[table.number].numpy())


def features_of_edges(graphs: Graphs) -> torch.Tensor:
    """(n_edges, n_features)."""
    return graphs.pair_features[graphs.pair_kinds[graphs.edge, 2]]


@pytest.fixture(scope="module")
def supercell() -> Supercell:
    return Supercell.parse(catalogue_host("MoS2"), "4x4")


def test_pair_features_are_equal_for_symmetry_equivalent_pairs(supercell: Supercell) -> None:
    table = features_of_pairs(supercell)
    for permutation in find_symmetry(supercell).permutations[::7].astype(int):
        np.testing.assert_allclose(table, table[np.ix_(permutation, permutation)], atol=2e-4)


@pytest.mark.parametrize(("name", "repeats"), [("MoS2", "8x8"), ("h-BN", "8x8"), ("GaSe", "6x6"), ("BP", "6x6")])
def test_pairs_have_equal_features_exactly_when_they_are_equivalent(name: str, repeats: str) -> None:
    """The classes come from the permutation group, the features from vectors."""
    supercell = Supercell.parse(catalogue_host(name), repeats)
    symmetry = find_symmetry(supercell)
    table = features_of_pairs(supercell).round(2) + 0.0
    class_of: dict[object, set[int]] = {}
    features_of: dict[int, set[object]] = {}
    for i in np.unique(symmetry.representatives).tolist():
        for j in range(supercell.n_sites):
            if i != j:
                species = tuple(sorted((supercell.species[i], supercell.species[j])))
                features = (species, tuple(sorted((tuple(table[i, j]), tuple(table[j, i])))))
                class_of.setdefault(features, set()).add(int(symmetry.pair_classes[i, j]))
                features_of.setdefault(int(symmetry.pair_classes[i, j]), set()).add(features)
    assert all(len(classes) == 1 for classes in class_of.values())
    assert all(len(features) == 1 for features in features_of.values())


def test_equivalent_pairs_of_a_cubic_host_have_equal_features_however_it_is_turned() -> None:
    """Rock salt: six nearest neighbours along three axes."""
    cell = 4.21 * np.eye(3)
    corners = np.array([[0.0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    positions = np.concatenate([corners, corners + np.array([0.5, 0, 0])])
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    tables = []
    for lattice in (cell, cell @ turn.T):
        host = Host.from_cell("MgO", lattice, ("Mg",) * 4 + ("O",) * 4, positions, source="test")
        supercell = Supercell.parse(host, "2x2x2")
        table = features_of_pairs(supercell)
        nearest = np.flatnonzero(np.abs(supercell.pair_distances[0] - 2.105) < 1e-3)
        assert len(nearest) == 6
        np.testing.assert_allclose(table[0, nearest], table[0, nearest[:1]].repeat(6, axis=0), atol=1e-3)
        tables.append(table)
    distances = slice(0, 24)
    np.testing.assert_allclose(tables[0][..., distances], tables[1][..., distances], atol=1e-4)


def test_pair_features_do_not_cross_the_vacuum() -> None:
    host = catalogue_host("MoS2")
    low = Host(host.name, host.lattice * [[1], [1], [0.75]], host.species, host.positions, True, host.source)
    positions = (host.positions - 0.5) / [1, 1, 0.75] + 0.5
    positions[:, :2] = host.positions[:, :2]
    low = Host(host.name, low.lattice, host.species, positions, True, host.source)
    high = features_of_pairs(Supercell.parse(host, "3x3"))
    np.testing.assert_allclose(high, features_of_pairs(Supercell.parse(low, "3x3")), atol=1e-5)


def test_ragged_graphs_keep_the_order_of_the_rows(supercell: Supercell) -> None:
    table = pair_table(supercell)
    configurations = [
        Configuration((20, 21, 30), (V_S, V_S, V_S)),
        Configuration((16,), (V_S,)),
        Configuration((17, 40), (V_S, V_S + 34)),
        Configuration((18,), (V_S + 34,)),
    ]
    joined = ragged_graphs([table], np.zeros(4, np.int64), configurations)
    assert joined.n_defects.tolist() == [3, 1, 2, 1]
    for number, configuration in enumerate(configurations):
        one = select_graphs(joined, torch.tensor([number]))
        alone = block_graphs(
            table, np.array([configuration.sites], np.int16), np.array([configuration.defect_types], np.int16)
        )
        assert torch.equal(one.kinds[one.node], alone.kinds[alone.node])
        assert torch.equal(features_of_edges(one), features_of_edges(alone))
        for end in (0, 1):
            of_edges = [g.kinds[g.pair_kinds[g.edge, end]] for g in (one, alone)]
            assert torch.equal(*of_edges)
        assert torch.equal(one.source, alone.source)
        assert torch.equal(one.target, alone.target)


def test_selecting_graphs_twice_and_in_any_order_renumbers_their_nodes(supercell: Supercell) -> None:
    table = pair_table(supercell)
    sites = np.array([[16, 17], [18, 40], [20, 33]], np.int16)
    graphs = join_graphs([block_graphs(table, sites, np.full_like(sites, V_S))] * 2)
    chosen = select_graphs(graphs, torch.tensor([5, 0, 5]))
    assert chosen.node_graph.tolist() == [0, 0, 1, 1, 2, 2]
    assert chosen.target.tolist() == [0, 1, 2, 3, 4, 5]  # each graph's own nodes, though one occurs twice
    assert chosen.source.tolist() == [1, 0, 3, 2, 5, 4]
    edges = features_of_edges(chosen)
    assert torch.equal(edges[0], table.features[table.number[20, 33]])
    assert torch.equal(edges[2], table.features[table.number[16, 17]])


def test_the_ends_of_an_edge_are_its_target_and_its_source(supercell: Supercell) -> None:
    """Kinds of an edge are looked up by number in a block; here they are read from the nodes that it joins."""
    sites = np.array([[2, 17, 40], [3, 18, 41]], np.int16)
    codes = np.array([[42 * 128, V_S, V_S + 34], [42 * 128 + 74, V_S + 34, V_S]], np.int16)
    graphs = block_graphs(pair_table(supercell), sites, codes)
    assert graphs.kinds[graphs.node].tolist() == [[c // 128, c % 128] for c in codes.ravel().tolist()]
    assert torch.equal(graphs.pair_kinds[graphs.edge, 0], graphs.node[graphs.target])
    assert torch.equal(graphs.pair_kinds[graphs.edge, 1], graphs.node[graphs.source])


def test_ragged_graphs_have_each_kind_of_pair_once(supercell: Supercell) -> None:
    """Two supercells with the same pairs, and blocks of two and three defects that share some."""
    configurations = [
        Configuration((16, 17), (V_S, V_S)),
        Configuration((16, 17, 30), (V_S, V_S, V_S + 34)),
        Configuration((16, 17), (V_S, V_S)),
    ]
    graphs = ragged_graphs([pair_table(supercell)] * 2, np.array([0, 0, 1]), configurations)
    assert len(torch.unique(graphs.pair_kinds, dim=0)) == len(graphs.pair_kinds)
    assert torch.equal(torch.unique(graphs.edge), torch.arange(len(graphs.pair_kinds)))
    assert len(graphs.kinds) == 2
    assert graphs.edge[0] == graphs.edge[2]  # the same pair of the first and the second row
    assert torch.equal(graphs.edge[-2:], graphs.edge[:2])


def test_only_pairs_of_kinds_that_have_sites_are_tabulated(supercell: Supercell) -> None:
    """v_Mo on a site of Mo and v_S on one of S: a row for each class of pairs of such sites, none for others."""
    table = pair_table(supercell)
    kinds = all_kinds(table, [V_S, 42 * 128])
    species = np.array(supercell.species)
    for t, target in enumerate(("S", "Mo")):
        for s, source in enumerate(("S", "Mo")):
            pairs = table.number.numpy()[np.ix_(species == target, species == source)]
            rows = kinds.row[t, s]
            assert torch.nonzero(rows >= 0)[:, 0].tolist() == np.unique(pairs).tolist()
            for pair in np.unique(pairs).tolist():
                assert kinds.pair_kinds[rows[pair]].tolist() == [t, s, pair]
    assert len(kinds.pair_kinds) == int((kinds.row >= 0).sum())
