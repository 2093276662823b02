import hashlib
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from screening.database import queries, tables
from screening.database.session import make_engine, session_scope
from screening.dft.csv_tables import read_table
from screening.dft.dataset_2dmd import LEVEL, SUBSETS
from screening.errors import FileFormatError, InputError, LevelOfTheoryError, UnknownNameError, UnsafeArchiveError
from screening.pipeline.imports import SubsetReport, import_2dmd
from screening.pipeline.provenance import find_result
from screening.pipeline.retraction import retract
from tests.synthetic_2dmd import (
    CHEMICAL_POTENTIALS,
    N_RESULTS,
    PRISTINE_ENERGY,
    ROWS,
    Row,
    change_archive,
    change_table,
    cif,
    write_archive,
    write_subset,
    write_table,
)

NAME = "low_density_defects/MoS2"
TRAINING = {row.name for row in ROWS if row.formation_energy is not None and row.split == "train"}
ALL_TABLES = [table.name for table in tables.Table.metadata.sorted_tables]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_subset(tmp_path / NAME)


def import_one(engine: Engine, path: Path, **options: Any) -> SubsetReport:
    (report,) = import_2dmd(engine, path, **options)
    assert report.read == report.new + report.known + report.refused + report.uncalculated + report.held_back
    assert report.refused == len(report.refusals)
    return report


def counts(report: SubsetReport) -> dict[str, int]:
    names = ("new", "known", "refused", "uncalculated", "held_back")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def results(engine: Engine) -> dict[str, dict[str, Any]]:
    """Every stored result with its configuration, by the name of its row."""
    with Session(engine) as session:
        rows = session.execute(
            select(tables.CalculationResult, tables.Calculation, tables.Configuration, tables.Composition.label)
            .join(tables.Calculation, tables.Calculation.id == tables.CalculationResult.calculation_id)
            .join(tables.Configuration, tables.Configuration.id == tables.Calculation.configuration_id)
            .join(tables.Composition, tables.Composition.id == tables.Configuration.composition_id)
        ).all()
        return {
            result.row_name: {
                "result": result,
                "calculation": calculation,
                "configuration": configuration,
                "label": label,
            }
            for result, calculation, configuration, label in rows
        }


def content(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    with engine.connect() as connection:
        return {
            name: [tuple(row) for row in connection.execute(text(f"SELECT * FROM {name} ORDER BY 1, 2"))]
            for name in ALL_TABLES
        }


def is_empty(engine: Engine) -> bool:
    return not any(content(engine).values())


def test_results_are_stored_with_the_chosen_formation_energies(clean_engine: Engine, folder: Path) -> None:
    report = import_one(clean_engine, folder)
    assert (report.name, report.read) == (NAME, len(ROWS))
    assert counts(report) == {"new": N_RESULTS, "uncalculated": 1}
    stored = results(clean_engine)
    assert stored.keys() == {"pristine"} | {row.name for row in ROWS if row.formation_energy is not None}
    for row in ROWS:
        if row.formation_energy is None:
            continue
        found = stored[row.name]
        result = found["result"]
        assert result.energy == row.energy
        assert result.formation_energy == pytest.approx(row.formation_energy, abs=1e-9)
        assert result.formation_energy_per_site == pytest.approx(row.formation_energy / len(row.defects), abs=1e-9)
        assert (result.dataset, result.split) == (NAME, row.split)
        assert found["calculation"].state == "finished"
        assert found["configuration"].n_defects == len(row.defects)
    assert stored["row-v_S-v_S"]["label"] == "2*v_S"
    assert stored["row-v_S"]["configuration"].multiplicity == 32  # 2 S in each of 16 unit cells


def test_properties_of_both_spin_channels_are_stored(clean_engine: Engine, folder: Path) -> None:
    import_one(clean_engine, folder)
    result = results(clean_engine)["row-Se_S"]["result"]  # second row: the minority channel has the smaller gap
    assert (result.homo_lumo_gap_majority, result.homo_lumo_gap_minority) == (1.28125, 1.15625)
    assert (result.homo_lumo_gap_min, result.homo, result.lumo) == (1.15625, -0.953125, 0.203125)
    assert result.total_mag == 1.0


def test_references_of_the_level_are_stored(clean_engine: Engine, folder: Path) -> None:
    import_one(clean_engine, folder)
    with Session(clean_engine) as session:
        level_id = queries.level_id_of(session, "2DMD PBE")
        supercell_id = queries.supercell_id_of(session, "MoS2", "4x4")
        assert queries.chemical_potentials(session, level_id) == CHEMICAL_POTENTIALS
        assert queries.pristine_energy(session, supercell_id, level_id) == PRISTINE_ENERGY


def test_each_result_leads_to_the_hash_of_its_file(clean_engine: Engine, folder: Path) -> None:
    import_one(clean_engine, folder)
    with Session(clean_engine) as session:
        files = {file.id: file for file in session.scalars(select(tables.SourceFile))}
    hashes = {file.sha256: file.path for file in files.values()}
    for name in ("targets.csv.gz", "defects.csv.gz", "initial.tar.gz", "initial_structures.csv"):
        assert hashes[hashlib.sha256((folder / name).read_bytes()).hexdigest()] == str(folder / name)
    stored = results(clean_engine)
    assert files[stored["row-v_S"]["result"].source_file_id].path == str(folder / "targets.csv.gz")
    assert files[stored["pristine"]["result"].source_file_id].path == str(folder / "initial_structures.csv")


def test_a_structure_without_results_is_a_configuration_not_yet_calculated(clean_engine: Engine, folder: Path) -> None:
    import_one(clean_engine, folder)
    with Session(clean_engine) as session:
        found = session.scalars(
            select(tables.Composition.label)
            .join(tables.Configuration, tables.Configuration.composition_id == tables.Composition.id)
            .outerjoin(tables.Calculation, tables.Calculation.configuration_id == tables.Configuration.id)
            .where(tables.Calculation.id.is_(None))
        ).all()
    assert found == ["v_S+W_Mo"]


def test_importing_again_changes_nothing(clean_engine: Engine, folder: Path) -> None:
    import_one(clean_engine, folder)
    before = content(clean_engine)
    report = import_one(clean_engine, folder)
    assert counts(report) == {"known": N_RESULTS, "uncalculated": 1}
    assert content(clean_engine) == before


def test_two_imports_at_once_take_each_result_in_once(clean_engine: Engine, tmp_path: Path) -> None:
    write_subset(tmp_path / SUBSETS[0])
    write_subset(tmp_path / SUBSETS[2], (Row("other", ((1, "v_Mo"), (20, "v_S")), 9.0),))
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(import_2dmd, clean_engine, tmp_path, subsets=names) for names in ((), (), ("MoS2_500",))]
        reports = [report for future in running for report in future.result()]
    assert len(reports) == 5
    assert sum(report.new for report in reports) == N_RESULTS + 1
    assert sum(report.known for report in reports) == N_RESULTS + 2
    assert len(results(clean_engine)) == N_RESULTS + 2


def test_rows_without_a_split_are_stored_without_one(clean_engine: Engine, tmp_path: Path) -> None:
    import_one(clean_engine, write_subset(tmp_path / "MoS2", with_split=False))
    assert {found["result"].split for found in results(clean_engine).values()} == {None}


def test_progress_counts_every_structure(clean_engine: Engine, folder: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    import_one(clean_engine, folder, on_progress=lambda *state: seen.append(state))
    assert seen == [(i + 1, len(ROWS), NAME) for i in range(len(ROWS))]


# faults of a whole file: the subset is not imported at all


def cut_targets(folder: Path) -> None:
    path = folder / "targets.csv.gz"
    path.write_bytes(path.read_bytes()[:-40])


def cut_structures(folder: Path) -> None:
    path = folder / "initial.tar.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_column(folder: Path) -> None:
    change_table(
        folder / "targets.csv.gz", lambda rows: [{c: v for c, v in row.items() if c != "total_mag"} for row in rows]
    )


def drop_energy(folder: Path) -> None:
    change_table(folder / "defects.csv.gz", lambda rows: [{"_id": row["_id"]} for row in rows])


def leave_folder(folder: Path) -> None:
    change_archive(folder / "initial.tar.gz", {"../../escaped.cif": cif(((16, "v_S"),))})


def link_outside(folder: Path) -> None:
    write_archive(folder / "initial.tar.gz", {})
    with tarfile.open(folder / "initial.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("row-v_S.cif")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (cut_targets, FileFormatError, r"targets\.csv\.gz is cut short"),
        (cut_structures, FileFormatError, r"initial\.tar\.gz"),
        (drop_column, FileFormatError, r"targets\.csv\.gz has no column total_mag"),
        (drop_energy, FileFormatError, r"defects\.csv\.gz has no column energy"),
        (leave_folder, UnsafeArchiveError, r"escaped\.cif"),
        (link_outside, UnsafeArchiveError, r"row-v_S\.cif"),
    ],
)
def test_a_fault_of_a_whole_file_stops_the_subset_before_anything_is_written(
    clean_engine: Engine, folder: Path, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    damage(folder)
    with pytest.raises(error, match=message):
        import_2dmd(clean_engine, folder)
    assert is_empty(clean_engine)
    assert not list(folder.parent.parent.rglob("escaped.cif"))


def test_subsets_before_a_damaged_one_are_in_and_the_import_can_be_repeated(
    clean_engine: Engine, tmp_path: Path
) -> None:
    write_subset(tmp_path / SUBSETS[0])
    damaged = write_subset(tmp_path / SUBSETS[1], (Row("other", ((1, "v_Mo"), (20, "v_S")), 9.0),))
    whole = (damaged / "targets.csv.gz").read_bytes()
    cut_targets(damaged)
    with pytest.raises(FileFormatError):
        import_2dmd(clean_engine, tmp_path)
    assert len(results(clean_engine)) == N_RESULTS + 1
    (damaged / "targets.csv.gz").write_bytes(whole)
    first, second = import_2dmd(clean_engine, tmp_path)
    assert counts(first) == {"known": N_RESULTS, "uncalculated": 1}
    assert counts(second) == {"new": 1}


# faults of one row: it is refused with its reason, the rest goes in


def add_unknown_target(folder: Path) -> None:
    change_table(folder / "targets.csv.gz", lambda rows: [*rows, {**rows[0], "_id": "stranger"}])


def add_unknown_defects_row(folder: Path) -> None:
    change_table(folder / "defects.csv.gz", lambda rows: [*rows, {**rows[0], "_id": "stranger"}])


def repeat_target(folder: Path) -> None:
    change_table(folder / "targets.csv.gz", lambda rows: [*rows, rows[0]])


def repeat_defects_row(folder: Path) -> None:
    change_table(folder / "defects.csv.gz", lambda rows: [*rows, {**rows[0], "energy": -1.0}])


def lose_energy(folder: Path) -> None:
    change_table(folder / "defects.csv.gz", lambda rows: [{**rows[0], "energy": "nan"}, *rows[1:]])


def lose_energy_everywhere(folder: Path) -> None:
    for name in ("defects.csv.gz", "targets.csv.gz"):
        change_table(folder / name, lambda rows: [{**rows[0], "energy": ""}, *rows[1:]])


def stretch_structure(folder: Path) -> None:
    change_archive(folder / "initial.tar.gz", {"row-v_S.cif": cif(((16, "v_S"),), scale=1.1)})


def add_adatom(folder: Path) -> None:
    change_archive(folder / "initial.tar.gz", {"row-v_S.cif": cif(((16, "v_S"),), adatom=True)})


def lose_structure(folder: Path) -> None:
    change_archive(folder / "initial.tar.gz", {"row-v_S.cif": None})


def empty_structure(folder: Path) -> None:
    change_archive(folder / "initial.tar.gz", {"row-v_S.cif": ""})


def swap_structure(folder: Path) -> None:
    change_archive(folder / "initial.tar.gz", {"row-v_S.cif": cif(((20, "Se_S"),))})


def restore_atom(folder: Path) -> None:
    change_archive(folder / "initial.tar.gz", {"row-v_S.cif": cif(())})


@pytest.mark.parametrize(
    ("damage", "row", "reason"),
    [
        (add_unknown_target, "stranger", r"unknown _id: defects\.csv\.gz has no row"),
        (add_unknown_defects_row, "stranger", r"unknown _id: targets\.csv\.gz has no row"),
        (repeat_target, "row-v_S", r"duplicate _id: targets\.csv\.gz has 2 rows"),
        (repeat_defects_row, "row-v_S", r"duplicate _id: defects\.csv\.gz has 2 rows"),
        (lose_energy, "row-v_S", r"its energy is 'nan'"),
        (lose_energy_everywhere, "row-v_S", r"its energy is ''"),
        (stretch_structure, "row-v_S", r"lattice|cell"),
        (add_adatom, "row-v_S", r"atom"),
        (lose_structure, "row-v_S", r"no structure row-v_S\.cif"),
        (empty_structure, "row-v_S", r"."),
        # Se_S instead of v_S: the atom added takes 3.5 eV off the sum, 2.75 + 3.5 = 6.25
        (swap_structure, "row-v_S", r"2\.75000000 eV in the file and 6\.25000000 eV .* Se_S"),
        (restore_atom, "row-v_S", r"pristine"),
    ],
)
def test_a_faulty_row_is_refused_with_its_reason_and_the_rest_goes_in(
    clean_engine: Engine, folder: Path, damage: Callable[[Path], None], row: str, reason: str
) -> None:
    damage(folder)
    report = import_one(clean_engine, folder)
    ((name, found),) = report.refusals
    assert name == row
    assert re.search(reason, found), found
    good = {r.name for r in ROWS if r.formation_energy is not None} - {row}
    assert results(clean_engine).keys() == good | {"pristine"}
    assert (report.new, report.uncalculated) == (len(good), 1)


def test_a_structure_without_results_that_does_not_match_is_refused(clean_engine: Engine, folder: Path) -> None:
    change_archive(folder / "initial.tar.gz", {"row-without-results.cif": cif((), scale=1.1)})
    report = import_one(clean_engine, folder)
    assert counts(report) == {"new": N_RESULTS, "refused": 1}
    assert report.refusals[0][0] == "row-without-results"


def test_a_refused_row_goes_in_once_it_is_mended(clean_engine: Engine, folder: Path) -> None:
    whole = (folder / "defects.csv.gz").read_bytes()
    lose_energy(folder)
    import_one(clean_engine, folder)
    (folder / "defects.csv.gz").write_bytes(whole)
    assert counts(import_one(clean_engine, folder)) == {"new": 1, "known": N_RESULTS - 1, "uncalculated": 1}


def test_a_row_that_says_another_energy_than_before_is_refused(clean_engine: Engine, folder: Path) -> None:
    import_one(clean_engine, folder)
    before = content(clean_engine)["calculation_results"]
    for name in ("defects.csv.gz", "targets.csv.gz"):
        change_table(folder / name, lambda rows: [{**rows[0], "energy": -9.0}, *rows[1:]])
    report = import_one(clean_engine, folder)
    ((name, reason),) = report.refusals
    assert name == "row-v_S"
    assert "in the database and -9.00000000 eV in the file" in reason
    assert content(clean_engine)["calculation_results"] == before


# a configuration calculated twice


def test_a_second_calculation_of_a_configuration_is_known_as_a_repeat(clean_engine: Engine, tmp_path: Path) -> None:
    twice = (Row("first", ((16, "v_S"),), 2.75), Row("second", ((41, "v_S"),), 2.5))  # all S are equivalent
    folder = write_subset(tmp_path / "MoS2", twice)
    for expected in ({"new": 1, "known": 1}, {"known": 2}):
        report = import_one(clean_engine, folder)
        assert counts(report) == expected
        ((name, reason),) = report.repeats
        assert name == "second"
        assert reason.startswith("the same configuration as first of MoS2; energies ")
    assert results(clean_engine).keys() == {"first", "pristine"}


def test_a_configuration_of_another_subset_is_a_repeat(clean_engine: Engine, tmp_path: Path) -> None:
    write_subset(tmp_path / SUBSETS[0])
    write_subset(tmp_path / SUBSETS[2], (Row("again", ((2, "v_Mo"),), 7.5),))
    _, second = import_2dmd(clean_engine, tmp_path)
    assert counts(second) == {"known": 1}
    assert f"row-v_Mo of {SUBSETS[0]}" in second.repeats[0][1]


# references


def test_other_chemical_potentials_at_the_same_level_are_refused(clean_engine: Engine, tmp_path: Path) -> None:
    write_subset(tmp_path / SUBSETS[0])
    second = write_subset(tmp_path / SUBSETS[2], (Row("other", ((1, "v_Mo"), (20, "v_S")), 9.0),))
    write_table(second / "elements.csv", [
        {"element": element, "chemical_potential": mu - (element == "S"), "note": ""}
        for element, mu in CHEMICAL_POTENTIALS.items()
    ])  # fmt: skip
    with pytest.raises(LevelOfTheoryError, match="chemical potential of S"):
        import_2dmd(clean_engine, tmp_path)
    assert "other" not in results(clean_engine)


def test_another_pristine_energy_of_the_same_supercell_is_refused(clean_engine: Engine, tmp_path: Path) -> None:
    write_subset(tmp_path / SUBSETS[0])
    second = write_subset(tmp_path / SUBSETS[2], (Row("other", ((1, "v_Mo"), (20, "v_S")), 9.0),))
    write_table(second / "initial_structures.csv", [{"base": "MoS2", "cell_size": "[4, 4, 1]", "energy": -350.0}])
    with pytest.raises(LevelOfTheoryError, match=r"-350\.250000 eV in the database and -350\.000000 eV"):
        import_2dmd(clean_engine, tmp_path)


def test_a_pristine_result_that_was_withdrawn_is_refused_and_a_mended_one_fills_the_energies(
    clean_engine: Engine, folder: Path
) -> None:
    import_one(clean_engine, folder)
    with session_scope(clean_engine) as session:
        retract(session, find_result(session, f"{NAME}:pristine"), "wrong cell")
    before = content(clean_engine)
    with pytest.raises(InputError, match=r"-350\.250000 eV, and this result was withdrawn on .*: wrong cell"):
        import_2dmd(clean_engine, folder)
    assert content(clean_engine) == before
    write_table(folder / "initial_structures.csv", [{"base": "MoS2", "cell_size": "[4, 4, 1]", "energy": -350.0}])
    assert counts(import_one(clean_engine, folder)) == {"known": N_RESULTS, "uncalculated": 1}
    stored = results(clean_engine)
    assert stored["pristine (2)"]["result"].energy == -350.0
    for row in ROWS:
        if row.formation_energy is not None:
            assert stored[row.name]["result"].formation_energy == pytest.approx(row.formation_energy - 0.25, abs=1e-9)


# choice of subsets and rows


def test_only_the_named_subset_is_imported(clean_engine: Engine, tmp_path: Path) -> None:
    write_subset(tmp_path / SUBSETS[0])
    write_subset(tmp_path / SUBSETS[2], (Row("other", ((1, "v_Mo"), (20, "v_S")), 9.0),))
    assert [r.name for r in import_2dmd(clean_engine, tmp_path, subsets=["MoS2_500"])] == [SUBSETS[2]]
    with pytest.raises(UnknownNameError, match="low_density_defects/MoS2, high_density_defects/MoS2_500"):
        import_2dmd(clean_engine, tmp_path, subsets=["MoTe2"])


@pytest.mark.parametrize("proposed_only", [False, True])
def test_test_rows_are_configurations_without_results(clean_engine: Engine, folder: Path, proposed_only: bool) -> None:
    write_table(folder / "split.csv", [{"_id": "row-v_S", "split": "test"}])
    first = import_one(clean_engine, folder)
    assert counts(first) == {"new": N_RESULTS - 1, "held_back": 1, "uncalculated": 1}
    import_one(clean_engine, folder, proposed_only=proposed_only)
    assert "row-v_S" not in results(clean_engine)


def test_held_back_rows_are_configurations_without_results_and_never_of_validation(
    clean_engine: Engine, folder: Path
) -> None:
    report = import_one(clean_engine, folder, hold_back=1.0)
    assert counts(report) == {"new": N_RESULTS - len(TRAINING), "held_back": len(TRAINING), "uncalculated": 1}
    assert not TRAINING & results(clean_engine).keys()
    with Session(clean_engine) as session:
        assert session.scalar(select(func.count()).select_from(tables.Configuration)) == len(ROWS) + 1
        assert session.scalar(select(func.count()).select_from(tables.Calculation)) == N_RESULTS - len(TRAINING) + 1


def test_the_same_seed_holds_back_the_same_rows(clean_engine: Engine, tmp_path: Path) -> None:
    rows = tuple(Row(f"row {site}", ((0, "v_Mo"), (site, "v_S")), 9.0) for site in range(16, 48))
    folder = write_subset(tmp_path / "MoS2", rows)
    import_one(clean_engine, folder, hold_back=0.5, seed=3)
    before = content(clean_engine)
    again = import_one(clean_engine, folder, hold_back=0.5, seed=3)
    assert again.new == 0
    assert 0 < again.held_back < len(rows)
    assert content(clean_engine) == before
    assert import_one(clean_engine, folder).held_back == 0


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(clean_engine: Engine, folder: Path, share: float) -> None:
    with pytest.raises(InputError, match="share to hold back"):
        import_2dmd(clean_engine, folder, hold_back=share)


def propose(engine: Engine, labels: dict[str, str]) -> int:
    """A round with calculations of these compositions, by label, in these states; the round's id."""
    with session_scope(engine) as session:
        level_id = queries.level_id_of(session, LEVEL.name)
        model = tables.TrainedModel(name="m", level_id=level_id, properties=[], settings={}, seed=0)
        session.add(model)
        session.flush()
        round_ = tables.Round(model_id=model.id, level_id=level_id, query={}, seed=0)
        session.add(round_)
        session.flush()
        for label, state in labels.items():
            configuration_id = session.scalar(
                select(tables.Configuration.id)
                .join(tables.Composition, tables.Composition.id == tables.Configuration.composition_id)
                .where(tables.Composition.label == label)
            )
            session.add(
                tables.Calculation(
                    configuration_id=configuration_id, level_id=level_id, round_id=round_.id, state=state,
                    error="stopped" if state == "failed" else None,
                    lease_owner="w" if state == "running" else None,
                    lease_until=func.now() if state == "running" else None,
                )
            )  # fmt: skip
        return round_.id


def test_a_replayed_round_takes_in_only_what_was_proposed(clean_engine: Engine, folder: Path) -> None:
    import_one(clean_engine, folder, hold_back=1.0)
    round_id = propose(clean_engine, {"v_S": "proposed", "v_Mo": "waiting", "W_Mo": "failed"})
    before = results(clean_engine)
    report = import_one(clean_engine, folder, proposed_only=True)
    validation = N_RESULTS - len(TRAINING)
    assert counts(report) == {"new": 2, "known": validation, "held_back": len(TRAINING) - 2, "uncalculated": 1}
    stored = results(clean_engine)
    assert stored.keys() - before.keys() == {"row-v_S", "row-v_Mo"}
    for name in ("row-v_S", "row-v_Mo"):
        assert (stored[name]["calculation"].state, stored[name]["calculation"].round_id) == ("finished", round_id)
        assert stored[name]["result"].split == "train"
    again = import_one(clean_engine, folder, proposed_only=True)
    assert counts(again) == {"known": validation + 2, "held_back": len(TRAINING) - 2, "uncalculated": 1}


def test_a_proposal_that_the_data_set_cannot_answer_is_ended(clean_engine: Engine, folder: Path) -> None:
    import_one(clean_engine, folder, hold_back=1.0)
    propose(clean_engine, {"v_S": "proposed", "v_S+W_Mo": "proposed"})
    report = import_one(clean_engine, folder, proposed_only=True)
    assert (report.new, report.uncalculated, report.ended) == (1, 1, 1)
    with Session(clean_engine) as session:
        ended = session.scalars(select(tables.Calculation).where(tables.Calculation.state != "finished")).one()
        label = session.scalar(
            select(tables.Composition.label)
            .join(tables.Configuration, tables.Configuration.composition_id == tables.Composition.id)
            .where(tables.Configuration.id == ended.configuration_id)
        )
    assert (label, ended.state, ended.error) == ("v_S+W_Mo", "failed", "the data set has no result of this structure")
    again = import_one(clean_engine, folder, proposed_only=True)
    assert (again.new, again.ended) == (0, 0)


def test_what_the_data_set_has_under_another_name_is_not_ended(clean_engine: Engine, tmp_path: Path) -> None:
    twice = (Row("without", ((16, "v_S"),), None), Row("with", ((41, "v_S"),), 2.5))  # all S are equivalent
    folder = write_subset(tmp_path / "MoS2", twice)
    import_one(clean_engine, folder, hold_back=1.0)
    propose(clean_engine, {"v_S": "proposed"})
    report = import_one(clean_engine, folder, proposed_only=True)
    assert (report.new, report.ended) == (1, 0)


def test_a_whole_import_finishes_what_was_proposed_and_what_failed_in_their_round(
    clean_engine: Engine, folder: Path
) -> None:
    import_one(clean_engine, folder, hold_back=1.0)
    round_id = propose(clean_engine, {"v_S": "proposed", "W_Mo": "failed"})
    import_one(clean_engine, folder)
    stored = results(clean_engine)
    for name in ("row-v_S", "row-W_Mo"):
        calculation = stored[name]["calculation"]
        assert (calculation.state, calculation.round_id, calculation.error) == ("finished", round_id, None)


def test_a_calculation_that_a_worker_runs_is_left_to_it(clean_engine: Engine, folder: Path) -> None:
    import_one(clean_engine, folder, hold_back=1.0)
    propose(clean_engine, {"v_S": "running"})
    report = import_one(clean_engine, folder)
    ((name, reason),) = report.refusals
    assert name == "row-v_S"
    assert "a worker is calculating" in reason
    with Session(clean_engine) as session:
        states = session.scalars(select(tables.Calculation.state)).all()
    assert sorted(states) == sorted(["running"] + N_RESULTS * ["finished"])  # the pristine one, and all but v_S


# the whole of 2DMD


@pytest.fixture(scope="module")
def whole(migrated_template: Engine, shared_data: Path) -> Iterator[tuple[Engine, list[SubsetReport]]]:
    """A database with all of 2DMD, and the reports of its import."""
    with migrated_template.connect() as connection:
        connection.execute(text("CREATE DATABASE whole_2dmd TEMPLATE migrated"))
    engine = make_engine(migrated_template.url.set(database="whole_2dmd").render_as_string(hide_password=False))
    yield engine, import_2dmd(engine, shared_data / "2dmd")
    engine.dispose()
    with migrated_template.connect() as connection:
        connection.execute(text("DROP DATABASE whole_2dmd WITH (FORCE)"))


Whole = tuple[Engine, list[SubsetReport]]


def test_all_of_2dmd_is_read_and_nothing_is_refused(whole: Whole) -> None:
    _, reports = whole
    assert [report.name for report in reports] == list(SUBSETS)
    assert [report.read for report in reports] == [5933, 5933] + 6 * [500]
    assert [report.refusals for report in reports] == 8 * [()]
    assert sum(report.new + len(report.repeats) for report in reports) == 11_893
    assert sum(report.uncalculated for report in reports) == 14_866 - 11_893


def test_formation_energies_are_those_of_the_files_to_1e_9(whole: Whole, shared_data: Path) -> None:
    engine, reports = whole
    stored = results(engine)
    compared = 0
    for report in reports:
        path = shared_data / "2dmd" / report.name / "targets.csv.gz"
        repeats = dict(report.repeats)
        for line in read_table(path, ["_id", "formation_energy", "formation_energy_per_site"]):
            if line["_id"] in repeats:
                continue
            result = stored[line["_id"] or ""]["result"]
            assert abs(result.formation_energy - float(line["formation_energy"] or "nan")) < 1e-9
            assert abs(result.formation_energy_per_site - float(line["formation_energy_per_site"] or "nan")) < 1e-9
            compared += 1
    assert compared == sum(report.new for report in reports)


@pytest.mark.parametrize(("host", "metal", "other_metal", "own", "other"), [
    ("MoS2", "Mo", "W", "S", "Se"), ("WSe2", "W", "Mo", "Se", "S"),
])  # fmt: skip
def test_low_density_subsets_are_the_whole_enumeration_of_17_compositions(
    whole: Whole, host: str, metal: str, other_metal: str, own: str, other: str
) -> None:
    """Published numbers of symmetry-distinct configurations: at most one metal and two chalcogen defects."""
    engine, _ = whole
    with Session(engine) as session:
        rows = session.execute(
            select(tables.Composition, func.count())
            .join(tables.Configuration, tables.Configuration.composition_id == tables.Composition.id)
            .join(tables.Supercell, tables.Supercell.id == tables.Configuration.supercell_id)
            .join(tables.Host, tables.Host.id == tables.Supercell.host_id)
            .where(tables.Host.name == host, tables.Composition.n_defects.between(1, 3))
            .group_by(tables.Composition.id)
        ).all()
        names = dict(session.execute(select(tables.DefectType.id, tables.DefectType.name)).all())
    found = {
        frozenset(Counter({names[i]: n for i, n in zip(c.defect_types, c.counts, strict=True)}).items()): count
        for c, count in rows
    }

    def of(**numbers: int) -> int:
        kinds = {"vm": f"v_{metal}", "sm": f"{other_metal}_{metal}", "vx": f"v_{own}", "sx": f"{other}_{own}"}
        return found[frozenset((kinds[kind], n) for kind, n in numbers.items())]

    assert [of(vm=1), of(sm=1), of(vx=1), of(sx=1)] == [1, 1, 1, 1]
    assert [of(vx=2), of(sx=2), of(vx=1, sx=1), of(vm=1, vx=1), of(sm=1, sx=1)] == [19, 19, 29, 15, 15]
    assert [of(vm=1, vx=2), of(sm=1, sx=2), of(vm=1, vx=1, sx=1), of(sm=1, vx=1, sx=1)] == [743, 743, 1415, 1415]
    assert len(found) == 17
    assert sum(found.values()) == 5933


def test_the_whole_is_known_the_second_time(whole: Whole, shared_data: Path) -> None:
    engine, first = whole
    before = content(engine)
    second = import_2dmd(engine, shared_data / "2dmd")
    assert sum(report.new + report.refused for report in second) == 0
    assert sum(report.known for report in second) == 11_893
    assert [r.read for r in second] == [r.read for r in first]
    assert content(engine) == before
