"""The built-in calculator: GFN1-xTB with tblite, a level of theory of its own.

GFN1-xTB (Grimme, Bannwarth, Shushkov, J. Chem. Theory Comput. 13, 1989 (2017), doi 10.1021/acs.jctc.7b00118)
gives total and orbital energies of a 4x4 MoS2 supercell in two seconds on one core, so the whole loop runs on a
laptop. What fixes its energies:

- k-points: tblite has the Gamma point only, so a supercell's size is part of what is calculated.
- Cell height: tblite is periodic in three dimensions. A layer stands in a cell `CELL_HEIGHT` high, whatever the
  cell of its host, because energies and the zero of the levels depend on it (0.2 eV and 0.3 eV between 25 and 30
  angstrom for 4x4 MoS2; a formation energy by 0.006 eV, a gap by 0.005 eV).
- Spin: alpha and beta electrons share one set of orbitals, with the lowest multiplicity that the number of
  electrons allows: a singlet, or a doublet if it is odd. The two spins' gaps differ for a doublet only, and no
  magnetisation is reported, since nothing here could make a magnet of an even number of electrons.
- Occupation: Fermi smearing at 300 K; the energy is the free energy. HOMO and LUMO are levels counted from the
  number of electrons, not from the smeared occupations.

Chemical potentials (`reference`): non-metals in their elemental form (molecules at their relaxed geometry;
black phosphorus and graphene), other elements from the catalogue's compound in equilibrium with that non-metal,
``mu_Mo = E(MoS2) - 2 mu_S``: the anion-rich limit. Tungsten has WS2 at the sites of MoS2 (their lattice constants
differ by 0.3 %), so that W_Mo and Mo_W cost what the two metals' exchange costs and not what sulphur and selenium do
to each other. Crystals of the metals are no alternative here, because at
the Gamma point the energy of bcc W still moves by 0.16 eV per atom from 54 to 128 atoms, and that of V by 1.3 eV
from 16 to 54. Indium has the molecule In2: its GFN1 basis becomes linearly dependent in every crystal tried (In,
InSe, InN, InP, InAs; tblite then fails to solve the eigenvalue problem), so InSe cannot be calculated at this level,
while In_Ga in GaSe can.

Threads follow OMP_NUM_THREADS; nothing is printed.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Host, Supercell
from screening.dft.results import CalculationResult, LevelOfTheory
from screening.errors import CalculationError, InputError, UnknownNameError

if TYPE_CHECKING:
    from ase import Atoms

CELL_HEIGHT = 25.0  # angstrom, of layers
SMALLEST_GAP = 10.0  # angstrom of vacuum that must remain between a layer and its image
TEMPERATURE = 300.0  # kelvin, of the electrons; tblite's default
LARGEST_FORCE = 0.03  # eV/angstrom, where a relaxation ends
MAX_STEPS = 200  # of a relaxation
_METHOD = "GFN1-xTB"
_MIXINGS = ((0.4, 250), (0.1, 500))  # damping, iterations: tblite's default, then a cautious second attempt

_MOLECULES = {
    "N": "N2",
    "O": "O2",
    "In": "In2",
    "S": "S8",
    "Se": "Se8",
}
_COMPOUNDS = {  # element -> host, the supercell it is calculated in (at least 11 angstrom wide), whose place it takes
    "P": ("BP", "4x3", "P"),
    "B": ("h-BN", "6x6", "B"),
    "Mo": ("MoS2", "4x4", "Mo"),
    "W": ("MoS2", "4x4", "Mo"),
    "Ga": ("GaSe", "4x4", "Ga"),
    "V": ("V2O5", "4x1", "V"),
}
_GRAPHENE = 2.46  # angstrom; 6x6 copies fold the K point onto Gamma
_BONDS = {"N2": 1.10, "O2": 1.21, "In2": 2.90, "S8": 2.05, "Se8": 2.33}  # angstrom, where the relaxation starts
_CROWN = 0.24  # height of a crown's atoms above its middle plane, in bond lengths


def level_of_theory(relax: bool = False) -> LevelOfTheory:
    """The level of theory of `calculate` without and with relaxation."""
    geometry: dict[str, object] = (
        {"geometry": "relaxed in the fixed cell", "largest_force": LARGEST_FORCE}
        if relax
        else {"geometry": "ideal lattice sites"}
    )
    settings = {
        "cell_height_of_layers": CELL_HEIGHT,
        "electronic_temperature": TEMPERATURE,
        "k_points": "Gamma",
        "spin": "restricted, lowest multiplicity",
        **geometry,
    }
    return LevelOfTheory(f"{_METHOD} {'relaxed' if relax else 'single point'}", "tblite", _METHOD, settings)


def levels_of_theory() -> tuple[LevelOfTheory, LevelOfTheory]:
    """What the built-in calculator computes at: ideal lattice sites, and relaxed."""
    return level_of_theory(), level_of_theory(relax=True)


def calculate(supercell: Supercell, configuration: Configuration, *, relax: bool = False) -> CalculationResult:
    """Energy, HOMO, LUMO and gaps of a configuration, at ideal sites or relaxed in the fixed cell.

    About 2.5 s on one core for 4x4 MoS2 at ideal sites, 5 to 15 times that with relaxation (2 to 16 steps).

    Raises:
        CalculationError: the self-consistency or the relaxation does not converge, or no electron is left.
        InputError: the layer is too thick for the level's cell height.
    """
    atoms = _atoms(supercell, configuration)
    if relax:
        _relax(atoms, LARGEST_FORCE)
    energy, levels, n_electrons = _single_point(atoms)
    return CalculationResult(configuration, energy, _orbital_properties(levels, n_electrons))


@cache
def reference(symbol: str, *, relax: bool = False) -> tuple[float, str]:
    """Chemical potential of an element, eV per atom, and where it comes from; a few seconds.

    Raises:
        UnknownNameError: this level of theory has no reference for the element.
        CalculationError: a reference calculation failed.
    """
    if symbol in _MOLECULES:
        molecule = _molecule(_MOLECULES[symbol])
        _relax(molecule, 0.001)
        return _single_point(molecule)[0] / len(molecule), f"{_MOLECULES[symbol]} molecule, relaxed"
    if symbol == "C":
        supercell = Supercell.parse(_graphene(), "6x6")
        return calculate(supercell, Configuration((), ()), relax=relax).energy / supercell.n_sites, "6x6 graphene"
    if symbol not in _COMPOUNDS:
        known = ", ".join(sorted({*_MOLECULES, *_COMPOUNDS, "C"}))
        raise UnknownNameError(
            f"{level_of_theory(relax).name} has no reference for the chemical potential of {symbol}; it has {known}"
        )
    return _from_compound(symbol, relax)


def _from_compound(symbol: str, relax: bool) -> tuple[float, str]:
    """Chemical potential of an element in equilibrium with a compound and its other element's reference."""
    name, size, place = _COMPOUNDS[symbol]
    supercell = Supercell.parse(catalogue_host(name), size)
    sites = [site for site, species in enumerate(supercell.species) if species == place]
    codes = [] if symbol == place else [DefectType(place, symbol).code] * len(sites)
    compound = Configuration(tuple(sites[: len(codes)]), tuple(codes))
    rest = calculate(supercell, compound, relax=relax).energy
    others = [other for other in supercell.species if other != place]
    rest -= sum(reference(other, relax=relax)[0] for other in others)
    source = f"{size} {name}"
    if codes:
        source += f" with {symbol} in place of {place}"
    if others:
        source += f", in equilibrium with {reference(others[0], relax=relax)[1]}"
    return rest / len(sites), source


def _atoms(supercell: Supercell, configuration: Configuration) -> Atoms:
    """The configuration at its ideal sites, in the cell of this level of theory."""
    from ase import Atoms

    species, positions = supercell.structure(configuration)
    if not species:
        raise CalculationError(f"{configuration.composition} leaves no atom in the supercell; nothing to calculate")
    lattice = supercell.lattice.copy()
    if supercell.host.is_layer:
        axis = lattice[2] / np.linalg.norm(lattice[2])
        thickness = float(np.ptp(supercell.positions @ axis))
        if thickness > CELL_HEIGHT - SMALLEST_GAP:
            raise InputError(
                f"host {supercell.host.name} is {thickness:.1f} angstrom thick; {_METHOD} here puts layers into a cell "
                f"{CELL_HEIGHT:g} angstrom high and takes up to {CELL_HEIGHT - SMALLEST_GAP:g}: calculate it elsewhere"
            )
        lattice[2] = axis * CELL_HEIGHT
    return Atoms(list(species), positions=positions, cell=lattice, pbc=True)


def _single_point(atoms: Atoms) -> tuple[float, NDArray[np.float64], int]:
    """Energy (eV), orbital energies (n_orbitals,) ascending (eV), number of electrons."""
    from ase.units import Bohr, Hartree, kB
    from tblite.exceptions import TBLiteRuntimeError, TBLiteValueError
    from tblite.interface import Calculator

    periodic: dict[str, Any] = (
        {"lattice": atoms.cell.array / Bohr, "periodic": np.array([True] * 3)} if atoms.pbc.any() else {}
    )
    reasons = []
    for damping, max_iterations in _MIXINGS:
        try:
            calculator = Calculator(_METHOD, atoms.numbers, atoms.positions / Bohr, color=False, **periodic)
            calculator.set("verbosity", 0)
            calculator.set("temperature", TEMPERATURE * kB / Hartree)
            calculator.set("mixer-damping", damping)
            calculator.set("max-iter", max_iterations)
            found = calculator.singlepoint()
        except (TBLiteRuntimeError, TBLiteValueError) as error:
            reasons.append(f"{error} (mixer damping {damping:g})")
            continue
        energy = float(found.get("energy") * Hartree)
        levels = np.asarray(found.get("orbital-energies") * Hartree, np.float64)
        if np.isfinite(energy) and np.isfinite(levels).all():
            return energy, levels, round(float(found.get("orbital-occupations").sum()))
        reasons.append(f"energy {energy} (mixer damping {damping:g})")
    raise CalculationError(f"{_METHOD} of {atoms.symbols}: {'; '.join(reasons)}")


def _relax(atoms: Atoms, largest_force: float) -> None:
    """Move the atoms in their fixed cell until no force exceeds `largest_force` (eV/angstrom)."""
    from ase.calculators.calculator import CalculationFailed
    from ase.optimize import BFGS
    from tblite.ase import TBLite

    atoms.calc = TBLite(method=_METHOD, electronic_temperature=TEMPERATURE, verbosity=0)
    try:
        with BFGS(atoms, logfile=None, maxstep=0.1) as optimiser:
            converged = optimiser.run(fmax=largest_force, steps=MAX_STEPS)
        force = float(np.linalg.norm(atoms.calc.results["forces"], axis=1).max())
    except CalculationFailed as error:
        raise CalculationError(f"{_METHOD} relaxation of {atoms.symbols}: {error}") from error
    if not converged:
        raise CalculationError(
            f"{_METHOD} relaxation of {atoms.symbols} did not converge in {MAX_STEPS} steps: "
            f"largest force {force:.3f} eV/angstrom, expected at most {largest_force:g}"
        )


def _orbital_properties(levels: NDArray[np.float64], n_electrons: int) -> dict[str, float]:
    """HOMO, LUMO and the gaps of both spins, which share their levels; `levels` ascend."""
    n_majority, n_minority = (n_electrons + 1) // 2, n_electrons // 2
    if n_minority == 0 or n_majority >= len(levels):
        raise CalculationError(f"{n_electrons} electrons in {len(levels)} orbitals have no gap")
    gaps = [float(levels[n] - levels[n - 1]) for n in (n_majority, n_minority)]
    return {
        "homo_lumo_gap_min": min(gaps),
        "homo_lumo_gap_majority": gaps[0],
        "homo_lumo_gap_minority": gaps[1],
        "homo": float(levels[n_majority - 1]),
        "lumo": float(levels[n_minority]),
    }


def _molecule(formula: str) -> Atoms:
    """A diatomic molecule, or the crown-shaped ring of eight atoms of sulphur and selenium."""
    from ase import Atoms

    bond = _BONDS[formula]
    symbol = formula.rstrip("0123456789")
    if formula.endswith("2"):
        return Atoms([symbol] * 2, positions=[(0, 0, 0), (0, 0, bond)])
    height = _CROWN * bond
    radius = np.sqrt(bond**2 - (2 * height) ** 2) / (2 * np.sin(np.pi / 8))
    angle = np.arange(8) * np.pi / 4
    z = height * (-1.0) ** np.arange(8)
    return Atoms([symbol] * 8, positions=np.column_stack([radius * np.cos(angle), radius * np.sin(angle), z]))


def _graphene() -> Host:
    a = _GRAPHENE
    lattice = np.array([[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, CELL_HEIGHT]])
    positions = np.array([[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]])
    return Host("graphene", lattice, ("C", "C"), positions, is_layer=True, source="lattice constant 2.46 angstrom")
