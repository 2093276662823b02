"""What rests on what: from a model to the results it has learnt from and their files, and from a result upwards.

A model rests on a result if it, or a version that it goes back to, was trained on it or chosen on it; campaigns,
rankings and rounds rest on the results of their models. A pristine result also carries the formation energies of its
supercell at its level of theory, of the models of the time in which it stood. Nothing of this is stored: the rows that
were written when things were made say it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import CTE, Select, case, exists, func, literal, or_, select
from sqlalchemy.orm import Session, aliased

from screening.database import tables
from screening.database.models import lineage, production, standing_of

_STANDING = case(
    (tables.CalculationResult.retracted_at.is_not(None), "retracted"),
    (
        exists().where(
            tables.QuarantinedResult.result_id == tables.CalculationResult.id,
            tables.QuarantinedResult.state.in_(("open", "rejected")),
        ),
        "put aside",
    ),
    else_="usable",
)


def result_rows() -> Select[Any]:
    """The SELECT of results with what they are about and where they come from; without conditions and order.

    Columns: `result`, `host`, `supercell`, `configuration`, `n_defects`, `sites`, `defect_types`, `level`, `dataset`,
    `row_name`, `file`, `sha256`, `kind`, `parser_version`, `taken_in_at`, `standing` (usable, put aside, retracted),
    `retracted_at`, `retraction`, `energy`, and a column for each property.
    """
    result, configuration = tables.CalculationResult, tables.Configuration
    columns: list[Any] = [
        result.id.label("result"),
        tables.Host.name.label("host"),
        tables.Supercell.label.label("supercell"),
        configuration.supercell_id,
        tables.Composition.label.label("configuration"),
        configuration.n_defects,
        configuration.sites,
        configuration.defect_types,
        tables.LevelOfTheory.name.label("level"),
        tables.LevelOfTheory.id.label("level_id"),
        result.dataset,
        result.row_name,
        tables.SourceFile.path.label("file"),
        tables.SourceFile.sha256,
        tables.SourceFile.kind,
        tables.SourceFile.parser_version,
        result.taken_in_at,
        _STANDING.label("standing"),
        result.retracted_at,
        result.retraction,
        result.energy,
        *(getattr(result, name) for name in tables.PROPERTY_COMMENTS),
    ]
    return (
        select(*columns)
        .select_from(result)
        .join(tables.Calculation, tables.Calculation.id == result.calculation_id)
        .join(tables.LevelOfTheory, tables.LevelOfTheory.id == tables.Calculation.level_id)
        .join(configuration, configuration.id == tables.Calculation.configuration_id)
        .join(tables.Composition, tables.Composition.id == configuration.composition_id)
        .join(tables.Supercell, tables.Supercell.id == configuration.supercell_id)
        .join(tables.Host, tables.Host.id == tables.Supercell.host_id)
        .outerjoin(tables.SourceFile, tables.SourceFile.id == result.source_file_id)
    )


def learnt_rows(session: Session, model_id: int, supercell_id: int) -> list[dict[str, Any]]:
    """The results of a supercell that a model, or one that it goes back to, was trained on, as `result_rows`."""
    of_it, learnt = lineage(model_id), tables.ModelTrainingResult
    ids = (
        select(learnt.result_id)
        .join(of_it, of_it.c.id == learnt.model_id)
        .where(learnt.role == "train")
        .scalar_subquery()
    )
    rows = session.execute(
        result_rows()
        .where(tables.CalculationResult.id.in_(ids), tables.Configuration.supercell_id == supercell_id)
        .order_by(tables.CalculationResult.id)
    ).mappings()
    return [dict(row) for row in rows]


def versions_back(session: Session, model_id: int) -> list[dict[str, Any]]:
    """A model and the versions it goes back to, newest first.

    Columns: `id`, `model`, `line`, `version`, `standing`, `level`, `n_train`, `n_validation`, `n_new` (results to train
    on that its parent was not trained on), `finished_at`, `weights_sha256`, `snapshot_sha256`, `why` (why it went into
    production last, or was rejected).
    """
    of_it, in_use = lineage(model_id), production()
    model, learnt = tables.TrainedModel, tables.ModelTrainingResult
    of_parent = aliased(learnt)
    is_known = (
        exists()
        .where(of_parent.model_id == model.parent_id, of_parent.result_id == learnt.result_id)
        .where(of_parent.role == "train")
        .correlate(model, learnt)
    )
    trains = learnt.role == "train"

    def count(*conditions: Any) -> Any:
        return select(func.count()).where(learnt.model_id == model.id, *conditions).correlate(model).scalar_subquery()

    last = (
        select(tables.Promotion.reason)
        .where(tables.Promotion.model_id == model.id)
        .order_by(tables.Promotion.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    rows = session.execute(
        select(
            model.id,
            model.name.label("model"),
            tables.ModelLine.name.label("line"),
            model.version,
            standing_of(in_use).label("standing"),
            tables.LevelOfTheory.name.label("level"),
            count(trains).label("n_train"),
            count(learnt.role == "validation").label("n_validation"),
            count(trains, ~is_known).label("n_new"),
            model.finished_at,
            model.weights_sha256,
            model.snapshot_sha256,
            func.coalesce(last, tables.ModelComparison.reason).label("why"),
        )
        .join(of_it, of_it.c.id == model.id)
        .join(tables.ModelLine, tables.ModelLine.id == model.line_id)
        .join(tables.LevelOfTheory, tables.LevelOfTheory.id == model.level_id)
        .outerjoin(in_use, in_use.c.line_id == model.line_id)
        .outerjoin(tables.ModelComparison, tables.ModelComparison.challenger_id == model.id)
        .order_by(model.id.desc())
    ).mappings()
    return [dict(row) for row in rows]


def sources_of(session: Session, model_id: int) -> list[dict[str, Any]]:
    """Where the results come from that a model, or one that it goes back to, has learnt from or was chosen on.

    A row per file and data set, most results first: `dataset`, `file`, `kind`, `sha256`, `parser_version`, `read_at`
    (null where a worker has calculated them), `results`, `retracted` (how many of them were withdrawn since).
    """
    of_it, learnt = lineage(model_id), tables.ModelTrainingResult
    result, file = tables.CalculationResult, tables.SourceFile
    n = func.count(result.id.distinct())
    rows = session.execute(
        select(
            result.dataset, file.path.label("file"), file.kind, file.sha256, file.parser_version, file.read_at,
            n.label("results"), n.filter(result.retracted_at.is_not(None)).label("retracted"),
        )
        .select_from(learnt)
        .join(of_it, of_it.c.id == learnt.model_id)
        .join(result, result.id == learnt.result_id)
        .outerjoin(file, file.id == result.source_file_id)
        .group_by(result.dataset, file.id)
        .order_by(n.desc(), result.dataset, file.id)
    ).mappings()  # fmt: skip
    return [dict(row) for row in rows]


def derived_from(result: Any) -> Select[Any]:
    """The SELECT of the ids of the results whose formation energy is, or was, derived from a pristine one.

    Args:
        result: a row of `result_rows`; with defects nothing is derived from it.
    """
    row, configuration = tables.CalculationResult, tables.Configuration
    return (
        select(row.id)
        .join(tables.Calculation, tables.Calculation.id == row.calculation_id)
        .join(configuration, configuration.id == tables.Calculation.configuration_id)
        .where(
            configuration.supercell_id == result["supercell_id"],
            tables.Calculation.level_id == result["level_id"],
            configuration.n_defects > 0,
            or_(row.formation_energy.is_not(None), literal(result["standing"] == "retracted")),
            literal(result["n_defects"] == 0),
        )
    )


def models_on(result: Any) -> CTE:
    """Ids of the models that rest on a result (a row of `result_rows`), recursively through what they go back to."""
    learnt, model = tables.ModelTrainingResult, tables.TrainedModel
    in_force = model.created_at >= result["taken_in_at"]
    if result["retracted_at"] is not None:
        in_force &= model.created_at <= result["retracted_at"]
    direct = select(learnt.model_id).where(learnt.result_id == result["result"])
    derived = (
        select(learnt.model_id)
        .join(model, model.id == learnt.model_id)
        .where(learnt.result_id.in_(derived_from(result)), in_force)
    )
    resting = select(direct.union(derived).subquery().c.model_id).cte("resting", recursive=True)
    return resting.union(select(model.id).join(resting, model.parent_id == resting.c.model_id))


def list_models_on(session: Session, result: Any) -> list[dict[str, Any]]:
    """The models that rest on a result, oldest first: `model`, `line`, `standing`, `state`, `how`.

    How is trained, or chosen (it is a validation row), or derived (on a formation energy that is derived from it), or
    inherited (a version that it goes back to was).
    """
    resting, in_use = models_on(result), production()
    model, learnt = tables.TrainedModel, tables.ModelTrainingResult

    def has(*conditions: Any) -> Any:
        return exists().where(learnt.model_id == model.id, *conditions)

    directly = learnt.result_id == result["result"]
    how = case(
        (has(directly, learnt.role == "train"), "trained"),
        (has(directly), "chosen"),
        (has(learnt.result_id.in_(derived_from(result))), "derived"),
        else_="inherited",
    )
    rows = session.execute(
        select(
            model.id,
            model.name.label("model"),
            tables.ModelLine.name.label("line"),
            standing_of(in_use).label("standing"),
            model.state,
            how.label("how"),
        )
        .join(resting, resting.c.model_id == model.id)
        .join(tables.ModelLine, tables.ModelLine.id == model.line_id)
        .outerjoin(in_use, in_use.c.line_id == model.line_id)
        .order_by(model.id)
    ).mappings()
    return [dict(row) for row in rows]


def list_campaigns_of(session: Session, model_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The campaigns that models have scored, oldest first: `campaign`, `model`, `state`, `predictions`."""
    campaign, chunk = tables.Campaign, tables.Chunk
    done = (
        select(func.coalesce(func.sum(chunk.n_candidates), 0))
        .where(chunk.campaign_id == campaign.id, chunk.state == "finished")
        .scalar_subquery()
    )
    rows = session.execute(
        select(
            campaign.id,
            campaign.name.label("campaign"),
            tables.TrainedModel.name.label("model"),
            campaign.state,
            done.label("predictions"),
        )
        .join(tables.TrainedModel, tables.TrainedModel.id == campaign.model_id)
        .where(campaign.model_id.in_(model_ids))
        .order_by(campaign.id)
    ).mappings()
    return [{**row, "predictions": int(row["predictions"])} for row in rows]


def list_rankings_of(session: Session, model_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The saved rankings by models, oldest first: `ranking` (its id), `name`, `model`, `rows`, `created_at`."""
    ranking, row, place = tables.Ranking, tables.RankingRow, tables.RankingCampaign
    n_rows = select(func.count()).where(row.ranking_id == ranking.id).correlate(ranking).scalar_subquery()
    in_a_place = exists().where(place.ranking_id == ranking.id, place.model_id.in_(model_ids))
    rows = session.execute(
        select(
            ranking.id.label("ranking"),
            ranking.name,
            tables.TrainedModel.name.label("model"),
            n_rows.label("rows"),
            ranking.created_at,
        )
        .join(tables.TrainedModel, tables.TrainedModel.id == ranking.model_id)
        .where(or_(ranking.model_id.in_(model_ids), in_a_place))
        .order_by(ranking.id)
    ).mappings()
    return [dict(found) for found in rows]


def list_rounds_of(session: Session, model_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The rounds that predictions of models have chosen, oldest first: `round` (its id), `name`, `model`, numbers."""
    round_, calculation = tables.Round, tables.Calculation
    finished = func.count(calculation.id).filter(calculation.state == "finished")
    rows = session.execute(
        select(
            round_.id.label("round"),
            round_.name,
            tables.TrainedModel.name.label("model"),
            func.count(calculation.id).label("calculations"),
            finished.label("finished"),
        )
        .join(tables.TrainedModel, tables.TrainedModel.id == round_.model_id)
        .outerjoin(calculation, calculation.round_id == round_.id)
        .where(round_.model_id.in_(model_ids))
        .group_by(round_.id, tables.TrainedModel.id)
        .order_by(round_.id)
    ).mappings()
    return [dict(row) for row in rows]


def retracted_below(session: Session, model_id: int) -> list[int]:
    """Ids of the withdrawn results that a model rests on.

    Few results are withdrawn, so that the walk begins there.
    """
    withdrawn = session.execute(
        result_rows().where(tables.CalculationResult.retracted_at.is_not(None)).order_by(tables.CalculationResult.id)
    ).mappings()
    found = []
    for result in withdrawn.all():
        resting = models_on(result)
        if session.scalar(select(exists().where(resting.c.model_id == model_id))):
            found.append(int(result["result"]))
    return found
