"""Files that are sent to the server are stored there, read by a worker, and every result is accepted or refused."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy import Engine, select
from sqlalchemy.orm import undefer

from screening.database import leases, tables
from screening.database.session import session_scope
from screening.dft.structures import write_structure
from screening.errors import FileFormatError, InputError, UnsafeArchiveError
from screening.pipeline import uploads
from screening.pipeline.dispatch import CONDITIONS, UNITS, Kind
from tests.synthetic_results import LEVEL, mos2, random_configurations
from tests.web.conftest import API
from tests.web.made_project import Made

OWNER = "here:1:u"


def work(engine: Engine, kind: Kind, sent: Response) -> int:
    """Read an upload as a worker does; its id."""
    assert sent.status_code == 202, sent.text
    with session_scope(engine) as session:
        only = tables.Upload.id == sent.json()["id"]
        upload_id = leases.claim_next(session, UNITS[kind], OWNER, only, *CONDITIONS[kind])
    assert upload_id is not None
    if kind == "intake":
        uploads.take_upload(engine, upload_id, OWNER)
    else:
        uploads.predict_upload(engine, upload_id, OWNER, device="cpu")
    return upload_id


def frames(tmp_path: Path, *, seed: int, energy: float = -340.0) -> bytes:
    """An extxyz file of two configurations with energies, and one of another material."""
    configurations = list(dict.fromkeys(random_configurations(mos2(), 400, seed=seed, max_defects=4)))
    texts = []
    for n, configuration in enumerate([c for c in configurations if c.n_defects == 4][:2]):
        path = tmp_path / f"{n}.extxyz"
        write_structure(path, mos2(), configuration)
        lines = path.read_text().splitlines()
        lines[1] += f" energy={energy - n}"
        texts += lines
    foreign = ["2", 'Lattice="2 0 0 0 2 0 0 0 9" Properties=species:S:1:pos:R:3 energy=-3.0', "C 0 0 0", "C 1 1 1"]
    return "\n".join([*texts, *foreign, ""]).encode()


def send(client: TestClient, name: str, content: bytes, **fields: Any) -> Any:
    return client.post(f"{API}/results", files={"file": (name, content)}, data=fields)


def test_each_result_of_a_file_is_accepted_or_refused_with_its_reason(
    submitter: TestClient, made: tuple[Engine, Made], tmp_path: Path
) -> None:
    sent = send(submitter, "C:\\runs\\done.extxyz", frames(tmp_path, seed=1), level=LEVEL)
    assert (sent.json()["name"], sent.json()["state"]) == ("done.extxyz", "waiting")
    upload_id = work(made[0], "intake", sent)
    found = submitter.get(f"{API}/uploads/{upload_id}").json()
    assert found["state"] == "finished"
    report = found["report"]
    assert (report["new"], report["refused"]) == (2, 1)
    outcomes = [row["outcome"] for row in report["files"]]
    assert sorted(outcomes) == ["new", "new", "refused"]
    (refused,) = (row for row in report["files"] if row["outcome"] == "refused")
    assert "/tmp" not in str(report)  # no path of the worker's disk
    assert refused["file"] == f"upload {upload_id}/done.extxyz"
    with session_scope(made[0]) as session:
        assert session.scalar(select(tables.SourceFile.path).order_by(tables.SourceFile.id.desc())) == refused["file"]
        row = session.get_one(tables.Upload, upload_id, options=[undefer(tables.Upload.content)])
        assert row.content is None  # the file is not kept twice


def test_the_same_file_again_changes_nothing(submitter: TestClient, made: tuple[Engine, Made], tmp_path: Path) -> None:
    for expected in ("new", "known"):
        sent = send(submitter, "again.extxyz", frames(tmp_path, seed=2), level=LEVEL)
        report = submitter.get(f"{API}/uploads/{work(made[0], 'intake', sent)}").json()["report"]
        assert report[expected] == 2


def test_an_archive_is_unpacked_and_its_files_are_named_by_their_folders(
    submitter: TestClient, made: tuple[Engine, Made], tmp_path: Path
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a/done.extxyz", frames(tmp_path, seed=3))
        archive.writestr("a/notes.txt", "nothing to read")
    sent = send(submitter, "runs.zip", packed.getvalue(), level=LEVEL)
    report = submitter.get(f"{API}/uploads/{work(made[0], 'intake', sent)}").json()["report"]
    assert report["new"] == 2
    assert {row["file"] for row in report["files"]} == {"runs/a/done.extxyz"}


def archive_with(name: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("evil.tar.gz", archive_with("../../etc/vasprun.xml"), UnsafeArchiveError),
        ("evil.tar.gz", archive_with("/etc/vasprun.xml"), UnsafeArchiveError),
        ("empty.tar.gz", archive_with("notes.txt"), FileFormatError),
        ("notes.txt", b"energies: all good", FileFormatError),
        ("cut.zip", b"PK\x03\x04 and so on", FileFormatError),
    ],
)
def test_what_cannot_be_read_as_a_whole_is_an_error_of_the_upload(
    submitter: TestClient, made: tuple[Engine, Made], name: str, content: bytes, error: type[InputError]
) -> None:
    sent = send(submitter, name, content)
    with pytest.raises(error) as raised:
        work(made[0], "intake", sent)
    upload_id = sent.json()["id"]
    with session_scope(made[0]) as session:  # as the worker ends it
        leases.fail(session, tables.Upload, upload_id, OWNER, error=str(raised.value))
    found = submitter.get(f"{API}/uploads/{upload_id}").json()
    assert found["state"] == "failed"
    assert found["error"]


def test_structures_are_predicted_and_what_the_model_never_saw_is_refused(
    submitter: TestClient, made: tuple[Engine, Made], tmp_path: Path
) -> None:
    sent = submitter.post(
        f"{API}/predictions", files={"file": ("some.extxyz", frames(tmp_path, seed=4))}, data={"model": "small"}
    )
    found = submitter.get(f"{API}/uploads/{work(made[0], 'predict', sent)}").json()["report"]
    assert (found["model"], found["predicted"]) == ("small", 2)
    assert float(found["rows"][0]["homo_lumo_gap_min_std"]) > 0
    (refusal,) = found["refusals"]
    assert refusal["reason"]


def test_a_model_that_reads_like_a_path_is_refused(submitter: TestClient) -> None:
    answer = submitter.post(
        f"{API}/predictions", files={"file": ("a.cif", b"x")}, data={"model": "/etc/model.safetensors"}
    )
    assert answer.status_code == 422
    assert "reads like a path" in answer.json()["detail"]


def test_uploads_are_listed_newest_first_in_pages(submitter: TestClient, reader: TestClient) -> None:
    for n in range(3):
        send(submitter, f"listed-{n}.csv", b"structure,energy\n")
    walked: list[int] = []
    path = f"{API}/uploads?limit=2"
    while path:
        page = reader.get(path).json()
        walked += [row["id"] for row in page["rows"]]
        path = page["next"]
    assert walked == sorted(walked, reverse=True)
    assert len(set(walked)) == len(walked) >= 3
    assert reader.get(f"{API}/uploads", params={"after": "x"}).status_code == 422


@pytest.mark.parametrize(("name", "content", "said"), [("x.csv", b"", "is empty"), ("..", b"x", "is called")])
def test_a_file_without_a_name_or_content_is_refused(
    submitter: TestClient, name: str, content: bytes, said: str
) -> None:
    answer = send(submitter, name, content)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_results_of_a_round_finish_its_calculations(
    submitter: TestClient, made: tuple[Engine, Made], tmp_path: Path
) -> None:
    query = {"host": "MoS2", "supercell": "4x4"}
    proposed = submitter.post(f"{API}/rounds", json={"query": query, "n": 1, "name": "sent"}).json()
    archive = submitter.post(f"{API}/rounds/sent/inputs", params={"only_structures": True}).content
    calculation = proposed["calculations"][0]["calculation"]
    with zipfile.ZipFile(io.BytesIO(archive)) as inputs:
        manifest = next(name for name in inputs.namelist() if name.endswith("manifest.json"))
        folder = manifest.rsplit("/", 1)[0]
        poscar = inputs.read(f"{folder}/calculation-{calculation}/POSCAR")
        table = inputs.read(manifest)
    packed = io.BytesIO()
    from ase.io import read, write  # the calculation of the other machine

    (tmp_path / "POSCAR").write_bytes(poscar)
    atoms = read(tmp_path / "POSCAR")
    atoms.info["energy"] = -345.0
    write(tmp_path / "done.extxyz", atoms)
    with zipfile.ZipFile(packed, "w") as outputs:
        outputs.writestr(f"{folder}/manifest.json", table)
        outputs.write(tmp_path / "done.extxyz", f"{folder}/calculation-{calculation}/done.extxyz")
    sent = send(submitter, "round.zip", packed.getvalue(), round="sent")
    report = submitter.get(f"{API}/uploads/{work(made[0], 'intake', sent)}").json()["report"]
    assert report["new"] == 1, report
    found = submitter.get(f"{API}/rounds/sent").json()
    assert found["states"]["finished"] == 1


def test_real_runs_of_vasp_bring_their_host_and_a_wrong_one_is_refused(
    submitter: TestClient, made: tuple[Engine, Made], shared_data: Path
) -> None:
    run = shared_data / "vasp" / "GaN_v_N"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for part in ("bulk", "defect"):
            archive.write(run / part / "vasprun.xml.gz", f"GaN/{part}/vasprun.xml.gz")
        text = gzip.decompress((run / "defect" / "vasprun.xml.gz").read_bytes())
        archive.writestr("GaN/other/vasprun.xml", re.sub(rb'(name="ENMAX">\s*)420', rb"\g<1>400", text))
    sent = send(submitter, "runs.zip", packed.getvalue())
    report = submitter.get(f"{API}/uploads/{work(made[0], 'intake', sent)}").json()["report"]
    outcomes = {row["file"]: row for row in report["files"]}
    assert outcomes["runs/GaN/bulk/vasprun.xml.gz"]["outcome"] == "new"
    assert outcomes["runs/GaN/defect/vasprun.xml.gz"]["outcome"] == "new"
    refused = outcomes["runs/GaN/other/vasprun.xml"]
    assert refused["outcome"] == "refused"
    assert "cutoff 400 against 420" in refused["reason"]
    assert "GaN" in [row["host"] for row in submitter.get(f"{API}/hosts").json()["rows"]]
