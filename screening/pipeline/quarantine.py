"""Results that are put aside, not learnt, because they contradict a model where it claims to know.

Before a version of a line learns from new results, the version in production predicts them; what it said is kept, for
later nobody can ask it again without hindsight. Batches and single results that cannot be right (screening.pipeline.
diagnosis) are put aside: no model learns from them and none is judged by them, until a person has looked at them and
releases or rejects them. What a person has decided is not asked again.

Results that are far from what the model has learnt from (another host, supercell or defect type, more defects, closer
pairs: screening.learning.novelty) are never condemned for what it says of them, only with the batch that they are in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Engine, and_, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import models, queries, tables
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration
from screening.errors import InputError
from screening.pipeline.comparison import knows
from screening.pipeline.diagnosis import Residuals, diagnose_batch, outliers
from screening.pipeline.hosts import load_supercell
from screening.pipeline.training_rows import drop_unusable

if TYPE_CHECKING:
    from screening.learning.ensemble import Ensemble

_INTERVAL = 0.95
_SMALLEST_HALF_WIDTH = 1e-4  # eV or Bohr magneton; a property that is the same everywhere has none
_ROWS_PER_INSERT = 5000


@dataclass(frozen=True, eq=False)
class _Judged:
    """New results of one line beside what its version in production says of them; n of them, ascending by id.

    Attributes:
        ids: (n,) int64.
        batches: name of the batch of each.
        is_known: (n,) whether the model claims to know the configuration.
        std: (n, n_properties) standard deviations of the predictions, NaN where the model cannot predict.
        residuals: of all of them; means are NaN where the model cannot predict.
    """

    ids: NDArray[np.int64]
    batches: tuple[str, ...]
    is_known: NDArray[np.bool_]
    std: NDArray[np.float64]
    residuals: Residuals

    def rows(self, chosen: NDArray[np.int64]) -> Residuals:
        """The residuals of some rows."""
        all_rows = self.residuals
        return Residuals(
            all_rows.properties, all_rows.values[chosen], all_rows.means[chosen], all_rows.half_widths[chosen],
            all_rows.codes, all_rows.counts[chosen],
        )  # fmt: skip


def examine_for(engine: Engine, model_id: int, *, device: str) -> None:
    """Examine what a further version of a line is about to learn for the first time; a transaction of its own.

    Raises:
        InputError: all that is new in it is put aside, so that there is nothing to learn.
    """
    from screening.learning.artifacts import ensemble_from_bytes

    with session_scope(engine) as session:
        version = session.get_one(tables.TrainedModel, model_id)
        champion = models.in_production(session, version.line_id)
        if champion is None or version.parent_id is None:
            return
        assert champion.weights is not None
        line = session.get_one(tables.ModelLine, version.line_id)
        n_before = _n_new(session, version)
        examine(session, line, champion, ensemble_from_bytes(champion.weights), device=device)
        drop_unusable(session, model_id)
        n_left, judge = _n_new(session, version), champion.name
    if n_before and not n_left:
        raise InputError(
            f"all {n_before} new results contradict {judge} and are put aside, so that there is nothing to "
            "learn; look at them with `screening results quarantine`, then release or reject them"
        )


def examine(
    session: Session, line: tables.ModelLine, champion: tables.TrainedModel, ensemble: Ensemble, *, device: str
) -> int:
    """Predict the new results of a line, keep what was said of them, and put aside what cannot be right; their number.

    New are results that no finished version of the line has in its snapshot; those that are put aside, or were
    released, are not looked at again.
    """
    new = _new_rows(session, line)
    if not new:
        return 0
    judged = _judge(session, champion, ensemble, new, device=device)
    _store_predictions(session, champion, judged)
    champion.examined_to = max(champion.examined_to or 0, int(judged.ids.max()))
    findings = {int(judged.ids[row]): (batch, reason) for row, batch, reason in _findings(judged)}
    if findings:
        session.execute(
            insert(tables.QuarantinedResult).on_conflict_do_nothing(),
            [
                {"result_id": identifier, "model_id": champion.id, "batch": batch, "reason": reason}
                for identifier, (batch, reason) in sorted(findings.items())
            ],
        )
    return len(findings)


def list_quarantined(session: Session, *, line: str | None = None, open_only: bool = True) -> list[dict[str, Any]]:
    """A row per result that is put aside, by its id: result, configuration, batch, state, reason and more.

    Args:
        line: only those that a version of this line contradicts.
        open_only: only those that no person has decided on.
    """
    row, result = tables.QuarantinedResult, tables.CalculationResult
    statement = (
        select(
            row.result_id.label("result"),
            row.state,
            row.batch,
            row.reason,
            tables.Host.name.label("host"),
            tables.Composition.label.label("configuration"),
            tables.Configuration.sites,
            result.dataset,
            result.row_name.label("name"),
            tables.SourceFile.path.label("file"),
            tables.TrainedModel.name.label("model"),
            row.put_aside_at,
            row.decided_at,
        )
        .join(result, result.id == row.result_id)
        .join(tables.Calculation, tables.Calculation.id == result.calculation_id)
        .join(tables.Configuration, tables.Configuration.id == tables.Calculation.configuration_id)
        .join(tables.Composition, tables.Composition.id == tables.Configuration.composition_id)
        .join(tables.Supercell, tables.Supercell.id == tables.Configuration.supercell_id)
        .join(tables.Host, tables.Host.id == tables.Supercell.host_id)
        .outerjoin(tables.TrainedModel, tables.TrainedModel.id == row.model_id)
        .outerjoin(tables.SourceFile, tables.SourceFile.id == result.source_file_id)
        .order_by(row.result_id)
    )
    if open_only:
        statement = statement.where(row.state == "open")
    if line is not None:
        line_id = models.line_by_name(session, line).id
        statement = statement.where(tables.TrainedModel.line_id == line_id)
    return [dict(found) for found in session.execute(statement).mappings()]


def release(session: Session, *, ids: Sequence[int] = (), batch: str | None = None) -> list[int]:
    """Let models learn from results that were put aside; their ids.

    Raises:
        InputError: one of them is not put aside, or nothing is named.
    """
    return _decide(session, "released", ids, batch)


def reject(
    session: Session, *, ids: Sequence[int] = (), batch: str | None = None, reason: str | None = None
) -> list[int]:
    """Keep results out of every training for good, also such as nobody has put aside yet; their ids.

    Args:
        reason: why, for those that were not put aside before.

    Raises:
        InputError: one of them is not there, or not put aside though no reason is given, or nothing is named.
    """
    if reason is not None:
        known = set(session.scalars(select(tables.CalculationResult.id).where(tables.CalculationResult.id.in_(ids))))
        if missing := sorted(set(ids) - known):
            raise InputError(f"there is no result {', '.join(map(str, missing))}; results have the ids of their tables")
        for identifier in ids:
            added = insert(tables.QuarantinedResult).values(result_id=identifier, reason=reason)
            session.execute(added.on_conflict_do_nothing())
    return _decide(session, "rejected", ids, batch)


def _decide(session: Session, state: str, ids: Sequence[int], batch: str | None) -> list[int]:
    row = tables.QuarantinedResult
    if batch is None and not ids:
        raise InputError("name results by their ids, or a batch (`screening results quarantine` lists both)")
    of_batch = and_(row.batch == batch, row.state == "open")
    chosen: ColumnElement[bool] = row.result_id.in_(ids) if batch is None else of_batch
    found = sorted(
        session.scalars(
            update(row)
            .where(chosen)
            .values(state=state, decided_at=func.now())
            .returning(row.result_id)
            .execution_options(synchronize_session="fetch")
        )
    )
    if batch is not None and not found:
        open_ones = session.scalars(select(row.batch).distinct().where(row.state == "open", row.batch.is_not(None)))
        names = ", ".join(repr(name) for name in sorted(filter(None, open_ones)))
        raise InputError(
            f"no open batch is called {batch!r}; there are: {names or 'none'} (`screening results quarantine`)"
        )
    if missing := sorted(set(ids) - set(found)):
        raise InputError(
            f"result {', '.join(map(str, missing))} is not put aside; `screening results quarantine` lists what is"
        )
    return found


def _n_new(session: Session, version: tables.TrainedModel) -> int:
    """Usable results that a version is to be trained on and that are not in the snapshot of its parent."""
    learnt = tables.ModelTrainingResult
    of_parent = select(learnt.result_id).where(learnt.model_id == version.parent_id)
    return session.execute(
        select(func.count())
        .select_from(learnt)
        .join(tables.CalculationResult, tables.CalculationResult.id == learnt.result_id)
        .where(
            learnt.model_id == version.id,
            learnt.role == "train",
            learnt.result_id.not_in(of_parent),
            models.is_usable(),
        )
    ).scalar_one()


def _new_rows(session: Session, line: tables.ModelLine) -> list[Any]:
    """The usable results of a line that no finished version of it has in its snapshot and no person has released."""
    learnt, version, aside = tables.ModelTrainingResult, tables.TrainedModel, tables.QuarantinedResult
    known = set(
        session.scalars(
            select(learnt.result_id)
            .join(version, version.id == learnt.model_id)
            .where(version.line_id == line.id, version.state == "finished")
        )
    )
    known |= set(session.scalars(select(aside.result_id)))
    host_ids = [queries.get_host(session, name).id for name in line.hosts]
    rows = queries.labelled_rows(session, level_id=line.level_id, host_ids=host_ids, datasets=line.datasets)
    return [row for row in rows if row.CalculationResult.id not in known]


def _judge(
    session: Session, champion: tables.TrainedModel, ensemble: Ensemble, new: Sequence[Any], *, device: str
) -> _Judged:
    """Predict new results."""
    from screening.learning.scorer import score_configurations

    configurations = [Configuration(tuple(row.sites), tuple(row.defect_types)) for row in new]
    of_row = np.array([row.supercell_id for row in new])
    means = np.full((len(new), len(ensemble.properties)), np.nan)
    std, half_widths = np.full_like(means, np.nan), np.full_like(means, np.nan)
    is_known = np.zeros(len(new), np.bool_)
    learnt_in = _learnt_supercells(session, champion.id)
    for supercell_id in np.unique(of_row).tolist():
        supercell = load_supercell(session, supercell_id).supercell
        host = supercell.host.name
        places = np.array([i for i in np.flatnonzero(of_row == supercell_id).tolist()
                           if knows(ensemble, host, configurations[i].defect_types)], np.int64)  # fmt: skip
        if not len(places):
            continue
        chosen = [configurations[i] for i in places]
        means[places], std[places] = score_configurations(ensemble, supercell, chosen, device=device)
        n_defects = np.array([configuration.n_defects for configuration in chosen])
        half_widths[places] = ensemble.half_width(_INTERVAL, std[places], [host] * len(chosen), n_defects)
        if not learnt_in or supercell_id in learnt_in:
            is_known[places] = [not reason for reason in ensemble.novelty.reasons(supercell, chosen)]
    values = [[getattr(row.CalculationResult, name) for name in ensemble.properties] for row in new]
    codes = tuple(sorted({code for row in new for code in row.defect_types}))
    counts = np.array([[row.defect_types.count(code) for code in codes] for row in new], np.int64)
    residuals = Residuals(
        ensemble.properties,
        np.array(values, np.float64),
        means,
        np.maximum(half_widths, _SMALLEST_HALF_WIDTH),
        codes,
        counts,
    )
    ids = np.array([row.CalculationResult.id for row in new], np.int64)
    return _Judged(ids, _batches([row.CalculationResult for row in new]), is_known, std, residuals)


def _learnt_supercells(session: Session, model_id: int) -> set[int]:
    """Supercells of the results that a model, or one that it goes back to, has learnt from; none for one of a file."""
    of_it = models.lineage(model_id)
    learnt, result = tables.ModelTrainingResult, tables.CalculationResult
    return set(
        session.scalars(
            select(tables.Configuration.supercell_id)
            .distinct()
            .join(tables.Calculation, tables.Calculation.configuration_id == tables.Configuration.id)
            .join(result, result.calculation_id == tables.Calculation.id)
            .join(learnt, learnt.result_id == result.id)
            .join(of_it, of_it.c.id == learnt.model_id)
        )
    )


def _batches(results: Sequence[tables.CalculationResult]) -> tuple[str, ...]:
    """The batch of each result: its file, where that brought several, else its data set."""
    per_file: dict[int | None, int] = {}
    for result in results:
        per_file[result.source_file_id] = per_file.get(result.source_file_id, 0) + 1
    return tuple(
        f"{result.dataset}, file {result.source_file_id}"
        if result.source_file_id is not None and per_file[result.source_file_id] > 1
        else result.dataset
        for result in results
    )


def _findings(judged: _Judged) -> Iterator[tuple[int, str | None, str]]:
    """Row, batch and reason of what cannot be right: whole batches, then single results of the others."""
    condemned: set[str] = set()
    for batch in dict.fromkeys(judged.batches):
        of_batch = np.array([name == batch for name in judged.batches])
        reason = diagnose_batch(judged.rows(np.flatnonzero(of_batch & judged.is_known)))
        if reason is not None:
            condemned.add(batch)
            for row in np.flatnonzero(of_batch).tolist():
                yield row, batch, reason
    left = np.flatnonzero(judged.is_known & np.array([name not in condemned for name in judged.batches]))
    for place, reason in outliers(judged.rows(left)).items():
        yield int(left[place]), None, reason


def _store_predictions(session: Session, champion: tables.TrainedModel, judged: _Judged) -> None:
    """Keep what was said of the results, once."""
    known = exists().where(
        tables.ResultPrediction.model_id == champion.id,
        tables.ResultPrediction.result_id == tables.CalculationResult.id,
    )
    ids = judged.ids.tolist()
    said = set(session.scalars(select(tables.CalculationResult.id).where(tables.CalculationResult.id.in_(ids), known)))
    found = judged.residuals
    rows = [
        {
            "model_id": champion.id, "result_id": identifier, "property": name, "mean": float(found.means[i, p]),
            "std": float(judged.std[i, p]), "half_width": float(found.half_widths[i, p]),
        }
        for i, identifier in enumerate(ids)
        if identifier not in said
        for p, name in enumerate(found.properties)
        if np.isfinite(found.means[i, p])
    ]  # fmt: skip
    for start in range(0, len(rows), _ROWS_PER_INSERT):
        session.execute(
            insert(tables.ResultPrediction).on_conflict_do_nothing(), rows[start : start + _ROWS_PER_INSERT]
        )
