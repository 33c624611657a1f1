"""Class maps of test films with drawn boxes, their scores, and the intervals of these."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from stages.core import files, plugins, seeds
from stages.judging import cells, localisation, metrics
from stages.nets import nets
from stages.sources import images

BOX = ["x", "y", "width", "height"]
BATCH = 32  # films in memory at once; no number depends on it

WITHOUT_MAPS = {  # kind of a teacher -> why it has none
    "table": "a table of probabilities has no maps",
    "ensemble": "an ensemble's logits come from several nets, each with maps of its own",
}

Mapper = Callable[[nn.Module, torch.Tensor, list[int], int], np.ndarray]
Names = tuple[str | int, ...]  # of a seed


@dataclass(frozen=True)
class Model:
    """A trained model and what it knows."""

    net: nn.Module
    findings: list[str]
    title: str


@dataclass(frozen=True)
class Plan:
    """What is made and how it is scored.

    Attributes:
        mapper: `maps` of the explainer.
        settings: `explain` of params.yaml.
        replicates: bootstrap replicates, and draws of the random control.
        confidence: of the intervals.
        seed: the run's.
    """

    mapper: Mapper
    settings: Any
    replicates: int
    confidence: float
    seed: int


@dataclass(frozen=True)
class Films:
    """The test films of a data set, and the boxes on them for the findings of the models.

    Attributes:
        table: image, patient, shard, row and one fact a finding, by image.
        pixels: the films, in the table's order.
        boxes: image, finding, x, y, width, height.
        left_out: reason -> number of boxes.
    """

    table: pd.DataFrame
    pixels: images.Images
    boxes: pd.DataFrame
    left_out: dict[str, int]


def without_maps(teacher: str) -> dict[str, str]:
    """Kind of model -> why it has no maps: the teacher, where it is no single net."""
    kind = plugins.model_kind(teacher)
    return {"teacher": WITHOUT_MAPS[kind]} if kind in WITHOUT_MAPS else {}


def load_models(folders: dict[str, Path], titles: dict[str, str], device: torch.device) -> dict[str, Model]:
    """The models of `data/models` folders."""
    loaded = {}
    for name, folder in folders.items():
        net, about = nets.load_model(folder)
        loaded[name] = Model(net.to(device), about["findings"], titles[name])
    return loaded


def select_boxes(
    boxes: pd.DataFrame, films: Iterable[str], outputs: list[str], limit: int, names: Names
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The boxes that are scored, and how many are not, by reason.

    Args:
        boxes: image, finding, x, y, width, height.
        films: the test films.
        outputs: the findings that the models answer.
        limit: boxed films at most, drawn by seed.
        names: of the seed.
    """
    on_test, known = boxes["image"].isin(set(films)), boxes["finding"].isin(outputs)
    left_out = {"not on a test film": int((~on_test).sum()), "finding without output": int((on_test & ~known).sum())}
    usable = boxes[on_test & known]
    chosen = sorted(set(usable["image"]), key=lambda image: seeds.unit(*names, image))[:limit]
    kept = usable[usable["image"].isin(chosen)].sort_values(["image", "finding", *BOX])
    left_out["beyond max_boxes"] = len(usable) - len(kept)
    return kept.reset_index(drop=True), left_out


def load_films(
    labels: Path, shards: Path, boxes: Path, datasets: Iterable[str], outputs: list[str], plan: Plan
) -> dict[str, Films]:
    """The test films of every data set, by its name.

    Raises:
        UndeclaredError: there are boxes of a data set that params.yaml does not declare.
    """
    cells.require_declared(boxes, "*.parquet", {f"{dataset}.parquet" for dataset in datasets})
    return {
        dataset: films_of(
            dataset, "test", labels, shards, files.read_table(boxes / f"{dataset}.parquet"), outputs, plan
        )
        for dataset in sorted(datasets)
    }


def films_of(
    dataset: str, split: str, labels: Path, shards: Path, boxes: pd.DataFrame, outputs: list[str], plan: Plan
) -> Films:
    """The films of one split of a data set, with those of these boxes that lie on them."""
    index = files.read_table(shards / dataset / "index.parquet", columns=["image", "shard", "row"])
    index["shard"] = index["shard"].map("shard_{:04d}.npy".format)
    table = files.read_table(labels / f"{dataset}.parquet")
    table = table[table["split"] == split].merge(index, on="image").sort_values("image").reset_index(drop=True)
    names = ("explain", plan.seed, dataset)
    kept, left_out = select_boxes(boxes, table["image"], outputs, plan.settings.max_boxes, names)
    return Films(table, images.Images.of_rows(shards / dataset, table), kept, left_out)


def make_maps(model: Model, films: Films, pairs: pd.DataFrame, plan: Plan) -> np.ndarray:
    """One map a pair (a row with image and finding): float32 (pair, height, width), negative where it speaks against.

    Films go through the net once a finding that they have: that is less than backward for findings that they lack.
    """
    place = dict(zip(films.table["image"], range(len(films.table)), strict=True))
    device = next(model.net.parameters()).device
    found: dict[Any, np.ndarray] = {}
    for finding, of_finding in pairs.groupby("finding"):
        output = model.findings.index(str(finding))
        for start in range(0, len(of_finding), BATCH):
            part = of_finding["image"].iloc[start : start + BATCH]
            batch = nets.to_input(films.pixels.take([place[image] for image in part]), device)
            made = plan.mapper(model.net, batch, [output], plan.settings.max_stride)[:, 0]
            found.update(zip(part.index, made, strict=True))
    return np.stack([found[pair] for pair in pairs.index])


def score_maps(
    maps: dict[str, np.ndarray], masks: np.ndarray, pairs: pd.DataFrame, plan: Plan, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Scores of the models' maps and of both controls: maker -> (pair, score)."""
    quantile, thresholds = plan.settings.map_quantile, plan.settings.iobb_thresholds
    scores = {
        maker: localisation.score_pairs(of_maker, masks, quantile, thresholds) for maker, of_maker in maps.items()
    }
    height, width = maps["distilled"].shape[1:]
    scores["random"] = localisation.score_random((height, width), masks, plan.replicates, quantile, thresholds, rng)
    usual = localisation.prior_maps(masks, pairs["finding"].to_numpy(), pairs["patient"].to_numpy())
    scores["prior"] = localisation.score_pairs(usual, masks, quantile, thresholds)
    return scores


def summarise(
    scores: dict[str, np.ndarray],
    empty: dict[str, np.ndarray],
    areas: np.ndarray,
    pairs: pd.DataFrame,
    plan: Plan,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Per finding and for the mean over findings: counts, and score -> maker -> value, low, high.

    Args:
        scores: maker -> (pair, score).
        empty: model -> (pair,) whether its map is zero all over.
        areas: (pair,) share of the film in the boxes.
        pairs: patient and finding.
        plan: of the intervals.
        rng: for the bootstrap.
    """
    patients, place = np.unique(pairs["patient"], return_inverse=True)
    weights = metrics.patient_weights(len(patients), plan.replicates, rng)
    given = pairs["finding"].to_numpy()
    names = localisation.score_names(plan.settings.iobb_thresholds)
    result: dict[str, Any] = {}
    for finding, makers in localisation.intervals(scores, given, place, weights, plan.confidence).items():
        rows = np.ones(len(pairs), bool) if finding == "mean" else given == finding
        result[finding] = {
            "pairs": int(rows.sum()),
            "patients": int(pairs.loc[rows, "patient"].nunique()),
            "box_area": round(float(areas[rows].mean()), 6),
            "empty_maps": {maker: int(is_empty[rows].sum()) for maker, is_empty in empty.items()},
            "scores": {name: {maker: values[i] for maker, values in makers.items()} for i, name in enumerate(names)},
        }
    return result
