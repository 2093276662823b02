"""Labelled configurations, as the training takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.errors import InputError


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Configurations of one or more supercells with the values of their properties.

    Attributes:
        supercells: the supercells that occur.
        supercell_of_row: (n,) int64, index into them.
        configurations: n of them, none pristine.
        properties: names of the label columns.
        labels: (n, n_properties) float64, eV or Bohr magneton, NaN where a value is absent.
        is_validation: (n,) bool; the other rows are trained on.
        group_of_row: (n,) int64; groups (subsets of a data set) weigh equally in training.
    """

    supercells: tuple[Supercell, ...]
    supercell_of_row: NDArray[np.int64]
    configurations: tuple[Configuration, ...]
    properties: tuple[str, ...]
    labels: NDArray[np.float64]
    is_validation: NDArray[np.bool_]
    group_of_row: NDArray[np.int64]

    def __post_init__(self) -> None:
        n_rows = len(self.configurations)
        assert self.labels.shape == (n_rows, len(self.properties))
        assert len(self.supercell_of_row) == len(self.is_validation) == len(self.group_of_row) == n_rows
        if self.is_validation.all() or not self.is_validation.any():
            raise InputError(
                f"{self.is_validation.sum()} of {n_rows} rows are for validation; "
                "training needs rows to learn from and rows to stop on"
            )
        for p, name in enumerate(self.properties):
            if not np.isfinite(self.labels[~self.is_validation, p]).any():
                raise InputError(f"no training row has a value of {name}; leave this property out")
        if any(configuration.n_defects == 0 for configuration in self.configurations):
            raise InputError("a row is the pristine supercell; a network of defects cannot learn from it")

    @property
    def n_defects(self) -> NDArray[np.int64]:
        """(n,) int64: number of defects of each row."""
        return np.array([configuration.n_defects for configuration in self.configurations], np.int64)
