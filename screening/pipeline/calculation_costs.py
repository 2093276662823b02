"""How long a calculation is expected to take, from those that were made at its level of theory.

A power law of the number of atoms, ``t = a n^p``, through the times of finished calculations. The exponent is fitted
where the calculated structures differ enough in size; else it is that of a diagonalisation, 3, and the median time
fixes the prefactor. Only calculations that workers made here have a time: those from elsewhere say when they were
taken in, not how long they took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from screening.database import tables
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Supercell

_EXPONENT = 3.0
_EXPONENTS = (0.5, 4.0)  # of what is fitted; anything beyond is noise
_SPREAD = 1.2  # largest over smallest number of atoms from which on an exponent can be fitted
_NEWEST = 2000  # calculations that are looked at; programs and machines change
_SHORTEST_S = 1e-3


@dataclass(frozen=True)
class CostLaw:
    """Expected time of a calculation, ``prefactor * n_atoms ** exponent`` seconds.

    Attributes:
        n_measured: how many calculations it rests on.
    """

    prefactor: float
    exponent: float
    n_measured: int

    def seconds(self, n_atoms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Expected times, seconds."""
        return np.asarray(self.prefactor * n_atoms**self.exponent, np.float64)


def cost_law(session: Session, level_id: int) -> CostLaw | None:
    """The law of a level of theory; None where no calculation has a time."""
    row, configuration, supercell = tables.Calculation, tables.Configuration, tables.Supercell
    seconds = func.extract("epoch", row.finished_at - row.started_at)
    found = session.execute(
        select(supercell.n_sites, configuration.defect_types, seconds)
        .join(configuration, configuration.id == row.configuration_id)
        .join(supercell, supercell.id == configuration.supercell_id)
        .where(row.level_id == level_id, row.state == "finished", seconds > _SHORTEST_S)
        .order_by(row.finished_at.desc())
        .limit(_NEWEST)
    ).all()
    if not found:
        return None
    n_atoms = np.array([n_sites - _n_vacancies(types) for n_sites, types, _ in found], np.float64)
    return fit_cost(n_atoms, np.array([float(time) for _, _, time in found], np.float64))


def fit_cost(n_atoms: NDArray[np.float64], seconds: NDArray[np.float64]) -> CostLaw:
    """The law through (n,) numbers of atoms and (n,) times."""
    x, y = np.log(n_atoms), np.log(seconds)
    exponent = _EXPONENT
    if n_atoms.max() >= _SPREAD * n_atoms.min():
        exponent = float(np.clip(np.polyfit(x, y, 1)[0], *_EXPONENTS))
    return CostLaw(float(np.exp(np.median(y - exponent * x))), exponent, len(n_atoms))


def atoms_of(supercell: Supercell, configurations: Sequence[Configuration]) -> NDArray[np.float64]:
    """(n,) number of atoms of each configuration."""
    return np.array([supercell.n_sites - _n_vacancies(c.defect_types) for c in configurations], np.float64)


def _n_vacancies(defect_types: Sequence[int]) -> int:
    return sum(DefectType.from_code(code).added is None for code in defect_types)
