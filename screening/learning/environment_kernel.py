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
a broad prior, on at most `_ROWS_TO_TUNE` rows; then rows whose labels are far from what the others say get more noise.
Results of a relative (`screening.learning.relatives`) teach too: each term is multiplied by a correlation where one of
two configurations is of the relative (Bonilla et al., NeurIPS 20 (2008)). On 2DMD it is better than the networks where
they have seen 300 results and costs far too much for 10^8 candidates; so it labels configurations that were never
calculated, and the networks learn them (`screening.learning.training`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from screening.defects.defect_types import Configuration
from screening.learning.environments import Described, Scale, describe, likeness, self_likeness, squares
from screening.learning.pair_columns import PairColumns

FEWEST_ROWS = 10  # about as good as the pair expansion from here on, and better from 50 rows
MOST_ROWS = 1500  # 3 s for a member; more have met every environment
_ROWS_TO_TUNE = 400
_OWN_BESIDE_FOREIGN, _FOREIGN_TO_TUNE = 300, 200
_SCALES = ((1.5, 0.15), (1.5, 0.3), (2.0, 0.3), (3.0, 0.3), (5.0, 0.3), (5.0, 0.6))  # r in angstrom, l above
_UNIT = 3.0  # angstrom, about the nearest distance
_FREEDOM = 2.0  # degrees of freedom of the noise
_ROBUST_STEPS = 8
_BLOCK = 1024  # configurations labelled at once: 80 MB of environments

# Where the search begins, in logarithms of amplitudes and lengths (but g and the power of the noise): also the mean of
# their prior, whose standard deviation is 1.5.
_START = {
    "noise": -1.5, "noise_power": 0.0, "constant": 0.0, "type": 0.0, "pair": -0.5, "growth": 3.0,
    "composition": -1.0, "composition_length": -0.7, "density": -1.0, "local": -1.0, "bent": -0.7, "bent_length": -1.0,
}  # fmt: skip
_PRIOR = 1.5
_TERMS = ("constant", "type", "pair", "composition", "local", "bent")
_CORRELATIONS = tuple(f"{term}_correlation" for term in _TERMS)  # their hyperbolic tangents are, with a relative
_OF_RELATIVE = dict.fromkeys(_CORRELATIONS, 0.5) | {"foreign_noise": 0.0}  # the last is added to the noise
_BOUNDS = (-7.0, 8.0)

Parts = tuple[Tensor, ...]  # M of both, of the first with itself, of the second with itself


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is learnt from.

    Attributes:
        configurations: n of them, at most `MOST_ROWS` and those of a relative, which come last.
        labels: (n, n_properties) float64, NaN where unknown.
        folds: (n,); member m leaves the rows of fold m out.
        is_like: (n,) bool, like what shall be labelled: parameters are tuned on these.
        n_foreign: how many are of a relative; no member leaves them out.
    """

    configurations: Sequence[Configuration]
    labels: NDArray[np.float64]
    folds: NDArray[np.int64]
    is_like: NDArray[np.bool_]
    n_foreign: int = 0


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


def fit_environment_kernels(columns: PairColumns, lesson: Lesson, *, n_members: int) -> list[EnvironmentKernel | None]:
    """A regression of each property, and once per member without its fold; None where there is too little to learn.

    Args:
        columns: of all defect types that occur.
        lesson: what to learn from.
    """
    rows = describe(columns, lesson.configurations, n_foreign=lesson.n_foreign)
    grids: dict[bytes, _Grid] = {}  # properties known of the same rows share their likenesses
    fitted: dict[bytes, EnvironmentKernel | None] = {}  # gaps of both spins are one where there is no spin
    for column in lesson.labels.T:
        known = np.flatnonzero(np.isfinite(column))
        own = lesson.is_like[known] & ~rows.is_foreign.numpy()[known]
        if column.tobytes() in fitted:
            continue
        if np.count_nonzero(own) < FEWEST_ROWS or not np.ptp(column[known][own]) > 0:
            fitted[column.tobytes()] = None
            continue
        if known.tobytes() not in grids:
            grids[known.tobytes()] = _Grid.of(rows.chosen(torch.from_numpy(known)), lesson.is_like[known])
        fitted[column.tobytes()] = _fit(grids[known.tobytes()], column[known], lesson.folds[known], n_members)
    return [fitted[column.tobytes()] for column in lesson.labels.T]


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
    """Rows, those of them that parameters are tuned on, and M of these for every scale.

    Attributes:
        own: places of the rows to tune on, without those of a relative.
        tuned: these rows.
        both: places of own rows and those of a relative, to tune their correlation on; none without a relative.
    """

    rows: Described
    own: Tensor
    tuned: Described
    parts: Mapping[Scale, Parts]
    both: Tensor

    @classmethod
    def of(cls, rows: Described, is_like: NDArray[np.bool_]) -> _Grid:
        is_foreign = rows.is_foreign.numpy()
        own = _some(np.flatnonzero(is_like & ~is_foreign), _ROWS_TO_TUNE)
        foreign = _some(np.flatnonzero(is_foreign), _FOREIGN_TO_TUNE)
        both = torch.cat([_some(own.numpy(), _OWN_BESIDE_FOREIGN), foreign]) if len(foreign) else foreign
        tuned = rows.chosen(own)
        return cls(rows, own, tuned, {scale: _parts(tuned, tuned, scale) for scale in _SCALES}, both)


def _some(places: NDArray[np.int64], most: int) -> Tensor:
    """At most so many, from everywhere."""
    return torch.from_numpy(places[:: max(1, -(-len(places) // most))])


def _parts(a: Described, b: Described, scale: Scale) -> Parts:
    own = self_likeness(b, scale)
    return likeness(a, b, scale), own if a is b else self_likeness(a, scale), own


def _fit(grid: _Grid, labels: NDArray[np.float64], folds: NDArray[np.int64], n_members: int) -> EnvironmentKernel:
    is_foreign = grid.rows.is_foreign.numpy()
    mean, std = float(labels[grid.own].mean()), float(labels[grid.own].std())
    z = torch.from_numpy((labels - mean) / std)
    if is_foreign.any():
        foreign = labels[is_foreign]
        z[grid.rows.is_foreign] = torch.from_numpy((foreign - foreign.mean()) / (foreign.std() or 1.0))
    parameters, scale = _tune(grid, z)
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in parameters.items()}
    covariance = _covariance(grid.rows, grid.rows, _parts(grid.rows, grid.rows, scale), tensors)
    noise = _noise(grid.rows, tensors)
    weights = torch.zeros(len(z), n_members, dtype=torch.float64)
    for member in range(n_members):
        kept = torch.from_numpy(np.flatnonzero((folds != member) | is_foreign))
        if len(kept):
            of_kept = covariance[kept][:, kept]
            factor = _cholesky(of_kept + torch.diag(_robust_noise(of_kept, noise[kept], z[kept])))
            weights[kept, member] = torch.cholesky_solve(z[kept, None], factor)[:, 0]
    return EnvironmentKernel(grid.rows, parameters, scale, mean, std, weights)


def _tune(grid: _Grid, z: Tensor) -> tuple[dict[str, float], Scale]:
    """The likeliest parameters, and (r, l), for labels z of mean 0 and variance 1 of all rows."""
    start: Mapping[str, float] = _START
    best: tuple[float, dict[str, float], Scale] | None = None
    for scale, parts in grid.parts.items():
        found = _most_likely(grid.tuned, z[grid.own], parts, start, steps=60 if best is None else 25)
        if best is None or found[0] < best[0]:
            best = *found, scale
        start = best[1]
    assert best is not None
    _, parameters, scale = best
    if len(grid.both):
        both = grid.rows.chosen(grid.both)
        start = parameters | _OF_RELATIVE
        _, parameters = _most_likely(both, z[grid.both], _parts(both, both, scale), start, steps=40)
    return parameters, scale


def _most_likely(
    rows: Described, z: Tensor, parts: Parts, start: Mapping[str, float], *, steps: int
) -> tuple[float, dict[str, float]]:
    """The least negative logarithm of the posterior that a search from a start finds, and the parameters there."""

    def cost(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        given = torch.tensor(values, requires_grad=True)
        loss = _negative_log_posterior(rows, z, parts, dict(zip(start, given.unbind(), strict=True)))
        (gradient,) = torch.autograd.grad(loss, given)
        return float(loss.detach()), gradient.numpy()

    found = minimize(
        cost, np.array(list(start.values())), jac=True, method="L-BFGS-B", bounds=[_BOUNDS] * len(start),
        options={"maxiter": steps},
    )  # fmt: skip
    return float(found.fun), dict(zip(start, found.x.tolist(), strict=True))


def _negative_log_posterior(rows: Described, z: Tensor, parts: Parts, parameters: Mapping[str, Tensor]) -> Tensor:
    covariance = _covariance(rows, rows, parts, parameters) + torch.diag(_noise(rows, parameters))
    factor = _cholesky(covariance)
    fit = torch.linalg.solve_triangular(factor, z[:, None], upper=False)
    means = _START | _OF_RELATIVE
    prior = torch.stack([((value - means[name]) / _PRIOR) ** 2 for name, value in parameters.items()]).sum()
    cost: Tensor = 0.5 * (fit**2).sum() + factor.diagonal().log().sum() + 0.5 * prior
    return cost


def _covariance(a: Described, b: Described, parts: Parts, parameters: Mapping[str, Tensor]) -> Tensor:
    """(n_a, n_b); parts: M of both, of a with itself, of b with itself."""
    square = {name: torch.exp(2.0 * parameters[name]) for name in _START}
    damping = (a.distances / _UNIT) ** (-parameters["growth"])
    mean, own_a, own_b = parts
    apart = (own_a[:, None] + own_b - 2.0 * mean).clamp(min=0.0)
    terms = {
        "constant": square["constant"],
        "type": square["type"] * (a.shares @ b.shares.T),
        "pair": square["pair"] * ((a.pairs * damping) @ b.pairs.T),
        "composition": square["composition"]
        * torch.exp(-0.5 * squares(_compositions(a, square), _compositions(b, square))),
        "local": square["local"] * mean,
        "bent": square["bent"] * torch.exp(-0.5 * apart / square["bent_length"]),
    }
    if parameters.keys() >= _OF_RELATIVE.keys():
        is_apart = a.is_foreign[:, None] != b.is_foreign
        terms = {
            term: value * torch.where(is_apart, torch.tanh(parameters[correlation]), 1.0)
            for (term, value), correlation in zip(terms.items(), _CORRELATIONS, strict=True)
        }
    total: Tensor = sum(terms.values(), start=torch.zeros(()))
    return total


def _compositions(rows: Described, square: Mapping[str, Tensor]) -> Tensor:
    """(n, K + 1): shares and density in units of their lengths."""
    density = 0.5 * rows.n_defects.log()[:, None] * square["density"]
    return torch.cat([rows.shares, density], dim=1) / square["composition_length"].sqrt()


def _noise(rows: Described, parameters: Mapping[str, Tensor]) -> Tensor:
    """(n,) variance; the unit of the number of defects is ten."""
    noise = torch.exp(2.0 * parameters["noise"]) * (rows.n_defects / 10.0) ** parameters["noise_power"]
    if "foreign_noise" in parameters:
        noise = torch.where(rows.is_foreign, noise * torch.exp(2.0 * parameters["foreign_noise"]), noise)
    return noise


def _robust_noise(covariance: Tensor, noise: Tensor, z: Tensor) -> Tensor:
    """(n,) variance of the noise, larger where a label is far from what the others say: errors have heavy tails.

    As for noise with Student's t distribution (West, J. R. Stat. Soc. B 46, 431 (1984)), by leave-one-out errors
    (Rasmussen and Williams, eqs. 5.10 to 5.12).
    """
    weights = torch.ones_like(noise)
    for _ in range(_ROBUST_STEPS):
        factor = _cholesky(covariance + torch.diag(noise / weights))
        inverse = torch.cholesky_inverse(factor)
        left_out = (inverse @ z) / inverse.diagonal()
        expected = 1.0 / inverse.diagonal() - noise / weights + noise
        weights = (_FREEDOM + 1.0) / (_FREEDOM + left_out**2 / expected)
        weights /= weights.mean()
    return noise / weights


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
