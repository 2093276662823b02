"""Results of calculations and the energies derived from them.

Formation energy: ``E_f = E_defect - E_pristine + sum(removed) mu - sum(added) mu`` (eV); per defect site:
``E_f / n_defects``. A level of theory belongs to every energy; rows of different levels never meet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from screening.defects.defect_types import Configuration, DefectType
from screening.errors import InputError

PROPERTIES = (
    "formation_energy",
    "formation_energy_per_site",
    "homo_lumo_gap_min",
    "homo_lumo_gap_majority",
    "homo_lumo_gap_minority",
    "homo",
    "lumo",
    "total_mag",
)
"""Properties of a configuration, named as in 2DMD; eV, and Bohr magneton for `total_mag`.

`homo` is the highest occupied level of either spin, `lumo` the lowest unoccupied one, and
`homo_lumo_gap_min` the smaller of the two spin channels' gaps.
"""


@dataclass(frozen=True)
class LevelOfTheory:
    """Code, functional and settings of a calculation: what makes energies comparable.

    Attributes:
        name: a short unique name, `2DMD PBE` or `GFN1-xTB single point`.
        settings: everything else that changes an energy, as plain JSON values.
    """

    name: str
    code: str
    functional: str
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of code, functional and settings: equal levels have equal digests."""
        text = json.dumps([self.code, self.functional, dict(self.settings)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class CalculationResult:
    """What one finished calculation says of one configuration.

    Attributes:
        energy: total energy of the supercell, eV.
        properties: values by the names of `PROPERTIES`; absent where the calculation has none.
    """

    configuration: Configuration
    energy: float
    properties: Mapping[str, float]


def formation_energy(
    configuration: Configuration, energy: float, *, pristine_energy: float, chemical_potentials: Mapping[str, float]
) -> float:
    """Formation energy of a configuration, eV, from total energies and chemical potentials (eV per atom).

    Raises:
        InputError: the chemical potential of an element that was removed or added is missing.
    """
    total = energy - pristine_energy
    for code in configuration.defect_types:
        defect_type = DefectType.from_code(code)
        for symbol, sign in ((defect_type.removed, 1.0), (defect_type.added, -1.0)):
            if symbol is None:
                continue
            if symbol not in chemical_potentials:
                raise InputError(
                    f"no chemical potential of {symbol} for {defect_type.name}; "
                    f"known are {', '.join(sorted(chemical_potentials)) or 'none'}: add it to the level of theory"
                )
            total += sign * chemical_potentials[symbol]
    return total
