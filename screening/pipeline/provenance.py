"""Provenance: why a candidate has its prediction, and what rests on a result.

`why` walks from a prediction to its model, the versions that goes back to, the results these have learnt from and the
files of these results, by joins alone; of the results the ones most like the candidate are named, as the kernel
regression measures it (screening.learning.environments). `affected` walks the other way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from screening.database import provenance as rows
from screening.database import queries, tables
from screening.defects.defect_types import Configuration, DefectType
from screening.dft.results import PROPERTIES
from screening.errors import InputError, UnknownNameError
from screening.pipeline.hosts import load_supercell
from screening.pipeline.pretrained import has_card, unpack_model

N_NEAREST = 8
_LARGEST_ID, _LARGEST_CANDIDATE = 2**31 - 1, 2**63 - 1  # that their columns hold
_SCALE = (3.0, 0.3)  # angstrom, and a length: of the environments, the middle of what the regression tries
_MOST_COMPARED = 20_000  # results; each costs 0.1 ms


@dataclass(frozen=True)
class FoundCandidate:
    """A candidate with what was predicted of it.

    Attributes:
        name: how it was asked for: `five:30000017`, or `rank 1 of ranking 3`.
        campaign: name of its campaign; None once that is deleted.
        predictions: (mean, standard deviation) by property, eV or Bohr magneton.
    """

    name: str
    campaign: str | None
    model_id: int
    supercell_id: int
    configuration: Configuration
    multiplicity: int
    predictions: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Why:
    """What a prediction comes from.

    Attributes:
        defects: `v_S@12`, one for each.
        versions: the model and the versions it goes back to, newest first (database.provenance.versions_back).
        calculated: the result of this very configuration at the model's level, as a row of `result_rows`; or None.
        nearest: results the model was trained on that are most like it, most alike first: rows of `result_rows` with
            `likeness` from 0 to 1.
        n_learnt: results of this supercell that the model, or what it goes back to, was trained on.
        sources: files and data sets of all that was learnt (database.provenance.sources_of).
        from_files: of versions that came from a file, what their cards say of their data.
        retracted: ids of results that the model rests on and that were withdrawn since.
    """

    candidate: FoundCandidate
    host: str
    supercell: str
    defects: tuple[str, ...]
    versions: tuple[dict[str, Any], ...]
    calculated: dict[str, Any] | None
    nearest: tuple[dict[str, Any], ...]
    n_learnt: int
    sources: tuple[dict[str, Any], ...]
    from_files: tuple[dict[str, Any], ...]
    retracted: tuple[int, ...]


@dataclass(frozen=True)
class Affected:
    """What rests on a result.

    Attributes:
        result: a row of `result_rows`.
        n_derived: results whose formation energies are derived from it, if it is a pristine one.
    """

    result: dict[str, Any]
    n_derived: int
    models: tuple[dict[str, Any], ...]
    campaigns: tuple[dict[str, Any], ...]
    rankings: tuple[dict[str, Any], ...]
    rounds: tuple[dict[str, Any], ...]


def why(session: Session, candidate: FoundCandidate, *, n_nearest: int = N_NEAREST) -> Why:
    """From a prediction to the files that it comes from."""
    supercell = session.get_one(tables.Supercell, candidate.supercell_id)
    host = session.get_one(tables.Host, supercell.host_id)
    learnt = rows.learnt_rows(session, candidate.model_id, candidate.supercell_id)
    return Why(
        candidate=candidate,
        host=host.name,
        supercell=supercell.label,
        defects=defects_of(candidate.configuration.sites, candidate.configuration.defect_types),
        versions=tuple(rows.versions_back(session, candidate.model_id)),
        calculated=_calculated(session, candidate),
        nearest=tuple(_nearest(session, candidate, learnt[-_MOST_COMPARED:], n_nearest)),
        n_learnt=len(learnt),
        sources=tuple(rows.sources_of(session, candidate.model_id)),
        from_files=tuple(_cards(session, candidate.model_id)),
        retracted=tuple(rows.retracted_below(session, candidate.model_id)),
    )


def affected(session: Session, result_id: int) -> Affected:
    """Everything that rests on a result.

    Raises:
        UnknownNameError: there is no such result.
    """
    result = _result(session, result_id)
    models = rows.list_models_on(session, result)
    ids = [model["id"] for model in models]
    return Affected(
        result,
        len(session.scalars(rows.derived_from(result)).all()),
        tuple(models),
        tuple(rows.list_campaigns_of(session, ids)),
        tuple(rows.list_rankings_of(session, ids)),
        tuple(rows.list_rounds_of(session, ids)),
    )


def find_result(session: Session, text: str) -> int:
    """The result of an id, or of a name in its data set: `17`, `run 3/vasprun.xml`, `round 2:calculation 9`.

    Raises:
        UnknownNameError: there is none.
        InputError: several have this name.
    """
    result = tables.CalculationResult
    identifier = _id_in(text)
    if identifier is not None and session.get(result, identifier) is not None:
        return identifier
    dataset, separator, name = text.partition(":")
    named = [result.row_name == text]
    found = session.execute(select(result.id, result.dataset).where(*named).order_by(result.id)).all()
    if not found and separator:
        of_dataset = (result.dataset == dataset, result.row_name == name)
        found = session.execute(select(result.id, result.dataset).where(*of_dataset)).all()
    if not found:
        raise UnknownNameError(
            f"there is no result {text!r}; name one by its id (`screening why` and `screening results quarantine` show "
            "them) or by its name in its data set: DATASET:NAME"
        )
    if len(found) > 1:
        names = ", ".join(f"{row.id} of {row.dataset}" for row in found[:5])
        raise InputError(f"{len(found)} results are called {text!r}: {names}; name one by its id, or as DATASET:NAME")
    return int(found[0].id)


def _id_in(text: str) -> int | None:
    """The id that a text is; None if no row can have it."""
    return int(text) if text.isdecimal() and len(text) < 11 and int(text) <= _LARGEST_ID else None


def find_candidate(session: Session, text: str, campaign_name: str | None = None) -> FoundCandidate:
    """The candidate that `CAMPAIGN:ID` names, or an id alone where only one campaign with predictions has it.

    Raises:
        UnknownNameError: there is no such campaign or candidate.
        InputError: it cannot be read, or several campaigns have it, or nothing is predicted in this campaign.
    """
    of_text, _, number = text.rpartition(":")
    name = campaign_name or of_text
    if not number.isdecimal():
        raise InputError(
            f"the candidate {text!r} cannot be read; write CAMPAIGN:ID, with the number that `screening design` shows "
            "as candidate: five:30000017"
        )
    identifier = int(number)
    if name:
        campaign = queries.campaign_by_name(session, name)
        if campaign.model_id is None:
            raise InputError(f"campaign {name} has no model, so that nothing in it is predicted")
        found = _candidate(session, campaign, identifier)
        if found is None:
            raise UnknownNameError(
                f"campaign {name} has no candidate {identifier}; `screening design --campaign {name}` shows some"
            )
        return found
    campaigns = session.scalars(
        select(tables.Campaign).where(tables.Campaign.model_id.is_not(None)).order_by(tables.Campaign.id)
    ).all()
    having = [found for campaign in campaigns if (found := _candidate(session, campaign, identifier)) is not None]
    if len(having) == 1:
        return having[0]
    if having:
        names = ", ".join(candidate.name for candidate in having)
        raise InputError(f"{len(having)} campaigns have a candidate {identifier}; name one of {names}")
    known = ", ".join(campaign.name for campaign in campaigns)
    raise UnknownNameError(f"no campaign has a candidate {identifier}; those with predictions are {known or 'none'}")


def find_ranked(session: Session, ranking: str, rank: int) -> FoundCandidate:
    """A row of a saved ranking, of its id or name; its campaign may be deleted.

    Raises:
        UnknownNameError: there is no such ranking or row.
    """
    table, row, place = tables.Ranking, tables.RankingRow, tables.RankingCampaign
    by_id = _id_in(ranking)
    stored = session.scalar(select(table).where(table.name == ranking)) or (
        None if by_id is None else session.get(table, by_id)
    )
    if stored is None:
        known = ", ".join(str(i) for i in session.scalars(select(table.id).order_by(table.id.desc()).limit(8)))
        raise UnknownNameError(f"there is no ranking {ranking!r}; the newest are {known or 'none'}")
    found = session.get(row, (stored.id, min(rank, _LARGEST_ID)))
    if found is None:
        raise UnknownNameError(f"ranking {ranking} has no rank {rank}; `screening ranking show {ranking}` lists it")
    of_row = session.get(place, (stored.id, found.place))
    space_id = stored.search_space_id if of_row is None else of_row.search_space_id
    campaign_id = stored.campaign_id if of_row is None else of_row.campaign_id
    campaign = None if campaign_id is None else session.get_one(tables.Campaign, campaign_id)
    value = tables.RankingValue
    said = session.scalars(select(value).where(value.ranking_id == stored.id, value.rank == rank))
    return FoundCandidate(
        name=f"rank {rank} of ranking {stored.name or stored.id}",
        campaign=None if campaign is None else campaign.name,
        model_id=stored.model_id if of_row is None else of_row.model_id,
        supercell_id=session.get_one(tables.SearchSpace, space_id).supercell_id,
        configuration=Configuration(tuple(found.sites), tuple(found.defect_types)),
        multiplicity=found.multiplicity,
        predictions={v.property: (v.mean, v.std) for v in said},
    )


def defects_of(sites: Sequence[int], codes: Sequence[int]) -> tuple[str, ...]:
    """`v_S@12`, one for each defect."""
    return tuple(f"{DefectType.from_code(code).name}@{site}" for site, code in zip(sites, codes, strict=True))


def _candidate(session: Session, campaign: tables.Campaign, identifier: int) -> FoundCandidate | None:
    row = tables.Candidate
    if identifier > _LARGEST_CANDIDATE:
        return None
    found = session.execute(
        select(row, tables.Arrangement.defect_types)
        .join(tables.Arrangement, tables.Arrangement.id == row.arrangement_id)
        .where(row.campaign_id == campaign.id, row.id == identifier)
    ).first()
    if found is None:
        return None
    candidate, codes = found
    assert campaign.model_id is not None
    said = {
        name: (float(mean), float(getattr(candidate, f"{name}_std")))
        for name in PROPERTIES
        if (mean := getattr(candidate, f"{name}_mean")) is not None
    }
    return FoundCandidate(
        name=f"{campaign.name}:{identifier}",
        campaign=campaign.name,
        model_id=campaign.model_id,
        supercell_id=session.get_one(tables.SearchSpace, campaign.search_space_id).supercell_id,
        configuration=Configuration(tuple(candidate.sites), tuple(codes)),
        multiplicity=candidate.multiplicity,
        predictions=said,
    )


def _result(session: Session, result_id: int) -> dict[str, Any]:
    found = _first(session, rows.result_rows().where(tables.CalculationResult.id == result_id))
    if found is None:
        raise UnknownNameError(f"there is no result {result_id}; results have the ids of their tables")
    return found


def _calculated(session: Session, candidate: FoundCandidate) -> dict[str, Any] | None:
    """The standing result of a candidate's configuration at the level of its model."""
    level_id = session.get_one(tables.TrainedModel, candidate.model_id).level_id
    configuration = tables.Configuration
    return _first(
        session,
        rows.result_rows().where(
            configuration.supercell_id == candidate.supercell_id,
            configuration.sites == list(candidate.configuration.sites),
            configuration.defect_types == list(candidate.configuration.defect_types),
            tables.Calculation.level_id == level_id,
            tables.CalculationResult.retracted_at.is_(None),
        ),
    )


def _first(session: Session, statement: Select[Any]) -> dict[str, Any] | None:
    found = session.execute(statement).mappings().first()
    return None if found is None else dict(found)


def _nearest(
    session: Session, candidate: FoundCandidate, learnt: Sequence[dict[str, Any]], n: int
) -> list[dict[str, Any]]:
    """The results that are most like a candidate."""
    if not learnt:
        return []
    configurations = [Configuration(tuple(row["sites"]), tuple(row["defect_types"])) for row in learnt]
    alike = _likeness(session, candidate, configurations)
    order = np.argsort(-alike, kind="stable")[:n].tolist()
    return [{**learnt[i], "likeness": float(alike[i])} for i in order]


def _likeness(session: Session, candidate: FoundCandidate, others: Sequence[Configuration]) -> NDArray[np.float64]:
    """(n,) float64 from 0 to 1: how alike the environments of a candidate's defects and those of others are."""
    from screening.learning.environments import describe, likeness, self_likeness
    from screening.learning.pair_columns import pair_columns

    everything = [candidate.configuration, *others]
    codes = sorted({code for configuration in everything for code in configuration.defect_types})
    columns = pair_columns(load_supercell(session, candidate.supercell_id).supercell, codes)
    both = describe(columns, others), describe(columns, [candidate.configuration])
    own = [self_likeness(described, _SCALE) for described in both]
    found = likeness(*both, _SCALE)[:, 0] / (own[0] * own[1]).sqrt()
    return np.asarray(found.numpy(), np.float64)


def _cards(session: Session, model_id: int) -> list[dict[str, Any]]:
    """What the cards of those versions say that came from a file: their results are not in this database."""
    found = []
    for version in rows.versions_back(session, model_id):
        weights = session.get_one(tables.TrainedModel, version["id"]).weights
        if version["n_train"] == 0 and weights is not None and has_card(weights):
            card = unpack_model(weights, version["model"]).card
            data = [f"{share.name} ({share.n_train} learnt)" for share in card.data]
            origin = {"source": card.source, "licence": card.licence, "citations": card.citations}
            found.append({"model": version["model"], "data": data, **origin})
    return found
