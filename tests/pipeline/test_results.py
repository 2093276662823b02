import gzip
import hashlib
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import ase.db
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.session import session_scope
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.enumeration import canonical_form
from screening.defects.host import Supercell
from screening.defects.matching import find_supercell
from screening.dft import builtin, xtb
from screening.dft.results import CalculationResult, LevelOfTheory
from screening.dft.vasp import host_of_bulk, read_vasprun
from screening.errors import FileFormatError, InputError, LevelOfTheoryError, UnknownNameError
from screening.pipeline.hosts import StoredSupercell, add_configurations, add_supercell
from screening.pipeline.references import join_vasp_level
from screening.pipeline.result_rows import NewResult, Origin
from screening.pipeline.results import (
    add_level,
    add_references,
    add_result_files,
    import_builtin,
    store_result,
    store_results,
)

LEVEL = LevelOfTheory("some PBE", "some code", "PBE", {"cutoff": 500})
MU = {"S": -4.0, "Se": -3.5}
PRISTINE = Configuration((), ())
ORIGIN = Origin("a test")
GAN_BULK, GAN_VACANCY = -213.90677977, -200.60111399  # eV, e_0_energy at the end of the runs of GaN_v_N


def mos2(label: str = "2x2") -> Supercell:
    return Supercell.parse(catalogue_host("MoS2"), label)


def defects(supercell: Supercell, *named: tuple[str, int]) -> Configuration:
    """Defects by name and by their place among the sites where they can sit."""
    pairs = []
    for name, number in named:
        defect_type = DefectType.parse(name)
        pairs.append((int(supercell.allowed(defect_type)[number]), defect_type.code))
    pairs.sort()
    return Configuration(tuple(site for site, _ in pairs), tuple(code for _, code in pairs))


def prepared(session: Session) -> tuple[StoredSupercell, int]:
    """2x2 MoS2 with a pristine energy of -100 eV and chemical potentials."""
    stored = add_supercell(session, mos2())
    level_id = add_level(session, LEVEL)
    queries.add_chemical_potentials(session, level_id, {e: (mu, "a test") for e, mu in MU.items()})
    store_results(
        session, stored, level_id, [NewResult("pristine", CalculationResult(PRISTINE, -100.0, {}))], origin=ORIGIN
    )
    return stored, level_id


def result_of(session: Session, name: str) -> tables.CalculationResult:
    return session.scalars(select(tables.CalculationResult).where(tables.CalculationResult.row_name == name)).one()


def count(session: Session, table: type[tables.Table]) -> int:
    return session.scalar(select(func.count()).select_from(table)) or 0


def add_calculation(
    session: Session, stored: StoredSupercell, level_id: int, **columns: Any
) -> tuple[int, Configuration]:
    """A calculation of a sulphur vacancy; its id and configuration."""
    configuration = defects(stored.supercell, ("v_S", 0))
    (configuration_id,) = add_configurations(session, stored, [configuration])
    calculation = tables.Calculation(configuration_id=configuration_id, level_id=level_id, **columns)
    session.add(calculation)
    session.flush()
    return calculation.id, configuration


def test_the_shipped_data_set_is_taken_in_once(session: Session) -> None:
    rows = builtin.read().rows
    good = [row for row in rows if row.error is None]
    seen: list[tuple[int, int]] = []
    first = import_builtin(session, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(good), len(good))
    assert len(seen) > 1
    assert (first.read, first.new, first.known) == (len(rows), len(good), 0)
    assert first.notes == ()
    n_results = count(session, tables.CalculationResult)
    assert n_results == len(good) + 1
    again = import_builtin(session)
    assert (again.read, again.new, again.known) == (len(rows), 0, len(good))
    assert count(session, tables.CalculationResult) == n_results
    assert count(session, tables.SourceFile) == 1


def test_shipped_results_keep_their_numbers_splits_and_level(session: Session) -> None:
    import_builtin(session)
    dataset = builtin.read()
    level_id = queries.level_id_of(session, "GFN1-xTB single point")
    stored = session.scalars(
        select(tables.CalculationResult)
        .join(tables.Calculation)
        .join(tables.Configuration)
        .where(tables.Calculation.level_id == level_id, tables.Configuration.n_defects > 0)
    ).all()
    by_name = {row.row_name: row for row in stored}
    assert len(by_name) == len(stored)
    for row in dataset.rows:
        if row.error is None:
            found = by_name[row.name]
            assert found.formation_energy == pytest.approx(row.numbers["formation_energy"], abs=2e-6)
            assert found.formation_energy_per_site == pytest.approx(
                row.numbers["formation_energy"] / row.configuration.n_defects, abs=2e-6
            )
            assert found.homo_lumo_gap_min == row.numbers["homo_lumo_gap_min"]
            assert found.split == row.split


def test_references_are_calculated_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = add_supercell(session, mos2())
    vacancy = defects(stored.supercell, ("v_S", 1))
    level = xtb.level_of_theory()
    add_references(session, stored, vacancy, level)
    level_id = add_level(session, level)
    assert queries.chemical_potentials(session, level_id) == {"S": pytest.approx(xtb.reference("S")[0])}
    pristine = xtb.calculate(stored.supercell, PRISTINE)
    assert queries.pristine_energy(session, stored.id, level_id) == pytest.approx(pristine.energy, abs=1e-5)
    monkeypatch.delattr(xtb, "calculate")
    monkeypatch.delattr(xtb, "reference")
    add_references(session, stored, vacancy, level)


def test_references_of_a_foreign_level_cannot_be_calculated(session: Session) -> None:
    stored = add_supercell(session, mos2())
    with pytest.raises(InputError, match="'some PBE' are missing"):
        add_references(session, stored, PRISTINE, LEVEL)


def test_an_element_without_a_reference_is_named(session: Session) -> None:
    stored = add_supercell(session, mos2())
    with pytest.raises(UnknownNameError, match="chemical potential of Te"):
        add_references(session, stored, defects(stored.supercell, ("Te_S", 0)), xtb.level_of_theory())


def test_shipped_potentials_that_differ_from_those_of_the_database_are_refused(session: Session) -> None:
    level_id = add_level(session, xtb.level_of_theory())
    queries.add_chemical_potentials(session, level_id, {"S": (-99.0, "another reference")})
    with pytest.raises(LevelOfTheoryError, match=r"of S is -99.000000 eV in the database"):
        import_builtin(session)


def test_a_result_is_stored_with_its_formation_energy(session: Session) -> None:
    stored, level_id = prepared(session)
    calculation_id, configuration = add_calculation(session, stored, level_id)
    found = CalculationResult(configuration, -93.0, {"homo": -5.0, "lumo": -4.5, "homo_lumo_gap_min": 0.5})
    identifier = store_result(session, stored, calculation_id, found, dataset="round 1", row_name="it", split="train")
    row = session.get_one(tables.CalculationResult, identifier)
    assert row.formation_energy == pytest.approx(-93.0 + 100.0 - 4.0)
    assert row.formation_energy_per_site == row.formation_energy
    assert (row.homo, row.lumo, row.homo_lumo_gap_min, row.total_mag) == (-5.0, -4.5, 0.5, None)
    assert (row.dataset, row.row_name, row.split) == ("round 1", "it", "train")


@pytest.mark.parametrize(("energy", "homo"), [(math.nan, -5.0), (math.inf, -5.0), (-93.0, math.nan)])
def test_a_number_that_is_not_finite_is_refused(session: Session, energy: float, homo: float) -> None:
    stored, level_id = prepared(session)
    calculation_id, configuration = add_calculation(session, stored, level_id)
    found = CalculationResult(configuration, energy, {"homo": homo})
    with pytest.raises(InputError, match=r"(energy|homo) is (nan|inf); expected finite"):
        store_result(session, stored, calculation_id, found, dataset="a", row_name="b")
    ledger = store_results(session, stored, level_id, [NewResult("b", found)], origin=ORIGIN)
    assert [name for name, _ in ledger.refusals] == ["b"]


@pytest.mark.parametrize("state", ["proposed", "waiting", "failed"])
def test_a_result_ends_a_calculation_that_is_open(session: Session, state: str) -> None:
    stored, level_id = prepared(session)
    calculation_id, configuration = add_calculation(
        session, stored, level_id, state=state, error="as before" if state == "failed" else None
    )
    rows = [NewResult("it", CalculationResult(configuration, -93.0, {}))]
    ledger = store_results(session, stored, level_id, rows, origin=ORIGIN)
    assert ledger.new == ["it"]
    assert result_of(session, "it").calculation_id == calculation_id
    calculation = session.get_one(tables.Calculation, calculation_id)
    session.refresh(calculation)
    assert (calculation.state, calculation.error) == ("finished", None)


def test_a_calculation_that_a_worker_is_running_is_left_to_it(session: Session) -> None:
    stored, level_id = prepared(session)
    _, configuration = add_calculation(
        session, stored, level_id, state="running", lease_owner="worker", lease_until=func.now()
    )
    rows = [NewResult("it", CalculationResult(configuration, -93.0, {}))]
    ledger = store_results(session, stored, level_id, rows, origin=ORIGIN)
    assert ledger.refusals == [("it", "a worker is calculating this configuration; add the result afterwards")]


def test_a_second_result_of_an_equivalent_configuration_is_known_and_never_overwrites(session: Session) -> None:
    stored, level_id = prepared(session)
    one, other = (defects(stored.supercell, ("v_S", number)) for number in (0, 5))
    assert one != other
    assert canonical_form(stored.symmetry, one) == canonical_form(stored.symmetry, other)
    rows = [
        NewResult("one", CalculationResult(one, -93.0, {})),
        NewResult("same", CalculationResult(other, -93.0, {})),
        NewResult("other", CalculationResult(other, -92.0, {})),
    ]
    ledger = store_results(session, stored, level_id, rows, origin=ORIGIN)
    assert (ledger.new, ledger.known) == (["one"], ["same", "other"])
    ((name, note),) = ledger.notes
    assert name == "other"
    assert "its energy is -92.000000 eV" in note
    assert "-93.000000 eV, which is kept" in note
    assert result_of(session, "one").energy == -93.0


def frames(supercell: Supercell, configurations: list[Configuration], path: Path, **info: Any) -> None:
    """Write configurations as another program would: atoms in another order, displaced, shifted, wrapped."""
    generator = np.random.default_rng(1)
    images = []
    for i, configuration in enumerate(configurations):
        species, positions = supercell.structure(configuration)
        order = generator.permutation(len(species))
        moved = positions[order] + generator.normal(0, 0.05, (len(species), 3)) + [1.0, 2.0, 0.3]
        atoms = ase.Atoms([species[k] for k in order], positions=moved, cell=supercell.lattice, pbc=True)
        atoms.wrap()
        atoms.info = {key: value[i] for key, value in info.items()}
        images.append(atoms)
    ase.io.write(path, images, format="extxyz")


def known_level(engine: Engine) -> None:
    with session_scope(engine) as session:
        prepared(session)


def test_extxyz_frames_become_results_of_their_configurations(clean_engine: Engine, tmp_path: Path) -> None:
    known_level(clean_engine)
    supercell = mos2()
    wanted = [defects(supercell, ("v_S", 3)), defects(supercell, ("Se_S", 0), ("v_S", 4))]
    path = tmp_path / "done.extxyz"
    frames(supercell, wanted, path, energy=[-93.0, -91.0], homo_lumo_gap_min=[0.9, 0.8], total_mag=[0.0, 2.0])
    report = add_result_files(clean_engine, [path], level_name=LEVEL.name)
    assert (report.read, report.new, report.refused, report.notes) == (2, 2, 0, ())
    again = add_result_files(clean_engine, [path], level_name=LEVEL.name)
    assert (again.read, again.new, again.known) == (2, 0, 2)
    with session_scope(clean_engine) as session:
        found = session.execute(
            select(tables.CalculationResult, tables.Configuration.sites, tables.Configuration.defect_types)
            .join(tables.Calculation, tables.Calculation.id == tables.CalculationResult.calculation_id)
            .join(tables.Configuration, tables.Configuration.id == tables.Calculation.configuration_id)
            .where(tables.CalculationResult.source_file_id.is_not(None))
            .order_by(tables.CalculationResult.energy)
        ).all()
        symmetry = add_supercell(session, supercell).symmetry
        for (row, sites, types), configuration in zip(found, wanted, strict=True):
            canonical, _ = canonical_form(symmetry, configuration)
            assert (tuple(sites), tuple(types)) == (canonical.sites, canonical.defect_types)
            assert row.homo_lumo_gap_min == (0.9 if configuration.n_defects == 1 else 0.8)
        assert found[0][0].formation_energy == pytest.approx(7.0 - 4.0)
        assert found[1][0].formation_energy == pytest.approx(9.0 - 2 * 4.0 + 3.5)
        (file,) = session.scalars(select(tables.SourceFile)).all()
        assert (file.path, file.kind, file.size) == (str(path), "extxyz", path.stat().st_size)


def test_a_frame_that_cannot_be_used_is_refused_and_the_others_are_taken(clean_engine: Engine, tmp_path: Path) -> None:
    known_level(clean_engine)
    supercell = mos2()
    wanted = [defects(supercell, (name, 0)) for name in ("v_S", "Se_S", "v_Mo")]
    path = tmp_path / "mixed.extxyz"
    frames(supercell, wanted, path, energy=[-93.0, -99.0, math.nan], converged=[True, False, True])
    report = add_result_files(clean_engine, [path], level_name=LEVEL.name)
    assert (report.read, report.new, report.refused) == (3, 1, 2)
    reasons = [reason for _, reason in report.refusals]
    assert reasons == ["the file says that it is not converged", "its energy is nan; expected a finite number"]
    with session_scope(clean_engine) as session:
        states = session.scalars(select(tables.Calculation.state).order_by(tables.Calculation.id)).all()
        assert sorted(states) == ["failed", "failed", "finished", "finished"]  # the pristine supercell is the fourth


def test_a_result_without_references_waits_for_its_formation_energy(clean_engine: Engine, tmp_path: Path) -> None:
    supercell = mos2()
    paths = [tmp_path / "vacancy.extxyz", tmp_path / "pristine.extxyz"]
    frames(supercell, [defects(supercell, ("v_S", 0))], paths[0], energy=[-93.0])
    frames(supercell, [PRISTINE], paths[1], energy=[-100.0])
    report = add_result_files(clean_engine, paths[:1], level_name="a new level", new_level=True)
    assert report.new == 1
    ((_, note),) = report.notes
    assert note.startswith("no formation energy yet: no energy of the pristine supercell")
    report = add_result_files(
        clean_engine, paths[1:], level_name="a new level", new_level=True, chemical_potentials={"S": -4.0}
    )
    assert (report.new, report.notes) == (1, ())
    with session_scope(clean_engine) as session:
        energies = session.scalars(select(tables.CalculationResult.formation_energy)).all()
        assert sorted(e for e in energies if e is not None) == [pytest.approx(3.0)]


def test_files_that_do_not_say_their_level_need_its_name(clean_engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "done.extxyz"
    frames(mos2(), [defects(mos2(), ("v_S", 0))], path, energy=[-93.0])
    report = add_result_files(clean_engine, [path])
    assert [reason for _, reason in report.refusals] == [
        "the file does not say its level of theory; name it with --level"
    ]


def test_a_level_that_nobody_knows_is_not_added_by_mistake(clean_engine: Engine, tmp_path: Path) -> None:
    known_level(clean_engine)
    path = tmp_path / "done.extxyz"
    frames(mos2(), [defects(mos2(), ("v_S", 0))], path, energy=[-93.0])
    with pytest.raises(UnknownNameError, match="'some PBA'; known are some PBE; --new-level makes a new one"):
        add_result_files(clean_engine, [path], level_name="some PBA")
    with session_scope(clean_engine) as session:
        assert session.scalars(select(tables.LevelOfTheory.name)).all() == ["some PBE"]
    report = add_result_files(clean_engine, [path], level_name="some PBA", new_level=True)
    assert report.new == 1
    again = add_result_files(clean_engine, [path], level_name="some PBA", new_level=True)
    assert (again.new, again.known) == (0, 1)


def test_a_vasp_run_may_be_the_first_of_a_level_that_is_named(clean_engine: Engine, shared_data: Path) -> None:
    bulk = shared_data / "vasp" / "GaN_v_N" / "bulk"
    with pytest.raises(UnknownNameError, match="'ours'; known are none"):
        add_result_files(clean_engine, [bulk], level_name="ours")
    report = add_result_files(clean_engine, [bulk], level_name="ours", new_level=True)
    assert (report.new, report.refused) == (1, 0)
    with session_scope(clean_engine) as session:
        level = session.scalars(select(tables.LevelOfTheory)).one()
        assert (level.name, level.code) == ("ours", "VASP")


def test_progress_names_the_file_at_hand(clean_engine: Engine, tmp_path: Path) -> None:
    known_level(clean_engine)
    for n, name in enumerate(("a.extxyz", "b.extxyz")):
        frames(mos2(), [defects(mos2(), (("v_S", "Se_S")[n], 0))], tmp_path / name, energy=[-93.0])
    seen: list[tuple[int, int, str]] = []
    add_result_files(clean_engine, [tmp_path], level_name=LEVEL.name, on_progress=lambda *found: seen.append(found))
    assert seen == [(0, 2, "a.extxyz"), (1, 2, "b.extxyz")]


def test_a_table_names_sites_or_structures(clean_engine: Engine, tmp_path: Path) -> None:
    known_level(clean_engine)
    supercell = mos2()
    frames(supercell, [defects(supercell, ("v_Mo", 0))], tmp_path / "metal.xyz")
    path = tmp_path / "done.csv"
    path.write_text(
        "name,structure,sites,defect_types,energy,homo_lumo_gap_min\n"
        "one,,4 9,Se_S v_S,-91.0,0.8\n"
        "two,metal.xyz,,,-88.0,\n"
        "wrong site,,0,v_S,-93.0,0.9\n"
        "no energy,,4,v_S,,0.9\n"
        "outside,../metal.xyz,,,-1.0,\n"
        "not paired,,4 5,v_S,-93.0,\n"
        "one,,4 6,v_S v_S,-85.0,\n"
    )
    report = add_result_files(clean_engine, [path], level_name=LEVEL.name, host_name="MoS2")
    assert (report.read, report.new, report.refused) == (7, 2, 5)
    reasons = " | ".join(reason for _, reason in report.refusals)
    assert "v_S is on site 0; 2x2 MoS2 has S on the sites [4, 5" in reasons
    assert "its energy is ''; expected a finite number" in reasons
    assert "../metal.xyz lies outside the table's folder" in reasons
    assert "the table has two rows called 'one'; name each once" in reasons
    assert "sites '4 5' and defect types 'v_S' do not go together" in reasons
    ((_, note),) = report.notes
    assert "no chemical potential of Mo" in note


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("done.csv", b"structure,gap\n", "expected energy, and structure or sites"),
        ("done.csv.gz", gzip.compress(b"structure,energy\n" * 99, mtime=0)[:30], "is cut short or no CSV file"),
        ("done.extxyz", b"2\nnothing\nS 0 0", "cannot be read as extxyz"),
        ("vasprun.xml", b"<modeling><generator>", "is cut short or no vasprun.xml"),
        ("vasprun.xml.gz", b"nothing", "is cut short or no vasprun.xml"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_reason(
    clean_engine: Engine, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    report = add_result_files(clean_engine, [tmp_path / name], level_name="some level", new_level=True)
    assert (report.read, report.refused) == (1, 1)
    assert message in report.refusals[0][1]
    with session_scope(clean_engine) as session:
        assert count(session, tables.SourceFile) == 0


def test_paths_that_are_no_results_are_refused(clean_engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    for path, message in [("notes.txt", "of no known kind"), ("empty", "holds no"), ("absent.csv", "is not there")]:
        with pytest.raises(FileFormatError, match=message):
            add_result_files(clean_engine, [tmp_path / path])


def test_vasp_runs_bring_their_host_and_level(clean_engine: Engine, shared_data: Path) -> None:
    report = add_result_files(clean_engine, [shared_data / "vasp"])
    assert (report.read, report.new, report.refused) == (4, 4, 0)
    assert sorted(note for _, note in report.notes) == [
        "no formation energy yet: no chemical potential of Ga for Mg_Ga; known are none: add it to the level of theory",
        "no formation energy yet: no chemical potential of N for v_N; known are none: add it to the level of theory",
    ]
    with session_scope(clean_engine) as session:
        (host,) = session.scalars(select(tables.Host)).all()
        assert (host.name, host.species, host.is_layer) == ("GaN", ["Ga", "Ga", "N", "N"], False)
        levels = session.scalars(select(tables.LevelOfTheory).order_by(tables.LevelOfTheory.name)).all()
        assert [level.name for level in levels] == ["VASP PBEsol 420 eV", "VASP PBEsol 500 eV"]
        assert levels[1].settings["pseudopotentials"]["Mg"] == "PAW_PBE Mg 13Apr2007"
        labels = session.scalars(
            select(tables.Composition.label).join(tables.Configuration).order_by(tables.Composition.label)
        ).all()
        assert labels == ["Mg_Ga", "pristine", "pristine", "v_N"]
        magnetic = session.scalars(
            select(tables.CalculationResult.total_mag)
            .join(tables.Calculation)
            .join(tables.Configuration)
            .where(tables.Configuration.n_defects > 0)
        ).all()
        assert magnetic == [pytest.approx(1.0, abs=0.02)] * 2  # an acceptor and a donor, neutral: one unpaired electron
    again = add_result_files(clean_engine, [shared_data / "vasp"])
    assert (again.new, again.known) == (0, 4)


def test_a_vasp_formation_energy_is_that_of_its_definition(clean_engine: Engine, shared_data: Path) -> None:
    runs = [shared_data / "vasp" / "GaN_v_N" / part / "vasprun.xml.gz" for part in ("defect", "bulk")]
    report = add_result_files(clean_engine, runs, host_name="gallium nitride", chemical_potentials={"N": -8.3})
    assert (report.new, report.refused, report.notes) == (2, 0, ())
    with session_scope(clean_engine) as session:
        row = session.scalars(
            select(tables.CalculationResult).where(tables.CalculationResult.formation_energy.is_not(None))
        ).one()
        assert row.energy == pytest.approx(GAN_VACANCY, abs=1e-7)
        assert row.formation_energy == pytest.approx(GAN_VACANCY - GAN_BULK - 8.3, abs=1e-7)
        assert row.dataset == "gallium nitride files at VASP PBEsol 420 eV"


def test_a_defect_without_a_known_host_is_refused(clean_engine: Engine, shared_data: Path) -> None:
    report = add_result_files(clean_engine, [shared_data / "vasp" / "GaN_v_N" / "defect"])
    assert (report.new, report.refused) == (0, 1)
    assert "add its host first" in report.refusals[0][1]


def edited(source: Path, target: Path, edit: Callable[[str], str]) -> Path:
    """A copy of a run with something changed in its XML."""
    text = gzip.decompress(source.read_bytes()).decode()
    changed = edit(text)
    assert changed != text
    target.mkdir(parents=True)
    (target / "vasprun.xml").write_text(changed)
    return target / "vasprun.xml"


def set_parameter(name: str, value: str) -> Callable[[str], str]:
    return lambda text: re.sub(rf'(name="{name}"\s*>)[^<]*', rf"\g<1> {value}", text)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("NELM", "6", "its self-consistency did not converge in 6 steps"),
        ("NSW", "2", "its relaxation did not converge in 2 steps"),
        ("NELECT", "282.0", r"its cell has a charge of \+1; only neutral defects"),
    ],
)
def test_a_vasp_run_that_cannot_be_used_is_kept_as_failed(
    clean_engine: Engine, shared_data: Path, tmp_path: Path, name: str, value: str, reason: str
) -> None:
    folder = shared_data / "vasp" / "GaN_v_N"
    bad = edited(folder / "defect" / "vasprun.xml.gz", tmp_path / "bad", set_parameter(name, value))
    report = add_result_files(clean_engine, [bad, folder / "bulk"])
    assert (report.new, report.refused) == (1, 1)
    assert re.match(reason, report.refusals[0][1])
    with session_scope(clean_engine) as session:
        failed = session.scalars(select(tables.Calculation).where(tables.Calculation.state == "failed")).one()
        assert re.match(reason, failed.error or "")
        failure = session.scalars(select(tables.CalculationFailure)).one()
        assert (failure.calculation_id, failure.attempt, failure.reason) == (failed.id, 1, failed.error)
        file = session.get_one(tables.SourceFile, failure.source_file_id)
        assert (file.path, file.sha256) == (str(bad), hashlib.sha256(bad.read_bytes()).hexdigest())
    report = add_result_files(clean_engine, [folder / "defect"])
    assert report.new == 1
    with session_scope(clean_engine) as session:
        assert set(session.scalars(select(tables.Calculation.state))) == {"finished"}


def test_one_bad_file_does_not_lose_the_others(clean_engine: Engine, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "vasp" / "GaN_v_N"
    for part in ("bulk", "defect"):
        shutil.copytree(source / part, tmp_path / part)
    content = (source / "defect" / "vasprun.xml.gz").read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "vasprun.xml.gz").write_bytes(content[: len(content) // 2])
    report = add_result_files(clean_engine, [tmp_path])
    assert (report.read, report.new, report.refused, report.failed) == (3, 2, 1, 1)
    assert report.refusals[0][0].startswith("cut/vasprun.xml.gz ")
    assert "cut short" in report.refusals[0][1]


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_a_run_cut_short_is_a_failed_calculation_until_it_is_run_to_its_end(
    clean_engine: Engine, shared_data: Path, tmp_path: Path, share: float
) -> None:
    folder = shared_data / "vasp" / "GaN_v_N"
    text = gzip.decompress((folder / "defect" / "vasprun.xml.gz").read_bytes())
    cut = tmp_path / "cut" / "vasprun.xml"
    cut.parent.mkdir()
    cut.write_bytes(text[: int(share * len(text))])
    for _ in range(2):  # the same file again is no second attempt
        report = add_result_files(clean_engine, [cut, folder / "bulk"])
        assert (report.refused, report.failed) == (1, 1)
    with session_scope(clean_engine) as session:
        failed = session.scalars(select(tables.Calculation).where(tables.Calculation.state == "failed")).one()
        configuration = session.get_one(tables.Configuration, failed.configuration_id)
        assert session.get_one(tables.Composition, configuration.composition_id).label == "v_N"
        assert failed.error == "it is cut short after 7 ionic steps; fetch it again or run it to its end"
        failure = session.scalars(select(tables.CalculationFailure)).one()
        assert session.get_one(tables.SourceFile, failure.source_file_id).path == str(cut)
    report = add_result_files(clean_engine, [folder / "defect"])
    assert (report.new, report.refused) == (1, 0)
    with session_scope(clean_engine) as session:
        assert set(session.scalars(select(tables.Calculation.state))) == {"finished"}
        assert session.scalars(select(tables.CalculationFailure.attempt)).all() == [1]


def other_cutoff(shared_data: Path, target: Path) -> Path:
    """The run of the vacancy with another cutoff than its bulk run."""
    source = shared_data / "vasp" / "GaN_v_N" / "defect" / "vasprun.xml.gz"
    return edited(source, target, set_parameter("ENMAX", "400.0"))


@pytest.mark.parametrize("bulk_first", [True, False])
def test_a_defect_run_with_other_settings_than_its_pristine_run_is_refused(
    clean_engine: Engine, shared_data: Path, tmp_path: Path, bulk_first: bool
) -> None:
    bulk = shared_data / "vasp" / "GaN_v_N" / "bulk" / "vasprun.xml.gz"
    add_host_of(clean_engine, bulk)
    wrong = other_cutoff(shared_data, tmp_path / "defect")
    report = add_result_files(clean_engine, [bulk, wrong] if bulk_first else [wrong, bulk])
    assert (report.new, report.refused, report.failed) == (1, 1, 0)
    ((path, reason),) = report.refusals
    assert path == str(wrong) or path.startswith("defect/vasprun.xml ")
    assert "pristine run at 'VASP PBEsol 420 eV': cutoff 400 against 420; energies of the two" in reason
    with session_scope(clean_engine) as session:
        assert session.scalars(select(tables.LevelOfTheory.name)).all() == ["VASP PBEsol 420 eV"]
        assert count(session, tables.CalculationResult) == 1
    report = add_result_files(clean_engine, [wrong], level_name="cheap", new_level=True)
    assert (report.new, report.refused) == (1, 0)
    assert "no energy of the pristine supercell at this level" in report.notes[0][1]


def add_host_of(engine: Engine, bulk: Path) -> None:
    """Store the host of a bulk run, without its result."""
    structure = read_vasprun(bulk).structure
    assert structure is not None
    host = host_of_bulk(structure)
    assert host is not None
    with session_scope(engine) as session:
        add_supercell(session, find_supercell(structure, [host]))


def test_a_defect_run_whose_pristine_run_is_not_there_yet_is_taken_in(
    clean_engine: Engine, shared_data: Path, tmp_path: Path
) -> None:
    bulk = shared_data / "vasp" / "GaN_v_N" / "bulk" / "vasprun.xml.gz"
    add_host_of(clean_engine, bulk)
    report = add_result_files(clean_engine, [shared_data / "vasp" / "GaN_v_N" / "defect"])
    assert (report.new, report.refused) == (1, 0)
    report = add_result_files(clean_engine, [bulk], chemical_potentials={"N": -8.3})
    assert (report.new, report.notes) == (1, ())
    with session_scope(clean_engine) as session:
        energies = session.scalars(select(tables.CalculationResult.formation_energy)).all()
        assert sorted(e for e in energies if e is not None) == [pytest.approx(GAN_VACANCY - GAN_BULK - 8.3, abs=1e-7)]


def test_rows_of_an_ase_database_become_results(clean_engine: Engine, tmp_path: Path) -> None:
    known_level(clean_engine)
    supercell = mos2()
    frames(supercell, [defects(supercell, ("v_S", 3)), defects(supercell, ("Se_S", 0))], tmp_path / "a.extxyz")
    path = tmp_path / "done.db"
    with ase.db.connect(path) as database:
        for atoms, energy in zip(ase.io.read(tmp_path / "a.extxyz", ":"), (-93.0, -99.5), strict=True):
            atoms.calc = SinglePointCalculator(atoms, energy=energy)
            database.write(atoms, homo_lumo_gap_min=0.9, converged=energy > -95.0)
    report = add_result_files(clean_engine, [path], level_name=LEVEL.name)
    assert (report.read, report.new, report.refused, report.failed) == (2, 1, 1, 1)
    with session_scope(clean_engine) as session:
        (row,) = session.scalars(
            select(tables.CalculationResult).where(tables.CalculationResult.source_file_id.is_not(None))
        )
        assert (row.energy, row.homo_lumo_gap_min) == (-93.0, 0.9)
        assert row.formation_energy == pytest.approx(7.0 - 4.0)
        assert {file.kind for file in session.scalars(select(tables.SourceFile))} == {"ase"}


def vasp_level(cutoff: float = 500.0, **potentials: str) -> LevelOfTheory:
    settings = {"cutoff": cutoff, "pseudopotentials": potentials, "hubbard_u": dict.fromkeys(potentials, 0.0)}
    return LevelOfTheory(f"VASP PBE {cutoff:g} eV", "VASP", "PBE", settings)


def test_a_level_of_vasp_grows_by_elements_and_splits_where_they_disagree(session: Session) -> None:
    first = join_vasp_level(session, vasp_level(Ga="Ga_d", N="N"))
    assert join_vasp_level(session, vasp_level(Ga="Ga_d", N="N", Mg="Mg")) == first
    assert join_vasp_level(session, vasp_level(N="N", Mg="Mg")) == first
    assert join_vasp_level(session, vasp_level(N="N", Mg="Mg_pv")) != first
    assert join_vasp_level(session, vasp_level(520.0, Ga="Ga_d", N="N")) != first
    names = session.scalars(select(tables.LevelOfTheory.name).order_by(tables.LevelOfTheory.name)).all()
    assert names == ["VASP PBE 500 eV", "VASP PBE 500 eV (2)", "VASP PBE 520 eV"]
    level = session.get_one(tables.LevelOfTheory, first)
    assert level.digest == LevelOfTheory(level.name, level.code, level.functional, level.settings).digest


def test_a_run_must_belong_to_the_level_that_is_named(session: Session) -> None:
    first = join_vasp_level(session, vasp_level(Ga="Ga_d"), "ours")
    assert join_vasp_level(session, vasp_level(Ga="Ga_d", N="N"), "ours") == first
    with pytest.raises(LevelOfTheoryError, match="'ours' has other settings than this run"):
        join_vasp_level(session, vasp_level(Ga="Ga_h"), "ours")
