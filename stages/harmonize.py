"""One data set's label tables to the project's findings, facts and splits.

Reads the manifest and the tables that it pins. Writes `data/labels/<dataset>.parquet` (facts, see core/findings.py),
`data/labels/<dataset>.left_out.parquet` (each row that is not used, with its reason), `data/boxes/<dataset>.parquet`
and `reports/labels/<dataset>.terms.json`. Where params name a file of films, rows of others are left out. Stops on a
table that is larger than params allow, a missing column, an unknown term, a key that became a number, an image with two
rows, ages or sexes that are null as a whole, a patient on both sides of a split, a list of films that names what is no
image, a plug-in that hands over something else than it should, and when more rows are rejected than params allow.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from stages.core import arguments, files, findings, params, plugins
from stages.sources import contracts, raw, splits

FACT_NAMES = {
    findings.PRESENT: "present",
    findings.ABSENT: "absent",
    findings.UNCERTAIN: "uncertain",
    findings.BLANK: "blank",
    findings.IMPLIED: "implied",
    findings.MISSING: "missing",
}
SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}
KNOWN = {  # as data sets' plug-ins read them
    "age": "57, 057Y, 003M, 021D, from {} to {} years, or of two dates, 20140915 or 15/09/2014",
    "sex": "M, F, Male, Female",
}
NO_ID = r"^(?i:|nan|<?na>?|#?n/a|none|null)$"
AS_NUMBER = r"^[+-]?\d*(?:[.,]\d*(?:[eE][+-]?\d+)?|[eE]\+\d+)$"  # 8.39860E+35, 8E+35, 1.0
DIGITS = r"^\d{22,}$"  # so many that such a one looks rounded by no accident
EXACT_DIGITS = 17  # that a floating-point number holds at most
SHOWN = 5  # rows or patients named in a message


@dataclass(frozen=True)
class Choices:
    """What params say of a data set's labels (see params.yaml: datasets)."""

    split: str
    val_fraction: float
    test_fraction: float
    views: list[str]
    max_rejected_rows: float
    films: str | None


def require_unique(rows: pd.DataFrame, dataset: str) -> None:
    """Check that each image has one row.

    Raises:
        ValueError: naming the images, their files and rows, and the remedy.
    """
    twice = rows[rows["image"].duplicated(keep=False)].sort_values("image", kind="stable")
    if twice.empty:
        return
    listed = []
    for image, same in list(twice.groupby("image", sort=False))[:SHOWN]:
        is_same = same.drop(columns="file").duplicated(keep=False).all()
        places = " and ".join(f"{file} row {row}" for row, file in same["file"].items())
        agree = "are identical: delete all but one" if is_same else "disagree: keep the right one"
        listed.append(f"{image} in {places}, which {agree}")
    raise ValueError(f"{dataset} has {twice['image'].nunique()} images with several rows: {'; '.join(listed)}")


def require_ids(rows: pd.DataFrame) -> None:
    """Check that no key is blank, or was taken for a number by the program that saved the table, which merges patients.

    Raises:
        ValueError: naming the first row, and the remedy.
    """
    for name in ("image", "patient", "study"):
        ids = pa.array(rows[name])
        digits = set(pc.filter(ids, pc.match_substring_regex(ids, DIGITS)).to_pylist())
        faults = {
            "is no name": pc.match_substring_regex(ids, NO_ID),
            "a program took for a number": pc.match_substring_regex(ids, AS_NUMBER),
            "a program rounded": rows[name].isin([text for text in digits if _is_rounded(text)]),
        }
        for fault, is_so in faults.items():
            if (at := np.flatnonzero(is_so)).size:
                row, file = rows.index[at[0]], rows["file"].iloc[at[0]]
                raise ValueError(
                    f"{file} row {row}: the {name} is {rows[name].iloc[at[0]]!r}, which {fault}, as are {at.size} of "
                    f"{len(rows)} rows: mend them, or fetch the table again: others may have become the same"
                )


def _is_rounded(digits: str) -> bool:
    return int(float(digits)) == int(digits) or not digits[EXACT_DIGITS:].strip("0")


def clean(rows: pd.DataFrame, ages: tuple[float, float]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Null impossible ages and unknown sexes; the counts of both."""
    possible = rows["age"].between(*ages)
    sexes = rows["sex"].map({sex: SEXES.get(str(sex).lower()) for sex in rows["sex"].unique()})
    known = sexes.notna()
    cleaned = rows.assign(age=rows["age"].where(possible).astype(np.float64), sex=sexes.astype("str"))
    return cleaned, {"age": int((~possible).sum()), "sex": int((~known).sum())}


def require_said(rows: pd.DataFrame, tables: raw.Tables, plugin: ModuleType) -> None:
    """Check that ages and sexes are not null as a whole in a table that says them.

    Args:
        rows: as `clean` leaves them.
        tables: file name -> table.
        plugin: the data set's.

    Raises:
        ValueError: with the table, and the remedy.
    """
    unsaid = getattr(plugin, "UNSAID", {})
    for table, frame in tables.items():
        of_table = rows[rows["file"] == frame.attrs["file"]]
        for name in ("age", "sex"):
            if len(of_table) and name not in unsaid.get(table, ()) and of_table[name].isna().all():
                raise ValueError(
                    f"{frame.attrs['file']}: not one of {len(of_table)} rows has {name} that can be read: fetch "
                    f"the table again (known are {KNOWN[name].format(*plugin.AGES)})"
                )


def assign_split(rows: pd.DataFrame, dataset: str, split: str, val_fraction: float, test_fraction: float) -> pd.Series:
    """The split of each row, by its patient alone; "" for rows that a split leaves out.

    Args:
        rows: needs patient, label_source and official.
        dataset: the name that the patients' hashes start from.
        split: `official`: the owner's test set, and `val_fraction` of the other patients for validation;
            `later_test`: the owner's second test set; its first one validates, all other patients train;
            `patient_random`: `test_fraction` of all patients, and `val_fraction` of the others;
            `patient_hash`: the same, with only those test rows that no model labelled.
        val_fraction: share of patients.
        test_fraction: share of patients.

    Raises:
        ValueError: the owner has no split, or it has a patient on both sides.
    """
    codes, patients = pd.factorize(rows["patient"])
    if split == "patient_random":
        train_val = 1 - test_fraction
        shares = {"train": train_val * (1 - val_fraction), "val": train_val * val_fraction, "test": test_fraction}
        return pd.Series(splits.by_hash("patient_random", dataset, patients, shares)[codes], rows.index)
    chosen = pd.Series(splits.validation(dataset, patients, val_fraction)[codes], rows.index)
    if split == "patient_hash":
        shares = {"test": test_fraction, "train_val": 1 - test_fraction}
        is_test = (splits.by_hash("test", dataset, patients, shares) == "test")[codes]
        return chosen.mask(is_test, "test").mask(is_test & (rows["label_source"] == "model").to_numpy(), "")
    part = rows["official"]
    _require_official(part, "test" if split == "official" else split, codes, patients, dataset)
    if split == "later_test":
        return part.replace({"train_val": "train", "test": "val", "later_test": "test"})
    return chosen.where(part == "train_val", part.mask(part == "later_test", ""))


def _require_official(official: pd.Series, test: str, codes: np.ndarray, patients: pd.Index, dataset: str) -> None:
    is_test = (official == test).to_numpy()
    if not is_test.any():
        others = "patient_random or patient_hash" if test == "test" else "official, or add the files of that set"
        raise ValueError(
            f"{dataset} has no {'official split' if test == 'test' else 'later test set'}: choose {others} "
            f"(params.yaml: datasets.{dataset}.split)"
        )
    both = np.intersect1d(codes[is_test], codes[~is_test & (official != "").to_numpy()])
    if both.size:
        raise ValueError(
            f"{dataset}: {both.size} patients are on both sides of the official split, e.g. "
            f"{', '.join(patients[both[:SHOWN]])}: fetch the split lists again, or choose another split"
        )


def reasons(rows: pd.DataFrame, split: pd.Series, views: list[str]) -> tuple[pd.Series, pd.Series]:
    """Why each row is left out ("" if it is not), and whether that is a fault of the row and no choice of params."""
    reason = rows["dropped"].astype("str")
    reason = reason.mask((reason == "") & (split == "") & (rows["official"] == "") & (rows["label_source"] != "model"),
                         "in no official list")  # fmt: skip
    is_fault = reason != ""
    kept = {*views, "frontal"} if {"PA", "AP"} <= set(views) else set(views)
    reason = reason.mask(~is_fault & ~rows["view"].isin(kept), "view " + rows["view"])
    unused = (reason == "") & (split == "")
    reason = reason.mask(unused & (rows["official"] == "later_test"), "of the later test set, for split: later_test")
    return reason.mask((reason == "") & (split == ""), "labelled by a model, of a test patient"), is_fault


def read_films(path: Path, plugin: ModuleType) -> list[str]:
    """The images that a file names in its first column, with or without ending; a .txt has no header.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a name that is no image of the data set, with its row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no list of films at {path} (params.yaml: datasets.<name>.films): add it, or put null")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names = [row[0].strip() for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table in UTF-8 ({error}): save it as that") from error
    first = 0 if path.suffix == ".txt" else 1
    keys = [raw.image_key(plugin, name) or raw.image_key(plugin, f"{name}.dcm") for name in names[first:]]
    for row, image in enumerate(keys, first + 1):
        if image is None:
            raise ValueError(f"{path} row {row}: {names[row - 1]!r} is no image's name: mend or delete the row")
    return [image for image in keys if image]


def to_table(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The contract's columns, sorted by image; findings that the data set never annotates are missing.

    Args:
        rows: of a plug-in, those that are kept, with their split.
        names: all findings, in the vocabulary's order.
    """
    missing = {name: np.int8(findings.MISSING) for name in names if name not in rows}
    table = rows.assign(**missing)[[*contracts.KEYS, *names]]
    text = [name for name in contracts.KEYS if name != "age"]
    return table.astype(dict.fromkeys(text, "str")).sort_values("image", kind="stable").reset_index(drop=True)


def count_facts(table: pd.DataFrame, names: list[str]) -> dict[str, dict[str, dict[str, int]]]:
    """Finding -> split -> how many rows state each fact."""
    part = pd.Categorical(table["split"], splits.SPLITS).codes.astype(np.int64)
    counted = {}
    for name in names:
        places = part * len(FACT_NAMES) + table[name].to_numpy() - findings.MISSING
        counts = np.bincount(places, minlength=len(splits.SPLITS) * len(FACT_NAMES)).reshape(len(splits.SPLITS), -1)
        counted[name] = {
            split: {said: int(counts[k, fact - findings.MISSING]) for fact, said in FACT_NAMES.items()}
            for k, split in enumerate(splits.SPLITS)
        }
    return counted


def count_together(table: pd.DataFrame, names: list[str]) -> dict[str, dict[str, int]]:
    """Finding -> finding -> how many films state both as present; of a finding with itself, how many state it."""
    is_present = (table[names] == findings.PRESENT).to_numpy().astype(np.float32)  # (film, finding), exact below 2^24
    together = (is_present.T @ is_present).astype(int).tolist()
    return {name: dict(zip(names, row, strict=True)) for name, row in zip(names, together, strict=True)}


def explain_terms(terms: Mapping[str, int], plugin: ModuleType) -> dict[str, dict[str, Any]]:
    """Source term -> its count and what became of it: findings, a rule, or unmapped."""
    explained: dict[str, dict[str, Any]] = {}
    for term, count in terms.items():
        targets = [name for name, source in plugin.TERMS.items() if term in source]
        explained[term] = {"count": count, "findings": targets, "rule": plugin.RULES.get(term)}
        explained[term]["unmapped"] = not targets and term not in plugin.RULES
    return explained


def notes_of(tables: raw.Tables, plugin: ModuleType) -> dict[str, int]:
    """What was ignored of tables, in words, and how often."""
    own = getattr(plugin, "INDEX", None)
    has_index = {name for name, table in tables.items() if table.attrs.get("index") not in (None, own)}
    notes = {f"column without a name in {name}, ignored": 1 for name in tables if name in has_index}
    blank = {name: table.attrs.get("blank", 0) for name, table in tables.items()}
    return notes | {f"rows without any value in {name}, ignored": count for name, count in blank.items() if count}


def empty_boxes() -> pd.DataFrame:
    """No boxes, in the contract's form."""
    kinds = {"image": "str", "finding": "str"} | dict.fromkeys(contracts.BOX_SIDES, np.float64)
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})


def harmonize(
    tables: raw.Tables,
    plugin: ModuleType,
    dataset: str,
    choices: Choices,
    vocabulary: findings.Vocabulary,
    films: list[str] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """A data set's tables to labels, rows left out, and the report.

    Args:
        tables: file name -> table.
        plugin: the data set's.
        dataset: its name.
        choices: of params.
        vocabulary: all findings.
        films: the images that are kept; all without.

    Raises:
        ValueError: see the module's docstring.
    """
    file = f"stages/datasets/{dataset}.py"
    rows, terms, notes = contracts.require_harmonized(plugin.harmonize(tables), plugin.TERMS, file)
    require_ids(rows)
    require_unique(rows, dataset)
    rows, nulled = clean(rows, plugin.AGES)
    require_said(rows, tables, plugin)
    split = assign_split(rows, dataset, choices.split, choices.val_fraction, choices.test_fraction)
    reason, is_fault = reasons(rows, split, choices.views)
    if films is not None:
        reason = reason.mask((reason == "") & ~rows["image"].isin(films), f"not in {choices.films}")
        notes[f"names in {choices.films} without a row"] = len(set(films) - set(rows["image"]))
    left_out = pd.DataFrame({"image": rows["image"], "reason": reason})[reason != ""].sort_values("image")
    counts = {str(key): int(count) for key, count in left_out["reason"].value_counts().sort_index().items()}
    if is_fault.mean() > choices.max_rejected_rows:
        raise ValueError(
            f"{dataset}: {is_fault.sum()} of {len(rows)} rows are rejected, more than the share "
            f"{choices.max_rejected_rows:g} (params.yaml: datasets.{dataset}.max_rejected_rows): {counts}"
        )
    if len(left_out) == len(rows):
        raise ValueError(f"{dataset}: no row is left: {counts}")
    table = to_table(rows.assign(split=split)[reason == ""], vocabulary.names)
    contracts.check(table, contracts.labels(vocabulary.names), f"labels of {dataset}")
    groups = table.groupby("split")
    report = {
        "dataset": dataset,
        "rows": {"read": len(rows), "kept": len(table), "rejected": int(is_fault.sum())},
        "images": {part: int(count) for part, count in groups.size().items()},
        "patients": {part: int(count) for part, count in groups["patient"].nunique().items()},
        "left_out": counts,
        "nulled": nulled,
        "findings": count_facts(table, vocabulary.names),
        "together": count_together(table, vocabulary.in_order(plugin.TERMS)),
        "terms": explain_terms(terms, plugin),
        "notes": notes | notes_of(tables, plugin),
    }
    return table, left_out.reset_index(drop=True), report


def main(argv: list[str] | None = None) -> None:
    """Parse, read, harmonize, write."""
    args = arguments.parser(__doc__, "dataset", "root").parse_args(argv)
    *chosen, max_table_mb = params.load(
        f"datasets.{args.dataset}.split",
        f"datasets.{args.dataset}.val_fraction",
        f"datasets.{args.dataset}.test_fraction",
        f"datasets.{args.dataset}.views",
        f"datasets.{args.dataset}.max_rejected_rows",
        f"datasets.{args.dataset}.films",
        "max_table_mb",
    )
    plugin = plugins.load("datasets", args.dataset)
    manifest = files.read_json(files.input(f"data/raw/{args.dataset}") / "manifest.json")
    root = files.input(args.root)
    raw.require_pinned(root, manifest)
    choices = Choices(*chosen)
    tables = raw.tables(root, manifest, plugin, max_table_mb)
    films = read_films(root / choices.films, plugin) if choices.films else None
    vocabulary = findings.vocabulary(files.input("stages/findings.csv"))
    labels, left_out, report = harmonize(tables, plugin, args.dataset, choices, vocabulary, films)
    boxes = plugin.boxes(tables) if hasattr(plugin, "boxes") else empty_boxes()
    contracts.require_boxes(boxes, vocabulary.names, f"stages/datasets/{args.dataset}.py")
    report["boxes"] = {"drawn": len(boxes), "of a row left out": int((~boxes["image"].isin(labels["image"])).sum())}
    with files.output(f"data/labels/{args.dataset}.parquet") as path:
        files.write_table(labels, path)
    with files.output(f"data/labels/{args.dataset}.left_out.parquet") as path:
        files.write_table(left_out, path)
    with files.output(f"data/boxes/{args.dataset}.parquet") as path:
        files.write_table(boxes.sort_values(["image", "finding", "x", "y"], kind="stable"), path)
    with files.output(f"reports/labels/{args.dataset}.terms.json") as path:
        files.write_json(report, path)


if __name__ == "__main__":
    main()
