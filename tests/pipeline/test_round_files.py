"""Rounds that are calculated elsewhere, with the real runs of GaN as what comes back."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from pymatgen.io.vasp.inputs import Incar, Kpoints, Poscar
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from screening.database import rounds, tables
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.matching import find_supercell
from screening.dft import xtb
from screening.dft.results import LevelOfTheory
from screening.dft.vasp import host_of_bulk, read_vasprun
from screening.errors import FileFormatError, InputError, UnknownNameError
from screening.pipeline.hosts import add_configurations, add_supercell, load_supercell
from screening.pipeline.references import add_level, join_vasp_level
from screening.pipeline.result_rows import record_failures
from screening.pipeline.round_files import export_round, fail_submitted, import_round


def run_of(shared_data: Path, name: str) -> Path:
    return shared_data / "vasp" / name / "vasprun.xml.gz"


def gan_round(session: Session, shared_data: Path, *types: str) -> dict[str, int]:
    """A round of single defects of GaN at the level of the run of its vacancy; ids of the calculations by type."""
    bulk, defect = (read_vasprun(run_of(shared_data, f"GaN_v_N/{part}")) for part in ("bulk", "defect"))
    assert bulk.structure is not None
    assert defect.level is not None
    host = host_of_bulk(bulk.structure)
    assert host is not None
    stored = add_supercell(session, find_supercell(bulk.structure, [host]))
    level_id = join_vasp_level(session, defect.level)
    model = tables.TrainedModel(
        name="a model", level_id=level_id, properties=[], settings={}, seed=0, state="finished", weights=b"w"
    )
    session.add(model)
    session.flush()
    round_ = tables.Round(model_id=model.id, level_id=level_id, query={}, seed=0, name="first")
    session.add(round_)
    session.flush()
    ids = {}
    for name in types:
        defect_type = DefectType.parse(name)
        configuration = Configuration((int(stored.supercell.allowed(defect_type)[0]),), (defect_type.code,))
        (configuration_id,) = add_configurations(session, stored, [configuration])
        calculation = tables.Calculation(
            configuration_id=configuration_id, level_id=level_id, round_id=round_.id, state="proposed", proposal="why"
        )
        session.add(calculation)
        session.flush()
        ids[name] = calculation.id
    return ids


def export(engine: Engine, folder: Path, **options: object) -> tuple[str, ...]:
    with session_scope(engine) as session:
        round_id = rounds.find_round(session, "first").id
        return export_round(session, round_id, folder, **options).notes  # type: ignore[arg-type]


def states(engine: Engine) -> dict[int, tuple[str, int, str | None]]:
    with session_scope(engine) as session:
        rows = session.scalars(select(tables.Calculation).order_by(tables.Calculation.id)).all()
        return {row.id: (row.state, row.attempts, row.error) for row in rows}


def exported(engine: Engine, shared_data: Path, folder: Path, *types: str) -> dict[str, int]:
    with session_scope(engine) as session:
        ids = gan_round(session, shared_data, *types)
    export(engine, folder)
    return ids


def test_a_folder_for_each_calculation_and_its_pristine_supercell(
    clean_engine: Engine, shared_data: Path, tmp_path: Path
) -> None:
    with session_scope(clean_engine) as session:
        ids = gan_round(session, shared_data, "v_N")
    notes = export(clean_engine, tmp_path / "out")
    (vacancy,) = ids.values()
    assert re.match(r"the pristine GaN .* has no result at this level; calculation \d+ is that", notes[0])
    assert notes[1].startswith("no chemical potential of N at this level")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["defects"][:4] for entry in manifest["calculations"]] == ["v_N@", "the "]
    assert (manifest["name"], manifest["level"]) == ("first", "VASP PBEsol 420 eV")
    folder = tmp_path / "out" / f"calculation-{vacancy}"
    assert sorted(path.name for path in folder.iterdir()) == [
        "INCAR", "KPOINTS", "POSCAR", "POTCAR.spec", "calculation.json",
    ]  # fmt: skip
    assert Poscar.from_file(folder / "POSCAR", check_for_potcar=False).structure.composition.formula == "Ga16 N15"
    assert Incar.from_file(folder / "INCAR")["ENCUT"] == 420.0
    assert Kpoints.from_file(folder / "KPOINTS").kpts == [(0.25, 0.25, 0.25)]
    assert (folder / "POTCAR.spec").read_text().split() == ["Ga_d", "N"]
    assert {state for state, _, _ in states(clean_engine).values()} == {"exported"}


def test_again_writes_the_same_and_changes_nothing(clean_engine: Engine, shared_data: Path, tmp_path: Path) -> None:
    exported(clean_engine, shared_data, tmp_path / "out", "v_N", "v_Ga")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    was = states(clean_engine)
    export(clean_engine, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert states(clean_engine) == was


def test_what_comes_back_finishes_its_calculation(clean_engine: Engine, shared_data: Path, tmp_path: Path) -> None:
    ids = exported(clean_engine, shared_data, tmp_path / "out", "v_N", "v_Ga")
    pristine = max(states(clean_engine))
    for part, identifier in (("defect", ids["v_N"]), ("bulk", pristine)):
        shutil.copy(run_of(shared_data, f"GaN_v_N/{part}"), tmp_path / "out" / f"calculation-{identifier}")
    report = import_round(clean_engine, tmp_path / "out", chemical_potentials={"N": -8.3})
    assert (report.intake.new, report.intake.refused, report.without_result) == (2, 0, (ids["v_Ga"],))
    assert report.states == {"exported": 1, "finished": 2}
    found = states(clean_engine)
    assert [found[i][0] for i in (ids["v_N"], ids["v_Ga"], pristine)] == ["finished", "exported", "finished"]
    with session_scope(clean_engine) as session:
        row = session.scalars(
            select(tables.CalculationResult).where(tables.CalculationResult.calculation_id == ids["v_N"])
        ).one()
        assert row.energy == pytest.approx(-200.60111399)
        assert row.formation_energy == pytest.approx(-200.60111399 + 213.90677977 - 8.3)
    again = import_round(clean_engine, tmp_path / "out")
    assert (again.intake.new, again.intake.known) == (0, 2)


def test_a_run_in_the_folder_of_another_calculation_is_refused(
    clean_engine: Engine, shared_data: Path, tmp_path: Path
) -> None:
    ids = exported(clean_engine, shared_data, tmp_path / "out", "v_Ga")
    shutil.copy(run_of(shared_data, "GaN_v_N/defect"), tmp_path / "out" / f"calculation-{ids['v_Ga']}")
    report = import_round(clean_engine, tmp_path / "out")
    assert (report.intake.new, report.intake.refused, report.intake.failed) == (0, 1, 0)
    reason = report.intake.refusals[0][1]
    assert re.search(rf"it calculates v_N@\d+ of GaN .* that of calculation {ids['v_Ga']}, v_Ga@\d+", reason)
    assert {state for state, _, _ in states(clean_engine).values()} == {"exported"}


def test_a_run_at_another_level_is_refused(clean_engine: Engine, shared_data: Path, tmp_path: Path) -> None:
    ids = exported(clean_engine, shared_data, tmp_path / "out", "v_N")
    text = gzip.decompress(run_of(shared_data, "GaN_v_N/defect").read_bytes()).decode()
    path = tmp_path / "out" / f"calculation-{ids['v_N']}" / "vasprun.xml"
    path.write_text(re.sub(r'(name="ENMAX">\s*)420', r"\g<1>400", text))
    report = import_round(clean_engine, tmp_path / "out")
    assert "not run at the round's level 'VASP PBEsol 420 eV': cutoff 400 against 420" in report.intake.refusals[0][1]
    assert states(clean_engine)[ids["v_N"]][0] == "exported"


@pytest.mark.parametrize("share", [0.0005, 0.3])
def test_what_fails_is_exported_again_three_times_at_most(
    clean_engine: Engine, shared_data: Path, tmp_path: Path, share: float
) -> None:
    out = tmp_path / "out"
    ids = exported(clean_engine, shared_data, out, "v_N")
    text = gzip.decompress(run_of(shared_data, "GaN_v_N/defect").read_bytes())
    path = out / f"calculation-{ids['v_N']}" / "vasprun.xml"
    for attempt in (1, 2, 3):
        path.write_bytes(text[: int(share * len(text)) + attempt])
        os.utime(path, (1.7e9, 1.7e9))
        report = import_round(clean_engine, out)
        assert (report.intake.refused, report.intake.failed) == (1, 1)
        state, attempts, error = states(clean_engine)[ids["v_N"]]
        assert (state, attempts) == ("failed", attempt)
        assert "cut short" in (error or "")
        assert import_round(clean_engine, out).intake.failed == 1  # the same file is no further attempt
        if attempt < 3:
            export(clean_engine, out, retry_failed=True)
            assert states(clean_engine)[ids["v_N"]] == ("exported", attempt + 1, None)
            assert path.with_name(f"vasprun.xml.attempt-{attempt}").is_file()
            import_round(clean_engine, out)  # the output of the last attempt is not taken for the new one's
            assert states(clean_engine)[ids["v_N"]][0] == "exported"
    with session_scope(clean_engine) as session:
        failures = session.scalars(select(tables.CalculationFailure).order_by(tables.CalculationFailure.attempt)).all()
        assert [(row.calculation_id, row.attempt) for row in failures] == [(ids["v_N"], n) for n in (1, 2, 3)]
        assert len({row.source_file_id for row in failures}) == 3
    notes = export(clean_engine, out, retry_failed=True)  # the pristine supercell is still exported
    assert f"calculation {ids['v_N']} failed 3 times" in notes[0]


def test_what_is_submitted_is_not_exported_again(clean_engine: Engine, shared_data: Path, tmp_path: Path) -> None:
    exported(clean_engine, shared_data, tmp_path / "out", "v_N")
    with session_scope(clean_engine) as session:
        round_id = rounds.find_round(session, "first").id
        assert rounds.mark_submitted(session, round_id, "4711") == 2
        assert {row["job"] for row in rounds.round_rows(session, round_id)} == {"4711"}
    with pytest.raises(InputError, match="no calculation of first is left to export; it has 2 submitted"):
        export(clean_engine, tmp_path / "out")
    with session_scope(clean_engine) as session, pytest.raises(InputError, match="no calculation of the round is exp"):
        rounds.mark_submitted(session, round_id, "4712")


def test_a_job_that_is_lost_can_be_exported_again(clean_engine: Engine, shared_data: Path, tmp_path: Path) -> None:
    ids = exported(clean_engine, shared_data, tmp_path / "out", "v_N", "v_Ga")
    pristine = max(states(clean_engine))
    with session_scope(clean_engine) as session:
        round_id = rounds.find_round(session, "first").id
        with pytest.raises(InputError, match="no calculation of the round is submitted; submitted jobs: none"):
            fail_submitted(session, round_id, "cancelled")
        rounds.mark_submitted(session, round_id, "4711")
    shutil.copy(run_of(shared_data, "GaN_v_N/defect"), tmp_path / "out" / f"calculation-{ids['v_N']}")
    assert import_round(clean_engine, tmp_path / "out").intake.new == 1
    with session_scope(clean_engine) as session:
        with pytest.raises(InputError, match="submitted as job 4712; submitted jobs: 4711"):
            fail_submitted(session, round_id, "cancelled", job="4712")
        with pytest.raises(InputError, match="the reason is empty"):
            fail_submitted(session, round_id, " ")
        assert fail_submitted(session, round_id, "cancelled", job="4711") == 2
    found = states(clean_engine)
    assert found[ids["v_N"]][0] == "finished"
    assert found[ids["v_Ga"]] == found[pristine] == ("failed", 1, "cancelled")
    export(clean_engine, tmp_path / "out", retry_failed=True)
    assert states(clean_engine)[ids["v_Ga"]] == ("exported", 2, None)
    with session_scope(clean_engine) as session:
        failures = session.scalars(select(tables.CalculationFailure)).all()
        assert {(row.calculation_id, row.reason) for row in failures} == {
            (ids["v_Ga"], "cancelled"), (pristine, "cancelled"),
        }  # fmt: skip


def test_a_run_that_is_still_being_written_is_left_alone(
    clean_engine: Engine, shared_data: Path, tmp_path: Path
) -> None:
    ids = exported(clean_engine, shared_data, tmp_path / "out", "v_N", "v_Ga")
    text = gzip.decompress(run_of(shared_data, "GaN_v_N/defect").read_bytes())
    path = tmp_path / "out" / f"calculation-{ids['v_N']}" / "vasprun.xml"
    path.write_bytes(text[: len(text) // 3])
    pristine = max(states(clean_engine))
    for age in (0.0, 5 * 3600.0):
        os.utime(path, (time.time() - age,) * 2)
        report = import_round(clean_engine, tmp_path / "out")
        assert (report.intake.read, report.being_written) == (0, (ids["v_N"],))
        assert report.without_result == (ids["v_Ga"], pristine)
        assert states(clean_engine)[ids["v_N"]] == ("exported", 1, None)
    assert import_round(clean_engine, tmp_path / "out", abandoned_s=3600.0).intake.failed == 1
    path.write_bytes(text)  # as new as the unfinished one, but complete
    assert import_round(clean_engine, tmp_path / "out").intake.new == 1
    assert states(clean_engine)[ids["v_N"]][0] == "finished"


@pytest.mark.parametrize("folder", ["../elsewhere", "/tmp", "..", ".", "a/b", ""])
def test_a_manifest_that_names_a_folder_elsewhere_is_refused(
    clean_engine: Engine, shared_data: Path, tmp_path: Path, folder: str
) -> None:
    exported(clean_engine, shared_data, tmp_path / "out", "v_N")
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["calculations"][0]["folder"] = folder
    path.write_text(json.dumps(manifest))
    with pytest.raises(FileFormatError, match="expected the name of one beside the manifest"):
        import_round(clean_engine, tmp_path / "out")


@pytest.mark.parametrize("key", ["calculation", "folder", "sites", "defect_types", "defects", "attempt"])
def test_a_manifest_without_what_is_read_from_it_is_refused(
    clean_engine: Engine, shared_data: Path, tmp_path: Path, key: str
) -> None:
    exported(clean_engine, shared_data, tmp_path / "out", "v_N")
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["calculations"][1][key]
    path.write_text(json.dumps(manifest))
    with pytest.raises(FileFormatError, match=f"calculation 2 of its list lacks {key}; export the round again"):
        import_round(clean_engine, tmp_path / "out")
    with pytest.raises(FileFormatError, match=f"calculation 2 of its list lacks {key}"):
        export(clean_engine, tmp_path / "out")


def test_folders_of_something_else_are_refused(clean_engine: Engine, shared_data: Path, tmp_path: Path) -> None:
    with session_scope(clean_engine) as session:
        gan_round(session, shared_data, "v_N")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(InputError, match="is there and holds something else"):
        export(clean_engine, tmp_path / "mine")
    with pytest.raises(FileFormatError, match=r"has no manifest\.json"):
        import_round(clean_engine, tmp_path / "mine")
    export(clean_engine, tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["calculations"][0]["sites"] = [3]
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="in this database it is not"):
        import_round(clean_engine, tmp_path / "out")
    path.write_text(json.dumps(manifest | {"round": 99}))
    with pytest.raises(UnknownNameError, match="no round is called '99'; the newest are first"):
        import_round(clean_engine, tmp_path / "out")
    with pytest.raises(InputError, match="is the folder of round 99"):
        export(clean_engine, tmp_path / "out")


def test_a_level_without_settings_asks_for_them_and_its_runs_are_compared_with_the_inputs(
    clean_engine: Engine, shared_data: Path, tmp_path: Path
) -> None:
    given = read_vasprun(run_of(shared_data, "GaN_v_N/defect")).level
    assert given is not None
    with session_scope(clean_engine) as session:
        ids = gan_round(session, shared_data, "v_N")
        bare = add_level(session, LevelOfTheory("a data set", "VASP", "PBEsol", {"reference": "doi"}))
        session.get_one(tables.Round, 1).level_id = bare
        session.get_one(tables.Calculation, ids["v_N"]).level_id = bare
    with pytest.raises(InputError, match="--settings"):
        export(clean_engine, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert states(clean_engine)[ids["v_N"]][0] == "proposed"
    settings = {key: given.settings[key] for key in ("cutoff", "spin_polarised", "k_points", "aspherical")}
    export(clean_engine, tmp_path / "out", settings=settings | {"pseudopotentials": {"Ga": "Ga_d", "N": "N"}})
    place = tmp_path / "out" / f"calculation-{ids['v_N']}"
    shutil.copy(run_of(shared_data, "GaN_v_N/defect"), place)
    assert import_round(clean_engine, tmp_path / "out").intake.new == 1
    with session_scope(clean_engine) as session:
        assert session.get_one(tables.Calculation, ids["v_N"]).state == "finished"


@pytest.mark.parametrize(
    ("level", "only_structures", "reason"),
    [
        (xtb.level_of_theory(), True, "'GFN1-xTB .*': code VASP against tblite"),
        (LevelOfTheory("a data set", "VASP", "PBE", {"reference": "doi"}), False, "functional PBEsol against PBE;"),
        (
            LevelOfTheory("a data set", "VASP", "PBEsol", {"reference": "doi"}), True,
            "'VASP PBEsol 420 eV'; neither the round's level 'a data set' nor the manifest has settings",
        ),
    ],
)  # fmt: skip
def test_a_run_of_another_code_or_functional_or_of_unknown_settings_is_refused(
    clean_engine: Engine, shared_data: Path, tmp_path: Path, level: LevelOfTheory, only_structures: bool, reason: str
) -> None:
    given = read_vasprun(run_of(shared_data, "GaN_v_N/defect")).level
    assert given is not None
    with session_scope(clean_engine) as session:
        ids = gan_round(session, shared_data, "v_N")
        other = add_level(session, level)
        session.get_one(tables.Round, 1).level_id = other
        session.get_one(tables.Calculation, ids["v_N"]).level_id = other
    keys = ("cutoff", "spin_polarised", "k_points", "aspherical")
    settings = {key: given.settings[key] for key in keys} | {"pseudopotentials": {"Ga": "Ga_d", "N": "N"}}
    options = {"only_structures": True} if only_structures else {"settings": settings}
    export(clean_engine, tmp_path / "out", **options)
    shutil.copy(run_of(shared_data, "GaN_v_N/defect"), tmp_path / "out" / f"calculation-{ids['v_N']}")
    report = import_round(clean_engine, tmp_path / "out")
    assert (report.intake.new, report.intake.refused) == (0, 1)
    assert re.search(reason, report.intake.refusals[0][1])
    assert states(clean_engine)[ids["v_N"]][0] == "exported"


def test_structures_alone_go_with_any_level(clean_engine: Engine, shared_data: Path, tmp_path: Path) -> None:
    with session_scope(clean_engine) as session:
        ids = gan_round(session, shared_data, "v_N")
        other = add_level(session, xtb.level_of_theory())
        session.get_one(tables.Round, 1).level_id = other
        session.get_one(tables.Calculation, ids["v_N"]).level_id = other
    with pytest.raises(InputError, match="VASP inputs are made for levels of code VASP only"):
        export(clean_engine, tmp_path / "out")
    export(clean_engine, tmp_path / "out", only_structures=True)
    assert sorted(path.name for path in (tmp_path / "out" / f"calculation-{ids['v_N']}").iterdir()) == [
        "POSCAR", "calculation.json",
    ]  # fmt: skip


def test_the_script_runs_each_folder_once(clean_engine: Engine, shared_data: Path, tmp_path: Path) -> None:
    ids = exported(clean_engine, shared_data, tmp_path / "out", "v_N", "v_Ga")
    script = tmp_path / "out" / "run.sbatch"
    if shutil.which("shellcheck") is not None:
        checked = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
        assert checked.stdout == ""
    for symbol in ("Ga_d", "N"):
        (tmp_path / "potentials" / symbol).mkdir(parents=True)
        (tmp_path / "potentials" / symbol / "POTCAR").write_text(f"{symbol}\n")
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin" / "srun"
    srun.write_text("#!/bin/bash\necho \"$@\" >>ran\necho '</modeling>' >vasprun.xml\n")
    srun.chmod(0o755)
    variables = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "VASP_POTENTIALS": str(tmp_path / "potentials"),
        "VASP": "vasp_gam -q",
    }  # fmt: skip
    for task in ("0", "1", "0"):
        subprocess.run(["bash", script], env=variables | {"SLURM_ARRAY_TASK_ID": task}, check=True)
    for identifier in ids.values():
        folder = tmp_path / "out" / f"calculation-{identifier}"
        assert (folder / "ran").read_text() == "vasp_gam -q\n"
        assert (folder / "POTCAR").read_text() == "Ga_d\nN\n"
    text = gzip.decompress(run_of(shared_data, "GaN_v_N/defect").read_bytes()).decode()
    n_steps = text.count("</calculation>")  # as many as it may do: it did not converge
    folder = tmp_path / "out" / f"calculation-{ids['v_N']}"
    (folder / "vasprun.xml").write_text(re.sub(r'(name="NSW">\s*)\d+', rf"\g<1>{n_steps}", text))
    import_round(clean_engine, tmp_path / "out")
    state, _, error = states(clean_engine)[ids["v_N"]]
    assert (state, error) == ("failed", f"its relaxation did not converge in {n_steps} steps")
    notes = export(clean_engine, tmp_path / "out", retry_failed=True)
    assert f"calculation-{ids['v_N']}: vasprun.xml is that of attempt 1; it is kept as vasprun.xml.attempt-1" in notes
    subprocess.run(["bash", script], env=variables | {"SLURM_ARRAY_TASK_ID": "0"}, check=True)
    assert (folder / "ran").read_text() == "vasp_gam -q\n" * 2
    assert (folder / "vasprun.xml").read_text() == "</modeling>\n"


def test_a_failure_without_a_file_is_no_reason_to_stop(clean_engine: Engine, shared_data: Path, tmp_path: Path) -> None:
    ids = exported(clean_engine, shared_data, tmp_path / "out", "v_N")
    with session_scope(clean_engine) as session:
        row = session.get_one(tables.Calculation, ids["v_N"])
        configuration = session.get_one(tables.Configuration, row.configuration_id)
        stored = load_supercell(session, configuration.supercell_id)
        found = Configuration(tuple(configuration.sites), tuple(configuration.defect_types))
        record_failures(session, stored, row.level_id, [(found, "the node died")])
    assert states(clean_engine)[ids["v_N"]] == ("failed", 1, "the node died")
