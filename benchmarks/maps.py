"""Which layer should class maps come from? `make maps`: each stride on boxes of *validation* films, never of test ones.

Reads what the pipeline made, and data/truth, which has the boxes of all drawn films. Scores the maps of the headline's
teacher, twin and student at each stride that its nets have, beside a random map on the student's grid, and writes
reports/maps.md. `explain.max_stride` of params.yaml is chosen by it.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from stages import explain
from stages.core import files, params, plugins
from stages.judging import cells, class_maps
from stages.judging.class_maps import BOX, Films, Model, Plan
from stages.nets import nets
from stages.pages import charts

RESULT = Path("reports/maps.md")
STRIDES = (4, 8, 16, 32)
SCORES = ("pointing", "energy")
MAKERS = ("teacher", "twin", "distilled", "random", "teacher_minus_random", "distilled_minus_random",
          "distilled_minus_twin")  # fmt: skip


def boxes_of(truth: pd.DataFrame) -> pd.DataFrame:
    """The drawn boxes as `data/boxes` has them: image, finding, x, y, width, height."""
    rows = [
        (image, finding, *box)
        for image, text in zip(truth["image"], truth["boxes"], strict=True)
        for finding, boxes in json.loads(text).items()
        for box in boxes
    ]
    return pd.DataFrame(rows, columns=["image", "finding", *BOX])


def table(films: dict[str, Films], trained: dict[str, Model], plan: Plan) -> list[str]:
    """A row of Markdown for each data set, stride and score."""
    lines = []
    for dataset, of_dataset in films.items():
        for stride in STRIDES:
            settings = plan.settings.model_copy(update={"max_stride": stride})
            at_stride, names = replace(plan, settings=settings), ("explain", plan.seed, dataset)
            found, _, _ = explain.explain_dataset(of_dataset, trained, at_stride, names)
            if found["mean"] is None:
                lines.append(f"| {dataset} | {stride} | no score: {found['reason']} |{' |' * len(MAKERS)}")
                continue
            for score in SCORES:
                values = [found["mean"]["scores"][score][maker] for maker in MAKERS]
                shown = [
                    f"{charts.number(value['value'])} ({charts.interval(value['low'], value['high'])})"
                    for value in values
                ]
                lines.append(f"| {dataset} | {stride} | {score} | {' | '.join(shown)} |")
    return lines


def main() -> None:
    """Score, and write the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    settings, evaluate, headline, datasets, seed, threads = params.load(
        "explain", "evaluate", "headline", "datasets", "seed", "threads"
    )
    if plugins.model_kind(headline.teacher) != "net":
        sys.exit(f"make maps compares the maps of a teacher that is one net, and {headline.teacher} has none")
    if real := [dataset for dataset in datasets if not Path(f"data/truth/{dataset}.parquet").exists()]:
        sys.exit(f"make maps needs drawn films, whose boxes data/truth has, and there is none of {', '.join(real)}: "
                 "choose explain.max_stride on drawn ones (make repro first)")  # fmt: skip
    device = nets.fix(threads)
    mapper = plugins.load("explainers", settings.explainers[0]).maps
    plan = Plan(mapper, settings, evaluate.replicates, evaluate.confidence, seed)
    student = cells.headline_model(headline, headline.cohort)
    of_kind = {"teacher": student.its_teacher(), "twin": student.twin(), "distilled": student}
    folders = {kind: files.input(f"data/models/{model.id}") for kind, model in of_kind.items()}
    trained = class_maps.load_models(folders, {kind: kind for kind in folders}, device)
    outputs = trained["distilled"].findings
    films = {
        dataset: class_maps.films_of(
            dataset, "val", files.input("data/labels"), files.input("data/images"),
            boxes_of(files.read_table(files.input(f"data/truth/{dataset}.parquet"))), outputs, plan,
        )
        for dataset in datasets
    }  # fmt: skip
    lines = [
        "# Class maps by stride, on validation films", "",
        f"Explainer `{settings.explainers[0]}`, headline's models, boxes of what was drawn on validation films "
        f"(`data/truth`); mean over findings with {100 * evaluate.confidence:g}% interval over patients. "
        f"The run's own is `explain.max_stride: {settings.max_stride}`. Made by `make maps`.", "",
        "| data set | stride | score | " + " | ".join(maker.replace("_minus_", " - ") for maker in MAKERS) + " |",
        "|---|---:|---|" + "---:|" * len(MAKERS),
        *table(films, trained, plan),
    ]  # fmt: skip
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print(RESULT)


if __name__ == "__main__":
    main()
