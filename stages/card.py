"""A data card of one data set: what its label table holds and where it comes from, for people's and machines' search.

Reads data/labels/<dataset>.parquet and reports/labels. Writes reports/data_cards/<dataset>.json: metadata in MLCommons'
Croissant 1.1 with its vocabulary for responsible AI, which mlcroissant checks. The card describes; films and labels
stay where their owner's terms leave them.
"""

import hashlib
from typing import Any

import mlcroissant as mlc
import pandas as pd

from stages.core import arguments, files, findings, params, plugins

TYPES = {"object": mlc.DataType.TEXT, "string": mlc.DataType.TEXT, "str": mlc.DataType.TEXT,
         "float64": mlc.DataType.FLOAT, "int8": mlc.DataType.INTEGER}  # fmt: skip
MEANINGS = {
    "image": "the film, by the key that its owner uses",
    "patient": "the patient, by the key that the owner uses; no patient is in two splits",
    "study": "the study that the film belongs to",
    "split": "train, val or test",
    "view": "the projection: PA, AP, AP_horizontal, frontal or lateral",
    "sex": "F, M or nothing",
    "age": "in years, or nothing",
    "label_source": "who labelled the film: report (mined), model, or physician",
}
FACTS = (
    f"{findings.PRESENT} present, {findings.ABSENT} absent, {findings.UNCERTAIN} uncertain, {findings.BLANK} not "
    f"mentioned, {findings.IMPLIED} implied absent, {findings.MISSING} never annotated"
)
DRAWN = "The films are drawn, not taken: nothing in them says anything about a patient."
LIMITS = [
    "Labels are what was written or predicted of a film, not facts about the patient: mined labels miss findings.",
    "Not for diagnosis: what a model learns from these labels must be tested where it is to be used.",
]


def counted(labels: pd.DataFrame, read: dict[str, Any]) -> str:
    """How many films and patients each split has, and what was left out."""
    told = [
        f"{name} {len(part):,} films of {part['patient'].nunique():,} patients"
        for name, part in labels.groupby("split", sort=True)
    ]
    left = [f"{number:,} {reason}" for reason, number in read["left_out"].items()]
    return f"Films by split: {', '.join(told)}. Rows left out: {', '.join(left) or 'none'}."


def groups(labels: pd.DataFrame) -> list[str]:
    """Whom the films show, of each split, as far as the table says."""
    told = []
    for name, part in labels.groupby("split", sort=True):
        sexes = part["sex"].fillna("not stated").value_counts(normalize=True).sort_index()
        ages = part["age"].quantile([0.05, 0.5, 0.95])
        shares = ", ".join(f"{sex} {share:.1%}" for sex, share in sexes.items())
        spread = "not stated" if ages.isna().any() else "{:.0f}, {:.0f} and {:.0f} years".format(*ages)
        told.append(f"{name}: sex of films {shares}; age, 5th, 50th and 95th percentile, {spread}")
    return [*told, "nothing else about patients is in the table"]


def annotated(read: dict[str, Any]) -> str:
    """How source terms became findings."""
    terms = read["terms"].values()
    unmapped = sum(term["unmapped"] for term in terms)
    return (
        f"{len(terms)} terms of the owner's were met; {sum(bool(term['findings']) for term in terms)} became findings, "
        f"{unmapped} are listed as unmapped (reports/labels.md)."
    )


def card(dataset: str, plugin: Any, labels: pd.DataFrame, content: bytes, read: dict[str, Any], drawn: bool) -> Any:
    """The metadata of a data set.

    Args:
        dataset: its name.
        plugin: its module.
        labels: its table of labels.
        content: that table's file.
        read: what harmonize wrote of it.
        drawn: whether its films are drawn.

    Raises:
        ValueError: mlcroissant finds a fault.
    """
    table = mlc.FileObject(
        id="labels",
        name="labels",
        content_url=f"../../data/labels/{dataset}.parquet",
        encoding_formats=["application/x-parquet"],
        sha256=hashlib.sha256(content).hexdigest(),
        description="the label table of the run, written by the stage harmonize",
    )
    fields = [
        mlc.Field(
            id=f"films/{column}",
            name=column,
            description=MEANINGS.get(column, f"{column.replace('_', ' ')}: {FACTS}"),
            data_types=[TYPES[str(labels[column].dtype)]],
            source=mlc.Source(file_object="labels", extract=mlc.Extract(column=column)),
        )
        for column in labels.columns
    ]
    made = mlc.Metadata(
        name=dataset,
        description=f"Labels of {dataset}, as facts about shared findings. {counted(labels, read)}"
        + (f" {DRAWN}" if drawn else ""),
        url=plugin.SOURCE,
        license=[plugin.LICENCE],
        conforms_to=["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        distribution=[table],
        record_sets=[mlc.RecordSet(id="films", name="films", key=["films/image"], fields=fields)],
        data_collection="Retrospective: films and labels of the owner's, none made for this run. Splits are by "
        f"patient. {plugin.ACCESS}.",
        data_annotation_protocol=[annotated(read)],
        data_biases=groups(labels),
        data_limitations=[*LIMITS, *([DRAWN] if drawn else [])],
        personal_sensitive_information=["Sex and age of patients, where the owner states them; no names."],
    )
    if made.issues.errors:
        raise ValueError(f"the card of {dataset} is no valid Croissant: {'; '.join(sorted(made.issues.errors))}")
    return made.to_json()


def main(argv: list[str] | None = None) -> None:
    """Write reports/data_cards/<dataset>.json."""
    args = arguments.parser(__doc__, "dataset").parse_args(argv)
    drawn = params.load("phantoms")
    plugin = plugins.load("datasets", args.dataset)
    path = files.input(f"data/labels/{args.dataset}.parquet")
    read = files.read_json(files.input(f"reports/labels/{args.dataset}.terms.json"))
    made = card(args.dataset, plugin, files.read_table(path), path.read_bytes(), read, args.dataset in drawn)
    with files.output(f"reports/data_cards/{args.dataset}.json") as temporary:
        files.write_json(made, temporary)


if __name__ == "__main__":
    main()
