"""Compute a model's logits of the test films of every data set, so that metrics need no model.

Reads the model and the labels and films of all data sets; writes a row a film with a column a finding that the model
knows. Test rows without a film are left out (`assemble` counts them).
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from stages.core import files, models, params, plugins
from stages.core.images import Images

BATCH = 128  # films a forward pass


def test_rows(labels: Path, films: Path) -> pd.DataFrame:
    """The test rows of one data set that have a film, with where it lies."""
    rows = files.read_table(labels, ["image", "split"])
    rows = rows[rows["split"] == "test"].drop(columns="split")
    index = files.read_table(films / "index.parquet", ["image", "shard", "row"])
    found = rows.merge(index, on="image", validate="one_to_one").sort_values("image", ignore_index=True)
    return found.assign(shard=found["shard"].map("shard_{:04d}.npy".format))


def predictions(
    model: nn.Module, findings: list[str], labels: Path, images: Path, datasets: list[str], device: torch.device
) -> pd.DataFrame:
    """Logits of all test films: `dataset`, `image`, one float32 column a finding."""
    tables = []
    for dataset in datasets:
        rows = test_rows(labels / f"{dataset}.parquet", images / dataset)
        if rows.empty:
            continue
        films = Images.of_rows(images / dataset, rows)
        scores = models.logits(model, models.in_batches(films, BATCH), device)
        table = pd.DataFrame(scores, columns=findings)
        table.insert(0, "dataset", dataset)
        table.insert(1, "image", rows["image"])
        tables.append(table)
    if not tables:
        raise ValueError(f"no test film in {', '.join(datasets)}: see reports/labels for what was left out and why")
    return pd.concat(tables, ignore_index=True)


def main(argv: list[str] | None = None) -> None:
    """Parse, load, compute, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--arch", required=True)
    args = parser.parse_args(argv)
    threads, datasets = params.load("threads", "datasets")
    plugins.load("models", args.arch)
    device = models.fix(threads)
    model, about = models.load_model(files.input(f"data/models/{args.model}"))
    labels, images = files.input("data/labels"), files.input("data/images")
    table = predictions(model.to(device), about["findings"], labels, images, sorted(datasets), device)
    with files.output(f"data/predictions/{args.model}.parquet") as made:
        files.write_table(table, made)


if __name__ == "__main__":
    main()
