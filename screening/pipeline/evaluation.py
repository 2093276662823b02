"""Evaluations: what a model says of labelled configurations beside their labels.

A row that the model has learnt from says nothing about its errors. Such rows are recognised by what they are, the
canonical configuration in its supercell, whatever file or data set they come in: a model of the database by the
results that it and its ancestors were trained on, a model file by the fingerprints that it carries. They are left out,
or counted and marked where that is asked for; a model that does not know what it has learnt from is refused. Rows of
another level of theory than the model's are an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.models import lineage
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration
from screening.defects.host import Host
from screening.defects.symmetry import unit_cell_operations
from screening.dft.results import LevelOfTheory
from screening.dft.vasp import agree
from screening.errors import InputError, LevelOfTheoryError, UnknownNameError
from screening.learning.fingerprints import fingerprints, fingerprints_of_rows
from screening.learning.metrics import ErrorBars, Metrics, mean_of_groups, measure_groups
from screening.pipeline.file_models import weights_of_files
from screening.pipeline.hosts import load_supercell
from screening.pipeline.labelled_files import LabelledFiles
from screening.pipeline.predictions import choose_predictor
from screening.pipeline.pretrained import DEFAULT_MODEL, is_model_path, read_model_file

if TYPE_CHECKING:
    from screening.learning.ensemble import Ensemble

MEAN_OF_SUBSETS = "mean of subsets"
LEARNT = "learnt"  # name of the fingerprints among the arrays that an ensemble carries
_WIDE = 0.95
_SAME_CELL = 0.1  # of squared lengths and of fractional coordinates; functionals differ by 3 % in lengths
_HEIGHT = 5.0  # angstrom
_NOTHING = np.empty(0, np.uint64)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions of a model beside labels; n rows.

    Attributes:
        rows: what was evaluated.
        properties: those that the model predicts and a row has a label of, in the order of the model's.
        labels: (n, n_properties) float64, eV or Bohr magneton, as are the next three; NaN where there is no label.
        means: predicted.
        stds: predicted standard deviations, which are half widths of intervals of 68 %.
        half_widths: of intervals of 95 %.
        is_learnt: (n,) bool: the model has learnt from this row; none of them has, unless that was asked for.
        n_left_out: rows that were left out because the model has learnt from them.
        refusals: (name, reason) of rows that the model cannot predict.
    """

    rows: LabelledFiles
    properties: tuple[str, ...]
    labels: NDArray[np.float64]
    means: NDArray[np.float64]
    stds: NDArray[np.float64]
    half_widths: NDArray[np.float64]
    is_learnt: NDArray[np.bool_]
    n_left_out: int
    refusals: tuple[tuple[str, str], ...]

    def errors(self, name: str) -> ErrorBars:
        """Errors of a property, predicted minus calculated, with the intervals; NaN where there is no label."""
        p = self.properties.index(name)
        return ErrorBars(self.means[:, p] - self.labels[:, p], self.stds[:, p], self.half_widths[:, p])


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """A model with what an evaluation must know of it.

    Attributes:
        sha256: of its weights, or of its file.
        hosts: those it has learnt from.
        learnt: (n,) uint64 fingerprints of what it has learnt from; None where it does not say.
    """

    name: str
    level: LevelOfTheory
    sha256: str
    hosts: tuple[Host, ...]
    ensemble: Ensemble
    learnt: NDArray[np.uint64] | None


@dataclass(frozen=True)
class MetricRow:
    """Metrics of a property in a subset.

    Attributes:
        subset: name of the subset, or `MEAN_OF_SUBSETS`.
        n_defects: of these rows; None for all numbers of defects.
    """

    property: str
    subset: str
    n_defects: int | None
    metrics: Metrics


def evaluate_ensemble(
    ensemble: Ensemble,
    labelled: LabelledFiles,
    *,
    learnt: NDArray[np.uint64],
    include_learnt: bool = False,
    properties: Sequence[str] = (),
    device: str = "auto",
) -> Evaluation:
    """Predict labelled configurations.

    Args:
        learnt: (n_learnt,) fingerprints of the configurations that the model has learnt from; empty if of none.
        include_learnt: count these rows too, marked in `is_learnt`.
        properties: only these; by default all that the model predicts and a row has a label of.

    Raises:
        UnknownNameError: a property that the model does not predict, or that no row has a label of.
        InputError: no row is left.
    """
    names = _shared_properties(ensemble, labelled, properties)
    is_learnt = np.isin(fingerprints_of_rows(labelled), learnt)
    kept = np.ones(labelled.n_rows, bool) if include_learnt else ~is_learnt
    refusals = _unpredictable(ensemble, labelled, kept)
    kept[list(refusals)] = False
    if not kept.any():
        raise InputError(
            f"none of {labelled.n_rows} labelled rows is left: the model has learnt from {is_learnt.sum()} of them and "
            f"cannot predict {len(refusals)}{''.join(f' ({reason})' for reason in list(refusals.values())[:1])}; give "
            "it rows that it has not seen, or evaluate all with --include-learnt"
        )
    rows = labelled.chosen(kept)
    means, stds, half_widths = _predict(ensemble, rows, device)
    columns = [ensemble.properties.index(name) for name in names]
    return Evaluation(
        rows=rows,
        properties=names,
        labels=rows.labels[:, [labelled.properties.index(name) for name in names]],
        means=means[:, columns],
        stds=stds[:, columns],
        half_widths=half_widths[:, columns],
        is_learnt=is_learnt[kept],
        n_left_out=0 if include_learnt else int(is_learnt.sum()),
        refusals=tuple((labelled.names[i], reason) for i, reason in refusals.items()),
    )


def metrics_by_subset(evaluation: Evaluation, name: str) -> list[MetricRow]:
    """The metrics of a property in each subset that has a label; the mean of the subsets comes first, if several."""
    of_subsets = measure_groups(evaluation.errors(name), evaluation.rows.group_of_row)
    found = [MetricRow(name, evaluation.rows.subsets[group], None, metrics) for group, metrics in of_subsets.items()]
    if len(found) == 1:
        return found
    return [MetricRow(name, MEAN_OF_SUBSETS, None, mean_of_groups(list(of_subsets.values()))), *found]


def metrics_by_defects(evaluation: Evaluation, name: str) -> list[MetricRow]:
    """The metrics of a property for each number of defects in each subset."""
    found = []
    errors, rows = evaluation.errors(name), evaluation.rows
    for group, subset in enumerate(rows.subsets):
        chosen = np.flatnonzero(rows.group_of_row == group)
        of_sizes = measure_groups(errors.chosen(chosen), rows.n_defects[chosen])
        found += [MetricRow(name, subset, n_defects, metrics) for n_defects, metrics in of_sizes.items()]
    return found


def find_model(engine: Engine | None, name: str | None) -> EvaluatedModel:
    """A model of the database, of a file, or one that comes with the package, as `choose_predictor` finds it.

    Raises:
        UnknownNameError: there is none of this name.
        FileFormatError: a file is no model that this version reads.
    """
    predictor = choose_predictor(engine, name)
    carried = predictor.ensemble.extra.get(LEARNT)
    if predictor.is_of_file:
        file = read_model_file(DEFAULT_MODEL if name is None else Path(name) if is_model_path(name) else name)
        digest = hashlib.sha256(file.packed).hexdigest()
        return EvaluatedModel(predictor.name, file.card.level, digest, predictor.hosts, predictor.ensemble, carried)
    assert engine is not None
    with session_scope(engine) as session:
        row = session.scalars(select(tables.TrainedModel).where(tables.TrainedModel.name == predictor.name)).one()
        level = session.get_one(tables.LevelOfTheory, row.level_id)
        trained = learnt_by(session, row.id)
        learnt = trained if carried is None else np.union1d(trained, carried)
        return EvaluatedModel(
            name=row.name,
            level=LevelOfTheory(level.name, level.code, level.functional, level.settings),
            sha256=row.weights_sha256 or "",
            hosts=predictor.hosts,
            ensemble=predictor.ensemble,
            learnt=learnt if len(learnt) else None,
        )


def evaluate_model(
    model: EvaluatedModel,
    labelled: LabelledFiles,
    *,
    include_learnt: bool = False,
    properties: Sequence[str] = (),
    device: str = "auto",
) -> Evaluation:
    """Evaluate a model on labelled configurations that it has not learnt from, or on all of them.

    Raises:
        LevelOfTheoryError: labels are at another level of theory than the model.
        InputError: the model does not say what it has learnt from, or its hosts number their sites otherwise; as
            `evaluate_ensemble` says.
    """
    check_level(labelled, model.level)
    if not include_learnt:
        check_numbering(labelled, model.hosts)
    if model.learnt is None and not include_learnt:
        raise InputError(
            f"model {model.name} does not say what it has learnt from, so its errors on rows it knows would pass for "
            "errors on new ones; export it again, or evaluate it on all rows with --include-learnt"
        )
    return evaluate_ensemble(
        model.ensemble,
        labelled,
        learnt=_NOTHING if model.learnt is None else model.learnt,
        include_learnt=include_learnt,
        properties=properties,
        device=device,
    )


def check_level(labelled: LabelledFiles, level: LevelOfTheory) -> None:
    """Make sure that labels are at the level of theory of a model, where their files say at which they are.

    Raises:
        LevelOfTheoryError: a subset is at another one.
    """
    for number, (subset, found) in enumerate(zip(labelled.subsets, labelled.levels, strict=True)):
        if found is not None and (labelled.group_of_row == number).any() and not _is_same_level(found, level):
            raise LevelOfTheoryError(
                f"the labels of {subset} are at the level of theory {found.name!r}, the model is at {level.name!r}; "
                "their difference says nothing about the model: evaluate it on results of its own level"
            )


def check_numbering(labelled: LabelledFiles, hosts: Sequence[Host]) -> None:
    """Make sure that hosts of one name number their sites alike: what was learnt is known by the numbers of sites.

    Raises:
        InputError: one does not.
    """
    of_name = {host.name: host for host in hosts}
    for supercell in labelled.supercells:
        host = of_name.get(supercell.host.name, supercell.host)
        if not _is_numbered_alike(supercell.host, host):
            raise InputError(
                f"the unit cell of {host.name} that the model has learnt with ({host.source}) is another than that of "
                f"the data ({supercell.host.source}), so that learnt rows would not be recognised; name the host "
                "otherwise, or evaluate all rows with --include-learnt"
            )


def learnt_by(session: Session, model_id: int) -> NDArray[np.uint64]:
    """(n,) sorted fingerprints of all that a stored model and those it started from were trained on, here or before."""
    trained = tables.ModelTrainingResult
    found = session.execute(
        select(tables.Configuration.supercell_id, tables.Configuration.sites, tables.Configuration.defect_types)
        .join(tables.Calculation, tables.Calculation.configuration_id == tables.Configuration.id)
        .join(tables.CalculationResult, tables.CalculationResult.calculation_id == tables.Calculation.id)
        .join(trained, trained.result_id == tables.CalculationResult.id)
        .where(trained.model_id.in_(select(lineage(model_id).c.id)), trained.role == "train")
    )
    of_supercell: dict[int, list[Configuration]] = {}
    for supercell_id, sites, defect_types in found:
        of_supercell.setdefault(supercell_id, []).append(Configuration(tuple(sites), tuple(defect_types)))
    hashed = [fingerprints(load_supercell(session, i).supercell, some) for i, some in of_supercell.items()]
    return np.unique(np.concatenate([carried_by(session, model_id), *hashed]))


def carried_by(session: Session, model_id: int) -> NDArray[np.uint64]:
    """(n,) fingerprints of what a stored model and those it started from had learnt before they came here in files."""
    from screening.learning.artifacts import ensemble_from_bytes

    ensembles = [ensemble_from_bytes(weights) for weights in weights_of_files(session, model_id)]
    return np.concatenate([_NOTHING, *(ensemble.extra.get(LEARNT, _NOTHING) for ensemble in ensembles)])


def _shared_properties(ensemble: Ensemble, labelled: LabelledFiles, wanted: Sequence[str]) -> tuple[str, ...]:
    for name in wanted:
        if name not in ensemble.properties or name not in labelled.properties:
            raise UnknownNameError(
                f"property {name!r} cannot be evaluated: the model predicts {', '.join(ensemble.properties)}, the data "
                f"have labels of {', '.join(labelled.properties)}"
            )
    found = tuple(name for name in ensemble.properties if name in (wanted or labelled.properties))
    if not found:
        raise InputError(
            f"the model predicts {', '.join(ensemble.properties)}, the data have labels of "
            f"{', '.join(labelled.properties)}; expected at least one property in common"
        )
    return found


def _unpredictable(ensemble: Ensemble, labelled: LabelledFiles, kept: NDArray[np.bool_]) -> dict[int, str]:
    """Reasons by the numbers of those rows that the model has not seen the host or a defect type of."""
    reasons = {}
    for i in np.flatnonzero(kept).tolist():
        host = labelled.supercells[labelled.supercell_of_row[i]].host.name
        try:
            ensemble.references.check(host, labelled.configurations[i].defect_types)
        except InputError as error:
            reasons[i] = str(error)
    return reasons


def _predict(
    ensemble: Ensemble, rows: LabelledFiles, device: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Means, standard deviations and half widths (n, n_properties) of all properties of the model."""
    from screening.learning.scorer import score_configurations

    means, stds = np.empty((2, rows.n_rows, len(ensemble.properties)))
    for number, supercell in enumerate(rows.supercells):
        chosen = np.flatnonzero(rows.supercell_of_row == number)
        if len(chosen):
            configurations = [rows.configurations[i] for i in chosen]
            means[chosen], stds[chosen] = score_configurations(ensemble, supercell, configurations, device=device)
    hosts = [rows.supercells[number].host.name for number in rows.supercell_of_row]
    return means, stds, ensemble.half_width(_WIDE, stds, hosts, rows.n_defects)


def _is_same_level(one: LevelOfTheory, other: LevelOfTheory) -> bool:
    """Whether two levels are one; VASP runs need not hold the same elements for that."""
    if one.digest == other.digest:
        return True
    settings = (one.settings, other.settings)
    return (
        (one.code, one.functional) == (other.code, other.functional)
        and all("pseudopotentials" in found for found in settings)
        and agree(*settings) is not None
    )


def _is_numbered_alike(one: Host, other: Host) -> bool:
    """Whether two unit cells have the same sites in the same order, up to an operation of the host's symmetry.

    Origin, orientation, and the height of a layer's cell do not matter, since configurations are in canonical form.
    """
    if one.species != other.species or one.is_layer != other.is_layer:
        return False
    n_axes = 2 if one.is_layer else 3
    metrics = [host.lattice[:n_axes] @ host.lattice[:n_axes].T for host in (one, other)]
    if np.abs(metrics[0] - metrics[1]).max() > _SAME_CELL * np.abs(metrics[0]).max():
        return False
    wanted = _from_first(other, other.positions)
    for rotation, translation in zip(*unit_cell_operations(one), strict=True):
        apart = _from_first(one, one.positions @ rotation.T + translation) - wanted
        apart[:, :n_axes] -= np.rint(apart[:, :n_axes])
        if np.abs(apart).max() < _SAME_CELL:
            return True
    return False


def _from_first(host: Host, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 3) fractional positions from the first site on; of a layer the third in units of `_HEIGHT`."""
    relative = positions - positions[0]
    if host.is_layer:
        relative[:, 2] *= float(np.linalg.norm(host.lattice[2])) / _HEIGHT
    return np.asarray(relative, np.float64)
