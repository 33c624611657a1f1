"""Class maps of teacher, twin and distilled student on the same test films, scored against drawn boxes.

Reads a cohort's teacher, twin and headline student, the labels, films and boxes of every data set, and the student's
predictions. Writes `data/explain/<cohort>/` (maps.npz: float16, each map over its own peak; pairs.parquet: what each
map is of, its peak and scores), `reports/explain/<cohort>.json` (scores with patient-bootstrap intervals), a gallery.
A teacher that is no single net has no maps: it is left out, with the reason. Stops on an architecture that the
explainer does not fit and on boxes of data sets that params.yaml does not declare.

A *pair* is a test film and a finding with a box on it. The controls are a random map on the distilled student's grid
(the mean over as many draws as there are bootstrap replicates) and the mean box of the finding over other patients.
"""

import argparse
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import nn

from stages.core import cells, files, findings, images, localisation, metrics, models, params, plugins, seeds

WITHOUT_MAPS = {  # kind of a teacher -> why it has none
    "table": "a table of probabilities has no maps",
    "ensemble": "an ensemble's logits come from several nets, each with maps of its own",
}
OUTCOMES = ("true positive", "false positive", "false negative", "true negative")
BOX = ["x", "y", "width", "height"]
BATCH = 32  # films in memory at once; no number depends on it
GALLERY_BYTES = 400_000
TILE_IN = 1.25

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


def load_models(folders: dict[str, Path], titles: dict[str, str], device: torch.device) -> dict[str, Model]:
    """The models of `data/models` folders."""
    loaded = {}
    for name, folder in folders.items():
        net, about = models.load_model(folder)
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
    films = {}
    cells.require_declared(boxes, "*.parquet", {f"{dataset}.parquet" for dataset in datasets})
    for dataset in sorted(datasets):
        index = files.read_table(shards / dataset / "index.parquet", columns=["image", "shard", "row"])
        index["shard"] = index["shard"].map("shard_{:04d}.npy".format)
        table = files.read_table(labels / f"{dataset}.parquet")
        table = table[table["split"] == "test"].merge(index, on="image").sort_values("image").reset_index(drop=True)
        drawn = files.read_table(boxes / f"{dataset}.parquet")
        names = ("explain", plan.seed, dataset)
        kept, left_out = select_boxes(drawn, table["image"], outputs, plan.settings.max_boxes, names)
        films[dataset] = Films(table, images.Images.of_rows(shards / dataset, table), kept, left_out)
    return films


def make_maps(model: Model, films: Films, pairs: pd.DataFrame, plan: Plan) -> np.ndarray:
    """One map a pair (a row with image and finding): float32 (pair, height, width).

    Films go through the net once a finding that they have: that is less than backward for findings that they lack.
    """
    place = dict(zip(films.table["image"], range(len(films.table)), strict=True))
    device = next(model.net.parameters()).device
    found: dict[Any, np.ndarray] = {}
    for finding, of_finding in pairs.groupby("finding"):
        output = model.findings.index(str(finding))
        for start in range(0, len(of_finding), BATCH):
            part = of_finding["image"].iloc[start : start + BATCH]
            batch = models.to_input(films.pixels.take([place[image] for image in part]), device)
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


def outcomes(films: Films, predictions: pd.DataFrame, chosen: list[str]) -> pd.DataFrame:
    """Each test film and finding as one of OUTCOMES: image, finding, outcome.

    A finding is called on as many films as have it, those with the highest logits: calls and cases balance without a
    threshold to tune. Films whose label is uncertain or missing are left out, and, where the data set draws boxes,
    those that have the finding without a box.

    Args:
        films: labels and boxes.
        predictions: image and one logit a finding.
        chosen: the findings.
    """
    table = films.table.merge(predictions, on="image", suffixes=("", "_logit"))
    boxed = set(zip(films.boxes["image"], films.boxes["finding"], strict=True))
    parts = []
    for finding in chosen:
        known = table[table[finding].isin((findings.PRESENT, findings.ABSENT, findings.IMPLIED))]
        is_present = (known[finding] == findings.PRESENT).to_numpy()
        rank = np.argsort(np.argsort(-known[f"{finding}_logit"].to_numpy(), kind="stable"), kind="stable")
        is_called = rank < is_present.sum()
        outcome = np.array(OUTCOMES)[np.where(is_present, np.where(is_called, 0, 2), np.where(is_called, 1, 3))]
        part = pd.DataFrame({"image": known["image"], "finding": finding, "outcome": outcome})
        has_box = np.array([(image, finding) in boxed for image in part["image"]], dtype=bool)
        parts.append(part[has_box | ~is_present] if boxed else part)
    return pd.concat(parts, ignore_index=True)


def pick_gallery(candidates: pd.DataFrame, per_outcome: int, names: Names) -> pd.DataFrame:
    """The gallery's rows, drawn by seed: all of different films, an outcome's of different findings if it has them."""
    keys = zip(candidates["image"], candidates["finding"], strict=True)
    drawn = candidates.assign(draw=[seeds.unit(*names, image, finding) for image, finding in keys]).sort_values("draw")
    chosen: list[pd.DataFrame] = []
    for outcome in OUTCOMES:
        used = [image for part in chosen for image in part["image"]]
        rest = drawn[(drawn["outcome"] == outcome) & ~drawn["image"].isin(used)].drop_duplicates("image")
        turn = rest.groupby("finding").cumcount()
        chosen.append(rest.assign(turn=turn).sort_values(["turn", "draw"]).head(per_outcome))
    return pd.concat(chosen, ignore_index=True)[["image", "finding", "outcome"]]


def draw_gallery(
    rows: pd.DataFrame, films: Films, maps: dict[str, np.ndarray], titles: list[str], heading: str
) -> Figure:
    """A row a film: the film with its boxes, then each model's map over it.

    Args:
        rows: image, finding, outcome and `<model>_probability`.
        films: pixels and boxes.
        maps: model -> (row, size_px, size_px), in the order of the columns.
        titles: of the columns, the film's first.
        heading: over all.
    """
    width_in, height_in = (len(titles) + 0.75) * TILE_IN, (len(rows) + 0.75) * (TILE_IN + 0.16)
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    figure.suptitle(heading, fontsize=7)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    place = dict(zip(films.table["image"], range(len(films.table)), strict=True))
    for number, row in enumerate(rows.to_dict("records")):
        film = films.pixels[place[row["image"]]]
        boxes = films.boxes[(films.boxes["image"] == row["image"]) & (films.boxes["finding"] == row["finding"])]
        for column, axis in enumerate(axes[number]):
            axis.imshow(film, cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0), interpolation="nearest")
            axis.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
            for x, y, width, height in boxes[BOX].to_numpy():
                axis.add_patch(Rectangle((x, y), width, height, edgecolor="#00e5ff", linewidth=1, fill=False))
            if number == 0:
                axis.set_title(titles[column], fontsize=6.5)
            if column == 0:
                axis.set_ylabel(f"{row['outcome']}\n{findings.titles()[row['finding']]}", fontsize=7)
                continue
            model = list(maps)[column - 1]
            heat = maps[model][number]
            heat = heat / max(heat.max(), np.finfo(float).tiny)
            axis.imshow(heat, cmap="inferno", alpha=0.65 * heat, vmin=0, vmax=1, extent=(0, 1, 1, 0))
            label = f"p = {row[f'{model}_probability']:.2f}" + ("" if heat.max() else ", empty map")
            axis.set_xlabel(label, fontsize=6, labelpad=1)
    return figure


def render(figure: Figure, limit: int) -> bytes:
    """A figure as a PNG of at most 128 colours and `limit` bytes, at the finest of a few resolutions that fits.

    Raises:
        ValueError: it fits at none.
    """
    for dpi in (160, 130, 110, 90, 70, 50):
        figure.dpi = dpi
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib has no type here
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]  # (row, column, 4)
        picture = Image.fromarray(pixels[:, :, :3].copy()).quantize(128, dither=Image.Dither.NONE)
        stream = io.BytesIO()
        picture.save(stream, format="PNG", optimize=True)
        if stream.tell() <= limit:
            return stream.getvalue()
    raise ValueError(f"the gallery must fit {limit} bytes, got {stream.tell()}: lower explain.gallery_per_outcome")


def make_gallery(
    trained: dict[str, Model], films: Films, rows: pd.DataFrame, dataset: str, plan: Plan
) -> tuple[bytes, list[Any]]:
    """The gallery's picture, and its rows for the report."""
    place = dict(zip(films.table["image"], range(len(films.table)), strict=True))
    pixels = films.pixels.take([place[image] for image in rows["image"]])
    shown, maps = rows.assign(dataset=dataset), {}
    for name, model in trained.items():
        columns = [model.findings.index(finding) for finding in rows["finding"]]
        logits = models.logits(model.net, [pixels], next(model.net.parameters()).device)
        probability = 1 / (1 + np.exp(-logits[np.arange(len(rows)), columns].astype(float)))
        shown[f"{name}_probability"] = np.round(probability, 6)
        maps[name] = localisation.enlarge(make_maps(model, films, rows, plan), pixels.shape[1])
    titles = ["film, drawn box", *(f"{name}\n{model.title}" for name, model in trained.items())]
    heading = (
        f"{dataset}, test films by outcome of the distilled student (it calls a finding on as many films as have it).\n"
        "Heat: class map of the row's finding over its own maximum. p: the model's probability, not calibrated."
    )
    picture = render(draw_gallery(shown, films, maps, titles, heading), GALLERY_BYTES)
    return picture, shown.to_dict("records")


def write_maps(maps: dict[str, np.ndarray], path: Path) -> None:
    """Write maps over their peaks as float16; the same maps give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {key: (values / _peaks(values)[:, None, None]).astype(np.float16) for key, values in maps.items()}
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _peaks(maps: np.ndarray) -> np.ndarray:
    """Each map's maximum; 1 for a map of zeros."""
    peaks = maps.max(axis=(1, 2))
    return np.where(peaks > 0, peaks, np.float32(1))


def explain_dataset(
    films: Films, trained: dict[str, Model], plan: Plan, names: Names
) -> tuple[dict[str, Any], pd.DataFrame, dict[str, np.ndarray]]:
    """One data set's part of the report, its table of pairs, and its maps."""
    pairs = films.boxes[["image", "finding"]].drop_duplicates().merge(films.table[["image", "patient"]], on="image")
    counts: dict[str, Any] = {"test_films": len(films.table), "boxes": len(films.boxes), "pairs": len(pairs)}
    counts["left_out"] = films.left_out
    if pairs.empty:
        reason = "no box on a test film for a finding that the models answer"
        return counts | {"grids": None, "findings": None, "mean": None, "reason": reason}, pairs, {}
    grouped, size_px = films.boxes.groupby(["image", "finding"])[BOX], films.pixels[0].shape[0]
    keys = zip(pairs["image"], pairs["finding"], strict=True)
    masks = np.stack([localisation.box_mask(grouped.get_group(key).to_numpy(), size_px) for key in keys])
    maps = {maker: make_maps(model, films, pairs, plan) for maker, model in trained.items()}
    scores = score_maps(maps, masks, pairs, plan, seeds.of(*names, "random"))
    empty = {maker: of_model.max(axis=(1, 2)) == 0 for maker, of_model in maps.items()}
    found = summarise(scores, empty, masks.mean(axis=(1, 2)), pairs, plan, seeds.of(*names, "bootstrap"))
    for maker, of_model in maps.items():
        pairs[f"{maker}_peak"] = of_model.max(axis=(1, 2))
    for maker, values in scores.items():
        pairs[[f"{maker}_{name}" for name in localisation.score_names(plan.settings.iobb_thresholds)]] = values
    grids = {maker: list(of_model.shape[1:]) for maker, of_model in maps.items()}
    return counts | {"grids": grids, "mean": found.pop("mean"), "findings": found, "reason": None}, pairs, maps


def explain(
    trained: dict[str, Model], films: dict[str, Films], plan: Plan
) -> tuple[dict[str, Any], pd.DataFrame, dict[str, np.ndarray]]:
    """All data sets: the report by data set, one table of pairs, and the maps by `<dataset>.<model>`."""
    report: dict[str, Any] = {}
    tables: list[pd.DataFrame] = []
    maps: dict[str, np.ndarray] = {}
    for dataset, of_dataset in films.items():
        report[dataset], pairs, made = explain_dataset(of_dataset, trained, plan, ("explain", plan.seed, dataset))
        tables.append(pairs.assign(dataset=dataset, place=np.arange(len(pairs))))
        maps |= {f"{dataset}.{maker}": of_model for maker, of_model in made.items()}
    return report, pd.concat(tables, ignore_index=True), maps


def choose_gallery(
    films: dict[str, Films], predictions: pd.DataFrame, outputs: list[str], plan: Plan
) -> tuple[str, pd.DataFrame]:
    """The data set that the gallery shows, which is the first with boxes, else the first, and the gallery's rows.

    Raises:
        ValueError: no test film of it has a known label of a finding that the models answer.
    """
    dataset = next((name for name, of_dataset in films.items() if len(of_dataset.boxes)), next(iter(films)))
    shown = sorted(set(films[dataset].boxes["finding"])) or outputs
    candidates = outcomes(films[dataset], predictions[predictions["dataset"] == dataset], shown)
    if candidates.empty:
        raise ValueError(f"the gallery needs test films with known labels, got none in {dataset}: see reports/labels")
    return dataset, pick_gallery(candidates, plan.settings.gallery_per_outcome, ("gallery", plan.seed, dataset))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The cell that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("cohort", "student", "teacher", "loss", "seed", "explainer"):
        parser.add_argument(f"--{name}", required=True)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Explain the headline models of a cohort."""
    args = parse(argv)
    settings, datasets, replicates, confidence, seed, threads = params.load(
        "explain", "datasets", "evaluate.replicates", "evaluate.confidence", "seed", "threads"
    )
    device = models.fix(threads)
    plugins.load("models", args.teacher)
    plugins.load("models", args.student)
    plan = Plan(plugins.load("explainers", args.explainer).maps, settings, replicates, confidence, seed)
    folders = {
        "teacher": files.input(f"data/models/teacher/{args.cohort}/{args.teacher}"),
        "twin": files.input(f"data/models/twin/{args.cohort}/{args.student}/{args.seed}"),
        "distilled": files.input(
            f"data/models/distilled/{args.cohort}/{args.student}/{args.teacher}/{args.loss}/{args.seed}"
        ),
    }
    predicted = files.input(
        f"data/predictions/distilled/{args.cohort}/{args.student}/{args.teacher}/{args.loss}/{args.seed}.parquet"
    )
    labels, shards, boxes = files.input("data/labels"), files.input("data/images"), files.input("data/boxes")
    titles = {"teacher": args.teacher, "twin": args.student, "distilled": f"{args.student}, {args.loss}"}
    kind = plugins.model_kind(args.teacher)
    left_out = {"teacher": WITHOUT_MAPS[kind]} if kind in WITHOUT_MAPS else {}
    trained = load_models({name: path for name, path in folders.items() if name not in left_out}, titles, device)
    outputs = trained["distilled"].findings
    films = load_films(labels, shards, boxes, datasets, outputs, plan)
    scores, pairs, maps = explain(trained, films, plan)
    shown, rows = choose_gallery(films, files.read_table(predicted), outputs, plan)
    picture, gallery = make_gallery(trained, films[shown], rows, shown, plan)
    report = {"cohort": args.cohort, "explainer": args.explainer, "models": titles, "datasets": scores}
    report |= {"gallery_rows": gallery, "left_out": left_out}
    with (
        files.output(f"data/explain/{args.cohort}") as folder,
        files.output(f"reports/explain/{args.cohort}.json") as report_path,
        files.output(f"reports/explain/{args.cohort}_gallery.png") as picture_path,
    ):
        write_maps(maps, folder / "maps.npz")
        files.write_table(pairs, folder / "pairs.parquet")
        files.write_json(report, report_path)
        picture_path.write_bytes(picture)


if __name__ == "__main__":
    main()
