"""Labels and images of a cohort's data sets to what training reads.

Reads `data/labels` and `data/images` of the cohort's data sets. Writes `data/cohorts/<cohort>/`: rows.parquet,
facts.npy, targets.npy (NaN is masked before the loss), cohort.json, and hard links to the shards. Test rows are not in
it. Stops on a finding that a data set never annotates, on a policy that has no meaning for a blank, and when more rows
have no image, or more images no row, than params allow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from stages.core import arguments, files, findings, params
from stages.sources import policy

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Part:
    """A data set's share of a cohort.

    Attributes:
        rows: dataset, image, patient, split, shard (file name), row.
        facts: int8 (rows, findings).
        left_out: counts of rows without image and of images without row.
    """

    rows: pd.DataFrame
    facts: np.ndarray
    left_out: dict[str, Any]


def join(
    labels: pd.DataFrame, left_out: pd.DataFrame, index: pd.DataFrame, dataset: str, names: list[str], limits: Any
) -> Part:
    """Join a data set's labels and images.

    Args:
        labels: the data set's, of all splits.
        left_out: image and reason of the rows that harmonize left out.
        index: of the data set's shards.
        dataset: its name.
        names: the cohort's findings.
        limits: `assemble` of params.

    Raises:
        ValueError: too many rows without an image, or images without a row.
    """
    placed = labels[["image", "patient", "split", *names]].merge(
        index[["image", "shard", "row"]], on="image", how="left"
    )
    has_image = placed["shard"].notna()
    unknown = ~index["image"].isin(labels["image"]) & ~index["image"].isin(left_out["image"])
    without_image = placed.loc[~has_image, "split"].value_counts()
    shares = {
        "max_rows_without_image": (int((~has_image).sum()), len(labels), "rows have no image"),
        "max_images_without_row": (int(unknown.sum()), len(index), "images have no row"),
    }
    for key, (count, total, what) in shares.items():
        if count > getattr(limits, key) * total:
            example = placed.loc[~has_image, "image"] if "rows" in what else index.loc[unknown, "image"]
            raise ValueError(
                f"{dataset}: {count} of {total} {what}, more than the share {getattr(limits, key):g} (params.yaml: "
                f"assemble.{key}), e.g. {example.iloc[0]}"
            )
    kept = placed[has_image & placed["split"].isin(SPLITS)].sort_values("image", kind="stable").reset_index(drop=True)
    shard = dataset + "_" + kept["shard"].astype(int).astype(str).str.zfill(4) + ".npy"
    rows = pd.DataFrame({"dataset": dataset, "image": kept["image"], "patient": kept["patient"], "split": kept["split"],
                         "shard": shard, "row": kept["row"].astype(np.int64)})  # fmt: skip
    counts = {
        "rows_without_image": {split: int(count) for split, count in without_image.sort_index().items()},
        "images_without_row": int(unknown.sum()),
        "images_of_rows_left_out_by_harmonize": int(index["image"].isin(left_out["image"]).sum()),
    }
    return Part(rows, kept[names].to_numpy(np.int8), counts)


def targets(part: Part, names: list[str], dataset: str, policies: Any) -> np.ndarray:
    """A data set's training targets, float32 (rows, findings)."""
    images = part.rows["image"]
    columns = [policy.target(part.facts[:, k], name, dataset, images, policies) for k, name in enumerate(names)]
    return np.stack(columns, axis=1)


def require_annotated(labels: pd.DataFrame, dataset: str, names: list[str]) -> None:
    """Check that a data set annotates the findings that params list for it.

    Raises:
        ValueError: naming those that it never does.
    """
    never = [name for name in names if (labels[name] == findings.MISSING).all()]
    if never:
        raise ValueError(f"{dataset} never annotates {', '.join(never)}: take them out of datasets.{dataset}.findings")


def in_order(labels: Path, listed: Mapping[str, list[str]]) -> list[str]:
    """The findings that params list for the data sets of a cohort, in the order of the labels' columns."""
    with (labels / f"{next(iter(listed))}.parquet").open("rb") as file:
        columns = pq.read_schema(file).names
    return findings.in_order_of(columns, {name for names in listed.values() for name in names})


def read_part(labels: Path, images: Path, dataset: str, own: list[str], names: list[str], limits: Any) -> Part:
    """Read a data set's labels and index, and join them.

    Args:
        labels: the folder of labels.
        images: the folder of films.
        dataset: its name.
        own: the findings that params list for it.
        names: the cohort's findings.
        limits: `assemble` of params.
    """
    table = files.read_table(labels / f"{dataset}.parquet")
    require_annotated(table, dataset, own)
    left_out = files.read_table(labels / f"{dataset}.left_out.parquet")
    index = files.read_table(images / dataset / "index.parquet")
    return join(table, left_out, index, dataset, names, limits)


def link_shards(rows: pd.DataFrame, images: Path, folder: Path) -> int:
    """Link the shards that rows need; the side of their squares in pixels."""
    sizes = {}
    for dataset, name in rows[["dataset", "shard"]].drop_duplicates().itertuples(index=False):
        source = images / dataset / f"shard_{name.removeprefix(f'{dataset}_')}"
        files.link(source, folder / name)
        with source.open("rb") as file:
            np.lib.format.read_magic(file)
            sizes[name] = np.lib.format.read_array_header_1_0(file)[0][1]
    if len(set(sizes.values())) != 1:
        raise ValueError(f"shards have squares of {sorted(set(sizes.values()))} pixels: run `make repro`")
    return int(next(iter(sizes.values())))


def describe(parts: Mapping[str, Part], cohort: str, names: list[str], size_px: int) -> dict[str, Any]:
    """The content of cohort.json."""
    return {
        "cohort": cohort,
        "datasets": list(parts),
        "findings": names,
        "size_px": size_px,
        "rows": {
            dataset: {split: int((part.rows["split"] == split).sum()) for split in SPLITS}
            for dataset, part in parts.items()
        },
        "left_out": {dataset: part.left_out for dataset, part in parts.items()},
    }


def main(argv: list[str] | None = None) -> None:
    """Parse, read, join, write."""
    args = arguments.parser(__doc__, "cohort").parse_args(argv)
    cohort, policies, limits, datasets = params.load(f"cohorts.{args.cohort}", "policies", "assemble", "datasets")
    labels, images = files.input("data/labels"), files.input("data/images")
    names = in_order(labels, {name: datasets[name].findings for name in cohort.datasets})
    parts = {
        dataset: read_part(labels, images, dataset, datasets[dataset].findings, names, limits)
        for dataset in cohort.datasets
    }
    rows = pd.concat([part.rows for part in parts.values()], ignore_index=True)
    if rows.empty:
        raise ValueError(f"cohort {args.cohort} has no training row with an image")
    with files.output(f"data/cohorts/{args.cohort}") as folder:
        folder.mkdir()
        size_px = link_shards(rows, images, folder)
        files.write_table(rows, folder / "rows.parquet")
        with (folder / "facts.npy").open("wb") as file:
            np.save(file, np.concatenate([part.facts for part in parts.values()]))
        with (folder / "targets.npy").open("wb") as file:
            np.save(file, np.concatenate([targets(part, names, d, policies[d]) for d, part in parts.items()]))
        files.write_json(describe(parts, args.cohort, names, size_px), folder / "cohort.json")


if __name__ == "__main__":
    main()
