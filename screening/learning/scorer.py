"""Scoring: mean and standard deviation of every property for blocks of configurations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.errors import StructureError
from screening.learning.ensemble import Ensemble
from screening.learning.graph import block_graphs, pair_table
from screening.learning.training import choose_device

_EDGES_PER_BATCH = 16_384  # of all members together stays in cache


@torch.no_grad()
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
    """
    n_rows, k = sites.shape
    if n_rows == 0:
        return np.empty((0, len(ensemble.properties))), np.empty((0, len(ensemble.properties)))
    host = supercell.host.name
    references = ensemble.references
    offsets = references.block_offsets(host, defect_types)
    where = choose_device(device)
    network = ensemble.network.to(where).eval()
    table = pair_table(supercell)
    number = references.hosts.index(host)
    rows_per_batch = max(64, _EDGES_PER_BATCH // (k * max(1, k - 1)))
    outputs = []
    for start in range(0, n_rows, rows_per_batch):
        stop = start + rows_per_batch
        graphs = block_graphs(table, sites[start:stop], defect_types[start:stop], number)
        outputs.append(network(graphs.to(where)).cpu())
    return ensemble.predict(torch.cat(outputs, dim=1), offsets, np.full(n_rows, k))


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
