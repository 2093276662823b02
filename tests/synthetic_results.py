"""4x4 MoS2 whose results follow from a formula, so that what a model predicts can be compared with it.

The formation energy is a sum over the defects and their pairs, and the gap closes with every vacancy.
"""

from __future__ import annotations

import numpy as np
from sqlalchemy.orm import Session

from screening.database import tables
from screening.defects.defect_types import Configuration, DefectType, parse_defect_types
from screening.defects.host import Host, Supercell
from screening.pipeline.hosts import add_configurations, add_supercell

LEVEL = "formula"
PROPERTIES = ("formation_energy", "formation_energy_per_site", "homo_lumo_gap_min")
SINGLE = {"v_S": 2.5, "Se_S": 0.2, "v_Mo": 6.0, "W_Mo": -0.3}  # eV


def mos2(label: str = "4x4") -> Supercell:
    """2H MoS2: a 3.19 angstrom, sulphur 1.56 angstrom above and below the metal."""
    a, z = 3.19, 1.56 / 15.0
    lattice = np.array([[a, 0, 0], [-a / 2, a * 3**0.5 / 2, 0], [0, 0, 15.0]])
    positions = np.array([[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5 + z], [2 / 3, 1 / 3, 0.5 - z]])
    return Supercell.parse(Host.from_cell("MoS2", lattice, ("Mo", "S", "S"), positions, source="a test"), label)


def values(supercell: Supercell, configuration: Configuration) -> dict[str, float]:
    """The properties of a configuration by the formula."""
    names = [DefectType.from_code(code).name for code in configuration.defect_types]
    energy = sum(SINGLE[name] for name in names)
    for i, first in enumerate(configuration.sites):
        for second in configuration.sites[i + 1 :]:
            energy -= 0.5 * float(np.exp(-supercell.pair_distances[first, second] / 3.0))
    gap = 1.8 - 0.5 * sum(name.startswith("v_") for name in names)
    return {
        "formation_energy": energy,
        "formation_energy_per_site": energy / configuration.n_defects,
        "homo_lumo_gap_min": gap,
    }


def random_configurations(supercell: Supercell, n: int, *, seed: int = 0, max_defects: int = 2) -> list[Configuration]:
    """Configurations of one to `max_defects` defects of the four types."""
    generator = np.random.default_rng(seed)
    types = parse_defect_types(list(SINGLE))
    found = []
    for _ in range(n):
        chosen: dict[int, int] = {}
        for _ in range(int(generator.integers(1, max_defects + 1))):
            defect_type = types[int(generator.integers(len(types)))]
            chosen[int(generator.choice(supercell.allowed(defect_type)))] = defect_type.code
        found.append(Configuration(tuple(sorted(chosen)), tuple(chosen[site] for site in sorted(chosen))))
    return found


def add_results(
    session: Session, n: int, *, level: str = LEVEL, split: str | None = None, seed: int = 0, max_defects: int = 2
) -> int:
    """Store the results of distinct ones among n random configurations of 4x4 MoS2; their number."""
    stored = add_supercell(session, mos2())
    row = tables.LevelOfTheory(name=level, code="formula", functional="none", settings={}, digest=level)
    session.add(row)
    session.flush()
    configurations = random_configurations(stored.supercell, n, seed=seed, max_defects=max_defects)
    ids = add_configurations(session, stored, configurations)
    distinct = dict(zip(ids, configurations, strict=True))
    for configuration_id, configuration in sorted(distinct.items()):
        calculation = tables.Calculation(configuration_id=configuration_id, level_id=row.id, state="finished")
        session.add(calculation)
        session.flush()
        session.add(
            tables.CalculationResult(
                calculation_id=calculation.id,
                dataset="formula/MoS2",
                row_name=f"{level} {configuration_id}",
                split=split,
                energy=-350.0,
                **values(stored.supercell, configuration),
            )
        )
    session.flush()
    return len(distinct)
