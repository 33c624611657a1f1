"""Draw the films of a data set under its real label table, where the licensed pixels can't travel.

Reads params.yaml and the label table that the package torchxrayvision carries.

Writes `data/phantom/<dataset>/`, the files as the data set's owner lays them out: some patients' rows of the real
table, with films drawn to what is true of them, and public labels that err as mined labels do (test rows don't); and
`data/truth/<dataset>.parquet`, what is true of every film and where: image, patient, split, one 0/1 column a finding,
boxes (JSON: finding to a list of x, y, width, height in shares of the side). No training stage reads the truth.

Stops when the table has too few positives for `phantom.min_positives` in a split, or when the images asked for cannot
hold them. A film depends on the seed, the data set, the image's name and its findings alone, not on the workers.
"""

import json
from typing import Any

import cv2
import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from stages.core import arguments, files, findings, params, plugins, schema, seeds
from stages.phantom import layouts, truth
from stages.phantom.anatomy import Anatomy
from stages.phantom.drawing import LOOKS, draw
from stages.phantom.layouts import Boxes, Drawn, Layout, Said

FILMS_A_TASK = 64
PROJECTIONS = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP"}  # view of the table -> view that is drawn


def read_rows(layout: Layout, views: list[str]) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """The real table's rows of these views, the same rows as `truth` wants them, and their facts."""
    table = layout.usable(layouts.read_table(layout))
    drawable = [view for view in views if view in PROJECTIONS]
    is_drawable = layout.rows(table)["view"].isin(drawable)
    table = table[is_drawable].reset_index(drop=True)
    return table, layout.rows(table), layout.facts(table)


def select(layout: Layout, rows: pd.DataFrame, facts: np.ndarray, parts: np.ndarray, wanted: list[str],
           phantom: schema.Phantom, images: dict[str, int], dataset: str, seed: int) -> np.ndarray:  # fmt: skip
    """Sorted positions of the rows to draw, patient by patient, with every wanted finding in every split."""
    usable = truth.cap_per_patient(rows, parts, phantom.images_per_patient, seed, dataset)
    columns = [layout.names.index(name) for name in wanted]
    chosen = []
    for part, count in images.items():
        here = usable[parts[usable] == part]
        positive = facts[np.ix_(here, columns)] == findings.PRESENT
        patients = rows["patient"].to_numpy()[here]
        rng = seeds.of("phantom", "rows", dataset, part, seed)
        try:
            picked = truth.choose_rows(patients, positive, wanted, count, phantom.min_positives, rng)
        except ValueError as error:
            raise ValueError(f"{dataset}, {part}: {error}") from error
        chosen.append(here[picked])
    return np.sort(np.concatenate(chosen))


def draw_film(
    layout: Layout, row: dict[str, Any], shown: frozenset[str], phantom: schema.Phantom, dataset: str, seed: int
) -> tuple[bytes, Boxes]:
    """One film as the owner's image file, and its boxes."""
    cv2.setNumThreads(1)  # the workers are the parallelism
    rng_patient = seeds.of("phantom", "anatomy", dataset, row["patient"], seed)
    anatomy = Anatomy.of(rng_patient, row["sex"], phantom.difficulty)
    rng_film = seeds.of("phantom", "film", dataset, row["image"], seed)
    film, boxes = draw(
        shown, anatomy, PROJECTIONS[row["view"]], LOOKS[dataset], phantom.difficulty, rng_film, phantom.size_px
    )
    return layout.encode(film, row), boxes


def draw_films(layout: Layout, table: pd.DataFrame, rows: pd.DataFrame, shown: np.ndarray, phantom: schema.Phantom,
               dataset: str, seed: int, workers: int) -> tuple[list[bytes], list[Boxes]]:  # fmt: skip
    """All films in the rows' order, whatever the number of workers."""
    names = np.array(layout.names)
    tasks = (
        delayed(draw_film)(layout, row, frozenset(names[shown[row["number"]] == 1].tolist()), phantom, dataset, seed)
        for row in table.assign(**rows, number=range(len(rows))).to_dict("records")
    )
    drawn = Parallel(n_jobs=workers, batch_size=FILMS_A_TASK)(tasks)
    return [image for image, _ in drawn], [boxes for _, boxes in drawn]


def tabulate(
    layout: Layout, rows: pd.DataFrame, parts: np.ndarray, present: np.ndarray, boxes: list[Boxes]
) -> pd.DataFrame:
    """The complete truth, one row a film; an implied finding has the boxes of what implies it."""
    table = pd.DataFrame({"image": rows["image"], "patient": rows["patient"], "split": parts})
    for column, name in enumerate(layout.names):
        table[name] = present[:, column].astype(np.int8)
    texts = []
    for found in boxes:
        everything = dict(found)
        for effect, causes in layout.implied_by.items():
            if effect not in found and (boxes_of_causes := [box for cause in causes for box in found.get(cause, [])]):
                everything[effect] = boxes_of_causes
        texts.append(json.dumps({f: np.round(b, 6).tolist() for f, b in sorted(everything.items())}))
    return table.assign(boxes=texts).sort_values("image", ignore_index=True)


def main(argv: list[str] | None = None) -> None:
    """Draw one data set."""
    args = arguments.parser(__doc__, dataset={"choices": sorted(layouts.LAYOUTS)}).parse_args(argv)
    seed, workers, phantom, counts, wanted, views, test_fraction, val_fraction = params.load(
        "seed", "workers", "phantom", f"phantoms.{args.dataset}",
        f"datasets.{args.dataset}.findings", f"datasets.{args.dataset}.views",
        f"datasets.{args.dataset}.test_fraction", f"datasets.{args.dataset}.val_fraction",
    )  # fmt: skip
    source = plugins.load("datasets", args.dataset)
    layout = layouts.LAYOUTS[args.dataset](source.TERMS)
    table, rows, stated = read_rows(layout, views)
    prevalence = (stated == findings.PRESENT).mean(axis=0)
    parts = truth.assign_parts(rows, args.dataset, test_fraction, val_fraction, layout.human_test)
    val_images = round(counts.train_val_images * val_fraction)
    images = {"train": counts.train_val_images - val_images, "val": val_images, "test": counts.test_images}
    chosen = select(layout, rows, stated, parts, wanted, phantom, images, args.dataset, seed)

    table, rows = table.iloc[chosen].reset_index(drop=True), rows.iloc[chosen].reset_index(drop=True)
    stated, parts = stated[chosen], parts[chosen]
    shown = truth.decide_truth(stated, rows["is_unchanged"].to_numpy(), prevalence, phantom.blank_present,
                               phantom.uncertain_present, phantom.unchanged_present,
                               seeds.of("phantom", "truth", args.dataset, seed))  # fmt: skip
    present = truth.imply(shown, layout.names, layout.implied_by)
    public = truth.publish(present, stated, parts, ~rows["is_human"].to_numpy(), layout.silence, phantom.missed,
                           phantom.false_per_true, seeds.of("phantom", "noise", args.dataset, seed))  # fmt: skip
    table = layout.restate(Said(table, stated, public, parts, phantom.size_px))
    rows = layout.rows(table).assign(image=lambda named: named["image"].map(source.image_key))
    encoded, boxes = draw_films(layout, table, rows, shown, phantom, args.dataset, seed, workers)
    with files.output(f"data/phantom/{args.dataset}") as root:
        layout.write(root, Drawn(table, parts, encoded, boxes))
    with files.output(f"data/truth/{args.dataset}.parquet") as truth_file:
        files.write_table(tabulate(layout, rows, parts, present, boxes), truth_file)
