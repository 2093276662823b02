"""Labelled rows with a known answer: single-defect energies and pair interactions that decay with distance."""

from __future__ import annotations

import numpy as np

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.learning.dataset import LabelledRows
from screening.learning.settings import TrainingSettings

SINGLE = {16 * 128: 2.7, 16 * 128 + 34: 0.3, 42 * 128: 6.1}  # v_S, Se_S, v_Mo; eV
SMALL = TrainingSettings(n_members=3, width=24, epochs=60, drawn_rows=0, device="cpu")
PROPERTIES = ("formation_energy", "formation_energy_per_site", "homo_lumo_gap_min")


def labelled_rows(n_rows: int = 240, *, seed: int = 0, host: str = "MoS2") -> LabelledRows:
    """Configurations of 1 to 3 defects in a 4x4 supercell; the last fifth validates."""
    rng = np.random.default_rng(seed)
    supercell = Supercell.parse(catalogue_host(host), "4x4")
    allowed = [[c for c in SINGLE if c // 128 == {"S": 16, "Mo": 42}[s]] for s in supercell.species]
    configurations = []
    for row in range(n_rows):
        size = 1 + row % 3
        sites = np.sort(rng.choice(supercell.n_sites, size, replace=False))
        configurations.append(Configuration(tuple(sites.tolist()), tuple(int(rng.choice(allowed[s])) for s in sites)))
    energy = np.array([energy_of(c, supercell) for c in configurations])
    n_defects = np.array([c.n_defects for c in configurations])
    gap = 1.7 - 0.2 * energy / n_defects
    return LabelledRows(
        supercells=(supercell,),
        supercell_of_row=np.zeros(n_rows, np.int64),
        configurations=tuple(configurations),
        properties=PROPERTIES,
        labels=np.stack([energy, energy / n_defects, gap], axis=1),
        is_validation=np.arange(n_rows) >= 0.8 * n_rows,
        group_of_row=np.zeros(n_rows, np.int64),
    )


def energy_of(configuration: Configuration, supercell: Supercell) -> float:
    """The answer, eV."""
    total = sum(SINGLE[code] for code in configuration.defect_types)
    for i, first in enumerate(configuration.sites):
        for second in configuration.sites[:i]:
            total += 1.5 * np.exp(-supercell.pair_distances[first, second] / 3.0)
    return float(total)
