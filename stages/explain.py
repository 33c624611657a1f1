"""Class maps of teacher, twin and distilled student on the same test films, scored against drawn boxes.

Reads a cohort's teacher, twin and headline student, the labels, films and boxes of every data set, and the student's
predictions. Writes `data/explain/<cohort>/` (maps.npz: float16, each map over its own peak, signed; pairs.parquet: what
each map is of, its peak and scores), `reports/explain/<cohort>.json` (scores with patient-bootstrap intervals, of the
first explainer of params.yaml in full, of the others their means). A teacher that is no single net has no maps: it is
left out, with the reason. Stops on an architecture that an explainer does not fit and on boxes of data sets that
params.yaml does not declare.

A *pair* is a test film and a finding with a box on it. The controls are a random map on the distilled student's grid
(the mean over as many draws as there are bootstrap replicates) and the mean box of the finding over other patients.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.core import arguments, files, params, plugins, seeds
from stages.judging import class_maps, localisation, soundness
from stages.judging.class_maps import BOX, Films, Model, Names, Plan
from stages.nets import nets


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
    maps = {maker: class_maps.make_maps(model, films, pairs, plan) for maker, model in trained.items()}
    speaks_for = {maker: np.maximum(of_model, 0) for maker, of_model in maps.items()}
    scores = class_maps.score_maps(speaks_for, masks, pairs, plan, seeds.of(*names, "random"))
    empty = {maker: of_model.max(axis=(1, 2)) == 0 for maker, of_model in speaks_for.items()}
    found = class_maps.summarise(scores, empty, masks.mean(axis=(1, 2)), pairs, plan, seeds.of(*names, "bootstrap"))
    for maker, of_model in speaks_for.items():
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


def means(scores: dict[str, Any]) -> dict[str, Any]:
    """Data set -> the scores of the mean over findings, `None` where there is none."""
    return {dataset: found["mean"] and found["mean"]["scores"] for dataset, found in scores.items()}


def main(argv: list[str] | None = None) -> None:
    """Explain the headline models of a cohort."""
    cell = arguments.parser(__doc__, "cohort", "student", "teacher", "loss", "seed")
    args = cell.parse_args(argv)
    settings, datasets, replicates, confidence, seed, threads = params.load(
        "explain", "datasets", "evaluate.replicates", "evaluate.confidence", "seed", "threads"
    )
    device = nets.fix(threads)
    plugins.load("models", args.teacher)
    plugins.load("models", args.student)
    explainers = plugins.load_all("explainers", settings.explainers)
    first, *others = explainers
    plan = Plan(explainers[first].maps, settings, replicates, confidence, seed)
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
    left_out = class_maps.without_maps(args.teacher)
    trained = class_maps.load_models(
        {name: path for name, path in folders.items() if name not in left_out}, titles, device
    )
    outputs = trained["distilled"].findings
    films = class_maps.load_films(labels, shards, boxes, datasets, outputs, plan)
    scores, pairs, maps = explain(trained, films, plan)
    predictions = files.read_table(predicted)
    report = {"cohort": args.cohort, "explainer": first, "models": titles, "datasets": scores}
    sound = {
        dataset: soundness.Soundness(of_dataset, trained, plan, ("explain", seed, dataset))
        for dataset, of_dataset in films.items()
    }
    report["soundness"] = {dataset: of_dataset.described() for dataset, of_dataset in sound.items()}
    for dataset, of_dataset in films.items():
        of_pairs = pairs[pairs["dataset"] == dataset]
        made = {kind: maps[f"{dataset}.{kind}"] for kind in trained if f"{dataset}.{kind}" in maps}
        logits = predictions[predictions["dataset"] == dataset]
        report["soundness"][dataset]["boxed"] = soundness.boxed(of_dataset, of_pairs, made, logits)
    size_px = next(iter(films.values())).pixels[0].shape[0]
    fresh = nets.build_model(args.student, len(outputs), size_px, seed=seed).eval().to(device)
    mappers = {name: module.maps for name, module in explainers.items()}
    boxed_first = sorted(films, key=lambda name: films[name].boxes.empty)
    asked = [dataset for dataset in boxed_first if len(sound[dataset].pairs)][:1]  # one is enough
    report["sanity"] = {name: sound[name].by_weights(mappers, fresh, settings.sanity_pairs) for name in asked}
    report["explainers"] = {first: means(scores)} | {
        name: means(explain(trained, films, replace(plan, mapper=explainers[name].maps))[0]) for name in others
    }
    report["left_out"] = left_out
    with (
        files.output(f"data/explain/{args.cohort}") as folder,
        files.output(f"reports/explain/{args.cohort}.json") as report_path,
    ):
        write_maps(maps, folder / "maps.npz")
        files.write_table(pairs, folder / "pairs.parquet")
        files.write_json(report, report_path)


if __name__ == "__main__":
    main()
