"""How the errors of two properties go together, from the members of an ensemble.

Where two networks differ in the gap, they differ in the energy too, as they have misread the same configuration: the
correlation of the members' deviations from their mean, pooled over configurations, is taken for that of the errors. The
part of a standard deviation that does not come from the members (the floor of the calibration) is independent between
properties, so the correlation is reduced by the share of the variance that does:

    correlation(i, j) = correlation of deviations(i, j) * sqrt(share(i) share(j)),  share = mean (factor u)^2 / sigma^2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from screening.defects.host import Supercell
from screening.learning.ensemble import Ensemble
from screening.learning.scorer import member_outputs


def member_correlations(
    ensemble: Ensemble,
    supercell: Supercell,
    sites: NDArray[np.int16],
    defect_types: NDArray[np.int16],
    *,
    device: str = "auto",
) -> NDArray[np.float64]:
    """Correlations (n_properties, n_properties) between the errors of predictions; 0 between them for one member.

    Args:
        sites: (n, k) site numbers of configurations of one number of defects.
        defect_types: (n, k) codes.

    Raises:
        InputError: the model has not seen the host or one of the defect types.
    """
    n_properties = len(ensemble.properties)
    if ensemble.n_members < 2 or len(sites) == 0:
        return np.eye(n_properties)
    outputs = member_outputs(ensemble, supercell, sites, defect_types, device=device).astype(np.float64)
    deviations = (outputs - outputs.mean(axis=0)).reshape(-1, outputs.shape[2])  # (n_members * n, n_outputs)
    spread = outputs.std(axis=0, ddof=1) * ensemble.references.scales  # (n, n_outputs)
    share = ensemble.shares_of_members(spread, host=supercell.host.name, n_defects=sites.shape[1])
    products = deviations.T @ deviations
    size = np.sqrt(np.maximum(np.diag(products), np.finfo(np.float64).tiny))
    correlations = products / np.outer(size, size) * np.sqrt(np.outer(share, share))
    places = ensemble.outputs_of_properties
    found = np.clip(correlations[np.ix_(places, places)], -1.0, 1.0)
    np.fill_diagonal(found, 1.0)
    return np.asarray(found)
