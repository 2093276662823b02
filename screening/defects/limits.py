"""Limits of a search space: how often a defect type occurs, how near and how far apart defects are.

Limits on separations are limits on classes of pairs: all symmetry-equivalent pairs of sites are allowed, or none, so
that a configuration obeys them exactly when each of its images does, whatever the rounding of the host's positions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import DefectType
from screening.defects.host import Supercell
from screening.defects.symmetry import Symmetry
from screening.errors import InputError

SEPARATION_TOLERANCE = 1e-3  # angstrom; limits are given to as many digits as lattice constants are, 3.19

_RANGE = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True, eq=False)
class Limits:
    """What the configurations of a search space obey.

    Attributes:
        counts: least and largest number of a defect type; None where there is no largest one.
        min_separation: least distance between any two defects, angstrom.
        max_separation: largest distance between any two defects, angstrom.
    """

    counts: Mapping[DefectType, tuple[int, int | None]] = field(default_factory=dict)
    min_separation: float | None = None
    max_separation: float | None = None

    def __post_init__(self) -> None:
        for defect_type, (least, largest) in self.counts.items():
            if least < 0 or (largest is not None and largest < least):
                raise InputError(
                    f"the number of {defect_type.name} is limited to {least}-{largest}; expected a first number of at "
                    "least 0 and a last one not below it"
                )
        for name, value in (("minimum", self.min_separation), ("maximum", self.max_separation)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"the {name} separation is {value} angstrom; expected a finite number above 0")
        if None not in (self.min_separation, self.max_separation) and self.min_separation > self.max_separation:  # type: ignore[operator]
            raise InputError(
                f"the minimum separation, {self.min_separation} angstrom, is above the maximum, {self.max_separation} "
                "angstrom; no pair of defects obeys both"
            )

    @property
    def has_separations(self) -> bool:
        """Whether some pairs of sites may be forbidden."""
        return self.min_separation is not None or self.max_separation is not None


def parse_limits(texts: Sequence[str], required: Sequence[str] = ()) -> dict[DefectType, tuple[int, int | None]]:
    """Read `v_S:0-2,Se_S:1-3`, one or several of them, and names of types that must occur.

    Raises:
        InputError: a limit cannot be read, or a type is limited twice.
    """
    counts: dict[DefectType, tuple[int, int | None]] = {}
    for part in _parts(texts):
        name, _, numbers = part.partition(":")
        match = _RANGE.fullmatch(numbers.strip())
        if match is None:
            raise InputError(
                f"the limit {part!r} cannot be read; write v_S:0-2 for at most two, v_S:1-2 for one or two"
            )
        defect_type = DefectType.parse(name)
        if defect_type in counts:
            raise InputError(f"the number of {defect_type.name} is limited twice; give one limit for each type")
        counts[defect_type] = int(match[1]), int(match[2])
    for name in _parts(required):
        defect_type = DefectType.parse(name)
        least, largest = counts.get(defect_type, (0, None))
        counts[defect_type] = max(least, 1), largest
    return counts


def allowed_pairs(supercell: Supercell, symmetry: Symmetry, limits: Limits) -> NDArray[np.bool_]:
    """(n_sites, n_sites) bool, symmetric: pairs of sites that may both carry a defect; (0, 0) where all may.

    The distance of a class of pairs is the mean over its pairs.
    """
    if not limits.has_separations:
        return np.zeros((0, 0), np.bool_)
    classes = symmetry.pair_classes
    total = np.bincount(classes.ravel(), weights=supercell.pair_distances.ravel())
    distances = total / np.bincount(classes.ravel())
    allowed = np.ones(len(distances), np.bool_)
    if limits.min_separation is not None:
        allowed &= distances >= limits.min_separation - SEPARATION_TOLERANCE
    if limits.max_separation is not None:
        allowed &= distances <= limits.max_separation + SEPARATION_TOLERANCE
    return np.asarray(allowed[classes], np.bool_)


def _parts(texts: Sequence[str]) -> list[str]:
    return [part.strip() for text in texts for part in text.split(",")]
