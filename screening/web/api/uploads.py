"""Files for the workers: results to take in, structures to predict. The server stores them and parses nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Path, Request, UploadFile
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from screening.database.rounds import find_round
from screening.database.uploads import add_upload, find_upload, list_uploads
from screening.errors import InputError
from screening.pipeline.pretrained import is_model_path
from screening.web.access import Reader
from screening.web.api.answers import PROBLEMS
from screening.web.idempotency import OncePerKey
from screening.web.paging import After, Limit, Page, id_of, page_of
from screening.web.server import Transaction, tell_workers

router = APIRouter(tags=["uploads"], responses=PROBLEMS)

_Text = Annotated[str | None, Form(max_length=200)]
_LARGEST_ID = 2**31 - 1


class UploadRow(BaseModel):
    """A file that was sent, and what a worker found in it."""

    id: int
    purpose: str = Field(description="results or prediction")
    name: str
    size: int = Field(description="bytes")
    state: str = Field(description="waiting, running, finished or failed")
    report: dict[str, Any] | None = Field(
        description="results: new, known, refused, failed and `files`, each with its outcome and reason; prediction: "
        "model, predicted, `rows` and `refusals`"
    )
    error: str | None = Field(description="why it could not be read as a whole")
    round_id: int | None
    sender: str | None
    created_at: datetime
    finished_at: datetime | None


@router.post("/results", status_code=202, response_model=UploadRow)
def upload_results(
    session: Transaction, once: OncePerKey,
    file: Annotated[UploadFile, File(description="vasprun.xml(.gz), extxyz, ASE database, CSV, or a zip or tar.gz")],
    level: _Text = None, new_level: Annotated[bool, Form()] = False, host: _Text = None, round: _Text = None,
) -> Any:  # fmt: skip
    """Send results; a worker takes them in. `GET /uploads/{id}` says what became of each.

    `level` is the level of theory of files that do not say theirs, `round` the round that they are of.
    """
    if once.earlier:
        return once.earlier
    options = {"level": level, "new_level": new_level, "host": host}
    upload_id = store(session, "results", file, options, token_id=once.token_id, round_name=round)
    return once.keep(202, _row(session, upload_id).model_dump(mode="json"))


@router.post("/predictions", status_code=202, response_model=UploadRow)
def upload_structures(
    session: Transaction, once: OncePerKey,
    file: Annotated[UploadFile, File(description="POSCAR, CIF, extxyz, pymatgen JSON, or a zip or tar.gz of them")],
    model: _Text = None,
) -> Any:  # fmt: skip
    """Send structures; a worker predicts their properties. `GET /uploads/{id}` has the predictions."""
    if once.earlier:
        return once.earlier
    if model is not None and is_model_path(model):
        raise InputError(f"{model!r} reads like a path; give the name of a model of the database")
    upload_id = store(session, "prediction", file, {"model": model}, token_id=once.token_id)
    return once.keep(202, _row(session, upload_id).model_dump(mode="json"))


@router.get("/uploads")
def get_uploads(
    request: Request, session: Transaction, _: Reader, limit: Limit = 100, after: After = None
) -> Page[UploadRow]:  # fmt: skip
    """Files that were sent, newest first."""
    rows = list_uploads(session, limit=limit + 1, before=id_of(after))
    return Page[UploadRow](
        **page_of(request, [UploadRow(**row._mapping) for row in rows], limit, ["id"])
    )  # fmt: skip


@router.get("/uploads/{upload}")
def get_upload(
    session: Transaction, _: Reader, upload: Annotated[int, Path(ge=1, le=_LARGEST_ID)]
) -> UploadRow:  # fmt: skip
    """A file that was sent, and what a worker found in it."""
    return _row(session, upload)


def store(
    session: Session, purpose: str, file: UploadFile, options: dict[str, Any], *, token_id: int | None,
    round_name: str | None = None,
) -> int:  # fmt: skip
    """Store a file for the workers and tell them; the id of its row."""
    round_id = None if round_name is None else find_round(session, round_name).id
    given = {name: value for name, value in options.items() if value not in (None, "", False)}
    upload_id = add_upload(
        session, purpose=purpose, name=file.filename or "", content=file.file.read(), options=given,
        token_id=token_id, round_id=round_id,
    )  # fmt: skip
    tell_workers(session, "intake" if purpose == "results" else "predict")
    return upload_id


def _row(session: Session, upload_id: int) -> UploadRow:
    return UploadRow(**find_upload(session, upload_id)._mapping)
