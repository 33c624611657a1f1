"""Labels of the whole real tables beside torchxrayvision's: `make parity` writes reports/parity.md.

Both read the tables that the torchxrayvision package carries. Films are compared where both have them, finding by
finding: positive, negative or unknown. Each film on which the two differ must have a reason that is listed here.
"""

import importlib.util
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.core import findings, plugins
from stages.datasets import padchest
from stages.pipeline import by_hand
from stages.sources import raw

PAGE = Path(__file__).parent.parent / "reports/parity.md"
VIEWS = ["PA", "AP"]
CLASSES = {"chestxray14": "NIH_Dataset", "chexpert": "CheX_Dataset", "padchest": "PC_Dataset"}
KEYS = {"chestxray14": "Image Index", "chexpert": "Path", "padchest": "ImageID"}
MAX_MB = 500  # of a table
STATES = ("positive", "negative", "unknown")
POSITIVE, NEGATIVE, UNKNOWN = range(3)  # places in STATES
PEDIATRIC_YEAR = 2009  # torchxrayvision keeps who was over 10 in 2019
# PadChest's terms that torchxrayvision's substrings call a finding and whole terms do not
SUBSTRING_ONLY = {
    "Effusion": {"pericardial effusion"},
    "Emphysema": {"subcutaneous emphysema"},
    "Hilar_Enlargement": {"calcified adenopathy", "calcified mediastinal adenopathy"},
    "Mass": {"mediastinal mass", "soft tissue mass", "breast mass", "pleural mass"},
    "Nodule": {"pseudonodule"},
}
# and those that only the owner's label tree puts below one; torchxrayvision looks for "device" and "pacemaker" alone
TREE_ONLY = {
    "Effusion": {"hydropneumothorax", "empyema"},
    "Infiltration": {"miliary opacities"},
    "Support_Devices": set(padchest.TERMS["Support_Devices"])
    - {"electrical device", "pacemaker", "single chamber device", "dual chamber device"},
}


def package_data() -> Path:
    """Where torchxrayvision keeps its tables, found without importing it."""
    spec = importlib.util.find_spec("torchxrayvision")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data"


def whole_tables(name: str) -> dict[str, pd.DataFrame]:
    """The real tables of a data set; those that the package lacks are made up: NIH's lists, CheXpert's valid.csv."""
    plugin, folder = plugins.load("datasets", name), package_data()
    if name == "chexpert":
        train = raw.table(folder, "chexpert_train.csv.gz", "", plugin.TABLES["train.csv"], MAX_MB)
        valid = train.head(1).assign(Path="CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg")
        valid.attrs = train.attrs
        return {"train.csv": train, "valid.csv": valid}
    tables = {
        file: raw.table(folder, f"{file}.gz", "", columns, MAX_MB)
        for file, columns in plugin.TABLES.items()
        if not file.endswith(".txt")
    }
    if name == "chestxray14":
        entries = tables[plugin.ENTRIES]
        is_test = entries["Patient ID"].str.endswith("0")
        for file, chosen in ((plugin.TEST, is_test), (plugin.TRAIN_VAL, ~is_test)):
            tables[file] = entries.loc[chosen, ["Image Index"]]
    return tables


@cache
def source(name: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows, by image, and terms of a whole data set, as its plug-in gives them."""
    rows, terms, _ = plugins.load("datasets", name).harmonize(whole_tables(name))
    return rows.set_index("image"), terms


@cache
def reference(name: str) -> Any:
    """The data set's class of torchxrayvision on its own table."""
    import torchxrayvision

    return getattr(torchxrayvision.datasets, CLASSES[name])(imgpath=".", views=VIEWS, unique_patients=False)


def images_there(name: str) -> pd.Index:
    """The films that torchxrayvision keeps, by our keys."""
    return pd.Index(reference(name).csv[KEYS[name]].str.removeprefix("CheXpert-v1.0-small/"))


def states_there(labels: np.ndarray) -> np.ndarray:
    """Torchxrayvision's 1, 0 and NaN as places in STATES."""
    return np.select([labels == 1, labels == 0], [POSITIVE, NEGATIVE], UNKNOWN)


def states_here(facts: np.ndarray) -> np.ndarray:
    """Our facts as places in STATES."""
    is_absent = np.isin(facts, [findings.ABSENT, findings.IMPLIED])
    return np.select([facts == findings.PRESENT, is_absent], [POSITIVE, NEGATIVE], UNKNOWN)


@dataclass(frozen=True)
class Compared:
    """A finding on the films that torchxrayvision keeps.

    Attributes:
        films: (state there, state here) how many films.
        implied: how many of the negatives here are implied by a normal film.
        uncertain: how many of the unknowns here are stated as uncertain.
        terms: (state there, state here) -> term -> on how many of the films that differ it is a reason.
    """

    films: np.ndarray
    implied: int
    uncertain: int
    terms: dict[tuple[int, int], Counter[str]]

    @property
    def differing(self) -> int:
        """How many films differ."""
        return int(self.films.sum() - np.trace(self.films))


@cache
def compare(name: str) -> dict[str, Compared]:
    """Each finding that both have, in the order of the findings table.

    Raises:
        ValueError: a film differs without a listed reason.
    """
    theirs, ours = reference(name), source(name)[0].loc[images_there(name)]
    said = [set(padchest._terms(text)) for text in theirs.csv["Labels"]] if name == "padchest" else [set()] * len(ours)
    compared = {}
    for column, title in enumerate(theirs.pathologies):
        finding = title.replace(" ", "_")
        if finding not in plugins.load("datasets", name).TERMS:
            continue
        facts = ours[finding].to_numpy()
        there, here = states_there(theirs.labels[:, column]), states_here(facts)
        terms: dict[tuple[int, int], Counter[str]] = {}
        for film in np.flatnonzero(there != here):
            move = int(there[film]), int(here[film])
            terms.setdefault(move, Counter()).update(reasons(finding, move, said[film]))
        compared[finding] = Compared(
            np.bincount(3 * there + here, minlength=9).reshape(3, 3),
            int((facts == findings.IMPLIED).sum()),
            int((facts == findings.UNCERTAIN).sum()),
            terms,
        )
    return {finding: compared[finding] for finding in findings.vocabulary().in_order(compared)}


def reasons(finding: str, move: tuple[int, int], said: set[str]) -> set[str]:
    """The listed terms for which a film differs on a finding.

    Raises:
        ValueError: there is none.
    """
    there, here = move
    wanted = []
    if there == POSITIVE:
        wanted.append(said & SUBSTRING_ONLY.get(finding, set()))
    if here == POSITIVE:
        wanted.append(said & TREE_ONLY.get(finding, set()))
    if here == UNKNOWN:
        wanted.append(said & {padchest.UNCHANGED} if padchest.NORMAL not in said else set())
    if not wanted or not all(wanted):
        raise ValueError(f"{finding}: {STATES[there]} there, {STATES[here]} here, no listed reason in {sorted(said)}")
    return set().union(*wanted)


def films(name: str) -> dict[str, dict[str, int]]:
    """Films of the compared views: how many both have, and why others are there or here alone."""
    rows, there = source(name)[0], images_there(name)
    rows = rows[(rows["official"] != "test") | (name != "chexpert")]  # the made-up valid.csv
    dropped = rows["dropped"].to_dict()
    of_views = rows.index[rows["view"].isin(VIEWS)]
    here = of_views[rows.loc[of_views, "dropped"] == ""]
    only_here = here.difference(there)
    return {
        "both": {"the same": len(here.intersection(there))},
        "there alone": dict(Counter(dropped[image] for image in there.difference(here)).most_common()),
        "here alone": dict(Counter(lacked(name).get(image, "") for image in only_here).most_common()),
        "neither": dict(Counter(dropped[image] for image in of_views.difference(here).difference(there)).most_common()),
        "other views, not compared": dict(
            rows.loc[(rows["dropped"] == "") & ~rows["view"].isin(VIEWS), "view"].value_counts()
        ),
    }


@cache
def lacked(name: str) -> Mapping[str, str]:
    """Image -> why torchxrayvision leaves it out of the compared views of PadChest."""
    if name != "padchest":
        return {}
    table = whole_tables(name)[padchest.ENTRIES]
    table = table[table["Projection"].isin(VIEWS) & ~table["ImageID"].isin(images_there(name))]
    is_old = (table["PatientBirth"] < PEDIATRIC_YEAR).to_numpy()
    without = table["Labels"].isin(padchest.NO_LIST).to_numpy()
    reasons = np.select(
        [without, ~is_old],
        ["it has no label list", f"born in {PEDIATRIC_YEAR} or later, or in a year that is not known"],
        "torchxrayvision's own list of files that are missing or broken",
    )
    return dict(zip(table["ImageID"], reasons.tolist(), strict=True))


def table(header: list[str], rows: Iterable[Iterable[Any]], words: tuple[int, ...]) -> str:
    """A Markdown table; columns but for those of words are numbers, aligned right."""
    ruler = ["---" if column in words else "---:" for column in range(len(header))]
    shown = [[str(cell) if isinstance(cell, str) else f"{cell:,}" for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ruler, *shown])


def section(name: str) -> list[str]:
    """The comparison of one data set, as Markdown paragraphs."""
    compared, titles = compare(name), [title.replace(" ", "_") for title in reference(name).pathologies]
    listed = [(where, why, count) for where, found in films(name).items() for why, count in found.items()]
    counted = [
        [finding, *np.stack([found.films.sum(axis=1), found.films.sum(axis=0)], axis=1).ravel().tolist(),
         found.implied, found.uncertain, found.differing, int(found.films[NEGATIVE, UNKNOWN])]
        for finding, found in compared.items()
    ]  # fmt: skip
    by_terms = [
        [finding, STATES[there], STATES[here], int(found.films[there, here]),
         ", ".join(f"`{term}` {terms[term]:,}" for term in sorted(terms, key=lambda term: (-terms[term], term)))]
        for finding, found in compared.items()
        for (there, here), terms in sorted(found.terms.items())
        if (there, here) != (NEGATIVE, UNKNOWN)
    ]  # fmt: skip
    sides = [f"{state} {side}" for state in STATES for side in ("there", "here")]
    header = ["finding", *sides, "implied", "uncertain", "differ", "by `unchanged`"]
    parts = [
        f"## {name}",
        table(["films", "why", "count"], listed, words=(0, 1)),
        f"Counted on the {len(images_there(name)):,} films that torchxrayvision keeps:",
        table(header, counted, words=(0,)),
    ]
    if by_terms:
        header = ["finding", "there", "here", "films", "because of (a film may have several)"]
        parts += ["The other films that differ:", table(header, by_terms, words=(0, 1, 2, 4))]
    if others := [title for title in titles if title not in compared]:
        parts.append(f"Not a finding here: {', '.join(others)}.")
    if others := [finding for finding in plugins.load("datasets", name).TERMS if finding not in compared]:
        parts.append(f"Not in torchxrayvision: {', '.join(others)}.")
    return parts


def page() -> str:
    """The comparison, as Markdown."""
    version = metadata.version("torchxrayvision")
    parts = [
        "# Labels beside torchxrayvision's",
        f"Here against there: torchxrayvision {version}, its own dataset classes with views {' and '.join(VIEWS)} and "
        "all films of a patient. Both read the whole real tables that its package carries (of CheXpert, train.csv "
        "alone). Written by `make parity`; `tests/test_datasets.py` fails when this page is out of date, and when a "
        "film differs without a listed reason.",
        "* Implied: of the negatives here, those of films called normal. Uncertain: of the unknowns here, those that "
        "the label calls so; the others are not mentioned.\n"
        "* By `unchanged`: PadChest's report says that nothing changed, so that what it leaves out is as in an earlier "
        "report: not known here, absent there.\n"
        '* Positive there alone: torchxrayvision looks for substrings ("effusion" is also in "pericardial effusion"), '
        "here terms match whole. Positive here alone: the owner's label tree puts the term below the finding.",
    ]
    return "\n\n".join([*parts, *(part for name in CLASSES for part in section(name))]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    by_hand.stamp("parity")
