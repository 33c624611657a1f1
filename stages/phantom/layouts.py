"""The owners' file layouts: read a real label table, write the drawn rows as the owner would have.

Every file is written to the same bytes each time: fixed dates, owners, order and compression.
"""

import ast
import csv
import gzip
import importlib.util
import io
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import cv2
import numpy as np
import pandas as pd

from stages.core import findings
from stages.phantom.canvas import Box

PACKAGE = "torchxrayvision"
FIXED_DATE = (1980, 1, 1, 0, 0, 0)
JPEG_QUALITY = 95
RGBA_EVERY = 97  # NIH stores a few of its grey images as RGBA
NIH_FRAME_PX = 1024
NORMAL, UNCHANGED, EXCLUDE = "normal", "unchanged", "exclude"  # what PadChest says of a whole film
REPEATED = ("LabelsLocalizationsBySentence", "labelCUIS")

Boxes = dict[str, list[Box]]


@dataclass(frozen=True)
class Said:
    """What a table says and what it shall say; facts are (rows, findings)."""

    table: pd.DataFrame
    stated: np.ndarray
    public: np.ndarray
    parts: np.ndarray  # split of each row
    size_px: int  # side of the drawn films


@dataclass(frozen=True)
class Drawn:
    """What is published, row by row."""

    table: pd.DataFrame
    parts: np.ndarray
    images: Sequence[bytes]
    boxes: Sequence[Boxes]


class Layout(ABC):
    """One owner's way to publish films and labels."""

    table_name: str  # of the gzipped label table in the package
    silence: int  # fact of a finding that a report does not mention
    human_test = False  # whether test splits keep human labels only
    implied_by: Mapping[str, Sequence[str]] = MappingProxyType({})  # finding -> those that are never without it

    def __init__(self, terms: Mapping[str, tuple[str, ...]]) -> None:
        """`terms`: each finding that the table annotates, and the table's terms for it."""
        self.terms = terms
        self.names = tuple(terms)

    @abstractmethod
    def usable(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows that say something of a film of an adult's chest."""

    @abstractmethod
    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """image, patient, view, sex, is_human, is_unchanged of each row of the table."""

    @abstractmethod
    def facts(self, table: pd.DataFrame) -> np.ndarray:
        """What the table says: (rows, findings) int8."""

    @abstractmethod
    def restate(self, said: Said) -> pd.DataFrame:
        """The table saying what is public, with images named as the owner names them in their split."""

    @abstractmethod
    def encode(self, film: np.ndarray, row: Mapping[str, Any]) -> bytes:
        """The image file of one row of the table, which has its `number` besides."""

    @abstractmethod
    def write(self, root: Path, drawn: Drawn) -> None:
        """Write the owner's files into a new folder."""


def read_table(layout: Layout) -> pd.DataFrame:
    """The real label table, every cell as its text.

    Raises:
        FileNotFoundError: the package that carries the tables is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)  # finds without importing: the import would pull in torch
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{layout.table_name} comes with the package {PACKAGE}, not installed: run make setup")
    path = Path(spec.submodule_search_locations[0]) / "data" / f"{layout.table_name}.gz"
    with path.open("rb") as packed, gzip.open(packed, "rt", encoding="utf-8", newline="") as text:
        table = pd.read_csv(text, dtype=str, keep_default_na=False)
    with path.open("rb") as packed, gzip.open(packed, "rt", encoding="utf-8", newline="") as text:
        table.columns = pd.Index(next(csv.reader(text)))  # pandas renames empty headers
    return table


class ChestXray14(Layout):
    """NIH: a csv, two lists of names, boxes on test images and archives of PNGs."""

    table_name = "Data_Entry_2017_v2020.csv"
    silence = findings.ABSENT
    boxed: ClassVar = {"Atelectasis": "Atelectasis", "Cardiomegaly": "Cardiomegaly", "Effusion": "Effusion",
             "Infiltration": "Infiltrate", "Mass": "Mass", "Nodule": "Nodule", "Pneumonia": "Pneumonia",
             "Pneumothorax": "Pneumothorax"}  # fmt: skip

    def usable(self, table: pd.DataFrame) -> pd.DataFrame:
        return table

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({
            "image": table["Image Index"], "patient": table["Patient ID"], "view": table["View Position"],
            "sex": table["Patient Gender"], "is_human": False, "is_unchanged": False,
        })  # fmt: skip

    def facts(self, table: pd.DataFrame) -> np.ndarray:
        codes, texts = pd.factorize(table["Finding Labels"])
        listed = [[name in text.split("|") for name in self.names] for text in texts]
        return np.where(listed, findings.PRESENT, findings.ABSENT).astype(np.int8)[codes]

    def restate(self, said: Said) -> pd.DataFrame:
        present = said.public == findings.PRESENT
        labels = ["|".join(np.array(self.names)[row]) or "No Finding" for row in present]
        return said.table.assign(**{"Finding Labels": labels})

    def encode(self, film: np.ndarray, row: Mapping[str, Any]) -> bytes:
        grey = np.round(film * 255).astype(np.uint8)
        if row["number"] % RGBA_EVERY == 0:
            return _encode(".png", cv2.cvtColor(grey, cv2.COLOR_GRAY2BGRA))
        return _encode(".png", grey)

    def write(self, root: Path, drawn: Drawn) -> None:
        root.mkdir()
        names = drawn.table["Image Index"].tolist()
        (root / self.table_name).write_bytes(_csv(drawn.table))
        is_test = drawn.parts == "test"
        for file, chosen in (("train_val_list.txt", ~is_test), ("test_list.txt", is_test)):
            listed = "".join(f"{names[i]}\n" for i in np.flatnonzero(chosen))
            (root / file).write_text(listed, encoding="utf-8")
        lines = ["Image Index,Finding Label,Bbox [x,y,w,h],,,"]
        for i in np.flatnonzero(is_test).tolist():
            for finding, spelling in self.boxed.items():
                for box in drawn.boxes[i].get(finding, []):
                    lines.append(",".join([names[i], spelling, *(f"{NIH_FRAME_PX * side:.6f}" for side in box)]))
        (root / "BBox_List_2017.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        members = [(f"images/{name}", image) for name, image in zip(names, drawn.images, strict=True)]
        _write_tar_gz(root / "images_001.tar.gz", members)


class CheXpert(Layout):
    """Stanford: one zip with train.csv, valid.csv and JPEGs in folders of patient and study."""

    table_name = "chexpert_train.csv"
    silence = findings.BLANK
    implied_by = MappingProxyType(
        {
            "Lung_Opacity": ("Edema", "Consolidation", "Pneumonia", "Lung_Lesion", "Atelectasis"),
            "Enlarged_Cardiomediastinum": ("Cardiomegaly",),
        }
    )
    first_valid_patient = 64541  # the owner numbers the patients of valid.csv from here
    texts: ClassVar = {"1.0": findings.PRESENT, "0.0": findings.ABSENT, "-1.0": findings.UNCERTAIN, "": findings.BLANK}

    def usable(self, table: pd.DataFrame) -> pd.DataFrame:
        return table[table["Frontal/Lateral"] == "Frontal"]

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({
            "image": table["Path"], "patient": table["Path"].str.split("/").str[2], "view": table["AP/PA"],
            "sex": table["Sex"].str[:1], "is_human": False, "is_unchanged": False,
        })  # fmt: skip

    def facts(self, table: pd.DataFrame) -> np.ndarray:
        facts = np.stack([table[term].map(self.texts).to_numpy() for (term,) in self.terms.values()], axis=1).astype(
            np.int8
        )
        normal = (table["No Finding"] == "1.0").to_numpy()[:, None]
        is_pathology = np.array([name != "Support_Devices" for name in self.names])
        facts[(facts == findings.BLANK) & normal & is_pathology] = findings.IMPLIED
        return facts

    def restate(self, said: Said) -> pd.DataFrame:
        table, public, is_test = said.table, said.public, said.parts == "test"
        text_of = {code: text for text, code in self.texts.items()} | {findings.IMPLIED: ""}
        labels: dict[str, Any] = {
            term: [text_of[code] for code in public[:, k].tolist()] for k, (term,) in enumerate(self.terms.values())
        }
        pathologies = [k for k, name in enumerate(self.names) if name != "Support_Devices"]
        sick = (public[:, pathologies] == findings.PRESENT).any(axis=1)
        normal = np.where(sick, "", table["No Finding"].to_numpy())
        normal[is_test] = np.where(sick[is_test], "0.0", "1.0")
        labels |= {"No Finding": normal, "Path": self._paths(table["Path"], is_test)}
        return table.assign(**labels)

    def _paths(self, paths: pd.Series, is_test: np.ndarray) -> list[str]:
        """Held-out patients move to valid/ under new numbers; films of a study keep their place in it."""
        renamed: dict[str, str] = {}
        result = []
        for path, held_out in zip(paths, is_test, strict=True):
            folder, _, patient, rest = path.split("/", 3)
            if held_out:
                new = renamed.setdefault(patient, f"patient{self.first_valid_patient + len(renamed)}")
                path = f"{folder}/valid/{new}/{rest}"
            result.append(path)
        return result

    def encode(self, film: np.ndarray, _row: Mapping[str, Any]) -> bytes:
        return _encode(".jpg", np.round(film * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])

    def write(self, root: Path, drawn: Drawn) -> None:
        root.mkdir()
        table, is_test = drawn.table, drawn.parts == "test"
        folder = table["Path"].iloc[0].split("/")[0]
        members = [(f"{folder}/train.csv", _csv(table[~is_test])), (f"{folder}/valid.csv", _csv(table[is_test]))]
        members += zip(table["Path"], drawn.images, strict=True)
        _write_zip(root / f"{folder}.zip", members)


class PadChest(Layout):
    """BIMCV: a gzipped csv and numbered zips of 16-bit PNGs."""

    table_name = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
    silence = findings.ABSENT
    human_test = True
    speechless: ClassVar = {"", "suboptimal study"}  # terms that say nothing of a finding

    def __init__(self, terms: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__(terms)
        self.meanings: dict[str, set[str]] = {}  # a term may mean several findings
        for name, synonyms in terms.items():
            for term in synonyms:
                self.meanings.setdefault(term, set()).add(name)
        self.implied_by = {
            name: causes
            for name in terms
            if (causes := [other for other in terms if other != name and set(terms[other]) <= set(terms[name])])
        }

    def usable(self, table: pd.DataFrame) -> pd.DataFrame:
        labels = table["Labels"]
        says_something = {
            text: EXCLUDE not in (terms := self._terms(text)) and not terms <= self.speechless
            for text in labels[labels.str.startswith("[")].unique()
        }
        return table[(table["Pediatric"] == "No") & labels.map(says_something).eq(True)]

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        terms = table["Labels"].map(self._terms)
        return pd.DataFrame(
            {
                "image": table["ImageID"],
                "patient": table["PatientID"],
                "view": table["Projection"],
                "sex": table["PatientSex_DICOM"],
                "is_human": table["MethodLabel"] == "Physician",
                "is_unchanged": [UNCHANGED in said and NORMAL not in said for said in terms],
            }
        )

    def facts(self, table: pd.DataFrame) -> np.ndarray:
        codes, texts = pd.factorize(table["Labels"])
        distinct = np.full((len(texts), len(self.names)), findings.ABSENT, dtype=np.int8)
        for place, text in enumerate(texts):
            terms = self._terms(text)
            if UNCHANGED in terms and NORMAL not in terms:
                distinct[place] = findings.BLANK
            for name in set().union(*(self.meanings.get(term, set()) for term in terms)):
                distinct[place, self.names.index(name)] = findings.PRESENT
        return distinct[codes]

    def restate(self, said: Said) -> pd.DataFrame:
        is_test = said.parts == "test"
        rewritten = ((said.stated == findings.PRESENT) != (said.public == findings.PRESENT)).any(axis=1) | is_test
        columns = {column: said.table[column].tolist() for column in ("Labels", *REPEATED)}
        for row in np.flatnonzero(rewritten).tolist():
            shown = {name for name, fact in zip(self.names, said.public[row], strict=True) if fact == findings.PRESENT}
            old = ast.literal_eval(columns["Labels"][row])
            columns["Labels"][row] = repr(self._labels(old, shown, bool(is_test[row])))
            # These columns repeat the labels and would contradict the new ones.
            for column in REPEATED:
                columns[column][row] = "[]"
        side = str(said.size_px)
        return said.table.assign(**columns, Rows_DICOM=side, Columns_DICOM=side)

    def _labels(self, old: list[str], shown: set[str], is_test: bool) -> list[str]:
        """A label list that means just what is shown; a test row is certain, so never `unchanged`."""
        unsaid = {NORMAL, UNCHANGED} if is_test else {NORMAL}
        kept = [
            t for t in old if (plain := t.strip().lower()) not in unsaid and self.meanings.get(plain, set()) <= shown
        ]
        meant = set().union(*(self.meanings.get(t.strip().lower(), set()) for t in kept))
        for name in self.names:
            if name in shown - meant:
                # Prefer the term that says no more than is shown.
                term = min(self.terms[name], key=lambda t: len(self.meanings[t] - shown))
                kept.append(term)
                meant |= self.meanings[term]
        return kept or [NORMAL]

    @staticmethod
    @cache
    def _terms(text: str) -> frozenset[str]:
        return frozenset(term.strip().lower() for term in ast.literal_eval(text))

    def encode(self, film: np.ndarray, row: Mapping[str, Any]) -> bytes:
        brightest = 2 ** int(row["BitsStored_DICOM"]) - 1
        return _encode(".png", np.round(film * brightest).astype(np.uint16))

    def write(self, root: Path, drawn: Drawn) -> None:
        root.mkdir()
        table = drawn.table
        (root / f"{self.table_name}.gz").write_bytes(gzip.compress(_csv(table), compresslevel=6, mtime=0))
        names = table["ImageID"].tolist()
        for number in sorted(table["ImageDir"].unique(), key=int):
            chosen = np.flatnonzero(table["ImageDir"] == number).tolist()
            _write_zip(root / f"{number}.zip", [(names[i], drawn.images[i]) for i in chosen])


LAYOUTS: dict[str, type[Layout]] = {"chestxray14": ChestXray14, "chexpert": CheXpert, "padchest": PadChest}


def _csv(table: pd.DataFrame) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.itertuples(index=False, name=None))
    return text.getvalue().encode()


def _encode(extension: str, pixels: np.ndarray, options: Sequence[int] = ()) -> bytes:
    is_done, data = cv2.imencode(extension, pixels, list(options))
    if not is_done:
        raise ValueError(f"OpenCV cannot encode {pixels.shape} {pixels.dtype} as {extension}")
    return data.tobytes()


def _write_tar_gz(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    # PNGs don't shrink further, so the fastest level; no file name and no time in the gzip header.
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", 1, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uid, info.gid, info.mode = len(data), 0, 0, 0, 0o644
            archive.addfile(info, io.BytesIO(data))


def _write_zip(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name, FIXED_DATE)
            info.create_system, info.external_attr = 3, 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED if name.endswith(".csv") else zipfile.ZIP_STORED
            archive.writestr(info, data)
