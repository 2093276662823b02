"""Search spaces: count, enumerate or sample, score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.cli.options import (
    AsJson,
    CompositionText,
    CountLimits,
    HostName,
    MaxDefects,
    MaxSeparation,
    MinDefects,
    MinSeparation,
    ModelName,
    RequiredTypes,
    SupercellText,
    Types,
    Wait,
)
from screening.cli.output import Tick, duration, print_json, print_table, size_on_disk, wait_for
from screening.cli.project import NO_LIMITS, LimitOptions, Project, find_host
from screening.cli.walks import enumerate_here, print_sample, sample_here
from screening.errors import InputError, ScreeningError, ServiceError

if TYPE_CHECKING:
    from screening.defects.enumeration import SearchSpace


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(count)
    app.command("enumerate")(enumerate_)
    app.command()(score)


def count(
    host: HostName,
    supercell: SupercellText,
    types: Types,
    max_defects: MaxDefects = None,
    min_defects: MinDefects = 1,
    composition: CompositionText = None,
    limit: CountLimits = None,
    require: RequiredTypes = None,
    min_separation: MinSeparation = None,
    max_separation: MaxSeparation = None,
    as_json: AsJson = False,
) -> None:
    """Count the symmetry-distinct configurations of a search space, exactly, and say what it will cost."""
    from screening.pipeline.searches import count_table

    project = Project()
    limits = LimitOptions(limit or (), require or (), min_separation, max_separation)
    space = read_space(project, host, supercell, types, max_defects, min_defects, composition, limits=limits)
    symmetry = find_symmetry_of(space)
    counted = count_table(space, symmetry)
    counted |= _cost(project, space, symmetry, counted["total"])
    if as_json:
        print_json(counted)
        return
    rows = [[label, f"{n:,}"] for label, n in counted["by_composition"].items()]
    print_table(["composition", "configurations"], rows)
    print()
    rows = [[n, f"{number:,}"] for n, number in counted["by_defects"].items()]
    print_table(["defects", "configurations"], [*rows, ["all", f"{counted['total']:,}"]])
    print()
    print(f"disk: {size_on_disk(counted['disk_bytes'])} with the predictions of one model")
    for what, key in (("enumerate", "seconds"), ("score", "scoring_seconds")):
        known = "not known" if counted[key] is None else f"{duration(counted[key])} for one process"
        print(f"{what}: {known}")


def enumerate_(
    host: HostName,
    supercell: SupercellText,
    types: Types,
    max_defects: MaxDefects = None,
    min_defects: MinDefects = 1,
    composition: CompositionText = None,
    limit: CountLimits = None,
    require: RequiredTypes = None,
    min_separation: MinSeparation = None,
    max_separation: MaxSeparation = None,
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, help="Draw so many at random instead; with --no-store.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of --sample: the same one gives the same sample.")] = 0,
    store: Annotated[bool, typer.Option("--store/--no-store", help="Store the candidates, or only enumerate.")] = True,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Enumerate every symmetry-distinct configuration of a search space and store it as a candidate.

    For candidates with predictions `screening score` is enough, which enumerates by itself.
    """
    project = Project()
    limits = LimitOptions(limit or (), require or (), min_separation, max_separation)
    space = read_space(project, host, supercell, types, max_defects, min_defects, composition, limits=limits)
    if sample is not None and store:
        raise InputError("a sample is printed, not stored; add --no-store")
    if sample is not None:
        found = sample_here(space, sample, seed)
    else:
        found = enumerate_stored(project, space, wait=wait) if store else enumerate_here(space)
    if as_json:
        print_json(found)
    elif sample is not None:
        print_sample(found["configurations"])
    elif store and found["was_finished"]:
        print(
            f"campaign {found['campaign']} has stored these {found['candidates']} candidates before, as many as "
            "Burnside's lemma counts"
        )
    elif store and found["state"] != "finished":
        print(_queued(found))
    else:
        print(
            f"{found['candidates']} candidates, as many as Burnside's lemma counts, in {found['seconds']:.2f} s "
            f"({found['per_second']:,.0f}/s, {found['peak_memory_mb']:.0f} MB)"
        )


def score(
    host: HostName,
    supercell: SupercellText,
    types: Types,
    max_defects: MaxDefects = None,
    min_defects: MinDefects = 1,
    composition: CompositionText = None,
    limit: CountLimits = None,
    require: RequiredTypes = None,
    min_separation: MinSeparation = None,
    max_separation: MaxSeparation = None,
    model: ModelName = None,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Score every candidate of a search space by a trained model, and store all of them with their predictions.

    `screening campaign plan` says beforehand what that costs, and may keep the best ones only.
    """
    project = Project()
    limits = LimitOptions(limit or (), require or (), min_separation, max_separation)
    space = read_space(project, host, supercell, types, max_defects, min_defects, composition, limits=limits)
    found = score_stored(project, space, model, wait=wait)
    if as_json:
        print_json(found)
    elif found["was_finished"]:
        print(
            f"model {found['model']} has scored these {found['predictions']} candidates before, as campaign "
            f"{found['campaign']}"
        )
    elif found["state"] != "finished":
        print(_queued(found))
    else:
        print(
            f"model {found['model']}: {found['predictions']} of {found['expected']} candidates scored in "
            f"{found['seconds']:.1f} s ({found['per_second']:,.0f}/s), as campaign {found['campaign']}"
        )


def _queued(found: Mapping[str, Any]) -> str:
    """What a campaign that is not waited for says."""
    return (
        f"queued: {found['expected']} candidates as campaign {found['campaign']} ({found['state']}); "
        f"`screening campaign status {found['campaign']} --watch` shows how far it is"
    )


def read_space(
    project: Project,
    host: str,
    supercell: str,
    types: str,
    max_defects: int | None,
    min_defects: int = 1,
    composition: str | None = None,
    *,
    limits: LimitOptions = NO_LIMITS,
) -> SearchSpace:
    """The search space of the options that count, enumerate and score share."""
    from screening.pipeline.space_requests import SpaceRequest, space_of

    request = SpaceRequest.model_construct(
        host=host, supercell=supercell, defect_types=types, max_defects=max_defects, min_defects=min_defects,
        composition=composition, limits=tuple(limits.limit), required=tuple(limits.require),
        min_separation=limits.min_separation, max_separation=limits.max_separation,
    )  # fmt: skip
    if max_defects is None and composition is None:
        raise InputError("the search space has no end; give --max-defects, or --composition")
    return space_of(find_host(project, host), request)


def _cost(project: Project, space: SearchSpace, symmetry: Any, total: int) -> dict[str, Any]:
    """Bytes on disk, seconds to enumerate, seconds to score; null where no rate is known."""
    from screening.pipeline import costs

    scoring = None
    try:
        with project.transaction() as session:
            scoring = costs.scoring_seconds(session, total)
    except ServiceError:
        pass  # counting needs no services; without them nothing is known of past scorings
    walking = costs.enumeration_seconds(space, symmetry, total)
    return {
        "disk_bytes": costs.disk_bytes(total),
        "seconds": None if walking is None else round(walking, 3),
        "scoring_seconds": None if scoring is None else round(scoring, 3),
    }


def find_symmetry_of(space: SearchSpace) -> Any:
    """The symmetry of a search space's supercell."""
    from screening.defects.symmetry import find_symmetry

    return find_symmetry(space.supercell)


def enumerate_stored(project: Project, space: SearchSpace, *, wait: bool = True) -> dict[str, Any]:
    """Store the candidates of a search space, or what is left of them, by the workers.

    Raises:
        ScreeningError: a chunk failed.
    """
    return _scan_stored(project, space, wait=wait)


def score_stored(project: Project, space: SearchSpace, model_name: str | None, *, wait: bool = True) -> dict[str, Any]:
    """Store the candidates of a search space with their predictions, or what is left of them, by the workers.

    Raises:
        InputError: the model has never seen a defect type of the search space.
        ScreeningError: a chunk failed.
    """
    found = _scan_stored(project, space, model_id_of(project, space, model_name), wait=wait)
    return {**found, "predictions": found["candidates"]}


def model_id_of(project: Project, space: SearchSpace, name: str | None) -> int:
    """The model of this name, or the newest that has learnt from the host of a search space."""
    from screening.pipeline.space_requests import model_id_for

    with project.transaction() as session:
        return model_id_for(session, space, name)


def _scan_stored(
    project: Project, space: SearchSpace, model_id: int | None = None, *, wait: bool = True
) -> dict[str, Any]:
    """Start or resume the campaign that keeps all of a search space, and wait for its end.

    Returns:
        `was_finished`: whether there was nothing to do; `seconds` from the start of the campaign to its end, null
        before that.
    """
    from screening.database import campaigns

    campaign_id, was_finished = _start(project, space, model_id)
    if wait and not was_finished:
        wait_for_campaign(project, campaign_id, label="enumerate" if model_id is None else "score")
    with project.transaction() as session:
        (done,) = campaigns.progress_of(session, campaign_id)
        peaks = [worker.peak_memory_mb or 0.0 for worker in campaigns.workers_of(session, campaign_id)]
    seconds = None
    if done.finished_at is not None and done.started_at is not None:
        seconds = (done.finished_at - done.started_at).total_seconds()
    return {
        "model": done.model,
        "campaign": done.campaign,
        "state": done.state,
        "was_finished": was_finished,
        "search_space": done.search_space_id,
        "candidates": done.candidates_done,
        "expected": done.candidates,
        "seconds": None if seconds is None else round(seconds, 3),
        "per_second": round(done.candidates_done / seconds, 1) if seconds else None,
        "peak_memory_mb": round(max(peaks, default=0.0), 1),
    }


def wait_for_campaign(project: Project, campaign_id: int, *, label: str) -> None:
    """Wait until a campaign is finished, and show how far it is.

    Raises:
        ScreeningError: it is incomplete, or somebody has stopped it.
    """
    from screening.database import campaigns

    with project.transaction() as session:
        (found,) = campaigns.progress_of(session, campaign_id)
    see = f"screening campaign status {found.campaign} --watch"

    def look() -> Tick:
        with project.transaction() as session:
            (found,) = campaigns.progress_of(session, campaign_id)
        what = "" if found.per_second is None else f"{found.per_second:,.0f}/s"
        return Tick(
            found.candidates_done, found.candidates, what, started=found.chunks_running > 0, over=found.is_over
        )  # fmt: skip

    wait_for(look, label=label, see=see)
    with project.transaction() as session:
        (found,) = campaigns.progress_of(session, campaign_id)
    if found.state != "finished":
        raise ScreeningError(
            f"campaign {found.campaign} is {found.state}: {found.error or 'somebody has stopped it'}; what is done "
            f"stays, and the same command, or `screening campaign resume {found.campaign}`, does the rest"
        )


def _start(project: Project, space: SearchSpace, model_id: int | None) -> tuple[int, bool]:
    """Plan a campaign that keeps all, start or resume it, and tell the workers; its id, and whether it was finished."""
    from screening.pipeline import campaigns, searches
    from screening.pipeline.hosts import add_supercell

    with project.transaction() as session:
        space_id = searches.add_search_space(session, add_supercell(session, space.supercell), space)
        campaign = campaigns.plan(session, space_id, campaigns.CampaignRequest(model_id))
        if campaign.state == "planned":
            campaigns.start(session, campaign)
        elif campaign.state != "finished":
            campaigns.resume(session, campaign)
        campaign_id, is_finished = campaign.id, campaign.state == "finished"
    if not is_finished:
        project.announce("enumerate" if model_id is None else "score")
    return campaign_id, is_finished
