"""Chemical potentials of design queries, with the reference energies of 2DMD."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.query_parts import Potentials
from screening.defects.defect_types import Configuration, parse_defect_types
from screening.dft.results import formation_energy
from screening.errors import InputError
from screening.pipeline.hosts import add_configurations, add_supercell
from screening.pipeline.potentials import ElementPotential, potentials_of, shifts_of
from tests.pipeline.test_designs import add_level
from tests.synthetic_results import mos2

MO, S, SE, PRISTINE = -10.9332, -4.127, -3.48, -1398.1131 / 4  # eV; of 16 of the 64 unit cells
CELL = PRISTINE / 16


@pytest.fixture
def supercell(session: Session) -> tables.Supercell:
    """4x4 MoS2 at the level PBE, with references and the pristine energy."""
    level_id = add_level(session)
    stored = add_supercell(session, mos2())
    for element, energy in (("Mo", MO), ("S", S), ("Se", SE)):
        session.add(
            tables.ChemicalPotential(level_id=level_id, element=element, energy=energy, source=f"bulk {element}")
        )
    (pristine,) = add_configurations(session, stored, [Configuration((), ())])
    key = {"configuration_id": pristine, "level_id": level_id}
    calculation_id = queries.get_or_add(session, tables.Calculation, key, state="finished")
    session.add(
        tables.CalculationResult(calculation_id=calculation_id, dataset="d", row_name="pristine", energy=PRISTINE)
    )
    session.flush()
    return session.get_one(tables.Supercell, stored.id)


def found(session: Session, supercell: tables.Supercell, text: str) -> dict[str, ElementPotential]:
    level_id = session.query(tables.LevelOfTheory).one().id
    return potentials_of(session, level_id, supercell, Potentials.model_validate(text), ["Se"])


def test_references_shift_nothing(session: Session, supercell: tables.Supercell) -> None:
    of = found(session, supercell, "reference")
    assert {element: p.shift for element, p in of.items()} == {"Mo": 0.0, "S": 0.0, "Se": 0.0}
    assert (of["S"].energy, of["S"].source) == (S, "bulk S")
    assert shifts_of(of, [t.code for t in parse_defect_types("v_S,Se_S")]) == {}


@pytest.mark.parametrize("condition", ["metal-rich", "Mo-rich"])
def test_metal_rich_lowers_sulphur_by_half_the_formation_energy_of_the_host(
    session: Session, supercell: tables.Supercell, condition: str
) -> None:
    of = found(session, supercell, condition)
    assert of["Mo"].energy == pytest.approx(MO)
    assert of["S"].energy == pytest.approx(S - 1.329, abs=1e-3)  # -2.658 eV per MoS2, by hand
    assert of["Se"].shift == 0.0


@pytest.mark.parametrize("condition", ["chalcogen-rich", "S-rich"])
def test_chalcogen_rich_lowers_the_metal_by_all_of_it(
    session: Session, supercell: tables.Supercell, condition: str
) -> None:
    of = found(session, supercell, condition)
    assert of["Mo"].energy == pytest.approx(MO - 2.658, abs=1e-3)
    assert of["S"].energy == pytest.approx(S)


@pytest.mark.parametrize("text", ["metal-rich", "S=-4.5", "Mo=-11.5,Se=-3.6"])
def test_shifts_are_what_computing_formation_energies_anew_gives(
    session: Session, supercell: tables.Supercell, text: str
) -> None:
    of = found(session, supercell, text)
    types = parse_defect_types("v_S,Se_S,v_Mo")
    shifts = shifts_of(of, [t.code for t in types])
    configuration = Configuration((0, 20, 33), tuple(sorted(t.code for t in types)))
    before, after = (
        formation_energy(configuration, -330.0, pristine_energy=PRISTINE, chemical_potentials=potentials)
        for potentials in ({"Mo": MO, "S": S, "Se": SE}, {element: p.energy for element, p in of.items()})
    )
    assert after - before == pytest.approx(sum(shifts[t.code] for t in types if t.code in shifts))
    assert after != pytest.approx(before)


def test_the_host_stays_in_equilibrium_where_one_of_its_potentials_is_given(
    session: Session, supercell: tables.Supercell
) -> None:
    of = found(session, supercell, "S=-4.6")
    assert of["Mo"].energy + 2 * of["S"].energy == pytest.approx(CELL)
    assert of["S"].source == "given"


def test_both_potentials_of_the_host_may_be_given_as_they_are_printed(
    session: Session, supercell: tables.Supercell
) -> None:
    other = round(CELL - 2 * -4.6, 4)
    of = found(session, supercell, f"S=-4.6,Mo={other}")
    assert (of["S"].energy, of["Mo"].energy) == (-4.6, other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S=-4.0", r"potential of S is -4 eV; expected from -5\.45\d\d to -4\.1270 eV"),
        ("S=-6", r"expected from -5\.45\d\d to -4\.1270 eV"),
        ("Se=-3.0", r"potential of Se is -3 eV; expected at most -3\.4800 eV"),
        ("metal-rich,Mo=-12", "metal-rich says that of Mo already, of which MoS2 consists; give the condition or"),
        ("S-rich,S=-4.5", "S-rich says that of S already"),
        ("S=-4.6,Mo=-11", r"sum up to -20\.2000 eV .* is -21\.8455 eV, .*; expected S=-5\.4228 with Mo=-11"),
        ("B-rich", "potentials are B-rich, and MoS2 has Mo-rich, S-rich, metal-rich, chalcogen-rich"),
        ("metal-rich,W=-12", "no reference of W is known at the level of theory 'PBE'; known are Mo, S, Se"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(
    session: Session, supercell: tables.Supercell, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        found(session, supercell, text)


def test_a_condition_needs_the_pristine_energy(session: Session, supercell: tables.Supercell) -> None:
    session.query(tables.CalculationResult).delete()
    with pytest.raises(InputError, match="metal-rich needs the energy of pristine MoS2"):
        found(session, supercell, "metal-rich")
