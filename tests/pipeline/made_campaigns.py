"""Campaigns whose predictions are made by a formula of the test, and models that workers can score with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from sqlalchemy import Engine, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import leases, queries, tables
from screening.database.campaigns import IDS_PER_CHUNK, add_partition
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.enumeration import SearchSpace, enumerate_space
from screening.learning.artifacts import ensemble_to_bytes
from screening.learning.settings import TrainingSettings
from screening.learning.training import train_ensemble
from screening.pipeline import searches
from screening.pipeline.hosts import StoredSupercell, add_configurations
from screening.pipeline.scanning import scan_unit
from tests.learning.synthetic import labelled_rows

Predict = Callable[[int, Configuration], dict[str, float]]
OWNER = "here:1:a"


def add_finished(
    session: Session, stored: StoredSupercell, space: SearchSpace, model: tables.TrainedModel, predict: Predict
) -> tables.Campaign:
    """A finished campaign that keeps all of a search space; `predict` takes the number of a candidate and itself."""
    space_id = searches.add_search_space(session, stored, space)
    compositions = dict(session.execute(select(tables.Composition.label, tables.Composition.id)).all())
    campaign = tables.Campaign(
        name=f"{model.name}-{space_id}", search_space_id=space_id, model_id=model.id, storage="all", state="running"
    )
    session.add(campaign)
    session.flush()
    add_partition(session, campaign.id)
    found: dict[int, list[tuple[Configuration, int]]] = {n: [] for n in space.sizes}
    for block in enumerate_space(space, stored.symmetry):
        found[block.sites.shape[1]] += [
            (block.configuration(i), int(multiplicity)) for i, multiplicity in enumerate(block.multiplicity)
        ]
    arrangements = queries.arrangement_ids(
        session, {c.defect_types: compositions[c.composition] for rows in found.values() for c, _ in rows}
    )
    n_before = 0
    for number, (n_defects, rows) in enumerate(found.items()):
        _add_chunk(session, campaign, number, n_defects, rows, compositions)
        session.execute(
            insert(tables.Candidate),
            [
                {
                    "id": number * IDS_PER_CHUNK + i,
                    "campaign_id": campaign.id,
                    "arrangement_id": arrangements[configuration.defect_types],
                    "multiplicity": multiplicity,
                    "sites": list(configuration.sites),
                    **predict(n_before + i, configuration),
                }
                for i, (configuration, multiplicity) in enumerate(rows)
            ],
        )
        n_before += len(rows)
    campaign.state, campaign.finished_at = "finished", func.now()  # the database checks the counts
    session.flush()
    return campaign


def _add_chunk(
    session: Session,
    campaign: tables.Campaign,
    number: int,
    n_defects: int,
    rows: list[tuple[Configuration, int]],
    compositions: dict[str, int],
) -> None:
    chunk = tables.Chunk(
        campaign_id=campaign.id, number=number, scores=True, n_defects=n_defects, first_sites=[],
        first_defect_types=[], last_sites=[], last_defect_types=[], state="finished", n_candidates=len(rows),
        n_configurations=sum(multiplicity for _, multiplicity in rows), checksum=0, worker="here:1", worked_s=0.1,
    )  # fmt: skip
    session.add(chunk)
    session.flush()
    counts = Counter(configuration.composition for configuration, _ in rows)
    session.add_all(
        tables.ChunkCount(chunk_id=chunk.id, composition_id=compositions[label], n_candidates=n)
        for label, n in counts.items()
    )


def train_small() -> bytes:
    """Weights of a small ensemble that knows every property of `labelled_rows` in 4x4 MoS2; a second or two."""
    settings = TrainingSettings(n_members=3, width=16, n_blocks=1, epochs=3, batch_rows=32, device="cpu")
    return ensemble_to_bytes(train_ensemble(labelled_rows(), settings, seed=0, on_progress=lambda p, c: None))


def add_trained(
    session: Session, stored: StoredSupercell, weights: bytes, types: Iterable[DefectType], *, name: str = "small"
) -> tables.TrainedModel:
    """A model of `train_small` that has learnt from a result of each of these types."""
    level_id = session.scalar(select(tables.LevelOfTheory.id).where(tables.LevelOfTheory.name == "formula"))
    if level_id is None:
        level = tables.LevelOfTheory(name="formula", code="none", functional="none", settings={}, digest="d")
        session.add(level)
        session.flush()
        level_id = level.id
    model = tables.TrainedModel(
        name=name, level_id=level_id, properties=list(labelled_rows().properties), settings={}, seed=0,
        state="finished", weights=weights,
    )  # fmt: skip
    session.add(model)
    session.flush()
    for defect_type in types:
        _learn(session, stored, model, defect_type)
    return model


def _learn(session: Session, stored: StoredSupercell, model: tables.TrainedModel, defect_type: DefectType) -> None:
    """A result of one defect, with labels whose range grows with the code of the type."""
    site = int(stored.supercell.allowed(defect_type)[0])
    (configuration_id,) = add_configurations(session, stored, [Configuration((site,), (defect_type.code,))])
    key = {"configuration_id": configuration_id, "level_id": model.level_id}
    calculation_id = queries.get_or_add(session, tables.Calculation, key, state="finished")
    labels = dict.fromkeys(model.properties, defect_type.code / 4000)
    result_id = queries.get_or_add(
        session, tables.CalculationResult, {"calculation_id": calculation_id},
        dataset="formula", row_name=defect_type.name, energy=-1.0, **labels,
    )  # fmt: skip
    session.add(tables.ModelTrainingResult(model_id=model.id, result_id=result_id, role="train"))
    session.flush()


def claim(engine: Engine, *conditions: object, owner: str = OWNER) -> int | None:
    """A chunk for this owner."""
    with session_scope(engine) as session:
        return leases.claim_next(session, tables.Chunk, owner, *conditions)  # type: ignore[arg-type]


def scan_waiting(engine: Engine, campaign_id: int, numbers: Iterable[int] | None = None) -> None:
    """Scan the chunks of a campaign that wait, in the order of their numbers or in a given one."""
    chunk = tables.Chunk
    if numbers is None:
        with session_scope(engine) as session:
            waiting = select(chunk.number).where(chunk.campaign_id == campaign_id, chunk.state == "waiting")
            numbers = list(session.scalars(waiting.order_by(chunk.number)))
    for number in numbers:
        chunk_id = claim(engine, chunk.campaign_id == campaign_id, chunk.number == number)
        assert chunk_id is not None
        scan_unit(engine, chunk_id, OWNER, device="cpu")
