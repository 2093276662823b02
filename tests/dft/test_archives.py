import gzip
import io
import os
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from screening.dft.archives import ArchiveLimits, archive_members, is_archive
from screening.errors import FileFormatError, UnsafeArchiveError

FILES = {"a.cif": b"first", "folder/b.cif": b"second", "folder/empty.cif": b""}


def tar_of(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tar_with(path: Path, member: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(member)
    return path


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_files_of_a_tar_come_in_order_with_their_content(tmp_path: Path, mode: str) -> None:
    path = tar_of(tmp_path / "x.tar.gz", FILES, mode)
    assert list(archive_members(path)) == list(FILES.items())
    assert is_archive(path)


def test_files_of_a_zip_come_in_order_with_their_content(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "x.zip", FILES)
    assert list(archive_members(path)) == list(FILES.items())
    assert is_archive(path)


def test_an_archive_inside_an_archive_is_read_from_memory(tmp_path: Path) -> None:
    inner = tar_of(tmp_path / "inner.tar.gz", FILES).read_bytes()
    outer = zip_of(tmp_path / "outer.zip", {"inner.tar.gz": inner})
    ((name, content),) = archive_members(outer)
    assert name == "inner.tar.gz"
    assert list(archive_members(io.BytesIO(content))) == list(FILES.items())


def test_folders_are_passed_over(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    assert list(archive_members(tar_with(tmp_path / "x.tar.gz", folder))) == []
    assert list(archive_members(zip_of(tmp_path / "x.zip", {"folder/": b""}))) == []


def test_nothing_is_written_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar_of(tmp_path / "x.tar.gz", FILES)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert len(list(archive_members(path))) == 3
    assert os.listdir(empty) == []


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.cif", "folder/../../x.cif", "C:\\x.cif", "..\\x.cif", "\\x.cif"])
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_a_path_that_leaves_its_folder_is_refused(tmp_path: Path, name: str, make: object) -> None:
    path = make(tmp_path / "x", {"good.cif": b"", name: b"evil"})  # type: ignore[operator]
    members = archive_members(path)
    assert next(members)[0] == "good.cif"
    with pytest.raises(UnsafeArchiveError, match="leaves the archive's folder"):
        next(members)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("x.cif")
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(UnsafeArchiveError, match=r"x\.cif is a link or a device"):
        list(archive_members(tar_with(tmp_path / "x.tar.gz", member)))


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("x.cif")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UnsafeArchiveError, match=r"x\.cif is a link"):
        list(archive_members(path))


@pytest.mark.parametrize("make", [tar_of, zip_of])
@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (ArchiveLimits(member_bytes=1000), r"b\.cif has .* MiB"),
        (ArchiveLimits(total_bytes=2500), "more than .* members or"),
        (ArchiveLimits(members=2), "more than 2 members"),
    ],
)
def test_more_than_the_limits_is_refused(tmp_path: Path, make: object, limits: ArchiveLimits, message: str) -> None:
    files = {"a.cif": b"x" * 900, "b.cif": b"x" * 1100, "c.cif": b"x" * 900}
    path = make(tmp_path / "x", files)  # type: ignore[operator]
    with pytest.raises(UnsafeArchiveError, match=message):
        list(archive_members(path, limits=limits))
    assert len(list(archive_members(path))) == 3


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    member = tarfile.TarInfo("x.cif")
    member.size = 1 << 40
    with gzip.open(path, "wb") as stream:
        stream.write(member.tobuf())
        stream.write(bytes(1 << 20))
    with pytest.raises(UnsafeArchiveError, match=r"1048576\.0 MiB; expected at most 256 MiB"):
        list(archive_members(path))


def test_a_zip_that_lies_about_a_size_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "bomb.zip", {"x.cif": bytes(64 << 20)})
    content = path.read_bytes()
    path.write_bytes(content.replace((64 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    tracemalloc.start()
    with pytest.raises(FileFormatError, match="truncated or damaged"):
        list(archive_members(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_name_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "bomb.tar.gz"
    member = tarfile.TarInfo("x.cif")
    member.type, member.size = kind, 1 << 32
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(member.tobuf())
        for _ in range(8):
            stream.write(bytes(1 << 20))
    with pytest.raises(UnsafeArchiveError, match="a header is longer"):
        list(archive_members(path, limits=ArchiveLimits(member_bytes=1 << 20)))


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9, 0.99])
def test_a_truncated_tar_says_how_far_it_got(tmp_path: Path, fraction: float) -> None:
    generator = iter(range(10**6))
    files = {f"{i}.cif": bytes(next(generator) * 7919 % 251 for _ in range(2000)) for i in range(30)}
    path = tar_of(tmp_path / "x.tar.gz", files)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(fraction * len(whole))])
    seen: list[tuple[str, bytes]] = []
    with pytest.raises(FileFormatError, match=r"x\.tar\.gz is truncated or damaged .* members could be read") as error:
        seen.extend(archive_members(path))
    assert seen == list(files.items())[: len(seen)]
    last = seen[-1][0] if seen else "none"
    assert f"{len(seen)} members could be read, the last of them {last}" in str(error.value)


def test_a_cut_in_the_checksum_is_seen(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar.gz", FILES)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FileFormatError, match="3 members could be read"):
        list(archive_members(path))


def test_a_cut_plain_tar_is_seen(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", {"a.cif": b"x" * 5000}, "w")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(FileFormatError, match="0 members could be read"):
        list(archive_members(path))


def test_a_damaged_archive_is_seen(tmp_path: Path) -> None:
    for path in (
        tar_of(tmp_path / "x.tar.gz", {"a.cif": os.urandom(9000)}),
        zip_of(tmp_path / "x.zip", {"a": b"1" * 99}),
    ):
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match="truncated or damaged"):
            list(archive_members(path))


def test_a_truncated_zip_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "x.zip", FILES)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(FileFormatError, match="truncated or damaged"):
        list(archive_members(path))


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_text("data_MoS2")
    assert not is_archive(path)
    with pytest.raises(FileFormatError, match=r"x\.tar\.gz is no zip, tar or tar\.gz"):
        list(archive_members(path))


def test_a_compressed_file_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.cif.gz"
    path.write_bytes(gzip.compress(b"data_MoS2" * 100))
    assert not is_archive(path)
