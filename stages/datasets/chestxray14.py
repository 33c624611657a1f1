"""NIH ChestX-ray14 (Wang et al., CVPR 2017): 112,120 frontal films, 14 findings mined from reports.

Every film states each of the 14 findings as present or absent: the labeller searched for all of them.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from stages.core import findings

LICENCE = "No restriction on use; link the source, cite Wang et al. (CVPR 2017), acknowledge the NIH Clinical Center"
SOURCE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
ACCESS = f"ChestX-ray14 is free to download from {SOURCE}"

ENTRIES = "Data_Entry_2017_v2020.csv"
OLDER_NAMES = {ENTRIES: ("Data_Entry_2017.csv",)}  # the first release's, with ages as 058Y and some other values
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
VANITY = "https://nihcc.app.box.com/index.php?rm=box_download_shared_file&vanity_name=ChestXray-NIHCC&file_id=f_"
STATIC = "https://nihcc.box.com/shared/static/"
TABLE_LINKS = {  # bytes, number in the owner's store, SHA-256 of copies in use (the owner publishes none of tables)
    ENTRIES: (9_003_496, "219760887468", "c69a6daca3549af707ca9cacbdf9f9a7b6a9188e8c61157df653520bb72d8eb1"),
    TRAIN_VAL: (1_470_907, "256056636701", "61fbe896321c1c1c8b75f3e4f3a08e4fef6486d95ef8a667c31d4d60dca6cb81"),
    TEST: (435_131, "256055473534", "38ca5ef7f756092946f57c1a59faca882ed589a1ab1f72590b45dc06c6d5e1cc"),
    BOXES: (92_416, "219760940956", "0bbfea9d4c4e9771481b3023b1bc9f0df9dea924453b12986beb29b0c4d0c95b"),
}
IMAGE_LINKS = (  # bytes, link of the owner's batch_download_zips.py, MD5 of the owner's FAQ_CHESTXRAY.pdf
    (2_008_470_987, "vfk49d74nhbxq3nqjg0900w5nvkorp5c", "fe8ed0a6961412fddcbb3603c11b3698"),
    (3_952_623_504, "i28rlmbvmfjbl8p2n3ril0pptcmcu9d1", "ab07a2d7cbe6f65ddd97b4ed7bde10bf"),
    (3_929_234_850, "f1t00wrtdk94satdfb9olcolqx20z2jp", "2301d03bde4c246388bad3876965d574"),
    (3_838_903_983, "0aowwzs5lhjrceb3qp67ahp0rd1l1etg", "9f1b7f5aae01b13f4bc8e2c44a4b8ef6"),
    (3_935_496_531, "v5e3goj22zr6h8tzualxfsqlqaygfbsn", "1861f3cd0ef7734df8104f2b0309023b"),
    (3_986_301_172, "asi7ikud9jwnkrnkj99jnpfkjdes7l6l", "456b53a8b351afd92a35bc41444c58c8"),
    (4_016_328_426, "jn1b4mw4n6lnh74ovmcjb8y48h8xj07n", "1075121ea20a137b87f290d6a4a5965e"),
    (4_018_347_353, "tvpxmn7qyrgl0w8wfh9kqfjskv6nmm1j", "b61f34cec3aa69f295fbb593cbd9d443"),
    (4_111_327_929, "upyy3ml7qdumlgk2rfcvlb9k6gvqq2pj", "442a3caa61ae9b64e61c561294d1e183"),
    (4_181_556_296, "l6nilvfa9cg3s28tqv1qc1olm3gnz54p", "09ec81c4c31e32858ad8cf965c494b74"),
    (4_187_084_020, "hhq8fkdgvcari67vfhs7ppg2w6ni4jze", "499aefc67207a5a97692424cf5dbeed5"),
    (2_914_187_733, "ioqwiy20ihqwyr8pf4c24eazhh281pbu", "dc9fda1757c2de0032b63347a7d2895c"),
)
FILES = {
    name: {"bytes": size, "checksum": f"sha256:{sha256}", "url": VANITY + link}
    for name, (size, link, sha256) in TABLE_LINKS.items()
} | {
    f"images_{number:03d}.tar.gz": {"bytes": size, "checksum": f"md5:{md5}", "url": f"{STATIC}{link}.gz"}
    for number, (size, link, md5) in enumerate(IMAGE_LINKS, 1)
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
LISTED = r"^(?:.*/)?(?P<stem>(?P<patient>\d{8})_\d{3})(?i:\.(?:png|jpe?g|dcm))?$"  # a film in a table
AGE = r"^(\d+(?:\.\d+)?) ?(?i:([YMWD]))?$"  # of DICOM's age strings, or plain years
UNITS_A_YEAR = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}


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
    image, patient = _films(entries)
    images = set(image)
    for part, file in PARTS.items():
        names = _listed(tables[file])["image"].tolist()
        if twice := sorted(official.keys() & set(names)):
            row = tables[file].index[names.index(twice[0])]
            raise ValueError(
                f"{tables[file].attrs['file']} names {len(twice)} images that {TRAIN_VAL} names too, e.g. {twice[0]} "
                f"in row {row}: fetch both lists again"
            )
        official |= dict.fromkeys(names, part)
        notes[f"names in {file} without a row in {ENTRIES}"] = len(set(names) - images)
    rows = pd.DataFrame(
        {
            "image": image,
            "file": entries.attrs["file"],
            "patient": patient,
            "study": patient + "_" + entries["Follow-up #"],
            "view": entries["View Position"],
            "sex": entries["Patient Gender"],
            "age": _years(entries["Patient Age"]),
            "label_source": "report",
            "official": image.map(official).fillna(""),
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
    fractions = pd.DataFrame({side: table[column] / FRAME_PX for side, column in sides.items()})
    for row in table.index[~((fractions >= 0) & (fractions <= 1)).all(axis=1)]:
        raise ValueError(f"{table.attrs['file']} row {row}: the box is not in the film's {FRAME_PX} px: mend that row")
    return pd.concat([pd.DataFrame({"image": _require_films(table)["image"], "finding": finding}), fractions], axis=1)


def _listed(table: pd.DataFrame) -> pd.DataFrame:
    """The image and the patient of each row of a table; a name that is no film's stays as it is, of no patient."""
    names = table["Image Index"].str.replace("\\", "/", regex=False)
    found = pc.extract_regex(pa.array(names), LISTED)  # ten times as fast as pandas' own
    stem, patient = (pd.Series(column.to_pandas().to_numpy(), table.index) for column in found.flatten())
    return pd.DataFrame({"image": (stem + ".png").fillna(table["Image Index"]), "patient": patient})


def _require_films(table: pd.DataFrame) -> pd.DataFrame:
    listed = _listed(table)
    for row in table.index[listed["patient"].isna()]:
        raise ValueError(
            f"{table.attrs['file']} row {row}: Image Index {table['Image Index'][row]!r} is no film's name, as "
            "00000001_000.png is: mend that row"
        )
    return listed


def _films(entries: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Images, and patients as the first release numbers them; a film's name begins with its patient's number."""
    listed = _require_films(entries)
    patient = listed["patient"].str.lstrip("0").replace("", "0")
    said = entries["Patient ID"].str.lstrip("0").replace("", "0")
    for row in entries.index[patient != said]:
        raise ValueError(
            f"{entries.attrs['file']} row {row}: Patient ID {entries['Patient ID'][row]!r} is not the patient of "
            f"{listed['image'][row]}, {patient[row]}: mend that row, or fetch the table again"
        )
    return listed["image"], patient


def _years(ages: pd.Series) -> pd.Series:
    """Ages in years, of 57, 057Y, 003M, 021D or 002W; NaN for anything else."""
    codes, texts = pd.factorize(ages)
    found = pd.Series(texts, dtype="str").str.extract(AGE)
    years = found[0].astype(np.float64) / found[1].str.upper().fillna("Y").map(UNITS_A_YEAR)
    return pd.Series(years.to_numpy()[codes], ages.index)


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
