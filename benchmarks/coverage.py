"""Do the intervals hold what they promise? Simulated films whose truth is known, tested as the pipeline tests.

`python -m benchmarks.coverage` writes reports/coverage.md: how often the interval over patients holds the truth.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import stats

from stages.core import seeds
from stages.judging import calibration, metrics, operating
from stages.pipeline import by_hand

REPORT = Path("reports/coverage.md")
CONFIDENCE = 0.95
BINS = 10
MANY = 2_000_000  # films that stand for all there are

Array = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """What films are drawn from: a patient's films share part of their score's noise.

    Attributes:
        prevalence: of the finding.
        distance: of the positives' mean score from that of the negatives, in standard deviations.
        shared: share of the noise's variance that a patient's films have in common.
        slope: the stated logit is this times the true one, plus `bias`.
        bias: see slope.
    """

    prevalence: float
    distance: float
    shared: float
    slope: float
    bias: float

    def drawn(self, patients: int, rng: np.random.Generator) -> tuple[Array, Array, NDArray[np.int64]]:
        """Targets, scores and patients of films, one to four a patient."""
        patient = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
        targets = (rng.random(len(patient)) < self.prevalence).astype(float)
        common = rng.standard_normal(patients)[patient]
        noise = np.sqrt(self.shared) * common + np.sqrt(1 - self.shared) * rng.standard_normal(len(patient))
        return targets, self.distance * targets + noise, patient

    def stated(self, scores: Array) -> Array:
        """The probabilities that a model states of these scores."""
        odds = np.log(self.prevalence / (1 - self.prevalence))
        return calibration.sigmoid(self.slope * (self.distance * scores - self.distance**2 / 2 + odds) + self.bias)


WORLDS = {
    "common finding, calibrated": World(0.3, 1.2, 0.3, 1.0, 0.0),
    "common finding, overconfident": World(0.3, 1.2, 0.3, 1.8, 0.0),
    "rare finding, shifted": World(0.05, 1.5, 0.3, 1.0, 1.0),
    "hard finding, underconfident": World(0.2, 0.5, 0.3, 0.4, 0.0),
}
Figure = Callable[[World, Array, Array, NDArray[np.int64], Array], dict[str, Any]]


def auroc(_: World, targets: Array, scores: Array, patients: NDArray[np.int64], weights: Array) -> dict[str, Any]:
    """AUROC with its interval."""
    found = metrics.resample(targets[:, None], scores[:, None], patients, weights)[0]
    return operating.shown(found[:, 0], CONFIDENCE)


def sensitivity(
    world: World, targets: Array, scores: Array, patients: NDArray[np.int64], weights: Array
) -> dict[str, Any]:
    """Sensitivity with its interval, films called from half way between the two means on."""
    called = scores[:, None] >= world.distance / 2
    found = operating.figures(called, targets[:, None], patients, weights)["sensitivity"]
    return operating.shown(found[:, 0], CONFIDENCE)


def error(world: World, targets: Array, scores: Array, patients: NDArray[np.int64], weights: Array) -> dict[str, Any]:
    """Expected calibration error with its interval."""
    found = calibration.calibration_errors(world.stated(scores)[:, None], targets[:, None], patients, weights, BINS)
    return found.shown(0, CONFIDENCE)


def true_error(world: World) -> float:
    """The calibration error of all there are, with as many bins."""
    targets, scores, _ = world.drawn(MANY // 2, seeds.of("coverage", "all"))
    nobody, once = np.zeros(len(targets), np.int64), np.ones((1, 1))
    stated = world.stated(scores)[:, None]
    return float(calibration.calibration_errors(stated, targets[:, None], nobody, once, BINS).found[0, 0])


FIGURES: dict[str, tuple[Figure, Callable[[World], float]]] = {
    "AUROC": (auroc, lambda world: float(stats.norm.cdf(world.distance / np.sqrt(2)))),
    "sensitivity": (sensitivity, lambda world: float(stats.norm.cdf(world.distance / 2))),
    "calibration error": (error, true_error),
}


def holds(world: World, figure: Figure, truth: float, patients: int, replicates: int, number: int) -> float:
    """Whether one test's interval holds the truth; NaN where it is undefined."""
    rng = seeds.of("coverage", patients, number)
    targets, scores, patient = world.drawn(patients, rng)
    drawn = metrics.patient_weights(patients, replicates, rng)
    weights = np.concatenate([np.ones((patients, 1), drawn.dtype), drawn], axis=1)
    found = figure(world, targets, scores, patient, weights)
    return np.nan if found["low"] is None else float(found["low"] <= truth <= found["high"])


def main() -> None:
    """Simulate, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=int, default=1000, help="simulated test sets of each line")
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--patients", type=int, nargs="+", default=[300, 1000])
    args = parser.parse_args()
    lines = [
        "# How often 95% intervals hold the truth",
        "",
        f"`python -m benchmarks.coverage`: {args.tests} simulated test sets a line, one to four films a patient, "
        f"{args.replicates} bootstrap replicates over patients. By chance alone a share of .95 comes out within "
        f"{1.96 * np.sqrt(0.95 * 0.05 / args.tests):.3f} of it 19 times in 20. Intervals of single findings; those of "
        "means over findings, of differences and of gaps were not tried.",
        "",
        "| films | figure | truth | patients | held |",
        "|---|---|---|---|---|",
    ]
    for name, world in WORLDS.items():
        for what, (figure, truth_of) in FIGURES.items():
            truth = truth_of(world)
            for patients in args.patients:
                held = Parallel(n_jobs=-1)(
                    delayed(holds)(world, figure, truth, patients, args.replicates, number)
                    for number in range(args.tests)
                )
                lines.append(f"| {name} | {what} | {truth:.4f} | {patients} | {np.nanmean(held):.3f} |")
                print(lines[-1], flush=True)
    REPORT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    by_hand.stamp("coverage")


if __name__ == "__main__":
    main()
