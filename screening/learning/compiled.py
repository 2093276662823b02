"""The network on a CPU: `gnn.SparseDefectNetwork` for blocks of configurations, in one compiled pass per member.

What torch does operation by operation on arrays of all edges is done here for a few configurations at a time, so
that nothing leaves the core's cache, with one matrix product per linear layer and everything else in loops that
vectorise. Weights are folded first: the tables of the supercell, with the factors 1 / sqrt(k) and 1 / k of k defects;
the read-out of means and of sums, which for one k are the same numbers. `gnn` stays the
definition, and a test holds the two together.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, cast

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from screening.defects.host import Supercell
from screening.learning.gnn import SUM_SCALE, FilterBlock, SparseDefectNetwork, Tables
from screening.learning.graph import all_kinds, pair_table

_NODES = 128  # of a pass: all arrays stay in the core's cache, and BLAS starts no threads for so small a product
_compiled = numba.njit(cache=True, nogil=True, fastmath=True, error_model="numpy")  # numpy: no branch on division


class Weights(NamedTuple):
    """What one member needs for k defects in one supercell, float32; letters as in `gnn`, L blocks after the first.

    Attributes:
        own: (K, w).
        messages: (R + 1, w), by sqrt(k); the last row of this and the next two is 0.
        filters: (L, R + 1, w), by sqrt(k).
        pair_outputs: (R + 1, o), by k.
        kind_inputs: (L, K, 2 w), the part of A h and B h that depends on the kind alone.
        mixings: (L, L, w, 2 w), the part linear in s of each block before.
        read_in: (F, 2 w), of the F features: a sum over nodes of each of the L + 1 layers, and the maximum of the last.
        read_in_bias: (2 w,).
        read_out: (2 w, o), 0 for the energy.
        direct: (F, o), 0 but for the energy.
        bias: (o,).
    """

    own: NDArray[np.float32]
    messages: NDArray[np.float32]
    filters: NDArray[np.float32]
    pair_outputs: NDArray[np.float32]
    kind_inputs: NDArray[np.float32]
    mixings: NDArray[np.float32]
    read_in: NDArray[np.float32]
    read_in_bias: NDArray[np.float32]
    read_out: NDArray[np.float32]
    direct: NDArray[np.float32]
    bias: NDArray[np.float32]


class Folded(NamedTuple):
    """A network for k defects in one supercell.

    Attributes:
        row: (K, K, P) int64, as in `Kinds`.
    """

    members: tuple[Weights, ...]
    row: NDArray[np.int64]


def block_outputs(
    folded: Folded, supercell: Supercell, sites: NDArray[np.int16], kinds: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Outputs (m, n, o) of the network.

    Args:
        folded: `fold_network` for this supercell and k.
        sites: (n, k) site numbers.
        kinds: (n, k) number of each defect's code among those that the weights were folded for.
    """
    number, members = pair_table(supercell).number.numpy(), folded.members
    sites = np.ascontiguousarray(sites, np.int16)
    kinds = np.ascontiguousarray(kinds)
    outputs = np.empty((len(members), len(sites), len(members[0].bias)), np.float32)
    for weights, of_member in zip(members, outputs, strict=True):
        _member_outputs(sites, kinds, number, folded.row, weights, of_member)
    return outputs


@lru_cache(maxsize=8)  # milliseconds, megabytes; block after block of a few sizes is scored by one model
@torch.no_grad()
def fold_network(network: SparseDefectNetwork, supercell: Supercell, codes: tuple[int, ...], k: int) -> Folded:
    """The weights of every member for k defects with these codes in one supercell."""
    network = network.cpu()
    table = pair_table(supercell)
    kinds = all_kinds(table, codes)
    tables = network.tables(kinds.kinds, kinds.pair_kinds, table.features)
    parts = {
        "own": tables.own,
        "messages": pad(tables.messages * k**-0.5, (0, 0, 0, 1)),
        "pair_outputs": pad(tables.pair_outputs / k, (0, 0, 0, 1)),
        **_fold_blocks(network, tables, k),
        **_fold_read_out(network, k),
    }
    arrays = {name: part.contiguous().numpy() for name, part in parts.items()}
    members = (Weights(**{n: array[m] for n, array in arrays.items()}) for m in range(network.architecture.n_members))
    return Folded(tuple(members), kinds.row.numpy())


def _fold_blocks(network: SparseDefectNetwork, tables: Tables, k: int) -> dict[str, Tensor]:
    """The part of `Weights` of the blocks after the first, with a leading member axis.

    A node's state is the sum of a table's row and of one linear map of s per block, so that A h and B h are such sums
    too and h itself is never needed.
    """
    m, n_kinds, width = tables.start.shape
    blocks = cast("list[FilterBlock]", list(network.blocks))
    n_layers = len(blocks)
    filters = tables.messages.new_zeros(m, n_layers, tables.messages.shape[1] + 1, width)
    kind_inputs = tables.start.new_zeros(m, n_layers, n_kinds, 2 * width)
    mixings = tables.start.new_zeros(m, n_layers, n_layers, width, 2 * width)
    h = tables.start
    for layer, block in enumerate(blocks):
        filters[:, layer, :-1] = tables.filters[layer] * k**-0.5
        h = h + block.update.bias  # (m, K, w)
        kind_inputs[:, layer] = block.own_and_other(h)
        for before in range(layer + 1):
            mixings[:, layer, before] = blocks[before].update.weight @ block.own_and_other.weight
    return {"filters": filters, "kind_inputs": kind_inputs, "mixings": mixings}


def _fold_read_out(network: SparseDefectNetwork, k: int) -> dict[str, Tensor]:
    """The part of `Weights` from the features on, with a leading member axis."""
    width = network.architecture.width
    inwards = network.read_in.weight  # (m, F', 2 w) of means, sums and the maximum
    of_means, of_sums, of_largest = torch.split(inwards, [network.architecture.n_blocks * width] * 2 + [width], dim=1)
    return {
        "read_in": torch.cat([of_means / k + SUM_SCALE * of_sums, of_largest], dim=1),
        "read_in_bias": network.read_in.bias[:, 0],
        "read_out": pad(network.read_out.weight, (1, 0)),
        "direct": pad(network.node_energy.weight / k, (0, network.architecture.n_outputs - 1, 0, width)),
        "bias": torch.cat([network.node_energy.bias, network.read_out.bias], dim=2)[:, 0],
    }


@_compiled
def _member_outputs(sites, kinds, number, row, weights, outputs):  # type: ignore[no-untyped-def]
    """Outputs (n, o) of one member."""
    k, (n_features, twice) = sites.shape[1], weights.read_in.shape
    width, n_layers, n_rows = twice // 2, len(weights.filters), max(1, _NODES // k)
    n_nodes = n_rows * k
    # three at a time, since a short loop costs its start; padded with the row of zeros
    pairs = np.full((n_nodes, max(1, (k + 1) // 3) * 3), len(weights.messages) - 1)
    others = np.zeros(pairs.shape, np.int64)
    s = np.empty((n_layers + 1, n_nodes, width), np.float32)
    both, part = np.empty((n_nodes, twice), np.float32), np.empty((n_nodes, twice), np.float32)
    features, hidden = np.empty((n_rows, n_features), np.float32), np.empty((n_rows, twice), np.float32)
    direct = np.empty((n_rows, outputs.shape[1]), np.float32)
    for first in range(0, len(sites), n_rows):
        n = min(n_rows, len(sites) - first)
        kind, out = kinds[first : first + n].reshape(n * k), outputs[first : first + n]
        _number_pairs(sites[first : first + n], kind, number, row, pairs, others)
        _first_block(kind, pairs, weights, s[0])
        _pool(s[0], k, 0, features[:n])
        for layer in range(n_layers):
            np.dot(s[0, : n * k], weights.mixings[layer, 0], both[: n * k])
            for before in range(1, layer + 1):
                np.dot(s[before, : n * k], weights.mixings[layer, before], part[: n * k])
                both += part
            _filter_block(kind, pairs, others, both, weights.kind_inputs[layer], weights.filters[layer], s[layer + 1])
            _pool(s[layer + 1], k, (layer + 1) * width, features[:n])
        np.dot(features[:n], weights.read_in, hidden[:n])
        _activate(hidden[:n], weights.read_in_bias)
        np.dot(hidden[:n], weights.read_out, out)
        np.dot(features[:n], weights.direct, direct[:n])
        _add_pairs(pairs, k, weights, direct, out)


@_compiled
def _number_pairs(sites, kind, number, row, pairs, others):  # type: ignore[no-untyped-def]
    """Row of the tables of every pair of a node with the others of its graph, and these; the padding stays."""
    k = sites.shape[1]
    for c in range(len(sites)):
        for i in range(k):
            for j in range(k):
                if j != i:
                    place = j - (j > i)
                    pairs[c * k + i, place] = row[kind[c * k + i], kind[c * k + j], number[sites[c, i], sites[c, j]]]
                    others[c * k + i, place] = c * k + j


@_compiled
def _first_block(kind, pairs, weights, s):  # type: ignore[no-untyped-def]
    """S of the first block, from the tables alone."""
    width, messages = s.shape[1], weights.messages
    for node in range(len(kind)):
        own, x = weights.own[kind[node]], s[node]
        a, b, c = messages[pairs[node, 0]], messages[pairs[node, 1]], messages[pairs[node, 2]]
        for f in range(width):
            x[f] = own[f] + a[f] + b[f] + c[f]
        for place in range(3, pairs.shape[1], 3):
            a, b, c = messages[pairs[node, place]], messages[pairs[node, place + 1]], messages[pairs[node, place + 2]]
            for f in range(width):
                x[f] += a[f] + b[f] + c[f]
        for f in range(width):
            x[f] = _silu(x[f])


@_compiled
def _filter_block(kind, pairs, others, both, kind_inputs, filters, s):  # type: ignore[no-untyped-def]
    """S of a later block; both holds A h and B h without the part of the kinds."""
    width = s.shape[1]
    for node in range(len(kind)):
        x, own = both[node], kind_inputs[kind[node]]
        for f in range(2 * width):
            x[f] += own[f]
    for node in range(len(kind)):
        x, own = s[node], both[node]
        for f in range(width):
            x[f] = own[f]
        for place in range(0, pairs.shape[1], 3):
            i, j, k = others[node, place], others[node, place + 1], others[node, place + 2]
            a, b, c = filters[pairs[node, place]], filters[pairs[node, place + 1]], filters[pairs[node, place + 2]]
            of_i, of_j, of_k = both[i, width:], both[j, width:], both[k, width:]
            for f in range(width):
                x[f] += a[f] * of_i[f] + b[f] * of_j[f] + c[f] * of_k[f]
        for f in range(width):
            x[f] = _silu(x[f])


@_compiled
def _pool(s, k, start, features):  # type: ignore[no-untyped-def]
    """Sums and maxima of s over the nodes of each graph, into the columns from start on; later sums replace maxima."""
    width = s.shape[1]
    for c in range(len(features)):
        total, largest = features[c, start : start + width], features[c, start + width :]  # slices vectorise
        for f in range(width):
            total[f] = s[c * k, f]
        for f in range(width):
            largest[f] = s[c * k, f]
        for i in range(c * k + 1, c * k + k):
            for f in range(width):
                total[f] += s[i, f]
            for f in range(width):
                largest[f] = max(largest[f], s[i, f])


@_compiled
def _activate(x, bias):  # type: ignore[no-untyped-def]
    """X becomes SiLU(x + bias)."""
    for row in range(len(x)):
        for f in range(len(bias)):
            x[row, f] = _silu(x[row, f] + bias[f])


@_compiled
def _add_pairs(pairs, k, weights, direct, out):  # type: ignore[no-untyped-def]
    """Add to the outputs what does not come from the read-out's hidden layer: nodes directly, pairs and the bias."""
    of_pairs = weights.pair_outputs
    for c in range(len(out)):
        for o in range(out.shape[1]):
            out[c, o] += direct[c, o] + weights.bias[o]
        for i in range(c * k, c * k + k):
            for place in range(0, pairs.shape[1], 3):
                p, q, r = pairs[i, place], pairs[i, place + 1], pairs[i, place + 2]
                for o in range(out.shape[1]):
                    out[c, o] += of_pairs[p, o] + of_pairs[q, o] + of_pairs[r, o]


@numba.njit(cache=True, fastmath=True, error_model="numpy", inline="always")
def _silu(x):  # type: ignore[no-untyped-def]
    """SiLU in arithmetic that vectorises: x / 2 (1 + tanh(x / 2)), the tanh by the rational function of Eigen.

    MathFunctionsImpl.h; it is exact to some units in the last place of float32, and one beyond 7.9.
    """
    y = np.float32(0.5) * x
    t = min(max(y, np.float32(-7.9)), np.float32(7.9))
    t2 = t * t
    p = t2 * np.float32(-2.76076847742355e-16) + np.float32(2.00018790482477e-13)
    p = t2 * p + np.float32(-8.60467152213735e-11)
    p = t2 * p + np.float32(5.12229709037114e-08)
    p = t2 * p + np.float32(1.48572235717979e-05)
    p = t2 * p + np.float32(6.37261928875436e-04)
    p = t2 * p + np.float32(4.89352455891786e-03)
    q = t2 * np.float32(1.19825839466702e-06) + np.float32(1.18534705686654e-04)
    q = t2 * q + np.float32(2.26843463243900e-03)
    q = t2 * q + np.float32(4.89352518554385e-03)
    return y + y * t * p / q
