"""What is wrong with results, as their residuals against a model tell.

A batch is results that have one source. Of an honest batch one value in twenty is outside the model's 95 % interval, or
a few more; of a batch that was calculated or converted wrongly many are far outside, and how far they are follows a
rule: another unit (a constant ratio), total energies where those per defect are meant (the number of defects is the
ratio), other chemical potentials (so much more for every defect of a type), another reference (so much more
everywhere). A batch is suspected where some of its values are `OFF` half widths of that interval away: a share of
`OFF_SHARE`, or `MOST` for rules that concern every result. It is condemned where one of these rules explains it, or
where so much is so far away (`LOST_SHARE`, `LOST`) that no rule is needed. Where there are `MANY` values, a rule is
also believed that explains errors within wide intervals: if the median error is `TYPICAL` half widths (a third of one
is usual) and a third of it is left. What is off by less than `NEGLIGIBLE` is never wrong, whatever the intervals are: a
model may be too sure of itself.

A single result is condemned where it is `FAR` half widths and more than `LARGE` away, which is what an unconverged
calculation looks like; levels and gaps must be further away than energies, for they jump honestly where levels cross.
Of 2,744 honest results of MoS2 with up to three defects, which a model of 2,000 had not learnt from, none was.

All of this is for results that are not far from what the model has learnt from; the caller leaves out those that are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import DefectType

FEWEST = 4  # values of a batch; fewer are judged one by one
OFF, OFF_SHARE, MOST = 2.0, 0.25, 0.6
LOST, LOST_SHARE = 4.0, 0.75
MANY, TYPICAL = 20, 0.75
EXPLAINED = 3.0  # a rule must leave so many times fewer values off
FAR = 10.0
SMALLEST_SHIFT = 0.03  # eV or Bohr magneton: what is less is an error of the model
_ENERGY, _PER_SITE = "formation_energy", "formation_energy_per_site"
NEGLIGIBLE = {_ENERGY: 0.03, _PER_SITE: 0.03, "total_mag": 0.3}  # eV (energies per defect), Bohr magneton
LARGE = {_ENERGY: 0.1, _PER_SITE: 0.1, "total_mag": 1.0}
_NEGLIGIBLE_LEVEL, _LARGE_LEVEL = 0.06, 1.0  # eV, of gaps and levels
_UNITS = {
    1000.0: "meV given as eV", 1e-3: "keV given as eV, or divided by 1000", 1 / 27.211386: "Hartree given as eV",
    1 / 13.605693: "Rydberg given as eV", 27.211386: "eV converted from Hartree once too often",
    13.605693: "eV converted from Rydberg once too often", 96.485332: "kJ/mol given as eV",
    23.060548: "kcal/mol given as eV", -1.0: "the sign is reversed",
}  # fmt: skip
_SAME_UNIT = 0.04  # relative; the ratio is the median of some rows
_NO_RATIO = 0.15  # a ratio that is closer to 1 is no unit
_CLEARLY = 0.8  # a rule with more parameters must leave so much less
_ROUNDS = 20  # of the robust fit
_ROWS_PER_TYPE = 2  # more rows than parameters: fewer explain nothing


@dataclass(frozen=True, eq=False)
class Residuals:
    """Values of results beside what a model says of them; n results, none far from what it has learnt from.

    Attributes:
        properties: names of the columns.
        values: (n, n_properties) float64, eV or Bohr magneton, NaN where absent.
        means: (n, n_properties), predicted.
        half_widths: (n, n_properties), of the 95 % intervals.
        codes: defect types that occur.
        counts: (n, n_codes) int64, number of defects of each type.
    """

    properties: tuple[str, ...]
    values: NDArray[np.float64]
    means: NDArray[np.float64]
    half_widths: NDArray[np.float64]
    codes: tuple[int, ...]
    counts: NDArray[np.int64]

    def column(self, name: str) -> _Column:
        """The results that have a value of a property."""
        p = self.properties.index(name)
        known = np.flatnonzero(np.isfinite(self.values[:, p]))
        return _Column(
            name, known, self.values[known, p], self.means[known, p], self.half_widths[known, p], self.counts[known]
        )


@dataclass(frozen=True, eq=False)
class _Column:
    """One property of those m results that have it, in the order of their rows."""

    name: str
    rows: NDArray[np.int64]
    values: NDArray[np.float64]
    means: NDArray[np.float64]
    half_widths: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def n_defects(self) -> NDArray[np.int64]:
        return np.asarray(self.counts.sum(axis=1), np.int64)

    @property
    def unit(self) -> NDArray[np.float64]:
        """(m,): what bounds on errors are multiplied by; those of the total energy are per defect."""
        return self.n_defects.astype(np.float64) if self.name == _ENERGY else np.ones(len(self.rows))

    def off(self, residuals: NDArray[np.float64], bound: float) -> NDArray[np.bool_]:
        """(m,): which residuals are so many half widths away, and not negligible."""
        negligible = NEGLIGIBLE.get(self.name, _NEGLIGIBLE_LEVEL) * self.unit
        return np.abs(residuals) > np.maximum(bound * self.half_widths, negligible)


def diagnose_batch(batch: Residuals) -> str | None:
    """What is wrong with a batch, with numbers; None if nothing is known to be."""
    found: dict[str, str] = {}
    for name in batch.properties:
        column = batch.column(name)
        if len(column.rows) >= FEWEST and (reason := _diagnose(column, batch.codes)) is not None:
            found[name] = reason
    if found.get(_PER_SITE) is not None and _ENERGY in found:
        del found[_ENERGY]  # the same once more
    return "; ".join(f"{name}: {reason}" for name, reason in found.items()) or None


def outliers(batch: Residuals) -> dict[int, str]:
    """What is wrong with single results, by their row."""
    found: dict[int, str] = {}
    for name in batch.properties:
        if name == _ENERGY and _PER_SITE in batch.properties:
            continue
        column = batch.column(name)
        residuals = column.values - column.means
        large = LARGE.get(name, _LARGE_LEVEL) * column.unit
        for i in np.flatnonzero(np.abs(residuals) > np.maximum(FAR * column.half_widths, large)).tolist():
            reason = (
                f"{name} is {column.values[i]:.4g}, predicted {column.means[i]:.4g} +- {column.half_widths[i]:.2g} "
                f"(95 %): {abs(residuals[i]) / column.half_widths[i]:.1f} half widths away, as an unconverged run is"
            )
            row = int(column.rows[i])
            found[row] = f"{found[row]}; {reason}" if row in found else reason
    return found


def _diagnose(column: _Column, codes: Sequence[int]) -> str | None:
    residuals = column.values - column.means
    n, n_off = len(residuals), int(column.off(residuals, OFF).sum())
    if n_off >= max(FEWEST, OFF_SHARE * n):
        what = f"{n_off} of {n} values are more than {OFF:g} half widths of the 95 % interval away"
        best, fewest = None, n_off / EXPLAINED
        for reason, left in _rules(column, codes, concerns_all=n_off >= MOST * n):
            n_left = int(column.off(left, OFF).sum())
            if n_left < fewest:
                best, fewest = reason, n_left
        if best is not None:
            return f"looks like {best} ({what}, {fewest:.0f} without that)"
    return _lost(column, residuals) or _shifted(column, codes, residuals)


def _lost(column: _Column, residuals: NDArray[np.float64]) -> str | None:
    n_lost = int(column.off(residuals, LOST).sum())
    if n_lost < max(FEWEST, LOST_SHARE * len(residuals)):
        return None
    return (
        f"off by {np.median(np.abs(residuals)):.3g} in the median, in no simple way ({n_lost} of {len(residuals)} "
        f"values are more than {LOST:g} half widths of the 95 % interval away)"
    )


def _shifted(column: _Column, codes: Sequence[int], residuals: NDArray[np.float64]) -> str | None:
    """What explains most of the errors of many values, though they are within the intervals."""
    in_units = np.maximum(column.half_widths, NEGLIGIBLE.get(column.name, _NEGLIGIBLE_LEVEL) * column.unit)
    median = float(np.median(np.abs(residuals) / in_units))
    if len(residuals) < MANY or median < TYPICAL:
        return None
    best, smallest = None, median / EXPLAINED
    for reason, left in _rules(column, codes, concerns_all=True):
        error = float(np.median(np.abs(left) / in_units))
        if error < smallest:
            best, smallest = reason, _CLEARLY * error
    if best is None:
        return None
    return (
        f"looks like {best} (the median error is {median:.2f} half widths of the 95 % interval, less than a third of "
        "that without it)"
    )


def _rules(column: _Column, codes: Sequence[int], *, concerns_all: bool) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """What may explain the values, simple things first, and the residuals (m,) that it leaves.

    Args:
        concerns_all: look also at what is wrong with every value.
    """
    n, is_energy = column.n_defects, column.name in (_ENERGY, _PER_SITE)
    if concerns_all and is_energy and n.max() > 1:
        ratio = float(np.median(n[n > 1]))
        yield f"total energies given per defect (ratio {ratio:.1f})", column.values / n - column.means
        yield f"energies per defect given as totals (ratio 1/{ratio:.1f})", column.values * n - column.means
    if concerns_all and (scale := _scale(column)) is not None:
        unit = next((text for factor, text in _UNITS.items() if abs(scale / factor - 1) < _SAME_UNIT), "another unit")
        yield f"{unit} (ratio {scale:.4g})", column.values / scale - column.means
    if is_energy:
        yield from _shifts_by_type(column, codes)
    shift = float(np.median(column.values - column.means))
    if concerns_all and abs(shift) > SMALLEST_SHIFT:
        yield f"another reference: all shifted by {shift:+.3g}", column.values - shift - column.means


def _scale(column: _Column) -> float | None:
    """The ratio of values to predictions, where that is no 1."""
    clear = (np.abs(column.means) > 3 * column.half_widths) & (column.values != 0)
    if clear.sum() < FEWEST:
        return None
    scale = float(np.median(column.values[clear] / column.means[clear]))
    return scale if abs(scale - 1) > _NO_RATIO and scale != 0 else None


def _shifts_by_type(column: _Column, codes: Sequence[int]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Other chemical potentials: so much more energy for each defect of one type, of two types, then of all."""
    factor = np.ones(len(column.rows)) if column.name == _ENERGY else 1.0 / column.n_defects
    occurring = [c for c in range(len(codes)) if (column.counts[:, c] > 0).any()]
    sizes = sorted({size for size in (1, 2, len(occurring)) if size <= len(occurring)})
    for chosen in (list(some) for size in sizes for some in combinations(occurring, size)):
        concerned = (column.counts[:, chosen] > 0).any(axis=1)
        if concerned.sum() < max(FEWEST, _ROWS_PER_TYPE * len(chosen) + 2):
            continue
        terms = column.counts[:, chosen] * factor[:, None]  # (m, n_chosen)
        shifts = _robust_fit(terms, column.values - column.means, column.half_widths)
        large = [(c, shift) for c, shift in zip(chosen, shifts.tolist(), strict=True) if abs(shift) > SMALLEST_SHIFT]
        if large:
            what = ", ".join(f"{shift:+.2f} eV per {DefectType.from_code(codes[c]).name}" for c, shift in large)
            yield f"other chemical potentials: shifts by {what}", column.values - column.means - terms @ shifts


def _robust_fit(
    terms: NDArray[np.float64], residuals: NDArray[np.float64], half_widths: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n_terms,): coefficients with the smallest sum of absolute residuals by half widths, about."""
    weights = 1.0 / half_widths
    found: NDArray[np.float64] = np.zeros(terms.shape[1])
    for _ in range(_ROUNDS):
        left = np.abs(residuals - terms @ found) / half_widths
        root = np.sqrt(weights / half_widths / np.maximum(left, 0.1))  # weights of least squares that make it absolute
        found = np.asarray(np.linalg.lstsq(terms * root[:, None], residuals * root, rcond=None)[0], np.float64)
    return found
