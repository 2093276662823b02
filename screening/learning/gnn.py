"""The sparse-defect graph network: tabulated messages and filters, several members of an ensemble at once.

Only the defects are nodes and every pair of them is an edge (Kazeev et al., npj Comput. Mater. 9, 113 (2023)). The
published network is MEGNet (Chen et al., Chem. Mater. 31, 3564 (2019)); this one is as accurate on 2DMD and makes
a fiftieth of its operations, because sites are discrete: all that depends on the two defects of an edge and on the
class of their pair of sites is a row of a table, and the 8x8 supercell of MoS2 with four defect types has 960. The
tables can be as deep as they like, a model computes them once per supercell; what is left to do per graph is

    s1_i = SiLU( a(x_i) + sum_j M(x_i, x_j, p_ij) / sqrt(n) )         h1_i = x_i + U s1_i
    s2_i = SiLU( A h1_i + sum_j G(x_i, x_j, p_ij) * (B h1_j) / sqrt(n) )

with the message M and the filter G from the tables, ``*`` elementwise (the continuous-filter convolution of SchNet,
Schuett et al., NeurIPS 2017, eq. 2, whose filter also knows the two defects). Design decisions:

- elements are embedded, not given as numbers; a vacancy is an element of its own;
- the formation energy is extensive: a sum over nodes and over pairs, these straight from a table, on top of one
  fitted energy per defect type and host (`screening.learning.references`), so the network learns interactions;
- the other properties are read from means, sums and a maximum over nodes; no LSTM (Set2Set) is needed for sets of 24;
- SiLU instead of softplus (three times cheaper), and no layer norm: sums are over few defects;
- all properties are predicted together by one network;
- every weight has a leading member axis: the members of an ensemble see the same graphs in one pass. Graphs of
  three nodes are so small that one network alone spends most of its time starting operations.

====  ===============================================
axis  meaning
====  ===============================================
m     members
K     kinds of defects (what was removed, what was added)
R     kinds of ordered pairs: two kinds of defects and a class of pairs of sites
N     nodes of all graphs of the batch (defects)
E     edges of all graphs (ordered pairs of defects)
G     graphs
w     width
t     width of what the tables are made from
o     outputs
====  ===============================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from screening.learning.graph import N_FEATURES, Graphs, used_pair_kinds

N_ELEMENTS = 119  # atomic numbers 1-118, and 0 for a vacancy
TABLE_WIDTH = 64  # costs nothing where tables are computed once
SUM_SCALE = 0.125  # sums over defects grow with their number; means do not


@dataclass(frozen=True)
class Architecture:
    """Sizes of the network."""

    n_members: int
    n_outputs: int  # energy per defect first, then the other properties
    width: int = 32  # 48 is not better on 2DMD, and slower
    n_blocks: int = 2


@dataclass(frozen=True, eq=False)
class Tables:
    """All that a network says of kinds of defects and of pairs, before it sees a graph.

    Attributes:
        start: (m, K, w) x.
        own: (m, K, w) a(x).
        messages: (m, R, w) M.
        filters: (m, R, w) G of each block after the first.
        pair_outputs: (m, R, o) what a pair adds to the outputs.
    """

    start: Tensor
    own: Tensor
    messages: Tensor
    filters: tuple[Tensor, ...]
    pair_outputs: Tensor

    def narrowed(self, dtype: torch.dtype) -> Tables:
        """The same tables, those that every edge reads a vector from in another precision."""
        return replace(self, messages=self.messages.to(dtype), filters=tuple(rows.to(dtype) for rows in self.filters))


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


def mlp(n_members: int, n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(MemberLinear(n_members, n_in, n_hidden), nn.SiLU(), MemberLinear(n_members, n_hidden, n_out))


class PairEmbedding(nn.Module):
    """What the tables are made from: kinds of defects, and of pairs of them."""

    def __init__(self, n_members: int, width: int) -> None:
        super().__init__()
        m, t = n_members, TABLE_WIDTH
        self.removed = MemberEmbedding(m, N_ELEMENTS, width)
        self.added = MemberEmbedding(m, N_ELEMENTS, width)
        self.kind = mlp(m, 2 * width, t, width)
        self.features = mlp(m, N_FEATURES, t, t)
        self.from_target, self.from_source = MemberLinear(m, width, t), MemberLinear(m, width, t)
        self.mix = MemberLinear(m, t, t)

    def forward(self, kinds: Tensor, pair_kinds: Tensor, pair_features: Tensor) -> tuple[Tensor, Tensor]:
        """Kinds (m, K, w) and pairs (m, R, t); the arguments as in `Graphs`."""
        removed, added = kinds.T
        x = self.kind(torch.cat([self.removed(removed), self.added(added)], dim=2))  # (m, K, w)
        target, source, feature = pair_kinds.T
        z = (
            self.from_target(x).index_select(1, target)
            + self.from_source(x).index_select(1, source)
            + self.features(pair_features[None]).index_select(1, feature)
        )  # (m, R, t)
        return x, silu(self.mix(silu(z)))


class FilterBlock(nn.Module):
    """``s_i = SiLU(A h_i + sum_j G_ij * (B h_j) / sqrt(n))``, h_i after the update by s of the block before."""

    def __init__(self, n_members: int, width: int) -> None:
        super().__init__()
        self.update = MemberLinear(n_members, width, width)
        self.own_and_other = MemberLinear(n_members, width, 2 * width)  # A and B

    def forward(self, h: Tensor, s: Tensor, filters: Tensor, graphs: Graphs, edge: Tensor) -> tuple[Tensor, Tensor]:
        """H and s (m, N, w), the same out; filters (m, R, w), edge (E,) their rows."""
        h = h + self.update(s)
        own, other = self.own_and_other(h).chunk(2, dim=2)  # (m, N, w) each
        messages = filters.index_select(1, edge) * other.index_select(1, graphs.source)  # (m, E, w)
        return h, silu(own + per_root_n(sum_at(messages, graphs.target, h.shape[1]), graphs))


class SparseDefectNetwork(nn.Module):
    """Standardised properties of graphs of defects; output 0 is the interaction energy per defect."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a, m, width = architecture, architecture.n_members, architecture.width
        self.architecture = architecture
        self.embed = PairEmbedding(m, width)
        self.own = MemberLinear(m, width, width)
        self.message = MemberLinear(m, TABLE_WIDTH, width)
        self.pair_outputs = MemberLinear(m, TABLE_WIDTH, a.n_outputs)
        self.blocks = nn.ModuleList(FilterBlock(m, width) for _ in range(a.n_blocks - 1))
        self.filters = nn.ModuleList(MemberLinear(m, TABLE_WIDTH, width) for _ in range(a.n_blocks - 1))
        self.node_energy = MemberLinear(m, a.n_blocks * width, 1)
        self.read_in = MemberLinear(m, (2 * a.n_blocks + 1) * width, 2 * width)
        self.read_out = MemberLinear(m, 2 * width, a.n_outputs - 1)

    def tables(self, kinds: Tensor, pair_kinds: Tensor, pair_features: Tensor) -> Tables:
        """The tables for these kinds of defects and pairs, given as in `Graphs`."""
        x, z = self.embed(kinds, pair_kinds, pair_features)
        return Tables(
            start=x,
            own=self.own(x),
            messages=self.message(z),
            filters=tuple(make_filter(z) for make_filter in self.filters),
            pair_outputs=self.pair_outputs(z),
        )

    def forward(self, graphs: Graphs, tables: Tables | None = None) -> Tensor:
        """(m, G, o).

        Args:
            tables: of all kinds of pairs of the graphs; where absent, those that occur are computed.
        """
        edge = graphs.edge
        if tables is None:
            used, edge = used_pair_kinds(graphs)
            tables = self.tables(graphs.kinds, used, graphs.pair_features)
        own = tables.own.index_select(1, graphs.node)  # (m, N, w)
        n_nodes = own.shape[1]
        received = sum_at(tables.messages.index_select(1, edge), graphs.target, n_nodes)  # (m, N, w)
        h, s = tables.start.index_select(1, graphs.node), silu(own + per_root_n(received, graphs))
        layers = [s]
        for block, filters in zip(self.blocks, tables.filters, strict=True):
            h, s = block(h, s, filters, graphs, edge)
            layers.append(s)
        pairs = sum_at(tables.pair_outputs.index_select(1, edge), graphs.edge_graph, graphs.n_graphs)  # (m, G, o)
        with torch.autocast(
            graphs.n_defects.device.type, enabled=False
        ):  # little work, and energies are small differences
            return self._read([s.float() for s in layers], graphs) + pairs / graphs.n_defects[:, None]

    @torch.no_grad()
    def scale_outputs(self, factors: Tensor) -> None:
        """Multiply all that it will ever say by factors (o,); they go into the weights, so that speed is the same."""
        for layer, of_layer in (
            (self.pair_outputs, factors), (self.node_energy, factors[:1]), (self.read_out, factors[1:]),
        ):  # fmt: skip
            layer.weight.mul_(of_layer)
            layer.bias.mul_(of_layer)

    @torch.no_grad()
    def shift_outputs(self, by: Tensor) -> None:
        """Add by (m, o) to all that it will ever say."""
        self.node_energy.bias.add_(by[:, None, :1])
        self.read_out.bias.add_(by[:, None, 1:])

    def silent_outputs(self) -> Tensor:
        """(o,) bool: outputs that are 0 whatever it sees, as `scale_outputs` has made them."""
        total = self.pair_outputs.weight.abs().sum(dim=(0, 1))
        return (
            total + torch.cat([layer.weight.abs().sum(dim=(0, 1)) for layer in (self.node_energy, self.read_out)])
        ) == 0

    def _read(self, layers: list[Tensor], graphs: Graphs) -> Tensor:
        """(m, G, o): outputs of the nodes."""
        total = sum_at(torch.cat(layers, dim=2), graphs.node_graph, graphs.n_graphs)  # (m, G, n_blocks w)
        mean = total / graphs.n_defects[:, None]
        largest = max_at(layers[-1], graphs.node_graph, graphs.n_graphs)  # (m, G, w)
        features = torch.cat([mean, SUM_SCALE * total, largest], dim=2)
        return torch.cat([self.node_energy(mean), self.read_out(silu(self.read_in(features)))], dim=2)


def per_root_n(x: Tensor, graphs: Graphs) -> Tensor:
    """X (m, N, w) by the root of the number of defects of its graph."""
    return x * graphs.n_defects.rsqrt()[graphs.node_graph, None]


def sum_at(x: Tensor, index: Tensor, n: int) -> Tensor:
    """X (m, a, w) summed to (m, n, w); index (a,) says where."""
    return x.new_zeros(len(x), n, x.shape[2]).index_add(1, index, x)


def max_at(x: Tensor, index: Tensor, n: int) -> Tensor:
    """X (m, a, w) to its maxima (m, n, w); every place in (n,) occurs in index (a,)."""
    empty = x.new_zeros(len(x), n, x.shape[2])
    return empty.scatter_reduce(1, index[None, :, None].expand_as(x), x, "amax", include_self=False)
