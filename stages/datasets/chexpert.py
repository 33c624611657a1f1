"""CheXpert (Irvin et al., AAAI 2019): 224,316 films, 14 labels mined with their uncertainty; valid.csv read by hand.

The later test set (668 films of 500 patients, read by hand) came with CheXlocalize (Saporta et al., Nature Machine
Intelligence 2022): test_labels.csv, which says neither sex, age nor projection.

Labels are 1 present, 0 absent, -1 uncertain, blank not mentioned. `No Finding` = 1 says that the film shows no
pathology, so what is blank is implied to be absent; it says nothing of support devices.
"""

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from stages.core import findings

LICENCE = "Stanford University Dataset Research Use Agreement: non-commercial research, no redistribution"
SOURCE = "https://aimi.stanford.edu/datasets/chexpert-chest-x-rays"
ACCESS = f"CheXpert needs a registration with Stanford AIMI at {SOURCE}"

TRAIN = "train.csv"
VALID = "valid.csv"
LATER_TEST = "test_labels.csv"
ARCHIVES = ("CheXpert-v1.0*.zip", "chexlocalize*.zip")
FILES = {  # the owner publishes no checksums; sizes as the owner's store lists them
    "CheXpert-v1.0 batch 1 (validate & csv).zip": {"about_bytes": 510_000_000},
    "CheXpert-v1.0 batch 2 (train 1).zip": {"about_bytes": 174_400_000_000},
    "CheXpert-v1.0 batch 3 (train 2).zip": {"about_bytes": 198_400_000_000},
    "CheXpert-v1.0 batch 4 (train 3).zip": {"about_bytes": 97_800_000_000},
    "CheXpert-v1.0-small.zip": {"about_bytes": 11_000_000_000, "alone": True},
}
TERMS = {
    "Atelectasis": ("Atelectasis",),
    "Cardiomegaly": ("Cardiomegaly",),
    "Consolidation": ("Consolidation",),
    "Edema": ("Edema",),
    "Effusion": ("Pleural Effusion",),
    "Pneumonia": ("Pneumonia",),
    "Pneumothorax": ("Pneumothorax",),
    "Enlarged_Cardiomediastinum": ("Enlarged Cardiomediastinum",),
    "Lung_Opacity": ("Lung Opacity",),
    "Lung_Lesion": ("Lung Lesion",),
    "Pleural_Other": ("Pleural Other",),
    "Fracture": ("Fracture",),
    "Support_Devices": ("Support Devices",),
}
MEANS = {"competition5": ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion")}  # Irvin et al. 2019
NORMAL = "No Finding"
RULES = {NORMAL: "1 makes every pathology that is blank, but not Support Devices, implied absent"}
NOT_PATHOLOGY = "Support_Devices"
FRONTAL = "frontal"  # PA or AP, not said which
AGES = (18, 90)  # adults only; 0 stands for unknown, 90 for 90 and above
ABOUT = {"Path": "text", "Sex": "text", "Age": "number", "Frontal/Lateral": "text", "AP/PA": "text"}
LABELS = dict.fromkeys((NORMAL, *(terms[0] for terms in TERMS.values())), "number")
TABLES = {TRAIN: ABOUT | LABELS, VALID: ABOUT | LABELS}
OPTIONAL_TABLES = {LATER_TEST: {"Path": "text"} | LABELS}
UNSAID = {LATER_TEST: ("age", "sex")}
CODES = {1.0: findings.PRESENT, 0.0: findings.ABSENT, -1.0: findings.UNCERTAIN}

SIDES = ("Frontal", "Lateral")
VIEW = r"view\d+_(?:frontal|lateral)"
FILM = rf"(?P<patient>patient(?P<number>\d+))/(?P<study>study\d+)/(?P<view>{VIEW})\."
PATH = rf"^(?:.*/)?(?P<part>train|valid|test)/{FILM}(?i:jpe?g|png|dcm)$"
IMAGE = re.compile(rf"(?:(?:.*/)?(?P<folder>[^/]*)/)?{FILM}jpg")
# the full release's zips hold patient folders directly ("CheXpert-v1.0 batch 2 (train 1)/patient00001/..."), and people
# rename these: then the number says the part
PARTS = {"train": 64540, "valid": 64740, "test": 65240}  # -> the highest number of a patient


def image_key(name: str) -> str | None:
    """The path below the release's folder, e.g. ``train/patient00001/study1/view1_frontal.jpg``."""
    if not (found := IMAGE.fullmatch(name)):
        return None
    part = found["folder"]
    if part not in PARTS:
        part = next((part for part, highest in PARTS.items() if int(found["number"]) <= highest), None)
    return f"{part}/{found['patient']}/{found['study']}/{found['view']}.jpg" if part else None


def harmonize(tables: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, dict[str, int], dict[str, int]]:
    """Rows of train.csv and valid.csv, and of the later test set if it is there (see `stages.datasets`)."""
    parts = [
        _part(tables[TRAIN], official="train_val", label_source="report"),
        _part(tables[VALID], official="test", label_source="physician"),
    ]
    if LATER_TEST in tables:
        later = tables[LATER_TEST].copy()
        side = np.where(later["Path"].str.endswith("_lateral.jpg"), "Lateral", "Frontal")
        later["Frontal/Lateral"], later["AP/PA"], later["Sex"], later["Age"] = side, FRONTAL, "", np.nan
        parts.append(_part(later, official="later_test", label_source="physician"))
    terms = {term: int(sum((table[term] == 1).sum() for table in tables.values())) for term in LABELS}
    return pd.concat(parts), terms, {}


def _part(table: pd.DataFrame, official: str, label_source: str) -> pd.DataFrame:
    file = table.attrs["file"]
    if unknown := [name for name in table.attrs["columns"] if name not in TABLES[TRAIN]]:
        raise ValueError(
            f"{file} row 1: unknown finding {unknown[0]!r}; allowed columns are {', '.join(TABLES[TRAIN])}"
        )
    path = table["Path"].str.replace("\\", "/", regex=False)
    found = pc.extract_regex(pa.array(path), PATH)  # ten times as fast as pandas' own
    if found.null_count:
        row = table.index[found.is_null().to_pylist().index(True)]
        raise ValueError(f"{file} row {row}: Path {table['Path'][row]!r} does not match {PATH}: mend that row")
    for row in table.index[~table["Frontal/Lateral"].isin(SIDES)]:
        raise ValueError(
            f"{file} row {row}: Frontal/Lateral is {table['Frontal/Lateral'][row]!r}; allowed are {' and '.join(SIDES)}"
        )
    columns = [pd.Series(column.to_pandas().to_numpy(), table.index) for column in found.flatten()]
    part, patient, _, study, view = columns
    study = patient + "/" + study
    frontal = table["Frontal/Lateral"] == "Frontal"
    contradictory = frontal & table["AP/PA"].isin(["LL", "RL"])
    rows = pd.DataFrame(
        {
            "image": part + "/" + study + "/" + view + ".jpg",
            "file": file,
            "patient": patient,
            "study": study,
            "view": table["AP/PA"].where(frontal, "lateral"),
            "sex": table["Sex"].replace({"Male": "M", "Female": "F"}),
            "age": table["Age"],
            "label_source": label_source,
            "official": official,
            "dropped": pd.Series("", index=table.index).mask(contradictory, "called Frontal but LL or RL"),
        }
    )
    return pd.concat([rows, _facts(table)], axis=1)


def _facts(table: pd.DataFrame) -> pd.DataFrame:
    """Facts of each finding; blanks of a normal film are implied."""
    is_normal = (table[NORMAL] == 1).to_numpy()
    facts = {}
    for name, (term,) in TERMS.items():
        values = table[term].to_numpy(np.float64)
        blank = np.isnan(values)
        known = np.isin(values, list(CODES)) | blank
        if not known.all():
            row = int(np.argmin(known))
            raise ValueError(
                f"{table.attrs['file']} row {table.index[row]}: {term} is {values[row]:g}; allowed are 1, 0, -1, blank"
            )
        column = np.where(blank, findings.BLANK, np.nan_to_num(values)).astype(np.int8)
        if name != NOT_PATHOLOGY:
            column[blank & is_normal] = findings.IMPLIED
        facts[name] = column
    return pd.DataFrame(facts, index=table.index)
