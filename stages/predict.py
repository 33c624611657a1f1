"""Compute a model's logits of the validation and test films of every data set, so that metrics need no model.

Reads the model and the labels and films of all data sets; writes a row a film, with its split and a column a finding
that the model knows. Rows without a film are left out (`assemble` counts them). A precomputed teacher has no row of a
split of which its table has no film; a table that has some of a split's films, and not all, stops the stage.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from stages.core import arguments, files, params, plugins
from stages.nets import nets, probability_table
from stages.sources.images import Images

BATCH = 128  # films a forward pass
SPLITS = "val", "test"

Score = Callable[[pd.DataFrame, Path], np.ndarray]


def rows_of(split: str, labels: Path, films: Path) -> pd.DataFrame:
    """The rows of one split of a data set that have a film, with where it lies."""
    rows = files.read_table(labels, ["image", "split"])
    rows = rows[rows["split"] == split]
    index = files.read_table(films / "index.parquet", ["image", "shard", "row"])
    found = rows.merge(index, on="image", validate="one_to_one").sort_values("image", ignore_index=True)
    return found.assign(shard=found["shard"].map("shard_{:04d}.npy".format))


def predictions(score: Score, findings: list[str], labels: Path, images: Path, datasets: list[str]) -> pd.DataFrame:
    """Logits of all validation and test films: `dataset`, `image`, `split`, one float32 column a finding.

    Args:
        score: gives the logits (film, finding) of rows whose films lie in a folder, of all of them or of none.
        findings: the columns.
        labels: the folder of labels.
        images: the folder of films.
        datasets: the data sets.
    """
    parts = {
        (dataset, split): rows_of(split, labels / f"{dataset}.parquet", images / dataset)
        for dataset, split in itertools.product(datasets, SPLITS)
    }
    if all(parts[dataset, "test"].empty for dataset in datasets):
        raise ValueError(f"no test film in {', '.join(datasets)}: see reports/labels for what was left out and why")
    tables = []
    for (dataset, _), rows in parts.items():
        scores = score(rows, images / dataset) if len(rows) else np.empty((0, len(findings)), np.float32)
        table = rows.head(len(scores)).assign(dataset=dataset)[["dataset", "image", "split"]].astype("str")
        tables.append(pd.concat([table, pd.DataFrame(scores, columns=findings)], axis=1))
    return pd.concat(tables, ignore_index=True)


def of_net(model: nn.Module, device: torch.device) -> Score:
    """The logits that a net gives, as `predictions` asks for them."""
    return lambda rows, folder: nets.logits(model, nets.in_batches(Images.of_rows(folder, rows), BATCH), device)


def of_table(table: pd.DataFrame) -> Score:
    """The logits of a table, as `predictions` asks for them."""

    def score(rows: pd.DataFrame, folder: Path) -> np.ndarray:
        is_covered = probability_table.key(rows["image"]).isin(table.index).any()
        return probability_table.logits(
            table, rows["image"][: None if is_covered else 0], f"{rows['split'].iloc[0]} films of {folder.name}"
        )

    return score


def main(argv: list[str] | None = None) -> None:
    """Parse, load, compute, write."""
    args = arguments.parser(__doc__, "model", "arch").parse_args(argv)
    threads, datasets = params.load("threads", "datasets")
    plugins.load("models", args.arch)
    device = nets.fix(threads)
    folder = files.input(f"data/models/{args.model}")
    labels, images = files.input("data/labels"), files.input("data/images")
    if plugins.model_kind(args.arch) == "table":
        score, outputs = of_table(found := probability_table.load(folder)), list(found.columns)
    else:
        model, about = nets.load_model(folder)
        score, outputs = of_net(model.to(device), device), about["findings"]
    table = predictions(score, outputs, labels, images, sorted(datasets))
    with files.output(f"data/predictions/{args.model}.parquet") as made:
        files.write_table(table, made)


if __name__ == "__main__":
    main()
