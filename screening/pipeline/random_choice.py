"""What a loop would know had its calculations been drawn at random: the errors of versions that learn from such.

Of a replay all labels are known. So as many of them as the loop knew at each of its rankings are learnt: those it began
with, then others in a random order. The first version is the loop's own, and each of the others goes on from the one
before, as the loop's retrainings do, with their settings; only the choice is another one, and no version is rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from screening.database import loops as rows
from screening.database import tables
from screening.database.models import ROLE_MULTIPLIER, VALIDATION_SHARE
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.errors import InputError
from screening.pipeline.open_designs import query_of
from screening.pipeline.replay import Label, Replay
from screening.pipeline.retraining import settings_to_go_on
from screening.pipeline.round_pools import improved_property
from screening.pipeline.training_requests import training_settings

if TYPE_CHECKING:
    from screening.learning.dataset import LabelledRows
    from screening.learning.ensemble import Ensemble
    from screening.learning.settings import TrainingSettings

OnVersion = Callable[[int, int, str], None]
Key = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class RandomChoice:
    """What is learnt in place of what a loop has calculated.

    Attributes:
        first: the version that the loop began with.
        labelled: what that has learnt from, then the other labels in a random order.
        n_results: how many of them each version learns from, ascending; those of `first` come first.
        property: that the errors are of.
        settings: of the versions that go on.
    """

    first: Ensemble
    labelled: LabelledRows
    n_results: tuple[int, ...]
    property: str
    settings: TrainingSettings
    seed: int


def random_choice(session: Session, name: str | None, replay: Replay, *, device: str = "cpu") -> RandomChoice:
    """Choose at random what the versions of a loop could have learnt from.

    Raises:
        UnknownNameError: there is no such loop.
        InputError: it has not ranked yet, or has learnt from other labels.
    """
    from screening.learning.artifacts import ensemble_from_bytes

    loop = rows.loop_by_name(session, name)
    steps = [s for s in rows.steps_of(session, loop.id) if s["stage"] == "rank" and s["ranking_id"] is not None]
    if not steps:
        raise InputError(f"loop {loop.name} has not ranked anything yet; wait")
    first = session.get_one(tables.TrainedModel, steps[0]["model_id"])
    assert first.weights is not None  # it has ranked
    ensemble = ensemble_from_bytes(first.weights)
    learnt = _learnt(session, first.id)
    order = _ordered(replay.pool, learnt, np.random.default_rng(loop.seed))
    numbers = np.arange(len(order)) * ROLE_MULTIPLIER % 2**32 / 2**32
    is_validation = numbers < VALIDATION_SHARE
    is_validation[: len(learnt)] = [learnt[_key(label.configuration)] == "validation" for label in order[: len(learnt)]]
    n_results = {min(len(learnt) + (step["n_calculated"] or 0), len(order)) for step in steps}
    return RandomChoice(
        ensemble, _labelled(replay.supercell, order, ensemble.properties, is_validation), tuple(sorted(n_results)),
        improved_property(query_of(session.get_one(tables.Design, loop.design_id))),
        training_settings(settings_to_go_on(session, first), device), loop.seed,
    )  # fmt: skip


def errors_of(
    chosen: RandomChoice, replay: Replay, *, device: str = "cpu", on_version: OnVersion | None = None
) -> dict[int, float | None]:
    """Mean absolute error on the test rows of a replay, by the number of results learnt from.

    A training for each number but the first: as long as the retrainings of the loop.

    Args:
        on_version: called with versions done, versions in all, and what comes next.
    """
    from screening.learning.training import train_ensemble

    ensemble = chosen.first
    found: dict[int, float | None] = {}
    for done, n in enumerate(chosen.n_results):
        if on_version is not None:
            on_version(done, len(chosen.n_results), f"{n} results")
        if done:
            known = chosen.labelled.chosen(np.arange(n))
            ensemble = train_ensemble(
                known, chosen.settings, seed=chosen.seed, on_progress=lambda *_: None, start_from=ensemble
            )
        found[n] = mean_error(
            ensemble, replay.supercell, [label.configuration for label in replay.test], device=device,
            values=np.array([label.properties[chosen.property] for label in replay.test]), of=chosen.property,
        )  # fmt: skip
    return found


def mean_error(
    ensemble: Ensemble, supercell: Supercell, configurations: Sequence[Configuration], *,
    values: NDArray[np.float64], of: str, device: str,
) -> float | None:  # fmt: skip
    """Mean absolute error of an ensemble on the rows it can predict; None where it can predict none.

    Args:
        values: (n,) what was calculated of the property `of`.
    """
    from screening.learning.scorer import score_configurations
    from screening.pipeline.comparison import knows

    if of not in ensemble.properties:
        return None
    known = [i for i, c in enumerate(configurations) if knows(ensemble, supercell.host.name, c.defect_types)]
    if not known:
        return None
    mean, _ = score_configurations(ensemble, supercell, [configurations[i] for i in known], device=device)
    return float(np.abs(mean[:, ensemble.properties.index(of)] - values[known]).mean())


def _learnt(session: Session, model_id: int) -> dict[Key, str]:
    """Role of each configuration that a version has learnt from or was chosen by, in the order of their results."""
    learnt, result = tables.ModelTrainingResult, tables.CalculationResult
    found = session.execute(
        select(tables.Configuration.sites, tables.Configuration.defect_types, learnt.role)
        .join(tables.Calculation, tables.Calculation.configuration_id == tables.Configuration.id)
        .join(result, result.calculation_id == tables.Calculation.id)
        .join(learnt, learnt.result_id == result.id)
        .where(learnt.model_id == model_id)
        .order_by(result.id)
    )
    return {(tuple(row.sites), tuple(row.defect_types)): row.role for row in found}


def _ordered(pool: Sequence[Label], learnt: dict[Key, str], generator: np.random.Generator) -> list[Label]:
    """The labels that were learnt in their order, then the others in a random one."""
    known = {_key(label.configuration): label for label in pool}
    if missing := len(learnt.keys() - known.keys()):
        raise InputError(
            f"the first version of the loop has learnt from {len(learnt)} results, {missing} of which the data set "
            "does not have; give the one that the loop has played (--data, --subset)"
        )
    others = [label for label in pool if _key(label.configuration) not in learnt]
    return [known[key] for key in learnt] + [others[i] for i in generator.permutation(len(others)).tolist()]


def _labelled(
    supercell: Supercell, labels: Sequence[Label], properties: Sequence[str], is_validation: NDArray[np.bool_]
) -> LabelledRows:
    from screening.learning.dataset import LabelledRows

    values = [[label.properties.get(name, np.nan) for name in properties] for label in labels]
    return LabelledRows(
        (supercell,), np.zeros(len(labels), np.int64), tuple(label.configuration for label in labels),
        tuple(properties), np.array(values), is_validation, np.zeros(len(labels), np.int64),
    )  # fmt: skip


def _key(configuration: Configuration) -> Key:
    return configuration.sites, configuration.defect_types
