"""How far the exported student's smaller files answer otherwise than the whole one, on the test films of one data set.

Reads data/export, the labels and films of the data set and the thresholds that operate chose. Writes
reports/agreement/<dataset>.json: for each of `export.variants` the change of mean AUROC with its paired interval, the
finding that loses most, rank correlations, calls that change at the frozen thresholds, and the change of the Brier
score. Stops when one is beyond `export.limits`.
"""

from typing import Any

import numpy as np

from stages.core import arguments, files, params
from stages.device import agreement, running
from stages.judging import evaluation
from stages.sources.images import Images


def main(argv: list[str] | None = None) -> None:
    """Compare the files on a data set."""
    args = arguments.parser(__doc__, "dataset").parse_args(argv)
    settings, evaluated, replicates, confidence, seed, threads = params.load(
        "export", f"datasets.{args.dataset}.findings", "evaluate.replicates", "evaluate.confidence", "seed", "threads"
    )
    folder, shards = files.input("data/export"), files.input(f"data/images/{args.dataset}")
    labels = files.read_table(files.input(f"data/labels/{args.dataset}.parquet"))
    chosen = files.read_json(files.input(f"reports/operating/{args.dataset}.json"))["findings"]
    index = files.read_table(shards / "index.parquet", columns=["image", "shard", "row"])
    test = labels[labels["split"] == "test"].merge(index, on="image").sort_values("image")
    test["shard"] = test["shard"].map("shard_{:04d}.npy".format)
    films = Images.of_rows(shards, test)
    known = [one["name"] for one in files.read_json(folder / "model.json")["findings"]]
    asked = [name for name in evaluated if name in known]
    columns = [known.index(name) for name in asked]
    logits = {}
    for name in ("student", *(f"student_{variant}" for variant in settings.variants)):
        session = running.Session(folder / f"{name}.onnx", threads)
        logits[name] = np.stack([session.answer(films[place])[0] for place in range(len(films))])[:, columns]
    sample = evaluation.Sample(
        asked,
        evaluation.targets_of(test[asked].to_numpy(np.int8)),
        np.unique(test["patient"].to_numpy(str), return_inverse=True)[1],
        logits,
    )
    of_student = [chosen[name]["models"]["distilled"] for name in asked]

    def numbers(key: str) -> np.ndarray:
        return np.array([np.nan if one[key] is None else one[key] for one in of_student], float)

    tested = agreement.Tested(
        findings=asked,
        targets=sample.targets,
        patients=sample.patients,
        weights=evaluation.draw(sample, args.dataset, replicates, seed),
        thresholds=numbers("threshold"),
        temperatures=numbers("temperature"),
        biases=numbers("bias"),
        confidence=confidence,
    )
    found: dict[str, Any] = {
        variant: agreement.compare(tested, logits["student"], logits[f"student_{variant}"])
        for variant in settings.variants
    }
    with files.output(f"reports/agreement/{args.dataset}.json") as path:
        for variant, of_variant in found.items():
            agreement.require(variant, args.dataset, of_variant, settings.limits)
        files.write_json(found, path)


if __name__ == "__main__":
    main()
