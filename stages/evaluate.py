"""Score every model on the test images of one data set, with patient-bootstrap intervals and paired differences.

Reads data/labels/<dataset>.parquet and data/predictions/ (every model that params.yaml declares).
Writes reports/metrics/<dataset>.json: how many images and patients, positives and negatives per finding, AUROC and
average precision of each model per finding and as the means that the field reports, and the differences distilled
minus twin, distilled minus teacher and teacher minus twin on the same images and bootstrap replicates.
Writes data/replicates/<dataset>.parquet: the mean AUROC of each model in each replicate, which compare averages over
seeds and data sets.
Stops on predictions that are missing, undeclared, not finite, of unknown images, or that differ in their images
between models.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core import arguments, files, findings, params, plugins
from stages.judging import cells, metrics
from stages.judging.evaluation import (
    Evaluation,
    Mean,
    Sample,
    draw,
    image_sample,
    match,
    means_of,
    select,
    study_sample,
)


def pairs(models: list[cells.Model]) -> list[tuple[str, cells.Model, cells.Model]]:
    """What is compared: kind, model, what is taken from it."""
    distilled = [model for model in models if model.kind == "distilled"]
    teachers, twins = ([model for model in models if model.kind == kind] for kind in ("teacher", "twin"))
    compared = [("distilled_minus_twin", model, model.twin()) for model in distilled]
    compared += [("distilled_minus_teacher", model, model.its_teacher()) for model in distilled]
    return compared + [
        ("teacher_minus_twin", teacher, twin) for teacher in teachers for twin in twins if teacher.cohort == twin.cohort
    ]


def describe_findings(sample: Sample, min_positives: int) -> dict[str, Any]:
    """How many rows state each finding, and why its metrics are undefined if they are."""
    described = {}
    for column, finding in enumerate(sample.findings):
        targets = sample.targets[:, column]
        positives, negatives = int((targets == 1).sum()), int((targets == 0).sum())
        described[finding] = {
            "positives": positives,
            "negatives": negatives,
            "masked": len(targets) - positives - negatives,
            "positive_patients": len(np.unique(sample.patients[targets == 1])),
            "few_positives": positives < min_positives,
            "reason": metrics.undefined_because(targets),
        }
    return described


def resample(sample: Sample, studies: NDArray[Any], dataset: str, means: dict[str, Mean], settings: Any, seed: int,
             workers: int) -> Evaluation:  # fmt: skip
    """The areas of every model, with their bootstrap."""
    samples = {"image": sample}
    if chosen := {finding for mean in means.values() if mean.unit == "study" for finding in mean.findings}:
        samples["study"] = study_sample(sample, studies, findings.in_order_of(sample.findings, chosen))
    return Evaluation(samples, means, draw(sample, dataset, settings.replicates, seed), workers)


def evaluate(evaluation: Evaluation, dataset: str, models: list[cells.Model], settings: Any) -> dict[str, Any]:
    """Everything that reports/metrics/<dataset>.json holds, but for the counts of images."""
    sample = evaluation.samples["image"]
    comparisons: dict[str, dict[str, Any]] = {}
    for kind, model, less in pairs(models):
        compared = evaluation.of(model.id, less.id, settings.confidence) | {"minus": less.id}
        if kind == "distilled_minus_teacher":
            for mean in compared["means"].values():
                mean["non_inferior"] = None if mean["low"] is None else mean["low"] > -settings.margin
        comparisons.setdefault(kind, {})[f"{model.id} - {less.id}"] = compared
    rows = {unit: len(of_unit.targets) for unit, of_unit in evaluation.samples.items()}
    means = {name: {"findings": list(mean.findings), "unit": mean.unit} for name, mean in evaluation.means.items()}
    return {
        "dataset": dataset,
        "settings": settings.model_dump(),
        "rows": rows | {"patient": int(sample.patients.max()) + 1},
        "findings": describe_findings(sample, settings.min_positives),
        "means": means,
        "models": {model.id: evaluation.of(model.id, None, settings.confidence) for model in models},
        "comparisons": comparisons,
    }


def main(argv: list[str] | None = None) -> None:
    """Write reports/metrics/<dataset>.json and data/replicates/<dataset>.parquet."""
    args = arguments.parser(__doc__, "dataset").parse_args(argv)
    *declared, settings, evaluated, seed, workers = params.load(
        *cells.PARAMS, "evaluate", f"datasets.{args.dataset}.findings", "seed", "workers"
    )
    own_means = getattr(plugins.load("datasets", args.dataset), "MEANS", {})
    models = cells.models(*declared)
    folder = files.input("data/predictions")
    cells.require_declared(folder, "**/*.parquet", {f"{model.id}.parquet" for model in models})
    labels = files.read_table(files.input(f"data/labels/{args.dataset}.parquet"))
    predictions = {
        model.id: select(files.read_table(folder / f"{model.id}.parquet"), args.dataset, model.id) for model in models
    }
    test = match(labels, predictions)
    sample = image_sample(test, predictions, findings.in_order_of(labels.columns, evaluated))
    studies = (test["patient"].astype(str) + "/" + test["study"].astype(str)).to_numpy(str)
    means = means_of(sample.findings, own_means)
    evaluation = resample(sample, studies, args.dataset, means, settings, seed, workers)
    result = evaluate(evaluation, args.dataset, models, settings)
    result["without_prediction"] = int((labels["split"] == "test").sum()) - len(test)
    with files.output(f"reports/metrics/{args.dataset}.json") as temporary:
        files.write_json(result, temporary)
    with files.output(f"data/replicates/{args.dataset}.parquet") as temporary:
        files.write_table(evaluation.replicates(), temporary)


if __name__ == "__main__":
    main()
