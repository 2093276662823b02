"""Files out of tar and zip archives, in memory, one after another, without trusting the archive.

Nothing is extracted to disk but by `unpacked`. A member with an absolute path or one that leaves its folder, a link,
a device, or more bytes than the limits allow is refused, and with it the archive. A truncated file is an error that
says how far it could be read, never a shorter archive.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from stat import S_ISLNK
from tempfile import TemporaryDirectory
from typing import IO, cast

from screening.errors import FileFormatError, UnsafeArchiveError

_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGIC = b"PK"
_TAR_MAGIC_AT, _TAR_MAGIC = 257, b"ustar"
_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold; 2DMD's largest has 5,933 members of 15 kB."""

    member_bytes: int = 256 * _MEBIBYTE
    total_bytes: int = 8192 * _MEBIBYTE
    members: int = 1_000_000


DEFAULT_LIMITS = ArchiveLimits()


def is_archive(path: Path) -> bool:
    """Whether a file's content is that of a zip, a tar or a tar.gz archive."""
    with path.open("rb") as stream:
        head = _head(stream)
    if head.startswith(_ZIP_MAGIC):
        return True
    if head.startswith(_GZIP_MAGIC):
        return path.name.endswith((".tar.gz", ".tgz")) or _is_tar(_unzipped_head(head))
    return _is_tar(head)


def archive_members(source: Path | IO[bytes], *, limits: ArchiveLimits = DEFAULT_LIMITS) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file of a zip, tar or tar.gz archive, in its order; folders are passed over.

    Args:
        source: a path, or an open binary file that can seek (an archive inside an archive, as io.BytesIO).

    Raises:
        UnsafeArchiveError: a path, link, device or size that is not allowed.
        FileFormatError: no archive, or a truncated or damaged one.
    """
    if isinstance(source, Path):
        with source.open("rb") as stream:
            yield from _members(stream, source.name, limits)
    else:
        yield from _members(source, Path(str(getattr(source, "name", "archive"))).name, limits)


@contextmanager
def unpacked(path: Path, *, limits: ArchiveLimits = DEFAULT_LIMITS) -> Iterator[Path]:
    """A folder with the files of an archive, called as the archive without its ending, for the length of the block.

    Raises:
        UnsafeArchiveError, FileFormatError: as `archive_members` says.
    """
    with TemporaryDirectory(prefix="screening-") as scratch:
        root = Path(scratch, path.stem)
        root.mkdir()
        for member, content in archive_members(path, limits=limits):
            target = root / PurePosixPath(member)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        yield root


class _Metered(io.BufferedIOBase):
    """A stream that gives no more than one member's worth of bytes before the next member begins.

    tarfile reads the names and headers of a member into memory before anybody sees its size.
    """

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, label: str, limits: ArchiveLimits) -> None:
        self.n_read = 0
        self._stream, self._label = stream, label
        self._most = limits.member_bytes + _MEBIBYTE

    def read(self, size: int | None = -1, /) -> bytes:
        content = self._stream.read(-1 if size is None else size)
        self.n_read += len(content)
        if self.n_read > self._most:
            raise UnsafeArchiveError(
                f"{self._label}: a header is longer than {self._most} bytes; expected a plain archive"
            )
        return content


def _members(stream: IO[bytes], label: str, limits: ArchiveLimits) -> Iterator[tuple[str, bytes]]:
    """The members of an archive, counted and measured."""
    head = _head(stream)
    if head.startswith(_ZIP_MAGIC):
        members = _zip_members(stream, label, limits)
    elif head.startswith(_GZIP_MAGIC) or _is_tar(head):
        members = _tar_members(stream, label, limits)
    else:
        raise FileFormatError(f"{label} is no zip, tar or tar.gz archive (it begins with {head[:4]!r}); give one")
    total, n_members, last = 0, 0, "none"
    try:
        for name, content in members:
            total, n_members, last = total + len(content), n_members + 1, name
            if n_members > limits.members or total > limits.total_bytes:
                raise UnsafeArchiveError(
                    f"{label} holds more than {limits.members} members or {limits.total_bytes / _MEBIBYTE:.0f} MiB; "
                    "expected fewer: split it"
                )
            yield name, content
    except (EOFError, OSError, NotImplementedError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise FileFormatError(
            f"{label} is truncated or damaged ({error}): {n_members} members could be read, the last of them "
            f"{last}; fetch the file again"
        ) from error


def _tar_members(stream: IO[bytes], label: str, limits: ArchiveLimits) -> Iterator[tuple[str, bytes]]:
    compressed = _head(stream).startswith(_GZIP_MAGIC)
    plain = _Metered(gzip.GzipFile(fileobj=stream, mode="rb") if compressed else stream, label, limits)
    with tarfile.open(fileobj=cast(IO[bytes], plain), mode="r|") as archive:
        for member in archive:
            plain.n_read = 0
            _check_path(label, member.name)
            if member.isdir():
                continue
            if not member.isfile():
                raise UnsafeArchiveError(f"{label}: {member.name} is a link or a device; expected plain files only")
            _check_size(label, member.name, member.size, limits)
            extracted = archive.extractfile(member)
            assert extracted is not None, "a plain file has content"
            yield member.name, extracted.read()
    while plain.read(_MEBIBYTE):  # the end of a gzip stream holds its checksum; a cut shows only there
        pass


def _zip_members(stream: IO[bytes], label: str, limits: ArchiveLimits) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            _check_path(label, member.filename)
            if member.is_dir():
                continue
            if S_ISLNK(member.external_attr >> 16):
                raise UnsafeArchiveError(f"{label}: {member.filename} is a link; expected plain files only")
            if member.flag_bits & 1:
                raise FileFormatError(
                    f"{label}: {member.filename} is encrypted; expected an archive without a password"
                )
            _check_size(label, member.filename, member.file_size, limits)
            with archive.open(member) as content:  # a read without a number would unpack whatever is there at once
                yield member.filename, content.read(member.file_size + 1)


def _check_path(label: str, name: str) -> None:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts) or "\0" in name:
        raise UnsafeArchiveError(
            f"{label}: the path {name!r} leaves the archive's folder; expected relative paths without '..'"
        )


def _check_size(label: str, name: str, size: int, limits: ArchiveLimits) -> None:
    if size > limits.member_bytes:
        raise UnsafeArchiveError(
            f"{label}: {name} has {size / _MEBIBYTE:.1f} MiB; expected at most "
            f"{limits.member_bytes / _MEBIBYTE:.0f} MiB a file"
        )


def _head(stream: IO[bytes]) -> bytes:
    stream.seek(0)
    head = stream.read(1024)
    stream.seek(0)
    return head


def _unzipped_head(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(head, 512)
    except zlib.error:
        return b""


def _is_tar(head: bytes) -> bool:
    return head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + len(_TAR_MAGIC)] == _TAR_MAGIC
