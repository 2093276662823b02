import itertools

import numpy as np
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from screening.database import tables
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.host import Host, Supercell
from screening.errors import InputError
from screening.pipeline.hosts import add_configurations, add_host, add_supercell, load_supercell

V_S = DefectType.parse("v_S").code
SE_S = DefectType.parse("Se_S").code


def layer(name: str = "MoS2", *, lattice_constant: float = 3.19, height: float = 15.0) -> Host:
    """2H MoS2 with sulphur 1.56 angstrom above and below the metal, whatever the height of the cell."""
    a, z = lattice_constant, 1.56 / height
    lattice = np.array([[a, 0, 0], [-a / 2, a * 3**0.5 / 2, 0], [0, 0, height]])
    positions = np.array([[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5 + z], [2 / 3, 1 / 3, 0.5 - z]])
    return Host.from_cell(name, lattice, ("Mo", "S", "S"), positions, source="a test")


def test_the_same_host_again_changes_nothing(session: Session) -> None:
    first = add_host(session, layer())
    assert add_host(session, layer()) == first
    assert session.scalar(select(func.count()).where(tables.Host.name == "MoS2")) == 1


def test_the_height_of_a_layers_cell_does_not_make_another_host(session: Session) -> None:
    assert add_host(session, layer(height=25.0)) == add_host(session, layer(height=15.0))


def test_another_material_cannot_take_the_name_of_a_host(session: Session) -> None:
    add_host(session, layer())
    with pytest.raises(InputError, match=r"another host as MoS2 .* --name"):
        add_host(session, layer(lattice_constant=3.32))


def test_a_supercell_comes_back_from_its_row_with_the_same_numbered_sites(session: Session) -> None:
    stored = add_supercell(session, Supercell.parse(layer(), "4x4"))
    loaded = load_supercell(session, stored.id)
    assert loaded.supercell.label == "4x4"
    assert loaded.supercell.species == stored.supercell.species
    np.testing.assert_array_equal(loaded.supercell.positions, stored.supercell.positions)
    np.testing.assert_array_equal(loaded.symmetry.permutations, stored.symmetry.permutations)


def test_the_row_of_a_supercell_says_how_large_it_is(session: Session) -> None:
    stored = add_supercell(session, Supercell.parse(layer(), "4x4"))
    row = session.get_one(tables.Supercell, stored.id)
    # p3m1 of the layer and its mirror plane: 12 operations of the unit cell, times 16 translations
    assert (row.label, row.n_sites, row.n_operations) == ("4x4", 48, 192)


def test_equivalent_configurations_are_one_row(session: Session) -> None:
    stored = add_supercell(session, Supercell.parse(layer(), "3x3"))
    sulphur = [i for i, symbol in enumerate(stored.supercell.species) if symbol == "S"]
    ids = add_configurations(session, stored, [Configuration((site,), (V_S,)) for site in sulphur])
    assert len(set(ids)) == 1
    assert session.get_one(tables.Configuration, ids[0]).multiplicity == len(sulphur)


def test_multiplicities_of_the_distinct_pairs_add_up_to_all_pairs(session: Session) -> None:
    stored = add_supercell(session, Supercell.parse(layer(), "3x3"))
    sulphur = [i for i, symbol in enumerate(stored.supercell.species) if symbol == "S"]
    pairs = [Configuration(pair, (V_S, V_S)) for pair in itertools.combinations(sulphur, 2)]
    ids = add_configurations(session, stored, pairs)
    rows = session.scalars(select(tables.Configuration).where(tables.Configuration.id.in_(ids))).all()
    assert sum(row.multiplicity for row in rows) == 18 * 17 // 2
    assert all(ids.count(row.id) == row.multiplicity for row in rows)


def test_ids_come_in_the_order_of_the_configurations(session: Session) -> None:
    stored = add_supercell(session, Supercell.parse(layer(), "3x3"))
    site = stored.supercell.species.index("S")
    given = [Configuration((site,), (SE_S,)), Configuration((), ()), Configuration((site,), (V_S,))]
    ids = add_configurations(session, stored, given)
    labels = [session.get_one(tables.Composition, _composition(session, i)).label for i in ids]
    assert labels == ["Se_S", "pristine", "v_S"]


def _composition(session: Session, configuration_id: int) -> int:
    return session.get_one(tables.Configuration, configuration_id).composition_id
