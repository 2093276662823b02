"""Correlations between the errors of properties, from the members of an ensemble."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from screening.errors import InputError
from screening.learning import correlations
from screening.learning.calibration import Calibration
from screening.learning.correlations import member_correlations
from screening.learning.dataset import LabelledRows
from screening.learning.ensemble import Ensemble


def of_rows(rows: LabelledRows, n_defects: int) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    chosen = [c for c in rows.configurations if c.n_defects == n_defects]
    return np.array([c.sites for c in chosen], np.int16), np.array([c.defect_types for c in chosen], np.int16)


def calibrated(ensemble: Ensemble, floor: float) -> Ensemble:
    shape = ensemble.calibration.floors.shape
    return replace(ensemble, calibration=Calibration(np.full(shape, floor), np.ones(shape), np.full(shape, 2.5)))


def test_without_a_floor_they_are_those_of_the_members_deviations(
    ensemble: Ensemble, rows: LabelledRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(1)
    n_outputs = len(ensemble.references.outputs)
    mixed = generator.normal(size=(ensemble.n_members, 400, 1)) + 0.5 * generator.normal(
        size=(ensemble.n_members, 400, n_outputs)
    )
    monkeypatch.setattr(correlations, "member_outputs", lambda *a, **k: mixed)
    sites, types = of_rows(rows, 2)
    found = member_correlations(calibrated(ensemble, 0.0), rows.supercells[0], sites, types, device="cpu")
    deviations = (mixed - mixed.mean(axis=0)).reshape(-1, n_outputs)
    expected = np.corrcoef(deviations.T)
    places = ensemble.outputs_of_properties
    np.testing.assert_allclose(found, expected[np.ix_(places, places)], atol=0.02)  # corrcoef takes the mean off again
    assert expected[0, 1] == pytest.approx(0.8, abs=0.06)


def test_the_floor_of_the_calibration_is_independent_between_properties(ensemble: Ensemble, rows: LabelledRows) -> None:
    sites, types = of_rows(rows, 2)
    sizes = []
    for floor in (0.0, 0.1, 100.0):
        found = member_correlations(calibrated(ensemble, floor), rows.supercells[0], sites, types, device="cpu")
        np.testing.assert_allclose(found, found.T)
        gap = ensemble.properties.index("homo_lumo_gap_min")
        energy = ensemble.properties.index("formation_energy_per_site")
        sizes.append(abs(found[gap, energy]))
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < 1e-3


def test_both_energies_are_one_and_go_together(ensemble: Ensemble, rows: LabelledRows) -> None:
    sites, types = of_rows(rows, 2)
    found = member_correlations(calibrated(ensemble, 0.0), rows.supercells[0], sites, types, device="cpu")
    total, per_site = (ensemble.properties.index(n) for n in ("formation_energy", "formation_energy_per_site"))
    assert found[total, per_site] == pytest.approx(1.0)


def test_a_defect_type_that_was_not_learnt_is_refused(ensemble: Ensemble, rows: LabelledRows) -> None:
    sites, types = of_rows(rows, 1)
    unknown = np.where(types == types[0], types // 128 * 128 + 92, types)  # uranium in its place
    with pytest.raises(InputError, match="never seen U_"):
        member_correlations(ensemble, rows.supercells[0], sites, unknown.astype(np.int16), device="cpu")


def test_multiples_are_half_widths_over_standard_deviations(ensemble: Ensemble) -> None:
    found = calibrated(ensemble, 0.1).multiples("MoS2", 3)
    np.testing.assert_allclose(found, np.full((3, len(ensemble.properties)), 2.5))
