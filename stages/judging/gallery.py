"""A gallery of test films by outcome, each with its boxes and every model's class map."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from stages.core import findings, seeds
from stages.judging import localisation
from stages.judging.class_maps import BOX, Films, Model, Names, Plan, make_maps
from stages.nets import nets

OUTCOMES = ("true positive", "false positive", "false negative", "true negative")
GALLERY_BYTES = 400_000
TILE_IN = 1.25


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


def draw_gallery(
    rows: pd.DataFrame,
    films: Films,
    maps: dict[str, np.ndarray],
    titles: list[str],
    heading: str,
    spoken: Mapping[str, str],
) -> Figure:
    """A row a film: the film with its boxes, then each model's map over it.

    Args:
        rows: image, finding, outcome and `<model>_probability`.
        films: pixels and boxes.
        maps: model -> (row, size_px, size_px), in the order of the columns.
        titles: of the columns, the film's first.
        heading: over all.
        spoken: finding -> its title.
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
                axis.set_ylabel(f"{row['outcome']}\n{spoken[row['finding']]}", fontsize=7)
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
    trained: dict[str, Model],
    films: Films,
    rows: pd.DataFrame,
    dataset: str,
    plan: Plan,
    spoken: Mapping[str, str],
) -> tuple[bytes, list[Any]]:
    """The gallery's picture, and its rows for the report."""
    place = dict(zip(films.table["image"], range(len(films.table)), strict=True))
    pixels = films.pixels.take([place[image] for image in rows["image"]])
    shown, maps = rows.assign(dataset=dataset), {}
    for name, model in trained.items():
        columns = [model.findings.index(finding) for finding in rows["finding"]]
        logits = nets.logits(model.net, [pixels], next(model.net.parameters()).device)
        probability = 1 / (1 + np.exp(-logits[np.arange(len(rows)), columns].astype(float)))
        shown[f"{name}_probability"] = np.round(probability, 6)
        maps[name] = localisation.enlarge(np.maximum(make_maps(model, films, rows, plan), 0), pixels.shape[1])
    titles = ["film, drawn box", *(f"{name}\n{model.title}" for name, model in trained.items())]
    heading = (
        f"{dataset}, test films by outcome of the distilled student (it calls a finding on as many films as have it).\n"
        "Heat: class map of the row's finding over its own maximum. p: the model's probability, not calibrated."
    )
    picture = render(draw_gallery(shown, films, maps, titles, heading, spoken), GALLERY_BYTES)
    return picture, shown.to_dict("records")
