"""Test films by outcome, each with its boxes and every model's class map: an atlas of all findings, and a gallery."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from stages.core import findings, seeds
from stages.judging import localisation
from stages.judging.class_maps import BOX, Films, Model, Names, Plan, make_maps

OUTCOMES = ("true positive", "false positive", "false negative", "true negative")
GALLERY_BYTES = 400_000
TILE_IN = 1.25
TILE_PX = 96  # of the atlas, at most
QUALITY = 45  # of the atlas's WebP
CYAN = (0, 229, 255)
OPACITY = 0.65  # of a map where it is strongest


def outcomes(films: Films, logits: pd.DataFrame, thresholds: Mapping[str, float]) -> pd.DataFrame:
    """Each test film and finding as one of OUTCOMES: image, finding, outcome.

    Films whose label is uncertain or missing are left out, and of a finding that has boxes on test films, those that
    have the finding without a box.

    Args:
        films: labels and boxes.
        logits: a row an image (the index), a column a finding.
        thresholds: finding -> the logit from which on a film is called.
    """
    table = films.table.join(logits.add_suffix("_logit"), on="image", how="inner")
    parts = [pd.DataFrame(columns=["image", "finding", "outcome"])]
    for finding, threshold in thresholds.items():
        known = table[table[finding].isin((findings.PRESENT, findings.ABSENT, findings.IMPLIED))]
        is_present, is_called = known[finding] == findings.PRESENT, known[f"{finding}_logit"] >= threshold
        outcome = np.array(OUTCOMES)[np.where(is_present, np.where(is_called, 0, 2), np.where(is_called, 1, 3))]
        part = pd.DataFrame({"image": known["image"], "finding": finding, "outcome": outcome})
        boxed = films.boxes.loc[films.boxes["finding"] == finding, "image"]
        parts.append(part[~is_present | known["image"].isin(boxed)] if len(boxed) else part)
    return pd.concat(parts, ignore_index=True)


def drawn(candidates: pd.DataFrame, names: Names) -> pd.DataFrame:
    """The same rows in an order that is drawn by seed."""
    keys = zip(candidates["image"], candidates["finding"], strict=True)
    luck = [seeds.unit(*names, image, finding) for image, finding in keys]
    return candidates.assign(draw=luck).sort_values("draw")


def pick_atlas(candidates: pd.DataFrame, per_outcome: int, names: Names) -> pd.DataFrame:
    """Of each finding and outcome as many films as asked for, or as there are, drawn by seed."""
    chosen = drawn(candidates, names).groupby(["finding", "outcome"], sort=False).head(per_outcome)
    order = chosen["outcome"].map(OUTCOMES.index)
    return chosen.assign(order=order).sort_values(["finding", "order", "draw"], ignore_index=True)[
        ["image", "finding", "outcome"]
    ]


def pick_gallery(candidates: pd.DataFrame, per_outcome: int, names: Names) -> pd.DataFrame:
    """The gallery's rows, drawn by seed: all of different films, an outcome's of different findings if it has them."""
    in_turn = drawn(candidates, names)
    chosen: list[pd.DataFrame] = []
    for outcome in OUTCOMES:
        used = [image for part in chosen for image in part["image"]]
        rest = in_turn[(in_turn["outcome"] == outcome) & ~in_turn["image"].isin(used)].drop_duplicates("image")
        turn = rest.groupby("finding").cumcount()
        chosen.append(rest.assign(turn=turn).sort_values(["turn", "draw"]).head(per_outcome))
    return pd.concat(chosen, ignore_index=True)[["image", "finding", "outcome"]]


class Cases:
    """Films to look at, with the maps of every model; a model's maps of a finding share one scale.

    The strongest of them reaches full strength, so that a faint map is one that is weak beside the model's others.
    """

    def __init__(self, rows: pd.DataFrame, films: Films, trained: Mapping[str, Model], plan: Plan) -> None:
        """Make the maps of each row, which has an image and a finding."""
        place = dict(zip(films.table["image"], range(len(films.table)), strict=True))
        self.rows, self.boxes = rows, films.boxes
        self.pixels = films.pixels.take([place[image] for image in rows["image"]])
        self.maps = {}
        for name, model in trained.items():
            made = localisation.enlarge(np.maximum(make_maps(model, films, rows, plan), 0), self.pixels.shape[1])
            full = pd.Series(made.max(axis=(1, 2))).groupby(rows["finding"].to_numpy()).transform("max").to_numpy()
            self.maps[name] = made / np.maximum(full, np.finfo(float).tiny)[:, None, None]

    def tiles(self, number: int, size_px: int) -> list[Image.Image]:
        """The film of a row, then each model's map over it, all with its boxes."""
        film, heats = self.pixels[number], [0, *(maps[number] for maps in self.maps.values())]
        row = self.rows.iloc[number]
        boxes = self.boxes[(self.boxes["image"] == row["image"]) & (self.boxes["finding"] == row["finding"])]
        return [_framed(_over(film, heat), boxes[BOX].to_numpy(), size_px) for heat in heats]

    def strip(self, number: int) -> str:
        """The tiles of a row side by side, as the address of a picture that holds it."""
        side = min(self.pixels.shape[1], TILE_PX)
        tiles = self.tiles(number, side)
        whole = Image.new("RGB", (side * len(tiles), side))
        for place, tile in enumerate(tiles):
            whole.paste(tile, (place * side, 0))
        stream = io.BytesIO()
        whole.save(stream, format="WEBP", quality=QUALITY, method=6)
        return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()

    def figure(self, titles: list[str], heading: str, sides: list[str], below: list[list[str]]) -> Figure:
        """A row a film: the film with its boxes, then each model's map over it.

        Args:
            titles: of the columns, the film's first.
            heading: over all.
            sides: what stands beside each row.
            below: of each model, what stands below its map in each row.
        """
        width_in, height_in = (len(titles) + 0.75) * TILE_IN, (len(self.rows) + 0.75) * (TILE_IN + 0.16)
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        figure.suptitle(heading, fontsize=7)
        for number, axes in enumerate(figure.subplots(len(self.rows), len(titles), squeeze=False)):
            axes[0].set_ylabel(sides[number], fontsize=7)
            for place, (axis, tile) in enumerate(zip(axes, self.tiles(number, 4 * TILE_PX), strict=True)):
                axis.imshow(tile, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                if number == 0:
                    axis.set_title(titles[place], fontsize=6.5)
                if place:
                    axis.set_xlabel(below[place - 1][number], fontsize=6, labelpad=1)
        return figure


def note(text: str) -> Figure:
    """A picture of a line, where there are no cases."""
    figure = Figure(figsize=(6, 1))
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=7)
    return figure


def _over(film: NDArray[np.uint8], heat: Any) -> NDArray[np.uint8]:
    """A map over its film, (size_px, size_px, 3): the stronger, the more of it is seen."""
    colours = mpl.colormaps["inferno"](np.broadcast_to(heat, film.shape))[..., :3] * 255
    share = OPACITY * np.broadcast_to(heat, film.shape)[..., None]
    return np.asarray(np.round((1 - share) * film[..., None] + share * colours), np.uint8)


def _framed(picture: NDArray[np.uint8], boxes: NDArray[np.floating], size_px: int) -> Image.Image:
    """A picture at another size, with boxes (x, y, width, height in shares of its side)."""
    tile = Image.fromarray(picture).resize((size_px, size_px), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(tile)
    for x, y, width, height in boxes * size_px:
        ends = (x, y, min(x + width, size_px - 1), min(y + height, size_px - 1))
        pen.rectangle(ends, outline=CYAN, width=max(1, size_px // 128))
    return tile


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
