"""Chemical potentials of a design query, and what they add to the formation energy of each defect type.

A model has learnt formation energies at the reference chemical potentials of its level of theory. Others shift them by
a number for each defect type, so that nothing is scored again:

    E_f(mu) = E_f(reference) + sum over defects of [shift(removed) - shift(added)],   shift = mu - reference.

The host stays in equilibrium: sum n_i mu_i is its energy per unit cell (Freysoldt et al., Rev. Mod. Phys. 86, 253
(2014), sec. II.B). X-rich is the limit where X is in equilibrium with its reference phase. Elements that are not of
the host keep their reference: it is their upper limit too, where they precipitate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.query_parts import REFERENCE, Potentials
from screening.defects.defect_types import DefectType
from screening.errors import InputError

CHALCOGENS = frozenset({"O", "S", "Se", "Te"})
NONMETALS = CHALCOGENS | {
    "H", "He", "B", "C", "N", "F", "Ne", "Si", "P", "Cl", "Ar", "Ge", "As", "Br", "Kr", "I", "Xe",
}  # fmt: skip
_TOLERANCE = 1e-6  # eV
_ROUNDING = 1e-3  # eV per atom, by which numbers that are given may miss the energy of the host


@dataclass(frozen=True)
class ElementPotential:
    """Chemical potential of an element.

    Attributes:
        energy: eV per atom.
        source: the reference phase, or the condition it comes from.
        shift: energy less that of the reference, eV.
    """

    energy: float
    source: str
    shift: float


def potentials_of(
    session: Session, level_id: int, supercell: tables.Supercell, potentials: Potentials, elements: Collection[str]
) -> dict[str, ElementPotential]:
    """Chemical potentials of elements at a level of theory, as a design query asks for them.

    Returns:
        By element; those without a reference are left out where only references are asked for.

    Raises:
        InputError: the condition is none of the host or goes with a number for one of its elements, a reference or
            the host's energy is not known, or numbers are outside of what the host is stable at.
    """
    row = tables.ChemicalPotential
    known = {p.element: (p.energy, p.source) for p in session.scalars(select(row).where(row.level_id == level_id))}
    host = session.get_one(tables.Host, supercell.host_id)
    found = {e: ElementPotential(*known[e], 0.0) for e in sorted({*elements, *host.species}) if e in known}
    if potentials.are_references:
        return found
    _check_condition(host, potentials)
    missing = sorted({*elements, *host.species, *potentials.given} - known.keys())
    if missing:
        level = session.get_one(tables.LevelOfTheory, level_id).name
        raise InputError(
            f"potentials are {potentials}, and no reference of {', '.join(missing)} is known at the level of theory "
            f"{level!r}; known are {', '.join(sorted(known)) or 'none'}: they come with the results of that level "
            "(`screening import`, `screening results add`)"
        )
    references = {element: energy for element, (energy, _) in known.items()}
    cell_energy = _energy_of_cell(session, level_id, supercell)
    ranges = _ranges(host, cell_energy, references)
    chosen = _of_condition(host, potentials, ranges)
    for element, energy in potentials.given.items():
        _check_range(element, energy, ranges.get(element, (-np.inf, references[element])))
    chosen |= dict(potentials.given)
    _check_equilibrium(host, potentials, cell_energy)
    chosen = _in_equilibrium(host, chosen, potentials, ranges) | chosen
    for element, energy in chosen.items():
        source = "given" if element in potentials.given else str(potentials)
        found[element] = ElementPotential(energy, source, energy - references[element])
    return found


def shifts_of(potentials: Mapping[str, ElementPotential], codes: Collection[int]) -> dict[int, float]:
    """What a defect of each type adds to the formation energy, eV; only those that add something."""
    found = {}
    for code in sorted(codes):
        defect_type = DefectType.from_code(code)
        shift = potentials[defect_type.removed].shift if defect_type.removed in potentials else 0.0
        if defect_type.added is not None and defect_type.added in potentials:
            shift -= potentials[defect_type.added].shift
        if shift != 0.0:
            found[code] = shift
    return found


_Ranges = Mapping[str, tuple[float, float]]  # lowest and highest potential of the elements of a host of two, eV


def _ranges(host: tables.Host, cell_energy: float | None, references: Mapping[str, float]) -> _Ranges:
    """Between what the elements of a host of two elements may have: {} where that is not known."""
    numbers = Counter(host.species)
    if cell_energy is None or len(numbers) != 2:
        return {}
    ranges = {}
    for element, other in (tuple(numbers), tuple(reversed(tuple(numbers)))):
        lowest = (cell_energy - numbers[other] * references[other]) / numbers[element]
        ranges[element] = (lowest, references[element])
    return ranges


def _of_condition(host: tables.Host, potentials: Potentials, ranges: _Ranges) -> dict[str, float]:
    """Potentials of the host's elements under a condition; {} where they stay as they are."""
    if potentials.condition == REFERENCE:
        return {}
    rich = _rich_element(potentials.condition, list(dict.fromkeys(host.species)))
    if not ranges:
        raise InputError(
            f"{potentials.condition} needs the energy of pristine {host.name} at the model's level of theory, which is "
            "not known; add its result, or give numbers"
        )
    return {element: high if element == rich else low for element, (low, high) in ranges.items()}


def _check_condition(host: tables.Host, potentials: Potentials) -> None:
    """Make sure that a host has a condition, and that it leaves nothing open and nothing said twice."""
    if potentials.condition == REFERENCE:
        return
    elements = list(dict.fromkeys(host.species))
    twice = [element for element in elements if element in potentials.given]
    if twice:
        raise InputError(
            f"potentials are {potentials}, and {potentials.condition} says that of {' and '.join(twice)} already, of "
            f"which {host.name} consists; give the condition or the number"
        )
    if _rich_element(potentials.condition, elements) is None:
        possible = ", ".join(
            [f"{element}-rich" for element in elements]
            + [name for name in ("metal-rich", "chalcogen-rich") if _rich_element(name, elements) is not None]
        )
        raise InputError(f"potentials are {potentials.condition}, and {host.name} has {possible}, or given numbers")
    if len(elements) > 2:
        raise InputError(
            f"{host.name} has {len(elements)} elements, so that {potentials.condition} leaves some of them open; give "
            f"numbers, such as {elements[0]}=-10.9"
        )


def _rich_element(condition: str, elements: list[str]) -> str | None:
    """The element that a condition is rich in; None if the host has none, or several."""
    wanted = {
        "metal-rich": [element for element in elements if element not in NONMETALS],
        "chalcogen-rich": [element for element in elements if element in CHALCOGENS],
    }.get(condition, [element for element in elements if condition == f"{element}-rich"])
    return wanted[0] if len(wanted) == 1 and len(elements) > 1 else None


def _in_equilibrium(
    host: tables.Host, chosen: Mapping[str, float], potentials: Potentials, ranges: _Ranges
) -> dict[str, float]:
    """The potential of the host's other element where a number is given for one of two."""
    given = [element for element in ranges if element in potentials.given]
    if len(given) != 1:
        return {}
    numbers = Counter(host.species)
    other = next(element for element in ranges if element != given[0])
    lowest, _ = ranges[given[0]]
    # a straight line between both ends, where one is at its reference and the other at its lowest
    return {other: ranges[other][1] - (chosen[given[0]] - lowest) * numbers[given[0]] / numbers[other]}


def _check_range(element: str, energy: float, allowed: tuple[float, float]) -> None:
    low, high = allowed
    if not low - _TOLERANCE <= energy <= high + _TOLERANCE:
        between = f"at most {high:.4f}" if np.isinf(low) else f"from {low:.4f} to {high:.4f}"
        raise InputError(
            f"the chemical potential of {element} is {energy:g} eV; expected {between} eV, where the host is stable "
            "and no elemental phase forms"
        )


def _check_equilibrium(host: tables.Host, potentials: Potentials, cell_energy: float | None) -> None:
    """Make sure that a host whose elements all have a number is in equilibrium with itself."""
    numbers = Counter(host.species)
    if cell_energy is None or not numbers.keys() <= potentials.given.keys():
        return
    given = potentials.given
    total = sum(n * given[element] for element, n in numbers.items())
    if abs(total - cell_energy) <= _ROUNDING * len(host.species):
        return
    last = list(numbers)[-1]
    fits = given[last] - (total - cell_energy) / numbers[last]
    others = "".join(f"{', ' if i else ' with '}{e}={given[e]:g}" for i, e in enumerate(list(numbers)[:-1]))
    raise InputError(
        f"the chemical potentials of {host.name} sum up to {total:.4f} eV per unit cell, whose energy is "
        f"{cell_energy:.4f} eV, so that the host is not in equilibrium; expected {last}={fits:.4f}{others}"
    )


def _energy_of_cell(session: Session, level_id: int, supercell: tables.Supercell) -> float | None:
    """Energy of a pristine unit cell, eV, from this supercell or another one of the host."""
    of_host = session.scalars(select(tables.Supercell).where(tables.Supercell.host_id == supercell.host_id)).all()
    for candidate in sorted(of_host, key=lambda other: (other.id != supercell.id, -other.n_sites)):
        energy = queries.pristine_energy(session, candidate.id, level_id)
        if energy is not None:
            return energy / abs(round(float(np.linalg.det(np.reshape(candidate.matrix, (3, 3))))))
    return None
