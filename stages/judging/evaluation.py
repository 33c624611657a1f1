"""How models score on the test films of one data set: targets, means, areas with their bootstrap, differences."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray

from stages.core import findings, seeds
from stages.judging import metrics

SHARED = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Pneumonia", "Pneumothorax")
COMMON_MEANS = ("all", "shared7")  # that are reported for every data set
PER_STUDY = "_per_study"  # ends the name of a mean whose rows are studies
NOT_AN_OUTPUT = "not an output of this model"
NO_PREDICTION = "a precomputed teacher that lacks the films of a data set"
NONE_DEFINED = "none of its findings is defined"
ONE_SEED = "one seed has no spread"
DECIMALS = 6


@dataclass(frozen=True)
class Mean:
    """A mean over findings that is reported.

    Attributes:
        findings: what it averages.
        unit: what a row is: `image`, or `study` (a study's logit is the maximum over its images).
    """

    findings: tuple[str, ...]
    unit: str = "image"


@dataclass(frozen=True)
class Sample:
    """What is scored.

    Attributes:
        findings: the columns.
        targets: (row, finding) 1, 0 or NaN.
        patients: (row,) number of the patient, from 0.
        scores: model id -> (row, finding) logits; NaN columns where the model lacks the finding, all NaN where a
            precomputed teacher has no film of the data set.
    """

    findings: list[str]
    targets: NDArray[np.float64]
    patients: NDArray[np.int64]
    scores: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Areas:
    """AUROC and average precision of a model, or a difference of two models.

    Attributes:
        auroc: (1 + replicate, finding); the first row is the estimate, the others bootstrap replicates.
        ap: the same of average precision.
    """

    auroc: NDArray[np.float64]
    ap: NDArray[np.float64]

    def minus(self, other: "Areas") -> "Areas":
        """The paired difference."""
        return Areas(self.auroc - other.auroc, self.ap - other.ap)


def means_of(evaluated: list[str], own: Mapping[str, Sequence[str]]) -> dict[str, Mean]:
    """The means that are reported for a data set.

    Args:
        evaluated: its findings.
        own: `MEANS` of its plug-in, which are reported per image and per study.
    """
    means = {"all": Mean(tuple(evaluated)), "shared7": Mean(tuple(name for name in SHARED if name in evaluated))}
    for name, chosen in own.items():
        means[name] = Mean(tuple(finding for finding in chosen if finding in evaluated))
        means[f"{name}{PER_STUDY}"] = Mean(means[name].findings, "study")
    return {name: mean for name, mean in means.items() if mean.findings}


def main_mean(names: Iterable[str]) -> str:
    """The mean that is quoted for a data set, of those reported: the first by name of its own, else all findings."""
    return min((name for name in names if name not in COMMON_MEANS and not name.endswith(PER_STUDY)), default="all")


def quoted_means(names: Iterable[str]) -> list[str]:
    """The mean that is quoted for a data set, and the same per study if that is reported too."""
    reported = set(names)
    main = main_mean(reported)
    return [main, *({f"{main}{PER_STUDY}"} & reported)]


def targets_of(facts: NDArray[np.int8]) -> NDArray[np.float64]:
    """Facts as test targets: present 1, absent and implied absent 0, all else NaN (left out)."""
    targets = np.full(facts.shape, np.nan)
    targets[facts == findings.PRESENT] = 1
    targets[(facts == findings.ABSENT) | (facts == findings.IMPLIED)] = 0
    return targets


def select(table: pd.DataFrame, dataset: str, model: str, split: str = "test") -> pd.DataFrame:
    """A model's logits on one split of a data set: a row per image (the index), a column per finding of the model.

    Raises:
        ValueError: an image twice, or a logit that is not finite.
    """
    rows = table[(table["dataset"] == dataset) & (table["split"] == split)]
    logits = rows.drop(columns=["dataset", "split"]).set_index("image").sort_index()
    if logits.index.has_duplicates:
        twice = logits.index[logits.index.duplicated()][0]
        raise ValueError(f"an image has one prediction, got several for {twice} (data/predictions/{model}.parquet)")
    is_finite = np.isfinite(logits.to_numpy()).all(axis=1)
    if not is_finite.all():
        where = f"{dataset} {logits.index[~is_finite][0]}"
        raise ValueError(f"logits must be finite, got NaN or infinity for {where} (data/predictions/{model}.parquet)")
    return logits


def match(labels: pd.DataFrame, predictions: Mapping[str, pd.DataFrame], split: str = "test") -> pd.DataFrame:
    """The rows of a split of `labels` that were predicted, by image.

    Raises:
        ValueError: a prediction without a row of the split, models that saw different images, or no image at all.
    """
    rows = labels[labels["split"] == split].set_index("image").sort_index()
    given = {model: table for model, table in predictions.items() if len(table) or not model.startswith("teacher")}
    first, images = next((model, table.index) for model, table in given.items())
    for model, table in given.items():
        if not table.index.equals(images):
            only = table.index.symmetric_difference(images)[0]
            raise ValueError(f"models are compared on the same images, but of {first} and {model} one lacks {only}")
    if len(unknown := images.difference(rows.index)):
        raise ValueError(f"predicted images must be in the labels' {split} split, got {unknown[0]}: run `make repro`")
    if images.empty:
        raise ValueError(f"no {split} image has a prediction: this split and data/images have no image in common")
    return rows.loc[images]


def image_sample(test: pd.DataFrame, predictions: Mapping[str, pd.DataFrame], evaluated: list[str]) -> Sample:
    """The sample whose rows are images."""
    targets = targets_of(test[evaluated].to_numpy(np.int8))
    patients = np.unique(test["patient"].to_numpy(str), return_inverse=True)[1]
    scores = {
        model: table.reindex(index=test.index, columns=evaluated).to_numpy(np.float32)
        for model, table in predictions.items()
    }
    return Sample(evaluated, targets, patients, scores)


def study_sample(sample: Sample, studies: NDArray[np.str_], chosen: list[str]) -> Sample:
    """The sample whose rows are studies: the maximum over a study's images of each target and each logit."""
    columns = [sample.findings.index(name) for name in chosen]
    _, first, study = np.unique(studies, return_index=True, return_inverse=True)

    def highest(values: NDArray[Any]) -> NDArray[Any]:
        return pd.DataFrame(values[:, columns]).groupby(study).max().to_numpy()  # skips NaN

    scores = {model: highest(values) for model, values in sample.scores.items()}
    return Sample(chosen, highest(sample.targets), sample.patients[first], scores)


def draw(sample: Sample, dataset: str, replicates: int, seed: int) -> NDArray[np.uint16]:
    """How often each patient counts, (patient, 1 + replicate): once in the first column, as drawn in the others."""
    patients = int(sample.patients.max()) + 1
    drawn = metrics.patient_weights(patients, replicates, seeds.of("bootstrap", dataset, seed))
    return np.concatenate([np.ones((patients, 1), drawn.dtype), drawn], axis=1)


def areas_of(sample: Sample, model: str, weights: NDArray[Any]) -> Areas:
    """The areas of one model; `weights` is what `draw` gave."""
    scores = sample.scores[model]
    is_output = ~np.isnan(scores).all(axis=0)
    auroc = np.full((weights.shape[1], len(sample.findings)), np.nan)
    ap = auroc.copy()
    auroc[:, is_output], ap[:, is_output] = metrics.resample(
        sample.targets[:, is_output], scores[:, is_output], sample.patients, weights
    )
    return Areas(auroc, ap)


def rounded(value: float | None) -> float | None:
    """A number as it is written; `None` for what is undefined."""
    return None if value is None or np.isnan(value) else round(float(value), DECIMALS) + 0.0


def estimate(values: NDArray[Any], name: str, prefix: str, confidence: float) -> dict[str, Any]:
    """An estimate (first value) with the interval of its replicates (the others)."""
    interval = metrics.interval(values[1:], confidence)
    low, high = (rounded(interval.low), rounded(interval.high)) if not np.isnan(values[0]) else (None, None)
    return {name: rounded(values[0]), f"{prefix}low": low, f"{prefix}high": high}


def score(areas: Areas, column: int, confidence: float) -> dict[str, Any]:
    """AUROC and average precision of one finding."""
    scored = estimate(areas.auroc[:, column], "auroc", "", confidence)
    scored |= estimate(areas.ap[:, column], "ap", "ap_", confidence)
    return scored | {"dropped": metrics.interval(areas.auroc[1:, column], confidence).dropped}


def defined_columns(areas: Areas, columns: list[int]) -> list[int]:
    """Of these findings, those whose estimate has a value: what a mean averages, in its replicates too."""
    return [column for column in columns if not np.isnan(areas.auroc[0, column])]


def mean_score(areas: Areas, columns: list[int], confidence: float) -> dict[str, Any]:
    """AUROC and average precision averaged over the findings where they are defined."""
    defined = defined_columns(areas, columns)
    if not defined:
        nothing = dict.fromkeys(("auroc", "low", "high", "ap", "ap_low", "ap_high"))
        return nothing | {"dropped": 0, "n_findings": 0, "reason": NONE_DEFINED}
    averaged = Areas(areas.auroc[:, defined].mean(axis=1)[:, None], areas.ap[:, defined].mean(axis=1)[:, None])
    return score(averaged, 0, confidence) | {"n_findings": len(defined), "reason": None}


def as_difference(scored: dict[str, Any]) -> dict[str, Any]:
    """A score of a difference: named so, and whether its interval excludes 0."""
    interval = metrics.Interval(scored["low"], scored["high"], scored["dropped"])
    difference = {"difference": scored["auroc"], "low": scored["low"], "high": scored["high"]}
    difference |= {"ap_difference": scored["ap"], "ap_low": scored["ap_low"], "ap_high": scored["ap_high"]}
    kept = {key: scored[key] for key in ("dropped", "n_findings", "reason") if key in scored}
    return difference | kept | {"excludes_zero": interval.excludes_zero}


def is_spread(targets: NDArray[Any], patients: NDArray[Any]) -> bool:
    """Whether positives and negatives are each of two patients or more: resampling one patient shows no spread."""
    return all(len(np.unique(patients[targets == value])) > 1 for value in (0, 1))


class Evaluation:
    """The areas of every model on images and, where a mean asks for them, on studies."""

    def __init__(self, samples: dict[str, Sample], means: dict[str, Mean], weights: NDArray[Any], workers: int) -> None:
        """Bootstrap every model on every sample (the slow part, on joblib)."""
        self.samples, self.means = samples, means
        keys = [(unit, model) for unit, sample in samples.items() for model in sample.scores]
        found = Parallel(n_jobs=workers, prefer="threads")(
            delayed(areas_of)(samples[unit], model, weights) for unit, model in keys
        )
        self.areas: dict[tuple[str, str], Areas] = dict(zip(keys, found, strict=True))

    def of(self, model: str, less: str | None, confidence: float) -> dict[str, Any]:
        """The scores of a model, per finding and as means; their difference from those of `less`, if that is given."""
        compared = [model] if less is None else [model, less]

        def areas(unit: str) -> Areas:
            own = self.areas[unit, model]
            return own if less is None else own.minus(self.areas[unit, less])

        def shown(scored: dict[str, Any]) -> dict[str, Any]:
            return scored if less is None else as_difference(scored)

        sample = self.samples["image"]
        per_finding = {}
        for column, finding in enumerate(sample.findings):
            scored = score(areas("image"), column, confidence)
            if not is_spread(sample.targets[:, column], sample.patients):
                scored |= dict.fromkeys(("low", "high", "ap_low", "ap_high"))
            per_finding[finding] = shown(scored) | {"reason": self.reason(compared, column)}
        means = {}
        for name, mean in self.means.items():
            means[name] = shown(mean_score(areas(mean.unit), self.columns(mean), confidence))
            if any(self.is_without(one) for one in compared):
                means[name]["reason"] = NO_PREDICTION
            lacking = [finding for finding in mean.findings if per_finding[finding]["reason"]]
            means[name]["undefined"] = {finding: per_finding[finding]["reason"] for finding in lacking}
        return {"findings": per_finding, "means": means}

    def columns(self, mean: Mean) -> list[int]:
        """The columns that a mean averages, of the sample of its unit."""
        return [self.samples[mean.unit].findings.index(finding) for finding in mean.findings]

    def replicates(self) -> pd.DataFrame:
        """The mean AUROC of every model, replicate by replicate, averaged over the findings that `mean_score` averages.

        Returns:
            A row for each model, mean and replicate, with the columns `model`, `mean`, `replicate` (0 is the estimate)
            and `auroc` (NaN where a model has no finding that is defined, or a replicate has no positives of one).
        """
        parts = []
        for model in self.samples["image"].scores:
            for name, mean in self.means.items():
                areas = self.areas[mean.unit, model]
                defined = defined_columns(areas, self.columns(mean))
                auroc = areas.auroc[:, defined].mean(axis=1) if defined else np.full(len(areas.auroc), np.nan)
                named = {"model": model, "mean": name, "replicate": np.arange(len(auroc))}
                parts.append(pd.DataFrame(named | {"auroc": auroc}))
        return pd.concat(parts, ignore_index=True)

    def is_without(self, model: str) -> bool:
        """Whether a model has no prediction here."""
        return bool(np.isnan(self.samples["image"].scores[model]).all())

    def reason(self, models: Sequence[str], column: int) -> str | None:
        """Why one of these models has no value for a finding."""
        sample = self.samples["image"]
        if any(self.is_without(model) for model in models):
            return NO_PREDICTION
        if any(np.isnan(sample.scores[model][:, column]).all() for model in models):
            return NOT_AN_OUTPUT
        return metrics.undefined_because(sample.targets[:, column])


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """The standard deviation over seeds; null, with its reason, where there is none.

    Args:
        values: one a seed, `None` where it is undefined.
    """
    reason = "undefined" if None in values else ONE_SEED if len(values) == 1 else None
    deviation = None if reason else rounded(np.std(np.array(values, float), ddof=1))
    return {"deviation": deviation, "deviation_reason": reason}
