"""What a stored model knows because it, or a model that it goes back to, came from a file.

Such a model has none of the results it has learnt from in this database; the weights and the card say instead what
other stages ask of these results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from screening.database import models, queries, tables
from screening.defects.defect_types import Configuration
from screening.dft.results import PROPERTIES, CalculationResult
from screening.pipeline.pretrained import has_card, unpack_model
from screening.pipeline.references import derived_energies, elements_of, withdrawn_pristine


def weights_of_files(session: Session, model_id: int) -> list[bytes]:
    """Weights of those models, of a stored one and those that it started from, that came from a file."""
    row, of_it = tables.TrainedModel, models.lineage(model_id)
    has_results = exists().where(tables.ModelTrainingResult.model_id == row.id)
    found = session.scalars(
        select(row.weights).join(of_it, of_it.c.id == row.id).where(row.weights.is_not(None), ~has_results)
    )
    return [weights for weights in found if weights is not None and has_card(weights)]


def types_of_files(session: Session, model_id: int, host_name: str) -> set[int]:
    """Codes of the defect types in a host that a model knows because it, or what it goes back to, came from a file."""
    if not (found := weights_of_files(session, model_id)):
        return set()
    from screening.learning.artifacts import ensemble_from_bytes

    known = [ensemble_from_bytes(weights).references for weights in found]
    return {code for references in known if host_name in references.hosts for code in references.seen_with(host_name)}


def label_ranges(session: Session, model_id: int) -> dict[str, tuple[float, float]]:
    """Smallest and largest label of each property that a model, or one that it goes back to, has learnt from.

    Formation energies that are empty because their pristine result was withdrawn count as they were learnt.
    """
    of_it = models.lineage(model_id)
    result = tables.CalculationResult
    ends = [f(getattr(result, name)) for name in PROPERTIES for f in (func.min, func.max)]
    found = session.execute(
        select(*ends)
        .join(tables.ModelTrainingResult, tables.ModelTrainingResult.result_id == result.id)
        .join(of_it, of_it.c.id == tables.ModelTrainingResult.model_id)
    ).one()
    ranges = {name: (found[2 * n], found[2 * n + 1]) for n, name in enumerate(PROPERTIES) if found[2 * n] is not None}
    further: list[Mapping[str, tuple[float, float]]] = [
        {name: (value, value) for name, value in labels.items()} for labels in _emptied(session, model_id)
    ]
    further += [unpack_model(w, "the weights").card.label_ranges for w in weights_of_files(session, model_id)]
    for one in further:
        for name, (low, high) in one.items():
            known = ranges.get(name, (low, high))
            ranges[name] = min(low, known[0]), max(high, known[1])
    return ranges


def _emptied(session: Session, model_id: int) -> Iterator[dict[str, float]]:
    """Formation energies that a model has learnt and that were emptied when their pristine result was withdrawn, eV."""
    of_it = models.lineage(model_id)
    result, calculation, row = tables.CalculationResult, tables.Calculation, tables.Configuration
    learnt = (
        select(result.energy, row.sites, row.defect_types, row.supercell_id, calculation.level_id)
        .join(calculation, calculation.id == result.calculation_id)
        .join(row, row.id == calculation.configuration_id)
        .join(tables.ModelTrainingResult, tables.ModelTrainingResult.result_id == result.id)
        .join(of_it, of_it.c.id == tables.ModelTrainingResult.model_id)
        .where(row.n_defects > 0, result.formation_energy.is_(None))
        .distinct()
    )
    pristine: dict[tuple[int, int], float | None] = {}
    potentials: dict[int, dict[str, float]] = {}
    for energy, sites, types, supercell_id, level_id in session.execute(learnt):
        place = (supercell_id, level_id)
        if place not in pristine:
            pristine[place] = next((row.energy for row in withdrawn_pristine(session, *place)), None)
            potentials[level_id] = dict(queries.chemical_potentials(session, level_id))
        configuration = Configuration(tuple(sites), tuple(types))
        if pristine[place] is not None and elements_of(configuration) <= potentials[level_id].keys():
            yield derived_energies(
                CalculationResult(configuration, energy, {}),
                pristine_energy=pristine[place],
                chemical_potentials=potentials[level_id],
            )


def seen_supercells(session: Session, model_id: int) -> dict[str, tuple[str, ...]]:
    """Labels of the supercells, by host, that a model, or one that it goes back to, has learnt from."""
    of_it = models.lineage(model_id)
    found = session.execute(
        select(tables.Host.name, tables.Supercell.label)
        .distinct()
        .join(tables.Supercell, tables.Supercell.host_id == tables.Host.id)
        .join(tables.Configuration, tables.Configuration.supercell_id == tables.Supercell.id)
        .join(tables.Calculation, tables.Calculation.configuration_id == tables.Configuration.id)
        .join(tables.CalculationResult, tables.CalculationResult.calculation_id == tables.Calculation.id)
        .join(tables.ModelTrainingResult, tables.ModelTrainingResult.result_id == tables.CalculationResult.id)
        .join(of_it, of_it.c.id == tables.ModelTrainingResult.model_id)
        .where(tables.ModelTrainingResult.role == "train")
    )
    labels: dict[str, set[str]] = {}
    for host, label in found:
        labels.setdefault(host, set()).add(label)
    for weights in weights_of_files(session, model_id):
        for host, known in unpack_model(weights, "the weights").card.supercells.items():
            labels.setdefault(host, set()).update(known)
    return {host: tuple(sorted(known)) for host, known in labels.items()}
