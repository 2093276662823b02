"""Structures as answers: a configuration in a file format, made in memory."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from fastapi.responses import Response

from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.dft.structures import grouped_structure, write_structure

Format = Literal["poscar", "cif", "extxyz", "json"]
_FILES = {"poscar": "POSCAR", "cif": "structure.cif", "extxyz": "structure.extxyz"}
_MEDIA = {"poscar": "text/plain", "cif": "chemical/x-cif", "extxyz": "chemical/x-xyz", "json": "application/json"}
_ENDINGS = {"poscar": ".vasp", "cif": ".cif", "extxyz": ".extxyz", "json": ".json"}


def structure_text(supercell: Supercell, configuration: Configuration, format_: Format) -> str:
    """The unrelaxed structure of a configuration; `json` is that of pymatgen."""
    if format_ == "json":
        from pymatgen.core.structure import Structure

        species, positions = grouped_structure(supercell, configuration)
        structure = Structure(supercell.lattice, species, positions, coords_are_cartesian=True)
        return json.dumps(structure.as_dict())
    with TemporaryDirectory() as folder:
        path = Path(folder) / _FILES[format_]
        write_structure(path, supercell, configuration)
        return path.read_text(encoding="utf-8")


def structure_answer(supercell: Supercell, configuration: Configuration, format_: Format, *, name: str) -> Response:
    """The same as a file to be kept under a name."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    return Response(
        structure_text(supercell, configuration, format_), media_type=_MEDIA[format_],
        headers={"content-disposition": f'attachment; filename="{plain}{_ENDINGS[format_]}"'},
    )  # fmt: skip
