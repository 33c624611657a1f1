"""What a table between stages must look like, whoever made it, and what a data set's plug-in must hand over."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa

from stages.core import findings
from stages.sources import splits

KEYS = ["image", "patient", "study", "split", "view", "sex", "age", "label_source"]
SEXES = ("M", "F")
SOURCES = ("report", "model", "physician")
BOX_SIDES = ["x", "y", "width", "height"]
OFFICIAL = ("train_val", "test", "later_test", "")
TEXT = ("image", "patient", "study", "file", "view", "label_source", "official", "dropped")  # of a plug-in's rows
ROWS = (*TEXT, "sex", "age")

Harmonized = tuple[pd.DataFrame, dict[str, int], dict[str, int]]  # rows, terms, notes


class PluginError(ValueError):
    """A data set's plug-in hands over something else than `stages.datasets` says; the message names its file."""


def labels(names: list[str]) -> pa.DataFrameSchema:
    """data/labels/<dataset>.parquet: one row an image, keys first, then a fact for each finding (`names`)."""
    text = pa.Check.str_length(min_value=1)
    lowest, highest = min(findings.FACTS), max(findings.FACTS)
    return pa.DataFrameSchema(
        {
            "image": pa.Column(str, text, unique=True),
            "patient": pa.Column(str, text),
            "study": pa.Column(str, text),
            "split": pa.Column(str, pa.Check.isin(splits.SPLITS)),
            "view": pa.Column(str, text),
            "sex": pa.Column(str, pa.Check.isin(SEXES), nullable=True),
            "age": pa.Column(float, pa.Check.ge(0), nullable=True),
            "label_source": pa.Column(str, pa.Check.isin(SOURCES)),
            **{name: pa.Column("int8", pa.Check.in_range(lowest, highest)) for name in names},
        },
        checks=[
            pa.Check(lambda table: table["image"].is_monotonic_increasing, error="rows are sorted by image"),
            pa.Check(
                lambda table: table.groupby("patient")["split"].nunique().max() == 1, error="a patient has one split"
            ),
        ],
        strict=True,
        ordered=True,
    )


def boxes(names: list[str]) -> pa.DataFrameSchema:
    """data/boxes/<dataset>.parquet: drawn boxes as fractions of the image side."""
    side = pa.Column(float, pa.Check.in_range(0, 1))
    return pa.DataFrameSchema(
        {
            "image": pa.Column(str),
            "finding": pa.Column(str, pa.Check.isin(names)),
            **dict.fromkeys(BOX_SIDES, side),
        },
        strict=True,
        ordered=True,
    )


def check(table: pd.DataFrame, schema: pa.DataFrameSchema, name: str) -> None:
    """Check a table.

    Raises:
        ValueError: with the table's name and every rule that it breaks.
    """
    try:
        schema.validate(table, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases
        broken = cases.groupby(["column", "check"], dropna=False).agg(
            rows=("index", "size"), example=("failure_case", "first")
        )
        listed = "; ".join(
            f"{column}: {rule} ({row.rows} times, e.g. {row.example!r})" for (column, rule), row in broken.iterrows()
        )
        raise ValueError(f"{name} breaks its contract: {listed}") from error


def require_harmonized(found: Any, known: Iterable[str], file: str) -> Harmonized:
    """What `harmonize` of a data set's plug-in returned, once it is known to be as `stages.datasets` says.

    Args:
        found: (rows, terms, notes).
        known: the keys of TERMS.
        file: the plug-in's, for messages.

    Raises:
        PluginError: naming the file, the column and the first row.
    """
    if not (isinstance(found, tuple) and len(found) == 3):
        raise PluginError(f"{file}: harmonize must return (rows, terms, notes), got {type(found).__name__}")
    rows, *counts = found
    if fault := _fault_of_rows(rows, list(known)):
        raise PluginError(f"{file}: harmonize: {fault} (see stages/datasets/__init__.py)")
    for name, given in zip(("terms", "notes"), counts, strict=True):
        if not isinstance(given, dict):
            raise PluginError(f"{file}: harmonize: {name} must be a dict of text -> int, got {type(given).__name__}")
        for key, value in given.items():
            if not isinstance(key, str) or not isinstance(value, int) or isinstance(value, bool):
                shown = f"{key!r}: {value!r} ({type(value).__name__})"
                raise PluginError(f"{file}: harmonize: {name} must be a dict of text -> int, got {shown}")
    return rows, counts[0], counts[1]


def _fault_of_rows(rows: Any, facts: list[str]) -> str | None:
    if not isinstance(rows, pd.DataFrame):
        return f"rows must be a DataFrame, got {type(rows).__name__}"
    if twice := sorted({str(name) for name in rows.columns[rows.columns.duplicated()]}):
        return f"rows have column {', '.join(twice)} twice"
    if lacking := [name for name in (*ROWS, *facts) if name not in rows]:
        return f"rows lack column {', '.join(lacking)}"
    if extra := [str(name) for name in rows if name not in (*ROWS, *facts)]:
        return f"rows have column {', '.join(extra)}, which is no key of TERMS"
    if not pd.api.types.is_integer_dtype(rows.index):
        return f"rows must be indexed by row number, got {rows.index.dtype}"
    for name in TEXT:
        if fault := _fault_of_text(rows[name]):
            return fault
    for name, allowed in (("label_source", SOURCES), ("official", OFFICIAL)):
        for value in rows[name].unique():
            if value not in allowed:
                row = rows.index[int((rows[name] == value).to_numpy().argmax())]
                return f"column {name} must be one of {', '.join(map(repr, allowed))}, got {value!r} in row {row}"
    if not pd.api.types.is_numeric_dtype(rows["age"]) or rows["age"].dtype == bool:
        return f"column age must be numbers, got {rows['age'].dtype}"
    for name in facts:
        if rows[name].dtype != np.int8:
            return f"column {name} must be int8, got {rows[name].dtype}"
        values = rows[name].to_numpy()
        if (wrong := ~np.isin(values, findings.FACTS)).any():
            first = int(wrong.argmax())
            return f"column {name} must be facts of core/findings.py, got {values[first]} in row {rows.index[first]}"
    return None


def _fault_of_text(column: pd.Series) -> str | None:
    if (nulls := column.index[column.isna()]).size:
        return f"column {column.name} must be text without nulls, got {len(nulls)}, the first in row {nulls[0]}"
    kind = pd.api.types.infer_dtype(column, skipna=False)
    return None if len(column) == 0 or kind == "string" else f"column {column.name} must be text, got {kind}"


def require_boxes(found: Any, names: list[str], file: str) -> pd.DataFrame:
    """What `boxes` of a data set's plug-in returned, once it is known to be so.

    Args:
        found: a table.
        names: all findings.
        file: the plug-in's, for messages.

    Raises:
        PluginError: with the file and every rule that the table breaks.
    """
    if not isinstance(found, pd.DataFrame):
        raise PluginError(f"{file}: boxes must return a DataFrame, got {type(found).__name__}")
    try:
        check(found, boxes(names), "what boxes returns")
    except ValueError as error:
        raise PluginError(f"{file}: {error}") from error
    return found
