"""Graphs of defects, straight from a supercell's tables.

Only the defects are nodes (Kazeev et al., npj Comput. Mater. 9, 113 (2023)); every ordered pair of them is an
edge, whatever its length. What an edge says depends on the two sites alone, so it is computed once per
supercell for all ordered pairs of sites and looked up afterwards: no Python object per structure.

==================  ====================  ==================================================================
tensor              shape, dtype          meaning
==================  ====================  ==================================================================
kinds               (K, 2) int64          kinds of defects: atomic numbers before and after (0 for a vacancy)
pair_kinds          (R, 3) int64          kinds of ordered pairs: kind of the target, kind of the source, row of
                                          pair_features
pair_features       (P, F) float32        features of the distinct ordered pairs of sites, see `pair_table`
node                (n_nodes,) int64      row of kinds of each node
edge                (n_edges,) int64      row of pair_kinds of each edge
target, source      (n_edges,) int64      nodes of an edge: the one that receives and the one that sends
node_graph          (n_nodes,) int64      graph that a node belongs to
edge_graph          (n_edges,) int64      graph that an edge belongs to
n_defects           (n_graphs,) float32   number of nodes of each graph
==================  ====================  ==================================================================

Pair features: Gaussians of the distance whose width is their spacing (no holes), Gaussians of the height along the
layer's normal, and the direction of the pair as polynomials, averaged over the host's point group: pairs of one
length differ when no operation maps one onto the other, so that in all hosts of 2DMD features are equal exactly for
equivalent pairs. Where several periodic images are equally near, features are their mean, so they do not depend on
which one is met first. What pairs cannot tell: three defects of one type around a metal site and around a hollow are
mirror images made of equal pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from screening.defects.defect_types import Configuration, atomic_number
from screening.defects.host import Host, Supercell
from screening.defects.symmetry import unit_cell_operations

N_RADIAL = 24
LONGEST = 17.0  # angstrom; pairs further apart (in supercells beyond 10x10) look alike
N_HEIGHT = 8
HIGHEST = 7.0  # angstrom
ORDERS = (2, 3, 4, 6)
N_FEATURES = N_RADIAL + N_HEIGHT + 2 * len(ORDERS) + 1
_TIE = 1e-2  # angstrom
_SAME_FEATURE = 2e-3  # far above the noise of lattice constants given to four digits, far below any real difference


@dataclass(frozen=True, eq=False)
class Graphs:
    """A batch of graphs; shapes in the table above."""

    kinds: Tensor
    pair_kinds: Tensor
    pair_features: Tensor
    node: Tensor
    edge: Tensor
    target: Tensor
    source: Tensor
    node_graph: Tensor
    edge_graph: Tensor
    n_defects: Tensor

    @property
    def n_graphs(self) -> int:
        """Number of graphs."""
        return len(self.n_defects)

    def to(self, device: torch.device) -> Graphs:
        """The same graphs on a device."""
        return Graphs(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True, eq=False)
class PairTable:
    """The ordered pairs of sites of a supercell; pairs with equal features (equivalent ones) share a row.

    Attributes:
        number: (n_sites, n_sites) int64, row of each pair; 60 rows are enough for 8x8 MoS2.
        features: (n_rows, N_FEATURES) float32.
        species: (n_sites,) int64 atomic numbers.
    """

    number: Tensor
    features: Tensor
    species: Tensor

    def to(self, device: torch.device) -> PairTable:
        """The same table on a device."""
        return PairTable(self.number.to(device), self.features.to(device), self.species.to(device))


@dataclass(frozen=True, eq=False)
class Kinds:
    """All kinds of defects and of pairs that some defect types can make in one supercell.

    Attributes:
        kinds: (K, 2), as in `Graphs`.
        pair_kinds: (R, 3), as in `Graphs`; only those that have sites for both defects.
        row: (K, K, P) int64, row of pair_kinds by kind of target, kind of source and row of the pair table; -1 where
            there are no such sites.
    """

    kinds: Tensor
    pair_kinds: Tensor
    row: Tensor

    def to(self, device: torch.device) -> Kinds:
        """The same kinds on a device."""
        return Kinds(self.kinds.to(device), self.pair_kinds.to(device), self.row.to(device))


@lru_cache(maxsize=16)  # half a second for 192 sites
def pair_table(supercell: Supercell) -> PairTable:
    """The pair table of a supercell."""
    features = _pair_features(supercell).reshape(-1, N_FEATURES)
    _, first, number = np.unique((features / _SAME_FEATURE).round(), axis=0, return_index=True, return_inverse=True)
    n_sites = supercell.n_sites
    species = torch.tensor([atomic_number(symbol) for symbol in supercell.species])
    return PairTable(torch.from_numpy(number.reshape(n_sites, n_sites)), torch.from_numpy(features[first]), species)


def _pair_features(supercell: Supercell) -> NDArray[np.float32]:
    """(n_sites, n_sites, N_FEATURES) float32: features of every ordered pair of sites."""
    images = np.array(list(itertools.product((-2, -1, 0, 1, 2), repeat=3)))
    if supercell.host.is_layer:
        images = images[images[:, 2] == 0]
    shifts = images @ supercell.lattice
    rotations = _cartesian_rotations(supercell.host)
    normal = np.cross(supercell.host.lattice[0], supercell.host.lattice[1])
    normal /= np.linalg.norm(normal)
    n_sites = supercell.n_sites
    table = np.empty((n_sites, n_sites, N_FEATURES), np.float32)
    for i in range(n_sites):
        vectors = (supercell.positions - supercell.positions[i])[:, None, :] + shifts[None]
        distances = np.linalg.norm(vectors, axis=-1)  # (n_sites, n_images)
        nearest = distances.min(axis=1, keepdims=True)
        site, image = np.nonzero(distances < nearest + _TIE)
        values = _features(vectors[site, image], rotations, normal)
        n_ties = np.bincount(site, minlength=n_sites)
        total = np.zeros((n_sites, N_FEATURES))
        np.add.at(total, site, values)
        table[i] = total / n_ties[:, None]
        table[i, :, -1] = np.log(n_ties)
    return table


def all_kinds(table: PairTable, codes: Sequence[int]) -> Kinds:
    """All kinds of pairs of some defect types in one supercell.

    Args:
        table: `pair_table` of the supercell.
        codes: K distinct codes.
    """
    code = torch.tensor(codes)
    removed = code // 128
    occurs = torch.zeros((len(code), len(code), len(table.features)), dtype=torch.bool)
    for target, source in itertools.product(torch.unique(removed), repeat=2):
        pairs = table.number[table.species == target][:, table.species == source]
        places = torch.cartesian_prod((removed == target).nonzero()[:, 0], (removed == source).nonzero()[:, 0])
        occurs[places[:, :1], places[:, 1:], torch.unique(pairs)] = True
    row = (occurs.flatten().cumsum(0) - 1).reshape(occurs.shape)
    kinds = torch.stack([removed, code % 128], dim=1)  # (K, 2)
    return Kinds(kinds, occurs.nonzero(), torch.where(occurs, row, -1))


def block_graphs(table: PairTable, sites: NDArray[np.int16], defect_types: NDArray[np.int16]) -> Graphs:
    """Graphs of a block of configurations with one number of defects.

    Args:
        table: `pair_table` of the supercell.
        sites: (n, k) site numbers.
        defect_types: (n, k) codes.
    """
    codes = np.unique(defect_types)
    node = torch.from_numpy(np.searchsorted(codes, defect_types))  # (n, k)
    site = torch.from_numpy(sites.astype(np.int64))
    return known_graphs(table, all_kinds(table, codes.tolist()), site, node)


def known_graphs(table: PairTable, kinds: Kinds, site: Tensor, node: Tensor) -> Graphs:
    """Graphs of a block whose kinds are known, on the device of the arguments.

    Args:
        table: `pair_table` of the supercell.
        kinds: `all_kinds` of its defect types.
        site: (n, k) int64 site numbers.
        node: (n, k) int64 rows of kinds.
    """
    (n_graphs, k), device = site.shape, site.device
    i, j = (torch.tensor(side, dtype=torch.int64, device=device) for side in _ordered_pairs(k))
    pair = table.number[site[:, i], site[:, j]]  # (n, k (k - 1))
    first = k * torch.arange(n_graphs, device=device)[:, None]
    return Graphs(
        kinds=kinds.kinds,
        pair_kinds=kinds.pair_kinds,
        pair_features=table.features,
        node=node.reshape(-1),
        edge=kinds.row[node[:, i], node[:, j], pair].reshape(-1),
        target=(first + i).reshape(-1),
        source=(first + j).reshape(-1),
        node_graph=torch.arange(n_graphs, device=device).repeat_interleave(k),
        edge_graph=torch.arange(n_graphs, device=device).repeat_interleave(len(i)),
        n_defects=torch.full((n_graphs,), float(k), device=device),
    )


def ragged_graphs(
    tables: Sequence[PairTable],
    supercell_of_row: NDArray[np.int64],
    configurations: Sequence[Configuration],
) -> Graphs:
    """Graphs of configurations of any number of defects in several supercells of one host, in the order given.

    Args:
        tables: `pair_table` of each supercell.
        supercell_of_row: (n,) index into tables.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for row, (s, configuration) in enumerate(zip(supercell_of_row.tolist(), configurations, strict=True)):
        groups.setdefault((s, configuration.n_defects), []).append(row)
    parts, order = [], []
    for (s, _), rows in groups.items():
        sites = np.array([configurations[row].sites for row in rows], np.int16)
        codes = np.array([configurations[row].defect_types for row in rows], np.int16)
        parts.append(block_graphs(tables[s], sites, codes))
        order.extend(rows)
    return select_graphs(share_kinds(join_graphs(parts)), torch.argsort(torch.tensor(order)))


def join_graphs(parts: Sequence[Graphs]) -> Graphs:
    """One batch of several."""
    lengths = {name: [len(getattr(part, name)) for part in parts] for name in ("kinds", "pair_features", "pair_kinds")}
    lengths |= {"nodes": [len(part.node) for part in parts], "graphs": [part.n_graphs for part in parts]}
    shift = {name: np.cumsum([0, *numbers])[:-1].tolist() for name, numbers in lengths.items()}
    numbering = {"node": "kinds", "edge": "pair_kinds", "target": "nodes", "source": "nodes"}
    numbering |= {"node_graph": "graphs", "edge_graph": "graphs"}
    joined = {}
    for field in fields(Graphs):
        columns = [getattr(part, field.name) for part in parts]
        if field.name in numbering:
            columns = [c + s for c, s in zip(columns, shift[numbering[field.name]], strict=True)]
        if field.name == "pair_kinds":
            starts = zip(shift["kinds"], shift["kinds"], shift["pair_features"], strict=True)
            columns = [c + torch.tensor(s) for c, s in zip(columns, starts, strict=True)]
        joined[field.name] = torch.cat(columns)
    return Graphs(**joined)


def share_kinds(graphs: Graphs) -> Graphs:
    """The same graphs without kinds that are equal or that no edge has."""
    features, feature = torch.unique(graphs.pair_features, dim=0, return_inverse=True)
    kinds, kind = torch.unique(graphs.kinds, dim=0, return_inverse=True)
    used, edge = used_pair_kinds(graphs)
    target, source, pair = used.T
    renumbered = torch.stack([kind[target], kind[source], feature[pair]], dim=1)
    pair_kinds, row = torch.unique(renumbered, dim=0, return_inverse=True)
    return replace(
        graphs, kinds=kinds, pair_kinds=pair_kinds, pair_features=features, node=kind[graphs.node], edge=row[edge]
    )


def used_pair_kinds(graphs: Graphs) -> tuple[Tensor, Tensor]:
    """The rows of pair_kinds that occur among the edges, and the row of each edge among them."""
    used, edge = torch.unique(graphs.edge, return_inverse=True)
    return graphs.pair_kinds[used], edge


def select_graphs(graphs: Graphs, chosen: Tensor) -> Graphs:
    """The chosen graphs, in this order; chosen: (m,) int64 graph numbers, of which some may be equal."""
    nodes, node_graph, moved = _members(graphs.node_graph, graphs.n_graphs, chosen)
    edges, edge_graph, _ = _members(graphs.edge_graph, graphs.n_graphs, chosen)
    shift = moved[edge_graph]  # (n_edges,) from old to new node numbers
    return replace(
        graphs,
        node=graphs.node[nodes],
        edge=graphs.edge[edges],
        target=graphs.target[edges] + shift,
        source=graphs.source[edges] + shift,
        node_graph=node_graph,
        edge_graph=edge_graph,
        n_defects=graphs.n_defects[chosen],
    )


def _members(owner: Tensor, n_graphs: int, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (sorted by graph) of the chosen graphs, the new graph of each, and how far each graph's rows move."""
    counts = torch.bincount(owner, minlength=n_graphs)
    starts = (torch.cumsum(counts, 0) - counts)[chosen]
    picked = counts[chosen]
    new_graph = torch.repeat_interleave(torch.arange(len(chosen), device=owner.device), picked)
    moved = torch.cumsum(picked, 0) - picked - starts
    return torch.arange(len(new_graph), device=owner.device) - moved[new_graph], new_graph, moved


def _ordered_pairs(k: int) -> tuple[list[int], list[int]]:
    pairs = [(i, j) for i in range(k) for j in range(k) if i != j]
    return [i for i, _ in pairs], [j for _, j in pairs]


def _cartesian_rotations(host: Host) -> NDArray[np.float64]:
    """(n, 3, 3): the distinct rotations of the host's point group, acting on Cartesian columns."""
    rotations = np.unique(unit_cell_operations(host)[0], axis=0)
    to_cartesian = host.lattice.T
    return np.asarray(to_cartesian @ rotations @ np.linalg.inv(to_cartesian))


def _features(
    vectors: NDArray[np.float64], rotations: NDArray[np.float64], normal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n, N_FEATURES): features of Cartesian vectors (n, 3), without the number of ties.

    All but the distance are means over the point group, so that equivalent pairs have equal features whatever the
    host and its orientation; in a layer every operation keeps the height along its normal.
    """
    distance = np.linalg.norm(vectors, axis=1)
    radial = _gaussians(distance, 1.0, LONGEST, N_RADIAL)
    turned = np.einsum("gab,nb->nga", rotations, vectors)  # (n, n_rotations, 3)
    height = _gaussians(np.abs(turned @ normal).ravel(), 0.0, HIGHEST, N_HEIGHT)
    height = height.reshape(len(vectors), -1, N_HEIGHT).mean(axis=1)
    # two generic axes: no symmetry plane of a crystal holds them, so that no polynomial vanishes by accident
    axes = np.array([[0.83, 0.47, 0.30], [0.21, 0.94, -0.26]])
    cosines = turned @ axes.T / np.maximum(distance, 1e-9)[:, None, None]  # (n, n_rotations, 2)
    direction = np.concatenate([(cosines**order).mean(axis=1) for order in ORDERS], axis=1)
    return np.concatenate([radial, height, direction, np.zeros((len(vectors), 1))], axis=1)


def _gaussians(values: NDArray[np.float64], low: float, high: float, n: int) -> NDArray[np.float64]:
    """(len(values), n): Gaussians on an even grid, as wide as their spacing."""
    centres = np.linspace(low, high, n)
    width = centres[1] - centres[0]
    return np.asarray(np.exp(-0.5 * ((values[:, None] - centres) / width) ** 2))
