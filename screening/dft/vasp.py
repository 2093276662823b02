"""VASP runs as results: ``vasprun.xml``, plain or gzipped.

Taken are the energy for zero smearing, the final structure, HOMO, LUMO and gaps per spin channel over all k-points,
and the magnetisation of a spin-polarised run. A run that is cut short is an error; one that did not converge, or
whose cell is charged, is read, but with a problem instead of an energy.

What makes energies comparable is read as well: functional, cutoff, spin, spin-orbit coupling, k-points, and for each
element its pseudopotential and Hubbard U. The level of theory is made of the former; the latter are kept in its
settings by element, since runs of one level need not hold the same elements (`agree`).
"""

from __future__ import annotations

import gzip
import math
import re
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import replace
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

_SAME_CHARGE = 1e-3  # electrons
_BULK_SYMPREC = 0.02  # angstrom; a relaxed bulk supercell keeps its translations far better, a defect breaks them
_PER_ELEMENT = ("pseudopotentials", "hubbard_u")
_TYPE_ROW = re.compile(r"<rc><c>\s*(\d+)\s*</c><c>[^<]*</c><c>[^<]*</c><c>\s*([\d.]+)\s*</c><c>[^<]*</c></rc>")


def read_vasprun(path: Path) -> FoundResult:
    """Read a finished run.

    Raises:
        FileFormatError: the file is cut short, or is no output of a total-energy calculation.
    """
    from pymatgen.io.vasp.outputs import Vasprun

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pymatgen warns of what is checked here: convergence, energies, POTCARs
            run = Vasprun(path, parse_dos=False, parse_potcar_file=False)
            energy, problem = _energy_of(run, path)
            found = run.final_structure
    except (SyntaxError, EOFError, zlib.error, gzip.BadGzipFile) as error:  # XML parsers raise SyntaxError
        raise FileFormatError(f"{path} is cut short or no vasprun.xml ({error}); fetch it again") from error
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{path} is no complete total-energy calculation ({type(error).__name__}: {error}); run it to its end"
        ) from error
    structure = Structure(
        path.name,
        np.array(found.lattice.matrix, np.float64),
        tuple(str(site.specie.symbol) for site in found),
        np.array(found.frac_coords, np.float64),
    )
    level = _level_of(run)
    if problem is not None:
        return FoundResult(path.name, math.nan, structure, level=level, problem=problem)
    return FoundResult(path.name, energy, structure, properties=_properties(run), level=level)


def agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> int | None:
    """How many elements the settings of two levels share; None if they disagree on anything."""
    if _shared(one) != _shared(other):
        return None
    for kind in _PER_ELEMENT:
        both = one[kind].keys() & other[kind].keys()
        if any(one[kind][element] != other[kind][element] for element in both):
            return None
    return len(one["pseudopotentials"].keys() & other["pseudopotentials"].keys())


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of two levels that agree, with the elements of both."""
    return {**one, **{kind: {**one[kind], **other[kind]} for kind in _PER_ELEMENT}}


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
        "pseudopotentials": dict(zip(symbols, run.potcar_symbols, strict=True)),
        "hubbard_u": {symbol: float(u.get(symbol, 0.0)) for symbol in symbols},
    }
    functional = str(run.run_type)
    return LevelOfTheory(f"VASP {functional} {settings['cutoff']:g} eV", "VASP", functional, settings)


def _k_points(run: Vasprun) -> str:
    """The generated mesh, or the list of points; meshes of different supercells are different levels."""
    points = run.kpoints
    shift = " ".join(f"{x:g}" for x in points.kpts_shift)
    listed = "; ".join(" ".join(f"{x:g}" for x in point) for point in points.kpts)
    return f"{points.style.name.lower()} {listed} shift {shift}"


def _shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in _PER_ELEMENT}


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
