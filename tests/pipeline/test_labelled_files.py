import csv
import tarfile
from pathlib import Path

import numpy as np
import pytest

from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration, DefectType
from screening.defects.enumeration import canonical_form
from screening.defects.host import Supercell
from screening.defects.symmetry import find_symmetry
from screening.dft.builtin import shipped_path
from screening.dft.dataset_2dmd import LEVEL, SUBSETS
from screening.errors import FileFormatError, InputError, UnknownNameError
from screening.pipeline.labelled_files import LabelledFiles, Selection, read_labelled
from screening.pipeline.labelled_results import GivenReferences
from tests.synthetic_2dmd import (
    CHEMICAL_POTENTIALS,
    N_RESULTS,
    PRISTINE_ENERGY,
    ROWS,
    Row,
    change_archive,
    change_table,
    cif,
    write_subset,
    write_table,
)

NAME = "low_density_defects/MoS2"
OF_MOS2 = GivenReferences("MoS2", CHEMICAL_POTENTIALS)
MOS2 = Supercell.parse(catalogue_host("MoS2"), "4x4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_subset(tmp_path / NAME)


def labels(found: LabelledFiles, name: str) -> dict[str, float]:
    """Values of a property by the names of the rows."""
    column = found.labels[:, found.properties.index(name)]
    return {row: value for row, value in zip(found.names, column.tolist(), strict=True) if np.isfinite(value)}


def configuration(*defects: tuple[int, str]) -> Configuration:
    ordered = sorted(defects)
    return Configuration(tuple(s for s, _ in ordered), tuple(DefectType.parse(name).code for _, name in ordered))


def test_a_release_gives_the_chosen_formation_energies_with_split_and_subset(folder: Path) -> None:
    found = read_labelled(folder.parent.parent)
    chosen = {row.name: row.formation_energy for row in ROWS if row.formation_energy is not None}
    assert labels(found, "formation_energy") == pytest.approx(chosen, abs=1e-9)
    assert labels(found, "formation_energy_per_site")["row-v_S-v_S"] == pytest.approx(5.375 / 2)
    assert dict(zip(found.names, found.splits, strict=True)) == {r.name: r.split for r in ROWS if r.name in chosen}
    assert found.subsets == (NAME,)
    assert found.levels == (LEVEL,)
    assert found.group_of_row.tolist() == [0] * N_RESULTS
    assert (found.n_unlabelled, found.refusals, found.repeats) == (1, (), ())


def test_spin_channels_give_gaps_levels_and_magnetisation(folder: Path) -> None:
    found = read_labelled(folder)
    # the second row of the file: levels shifted against each other by 1/16 eV, the minority's gap smaller by 1/8 eV
    name = [row.name for row in ROWS if row.formation_energy is not None][1]
    row = found.chosen(np.array([found.names.index(name)]))
    assert dict(zip(row.properties[2:], row.labels[0, 2:].tolist(), strict=True)) == {
        "homo_lumo_gap_min": 1.15625, "homo_lumo_gap_majority": 1.28125, "homo_lumo_gap_minority": 1.15625,
        "homo": -0.953125, "lumo": 0.203125, "total_mag": 1.0,
    }  # fmt: skip


def test_configurations_are_in_canonical_form(folder: Path) -> None:
    found = read_labelled(folder)
    symmetry = find_symmetry(MOS2)
    for row in ROWS:
        if row.formation_energy is not None:
            expected, _ = canonical_form(symmetry, configuration(*row.defects))
            assert found.configurations[found.names.index(row.name)] == expected


def test_only_rows_of_the_wanted_splits_are_matched(folder: Path) -> None:
    change_archive(folder / "initial.tar.gz", {"row-v_S.cif": cif(((16, "v_S"),), adatom=True)})
    found = read_labelled(folder, selection=Selection(splits=("validation",)))
    assert set(found.names) == {row.name for row in ROWS if row.split == "validation"}
    assert not found.refusals


def test_test_rows_are_read_as_such(folder: Path) -> None:
    write_table(folder / "split.csv", [{"_id": "row-v_S", "split": "test"}, {"_id": "row-v_Mo", "split": "train"}])
    found = read_labelled(folder)
    assert {name for name, split in zip(found.names, found.splits, strict=True) if split == "test"} == {"row-v_S"}
    assert found.rows().is_validation[found.names.index("row-v_S")]
    assert not found.rows().is_validation[found.names.index("row-v_Mo")]


def test_rows_that_no_split_names_can_be_asked_for(folder: Path) -> None:
    write_table(folder / "split.csv", [{"_id": "row-v_S", "split": "train"}])
    found = read_labelled(folder, selection=Selection(splits=("none",)))
    assert found.n_rows == N_RESULTS - 1
    assert "row-v_S" not in found.names


def test_rows_without_a_split_have_none(tmp_path: Path) -> None:
    assert set(read_labelled(write_subset(tmp_path / NAME, with_split=False)).splits) == {None}


def test_a_row_that_cannot_be_used_is_refused_and_the_others_stay(folder: Path) -> None:
    change_archive(folder / "initial.tar.gz", {"row-v_S.cif": cif(((16, "v_S"),), adatom=True)})
    change_table(folder / "targets.csv.gz", lambda rows: [
        {**row, "homo_lumo_gap_min": "" if row["_id"] == "row-v_Mo" else row["homo_lumo_gap_min"]} for row in rows
    ])  # fmt: skip
    found = read_labelled(folder)
    reasons = dict(found.refusals)
    assert reasons.keys() == {"row-v_S", "row-v_Mo"}
    assert "homo_lumo_gap_min is ''" in reasons["row-v_Mo"]
    assert found.n_rows == N_RESULTS - 2


def test_a_second_calculation_of_a_configuration_is_a_repeat(tmp_path: Path) -> None:
    again = Row("row-again", ((31, "v_S"),), 2.75)  # every sulphur site of the host is equivalent
    found = read_labelled(write_subset(tmp_path / NAME, (*ROWS, again)))
    assert found.repeats == (("row-again", "the same configuration as row-v_S"),)
    assert found.n_rows == N_RESULTS


def test_equal_supercells_of_two_subsets_are_one(tmp_path: Path) -> None:
    write_subset(tmp_path / NAME)
    write_subset(tmp_path / "high_density_defects/MoS2_500", (Row("other", ((1, "W_Mo"), (2, "W_Mo")), 1.0),))
    found = read_labelled(tmp_path)
    assert len(found.supercells) == 1
    assert found.subsets == (NAME, "high_density_defects/MoS2_500")
    assert found.group_of_row.tolist() == [0] * N_RESULTS + [1]
    assert read_labelled(tmp_path, selection=Selection(subsets=("MoS2_500",))).names == ("other",)
    with pytest.raises(UnknownNameError, match="called 'WSe2'"):
        read_labelled(tmp_path, selection=Selection(subsets=("WSe2",)))


def test_an_archive_of_a_release_reads_as_its_folder(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "release.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder.parent, "low_density_defects")
    packed, plain = read_labelled(path), read_labelled(folder.parent)
    assert packed.names == plain.names
    assert packed.digest == plain.digest
    np.testing.assert_array_equal(packed.labels, plain.labels)


def test_the_digest_tells_other_labels_apart(folder: Path) -> None:
    before = read_labelled(folder).digest
    change_table(folder / "targets.csv.gz", lambda rows: [{**row, "total_mag": 2.0} for row in rows])
    assert read_labelled(folder).digest != before


def write_results(path: Path, rows: list[dict[str, object]]) -> Path:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


PRISTINE = {"name": "bulk", "energy": PRISTINE_ENERGY, "sites": "", "defect_types": "", "supercell": "4x4"}
VACANCY = {"name": "one", "energy": PRISTINE_ENERGY + 2.75 + 4.25, "sites": "17", "defect_types": "v_S",
           "supercell": "4x4", "homo_lumo_gap_min": 1.25}  # fmt: skip


def test_a_table_of_results_has_formation_energies_by_its_pristine_row(tmp_path: Path) -> None:
    found = read_labelled(write_results(tmp_path / "done.csv", [VACANCY, PRISTINE]), references=OF_MOS2)
    assert found.names == ("done.csv: one",)
    assert found.properties == ("formation_energy", "formation_energy_per_site", "homo_lumo_gap_min")
    np.testing.assert_allclose(found.labels, [[2.75, 2.75, 1.25]])
    assert found.configurations == (canonical_form(find_symmetry(MOS2), configuration((17, "v_S")))[0],)
    assert (found.subsets, found.levels, found.splits) == (("MoS2 4x4",), (None,), (None,))


def test_without_references_other_properties_remain(tmp_path: Path) -> None:
    found = read_labelled(write_results(tmp_path / "done.csv", [VACANCY]), references=OF_MOS2)
    assert found.properties == ("homo_lumo_gap_min",)
    ((name, remark),) = found.notes
    assert name == "done.csv: one"
    assert "no energy of the pristine supercell" in remark


def test_sites_without_a_host_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = write_results(tmp_path / "done.csv", [VACANCY])
    with pytest.raises(InputError, match=r"no labelled row.* --host"):
        read_labelled(path)


def test_a_defect_on_a_site_of_another_species_is_refused(tmp_path: Path) -> None:
    path = write_results(tmp_path / "done.csv", [VACANCY, {**VACANCY, "name": "wrong", "sites": "3"}])
    ((name, reason),) = read_labelled(path, references=OF_MOS2).refusals
    assert name == "done.csv: wrong"
    assert "v_S is on site 3" in reason


def test_a_row_without_any_property_has_no_label(tmp_path: Path) -> None:
    bare = {**VACANCY, "name": "bare", "sites": "17 18", "defect_types": "v_S v_S", "homo_lumo_gap_min": ""}
    found = read_labelled(write_results(tmp_path / "done.csv", [VACANCY, bare]), references=OF_MOS2)
    assert (found.names, found.n_unlabelled) == (("done.csv: one",), 1)


def test_structures_of_a_folder_find_their_host(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.cif").write_text(cif(((40, "v_S"),)))
    write_results(
        tmp_path / "a" / "done.csv",
        [{"name": "x", "structure": "one.cif", "energy": -1.0, "homo": -0.5},
         {"name": "y", "structure": "none.cif", "energy": -1.0, "homo": -0.5}],
    )  # fmt: skip
    found = read_labelled(tmp_path)
    assert found.names == ("a/done.csv: x",)
    assert found.supercells[0].host.name == "MoS2"
    assert found.configurations[0].composition == "v_S"
    assert [name for name, _ in found.refusals] == ["a/done.csv: y"]


def test_a_file_that_cannot_be_read_costs_itself_only(tmp_path: Path) -> None:
    write_results(tmp_path / "done.csv", [VACANCY])
    (tmp_path / "broken.csv").write_text("a,b\n1,2\n")
    assert [name for name, _ in read_labelled(tmp_path, references=OF_MOS2).refusals] == ["broken.csv"]


def test_a_host_that_nobody_knows_is_an_error(tmp_path: Path) -> None:
    path = write_results(tmp_path / "done.csv", [VACANCY])
    with pytest.raises(UnknownNameError, match="no host is called 'Unobtainium'"):
        read_labelled(path, references=GivenReferences("Unobtainium"))


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"there is no .*nothing"):
        read_labelled(tmp_path / "nothing")


def test_rows_for_a_training_keep_the_order(folder: Path) -> None:
    found = read_labelled(folder)
    rows = found.rows()
    assert rows.configurations == found.configurations
    assert rows.is_validation.tolist() == [split == "validation" for split in found.splits]
    np.testing.assert_array_equal(rows.labels, found.labels)


def test_the_shipped_data_set_is_read_with_its_level() -> None:
    found = read_labelled(shipped_path())
    assert found.n_rows + len(found.refusals) == 757
    assert [level.name if level else None for level in found.levels] == ["GFN1-xTB single point"]
    assert "total_mag" not in found.properties
    np.testing.assert_allclose(found.labels[:, 0] / found.n_defects, found.labels[:, 1])


def test_the_release_here_has_all_labelled_rows(shared_data: Path) -> None:
    found = read_labelled(shared_data / "2dmd", selection=Selection(("BP_spin_500", "hBN_spin_500"), ("validation",)))
    assert found.subsets == (SUBSETS[4], SUBSETS[7])
    assert (found.n_rows, found.refusals) == (200, ())
    assert found.n_unlabelled == 200
    split = (shared_data / "2dmd" / SUBSETS[4] / "split.csv").read_text().splitlines()
    expected = {line.split(",")[0] for line in split if line.endswith(",validation")}
    assert {name for name, group in zip(found.names, found.group_of_row, strict=True) if group == 0} == expected


def test_bulk_runs_bring_host_and_pristine_energy_of_their_level(shared_data: Path) -> None:
    potentials = {"Ga": -3.0, "N": -8.0, "Mg": -1.5}
    found = read_labelled(shared_data / "vasp", references=GivenReferences("GaN", potentials))
    energies = labels(found, "formation_energy")
    # final e_0_energy of the two runs of GaN_v_N, read off the files
    assert energies["GaN_v_N/defect/vasprun.xml.gz"] == pytest.approx(-200.60111399 + 213.90677977 - 8.0, abs=1e-6)
    assert energies.keys() == {"GaN_v_N/defect/vasprun.xml.gz", "GaN_Mg_Ga/defect/vasprun.xml.gz"}
    assert len(found.subsets) == 2  # two levels of theory
