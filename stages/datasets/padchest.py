"""PadChest (Bustos et al., Medical Image Analysis 2020): 160,861 films, reports labelled by physicians or by a model.

A row lists the terms that its report mentions, from one vocabulary of 194 strings. Terms are matched whole, after
lower-case and strip, never as substrings ("effusion" is also in "pericardial effusion"); where the owner's label tree
puts terms below another one, the finding takes them all. A finding that a report does not mention is absent, except
where the report says `unchanged`: then what it leaves out is not known.
"""

import ast
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from stages.core import findings

LICENCE = "PadChest research use agreement: non-commercial research, no redistribution"
SOURCE = "https://bimcv.cipf.es/bimcv-projects/padchest/"
ACCESS = f"PadChest needs a registration with BIMCV at {SOURCE}"

ENTRIES = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
ARCHIVES = ("*.zip",)
TABLES = {
    ENTRIES: {
        "ImageID": "text",
        "StudyDate_DICOM": "text",
        "StudyID": "text",
        "PatientID": "text",
        "PatientBirth": "number",
        "PatientSex_DICOM": "text",
        "Projection": "text",
        "BitsStored_DICOM": "number",
        "Rows_DICOM": "number",
        "Columns_DICOM": "number",
        "MethodLabel": "text",
        "Labels": "text",
    }
}
FILES = {  # the owner publishes no checksums; about 1 TB in all, 3,200 films a zip but for the two named below
    f"{ENTRIES}.gz": {"about_bytes": 17_000_000},
    **{f"{folder}.zip": {"about_bytes": 20_000_000_000} for folder in range(50)},
    "50.zip": {"about_bytes": 6_000_000},  # one film
    "54.zip": {"about_bytes": 27_000_000_000},
}
TERMS = {
    "Atelectasis": (
        "atelectasis", "total atelectasis", "lobar atelectasis", "segmental atelectasis", "laminar atelectasis",
        "round atelectasis", "atelectasis basal",
    ),
    "Cardiomegaly": ("cardiomegaly",),
    "Consolidation": ("consolidation", "air bronchogram"),
    "Edema": ("pulmonary edema",),
    "Effusion": (
        "pleural effusion", "loculated pleural effusion", "loculated fissural effusion", "hydropneumothorax", "empyema",
    ),
    "Emphysema": ("emphysema",),
    "Fibrosis": ("pulmonary fibrosis",),
    "Hernia": ("hiatal hernia",),
    "Infiltration": (
        "infiltrates", "interstitial pattern", "ground glass pattern", "reticular interstitial pattern",
        "reticulonodular interstitial pattern", "miliary opacities", "alveolar pattern", "consolidation",
        "air bronchogram",
    ),
    "Mass": ("mass", "pulmonary mass"),
    "Nodule": ("nodule", "multiple nodules"),
    "Pleural_Thickening": ("pleural thickening", "apical pleural thickening", "calcified pleural thickening"),
    "Pneumonia": ("pneumonia", "atypical pneumonia"),
    "Pneumothorax": ("pneumothorax", "hydropneumothorax"),
    "Enlarged_Cardiomediastinum": ("mediastinal enlargement", "superior mediastinal enlargement"),
    "Fracture": (
        "fracture", "rib fracture", "callus rib fracture", "clavicle fracture", "humeral fracture",
        "vertebral fracture",
    ),
    "Support_Devices": (
        "electrical device", "pacemaker", "single chamber device", "dual chamber device", "nsg tube",
        "endotracheal tube", "tracheostomy tube", "chest drain tube", "gastrostomy tube", "nephrostomy tube",
        "ventriculoperitoneal drain tube", "catheter", "central venous catheter",
        "central venous catheter via jugular vein", "central venous catheter via subclavian vein",
        "central venous catheter via umbilical vein", "reservoir central venous catheter", "double j stent",
        "artificial heart valve", "artificial mitral heart valve", "artificial aortic heart valve", "endoprosthesis",
        "aortic endoprosthesis",
    ),
    "Scoliosis": ("scoliosis",),
    "Aortic_Elongation": (
        "aortic elongation", "ascendent aortic elongation", "descendent aortic elongation", "supra aortic elongation",
    ),
    "Granuloma": ("granuloma", "calcified granuloma"),
    "Hilar_Enlargement": (
        "hilar enlargement", "adenopathy", "vascular hilar enlargement", "pulmonary artery enlargement",
    ),
    "Hemidiaphragm_Elevation": ("hemidiaphragm elevation",),
    "Costophrenic_Angle_Blunting": ("costophrenic angle blunting",),
    "Air_Trapping": ("air trapping",),
    "Flattened_Diaphragm": ("flattened diaphragm",),
    "Bronchiectasis": ("bronchiectasis",),
    "Tuberculosis": ("tuberculosis", "tuberculosis sequelae"),
}  # fmt: skip
NORMAL = "normal"
UNCHANGED = "unchanged"
EXCLUDE = "exclude"
SUBOPTIMAL = "suboptimal study"
STRAY = ""
RULES = {
    NORMAL: "no finding, even beside `unchanged`: what is not mentioned is absent",
    UNCHANGED: "what is not mentioned is as in an earlier report, so not known: blank",
    EXCLUDE: "the row is dropped, as its annotators ask",
    SUBOPTIMAL: "says nothing of a finding; the row is dropped if it says nothing else",
    STRAY: "a stray blank: the term is dropped, and the row if nothing is left",
}
UNMAPPED = (
    "abnormal foreign body", "abscess", "air fluid level", "aortic aneurysm", "aortic atheromatosis",
    "aortic button enlargement", "asbestosis signs", "axial hyperostosis", "azygoesophageal recess shift",
    "azygos lobe", "blastic bone lesion", "bone cement", "bone metastasis", "breast mass", "bronchovascular markings",
    "bullas", "calcified adenopathy", "calcified densities", "calcified fibroadenoma",
    "calcified mediastinal adenopathy", "calcified pleural plaques", "cavitation", "central vascular redistribution",
    "cervical rib", "chilaiditi sign", "chronic changes", "copd signs", "costochondral junction hypertrophy", "cyst",
    "dai", "dextrocardia", "diaphragmatic eventration", "end on vessel", "esophagic dilatation",
    "external foreign body", "fibrotic band", "fissure thickening", "goiter", "gynecomastia", "heart insufficiency",
    "heart valve calcified", "hilar congestion", "humeral prosthesis", "hyperinflated lung", "hypoexpansion",
    "hypoexpansion basal", "increased density", "kerley lines", "kyphosis", "lepidic adenocarcinoma", "lipomatosis",
    "lung metastasis", "lung vascular paucity", "lymphangitis carcinomatosa", "lytic bone lesion",
    "major fissure thickening", "mammary prosthesis", "mastectomy", "mediastinal mass", "mediastinal shift",
    "mediastinic lipomatosis", "metal", "minor fissure thickening", "nipple shadow",
    "non axial articular degenerative changes", "obesity", "osteopenia", "osteoporosis", "osteosynthesis material",
    "pectum carinatum", "pectum excavatum", "pericardial effusion", "pleural mass", "pleural plaques",
    "pneumomediastinum", "pneumoperitoneo", "post radiotherapy changes", "prosthesis", "pseudonodule",
    "pulmonary artery hypertension", "pulmonary hypertension", "pulmonary venous hypertension", "respiratory distress",
    "right sided aortic arch", "sclerotic bone lesion", "soft tissue mass", "sternoclavicular junction hypertrophy",
    "sternotomy", "subacromial space narrowing", "subcutaneous emphysema", "surgery", "surgery breast",
    "surgery heart", "surgery humeral", "surgery lung", "surgery neck", "suture material", "thoracic cage deformation",
    "tracheal shift", "vascular redistribution", "vertebral anterior compression",
    "vertebral compression", "vertebral degenerative changes", "volume loss",
)  # fmt: skip
AGES = (0, 120)
BITS = range(1, 17)  # of a PNG
IMAGE = r"^(?:.*[/\\])?(?P<stem>[^/\\]+)\.(?i:png|jpe?g|dcm)$"
NO_LIST = ("", "nan")  # what stands in place of a label list in 103 rows
WRITTEN_AGAIN = (*NO_LIST, "na", "n/a", "none", "null")  # by other programs, in any case
INDEX = ""  # the table's first column has no name
# the owner's 20140915, and what spreadsheets and other programs make of it; of both orders of day and month, which no
# single date tells apart, the year is the same, and only the year is taken
TIME = r"(?:[ T][\d:.]+(?: ?[AP]M)?)?"
DATES = (
    r"(?P<year>\d{4})(?P<one>\d\d)(?P<other>\d\d)(?:\.0)?",
    rf"(?P<year>\d{{4}})([-/.])(?P<one>\d{{1,2}})\2(?P<other>\d{{1,2}}){TIME}",
    rf"(?P<one>\d{{1,2}})([-/.])(?P<other>\d{{1,2}})\2(?P<year>\d{{4}}){TIME}",
)
VIEWS = {"L": "lateral"}
SOURCES = {"Physician": "physician", "RNN_model": "model"}


def image_key(name: str) -> str | None:
    """The file name, which is the ImageID of the table."""
    base = PurePosixPath(name).name
    return base if base.endswith(".png") else None


def harmonize(tables: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, dict[str, int], dict[str, int]]:
    """Rows of the official table (see `stages.datasets`)."""
    table = tables[ENTRIES]
    codes, texts = pd.factorize(table["Labels"])
    mentioned, vocabulary = _mentioned(table, codes, [str(text) for text in texts])
    facts, reasons = _facts(mentioned, vocabulary)
    reasons[[str(text).lower() in WRITTEN_AGAIN for text in texts]] = "no label list"
    source = table["MethodLabel"].map(SOURCES)
    for row in table.index[source.isna()]:
        raise ValueError(
            f"{table.attrs['file']} row {row}: unknown MethodLabel {table['MethodLabel'][row]!r}; "
            f"allowed are {', '.join(SOURCES)}"
        )
    rows = pd.DataFrame(
        {
            "image": _images(table),
            "file": table.attrs["file"],
            "patient": table["PatientID"],
            "study": table["StudyID"],
            "view": table["Projection"].replace(VIEWS),
            "sex": table["PatientSex_DICOM"],
            "age": _years(table["StudyDate_DICOM"]) - table["PatientBirth"],
            "label_source": source,
            "official": "",
            "dropped": reasons[codes],
        }
    )
    counts = mentioned.T.astype(np.int64) @ np.bincount(codes, minlength=len(texts))  # mentions of each term
    terms = {term: int(count) for term, count in zip(vocabulary, counts, strict=True) if count}
    return pd.concat([rows, pd.DataFrame(facts[codes], table.index, list(TERMS))], axis=1), terms, {}


def bit_depths(tables: Mapping[str, pd.DataFrame]) -> dict[str, int]:
    """Bits stored of each image: 12 or 10 of the 16 in its PNG."""
    table = tables[ENTRIES].dropna(subset=["BitsStored_DICOM"])
    for row in table.index[~table["BitsStored_DICOM"].isin(BITS)]:
        raise ValueError(
            f"{table.attrs['file']} row {row}: BitsStored_DICOM is {table['BitsStored_DICOM'][row]:g}; allowed are "
            f"{BITS[0]} to {BITS[-1]}: mend that row"
        )
    return dict(zip(_images(table), table["BitsStored_DICOM"].astype(int), strict=True))


def sizes(tables: Mapping[str, pd.DataFrame]) -> dict[str, tuple[int, int]]:
    """Width and height of each image."""
    table = tables[ENTRIES].dropna(subset=["Columns_DICOM", "Rows_DICOM"])
    sides = zip(table["Columns_DICOM"].astype(int), table["Rows_DICOM"].astype(int), strict=True)
    return dict(zip(_images(table), sides, strict=True))


def _images(table: pd.DataFrame) -> pd.Series:
    """The images' names, whatever folder and suffix a copy of the table gives them."""
    found = pc.extract_regex(pa.array(table["ImageID"]), IMAGE)
    if found.null_count:
        row = table.index[found.is_null().to_pylist().index(True)]
        raise ValueError(
            f"{table.attrs['file']} row {row}: ImageID {table['ImageID'][row]!r} is no film's name: mend that row"
        )
    (stem,) = (column.to_pandas().to_numpy() for column in found.flatten())
    return pd.Series(stem, table.index, dtype="str") + ".png"


def _years(dates: pd.Series) -> pd.Series:
    """The years of dates; NaN for what is none."""
    codes, texts = pd.factorize(dates)
    return pd.Series(np.array([_year(str(text)) for text in texts])[codes], dates.index)


def _year(date: str) -> float:
    found = next((found for form in DATES if (found := re.fullmatch(form, date))), None)
    if not found:
        return np.nan
    month, day = sorted(int(found[name]) for name in ("one", "other"))
    return float(found["year"]) if 1 <= month <= 12 and day <= 31 else np.nan


def _mentioned(table: pd.DataFrame, codes: np.ndarray, texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """How often each distinct label list names each term: (distinct list, term), and the terms."""
    vocabulary = sorted({*UNMAPPED, *RULES, *(term for terms in TERMS.values() for term in terms)})
    columns = {term: column for column, term in enumerate(vocabulary)}
    mentioned = np.zeros((len(texts), len(vocabulary)), np.uint8)
    for place, text in enumerate(texts):
        if text.lower() in WRITTEN_AGAIN:
            continue
        try:
            for term in _terms(text):
                mentioned[place, columns[term]] += 1
        except (KeyError, ValueError, SyntaxError, RecursionError, MemoryError) as error:  # the last two: deep nesting
            row = table.index[int(np.argmax(codes == place))]
            fault = f"unknown finding {error}" if isinstance(error, KeyError) else f"{text[:80]!r} is no list of labels"
            raise ValueError(
                f"{table.attrs['file']} row {row}: {fault} in column Labels; allowed are lists of the terms in "
                f"{PurePosixPath(__file__).name} (TERMS, RULES, UNMAPPED): mend the row or add the term there"
            ) from error
    return mentioned, vocabulary


def _terms(text: str) -> list[str]:
    """The terms of a Python list literal, which is parsed and never run."""
    value = ast.literal_eval(text)
    if not isinstance(value, list) or not all(isinstance(term, str) for term in value):
        raise ValueError(text)
    return [term.strip().lower() for term in value]


def _facts(mentioned: np.ndarray, vocabulary: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Facts (distinct list, finding), and the reason for which rows with this list are dropped, or ""."""
    says = {term: mentioned[:, column] > 0 for column, term in enumerate(vocabulary)}
    facts = np.full((len(mentioned), len(TERMS)), findings.ABSENT, np.int8)
    facts[says[UNCHANGED] & ~says[NORMAL]] = findings.BLANK
    for column, terms in enumerate(TERMS.values()):
        facts[np.any([says[term] for term in terms], axis=0), column] = findings.PRESENT
    silent = [vocabulary.index(term) for term in (SUBOPTIMAL, STRAY)]
    says_nothing = np.delete(mentioned, silent, axis=1).sum(axis=1) == 0
    reasons = np.full(len(mentioned), "", dtype=object)
    reasons[says_nothing] = "no label left after stray blanks"
    reasons[says_nothing & says[SUBOPTIMAL]] = "only `suboptimal study`"
    reasons[says[EXCLUDE]] = "marked `exclude`"
    return facts, reasons
