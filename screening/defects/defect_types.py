"""Defect types and configurations, the words in which everything else is said.

A defect type is what happens on one lattice site: `v_S` (sulphur removed), `Se_S` (selenium in its
place). Its *code* is an integer that needs no table to be read: ``128 * Z_removed + Z_added``, with
``Z_added = 0`` for a vacancy. It fits a smallint and orders the types of a supercell by site species,
vacancy first. A configuration is two short arrays: numbered sites and the codes on them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import gemmi

from screening.errors import InputError

_NAME = re.compile(r"^(v|[A-Z][a-z]?)_([A-Z][a-z]?)$")
_Z_BASE = 128  # above the largest atomic number


def atomic_number(symbol: str) -> int:
    """Atomic number of a chemical symbol.

    Raises:
        InputError: the symbol is no chemical element.
    """
    element = gemmi.Element(symbol)
    if element.atomic_number == 0 or element.name != symbol:
        raise InputError(f"{symbol!r} is not a chemical element; expected a symbol such as 'S' or 'Mo'")
    return int(element.atomic_number)


def symbol_of(number: int) -> str:
    """Chemical symbol of an atomic number."""
    return str(gemmi.Element(number).name)


@dataclass(frozen=True)
class DefectType:
    """What happens on one site: `removed` leaves, `added` (or nothing, a vacancy) takes its place."""

    removed: str
    added: str | None

    def __post_init__(self) -> None:
        if self.removed == self.added:
            raise InputError(f"{self.added}_{self.removed} is no defect: it puts the species that is there")

    @classmethod
    def parse(cls, name: str) -> DefectType:
        """Read `v_S` or `Se_S`."""
        match = _NAME.match(name.strip())
        if match is None:
            raise InputError(f"{name!r} is not a defect type; write v_S for a vacancy on S, Se_S for Se on S")
        added, removed = match.groups()
        for symbol in {removed, added} - {"v"}:
            atomic_number(symbol)
        return cls(removed, None if added == "v" else added)

    @classmethod
    def from_code(cls, code: int) -> DefectType:
        """The defect type with this code."""
        removed, added = divmod(int(code), _Z_BASE)
        return cls(symbol_of(removed), symbol_of(added) if added else None)

    @property
    def code(self) -> int:
        """``128 * Z_removed + Z_added``, a smallint."""
        return _Z_BASE * atomic_number(self.removed) + (atomic_number(self.added) if self.added else 0)

    @property
    def name(self) -> str:
        """`v_S` or `Se_S`."""
        return f"{self.added or 'v'}_{self.removed}"


@dataclass(frozen=True)
class Configuration:
    """An assignment of defect types to sites; empty for the pristine supercell.

    Attributes:
        sites: site numbers of a supercell, ascending.
        defect_types: the code of the defect type on each of them.
    """

    sites: tuple[int, ...]
    defect_types: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.sites) == len(self.defect_types)
        assert all(a < b for a, b in zip(self.sites, self.sites[1:], strict=False)), "sites must ascend"

    @property
    def n_defects(self) -> int:
        """Number of defects."""
        return len(self.sites)

    @property
    def composition(self) -> str:
        """`2*v_S+Se_S`."""
        return composition_label(Counter(self.defect_types))


def composition_label(counts: Mapping[int, int]) -> str:
    """Name a composition, given how often each code occurs: `2*v_S+Se_S`, or `pristine`."""
    parts = [
        f"{count}*{DefectType.from_code(code).name}" if count > 1 else DefectType.from_code(code).name
        for code, count in sorted(counts.items())
        if count
    ]
    return "+".join(parts) or "pristine"


def parse_defect_types(names: str | Iterable[str]) -> tuple[DefectType, ...]:
    """Read `v_S,Se_S` or a sequence of such names, in the order of their codes.

    Raises:
        InputError: a name cannot be read, or occurs twice.
    """
    listed = names.split(",") if isinstance(names, str) else list(names)
    types = [DefectType.parse(name) for name in listed]
    if len(set(types)) < len(types):
        raise InputError(f"a defect type is named twice in {','.join(listed)}; name each once")
    return tuple(sorted(types, key=lambda defect_type: defect_type.code))


def parse_composition(text: str) -> dict[DefectType, int]:
    """Read `v_S:2,Se_S:1`: how often each defect type occurs.

    Raises:
        InputError: it cannot be read, or names a type twice.
    """
    composition: dict[DefectType, int] = {}
    for part in text.split(","):
        name, separator, count = part.strip().partition(":")
        if not separator or not count.strip().isdigit():
            raise InputError(f"{part!r} in the composition {text!r} cannot be read; write v_S:2,Se_S:1")
        defect_type = DefectType.parse(name)
        if defect_type in composition:
            raise InputError(f"the composition {text!r} names {name} twice; name each type once")
        composition[defect_type] = int(count)
    return composition
