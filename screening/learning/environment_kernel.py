"""Kernel regression on pairs and local environments: the teacher of the networks where there are few results.

A Gaussian process (Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), ch. 2) for each property of
configurations in one lattice of sites, the energy per defect. Its covariance of two configurations is a sum of

    a0 + a1 s.s'                            composition: s the shares of the defect types
    + a2 sum_p n_p n'_p (3 / d_p)^g         pairs: n_p pairs of class p per defect, at distance d_p
    + a3 exp(-|c - c'|^2 / 2)               composition and density together
    + a4 M                                  a sum over defects: M the mean over both sets of defects of equal type of
                                            exp(-|e - e'|^2 / 2 l^2), e the defects around a defect by type and class of
                                            pair, each weighted by exp(-d / r)
    + a5 exp(-|phi - phi'|^2 / 2 b^2)       the same mean, bent: |phi - phi'|^2 = M(x,x) + M(x',x') - 2 M(x,x')

(the sum of local terms as in Bartok et al., Phys. Rev. Lett. 104, 136403 (2010); the last as in Muandet et al., NeurIPS
2012). Amplitudes, lengths and the noise, which depends on the number of defects, maximise the marginal likelihood under
a broad prior, on at most `_ROWS_TO_TUNE` rows. On 2DMD it is better than the networks where they have seen 300 results
(energy per site of h-BN: 76 against 99 meV) and costs far too much for 10^8 candidates; so it labels configurations
that were never calculated, and the networks learn them (`screening.learning.training`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from screening.defects.defect_types import Configuration
from screening.learning.graph import pair_table
from screening.learning.pair_columns import PairColumns, blocks_of

FEWEST_ROWS = 30  # fewer do not tell eleven parameters
MOST_ROWS = 1500  # 3 s for a member; more have met every environment
_ROWS_TO_TUNE = 400
_NEAR = 9.0  # angstrom, of an environment
_RANGES = (2.0, 5.0)  # angstrom, r above
_LENGTHS = (0.25, 0.5)  # l above
_UNIT = 3.0  # angstrom, about the nearest distance
_BLOCK = 1024  # configurations labelled at once: 80 MB of environments

# Where the search begins, in logarithms of amplitudes and lengths (but g and the power of the noise): also the mean of
# their prior, whose standard deviation is 1.5.
_START = {
    "noise": -1.5, "noise_power": 0.0, "constant": 0.0, "type": 0.0, "pair": -0.5, "growth": 3.0,
    "composition": -1.0, "composition_length": -0.7, "density": -1.0, "local": -1.0, "bent": -0.7, "bent_length": -1.0,
}  # fmt: skip
_PRIOR = 1.5
_BOUNDS = (-7.0, 8.0)

Scale = tuple[float, float]
Parts = tuple[Tensor, ...]  # M of both, of the first with itself, of the second with itself


@dataclass(frozen=True, eq=False)
class Described:
    """What the kernel sees of n configurations in one lattice of sites; float64 but for the environments.

    Attributes:
        n_defects: (n,).
        shares: (n, K) of the defect types.
        pairs: (n, n_pairs) per defect.
        distances: (n_pairs,) angstrom.
        environments: per type (n_kinds, n_near) float32, the distinct numbers of defects around a defect, by type and
            class of pair.
        weights: per type (n, n_kinds) float32, how many of the defects of a configuration have it, per defect.
        near: (n_near,) angstrom, distances of the columns of environments.
    """

    n_defects: Tensor
    shares: Tensor
    pairs: Tensor
    distances: Tensor
    environments: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    near: Tensor

    def chosen(self, rows: Tensor) -> Described:
        """The same of some configurations; rows: (m,) int64."""
        return Described(
            self.n_defects[rows],
            self.shares[rows],
            self.pairs[rows],
            self.distances,
            self.environments,
            tuple(weights[rows] for weights in self.weights),
            self.near,
        )


@dataclass(frozen=True, eq=False)
class EnvironmentKernel:
    """A fitted kernel regression of one property, several times: for each member without the rows it leaves out.

    Attributes:
        rows: the n rows it has learnt from.
        parameters: as `_START`.
        scale: (r, l) of the environments.
        mean: of the labels.
        std: of the labels.
        weights: (n, n_members), 0 for the rows that a member leaves out.
    """

    rows: Described
    parameters: Mapping[str, float]
    scale: Scale
    mean: float
    std: float
    weights: Tensor

    def predict(self, block: Described) -> Tensor:
        """(n_members, n) float64."""
        parameters = {name: torch.tensor(value, dtype=torch.float64) for name, value in self.parameters.items()}
        covariance = _covariance(block, self.rows, _parts(block, self.rows, self.scale), parameters)
        return (self.mean + self.std * covariance @ self.weights).T


def describe(columns: PairColumns, configurations: Sequence[Configuration]) -> Described:
    """What the kernel sees of configurations.

    Args:
        columns: of all defect types that occur.
        configurations: n of them, none pristine.
    """
    table = pair_table(columns.supercell)
    number = table.number.numpy()
    distance = np.zeros(len(table.features))
    distance[number] = columns.supercell.pair_distances
    near = np.flatnonzero((distance > 0) & (distance < _NEAR))
    column = np.full(len(distance), -1)
    column[near] = np.arange(len(near))
    n_types = len(columns.codes)
    kinds: list[NDArray[np.int64]] = []
    owners: list[NDArray[np.int64]] = []
    around: list[NDArray[np.float32]] = []
    for rows, sites, codes in blocks_of(configurations):
        n_rows, k = sites.shape
        kind = np.searchsorted(columns.codes, codes)
        counts = np.zeros((n_rows * k, n_types * len(near)), np.float32)
        for i, j in product(range(k), repeat=2):
            place = column[number[sites[:, i], sites[:, j]]]
            known = np.flatnonzero(place >= 0) if i != j else np.empty(0, np.int64)
            counts[known * k + i, kind[known, j] * len(near) + place[known]] += 1.0
        kinds.append(kind.ravel())
        owners.append(np.repeat(rows, k))
        around.append(counts)
    types, pairs = columns.counts_of(configurations)
    n_defects = types.sum(axis=1, keepdims=True)
    environments, weights = _distinct(
        np.concatenate(kinds), np.concatenate(owners), np.concatenate(around), n_defects[:, 0], n_types
    )
    return Described(
        n_defects=torch.from_numpy(n_defects[:, 0]).double(),
        shares=torch.from_numpy(types / n_defects).double(),
        pairs=torch.from_numpy(pairs / n_defects).double(),
        distances=torch.from_numpy(columns.distances),
        environments=environments,
        weights=weights,
        near=torch.from_numpy(np.tile(distance[near], n_types)),
    )


def fit_environment_kernels(
    columns: PairColumns,
    configurations: Sequence[Configuration],
    labels: NDArray[np.float64],
    folds: NDArray[np.int64],
    *,
    n_members: int,
) -> list[EnvironmentKernel | None]:
    """A regression of each property, and once per member without its fold; None where there is too little to learn.

    Args:
        columns: of all defect types that occur.
        configurations: n of them, at most `MOST_ROWS`.
        labels: (n, n_properties) float64, NaN where unknown.
        folds: (n,); member m leaves the rows of fold m out.
    """
    rows = describe(columns, configurations)
    grids: dict[bytes, _Grid] = {}  # properties known of the same rows share their likenesses
    fitted: dict[bytes, EnvironmentKernel | None] = {}  # gaps of both spins are one where there is no spin
    for column in labels.T:
        known = np.flatnonzero(np.isfinite(column))
        if column.tobytes() in fitted:
            continue
        if len(known) < FEWEST_ROWS or not np.ptp(column[known]) > 0:
            fitted[column.tobytes()] = None
            continue
        if known.tobytes() not in grids:
            grids[known.tobytes()] = _Grid.of(rows.chosen(torch.from_numpy(known)))
        fitted[column.tobytes()] = _fit(grids[known.tobytes()], column[known], folds[known], n_members)
    return [fitted[column.tobytes()] for column in labels.T]


def predict_all(
    columns: PairColumns, kernels: Sequence[EnvironmentKernel | None], configurations: Sequence[Configuration]
) -> NDArray[np.float64]:
    """(n_members, n, n_properties) of configurations of any number of defects, in their order; NaN without a kernel."""
    n_members = max((kernel.weights.shape[1] for kernel in kernels if kernel is not None), default=0)
    values = np.full((n_members, len(configurations), len(kernels)), np.nan)
    for start in range(0, len(configurations), _BLOCK):
        block = describe(columns, configurations[start : start + _BLOCK])
        for p, kernel in enumerate(kernels):
            if kernel is not None:
                values[:, start : start + _BLOCK, p] = kernel.predict(block).numpy()
    return values


@dataclass(frozen=True, eq=False)
class _Grid:
    """Rows, those of them that parameters are tuned on, and M of these for every scale."""

    rows: Described
    some: Tensor
    tuned: Described
    parts: Mapping[Scale, Parts]

    @classmethod
    def of(cls, rows: Described) -> _Grid:
        n_rows = len(rows.n_defects)
        some = torch.arange(0, n_rows, max(1, -(-n_rows // _ROWS_TO_TUNE)))
        tuned = rows.chosen(some)
        return cls(rows, some, tuned, {scale: _parts(tuned, tuned, scale) for scale in product(_RANGES, _LENGTHS)})


def _parts(a: Described, b: Described, scale: Scale) -> Parts:
    own = self_likeness(b, scale)
    return likeness(a, b, scale), own if a is b else self_likeness(a, scale), own


def _fit(grid: _Grid, labels: NDArray[np.float64], folds: NDArray[np.int64], n_members: int) -> EnvironmentKernel:
    mean, std = float(labels.mean()), float(labels.std())
    z = torch.from_numpy((labels - mean) / std)
    parameters, scale = _tune(grid, z[grid.some])
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in parameters.items()}
    covariance = _covariance(grid.rows, grid.rows, _parts(grid.rows, grid.rows, scale), tensors)
    covariance += torch.diag(_noise(grid.rows, tensors))
    weights = torch.zeros(len(z), n_members, dtype=torch.float64)
    for member in range(n_members):
        kept = torch.from_numpy(np.flatnonzero(folds != member))
        if len(kept):
            factor = _cholesky(covariance[kept][:, kept])
            weights[kept, member] = torch.cholesky_solve(z[kept, None], factor)[:, 0]
    return EnvironmentKernel(grid.rows, parameters, scale, mean, std, weights)


def likeness(a: Described, b: Described, scale: Scale) -> Tensor:
    """M (n_a, n_b) float64 of the module's docstring."""
    reach, length = scale
    total = torch.zeros(len(a.n_defects), len(b.n_defects), dtype=torch.float64)
    damping = (torch.exp(-a.near / reach) / length).float()
    for e_a, w_a, e_b, w_b in zip(a.environments, a.weights, b.environments, b.weights, strict=True):
        if len(e_a) and len(e_b):
            total += _on_both_sides(w_a, torch.exp(-0.5 * _squares(e_a * damping, e_b * damping)), w_b)
    return total


def self_likeness(rows: Described, scale: Scale) -> Tensor:
    """M(x, x) (n,) float64."""
    reach, length = scale
    total = torch.zeros(len(rows.n_defects), dtype=torch.float64)
    damping = (torch.exp(-rows.near / reach) / length).float()
    for environments, weights in zip(rows.environments, rows.weights, strict=True):
        if len(environments):
            scaled = environments * damping
            alike = torch.sparse.mm(weights.to_sparse(), torch.exp(-0.5 * _squares(scaled, scaled)))
            total += (alike * weights).sum(dim=1)
    return total


def _on_both_sides(a: Tensor, alike: Tensor, b: Tensor) -> Tensor:
    """``a alike b^T``; a row of a and of b has few entries that are not 0, so this costs little more than `alike`."""
    product: Tensor = torch.sparse.mm(b.to_sparse(), torch.sparse.mm(a.to_sparse(), alike).T)
    return product.T


def _distinct(
    kinds: NDArray[np.int64],
    owners: NDArray[np.int64],
    around: NDArray[np.float32],
    n_defects: NDArray[np.float32],
    n_types: int,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Environments and weights of `Described`."""
    environments, weights = [], []
    for kind in range(n_types):
        chosen = np.flatnonzero(kinds == kind)
        distinct, place = torch.unique(torch.from_numpy(around[chosen]), dim=0, return_inverse=True)
        owner = torch.from_numpy(owners[chosen])
        weight = torch.zeros(len(n_defects), len(distinct))
        weight.index_put_((owner, place), 1.0 / torch.from_numpy(n_defects)[owner], accumulate=True)
        environments.append(distinct)
        weights.append(weight)
    return tuple(environments), tuple(weights)


def _tune(grid: _Grid, z: Tensor) -> tuple[dict[str, float], Scale]:
    """The likeliest parameters, and (r, l), for labels z of mean 0 and variance 1 of the rows to tune on."""
    names, start = list(_START), np.array(list(_START.values()))
    best: tuple[float, NDArray[np.float64], Scale] | None = None
    for scale, of_scale in grid.parts.items():

        def cost(values: NDArray[np.float64], parts: Parts = of_scale) -> tuple[float, NDArray[np.float64]]:
            given = torch.tensor(values, requires_grad=True)
            loss = _negative_log_posterior(grid.tuned, z, parts, dict(zip(names, given.unbind(), strict=True)))
            (gradient,) = torch.autograd.grad(loss, given)
            return float(loss.detach()), gradient.numpy()

        found = minimize(
            cost, start if best is None else best[1], jac=True, method="L-BFGS-B",
            bounds=[_BOUNDS] * len(start), options={"maxiter": 60 if best is None else 25},
        )  # fmt: skip
        if best is None or found.fun < best[0]:
            best = (found.fun, found.x, scale)
    assert best is not None
    return dict(zip(names, best[1].tolist(), strict=True)), best[2]


def _negative_log_posterior(rows: Described, z: Tensor, parts: Parts, parameters: Mapping[str, Tensor]) -> Tensor:
    covariance = _covariance(rows, rows, parts, parameters) + torch.diag(_noise(rows, parameters))
    factor = _cholesky(covariance)
    fit = torch.linalg.solve_triangular(factor, z[:, None], upper=False)
    prior = torch.stack([((parameters[name] - mean) / _PRIOR) ** 2 for name, mean in _START.items()]).sum()
    cost: Tensor = 0.5 * (fit**2).sum() + factor.diagonal().log().sum() + 0.5 * prior
    return cost


def _covariance(a: Described, b: Described, parts: Parts, parameters: Mapping[str, Tensor]) -> Tensor:
    """(n_a, n_b); parts: M of both, of a with itself, of b with itself."""
    square = {name: torch.exp(2.0 * value) for name, value in parameters.items()}
    damping = (a.distances / _UNIT) ** (-parameters["growth"])
    mean, own_a, own_b = parts
    apart = (own_a[:, None] + own_b - 2.0 * mean).clamp(min=0.0)
    return (
        square["constant"]
        + square["type"] * a.shares @ b.shares.T
        + square["pair"] * (a.pairs * damping) @ b.pairs.T
        + square["composition"] * torch.exp(-0.5 * _squares(_compositions(a, square), _compositions(b, square)))
        + square["local"] * mean
        + square["bent"] * torch.exp(-0.5 * apart / square["bent_length"])
    )


def _compositions(rows: Described, square: Mapping[str, Tensor]) -> Tensor:
    """(n, K + 1): shares and density in units of their lengths."""
    density = 0.5 * rows.n_defects.log()[:, None] * square["density"]
    return torch.cat([rows.shares, density], dim=1) / square["composition_length"].sqrt()


def _noise(rows: Described, parameters: Mapping[str, Tensor]) -> Tensor:
    """(n,) variance; the unit of the number of defects is ten."""
    return torch.exp(2.0 * parameters["noise"]) * (rows.n_defects / 10.0) ** parameters["noise_power"]


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """(n_a, n_b) squared distances of rows."""
    return ((a**2).sum(dim=1)[:, None] + (b**2).sum(dim=1) - 2.0 * a @ b.T).clamp(min=0.0)


def _cholesky(matrix: Tensor) -> Tensor:
    """Lower factor of a covariance; rounding of nearly equal rows is met by a growing diagonal."""
    jitter = 1e-6 * (1.0 + float(matrix.diagonal().mean().detach()))
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    for _ in range(6):
        factor, failed = torch.linalg.cholesky_ex(matrix + jitter * eye)
        if not bool(failed):
            break
        jitter *= 10.0
    assert isinstance(factor, Tensor)
    return factor
