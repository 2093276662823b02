"""Files that were sent to the web server: stored with their purpose, claimed by a worker, forgotten once read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from screening.database.tables import AccessToken, Upload
from screening.errors import InputError, UnknownNameError

_LONGEST_NAME = 200


def add_upload(
    session: Session, *, purpose: str, name: str, content: bytes, options: Mapping[str, Any],
    token_id: int | None, round_id: int | None = None,
) -> int:  # fmt: skip
    """Store a file for a worker to read; the id of its row.

    Args:
        name: as it was sent; folders are left out.

    Raises:
        InputError: it has no name or no content.
    """
    plain = PurePosixPath(PureWindowsPath(name).name).name
    if not plain or plain in (".", "..") or "\0" in plain:
        raise InputError(f"the file is called {name!r}; send it under a name such as vasprun.xml")
    if not content:
        raise InputError(f"{plain} is empty; send the file itself")
    upload = Upload(
        purpose=purpose, name=plain[-_LONGEST_NAME:], size=len(content), sha256=hashlib.sha256(content).digest(),
        content=content, options=dict(options), token_id=token_id, round_id=round_id,
    )  # fmt: skip
    session.add(upload)
    session.flush()
    return upload.id


def find_upload(session: Session, upload_id: int) -> Row[Any]:
    """An upload as it stands, without its content.

    Raises:
        UnknownNameError: there is none of this id.
    """
    found = session.execute(_shown().where(Upload.id == upload_id)).first()
    if found is None:
        raise UnknownNameError(f"there is no upload {upload_id}; uploads have the ids that were answered to them")
    return found


def list_uploads(
    session: Session, *, limit: int, before: int | None = None, round_id: int | None = None
) -> list[Row[Any]]:  # fmt: skip
    """Uploads, newest first, of a round or of all.

    Args:
        before: an id: those that are older.
    """
    statement = _shown().order_by(Upload.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(Upload.id < before)
    if round_id is not None:
        statement = statement.where(Upload.round_id == round_id)
    return list(session.execute(statement).all())


def _shown() -> Any:
    return select(
        Upload.id, Upload.purpose, Upload.name, Upload.size, Upload.state, Upload.attempts, Upload.report, Upload.error,
        Upload.round_id, Upload.created_at, Upload.finished_at, AccessToken.name.label("sender"),
    ).outerjoin(AccessToken, AccessToken.id == Upload.token_id)  # fmt: skip
