"""Campaigns: campaign plan, start, pause, resume, cancel, rescore, status, list, delete.

A plan says what a campaign will cost before anything of it is begun. The other commands change its state and tell
the workers; nobody has to wait for them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.cli.campaign_status import campaign_list, campaign_status
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
)
from screening.cli.output import counted, duration, note, print_json, print_table, size_on_disk
from screening.cli.project import LimitOptions, Project
from screening.cli.query_options import Confidence, Gap, Highest, Sort, Windows, build_query
from screening.cli.searches import model_id_of, read_space
from screening.errors import InputError

if TYPE_CHECKING:
    from screening.database.campaigns import CampaignProgress
    from screening.database.design_query import DesignQuery
    from screening.defects.enumeration import SearchSpace
    from screening.pipeline.campaigns import CampaignRequest
    from screening.pipeline.plans import Change

NameOfCampaign = Annotated[str, typer.Argument(metavar="NAME", help="Name of the campaign.")]


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands."""
    campaign = typer.Typer(
        help="Campaigns: scan a search space with a model, and keep all of it or the best.", no_args_is_help=True
    )
    campaign.command("plan")(campaign_plan)
    campaign.command("start")(campaign_start)
    campaign.command("status")(campaign_status)
    campaign.command("pause")(campaign_pause)
    campaign.command("resume")(campaign_resume)
    campaign.command("cancel")(campaign_cancel)
    campaign.command("rescore")(campaign_rescore)
    campaign.command("list")(campaign_list)
    campaign.command("delete")(campaign_delete)
    app.add_typer(campaign, name="campaign")


def campaign_plan(
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
    no_model: Annotated[bool, typer.Option("--no-model", help="Store the candidates without scoring them.")] = False,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            help="Keep only so many candidates, those that come first by --gap, --window, --sort, --highest and "
            "--confidence; all are counted, and are in the histograms. Every candidate is stored if not given.",
        ),
    ] = None,
    gap: Gap = None,
    window: Windows = None,
    sort: Sort = None,
    highest: Highest = False,
    confidence: Confidence = None,
    name: Annotated[str | None, typer.Option("--name", help="What to call it; made up if not given.")] = None,
    chunk_rows: Annotated[
        int | None,
        typer.Option(
            "--chunk-rows", min=1, help="Candidates of a chunk, about: 3000000 for GPUs; 300000 at most if not given."
        ),
    ] = None,
    at_once: Annotated[bool, typer.Option("--start", help="Start it, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Plan a campaign and say what it will cost; the workers begin when it is started."""
    from screening.pipeline.campaigns import CampaignRequest

    project = Project()
    limits = LimitOptions(limit or (), require or (), min_separation, max_separation)
    space = read_space(project, host, supercell, types, max_defects, min_defects, composition, limits=limits)
    options: dict[str, Any] = {"gap": gap, "window": window, "sort": sort, "highest": highest, "confidence": confidence}
    if no_model and model is not None:
        raise InputError(f"--no-model stores candidates unscored, --model {model} scores them; leave one of them out")
    query = _kept_query(space, keep, options)
    model_id = None if no_model else model_id_of(project, space, model)
    found = plan_stored(project, space, CampaignRequest(model_id, query, name), chunk_rows=chunk_rows)
    if not as_json:
        _print_plan(project, found)
    if at_once and found["state"] != "finished":
        found["state"] = _change(project, found["campaign"], "start" if found["state"] == "planned" else "resume").state
    if as_json:
        print_json(found)
    else:
        print(_what_next(found))


def plan_stored(
    project: Project, space: SearchSpace, request: CampaignRequest, *, chunk_rows: int | None = None
) -> dict[str, Any]:
    """Write a campaign, and what it is and will cost.

    Raises:
        InputError: nobody could scan it, or the model does not fit it.
    """
    from screening.pipeline.plans import plan_campaign
    from screening.services import n_processes

    with project.transaction() as session:
        found = plan_campaign(session, space, request, chunk_rows=chunk_rows)
    return found | {"workers": n_processes(project.settings, "cpu" if request.model_id is None else "gpu")}


def campaign_start(name: NameOfCampaign, as_json: AsJson = False) -> None:
    """Open the chunks of a planned campaign to the workers."""
    _print_change(_change(Project(), name, "start"), as_json=as_json)


def campaign_pause(name: NameOfCampaign, as_json: AsJson = False) -> None:
    """Hand out no more chunks of a campaign; those that run come to their end."""
    _print_change(_change(Project(), name, "pause"), as_json=as_json)


def campaign_resume(name: NameOfCampaign, as_json: AsJson = False) -> None:
    """Go on with a campaign that was paused or cancelled, or try its failed chunks again."""
    _print_change(_change(Project(), name, "resume"), as_json=as_json)


def campaign_cancel(name: NameOfCampaign, as_json: AsJson = False) -> None:
    """Stop a campaign at once; what is finished stays, and `resume` does the rest."""
    _print_change(_change(Project(), name, "cancel"), as_json=as_json)


def campaign_rescore(name: NameOfCampaign, as_json: AsJson = False) -> None:
    """Scan a stale campaign's search space again, with the version of its model that is in production.

    The campaign stays until it is deleted.
    """
    from screening.database.campaigns import progress_of
    from screening.database.queries import campaign_by_name
    from screening.pipeline.rescoring import rescore

    project = Project()
    with project.transaction() as session:
        campaign_id = rescore(session, campaign_by_name(session, name)).id
    project.announce("score")
    with project.transaction() as session:
        (found,) = progress_of(session, campaign_id)
    _print_change(found, as_json=as_json)


def campaign_delete(
    name: NameOfCampaign,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a campaign with everything it has stored; saved rankings stay."""
    from screening.database.campaigns import partition_bytes
    from screening.database.queries import campaign_by_name
    from screening.pipeline import campaigns

    project = Project()
    with project.transaction() as session:
        campaign = campaign_by_name(session, name)
        size = partition_bytes(session, campaign.id)
        state = campaign.state
    if not yes:
        typer.confirm(f"delete campaign {name} ({state}) and its {size_on_disk(size)}?", abort=True, err=True)
    with project.transaction() as session:
        campaigns.remove(session, campaign_by_name(session, name))
    if as_json:
        print_json({"campaign": name, "state": "deleted", "disk_bytes": size})
    else:
        print(f"campaign {name} is deleted; {size_on_disk(size)} are free")


def _change(project: Project, name: str, verb: Change) -> CampaignProgress:
    """Change the state of a campaign and tell the workers; how far it is."""
    from screening.database.campaigns import progress_of
    from screening.database.queries import campaign_by_name
    from screening.pipeline.plans import change

    with project.transaction() as session:
        campaign = campaign_by_name(session, name)
        kind, campaign_id = change(session, campaign, verb), campaign.id
    if kind is not None:
        project.announce(kind)
    with project.transaction() as session:
        (found,) = progress_of(session, campaign_id)
    return found


def _print_change(found: CampaignProgress, *, as_json: bool) -> None:
    """Say what state a campaign is in now, and how to go on."""
    name = found.campaign
    if as_json:
        print_json({"campaign": name, "state": found.state})
        return
    see, go_on = f"`screening campaign status {name} --watch`", f"`screening campaign resume {name}`"
    done = f"{found.chunks_done} of {counted(found.chunks, 'chunk')} are done"
    what = {
        "running": f"{done}; {see} shows how far it is",
        "paused": f"{done}, {found.chunks_running} more come to their end; {go_on} goes on",
        "cancelled": f"{done} and stay; {go_on} does the rest",
    }
    print(f"campaign {name} is {found.state}: {what.get(found.state, done)}")


def _kept_query(space: SearchSpace, keep: int | None, options: dict[str, Any]) -> DesignQuery | None:
    """The design query whose best rows are kept, from the options of a query.

    Raises:
        InputError: there are such options, but nothing says how many rows.
    """
    if keep is not None:
        place = {"host": space.supercell.host.name, "supercell": space.supercell.label}
        return build_query(**(place | options), limit=keep)
    if any(value not in (None, False) for value in options.values()):
        raise InputError(
            "--gap, --window, --sort, --highest and --confidence choose the rows of --keep; add --keep 10000, or leave "
            "them out: what is stored whole is ranked later by `screening design`"
        )
    return None


def _print_plan(project: Project, found: dict[str, Any]) -> None:
    """What a campaign is and will cost."""
    from screening.pipeline.plans import what_is_kept

    print(
        f"campaign {found['campaign']} ({found['state']}): {found['search_space']} in {found['host']} "
        f"{found['supercell']}"
    )
    print(f"model {found['model'] or 'none'}, keeps {what_is_kept(found)}\n")
    sizes = {**found["by_defects"], "all": found["candidates"]}
    print_table(["defects", "candidates"], [[n, f"{number:,}"] for n, number in sizes.items()])
    print()
    queue = "gpu" if found["model"] else "cpu"
    lines = [
        ["chunks", f"{found['chunks']:,}"],
        ["disk", size_on_disk(found["disk_bytes"])],
        ["time", _time(found["seconds"], found["workers"], queue)],
    ]
    print_table(["", ""], lines)
    advice = storage_advice(found, _free_bytes(project))
    if advice:
        note(f"screening: {advice}")


def storage_advice(found: Mapping[str, Any], free: float) -> str | None:
    """What to do instead of storing every candidate of a plan where that takes too much disk.

    Args:
        free: bytes that are free on the disk of the database.
    """
    from screening.pipeline.plans import MOST_BYTES

    size = found["disk_bytes"]
    if found["storage"] == "best" or size <= min(MOST_BYTES, free):
        return None
    of_disk = f", and {size_on_disk(free)} are free here" if size > free else ""
    return (
        f"{size_on_disk(size)} are much to store{of_disk}; --keep 10000 with --gap, --window or --sort keeps the best "
        "rows only, and counts all of them"
    )


def _time(seconds: float, n_workers: int, queue: str) -> str:
    """Time of one worker process, and of those that run here."""
    one = f"{duration(seconds)} by one worker"
    if n_workers == 0:
        return f"{one}; none runs here, `screening up --workers {queue}=2` starts two"
    if n_workers == 1:
        return one
    return f"{one}, {duration(seconds / n_workers)} by the {n_workers} that run here"


def _free_bytes(project: Project) -> float:
    """Free on the disk of our own database; nothing is known of another one's."""
    if project.settings.database_url is not None:
        return float("inf")
    return float(shutil.disk_usage(project.settings.home).free)


def _what_next(found: dict[str, Any]) -> str:
    name = found["campaign"]
    if found["state"] == "planned":
        return f"start it with `screening campaign start {name}`"
    if found["state"] == "running":
        return f"running; `screening campaign status {name} --watch`"
    if found["state"] == "finished":
        return f"finished already; `screening campaign status {name}`"
    return f"{found['state']}; `screening campaign resume {name}` goes on"
