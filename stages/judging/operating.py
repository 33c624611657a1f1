"""Operating points: a threshold a finding, chosen on validation films by a named rule, and what its calls are worth."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from stages.judging import evaluation

Array = NDArray[np.float64]

FIGURES = "sensitivity", "specificity", "ppv", "npv", "f1"
FEW_POSITIVES = "too few positives on validation"
FEW_NEGATIVES = "too few negatives on validation"


def threshold(targets: NDArray[Any], scores: NDArray[Any], rule: str, sensitivity: float) -> float:
    """The score from which on a film is called.

    Args:
        targets: (row,) 1, 0 or NaN, with both.
        scores: (row,) of the same films.
        rule: `sensitivity`: the highest score that calls this share of the positives; `youden`: the highest where
            sensitivity + specificity is largest (Youden 1950); `prevalence`: that calls as many films as are positive.
        sensitivity: of the first rule.
    """
    is_known = ~np.isnan(targets)
    positive, known = targets[is_known] == 1, scores[is_known].astype(float)
    if rule == "prevalence":
        return float(np.sort(known)[::-1][int(positive.sum()) - 1])
    false_share, true_share, levels = roc_curve(positive, known, drop_intermediate=False)
    if rule == "youden":
        return float(levels[1:][np.argmax((true_share - false_share)[1:])])
    return float(levels[np.argmax(true_share >= sensitivity - 1e-9)])


def no_choice(targets: NDArray[Any], fewest: int) -> str | None:
    """Why validation films are too few to choose by, if they are.

    Args:
        targets: (row,) 1, 0 or NaN.
        fewest: positives, and negatives, that there must be.
    """
    if (targets == 1).sum() < fewest:
        return FEW_POSITIVES
    return FEW_NEGATIVES if (targets == 0).sum() < fewest else None


def resampled_sums(values: NDArray[Any], patients: NDArray[np.int64], weights: NDArray[Any]) -> Array:
    """Sums over rows in every replicate, each row as often as its patient is drawn.

    Args:
        values: (row, column).
        patients: (row,) each row's place in `weights`.
        weights: (patient, replicate).

    Returns:
        (replicate, column).
    """
    of_patient = np.zeros((len(weights), values.shape[1]))
    np.add.at(of_patient, patients, values)
    return np.asarray(weights.T.astype(np.float64) @ of_patient)


def figures(
    called: NDArray[np.bool_], targets: NDArray[Any], patients: NDArray[np.int64], weights: NDArray[Any]
) -> dict[str, Array]:
    """What calls are worth in every replicate: each of FIGURES, (replicate, finding), NaN where it has no rows.

    Args:
        called: (row, finding).
        targets: (row, finding) 1, 0 or NaN.
        patients: (row,) each row's place in `weights`.
        weights: (patient, replicate).
    """
    is_there, is_absent = targets == 1, targets == 0
    kinds = np.concatenate([called & is_there, called & is_absent, ~called & is_there, ~called & is_absent], axis=1)
    true_called, false_called, missed, passed = np.split(resampled_sums(kinds, patients, weights), 4, axis=1)
    return {
        "sensitivity": share(true_called, true_called + missed),
        "specificity": share(passed, passed + false_called),
        "ppv": share(true_called, true_called + false_called),
        "npv": share(passed, passed + missed),
        "f1": share(2 * true_called, 2 * true_called + false_called + missed),
    }


def share(part: Array, whole: Array) -> Array:
    """A quotient; NaN where the whole is nothing."""
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


def shown(values: Array, confidence: float) -> dict[str, Any]:
    """An estimate (first value) with the interval of its replicates (the others), for JSON."""
    found = evaluation.estimate(values, "value", "", confidence)
    return found if found["value"] is not None else found | {"low": None, "high": None}
