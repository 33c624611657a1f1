"""A cohort as models train on it: its two parts, and how a model does on validation."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from stages.core import files
from stages.judging import metrics
from stages.learning import ranks
from stages.nets import nets
from stages.sources.images import Images, view


@dataclass(frozen=True)
class Part:
    """One split of a cohort.

    Attributes:
        rows: the table, with `dataset`, `image` and `patient`.
        films: their pixels.
        targets: float32 (rows, findings), NaN where a label does not count.
    """

    rows: pd.DataFrame
    films: Images
    targets: np.ndarray

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """(data set, image) of each row: what a view's randomness derives from."""
        return list(zip(self.rows["dataset"].astype(str), self.rows["image"].astype(str), strict=True))

    def view(self, index: int, number: int, settings: Any, seed: int) -> np.ndarray:
        """One augmented view of a row's film, uint8 (size_px, size_px)."""
        return view(self.films[index], settings, seed, *self.names[index], number)


@dataclass(frozen=True)
class Cohort:
    """What a model trains on; `about` is its cohort.json."""

    about: dict[str, Any]
    train: Part
    val: Part

    @property
    def findings(self) -> list[str]:
        """The outputs of a model of this cohort."""
        return list(self.about["findings"])


def load_cohort(folder: Path) -> Cohort:
    """Read `data/cohorts/<cohort>`; films stay on disk until they are asked for.

    Raises:
        ValueError: a split is empty.
    """
    rows = files.read_table(folder / "rows.parquet")
    with (folder / "targets.npy").open("rb") as file:
        targets = np.load(file)
    parts = {}
    for split in ("train", "val"):
        mask = (rows["split"] == split).to_numpy()
        if not mask.any():
            raise ValueError(f"{folder} has no {split} images: change val_fraction in params.yaml or add data")
        part = rows[mask].reset_index(drop=True)
        parts[split] = Part(part, Images.of_rows(folder, part), targets[mask])
    return Cohort(files.read_json(folder / "cohort.json"), parts["train"], parts["val"])


def val_auroc(model: nn.Module, val: Part, batch_size: int, device: torch.device) -> float:
    """Validation AUROC: mean over findings within a data set, then mean over data sets, never pooled.

    Ranks take turns with the batches.
    """
    scores = np.zeros_like(val.targets)
    for start in range(0, len(scores), batch_size)[ranks.index() :: ranks.count()]:
        films = val.films.take(range(start, min(start + batch_size, len(scores))))
        scores[start : start + batch_size] = nets.logits(model, [films], device)
    return mean_auroc(ranks.total(torch.from_numpy(scores).to(device)).cpu().numpy(), val)


def mean_auroc(scores: np.ndarray, val: Part) -> float:
    """The same of given logits (films, findings)."""
    datasets = val.rows["dataset"].to_numpy()
    means = [
        metrics.mean_auroc(val.targets[datasets == name], scores[datasets == name]) for name in np.unique(datasets)
    ]
    defined = [mean for mean in means if mean is not None]
    return float(np.mean(defined)) if defined else math.nan
