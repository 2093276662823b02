"""One small ensemble for all tests of learning."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from synthetic import labelled_rows

from screening.learning.dataset import LabelledRows
from screening.learning.ensemble import Ensemble
from screening.learning.training import TrainingSettings, train_ensemble

SMALL = TrainingSettings(n_members=3, width=24, epochs=60, device="cpu")


@pytest.fixture(scope="session")
def rows() -> LabelledRows:
    return labelled_rows()


@pytest.fixture(scope="session")
def ensemble(rows: LabelledRows) -> Ensemble:
    return train_ensemble(rows, SMALL, seed=1, on_progress=lambda progress, checkpoint: None)
