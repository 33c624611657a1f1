"""Precomputed teachers: probabilities that somebody's model gave, a row an image, in place of a net.

The first column of the csv names the image as its owner does, with or without .png or .jpg (CheXpert: the path below
the release's folder); the others are `prob_<finding>` or `<finding>`, with blanks or underscores, or named by `COLUMNS`
of the plug-in; a column that is no finding of the cohort does not count. What is kept are logits, one a film and
finding, which serve every view of the film.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.core import files, findings
from stages.nets import weights

SHOWN = 5  # rows or films named in a message
ENDING = r"\.(?:png|jpg|dcm)$"
PREFIX = "prob "


class TableError(ValueError):
    """A table of probabilities is not what it must be; the message names column, rows or films, and the remedy."""


def key(names: pd.Series) -> pd.Series:
    """Images' names without their ending, by which a table and the films meet."""
    return names.astype("str").str.replace(ENDING, "", regex=True)


def read(
    path: Path, sha256: str, clip: float, wanted: list[str], renamed: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Logits by image, float32, a column a finding.

    Args:
        path: the csv.
        sha256: as params.yaml records it.
        clip: probabilities are moved into [clip, 1 - clip], so that 0 and 1 have a logit.
        wanted: the findings that are kept; the table may have more.
        renamed: column -> finding, for columns that bear another name.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it has another hash.
        TableError: it lacks a finding, has two columns of one, names an image twice or not at all, or a
            value is no probability.
    """
    weights.verify(path, sha256)
    with path.open(encoding="utf-8") as file:
        table = pd.read_csv(file, dtype="str", keep_default_na=False)
    names, columns = key(table.iloc[:, 0]), _columns(path, list(table.columns[1:]), wanted, renamed or {})
    _refuse(path, names.index[names == ""], table.iloc[:, 0], "no image name", "name the image or delete the row")
    twice = names.index[names.duplicated()]
    _refuse(path, twice, names, "an image that another row names", "leave one row an image")
    values = table[list(columns)].apply(pd.to_numeric, errors="coerce").set_axis(list(columns.values()), axis=1)
    for finding, column in values.items():
        bad = column.index[~column.between(0, 1)]  # NaN is in no interval
        given = table[next(name for name, found in columns.items() if found == finding)]
        _refuse(path, bad, given, f"no probability of {finding}", "probabilities lie in [0, 1]")
    clipped = values[wanted].clip(clip, 1 - clip)
    logits: pd.DataFrame = np.log(clipped / (1 - clipped)).astype(np.float32)
    return logits.set_axis(pd.Index(names, name="image"))


def _columns(path: Path, given: list[str], wanted: list[str], renamed: Mapping[str, str]) -> dict[str, str]:
    """The table's columns of wanted findings: column -> finding."""
    known = {findings.plain(name): name for name in wanted}
    known |= {findings.plain(column): name for column, name in renamed.items() if name in wanted}
    spelled = {column: findings.plain(column) for column in given}
    spelled = {column: word if word in known else word.removeprefix(PREFIX) for column, word in spelled.items()}
    columns = {column: known[word] for column, word in spelled.items() if word in known}
    found = list(columns.values())
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise TableError(f"{path} has several columns of {', '.join(twice)}: leave one")
    if lacking := [name for name in wanted if name not in found]:
        others = [column for column in given if column not in columns]
        raise TableError(
            f"{path} lacks {len(lacking)} of the cohort's {len(wanted)} findings: {', '.join(lacking)}"
            + (f" (it also has {', '.join(others[:SHOWN])})" if others else "")
            + "; add or rename their columns, say in COLUMNS of the teacher's file in stages/models which they are, or "
            "take them out of datasets.<name>.findings in params.yaml"
        )
    return columns


def _refuse(path: Path, rows: pd.Index, values: pd.Series, what: str, remedy: str) -> None:
    """Raise if there are such rows; the header is row 1."""
    if len(rows):
        listed = ", ".join(f"row {row + 2} ({values[row]!r})" for row in rows[:SHOWN])
        raise TableError(f"{path} has {len(rows)} rows with {what}: {listed}; {remedy}")


def write(table: pd.DataFrame, about: dict[str, Any], folder: Path) -> None:
    """Write `logits.parquet` and `model.json`, which `load` reads."""
    folder.mkdir(parents=True)
    files.write_table(table.reset_index(), folder / "logits.parquet")
    files.write_json(about, folder / "model.json")


def load(folder: Path) -> pd.DataFrame:
    """What `write` wrote: logits by image, a column a finding."""
    table: pd.DataFrame = files.read_table(folder / "logits.parquet").set_index("image")
    return table


def logits(table: pd.DataFrame, images: pd.Series, what: str) -> np.ndarray:
    """The table's logits of these images, float32 (images, findings).

    Args:
        table: of `read` or `load`.
        images: their keys.
        what: what they are, for the message.

    Raises:
        TableError: the table lacks some.
    """
    wanted = key(images)
    if (lacking := ~wanted.isin(table.index)).any():
        raise TableError(
            f"the table of probabilities lacks {lacking.sum()} of {len(images)} {what}, e.g. "
            f"{', '.join(images[lacking].iloc[:SHOWN])} (it names {table.index[0]}): add their rows, or list the films "
            "that it has in a file (params.yaml: datasets.<name>.films), which leaves the others out"
        )
    return table.loc[wanted].to_numpy(np.float32)
