"""The raw files of a data set as its manifest pins them, and the tables among them.

A data set's plug-in says in `TABLES` which tables it needs, by file name, and of which columns; where they lie (in the
root, in a folder below it, or in a zip archive, gzipped or not) is found here.
"""

import codecs
import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv

from stages.core import archives

HEADER_ROWS = 1
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


def locate(root: Path, names: list[str], wanted: str) -> tuple[str, str]:
    """Where a table lies: (file below the root, member in it or "").

    Args:
        root: the data set's root.
        names: the files below it.
        wanted: the table's file name; `<wanted>.gz` will do.

    Raises:
        TableError: it lies in more than one place.
        FileNotFoundError: it is nowhere.
    """
    allowed = {wanted, f"{wanted}.gz"}
    places = [(name, "") for name in names if Path(name).name in allowed]
    if not places:
        places = [
            (name, member.name)
            for name in names
            if name.lower().endswith(archives.ZIP_SUFFIXES)
            for member in archives.members(root / name)
            if Path(member.name).name in allowed
        ]
    if not places:
        raise FileNotFoundError(f"{root} has no {wanted}, neither in a folder nor in a zip archive")
    if len(places) > 1:
        listed = ", ".join("!".join(filter(None, place)) for place in places)
        raise TableError(f"{wanted} is there {len(places)} times below {root} ({listed}): leave one")
    return places[0]


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


def tables(root: Path, manifest: Any, plugin: ModuleType) -> dict[str, pd.DataFrame]:
    """Read the tables of a data set.

    Args:
        root: the data set's root.
        manifest: what `download` wrote.
        plugin: the data set's; tables of its OPTIONAL_TABLES that are not there are left out.

    Returns:
        File name -> table, indexed by row number (the header is row 1; a list without header starts at 1), with the
        name of the file and the columns that it had in `attrs`.
    """
    names = [file["name"] for file in manifest["files"]]
    found = {name: table(root, *locate(root, names, name), columns) for name, columns in plugin.TABLES.items()}
    for name, columns in optional_tables(plugin).items():
        with suppress(FileNotFoundError):
            found[name] = table(root, *locate(root, names, name), columns)
    return found


def table(root: Path, name: str, member: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """Read one table (see `tables`); a `.txt` list has one column and no header.

    Raises:
        TableError: it has no rows, a column is missing or there twice, a row has too few or too many values, a number
            is none, or the text is not UTF-8.
    """
    label = "!".join(filter(None, (str(root / name), member)))
    content = _content(root / name, member)
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


def _content(path: Path, member: str) -> bytes:
    if member:
        content = next(found.read() for found in archives.members(path) if found.name == member)
    else:
        with path.open("rb") as file:
            content = file.read()
    if (member or path.name).endswith(".gz"):
        try:
            return gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise TableError(f"{path} is damaged or cut short ({error}): fetch it again") from error
    return content


def _header(content: bytes, label: str) -> list[str]:
    try:
        rows = csv.reader(io.StringIO(content[: 1 << 16].decode("utf-8-sig", errors="replace")))
        header, first = next(rows), next(rows)
    except StopIteration:
        raise TableError(f"{label} has no rows: fetch it again") from None
    # NIH's box list has more names than columns
    return header[: len(first)] if not any(header[len(first) :]) else header
