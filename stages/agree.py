"""How far the exported student's smaller files answer otherwise than the whole one, on the test films of one data set.

Reads data/export, labels, films and boxes of the data set and the thresholds that operate chose. Writes
reports/agreement/<dataset>.json: for each of `export.variants` the change of mean AUROC with its paired interval, the
finding that loses most, rank correlations, calls that change at the frozen thresholds, the change of the Brier score,
and that of the class maps' pointing score where there are boxes. Stops when one is beyond `export.limits`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.core import arguments, files, params
from stages.device import gates, running
from stages.judging import evaluation, localisation
from stages.sources.images import Images

Draw = Callable[[evaluation.Sample], np.ndarray]
BOX = ["x", "y", "width", "height"]


def answers(session: running.Session, films: Images) -> np.ndarray:
    """Logits (film, finding)."""
    return np.stack([session.answer(films[place])[0] for place in range(len(films))])


def pointing_scores(session: running.Session, films: Images, pairs: pd.DataFrame, masks: np.ndarray) -> np.ndarray:
    """(pair,) pointing score of a file's class maps.

    Args:
        session: the file.
        films: of the data set.
        pairs: `place` of the film and `output` of the finding.
        masks: (pair, size_px, size_px) of the boxes.
    """
    asked = zip(pairs["place"].tolist(), pairs["output"].tolist(), strict=True)
    made = [session.explain(films[place], output)[2] for place, output in asked]
    scores: np.ndarray = localisation.score_pairs(np.maximum(np.stack(made), 0), masks, 0, [])[:, 0]
    return scores


def boxed(test: pd.DataFrame, boxes: pd.DataFrame, known: list[str], size_px: int) -> tuple[pd.DataFrame, np.ndarray]:
    """The films and findings of the model that have boxes, with their masks.

    Returns:
        image, finding, place of the film in `test`, output; (pair, size_px, size_px).
    """
    place = pd.Series(range(len(test)), test["image"])
    usable = boxes[boxes["image"].isin(place.index) & boxes["finding"].isin(known)].sort_values(["image", "finding"])
    pairs = usable[["image", "finding"]].drop_duplicates(ignore_index=True)
    pairs["place"], pairs["output"] = pairs["image"].map(place), pairs["finding"].map(known.index)
    boxes_of = usable.groupby(["image", "finding"])
    masks = [localisation.box_mask(of_pair[BOX].to_numpy(), size_px) for _, of_pair in boxes_of]
    return pairs, np.reshape(masks, (len(pairs), size_px, size_px))


def films_of(labels: pd.DataFrame, shards: Path, split: str) -> tuple[pd.DataFrame, Images]:
    """The rows of a split of a data set's labels that have films, sorted by image, and these films."""
    index = files.read_table(shards / "index.parquet", columns=["image", "shard", "row"])
    rows = labels[labels["split"] == split].merge(index, on="image").sort_values("image")
    rows["shard"] = rows["shard"].map("shard_{:04d}.npy".format)
    return rows, Images.of_rows(shards, rows)


def tested_of(
    rows: pd.DataFrame, asked: list[str], chosen: dict[str, Any], draw: Draw, confidence: float
) -> gates.Tested:
    """What `gates.compare` holds answers on these films against.

    Args:
        rows: of `films_of`.
        asked: findings that are compared.
        chosen: what operate chose, by finding.
        draw: how often each patient counts, of a sample.
        confidence: of intervals.
    """
    patients = np.unique(rows["patient"].to_numpy(str), return_inverse=True)[1]
    sample = evaluation.Sample(asked, evaluation.targets_of(rows[asked].to_numpy(np.int8)), patients, {})
    of_student = [chosen[name]["models"]["distilled"] for name in asked]
    thresholds, temperatures, biases = (
        np.array([np.nan if one[key] is None else one[key] for one in of_student], float)
        for key in ("threshold", "temperature", "bias")
    )
    return gates.Tested(asked, sample.targets, patients, draw(sample), thresholds, temperatures, biases, confidence)


def main(argv: list[str] | None = None) -> None:
    """Compare the files on a data set."""
    args = arguments.parser(__doc__, "dataset").parse_args(argv)
    settings, evaluated, replicates, confidence, seed, threads = params.load(
        "export", f"datasets.{args.dataset}.findings", "evaluate.replicates", "evaluate.confidence", "seed", "threads"
    )
    folder, shards = files.input("data/export"), files.input(f"data/images/{args.dataset}")
    labels = files.read_table(files.input(f"data/labels/{args.dataset}.parquet"))
    boxes = files.read_table(files.input(f"data/boxes/{args.dataset}.parquet"))
    chosen = files.read_json(files.input(f"reports/operating/{args.dataset}.json"))["findings"]
    test, films = films_of(labels, shards, "test")
    exported = running.Exported.of(folder)
    known = exported.findings
    asked = [name for name in evaluated if name in known]
    columns = [known.index(name) for name in asked]
    logits = {
        name: answers(exported.session(f"{name}.onnx", threads), films)[:, columns]
        for name in ("student", *(f"student_{variant}" for variant in settings.variants))
    }
    draw = partial(evaluation.draw, dataset=args.dataset, replicates=replicates, seed=seed)
    tested = tested_of(test, asked, chosen, draw, confidence)
    pairs, masks = boxed(test, boxes, known, exported.about["size_px"])
    with_maps = (exported.about["map"] or {"files": []})["files"] if len(pairs) else []
    scores = {name: pointing_scores(exported.session(name, threads), films, pairs, masks) for name in with_maps}
    places, pointed = tested.patients[pairs["place"].to_numpy(int)], pairs["finding"].to_numpy()
    found: dict[str, Any] = {}
    for variant in settings.variants:
        points = None
        if f"student_map_{variant}.onnx" in scores:
            of_both = {"model": scores["student_map.onnx"], "variant": scores[f"student_map_{variant}.onnx"]}
            points = gates.pointing(of_both, pointed, places, tested.weights, confidence)
        found[variant] = gates.compare(tested, logits["student"], logits[f"student_{variant}"], points)
    with files.output(f"reports/agreement/{args.dataset}.json") as path:
        for variant, of_variant in found.items():
            gates.require(variant, args.dataset, of_variant, settings.limits)
        files.write_json(found, path)


if __name__ == "__main__":
    main()
