"""NIH ChestX-ray14 (Wang et al., CVPR 2017): 112,120 frontal films, 14 findings mined from reports.

Every film states each of the 14 findings as present or absent: the labeller searched for all of them.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from stages.core import findings

LICENCE = "No restriction on use; link the source, cite Wang et al. (CVPR 2017), acknowledge the NIH Clinical Center"
SOURCE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
ACCESS = f"ChestX-ray14 is free to download from {SOURCE}"

ENTRIES = "Data_Entry_2017_v2020.csv"
TRAIN_VAL = "train_val_list.txt"
TEST = "test_list.txt"
BOXES = "BBox_List_2017.csv"
PARTS = {"train_val": TRAIN_VAL, "test": TEST}
ARCHIVES = ("images*.tar.gz", "images*.tgz", "images*.tar", "images*.zip")
TABLES = {
    ENTRIES: {
        "Image Index": "text",
        "Finding Labels": "text",
        "Follow-up #": "text",
        "Patient ID": "text",
        "Patient Age": "text",
        "Patient Gender|Patient Sex": "text",
        "View Position": "text",
    },
    TRAIN_VAL: {"Image Index": "text"},
    TEST: {"Image Index": "text"},
    BOXES: {
        "Image Index": "text",
        "Finding Label": "text",
        "Bbox [x": "number",
        "y": "number",
        "w": "number",
        "h]": "number",
    },
}
TERMS = {
    name: (name,)
    for name in (
        "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
        "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
    )
}  # fmt: skip
BOX_TERMS = {"Infiltrate": "Infiltration"}  # the box list's own spelling
RULES = {"No Finding": "none of the 14 findings: all are absent"}
AGES = (0, 120)
FRAME_PX = 1024  # boxes are drawn in the distributed images, all 1024 x 1024

IMAGE = re.compile(r"\d{8}_\d{3}\.png")


def image_key(name: str) -> str | None:
    """The official file name, e.g. ``00000001_000.png``."""
    base = PurePosixPath(name).name
    return base if IMAGE.fullmatch(base) else None


def harmonize(tables: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, dict[str, int], dict[str, int]]:
    """Rows of the official table with their place in the official split (see `stages.datasets`)."""
    entries = tables[ENTRIES]
    facts, terms = _facts(entries)
    official: dict[str, str] = {}
    notes = {}
    images = set(entries["Image Index"])
    for part, file in PARTS.items():
        names = tables[file]["Image Index"].tolist()
        if twice := sorted(official.keys() & set(names)):
            raise ValueError(
                f"{tables[file].attrs['file']} names {len(twice)} images that {TRAIN_VAL} names too, e.g. {twice[0]}: "
                "fetch both lists again"
            )
        official |= dict.fromkeys(names, part)
        notes[f"names in {file} without a row in {ENTRIES}"] = len(set(names) - images)
    rows = pd.DataFrame(
        {
            "image": entries["Image Index"],
            "file": entries.attrs["file"],
            "patient": entries["Patient ID"],
            "study": entries["Patient ID"] + "_" + entries["Follow-up #"],
            "view": entries["View Position"],
            "sex": entries["Patient Gender"],
            "age": pd.to_numeric(entries["Patient Age"], errors="coerce"),
            "label_source": "report",
            "official": entries["Image Index"].map(official).fillna(""),
            "dropped": "",
        }
    )
    return pd.concat([rows, facts], axis=1), terms, notes


def boxes(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The 984 hand-drawn boxes as fractions of the image side."""
    table = tables[BOXES]
    finding = table["Finding Label"].replace(BOX_TERMS)
    for row in table.index[~finding.isin(list(TERMS))]:
        raise ValueError(
            f"{table.attrs['file']} row {row}: unknown finding {finding[row]!r}; known are {', '.join(TERMS)}"
        )
    sides = {"x": "Bbox [x", "y": "y", "width": "w", "height": "h]"}
    fractions = {side: table[column] / FRAME_PX for side, column in sides.items()}
    return pd.DataFrame({"image": table["Image Index"], "finding": finding, **fractions})


def _facts(entries: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Present or absent for each finding, and how many rows have each term."""
    codes, texts = pd.factorize(entries["Finding Labels"])
    facts = np.full((len(texts), len(TERMS)), findings.ABSENT, np.int8)  # (distinct text, finding)
    counts = np.bincount(codes, minlength=len(texts))
    terms: Counter[str] = Counter()
    columns = {name: column for column, name in enumerate(TERMS)}
    for place, text in enumerate(texts):
        for term in str(text).split("|"):
            if term in columns:
                facts[place, columns[term]] = findings.PRESENT
            elif term not in RULES:
                row = entries.index[int(np.argmax(codes == place))]
                raise ValueError(
                    f"{entries.attrs['file']} row {row}: unknown finding {term!r} in column Finding Labels; "
                    f"allowed are {', '.join([*TERMS, *RULES])} joined by |"
                )
            terms[term] += int(counts[place])
    return pd.DataFrame(facts[codes], index=entries.index, columns=list(TERMS)), dict(terms)
