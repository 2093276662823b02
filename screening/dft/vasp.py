"""VASP runs as results: ``vasprun.xml``, plain or gzipped.

Taken are the energy for zero smearing, the final structure, HOMO, LUMO and gaps per spin channel over all k-points,
and the magnetisation of a spin-polarised run. A run that did not converge, whose cell is charged, or that was cut
short is read, but with a problem instead of an energy: a file says what is calculated, and how, before its first
ionic step. One that is cut short before that is an error.

What makes energies comparable is read as well: functional, cutoff, spin, spin-orbit coupling, k-points, precision of
the grids, projection, smearing, and for each element its pseudopotential and Hubbard U. The level of theory is made of
the former; the latter are kept in its settings by element, since runs of one level need not hold the same elements
(`agree`).
"""

from __future__ import annotations

import gzip
import math
import re
import tempfile
import warnings
import zlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import spglib
from numpy.typing import NDArray

from screening.defects.defect_types import atomic_number, symbol_of
from screening.defects.host import Host
from screening.defects.matching import Structure
from screening.dft.result_files import FoundResult
from screening.dft.results import LevelOfTheory
from screening.errors import FileFormatError

if TYPE_CHECKING:
    from pymatgen.io.vasp.outputs import Vasprun

CUT_SHORT = "it is cut short"  # begins the problem of such a run

_SAME_CHARGE = 1e-3  # electrons
_BULK_SYMPREC = 0.02  # angstrom; a relaxed bulk supercell keeps its translations far better, a defect breaks them
_PER_ELEMENT = ("pseudopotentials", "hubbard_u")
_PRECISIONS = ("normal", "accurate", "single", "singlen", "low", "medium", "high")
_LATER = ("precision", "real_space_projection", "smearing")
"""Settings that levels stored by earlier versions do not have; such a level agrees with any, and learns them."""
_TYPE_ROW = re.compile(r"<rc><c>\s*(\d+)\s*</c><c>[^<]*</c><c>[^<]*</c><c>\s*([\d.]+)\s*</c><c>[^<]*</c></rc>")


def read_vasprun(path: Path) -> FoundResult:
    """Read a run; one that cannot be used, or was cut short, with the problem instead of an energy.

    Raises:
        FileFormatError: the file ends before its first ionic step, or is no output of a total-energy calculation.
    """
    from pymatgen.io.vasp.outputs import Vasprun

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pymatgen warns of what is checked here: convergence, energies, POTCARs
            run = Vasprun(path, parse_dos=False, parse_potcar_file=False)
            energy, problem = _energy_of(run, path)
            structure, level = _structure_of(run, path), _level_of(run)
            if problem is not None:
                return FoundResult(path.name, math.nan, structure, level=level, problem=problem)
            return FoundResult(path.name, energy, structure, properties=_properties(run), level=level)
    except (SyntaxError, EOFError, zlib.error, gzip.BadGzipFile) as error:  # XML parsers raise SyntaxError
        partial = read_partial(path)
        if partial is None:
            raise FileFormatError(f"{path} is cut short or no vasprun.xml ({error}); fetch it again") from error
        return partial
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{path} is no complete total-energy calculation ({type(error).__name__}: {error}); run it to its end"
        ) from error


def read_partial(path: Path) -> FoundResult | None:
    """What a run that was cut short says of itself: initial structure, level, and how far it came as its problem.

    None where the file ends before its first ionic step, or is none of VASP.
    """
    content = _read_what_is_there(path)
    header, began, steps = content.partition(b"<calculation>")
    if not began:
        return None
    n_steps = steps.count(b"</calculation>")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = Path(folder) / "vasprun.xml"
        whole.write_bytes(header + b"</modeling>\n")
        try:
            run = _header_type()(whole, parse_dos=False, parse_potcar_file=False)
            structure, level = _structure_of(run, path), _level_of(run)
        except (SyntaxError, KeyError, IndexError, AttributeError, TypeError, ValueError):  # no header of VASP
            return None
    problem = (
        f"{CUT_SHORT} after {n_steps} ionic step{'' if n_steps == 1 else 's'}; fetch it again or run it to its end"
    )
    return FoundResult(path.name, math.nan, structure, level=level, problem=problem)


def is_complete(path: Path) -> bool:
    """Whether a run has written its file to the end."""
    if path.suffix == ".gz":
        end = _read_what_is_there(path)
    else:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 200))
            end = stream.read()
    return end.rstrip().endswith(b"</modeling>")


def differences(run: LevelOfTheory, reference: LevelOfTheory) -> list[str]:
    """What two levels disagree on, in words: `cutoff 400 against 520`; empty where energies are comparable."""
    found = []
    if run.functional != reference.functional:
        found.append(f"functional {run.functional} against {reference.functional}")
    ours, theirs = dict(run.settings), dict(reference.settings)
    unknown = {key for key in _LATER if key not in ours or key not in theirs}
    for key in sorted((ours.keys() | theirs.keys()) - set(_PER_ELEMENT) - unknown):
        if ours.get(key) != theirs.get(key):
            found.append(f"{key} {_shown(ours.get(key))} against {_shown(theirs.get(key))}")
    for kind in _PER_ELEMENT:
        one, other = (cast("Mapping[str, Any]", settings.get(kind, {})) for settings in (ours, theirs))
        for element in sorted(one.keys() & other.keys()):
            if one[element] != other[element]:
                found.append(f"{kind} of {element} {_shown(one[element])} against {_shown(other[element])}")
    return found


def agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> int | None:
    """How many elements the settings of two levels share; None if they disagree on anything."""
    unknown = {key for key in _LATER if key not in one or key not in other}
    if _shared(one, unknown) != _shared(other, unknown):
        return None
    for kind in _PER_ELEMENT:
        both = one[kind].keys() & other[kind].keys()
        if any(one[kind][element] != other[kind][element] for element in both):
            return None
    return len(one["pseudopotentials"].keys() & other["pseudopotentials"].keys())


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of two levels that agree, with the elements of both."""
    later = {key: other[key] for key in _LATER if key in other}
    return {**one, **later, **{kind: {**one[kind], **other[kind]} for kind in _PER_ELEMENT}}


def host_of_bulk(structure: Structure, name: str | None = None) -> Host | None:
    """The host that a pristine supercell is made of; None if the structure is no supercell of a smaller cell."""
    numbers = [atomic_number(symbol) for symbol in structure.species]
    try:
        cell = (structure.lattice.tolist(), structure.positions.tolist(), numbers)
        found = spglib.find_primitive(cell, symprec=_BULK_SYMPREC)
    except spglib.SpglibError:
        return None
    if found is None or len(found[2]) == len(numbers):
        return None
    lattice, positions = (np.array(values, np.float64) for values in found[:2])
    species = tuple(symbol_of(number) for number in found[2])
    host = Host.from_cell(name or "bulk", lattice, species, positions, source="primitive cell of a bulk run of VASP")
    return host if name else replace(host, name=host.formula)


@lru_cache
def _header_type() -> type[Vasprun]:
    """A run that is parsed without a step; pymatgen asks each whether it has converged."""
    from pymatgen.io.vasp.outputs import Vasprun

    return type("_Header", (Vasprun,), {"converged": True})


def _read_what_is_there(path: Path) -> bytes:
    """The content of a file, unpacked; of an archive that is cut short what can be unpacked."""
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return zlib.decompressobj(wbits=31).decompress(content)  # 31: with the head of gzip
    except zlib.error:
        return b""


def _structure_of(run: Vasprun, path: Path) -> Structure:
    """The last structure of a run."""
    found = run.final_structure
    return Structure(
        path.name,
        np.array(found.lattice.matrix, np.float64),
        tuple(str(site.specie.symbol) for site in found),
        np.array(found.frac_coords, np.float64),
    )


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "not given" if value is None else str(value)


def _energy_of(run: Vasprun, path: Path) -> tuple[float, str | None]:
    """Energy (eV), and why the run cannot be used."""
    energy = float(run.final_energy)
    if not run.converged_electronic:
        return energy, f"its self-consistency did not converge in {run.parameters['NELM']} steps"
    if not run.converged_ionic:
        return energy, f"its relaxation did not converge in {run.parameters['NSW']} steps"
    charge = _valence(path) - float(run.parameters["NELECT"])
    if abs(charge) > _SAME_CHARGE:
        return energy, f"its cell has a charge of {charge:+g}; only neutral defects are taken in"
    if not math.isfinite(energy):
        return energy, "it has no total energy"
    return energy, None


def _valence(path: Path) -> float:
    """Number of electrons of the neutral cell, from the valences of the pseudopotentials."""
    lines: list[str] = []
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as stream:
        for line in stream:
            lines.append(line)
            if "</atominfo>" in line:
                break
    types = _TYPE_ROW.findall("".join(lines).partition('name="atomtypes"')[2])
    if not types:
        raise ValueError("no valences of the pseudopotentials")
    return sum(int(count) * float(valence) for count, valence in types)


def _level_of(run: Vasprun) -> LevelOfTheory:
    parameters = run.parameters
    symbols = [title.split()[1].split("_")[0] for title in run.potcar_symbols]
    u = run.hubbards if run.is_hubbard else {}
    settings: dict[str, Any] = {
        "cutoff": float(parameters["ENMAX"]),
        "spin_polarised": int(parameters["ISPIN"]) == 2,
        "spin_orbit": bool(parameters.get("LSORBIT", False)),
        "exact_exchange": [float(parameters.get(key) or 0.0) for key in ("AEXX", "HFSCREEN")],
        "dispersion": int(run.incar.get("IVDW", 0)),
        "aspherical": bool(run.incar.get("LASPH", False)),
        "k_points": _k_points(run),
        "precision": _precision(str(parameters.get("PREC", "Normal"))),
        "real_space_projection": bool(parameters.get("LREAL", False)),
        "smearing": _smearing(parameters),
        "pseudopotentials": dict(zip(symbols, run.potcar_symbols, strict=True)),
        "hubbard_u": {symbol: float(u.get(symbol, 0.0)) for symbol in symbols},
    }
    functional = str(run.run_type)
    return LevelOfTheory(f"VASP {functional} {settings['cutoff']:g} eV", "VASP", functional, settings)


def _precision(text: str) -> str:
    """PREC in full: VASP keeps its first six letters."""
    short = text.strip().lower()
    return next((name for name in _PRECISIONS if short and name.startswith(short)), short)


def _smearing(parameters: Mapping[str, Any]) -> list[float]:
    """ISMEAR and SIGMA, eV; the tetrahedron methods have no width."""
    kind = int(parameters.get("ISMEAR", 1))
    return [kind, 0.0 if kind <= -4 else float(parameters.get("SIGMA", 0.2))]


def _k_points(run: Vasprun) -> str:
    """The generated mesh, or the list of points; meshes of different supercells are different levels."""
    points = run.kpoints
    shift = " ".join(f"{x:g}" for x in points.kpts_shift)
    listed = "; ".join(" ".join(f"{x:g}" for x in point) for point in points.kpts)
    return f"{points.style.name.lower()} {listed} shift {shift}"


def _shared(settings: Mapping[str, Any], without: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in _PER_ELEMENT and key not in without}


def _properties(run: Vasprun) -> dict[str, float]:
    """HOMO and LUMO of both channels over all k-points (a metal has a gap of 0), and the magnetisation."""
    weights = np.array(run.actual_kpoints_weights, np.float64)
    channels = [cast("NDArray[np.float64]", bands) for bands in (run.eigenvalues or {}).values()]  # (n_k, n_bands, 2)
    electrons = [float((bands[..., 1].sum(axis=1) * weights).sum() / weights.sum()) for bands in channels]
    order = sorted(range(len(channels)), key=lambda s: -electrons[s])
    levels = [_frontier(channels[s]) for s in order]
    gaps = [max(lumo - homo, 0.0) for homo, lumo in levels]
    found = {
        "homo_lumo_gap_min": min(gaps),
        "homo_lumo_gap_majority": gaps[0],
        "homo_lumo_gap_minority": gaps[-1],
        "homo": max(homo for homo, _ in levels),
        "lumo": min(lumo for _, lumo in levels),
    }
    if run.is_spin:
        found["total_mag"] = electrons[order[0]] - electrons[order[1]]
    return found


def _frontier(bands: NDArray[np.float64]) -> tuple[float, float]:
    """Highest level that is more than half full, and lowest one that is not; eV."""
    occupied = bands[..., 1] > 0.5
    if not occupied.any() or occupied.all():
        raise ValueError("all bands are full, or none is: the run has no empty band")
    return float(bands[..., 0][occupied].max()), float(bands[..., 0][~occupied].min())
