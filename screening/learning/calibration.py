"""From the spread of an ensemble's members to standard deviations and intervals that hold.

For an output of a configuration with k defects in host h, of which the members spread by u,

    sigma^2 = floor(h, k)^2 + (factor(h, k) u)^2,

such that 68 % of the errors are below sigma and 95 % below a multiple(h, k) of it, which is larger than 1.96 where
errors have heavy tails. Both are conformal: order statistics of the errors of rows that were left out, with the
finite-sample place p (n + 1) (Vovk et al., Algorithmic Learning in a Random World (2005), ch. 2; scaled by sigma as in
Papadopoulos et al., ECML 2002). No distribution is assumed for what has been seen, and one bad row does not move them.

Numbers of defects that were seen rarely or never, and hosts with few rows, borrow from the others. The logarithm of the
scale of the errors is kriged over host and number of defects: a mean of all, a part of each host, and within a host
(and a little in common) a process that is interpolated in log k between what was seen (Rasmussen and Williams, Gaussian
Processes (2006), eq. 2.23-2.26). Where many rows are seen it returns their own order statistic. The uncertainty of an
interpolated scale does not change a 68 % interval to second order, but the 95 % one: see `_TAIL_OF_DOUBT`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, rankdata

Rows = NDArray[np.float64]  # (n, n_outputs)

STANDARD, WIDE = 0.68, 0.95  # what the intervals hold that are kept; the first is the standard deviation
NORMAL_MULTIPLE = 1.96
_SMALLEST_SCALE = 1e-6  # of an output's scale: errors below are zero
_TRUSTS = np.linspace(0.0, 1.0, 11)  # how far a standard deviation follows the spread of the members
_TRUST_ROWS = 100.0  # what all hosts together say of the trust weighs as many rows of a host

# Prior of the logarithm of a scale, from the scales of 2DMD: hosts differ by factors of ten, k and 2 k by two.
_OF_ALL, _OF_HOST, _OF_SIZE, _OF_HOST_AND_SIZE = 10.0, 1.0, 0.5, 0.7  # standard deviations
_REACH = 1.0  # in log k, of the correlation
_OF_QUANTILE = 1.0  # variance of the logarithm of an order statistic of n rows, times n; 0.93 and 0.90 if normal
_OF_FEW = 2.0  # rows; the logarithm of so few errors has a long tail towards zero
_DRAWS = 16  # places of a normal distribution, for deviations from a standard deviation
_RANKS = np.array([0.1, 0.3, 0.5, 0.68, 0.8, 0.9, 0.95])
_MANY_ROWS = 20  # of a cell that tells by itself how much its members have in common
_OF_MULTIPLE = 0.3  # the multiple varies less than the scale: part of the standard deviations above

# A 95 % half width x of a normal distribution whose log scale has variance v: the coverage C(x) = 2 Phi(e^x) - 1
# loses v / 2 C'' = -0.65 v / 2, which x + 1.4 v mends (C' = 0.229); at 68 % C'' is 0.
_TAIL_OF_DOUBT = 1.4


@dataclass(frozen=True, eq=False)
class Calibration:
    """Tables of what turns spreads into standard deviations, for every host and number of defects.

    The last row is that of any other host; more defects than the tables have are as their last column.

    Attributes:
        floors: (n_hosts + 1, n_sizes, n_outputs) float64, eV or Bohr magneton; of 1, 2, ... defects.
        factors: (n_hosts + 1, n_sizes, n_outputs) float64.
        multiples: (n_hosts + 1, n_sizes, n_outputs) float64: half width of the 95 % interval by the standard deviation.
    """

    floors: NDArray[np.float64]
    factors: NDArray[np.float64]
    multiples: NDArray[np.float64]

    def std(self, spreads: Rows, host: NDArray[np.int64] | int, n_defects: NDArray[np.int64] | int) -> Rows:
        """Standard deviations (n, n_outputs) of spreads of the same shape.

        Args:
            host: index of the host of each row, or of all; -1 is a host that was never seen.
            n_defects: of each row, or of all.
        """
        place = self._place(host, n_defects)
        return np.asarray(np.hypot(self.floors[place], self.factors[place] * spreads))

    def half_width(
        self, level: float, std: Rows, host: NDArray[np.int64] | int, n_defects: NDArray[np.int64] | int
    ) -> Rows:
        """Half width (n, n_outputs) of the interval around the mean that holds a share of the labels.

        Args:
            level: `STANDARD` or `WIDE`.
            std: (n, n_outputs), of `std`, widened or not.
            host: as in `std`.
            n_defects: as in `std`.
        """
        assert level in (STANDARD, WIDE), f"intervals of {STANDARD} and {WIDE} are calibrated, not of {level}"
        return std if level == STANDARD else std * self.multiples[self._place(host, n_defects)]

    def completed(self, before: Calibration, is_measured: Callable[[int, int], bool]) -> Calibration:
        """The same for what was measured; the rest, and any other host, is as it was before.

        Args:
            before: of a model whose hosts are the first of these.
            is_measured: of the index of a host and a number of defects: whether errors of their domain made this one.
        """
        n_hosts = max(len(self.floors), len(before.floors)) - 1
        size = np.arange(1, max(self.floors.shape[1], before.floors.shape[1]) + 1)

        def table(name: str) -> NDArray[np.float64]:
            rows = []
            for host in (*range(n_hosts), -1):
                new, old = (getattr(owner, name)[owner._place(host, size)] for owner in (self, before))
                measured = np.array([host >= 0 and is_measured(host, k) for k in size.tolist()])
                rows.append(np.where(measured[:, None], new, old))
            return np.stack(rows)

        return Calibration(table("floors"), table("factors"), table("multiples"))

    def _place(
        self, host: NDArray[np.int64] | int, n_defects: NDArray[np.int64] | int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        n_rows, n_sizes, _ = self.floors.shape
        return np.minimum(host, n_rows - 1), np.minimum(n_defects, n_sizes) - 1


def uniform_calibration(floors: NDArray[np.float64], factors: NDArray[np.float64], *, n_hosts: int) -> Calibration:
    """One floor and one factor (n_outputs,) for all hosts and numbers of defects, and normal errors."""
    shape = (n_hosts + 1, 1, len(floors))
    floors, factors = np.broadcast_to(floors, shape).copy(), np.broadcast_to(factors, shape).copy()
    return Calibration(floors, factors, np.full(shape, NORMAL_MULTIPLE))


def calibrate(
    errors: Rows,
    spreads: Rows,
    host_of_row: NDArray[np.int64],
    n_defects: NDArray[np.int64],
    *,
    scales: NDArray[np.float64],
) -> Calibration:
    """The calibration that errors of left-out rows ask for.

    A host whose index is above all in `host_of_row` has the row of any other host.

    Args:
        errors: (n, n_outputs), mean minus label, of predictions that have not learnt from the row; NaN without a label.
        spreads: (n, n_outputs), standard deviation over the members.
        host_of_row: (n,) index of the host.
        n_defects: (n,) at least 1.
        scales: (n_outputs,), eV or Bohr magneton, the standard deviation of an output that has no label at all.
    """
    n_hosts = int(host_of_row.max(initial=-1)) + 1
    n_sizes = int(n_defects.max(initial=1))
    tables = [
        _calibrate_output(errors[:, p], spreads[:, p], host_of_row, n_defects, float(scales[p]))
        for p in range(errors.shape[1])
    ]
    found = np.stack(tables, axis=-1)  # (3, n_hosts + 1, n_sizes, n_outputs)
    assert found.shape[1:3] == (n_hosts + 1, n_sizes)
    return Calibration(*found)


def spreads_of_left_out(
    outputs: NDArray[np.floating[Any]], left_out_by: NDArray[np.int64], n_defects: NDArray[np.int64]
) -> Rows:
    """Spreads (n, n_outputs) of the members over rows that all but one of them have learnt, as if none had.

    The standard deviation over all members would have the error of the one that left the row out in it, and so follow
    the errors better here than on new rows. It is taken over the others, which tell where members disagree, and made as
    large, in the median over the rows with as many defects, as that over all: of the gap of MoS2 low 1.26 meV, on new
    rows too. (Made as large in the mean square, which few bad rows rule, 2.04: 48 % of labels were in 68 % intervals.)
    Measured on 2DMD with networks that fit their rows closely: with the standard deviation over all members the 95 %
    intervals of GaSe and h-BN held 90 and 92 % of new rows, with that over the others, enlarged, 95 and 96 %.

    Args:
        outputs: (n_members, n, n_outputs) of one host.
        left_out_by: (n,) member that has not learnt from the row.
        n_defects: (n,).
    """
    of_all = np.asarray(outputs.std(axis=0, ddof=1), np.float64)
    n_members, n_rows, n_outputs = outputs.shape
    if n_members < 3:
        return of_all
    has_learnt = left_out_by[:, None] != np.arange(n_members)  # (n, n_members)
    others = outputs.transpose(1, 0, 2)[has_learnt].reshape(n_rows, n_members - 1, n_outputs)
    spreads = np.asarray(others.std(axis=1, ddof=1), np.float64)
    scales = np.empty_like(spreads)
    sizes, size_of_row, n_of_size = np.unique(n_defects, return_inverse=True, return_counts=True)
    for size in range(len(sizes)):
        rows = size_of_row.reshape(-1) == size
        near = rows if n_of_size[size] >= _MANY_ROWS else np.ones_like(rows)
        medians = np.median(of_all[near], axis=0), np.median(spreads[near], axis=0)
        scales[rows] = medians[0] / np.maximum(medians[1], np.finfo(float).tiny)
    return spreads * scales


def errors_of_mean(
    errors: Rows, spreads: Rows, host_of_row: NDArray[np.int64], n_defects: NDArray[np.int64], *, n_members: int
) -> Rows:
    """Errors (n, n_outputs) of single members, made as small as those of the mean of all members would be.

    In cross-fitting the prediction of a left-out row is that of one member, but what ships is the mean of M. With what
    the members have in common, b, and what each has for itself, v, a member errs by b^2 + v^2 and the mean by
    b^2 + v^2 / M; member minus mean, which needs no label, is v^2 (1 - 1 / M). So errors shrink, by host, number of
    defects and output, by ``sqrt(1 - (d / e)^2)`` with d and e quantiles of the deviations and of the errors, each
    error by that at its rank: tails are what members have in common. On left-out rows the other members know the
    label and are nearer to each other than on new ones, which makes v too small, and the errors too large, by some
    per cent. Measured on 2DMD, errors of new rows by those of left-out ones, 68 % quantiles, six outputs: 0.81 in the
    low-density sets (here 0.83), 0.95 in the others (0.96).

    Args:
        errors: (n, n_outputs), the member's prediction minus the label; NaN without a label.
        spreads: (n, n_outputs), standard deviation over the members.
        host_of_row: (n,) index of the host.
        n_defects: (n,).
        n_members: M.
    """
    if n_members == 1:
        return errors
    hosts, cells = _cells_of(host_of_row, np.ones_like(n_defects)), _cells_of(host_of_row, n_defects)
    draws = _deviations(n_members)
    shrunk = np.empty_like(errors)
    for p in range(errors.shape[1]):
        of_host, of_cell = (_parts_in_common(errors[:, p], spreads[:, p], c, draws) for c in (hosts, cells))
        has_many = (cells.n_rows >= _MANY_ROWS)[cells.of_row]
        part = np.where(has_many, of_cell, of_host)
        shrunk[:, p] = errors[:, p] * np.maximum(part, n_members**-0.5)
    return shrunk


def _parts_in_common(
    errors: NDArray[np.float64], spreads: NDArray[np.float64], cells: _Cells, draws: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,): the error of a mean of members as a part of that of a single one, by the rank of the error in its cell."""
    parts = np.ones(len(errors))
    for cell in range(len(cells.n_rows)):
        rows = np.flatnonzero(np.isfinite(errors) & (cells.of_row == cell))
        if not len(rows):
            continue
        sizes = np.abs(errors[rows])
        single = np.quantile(sizes, _RANKS)
        own = np.quantile(spreads[rows, None] * draws, _RANKS)
        of_rank = np.sqrt(np.maximum(1.0 - (own / np.maximum(single, np.finfo(float).tiny)) ** 2, 0.0))
        parts[rows] = np.interp(rankdata(sizes) / (len(rows) + 1), _RANKS, of_rank)
    return parts


def _deviations(n_members: int) -> NDArray[np.float64]:
    """Quantiles of how far a normal member is from the mean, in standard deviations over the members.

    The square of this is (M - 1)^2 / M of a beta distribution (Cook and Weisberg, Residuals and Influence in Regression
    (1982), sec. 2.2.1).
    """
    places = (np.arange(_DRAWS) + 0.5) / _DRAWS
    squares = beta.ppf(places, 0.5, 0.5 * (n_members - 2)) if n_members > 2 else np.ones(1)
    return np.asarray((n_members - 1) * np.sqrt(squares / n_members))


def _calibrate_output(
    errors: NDArray[np.float64],
    spreads: NDArray[np.float64],
    host: NDArray[np.int64],
    n_defects: NDArray[np.int64],
    scale: float,
) -> NDArray[np.float64]:
    """(3, n_hosts + 1, n_sizes): floors, factors and multiples of one output."""
    shape = (int(host.max(initial=-1)) + 2, int(n_defects.max(initial=1)))
    known = np.isfinite(errors)
    if not known.any():
        return np.stack([np.full(shape, scale), np.ones(shape), np.full(shape, NORMAL_MULTIPLE)])
    cells = _cells_of(host[known], n_defects[known])
    size, spread = np.maximum(np.abs(errors[known]), _SMALLEST_SCALE * (scale or 1.0)), spreads[known]
    typical = np.ones(shape)  # of the spread
    relative = np.ones_like(spread)
    if (spread > 0).all():
        mean_square = cells.sums(spread**2) / cells.n_rows
        typical = np.exp(_krige(0.5 * np.log(mean_square), cells, shape)[0])
        relative = spread / typical[cells.host, cells.n_defects - 1][cells.of_row]
    trust = _trust(size, relative, cells) if (spread > 0).all() else np.zeros(shape[0])
    shapes = _shapes(relative, trust[cells.host][cells.of_row])
    log_scale, doubt = _krige(np.log(cells.quantiles(size / shapes, STANDARD)), cells, shape)
    sigma = shapes * np.exp(log_scale[cells.host, cells.n_defects - 1])[cells.of_row]
    multiple, _ = _krige(np.log(cells.quantiles(size / sigma, WIDE)), cells, shape, part=_OF_MULTIPLE)
    return np.stack(
        [
            np.exp(log_scale) * np.sqrt(1.0 - trust)[:, None],
            np.exp(log_scale) * np.sqrt(trust)[:, None] / typical,
            np.exp(np.maximum(multiple, 0.0) + _TAIL_OF_DOUBT * doubt),
        ]
    )


@dataclass(frozen=True, eq=False)
class _Cells:
    """Rows that have host and number of defects in common.

    Attributes:
        host: (n_cells,).
        n_defects: (n_cells,).
        n_rows: (n_cells,).
        of_row: (n,) cell of each row.
    """

    host: NDArray[np.int64]
    n_defects: NDArray[np.int64]
    n_rows: NDArray[np.int64]
    of_row: NDArray[np.int64]

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n_cells,) sums of values (n,)."""
        return np.asarray(np.bincount(self.of_row, values, minlength=len(self.n_rows)), np.float64)

    def quantiles(self, values: NDArray[np.float64], level: float) -> NDArray[np.float64]:
        """(n_cells,) conformal quantiles of values (n,)."""
        starts = np.cumsum(self.n_rows)[:-1]
        in_order = np.split(values[np.argsort(self.of_row, kind="stable")], starts)
        return np.array([conformal_quantile(of_cell, level) for of_cell in in_order])


def conformal_quantile(values: NDArray[np.float64], level: float) -> float:
    """What a further value is below with this probability: the order statistic at place level (n + 1).

    Between two places it is interpolated; beyond the last one it is the largest value, which is too small for fewer
    than level / (1 - level) values.
    """
    return float(np.interp(level * (len(values) + 1), np.arange(1, len(values) + 1), np.sort(values)))


def _cells_of(host: NDArray[np.int64], n_defects: NDArray[np.int64]) -> _Cells:
    pairs, of_row, n_rows = np.unique(
        np.stack([host, n_defects], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    return _Cells(pairs[:, 0], pairs[:, 1], n_rows, of_row.reshape(-1))


def _shapes(relative: NDArray[np.float64], trust: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """(n,) standard deviations up to the scale of their cell, from spreads relative to what is typical of it."""
    return np.asarray(np.sqrt(1.0 - trust + trust * relative**2))


def _trust(size: NDArray[np.float64], relative: NDArray[np.float64], cells: _Cells) -> NDArray[np.float64]:
    """(n_hosts + 1,): how far the errors of each host follow the spread, by likelihood under heavy tails.

    Student's t with four degrees of freedom, in which an outlier costs a logarithm; hosts with few rows follow the mean
    over the hosts.
    """
    hosts = cells.host[cells.of_row]
    n_of_host = np.bincount(hosts)
    costs = []
    for trust in _TRUSTS:
        shapes = _shapes(relative, float(trust))
        sigma = shapes * cells.quantiles(size / np.maximum(shapes, 1e-9), STANDARD)[cells.of_row]
        sigma = np.maximum(sigma, 1e-9 * size.max())
        cost = np.log(sigma) + 2.5 * np.log1p((size / sigma) ** 2 / 4.0)
        costs.append(np.bincount(hosts, cost))
    summed = np.append(np.array(costs), np.zeros((len(_TRUSTS), 1)), axis=1)  # (n_trusts, n_hosts + 1)
    of_all = (summed[:, :-1] / np.maximum(n_of_host, 1)).sum(axis=1) / np.count_nonzero(n_of_host)
    cost = summed + _TRUST_ROWS * of_all[:, None]
    chances = np.exp(cost.min(axis=0) - cost)  # a mean over what is likely overfits less than the likeliest
    return np.asarray(_TRUSTS @ chances / chances.sum(axis=0))


def _krige(
    values: NDArray[np.float64], cells: _Cells, shape: tuple[int, int], *, part: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance (n_hosts + 1, n_sizes) of a logarithm that was measured in cells (n_cells,).

    Args:
        part: of the prior's standard deviations but that of all.
    """
    host, size = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
    within = (cells.host, np.log(cells.n_defects))
    wanted = (host, np.log(size + 1.0))
    measured = _covariance(within, within, part) + np.diag(_OF_QUANTILE / cells.n_rows * (1.0 + _OF_FEW / cells.n_rows))
    across = _covariance(wanted, within, part)  # (n_wanted, n_cells)
    centre = float(np.average(values, weights=cells.n_rows / (cells.n_rows + 1.0)))
    solved = np.linalg.solve(measured, np.append(across.T, (values - centre)[:, None], axis=1))
    mean = centre + across @ solved[:, -1]
    prior = _OF_ALL**2 + part**2 * (_OF_HOST**2 + _OF_SIZE**2 + _OF_HOST_AND_SIZE**2)
    variance = prior - np.einsum("wc,cw->w", across, solved[:, :-1])
    return mean.reshape(shape), np.maximum(variance, 0.0).reshape(shape)


def _covariance(
    one: tuple[NDArray[np.int64], NDArray[np.float64]],
    other: tuple[NDArray[np.int64], NDArray[np.float64]],
    part: float,
) -> NDArray[np.float64]:
    """Prior covariance (n, m) of log scales, each given by its host and log k."""
    near = np.exp(-np.abs(one[1][:, None] - other[1][None]) / _REACH)
    same = one[0][:, None] == other[0][None]
    return np.asarray(
        _OF_ALL**2 + part**2 * (_OF_HOST**2 * same + _OF_SIZE**2 * near + _OF_HOST_AND_SIZE**2 * same * near)
    )
