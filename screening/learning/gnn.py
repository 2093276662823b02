"""The sparse-defect graph network: MEGNet on the defects alone, several members of an ensemble at once.

Chen et al., Chem. Mater. 31, 3564 (2019), equations 1-5, on the graphs of Kazeev et al., npj Comput. Mater. 9,
113 (2023). Design decisions, where they differ from the paper:

- elements are embedded, not given as numbers; a vacancy is an element of its own;
- the formation energy is extensive: a sum over defects and pairs on top of one fitted energy per defect type
  and host (`screening.learning.references`), so the network learns interactions;
- the other properties are read from means, maxima and sums over nodes; no LSTM (Set2Set) is needed for sets of 24;
- messages are summed with a factor 1 / sqrt(n), SiLU instead of softplus (three times cheaper), layer norm;
- all properties are predicted together by one network;
- every weight has a leading member axis: the members of an ensemble see the same graphs in one pass. Graphs of
  three nodes are so small that one network alone spends most of its time starting operations.

====  ===============================================
axis  meaning
====  ===============================================
m     members
N     nodes of all graphs of the batch (defects)
E     edges of all graphs (ordered pairs of defects)
G     graphs
w     width
====  ===============================================
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from torch_geometric.nn.aggr import MaxAggregation, MeanAggregation, SumAggregation

from screening.learning.graph import N_FEATURES, Graphs

N_ELEMENTS = 119  # atomic numbers 1-118, and 0 for a vacancy


@dataclass(frozen=True)
class Architecture:
    """Sizes of the network."""

    n_members: int
    n_hosts: int
    n_outputs: int  # energy per defect first, then the other properties
    width: int = 64  # the paper's
    n_blocks: int = 2  # three are not better on 8x8 MoS2, and slower


class MemberLinear(nn.Module):
    """``y = x W + b`` with weights of its own for each member."""

    def __init__(self, n_members: int, n_in: int, n_out: int) -> None:
        super().__init__()
        bound = n_in**-0.5  # as torch.nn.Linear
        self.weight = nn.Parameter(torch.empty(n_members, n_in, n_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_members, 1, n_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """X (m, n, n_in) to (m, n, n_out); a member axis of 1 is shared by all members."""
        n_members = len(self.weight)
        return torch.baddbmm(self.bias, x.expand(n_members, -1, -1), self.weight)


class MemberEmbedding(nn.Module):
    """A table of vectors for each member."""

    def __init__(self, n_members: int, n_rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_members, n_rows, width))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (n,) int64 to (m, n, w)."""
        return self.weight.index_select(1, rows)


class MemberNorm(nn.Module):
    """Layer norm (Ba et al., arXiv 1607.06450) with scale and shift of its own for each member."""

    def __init__(self, n_members: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(n_members, 1, width))
        self.shift = nn.Parameter(torch.zeros(n_members, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """X (m, n, w), the same out."""
        return layer_norm(x, x.shape[-1:]) * self.scale + self.shift


def mlp(n_members: int, n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(MemberLinear(n_members, n_in, n_hidden), nn.SiLU(), MemberLinear(n_members, n_hidden, n_out))


class MEGNetBlock(nn.Module):
    """One round of updates of edges e, nodes v and the graph's state u (Chen et al., eq. 1-5), with skips.

    e_ij' = e_ij + phi_e(v_i, v_j, e_ij, u);  v_j' = v_j + phi_v(v_j, sum_i e_ij' / sqrt(n), u);
    u' = u + phi_u(u, mean v', mean e').
    """

    def __init__(self, n_members: int, width: int) -> None:
        super().__init__()
        m = n_members
        # the first layer of phi_e acts on v_i, v_j and u before they are gathered to edges: the same sum, less work
        self.from_source = MemberLinear(m, 2 * width, width)
        self.from_target = MemberLinear(m, width, width)
        self.from_edge = MemberLinear(m, width, width)
        self.phi_e = nn.Sequential(nn.SiLU(), MemberLinear(m, width, width))
        self.phi_v = mlp(m, 3 * width, width, width)
        self.phi_u = mlp(m, 3 * width, width, width)
        self.norm_e, self.norm_v, self.norm_u = (MemberNorm(m, width) for _ in range(3))
        self.sum, self.mean = SumAggregation(), MeanAggregation()

    def forward(self, v: Tensor, e: Tensor, u: Tensor, graphs: Graphs) -> tuple[Tensor, Tensor, Tensor]:
        """V (m, N, w), e (m, E, w), u (m, G, w), the same out."""
        nodes = self.norm_v(v)
        state = self.norm_u(u)
        state_of_node = state.index_select(1, graphs.node_graph)  # (m, N, w)
        start = self.from_source(torch.cat([nodes, state_of_node], dim=2))  # (m, N, w)
        end = self.from_target(nodes)  # (m, N, w)
        e = e + self.phi_e(
            start.index_select(1, graphs.source) + end.index_select(1, graphs.target) + self.from_edge(self.norm_e(e))
        )  # (m, E, w)
        received = self.sum(e, graphs.target, dim_size=v.shape[1], dim=1)  # (m, N, w)
        received = received * graphs.n_defects.rsqrt()[graphs.node_graph, None]
        v = v + self.phi_v(torch.cat([nodes, received, state_of_node], dim=2))
        mean_v = self.mean(v, graphs.node_graph, dim_size=graphs.n_graphs, dim=1)  # (m, G, w)
        mean_e = self.mean(e, graphs.edge_graph, dim_size=graphs.n_graphs, dim=1)  # zero for a single defect
        u = u + self.phi_u(torch.cat([state, mean_v, mean_e], dim=2))
        return v, e, u


class SparseDefectNetwork(nn.Module):
    """Standardised properties of graphs of defects; output 0 is the interaction energy per defect."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a, m, width = architecture, architecture.n_members, architecture.width
        self.architecture = architecture
        self.embed_removed = MemberEmbedding(m, N_ELEMENTS, width)
        self.embed_added = MemberEmbedding(m, N_ELEMENTS, width)
        self.embed_host = MemberEmbedding(m, a.n_hosts, width)
        self.embed_node = mlp(m, 3 * width, width, width)
        self.embed_edge = mlp(m, N_FEATURES, width, width)
        self.blocks = nn.ModuleList(MEGNetBlock(m, width) for _ in range(a.n_blocks))
        self.node_energy = mlp(m, width, width, 1)
        self.pair_energy = mlp(m, width, width, 1)
        self.read_out = mlp(m, 4 * width, 2 * width, a.n_outputs - 1)
        self.norm_v, self.norm_e = MemberNorm(m, width), MemberNorm(m, width)
        self.sum, self.max, self.mean = SumAggregation(), MaxAggregation(), MeanAggregation()

    def forward(self, graphs: Graphs) -> Tensor:
        """(m, G, n_outputs)."""
        of_node = {"index": graphs.node_graph, "dim_size": graphs.n_graphs, "dim": 1}
        of_edge = {"index": graphs.edge_graph, "dim_size": graphs.n_graphs, "dim": 1}
        u = self.embed_host(graphs.host)  # (m, G, w)
        v = self.embed_node(
            torch.cat(
                [
                    self.embed_removed(graphs.removed),
                    self.embed_added(graphs.added),
                    u.index_select(1, graphs.node_graph),
                ],
                dim=2,
            )
        )  # (m, N, w)
        e = self.embed_edge(graphs.pair_features[None]).index_select(1, graphs.pair)  # (m, E, w)
        for block in self.blocks:
            v, e, u = block(v, e, u, graphs)
        v, e = self.norm_v(v), self.norm_e(e)
        energy = self.sum(self.node_energy(v), **of_node) + self.sum(self.pair_energy(e), **of_edge)  # (m, G, 1)
        pooled = torch.cat(
            [self.mean(v, **of_node), self.max(v, **of_node), self.sum(v, **of_node) / 8.0, u], dim=2
        )  # (m, G, 4 w)
        return torch.cat([energy / graphs.n_defects[:, None], self.read_out(pooled)], dim=2)
