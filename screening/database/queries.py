"""Named reads and small writes.

Adding the same thing twice is harmless: natural keys with `ON CONFLICT`. Several rows are added in the order
of their key, so that two processes that add the same ones do not deadlock. Nothing here commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ARRAY, Row, SmallInteger, column, func, literal, select, true
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session

from screening.database.models import find_model, is_usable, lineage, newest_in_production, stands
from screening.database.tables import (
    Arrangement,
    Calculation,
    CalculationResult,
    Campaign,
    ChemicalPotential,
    Composition,
    Configuration,
    DefectType,
    Host,
    LevelOfTheory,
    ModelTrainingResult,
    SearchSpace,
    SourceFile,
    Supercell,
    Table,
    TrainedModel,
)
from screening.errors import InputError, LevelOfTheoryError, UnknownNameError

_ROWS_PER_INSERT = 5000


def find_host(session: Session, name: str) -> Host | None:
    """The host of this name, if it is there."""
    return session.scalar(select(Host).where(Host.name == name))


def get_host(session: Session, name: str) -> Host:
    """The host of this name.

    Raises:
        UnknownNameError: there is none.
    """
    host = find_host(session, name)
    if host is None:
        names = session.scalars(select(Host.name).order_by(Host.name)).all()
        raise UnknownNameError(
            f"the database has no host {name!r}; it has {', '.join(names) or 'none'}: `screening host add {name}`"
        )
    return host


def get_or_add(session: Session, table: type[Table], key: Mapping[str, Any], **others: Any) -> int:
    """The id of the row with this natural key, added if it is not there."""
    columns = [getattr(table, name) for name in key]
    conditions = [column == value for column, value in zip(columns, key.values(), strict=True)]
    identifier = table.id  # type: ignore[attr-defined]
    found = session.scalar(select(identifier).where(*conditions))
    if found is None:
        added = insert(table).values(**key, **others).on_conflict_do_nothing().returning(identifier)
        found = session.scalar(added) or session.scalar(select(identifier).where(*conditions))
    assert isinstance(found, int)
    return found


def add_defect_types(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add defect types (id, name, removed, added) that are not there yet."""
    if rows:
        session.execute(insert(DefectType).on_conflict_do_nothing(), sorted(rows, key=lambda row: row["id"]))


def composition_ids(session: Session, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Ids of compositions by label, added where they are not there; rows by label."""
    if rows:
        session.execute(
            insert(Composition).on_conflict_do_nothing(),
            [{"label": label, **columns} for label, columns in sorted(rows.items())],
        )
    found = session.execute(select(Composition.label, Composition.id).where(Composition.label.in_(rows)))
    return dict(found.all())


def arrangement_ids(session: Session, rows: Mapping[tuple[int, ...], int]) -> dict[tuple[int, ...], int]:
    """Ids of arrangements of defect types, added where they are not there; ids of their compositions by arrangement."""
    ordered = sorted(rows.items())
    for start in range(0, len(ordered), _ROWS_PER_INSERT):
        session.execute(
            insert(Arrangement).on_conflict_do_nothing(),
            [{"defect_types": list(k), "composition_id": v} for k, v in ordered[start : start + _ROWS_PER_INSERT]],
        )
    wanted = func.jsonb_to_recordset(literal([{"defect_types": list(k)} for k in rows], JSONB)).table_valued(
        column("defect_types", ARRAY(SmallInteger)), name="wanted"
    ).render_derived(with_types=True)  # fmt: skip
    found = session.execute(
        select(Arrangement.defect_types, Arrangement.id).join(wanted, wanted.c.defect_types == Arrangement.defect_types)
    )
    return {tuple(types): identifier for types, identifier in found}


def level_id_of(session: Session, name: str) -> int:
    """The level of theory of this name.

    Raises:
        UnknownNameError: there is none.
    """
    found = session.scalar(select(LevelOfTheory.id).where(LevelOfTheory.name == name))
    if found is None:
        names = session.scalars(select(LevelOfTheory.name).order_by(LevelOfTheory.name)).all()
        raise UnknownNameError(f"no level of theory is called {name!r}; known are {', '.join(names) or 'none'}")
    return found


def add_level(
    session: Session, *, name: str, code: str, functional: str, settings: Mapping[str, Any], digest: str
) -> int:
    """The id of a level of theory, added if it is not there.

    Raises:
        LevelOfTheoryError: the name stands for other settings already.
    """
    known = session.scalar(select(LevelOfTheory.digest).where(LevelOfTheory.name == name))
    if known not in (None, digest):
        raise LevelOfTheoryError(
            f"the level of theory {name!r} is known with other settings; give the new settings another name"
        )
    others = {"name": name, "code": code, "functional": functional, "settings": dict(settings)}
    return get_or_add(session, LevelOfTheory, {"digest": digest}, **others)


def add_chemical_potentials(session: Session, level_id: int, rows: Mapping[str, tuple[float, str]]) -> None:
    """Store (energy in eV per atom, source) by element; what is there already must agree.

    Raises:
        LevelOfTheoryError: an element is known with another energy at this level.
    """
    known = chemical_potentials(session, level_id)
    for element, (energy, source) in rows.items():
        if element not in known:
            session.add(ChemicalPotential(level_id=level_id, element=element, energy=energy, source=source))
        elif abs(known[element] - energy) > 1e-6:
            raise LevelOfTheoryError(
                f"the chemical potential of {element} is {known[element]:.6f} eV in the database and "
                f"{energy:.6f} eV in the new data; formation energies would not be comparable"
            )
    session.flush()


def chemical_potentials(session: Session, level_id: int) -> dict[str, float]:
    """Chemical potentials of a level of theory, eV per atom, by element."""
    rows = session.execute(
        select(ChemicalPotential.element, ChemicalPotential.energy).where(ChemicalPotential.level_id == level_id)
    )
    return dict(rows.all())


def add_source_file(session: Session, *, sha256: str, path: str, kind: str, size: int, version: str) -> int:
    """The id of a file by its hash, added if it is not there."""
    return get_or_add(session, SourceFile, {"sha256": sha256}, path=path, kind=kind, size=size, parser_version=version)


def configuration_ids(
    session: Session, supercell_id: int, rows: Sequence[Mapping[str, Any]]
) -> dict[tuple[tuple[int, ...], tuple[int, ...]], int]:
    """Ids of canonical configurations by (sites, defect types), added where they are not there."""
    ordered = sorted(rows, key=lambda row: (row["sites"], row["defect_types"]))
    for start in range(0, len(ordered), _ROWS_PER_INSERT):
        session.execute(
            insert(Configuration).on_conflict_do_nothing(),
            [{"supercell_id": supercell_id, **row} for row in ordered[start : start + _ROWS_PER_INSERT]],
        )
    return find_configurations(session, supercell_id, [(row["sites"], row["defect_types"]) for row in ordered])


def find_configurations(
    session: Session, supercell_id: int, keys: Iterable[tuple[Sequence[int], Sequence[int]]]
) -> dict[tuple[tuple[int, ...], tuple[int, ...]], int]:
    """Ids of those of these canonical configurations, given as (sites, defect types), that are there."""
    wanted = func.jsonb_to_recordset(
        literal([{"sites": list(sites), "defect_types": list(types)} for sites, types in keys], JSONB)
    ).table_valued(
        column("sites", ARRAY(SmallInteger)), column("defect_types", ARRAY(SmallInteger)), name="wanted"
    ).render_derived(with_types=True)  # fmt: skip
    found = session.execute(
        select(Configuration.sites, Configuration.defect_types, Configuration.id)
        .join(wanted, (wanted.c.sites == Configuration.sites) & (wanted.c.defect_types == Configuration.defect_types))
        .where(Configuration.supercell_id == supercell_id)
    )
    return {(tuple(sites), tuple(types)): identifier for sites, types, identifier in found}


def pristine_energy(session: Session, supercell_id: int, level_id: int) -> float | None:
    """Total energy of the pristine supercell at a level of theory, eV, if it is known."""
    return session.scalar(
        select(CalculationResult.energy)
        .join(Calculation, Calculation.id == CalculationResult.calculation_id)
        .join(Configuration, Configuration.id == Calculation.configuration_id)
        .where(
            Configuration.supercell_id == supercell_id,
            Configuration.n_defects == 0,
            Calculation.level_id == level_id,
            stands(),
        )
    )


def labelled_rows(
    session: Session, *, level_id: int, host_ids: Sequence[int] = (), datasets: Sequence[str] = ()
) -> Sequence[Row[CalculationResult, int, int, list[int], list[int]]]:
    """Results of defective configurations with what identifies them, ordered by result id.

    None that is put aside or withdrawn.
    """
    statement = (
        select(
            CalculationResult,
            Supercell.host_id,
            Configuration.supercell_id,
            Configuration.sites,
            Configuration.defect_types,
        )
        .join(Calculation, Calculation.id == CalculationResult.calculation_id)
        .join(Configuration, Configuration.id == Calculation.configuration_id)
        .join(Supercell, Supercell.id == Configuration.supercell_id)
        .where(Calculation.level_id == level_id, Configuration.n_defects > 0, is_usable())
        .order_by(CalculationResult.id)
    )
    if host_ids:
        statement = statement.where(Supercell.host_id.in_(host_ids))
    if datasets:
        statement = statement.where(CalculationResult.dataset.in_(datasets))
    return session.execute(statement).all()


def model_by_name(session: Session, name: str | None) -> TrainedModel:
    """The finished model of this name (screening.database.models), or the one that was promoted last.

    Raises:
        UnknownNameError: there is none.
        InputError: it is not finished.
    """
    model = newest_in_production(session) if name is None else find_model(session, name)
    if model is None:
        known = session.execute(select(TrainedModel.name, TrainedModel.state).order_by(TrainedModel.id))
        listed = ", ".join(f"{row.name} ({row.state})" for row in known) or "none"
        raise UnknownNameError(
            f"no model {'is finished' if name is None else f'is called {name!r}'}; there are: {listed}; "
            "train one with `screening train`, or take the one that ships: `screening model add 2dmd-pbe`"
        )
    if model.state != "finished":
        raise InputError(f"model {model.name} is {model.state} ({model.error or 'no error'}); wait, or train again")
    return model


def trained_types(session: Session, model_id: int, host_id: int) -> set[int]:
    """Defect types that a model, or one that it was retrained from, has learnt from in a host."""
    of_it = lineage(model_id)
    return set(
        session.scalars(
            select(func.unnest(Configuration.defect_types))
            .distinct()
            .join(Supercell, Supercell.id == Configuration.supercell_id)
            .join(Calculation, Calculation.configuration_id == Configuration.id)
            .join(CalculationResult, CalculationResult.calculation_id == Calculation.id)
            .join(ModelTrainingResult, ModelTrainingResult.result_id == CalculationResult.id)
            .join(of_it, of_it.c.id == ModelTrainingResult.model_id)
            .where(Supercell.host_id == host_id, ModelTrainingResult.role == "train")
        )
    )


def supercell_id_of(session: Session, host_name: str, label: str | None) -> int:
    """The supercell of a host with this label, or its only one.

    Raises:
        UnknownNameError: there is none.
        InputError: no label is given and the host has several.
    """
    host = get_host(session, host_name)
    rows = session.execute(
        select(Supercell.label, Supercell.id).where(Supercell.host_id == host.id).order_by(Supercell.id)
    )
    known = dict(rows.all())
    if label is None and len(known) > 1:
        raise InputError(f"host {host_name} has the supercells {', '.join(known)}; choose one with --supercell")
    if label is None and known:
        return next(iter(known.values()))
    if label is None or label not in known:
        raise UnknownNameError(
            f"host {host_name} has no supercell {label or ''}; it has {', '.join(known) or 'none'}: "
            f"`screening host add {host_name} --supercell {label or '8x8'}`"
        )
    return known[label]


def scored_campaign(
    session: Session, model_id: int, supercell_id: int, *, max_defects: int | None = None
) -> Campaign | None:
    """The finished campaign that keeps every prediction of a model for a search space of a supercell, if there is one.

    One with every composition from a single defect on comes before a restricted one, then the largest.

    Args:
        max_defects: only search spaces with configurations of so many defects.
    """
    n_of_type = func.unnest(SearchSpace.composition).column_valued("n_of_type")
    exactly = select(func.sum(n_of_type)).correlate(SearchSpace).scalar_subquery()
    holds = (
        literal(max_defects).between(
            func.coalesce(exactly, SearchSpace.min_defects), func.coalesce(exactly, SearchSpace.max_defects)
        )
        if max_defects is not None
        else true()
    )
    limits = SearchSpace.composition, SearchSpace.min_counts, SearchSpace.min_separation, SearchSpace.max_separation
    is_unlimited = func.num_nonnulls(*limits) == 0
    return session.scalar(
        select(Campaign)
        .join(SearchSpace, SearchSpace.id == Campaign.search_space_id)
        .where(
            SearchSpace.supercell_id == supercell_id,
            Campaign.model_id == model_id,
            Campaign.storage == "all",
            Campaign.state == "finished",
            holds,
        )
        .order_by(
            (is_unlimited & (SearchSpace.min_defects == 1)).desc(),
            SearchSpace.expected.desc(),
            SearchSpace.id,
        )
        .limit(1)
    )


def campaign_by_name(session: Session, name: str) -> Campaign:
    """The campaign of this name.

    Raises:
        UnknownNameError: there is none.
    """
    found = session.scalar(select(Campaign).where(Campaign.name == name))
    if found is None:
        known = session.execute(select(Campaign.name, Campaign.state).order_by(Campaign.id))
        listed = ", ".join(f"{row.name} ({row.state})" for row in known) or "none"
        raise UnknownNameError(
            f"no campaign is called {name!r}; there are: {listed}; plan one with `screening campaign plan`"
        )
    return found
