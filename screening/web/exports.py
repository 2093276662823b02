"""Exports as answers: rows are written to a file of the server's disk, streamed from there, and deleted.

A file that is written first has a length, and an error halfway is an error and not half a file.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Literal

from fastapi import Request
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from screening.pipeline.export_sources import Source
from screening.pipeline.exports import TABLES, export_table
from screening.pipeline.structure_rows import export_structures
from screening.web.server import server_of

ExportFormat = Literal["csv", "parquet", "extxyz", "poscar", "json", "ase"]
_ENDINGS = {"csv": ".csv", "parquet": ".parquet", "extxyz": ".extxyz", "poscar": "", "json": ".json", "ase": ".db"}


def export_answer(request: Request, source: Source, format_: ExportFormat, *, name: str) -> FileResponse:
    """The rows of a source as a file; `poscar` is a zip of a folder.

    Raises:
        InputError: the rows cannot be written so, or are too many structures.
    """
    folder = Path(mkdtemp(prefix="screening-export-"))
    try:
        path = folder / f"export{_ENDINGS[format_]}"
        engine = server_of(request).engine
        if format_ in TABLES:
            export_table(engine, source, path, kind=format_)
        else:
            export_structures(engine, source, path, kind=format_)
        if path.is_dir():
            path = Path(shutil.make_archive(str(folder / "export"), "zip", path))
        return FileResponse(
            path, filename=f"{name}{path.suffix}", media_type=None, background=BackgroundTask(shutil.rmtree, folder)
        )
    except BaseException:
        shutil.rmtree(folder)
        raise
