import ast
import gzip
import hashlib
import tarfile
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from screening.defects.defect_types import Configuration, DefectType
from screening.dft.bulk_matching import MatchingPool
from screening.dft.csv_tables import read_table
from screening.dft.dataset_2dmd import SUBSETS, Subset, SubsetFolder, choose_subsets, open_release, read_subset
from screening.errors import FileFormatError, InputError, UnknownNameError, UnsafeArchiveError
from tests.synthetic_2dmd import (
    CHEMICAL_POTENTIALS,
    N_RESULTS,
    PRISTINE_ENERGY,
    ROWS,
    change_archive,
    change_table,
    write_subset,
    write_table,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_subset(tmp_path / "release" / "low_density_defects" / "MoS2")


def read(path: Path) -> Subset:
    with open_release(path) as (place,):
        return read_subset(place)


def zip_of(folder: Path, target: Path, *, top: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, Path(top, path.relative_to(folder)))
    return target


def test_a_subset_is_read_as_it_was_written(folder: Path) -> None:
    subset = read(folder)
    assert subset.name == "low_density_defects/MoS2"
    assert (subset.formula, subset.repeats, subset.pristine_energy) == ("MoS2", (4, 4, 1), PRISTINE_ENERGY)
    assert subset.chemical_potentials == {e: (mu, "2DMD, made up") for e, mu in CHEMICAL_POTENTIALS.items()}
    assert {name: (row.energy, row.split) for name, row in subset.rows.items()} == {
        row.name: (row.energy, row.split) for row in ROWS if row.formation_energy is not None
    }
    assert list(subset.structures) == [row.name for row in ROWS]
    assert subset.refusals == {}
    assert subset.supercell().label == "4x4"


def test_files_are_known_by_their_hash_and_by_the_path_the_user_gave(folder: Path) -> None:
    file = read(folder.parent.parent).files["targets"]
    assert file.path == str(folder / "targets.csv.gz")
    assert file.sha256 == hashlib.sha256((folder / "targets.csv.gz").read_bytes()).hexdigest()
    assert file.size == (folder / "targets.csv.gz").stat().st_size


@pytest.mark.parametrize("up", [0, 1, 2])
def test_a_subset_has_one_name_from_wherever_it_is_opened(folder: Path, up: int) -> None:
    path = [folder, *folder.parents][up]
    with open_release(path) as places:
        assert [place.name for place in places] == ["low_density_defects/MoS2"]


def test_a_zip_reads_like_its_folder(folder: Path, tmp_path: Path) -> None:
    expected = read(folder)
    with open_release(zip_of(folder.parent.parent, tmp_path / "r.zip", top="some/top")) as (place,):
        subset = read_subset(place)
        structures = dict(subset.read_structures())
    assert subset.name == expected.name
    assert subset.rows == expected.rows
    assert structures == dict(expected.read_structures())
    assert {file.sha256 for file in subset.files.values()} == {file.sha256 for file in expected.files.values()}
    assert subset.files["targets"].path == str(tmp_path / "r.zip/some/top/low_density_defects/MoS2/targets.csv.gz")


def test_a_zip_of_one_subset_is_called_by_its_name(folder: Path, tmp_path: Path) -> None:
    with open_release(zip_of(folder, tmp_path / "mine.zip")) as (place,):
        assert place.name == "mine"


def test_a_zip_with_a_path_that_leaves_it_is_unsafe(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        archive.writestr("../outside/targets.csv", "_id\n")
    with pytest.raises(UnsafeArchiveError), open_release(tmp_path / "r.zip"):
        pass
    assert not (tmp_path.parent / "outside").exists()


def test_plain_tables_and_no_split_are_accepted_as_in_the_public_release(tmp_path: Path) -> None:
    folder = write_subset(tmp_path / "MoS2", with_split=False)
    for name in ("targets.csv", "defects.csv"):
        (folder / name).write_bytes(gzip.decompress((folder / f"{name}.gz").read_bytes()))
        (folder / f"{name}.gz").unlink()
    subset = read(folder)
    assert len(subset.rows) == N_RESULTS
    assert {row.split for row in subset.rows.values()} == {None}
    assert subset.files["targets"].path.endswith("targets.csv")


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_path_without_a_subset_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileFormatError, match="2DMD"), open_release(tmp_path / name):
        pass


@pytest.mark.parametrize(
    "name",
    ["defects.csv.gz", "targets.csv.gz", "descriptors.csv", "elements.csv", "initial_structures.csv", "initial.tar.gz"],
)
def test_an_absent_file_is_named_with_its_subset(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileFormatError, match=rf"subset low_density_defects/MoS2: .*{name}"):
        read(folder)


def test_two_subsets_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    write_subset(tmp_path / "copy" / "low_density_defects" / "MoS2")
    with pytest.raises(FileFormatError, match="more than one subset called low_density_defects/MoS2"):
        read(tmp_path)


def test_both_spellings_of_the_cell_are_read(folder: Path) -> None:
    write_table(folder / "descriptors.csv", [{"base": "MoS2", "cell": cell} for cell in ("(4, 4, 1)", "[4, 4, 1]")])
    assert read(folder).repeats == (4, 4, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("MoS2", "(4, 4, 1)"), ("MoS2", "(8, 8, 1)")], "2 combinations of host and cell"),
        ([("MoS2", "4x4")], "cell '4x4'"),
        ([("WS2", "(4, 4, 1)")], "no pristine energy of WS2"),
    ],
)
def test_a_subset_has_one_host_in_one_cell_with_a_pristine_energy(
    folder: Path, rows: list[tuple[str, str]], message: str
) -> None:
    write_table(folder / "descriptors.csv", [{"base": base, "cell": cell} for base, cell in rows])
    with pytest.raises(FileFormatError, match=message):
        read(folder)


def test_a_host_that_the_catalogue_lacks_is_read_from_the_unit_cell(folder: Path) -> None:
    write_table(folder / "descriptors.csv", [{"base": "NbS2", "cell": "(4, 4, 1)"}])
    write_table(folder / "initial_structures.csv", [{"base": "NbS2", "cell_size": "[4, 4, 1]", "energy": -1.0}])
    text = (folder / "unit_cells" / "MoS2.cif").read_text().replace("Mo", "Nb")
    (folder / "unit_cells" / "NbS2.cif").write_text(text)
    supercell = read(folder).supercell()
    assert (supercell.host.name, supercell.host.formula, supercell.label) == ("NbS2", "NbS2", "4x4")


def test_rows_may_be_for_a_test(folder: Path) -> None:
    write_table(folder / "split.csv", [{"_id": "row-v_S", "split": "test"}])
    assert read(folder).rows["row-v_S"].split == "test"


def test_an_unknown_split_is_refused(folder: Path) -> None:
    write_table(folder / "split.csv", [{"_id": "row-v_S", "split": "tset"}])
    with pytest.raises(FileFormatError, match=r"split 'tset'; expected train, validation, test"):
        read(folder)


def test_energies_that_differ_between_the_tables_refuse_the_row(folder: Path) -> None:
    change_table(folder / "defects.csv.gz", lambda rows: [{**rows[0], "energy": -1.0}, *rows[1:]])
    subset = read(folder)
    assert list(subset.refusals) == ["row-v_S"]
    assert "-1.00000000 eV in defects.csv.gz" in subset.refusals["row-v_S"]
    assert len(subset.rows) == N_RESULTS - 1


def test_a_structure_that_is_there_twice_refuses_its_row(folder: Path) -> None:
    with tarfile.open(folder / "initial.tar.gz") as archive:
        text = archive.extractfile("row-v_S.cif").read().decode()  # type: ignore[union-attr]
    change_archive(folder / "initial.tar.gz", {"again/row-v_S.cif": text})
    subset = read(folder)
    assert "more than one structure" in subset.refusals["row-v_S"]
    assert list(subset.structures) == [row.name for row in ROWS]


def test_levels_are_the_highest_occupied_and_the_lowest_unoccupied_of_both_channels(folder: Path) -> None:
    subset = read(folder)
    sulphur_vacancy = Configuration((16,), (DefectType.parse("v_S").code,))
    properties = subset.properties(subset.rows["row-v_S"], sulphur_vacancy)
    # the first row's channels: -1 and 0.25 eV, and shifted apart by 0.0625 eV
    assert (properties["homo"], properties["lumo"]) == (-1.0, 0.25)
    assert (properties["homo_lumo_gap_min"], properties["homo_lumo_gap_minority"]) == (1.25, 1.375)
    assert properties["formation_energy"] == pytest.approx(2.75, abs=1e-9)


def test_an_energy_that_does_not_give_the_formation_energy_is_refused_with_both_numbers(folder: Path) -> None:
    subset = read(folder)
    row = subset.rows["row-v_S"]
    with pytest.raises(InputError, match=r"2\.75000000 eV in the file and 3\.50000000 eV"):
        subset.properties(replace(row, energy=row.energy + 0.75), Configuration((16,), (DefectType.parse("v_S").code,)))


def test_the_pristine_supercell_is_no_row(folder: Path) -> None:
    subset = read(folder)
    with pytest.raises(InputError, match="pristine"):
        subset.properties(subset.rows["row-v_S"], Configuration((), ()))


def places(*names: str) -> list[SubsetFolder]:
    return [SubsetFolder(name, Path(), "") for name in names]


def test_subsets_are_chosen_by_full_name_or_last_part() -> None:
    found = places("low/MoS2", "high/MoS2", "high/WSe2")
    assert [s.name for s in choose_subsets(found, ["WSe2", "low/MoS2"])] == ["low/MoS2", "high/WSe2"]
    assert choose_subsets(found, []) == found


@pytest.mark.parametrize(("name", "message"), [("MoS2", "2 subsets"), ("MoS", "0 subsets .* low/MoS2, high/MoS2")])
def test_an_unknown_or_ambiguous_subset_is_refused_with_those_there(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        choose_subsets(places("low/MoS2", "high/MoS2"), [name])


def test_the_release_has_all_subsets_with_the_published_numbers(shared_data: Path) -> None:
    with open_release(shared_data / "2dmd") as found:
        subsets = [read_subset(place) for place in found]
    assert tuple(subset.name for subset in subsets) == SUBSETS
    assert [len(subset.structures) for subset in subsets] == [5933, 5933] + 6 * [500]  # Huang et al., table 1
    assert sum(len(subset.rows) for subset in subsets) == 11_893
    assert not any(subset.refusals for subset in subsets)
    assert all(subset.chemical_potentials == subsets[0].chemical_potentials for subset in subsets)


@pytest.mark.parametrize("subset", SUBSETS)
def test_levels_of_both_channels_are_those_the_release_calls_max_and_min(shared_data: Path, subset: str) -> None:
    found = read(shared_data / "2dmd" / subset)
    table = read_table(shared_data / "2dmd" / subset / "targets.csv.gz", ["_id", "homo_max", "lumo_min"])
    assert len(table) == len(found.rows)
    for line in table:
        numbers = found.rows[line["_id"] or ""].numbers
        assert max(numbers["homo_majority"], numbers["homo_minority"]) == float(line["homo_max"] or "nan")
        assert min(numbers["lumo_majority"], numbers["lumo_minority"]) == float(line["lumo_min"] or "nan")


def test_descriptors_of_boron_nitride_are_wrong_for_114_structures(shared_data: Path) -> None:
    """The published flaw of the data set, found by its structures: descriptors are keyed by the cell's formula."""
    folder = shared_data / "2dmd" / "high_density_defects" / "hBN_spin_500"
    descriptors = {
        row["description"]: Counter(
            f"{d.get('to', 'v')}_{d.get('from', d.get('element'))}" for d in ast.literal_eval(row["defects"] or "")
        )
        for row in read_table(folder / "descriptors.csv", ["description", "defects"])
    }
    subset = read(folder)
    with MatchingPool() as pool:
        matches = list(pool.match(subset.read_structures(), subset.supercell()))
    wrong = 0
    for match in matches:
        assert match.configuration is not None
        types = Counter(DefectType.from_code(code).name for code in match.configuration.defect_types)
        wrong += types != descriptors[match.name.split("_")[1]]
    assert (len(matches), wrong) == (500, 114)
