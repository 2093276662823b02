"""One small ensemble for all tests of learning."""

from __future__ import annotations

import pytest

from screening.learning.dataset import LabelledRows
from screening.learning.ensemble import Ensemble
from screening.learning.training import train_ensemble
from tests.learning.synthetic import SMALL, labelled_rows


@pytest.fixture(scope="session")
def rows() -> LabelledRows:
    return labelled_rows()


@pytest.fixture(scope="session")
def ensemble(rows: LabelledRows) -> Ensemble:
    return train_ensemble(rows, SMALL, seed=1, on_progress=lambda progress, checkpoint: None)
