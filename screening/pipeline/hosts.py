"""Hosts, supercells and configurations between the science and their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.defects.defect_types import Configuration, DefectType, composition_label
from screening.defects.enumeration import canonical_form
from screening.defects.host import Host, Supercell
from screening.defects.symmetry import Symmetry, find_symmetry
from screening.errors import InputError

_SAME_LATTICE = 1e-3  # angstrom
_SAME_POSITION = 0.05  # angstrom

_HostColumns = tuple[str, tuple[float, ...], tuple[str, ...], tuple[float, ...], bool, str]


@dataclass(frozen=True, eq=False)
class StoredSupercell:
    """A supercell with its row's id and its symmetry."""

    id: int
    supercell: Supercell
    symmetry: Symmetry


def add_host(session: Session, host: Host) -> int:
    """Store a host; its id. The same host again changes nothing.

    Raises:
        InputError: another material has this name already.
    """
    queries.get_or_add(
        session,
        tables.Host,
        {"name": host.name},
        formula=host.formula,
        lattice=host.lattice.ravel().tolist(),
        species=list(host.species),
        positions=host.positions.ravel().tolist(),
        is_layer=host.is_layer,
        source=host.source,
    )
    row = queries.get_host(session, host.name)
    if not _is_same_host(host_of(row), host):
        raise InputError(
            f"the database knows another host as {host.name} ({row.formula}, from {row.source}); "
            "give this one another name with --name"
        )
    return row.id


def host_of(row: tables.Host) -> Host:
    """The host of a row."""
    return Host(
        row.name,
        np.array(row.lattice).reshape(3, 3),
        tuple(row.species),
        np.array(row.positions).reshape(-1, 3),
        row.is_layer,
        row.source,
    )


def add_supercell(session: Session, supercell: Supercell) -> StoredSupercell:
    """Store a supercell and its host."""
    symmetry = find_symmetry(supercell)
    identifier = queries.get_or_add(
        session,
        tables.Supercell,
        {"host_id": add_host(session, supercell.host), "matrix": supercell.matrix.ravel().tolist()},
        label=supercell.label,
        n_sites=supercell.n_sites,
        n_operations=symmetry.n_operations,
    )
    return StoredSupercell(identifier, supercell, symmetry)


def load_supercell(session: Session, supercell_id: int) -> StoredSupercell:
    """A supercell from its row."""
    row = session.get_one(tables.Supercell, supercell_id)
    host = session.get_one(tables.Host, row.host_id)
    supercell, symmetry = _rebuild(
        (host.name, tuple(host.lattice), tuple(host.species), tuple(host.positions), host.is_layer, host.source),
        tuple(row.matrix),
    )
    return StoredSupercell(supercell_id, supercell, symmetry)


def symmetry_of(supercell: Supercell) -> Symmetry:
    """The symmetry of a supercell, which is remembered: it is asked for again with every letter of a form."""
    host = supercell.host
    columns = (
        host.name, tuple(host.lattice.ravel().tolist()), tuple(host.species), tuple(host.positions.ravel().tolist()),
        host.is_layer, host.source,
    )  # fmt: skip
    return _rebuild(columns, tuple(supercell.matrix.ravel().tolist()))[1]


def add_configurations(session: Session, stored: StoredSupercell, configurations: Sequence[Configuration]) -> list[int]:
    """Store configurations in their canonical form; their ids in the order given."""
    forms = [canonical_form(stored.symmetry, configuration) for configuration in configurations]
    compositions = add_compositions(session, [Counter(form.defect_types) for form, _ in forms])
    rows = {
        (form.sites, form.defect_types): {
            "composition_id": compositions[form.composition],
            "n_defects": form.n_defects,
            "sites": list(form.sites),
            "defect_types": list(form.defect_types),
            "multiplicity": multiplicity,
        }
        for form, multiplicity in forms
    }
    ids = queries.configuration_ids(session, stored.id, list(rows.values()))
    return [ids[form.sites, form.defect_types] for form, _ in forms]


def add_compositions(session: Session, counts: Sequence[Counter[int]]) -> dict[str, int]:
    """Store compositions (numbers by code) with their defect types; ids by label."""
    distinct = {composition_label(count): count for count in counts}
    codes = sorted({code for count in distinct.values() for code in count})
    add_defect_types(session, [DefectType.from_code(code) for code in codes])
    return queries.composition_ids(
        session,
        {
            label: {
                "defect_types": sorted(count),
                "counts": [count[code] for code in sorted(count)],
                "n_defects": count.total(),
            }
            for label, count in distinct.items()
        },
    )


def add_defect_types(session: Session, defect_types: Sequence[DefectType]) -> None:
    """Store defect types that are not there yet."""
    queries.add_defect_types(
        session, [{"id": t.code, "name": t.name, "removed": t.removed, "added": t.added} for t in defect_types]
    )


@lru_cache(maxsize=16)
def _rebuild(host: _HostColumns, matrix: tuple[int, ...]) -> tuple[Supercell, Symmetry]:
    """A supercell and its symmetry from the columns of their rows; 0.4 s for 192 sites, once in a process."""
    name, lattice, species, positions, is_layer, source = host
    supercell = Supercell(
        Host(name, np.array(lattice).reshape(3, 3), species, np.array(positions).reshape(-1, 3), is_layer, source),
        np.array(matrix, np.int64).reshape(3, 3),
    )
    return supercell, find_symmetry(supercell)


def _is_same_host(one: Host, other: Host) -> bool:
    """Whether two hosts are one material, whatever the height of a layer's cell."""
    axes = slice(0, 2 if one.is_layer else 3)
    return (
        one.is_layer == other.is_layer
        and one.species == other.species
        and np.allclose(one.lattice[axes], other.lattice[axes], atol=_SAME_LATTICE)
        and np.allclose(
            one.positions @ one.lattice - (one.positions @ one.lattice)[0],
            other.positions @ other.lattice - (other.positions @ other.lattice)[0],
            atol=_SAME_POSITION,
        )
    )
