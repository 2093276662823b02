"""A subset in the layout of 2DMD whose every number is chosen here, small enough to be damaged in every way.

The chosen quantity is the formation energy; total energies follow from it, so that it is an oracle for what an
import computes back. Structures are 4x4 cells of MoS2, unrelaxed.
"""

from __future__ import annotations

import csv
import gzip
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Supercell

PRISTINE_ENERGY = -350.25
CHEMICAL_POTENTIALS = {"Mo": -10.5, "S": -4.25, "W": -13.0, "Se": -3.5}


@dataclass(frozen=True)
class Row:
    """One structure, with results unless `formation_energy` is None."""

    name: str
    defects: tuple[tuple[int, str], ...]
    formation_energy: float | None
    split: str = "train"

    @property
    def energy(self) -> float:
        assert self.formation_energy is not None
        total = PRISTINE_ENERGY + self.formation_energy
        for _, name in self.defects:
            added, removed = name.split("_")
            total += (0.0 if added == "v" else CHEMICAL_POTENTIALS[added]) - CHEMICAL_POTENTIALS[removed]
        return total


# sites of a 4x4 cell: 0-15 Mo, 16-31 S below, 32-47 S above
ROWS = (
    Row("row-v_S", ((16, "v_S"),), 2.75),
    Row("row-Se_S", ((20, "Se_S"),), 0.125, split="validation"),
    Row("row-v_Mo", ((3, "v_Mo"),), 7.5),
    Row("row-W_Mo", ((7, "W_Mo"),), -0.25),
    Row("row-v_S-v_S", ((16, "v_S"), (32, "v_S")), 5.375),
    Row("row-v_Mo-Se_S", ((0, "v_Mo"), (33, "Se_S")), 7.25, split="validation"),
    Row("row-without-results", ((0, "W_Mo"), (25, "v_S")), None),
)
N_RESULTS = sum(row.formation_energy is not None for row in ROWS)


def write_subset(folder: Path, rows: tuple[Row, ...] = ROWS, *, with_split: bool = True) -> Path:
    """Write a whole subset; the folder."""
    folder.mkdir(parents=True)
    labelled = [row for row in rows if row.formation_energy is not None]
    write_table(
        folder / "defects.csv.gz", [{"_id": row.name, "descriptor_id": "d", "energy": row.energy} for row in labelled]
    )
    write_table(folder / "targets.csv.gz", [_targets(i, row) for i, row in enumerate(labelled)])
    if with_split:
        write_table(folder / "split.csv", [{"_id": row.name, "split": row.split} for row in labelled])
    write_table(
        folder / "descriptors.csv",
        [{"_id": "d", "description": "", "base": "MoS2", "cell": "(4, 4, 1)", "defects": "[]"}],
    )
    write_table(
        folder / "elements.csv",
        [{"element": e, "chemical_potential": mu, "note": "made up"} for e, mu in CHEMICAL_POTENTIALS.items()],
    )
    write_table(folder / "initial_structures.csv", [
        {"base": "MoS2", "cell_size": "[8, 8, 1]", "energy": -1.0},
        {"base": "MoS2", "cell_size": "[4, 4, 1]", "energy": PRISTINE_ENERGY},
    ])  # fmt: skip
    write_archive(folder / "initial.tar.gz", {f"{row.name}.cif": cif(row.defects) for row in rows})
    (folder / "unit_cells").mkdir()
    host = catalogue_host("MoS2")
    (folder / "unit_cells" / "MoS2.cif").write_text(_cif_of(host.species, host.positions, host.lattice))
    return folder


def cif(defects: tuple[tuple[int, str], ...], *, scale: float = 1.0, adatom: bool = False) -> str:
    """A structure of the subset, or one that does not belong there."""
    supercell = Supercell.parse(catalogue_host("MoS2"), "4x4")
    ordered = sorted(defects)
    configuration = Configuration(
        tuple(site for site, _ in ordered), tuple(DefectType.parse(name).code for _, name in ordered)
    )
    species, positions = supercell.structure(configuration)
    if adatom:
        species, positions = (*species, "S"), np.vstack([positions, positions.max(axis=0) + np.array([0.0, 0.0, 2.0])])
    return _cif_of(species, positions @ np.linalg.inv(supercell.lattice), supercell.lattice * scale)


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(column for row in rows for column in row)))
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(gzip.compress(text.getvalue().encode()) if path.suffix == ".gz" else text.getvalue().encode())


def change_table(path: Path, change: Callable[[list[dict[str, object]]], list[dict[str, object]]]) -> None:
    """Write a gzipped table again with its rows changed."""
    write_table(path, change(list(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))))


def write_archive(path: Path, members: dict[str, str]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))


def change_archive(path: Path, changes: dict[str, str | None]) -> None:
    """Write an archive again with members replaced, added, or (None) taken out."""
    with tarfile.open(path) as archive:
        members: dict[str, str | None] = {}
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            members[member.name] = file.read().decode()
    write_archive(path, {name: text for name, text in (members | changes).items() if text is not None})


def _targets(i: int, row: Row) -> dict[str, object]:
    """A row of a spin set: two channels, of which the minority has the smaller gap in every second row."""
    assert row.formation_energy is not None
    shift = 0.0625 if i % 2 else -0.0625
    homo_majority, lumo_majority = -1.0 - i / 64, 0.25 + i / 64
    homo_minority, lumo_minority = homo_majority + shift, lumo_majority - shift
    return {
        "_id": row.name, "descriptor_id": "d", "energy": row.energy, "formation_energy": row.formation_energy,
        "formation_energy_per_site": row.formation_energy / len(row.defects), "total_mag": float(i % 2),
        "homo_lumo_gap_majority": lumo_majority - homo_majority, "homo_majority": homo_majority,
        "lumo_majority": lumo_majority, "homo_lumo_gap_minority": lumo_minority - homo_minority,
        "homo_minority": homo_minority, "lumo_minority": lumo_minority,
        "homo_lumo_gap_min": min(lumo_majority - homo_majority, lumo_minority - homo_minority),
        "homo_max": max(homo_majority, homo_minority), "lumo_min": min(lumo_majority, lumo_minority),
    }  # fmt: skip


def _cif_of(species: tuple[str, ...], fractional: np.ndarray, lattice: np.ndarray) -> str:
    lengths = np.linalg.norm(lattice, axis=1)
    cosines = [lattice[i] @ lattice[j] / lengths[i] / lengths[j] for i, j in ((1, 2), (0, 2), (0, 1))]
    angles = np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0)))
    lines = ["data_made", "_symmetry_space_group_name_H-M 'P 1'"]
    lines += [f"_cell_length_{axis} {length:.8f}" for axis, length in zip("abc", lengths, strict=True)]
    lines += [f"_cell_angle_{n} {angle:.8f}" for n, angle in zip(("alpha", "beta", "gamma"), angles, strict=True)]
    lines += ["loop_", " _atom_site_type_symbol", " _atom_site_label"]
    lines += [f" _atom_site_fract_{axis}" for axis in "xyz"]
    lines += [
        f"  {symbol} {symbol}{i} {x:.8f} {y:.8f} {z:.8f}"
        for i, (symbol, (x, y, z)) in enumerate(zip(species, np.mod(fractional, 1.0), strict=True))
    ]
    return "\n".join(lines) + "\n"
