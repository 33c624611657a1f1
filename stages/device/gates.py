"""How far a variant of a model answers as the model does, on films of one data set, and whether that is too far."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.judging import calibration, evaluation, localisation, metrics, operating


class GateError(RuntimeError):
    """A variant is beyond a limit of params.yaml; the message names it, the figure and the limit."""


@dataclass(frozen=True)
class Tested:
    """Films of a data set with known labels, and what validation films chose of the model.

    Attributes:
        findings: names.
        targets: (film, finding) 1, 0 or NaN.
        patients: (film,) the place of each film's patient in `weights`.
        weights: (patient, 1 + replicate), ones first.
        thresholds: (finding,) logits from which on a film is called; NaN without one.
        temperatures: (finding,); NaN without one.
        biases: (finding,).
        confidence: of intervals.
    """

    findings: list[str]
    targets: NDArray[np.floating]
    patients: NDArray[np.int64]
    weights: NDArray[Any]
    thresholds: NDArray[np.floating]
    temperatures: NDArray[np.floating]
    biases: NDArray[np.floating]
    confidence: float


def compare(
    tested: Tested,
    model: NDArray[np.floating],
    variant: NDArray[np.floating],
    points: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Of a model and its variant on the same films: variant minus model.

    Args:
        tested: the films.
        model: (film, finding) logits.
        variant: the same of the variant.
        points: as `pointing` returns it, where both have class maps.

    Returns:
        `auroc`, the mean over findings with its paired interval; `worst`, the finding that loses most; `spearman` and
        `flipped` (share of films whose call changes) a finding and their mean; `brier`, of calibrated probabilities;
        the logits' mean difference; `pointing`, as it was given.
    """
    drawn = tested.patients, tested.weights
    areas = [metrics.resample(tested.targets, logits, *drawn)[0] for logits in (model, variant)]
    lost = areas[1] - areas[0]  # (1 + replicate, finding)
    defined = [column for column in range(len(tested.findings)) if np.isfinite(lost[0, column])]
    ranks = {name: _alike(model[:, column], variant[:, column]) for column, name in enumerate(tested.findings)}
    called = [np.where(np.isnan(tested.thresholds), np.nan, logits >= tested.thresholds) for logits in (model, variant)]
    flips = {
        name: float(np.mean(called[0][:, column] != called[1][:, column]))
        for column, name in enumerate(tested.findings)
        if not np.isnan(tested.thresholds[column])
    }
    scores, is_scaled = [], np.isfinite(tested.temperatures)
    for logits in (model, variant):
        scaled = logits / np.where(is_scaled, tested.temperatures, 1) + np.nan_to_num(tested.biases)
        stated = calibration.sigmoid(scaled)
        scores.append(calibration.brier(stated, np.where(is_scaled, tested.targets, np.nan), *drawn))
    brier = (scores[1] - scores[0])[:, [column for column in defined if is_scaled[column]]]
    worst = min(defined, key=lambda column: lost[0, column], default=None)
    return {
        "films": len(model),
        "pointing": points,
        "auroc": operating.shown(lost[:, defined].mean(axis=1), tested.confidence) if defined else None,
        "worst": None if worst is None else {"finding": tested.findings[worst], "lost": _rounded(lost[0, worst])},
        "spearman": {name: _rounded(value) for name, value in ranks.items()},
        "lowest_spearman": _rounded(min((value for value in ranks.values() if np.isfinite(value)), default=np.nan)),
        "flipped": {name: _rounded(value) for name, value in flips.items()},
        "flipped_mean": _rounded(float(np.mean([*flips.values()])) if flips else np.nan),
        "brier": operating.shown(brier.mean(axis=1), tested.confidence) if brier.shape[1] else None,
        "mean_abs_difference": _rounded(float(np.abs(variant - model).mean())),
    }


def pointing(
    scores: dict[str, NDArray[np.float64]],
    findings: NDArray[Any],
    patients: NDArray[np.int64],
    weights: NDArray[Any],
    confidence: float,
) -> dict[str, Any]:
    """How much better a variant's class maps point at drawn boxes than the model's, mean over findings.

    Args:
        scores: `model` and `variant` -> (pair,) pointing score of each film and finding with boxes.
        findings: (pair,).
        patients: (pair,) the place of each film's patient in `weights`.
        weights: (patient, 1 + replicate), ones first.
        confidence: of the interval.
    """
    drawn = weights[patients].astype(float)
    means = {
        name: localisation.finding_means(values[:, None], findings, drawn)[1][-1, 0] for name, values in scores.items()
    }
    change = operating.shown(means["variant"] - means["model"], confidence)
    return {"pairs": len(findings), "model": _rounded(means["model"][0]), **change}


def _alike(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Spearman's correlation; NaN where either is the same for all films."""
    if min(np.ptp(one), np.ptp(other)) == 0:
        return np.nan
    return float(pd.Series(one).corr(pd.Series(other), method="spearman"))


def _rounded(value: float) -> float | None:
    return evaluation.rounded(float(value)) if np.isfinite(value) else None


def require(name: str, dataset: str, found: dict[str, Any], limits: Any) -> None:
    """Check a variant against the limits.

    Args:
        name: of the variant.
        dataset: whose films they are.
        found: as `compare` returns it.
        limits: `export.limits` of params.yaml: `auroc` (largest loss of the mean), `interval` (no end of its interval
            is further from 0), `flipped` (largest share of calls that change, mean over findings), `pointing` (loss of
            the class maps' score).

    Raises:
        GateError: it is beyond one.
    """
    faults, lost = [], found["auroc"]
    if lost is not None and -lost["value"] > limits.auroc:
        faults.append(f"mean AUROC {lost['value']:+.4f}, {limits.auroc:g} may be lost")
    reach = max((abs(lost[end]) for end in ("low", "high") if lost and lost[end] is not None), default=0.0)
    if reach > limits.interval:
        faults.append(f"the interval of that reaches {reach:.4f} from 0, {limits.interval:g} is allowed")
    if (found["flipped_mean"] or 0) > limits.flipped:
        faults.append(f"{found['flipped_mean']:.1%} of calls change, {limits.flipped:.1%} may")
    if (found["pointing"] or {"value": 0})["value"] < -limits.pointing:
        faults.append(f"its maps' pointing {found['pointing']['value']:+.4f}, {limits.pointing:g} may be lost")
    if faults:
        raise GateError(
            f"{name} answers otherwise than student.onnx on {dataset}: {'; '.join(faults)} (export.limits): take it "
            "out of export.variants, or mend how it is made"
        )
