"""Labelled rows without files, and an evaluation whose every number is chosen here."""

from __future__ import annotations

import numpy as np

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Supercell
from screening.dft.results import LevelOfTheory
from screening.learning.dataset import LabelledRows
from screening.pipeline.evaluation import Evaluation
from screening.pipeline.labelled_files import LabelledFiles

MOS2 = Supercell.parse(catalogue_host("MoS2"), "8x8")
LOW, HIGH = "low_density_defects/MoS2", "high_density_defects/MoS2_500"


def configuration(*defects: tuple[int, str]) -> Configuration:
    ordered = sorted(defects)
    return Configuration(tuple(s for s, _ in ordered), tuple(DefectType.parse(name).code for _, name in ordered))


def labelled_of(rows: LabelledRows, *, level: LevelOfTheory | None = None) -> LabelledFiles:
    """Rows of a training as if they had been read from files, all of one subset."""
    n_rows = len(rows.configurations)
    return LabelledFiles(
        supercells=rows.supercells,
        supercell_of_row=rows.supercell_of_row,
        configurations=rows.configurations,
        properties=rows.properties,
        labels=rows.labels,
        subsets=("made",),
        group_of_row=np.zeros(n_rows, np.int64),
        names=tuple(f"row {i}" for i in range(n_rows)),
        splits=tuple("validation" if held else "train" for held in rows.is_validation),
        levels=(level,),
        n_unlabelled=0,
        refusals=(),
        repeats=(),
        notes=(),
        digest="0" * 64,
    )


def made_evaluation(*, extra_pairs: int = 0) -> Evaluation:
    """Two subsets of 8x8 MoS2: a vacancy, pairs and a triple; then one row of four defects without an energy.

    Energies per site are 10, 20, 30 meV too high (further pairs 20 meV); gaps 100 meV too low, the last one 300.
    """
    pairs = [configuration((0, "v_Mo"), (64 + i, "v_S")) for i in range(1 + extra_pairs)]
    first = [configuration((64, "v_S")), *pairs, configuration((1, "W_Mo"), (70, "v_S"), (130, "Se_S"))]
    configurations = (*first, configuration((64, "v_S"), (65, "v_S"), (66, "v_S"), (67, "Se_S")))
    n_rows = len(configurations)
    labels = np.stack([np.linspace(1.0, 2.0, n_rows), np.linspace(0.5, 1.5, n_rows)], axis=1)
    labels[-1, 0] = np.nan
    errors = np.array([[0.01, -0.1], *[[0.02, -0.1]] * len(pairs), [0.03, -0.1], [0.0, -0.3]])
    rows = LabelledFiles(
        supercells=(MOS2,),
        supercell_of_row=np.zeros(n_rows, np.int64),
        configurations=configurations,
        properties=("formation_energy_per_site", "homo_lumo_gap_min"),
        labels=labels,
        subsets=(LOW, HIGH),
        group_of_row=np.array([0] * len(first) + [1]),
        names=tuple(f"row {i}" for i in range(n_rows)),
        splits=("validation",) * (n_rows - 1) + (None,),
        levels=(None, None),
        n_unlabelled=2,
        refusals=(("bad", "its structure has an adatom"),),
        repeats=(),
        notes=(),
        digest="d" * 64,
    )
    means = np.where(np.isnan(labels), 1.75, labels) + errors
    stds = np.tile([0.02, 0.15], (n_rows, 1))
    return Evaluation(
        rows=rows, properties=rows.properties, labels=labels, means=means, stds=stds, half_widths=2.5 * stds,
        is_learnt=np.arange(n_rows) == 0, n_left_out=3, refusals=(("far", "the model has never seen v_W"),),
    )  # fmt: skip
