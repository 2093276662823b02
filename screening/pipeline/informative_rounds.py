"""Rounds that serve the model: the calculations that make its predictions better everywhere, no window wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.branches import load_branch
from screening.database.design_query import DesignQuery
from screening.database.query_parts import Potentials
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.errors import InputError
from screening.pipeline.calculation_costs import atoms_of, cost_law
from screening.pipeline.campaign_choice import describe_space, find_campaign
from screening.pipeline.hosts import load_supercell
from screening.pipeline.references import level_of_name
from screening.pipeline.round_pools import Choice, Pool, open_candidates
from screening.pipeline.rounds import Proposal, store_proposals

POOL_ROWS = 3000  # candidates that stand for all: every one of them is compared with every other, 36 MB
KNOWN_ROWS = 5000  # calculations that are remembered: 4 s


def propose_informative(
    session: Session, query: DesignQuery, *, n: int, model_name: str | None = None, level_name: str | None = None,
    campaign_name: str | None = None, only_stored: bool = False, seed: int = 0,
) -> list[Proposal]:  # fmt: skip
    """Choose the calculations that lower a model's uncertainty of all candidates most, and store them as a round.

    Chosen among a random sample of the candidates, which also stands for all of them; what has a calculation at the
    round's level that has not failed counts as known, those that were only proposed too, so that rounds do not repeat
    each other (screening.learning.informative).

    Args:
        query: says which host, supercell and number of defects; the rest of it is without meaning here.
        level_name: level of theory of the calculations, as in `screening.pipeline.rounds.propose`.
        campaign_name: choose among what this campaign has kept.
        only_stored: choose only among configurations that an import brought without a result.
        seed: of the sample; kept with the round.

    Raises:
        InputError: nothing is left to propose, or more is asked for than can be compared at once.
    """
    if not 1 <= n <= POOL_ROWS:
        raise InputError(f"{n} calculations are asked for; expected 1 to {POOL_ROWS} in a round that serves the model")
    supercell_id = queries.supercell_id_of(session, query.host, query.supercell)
    # two rounds at once do not choose the same candidates
    session.execute(
        select(tables.Supercell.id).where(tables.Supercell.id == supercell_id).with_for_update(key_share=True)
    )
    campaign, model = find_campaign(session, query, model_name=model_name, campaign_name=campaign_name)
    level_id = model.level_id if level_name is None else level_of_name(session, level_name)
    space = session.get_one(tables.SearchSpace, campaign.search_space_id)
    everything = query.model_copy(
        update={
            "windows": (), "sort": "probability", "direction": "lowest", "target": None, "temperature": None,
            "pareto": (), "potentials": Potentials(),
        }
    )  # fmt: skip
    branch = load_branch(session, campaign, everything)
    candidates = open_candidates(everything, branch, space, level_id=level_id, only_stored=only_stored)
    pool, std = _sample(session, candidates, model.properties, seed)
    if not pool.candidate_ids:
        raise InputError(
            f"every candidate{' that is stored as a configuration' if only_stored else ''} has a calculation; there "
            f"are {space.expected}, {describe_space(space)}: enumerate and score a larger search space"
        )
    stored = load_supercell(session, supercell_id)
    rows, left = _choose(stored.supercell, pool, std, _known(session, supercell_id, level_id, model.id, seed), n=n)
    round_ = tables.Round(model_id=model.id, level_id=level_id, query=everything.stored(), seed=seed)
    session.add(round_)
    session.flush()
    law = cost_law(session, level_id)
    seconds = None if law is None else law.seconds(atoms_of(stored.supercell, [pool.configurations[i] for i in rows]))
    choices = {}
    for place, (row, share, before) in enumerate(zip(rows, left, [1.0, *left], strict=False)):
        reason = f"with those before it leaves {share:.1%} of the uncertainty of all candidates"
        choices[int(row)] = Choice(reason, float(before - share), None if seconds is None else float(seconds[place]))
    return store_proposals(session, stored, pool, round_, choices=choices)


def _sample(
    session: Session, candidates: Select[Any], properties: list[str], seed: int
) -> tuple[Pool, NDArray[np.float64]]:
    """A random sample of candidates, and the standard deviations (n, n_properties) of their predictions."""
    number = candidates.selected_columns["candidate"]
    drawn = candidates.order_by(None).order_by(func.hashint8extended(number, seed)).limit(POOL_ROWS)
    rows = session.execute(drawn).mappings().all()
    std = np.array([[row[f"{name}_std"] for name in properties] for row in rows], np.float64)
    pool = Pool(
        [row["candidate"] for row in rows],
        [Configuration(tuple(row["sites"]), tuple(row["defect_types"])) for row in rows],
    )
    return pool, std


def _known(
    session: Session, supercell_id: int, level_id: int, model_id: int, seed: int
) -> list[tuple[Configuration, bool]]:
    """Configurations whose label is there or will be, and whether the model has learnt from it; some of very many."""
    learnt = (
        select(tables.CalculationResult.calculation_id)
        .join(tables.ModelTrainingResult, tables.ModelTrainingResult.result_id == tables.CalculationResult.id)
        .where(tables.ModelTrainingResult.model_id == model_id, tables.ModelTrainingResult.role == "train")
    )
    rows = session.execute(
        select(
            tables.Configuration.sites,
            tables.Configuration.defect_types,
            tables.Calculation.id.in_(learnt).label("is_learnt"),
        )
        .join(tables.Calculation, tables.Calculation.configuration_id == tables.Configuration.id)
        .where(
            tables.Configuration.supercell_id == supercell_id,
            tables.Configuration.n_defects > 0,
            tables.Calculation.level_id == level_id,
            tables.Calculation.state != "failed",
        )
        .order_by(func.hashint4extended(tables.Configuration.id, seed))
        .limit(KNOWN_ROWS)
    )
    return [(Configuration(tuple(row.sites), tuple(row.defect_types)), row.is_learnt) for row in rows]


def _choose(
    supercell: Supercell, pool: Pool, std: NDArray[np.float64], known: list[tuple[Configuration, bool]], *, n: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of the pool, and what each leaves of the uncertainty."""
    from screening.learning.informative import choose_informative, pair_features, posterior_covariance, spread_of
    from screening.learning.pair_columns import pair_columns

    configurations = [configuration for configuration, _ in known]
    codes = {code for configuration in (*pool.configurations, *configurations) for code in configuration.defect_types}
    columns = pair_columns(supercell, sorted(codes))
    features, of_known = pair_features(columns, pool.configurations), pair_features(columns, configurations)
    spread = spread_of(std, features, of_known[np.array([is_learnt for _, is_learnt in known], bool)])
    return choose_informative(posterior_covariance(features, of_known), spread, n)
