"""What is taken off the labels before a network sees them, and put back after.

The formation energy of well separated defects is the sum of their single-defect energies, so an energy per
defect type and host is fitted by ridge regression on the numbers of defects, and the network learns the
remainder per defect: the interactions. Every other property has its mean per host taken off. All of it is
divided by one scale per output, so that the network's outputs are of order one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration, DefectType
from screening.errors import InputError
from screening.learning.dataset import LabelledRows

ENERGY = "formation_energy"
ENERGY_PER_SITE = "formation_energy_per_site"
_RIDGE = 1e-4  # keeps types that always occur together apart; far below any energy difference of interest


@dataclass(frozen=True, eq=False)
class References:
    """Fitted references and scales of a set of hosts.

    Attributes:
        hosts: names of the hosts.
        codes: codes of the defect types that were seen, ascending.
        outputs: the energy per defect (always), then the other properties.
        energies: (n_hosts, n_codes) float64, eV per defect; NaN where the host was not seen with the type.
        means: (n_hosts, n_outputs) float64, eV or Bohr magneton; 0 for the energy.
        scales: (n_outputs,) float64; 0 for an output that never varies (the magnetisation of data without spin), which
            is predicted as its mean.
    """

    hosts: tuple[str, ...]
    codes: tuple[int, ...]
    outputs: tuple[str, ...]
    energies: NDArray[np.float64]
    means: NDArray[np.float64]
    scales: NDArray[np.float64]

    def offsets(self, hosts: Sequence[str], configurations: Sequence[Configuration]) -> NDArray[np.float64]:
        """(n, n_outputs) float64: what the references say of configurations in the hosts named.

        Raises:
            InputError: a host or a defect type that the references do not know.
        """
        offsets = np.empty((len(hosts), len(self.outputs)))
        for i, (host, configuration) in enumerate(zip(hosts, configurations, strict=True)):
            offsets[i] = self.block_offsets(host, np.array([configuration.defect_types]))
        return offsets

    def block_offsets(self, host: str, defect_types: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """(n, n_outputs) float64: what the references say of (n, k) codes in one host.

        Raises:
            InputError: a host or a defect type that the references do not know.
        """
        self.check(host, np.unique(defect_types).tolist())
        h = self.hosts.index(host)
        offsets = np.repeat(self.means[h][None], len(defect_types), axis=0)
        offsets[:, 0] = self.energies[h][np.searchsorted(self.codes, defect_types)].mean(axis=1)
        return offsets

    def standardise(self, labels: NDArray[np.float64], offsets: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, n_outputs) float64: what the network shall give for labels; NaN where there is nothing to learn."""
        varies = self.scales > 0
        return np.asarray(np.where(varies, labels - offsets, np.nan) / np.where(varies, self.scales, 1.0))

    def check(self, host: str, codes: Sequence[int]) -> None:
        """Make sure that a host was seen with these defect types.

        Raises:
            InputError: it was not; a prediction would be a guess.
        """
        if host not in self.hosts:
            raise InputError(
                f"the model has learnt from the hosts {', '.join(self.hosts)}, not from {host}; "
                "train it on results of this host first"
            )
        seen = self.seen_with(host)
        unseen = sorted(set(codes) - set(seen))
        if unseen:
            raise InputError(
                f"the model has never seen {', '.join(DefectType.from_code(c).name for c in unseen)} in {host}; it "
                f"knows {', '.join(DefectType.from_code(c).name for c in seen)}: train it on results with them first"
            )

    def seen_with(self, host: str) -> list[int]:
        """Codes of the defect types that a host was seen with."""
        energies = self.energies[self.hosts.index(host)]
        return [code for code, energy in zip(self.codes, energies, strict=True) if np.isfinite(energy)]


def fit_references(rows: LabelledRows) -> References:
    """Fit references on the training rows.

    Raises:
        InputError: a host has no value of a property.
    """
    outputs = outputs_of(rows.properties)
    values = output_labels(rows, outputs)
    hosts = tuple(dict.fromkeys(supercell.host.name for supercell in rows.supercells))
    host_of_row = _hosts_of_rows(rows, hosts)
    codes = tuple(sorted({code for configuration in rows.configurations for code in configuration.defect_types}))
    train = ~rows.is_validation
    energies = np.full((len(hosts), len(codes)), np.nan)
    means = np.zeros((len(hosts), len(outputs)))
    remainder = np.full(values.shape, np.nan)
    shares = _shares(rows.configurations, codes)
    has_energies = bool(np.isfinite(values[:, 0]).any())  # chemical potentials may be unknown altogether
    for h in range(len(hosts)):
        of_host = host_of_row == h
        chosen = of_host & train & np.isfinite(values[:, 0])
        if has_energies and not chosen.any():
            raise InputError(f"no training row of {hosts[h]} has a formation energy; leave this property out")
        energies[h], fitted = _fit_energies(shares[of_host & train], shares[chosen], values[chosen, 0])
        remainder[of_host, 0] = values[of_host, 0] - shares[of_host] @ fitted
        for p in range(1, len(outputs)):
            known = values[of_host & train & np.isfinite(values[:, p]), p]
            if not len(known):
                raise InputError(f"no training row of {hosts[h]} has a value of {outputs[p]}; leave this property out")
            means[h, p] = known.mean()
            remainder[of_host, p] = values[of_host, p] - means[h, p]
    scales = np.array([_scale(remainder[train, p]) for p in range(len(outputs))])
    return References(hosts, codes, outputs, energies, means, scales)


def extend_references(old: References, rows: LabelledRows) -> References:
    """The old references with those of hosts and defect types that only the new rows have.

    What the old ones know stays as it is, so that a network trained on them keeps its meaning.

    Raises:
        InputError: the rows have other properties than the old references.
    """
    new = fit_references(rows)
    if new.outputs != old.outputs:
        raise InputError(
            f"the results have {', '.join(new.outputs)}, the model to start from predicts {', '.join(old.outputs)}; "
            "train a new model instead"
        )
    hosts = old.hosts + tuple(host for host in new.hosts if host not in old.hosts)
    codes = tuple(sorted({*old.codes, *new.codes}))
    energies = np.full((len(hosts), len(codes)), np.nan)
    means = np.zeros((len(hosts), len(old.outputs)))
    for references in (new, old):  # the old ones last: they prevail
        for h, host in enumerate(references.hosts):
            row = hosts.index(host)
            means[row] = references.means[h]
            for code, energy in zip(references.codes, references.energies[h], strict=True):
                if np.isfinite(energy):
                    energies[row, codes.index(code)] = energy
    scales = np.where(old.scales > 0, old.scales, new.scales)  # what never varied may do so now
    return References(hosts, codes, old.outputs, energies, means, scales)


def outputs_of(properties: Sequence[str]) -> tuple[str, ...]:
    """Outputs of the network: the energy per defect first, then what the properties have besides energies."""
    return (ENERGY_PER_SITE, *(name for name in properties if name not in (ENERGY, ENERGY_PER_SITE)))


def output_labels(rows: LabelledRows, outputs: Sequence[str]) -> NDArray[np.float64]:
    """(n, n_outputs) float64: labels in the order of the outputs, NaN where absent."""
    columns = dict(zip(rows.properties, rows.labels.T, strict=True))
    per_site = columns.get(ENERGY_PER_SITE, np.full(len(rows.configurations), np.nan))
    if ENERGY in columns:
        per_site = np.where(np.isfinite(per_site), per_site, columns[ENERGY] / rows.n_defects)
    return np.stack([per_site, *(columns[name] for name in outputs[1:])], axis=1)


def _hosts_of_rows(rows: LabelledRows, hosts: Sequence[str]) -> NDArray[np.int64]:
    of_supercell = np.array([hosts.index(supercell.host.name) for supercell in rows.supercells], np.int64)
    return of_supercell[rows.supercell_of_row]


def _shares(configurations: Sequence[Configuration], codes: Sequence[int]) -> NDArray[np.float64]:
    """(n, n_codes): share of each defect type among the defects of a configuration."""
    columns = {code: c for c, code in enumerate(codes)}
    shares = np.zeros((len(configurations), len(codes)))
    for i, configuration in enumerate(configurations):
        for code in configuration.defect_types:
            shares[i, columns[code]] += 1.0 / configuration.n_defects
    return shares


def _fit_energies(
    occurring: NDArray[np.float64], shares: NDArray[np.float64], energies: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Energy per defect type, NaN where a type does not occur, and the same with 0 there."""
    mean = float(energies.mean()) if len(energies) else 0.0
    gram = shares.T @ shares + _RIDGE * np.eye(shares.shape[1])
    fitted = mean + np.linalg.solve(gram, shares.T @ (energies - mean))
    seen = occurring.sum(axis=0) > 0
    return np.where(seen, fitted, np.nan), np.where(seen, fitted, 0.0)


def _scale(values: NDArray[np.float64]) -> float:
    """Standard deviation of what is finite; 0 for a constant."""
    finite = values[np.isfinite(values)]
    spread = float(finite.std()) if len(finite) else 0.0
    return spread if spread > 1e-9 else 0.0
