"""Taking files in: what is known again, and which frame of a relaxation is its result."""

from __future__ import annotations

import gzip
from pathlib import Path

import ase
import ase.db
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from sqlalchemy import Engine, select

from screening.database import tables
from screening.database.session import session_scope
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.enumeration import canonical_form
from screening.defects.host import Supercell
from screening.dft.results import LevelOfTheory
from screening.pipeline.expected_runs import ExpectedRun
from screening.pipeline.hosts import add_supercell
from screening.pipeline.references import add_level
from screening.pipeline.result_intake import IntakeOptions, add_result_files, file_digest, take_files
from screening.pipeline.retraction import retract

LEVEL = LevelOfTheory("some PBE", "some code", "PBE", {"cutoff": 500})
V_S = DefectType.parse("v_S")


def mos2() -> Supercell:
    return Supercell.parse(catalogue_host("MoS2"), "2x2")


def vacancy() -> Configuration:
    return Configuration((int(mos2().allowed(V_S)[0]),), (V_S.code,))


def table_of(path: Path, energy: float, *, remark: str = "") -> Path:
    """A table with the result of a sulphur vacancy."""
    site = vacancy().sites[0]
    path.write_text(f"energy,sites,defect_types,remark\n{energy},{site},v_S,{remark}\n")
    return path


def level_of_mos2(engine: Engine) -> tuple[int, int]:
    """Ids of 2x2 MoS2 and of a level of theory."""
    with session_scope(engine) as session:
        return add_supercell(session, mos2()).id, add_level(session, LEVEL)


def energies(engine: Engine) -> list[float]:
    """Of the results that stand."""
    row = tables.CalculationResult
    with session_scope(engine) as session:
        return list(session.scalars(select(row.energy).where(row.retracted_at.is_(None)).order_by(row.id)))


def add_and_withdraw(engine: Engine, path: Path) -> None:
    assert add_result_files(engine, [path], level_name=LEVEL.name, host_name="MoS2").new == 1
    with session_scope(engine) as session:
        retract(session, session.scalars(select(tables.CalculationResult.id)).one(), "wrong cell")


def test_a_file_is_known_by_what_it_holds_packed_or_not(tmp_path: Path) -> None:
    content = b"energy,sites,defect_types\n-1.5,,\n" * 100_000  # more than a block
    for name, packed in (("a.csv", content), ("b.csv.gz", gzip.compress(content)), ("c.csv.gz", content)):
        (tmp_path / name).write_bytes(packed)
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(content)[:-20])
    plain, packed, unpacked, cut = (file_digest(tmp_path / n) for n in ("a.csv", "b.csv.gz", "c.csv.gz", "cut.csv.gz"))
    assert plain == packed == unpacked
    assert cut != plain


def test_a_withdrawn_result_does_not_come_back_packed(clean_engine: Engine, tmp_path: Path) -> None:
    level_of_mos2(clean_engine)
    path = table_of(tmp_path / "done.csv", -93.0)
    add_and_withdraw(clean_engine, path)
    packed = tmp_path / "done.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    report = add_result_files(clean_engine, [packed], level_name=LEVEL.name, host_name="MoS2")
    assert (report.new, report.refused, energies(clean_engine)) == (0, 1, [])
    assert "withdrawn: wrong cell" in report.refusals[0][1]


def test_a_withdrawn_energy_does_not_come_back_in_another_file(clean_engine: Engine, tmp_path: Path) -> None:
    level_of_mos2(clean_engine)
    add_and_withdraw(clean_engine, table_of(tmp_path / "done.csv", -93.0))
    report = add_result_files(
        clean_engine,
        [table_of(tmp_path / "again.csv", -93.0, remark="copied")],
        level_name=LEVEL.name,
        host_name="MoS2",
    )
    ((_, reason),) = report.refusals
    assert (report.new, energies(clean_engine)) == (0, [])
    assert "its energy is -93.000000 eV, that of a result of its configuration that was withdrawn: wrong cell" in reason
    assert "--retry-failed" in reason
    assert (
        add_result_files(
            clean_engine, [table_of(tmp_path / "new.csv", -92.9)], level_name=LEVEL.name, host_name="MoS2"
        ).new
        == 1
    )
    assert energies(clean_engine) == [-92.9]


def test_a_calculation_that_was_exported_again_may_find_the_energy_that_was_withdrawn(
    clean_engine: Engine, tmp_path: Path
) -> None:
    supercell_id, level_id = level_of_mos2(clean_engine)
    add_and_withdraw(clean_engine, table_of(tmp_path / "done.csv", -93.0))
    path = table_of(tmp_path / "again.csv", -93.0, remark="calculated again")
    with session_scope(clean_engine) as session:
        canonical, _ = canonical_form(add_supercell(session, mos2()).symmetry, vacancy())
        calculation_id = session.scalars(select(tables.Calculation.id)).one()
    expected = {path: ExpectedRun(calculation_id, supercell_id, level_id, canonical)}
    ledger = take_files(clean_engine, [path], IntakeOptions(LEVEL.name, host_name="MoS2"), expected=expected)[path]
    assert (ledger.refusals, energies(clean_engine)) == ([], [-93.0])


@pytest.mark.parametrize("kind", ["extxyz", "db"])
@pytest.mark.parametrize("steps", [(-90.0, -92.5, -93.0), (-93.0, -93.0 + 1e-5, -90.0)])
def test_the_last_frame_of_a_relaxation_is_its_result(
    clean_engine: Engine, tmp_path: Path, steps: tuple[float, ...], kind: str
) -> None:
    level_of_mos2(clean_engine)
    species, positions = mos2().structure(vacancy())
    generator = np.random.default_rng(1)
    images = []
    for energy in (*steps, -100.0):
        if energy == -100.0:  # another configuration, once
            species, positions = mos2().structure(Configuration((), ()))
        moved = positions + generator.normal(0, 0.02, (len(species), 3))
        images.append(ase.Atoms(species, positions=moved, cell=mos2().lattice, pbc=True, info={"energy": energy}))
    path = tmp_path / f"relaxation.{kind}"
    if kind == "extxyz":
        ase.io.write(path, images, format="extxyz")
    else:
        with ase.db.connect(path, use_lock_file=False) as database:
            for image in images:
                image.calc = SinglePointCalculator(image, energy=image.info["energy"])
                database.write(image)
    report = add_result_files(clean_engine, [path], level_name=LEVEL.name, host_name="MoS2")
    assert sorted(energies(clean_engine)) == sorted([steps[-1], -100.0])
    assert (report.read, report.new) == (2, 2)
    notes = [note for _, note in report.notes if "the last of 3 frames of its configuration" in note]
    assert len(notes) == 1
    assert f"{steps[-1]:.6f} eV, and is taken as the result" in notes[0]
