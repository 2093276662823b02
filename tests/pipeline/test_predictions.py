"""Structure files to predictions: archives, faulty members, the order of the rows."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine

from screening.database import tables
from screening.database.session import session_scope
from screening.defects.catalogue import catalogue_host
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.dft.structures import write_structure
from screening.errors import FileFormatError, InputError, UnknownNameError
from screening.learning.scorer import score_configurations
from screening.pipeline.hosts import add_supercell
from screening.pipeline.predictions import Predictor, choose_predictor, file_predictor, predict_files, stored_predictor
from screening.pipeline.pretrained import write_model_file
from screening.pipeline.references import add_level
from tests.learning.synthetic import labelled_rows
from tests.pipeline.made_models import LEVEL, small_model

V_S, SE_S, V_MO = 16 * 128, 16 * 128 + 34, 42 * 128


@pytest.fixture(scope="module")
def predicting() -> tuple[Predictor, Supercell]:
    """A small model of 4x4 MoS2, from a file."""
    return file_predictor(small_model()), labelled_rows().supercells[0]


def add_model(engine: Engine, name: str) -> None:
    """Store the small model in a database."""
    with session_scope(engine) as session:
        add_supercell(session, labelled_rows().supercells[0])
        level_id = add_level(session, LEVEL)
        session.add(
            tables.TrainedModel(
                name=name, level_id=level_id, properties=list(labelled_rows().properties), settings={}, seed=0,
                state="finished", weights=small_model().packed,
            )
        )  # fmt: skip


def cif_of(supercell: Supercell, configuration: Configuration, folder: Path) -> bytes:
    path = folder / "x.cif"
    write_structure(path, supercell, configuration)
    return path.read_bytes()


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_an_archive_gives_a_row_per_structure_in_its_order(
    predicting: tuple[Predictor, Supercell], tmp_path: Path
) -> None:
    """More structures than one process takes, two of them with one stem; the numbers are the scorer's."""
    predictor, supercell = predicting
    configurations = [Configuration((i % 16, 16 + i % 32), (V_MO, (V_S, SE_S)[i % 2])) for i in range(340)]
    members = {f"{i % 2}/{i // 2:03d}.cif": cif_of(supercell, c, tmp_path) for i, c in enumerate(configurations)}
    path = archive(tmp_path / "initial.tar.gz", members)
    report = predict_files(predictor, [path], tmp_path / "out.csv", device="cpu")
    assert (report.rows, report.refusals) == (340, [])
    rows = rows_of(tmp_path / "out.csv")
    assert [row["name"] for row in rows] == [f"{i // 2:03d}" for i in range(340)]
    assert [row["configuration"] for row in rows[:2]] == ["v_S+v_Mo", "Se_S+v_Mo"]
    assert {(row["host"], row["supercell"], row["model"], row["level"]) for row in rows} == {
        ("MoS2", "4x4", "small", "formula")
    }
    mean, std = score_configurations(predictor.ensemble, supercell, configurations, device="cpu")
    for column, expected in (("mean", mean), ("std", std)):
        found = [[float(row[f"{name}_{column}"]) for name in labelled_rows().properties] for row in rows]
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_faulty_member_costs_its_own_row_wherever_it_is(
    predicting: tuple[Predictor, Supercell], tmp_path: Path
) -> None:
    predictor, supercell = predicting
    good = cif_of(supercell, Configuration((20,), (V_S,)), tmp_path)
    members = {"README.txt": b"about these", "a.cif": b"broken", "b.cif": good, "c.cif": good[:300], "d.cif": good}
    report = predict_files(predictor, [archive(tmp_path / "x.tar.gz", members)], tmp_path / "out.csv", device="cpu")
    assert [row["name"] for row in rows_of(tmp_path / "out.csv")] == ["b", "d"]
    assert [name for name, _ in report.refusals] == ["README", "a", "c"]


def test_a_loose_file_that_cannot_be_read_costs_its_own_row(
    predicting: tuple[Predictor, Supercell], tmp_path: Path
) -> None:
    predictor, supercell = predicting
    files = [tmp_path / name for name in ("empty.cif", "garbage.cif", "good.cif")]
    files[0].touch()
    files[1].write_text("no crystal")
    write_structure(files[2], supercell, Configuration((20,), (V_S,)))
    report = predict_files(predictor, files, tmp_path / "out.csv", device="cpu")
    assert [row["name"] for row in rows_of(tmp_path / "out.csv")] == ["good"]
    assert [name for name, _ in report.refusals] == ["empty", "garbage"]


def test_nothing_is_written_where_nothing_can_be(predicting: tuple[Predictor, Supercell], tmp_path: Path) -> None:
    predictor, supercell = predicting
    path = tmp_path / "x.tar.gz"
    archive(path, {"a.cif": cif_of(supercell, Configuration((20,), (V_S,)), tmp_path)})
    (tmp_path / "cut.tar.gz").write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FileFormatError, match="truncated"):
        predict_files(predictor, [tmp_path / "cut.tar.gz"], tmp_path / "out.csv", device="cpu")
    with pytest.raises(FileFormatError, match="is not a file"):
        predict_files(predictor, [tmp_path / "absent.cif"], tmp_path / "out.csv", device="cpu")
    with pytest.raises(InputError, match="there is no folder"):
        predict_files(predictor, [path], tmp_path / "absent" / "out.csv", device="cpu")
    assert not (tmp_path / "out.csv").exists()


def test_a_row_says_its_interval_and_what_is_unusual_about_it(
    predicting: tuple[Predictor, Supercell], tmp_path: Path
) -> None:
    """The model has seen up to three defects; at least 1.96 standard deviations to each side would hold 95 %."""
    predictor, supercell = predicting
    usual, unusual = tmp_path / "usual.cif", tmp_path / "unusual.cif"
    write_structure(usual, supercell, Configuration((20, 30), (V_S, V_S)))
    write_structure(unusual, supercell, Configuration((17, 20, 24, 29, 40), (V_S,) * 5))
    predict_files(predictor, [usual, unusual], tmp_path / "out.csv", device="cpu")
    rows = {row["name"]: row for row in rows_of(tmp_path / "out.csv")}
    assert rows["usual"]["beyond_training"] == ""
    assert "5 defects, at most 3 were seen" in rows["unusual"]["beyond_training"]
    for row in rows.values():
        for name in labelled_rows().properties:
            assert float(row[f"{name}_half_width_95"]) > 1.2 * float(row[f"{name}_std"]) > 0


def test_the_columns_keep_their_order_and_new_ones_follow(
    predicting: tuple[Predictor, Supercell], tmp_path: Path
) -> None:
    predictor, supercell = predicting
    write_structure(tmp_path / "x.cif", supercell, Configuration((20,), (V_S,)))
    predict_files(predictor, [tmp_path / "x.cif"], tmp_path / "out.csv", device="cpu")
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == (
        "name,configuration,n_defects,formation_energy_mean,formation_energy_std,formation_energy_per_site_mean,"
        "formation_energy_per_site_std,homo_lumo_gap_min_mean,homo_lumo_gap_min_std,sites,host,supercell,model,level,"
        "formation_energy_half_width_95,formation_energy_per_site_half_width_95,homo_lumo_gap_min_half_width_95,"
        "beyond_training"
    )


def test_a_supercell_that_no_training_has_seen_is_found(
    predicting: tuple[Predictor, Supercell], tmp_path: Path
) -> None:
    """Far apart, two vacancies cost what they cost alone, whatever the supercell; a 5x5 cell was never seen."""
    predictor, _ = predicting
    supercell = Supercell.parse(catalogue_host("MoS2"), "5x5")
    path = tmp_path / "large.vasp"
    configuration = Configuration((30, 62), (V_S, V_S))
    write_structure(path, supercell, configuration)
    assert predict_files(predictor, [path], tmp_path / "out.csv", device="cpu").refusals == []
    (row,) = rows_of(tmp_path / "out.csv")
    assert (row["host"], row["supercell"], row["configuration"]) == ("MoS2", "5x5", "2*v_S")
    assert row["beyond_training"] == ""
    mean, _ = score_configurations(predictor.ensemble, supercell, [configuration], device="cpu")
    assert float(row["formation_energy_mean"]) == pytest.approx(mean[0, 0], abs=2e-4)


@pytest.mark.parametrize(
    ("supercell", "distance"),
    [("3x5", "9.6"), ("5,0,0,4,3,0,0,0,1", "11.5"), ("4x4", ""), ("5,5,0,-5,0,0,0,0,1", "")],
)
def test_a_supercell_in_which_images_are_nearer_than_any_seen_is_marked(
    predicting: tuple[Predictor, Supercell], tmp_path: Path, supercell: str, distance: str
) -> None:
    """Trained on 4x4; by hand, m a1 + n a2 is sqrt(m^2 - m n + n^2) times 3.1903 angstrom long."""
    predictor, _ = predicting
    cell = Supercell.parse(catalogue_host("MoS2"), supercell)
    write_structure(tmp_path / "x.cif", cell, Configuration((cell.n_cells + 1,), (V_S,)))
    predict_files(predictor, [tmp_path / "x.cif"], tmp_path / "out.csv", device="cpu")
    (row,) = rows_of(tmp_path / "out.csv")
    expected = f"images of a defect are {distance} angstrom apart, at least 12.8 were seen" if distance else ""
    assert row["beyond_training"] == expected


def test_what_the_model_knows_nothing_of_is_refused_with_the_reason(
    predicting: tuple[Predictor, Supercell], tmp_path: Path
) -> None:
    predictor, supercell = predicting
    v2o5 = Supercell.parse(catalogue_host("V2O5"), "3x1")
    structures = {
        "host": (v2o5, Configuration((0,), (23 * 128,))),
        "type": (supercell, Configuration((0,), (42 * 128 + 74,))),
        "pristine": (supercell, Configuration((), ())),
    }
    for name, (cell, configuration) in structures.items():
        write_structure(tmp_path / f"{name}.cif", cell, configuration)
    files = [tmp_path / f"{name}.cif" for name in structures]
    refusals = dict(predict_files(predictor, files, tmp_path / "out.csv", device="cpu").refusals)
    assert refusals.keys() == structures.keys()
    assert "3x1 supercell of V2O5" in refusals["host"]
    assert "learnt from the hosts MoS2" in refusals["host"]
    assert "never seen W_Mo in MoS2" in refusals["type"]
    assert "pristine" in refusals["pristine"]


def test_a_model_of_the_database_comes_first_and_a_path_is_always_a_file(clean_engine: Engine, tmp_path: Path) -> None:
    add_model(clean_engine, "stored")
    path = tmp_path / "small.safetensors"
    write_model_file(path, small_model())
    for predictor, name, is_of_file in (
        (stored_predictor(clean_engine), "stored", False),
        (choose_predictor(clean_engine), "stored", False),
        (choose_predictor(clean_engine, "stored"), "stored", False),
        (choose_predictor(clean_engine, str(path)), "small", True),
        (choose_predictor(None, str(path)), "small", True),
    ):
        assert (predictor.name, predictor.is_of_file) == (name, is_of_file)
        assert predictor.level == "formula"
        assert [host.name for host in predictor.hosts] == ["MoS2"]


def test_a_name_that_neither_the_database_nor_the_package_knows_is_refused(clean_engine: Engine) -> None:
    add_model(clean_engine, "stored")
    with pytest.raises(UnknownNameError, match=r"no model is called 'other'; there are: stored"):
        choose_predictor(clean_engine, "other")
    with pytest.raises(UnknownNameError, match="comes with the package"):
        choose_predictor(None, "other")
