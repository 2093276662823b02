"""Incremental retraining on MoS2 low of 2DMD: 200 new results in a model of all others, against training from scratch.

The rows for validation of our split are the frozen rows; of those to train on 200 come later. Both trainings and the
retraining are units of work of the platform, in one process: what a worker does, without the broker's part of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from sqlalchemy import Engine, select

from screening.database import leases, tables
from screening.database.models import comparison_of, in_production
from screening.database.session import session_scope
from screening.dft.dataset_2dmd import LEVEL
from screening.pipeline.imports import import_2dmd
from screening.pipeline.models import train_unit
from screening.pipeline.quarantine import list_quarantined
from screening.pipeline.retraining import submit_retraining
from screening.pipeline.training_requests import TrainingRequest, submit_training

SUBSET = "low_density_defects/MoS2"
N_NEW = 200
SHOWN = ("formation_energy_per_site", "homo_lumo_gap_min")


def bench_200_new_results_in_a_model_of_the_others(
    clean_engine: Engine, shared_data: Path, print_line: Callable[[Mapping[str, object]], None]
) -> None:
    import_2dmd(clean_engine, shared_data / "2dmd", subsets=(SUBSET,))
    with session_scope(clean_engine) as session:
        later = _hold_back(session, N_NEW)
        first = submit_training(session, TrainingRequest(LEVEL.name, name="first"))
    first_s = _train(clean_engine, first)
    with session_scope(clean_engine) as session:
        for identifier in later:
            session.delete(session.get_one(tables.QuarantinedResult, identifier))
    started = time.monotonic()
    with session_scope(clean_engine) as session:
        found = submit_retraining(session, "first")
    assert found.n_new == N_NEW
    assert found.model_id is not None
    _train(clean_engine, found.model_id)
    retrained_s = time.monotonic() - started
    with session_scope(clean_engine) as session:
        n_aside = len(list_quarantined(session))
        compared = comparison_of(session, found.model_id)
        line_id = session.get_one(tables.TrainedModel, first).line_id
        champion = in_production(session, line_id)
        is_promoted = champion is not None and champion.id == found.model_id
        scratch = submit_training(session, TrainingRequest(LEVEL.name, name="scratch"))
    scratch_s = _train(clean_engine, scratch)
    assert compared is not None
    errors = {name: _errors(clean_engine, model) for name, model in
              (("first", first), ("retrained", found.model_id), ("scratch", scratch))}  # fmt: skip
    print_line(
        {
            "figure": "200 new MoS2 results, from the command to the verdict", "seconds": round(retrained_s, 1),
            "first_s": round(first_s, 1), "scratch_s": round(scratch_s, 1), "promoted": is_promoted,
            "put_aside": n_aside, "ratio": compared["ratio"], "frozen_rows": compared["n_rows"],
        }
    )  # fmt: skip
    for name in SHOWN:
        mev = {who: round(1e3 * of[name], 3) for who, of in errors.items()}
        print_line(
            {
                "figure": f"MAE of {name} after a retraining over that from scratch",
                "ratio": round(mev["retrained"] / mev["scratch"], 3), "mev": mev,
            }
        )  # fmt: skip


def _hold_back(session, n: int) -> list[int]:  # type: ignore[no-untyped-def]
    """Ids of results to train on that no training sees at first."""
    trains = select(tables.CalculationResult.id).where(tables.CalculationResult.split == "train")
    ids = np.array(session.scalars(trains.order_by(tables.CalculationResult.id)).all())
    chosen: list[int] = np.sort(np.random.default_rng(0).choice(ids, n, replace=False)).tolist()
    session.add_all(tables.QuarantinedResult(result_id=i, reason="not there yet") for i in chosen)
    return chosen


def _train(engine: Engine, model_id: int) -> float:
    """Seconds that the training took, examination and comparison included."""
    owner = leases.new_owner()
    with session_scope(engine) as session:
        assert leases.claim_next(session, tables.TrainedModel, owner) == model_id
    started = time.monotonic()
    train_unit(engine, model_id, owner, device="cpu")
    return time.monotonic() - started


def _errors(engine: Engine, model_id: int) -> dict[str, float]:
    """Mean absolute errors on the rows for validation, eV, by property."""
    metric = tables.ModelMetric
    with session_scope(engine) as session:
        return dict(session.execute(select(metric.property, metric.mae).where(metric.model_id == model_id)).all())
