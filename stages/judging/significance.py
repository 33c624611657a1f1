"""DeLong's variance of AUROC, as a cross-check of the bootstrap, and Holm's correction for many findings."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


def placements(targets: NDArray[Any], scores: NDArray[Any]) -> tuple[Array, Array]:
    """How each positive and each negative is placed among the others: shares in the right order, ties counting half.

    By midranks (Sun & Xu 2014).

    Args:
        targets: (row,) 1, 0 or NaN, with both.
        scores: (row,).
    """
    positives, negatives = scores[targets == 1], scores[targets == 0]
    together = stats.rankdata(np.concatenate([positives, negatives]))
    n_positives, n_negatives = len(positives), len(negatives)
    of_positives = (together[:n_positives] - stats.rankdata(positives)) / n_negatives
    of_negatives = 1 - (together[n_positives:] - stats.rankdata(negatives)) / n_positives
    return of_positives, of_negatives


def delong(targets: NDArray[Any], scores: NDArray[Any], others: NDArray[Any] | None = None) -> tuple[float, float]:
    """AUROC, or the difference of two on the same films, and its standard error (DeLong, DeLong & Clarke-Pearson 1988).

    It takes films for independent, which those of one patient are not: the bootstrap over patients need not agree.

    Args:
        targets: (row,) 1, 0 or NaN, with two of each or more.
        scores: (row,).
        others: (row,) scores whose AUROC is taken off.
    """
    of_positives, of_negatives = placements(targets, scores)
    if others is not None:
        less_positives, less_negatives = placements(targets, others)
        of_positives, of_negatives = of_positives - less_positives, of_negatives - less_negatives
    variance = of_positives.var(ddof=1) / len(of_positives) + of_negatives.var(ddof=1) / len(of_negatives)
    return float(of_positives.mean()), float(np.sqrt(variance))


def interval(estimate: float, error: float, confidence: float) -> dict[str, float]:
    """The normal interval of an estimate with this standard error."""
    reach = stats.norm.ppf((1 + confidence) / 2) * error
    return {"low": round(float(estimate - reach), 6), "high": round(float(estimate + reach), 6)}


def p_value(values: Array) -> float | None:
    """Two-sided p of an estimate (first value) against 0, by the spread of its replicates and the normal curve.

    None where there is no estimate or no spread.
    """
    spread = np.nanstd(values[1:], ddof=1) if (~np.isnan(values[1:])).sum() > 1 else 0.0
    if np.isnan(values[0]) or spread == 0:
        return None
    return float(2 * stats.norm.sf(abs(values[0]) / spread))


def holm(p_values: list[float | None]) -> list[float | None]:
    """P values for which the chance of one false finding or more among all is held (Holm 1979); None stays."""
    given = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (value, place) in enumerate(given):
        highest = min(1.0, max(highest, value * (len(given) - rank)))
        adjusted[place] = highest
    return adjusted
