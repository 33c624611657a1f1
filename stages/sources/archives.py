"""Members of the archives that owners and mirrors ship, one at a time: nothing is ever unpacked to disk.

What a file is, its first bytes decide: browsers unpack a `.tar.gz` and keep its name. A tar, gzipped or not, is
streamed from front to back, so its members come in the order in which they lie; a zip is read through its directory.
Both refuse members that could write outside a folder, links, and archives that end early.
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

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
OFFICE_SUFFIXES = (".docx", ".ods", ".odt", ".pptx", ".xlsx")  # zips too, but their pictures are no films
GZIP = b"\x1f\x8b"
GZIP_LAYERS = 2  # some tools pack what is packed
ZIPS = (b"PK\3\4", b"PK\5\6", b"PK\7\b")  # a member, the directory of an empty one, one that was split
UNREAD = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!\x1a\7": "RAR",
    b"(\xb5/\xfd": "zstd",
}
SYSTEM_NAMES = (".ds_store", "thumbs.db", "desktop.ini")
SYSTEM_FOLDERS = ("__macosx", "@eadir")  # of macOS and of Synology's stores
RESOURCE_FORK = "._"  # before the name of the file that it belongs to
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


def has_suffix(name: str) -> bool:
    """Whether a file of this name should be an archive."""
    return name.lower().endswith(SUFFIXES)


def is_archive(path: Path) -> bool:
    """Whether a file is an archive by its first bytes, or is called one: what is wrong with it, `members` says."""
    if path.suffix.lower() in OFFICE_SUFFIXES or not path.is_file():  # a link may lead nowhere
        return False
    return has_suffix(path.name) or _packing(path) is not None


def is_of_system(name: str) -> bool:
    """Whether an operating system made this file beside the owner's: a resource fork, settings, thumbnails."""
    *folders, base = PurePosixPath(name.lower()).parts or ("",)
    return base in SYSTEM_NAMES or base.startswith(RESOURCE_FORK) or any(part in SYSTEM_FOLDERS for part in folders)


def _packing(path: Path) -> str | None:
    """How a file is packed, `zip`, `tar` or one of UNREAD, or None if it is no archive."""
    with path.open("rb") as file:
        first = file.read(BLOCK)
    if first.startswith(ZIPS):
        return "zip"
    unread = next((name for magic, name in UNREAD.items() if first.startswith(magic)), None)
    return unread or ("tar" if _starts_tar(path, first) else None)


def _starts_tar(path: Path, first: bytes) -> bool:
    try:
        if first.startswith(GZIP):
            with path.open("rb") as file:
                first = ungzipped(file).read(BLOCK)
        tarfile.TarInfo.frombuf(first, "utf-8", "surrogateescape")
    except (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile):
        return False
    return True


def ungzipped(file: Any) -> Any:
    """A file opened to read, its layers of gzip taken off as it is read, if there are any."""
    for _ in range(GZIP_LAYERS):
        if not file.peek(len(GZIP)).startswith(GZIP):
            break
        file = gzip.GzipFile(fileobj=file, mode="rb")
    return file


def members(path: Path) -> Iterator[Member]:
    """The files in an archive, in its order; a backslash in a name, as Windows tools write it, parts folders.

    Raises:
        ArchiveError: the archive is damaged or cut short (reading a member may raise it too), or a member's name is
            absolute, climbs with `..`, or is a link or a device, or cannot be unpacked bit by bit.
    """
    packing = _packing(path)
    if packing in UNREAD.values():
        raise ArchiveError(
            f"{path} is packed by {packing}, which is not read: unpack it, and put the folder in its place"
        )
    with _naming(path):
        is_zip = packing == "zip" or (packing is None and path.suffix.lower() == ".zip")
        yield from _in_zip(path) if is_zip else _in_tar(path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile) as error:
        raise ArchiveError(f"{path} is damaged or cut short ({error}): fetch it again") from error


def _in_zip(path: Path) -> Iterator[Member]:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            name = _with_slashes(info.filename)
            is_folder = name.endswith("/")
            mode = info.external_attr >> 16
            is_plain = not stat.S_IFMT(mode) or stat.S_ISREG(mode) or is_folder
            _require_harmless(path, name, is_plain)
            if info.flag_bits & ENCRYPTED or info.compress_type not in METHODS:
                raise ArchiveError(
                    f"{path} holds {info.filename!r}, which is encrypted or packed by another method than deflate: "
                    "unpack the archive, and put the folder in its place"
                )
            if not is_folder:
                yield Member(name, info.file_size, partial(_zipped_content, path, archive, info))


def _zipped_content(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with _naming(path), archive.open(info) as file:
        return file.read(info.file_size)  # without a size, all would be unpacked that a lying directory hides


def _in_tar(path: Path) -> Iterator[Member]:
    with path.open("rb") as file:
        stream: Any = _Tail(ungzipped(file))  # the stubs of tarfile ask for more than it calls
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for info in archive:
                name = _with_slashes(info.name)
                _require_harmless(path, name, info.isreg() or info.isdir())
                if info.isreg():
                    yield Member(name, info.size, partial(_tarred_content, path, archive, info))
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


def _with_slashes(name: str) -> str:
    return name.replace("\\", "/")


def _require_harmless(archive: Path, name: str, is_plain: bool) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise ArchiveError(
            f"{archive} holds {name!r}: members must lie below the archive, none is read; fetch it again"
        )
    if not is_plain:
        raise ArchiveError(
            f"{archive} holds {name!r}, which is a link or a device: members must be plain files, none is read; "
            "fetch it again"
        )
