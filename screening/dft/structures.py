"""Structure files in and out: CIF, POSCAR, extxyz, pymatgen JSON, alone, compressed or in an archive.

A format is recognised by the file's name, and where that says nothing by its content. CIF is read by gemmi and
JSON as it is; ASE, which takes a while to import, is imported by the readers and writers that need it. Every
reader takes a name and bytes, so that the files of an archive can be parsed in a pool of processes.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import gemmi
import numpy as np
from numpy.typing import NDArray

from screening.defects.defect_types import Configuration, atomic_number
from screening.defects.host import Host, Supercell
from screening.defects.matching import Structure
from screening.dft.archives import DEFAULT_LIMITS, ArchiveLimits, archive_members, is_archive
from screening.errors import FileFormatError, InputError

if TYPE_CHECKING:
    from ase import Atoms

__all__ = [
    "ArchiveLimits",
    "archive_members",
    "grouped_structure",
    "is_archive",
    "parse_cif",
    "parse_structures",
    "read_host",
    "read_structures",
    "structure_of_atoms",
    "write_structure",
]

_Entry = TypeVar("_Entry")

_READABLE = "CIF (.cif), POSCAR, CONTCAR, .vasp, extxyz (.xyz, .extxyz), pymatgen JSON (.json)"
_FULL = 1e-3  # an occupancy this close to 1 is 1
_SAME_ATOM = 0.05  # angstrom; symmetry copies nearer than this are one atom on a special position
_VACUUM = 20.0  # angstrom; given to a layer whose extxyz has no third lattice vector


def read_structures(path: Path) -> Iterator[Structure]:
    """Every structure of a file or of the files of an archive (zip, tar, tar.gz), in order.

    A structure is named by its file without suffix, followed by `:index` where the file holds several.

    Raises:
        FileFormatError: the file, or one in the archive, is not there or cannot be read as a structure.
        UnsafeArchiveError: as `archive_members` says.
    """
    if not path.is_file():
        raise FileFormatError(f"{path} is not a file; expected {_READABLE}, or a zip or tar.gz of such files")
    if not is_archive(path):
        yield from parse_structures(path.name, path.read_bytes())
        return
    for name, content in archive_members(path):
        yield from parse_structures(name, content)


def parse_structures(name: str, content: bytes) -> list[Structure]:
    """The structures of one file, given its name and content.

    Raises:
        FileFormatError: the content is not what its name says, or of no known format.
    """
    label = PurePosixPath(name)
    if content.startswith(b"\x1f\x8b"):
        return parse_structures(str(label.with_suffix("")) if label.suffix == ".gz" else name, _gunzip(name, content))
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{name} is not a text file ({error.reason}); expected {_READABLE}") from error
    reader = _reader_by_name(label) or _reader_by_content(text)
    if reader is None:
        raise FileFormatError(f"{name} begins with {text[:40]!r}, of no known format; expected {_READABLE}")
    return reader(text, label.stem)


def parse_cif(text: str, name: str) -> Structure:
    """The structure of a CIF, its symmetry copies included.

    Raises:
        FileFormatError: no CIF of one crystal, sites that are partly occupied, or symmetry that is not known.
    """
    try:
        blocks = [block for block in gemmi.cif.read_string(text) if len(block.find_values("_atom_site_fract_x"))]
    except (ValueError, RuntimeError) as error:
        raise FileFormatError(f"CIF {name} cannot be read: {error}; write it again") from error
    if len(blocks) != 1:
        raise FileFormatError(f"CIF {name} has {len(blocks)} blocks with fractional coordinates; expected one")
    crystal = gemmi.make_small_structure_from_block(blocks[0])
    if not crystal.cell.is_crystal():
        raise FileFormatError(f"CIF {name} has no unit cell; expected _cell_length_a and the other five")
    species = tuple(site.element.name for site in crystal.sites)
    positions = np.array([site.fract.tolist() for site in crystal.sites])
    for site in crystal.sites:
        if not abs(site.occ - 1.0) <= _FULL:
            raise FileFormatError(
                f"CIF {name}: site {site.label} has occupancy {site.occ}; expected 1: order the structure"
            )
    if "X" in species or not np.isfinite(positions).all():
        odd = crystal.sites[
            species.index("X") if "X" in species else int(np.argmin(np.isfinite(positions).all(axis=1)))
        ]
        raise FileFormatError(f"CIF {name}: site {odd.label} has no known element or a coordinate that is no number")
    lattice = np.array(crystal.cell.orth.mat.tolist()).T
    operations = _operations(crystal, name)
    if len(operations) > 1:
        species, positions = _expand(species, positions, operations, lattice)
    return Structure(name, lattice, species, positions)


def read_host(path: Path, name: str | None = None) -> Host:
    """A host from the file of its unit cell, named by its formula unless a name is given.

    Raises:
        InputError: not a file of one structure, or none that can be a host.
    """
    structures = list(read_structures(path))
    if len(structures) != 1:
        raise FileFormatError(f"{path} holds {len(structures)} structures; expected one, the unit cell of the host")
    cell = structures[0]
    host = Host.from_cell(
        name or cell.name, cell.lattice, cell.species, cell.positions, source=f"file {path.name}"
    )  # fmt: skip
    return host if name else Host(host.formula, host.lattice, host.species, host.positions, host.is_layer, host.source)


def write_structure(path: Path, supercell: Supercell, configuration: Configuration) -> None:
    """Write the unrelaxed structure of a configuration, atoms of one species together, in a cell as high as the host's.

    The name says the format: `.cif`, `.xyz` or `.extxyz`, `.vasp` or a name that begins with POSCAR.

    Raises:
        FileFormatError: the name says no format.
    """
    title = f"{supercell.host.name} {supercell.label} {configuration.composition}"
    species, positions = grouped_structure(supercell, configuration)
    if path.suffix == ".cif":
        path.write_text(_cif_text(title, supercell.lattice, species, positions))
        return
    if path.suffix not in (".xyz", ".extxyz") and not _is_poscar(PurePosixPath(path.name)):
        raise FileFormatError(f"{path.name}: the name says no format; end it in .cif, .xyz, .extxyz or .vasp")
    import ase
    from ase.io.extxyz import write_xyz
    from ase.io.vasp import write_vasp

    atoms = ase.Atoms(species, positions=positions, cell=supercell.lattice, pbc=supercell.host.periodic)
    with path.open("w") as stream:
        if _is_poscar(PurePosixPath(path.name)):
            write_vasp(stream, atoms, direct=True)
        else:
            write_xyz(stream, atoms)


def grouped_structure(
    supercell: Supercell, configuration: Configuration
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Species and ideal positions (n_atoms, 3), angstrom, of a configuration, atoms of one species together.

    So VASP's POTCAR wants them; the species come in the order of their first sites.
    """
    species, positions = supercell.structure(configuration)
    first = {symbol: i for i, symbol in enumerate(dict.fromkeys(species))}
    order = sorted(range(len(species)), key=lambda i: first[species[i]])
    return tuple(species[i] for i in order), positions[order]


def _reader_by_name(label: PurePosixPath) -> Callable[[str, str], list[Structure]] | None:
    if _is_poscar(label):
        return _parse_poscar
    readers = {".cif": _parse_cif_file, ".xyz": _parse_extxyz, ".extxyz": _parse_extxyz, ".json": _parse_json}
    return readers.get(label.suffix.lower())


def _reader_by_content(text: str) -> Callable[[str, str], list[Structure]] | None:
    lines = text.split("\n", 5)
    if "_atom_site_fract_x" in text:
        return _parse_cif_file
    if text.lstrip()[:1] in ("{", "["):
        return _parse_json
    if len(lines) > 2 and lines[0].strip().isdigit() and "Lattice=" in lines[1]:
        return _parse_extxyz
    if len(lines) > 5 and all(re.fullmatch(r"\s*(-?[\d.eE+-]+\s+){2}-?[\d.eE+-]+\s*", line) for line in lines[2:5]):
        return _parse_poscar
    return None


def _is_poscar(label: PurePosixPath) -> bool:
    return label.suffix.lower() in (".vasp", ".poscar", ".contcar") or label.name.startswith(("POSCAR", "CONTCAR"))


def _parse_cif_file(text: str, name: str) -> list[Structure]:
    return [parse_cif(text, name)]


def _parse_poscar(text: str, name: str) -> list[Structure]:
    from ase.io import ParseError
    from ase.io.vasp import read_vasp

    try:
        atoms = read_vasp(io.StringIO(text))
    except (ParseError, ValueError, IndexError, KeyError, RuntimeError) as error:
        raise FileFormatError(
            f"POSCAR {name} cannot be read ({type(error).__name__}: {error}); "
            "expected VASP 5 format with a line of species"
        ) from error
    return [structure_of_atoms(atoms, name)]


def _parse_extxyz(text: str, name: str) -> list[Structure]:
    from ase.io import ParseError
    from ase.io.extxyz import XYZError, read_xyz

    try:
        frames = list(read_xyz(io.StringIO(text), index=slice(None)))
    except (ParseError, XYZError, ValueError, IndexError, KeyError) as error:
        raise FileFormatError(
            f"extxyz {name} cannot be read ({type(error).__name__}: {error}); write it again"
        ) from error
    if not frames:
        raise FileFormatError(f"extxyz {name} holds no frame; expected at least one structure")
    return [structure_of_atoms(atoms, frame_name) for frame_name, atoms in _named(name, frames)]


def _parse_json(text: str, name: str) -> list[Structure]:
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise FileFormatError(f"JSON {name} cannot be read: {error}; write it again") from error
    listed = parsed if isinstance(parsed, list) else [parsed]
    if not listed:
        raise FileFormatError(f"JSON {name} is an empty list; expected pymatgen structures")
    return [_from_pymatgen(entry, entry_name) for entry_name, entry in _named(name, listed)]


def _named(name: str, entries: list[_Entry]) -> list[tuple[str, _Entry]]:
    return [(f"{name}:{i}" if len(entries) > 1 else name, entry) for i, entry in enumerate(entries)]


def structure_of_atoms(atoms: Atoms, name: str) -> Structure:
    """A structure from ASE's; a layer without a third lattice vector is given vacuum."""
    lattice = np.array(atoms.cell[:], np.float64)
    positions = np.array(atoms.positions, np.float64)
    missing = np.flatnonzero(~lattice.any(axis=1))
    if len(missing) > 1 or len(positions) == 0:
        raise FileFormatError(
            f"structure {name} has {len(positions)} atoms and {3 - len(missing)} lattice vectors; expected atoms in a "
            "periodic cell (Lattice=... in extxyz)"
        )
    if len(missing) == 1:
        normal = np.cross(lattice[missing[0] - 2], lattice[missing[0] - 1])
        normal /= np.linalg.norm(normal)
        lattice[missing[0]] = normal * (np.ptp(positions @ normal) + _VACUUM)
    if abs(np.linalg.det(lattice)) < 1e-3:
        raise FileFormatError(f"structure {name} has a flat cell; expected three independent lattice vectors")
    return Structure(name, lattice, tuple(map(str, atoms.symbols)), positions @ np.linalg.inv(lattice))


def _from_pymatgen(entry: Any, name: str) -> Structure:
    """A structure from the dictionary that pymatgen's Structure.as_dict gives."""
    try:
        lattice = np.array(entry["lattice"]["matrix"], np.float64)
        positions = np.array([site["abc"] for site in entry["sites"]], np.float64).reshape(-1, 3)
        occupants = [
            [(str(kind["element"]), float(kind["occu"])) for kind in site["species"]] for site in entry["sites"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"JSON {name} is no pymatgen structure ({type(error).__name__}: {error}); "
            "expected what Structure.as_dict() gives, or a list of it"
        ) from error
    for i, kinds in enumerate(occupants):
        if len(kinds) != 1 or abs(kinds[0][1] - 1.0) > _FULL:
            raise FileFormatError(
                f"JSON {name}: site {i} is partly occupied ({kinds}); expected 1: order the structure"
            )
    species = tuple(kinds[0][0] for kinds in occupants)
    try:
        for symbol in set(species):
            atomic_number(symbol)
    except InputError as error:
        raise FileFormatError(f"JSON {name}: {error}") from error
    return Structure(name, lattice, species, positions)


def _operations(crystal: gemmi.SmallStructure, name: str) -> list[gemmi.Op]:
    """Symmetry operations of a CIF: those it lists, else those of its space group, else the identity."""
    if crystal.symops:
        return [gemmi.Op(triplet) for triplet in crystal.symops]
    group = crystal.spacegroup
    if group is None and not crystal.spacegroup_hm.strip(" ?."):
        group = gemmi.find_spacegroup_by_number(crystal.spacegroup_number)
    if group is not None:
        return list(group.operations())
    if crystal.spacegroup_hm.strip(" ?.") or crystal.spacegroup_number:
        raise FileFormatError(
            f"CIF {name} names the space group {crystal.spacegroup_hm or crystal.spacegroup_number}, which is not "
            "known; expected its operations (_space_group_symop_operation_xyz)"
        )
    return [gemmi.Op("x,y,z")]


def _expand(
    species: tuple[str, ...], positions: NDArray[np.float64], operations: list[gemmi.Op], lattice: NDArray[np.float64]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Symmetry copies of all sites; copies of one site that fall together are one atom."""
    expanded: list[tuple[str, NDArray[np.float64]]] = []
    for symbol, position in zip(species, positions, strict=True):
        copies: list[NDArray[np.float64]] = []
        for operation in operations:
            image = np.mod(operation.apply_to_xyz(position.tolist()), 1.0)
            offsets = image - np.array(copies).reshape(-1, 3)
            distances = np.linalg.norm((offsets - np.rint(offsets)) @ lattice, axis=1)
            if not (distances < _SAME_ATOM).any():
                copies.append(image)
        expanded.extend((symbol, copy) for copy in copies)
    return tuple(symbol for symbol, _ in expanded), np.array([copy for _, copy in expanded])


def _gunzip(name: str, content: bytes) -> bytes:
    limit = DEFAULT_LIMITS.member_bytes
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            unzipped = stream.read(limit + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise FileFormatError(f"{name} is truncated or damaged ({error}); fetch it again") from error
    if len(unzipped) > limit or unzipped.startswith(b"\x1f\x8b"):
        raise FileFormatError(
            f"{name} holds more than {limit} bytes or is compressed twice; expected one structure file"
        )
    return unzipped


def _cif_text(
    title: str, lattice: NDArray[np.float64], species: tuple[str, ...], positions: NDArray[np.float64]
) -> str:  # fmt: skip
    lengths = np.linalg.norm(lattice, axis=1)
    cosines = [lattice[i] @ lattice[j] / lengths[i] / lengths[j] for i, j in ((1, 2), (0, 2), (0, 1))]
    crystal = gemmi.SmallStructure()
    crystal.name = re.sub(r"[^\w.+*-]", "_", title)
    crystal.cell = gemmi.UnitCell(*lengths.tolist(), *np.degrees(np.arccos(cosines)).tolist())
    crystal.spacegroup_hm = "P 1"
    for i, (symbol, position) in enumerate(zip(species, positions @ np.linalg.inv(lattice), strict=True)):
        site = gemmi.SmallStructure.Site()
        site.label, site.type_symbol, site.element, site.occ = f"{symbol}{i}", symbol, gemmi.Element(symbol), 1.0
        site.fract = gemmi.Fractional(*position.tolist())
        crystal.add_site(site)
    block = crystal.make_cif_block()
    block.init_loop("_symmetry_equiv_pos_", ["as_xyz"]).add_row(["'x, y, z'"])
    return str(block.as_string())
