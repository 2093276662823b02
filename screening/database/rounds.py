"""Rounds of calculations: how they are called, how far they are, what becomes of each calculation.

Nothing here commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, func, select, text, update
from sqlalchemy.orm import Session

from screening.database.models import stands
from screening.database.tables import (
    PROPERTY_COMMENTS,
    Calculation,
    CalculationResult,
    Composition,
    Configuration,
    Host,
    LevelOfTheory,
    Round,
    Supercell,
)
from screening.errors import InputError, UnknownNameError

MOST_ATTEMPTS = 3  # of a calculation elsewhere; what failed so often fails again
_LARGEST_ID = 2**31 - 1
STATES = ("proposed", "exported", "submitted", "waiting", "running", "finished", "failed")


def find_round(session: Session, name: str) -> Round:
    """The round of this name or number.

    Raises:
        UnknownNameError: there is none.
    """
    found = session.scalar(select(Round).where(Round.name == name))
    if found is None and name.removeprefix("round ").isdecimal():
        found = session.get(Round, int(name.removeprefix("round ")))
    if found is None:
        known = [row["round"] for row in list_rounds(session)][:10]
        raise UnknownNameError(
            f"no round is called {name!r}; the newest are {', '.join(known) or 'none'}: `screening round create` "
            "proposes one"
        )
    return found


def name_round(session: Session, round_id: int, name: str) -> None:
    """Give a round a name.

    Raises:
        InputError: another one has it, or it reads like a number.
    """
    if not name.strip() or name.removeprefix("round ").isdecimal():
        raise InputError(f"a round cannot be called {name!r}, which reads like its number; give it a word")
    if session.scalar(select(func.count()).select_from(Round).where(Round.name == name, Round.id != round_id)):
        raise InputError(f"another round is called {name!r} already; `screening round list` shows them")
    session.execute(update(Round).where(Round.id == round_id).values(name=name))


def list_rounds(session: Session, *, before: int | None = None, limit: int | None = None) -> list[dict[str, Any]]:
    """A row per round, newest first: round_id, round, model, level_of_theory, calculations, their states, folder.

    Args:
        before: an id: the rounds that are older.
    """
    statement = "SELECT * FROM round_progress WHERE round_id < :before ORDER BY round_id DESC LIMIT :limit"
    rows = session.execute(text(statement), {"before": before or _LARGEST_ID, "limit": limit}).mappings()
    return [dict(row) for row in rows]


def round_rows(session: Session, round_id: int) -> list[dict[str, Any]]:
    """A row per calculation of a round, what is worth most first, with its state and the values of its result."""
    values = [getattr(CalculationResult, name) for name in PROPERTY_COMMENTS]
    rows = session.execute(
        select(
            Calculation.id.label("calculation"),
            Host.name.label("host"),
            Supercell.label.label("supercell"),
            Composition.label.label("configuration"),
            Configuration.sites,
            Calculation.state,
            Calculation.attempts,
            Calculation.job,
            Calculation.worth,
            Calculation.expected_s,
            Calculation.proposal.label("reason"),
            Calculation.exported_at,
            Calculation.submitted_at,
            Calculation.finished_at,
            Calculation.error,
            CalculationResult.id.label("result"),
            *values,
        )
        .join(Configuration, Configuration.id == Calculation.configuration_id)
        .join(Composition, Composition.id == Configuration.composition_id)
        .join(Supercell, Supercell.id == Configuration.supercell_id)
        .join(Host, Host.id == Supercell.host_id)
        .outerjoin(CalculationResult, and_(CalculationResult.calculation_id == Calculation.id, stands()))
        .where(Calculation.round_id == round_id)
        .order_by(Calculation.worth.desc().nulls_last(), Calculation.id)
    ).mappings()
    return [dict(row) for row in rows]


def lock_calculations(session: Session, round_id: int, states: Sequence[str]) -> list[Calculation]:
    """The calculations of a round in these states; nobody else changes them until the end of the transaction."""
    return list(
        session.scalars(
            select(Calculation)
            .where(Calculation.round_id == round_id, Calculation.state.in_(states))
            .order_by(Calculation.id)
            .with_for_update()
        )
    )


def mark_submitted(session: Session, round_id: int, job: str) -> int:
    """Say that the exported calculations of a round were given to another machine; how many.

    Raises:
        InputError: none is exported.
    """
    found = lock_calculations(session, round_id, ["exported"])
    if not found:
        raise InputError(
            "no calculation of the round is exported and not yet submitted; `screening round export` first"
        )
    for calculation in found:
        calculation.state, calculation.job, calculation.submitted_at = "submitted", job, func.now()
    session.flush()
    return len(found)


def level_of_round(session: Session, round_: Round) -> LevelOfTheory:
    """The level of theory that a round is calculated at."""
    return session.get_one(LevelOfTheory, round_.level_id)
