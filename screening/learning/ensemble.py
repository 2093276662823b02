"""A trained ensemble: networks, references, calibration and what it has seen; mean and spread of every property."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from screening.learning.calibration import WIDE, Calibration
from screening.learning.gnn import SparseDefectNetwork
from screening.learning.novelty import Novelty
from screening.learning.references import ENERGY, ENERGY_PER_SITE, References


@dataclass(frozen=True)
class Domain:
    """What a network is for.

    Attributes:
        host: name of the host.
        most_defects: it serves configurations of up to so many defects; of any number if 0.
    """

    host: str
    most_defects: int = 0


def domain_of(domains: Sequence[Domain], host: str, n_defects: int) -> int:
    """Number of the domain that serves a host's configurations of a number of defects: the first that reaches it."""
    return next(
        number
        for number, domain in enumerate(domains)
        if domain.host == host and (not domain.most_defects or n_defects <= domain.most_defects)
    )


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Networks with all that is needed to use them.

    Attributes:
        domains: every host has one that serves any number of defects, after those that do not.
        networks: one per domain.
        properties: what is predicted, in the order of the columns of predictions.
        extra: arrays that belong to the model and are stored with it, by name; predictions do not need them.
    """

    domains: tuple[Domain, ...]
    networks: tuple[SparseDefectNetwork, ...]
    references: References
    calibration: Calibration
    novelty: Novelty
    properties: tuple[str, ...]
    extra: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def n_members(self) -> int:
        """Number of networks in a domain."""
        return self.networks[0].architecture.n_members

    def network_of(self, host: str, n_defects: int) -> SparseDefectNetwork:
        """The network for a number of defects in a host that was seen."""
        return self.networks[domain_of(self.domains, host, n_defects)]

    def predict(
        self,
        outputs: NDArray[np.float32],
        offsets: NDArray[np.float64],
        *,
        host: str,
        widening: NDArray[np.float64],
        n_defects: int,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation (n, n_properties), eV or Bohr magneton, of configurations of one size.

        Args:
            outputs: (n_members, n, n_outputs) of the network.
            offsets: (n, n_outputs), of the references.
            host: name of the host of all of them.
            widening: (n,) of `Novelty.widening`.
        """
        scales = self.references.scales
        mean = offsets + outputs.mean(axis=0) * scales
        spread = outputs.std(axis=0, ddof=1) * scales if self.n_members > 1 else 0.0 * mean
        std = self.calibration.std(spread, self._host(host), n_defects) * widening[:, None]
        return self._properties(mean, n_defects), self._properties(std, n_defects)

    def half_width(
        self, level: float, std: NDArray[np.float64], hosts: Sequence[str], n_defects: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Half widths (n, n_properties) of the intervals around the means that hold a share of the labels.

        Args:
            level: 0.68 or 0.95, which are calibrated.
            std: (n, n_properties) standard deviations of predictions.
            hosts: n names.
            n_defects: (n,) number of defects of each row.
        """
        names = list(dict.fromkeys(hosts))
        number = np.array([self._host(name) for name in names], np.int64)
        rows = number[[names.index(host) for host in hosts]]
        widths = self.calibration.half_width(level, np.ones((len(std), len(self.references.outputs))), rows, n_defects)
        return std * self._properties(widths, 1)

    def multiples(self, host: str, n_sizes: int) -> NDArray[np.float64]:
        """Half widths of 95 % intervals over standard deviations, (n_sizes, n_properties), of 1, 2, ... defects."""
        return self.half_width(WIDE, np.ones((n_sizes, len(self.properties))), [host] * n_sizes, np.arange(n_sizes) + 1)

    @property
    def outputs_of_properties(self) -> list[int]:
        """Column of the network's output that each property is made of; both energies are one."""
        columns = list(self.references.outputs)
        return [columns.index(ENERGY_PER_SITE if name == ENERGY else name) for name in self.properties]

    def shares_of_members(self, spread: NDArray[np.float64], *, host: str, n_defects: int) -> NDArray[np.float64]:
        """(n_outputs,): which share of the variance of predictions comes from what the members differ by.

        Args:
            spread: (n, n_outputs), standard deviation over the members, of configurations of one number of defects.
        """
        row = self._host(host)
        floor = self.calibration.std(np.zeros_like(spread), row, n_defects)
        whole = self.calibration.std(spread, row, n_defects)
        return np.asarray((1.0 - (floor / np.maximum(whole, np.finfo(np.float64).tiny)) ** 2).mean(axis=0))

    def _host(self, name: str) -> int:
        """Row of a host in the calibration; -1 for one that was never seen."""
        return self.references.hosts.index(name) if name in self.references.hosts else -1

    def _properties(self, values: NDArray[np.float64], n_defects: int) -> NDArray[np.float64]:
        """(n, n_properties) of values (n, n_outputs); the energy is that per defect times their number."""
        columns = dict(zip(self.references.outputs, values.T, strict=True))
        columns[ENERGY] = columns[ENERGY_PER_SITE] * n_defects
        return np.stack([columns[name] for name in self.properties], axis=1)
