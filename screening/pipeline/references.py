"""Levels of theory and the references of formation energies: pristine energies and chemical potentials.

A result may arrive before its references; its formation energy is then empty, and is filled in once they are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.models import stands
from screening.defects.defect_types import Configuration, DefectType
from screening.dft import xtb
from screening.dft.dataset_2dmd import AGREEMENT
from screening.dft.results import CalculationResult, LevelOfTheory, formation_energy
from screening.dft.vasp import agree, differences, merge
from screening.errors import InputError, LevelOfTheoryError

_LEVELS_LOCK = 7_402_117  # key of the advisory lock under which a level of theory is recognised


def add_level(session: Session, level: LevelOfTheory) -> int:
    """Store a level of theory; its id. The same level again changes nothing.

    Raises:
        LevelOfTheoryError: its name stands for other settings already.
    """
    return queries.add_level(
        session, name=level.name, code=level.code, functional=level.functional,
        settings=level.settings, digest=level.digest,
    )  # fmt: skip


def level_of_name(session: Session, name: str) -> int:
    """The level of theory of this name; one of the built-in calculator's is added if it is not there.

    Raises:
        UnknownNameError: there is none.
    """
    for level in xtb.levels_of_theory():
        if level.name == name:
            return add_level(session, level)
    return queries.level_id_of(session, name)


def join_vasp_level(session: Session, level: LevelOfTheory, name: str | None = None) -> int:
    """The level of theory that a VASP run belongs to, by its settings; its id.

    A run that agrees with a stored level in everything, and in the pseudopotentials and Hubbard U of the elements
    that both have, belongs to it, and the level learns the run's further elements. Otherwise it is a new level.

    Args:
        name: of the level that the run must belong to, or be the first of.

    Raises:
        LevelOfTheoryError: the level of this name has other settings.
    """
    row = tables.LevelOfTheory
    session.execute(select(func.pg_advisory_xact_lock(_LEVELS_LOCK)))
    known = session.scalars(select(row).where(row.code == level.code).order_by(row.id)).all()
    fitting = {
        found: shared
        for found in known
        if found.functional == level.functional and (shared := agree(found.settings, level.settings)) is not None
    }
    if name is not None:
        fitting = {found: shared for found, shared in fitting.items() if found.name == name}
    if not fitting:
        names = set(session.scalars(select(row.name)))
        if name in names:
            raise LevelOfTheoryError(
                f"the level of theory {name!r} has other settings than this run ({level.name}, "
                f"{dict(level.settings)}); leave --level out, or give a new name"
            )
        numbered = (f"{level.name} ({n})" for n in range(2, len(names) + 3))
        free = name or next(new for new in (level.name, *numbered) if new not in names)
        return add_level(session, LevelOfTheory(free, level.code, level.functional, level.settings))
    best = max(fitting, key=lambda found: fitting[found])
    merged = LevelOfTheory(best.name, best.code, best.functional, merge(best.settings, level.settings))
    best.settings, best.digest = dict(merged.settings), merged.digest
    session.flush()
    return best.id


def has_pristine_run(session: Session, supercell_id: int, level: LevelOfTheory) -> bool:
    """Whether a run of a defect can be compared with a pristine run; False where none is there yet.

    Raises:
        LevelOfTheoryError: there is one, but with other settings.
    """
    row = tables.LevelOfTheory
    known = session.scalars(
        select(row)
        .join(tables.Calculation, tables.Calculation.level_id == row.id)
        .join(tables.Configuration, tables.Configuration.id == tables.Calculation.configuration_id)
        .join(tables.CalculationResult, tables.CalculationResult.calculation_id == tables.Calculation.id)
        .where(
            row.code == level.code,
            row.settings.has_key("pseudopotentials"),  # a data set may say its code, and not its settings
            tables.Configuration.supercell_id == supercell_id,
            tables.Configuration.n_defects == 0,
            stands(),
        )
        .order_by(row.id)
    ).all()
    if not known:
        return False
    found = {
        one.name: differences(level, LevelOfTheory(one.name, one.code, one.functional, one.settings)) for one in known
    }
    nearest = min(found, key=lambda name: len(found[name]))
    if found[nearest]:
        raise LevelOfTheoryError(
            f"its settings are not those of the pristine run at {nearest!r}: {'; '.join(found[nearest])}; energies of "
            "the two cannot be compared: run it with these settings, add a pristine run with its own first, or let it "
            "be another level with --level NAME --new-level"
        )
    return True


def elements_of(configuration: Configuration) -> set[str]:
    """The elements that a configuration removes and adds."""
    types = [DefectType.from_code(code) for code in configuration.defect_types]
    return {symbol for t in types for symbol in (t.removed, t.added) if symbol is not None}


def derived_energies(
    result: CalculationResult, *, pristine_energy: float | None, chemical_potentials: Mapping[str, float]
) -> dict[str, float]:
    """Formation energy of a result, in all and per site, eV; empty for the pristine supercell.

    Raises:
        InputError: a reference is missing.
    """
    n_defects = result.configuration.n_defects
    if n_defects == 0:
        return {}
    if pristine_energy is None:
        raise InputError("no energy of the pristine supercell at this level of theory; take a bulk run in")
    energy = formation_energy(
        result.configuration, result.energy, pristine_energy=pristine_energy, chemical_potentials=chemical_potentials
    )
    return {"formation_energy": energy, "formation_energy_per_site": energy / n_defects}


def fill_formation_energies(session: Session, supercell_id: int, level_id: int) -> int:
    """Derive the formation energies that were left empty for want of references; how many."""
    row = tables.CalculationResult
    pristine = queries.pristine_energy(session, supercell_id, level_id)
    potentials = queries.chemical_potentials(session, level_id)
    empty = session.execute(
        select(row.id, row.energy, tables.Configuration.sites, tables.Configuration.defect_types)
        .join(tables.Calculation, tables.Calculation.id == row.calculation_id)
        .join(tables.Configuration, tables.Configuration.id == tables.Calculation.configuration_id)
        .where(
            tables.Configuration.supercell_id == supercell_id,
            tables.Configuration.n_defects > 0,
            tables.Calculation.level_id == level_id,
            row.formation_energy.is_(None),
            stands(),
        )
    ).all()
    filled = 0
    for identifier, energy, sites, types in empty:
        configuration = Configuration(tuple(sites), tuple(types))
        if pristine is not None and elements_of(configuration) <= potentials.keys():
            values = derived_energies(
                CalculationResult(configuration, energy, {}), pristine_energy=pristine, chemical_potentials=potentials
            )
            session.execute(update(row).where(row.id == identifier).values(**values))
            filled += 1
    return filled


def withdrawn_pristine(session: Session, supercell_id: int, level_id: int) -> Sequence[tables.CalculationResult]:
    """The withdrawn results of a pristine supercell at a level of theory, the one that was withdrawn last first."""
    row = tables.CalculationResult
    return session.scalars(
        select(row)
        .join(tables.Calculation, tables.Calculation.id == row.calculation_id)
        .join(tables.Configuration, tables.Configuration.id == tables.Calculation.configuration_id)
        .where(tables.Configuration.supercell_id == supercell_id, tables.Configuration.n_defects == 0)
        .where(tables.Calculation.level_id == level_id, ~stands())
        .order_by(row.retracted_at.desc(), row.id.desc())
    ).all()


def refuse_withdrawn_pristine(session: Session, supercell_id: int, level_id: int, energy: float) -> None:
    """Make sure that the energy of a pristine supercell, eV, is not that of a result which was withdrawn.

    Raises:
        InputError: it is.
    """
    for row in withdrawn_pristine(session, supercell_id, level_id):
        if abs(row.energy - energy) <= AGREEMENT:
            assert row.retracted_at is not None
            raise InputError(
                f"the pristine supercell has {energy:.6f} eV, and this result was withdrawn on "
                f"{row.retracted_at.astimezone():%Y-%m-%d}: {row.retraction}; calculate it again and add the new file "
                "with `screening results add`, or import a data set that is mended"
            )
