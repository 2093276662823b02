"""Champion and challenger: whether a new version takes the place of the version in production.

Both predict the same frozen rows: those of role validation, which neither of them, nor any version that they go back
to, has learnt from. For each property in each group of rows (a data set of a supercell; rounds and small data sets
belong to the largest of their supercell) the mean absolute error of the challenger is divided by that of the
champion; the ratio of the two versions is the geometric mean of these. How far it is noise says a paired bootstrap:
the rows of each group are drawn again with replacement, the same for both.

The rule: the challenger is promoted unless it is worse. It is worse if the 95 % interval of the ratio lies wholly above
1, or if the ratio is above `WORST_RATIO` however wide the interval is: with few frozen rows nearly everything is within
the noise, and a version that looks that bad is not let in on the benefit of the doubt. It has learnt from more than the
champion, so that in doubt it is the better one. Without `FEWEST_ROWS` frozen rows nothing is known, and the
champion stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import models, tables
from screening.pipeline.training_rows import TrainingRows

if TYPE_CHECKING:
    from screening.learning.dataset import LabelledRows
    from screening.learning.ensemble import Ensemble

FEWEST_ROWS = 5
WORST_RATIO = 1.25
N_DRAWS = 2000
EXACT = 1e-4  # eV or Bohr magneton; an error below it is none, and its ratio says nothing
_INTERVAL = (0.025, 0.975)
_DERIVED = "formation_energy"  # the energy per site times the number of defects: the same errors once more
_PER_SITE = "formation_energy_per_site"


@dataclass(frozen=True)
class Ratio:
    """Errors of a challenger over those of a champion: their geometric mean over groups and properties.

    Attributes:
        low: lower end of its 95 % interval.
        high: upper end of it.
        n_rows: frozen rows.
    """

    value: float
    low: float
    high: float
    n_rows: int

    @property
    def is_worse(self) -> bool:
        """Whether the challenger is worse by the rule of this module."""
        return self.low > 1.0 or self.value > WORST_RATIO


def settle(
    session: Session, challenger: tables.TrainedModel, ensemble: Ensemble, trained: TrainingRows, *, device: str
) -> None:
    """Compare a version that is finished with the one in production of its line, and promote it if it is not worse.

    The caller has locked the line, so that the champion is the version that is in production at this moment, whatever
    it was when the training began.
    """
    champion = models.in_production(session, challenger.line_id)
    assert champion is not None  # the first finished version is promoted by the database
    if champion.id == challenger.id:
        return
    from screening.learning.artifacts import ensemble_from_bytes

    assert champion.weights is not None
    rivals = (ensemble_from_bytes(champion.weights), ensemble)
    chosen = frozen_rows(session, (champion, challenger), rivals, trained)
    errors = [np.abs(residuals_of(rival, trained.rows, chosen, device=device)) for rival in rivals]
    names = trained.rows.properties
    counted = [p for p, name in enumerate(names) if name != _DERIVED or _PER_SITE not in names]
    ratio = None
    if len(chosen) >= FEWEST_ROWS:
        ratio = ratio_of(
            errors[0][:, counted], errors[1][:, counted], trained.rows.group_of_row[chosen], seed=challenger.id
        )
    reason = _reason(ratio, champion.name, len(chosen))
    is_promoted = ratio is not None and not ratio.is_worse
    session.add(
        tables.ModelComparison(
            challenger_id=challenger.id, champion_id=champion.id, n_rows=len(chosen),
            ratio=None if ratio is None else ratio.value, ratio_low=None if ratio is None else ratio.low,
            ratio_high=None if ratio is None else ratio.high, is_promoted=is_promoted, reason=reason,
        )
    )  # fmt: skip
    session.flush()
    _store_errors(session, challenger.id, errors, np.array(trained.datasets)[chosen], names)
    if is_promoted:
        models.promote(session, challenger, reason=reason)


def frozen_rows(
    session: Session,
    versions: Sequence[tables.TrainedModel],
    ensembles: Sequence[Ensemble],
    trained: TrainingRows,
) -> NDArray[np.int64]:
    """Rows to validate on that no version, nor what it goes back to, was trained on, and that all can predict.

    What came from a file has learnt from results that are not this database's; it carries their fingerprints.
    """
    from screening.learning.fingerprints import fingerprints_of_rows
    from screening.pipeline.evaluation import carried_by

    learnt = set().union(*(models.learnt_results(session, version.id) for version in versions))
    rows = trained.rows
    carried = np.concatenate([carried_by(session, version.id) for version in versions])
    is_carried = (
        np.isin(fingerprints_of_rows(rows), carried) if len(carried) else np.zeros(len(rows.configurations), bool)
    )
    hosts = [rows.supercells[s].host.name for s in rows.supercell_of_row]
    chosen = [
        i
        for i in np.flatnonzero(rows.is_validation).tolist()
        if int(trained.result_ids[i]) not in learnt
        and not is_carried[i]
        and all(knows(ensemble, hosts[i], rows.configurations[i].defect_types) for ensemble in ensembles)
    ]
    return np.array(chosen, np.int64)


def residuals_of(
    ensemble: Ensemble, rows: LabelledRows, chosen: NDArray[np.int64], *, device: str
) -> NDArray[np.float64]:
    """(n_chosen, n_properties) float64: predicted means minus labels, NaN where a label or a prediction is absent."""
    mean, _ = predictions_of(ensemble, rows, chosen, device=device)
    return np.asarray(mean - rows.labels[chosen], np.float64)


def predictions_of(
    ensemble: Ensemble, rows: LabelledRows, chosen: NDArray[np.int64], *, device: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and standard deviations, (n_chosen, n_properties) float64 each; NaN of what is not learnt."""
    from screening.learning.scorer import score_configurations

    columns = np.flatnonzero([name in ensemble.properties for name in rows.properties])
    of_model = [ensemble.properties.index(rows.properties[p]) for p in columns]
    means, stds = (np.full((len(chosen), len(rows.properties)), np.nan) for _ in range(2))
    for s, supercell in enumerate(rows.supercells):
        places = np.flatnonzero(rows.supercell_of_row[chosen] == s)
        if len(places):
            configurations = [rows.configurations[i] for i in chosen[places]]
            mean, std = score_configurations(ensemble, supercell, configurations, device=device)
            means[np.ix_(places, columns)] = mean[:, of_model]
            stds[np.ix_(places, columns)] = std[:, of_model]
    return means, stds


def ratio_of(
    champion: NDArray[np.float64], challenger: NDArray[np.float64], group_of_row: NDArray[np.int64], *, seed: int
) -> Ratio | None:
    """How the errors of two models compare; None where they have nothing in common that is measured.

    Args:
        champion: (n, n_properties) absolute errors, NaN where unknown.
        challenger: the same of the other model.
        group_of_row: (n,) int64.
        seed: of the bootstrap.
    """
    generator = np.random.default_rng(seed)
    logarithms = []  # of each group and property, (1 + N_DRAWS,): of the rows as they are first
    known = np.isfinite(champion) & np.isfinite(challenger)
    for group in np.unique(group_of_row):
        rows = np.flatnonzero(group_of_row == group)
        drawn = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=N_DRAWS)
        weights = np.concatenate([np.ones((1, len(rows))), drawn])  # (1 + N_DRAWS, n_rows)
        n_known = weights @ known[rows]  # (1 + N_DRAWS, n_properties)
        sums = [weights @ np.where(known[rows], errors[rows], 0.0) for errors in (champion, challenger)]
        before, after = (total / np.maximum(n_known, 1) for total in sums)
        measured = known[rows].sum(axis=0) >= min(FEWEST_ROWS, len(rows))
        measured &= known[rows].any(axis=0) & (np.maximum(before[0], after[0]) > EXACT)
        logarithms += [np.log((after[:, p] + EXACT) / (before[:, p] + EXACT)) for p in np.flatnonzero(measured)]
    if not logarithms:
        return None
    ratios = np.exp(np.mean(logarithms, axis=0))
    low, high = np.quantile(ratios[1:], _INTERVAL)
    return Ratio(float(ratios[0]), float(low), float(high), len(group_of_row))


def knows(ensemble: Ensemble, host: str, codes: Sequence[int]) -> bool:
    """Whether a model has seen a host with these defect types."""
    references = ensemble.references
    return host in references.hosts and set(codes) <= set(references.seen_with(host))


def _reason(ratio: Ratio | None, champion: str, n_rows: int) -> str:
    if ratio is None:
        return (
            f"there are {n_rows} rows that neither it nor {champion} has learnt from, too few to compare them; "
            "`screening model rollback --to` puts it into production all the same"
        )
    measured = (
        f"its errors are {ratio.value:.3f} times those of {champion} on {ratio.n_rows} rows that neither has learnt "
        f"from (95 % interval {ratio.low:.3f} to {ratio.high:.3f})"
    )
    if ratio.low > 1.0:
        return f"worse: {measured}, which is more than noise"
    if ratio.value > WORST_RATIO:
        return f"worse: {measured}, which is above {WORST_RATIO:g}"
    return f"{'better' if ratio.high < 1.0 else 'not worse'}: {measured}"


def _store_errors(
    session: Session,
    challenger_id: int,
    errors: Sequence[NDArray[np.float64]],
    datasets: NDArray[np.str_],
    properties: Sequence[str],
) -> None:
    """Mean absolute errors of both by data set and property; `errors` are the champion's, then the challenger's."""
    rows = []
    for dataset in np.unique(datasets).tolist():
        for p, name in enumerate(properties):
            both = np.stack([of[datasets == dataset, p] for of in errors])  # (2, n_rows)
            both = both[:, np.isfinite(both).all(axis=0)]
            if both.shape[1]:
                champion_mae, challenger_mae = both.mean(axis=1).tolist()
                rows.append(
                    {
                        "challenger_id": challenger_id,
                        "dataset": dataset,
                        "property": name,
                        "n_rows": both.shape[1],
                        "champion_mae": champion_mae,
                        "challenger_mae": challenger_mae,
                    }
                )
    if rows:
        session.execute(insert(tables.ModelComparisonError), rows)
