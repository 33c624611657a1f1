"""How well a class map points at drawn boxes: pointing game, IoBB and energy; chance and the usual place as controls.

A map is read in three ways, each a distribution over pixels: where its maximum is, which box it detects, where its mass
is. A score is the share of that distribution inside the drawn boxes: a constant map scores the share of the film that
the boxes cover; a pixel that a box cuts and a maximum that spreads over several pixels count by their share.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stages.judging import metrics

Array = NDArray[np.float64]
TIE = 1e-9  # pixels this close to the maximum, relative to it, are the maximum: rounding noise of the interpolation
BLOCK = 50  # random maps that are scored at once


@dataclass(frozen=True)
class Reading:
    """What a map says, as distributions over the film's pixels, each (size_px, size_px) and of sum 1.

    Attributes:
        peak: even over the pixels where the map is largest.
        detected: even over the detected box: the bounding box of the connected region (by edges) of pixels above zero
            and at or above the map's quantile that holds the maximum; of several such regions the one of most mass.
        mass: the map over its sum.
    """

    peak: Array
    detected: Array
    mass: Array


def enlarge(maps: NDArray[np.floating], size_px: int) -> Array:
    """Maps (n, height, width) on the film's grid (n, size_px, size_px), bilinear between the cells' centres."""
    rows, columns = _interpolation(maps.shape[1], size_px), _interpolation(maps.shape[2], size_px)
    enlarged: Array = rows @ np.asarray(maps, np.float64) @ columns.T
    return enlarged


def _interpolation(cells: int, size_px: int) -> Array:
    """The (size_px, cells) matrix that interpolates linearly; beyond the outer cells' centres their value holds."""
    place = np.clip((np.arange(size_px) + 0.5) * cells / size_px - 0.5, 0, cells - 1)
    matrix: Array = np.clip(1 - np.abs(place[:, None] - np.arange(cells)), 0, None)
    return matrix


def box_mask(boxes: NDArray[np.floating], size_px: int) -> Array:
    """How much of each pixel the boxes cover.

    Args:
        boxes: (box, 4) as x, y, width, height in fractions of the film's side.
        size_px: the film's side.

    Returns:
        (size_px, size_px) in [0, 1]; where boxes overlap, the larger cover holds.
    """
    edges = np.arange(size_px + 1) / size_px
    x, y, width, height = (np.asarray(boxes, np.float64)[:, column, None] for column in range(4))
    across = _overlap(edges, x, x + width)  # (box, size_px)
    down = _overlap(edges, y, y + height)
    mask: Array = (down[:, :, None] * across[:, None, :]).max(axis=0)
    return mask


def _overlap(edges: Array, low: Array, high: Array) -> Array:
    """The share of each interval between edges that lies within [low, high]."""
    inside = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    shares: Array = np.clip(inside, 0, None) / np.diff(edges)
    return shares


def read(enlarged: Array, quantile: float) -> Reading:
    """Read one map (size_px, size_px) of numbers that are not negative; a map of zeros reads as a constant one.

    Raises:
        ValueError: the map has a negative or undefined number.
    """
    if not np.isfinite(enlarged).all() or enlarged.min() < 0:
        raise ValueError(f"a class map must be finite and not negative, got a minimum of {enlarged.min()}")
    if enlarged.max() == 0:
        even = np.full(enlarged.shape, 1 / enlarged.size)
        return Reading(even, even, even)
    peak = enlarged >= enlarged.max() * (1 - TIE)
    regions, count = ndimage.label((enlarged > 0) & (enlarged >= np.quantile(enlarged, quantile) * (1 - TIE)))
    masses = ndimage.sum_labels(enlarged, regions, np.arange(1, count + 1))
    masses[~np.isin(np.arange(1, count + 1), regions[peak])] = 0
    detected = np.zeros(enlarged.shape)
    detected[ndimage.find_objects(regions)[int(np.argmax(masses))]] = 1
    return Reading(peak / peak.sum(), detected / detected.sum(), enlarged / enlarged.sum())


def score_names(thresholds: list[float]) -> list[str]:
    """The scores of a map, in the order of `score`'s columns."""
    return ["pointing", "energy", "iobb", *(f"iobb_over_{threshold:g}" for threshold in thresholds)]


def score(readings: list[Reading], masks: Array, thresholds: list[float]) -> Array:
    """Score each reading against each film's boxes.

    Args:
        readings: of maps.
        masks: (film, size_px, size_px) from `box_mask`.
        thresholds: for the accuracy at IoBB: 1 where the IoBB is above the threshold, else 0.

    Returns:
        (reading, film, score): pointing game, energy (share of the map's mass inside), IoBB (share of the detected box
        inside: Wang et al., arXiv 1705.02315), then one accuracy per threshold.
    """
    flat = masks.reshape(len(masks), -1).T  # (pixel, film)
    shares = [
        np.stack([getattr(reading, part) for reading in readings]).reshape(len(readings), -1) @ flat
        for part in ("peak", "mass", "detected")
    ]
    shares += [(shares[2] > threshold + TIE).astype(np.float64) for threshold in thresholds]
    return np.stack(shares, axis=2)


def score_pairs(maps: Array, masks: Array, quantile: float, thresholds: list[float]) -> Array:
    """Score the map of each (film, finding) pair against its own boxes.

    Args:
        maps: (pair, height, width) on any grid; a map of NaN is one that does not exist.
        masks: (pair, size_px, size_px) from `box_mask`.
        quantile: see `Reading.detected`.
        thresholds: see `score`.

    Returns:
        (pair, score), NaN where there is no map.
    """
    scores = np.full((len(masks), len(score_names(thresholds))), np.nan)
    for pair in np.flatnonzero(~np.isnan(maps).any(axis=(1, 2))):
        reading = read(enlarge(maps[pair : pair + 1], masks.shape[1])[0], quantile)
        scores[pair] = score([reading], masks[pair : pair + 1], thresholds)[0, 0]
    return scores


def score_random(
    grid: tuple[int, int], masks: Array, draws: int, quantile: float, thresholds: list[float], rng: np.random.Generator
) -> Array:
    """The mean score of `draws` random maps on each film: (film, score).

    A random map has independent uniform numbers in the cells of a model's grid and is enlarged as the model's is.
    """
    size_px, total = masks.shape[1], np.zeros((len(masks), len(score_names(thresholds))))
    for start in range(0, draws, BLOCK):
        drawn = enlarge(rng.random((min(BLOCK, draws - start), *grid)), size_px)
        total += score([read(one, quantile) for one in drawn], masks, thresholds).sum(axis=0)
    return total / draws


def prior_maps(masks: Array, findings: NDArray[Any], patients: NDArray[Any]) -> Array:
    """The usual place of each pair's finding: the mean box mask of that finding over the other patients.

    Returns:
        (pair, size_px, size_px); NaN where no other patient has a box of that finding.
    """
    priors = np.full(masks.shape, np.nan)
    for finding in np.unique(findings):
        of_finding = findings == finding
        total, count = masks[of_finding].sum(axis=0), of_finding.sum()
        for patient in np.unique(patients[of_finding]):
            own = of_finding & (patients == patient)
            if count > own.sum():
                rest = (total - masks[own].sum(axis=0)) / (count - own.sum())
                priors[own] = np.clip(rest, 0, None)  # the subtraction may leave -1e-17
    return priors


def finding_means(scores: Array, findings: NDArray[Any], weights: Array) -> tuple[list[str], Array]:
    """Weighted mean score of each finding, and of the findings' means.

    Args:
        scores: (pair, score), NaN where a pair has none.
        findings: (pair,) the finding of each.
        weights: (pair, replicate).

    Returns:
        The findings, sorted, and (finding + 1, score, replicate), whose last row is the mean over findings; NaN where a
        finding has no weight, and in the last row only where no finding has any.
    """
    names = sorted(set(findings))
    has = ~np.isnan(scores)
    filled = np.where(has, scores, 0)
    sums = np.empty((len(names) + 1, scores.shape[1], weights.shape[1]))
    for place, name in enumerate(names):
        rows = findings == name
        weight = has[rows].T.astype(float) @ weights[rows]
        with np.errstate(invalid="ignore"):
            sums[place] = np.where(weight > 0, filled[rows].T @ weights[rows] / weight, np.nan)
    known = ~np.isnan(sums[:-1])
    with np.errstate(invalid="ignore"):
        sums[-1] = np.where(known.any(axis=0), np.where(known, sums[:-1], 0).sum(axis=0) / known.sum(axis=0), np.nan)
    return names, sums


def intervals(
    scores: dict[str, Array],
    findings: NDArray[Any],
    patients: NDArray[np.int64],
    weights: NDArray[np.uint16],
    confidence: float,
) -> dict[str, dict[str, list[dict[str, float | None]]]]:
    """Value and patient-bootstrap interval of each maker's scores and of the paired differences to `distilled`.

    Args:
        scores: maker (a model or a control) -> (pair, score).
        findings: (pair,).
        patients: (pair,) each pair's place in `weights`.
        weights: (patient, replicate) from `metrics.patient_weights`, shared, so that differences are paired.
        confidence: of the interval; it is null where all pairs are of one patient.

    Returns:
        finding, or `mean` -> maker, `distilled_minus_<other>`, or `<model>_minus_random` -> one {value, low, high} a
        score. A difference is over the pairs where both are defined.
    """
    compared: dict[str, tuple[Array, Array | None]] = {name: (values, None) for name, values in scores.items()}
    for other, values in scores.items():
        if other != "distilled":
            compared[f"distilled_minus_{other}"] = (scores["distilled"], values)
        if other in ("teacher", "twin") and "random" in scores:
            compared[f"{other}_minus_random"] = (values, scores["random"])
    drawn = weights[patients].astype(np.float64)  # (pair, replicate)
    found: dict[str, dict[str, list[dict[str, float | None]]]] = {}
    for label, (one, other_scores) in compared.items():
        values = one if other_scores is None else one - other_scores
        names, observed = finding_means(values, findings, np.ones((len(values), 1)))
        replicates = finding_means(values, findings, drawn)[1]
        for place, name in enumerate([*names, "mean"]):
            rows = np.ones(len(findings), bool) if name == "mean" else findings == name
            if len(np.unique(patients[rows])) < 2:
                replicates[place] = np.nan  # resampling one patient shows no spread, which is not a certain value
            found.setdefault(name, {})[label] = [
                _with_interval(float(observed[place, column, 0]), replicates[place, column], confidence)
                for column in range(values.shape[1])
            ]
    return found


def _with_interval(value: float, replicates: Array, confidence: float) -> dict[str, float | None]:
    """A value and its interval for JSON."""
    if np.isnan(value):
        return {"value": None, "low": None, "high": None}
    bounds = metrics.interval(replicates, confidence)
    return {"value": _rounded(value), "low": _rounded(bounds.low), "high": _rounded(bounds.high)}


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 6)
