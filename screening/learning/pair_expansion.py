"""The pair expansion: a linear model of defect counts and pairs, fitted in seconds; the yardstick of every network.

The formation energy of a configuration is written as the sum of its defects' energies and of an interaction of each
pair, `E = sum_c n_c e_c + sum_p n_p w_p`, a cluster expansion cut off after pairs (Sanchez et al., Physica A 128, 334
(1984)). It is fitted per defect, both sides divided by the number of defects, so that errors of the energy per site
count whatever the density: fitted as totals the mean error over the subsets of 2DMD is a seventh larger. Products of
the types' shares, an interaction at any distance, join in where they lower the error clearly: in h-BN, whose defects
are donors and acceptors, by a quarter. Other properties are no sums: they are fitted to the same columns per defect
(better than to plain numbers by up to 4 %) and to the composition to second order.

Ridge regression with a penalty on the pairs that grows with a power of their distance: far pairs interact less.
Columns, power and strength are those with the least mean square error of leave-one-out predictions of the training
rows, which a linear model has in closed form, `(y_i - f_i) / (1 - h_ii)`: one singular value decomposition serves all
strengths. The validation rows choose nothing, so their errors are as honest as those of new rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Host, Supercell
from screening.errors import FileFormatError, InputError
from screening.learning.artifacts import pack, unpack
from screening.learning.dataset import LabelledRows
from screening.learning.pair_columns import PairColumns, blocks_of, columns_of_rows, pair_columns
from screening.learning.references import ENERGY, ENERGY_PER_SITE, output_labels, outputs_of

FORMAT = "screening pair expansion 1"
FEWEST_ROWS = 3  # leaving one of two out leaves nothing to fit
_GROWTHS = (0.0, 1.0, 2.0, 4.0, 6.0)  # powers of the distance
_STRENGTHS = np.geomspace(1e-6, 1e3, 28)
_UNIT = 3.0  # angstrom; about the nearest distance, where a pair's penalty is 1
_PENALTY_OF_COMPOSITION = 1e-2  # an energy per defect is larger than any interaction
_CLEARLY_LOWER = 0.8  # mean square error, for which products of shares enter: they extrapolate worse than sums
_PRIOR_ROWS = 5.0  # how many residuals of all numbers of defects are added to those of one number
_ROWS_PER_BLOCK = 8192


@dataclass(frozen=True, eq=False)
class PairExpansion:
    """A fitted pair expansion of one supercell.

    Attributes:
        columns: its defect types and pairs.
        outputs: the energy per site (if it was known), then the other properties.
        properties: what is predicted, in the order of the columns of predictions.
        intercept: (n_outputs,) float64, eV or Bohr magneton.
        weights: (n_columns, n_outputs) float64, of `design_matrix`.
        sizes: (n_sizes,) int64, numbers of defects that were seen, ascending.
        sigma: (n_sizes, n_outputs) float64: root mean square error of left-out and validation rows of that size.
    """

    columns: PairColumns
    outputs: tuple[str, ...]
    properties: tuple[str, ...]
    intercept: NDArray[np.float64]
    weights: NDArray[np.float64]
    sizes: NDArray[np.int64]
    sigma: NDArray[np.float64]

    def predict(
        self, supercell: Supercell, sites: NDArray[np.int16], defect_types: NDArray[np.int16]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation (n, n_properties) of a block of configurations with one number of defects.

        A number of defects that was never seen has the largest standard deviation of those that were.

        Args:
            supercell: the one that was learnt from.
            sites: (n, k) site numbers, k at least 1.
            defect_types: (n, k) codes.

        Raises:
            InputError: another host or supercell, or a defect type that was not learnt from.
        """
        self.check(supercell, np.unique(defect_types).tolist())
        n_rows, k = sites.shape
        mean = np.empty((n_rows, len(self.outputs)))
        for start in range(0, n_rows, _ROWS_PER_BLOCK):
            block = slice(start, start + _ROWS_PER_BLOCK)
            types, pairs = self.columns.counts(sites[block], defect_types[block])
            mean[block] = self.intercept + design_matrix(types, pairs) @ self.weights
        sigma = self.sigma[self.sizes == k][0] if k in self.sizes else self.sigma.max(axis=0)
        std = np.repeat(sigma[None], n_rows, axis=0)
        return self._properties_of(mean, k), self._properties_of(std, k)

    def predict_configurations(
        self, supercell: Supercell, configurations: Sequence[Configuration]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation (n, n_properties) of configurations of any number of defects, in their order.

        Raises:
            StructureError: a configuration is pristine.
            InputError: another host or supercell, or a defect type that was not learnt from.
        """
        mean = np.empty((len(configurations), len(self.properties)))
        std = np.empty_like(mean)
        for rows, sites, codes in blocks_of(configurations):
            mean[rows], std[rows] = self.predict(supercell, sites, codes)
        return mean, std

    def check(self, supercell: Supercell, codes: Sequence[int]) -> None:
        """Make sure that a supercell was learnt from with these defect types.

        Raises:
            InputError: it was not; a prediction would be a guess.
        """
        ours = self.columns.supercell
        host = ours.host.name
        if supercell is not ours and not _is_same(supercell, ours):
            raise InputError(
                f"the pair expansion has learnt from {host} {ours.label}, not from {supercell.host.name} "
                f"{supercell.label}, or its lattice is another; fit it to results of this supercell first"
            )
        unseen = sorted(set(codes) - set(self.columns.codes))
        if unseen:
            raise InputError(
                f"the pair expansion has never seen {_names(unseen)} in {host}; it knows {_names(self.columns.codes)}: "
                "fit it to results with them first"
            )

    def _properties_of(self, values: NDArray[np.float64], n_defects: int) -> NDArray[np.float64]:
        """(n, n_properties) of (n, n_outputs)."""
        found = dict(zip(self.outputs, values.T, strict=True))
        if ENERGY_PER_SITE in found:
            found[ENERGY] = found[ENERGY_PER_SITE] * n_defects
        return np.stack([found[name] for name in self.properties], axis=1)


def fit_pair_expansion(rows: LabelledRows) -> PairExpansion:
    """Fit a pair expansion to the training rows of one supercell.

    Raises:
        InputError: the rows are of several supercells, or fewer than `FEWEST_ROWS` have a value of a property.
    """
    columns = columns_of_rows(rows)
    usable = columns.can_count(rows.configurations)  # a validation row may have a type that no training row has
    configurations = [c for c, is_usable in zip(rows.configurations, usable, strict=True) if is_usable]
    outputs = outputs_of(rows.properties)
    labels = output_labels(rows, outputs)[usable]
    known = [p for p in range(len(outputs)) if np.isfinite(labels[:, p]).any()]  # energies may be unknown altogether
    outputs, labels = tuple(outputs[p] for p in known), labels[:, known]
    x = design_matrix(*columns.counts_of(configurations))
    train = ~rows.is_validation[usable]
    n_training = (np.isfinite(labels) & train[:, None]).sum(axis=0)
    if (n_training < FEWEST_ROWS).any():
        p = int(n_training.argmin())
        raise InputError(
            f"{n_training[p]} training rows have a value of {outputs[p]}; expected at least {FEWEST_ROWS}: "
            "add results or leave this property out"
        )
    intercept, weights, left_out = _fit_outputs(columns, outputs, x[train], labels[train])
    residuals = labels - intercept - x @ weights
    residuals[train] = left_out
    n_defects = np.array([configuration.n_defects for configuration in configurations], np.int64)
    sizes, sigma = _errors_by_size(n_defects, residuals)
    return PairExpansion(columns, outputs, rows.properties, intercept, weights, sizes, sigma)


def design_matrix(types: NDArray[np.float32], pairs: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, n_columns) float64: shares of the types, their products, the rest of the composition, pairs per defect.

    The rest of the composition is which types and which two types are there at all (a gap has the levels of a
    vacancy, be it one of three or one of twenty defects) and the logarithm of the number of defects.

    Args:
        types: (n, K) numbers of defects of each type.
        pairs: (n, n_pairs) numbers of pairs of each column.
    """
    n_defects = types.sum(axis=1, keepdims=True, dtype=np.float64)
    shares, there, logarithm = types / n_defects, (types > 0).astype(np.float64), np.log(n_defects)
    first, second = np.triu_indices(types.shape[1])
    two_shares = shares[:, first] * shares[:, second]
    two_there = there[:, first] * there[:, second]
    rest = [there, two_there, logarithm, logarithm**2, shares * logarithm]
    return np.concatenate([shares, two_shares, *rest, pairs / n_defects], axis=1)


def fit_ridge(
    x: NDArray[np.float64], y: NDArray[np.float64], strengths: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Ridge regression with an intercept, of the strength with the least mean square of left-out residuals.

    Args:
        x: (n, n_columns) float64, n at least `FEWEST_ROWS`.
        y: (n, m) float64.
        strengths: (n_strengths,), penalties on the squares of the weights.

    Returns:
        The mean square (m,), the weights (n_columns, m), and the left-out residuals (n, m).
    """
    centred = y - y.mean(axis=0)
    u, s, v = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    shrinkage = s[:, None] ** 2 / (s[:, None] ** 2 + strengths)  # (rank, n_strengths)
    remaining = 1.0 - 1.0 / len(y) - u**2 @ shrinkage  # 1 - h_ii; the intercept takes 1/n
    turned = u.T @ centred
    error, weights, residuals = np.empty(y.shape[1]), np.empty((x.shape[1], y.shape[1])), np.empty(y.shape)
    for p in range(y.shape[1]):
        left_out = (centred[:, p, None] - u @ (shrinkage * turned[:, p, None])) / remaining  # (n, n_strengths)
        mean_square = (left_out**2).mean(axis=0)
        best = int(np.argmin(mean_square))
        error[p], residuals[:, p] = mean_square[best], left_out[:, best]
        weights[:, p] = v.T @ (turned[:, p] * s / (s**2 + strengths[best]))
    return error, weights, residuals


def expansion_to_bytes(expansion: PairExpansion) -> bytes:
    """A pair expansion as safetensors bytes."""
    columns, supercell = expansion.columns, expansion.columns.supercell
    arrays = {
        "lattice": supercell.host.lattice,
        "positions": supercell.host.positions,
        "matrix": supercell.matrix,
        "distances": columns.distances,
        "intercept": expansion.intercept,
        "weights": expansion.weights,
        "sizes": expansion.sizes,
        "sigma": expansion.sigma,
    }
    host = supercell.host
    card = {
        "format": FORMAT,
        "host": {"name": host.name, "species": host.species, "is_layer": host.is_layer, "source": host.source},
        "codes": columns.codes,
        "outputs": expansion.outputs,
        "properties": expansion.properties,
    }
    return pack({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, card)


def expansion_from_bytes(packed: bytes) -> PairExpansion:
    """The pair expansion of safetensors bytes.

    Raises:
        FileFormatError: the bytes hold no pair expansion of this version.
    """
    tensors, card = unpack(packed)
    if card.get("format") != FORMAT:
        raise FileFormatError(
            f"the weights are of format {card.get('format')!r}, this version reads {FORMAT!r}; fit the model again"
        )
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    told = card["host"]
    host = Host(
        told["name"], arrays["lattice"], tuple(told["species"]), arrays["positions"], told["is_layer"], told["source"]
    )
    columns = pair_columns(Supercell(host, arrays["matrix"]), card["codes"])
    stored = arrays["distances"]
    if stored.shape != columns.distances.shape or not np.allclose(stored, columns.distances, atol=1e-6):
        raise FileFormatError(
            f"the file has {len(stored)} kinds of pairs and this version finds {len(columns.distances)}, or at other "
            "distances, in the same supercell; fit the model again"
        )
    outputs, properties = tuple(card["outputs"]), tuple(card["properties"])
    fitted = (arrays[name] for name in ("intercept", "weights", "sizes", "sigma"))
    return PairExpansion(columns, outputs, properties, *fitted)


def _fit_outputs(
    columns: PairColumns, outputs: Sequence[str], x: NDArray[np.float64], labels: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Intercepts (n_outputs,), weights (n_columns, n_outputs) and left-out residuals (n, n_outputs), NaN as labels."""
    intercept, weights = np.empty(len(outputs)), np.zeros((x.shape[1], len(outputs)))
    residuals = np.full(labels.shape, np.nan)
    alike: dict[tuple[bool, bytes], list[int]] = {}  # outputs known of the same rows share their decompositions
    for p, name in enumerate(outputs):
        alike.setdefault((name == ENERGY_PER_SITE, np.isfinite(labels[:, p]).tobytes()), []).append(p)
    for (is_energy, _), chosen in alike.items():
        known = np.isfinite(labels[:, chosen[0]])
        x_known, y = x[known], labels[known][:, chosen]
        lowest = np.full(len(chosen), np.inf)
        for used in _column_choices(columns, x.shape[1], is_energy=is_energy):
            bar = _CLEARLY_LOWER * lowest
            for growth in _GROWTHS:
                scale = 1.0 / np.sqrt(_penalties(columns, len(used), growth))
                error, w, left_out = fit_ridge(x_known[:, used] * scale, y, _STRENGTHS)
                for i in np.flatnonzero(error < np.minimum(bar, lowest)):
                    lowest[i], weights[:, chosen[i]] = error[i], 0.0
                    weights[used, chosen[i]] = scale * w[:, i]
                    residuals[known, chosen[i]] = left_out[:, i]
        intercept[chosen] = y.mean(axis=0) - x_known.mean(axis=0) @ weights[:, chosen]
    return intercept, weights, residuals


def _column_choices(columns: PairColumns, n_columns: int, *, is_energy: bool) -> list[NDArray[np.int64]]:
    """Numbers of columns of the design matrix, in the order of preference."""
    numbers = np.arange(n_columns)
    if not is_energy:
        return [numbers]
    n_types = len(columns.codes)
    n_products = n_types * (n_types + 1) // 2
    is_pair = numbers >= n_columns - columns.n_pairs
    return [numbers[is_pair | (numbers < n_types)], numbers[is_pair | (numbers < n_types + n_products)]]


def _penalties(columns: PairColumns, n_columns: int, growth: float) -> NDArray[np.float64]:
    """(n_columns,): what the square of each weight costs."""
    others = np.full(n_columns - columns.n_pairs, _PENALTY_OF_COMPOSITION)
    return np.concatenate([others, (columns.distances / _UNIT) ** growth])


def _errors_by_size(
    n_defects: NDArray[np.int64], residuals: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Numbers of defects, and the root mean square residuals of each, drawn to that of all where there are few."""
    sizes = np.unique(n_defects)
    of_all = np.nanmean(residuals**2, axis=0)
    sigma = np.empty((len(sizes), residuals.shape[1]))
    for i, size in enumerate(sizes):
        found = residuals[n_defects == size]
        n_found = np.isfinite(found).sum(axis=0)
        sigma[i] = np.sqrt((np.nansum(found**2, axis=0) + _PRIOR_ROWS * of_all) / (n_found + _PRIOR_ROWS))
    return sizes, sigma


def _is_same(a: Supercell, b: Supercell) -> bool:
    """Whether site numbers and pairs of two supercells mean the same."""
    return (
        a.host.name == b.host.name
        and a.host.species == b.host.species
        and np.array_equal(a.matrix, b.matrix)
        and np.allclose(a.host.lattice[:2], b.host.lattice[:2], atol=1e-3)
        and np.allclose(a.positions, b.positions, atol=1e-2)
    )


def _names(codes: Sequence[int]) -> str:
    return ", ".join(DefectType.from_code(code).name for code in codes)
