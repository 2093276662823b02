"""The sparse-defect graph network: MEGNet on the defects alone.

Chen et al., Chem. Mater. 31, 3564 (2019), equations 1-5, on the graphs of Kazeev et al., npj Comput. Mater. 9,
113 (2023). Design decisions, where they differ from the paper:

- elements are embedded, not given as numbers; a vacancy is an element of its own;
- the formation energy is extensive: a sum over defects and pairs on top of one fitted energy per defect type
  and host, so that single defects are exact and the network learns interactions;
- the other properties are read from sums and maxima over nodes; no LSTM (Set2Set) is needed for sets of 24;
- messages are summed with a factor 1 / sqrt(n), SiLU instead of softplus (three times cheaper), layer norm;
- all properties are predicted together by one network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch_geometric.nn.aggr import MaxAggregation, MeanAggregation, SumAggregation

from screening.learning.graph import N_FEATURES, Graphs

N_ELEMENTS = 119  # atomic numbers 1-118, and 0 for a vacancy


@dataclass(frozen=True)
class Architecture:
    """Sizes of the network."""

    n_properties: int
    n_hosts: int
    width: int = 64  # the paper's
    n_blocks: int = 2  # three are not better on 8x8 MoS2, and slower
    dropout: float = 0.0


def mlp(n_in: int, n_hidden: int, n_out: int, dropout: float) -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(n_hidden, n_out))


class MEGNetBlock(nn.Module):
    """One round of updates of edges e, nodes v and the graph's state u (Chen et al., eq. 1-5), with skips.

    e_ij' = e_ij + phi_e(v_i, v_j, e_ij, u);  v_i' = v_i + phi_v(v_i, sum_j e_ji' / sqrt(n), u);
    u' = u + phi_u(u, mean v', mean e').
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        # the first layer of phi_e acts on v_i, v_j and u before they are gathered to edges: the same sum, less work
        self.from_source = nn.Linear(width, width)
        self.from_target = nn.Linear(width, width, bias=False)
        self.from_edge = nn.Linear(width, width, bias=False)
        self.from_state = nn.Linear(width, width, bias=False)
        self.phi_e = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width))
        self.phi_v = mlp(3 * width, width, width, dropout)
        self.phi_u = mlp(3 * width, width, width, dropout)
        self.norm_e, self.norm_v, self.norm_u = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.sum, self.mean = SumAggregation(), MeanAggregation()

    def forward(self, v: Tensor, e: Tensor, u: Tensor, graphs: Graphs) -> tuple[Tensor, Tensor, Tensor]:
        """V (n_nodes, width), e (n_edges, width), u (n_graphs, width), the same out."""
        n_nodes, n_graphs = len(v), graphs.n_graphs
        nodes = self.norm_v(v)
        state = self.norm_u(u)
        start = self.from_source(nodes) + self.from_state(state)[graphs.node_graph]  # (n_nodes, width)
        e = e + self.phi_e(
            start[graphs.source] + self.from_target(nodes)[graphs.target] + self.from_edge(self.norm_e(e))
        )  # (n_edges, width)
        received = self.sum(e, graphs.target, dim_size=n_nodes)  # (n_nodes, width)
        received = received * graphs.n_defects.rsqrt()[graphs.node_graph, None]
        v = v + self.phi_v(torch.cat([nodes, received, state[graphs.node_graph]], dim=1))
        mean_v = self.mean(v, graphs.node_graph, dim_size=n_graphs)  # (n_graphs, width)
        mean_e = self.mean(e, graphs.edge_graph, dim_size=n_graphs)  # zero for a single defect
        u = u + self.phi_u(torch.cat([state, mean_v, mean_e], dim=1))
        return v, e, u


class SparseDefectNetwork(nn.Module):
    """Standardised properties of graphs of defects; column 0 is the formation energy's interaction part."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a, width = architecture, architecture.width
        self.architecture = architecture
        self.embed_removed = nn.Embedding(N_ELEMENTS, width)
        self.embed_added = nn.Embedding(N_ELEMENTS, width)
        self.embed_host = nn.Embedding(a.n_hosts, width)
        self.embed_node = mlp(3 * width, width, width, a.dropout)
        self.embed_edge = mlp(N_FEATURES, width, width, 0.0)
        self.blocks = nn.ModuleList(MEGNetBlock(width, a.dropout) for _ in range(a.n_blocks))
        self.node_energy = mlp(width, width, 1, a.dropout)
        self.pair_energy = mlp(width, width, 1, a.dropout)
        self.read_out = mlp(4 * width, 2 * width, a.n_properties - 1, a.dropout)
        self.norm_v, self.norm_e = nn.LayerNorm(width), nn.LayerNorm(width)
        self.sum, self.max = SumAggregation(), MaxAggregation()
        self.mean = MeanAggregation()

    def forward(self, graphs: Graphs) -> Tensor:
        """(n_graphs, n_properties): column 0 per defect, the others as they are; all standardised."""
        n_graphs = graphs.n_graphs
        u = self.embed_host(graphs.host)  # (n_graphs, width)
        v = self.embed_node(
            torch.cat([self.embed_removed(graphs.removed), self.embed_added(graphs.added), u[graphs.node_graph]], dim=1)
        )  # (n_nodes, width)
        e = self.embed_edge(graphs.edge_features)  # (n_edges, width)
        for block in self.blocks:
            v, e, u = block(v, e, u, graphs)
        v, e = self.norm_v(v), self.norm_e(e)
        energy = self.sum(self.node_energy(v), graphs.node_graph, dim_size=n_graphs) + self.sum(
            self.pair_energy(e), graphs.edge_graph, dim_size=n_graphs
        )  # (n_graphs, 1)
        pooled = torch.cat(
            [
                self.mean(v, graphs.node_graph, dim_size=n_graphs),
                self.max(v, graphs.node_graph, dim_size=n_graphs),
                self.sum(v, graphs.node_graph, dim_size=n_graphs) / 8.0,
                u,
            ],
            dim=1,
        )  # (n_graphs, 4 width)
        return torch.cat([energy / graphs.n_defects[:, None], self.read_out(pooled)], dim=1)
