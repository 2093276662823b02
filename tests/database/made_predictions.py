"""Campaigns of many candidates whose predictions are drawn, not scored: for plans and benchmarks of SQL."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.bulk_copy import Column, copy_rows
from screening.database.campaigns import add_partition, index_partition, partition_name

TYPES = {128 * 16: "v_S", 128 * 16 + 34: "Se_S", 128 * 42: "v_Mo", 128 * 42 + 74: "W_Mo"}
ENERGIES = np.array([2.5, 0.3, 4.5, 0.5])  # eV a defect of each type costs
_BLOCK = 65_536


def add_predictions(session: Session, name: str, n_rows: int, *, is_indexed: bool = True, seed: int = 0) -> int:
    """A campaign with candidates of one to five defects of four types and three properties; its id.

    All arrangements of the types are as likely as each other; the gap falls as the energy rises, and scatters.
    """
    rng = np.random.default_rng(seed)
    campaign_id = _add_campaign(session, name)
    arrangements = _add_arrangements(session)
    codes = list(TYPES)
    energies = {
        n: np.array([np.mean([ENERGIES[codes.index(c)] for c in types]) for types in arrangements if len(types) == n])
        for n in range(1, 6)
    }
    ids = {n: np.array([arrangements[types] for types in arrangements if len(types) == n]) for n in range(1, 6)}
    done = 0
    while done < n_rows:
        block = done // _BLOCK
        n_defects = 1 + block // 8 % 4 if block % 8 == 7 else 5  # most of them have the most
        n = min(_BLOCK, n_rows - done)
        chosen = rng.integers(0, len(ids[n_defects]), n)
        energy = energies[n_defects][chosen] + rng.normal(0.0, 0.3, n)
        copy_rows(
            session, partition_name(campaign_id),
            _columns(rng, campaign_id, np.arange(done, done + n), ids[n_defects][chosen], energy, n_defects=n_defects),
        )  # fmt: skip
        done += n
    if is_indexed:
        index_partition(session, campaign_id)
    return campaign_id


def _columns(
    rng: np.random.Generator, campaign_id: int, ids: np.ndarray, arrangements: np.ndarray, energy: np.ndarray, *,
    n_defects: int,
) -> dict[str, Column]:  # fmt: skip
    n = len(ids)
    predicted = {
        "formation_energy": energy * n_defects,
        "formation_energy_per_site": energy,
        "homo_lumo_gap_min": np.clip(2.2 - 0.3 * energy + rng.normal(0.0, 0.35, n), 0.0, None),
    }
    columns: dict[str, Column] = {
        "id": ids, "campaign_id": np.full(n, campaign_id, np.int32), "arrangement_id": arrangements.astype(np.int32),
        "multiplicity": np.full(n, 768, np.int32),
    }  # fmt: skip
    for name, values in predicted.items():
        columns[f"{name}_mean"] = values.astype(np.float32)
        columns[f"{name}_std"] = rng.uniform(0.02, 0.2, n).astype(np.float32)
    sites = np.sort(rng.integers(0, 192, (n, n_defects)), axis=1).astype(np.int16)
    return columns | {"sites": sites}


def _add_campaign(session: Session, name: str) -> int:
    supercell_id = session.scalar(select(tables.Supercell.id).limit(1))
    if supercell_id is None:
        host = tables.Host(
            name="MoS2", formula="MoS2", lattice=[1.0] * 9, species=["Mo", "S", "S"], positions=[0.0] * 9,
            is_layer=True, source="made",
        )  # fmt: skip
        session.add(host)
        session.flush()
        matrix = [8, 0, 0, 0, 8, 0, 0, 0, 1]
        supercell = tables.Supercell(host_id=host.id, matrix=matrix, label="8x8", n_sites=192, n_operations=768)
        session.add(supercell)
        session.add_all(
            tables.DefectType(
                id=code, name=type_name, removed=type_name.split("_")[1],
                added=None if type_name.startswith("v") else type_name.split("_")[0],
            )
            for code, type_name in TYPES.items()
        )  # fmt: skip
        session.flush()
        supercell_id = supercell.id
    number = session.scalar(select(func.count()).select_from(tables.SearchSpace)) or 0
    label = f"{name} {number}"
    level = tables.LevelOfTheory(name=label, code="none", functional="none", settings={}, digest=label)
    session.add(level)
    session.flush()
    model = tables.TrainedModel(
        name=label, level_id=level.id, properties=[], settings={}, seed=0, state="finished", weights=b"w"
    )
    space = tables.SearchSpace(
        supercell_id=supercell_id, defect_types=sorted(TYPES), min_defects=1, max_defects=5,
        min_separation=1.0 + number, expected=1,
    )  # fmt: skip
    session.add_all([model, space])
    session.flush()
    campaign = tables.Campaign(name=name, search_space_id=space.id, model_id=model.id, storage="all")
    session.add(campaign)
    session.flush()
    add_partition(session, campaign.id)
    return campaign.id


def _add_arrangements(session: Session) -> dict[tuple[int, ...], int]:
    """All orders of one to five types; ids of their arrangements."""
    orders = [types for n in range(1, 6) for types in itertools.product(TYPES, repeat=n)]
    labels = {types: _label(Counter(types)) for types in orders}
    known = dict(session.execute(select(tables.Composition.label, tables.Composition.id)).all())
    fresh = {
        labels[types]: {
            "label": labels[types], "defect_types": sorted(set(types)),
            "counts": [Counter(types)[code] for code in sorted(set(types))], "n_defects": len(types),
        }
        for types in orders
        if labels[types] not in known
    }  # fmt: skip
    if fresh:
        session.execute(insert(tables.Composition), list(fresh.values()))
        known = dict(session.execute(select(tables.Composition.label, tables.Composition.id)).all())
    return queries.arrangement_ids(session, {types: known[labels[types]] for types in orders})


def _label(counts: Counter[int]) -> str:
    return "+".join(f"{n}*{TYPES[code]}" if n > 1 else TYPES[code] for code, n in sorted(counts.items()))
