"""Expressions of a candidate that a design query is made of, in the campaign that answers it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Double, Float, Integer, and_, cast, func, literal, or_

from screening.database.design_query import CONCENTRATION, PROBABILITY, DesignQuery
from screening.database.query_parts import Window
from screening.database.window_probability import Spreads, marginals_of, probability_of

BOLTZMANN = 8.617333262e-5  # eV/K
CLOSE_ENOUGH = 1e-3  # angstrom, by which a stored distance may be short of the one asked for
ENERGY, PER_SITE = "formation_energy", "formation_energy_per_site"


@dataclass(frozen=True)
class Branch:
    """The campaign that answers a query for one of its places.

    Attributes:
        cells: unit cells of the supercell.
        area: of the supercell in cm^2, of a crystal's in cm^3.
        codes: ids of the defect types that the query names, as far as the campaign has them.
        shifts: what a defect of each type adds to the formation energy by the query's chemical potentials, eV.
    """

    campaign_id: int
    place: int = 0
    cells: float = 1.0
    area: float | None = None
    codes: Mapping[str, int] = field(default_factory=dict)
    spreads: Spreads = field(default_factory=Spreads)
    shifts: Mapping[int, float] = field(default_factory=dict)

    def sizes(self, query: DesignQuery) -> tuple[int, int | None]:
        """Least and largest number of defects that a query asks for."""
        least, most = query.min_defects or 1, query.max_defects
        if query.density is not None:
            per = self.cells if query.density.unit == "cell" else self.area
            assert per is not None, "an area was asked for that nobody has looked up"
            if query.density.low is not None:
                least = max(least, math.ceil(query.density.low * per * (1.0 - 1e-9)))
            if query.density.high is not None:
                highest = math.floor(query.density.high * per * (1.0 + 1e-9))
                most = highest if most is None else min(most, highest)
        return least, most


class Terms:
    """Expressions of a candidate: its values with the shifts of its composition, and what the query makes of them."""

    def __init__(self, query: DesignQuery, branch: Branch, columns: Any, shift: ColumnElement[float] | None) -> None:
        self.query, self.branch, self.columns, self._shift = query, branch, columns, shift
        self.n_defects: ColumnElement[int] = func.cardinality(columns.sites, type_=Integer)

    def mean(self, name: str) -> ColumnElement[float]:
        """Predicted value, an energy at the chemical potentials of the query, eV or Bohr magneton."""
        mean: ColumnElement[float] = cast(self.columns[f"{name}_mean"], Float)
        return mean if (shift := self.shift_of(name)) is None else mean + shift

    def shift_of(self, name: str) -> ColumnElement[float] | None:
        """What the chemical potentials add to a property, eV; None if nothing."""
        if self._shift is None or name not in (ENERGY, PER_SITE):
            return None
        return self._shift if name == ENERGY else self._shift / cast(self.n_defects, Float)

    def values(self) -> dict[str, tuple[ColumnElement[float], ColumnElement[float]]]:
        """Mean and standard deviation of the properties that windows are about."""
        names = [window.property for window in self.query.windows]
        return {name: (self.mean(name), cast(self.columns[f"{name}_std"], Float)) for name in names}

    def probability(self) -> ColumnElement[float]:
        """That all windows hold, 0 to 1."""
        return probability_of(self.query.windows, self.branch.spreads, self.values(), self.n_defects)

    def key(self) -> ColumnElement[float]:
        """What the query ranks by, the smaller the better."""
        query = self.query
        if query.pareto:
            return self.goals()[0]
        if query.sort == PROBABILITY:
            return -rounded(self.probability())
        if query.sort == CONCENTRATION:
            return self.free_energy()
        if query.target is not None:
            return func.abs(self.mean(query.sort) - query.target, type_=Float)
        return self.mean(query.sort) if query.direction == "lowest" else -self.mean(query.sort)

    def goals(self) -> list[ColumnElement[float]]:
        """Values of the goals of a Pareto front, the smaller the better."""
        means = [(goal, self.mean(goal.property)) for goal in self.query.pareto]
        return [mean if goal.direction == "lowest" else -mean for goal, mean in means]

    def free_energy(self) -> ColumnElement[float]:
        """Formation energy less k T times the logarithm of the number of places on a cm^2 (cm^3), eV."""
        assert self.query.temperature is not None
        kt = BOLTZMANN * self.query.temperature
        places: ColumnElement[float] = func.ln(cast(self.columns.multiplicity, Float), type_=Float)
        return self.mean(ENERGY) - kt * (places - math.log(self.branch.area or 1.0))

    def concentration(self) -> ColumnElement[float]:
        """Dilute estimate in equilibrium, per cm^2 of a layer, per cm^3 of a crystal."""
        assert self.query.temperature is not None
        exponent = -self.free_energy() / (BOLTZMANN * self.query.temperature)
        return func.exp(func.greatest(-700.0, func.least(700.0, exponent, type_=Float), type_=Float), type_=Float)

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """What a candidate must satisfy, cheap conditions first."""
        query, columns = self.query, self.columns
        yield columns.campaign_id == self.branch.campaign_id
        for name in sorted(query.properties - {window.property for window in query.windows}):
            yield columns[f"{name}_mean"].is_not(None)
        if query.min_separation is not None:
            yield or_(self.n_defects == 1, columns.closest >= query.min_separation - CLOSE_ENOUGH)
        if query.max_separation is not None:
            yield or_(self.n_defects == 1, columns.farthest <= query.max_separation + CLOSE_ENOUGH)
        for window in query.windows:
            yield self._could_hold(window)
        if not query.windows:
            return
        if self.branch.spreads.loadings:  # no joint probability is above that of one window, which costs less
            for marginal in marginals_of(query.windows, self.branch.spreads, self.values(), self.n_defects):
                yield marginal >= query.confidence
        yield self.probability() >= query.confidence

    def _could_hold(self, window: Window) -> ColumnElement[bool]:
        """An index condition: at a confidence of a half and more, a window's mean must lie inside it.

        A distribution whose mean is outside has less than a half inside, and the probability that several windows
        hold is not above that of one; so this holds for every window of a query.
        """
        stored: ColumnElement[Any] = self.columns[f"{window.property}_mean"]
        if self.query.confidence < 0.5:
            return stored.is_not(None)
        mean = stored if self.shift_of(window.property) is None else self.mean(window.property)
        ends = []
        if window.low is not None:
            ends.append(mean >= number(window.low))
        if window.high is not None:
            ends.append(mean <= number(window.high))
        return and_(*ends)


def number(value: float) -> ColumnElement[Any]:
    """A number in double precision also where it is printed, so that an index can be compared with it."""
    return cast(literal(value, Double), Double)


def rounded(probability: ColumnElement[float]) -> ColumnElement[Any]:
    """To six digits as numpy rounds, in double precision: numeric takes four times as long over a whole campaign."""
    return func.round(probability * 1e6, type_=Float) / 1e6
