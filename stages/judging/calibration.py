"""Do probabilities mean what they say? Temperature and bias, fitted on validation films, and errors on test films."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from stages.judging.operating import Array, resampled_sums, share, shown

SEPARABLE = "validation films are told apart without a fault, so that no temperature is the best"
REVERSED = "the score falls where the finding is, so that no temperature calibrates it"


@dataclass(frozen=True)
class Scale:
    """The calibrated logit is `logit / temperature + bias`."""

    temperature: float
    bias: float

    def probability(self, logits: NDArray[Any]) -> Array:
        """Calibrated probabilities."""
        return sigmoid(logits / self.temperature + self.bias)


class NoScaleError(ValueError):
    """Validation films fix no temperature; the message says why."""


def sigmoid(logits: NDArray[Any]) -> Array:
    """Probabilities of logits, without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0, -np.asarray(logits, float))))


def fit(targets: NDArray[Any], logits: NDArray[Any]) -> Scale:
    """Temperature and bias of the highest likelihood (Platt 1999, of logits, without his prior).

    Args:
        targets: (row,) 1, 0 or NaN, with both.
        logits: (row,).

    Raises:
        NoScaleError: the films are separable, or the best temperature is not positive.
    """
    is_known = ~np.isnan(targets)
    there, given = targets[is_known] == 1, logits[is_known].astype(float)
    if given[there].min() >= given[~there].max():
        raise NoScaleError(SEPARABLE)
    center, spread = given.mean(), given.std() or 1.0  # for the solver's sake: the optimum does not depend on it
    fitted = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(((given - center) / spread)[:, None], there)
    slope = float(fitted.coef_[0, 0]) / spread
    if slope <= 0:
        raise NoScaleError(REVERSED)
    return Scale(1 / slope, float(fitted.intercept_[0]) - slope * center)


def brier(probabilities: Array, targets: NDArray[Any], patients: NDArray[np.int64], weights: NDArray[Any]) -> Array:
    """Mean squared error of probabilities in every replicate: (replicate, finding) (Brier 1950)."""
    is_known = ~np.isnan(targets)
    errors = np.where(is_known, (probabilities - targets) ** 2, 0)
    sums = resampled_sums(np.concatenate([errors, is_known], axis=1), patients, weights)
    return share(*np.split(sums, 2, axis=1))


def bins_of(probabilities: Array, targets: NDArray[Any], bins: int) -> NDArray[np.int64]:
    """The bin of each row, films of a finding in equal parts by their probability; -1 where the label is not known.

    Args:
        probabilities: (row,).
        targets: (row,) 1, 0 or NaN.
        bins: how many; fewer where there are fewer films.
    """
    placed = np.full(len(targets), -1)
    known = np.flatnonzero(~np.isnan(targets))
    ordered = known[np.argsort(probabilities[known], kind="stable")]
    for place, rows in enumerate(np.array_split(ordered, min(bins, max(len(ordered), 1)))):
        placed[rows] = place
    return placed


@dataclass(frozen=True)
class Errors:
    """Expected calibration errors with bins of equal mass, those of the sample.

    Attributes:
        found: (1 + replicate, finding); the first row is the estimate, NaN without a known label.
        by_chance: (replicate, finding) what a perfectly calibrated model would show on such films: a replicate's bins
            less the sample's, whose expectation is nothing.
    """

    found: Array
    by_chance: Array

    def shown(self, column: int, confidence: float) -> dict[str, Any]:
        """One finding's error with its interval, for JSON.

        An error is a sum of distances, which chance makes larger: where a perfectly calibrated model's would be as
        large in 1 of 1 / (1 - confidence) samples or more, the interval reaches 0. `by_chance` is its mean.
        """
        found = shown(self.found[:, column], confidence)
        chance = self.by_chance[:, column]
        if found["value"] is None or np.isnan(chance).all():
            return found | {"by_chance": None}
        if found["low"] is not None and found["value"] <= np.nanquantile(chance, confidence):
            found["low"] = 0.0
        return found | {"by_chance": round(float(np.nanmean(chance)), 6)}


def calibration_errors(
    probabilities: Array, targets: NDArray[Any], patients: NDArray[np.int64], weights: NDArray[Any], bins: int
) -> Errors:
    """Expected calibration errors of every finding (Naeini et al. 2015, with bins of equal mass as Nixon et al. 2019).

    Args:
        probabilities: (row, finding).
        targets: (row, finding) 1, 0 or NaN.
        patients: (row,) each row's place in `weights`.
        weights: (patient, 1 + replicate), ones first.
        bins: how many.
    """
    found = np.full((weights.shape[1], targets.shape[1]), np.nan)
    by_chance = found[1:].copy()
    for column in range(targets.shape[1]):
        placed = bins_of(probabilities[:, column], targets[:, column], bins)
        rows = np.flatnonzero(placed >= 0)
        if not len(rows):
            continue
        apart = np.zeros((len(rows), placed.max() + 2))
        apart[np.arange(len(rows)), placed[rows]] = probabilities[rows, column] - targets[rows, column]
        apart[:, -1] = 1
        sums = resampled_sums(apart, patients[rows], weights)
        of_bins = share(sums[:, :-1], np.repeat(sums[:, -1:], placed.max() + 1, axis=1))
        found[:, column] = np.abs(of_bins).sum(axis=1)
        by_chance[:, column] = np.abs(of_bins[1:] - of_bins[0]).sum(axis=1)
    return Errors(found, by_chance)


def reliability(probabilities: Array, targets: NDArray[Any], bins: int) -> list[dict[str, Any]]:
    """The reliability curve of one finding: films, mean probability and share of positives of each bin."""
    placed = bins_of(probabilities, targets, bins)
    return [
        {
            "films": int((placed == place).sum()),
            "probability": round(float(probabilities[placed == place].mean()), 6),
            "observed": round(float(targets[placed == place].mean()), 6),
        }
        for place in range(placed.max(initial=-1) + 1)
    ]
