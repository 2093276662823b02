"""Watched folders: results are taken in as their files appear.

A folder is looked at again and again; what is known of its files is in rows, so that a watch may be stopped and
started, also on another day, and nothing is read twice. A file is taken once it stands still: when its size and time
were the same at two looks, or it has not changed for a minute. A run of VASP writes its file from the first step on,
so one that is not complete is left alone until it has not changed for hours: then it was cut short. A file that was
refused is tried again when it has changed, when level, host or chemical potentials are other ones than it was refused
with, when a host has come, and after a day.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from stat import S_ISREG

from sqlalchemy import Engine, func, not_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import tables
from screening.database.session import session_scope
from screening.dft.result_files import kind_of
from screening.dft.vasp import is_complete
from screening.errors import InputError
from screening.pipeline.result_intake import IntakeOptions, file_digest, take_files
from screening.pipeline.result_places import count_hosts
from screening.pipeline.result_rows import Ledger

STILL_S = 60.0
ABANDONED_S = 6 * 3600.0
_AGAIN_AFTER = timedelta(days=1)  # what a refusal asks for may have been done outside the folder
_UNREAD = -1.0  # time of the last change of a file that cannot be read


@dataclass(frozen=True)
class SeenFile:
    """What became of a file at a look.

    Attributes:
        path: relative to the folder.
        outcome: taken, known, failed (the calculation) or refused (the file).
        text: reason or remark, where there is one.
    """

    path: str
    outcome: str
    text: str | None


def watch_folder(session: Session, folder: Path, *, level_name: str | None = None, host_name: str | None = None) -> int:
    """The id of a watched folder, added if it is not there; level and host are those of its files from now on.

    Raises:
        InputError: it is no folder, or cannot be read.
    """
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"{folder} is no folder that can be read; name one in which results appear")
    row = tables.WatchedFolder
    values = {"level_name": level_name, "host": host_name, "is_on": True}
    key = {"machine": socket.gethostname(), "path": str(folder.resolve())}
    added = session.execute(
        insert(row)
        .values(**key, **values)
        .on_conflict_do_update(index_elements=["machine", "path"], set_=values)
        .returning(row.id)
    )
    return added.scalar_one()


def look(
    engine: Engine, folder_id: int, *, now: float, still_s: float = STILL_S, abandoned_s: float = ABANDONED_S,
    chemical_potentials: Mapping[str, float] | None = None, new_level: bool = False,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> list[SeenFile]:  # fmt: skip
    """Look at a folder once: take what stands still, remember what grows; what became of the files that were taken.

    Args:
        now: seconds since 1970.
        still_s: a file that has not changed for so long stands still, even if it is seen for the first time.
        abandoned_s: a run that is not complete and has not changed for so long was cut short.
        new_level: let the folder's level of theory be a new one, of the first file that needs it.

    Raises:
        InputError: the folder is gone.
    """
    with session_scope(engine) as session:
        row = session.get_one(tables.WatchedFolder, folder_id)
        folder, options = (
            Path(row.path),
            IntakeOptions(row.level_name, new_level, row.host, dict(chemical_potentials or {})),
        )
        row.looked_at = func.now()
        if not folder.is_dir():
            raise InputError(f"{folder} is gone; bring it back, or watch another folder")
        ready, unreadable = _ready_files(session, folder, folder_id, now=now, still_s=still_s, abandoned_s=abandoned_s)
        ready += _refused(session, folder, folder_id, ready, mark=_mark(options))
        n_hosts = count_hosts(session)
    seen = _take(engine, folder, folder_id, ready, options, on_progress)
    with session_scope(engine) as session:  # what fitted no host may fit one that has come with these files
        again = _refused(session, folder, folder_id, ready) if count_hosts(session) > n_hosts else []
    return unreadable + seen + _take(engine, folder, folder_id, again, options, None)


def _ready_files(
    session: Session, folder: Path, folder_id: int, *, now: float, still_s: float, abandoned_s: float
) -> tuple[list[Path], list[SeenFile]]:
    """Files that are new or changed and stand still; the others are remembered as growing.

    Also those that cannot be read: they are refused, said once, and tried again at every look.
    """
    row = tables.WatchedFile
    known = {file.path: file for file in session.scalars(select(row).where(row.folder_id == folder_id))}
    ready, unreadable = [], []
    for path in sorted(path for path in folder.rglob("*") if kind_of(path) is not None):
        before = known.get(name := str(path.relative_to(folder)))
        try:
            stat = path.stat()
            is_same = before is not None and (before.size, before.modified) == (stat.st_size, stat.st_mtime)
            if not S_ISREG(stat.st_mode) or (before is not None and is_same and before.outcome != "growing"):
                continue
            age = now - stat.st_mtime
            is_whole = _is_whole(path, may_be_cut=age >= abandoned_s)
        except FileNotFoundError:  # it was moved on meanwhile
            continue
        except OSError as error:
            trouble = f"it cannot be read ({error.strerror or error}); make it readable, or take it away"
            if before is None or before.reason != trouble:
                unreadable.append(SeenFile(name, "refused", trouble))
            _remember(session, folder_id, name, None, outcome="refused", reason=trouble, sha256=None)
            continue
        if is_whole and (is_same or age >= still_s):
            ready.append(path)
        reason = None if is_whole else "not complete: it is being written, or was cut short"
        _remember(session, folder_id, name, stat, outcome="growing", reason=reason, sha256=None)
    return ready, unreadable


def _is_whole(path: Path, *, may_be_cut: bool) -> bool:
    """Whether a file is written to its end, as far as that can be seen.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb"):
        return kind_of(path) != "vasprun" or may_be_cut or is_complete(path)


def _take(
    engine: Engine, folder: Path, folder_id: int, files: list[Path], options: IntakeOptions,
    on_progress: Callable[[int, int, str], None] | None,
) -> list[SeenFile]:  # fmt: skip
    """Take files in and remember what became of them; those of which there is something new to say."""
    stats = {path: stat for path in files if (stat := _stat(path)) is not None}
    seen = []
    for path, ledger in take_files(engine, list(stats), options, on_progress=on_progress).items():
        found = _seen(str(path.relative_to(folder)), ledger)
        reason = f"{found.text}{_mark(options)}" if found.outcome == "refused" else found.text
        with session_scope(engine) as session:
            before = session.get(tables.WatchedFile, (folder_id, found.path))
            if before is None or (before.outcome, before.reason) != (found.outcome, reason):
                seen.append(found)
            _remember(
                session, folder_id, found.path, stats[path], outcome=found.outcome, reason=reason, sha256=_digest(path)
            )  # fmt: skip
    return seen


def _stat(path: Path) -> os.stat_result | None:
    """Size and time of a file; None if it was moved on meanwhile."""
    try:
        return path.stat()
    except OSError:
        return None


def _digest(path: Path) -> str | None:
    """SHA-256 of what a file holds; None if it cannot be read or was moved on meanwhile."""
    try:
        return file_digest(path)
    except OSError:
        return None


def _mark(options: IntakeOptions) -> str:
    """What a file was refused with, as it is kept with the reason: with something else it may be taken."""
    potentials = ", ".join(f"{element}={energy:g}" for element, energy in sorted(options.chemical_potentials.items()))
    level = f"{'new ' * options.new_level}level {options.level_name or '-'}"
    return f" [{level}, host {options.host_name or '-'}, mu {potentials or '-'}]"


def _seen(path: str, ledger: Ledger) -> SeenFile:
    """One outcome for a file: the best of its results'."""
    remarks = [text for _, text in (*ledger.refusals, *ledger.notes, *ledger.incomplete.items())]
    outcome = "taken" if ledger.new else "known" if ledger.known else "failed" if ledger.failed else "refused"
    text = "; ".join(remarks[:3]) + (f"; and {len(remarks) - 3} more" if len(remarks) > 3 else "")
    return SeenFile(path, outcome, text or (None if outcome in ("taken", "known") else "it holds no result"))


def _refused(
    session: Session, folder: Path, folder_id: int, files: list[Path], *, mark: str | None = None
) -> list[Path]:
    """Files that were refused at an earlier look, and are still there.

    Args:
        mark: take only those that were refused with something else, before a host came, or a day ago.
    """
    row = tables.WatchedFile
    found = select(row.path).where(row.folder_id == folder_id, row.outcome == "refused", row.modified != _UNREAD)
    if mark is not None:
        newest_host = select(func.max(tables.Host.created_at)).scalar_subquery()
        found = found.where(
            not_(row.reason.endswith(mark, autoescape=True))
            | (row.seen_at < newest_host)
            | (row.seen_at < func.now() - _AGAIN_AFTER)
        )
    paths = [folder / name for name in session.scalars(found.order_by(row.path))]
    return [path for path in paths if path not in files and _stat(path) is not None]


def _remember(
    session: Session, folder_id: int, path: str, stat: os.stat_result | None, *, outcome: str, reason: str | None,
    sha256: str | None,
) -> None:  # fmt: skip
    size, modified = (stat.st_size, stat.st_mtime) if stat is not None else (0, _UNREAD)
    values = {
        "size": size, "modified": modified, "outcome": outcome, "reason": reason, "sha256": sha256,
        "seen_at": func.now(),
    }  # fmt: skip
    statement = insert(tables.WatchedFile).values(folder_id=folder_id, path=path, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["folder_id", "path"], set_=values))


def list_watched(session: Session) -> list[dict[str, object]]:
    """A row per watched folder: folder, machine, level, host, looked_at, and how many files are in each outcome."""
    folder, file = tables.WatchedFolder, tables.WatchedFile
    outcomes = ("taken", "known", "failed", "refused", "growing")
    counts = [func.count(file.path).filter(file.outcome == outcome).label(outcome) for outcome in outcomes]
    rows = session.execute(
        select(
            folder.path.label("folder"), folder.machine, folder.level_name.label("level"), folder.host,
            folder.looked_at, *counts,
        )
        .outerjoin(file, file.folder_id == folder.id)
        .group_by(folder.id)
        .order_by(folder.id)
    ).mappings()  # fmt: skip
    return [dict(row) for row in rows]
