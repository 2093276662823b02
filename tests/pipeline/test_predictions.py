"""Structure files to predictions: archives, faulty members, the order of the rows."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, select

from screening.database import tables
from screening.database.session import session_scope
from screening.defects.defect_types import Configuration
from screening.defects.host import Supercell
from screening.dft.structures import write_structure
from screening.errors import FileFormatError, InputError
from screening.learning.artifacts import ensemble_from_bytes, ensemble_to_bytes
from screening.learning.scorer import score_configurations
from screening.learning.settings import TrainingSettings
from screening.learning.training import train_ensemble
from screening.pipeline.hosts import add_supercell
from screening.pipeline.predictions import predict_files
from tests.learning.synthetic import labelled_rows

V_S, SE_S, V_MO = 16 * 128, 16 * 128 + 34, 42 * 128


@pytest.fixture
def predicting(clean_engine: Engine) -> tuple[Engine, Supercell]:
    """A database with a small model of 4x4 MoS2."""
    rows = labelled_rows()
    trained = train_ensemble(
        rows, TrainingSettings(n_members=3, width=16, epochs=2, device="cpu"), seed=0, on_progress=lambda p, c: None
    )
    with session_scope(clean_engine) as session:
        add_supercell(session, rows.supercells[0])
        level = tables.LevelOfTheory(name="formula", code="none", functional="none", settings={}, digest="d")
        session.add(level)
        session.flush()
        session.add(
            tables.TrainedModel(
                name="small", level_id=level.id, properties=list(rows.properties), settings={}, seed=0,
                state="finished", weights=ensemble_to_bytes(trained),
            )
        )  # fmt: skip
    return clean_engine, rows.supercells[0]


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
    predicting: tuple[Engine, Supercell], tmp_path: Path
) -> None:
    """More structures than one process takes, two of them with one stem; the numbers are the scorer's."""
    engine, supercell = predicting
    configurations = [Configuration((i % 16, 16 + i % 32), (V_MO, (V_S, SE_S)[i % 2])) for i in range(340)]
    members = {f"{i % 2}/{i // 2:03d}.cif": cif_of(supercell, c, tmp_path) for i, c in enumerate(configurations)}
    path = archive(tmp_path / "initial.tar.gz", members)
    report = predict_files(engine, [path], tmp_path / "out.csv", device="cpu")
    assert (report.rows, report.refusals) == (340, [])
    rows = rows_of(tmp_path / "out.csv")
    assert [row["name"] for row in rows] == [f"{i // 2:03d}" for i in range(340)]
    assert [row["configuration"] for row in rows[:2]] == ["v_S+v_Mo", "Se_S+v_Mo"]
    assert {(row["host"], row["supercell"], row["model"], row["level"]) for row in rows} == {
        ("MoS2", "4x4", "small", "formula")
    }
    with session_scope(engine) as session:
        weights = session.scalar(select(tables.TrainedModel.weights))
    assert weights is not None
    mean, std = score_configurations(ensemble_from_bytes(weights), supercell, configurations, device="cpu")
    for column, expected in (("mean", mean), ("std", std)):
        found = [[float(row[f"{name}_{column}"]) for name in labelled_rows().properties] for row in rows]
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_faulty_member_costs_its_own_row_wherever_it_is(predicting: tuple[Engine, Supercell], tmp_path: Path) -> None:
    engine, supercell = predicting
    good = cif_of(supercell, Configuration((20,), (V_S,)), tmp_path)
    members = {"README.txt": b"about these", "a.cif": b"broken", "b.cif": good, "c.cif": good[:300], "d.cif": good}
    report = predict_files(engine, [archive(tmp_path / "x.tar.gz", members)], tmp_path / "out.csv", device="cpu")
    assert [row["name"] for row in rows_of(tmp_path / "out.csv")] == ["b", "d"]
    assert [name for name, _ in report.refusals] == ["README", "a", "c"]


def test_a_loose_file_that_cannot_be_read_costs_its_own_row(
    predicting: tuple[Engine, Supercell], tmp_path: Path
) -> None:
    engine, supercell = predicting
    files = [tmp_path / name for name in ("empty.cif", "garbage.cif", "good.cif")]
    files[0].touch()
    files[1].write_text("no crystal")
    write_structure(files[2], supercell, Configuration((20,), (V_S,)))
    report = predict_files(engine, files, tmp_path / "out.csv", device="cpu")
    assert [row["name"] for row in rows_of(tmp_path / "out.csv")] == ["good"]
    assert [name for name, _ in report.refusals] == ["empty", "garbage"]


def test_nothing_is_written_where_nothing_can_be(predicting: tuple[Engine, Supercell], tmp_path: Path) -> None:
    engine, supercell = predicting
    path = tmp_path / "x.tar.gz"
    archive(path, {"a.cif": cif_of(supercell, Configuration((20,), (V_S,)), tmp_path)})
    (tmp_path / "cut.tar.gz").write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FileFormatError, match="truncated"):
        predict_files(engine, [tmp_path / "cut.tar.gz"], tmp_path / "out.csv", device="cpu")
    with pytest.raises(FileFormatError, match="is not a file"):
        predict_files(engine, [tmp_path / "absent.cif"], tmp_path / "out.csv", device="cpu")
    with pytest.raises(InputError, match="there is no folder"):
        predict_files(engine, [path], tmp_path / "absent" / "out.csv", device="cpu")
    assert not (tmp_path / "out.csv").exists()
