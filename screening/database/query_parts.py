"""Parts of a design query that are more than a number: places, counts, windows, densities, potentials and goals.

Each can be written with its fields, or as a text. What is wrong is a ValueError with what is allowed, to which
pydantic adds the field; `DesignQuery.of` makes an InputError of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from screening.database.tables import PROPERTY_COMMENTS
from screening.errors import InputError

ENERGIES = frozenset({"formation_energy", "formation_energy_per_site"})
SPINS = ("min", "majority", "minority")
REFERENCE = "reference"

_GAP = "homo_lumo_gap"
_SHORT = {"gap": f"{_GAP}_min", _GAP: f"{_GAP}_min"}
_TYPE = re.compile(r"(v|[A-Z][a-z]?)_[A-Z][a-z]?")
_COUNT = re.compile(r"(?P<type>\w+)\s*:\s*(?P<least>\d+)(?P<to>-(?P<most>\d+)?)?")
_DENSITY = re.compile(r"(?P<low>[^:]*):(?P<high>[^:]*?)\s*(?P<unit>cell|cm-2|cm-3)?")
_CONDITION = re.compile(r"(reference|metal-rich|chalcogen-rich|[A-Z][a-z]?-rich)")
_ELEMENT = re.compile(r"[A-Z][a-z]?")


def full_name(name: str) -> str:
    """The name of a property; `gap` is short for the smaller gap of both spins.

    Raises:
        ValueError: there is none of this name.
    """
    found = _SHORT.get(name, name)
    if found not in PROPERTY_COMMENTS:
        raise ValueError(f"no property is called {name!r}; the properties are {', '.join(PROPERTY_COMMENTS)}")
    return found


def check_type(name: str) -> str:
    """The name of a defect type.

    Raises:
        ValueError: it is none.
    """
    if not _TYPE.fullmatch(name):
        raise ValueError(f"{name!r} is no defect type; write v_S for a vacancy, Se_S for Se in place of S")
    return name


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Place(_Part):
    """A host, and one of its supercells where it has several."""

    host: str = Field(min_length=1)
    supercell: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        host, _, supercell = given.strip().rpartition(" ")
        has_supercell = re.fullmatch(r"\d+x\d+(x\d+)?", supercell) is not None and bool(host)
        return {"host": host.strip(), "supercell": supercell} if has_supercell else {"host": given.strip()}

    def __str__(self) -> str:
        """As its text is written."""
        return self.host if self.supercell is None else f"{self.host} {self.supercell}"


class Count(_Part):
    """How often a defect type occurs."""

    type: Annotated[str, AfterValidator(check_type)]
    least: int = Field(default=0, ge=0)
    most: int | None = Field(default=None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        found = _COUNT.fullmatch(given.strip())
        if found is None:
            raise ValueError(f"{given!r} is no count; write v_S:2, v_S:0-2 or v_S:1- for one and more")
        most = found["most"] if found["to"] else found["least"]
        return {"type": found["type"], "least": int(found["least"]), "most": None if most is None else int(most)}

    @model_validator(mode="after")
    def _is_a_range(self) -> Count:
        if self.most is not None and self.least > self.most:
            raise ValueError(f"{self.type} occurs {self.least} to {self.most} times; the first must not be larger")
        return self


class Window(_Part):
    """A property between two values; either end may be open.

    Attributes:
        property: `homo_lumo_gap` with a spin is that channel's gap.
        spin: of a gap: the smaller one (min), or that of the majority or minority channel.
        level: name of the level of theory of the value.
    """

    property: str
    low: float | None = Field(default=None, allow_inf_nan=False)
    high: float | None = Field(default=None, allow_inf_nan=False)
    level: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        if isinstance(given, str):
            name, separator, limits = given.partition("=")
            if not separator:
                raise ValueError(f"{given!r} is no window; write property=low:high, such as homo_lumo_gap_min=1.0:1.2")
            given = {"property": name.strip(), **_ends(name.strip(), limits)}
        if not isinstance(given, Mapping):
            return given
        fields = dict(given)
        spin = fields.pop("spin", None)
        if spin is not None:
            fields["property"] = _gap_of(fields.get("property"), spin)
        elif isinstance(fields.get("property"), str):
            fields["property"] = full_name(fields["property"])
        return fields

    @model_validator(mode="after")
    def _is_a_window(self) -> Window:
        full_name(self.property)
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
            InputError: the text is no window, or there is no such property.
        """
        try:
            return cls.model_validate(f"{full_name(property_name)}={text}")
        except ValidationError as error:
            raise InputError(
                f"{text!r} is no window on {property_name}; write low:high, low: or :high with low below high"
            ) from error
        except ValueError as error:
            raise InputError(str(error)) from error

    def __str__(self) -> str:
        """As its text is written: `homo_lumo_gap_min 1:1.2`."""
        return f"{self.property} " + ":".join("" if end is None else f"{end:g}" for end in (self.low, self.high))


class Density(_Part):
    """How many defects there are in a unit cell, on a cm^2 of a layer, or in a cm^3 of a crystal."""

    low: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    high: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    unit: Literal["cell", "cm-2", "cm-3"] = "cell"

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        found = _DENSITY.fullmatch(given.strip())
        if found is None:
            raise ValueError(f"{given!r} is no density; write 0.01:0.05cell, 1e13:5e13cm-2 or :1e20cm-3")
        unit = {"unit": found["unit"]} if found["unit"] else {}
        return _ends("the density", f"{found['low']}:{found['high']}") | unit

    @model_validator(mode="after")
    def _is_a_range(self) -> Density:
        if self.low is None and self.high is None:
            raise ValueError("the density is open at both ends; give low or high")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"the density goes from {self.low:g} to {self.high:g}; low must not be above high")
        return self


class Potentials(_Part):
    """Chemical potentials that formation energies are to have, without scoring again.

    Attributes:
        condition: reference (those that the model learnt with), metal-rich, chalcogen-rich, or an element of the host
            with -rich, which is then in equilibrium with its reference phase.
        given: chemical potentials by element, eV per atom; they come before the condition.
    """

    condition: str = REFERENCE
    given: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        fields: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in given.split(","))):
            element, separator, energy = (text.strip() for text in part.partition("="))
            if separator:
                fields.setdefault("given", {})[element] = energy
            elif "condition" in fields:
                raise ValueError(f"{given!r} has two conditions; give one, and numbers as Mo=-10.9")
            else:
                fields["condition"] = part
        return fields

    @model_validator(mode="after")
    def _are_potentials(self) -> Potentials:
        if not _CONDITION.fullmatch(self.condition):
            raise ValueError(
                f"the condition is {self.condition!r}; expected reference, metal-rich, chalcogen-rich or an element "
                "with -rich, such as Mo-rich, and numbers as Mo=-10.9"
            )
        wrong = [element for element in self.given if not _ELEMENT.fullmatch(element)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} are no elements; write Mo=-10.9")
        return self

    @property
    def are_references(self) -> bool:
        """Whether they are those that the model learnt with."""
        return self.condition == REFERENCE and not self.given

    def __str__(self) -> str:
        """As its text is written: `metal-rich,Se=-3.5`."""
        numbers = [f"{element}={energy:g}" for element, energy in self.given.items()]
        return ",".join(([self.condition] if self.condition != REFERENCE or not numbers else []) + numbers)


class Goal(_Part):
    """A property that is to be as low or as high as possible."""

    property: Annotated[str, AfterValidator(full_name)]
    direction: Literal["lowest", "highest"] = "lowest"

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        name, separator, direction = (part.strip() for part in given.partition("="))
        return {"property": name} | ({"direction": direction} if separator else {})


def _ends(name: str, text: str) -> dict[str, float | None]:
    """Both ends of `1.0:1.2`, `1.0:` or `:1.2`."""
    try:
        low, high = (float(part) if part.strip() else None for part in text.split(":"))
    except ValueError as error:
        raise ValueError(f"{text!r} is no range of {name}; write low:high, low: or :high") from error
    return {"low": low, "high": high}


def _gap_of(name: Any, spin: Any) -> str:
    """The gap of a spin channel."""
    if spin not in SPINS:
        raise ValueError(f"spin is {spin!r}; expected {', '.join(SPINS)}")
    if name not in (*_SHORT, f"{_GAP}_{spin}"):
        raise ValueError(f"spin is given with the property {name!r}; only gaps have one: homo_lumo_gap")
    return f"{_GAP}_{spin}"
