"""Taking results in: the references that are missing, the data set of the package, files of finished calculations.

Levels of theory and what formation energies are derived from are in `references`, the rows that are written in
`result_rows`, files in `result_intake`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from screening import __version__
from screening.database import queries
from screening.defects.defect_types import Configuration
from screening.dft import builtin
from screening.dft.results import LevelOfTheory
from screening.errors import InputError, LevelOfTheoryError
from screening.pipeline.hosts import StoredSupercell, add_supercell
from screening.pipeline.references import add_level, elements_of
from screening.pipeline.result_intake import add_result_files
from screening.pipeline.result_rows import (
    IntakeReport,
    Ledger,
    NewResult,
    Origin,
    free_name,
    record_failures,
    store_result,
    store_results,
)

__all__ = [
    "IntakeReport",
    "add_level",
    "add_references",
    "add_result_files",
    "import_builtin",
    "store_result",
    "store_results",
]

_REFERENCES_LOCK = 7_402_118  # first key of the advisory locks on the references of a level
_ROWS_PER_STEP = 100  # of the shipped data set, between two reports of progress
_SAME_POTENTIAL = 1e-4  # eV; the shipped potentials have six decimals, another linear algebra moves the seventh


def add_references(
    session: Session, stored: StoredSupercell, configuration: Configuration, level: LevelOfTheory
) -> None:
    """Calculate and store what a formation energy at a built-in level needs and the database lacks.

    That is the pristine supercell, as a finished calculation with its result, and the chemical potentials of the
    elements that are removed and added. Two workers do not calculate the same: the second waits for the first.

    Raises:
        InputError: the level is not one of the built-in calculator's, or it has no reference for an element.
        CalculationError: a reference calculation failed.
    """
    from screening.dft import xtb

    if level.digest not in [known.digest for known in xtb.levels_of_theory()]:
        raise InputError(
            f"references at {level.name!r} are missing and the built-in calculator does not compute at this level; "
            "take a bulk run in with `screening results add`"
        )
    relax = level.digest == xtb.level_of_theory(relax=True).digest
    level_id = add_level(session, level)
    session.execute(select(func.pg_advisory_xact_lock(_REFERENCES_LOCK, level_id)))
    missing = elements_of(configuration) - queries.chemical_potentials(session, level_id).keys()
    potentials = {element: xtb.reference(element, relax=relax) for element in sorted(missing)}
    queries.add_chemical_potentials(session, level_id, potentials)
    if queries.pristine_energy(session, stored.id, level_id) is None:
        origin = Origin(f"references at {level.name}")
        name = free_name(session, origin.dataset, f"{stored.supercell.host.name} {stored.supercell.label} pristine")
        pristine = NewResult(name, xtb.calculate(stored.supercell, Configuration((), ()), relax=relax))
        store_results(session, stored, level_id, [pristine], origin=origin)


def import_builtin(session: Session, on_progress: Callable[[int, int], None] | None = None) -> IntakeReport:
    """Take in the data set that the package ships: GFN1-xTB results of 4x4 MoS2; again changes nothing.

    Args:
        on_progress: called with results done and in all.

    Raises:
        LevelOfTheoryError: the database has other chemical potentials at this level of theory.
    """
    dataset = builtin.read()
    level_id = add_level(session, dataset.card.level_of_theory)
    stored = add_supercell(session, dataset.supercell)
    _add_shipped_potentials(session, level_id, dataset.card.chemical_potentials)
    file_id = queries.add_source_file(
        session, sha256=dataset.sha256, path=builtin.shipped_path().name, kind="dataset", size=dataset.size,
        version=f"screening {__version__}",
    )  # fmt: skip
    origin = Origin(dataset.card.name, file_id)
    store_results(session, stored, level_id, [NewResult("pristine", dataset.pristine)], origin=origin)
    good = [NewResult(row.name, row.result, row.split) for row in dataset.rows if row.error is None]
    ledger = Ledger()
    for start in range(0, len(good), _ROWS_PER_STEP):
        ledger.add(store_results(session, stored, level_id, good[start : start + _ROWS_PER_STEP], origin=origin))
        if on_progress is not None:
            on_progress(min(start + _ROWS_PER_STEP, len(good)), len(good))
    failures = [(row, row.error) for row in dataset.rows if row.error is not None]
    record_failures(session, stored, level_id, [(row.configuration, reason) for row, reason in failures])
    ledger.refusals += [(row.name, reason) for row, reason in failures]
    return ledger.report()


def _add_shipped_potentials(session: Session, level_id: int, potentials: Mapping[str, tuple[float, str]]) -> None:
    """Store the data set's chemical potentials; those that were calculated here before must agree."""
    known = queries.chemical_potentials(session, level_id)
    for element, (energy, _) in potentials.items():
        if abs(known.get(element, energy) - energy) > _SAME_POTENTIAL:
            raise LevelOfTheoryError(
                f"the chemical potential of {element} is {known[element]:.6f} eV in the database and {energy:.6f} eV "
                "in the built-in data set; import it into another database"
            )
    queries.add_chemical_potentials(session, level_id, {e: p for e, p in potentials.items() if e not in known})
