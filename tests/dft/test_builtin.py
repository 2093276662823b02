import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from screening.defects.defect_types import Configuration, parse_defect_types
from screening.defects.enumeration import SearchSpace, enumerate_space
from screening.defects.symmetry import count_orbits, find_symmetry
from screening.dft import builtin, xtb
from screening.dft.results import formation_energy
from screening.errors import FileFormatError, InputError

N_SMALL = 57  # distinct configurations of one and two defects: 4 + 53, by Burnside's lemma


@pytest.fixture(scope="module")
def dataset() -> builtin.BuiltinDataset:
    return builtin.read()


def write_checkpoint(path: Path, dataset: builtin.BuiltinDataset, *, without: Configuration | None = None) -> None:
    """A checkpoint of all calculations of a data set, as a build that was killed leaves it behind."""
    outcomes = [(Configuration((), ()), dataset.card.pristine)]
    for row in dataset.rows:
        numbers = {name: value for name, value in row.numbers.items() if name != "formation_energy"}
        outcomes.append((row.configuration, {"error": row.error} if row.error else numbers))
    lines = [builtin._checkpoint_line(c, outcome) for c, outcome in outcomes if c != without]
    head = json.dumps(builtin._checkpoint_head())
    path.with_name(path.name + ".checkpoint").write_text("\n".join([head, *lines]) + "\n")


def table_of(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode().partition("\n")[2]


def test_the_shipped_data_set_is_small_and_large_enough(dataset: builtin.BuiltinDataset) -> None:
    assert len(dataset.rows) >= 500
    assert dataset.size < 300_000
    assert dataset.card.tblite
    assert dataset.card.licence == "MIT"
    assert dataset.card.command.endswith(f"--sample {dataset.card.sample} --seed {dataset.card.seed}")


def test_the_shipped_rows_are_those_of_the_enumeration(dataset: builtin.BuiltinDataset) -> None:
    supercell = dataset.supercell
    types = parse_defect_types("v_S,Se_S,v_Mo,W_Mo")
    symmetry = find_symmetry(supercell)
    found: dict[Configuration, int] = {}
    for block in enumerate_space(SearchSpace(supercell, types, 3), symmetry):
        for sites, codes, n in zip(
            block.sites.tolist(), block.defect_types.tolist(), block.multiplicity.tolist(), strict=True
        ):
            found[Configuration(tuple(sites), tuple(codes))] = n
    shipped = {row.configuration: row.multiplicity for row in dataset.rows}
    assert len(shipped) == len(dataset.rows)
    assert shipped.items() <= found.items()
    small = {configuration for configuration in found if configuration.n_defects <= 2}
    assert small <= shipped.keys()
    counts = count_orbits(supercell, symmetry, types, 2)  # Burnside, another method
    assert len(small) == N_SMALL == sum(counts.values()) - 1
    assert len(shipped) == N_SMALL + dataset.card.sample


def test_the_sample_is_uniform_over_the_configurations_of_three_defects(dataset: builtin.BuiltinDataset) -> None:
    supercell = dataset.supercell
    types = parse_defect_types("v_S,Se_S,v_Mo,W_Mo")
    space = SearchSpace(supercell, types, 3, min_defects=3)
    counts = space.counts(find_symmetry(supercell))
    sampled = Counter(row.configuration.composition for row in dataset.rows if row.configuration.n_defects == 3)
    share = dataset.card.sample / sum(counts.values())
    chi_square = sum((sampled[space.label(c)] - share * n) ** 2 / (share * n * (1 - share)) for c, n in counts.items())
    assert chi_square < 43.8  # 19 degrees of freedom; 0.1 % of uniform samples exceed it


def test_recalculated_rows_agree(dataset: builtin.BuiltinDataset) -> None:
    good = [row for row in dataset.rows if row.error is None]
    for row in (good[2], good[len(good) // 2]):
        found = xtb.calculate(dataset.supercell, row.configuration)
        assert found.energy == pytest.approx(row.numbers["energy"], abs=1e-5)
        assert found.properties == pytest.approx(row.result.properties, abs=1e-4)


def test_the_level_of_theory_is_that_of_the_calculator(dataset: builtin.BuiltinDataset) -> None:
    assert dataset.card.level_of_theory.digest == xtb.level_of_theory().digest
    assert dataset.card.level_of_theory.name == xtb.level_of_theory().name


def test_the_chemical_potentials_are_those_of_the_calculator(dataset: builtin.BuiltinDataset) -> None:
    for element in ("S", "Se", "Mo"):
        energy, source = dataset.card.chemical_potentials[element]
        assert (pytest.approx(energy, abs=1e-4), source) == xtb.reference(element)
    molybdenum, sulphur = (dataset.card.chemical_potentials[e][0] for e in ("Mo", "S"))
    assert 16 * molybdenum + 32 * sulphur == pytest.approx(dataset.card.pristine["energy"], abs=1e-4)


def test_formation_energies_follow_from_the_card(dataset: builtin.BuiltinDataset) -> None:
    potentials = {element: energy for element, (energy, _) in dataset.card.chemical_potentials.items()}
    for row in dataset.rows:
        if row.error is None:
            energy = formation_energy(
                row.configuration,
                row.numbers["energy"],
                pristine_energy=dataset.card.pristine["energy"],
                chemical_potentials=potentials,
            )
            assert energy == pytest.approx(row.numbers["formation_energy"], abs=2e-6)


def test_a_share_is_for_validation_and_single_defects_train(dataset: builtin.BuiltinDataset) -> None:
    share = np.mean([row.split == "validation" for row in dataset.rows])
    assert 0.10 < share < 0.20
    assert {row.split for row in dataset.rows if row.configuration.n_defects == 1} == {"train"}


def test_a_build_goes_on_from_its_checkpoint_and_writes_the_same_bytes_again(
    dataset: builtin.BuiltinDataset, tmp_path: Path
) -> None:
    path = tmp_path / "again.csv.gz"
    last = next(row.configuration for row in dataset.rows if row.name.startswith("Se_S@"))
    write_checkpoint(path, dataset, without=last)
    seen: list[tuple[int, int]] = []
    report = builtin.build(
        path,
        sample=dataset.card.sample,
        seed=dataset.card.seed,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert (report.rows, report.from_checkpoint) == (len(dataset.rows), len(dataset.rows))
    assert seen[-1] == (report.rows + 1, report.rows + 1)
    assert not list(tmp_path.glob("*.checkpoint"))
    rebuilt = builtin.read(path)
    assert [row.configuration for row in rebuilt.rows] == [row.configuration for row in dataset.rows]
    for one, other in zip(rebuilt.rows, dataset.rows, strict=True):
        assert one.numbers == pytest.approx(other.numbers, abs=1e-4)
        assert (one.split, one.error) == (other.split, other.error)
    first = path.read_bytes()
    write_checkpoint(path, rebuilt)
    builtin.build(path, sample=dataset.card.sample, seed=dataset.card.seed)
    assert path.read_bytes() == first


def test_a_failed_calculation_is_a_row_with_its_reason(
    dataset: builtin.BuiltinDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "failed.csv.gz"
    missing = dataset.rows[10].configuration
    write_checkpoint(path, dataset, without=missing)
    monkeypatch.setattr(xtb, "_MIXINGS", ((0.4, 2),))
    monkeypatch.setattr(xtb, "reference", lambda element: dataset.card.chemical_potentials[element])
    report = builtin.build(path, sample=dataset.card.sample, seed=dataset.card.seed)
    assert report.failed == 1 + sum(row.error is not None for row in dataset.rows)
    row = builtin.read(path).rows[10]
    assert row.configuration == missing
    assert row.numbers == {}
    assert row.error is not None
    assert "SCF not converged in 2 cycles" in row.error
    cells = next(r for r in csv.DictReader(io.StringIO(table_of(path))) if r["error"])
    assert cells["energy"] == ""


def test_a_checkpoint_that_was_cut_short_loses_its_last_line_only(
    dataset: builtin.BuiltinDataset, tmp_path: Path
) -> None:
    path = tmp_path / "cut.csv.gz"
    write_checkpoint(path, dataset)
    checkpoint = path.with_name(path.name + ".checkpoint")
    checkpoint.write_text(checkpoint.read_text()[:-20])
    assert len(builtin._read_checkpoint(checkpoint)) == len(dataset.rows)  # the pristine supercell counts as well


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv.gz.checkpoint").write_text('{"host": "WSe2"}\n')
    with pytest.raises(InputError, match=r"x.csv.gz.checkpoint holds calculations with other settings"):
        builtin.build(tmp_path / "x.csv.gz", sample=1)


def test_a_sample_larger_than_there_is_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a sample of 947 is asked for; there are 946"):
        builtin.build(tmp_path / "x.csv.gz", sample=947)


@pytest.mark.parametrize("damage", ["truncated", "no card", "column", "not finite", "absent"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    content = builtin.shipped_path().read_bytes()
    text = gzip.decompress(content).decode()
    card, header, rows = text.split("\n", 2)
    spoilt = {
        "truncated": content[: len(content) // 2],
        "no card": gzip.compress(f"{header}\n{rows}".encode()),
        "column": gzip.compress("\n".join([card, header.replace("lumo", "LUMO"), rows]).encode()),
        "not finite": gzip.compress("\n".join([card, header, rows.replace("-4121.499864", "nan")]).encode()),
    }
    path = tmp_path / "spoilt.csv.gz"
    if damage in spoilt:
        path.write_bytes(spoilt[damage])
    with pytest.raises(FileFormatError, match=r"spoilt.csv.gz is no data set"):
        builtin.read(path)
