"""Members of the archives that owners ship, one at a time: nothing is ever unpacked to disk.

A `.tar.gz` is streamed from front to back, so its members come in the order in which they lie; a `.zip` is read
through its directory. Both refuse members that could write outside a folder, links, and archives that end early.
"""

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar")
ZIP_SUFFIXES = (".zip",)
SUFFIXES = TAR_SUFFIXES + ZIP_SUFFIXES
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of a zip; of the others, zipfile unpacks all at once
ENCRYPTED = 1  # flag of a member
READ_BYTES = 1 << 20
BLOCK = 512  # of the tar format; an intact archive ends with blocks of zeros


class ArchiveError(ValueError):
    """An archive is damaged, or holds what no data set ships."""


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: its path in the archive, with forward slashes.
        size_bytes: its size as the archive states it, known before it is read.
        read: gives its content; of a tar, only until the next member is asked for.
    """

    name: str
    size_bytes: int
    read: Callable[[], bytes]


def is_archive(name: str) -> bool:
    """Whether `members` can read a file of this name."""
    return name.lower().endswith(SUFFIXES)


def members(path: Path) -> Iterator[Member]:
    """The files in an archive, in its order.

    Raises:
        ArchiveError: the archive is damaged or cut short (reading a member may raise it too), or a member's name is
            absolute, climbs with `..`, or is a link or a device, or cannot be unpacked bit by bit.
    """
    with _naming(path):
        yield from _in_zip(path) if path.name.lower().endswith(ZIP_SUFFIXES) else _in_tar(path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile) as error:
        raise ArchiveError(f"{path} is damaged or cut short ({error}): fetch it again") from error


def _in_zip(path: Path) -> Iterator[Member]:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            is_plain = not stat.S_IFMT(mode) or stat.S_ISREG(mode) or info.is_dir()
            _require_harmless(path, info.filename, is_plain)
            if info.flag_bits & ENCRYPTED or info.compress_type not in METHODS:
                raise ArchiveError(
                    f"{path} holds {info.filename!r}, which is encrypted or packed by another method than deflate: "
                    "unpack the archive, and put the folder in its place"
                )
            if not info.is_dir():
                yield Member(info.filename, info.file_size, partial(_zipped_content, path, archive, info))


def _zipped_content(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with _naming(path), archive.open(info) as file:
        return file.read(info.file_size)  # without a size, all would be unpacked that a lying directory hides


def _in_tar(path: Path) -> Iterator[Member]:
    with path.open("rb") as file:
        unpacked = file if path.name.lower().endswith(".tar") else gzip.GzipFile(fileobj=file)
        stream: Any = _Tail(unpacked)  # the stubs of tarfile ask for more than it calls
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for info in archive:
                _require_harmless(path, info.name, info.isreg() or info.isdir())
                if info.isreg():
                    yield Member(info.name, info.size, partial(_tarred_content, path, archive, info))
        while stream.read(READ_BYTES):  # gzip checks its sum only at the end
            pass
        # tarfile takes a header that is cut off for the end
        if stream.last.strip(b"\0"):
            raise EOFError("its end mark is missing")


def _tarred_content(path: Path, archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    with _naming(path):
        file = archive.extractfile(info)
        content = file.read() if file else b""
        if len(content) != info.size:
            raise EOFError(f"{info.name} has {len(content)} of {info.size} bytes")
        return content


class _Tail:
    """A readable that remembers the last block that went through it."""

    def __init__(self, file: BinaryIO | gzip.GzipFile) -> None:
        self.file = file
        self.last = b"?"

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        if data:
            self.last = (self.last + data)[-BLOCK:]
        return data


def _require_harmless(archive: Path, name: str, is_plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise ArchiveError(
            f"{archive} holds {name!r}: members must lie below the archive, none is read; fetch it again"
        )
    if not is_plain:
        raise ArchiveError(
            f"{archive} holds {name!r}, which is a link or a device: members must be plain files, none is read; "
            "fetch it again"
        )
