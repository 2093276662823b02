"""Ensembles as bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from screening.errors import FileFormatError
from screening.learning.artifacts import ensemble_from_bytes, ensemble_to_bytes, pack, unpack
from screening.learning.dataset import LabelledRows
from screening.learning.ensemble import Ensemble
from screening.learning.scorer import score_configurations


def test_an_ensemble_that_was_stored_predicts_the_same(ensemble: Ensemble, rows: LabelledRows) -> None:
    again = ensemble_from_bytes(ensemble_to_bytes(ensemble))
    for one, other in zip(
        score_configurations(ensemble, rows.supercells[0], rows.configurations, device="cpu"),
        score_configurations(again, rows.supercells[0], rows.configurations, device="cpu"),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert again.properties == ensemble.properties
    assert again.references.hosts == ensemble.references.hosts
    for name in ("floors", "factors", "multiples"):
        np.testing.assert_array_equal(getattr(again.calibration, name), getattr(ensemble.calibration, name))
    np.testing.assert_array_equal(again.novelty.compositions, ensemble.novelty.compositions)
    np.testing.assert_array_equal(again.novelty.closest, ensemble.novelty.closest)


def test_extra_arrays_are_stored_with_an_ensemble(ensemble: Ensemble) -> None:
    extra = {"learnt": np.array([2**62, -1, 5]), "image": np.array([[1.5]], np.float32)}
    again = ensemble_from_bytes(ensemble_to_bytes(replace(ensemble, extra=extra)))
    assert again.extra.keys() == extra.keys()
    for name, array in extra.items():
        np.testing.assert_array_equal(again.extra[name], array, strict=True)


@pytest.mark.parametrize("packed", [b"", b"not a file", pack({"x": torch.zeros(1)}, {"format": "another"})])
def test_other_bytes_are_refused(packed: bytes) -> None:
    with pytest.raises(FileFormatError):
        ensemble_from_bytes(packed)


@pytest.mark.parametrize("number", [1, 2])
def test_weights_of_an_older_network_are_refused_with_what_to_do(number: int) -> None:
    old = pack({"network.embed_host.weight": torch.zeros(1)}, {"format": f"screening ensemble {number}"})
    with pytest.raises(FileFormatError, match=rf"'screening ensemble {number}'.*train the model again"):
        ensemble_from_bytes(old)


def test_weights_without_domains_are_refused_with_what_to_do(ensemble: Ensemble) -> None:
    """Files of the same format from before networks were shared out by number of defects."""
    tensors, card = unpack(ensemble_to_bytes(ensemble))
    del card["domains"]
    with pytest.raises(FileFormatError, match=r"without domains, expected a list of .*train the model again"):
        ensemble_from_bytes(pack(tensors, card))


def test_truncated_bytes_are_refused(ensemble: Ensemble) -> None:
    with pytest.raises(FileFormatError):
        ensemble_from_bytes(ensemble_to_bytes(ensemble)[:-100])
