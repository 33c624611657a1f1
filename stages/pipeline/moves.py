"""By how much mean AUROCs differ between two commits, or between a commit and this checkout, and whether that is noise.

Two states are compared model by model where one machine made both. A machine that does not repeat the bytes of the
other retrains every model with other rounding, so there each kind of model is compared by its mean over seeds.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.core import files, params
from stages.judging import evaluation
from stages.pipeline import audit, lock
from stages.pipeline.revisions import Entry, content

COMPARISON = "reports/comparison.json"
KINDS = ("teacher", "twin", "distilled")
PAIRED, UNPAIRED, OVER_SEEDS, NONE = "paired", "unpaired", "over seeds", "no interval"
ONE_SEED = "one seed, which has no spread: not judged"


@dataclass(frozen=True)
class Move:
    """A mean AUROC before and after.

    Attributes:
        where: data set and mean.
        model: its id, or the kind of model.
        before: at the base.
        after: now.
        low: of the interval of the difference, None without one.
        high: likewise.
        interval: what kind of interval it is.
    """

    where: str
    model: str
    before: float
    after: float
    low: float | None
    high: float | None
    interval: str

    def falls(self, margin: float) -> bool:
        """Return True if it fell by more than `margin` and the interval excludes zero, or there is none."""
        is_known = self.interval != ONE_SEED
        return is_known and self.after - self.before < -margin and (self.high is None or self.high < 0)

    @property
    def is_noise(self) -> bool:
        """Return True if the interval includes zero."""
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high

    def fall(self, margin: float) -> str:
        """Describe a fall in a sentence."""
        known = self.interval if self.high is None else f"the interval ({self.interval}) excludes 0"
        moved = f"mean AUROC falls from {self.before:.4f} to {self.after:.4f}, by more than {margin:g}"
        return f"{self.model} on {self.where}: {moved}; {known}"

    def cells(self, margin: float) -> tuple[str, ...]:
        """Return a row of the table."""
        change = f"{self.after - self.before:+.4f}"
        if self.low is None or self.high is None:
            verdict = self.interval
        else:
            change += f" ({self.low:+.4f} to {self.high:+.4f}, {self.interval})"
            verdict = "within noise" if self.is_noise else "larger than noise"
        if self.falls(margin):
            verdict += f"; **falls by more than {margin:g}**"
        return self.where, self.model, f"{self.before:.4f}", f"{self.after:.4f}", change, verdict


def of_models(
    base: str, head: str, dataset: str, old: dict[str, Entry], new: dict[str, Entry], store: Path
) -> Iterator[Move]:
    """Yield each mean AUROC of each model on a data set that differs.

    The interval is of paired bootstraps where DVC's cache has both. Otherwise it is made of both committed intervals,
    as if the images were drawn anew: half its width is the root of the sum of their squared halves.

    Args:
        base: a revision.
        head: another.
        dataset: the data set.
        old: the stages of the base's dvc.lock.
        new: those of the head's.
        store: DVC's cache.
    """
    path = f"reports/metrics/{dataset}.json"
    before, after = (_means(json.loads(content(revision, path) or "{}")) for revision in (base, head))
    moved = sorted(key for key in before.keys() & after.keys() if before[key]["auroc"] != after[key]["auroc"])
    tables = list[pd.DataFrame | None]()
    if moved and drawn_alike(old, new, dataset):
        tables = [replicates(of, dataset, store) for of in (old, new)]
    for model, mean in moved:
        was, is_ = before[model, mean], after[model, mean]
        ends, kind = _paired(tables, model, mean), PAIRED
        if ends is None:
            ends, kind = _unpaired(was, is_), UNPAIRED
        low, high = ends or (None, None)
        yield Move(f"{dataset}, {mean}", model, was["auroc"], is_["auroc"], low, high, kind if ends else NONE)


def of_kinds(base: str, head: str, confidence: float) -> Iterator[Move]:
    """Yield each mean over seeds of a kind of model that differs, with Welch's interval of the difference.

    One seed has no spread, and a training's luck is larger than the interval over patients: it is not judged.

    Args:
        base: a revision.
        head: another.
        confidence: of the interval.
    """
    before, after = (scores_of_kinds(json.loads(content(revision, COMPARISON) or "{}")) for revision in (base, head))
    for model, where in sorted(before.keys() & after.keys()):
        was, is_ = before[model, where], after[model, where]
        seeds = [[value for value in of.get("per_seed", []) if value is not None] for of in (was, is_)]
        if None in (was["auroc"], is_["auroc"]) or was == is_:
            continue
        ends = _over_seeds(seeds[0], seeds[1], confidence)
        low, high = ends or (None, None)
        yield Move(where, model, was["auroc"], is_["auroc"], low, high, OVER_SEEDS if ends else ONE_SEED)


def scores_of_kinds(comparison: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return (kind of model, data set and mean) -> its mean AUROC, interval and, of students, value of each seed."""
    return {
        (f"{kind} of {group}", f"{test['dataset'] or 'mean of the data sets'}, {test['mean']}"): test[kind]
        for group, compared in comparison.items()
        for test in compared["tests"]
        for kind in KINDS
    }


def _over_seeds(before: list[float], after: list[float], confidence: float) -> tuple[float, float] | None:
    """Return Welch's interval of after minus before, None with a single seed."""
    if min(len(before), len(after)) < 2:
        return None
    if np.ptp(before) == np.ptp(after) == 0:  # the interval is a point
        return after[0] - before[0], after[0] - before[0]
    from scipy import stats  # takes a second, and is needed on other processors alone

    ends = stats.ttest_ind(after, before, equal_var=False).confidence_interval(confidence)
    return float(ends.low), float(ends.high)


def replicates(of: dict[str, Entry], dataset: str, store: Path) -> pd.DataFrame | None:
    """Return the bootstrap of a data set's mean AUROCs from DVC's cache, None where it is not there."""
    made = lock.producers(of).get(f"data/replicates/{dataset}.parquet")
    path = audit.cache_path(store, made[1]) if made else None
    return files.read_table(path) if path and path.is_file() else None


def drawn_alike(old: dict[str, Entry], new: dict[str, Entry], dataset: str) -> bool:
    """Return True if both bootstraps are of the same images and draws, so that they pair."""

    def of(lock_: dict[str, Entry]) -> Any:
        entry = lock_.get(f"evaluate@{dataset}", {})
        given = entry.get("params", {}).get("params.yaml", {})
        settings = given.get("evaluate", {})
        labels = [dep["md5"] for dep in entry.get("deps", []) if dep["path"].startswith("data/labels/")]
        return labels, given.get("seed"), settings.get("replicates"), settings.get("confidence")

    return bool(of(old) == of(new))


def _means(measured: Entry) -> dict[tuple[str, str], dict[str, Any]]:
    """Return (model, mean) -> the score, where it is defined."""
    return {
        (model, name): mean
        for model, scored in measured.get("models", {}).items()
        for name, mean in scored["means"].items()
        if mean["auroc"] is not None
    }


def _paired(tables: Sequence[pd.DataFrame | None], model: str, mean: str) -> tuple[float, float] | None:
    """Return the interval of after minus before over the same draws, None where one lacks."""
    drawn = [
        one[(one["model"] == model) & (one["mean"] == mean)].sort_values("replicate")["auroc"].to_numpy()
        for one in tables
        if one is not None
    ]
    if len(drawn) < 2 or len(drawn[0]) != len(drawn[1]) or len(drawn[0]) < 2:
        return None
    found = evaluation.estimate(drawn[1] - drawn[0], "auroc", "", params.read()["evaluate"]["confidence"])
    return None if found["low"] is None else (found["low"], found["high"])


def _unpaired(before: dict[str, Any], after: dict[str, Any]) -> tuple[float, float] | None:
    """Return the interval of after minus before from the intervals of both, None where one lacks."""
    if None in (before["low"], before["high"], after["low"], after["high"]):
        return None
    half = float(np.hypot(before["high"] - before["low"], after["high"] - after["low"]) / 2)
    change = after["auroc"] - before["auroc"]
    return change - half, change + half
