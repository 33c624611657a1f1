"""The raw files of a data set as its manifest pins them, and the tables among them.

A data set's plug-in says in `TABLES` which tables it needs, by file name, and of which columns; where they lie (in the
root, in a folder below it, or in an archive, gzipped or not) is found here. None is unpacked beyond the size in params.
"""

import codecs
import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv

from stages.sources import archives

HEADER_ROWS = 1
MB = 1_000_000
DICOM_SUFFIX = ".dcm"
KINDS = {"text": pa.string(), "number": pa.float64()}
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
FAULT = re.compile(r"(?:CSV parse error|In CSV column #(?P<column>\d+)): Row #(?P<row>\d+): (?P<what>.*)", re.DOTALL)
SHOWN = 200  # characters of a fault: a quote that is never closed swallows the rest of a table
Tables = Mapping[str, pd.DataFrame]


class TableError(ValueError):
    """A label table is not what its owner ships; the message names file, column or row, and the remedy."""


def walk(root: Path) -> Iterator[str]:
    """Names of all files below a root, relative to it, sorted; follows linked folders."""
    found = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name).relative_to(root).as_posix() for name in names if not name.startswith(".")]
    yield from sorted(found)


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


def locate(root: Path, names: list[str], wanted: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Where tables lie; archives are searched for those that lie in no folder.

    Args:
        root: the data set's root.
        names: the files below it.
        wanted: the tables' file names; `<name>.gz` will do.

    Returns:
        Table -> (file below the root, member in it or ""), of the tables that are there.

    Raises:
        TableError: one lies in more than one place.
    """
    places = {table: [(name, "") for name in names if _is_table(name, table)] for table in wanted}
    absent = [table for table, found in places.items() if not found]
    for name in filter(archives.is_archive, names) if absent else ():
        for member in archives.members(root / name):
            for table in absent:
                if _is_table(member.name, table):
                    places[table].append((name, member.name))
    for table, found in places.items():
        if len(found) > 1:
            listed = ", ".join("!".join(filter(None, place)) for place in found)
            raise TableError(f"{table} is there {len(found)} times below {root} ({listed}): leave one")
    return {table: found[0] for table, found in places.items() if found}


def _is_table(name: str, table: str) -> bool:
    return PurePosixPath(name).name in (table, f"{table}.gz")


def image_key(plugin: ModuleType, name: str) -> str | None:
    """A file's image by the data set's plug-in; `<name>.dcm` is what `<name>.png` or `<name>.jpg` would be."""
    names = [name]
    if name.lower().endswith(DICOM_SUFFIX):
        stem = name[: -len(DICOM_SUFFIX)]
        names += [f"{stem}.png", f"{stem}.jpg"]
    return next((key for option in names if (key := plugin.image_key(option)) is not None), None)


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
        File name -> table, indexed by row number (the header is row 1; a list without header starts at 1), with the
        name of the file and the columns that it had in `attrs`.

    Raises:
        FileNotFoundError: one is not there.
        TableError: see `table`.
    """
    wanted = {**plugin.TABLES, **optional_tables(plugin)}
    places = locate(root, [file["name"] for file in manifest["files"]], wanted)
    if missing := [name for name in plugin.TABLES if name not in places]:
        raise FileNotFoundError(f"{root} has no {', '.join(missing)}, neither in a folder nor in an archive")
    return {name: table(root, *place, wanted[name], max_mb) for name, place in places.items()}


def table(root: Path, name: str, member: str, columns: Mapping[str, str], max_mb: int) -> pd.DataFrame:
    """Read one table (see `tables`); a `.txt` list has one column and no header.

    Raises:
        TableError: it is larger than `max_mb`, has no rows, a column is missing or there twice, a row has too few or
            too many values, a number is none, or the text is not UTF-8.
    """
    label = "!".join(filter(None, (str(root / name), member)))
    content = _content(root / name, member, label, max_mb)
    _require_text(content, label)
    is_list = Path(member or name).name.removesuffix(".gz").endswith(".txt")
    header = list(columns) if is_list else _header(content, label)
    renamed = {}
    for names in columns:
        present = [option for option in header if option in names.split("|")]
        if not present:
            raise TableError(f"{label} has no column {names.replace('|', ' or ')}: it has {', '.join(header)}")
        if len(present) > 1:
            raise TableError(f"{label} has column {' and '.join(present)}, {len(present)} for one: leave one")
        renamed[present[0]] = names.split("|")[0]
    try:
        found = pa.csv.read_csv(
            pa.BufferReader(content),
            # a single thread knows the rows that it counts, and is no slower where values may hold newlines
            read_options=pa.csv.ReadOptions(
                column_names=header, skip_rows=0 if is_list else HEADER_ROWS, use_threads=False
            ),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                include_columns=list(renamed),
                column_types={old: KINDS[kind] for old, kind in zip(renamed, columns.values(), strict=True)},
            ),
        )
    except pa.ArrowInvalid as error:
        raise TableError(_fault(label, header, str(error))) from error
    frame: pd.DataFrame = found.to_pandas().rename(columns=renamed)
    first = 1 if is_list else 1 + HEADER_ROWS
    frame.index = pd.RangeIndex(first, first + len(frame))
    frame.attrs = {"file": label, "columns": header}
    return frame


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
    if (member or path.name).endswith(".gz"):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
                content = packed.read(max_mb * MB + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise TableError(f"{label} is damaged or cut short ({error}): fetch it again") from error
        _require_small(len(content), label, max_mb)
    return content


def _require_small(size_bytes: int, label: str, max_mb: int) -> None:
    if size_bytes > max_mb * MB:
        raise TableError(
            f"{label} has more than {max_mb} MB: no owner ships such a table, fetch it again; if yours is that large, "
            "raise max_table_mb in params.yaml"
        )


def _header(content: bytes, label: str) -> list[str]:
    try:
        rows = csv.reader(io.StringIO(content[: 1 << 16].decode("utf-8-sig", errors="replace")))
        header, first = next(rows), next(rows)
    except StopIteration:
        raise TableError(f"{label} has no rows: fetch it again") from None
    # NIH's box list has more names than columns
    return header[: len(first)] if not any(header[len(first) :]) else header
