"""A design query: which candidates have the properties I want.

One typed specification, whether it is written in Python, in a TOML or JSON file, or as options of a command: all
three give the same object, and what is wrong with it is said with the name of the field, what was found and what is
allowed. `screening.database.query_sql` compiles it to one SELECT.

Parts that are more than a number may be written as text: a place `MoS2 8x8`, a count `v_S:0-2`, a window
`homo_lumo_gap_min=1.0:1.2`, a density `1e13:5e13cm-2`, potentials `metal-rich,Se=-3.5`, a goal
`homo_lumo_gap_min=highest`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from screening.database.query_parts import (
    ENERGIES,
    Count,
    Density,
    Goal,
    Place,
    Potentials,
    Window,
    check_type,
    full_name,
)
from screening.errors import FileFormatError, InputError

__all__ = ["CONCENTRATION", "PROBABILITY", "DesignQuery", "Window", "read_fields", "read_query"]

PROBABILITY, CONCENTRATION = "probability", "concentration"


def _listed(value: Any) -> Any:
    """Several of something, of which one alone or a text with commas is accepted too."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, Mapping | BaseModel) else value


def _sort_name(name: str) -> str:
    return name if name in (PROBABILITY, CONCENTRATION) else full_name(name)


TypeName = Annotated[str, AfterValidator(check_type)]
Types = Annotated[tuple[TypeName, ...], BeforeValidator(_listed)]


class DesignQuery(BaseModel):
    """What is wanted of the candidates of one host or several.

    Attributes:
        places: hosts and supercells; `host` and `supercell` are accepted for one.
        types: defect types that may occur; any if empty.
        required: each of them occurs.
        forbidden: none of them occurs.
        density: of defects, per unit cell, cm^2 or cm^3.
        min_separation: least distance between any two defects, angstrom; `max_separation` the largest.
        level: name of the level of theory that the predictions must be of.
        potentials: chemical potentials that the formation energies are to have.
        temperature: of the estimate of concentrations, K.
        sort: a property, `probability` that all windows hold, or `concentration`, both the largest first.
        target: value that `direction` closest is about.
        pareto: two or three goals: the candidates that no other one beats in all of them, instead of an order.
        confidence: smallest probability that all windows hold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    places: Annotated[tuple[Place, ...], BeforeValidator(_listed), Field(min_length=1)]
    types: Types = ()
    required: Types = ()
    forbidden: Types = ()
    counts: Annotated[tuple[Count, ...], BeforeValidator(_listed)] = ()
    min_defects: int | None = Field(default=None, ge=1)
    max_defects: int | None = Field(default=None, ge=1)
    density: Density | None = None
    min_separation: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    max_separation: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    windows: Annotated[tuple[Window, ...], BeforeValidator(_listed)] = ()
    level: str | None = None
    potentials: Potentials = Potentials()
    temperature: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    sort: Annotated[str, AfterValidator(_sort_name)] = "formation_energy_per_site"
    direction: Literal["lowest", "highest", "closest"] = "lowest"
    target: float | None = Field(default=None, allow_inf_nan=False)
    pareto: Annotated[tuple[Goal, ...], BeforeValidator(_listed)] = ()
    confidence: float = Field(default=0.5, ge=0.0, lt=1.0)
    limit: int = Field(default=20, ge=1, le=10_000_000)

    @model_validator(mode="before")
    @classmethod
    def _host_is_a_place(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not {"host", "supercell"} & given.keys():
            return given
        fields = dict(given)
        host, supercell = fields.pop("host", None), fields.pop("supercell", None)
        if "places" in fields:
            raise ValueError("give host and supercell, or places, not both")
        if host is None:
            raise ValueError(f"supercell is {supercell!r} without a host; give host, such as MoS2")
        return fields | {"places": [{"host": host, "supercell": supercell}]}

    @model_validator(mode="after")
    def _has_one_window_for_a_property(self) -> DesignQuery:
        names = [window.property for window in self.windows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"there are several windows on {', '.join(twice)}; give one for each, as low:high")
        if set(names) >= ENERGIES:
            raise ValueError(
                "windows are both on formation_energy and on formation_energy_per_site, which are one prediction; "
                "give a window on one of them"
            )
        levels = sorted({window.level for window in self.windows if window.level} | {self.level or ""} - {""})
        if len(levels) > 1:
            raise ValueError(f"levels of theory are {', '.join(levels)}; a ranking is at one level: ask for one")
        return self

    @model_validator(mode="after")
    def _limits_do_not_contradict(self) -> DesignQuery:
        for low, high in (("min_defects", "max_defects"), ("min_separation", "max_separation")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{low} is {least:g}, above {high}, which is {most:g}")
        both = sorted(set(self.required) & set(self.forbidden))
        if both:
            raise ValueError(f"{', '.join(both)} are required and forbidden; leave them out of one")
        if self.types and not set(self.required) <= set(self.types):
            missing = sorted(set(self.required) - set(self.types))
            raise ValueError(f"{', '.join(missing)} are required, but types allows {', '.join(self.types)} only")
        counted = [count.type for count in self.counts]
        if len(set(counted)) < len(counted):
            raise ValueError(f"counts has a type twice: {', '.join(counted)}")
        return self

    @model_validator(mode="after")
    def _has_one_objective(self) -> DesignQuery:
        if (self.direction == "closest") != (self.target is not None):
            raise ValueError(f"direction is {self.direction}, target {self.target}; closest, and only it, has a target")
        if self.sort in (PROBABILITY, CONCENTRATION) and self.direction == "closest":
            raise ValueError(f"direction is closest; by {self.sort} the largest come first: leave it out")
        if self.sort == CONCENTRATION and self.temperature is None:
            raise ValueError("sort is concentration, which depends on the temperature: give temperature, in K")
        if self.pareto:
            if not 2 <= len({goal.property for goal in self.pareto}) == len(self.pareto) <= 3:
                raise ValueError(f"pareto has {len(self.pareto)} goals; give two or three, each on another property")
            if {goal.property for goal in self.pareto} >= ENERGIES:
                raise ValueError("formation_energy and formation_energy_per_site are one prediction; choose one goal")
            if self.direction != "lowest" or self.sort != "formation_energy_per_site":
                raise ValueError("pareto stands in place of sort and direction; leave them out")
        return self

    @classmethod
    def of(cls, **fields: Any) -> DesignQuery:
        """A query of fields, whatever they are made of.

        Raises:
            InputError: something is wrong; every fault with its field, what was found and what is allowed.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            raise InputError(f"the design query is not acceptable: {'; '.join(map(_fault, error.errors()))}") from error

    @property
    def place(self) -> Place:
        """The only place.

        Raises:
            InputError: there are several.
        """
        if len(self.places) > 1:
            raise InputError(
                f"the design query is about {', '.join(map(str, self.places))}; here it must be about one of them"
            )
        return self.places[0]

    @property
    def host(self) -> str:
        """Host of the only place."""
        return self.place.host

    @property
    def supercell(self) -> str | None:
        """Supercell of the only place."""
        return self.place.supercell

    @property
    def asked_level(self) -> str | None:
        """Name of the level of theory that it asks for, of itself or of a window."""
        return self.level or next((window.level for window in self.windows if window.level), None)

    @property
    def properties(self) -> set[str]:
        """What a model must predict to answer it."""
        found = {window.property for window in self.windows} | {goal.property for goal in self.pareto}
        if not self.pareto:
            found |= {self.sort} - {PROBABILITY, CONCENTRATION}
        return found | ({"formation_energy"} if self.temperature is not None else set())

    @property
    def has_filters(self) -> bool:
        """Whether it asks for certain defect types or numbers of them."""
        return bool(self.types or self.required or self.forbidden or self.counts)

    def stored(self) -> dict[str, Any]:
        """Its JSON as it is stored and compared: places, limit, and what differs from the defaults."""
        return self.model_dump(mode="json", exclude_defaults=True) | {"limit": self.limit}

    def at(self, host: str, supercell: str | None = None) -> DesignQuery:
        """The same of one place."""
        return self.model_copy(update={"places": (Place(host=host, supercell=supercell),)})

    def ranks_as(self, other: DesignQuery) -> bool:
        """Whether its rows are the first ones of another query."""
        return self.limit <= other.limit and self == other.model_copy(
            update={"places": self.places, "limit": self.limit}
        )

    def is_narrower_than(self, other: DesignQuery) -> bool:
        """Whether every candidate that satisfies it satisfies another query, whatever they sort by."""
        fewer_defects = other.max_defects is None or (
            self.max_defects is not None and self.max_defects <= other.max_defects
        )
        windows_hold = all(any(mine.is_inside(window) for mine in self.windows) for window in other.windows)
        others = ("types", "required", "forbidden", "counts", "min_defects", "density", "min_separation",
                  "max_separation")  # fmt: skip
        filters_hold = all(
            getattr(other, name) in (type(other).model_fields[name].default, getattr(self, name)) for name in others
        )
        same_energies = self.potentials == other.potentials or not ENERGIES & {w.property for w in other.windows}
        return fewer_defects and windows_hold and filters_hold and same_energies and self.confidence >= other.confidence


def read_query(path: Path) -> DesignQuery:
    """The design query of a TOML or JSON file.

    Raises:
        FileFormatError: the file is neither, or cannot be read.
        InputError: what it says is not acceptable.
    """
    return DesignQuery.of(**read_fields(path))


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a design query in a TOML or JSON file, as they are written.

    Raises:
        FileFormatError: the file is neither, or cannot be read.
    """
    import tomllib

    readers = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix not in readers:
        raise FileFormatError(f"{path} is no design query; expected a file that ends in .toml or .json")
    try:
        fields = readers[path.suffix](path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # of json, tomllib and the encoding
        raise FileFormatError(f"{path} is no {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(fields, dict):
        raise FileFormatError(f"{path} holds a {type(fields).__name__}; expected the fields of a design query")
    return fields


def _fault(error: Any) -> str:
    """A fault of pydantic in our words: the field, what is allowed, what was found."""
    where = ".".join(str(part) for part in error["loc"])
    said = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        of = _fields_at(error["loc"])
        said = f"no field is called so; the fields are {', '.join(of)}"
    elif error["type"] == "missing":
        said = "it is missing; give host, such as MoS2" if where == "places" else "it is missing"
        return f"{where}: {said}"
    if not where:
        return said
    return f"{where}: {said} (found {error['input']!r})"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    parts: dict[str, type[BaseModel]] = {
        "places": Place,
        "counts": Count,
        "windows": Window,
        "density": Density,
        "potentials": Potentials,
        "pareto": Goal,
    }
    owner = parts.get(str(location[0])) if len(location) > 1 else None
    if owner is not None:
        return list(owner.model_fields)
    return ["host", "supercell", *DesignQuery.model_fields]
