"""A design query: which candidates have the properties I want.

A typed specification compiles to one parameterised SELECT over the candidates of one campaign. Predictions are
normal distributions; the probability that a window holds is the normal distribution's integral over it, and the
windows of a query are taken as independent, so the probability that all hold is their product.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import ColumnElement, Float, Select, and_, cast, exists, func, literal, select
from sqlalchemy.dialects import postgresql

from screening.database.tables import (
    PROPERTY_COMMENTS,
    Arrangement,
    Calculation,
    Campaign,
    Candidate,
    Composition,
    Configuration,
    SearchSpace,
    TrainedModel,
)
from screening.errors import InputError

SMALLEST_STD = 1e-6  # eV; a prediction without spread still has a distribution


class Window(BaseModel):
    """A property between two values; either end may be open."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    property: str
    low: float | None = Field(default=None, allow_inf_nan=False)
    high: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _is_a_window(self) -> Window:
        check_property(self.property)
        if self.low is None and self.high is None:
            raise ValueError(f"the window on {self.property} is open at both ends; give low or high")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(
                f"the window on {self.property} goes from {self.low:g} to {self.high:g}; low must be below high"
            )
        return self

    def is_inside(self, other: Window) -> bool:
        """Whether another window of the same property holds wherever this one does."""
        lower = other.low is None or (self.low is not None and self.low >= other.low)
        higher = other.high is None or (self.high is not None and self.high <= other.high)
        return self.property == other.property and lower and higher

    @classmethod
    def parse(cls, property_name: str, text: str) -> Window:
        """Read `1.0:1.2`, `1.0:` or `:1.2`.

        Raises:
            InputError: the text is no window.
        """
        parts = text.split(":")
        try:
            low, high = (float(part) if part.strip() else None for part in parts)
            return cls(property=property_name, low=low, high=high)
        except ValueError as error:
            raise InputError(
                f"{text!r} is no window on {property_name}; write low:high, low: or :high with low below high"
            ) from error


class DesignQuery(BaseModel):
    """What is wanted of the candidates of a host."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    supercell: str | None = None
    max_defects: int | None = Field(default=None, ge=1)
    windows: tuple[Window, ...] = ()
    sort: str = "formation_energy_per_site"
    direction: Literal["lowest", "highest"] = "lowest"
    confidence: float = Field(default=0.5, ge=0.0, lt=1.0)
    limit: int = Field(default=20, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _has_one_window_for_a_property(self) -> DesignQuery:
        names = [window.property for window in self.windows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"there are several windows on {', '.join(twice)}; give one for each, as low:high")
        return self

    @model_validator(mode="after")
    def _sorts_by_a_property(self) -> DesignQuery:
        if self.sort != "probability":
            check_property(self.sort)
        return self

    @property
    def properties(self) -> set[str]:
        """What a model must predict to answer it."""
        return {window.property for window in self.windows} | ({self.sort} - {"probability"})

    def ranks_as(self, other: DesignQuery) -> bool:
        """Whether its rows are the first ones of another query."""
        ends = {"host": self.host, "supercell": self.supercell, "limit": self.limit}
        return self.limit <= other.limit and self == other.model_copy(update=ends)

    def is_narrower_than(self, other: DesignQuery) -> bool:
        """Whether every candidate that satisfies it satisfies another query, whatever they sort by."""
        fewer_defects = other.max_defects is None or (
            self.max_defects is not None and self.max_defects <= other.max_defects
        )
        windows_hold = all(any(mine.is_inside(window) for mine in self.windows) for window in other.windows)
        return fewer_defects and windows_hold and self.confidence >= other.confidence


def check_property(name: str) -> None:
    """Make sure that a property is one that predictions have.

    Raises:
        InputError: it is not.
    """
    if name not in PROPERTY_COMMENTS:
        raise InputError(f"no property is called {name!r}; the properties are {', '.join(PROPERTY_COMMENTS)}")


def compile_query(query: DesignQuery, *, campaign_id: int) -> Select[Any]:
    """The SELECT of a design query: one row per candidate that has what it sorts by, best first, ties by candidate."""
    probability = _rounded(_probability(query.windows))
    columns = [getattr(Candidate, f"{name}_{part}") for name in PROPERTY_COMMENTS for part in ("mean", "std")]
    statement = (
        select(
            Candidate.id.label("candidate"),
            Composition.label.label("configuration"),
            Candidate.sites,
            Arrangement.defect_types,
            Candidate.multiplicity,
            cast(probability, Float).label("probability"),
            _is_calculated().label("calculated"),
            *columns,
        )
        .join(Arrangement, Arrangement.id == Candidate.arrangement_id)
        .join(Composition, Composition.id == Arrangement.composition_id)
        .where(Candidate.campaign_id == campaign_id)
    )
    if query.max_defects is not None:
        statement = statement.where(Composition.n_defects <= query.max_defects)
    if query.sort != "probability":
        statement = statement.where(getattr(Candidate, f"{query.sort}_mean").is_not(None))
    for window in query.windows:
        statement = statement.where(_could_hold(window, query.confidence))
    if query.windows:
        statement = statement.where(_probability(query.windows) >= query.confidence)
    return statement.order_by(_order(query, probability), Candidate.id).limit(query.limit)


def sort_key(query: DesignQuery) -> ColumnElement[float]:
    """What a design query ranks candidates by, the smaller the better."""
    if query.sort == "probability":
        return -_rounded(_probability(query.windows))
    key: ColumnElement[float] = cast(getattr(Candidate, f"{query.sort}_mean"), Float)
    return key if query.direction == "lowest" else -key


def to_sql(statement: Select[Any]) -> str:
    """The statement as PostgreSQL text with its parameters in place, to read and to run in psql."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    return str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))


def _order(query: DesignQuery, probability: ColumnElement[Any]) -> ColumnElement[Any]:
    if query.sort == "probability":
        return probability.desc()
    column: ColumnElement[Any] = getattr(Candidate, f"{query.sort}_mean").expression
    return column.asc() if query.direction == "lowest" else column.desc()  # as an index does, forwards or backwards


def _could_hold(window: Window, confidence: float) -> ColumnElement[bool]:
    """An index condition: at a confidence of a half and more, a window's mean must lie inside it.

    A normal distribution whose mean is outside has less than a half inside, and no factor of a product of
    probabilities is smaller than the product; so this holds for every window of a query.
    """
    mean: ColumnElement[Any] = getattr(Candidate, f"{window.property}_mean").expression
    if confidence < 0.5:
        return mean.is_not(None)
    ends = []
    if window.low is not None:
        ends.append(mean >= window.low)
    if window.high is not None:
        ends.append(mean <= window.high)
    return and_(*ends)


def _probability(windows: tuple[Window, ...]) -> ColumnElement[float]:
    """Product over the windows of the normal distribution's integral (erf: PostgreSQL 16)."""
    product: ColumnElement[float] = literal(1.0)
    for window in windows:
        mean = cast(getattr(Candidate, f"{window.property}_mean"), Float)
        std = func.greatest(cast(getattr(Candidate, f"{window.property}_std"), Float), SMALLEST_STD, type_=Float)
        below_high = literal(1.0) if window.high is None else _normal_cdf((window.high - mean) / std)
        below_low = literal(0.0) if window.low is None else _normal_cdf((window.low - mean) / std)
        product = product * (below_high - below_low)
    return product


def _rounded(probability: ColumnElement[float]) -> ColumnElement[Any]:
    """To six digits as numpy rounds, in double precision: numeric takes four times as long over a whole campaign."""
    return func.round(probability * 1e6, type_=Float) / 1e6


def _normal_cdf(z: ColumnElement[Any]) -> ColumnElement[float]:
    return 0.5 * (1.0 + func.erf(z / 2.0**0.5, type_=Float))


def _is_calculated() -> ColumnElement[bool]:
    """Whether a finished calculation at the model's level of theory exists for the candidate."""
    return exists(
        select(1)
        .select_from(Calculation)
        .join(Configuration, Configuration.id == Calculation.configuration_id)
        .join(Campaign, Campaign.id == Candidate.campaign_id)
        .join(SearchSpace, SearchSpace.id == Campaign.search_space_id)
        .join(TrainedModel, TrainedModel.id == Campaign.model_id)
        .where(
            Configuration.supercell_id == SearchSpace.supercell_id,
            Configuration.sites == Candidate.sites,
            Configuration.defect_types == Arrangement.defect_types,
            Calculation.level_id == TrainedModel.level_id,
            Calculation.state == "finished",
        )
    )
