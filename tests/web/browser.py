"""A real browser on a live server, and a thread that does the workers' work with the workers' own functions."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import Engine

from screening.database import leases, tables
from screening.database.session import session_scope
from screening.errors import InputError
from screening.pipeline import campaigns, uploads
from screening.pipeline.dispatch import CONDITIONS, UNITS, Kind
from screening.pipeline.models import train_unit
from screening.pipeline.scanning import scan_unit

ROOT = Path(__file__).parents[2]
SCREENSHOTS = Path(os.environ.get("CI_ARTEFACTS", ROOT / "build")) / "screenshots"
_OWNER = "here:1:story"
_KINDS: tuple[Kind, ...] = ("intake", "predict", "train", "score", "enumerate")


def chromium() -> str:
    """The browser of the system; tests are skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium on this machine; on Debian: apt install chromium")
    return found


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The application on a free port of loopback; its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def working(engine: Engine) -> Iterator[None]:
    """Units of work are done as they come, for the length of the block."""
    stop = threading.Event()
    faults: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.wait(0.2):
                for kind in _KINDS:
                    _do_next(engine, kind)
                campaigns.close_over(engine)
        except BaseException as error:  # told by the test, not by a thread that nobody looks at
            faults.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if faults:
        raise faults[0]


def _do_next(engine: Engine, kind: Kind) -> None:
    with session_scope(engine) as session:
        unit_id = leases.claim_next(session, UNITS[kind], _OWNER, *CONDITIONS[kind])
    if unit_id is None:
        return
    try:
        if kind == "intake":
            uploads.take_upload(engine, unit_id, _OWNER)
        elif kind == "predict":
            uploads.predict_upload(engine, unit_id, _OWNER, device="cpu")
        elif kind == "train":
            train_unit(engine, unit_id, _OWNER, device="cpu")
        else:
            scan_unit(engine, unit_id, _OWNER, device="cpu")
    except InputError as error:
        with session_scope(engine) as session:
            leases.fail(session, UNITS[kind], unit_id, _OWNER, error=str(error))


def is_idle(engine: Engine) -> bool:
    """Whether no upload waits."""
    with session_scope(engine) as session:
        return not leases.has_claimable(session, tables.Upload)
