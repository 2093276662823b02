"""Campaigns: scanning a search space with a model, from the plan to the exact count.

A campaign is a search space, a model and a storage mode: `all` keeps every candidate with its predictions, `best`
those that a design query ranks first, with exact counters and histograms of all. Without a model candidates are only
stored. Planning writes the chunks; starting opens them to the workers (screening.pipeline.scanning); the campaign is
finished when the chunks' counts are those of Burnside's lemma in every composition, which the database checks itself.

    planned -> running -> finished             a pause lets the chunks that run come to their end, a cancellation stops
       paused, cancelled, incomplete -> running    them at once; what is finished stays, and `resume` does the rest
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from screening.database import campaigns as rows
from screening.database import tables
from screening.database.design_query import DesignQuery
from screening.database.leases import LEASE_S
from screening.database.session import end_when_idle, session_scope
from screening.defects.enumeration import CHUNK_ROWS, plan_chunks
from screening.errors import CountMismatchError, InputError
from screening.pipeline.file_models import label_ranges
from screening.pipeline.searches import check_trained_types, load_search_space

N_BINS = 200
CHUNKS = 24  # of a small campaign: enough that the workers end together
MIN_CHUNK_ROWS = 20_000  # what begins and ends a chunk takes 0.1 s
_UNEVENNESS = 8  # of chunks that are as small as can be planned: the largest over the mean
_MARGIN = 0.5  # of the range of the labels, on both sides of it: predictions go beyond what was learnt
_PER_SITE, _TOTAL = "formation_energy_per_site", "formation_energy"


@dataclass(frozen=True)
class CampaignRequest:
    """What a campaign is to do with a search space.

    Attributes:
        model_id: that scores the candidates; None stores them unscored.
        query: keep the rows that it ranks first, as many as its limit; None keeps all.
        name: one is made up if not given.
    """

    model_id: int | None = None
    query: DesignQuery | None = None
    name: str | None = None


def plan(
    session: Session, search_space_id: int, request: CampaignRequest, *, chunk_rows: int | None = None
) -> tables.Campaign:
    """Write a campaign with its chunks, which wait for its start; one that keeps all is there once and found again.

    Args:
        chunk_rows: candidates of a chunk, about; made up from their number if not given.

    Raises:
        InputError: the model is not trained, or has not seen a defect type, or lacks a property of the query; or the
            name is taken.
    """
    check_request(session, search_space_id, request)
    known = _find_same(session, search_space_id, request)
    if known is not None:
        if request.name not in (None, known.name):
            raise InputError(f"this campaign exists as {known.name!r} ({known.state}); use that name, or none")
        return known
    added: tables.Campaign | None = session.scalar(
        insert(tables.Campaign)
        .values(
            name=request.name or _free_name(session, search_space_id, request),
            search_space_id=search_space_id,
            model_id=request.model_id,
            storage="all" if request.query is None else "best",
            query=None if request.query is None else request.query.stored(),
        )
        .on_conflict_do_nothing()
        .returning(tables.Campaign)
    )
    if added is None:
        if request.name is not None and session.scalar(
            select(tables.Campaign.id).where(tables.Campaign.name == request.name)
        ):
            raise InputError(f"a campaign is called {request.name!r} already; choose another name with --name")
        return plan(session, search_space_id, request, chunk_rows=chunk_rows)  # another caller has added it since
    _add_chunks(session, added, chunk_rows)
    _add_bins(session, added)
    session.flush()
    rows.add_partition(session, added.id)  # last: until the end of the transaction it keeps others from doing so
    return added


def start(session: Session, campaign: tables.Campaign) -> None:
    """Open the chunks of a planned campaign to the workers.

    Raises:
        InputError: it is not planned; `resume` goes on with one that was stopped.
    """
    _lock(session, campaign)
    if campaign.state == "running":
        return
    if campaign.state != "planned":
        raise _wrong_state(campaign, "started", "planned")
    _open(session, campaign)


def resume(session: Session, campaign: tables.Campaign) -> None:
    """Go on with a campaign that was paused or cancelled, or try its failed chunks again.

    Raises:
        InputError: it is planned or finished.
    """
    _lock(session, campaign)
    if campaign.state not in ("running", "paused", "cancelled", "incomplete"):
        raise _wrong_state(campaign, "resumed", "paused, cancelled or incomplete")
    _open(session, campaign)


def pause(session: Session, campaign: tables.Campaign) -> None:
    """Hand out no more chunks; those that run come to their end, in as many attempts as that takes.

    Raises:
        InputError: it does not run.
    """
    _lock(session, campaign)
    if campaign.state not in ("running", "paused"):
        raise _wrong_state(campaign, "paused", "running")
    campaign.state = "paused"
    rows.move_chunks(session, campaign.id, ["waiting"], "planned")


def cancel(session: Session, campaign: tables.Campaign) -> None:
    """Stop a campaign at once: workers drop the chunks they are in; what is finished stays.

    Raises:
        InputError: it is finished.
    """
    _lock(session, campaign)
    if campaign.state == "finished":
        raise _wrong_state(campaign, "cancelled", "not finished")
    campaign.state = "cancelled"
    rows.move_chunks(session, campaign.id, ["waiting", "running"], "planned")


def remove(session: Session, campaign: tables.Campaign) -> None:
    """Delete a campaign with all its rows; rankings keep what they found.

    Its partition is emptied at once. To drop it takes a moment in which nobody writes into the partition of any
    campaign; if there is none now, that is done when another campaign is deleted.

    Raises:
        InputError: it runs.
    """
    _lock(session, campaign)
    if campaign.state == "running":
        raise InputError(f"campaign {campaign.name} is running; cancel it first")
    rows.end_strays(session, campaign.id)
    rows.empty_partition(session, campaign.id)
    session.delete(campaign)
    session.flush()
    rows.drop_orphans(session)


def close_over(engine: Engine) -> None:
    """End the campaigns of which no chunk is open any more; transactions of its own.

    Whoever ends a chunk calls this, and beat sees to it that somebody does. Two callers do not meet: the second one
    passes by.

    Raises:
        CountMismatchError: the counts are not the exact ones; the campaign is incomplete and says so.
    """
    with session_scope(engine) as session:
        over = rows.campaigns_over(session)
    for campaign_id in over:
        try:
            with session_scope(engine) as session:
                _close(session, campaign_id)
        except IntegrityError as error:
            reason = " ".join(str(error.orig).splitlines()[:1])
            with session_scope(engine) as session:
                still = select(tables.Campaign).where(
                    tables.Campaign.id == campaign_id, tables.Campaign.state == "running"
                )
                if (campaign := session.scalar(still.with_for_update(key_share=True))) is not None:
                    campaign.state, campaign.error = "incomplete", reason
            raise CountMismatchError(f"{reason}; do not use it, report it") from error


def _close(session: Session, campaign_id: int) -> None:
    """Finish a campaign, or say that it is incomplete, if it is still to be done and nobody else is at it."""
    campaign = session.scalar(
        select(tables.Campaign)
        .where(tables.Campaign.id == campaign_id, tables.Campaign.state == "running")
        .with_for_update(key_share=True, skip_locked=True)
    )
    if campaign is None or campaign_id not in rows.campaigns_over(session):
        return
    end_when_idle(session, LEASE_S)
    chunk = tables.Chunk
    failed = select(func.count(), func.min(chunk.number)).where(
        chunk.campaign_id == campaign_id, chunk.state == "failed"
    )
    n_failed, first = session.execute(failed).one()
    if n_failed:
        why = session.scalar(select(chunk.error).where(chunk.campaign_id == campaign_id, chunk.number == first))
        campaign.state = "incomplete"
        campaign.error = f"{n_failed} chunks failed, the first (number {first}) with: {why}"
        return
    if campaign.storage == "best":
        campaign.cutoff = rows.trim(session, campaign)
    rows.end_strays(session, campaign_id)
    rows.index_partition(session, campaign_id)
    campaign.state, campaign.finished_at, campaign.error = "finished", func.clock_timestamp(), None
    session.flush()


def check_request(session: Session, search_space_id: int, request: CampaignRequest) -> None:
    """Make sure that a campaign of a search space can be planned.

    Raises:
        InputError: the model is not trained, or has not seen a defect type, or lacks a property of the query.
    """
    if request.model_id is None:
        if request.query is not None:
            raise InputError("the best candidates are those of a model's predictions; name a model, or keep all")
        return
    model = session.get_one(tables.TrainedModel, request.model_id)
    if model.state != "finished":
        raise InputError(f"model {model.name} is {model.state}; wait until it is trained before it scores")
    check_trained_types(session, model, search_space_id)
    if request.query is not None:
        _check_query(session, search_space_id, request.query, model)


def _check_query(session: Session, search_space_id: int, query: DesignQuery, model: tables.TrainedModel) -> None:
    missing = sorted(query.properties - set(model.properties))
    if missing:
        raise InputError(
            f"model {model.name} does not predict {', '.join(missing)}; it predicts {', '.join(model.properties)}"
        )
    space = session.get_one(tables.SearchSpace, search_space_id)
    supercell = session.get_one(tables.Supercell, space.supercell_id)
    host = session.get_one(tables.Host, supercell.host_id)
    if query.pareto or not query.potentials.are_references:
        raise InputError(
            "the best rows are those of one order at the reference chemical potentials; leave pareto and potentials "
            "out, or keep all candidates: what is stored whole is ranked by any query later"
        )
    if query.host != host.name or query.supercell not in (None, supercell.label):
        raise InputError(
            f"the query is about {query.host} {query.supercell or ''}, the search space about {host.name} "
            f"{supercell.label}; ask for what is scanned"
        )


def _find_same(session: Session, search_space_id: int, request: CampaignRequest) -> tables.Campaign | None:
    """The campaign of this search space and model that keeps all, or the newest, of this name, with this query."""
    campaign = tables.Campaign
    model = campaign.model_id.is_not_distinct_from(request.model_id)
    statement = select(campaign).where(campaign.search_space_id == search_space_id, model)
    if request.query is None:
        return session.scalar(statement.where(campaign.storage == "all"))
    wanted = request.query.stored()
    statement = statement.where(campaign.storage == "best", campaign.query == wanted)
    if request.name is not None:
        statement = statement.where(campaign.name == request.name)
    return session.scalar(statement.order_by(campaign.id.desc()).limit(1))


def _free_name(session: Session, search_space_id: int, request: CampaignRequest) -> str:
    """A name made of host, supercell, largest number of defects and model, and of the next free number."""
    space = session.get_one(tables.SearchSpace, search_space_id)
    supercell = session.get_one(tables.Supercell, space.supercell_id)
    parts = [session.get_one(tables.Host, supercell.host_id).name, supercell.label, str(space.max_defects)]
    if request.model_id is not None:
        parts.append(session.get_one(tables.TrainedModel, request.model_id).name)
    if request.query is not None:
        parts.append("best")
    stem = "-".join(parts)
    taken = set(session.scalars(select(tables.Campaign.name).where(tables.Campaign.name.startswith(stem))))
    names = [stem, *(f"{stem}-{n}" for n in range(2, len(taken) + 2))]
    return next(name for name in names if name not in taken)


def _add_chunks(session: Session, campaign: tables.Campaign, chunk_rows: int | None) -> None:
    stored, space = load_search_space(session, campaign.search_space_id)
    n_candidates = session.get_one(tables.SearchSpace, campaign.search_space_id).expected
    if chunk_rows is None:
        chunk_rows = min(CHUNK_ROWS, max(MIN_CHUNK_ROWS, n_candidates // CHUNKS))
    chunks = plan_chunks(space, stored.symmetry, rows=chunk_rows)
    if n_candidates * _UNEVENNESS > len(chunks) * rows.IDS_PER_CHUNK:
        raise InputError(
            f"the search space has {n_candidates:,} candidates, which is more than can be scanned one by one; take "
            "fewer defects, limit numbers or separations, or draw a sample (`screening enumerate --sample`)"
        )
    session.execute(
        insert(tables.Chunk),
        [
            {
                "campaign_id": campaign.id,
                "number": number,
                "state": "planned",
                "scores": campaign.model_id is not None,
                "n_defects": chunk.n_defects,
                "first_sites": list(chunk.first.sites),
                "first_defect_types": list(chunk.first.defect_types),
                "last_sites": list(chunk.last.sites),
                "last_defect_types": list(chunk.last.defect_types),
            }
            for number, chunk in enumerate(chunks)
        ],
    )


def _add_bins(session: Session, campaign: tables.Campaign) -> None:
    """Bins around the labels that the model learnt from; formation energies grow with the number of defects."""
    if campaign.model_id is None:
        return
    model = session.get_one(tables.TrainedModel, campaign.model_id)
    space = session.get_one(tables.SearchSpace, campaign.search_space_id)
    ranges = _label_ranges(session, model)
    if _TOTAL in ranges and _PER_SITE in ranges:
        low, high = ranges[_PER_SITE]
        ranges[_TOTAL] = (min(low, low * space.max_defects), max(high, high * space.max_defects))
    if ranges:
        session.execute(
            insert(tables.CampaignBins),
            [
                {"campaign_id": campaign.id, "property": name, "low": low, "high": high, "n_bins": N_BINS}
                for name, (low, high) in ranges.items()
            ],
        )


def _label_ranges(session: Session, model: tables.TrainedModel) -> dict[str, tuple[float, float]]:
    """Range of the labels of each property of a model, widened on both sides."""
    found = label_ranges(session, model.id)
    ranges = {}
    for name in model.properties:
        if name not in found:
            raise InputError(
                f"model {model.name} does not say which values of {name} it has learnt from; train it again"
            )
        low, high = found[name]
        margin = max(_MARGIN * (high - low), 1e-3)
        ranges[name] = (low - margin, high + margin)
    return ranges


def _open(session: Session, campaign: tables.Campaign) -> None:
    """Let the workers have the chunks that are not finished."""
    rows.move_chunks(session, campaign.id, ["planned", "failed"], "waiting")
    campaign.state, campaign.error = "running", None
    if campaign.started_at is None:
        campaign.started_at = func.now()
    session.flush()


def _lock(session: Session, campaign: tables.Campaign) -> None:
    session.refresh(campaign, with_for_update={"key_share": True})


def _wrong_state(campaign: tables.Campaign, verb: str, expected: str) -> InputError:
    return InputError(
        f"campaign {campaign.name} is {campaign.state}; only one that is {expected} can be {verb} "
        f"(`screening campaign status {campaign.name}`)"
    )
