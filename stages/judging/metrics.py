"""AUROC and average precision, and their patient-cluster bootstrap.

An undefined metric is `None` (or NaN inside arrays) and has a reason; it is never 0 or 0.5. NumPy only.

A weighted AUROC or average precision needs, for each positive, the weight of what is scored below it. `rank` finds the
places of the positives once; each bootstrap replicate is then one cumulative sum over integer patient weights, for a
block of replicates at a time. Replicates are shared between models, so a difference of two models is paired.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BLOCK_BYTES = 2**21  # cumulative weights that are alive at once: what stays in the processor's cache


@dataclass(frozen=True)
class Ranking:
    """Where the positives of one finding stand among all rows, by score.

    Attributes:
        positives: rows of the positives, by ascending score.
        negatives: rows of the negatives, by ascending score.
        negatives_below: for each positive, how many negatives are scored lower.
        negatives_upto: for each positive, how many negatives are scored lower or the same.
        positives_below: for each positive, how many positives are scored lower.
    """

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    negatives_below: NDArray[np.int64]
    negatives_upto: NDArray[np.int64]
    positives_below: NDArray[np.int64]


def rank(targets: NDArray[np.floating], scores: NDArray[np.floating]) -> Ranking:
    """Rank the rows of one finding.

    Args:
        targets: (row,) 1 present, 0 absent, NaN left out.
        scores: (row,) any monotonic score.
    """
    positives, negatives = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    positives = positives[np.argsort(scores[positives], kind="stable")]
    negatives = negatives[np.argsort(scores[negatives], kind="stable")]
    found, others = scores[positives], scores[negatives]
    return Ranking(
        positives,
        negatives,
        np.searchsorted(others, found, side="left"),
        np.searchsorted(others, found, side="right"),
        np.searchsorted(found, found, side="left"),
    )


def areas(ranking: Ranking, positive_weights: NDArray[Any], negative_weights: NDArray[Any]) -> tuple[Array, Array]:
    """AUROC and average precision of one finding under many weightings at once.

    AUROC is the weighted share of (positive, negative) pairs in the right order, ties counting half. Average precision
    is the sum over thresholds of the precision there times the gain in recall, without interpolation (scikit-learn's).

    Args:
        ranking: what `rank` gave.
        positive_weights: (positive, replicate) in the order of `ranking.positives`.
        negative_weights: (negative, replicate) in the order of `ranking.negatives`.

    Returns:
        AUROC and average precision, each (replicate,), NaN where the positives or the negatives weigh nothing.
    """
    negative = _cumulative(negative_weights)  # (negative + 1, replicate)
    positive = _cumulative(positive_weights)  # (positive + 1, replicate)
    below, upto = negative[ranking.negatives_below], negative[ranking.negatives_upto]  # (positive, replicate)
    all_negative, all_positive = negative[-1], positive[-1]
    true_at = all_positive - positive[ranking.positives_below]  # weight of positives at this threshold or above
    false_at = all_negative - below
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = (positive_weights * (below + upto)).sum(axis=0) / (2 * all_positive * all_negative)
        precision = true_at / np.maximum(true_at + false_at, np.finfo(float).tiny)
        average = (positive_weights * precision).sum(axis=0) / all_positive
    defined = (all_positive > 0) & (all_negative > 0)
    return np.where(defined, auroc, np.nan), np.where(defined, average, np.nan)


def _cumulative(weights: NDArray[Any]) -> Array:
    """Sums of the first 0, 1, ... rows."""
    sums = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=sums[1:])
    return sums


def undefined_because(targets: NDArray[np.floating]) -> str | None:
    """Why AUROC and average precision of these targets (NaN left out) have no value; `None` if they have one."""
    positives, negatives = int((targets == 1).sum()), int((targets == 0).sum())
    if positives and negatives:
        return None
    if positives:
        return "no negatives"
    return "no positives" if negatives else "no labels"


def auroc(targets: NDArray[Any], scores: NDArray[Any], weights: NDArray[Any] | None = None) -> float | None:
    """Area under the ROC curve of one finding, ties counting half; `None` where `undefined_because` says why.

    Args:
        targets: (row,) 1, 0 or NaN.
        scores: (row,).
        weights: (row,) of non-negative numbers; each row weighs 1 without.
    """
    return _areas_of(targets, scores, weights)[0]


def average_precision(targets: NDArray[Any], scores: NDArray[Any], weights: NDArray[Any] | None = None) -> float | None:
    """Average precision of one finding (see `areas`), with the arguments of `auroc`."""
    return _areas_of(targets, scores, weights)[1]


def _areas_of(
    targets: NDArray[Any], scores: NDArray[Any], weights: NDArray[Any] | None
) -> tuple[float | None, float | None]:
    column = (np.ones(len(targets)) if weights is None else np.asarray(weights, float))[:, None]
    ranking = rank(targets, scores)
    area, precision = areas(ranking, column[ranking.positives], column[ranking.negatives])
    return (None, None) if np.isnan(area[0]) else (float(area[0]), float(precision[0]))


def mean_auroc(targets: NDArray[np.floating], scores: NDArray[np.floating]) -> float | None:
    """Mean AUROC over the findings where it is defined; `None` if there is none.

    Args:
        targets: (row, finding) 1, 0 or NaN.
        scores: (row, finding).
    """
    values = [auroc(targets[:, column], scores[:, column]) for column in range(targets.shape[1])]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def patient_weights(patients: int, replicates: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    """How often each patient is drawn in each bootstrap replicate.

    Args:
        patients: how many there are; as many are drawn with replacement.
        replicates: how many times that is done.
        rng: from `seeds.of`.

    Returns:
        (patient, replicate); each column sums to `patients`.
    """
    weights = np.empty((patients, replicates), np.uint16)
    for column in range(replicates):
        weights[:, column] = np.bincount(rng.integers(0, patients, patients), minlength=patients)
    return weights


def resample(
    targets: NDArray[Any], scores: NDArray[Any], patients: NDArray[np.int64], weights: NDArray[Any]
) -> tuple[Array, Array]:
    """AUROC and average precision of every finding in every bootstrap replicate.

    Args:
        targets: (row, finding) 1, 0 or NaN.
        scores: (row, finding).
        patients: (row,) each row's place in `weights`.
        weights: (patient, replicate) from `patient_weights`.

    Returns:
        AUROC and average precision, each (replicate, finding), NaN where a replicate has no positives or no negatives.
    """
    replicates = weights.shape[1]
    auroc_of = np.full((replicates, targets.shape[1]), np.nan)
    average_of = auroc_of.copy()
    step = max(1, BLOCK_BYTES // (8 * (len(targets) + 1)))
    for column in range(targets.shape[1]):
        ranking = rank(targets[:, column], scores[:, column])
        if not (len(ranking.positives) and len(ranking.negatives)):
            continue
        positives, negatives = patients[ranking.positives], patients[ranking.negatives]
        for start in range(0, replicates, step):
            block = slice(start, start + step)
            drawn = weights[:, block]
            auroc_of[block, column], average_of[block, column] = areas(ranking, drawn[positives], drawn[negatives])
    return auroc_of, average_of


@dataclass(frozen=True)
class Interval:
    """A percentile interval.

    Attributes:
        low: its lower end, `None` if it is undefined.
        high: its upper end, `None` if it is undefined.
        dropped: how many replicates had no value and were left out.
    """

    low: float | None
    high: float | None
    dropped: int

    @property
    def excludes_zero(self) -> bool | None:
        """Whether 0 lies outside; `None` if the interval is undefined."""
        return None if self.low is None or self.high is None else self.low > 0 or self.high < 0


def interval(replicates: Array, confidence: float) -> Interval:
    """The central interval of bootstrap replicates; undefined where more of them have no value than have one.

    Args:
        replicates: (replicate,), NaN where a replicate has no value.
        confidence: share of the replicates inside, e.g. 0.95.
    """
    kept = replicates[~np.isnan(replicates)]
    dropped = len(replicates) - len(kept)
    if dropped >= len(kept):
        return Interval(None, None, dropped)
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), dropped)
