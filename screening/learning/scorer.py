"""Scoring: mean and standard deviation of every property for blocks of configurations.

On a CPU the network runs in the compiled form of `compiled`; on a GPU in torch, its tables on the device and in
half precision, which is exact to a small part of the model's own standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.errors import CalculationError, StructureError
from screening.learning.compiled import block_outputs, fold_network
from screening.learning.descent import choose_device
from screening.learning.ensemble import Ensemble
from screening.learning.gnn import SparseDefectNetwork, Tables
from screening.learning.graph import Kinds, PairTable, all_kinds, known_graphs, pair_table

Codes = tuple[int, ...]

_EDGES_PER_BATCH = 2**18  # 80 MB for each array of edges, five members of width 32 in half precision


def score_block(
    ensemble: Ensemble,
    supercell: Supercell,
    sites: NDArray[np.int16],
    defect_types: NDArray[np.int16],
    *,
    device: str = "auto",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (n, n_properties) of a block of configurations with one number of defects.

    Args:
        sites: (n, k) site numbers, k at least 1.
        defect_types: (n, k) codes.

    Raises:
        InputError: the model has not seen the host or one of the defect types.
        CalculationError: a prediction is not a finite number.
    """
    n_rows, k = sites.shape
    if n_rows == 0:
        return np.empty((0, len(ensemble.properties))), np.empty((0, len(ensemble.properties)))
    host = supercell.host.name
    offsets = ensemble.references.block_offsets(host, defect_types)
    outputs = member_outputs(ensemble, supercell, sites, defect_types, device=device)
    widening = ensemble.novelty.widening(supercell, sites, defect_types)
    return ensemble.predict(outputs, offsets, host=host, n_defects=k, widening=widening)


def member_outputs(
    ensemble: Ensemble,
    supercell: Supercell,
    sites: NDArray[np.int16],
    defect_types: NDArray[np.int16],
    *,
    device: str = "auto",
) -> NDArray[np.float32]:
    """Outputs (n_members, n, n_outputs) of the networks for a block of configurations with one number of defects.

    Raises:
        InputError: the model has not seen the host or one of the defect types.
        CalculationError: an output is not a finite number.
    """
    n_rows, k = sites.shape
    host = supercell.host.name
    ensemble.references.check(host, np.unique(defect_types).tolist())  # others have no row in the tables
    codes = tuple(ensemble.references.seen_with(host))
    kinds = np.searchsorted(codes, defect_types)
    fits = pair_table(supercell).species.numpy()[sites] == defect_types // 128
    assert fits.all(), "a defect type on a site of another species has no row in the tables"
    where = choose_device(device)
    if where.type == "cpu":
        outputs = block_outputs(
            fold_network(ensemble.network_of(host, k), supercell, codes, k), supercell, sites, kinds
        )
    else:
        outputs = torch_outputs(ensemble, supercell, sites, kinds, where=where, dtype=torch.float16)
    is_finite = np.isfinite(outputs).all(axis=(0, 2))
    if not is_finite.all():
        raise CalculationError(
            f"{n_rows - np.count_nonzero(is_finite)} of {n_rows} predictions on {where} are not finite numbers; a "
            "training has diverged, or half precision on a GPU is too narrow: score on a CPU, else train again"
        )
    return outputs


def score_configurations(
    ensemble: Ensemble, supercell: Supercell, configurations: Sequence[Configuration], *, device: str = "auto"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (n, n_properties) of configurations of any number of defects, in their order.

    Raises:
        StructureError: a configuration is pristine.
        InputError: the model has not seen the host or one of the defect types.
    """
    mean = np.empty((len(configurations), len(ensemble.properties)))
    std = np.empty_like(mean)
    by_size: dict[int, list[int]] = {}
    for row, configuration in enumerate(configurations):
        by_size.setdefault(configuration.n_defects, []).append(row)
    if 0 in by_size:
        raise StructureError(f"configuration {by_size[0][0]} has no defects; the model predicts defects only")
    for rows in by_size.values():
        sites = np.array([configurations[row].sites for row in rows], np.int16)
        codes = np.array([configurations[row].defect_types for row in rows], np.int16)
        mean[rows], std[rows] = score_block(ensemble, supercell, sites, codes, device=device)
    return mean, std


@torch.no_grad()
def torch_outputs(
    ensemble: Ensemble,
    supercell: Supercell,
    sites: NDArray[np.int16],
    kinds: NDArray[np.int64],
    *,
    where: torch.device,
    dtype: torch.dtype,
) -> NDArray[np.float32]:
    """Outputs (n_members, n, n_outputs) of the network as torch computes them.

    Args:
        kinds: (n, k) number of each defect's code among those seen with the host.
        dtype: of what is done per edge and of the matrix products per node.
    """
    codes = tuple(ensemble.references.seen_with(supercell.host.name))
    network = ensemble.network_of(supercell.host.name, sites.shape[1]).to(where).eval()
    pairs, all_of_host, tables = _tables_on(network, supercell, (where, dtype), codes)
    n_rows, k = sites.shape
    rows_per_batch = max(64, _EDGES_PER_BATCH // (k * max(1, k - 1)))
    outputs = []
    for start in range(0, n_rows, rows_per_batch):
        site, kind = (torch.from_numpy(x[start : start + rows_per_batch]).to(where).long() for x in (sites, kinds))
        graphs = known_graphs(pairs, all_of_host, site, kind)
        with torch.autocast(where.type, dtype, enabled=dtype != torch.float32):
            outputs.append(network(graphs, tables).float().cpu())
    return torch.cat(outputs, dim=1).numpy()


@lru_cache(maxsize=8)  # some MB; block after block is scored by one model
@torch.no_grad()
def _tables_on(
    network: SparseDefectNetwork, supercell: Supercell, place: tuple[torch.device, torch.dtype], codes: Codes
) -> tuple[PairTable, Kinds, Tables]:
    """The pair table of a supercell, all its kinds, and the network's tables for them, on a device."""
    device, dtype = place
    pairs = pair_table(supercell)
    kinds = all_kinds(pairs, codes).to(device)
    pairs = pairs.to(device)
    tables = network.tables(kinds.kinds, kinds.pair_kinds, pairs.features)
    return pairs, kinds, tables.narrowed(dtype)
