"""Which explainer, and from which layer? `make maps`: tried on boxes of *validation* films, never of test ones.

Reads what the pipeline made, and data/truth, which has the boxes of all drawn films. Scores the maps of the headline's
teacher, twin and student, of the first explainer at each stride that its nets have and of the others at the run's own,
beside a random map on the student's grid, and writes reports/maps.md. `explain.max_stride` of params.yaml was chosen by
it, and so is the first of `explain.explainers`: the one for which the distilled student's pointing game is the furthest
above the random map's, in the mean over data sets, at the run's stride.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from stages import explain
from stages.core import files, params, plugins
from stages.judging import cells, class_maps
from stages.judging.class_maps import BOX, Films, Model, Plan
from stages.nets import nets
from stages.pages import charts
from stages.pipeline import by_hand

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


Scored = dict[tuple[str, str, int], dict[str, Any]]  # of a data set, explainer and stride


def scored(
    films: dict[str, Films], trained: dict[str, Model], plan: Plan, mappers: dict[str, class_maps.Mapper]
) -> Scored:
    """What `explain` finds of each data set: the first explainer at all strides, the others at the plan's."""
    first, own = next(iter(mappers)), plan.settings.max_stride
    tried = [(first, stride) for stride in STRIDES] + [(name, own) for name in mappers if name != first]
    found: Scored = {}
    for dataset, of_dataset in films.items():
        for name, stride in tried:
            settings = plan.settings.model_copy(update={"max_stride": stride})
            at_stride, names = replace(plan, mapper=mappers[name], settings=settings), ("explain", plan.seed, dataset)
            found[dataset, name, stride], _, _ = explain.explain_dataset(of_dataset, trained, at_stride, names)
    return found


def table(found: Scored) -> list[str]:
    """A row of Markdown for each data set, explainer, stride and score."""
    lines = []
    for (dataset, name, stride), of_dataset in found.items():
        if of_dataset["mean"] is None:
            lines.append(f"| {dataset} | {name} | {stride} | no score: {of_dataset['reason']} |{' |' * len(MAKERS)}")
            continue
        for score_name in SCORES:
            values = [of_dataset["mean"]["scores"][score_name][maker] for maker in MAKERS]
            shown = [
                f"{charts.number(value['value'])} ({charts.interval(value['low'], value['high'])})" for value in values
            ]
            lines.append(f"| {dataset} | {name} | {stride} | {score_name} | {' | '.join(shown)} |")
    return lines


def above_random(found: Scored, stride: int) -> dict[str, float]:
    """Explainer -> distilled minus random of the pointing game at this stride, mean over data sets, the best first."""
    rows = [
        {"name": name, "value": of_dataset["mean"]["scores"]["pointing"]["distilled_minus_random"]["value"]}
        for (_, name, at), of_dataset in found.items()
        if at == stride and of_dataset["mean"]
    ]
    means = pd.DataFrame(rows, columns=["name", "value"]).groupby("name")["value"].mean()
    return {str(name): float(value) for name, value in means.sort_values(ascending=False, kind="stable").items()}


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
    mappers = {name: plugin.maps for name, plugin in plugins.load_all("explainers", settings.explainers).items()}
    first = settings.explainers[0]
    plan = Plan(mappers[first], settings, evaluate.replicates, evaluate.confidence, seed)
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
    found = scored(films, trained, plan, mappers)
    ranked = above_random(found, settings.max_stride)
    told = ", ".join(f"{name} {charts.signed(value)}" for name, value in ranked.items())
    lines = [
        "# Class maps by explainer and stride, on validation films", "",
        "Headline's models, boxes of what was drawn on validation films (`data/truth`); mean over findings with "
        f"{100 * evaluate.confidence:g}% interval over patients. The run's own are `{first}` and "
        f"`explain.max_stride: {settings.max_stride}`. Made by `make maps`.", "",
        f"The first of `explain.explainers` is to be `{next(iter(ranked), first)}`: pointing game, distilled - random "
        f"at stride {settings.max_stride}, mean over data sets: {told}.", "",
        "| data set | explainer | stride | score | "
        + " | ".join(maker.replace("_minus_", " - ") for maker in MAKERS) + " |",
        "|---|---|---:|---|" + "---:|" * len(MAKERS),
        *table(found),
    ]  # fmt: skip
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text("\n".join([*lines, ""]), encoding="utf-8")
    by_hand.stamp("maps")
    print(RESULT)


if __name__ == "__main__":
    main()
