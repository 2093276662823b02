"""A trained ensemble: networks, references and calibration; mean and standard deviation of every property."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from screening.learning.gnn import SparseDefectNetwork
from screening.learning.references import ENERGY, ENERGY_PER_SITE, References


@dataclass(frozen=True, eq=False)
class Calibration:
    """From the spread of the members to a standard deviation: ``sigma^2 = floor^2 + (factor * spread)^2``.

    Attributes:
        floor: (n_outputs,) float64, eV or Bohr magneton.
        factor: (n_outputs,) float64.
    """

    floor: NDArray[np.float64]
    factor: NDArray[np.float64]

    def std(self, spread: NDArray[np.float64]) -> NDArray[np.float64]:
        """Standard deviations (n, n_outputs) of spreads of the same shape."""
        return np.asarray(np.hypot(self.floor, self.factor * spread))


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Networks with all that is needed to use them.

    Attributes:
        properties: what is predicted, in the order of the columns of predictions.
    """

    network: SparseDefectNetwork
    references: References
    calibration: Calibration
    properties: tuple[str, ...]

    @property
    def n_members(self) -> int:
        """Number of networks."""
        return self.network.architecture.n_members

    def predict(
        self, outputs: NDArray[np.float32], offsets: NDArray[np.float64], n_defects: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation (n, n_properties), eV or Bohr magneton.

        Args:
            outputs: (n_members, n, n_outputs) of the network.
            offsets: (n, n_outputs), of the references.
            n_defects: (n,).
        """
        scales = self.references.scales
        mean = offsets + outputs.mean(axis=0) * scales
        spread = outputs.std(axis=0, ddof=1) * scales if self.n_members > 1 else 0.0 * mean
        std = self.calibration.std(spread)
        columns = {name: (mean[:, p], std[:, p]) for p, name in enumerate(self.references.outputs)}
        per_site = columns[ENERGY_PER_SITE]
        columns[ENERGY] = (per_site[0] * n_defects, per_site[1] * n_defects)
        chosen = [columns[name] for name in self.properties]
        return np.stack([m for m, _ in chosen], axis=1), np.stack([s for _, s in chosen], axis=1)


def calibrate(
    errors: NDArray[np.float64], spreads: NDArray[np.float64], scales: Sequence[float] | NDArray[np.float64]
) -> Calibration:
    """Floor and factor that make the errors of validation rows likeliest under normal distributions.

    Args:
        errors: (n, n_outputs), mean minus label, NaN where there is no label.
        spreads: (n, n_outputs), standard deviation over the members.
        scales: (n_outputs,), for the grid's units.
    """
    floors, factors = [], []
    for p in range(errors.shape[1]):
        known = np.isfinite(errors[:, p])
        error, spread = errors[known, p], spreads[known, p]
        if not len(error):
            floors.append(float(scales[p]))
            factors.append(1.0)
            continue
        typical = max(float(np.sqrt((error**2).mean())), 1e-6 * float(scales[p]))
        floor, factor = np.meshgrid(typical * np.geomspace(0.02, 1.0, 25), np.append(0.0, np.geomspace(0.3, 10.0, 30)))
        variance = floor.ravel()[:, None] ** 2 + (factor.ravel()[:, None] * spread) ** 2
        negative_log_likelihood = (np.log(variance) + error**2 / variance).mean(axis=1)
        best = int(np.argmin(negative_log_likelihood))
        floors.append(float(floor.ravel()[best]))
        factors.append(float(factor.ravel()[best]))
    return Calibration(np.array(floors), np.array(factors))
