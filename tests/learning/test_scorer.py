"""Scoring blocks and rows."""

from __future__ import annotations

import numpy as np
import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.errors import InputError, StructureError
from screening.learning.dataset import LabelledRows
from screening.learning.ensemble import Ensemble
from screening.learning.scorer import score_block, score_configurations


def test_rows_of_mixed_size_come_back_in_their_order(ensemble: Ensemble, rows: LabelledRows) -> None:
    supercell = rows.supercells[0]
    mean, std = score_configurations(ensemble, supercell, rows.configurations[:40], device="cpu")
    for i, configuration in enumerate(rows.configurations[:40]):
        one = score_block(
            ensemble,
            supercell,
            np.array([configuration.sites], np.int16),
            np.array([configuration.defect_types], np.int16),
            device="cpu",
        )
        np.testing.assert_allclose(one[0][0], mean[i], atol=1e-5)
        np.testing.assert_allclose(one[1][0], std[i], atol=1e-5)


def test_a_block_larger_than_a_batch_is_scored_whole(ensemble: Ensemble, rows: LabelledRows) -> None:
    pairs = [c for c in rows.configurations if c.n_defects == 3]
    sites = np.tile(np.array([c.sites for c in pairs], np.int16), (60, 1))
    codes = np.tile(np.array([c.defect_types for c in pairs], np.int16), (60, 1))
    mean, _ = score_block(ensemble, rows.supercells[0], sites, codes, device="cpu")
    assert len(mean) == len(sites) > 4000
    np.testing.assert_allclose(mean[: len(pairs)], mean[-len(pairs) :], atol=1e-5)


def test_no_rows_are_no_predictions(ensemble: Ensemble, rows: LabelledRows) -> None:
    empty = np.empty((0, 2), np.int16)
    mean, std = score_block(ensemble, rows.supercells[0], empty, empty, device="cpu")
    assert mean.shape == std.shape == (0, 3)


def test_the_pristine_supercell_is_refused(ensemble: Ensemble, rows: LabelledRows) -> None:
    with pytest.raises(StructureError, match="no defects"):
        score_configurations(ensemble, rows.supercells[0], [Configuration((), ())], device="cpu")


def test_a_host_that_was_not_learnt_is_refused(ensemble: Ensemble) -> None:
    other = Supercell.parse(catalogue_host("WSe2"), "4x4")
    with pytest.raises(InputError, match="not from WSe2"):
        score_configurations(ensemble, other, [Configuration((1,), (74 * 128,))], device="cpu")
