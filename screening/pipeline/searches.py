"""Search spaces: what they are made of, and how many candidates they have.

What a search space is made of (definition, exact counts by composition) is written when it is added, by one caller
however many there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.defects.defect_types import DefectType, composition_label
from screening.defects.enumeration import SearchSpace
from screening.defects.limits import Limits
from screening.defects.symmetry import Symmetry
from screening.errors import InputError
from screening.pipeline.file_models import types_of_files
from screening.pipeline.hosts import StoredSupercell, add_compositions, add_defect_types, load_supercell


def count_table(space: SearchSpace, symmetry: Symmetry) -> dict[str, Any]:
    """Exact numbers of candidates: `total`, `by_defects` and `by_composition`."""
    counts = space.counts(symmetry)
    by_defects: Counter[int] = Counter(dict.fromkeys(space.sizes, 0))
    for composition, count in counts.items():
        by_defects[sum(composition)] += count
    ordered = sorted(counts, key=lambda composition: (sum(composition), [-n for n in composition]))
    return {
        "total": sum(counts.values()),
        "by_defects": {str(n): by_defects[n] for n in sorted(by_defects)},
        "by_composition": {space.label(composition): counts[composition] for composition in ordered},
    }


def add_search_space(session: Session, stored: StoredSupercell, space: SearchSpace) -> int:
    """Store a search space and its exact counts; again changes nothing.

    Raises:
        InputError: it has no candidates.
    """
    add_defect_types(session, space.defect_types)
    key = {
        "supercell_id": stored.id,
        "defect_types": [t.code for t in space.defect_types],
        "min_defects": space.min_defects if space.composition is not None else space.sizes[0],
        "max_defects": space.max_defects if space.composition is not None else space.sizes[-1],
        "composition": None if space.composition is None else list(space.max_counts),
        **_limits_row(space),
    }
    known = (
        getattr(tables.SearchSpace, name).is_not_distinct_from(value) if value is None
        else getattr(tables.SearchSpace, name) == value
        for name, value in key.items()
    )  # fmt: skip
    if (found := session.scalar(select(tables.SearchSpace.id).where(*known))) is not None:
        if not session.scalar(select(exists().where(tables.SearchSpaceCount.search_space_id == found))):
            _add_counts(session, found, space, space.counts(stored.symmetry))  # one of migration 0002
        return found
    counts = space.counts(stored.symmetry)
    n_candidates = sum(counts.values())
    if n_candidates == 0:
        raise InputError("no configuration keeps the limits of this search space; loosen them")
    added = insert(tables.SearchSpace).values(**key, expected=n_candidates).on_conflict_do_nothing()
    search_space_id: int | None = session.scalar(added.returning(tables.SearchSpace.id))
    if search_space_id is None:  # another caller has added it since, with its counts
        return add_search_space(session, stored, space)
    _add_counts(session, search_space_id, space, counts)
    return search_space_id


def load_search_space(session: Session, search_space_id: int) -> tuple[StoredSupercell, SearchSpace]:
    """A search space from its row."""
    row = session.get_one(tables.SearchSpace, search_space_id)
    stored = load_supercell(session, row.supercell_id)
    types = tuple(DefectType.from_code(code) for code in row.defect_types)
    composition = None if row.composition is None else dict(zip(types, row.composition, strict=True))
    counts = (
        {}
        if row.min_counts is None or row.max_counts is None
        else dict(zip(types, zip(row.min_counts, row.max_counts, strict=True), strict=True))
    )
    limits = Limits(counts, row.min_separation, row.max_separation)
    return stored, SearchSpace(
        stored.supercell, types, row.max_defects, min_defects=row.min_defects, composition=composition, limits=limits
    )


def check_trained_types(session: Session, model: tables.TrainedModel, search_space_id: int) -> None:
    """Make sure that a model has learnt from the host and the defect types of a search space.

    Raises:
        InputError: it has not; every chunk would fail.
    """
    space = session.get_one(tables.SearchSpace, search_space_id)
    host = session.get_one(tables.Host, session.get_one(tables.Supercell, space.supercell_id).host_id)
    known = queries.trained_types(session, model.id, host.id)
    counts = space.composition or space.max_counts or [1] * len(space.defect_types)
    wanted = {code for code, count in zip(space.defect_types, counts, strict=True) if count}
    if not wanted <= known:  # a model that came from a file has learnt from what is not in this database
        known |= types_of_files(session, model.id, host.name)
    if unknown := wanted - known:
        raise InputError(
            f"model {model.name} has never seen {_names(unknown)} in {host.name}; it knows "
            f"{_names(known) or 'nothing there'}: train it on results with them, or leave them out of --types"
        )


def _limits_row(space: SearchSpace) -> dict[str, Any]:
    """The limits as columns; limits on numbers that forbid nothing are null, as if they were not given."""
    largest = space.sizes[-1]
    max_counts = [min(n, largest) for n in space.max_counts]
    are_limited = space.composition is None and (any(space.min_counts) or min(max_counts) < largest)
    return {
        "min_counts": list(space.min_counts) if are_limited else None,
        "max_counts": max_counts if are_limited else None,
        "min_separation": space.limits.min_separation,
        "max_separation": space.limits.max_separation,
    }


def _names(codes: Iterable[int]) -> str:
    return ", ".join(DefectType.from_code(code).name for code in sorted(codes))


def _add_counts(
    session: Session, search_space_id: int, space: SearchSpace, counts: Mapping[tuple[int, ...], int]
) -> None:
    """Store the exact numbers by composition."""
    of_codes = {
        composition_label(by_code): (Counter(by_code), n)
        for composition, n in counts.items()
        if n and (by_code := {t.code: m for t, m in zip(space.defect_types, composition, strict=True) if m})
    }
    ids = add_compositions(session, [by_code for by_code, _ in of_codes.values()])
    session.execute(
        insert(tables.SearchSpaceCount).on_conflict_do_nothing(),
        [
            {"search_space_id": search_space_id, "composition_id": ids[label], "expected": n}
            for label, (_, n) in sorted(of_codes.items())
        ],
    )
