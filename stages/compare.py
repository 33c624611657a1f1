"""Compare students with their twins and their teacher over the mean of the seeds, per data set and over all data sets.

Reads data/replicates/<dataset>.parquet: the mean AUROC of every model in every bootstrap replicate.
Writes reports/comparison.json: for each group of distilled students that differ only in their seed, by the name
`<cohort>/<student>/<teacher>/<loss>`, its seeds and its tests. A test is of the mean that is quoted for a data set, of
the same per study where that is reported, or of the mean of the data sets (`dataset` is null).
Stops on a table that is missing or undeclared.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.core import arguments, files, params
from stages.judging import cells, metrics
from stages.judging.evaluation import NO_PREDICTION, NONE_DEFINED, estimate, main_mean, quoted_means, rounded, spread

MEAN_OF_DATASETS = "main"  # the name of the mean over the data sets, each with the mean that is quoted for it
NOT_ABOVE = "the interval of teacher minus twin is not above 0"
NO_INTERVAL = "teacher minus twin has no interval"

Replicates = dict[tuple[str, str], NDArray[np.float64]]  # (model id, mean) -> (1 + replicate,), the estimate first


@dataclass(frozen=True)
class Scores:
    """The AUROC of a group's models, which share patients and replicates; the estimate comes first, NaN is undefined.

    Attributes:
        teacher: (1 + replicate,).
        twin: (seed, 1 + replicate).
        distilled: (seed, 1 + replicate), in the order of the twins.
    """

    teacher: NDArray[np.float64]
    twin: NDArray[np.float64]
    distilled: NDArray[np.float64]

    @property
    def reasons(self) -> dict[str, str | None]:
        """Why a side has no value, if it has none: teacher and students have one vocabulary, so they lack alike."""
        of_students = None if self.are_students_defined else NONE_DEFINED
        of_teacher = (of_students or NO_PREDICTION) if np.isnan(self.teacher[0]) else None
        return {"teacher": of_teacher, "twin": of_students, "distilled": of_students}

    @property
    def are_students_defined(self) -> bool:
        """Whether twins and distilled students have a value."""
        return not np.isnan([self.twin[:, 0], self.distilled[:, 0]]).any()


def by_model(table: pd.DataFrame) -> Replicates:
    """The replicates of each model and mean."""
    ordered = table.sort_values("replicate", kind="stable").groupby(["model", "mean"], sort=False)["auroc"]
    return {(str(model), str(mean)): values.to_numpy(float) for (model, mean), values in ordered}


def scores_of(replicates: Replicates, mean: str, students: list[cells.Model]) -> Scores:
    """The scores of a group of distilled students with their twins and their teacher."""
    return Scores(
        replicates[students[0].its_teacher().id, mean],
        np.stack([replicates[student.twin().id, mean] for student in students]),
        np.stack([replicates[student.id, mean] for student in students]),
    )


def mean_of(parts: list[Scores]) -> Scores:
    """The mean of several data sets, replicate by replicate.

    No patient is in two data sets and each set's patients were drawn by themselves. Replicate r of one is therefore
    independent of replicate r of another, and their mean is a draw of the mean of the data sets.
    """
    return Scores(
        np.mean([part.teacher for part in parts], axis=0),
        np.mean([part.twin for part in parts], axis=0),
        np.mean([part.distilled for part in parts], axis=0),
    )


def described(values: NDArray[np.float64], name: str, confidence: float, reason: str | None) -> dict[str, Any]:
    """An estimate with its interval, how many replicates had no value, and why there is no estimate."""
    dropped = metrics.interval(values[1:], confidence).dropped
    return estimate(values, name, "", confidence) | {"dropped": dropped, "reason": reason}


def over_seeds(values: NDArray[np.float64], name: str, confidence: float, reason: str | None) -> dict[str, Any]:
    """The mean over seeds with its interval over patients, the value of each seed, and their spread.

    Args:
        values: (seed, 1 + replicate); a replicate averages the seeds, which are held as they are.
        name: of the estimate.
        confidence: of the interval.
        reason: why there is no value, if there is none.
    """
    per_seed = [rounded(value) for value in values[:, 0]]
    return described(values.mean(axis=0), name, confidence, reason) | {"per_seed": per_seed} | spread(per_seed)


def with_verdict(difference: dict[str, Any]) -> dict[str, Any]:
    """A difference, and whether its interval excludes 0."""
    interval = metrics.Interval(difference["low"], difference["high"], difference["dropped"])
    return difference | {"excludes_zero": interval.excludes_zero}


def gap_closed(scores: Scores, headroom: dict[str, Any], confidence: float) -> dict[str, Any]:
    """The share of the way from twin to teacher that the distilled student went: (distilled - twin)/(teacher - twin).

    Args:
        scores: of the group.
        headroom: teacher minus twin, with its interval.
        confidence: of the interval, which leaves out (and counts) replicates where the teacher is not above the twin.

    Returns:
        The share, null with its reason where the interval of teacher minus twin is not above 0: then it means nothing.
    """
    twin, distilled = scores.twin.mean(axis=0), scores.distilled.mean(axis=0)
    gap = scores.teacher - twin
    is_above = headroom["low"] is not None and min(headroom["low"], headroom["difference"]) > 0
    reason = headroom["reason"] or (None if is_above else NO_INTERVAL if headroom["low"] is None else NOT_ABOVE)
    share = np.divide(distilled - twin, gap, out=np.full(gap.shape, np.nan), where=gap > 0)
    return described(np.full(gap.shape, np.nan) if reason else share, "share", confidence, reason)


def compare(scores: Scores, confidence: float, margin: float) -> dict[str, Any]:
    """What a test finds: the three sides, their paired differences, and the share of the gap that was closed.

    Args:
        scores: of the group.
        confidence: of the intervals.
        margin: how far below its teacher a student still counts as not inferior.
    """
    why = scores.reasons
    twin, distilled = scores.twin.mean(axis=0), scores.distilled.mean(axis=0)
    gain = over_seeds(scores.distilled - scores.twin, "difference", confidence, why["twin"])
    loss = described(distilled - scores.teacher, "difference", confidence, why["teacher"])
    headroom = described(scores.teacher - twin, "difference", confidence, why["teacher"])
    is_not_inferior = None if loss["low"] is None else loss["low"] > -margin
    return {
        "teacher": described(scores.teacher, "auroc", confidence, why["teacher"]),
        "twin": over_seeds(scores.twin, "auroc", confidence, why["twin"]),
        "distilled": over_seeds(scores.distilled, "auroc", confidence, why["distilled"]),
        "distilled_minus_twin": with_verdict(gain),
        "distilled_minus_teacher": with_verdict(loss) | {"non_inferior": is_not_inferior},
        "teacher_minus_twin": with_verdict(headroom),
        "gap_closed": gap_closed(scores, headroom, confidence),
    }


def tests_of(students: list[cells.Model], replicates: dict[str, Replicates], settings: Any) -> list[dict[str, Any]]:
    """The tests of a group: a data set's after the other's, then that of their mean.

    Args:
        students: distilled students that differ only in their seed.
        replicates: data set -> its replicates.
        settings: `evaluate` of params.yaml.
    """
    tests: list[dict[str, Any]] = []
    main: dict[str, Scores] = {}
    for dataset, of_dataset in replicates.items():
        names = {mean for _, mean in of_dataset}
        for mean in quoted_means(names):
            scores = scores_of(of_dataset, mean, students)
            compared = compare(scores, settings.confidence, settings.margin)
            tests.append({"dataset": dataset, "datasets": [dataset], "mean": mean} | compared)
            if mean == main_mean(names) and scores.are_students_defined:
                main[dataset] = scores
    if len(main) > 1:
        compared = compare(mean_of(list(main.values())), settings.confidence, settings.margin)
        tests.append({"dataset": None, "datasets": list(main), "mean": MEAN_OF_DATASETS} | compared)
    return tests


def compare_groups(models: list[cells.Model], replicates: dict[str, Replicates], settings: Any) -> dict[str, Any]:
    """Everything that reports/comparison.json holds."""
    groups: dict[str, list[cells.Model]] = {}
    for model in models:
        if model.kind == "distilled":
            groups.setdefault(model.group, []).append(model)
    return {
        name: {"seeds": [model.seed for model in students], "tests": tests_of(students, replicates, settings)}
        for name, students in groups.items()
    }


def main(argv: list[str] | None = None) -> None:
    """Write reports/comparison.json."""
    arguments.parser(__doc__).parse_args(argv)
    *declared, datasets, settings = params.load(*cells.PARAMS, "datasets", "evaluate")
    folder = files.input("data/replicates")
    cells.require_declared(folder, "*", {f"{dataset}.parquet" for dataset in datasets})
    replicates = {dataset: by_model(files.read_table(folder / f"{dataset}.parquet")) for dataset in datasets}
    result = compare_groups(cells.models(*declared), replicates, settings)
    with files.output("reports/comparison.json") as temporary:
        files.write_json(result, temporary)


if __name__ == "__main__":
    main()
