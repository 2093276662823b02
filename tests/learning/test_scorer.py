"""Scoring blocks and rows."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.errors import CalculationError, InputError, StructureError
from screening.learning.dataset import LabelledRows
from screening.learning.ensemble import Ensemble
from screening.learning.graph import block_graphs, pair_table
from screening.learning.scorer import score_block, score_configurations, torch_outputs


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


def block_of(rows: LabelledRows, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sites and codes (n, k) of the rows with k defects."""
    chosen = [c for c in rows.configurations if c.n_defects == k]
    sites = np.array([c.sites for c in chosen], np.int16)
    return sites, np.array([c.defect_types for c in chosen], np.int16)


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 3])
def test_mean_and_standard_deviation_are_those_of_the_members(ensemble: Ensemble, rows: LabelledRows, k: int) -> None:
    """Member by member from graphs: references and calibration applied to what each network says."""
    sites, codes = block_of(rows, k)
    outputs = ensemble.networks[0](block_graphs(pair_table(rows.supercells[0]), sites, codes)).double().numpy()
    references = ensemble.references
    floors, factors = (table[0, k - 1] for table in (ensemble.calibration.floors, ensemble.calibration.factors))
    gap = references.outputs.index("homo_lumo_gap_min")
    gaps = references.means[0, gap] + references.scales[gap] * outputs[:, :, gap]  # (m, n)
    energies = references.scales[0] * outputs[:, :, 0] + np.array(
        [np.mean([references.energies[0, references.codes.index(c)] for c in row]) for row in codes.tolist()]
    )
    mean, std = score_block(ensemble, rows.supercells[0], sites, codes, device="cpu")
    for column, values, output in ((1, energies, 0), (2, gaps, gap)):
        np.testing.assert_allclose(mean[:, column], values.mean(axis=0), atol=2e-5)
        variance = floors[output] ** 2 + (factors[output] * values.std(axis=0, ddof=1)) ** 2
        np.testing.assert_allclose(std[:, column], np.sqrt(variance), atol=5e-5)
    np.testing.assert_allclose(mean[:, 0], k * mean[:, 1])


@pytest.mark.parametrize("k", [2, 3])
def test_half_precision_errs_by_less_than_a_tenth_of_the_standard_deviation(
    ensemble: Ensemble, rows: LabelledRows, k: int
) -> None:
    """What a GPU does by default, here on a CPU."""
    supercell = rows.supercells[0]
    sites, codes = block_of(rows, k)
    kinds = np.searchsorted(ensemble.references.seen_with("MoS2"), codes)
    outputs = torch_outputs(ensemble, supercell, sites, kinds, where=torch.device("cpu"), dtype=torch.float16)
    offsets = ensemble.references.block_offsets("MoS2", codes)
    half = ensemble.predict(outputs, offsets, host="MoS2", n_defects=k, widening=np.ones(len(sites)))
    full = score_block(ensemble, supercell, sites, codes, device="cpu")
    error = np.abs(half[0] - full[0])
    assert error.max() > 1e-5  # it is not float32 after all
    assert (error / full[1]).max() < 0.1
    assert (np.abs(half[1] - full[1]) / full[1]).max() < 0.1


def test_blocks_on_a_device_are_scored_in_parts_that_fit(
    ensemble: Ensemble, rows: LabelledRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites, codes = (np.tile(x, (3, 1)) for x in block_of(rows, 2))
    kinds = np.searchsorted(ensemble.references.seen_with("MoS2"), codes)
    place = {"where": torch.device("cpu"), "dtype": torch.float32}
    whole = torch_outputs(ensemble, rows.supercells[0], sites, kinds, **place)
    monkeypatch.setattr("screening.learning.scorer._EDGES_PER_BATCH", 140)
    np.testing.assert_allclose(torch_outputs(ensemble, rows.supercells[0], sites, kinds, **place), whole, atol=1e-5)


def test_no_rows_are_no_predictions(ensemble: Ensemble, rows: LabelledRows) -> None:
    empty = np.empty((0, 2), np.int16)
    mean, std = score_block(ensemble, rows.supercells[0], empty, empty, device="cpu")
    assert mean.shape == std.shape == (0, 3)


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_predictions_that_are_no_numbers_are_an_error(ensemble: Ensemble, rows: LabelledRows, weight: float) -> None:
    """No query would ever rank them, and a campaign that keeps its best would end without them."""
    network = deepcopy(ensemble.networks[0])
    network.read_out.bias.data[1, 0, -1] = weight
    sites, codes = block_of(rows, 2)
    with pytest.raises(CalculationError, match=f"{len(sites)} of {len(sites)} predictions"):
        score_block(replace(ensemble, networks=(network,)), rows.supercells[0], sites, codes, device="cpu")


def test_the_pristine_supercell_is_refused(ensemble: Ensemble, rows: LabelledRows) -> None:
    with pytest.raises(StructureError, match="no defects"):
        score_configurations(ensemble, rows.supercells[0], [Configuration((), ())], device="cpu")


def test_a_host_that_was_not_learnt_is_refused(ensemble: Ensemble) -> None:
    other = Supercell.parse(catalogue_host("WSe2"), "4x4")
    with pytest.raises(InputError, match="not from WSe2"):
        score_configurations(ensemble, other, [Configuration((1,), (74 * 128,))], device="cpu")
