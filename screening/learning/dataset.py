"""Labelled configurations, as the training takes them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.errors import InputError
from screening.learning.fingerprints import folds_of_rows


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Configurations of one or more supercells with the values of their properties.

    Attributes:
        supercells: the supercells that occur.
        supercell_of_row: (n,) int64, index into them.
        configurations: n of them, none pristine.
        properties: names of the label columns.
        labels: (n, n_properties) float64, eV or Bohr magneton, NaN where a value is absent.
        is_validation: (n,) bool; a training never sees these rows, errors are measured on them; there may be none.
        group_of_row: (n,) int64; groups (subsets of a data set) weigh as the roots of their sizes in training.
        fold: (n,) int64, not negative; member m of M does not learn from rows whose fold is m modulo M. By default
            that of the configuration, wherever the row comes from, so that a model that goes on from another leaves the
            same configurations out.
    """

    supercells: tuple[Supercell, ...]
    supercell_of_row: NDArray[np.int64]
    configurations: tuple[Configuration, ...]
    properties: tuple[str, ...]
    labels: NDArray[np.float64]
    is_validation: NDArray[np.bool_]
    group_of_row: NDArray[np.int64]
    fold: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        n_rows = len(self.configurations)
        assert self.labels.shape == (n_rows, len(self.properties))
        if not len(self.fold):
            object.__setattr__(self, "fold", folds_of_rows(self))
        assert len(self.supercell_of_row) == len(self.is_validation) == len(self.group_of_row) == n_rows
        assert len(self.fold) == n_rows
        if self.is_validation.all():
            raise InputError(f"all {n_rows} rows are for validation; a training needs rows to learn from")
        for p, name in enumerate(self.properties):
            if not np.isfinite(self.labels[~self.is_validation, p]).any():
                raise InputError(f"no training row has a value of {name}; leave this property out")
        if any(configuration.n_defects == 0 for configuration in self.configurations):
            raise InputError("a row is the pristine supercell; a network of defects cannot learn from it")

    def chosen(self, rows: NDArray[np.int64]) -> LabelledRows:
        """Some of the rows, in this order; rows: (m,) numbers.

        Raises:
            InputError: none of them is for training.
        """
        return replace(
            self,
            supercell_of_row=self.supercell_of_row[rows],
            configurations=tuple(self.configurations[row] for row in rows),
            labels=self.labels[rows],
            is_validation=self.is_validation[rows],
            group_of_row=self.group_of_row[rows],
            fold=self.fold[rows],
        )

    @property
    def n_defects(self) -> NDArray[np.int64]:
        """(n,) int64: number of defects of each row."""
        return np.array([configuration.n_defects for configuration in self.configurations], np.int64)
