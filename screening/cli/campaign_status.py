"""How far campaigns are: campaign status, with --watch, and campaign list.

Everything shown is in the views `campaign_progress` and `campaign_workers`; any program may read the same there.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from screening.cli.options import AsJson
from screening.cli.output import counted, duration, note, print_json, print_table, show, size_on_disk, table_of
from screening.cli.project import Project
from screening.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from sqlalchemy.orm import Session

    from screening.database.campaigns import CampaignProgress, WorkerProgress
    from screening.database.tables import Campaign

WATCH_S = 2.0


@dataclass(frozen=True)
class CampaignView:
    """A campaign at a moment.

    Attributes:
        of: what it is, as plans.describe_campaign says it.
        stored_rows: candidates that are stored.
        disk_bytes: of these rows with their indexes.
        seen_at: by the clock of the database.
    """

    of: dict[str, Any]
    progress: CampaignProgress
    workers: list[WorkerProgress]
    stored_rows: int
    disk_bytes: int
    seen_at: datetime

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen by itself: also the chunks that a pause lets run have ended."""
        return self.progress.is_over and self.progress.chunks_running == 0


def campaign_status(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of one campaign; of all if not given.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every 2 s until the campaign is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a campaign is: candidates, chunks, rate, time left, workers, disk.

    With --watch the exit code is 1 if the campaign ends incomplete.
    """
    if name is None and watch:
        raise InputError("--watch looks at one campaign; name it (`screening campaign list`)")
    if name is None:
        campaign_list(as_json)
        return
    project = Project()
    view = _watch(project, name, as_json=as_json) if watch else look_at(project, name)
    if as_json:
        print_json(_plain(view))
    elif not watch or not sys.stdout.isatty():
        show(_layout(view))
    if watch and view.progress.state == "incomplete":
        raise typer.Exit(1)


def campaign_list(as_json: AsJson = False) -> None:
    """List the campaigns, oldest first."""
    from screening.database.campaigns import progress_of

    with Project().transaction() as session:
        found = progress_of(session)
    if as_json:
        print_json({"campaigns": [asdict(row) for row in found]})
        return
    columns = ["campaign", "state", "storage", "model", "candidates", "done", "per second", "time left", "workers"]
    rows = [
        [
            row.campaign, row.state, row.storage, _model(row), f"{row.candidates:,}", _share(row),
            _rate(row.per_second), _left(row), row.workers or None,
        ]
        for row in found
    ]  # fmt: skip
    print_table(columns, rows)


def look_at(project: Project, name: str) -> CampaignView:
    """A campaign now.

    Raises:
        UnknownNameError: there is no such campaign.
    """
    from sqlalchemy import func, select

    from screening.database import campaigns
    from screening.database.queries import campaign_by_name
    from screening.pipeline.plans import describe_campaign

    with project.transaction() as session:
        campaign = campaign_by_name(session, name)
        (progress,) = campaigns.progress_of(session, campaign.id)
        return CampaignView(
            describe_campaign(session, campaign),
            progress,
            campaigns.workers_of(session, campaign.id),
            _stored_rows(session, campaign),
            campaigns.partition_bytes(session, campaign.id),
            session.execute(select(func.now())).scalar_one(),
        )


def _stored_rows(session: Session, campaign: Campaign) -> int:
    """Candidates that are stored; with storage `all` those of the finished chunks: too many to be counted each time."""
    from sqlalchemy import func, select

    from screening.database.tables import Candidate, Chunk

    if campaign.storage == "all":
        statement = select(func.sum(Chunk.n_candidates)).where(Chunk.campaign_id == campaign.id)
    else:
        statement = select(func.count()).where(Candidate.campaign_id == campaign.id)
    return int(session.execute(statement).scalar_one() or 0)


def _watch(project: Project, name: str, *, as_json: bool) -> CampaignView:
    """Look until the campaign is over: redrawn on a terminal, a line per change elsewhere; the last view.

    ^C ends the watching, not the campaign.
    """
    from rich.console import Console
    from rich.live import Live

    try:
        if not sys.stdout.isatty() or as_json:
            return _print_changes(project, name, sys.stderr if as_json else sys.stdout)
        view = look_at(project, name)
        with Live(_layout(view), console=Console(highlight=False), auto_refresh=False) as live:
            while not view.is_over:
                time.sleep(WATCH_S)
                view = look_at(project, name)
                live.update(_layout(view), refresh=True)
        return view
    except KeyboardInterrupt:
        note(f"\nonly the watching has ended; `screening campaign cancel {name}` would stop the campaign")
        raise


def _print_changes(project: Project, name: str, file: TextIO) -> CampaignView:
    """Print a line whenever something has changed, until the campaign is over; the last view."""
    last = None
    while True:
        view = look_at(project, name)
        seen = view.progress
        text = f"{seen.state} {_share(seen)}: {seen.candidates_done:,} of {seen.candidates:,} candidates"
        if seen.per_second:
            text += f", {_speed(seen)}"
        if (seen.state, seen.candidates_done, seen.chunks_failed) != last:
            print(f"{view.seen_at.astimezone():%H:%M:%S} {text}", file=file, flush=True)
        last = (seen.state, seen.candidates_done, seen.chunks_failed)
        if view.is_over:
            return view
        time.sleep(WATCH_S)


def _layout(view: CampaignView) -> RenderableType:
    """What `status` shows."""
    from rich.console import Group

    from screening.pipeline.plans import what_is_kept

    seen, of = view.progress, view.of
    lines = [
        ["campaign", of["campaign"]],
        ["state", _state(view)],
        ["search space", f"{of['search_space']} in {of['host']} {of['supercell']}"],
        ["model", _model(seen) + (f": `screening campaign rescore {seen.campaign}`" if seen.is_stale else "")],
        ["keeps", what_is_kept(of)],
        ["done", f"{seen.candidates_done:,} of {seen.candidates:,} candidates ({_share(seen)})"],
    ]
    if not view.is_over and seen.state != "planned":
        lines.append(["speed", _speed(seen)])
    waiting = seen.chunks - seen.chunks_done - seen.chunks_running - seen.chunks_failed
    states = {
        "done": seen.chunks_done,
        "running": seen.chunks_running,
        "waiting": waiting,
        "failed": seen.chunks_failed,
    }
    parts = ", ".join(f"{n} {state}" for state, n in states.items() if n or state == "done")
    lines.append(["chunks", f"{parts} of {seen.chunks}"])
    if seen.candidates_matching is not None:
        lines.append(
            ["matching", f"{counted(seen.candidates_matching, 'candidate')} of the finished chunks fit the query"]
        )
    lines.append(["stored", f"{counted(view.stored_rows, 'row')}, {size_on_disk(view.disk_bytes)}"])
    if seen.error is not None:
        lines.append(["error", seen.error])
    parts_shown: list[RenderableType] = [table_of(["", ""], lines)]
    if view.workers:
        columns = ["worker", "", "chunks", "candidates", "per second", "seen", "MB at most"]
        parts_shown += ["", table_of(columns, [_worker_row(worker, view.seen_at) for worker in view.workers])]
    return Group(*parts_shown)


def _model(seen: CampaignProgress) -> str:
    """The model of a campaign; one that is no longer in production makes it stale."""
    return f"{seen.model}, stale: {seen.production} is in production" if seen.is_stale else seen.model or "none"


def _worker_row(worker: WorkerProgress, now: datetime) -> list[Any]:
    age = None if worker.heartbeat is None else max(0.0, (now - worker.heartbeat).total_seconds())
    return [
        worker.worker, "works" if worker.is_working else "", worker.chunks_done, f"{worker.candidates:,}",
        _rate(worker.per_second), "" if age is None else f"{duration(age)} ago",
        "" if worker.peak_memory_mb is None else f"{worker.peak_memory_mb:.0f}",
    ]  # fmt: skip


def _state(view: CampaignView) -> str:
    """The state with its times: `finished 2026-11-24 10:02 after 3 min 20 s`."""
    seen = view.progress
    if seen.state == "planned":
        return f"planned; `screening campaign start {seen.campaign}` starts it"
    if seen.started_at is None:
        return seen.state
    if seen.finished_at is not None:
        took = (seen.finished_at - seen.started_at).total_seconds()
        rate = f", {seen.candidates / took:,.0f} candidates/s" if took else ""
        return f"finished {seen.finished_at.astimezone():%Y-%m-%d %H:%M} after {duration(took)}{rate}"
    return f"{seen.state}, first started {seen.started_at.astimezone():%Y-%m-%d %H:%M}"


def _speed(seen: CampaignProgress) -> str:
    if not seen.per_second:
        return "not known yet" if seen.workers else "no worker is at it; `screening status` shows whether some run"
    return f"{seen.per_second:,.0f} candidates/s by {counted(seen.workers, 'worker')}, {_left(seen)} left"


def _left(seen: CampaignProgress) -> str:
    return "" if seen.seconds_left is None or seen.is_over else duration(seen.seconds_left)


def _rate(per_second: float | None) -> str:
    return "" if per_second is None else f"{per_second:,.0f}"


def _share(seen: CampaignProgress) -> str:
    """Per cent that are done; 100 only when all are."""
    share = 100.0 * seen.candidates_done / seen.candidates
    return f"{share:.1f} %" if seen.candidates_left == 0 else f"{min(share, 99.9):.1f} %"


def _plain(view: CampaignView) -> dict[str, Any]:
    """The view for programs: the columns of campaign_progress, what the campaign is, and its workers."""
    return {
        **view.of,
        **asdict(view.progress),
        "stored_rows": view.stored_rows,
        "disk_bytes": view.disk_bytes,
        "by_worker": [asdict(worker) for worker in view.workers],
    }
