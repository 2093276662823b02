"""VASP inputs of a configuration: POSCAR, INCAR, KPOINTS and the names of its pseudopotentials.

The inputs are those of a level of theory, so that the run's result is at that level: what `screening.dft.vasp` reads
from a run (functional, cutoff, spin, spin-orbit coupling, exact exchange, dispersion, k-points, precision, projection,
smearing, pseudopotentials, Hubbard U) is written here from the level's settings. Everything that a level leaves open
is that of pymatgen's MPRelaxSet (https://docs.materialsproject.org), but with the cell kept as it is, Gaussian
smearing and convergence that does not depend on the number of atoms, since a defect in a supercell is relaxed in the
cell of its host.

POTCARs are licensed, so only their names are written: `POTCAR.spec` has one symbol a line, in the order of POSCAR.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.dft.results import LevelOfTheory
from screening.dft.structures import grouped_structure
from screening.errors import FileFormatError, InputError

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure as PymatgenStructure

_GGA = {"PBE": "PE", "PBEsol": "PS", "revPBE": "RE", "revPBE+Padé": "RP", "AM05": "AM", "GGA": None, "LDA": None}
_METAGGA = {
    "SCAN": "SCAN", "R2SCAN": "R2SCAN", "RSCAN": "RSCAN", "TPSS": "TPSS", "revTPSS": "RTPSS", "M06-L": "M06L",
}  # fmt: skip
_HYBRID = ("HSE06", "HSE03", "PBEO or other Hybrid Functional")  # PBEO: pymatgen's spelling of PBE0
_PER_ELEMENT = ("pseudopotentials", "hubbard_u")
_NEEDED = ("cutoff", "spin_polarised", "k_points", "pseudopotentials")
_SETTINGS = (
    *_NEEDED, "spin_orbit", "exact_exchange", "dispersion", "aspherical", "precision", "real_space_projection",
    "smearing", "hubbard_u", "k_point_weights", "incar",
)  # fmt: skip
_DECIDED = {
    "ENCUT", "ISPIN", "LSORBIT", "LNONCOLLINEAR", "LHFCALC", "AEXX", "HFSCREEN", "IVDW", "LASPH", "GGA", "METAGGA",
    "LDAU", "LDAUU", "LDAUJ", "LDAUL", "LDAUTYPE", "KSPACING", "KGAMMA", "NELECT", "PREC", "LREAL",
}  # fmt: skip
_RELAXATION: Mapping[str, Any] = {
    "ISIF": 2, "ISMEAR": 0, "SIGMA": 0.05, "LREAL": "Auto", "LWAVE": False,
    "EDIFF": 1e-5, "EDIFFG": -0.02,  # eV and eV/A: MPRelaxSet's grow with the cell, to 10 meV for 192 atoms
}  # fmt: skip


@dataclass(frozen=True)
class InputFiles:
    """What was written for one calculation.

    Attributes:
        sha256: digest by file name: POSCAR, INCAR, KPOINTS, POTCAR.spec.
        pseudopotentials: symbols of the POTCARs (`Ga_d`) in the order of POSCAR.
    """

    folder: Path
    sha256: Mapping[str, str]
    pseudopotentials: tuple[str, ...]


def read_settings(path: Path) -> dict[str, Any]:
    """Settings that a level of theory leaves open, from a TOML or JSON file, named as those of a level.

    Raises:
        FileFormatError: the file is not there or cannot be read.
        InputError: a name is none of a setting.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} cannot be read ({error}); expected a file of VASP settings") from error
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise FileFormatError(f"{path} is no {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    if not isinstance(found, dict):
        raise FileFormatError(f"{path} holds a {type(found).__name__}; expected settings by name")
    _check_names(found, str(path))
    return found


def input_settings(level: LevelOfTheory, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a level, with what it leaves open taken from `extra`.

    Args:
        extra: settings named as those of a level; `incar` (further tags by name) and `k_point_weights` besides.

    Raises:
        InputError: the level is of another code, a needed setting is given by neither, or they differ.
    """
    if level.code != "VASP":
        raise InputError(
            f'level "{level.name}" is of code {level.code}; VASP inputs are made for levels of code VASP only'
        )
    given = dict(extra or {})
    _check_names(given, "the settings")
    settings: dict[str, Any] = {key: value for key, value in level.settings.items() if key in _SETTINGS}
    for key, value in given.items():
        if key in _PER_ELEMENT and isinstance(value, Mapping):
            settings[key] = _joined(level, key, settings.get(key, {}), value)
        elif settings.setdefault(key, value) != value:
            raise InputError(
                f'the settings have {key} {value!r}, level "{level.name}" has {settings[key]!r}; leave it out, or the '
                "results would be at another level"
            )
    missing = [key for key in _NEEDED if key not in settings]
    if missing:
        raise InputError(
            f'level "{level.name}" does not say its {", ".join(missing)}, so VASP inputs cannot be made from it; give '
            'them in a file with --settings: cutoff = 520.0, spin_polarised = true, k_points = "gamma 1 1 1" and, '
            'below [pseudopotentials], Mo = "Mo_pv"'
        )
    return settings


def write_inputs(
    folder: Path, supercell: Supercell, configuration: Configuration, level: LevelOfTheory, *,
    extra: Mapping[str, Any] | None = None,
) -> InputFiles:  # fmt: skip
    """Write the inputs of a configuration's unrelaxed structure into a folder, which is made; files there are replaced.

    Args:
        extra: what the level leaves open, as `input_settings` says.

    Raises:
        InputError: as `input_settings`, or the settings cannot be written as inputs of VASP.
    """
    from pymatgen.core.lattice import Lattice
    from pymatgen.core.structure import Structure
    from pymatgen.io.vasp.inputs import Poscar

    settings = input_settings(level, extra)
    species, positions = grouped_structure(supercell, configuration)
    structure = Structure(Lattice(supercell.lattice), species, positions, coords_are_cartesian=True)
    elements = tuple(dict.fromkeys(species))
    potentials = tuple(_potential(settings, element, level) for element in elements)
    title = f"{supercell.host.name} {supercell.label} {configuration.composition}"
    contents = {
        "POSCAR": Poscar(structure, comment=title).get_str(significant_figures=12),
        "INCAR": _incar(structure, elements, level, settings),
        "KPOINTS": _k_points(str(settings["k_points"]), settings.get("k_point_weights")),
        "POTCAR.spec": "\n".join(potentials) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
    return InputFiles(
        folder, {name: hashlib.sha256(text.encode()).hexdigest() for name, text in contents.items()}, potentials
    )


def _check_names(settings: Mapping[str, Any], where: str) -> None:
    unknown = sorted(set(settings) - set(_SETTINGS))
    if unknown:
        raise InputError(f"{where}: no setting is called {', '.join(unknown)}; the settings are {', '.join(_SETTINGS)}")


def _joined(level: LevelOfTheory, key: str, known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values by element of a level and of further settings, which do not contradict it."""
    for element in known.keys() & given.keys():
        mine = str(given[element])
        if known[element] != given[element] and mine != _symbol(str(known[element])):
            raise InputError(
                f'the settings have {key} {mine} of {element}, level "{level.name}" has {known[element]}; leave it '
                "out, or the results would be at another level"
            )
    return {**given, **known}


def _symbol(title: str) -> str:
    """`Ga_d` of `PAW_PBE Ga_d 06Jul2010`, or of itself."""
    words = title.split()
    return words[1] if len(words) > 1 else title


def _potential(settings: Mapping[str, Any], element: str, level: LevelOfTheory) -> str:
    known = settings["pseudopotentials"]
    if element not in known:
        raise InputError(
            f'level "{level.name}" has no pseudopotential of {element}; it has those of {", ".join(sorted(known))}: '
            f'name it in a file with --settings, below [pseudopotentials]: {element} = "{element}"'
        )
    return _symbol(str(known[element]))


def _incar(
    structure: PymatgenStructure, elements: tuple[str, ...], level: LevelOfTheory, settings: Mapping[str, Any]
) -> str:
    from pymatgen.io.vasp.sets import BadInputSetWarning, MPRelaxSet

    further = {str(key).upper(): value for key, value in dict(settings.get("incar", {})).items()}
    decided = sorted(_DECIDED & further.keys())
    if decided:
        raise InputError(
            f"the settings have {', '.join(decided)} below incar, which the level of theory decides; leave them out, "
            "or give cutoff, spin_polarised, k_points and so on by these names"
        )
    tags = {**_RELAXATION, **_level_tags(elements, level, settings), **further}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BadInputSetWarning)  # of settings that are the level's
        incar = MPRelaxSet(structure, user_incar_settings=tags, sort_structure=False).incar
    if settings.get("spin_orbit"):
        incar["MAGMOM"] = [[0.0, 0.0, moment] for moment in incar["MAGMOM"]]
    elif not settings["spin_polarised"]:
        incar.pop("MAGMOM", None)
    return str(incar.get_str(sort_keys=True)).strip() + "\n"


def _level_tags(elements: tuple[str, ...], level: LevelOfTheory, settings: Mapping[str, Any]) -> dict[str, Any]:
    """INCAR tags that a level of theory decides; None takes a tag of the input set away."""
    exact_exchange, screening = settings.get("exact_exchange", (0.0, 0.0))
    return {
        "ENCUT": float(settings["cutoff"]),
        "ISPIN": 2 if settings["spin_polarised"] else 1,
        "LSORBIT": True if settings.get("spin_orbit") else None,
        "IVDW": int(settings.get("dispersion", 0)) or None,
        **({"LASPH": bool(settings["aspherical"])} if "aspherical" in settings else {}),
        **_numerical_tags(settings),
        **_functional_tags(level, float(exact_exchange), float(screening)),
        **_hubbard_tags(elements, settings.get("hubbard_u", {})),
    }


def _numerical_tags(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Grids, projection and smearing, as far as the level says them."""
    tags: dict[str, Any] = {}
    if "precision" in settings:
        tags["PREC"] = str(settings["precision"]).capitalize()
    if "real_space_projection" in settings:
        tags["LREAL"] = "Auto" if settings["real_space_projection"] else False
    if "smearing" in settings:
        kind, width = settings["smearing"]
        tags |= {"ISMEAR": int(kind), "SIGMA": float(width) or None}
    return tags


def _functional_tags(level: LevelOfTheory, exact_exchange: float, screening: float) -> dict[str, Any]:
    functional = level.functional.partition("+vdW-")[0].removesuffix("+U")
    if functional in _HYBRID:
        tags = {"LHFCALC": True, "AEXX": exact_exchange, "HFSCREEN": screening, "GGA": "PE", "ALGO": "All"}
        return tags if screening else tags | {"HFSCREEN": None}
    if functional in _METAGGA:
        return {"METAGGA": _METAGGA[functional], "GGA": None, "ALGO": "All"}
    if functional in _GGA:
        return {"GGA": _GGA[functional]}
    raise InputError(
        f'level "{level.name}" has the functional {level.functional}, for which no INCAR is known here; known are '
        f"{', '.join((*_GGA, *_METAGGA, *_HYBRID))}: write the inputs by hand"
    )


def _hubbard_tags(elements: tuple[str, ...], u: Mapping[str, Any]) -> dict[str, Any]:
    """U (eV) on the d or f shell of each species in the order of POSCAR; none switches the input set's off."""
    from pymatgen.core.periodic_table import Element

    values = {element: float(u.get(element, 0.0)) for element in elements}
    if not any(values.values()):
        return {"LDAU": False}
    shells = {
        element: -1 if not value else 3 if Element(element).block == "f" else 2 for element, value in values.items()
    }
    return {"LDAU": True, "LDAUTYPE": 2, "LDAUU": values, "LDAUJ": dict.fromkeys(elements, 0.0), "LDAUL": shells}


def _k_points(text: str, weights: Any) -> str:
    """KPOINTS of `gamma 3 3 1 shift 0 0 0`, `monkhorst ...`, or a list `reciprocal 0 0 0; 0.5 0 0 shift 0 0 0`."""
    from pymatgen.io.vasp.inputs import Kpoints

    listed, _, shift = text.partition(" shift ")
    style, _, numbers = listed.partition(" ")
    try:
        points = [tuple(float(part) for part in point.split()) for point in numbers.split(";")]
        shifts = tuple(float(part) for part in shift.split()) or (0.0, 0.0, 0.0)
    except ValueError:
        points, shifts = [], ()
    if not points or any(len(values) != 3 for values in (*points, shifts)):
        raise _no_k_points(text)
    modes = Kpoints.supported_modes
    if style in ("gamma", "monkhorst") and len(points) == 1:
        mesh = tuple(int(part) for part in points[0])
        mode = modes.Gamma if style == "gamma" else modes.Monkhorst
        return f"{Kpoints(text, 0, mode, (mesh,), (shifts[0], shifts[1], shifts[2]))}".strip() + "\n"
    if style != "reciprocal":
        raise _no_k_points(text)
    shares = [1.0] * len(points) if weights is None else [float(weight) for weight in weights]
    if len(points) > 1 and (weights is None or len(shares) != len(points)):
        raise InputError(
            f"the level of theory lists {len(points)} k-points without their weights; give as many in a file with "
            "--settings: k_point_weights = [1, 2]"
        )
    return f"{Kpoints(text, len(points), modes.Reciprocal, points, (0.0, 0.0, 0.0), shares)}".strip() + "\n"


def _no_k_points(text: str) -> InputError:
    return InputError(
        f"k-points {text!r} cannot be written as a KPOINTS file; expected `gamma 3 3 1 shift 0 0 0`, `monkhorst ...` "
        "or a list: `reciprocal 0 0 0; 0.5 0 0`"
    )
