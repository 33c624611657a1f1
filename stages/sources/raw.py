"""The raw files of a data set as its manifest pins them, and the tables among them.

A data set's plug-in says in `TABLES` which tables it needs, by file name, and of which columns; where they lie (in the
root, in a folder below it, or in an archive, gzipped or not) is found here. None is unpacked beyond the size in params.
Columns may be parted by commas, semicolons or tabs and come in any order; white space around a value, rows without any
value and columns that are not needed are ignored.
"""

import codecs
import csv
import gzip
import io
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from stages.sources import archives

MB = 1_000_000
FILM_SUFFIXES = {  # that are read -> the format
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".dcm": "DICOM", ".dicom": "DICOM",
}  # fmt: skip
OTHER_SUFFIXES = (".bmp", ".gif", ".jp2", ".npy", ".pgm", ".tif", ".tiff", ".webp")  # of images that are not read
OFFICIAL_SUFFIXES = (".png", ".jpg")
NULLS = ("", "#N/A", "#N/A N/A", "#NA", "-NaN", "-nan", "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null")
DELIMITERS = ",;\t"
UNNAMED = re.compile(r"(?:Unnamed: \d+(?:\.\d+)*)?")  # the second is what pandas calls the first when it reads it
KINDS = ("text", "number")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
FAULT = re.compile(r"(?:CSV parse error|In CSV column #(?P<column>\d+)): Row #(?P<row>\d+): (?P<what>.*)", re.DOTALL)
SPREADSHEET = "sep="  # a line before the header, which names the delimiter
NAMED = 3  # files in a message
SHOWN = 200  # characters of a fault: a quote that is never closed swallows the rest of a table
Tables = Mapping[str, pd.DataFrame]


class TableError(ValueError):
    """A label table is not what its owner ships; the message names file, column or row, and the remedy."""


def walk(root: Path) -> Iterator[str]:
    """Names of all files below a root, relative to it, sorted; follows linked folders."""
    found = []
    for folder, folders, names in _folders(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name).relative_to(root).as_posix() for name in names if not name.startswith(".")]
    yield from sorted(found)


def _folders(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, by name and through links, but each folder once: links may lead in circles."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (place := (status.st_dev, status.st_ino)) in seen:
            folders.clear()
            continue
        seen.add(place)
        folders.sort()
        yield folder, folders, names


def count_of_system(root: Path) -> int:
    """How many files below a root an operating system made; `walk` passes most of them by."""
    paths = (Path(folder, name).relative_to(root).as_posix() for folder, _, names in _folders(root) for name in names)
    return sum(archives.is_of_system(path) for path in paths)


def require_pinned(root: Path, manifest: Any) -> None:
    """Check that every file of the manifest is in the root with its size (`download` checks the content).

    Raises:
        FileNotFoundError: a file is gone.
        ValueError: a file's size changed.
    """
    for file in manifest["files"]:
        path = root / file["name"]
        if not path.is_file():
            raise FileNotFoundError(f"{path} is in the manifest but not in the root: run `make repro`")
        if (size := path.stat().st_size) != file["bytes"]:
            raise ValueError(f"{path} has {size} bytes, the manifest says {file['bytes']}: run `make repro`")


def locate(root: Path, names: list[str], wanted: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, str]]:
    """Where tables lie; archives are searched for those that lie in no folder.

    Args:
        root: the data set's root.
        names: the files below it.
        wanted: table -> the file names that it may have, the first that is there counts; `<name>.gz` will do.

    Returns:
        Table -> (file below the root, member in it or ""), of the tables that are there.

    Raises:
        TableError: one lies in more than one place.
    """
    others = [name for name in names if not is_like_image(name)]
    packs = [name for name in others if archives.is_archive(root / name)]
    loose = [(name, "") for name in others if name not in packs]
    places = {table: _places(loose, options) for table, options in wanted.items()}
    if not all(places.values()):
        inside = [(pack, member.name) for pack in packs for member in archives.members(root / pack)]
        members = [place for place in inside if not is_like_image(place[1])]
        places |= {table: _places(members, wanted[table]) for table, found in places.items() if not found}
    for table, found in places.items():
        if len(found) > 1:
            listed = ", ".join("!".join(filter(None, place)) for place in found)
            raise TableError(f"{table} is there {len(found)} times below {root} ({listed}): leave one")
    return {table: found[0] for table, found in places.items() if found}


def _places(lying: list[tuple[str, str]], options: Iterable[str]) -> list[tuple[str, str]]:
    """Those of some files and members that have the first of some names that any has."""
    found = ([place for place in lying if is_table(place[1] or place[0], option)] for option in options)
    return next((places for places in found if places), [])


def is_table(name: str, table: str) -> bool:
    """Whether a file or member is a table, gzipped or not; the case of letters does not matter."""
    base = PurePosixPath(name).name.lower()
    return base in (table.lower(), f"{table.lower()}.gz") and not archives.is_of_system(name)


def table_names(plugin: ModuleType) -> dict[str, tuple[str, ...]]:
    """The tables that a data set's plug-in reads -> the file names that each may have, the owner's latest first."""
    older = getattr(plugin, "OLDER_NAMES", {})
    return {table: (table, *older.get(table, ())) for table in {**plugin.TABLES, **optional_tables(plugin)}}


def image_key(plugin: ModuleType, name: str) -> str | None:
    """A file's image by the data set's plug-in.

    A file may have any suffix of FILM_SUFFIXES, in any case: films are known by the official stem.
    """
    if archives.is_of_system(name):
        return None
    stem, dot, ending = name.rpartition(".")
    options = [name]
    if (suffix := dot + ending.lower()) in FILM_SUFFIXES:
        options += [stem + other for other in (suffix, *OFFICIAL_SUFFIXES)]
    return next((key for option in options if (key := plugin.image_key(option)) is not None), None)


def is_like_image(name: str) -> bool:
    """Whether a file's name has the suffix of an image, of a format that is read or of another."""
    return PurePosixPath(name).suffix.lower() in (*FILM_SUFFIXES, *OTHER_SUFFIXES)


def may_hold_films(name: str) -> bool:
    """Whether a member of an archive could be a film, or an archive of films, by its suffix."""
    return is_like_image(name) or archives.has_suffix(name)


def saved_again_as(name: str, key: str) -> str | None:
    """The format of a film's file where it is not the one that the owner ships."""
    own, official = (FILM_SUFFIXES.get(PurePosixPath(path).suffix.lower()) for path in (name, key))
    return None if own == official else own


def few(names: list[str]) -> str:
    """Some names in a message: how many there are, and the first three."""
    return f"{len(names)}, e.g. {', '.join(names[:NAMED])}" if names else "none"


def optional_tables(plugin: ModuleType) -> dict[str, Mapping[str, str]]:
    """The tables that a data set's plug-in reads where they are there."""
    return dict(getattr(plugin, "OPTIONAL_TABLES", {}))


def tables(root: Path, manifest: Any, plugin: ModuleType, max_mb: int) -> dict[str, pd.DataFrame]:
    """Read the tables of a data set.

    Args:
        root: the data set's root.
        manifest: what `download` wrote.
        plugin: the data set's; tables of its OPTIONAL_TABLES that are not there are left out.
        max_mb: a table that is larger, unpacked, is refused.

    Returns:
        File name -> table, indexed by row number (the header is row 1; a list without header starts at 1), with in
        `attrs` the name of the file, the `columns` that it had, the name of a first one without one (`index`: "", or
        what pandas makes of it) or None, and how many rows were `blank`.

    Raises:
        FileNotFoundError: one is not there.
        TableError: see `table`.
    """
    columns = {**plugin.TABLES, **optional_tables(plugin)}
    places = locate(root, [file["name"] for file in manifest["files"]], table_names(plugin))
    if missing := [name for name in plugin.TABLES if name not in places]:
        raise FileNotFoundError(f"{root} has no {', '.join(missing)}, neither in a folder nor in an archive")
    return {name: table(root, *places[name], columns[name], max_mb) for name in columns if name in places}


def table(root: Path, name: str, member: str, columns: Mapping[str, str], max_mb: int) -> pd.DataFrame:
    """Read one table (see `tables`); a `.txt` list has one column and no header.

    Raises:
        TableError: it is larger than `max_mb`, has no rows, a column is missing or there twice, a row has too few or
            too many values, a number is none, or the text is not UTF-8.
    """
    label = "!".join(filter(None, (str(root / name), member)))
    content = _content(root / name, member, label, max_mb)
    _require_text(content, label)
    is_list = Path(member or name).name.lower().removesuffix(".gz").endswith(".txt")
    head = _Head(",", list(columns), 0) if is_list else _head(content, label, columns)
    chosen = _chosen(head.names, columns, label)
    frame: pd.DataFrame = _read(
        content, head, {old: columns[asked] for old, asked in chosen.items()}, label
    ).to_pandas()
    frame = frame.rename(columns={old: asked.split("|")[0] for old, asked in chosen.items()})
    frame.index = pd.RangeIndex(head.lines + 1, head.lines + 1 + len(frame))
    says_nothing = np.logical_and.reduce([frame[name].isin([""]) | frame[name].isna() for name in frame])
    if says_nothing.all():
        raise TableError(f"{label} has no rows: fetch it again")
    named = [name for name in head.names if not UNNAMED.fullmatch(name)]
    index = None if head.names[0] in named else head.names[0]
    frame = frame[~says_nothing]
    frame.attrs = {"file": label, "columns": named, "index": index, "blank": int(says_nothing.sum())}
    return frame


def _chosen(header: list[str], columns: Mapping[str, str], label: str) -> dict[str, str]:
    """The header's names of the columns asked for -> what each was asked by."""
    chosen = {}
    for asked in columns:
        present = [name for name in header if name in asked.split("|")]
        if not present:
            raise TableError(f"{label} has no column {asked.replace('|', ' or ')}: it has {', '.join(header)}")
        if len(present) > 1:
            raise TableError(f"{label} has column {' and '.join(present)}, {len(present)} for one: leave one")
        chosen[present[0]] = asked
    return chosen


def _read(content: bytes, head: "_Head", kinds: Mapping[str, str], label: str) -> pa.Table:
    """The columns in `kinds`, without the white space around their values."""
    try:
        found = pa.csv.read_csv(
            pa.BufferReader(content),
            # a single thread knows the rows that it counts, and is no slower where values may hold newlines
            read_options=pa.csv.ReadOptions(column_names=head.names, skip_rows=head.lines, use_threads=False),
            parse_options=pa.csv.ParseOptions(delimiter=head.delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                include_columns=list(kinds), column_types=dict.fromkeys(kinds, pa.string())
            ),
        )
    except pa.ArrowInvalid as error:
        raise TableError(_fault(label, head.names, str(error))) from error
    columns = {name: pc.utf8_trim_whitespace(found[name]) for name in kinds}
    for name, kind in kinds.items():
        if kind == "number":
            columns[name] = _numbers(columns[name], name, label, head.lines + 1)
    return pa.table(columns)


def _numbers(texts: pa.ChunkedArray, name: str, label: str, first: int) -> pa.ChunkedArray:
    """Finite numbers, null where a cell is blank or says so; `first` is the number of the first row."""
    given = pc.if_else(pc.is_in(texts, pa.array(NULLS)), None, texts)
    distinct = given.unique().drop_null()
    if wrong := [text for text in distinct.to_pylist() if not _is_number(text)]:
        row = first + pc.index(given, wrong[0]).as_py()
        raise TableError(
            f"{label} row {row} column {name}: no number but invalid value {wrong[0][:SHOWN]!r}: mend that row, or "
            "fetch the table again"
        )
    return given.cast(pa.float64())


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(pa.scalar(text).cast(pa.float64()).as_py())
    except pa.ArrowInvalid:
        return False


def _fault(label: str, header: list[str], message: str) -> str:
    """What pyarrow says of a table, with the file, the row and the name of the column, and the remedy."""
    found = FAULT.match(message)
    remedy = "save it as UTF-8" if "UTF8" in message else "mend that row, or fetch the table again"
    if not found:
        return f"{label}: {message[:SHOWN]}: {remedy}"
    column = f" column {header[int(found['column'])]}" if found["column"] else ""
    return f"{label} row {found['row']}{column}: {found['what'][:SHOWN]}: {remedy}"


def _require_text(content: bytes, label: str) -> None:
    if not content or content.isspace():
        raise TableError(f"{label} has no rows: fetch it again")
    if content.startswith(UTF_16):
        raise TableError(f"{label} is UTF-16: save it as UTF-8")
    if (place := content.find(b"\0")) >= 0:
        line = content.count(b"\n", 0, place) + 1
        raise TableError(f"{label} line {line} has a NUL byte: save it as UTF-8 if it is UTF-16, else fetch it again")


def _content(path: Path, member: str, label: str, max_mb: int) -> bytes:
    """A table's text; of a bomb, no more is unpacked than it takes to know it."""

    def read(found: archives.Member) -> bytes:
        _require_small(found.size_bytes, label, max_mb)
        return found.read()

    if member:
        content = next(read(found) for found in archives.members(path) if found.name == member)
    else:
        content = read(archives.Member(path.name, path.stat().st_size, path.read_bytes))
    try:
        unpacked: bytes = archives.ungzipped(io.BufferedReader(io.BytesIO(content))).read(max_mb * MB + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TableError(f"{label} is damaged or cut short ({error}): fetch it again") from error
    _require_small(len(unpacked), label, max_mb)
    return unpacked


def _require_small(size_bytes: int, label: str, max_mb: int) -> None:
    if size_bytes > max_mb * MB:
        raise TableError(
            f"{label} has more than {max_mb} MB: no owner ships such a table, fetch it again; if yours is that large, "
            "raise max_table_mb in params.yaml"
        )


@dataclass(frozen=True)
class _Head:
    """What parts the columns of a table, their names, and the lines before its first row."""

    delimiter: str
    names: list[str]
    lines: int


def _head(content: bytes, label: str, columns: Mapping[str, str]) -> _Head:
    """The head of a table, by the delimiter that finds most of some columns; lines before it may be blank."""
    text = content[: 1 << 16].decode("utf-8-sig", errors="replace")
    wanted = {option for asked in columns for option in asked.split("|")}
    heads = [_head_by(text, delimiter, label) for delimiter in DELIMITERS]
    return max(heads, key=lambda head: len(wanted & set(head.names)))


def _head_by(text: str, delimiter: str, label: str) -> _Head:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = (row for row in reader if any(row) and not row[0].startswith(SPREADSHEET))
        header = next(rows)
        lines = reader.line_num
        first = next(rows)
    except StopIteration:
        raise TableError(f"{label} has no rows: fetch it again") from None
    names = [name.strip() for name in header]
    # NIH's box list has more names than columns
    return _Head(delimiter, names[: len(first)] if not any(names[len(first) :]) else names, lines)
