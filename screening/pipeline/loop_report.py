"""What a loop has found, against the calculations it has made: a table and three plots.

The best value is that of the calculations made until each ranking. The error is that of the version of each ranking,
all on the same rows: such as no version has learnt from. Beside it is the error of each round when it was proposed:
what the version in production said of the results before it learnt them. Where all labels are known, random choice is
drawn from the same labels: the best value among as many that were taken at random, and the error of versions that have
learnt from as many (screening.pipeline.random_choice).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from screening.database import loops as rows
from screening.database import tables
from screening.database.design_query import DesignQuery
from screening.database.models import stands
from screening.defects.defect_types import Configuration
from screening.errors import InputError
from screening.pipeline.hosts import load_supercell
from screening.pipeline.open_designs import query_of
from screening.pipeline.random_choice import mean_error
from screening.pipeline.replay import Label, Replay
from screening.pipeline.round_pools import improved_property, key_of

_DRAWS = 400
_BAND = (10, 50, 90)  # percentiles of random choice


@dataclass(frozen=True)
class LoopPoint:
    """A ranking of a loop.

    Attributes:
        n_calculated: results that the model could learn from until then, those it began with too.
        n_made: calculations of the loop until then.
        model: the version that ranked.
        best: best calculated value that satisfies the windows, eV or Bohr magneton; None without one.
        mae: error of the version on rows that no version has learnt from.
        proposed_mae: error of what was said of the round before it was learnt.
        n_changed: of the best rows, those that the ranking before did not have.
        random_low, random_median, random_high: best values of as many results chosen at random: 10, 50 and 90 %.
        random_mae: error of a version that has learnt from as many results chosen at random, where it was trained.
    """

    n_calculated: int
    n_made: int
    model: str
    best: float | None
    mae: float | None
    proposed_mae: float | None
    n_changed: int | None
    random_low: float | None = None
    random_median: float | None = None
    random_high: float | None = None
    random_mae: float | None = None


@dataclass(frozen=True)
class LoopReport:
    """What a loop has found.

    Attributes:
        property: what the best value is of, and the errors.
        n_test: rows that the errors are of.
        known_best: best value of all labels, where they are known.
    """

    loop: str
    state: str
    ended: str
    property: str
    direction: str
    points: tuple[LoopPoint, ...]
    n_test: int
    known_best: float | None


@dataclass(frozen=True, eq=False)
class _TestRows:
    """Configurations of one supercell with what was calculated of a property."""

    supercell_id: int
    configurations: tuple[Configuration, ...]
    values: NDArray[np.float64]


def report(
    session: Session, name: str | None, *, replay: Replay | None = None,
    random_errors: Mapping[int, float | None] | None = None, device: str = "cpu",
) -> LoopReport:  # fmt: skip
    """What a loop has found until now.

    Args:
        replay: where all labels are known: errors are measured on its test rows, and random choice is drawn.
        random_errors: errors of versions that have learnt from so many results chosen at random, by their number.

    Raises:
        UnknownNameError: there is no such loop.
        InputError: it has not ranked yet.
    """
    loop = rows.loop_by_name(session, name)
    steps = [s for s in rows.steps_of(session, loop.id) if s["stage"] == "rank" and s["ranking_id"] is not None]
    if not steps:
        raise InputError(
            f"loop {loop.name} has not ranked anything yet; wait, or see `screening loop status {loop.name}`"
        )
    query = query_of(session.get_one(tables.Design, loop.design_id))
    what = improved_property(query)
    test = _rows_of(session, loop, what, replay)
    errors: dict[int, float | None] = {}
    points = []
    n_first = _n_first(session, loop, steps[0]["model_id"])
    for step in steps:
        model_id = step["model_id"]
        if model_id not in errors:
            errors[model_id] = _mae(session, model_id, what, test, device=device)
        n = n_first + (step["n_calculated"] or 0)
        random = (None,) * 3 if replay is None else _random(query, replay, n)
        points.append(
            LoopPoint(
                n, step["n_calculated"] or 0, step["model"], step["best"], errors[model_id],
                _proposed_mae(session, step["round_id"], what), step["n_changed"], *random,
                None if random_errors is None else random_errors.get(n),
            )
        )  # fmt: skip
    known = [] if replay is None else _best_first(query, replay.pool)
    return LoopReport(
        loop.name, loop.state, loop.error or loop.remark or "", what, query.direction, tuple(points),
        len(test.values), known[0] if known else None,
    )  # fmt: skip


def write_report(found: LoopReport, folder: Path) -> tuple[Path, Path]:
    """Write the table (CSV) and the plots (PNG) of a report; their paths.

    Raises:
        InputError: the folder cannot be written.
    """
    table, plot = folder / "loop.csv", folder / "loop.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(LoopPoint)])
            writer.writeheader()
            writer.writerows(asdict(point) for point in found.points)
        _plot(found, plot)
    except OSError as error:
        raise InputError(f"the report cannot be written into {folder}: {error}; name another folder") from error
    return table, plot


def _rows_of(session: Session, loop: tables.Loop, what: str, replay: Replay | None) -> _TestRows:
    """Rows that no version of a loop has learnt from."""
    if replay is not None:
        supercell_id = session.scalars(
            select(tables.Supercell.id)
            .join(tables.Host, tables.Host.id == tables.Supercell.host_id)
            .where(tables.Host.name == replay.supercell.host.name, tables.Supercell.label == replay.supercell.label)
        ).one()
        return _TestRows(
            supercell_id,
            tuple(label.configuration for label in replay.test),
            np.array([label.properties[what] for label in replay.test]),
        )
    query = query_of(session.get_one(tables.Design, loop.design_id))
    result, learnt, configuration = tables.CalculationResult, tables.ModelTrainingResult, tables.Configuration
    newest = (
        select(func.max(tables.TrainedModel.id))
        .where(tables.TrainedModel.line_id == loop.line_id, tables.TrainedModel.state == "finished")
        .scalar_subquery()
    )
    value = getattr(result, what)
    found = session.execute(
        select(configuration.supercell_id, configuration.sites, configuration.defect_types, value.label("value"))
        .select_from(result)
        .join(learnt, learnt.result_id == result.id)
        .join(tables.Calculation, tables.Calculation.id == result.calculation_id)
        .join(configuration, configuration.id == tables.Calculation.configuration_id)
        .join(tables.Supercell, tables.Supercell.id == configuration.supercell_id)
        .join(tables.Host, tables.Host.id == tables.Supercell.host_id)
        .where(learnt.model_id == newest, learnt.role == "validation", value.is_not(None))
        .where(result.retracted_at.is_(None), tables.Host.name == query.host)
        .order_by(result.id)
    ).all()
    first = found[0].supercell_id if found else 0
    same = [row for row in found if row.supercell_id == first]
    return _TestRows(
        first,
        tuple(Configuration(tuple(row.sites), tuple(row.defect_types)) for row in same),
        np.array([row.value for row in same], np.float64),
    )


def _mae(session: Session, model_id: int, what: str, test: _TestRows, *, device: str) -> float | None:
    """Mean absolute error of a version on rows; None where it cannot predict any."""
    from screening.learning.artifacts import ensemble_from_bytes

    model = session.get_one(tables.TrainedModel, model_id)
    if not len(test.values) or model.weights is None:
        return None
    supercell = load_supercell(session, test.supercell_id).supercell
    return mean_error(
        ensemble_from_bytes(model.weights), supercell, test.configurations, values=test.values, of=what, device=device
    )


def _proposed_mae(session: Session, round_id: int | None, what: str) -> float | None:
    """Error of what the version in production said of the results of a round before it learnt them."""
    said, result = tables.ResultPrediction, tables.CalculationResult
    value = case((said.property == what, getattr(result, what)))
    return session.scalar(
        select(func.avg(func.abs(said.mean - value)))
        .join(result, result.id == said.result_id)
        .join(tables.Calculation, tables.Calculation.id == result.calculation_id)
        .where(tables.Calculation.round_id == round_id, said.property == what, stands())
    )


def _n_first(session: Session, loop: tables.Loop, model_id: int) -> int:
    """Results that the model had before a loop calculated any."""
    learnt = tables.ModelTrainingResult
    return session.execute(select(func.count()).where(learnt.model_id == model_id)).scalar_one()


def _satisfies(query: DesignQuery, label: Label) -> bool:
    if query.max_defects is not None and label.configuration.n_defects > query.max_defects:
        return False
    return all(
        (window.low is None or label.properties[window.property] >= window.low)
        and (window.high is None or label.properties[window.property] <= window.high)
        for window in query.windows
    )


def _best_first(query: DesignQuery, labels: Sequence[Label]) -> list[float]:
    """Values of the labels that satisfy the windows, best first."""
    what = improved_property(query)
    values = [label.properties[what] for label in labels if _satisfies(query, label)]
    return sorted(values, key=lambda value: key_of(query, value))


def _random(query: DesignQuery, replay: Replay, n: int) -> tuple[float | None, float | None, float | None]:
    """Percentiles of the best value of n labels that are drawn at random; None where most draws have none."""
    values = _best_first(query, replay.pool)
    generator, n_labels = np.random.default_rng(0), len(replay.pool)
    best = [generator.choice(n_labels, min(n, n_labels), replace=False).min() for _ in range(_DRAWS)]
    band = _BAND[::-1] if query.direction == "highest" else _BAND
    places = np.percentile(best, band, method="nearest").tolist()
    low, median, high = (values[place] if place < len(values) else None for place in places)
    return low, median, high


def _plot(found: LoopReport, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.4, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = (figure.add_subplot(1, 3, n) for n in (1, 2, 3))
    made = [point.n_calculated for point in found.points]
    nan = float("nan")
    bands = [[nan if (v := getattr(p, f"random_{name}")) is None else v for p in found.points]
             for name in ("low", "median", "high")]  # fmt: skip
    if any(point.random_median is not None for point in found.points):
        left.fill_between(made, bands[0], bands[2], color="#cbd5e1", label="random choice, 10 to 90 %")
        left.plot(made, bands[1], color="#64748b", linestyle="--", label="random choice, median")
    best = [nan if point.best is None else point.best for point in found.points]
    left.step(made, best, where="post", marker="o", color="#c2410c", label="the loop")
    if found.known_best is not None:
        left.axhline(found.known_best, color="black", linewidth=0.8, linestyle=":", label="best of all labels")
    comment = tables.PROPERTY_COMMENTS[found.property]
    left.set_title("best value that was calculated")
    left.set_ylabel(comment)
    left.legend(frameon=False, fontsize=9)
    errors = [nan if point.mae is None else 1e3 * point.mae for point in found.points]
    middle.plot(made, errors, marker="o", color="#1d4ed8", label=f"{found.n_test} rows that were never learnt")
    random = [nan if point.random_mae is None else 1e3 * point.random_mae for point in found.points]
    if not all(value != value for value in random):
        middle.plot(made, random, color="#64748b", linestyle="--", label="as many chosen at random")
    proposed = [nan if point.proposed_mae is None else 1e3 * point.proposed_mae for point in found.points]
    if not all(value != value for value in proposed):
        middle.plot(made, proposed, marker="s", color="#9aa5b1", linestyle="none", label="the round, when proposed")
    middle.set_title("error of the predictions")
    middle.set_ylabel(f"mean absolute error, {_thousandths(comment)}")
    middle.set_ylim(bottom=0)
    middle.legend(frameon=False, fontsize=9)
    changed = [nan if point.n_changed is None else point.n_changed for point in found.points]
    bars = right.bar(range(len(changed)), changed, color="#0f766e")
    right.bar_label(bars, ["" if value != value else f"{value:.0f}" for value in changed])
    right.set_xticks(range(len(made)), [str(n) for n in made])
    right.set_title("new among the best candidates")
    right.set_ylabel("number")
    for axes in (left, middle, right):
        axes.set_xlabel("results known")
    figure.suptitle(f"loop {found.loop}, {found.state}{': ' if found.ended else ''}{found.ended}"[:160])
    figure.savefig(path, dpi=140)


def _thousandths(comment: str) -> str:
    return "meV" if comment.endswith("eV") else "thousandths of a Bohr magneton"
