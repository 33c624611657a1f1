"""AUROC, average precision and their patient bootstrap: closed forms, scikit-learn, and what an interval must do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from stages.core import seeds
from stages.judging import metrics

ROWS = st.integers(2, 60)


@st.composite
def weighted_cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets with both classes, scores with many ties, weights."""
    rows = draw(ROWS)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    targets = rng.integers(0, 2, rows).astype(float)
    targets[:2] = 0, 1
    scores = rng.integers(0, draw(st.integers(1, 20)), rows).astype(np.float32)
    weights = rng.integers(0, 4, rows).astype(float) * draw(st.sampled_from([1.0, 0.37]))
    weights[:2] = 1
    return targets, scores, weights


def test_auroc_of_one_tie_among_four_pairs_is_seven_eighths() -> None:
    assert metrics.auroc(np.array([0, 0, 1, 1.0]), np.array([1, 2, 2, 3.0])) == 7 / 8


def test_average_precision_by_hand() -> None:
    # thresholds 3, 2, 1: precision 1, 1/2, 2/3 and gains in recall 1/2, 0, 1/2
    assert metrics.average_precision(np.array([1, 0, 1.0]), np.array([3, 2, 1.0])) == pytest.approx(1 / 2 + 1 / 3)


@given(weighted_cases())
@settings(max_examples=150, deadline=None)
def test_weighted_areas_equal_scikit_learns(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    targets, scores, weights = case
    assert metrics.auroc(targets, scores, weights) == pytest.approx(
        roc_auc_score(targets, scores, sample_weight=weights), abs=1e-12
    )
    assert metrics.average_precision(targets, scores, weights) == pytest.approx(
        average_precision_score(targets, scores, sample_weight=weights), abs=1e-12
    )


@given(weighted_cases())
@settings(max_examples=50, deadline=None)
def test_reversed_scores_give_the_complement(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    targets, scores, weights = case
    straight, reverse = metrics.auroc(targets, scores, weights), metrics.auroc(targets, -scores, weights)
    assert straight is not None
    assert reverse is not None
    assert straight + reverse == pytest.approx(1)


@pytest.mark.parametrize(
    ("targets", "reason"),
    [([0, 0, np.nan], "no positives"), ([1, np.nan, 1], "no negatives"), ([np.nan] * 3, "no labels")],
)
def test_an_undefined_metric_is_none_with_its_reason(targets: list[float], reason: str) -> None:
    column = np.array(targets, float)
    assert metrics.auroc(column, np.arange(3.0)) is None
    assert metrics.average_precision(column, np.arange(3.0)) is None
    assert metrics.undefined_because(column) == reason


def test_masked_rows_do_not_count() -> None:
    targets, scores = np.array([0, 1, np.nan, 1, 0]), np.array([1, 2, 99.0, 0, -1])
    kept = ~np.isnan(targets)
    assert metrics.auroc(targets, scores) == roc_auc_score(targets[kept], scores[kept])


def test_mean_auroc_is_over_the_defined_findings() -> None:
    targets = np.array([[0, 0, np.nan], [1, 0, np.nan], [1, 0, np.nan]])
    scores = np.array([[0, 1, 2], [1, 1, 2], [-1, 1, 2.0]])
    assert metrics.mean_auroc(targets, scores) == 0.5
    assert metrics.mean_auroc(targets[:, 1:], scores[:, 1:]) is None


def _cohort(patients: int, images: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets and scores of two findings that differ between patients; every patient has `images` alike images."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((patients, 2)) < [0.3, 0.1]).astype(float)
    scores = rng.standard_normal((patients, 2)) + targets
    return np.repeat(targets, images, 0), np.repeat(scores, images, 0), np.repeat(np.arange(patients), images)


def width(interval: metrics.Interval) -> float:
    """From end to end of an interval that must be defined."""
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


def test_replicates_equal_scikit_learn_on_the_drawn_rows() -> None:
    targets, scores, patients = _cohort(40, 2, seed=1)
    weights = metrics.patient_weights(40, 20, seeds.of("test"))
    auroc, ap = metrics.resample(targets, scores, patients, weights)
    for replicate in range(20):
        rows = np.repeat(np.arange(80), weights[patients, replicate])
        assert auroc[replicate, 0] == pytest.approx(roc_auc_score(targets[rows, 0], scores[rows, 0]), abs=1e-12)
        assert ap[replicate, 0] == pytest.approx(average_precision_score(targets[rows, 0], scores[rows, 0]), abs=1e-12)


def test_a_patient_comes_and_goes_with_all_images() -> None:
    weights = metrics.patient_weights(30, 50, seeds.of("test"))
    assert (weights.sum(axis=0) == 30).all()
    assert (weights == 0).any()
    assert not np.array_equal(weights, metrics.patient_weights(30, 50, seeds.of("control")))


def test_replicates_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, scores, patients = _cohort(50, 2, seed=2)
    weights = metrics.patient_weights(50, 64, seeds.of("test"))
    whole = metrics.resample(targets, scores, patients, weights)
    monkeypatch.setattr(metrics, "BLOCK_BYTES", 8 * 101 * 3)
    parts = metrics.resample(targets, scores, patients, weights)
    np.testing.assert_allclose(whole, parts, rtol=1e-14)


def test_duplicated_images_do_not_narrow_the_interval() -> None:
    widths = {}
    for images in (1, 8):
        targets, scores, patients = _cohort(100, images, seed=3)
        drawn = metrics.patient_weights(100, 400, seeds.of("test"))
        clustered = metrics.interval(metrics.resample(targets, scores, patients, drawn)[0][:, 0], 0.95)
        rows = np.arange(len(targets))
        by_image = metrics.patient_weights(len(rows), 400, seeds.of("test"))
        naive = metrics.interval(metrics.resample(targets, scores, rows, by_image)[0][:, 0], 0.95)
        widths[images] = width(clustered), width(naive)
    assert widths[8][0] == pytest.approx(widths[1][0])
    assert widths[8][1] < 0.5 * widths[8][0]


def test_a_paired_interval_is_narrower_than_an_unpaired_one() -> None:
    targets, scores, patients = _cohort(200, 1, seed=4)
    other = scores + 0.1 * np.random.default_rng(5).standard_normal(scores.shape)
    drawn, redrawn = (metrics.patient_weights(200, 500, seeds.of("test", name)) for name in ("one", "two"))
    first = metrics.resample(targets, scores, patients, drawn)[0][:, 0]
    paired = metrics.interval(first - metrics.resample(targets, other, patients, drawn)[0][:, 0], 0.95)
    unpaired = metrics.interval(first - metrics.resample(targets, other, patients, redrawn)[0][:, 0], 0.95)
    assert width(paired) < 0.5 * width(unpaired)


def test_the_interval_covers_the_true_auroc_about_as_often_as_it_says() -> None:
    truth = 0.7602499389065233  # of unit normals one apart: Phi(1 / sqrt 2)
    covered = 0
    drawn = metrics.patient_weights(150, 300, seeds.of("coverage"))
    for trial in range(200):
        targets, scores, patients = _cohort(150, 1, seed=100 + trial)
        found = metrics.interval(metrics.resample(targets[:, :1], scores[:, :1], patients, drawn)[0][:, 0], 0.9)
        covered += found.low is not None and found.high is not None and found.low <= truth <= found.high
    assert 0.84 <= covered / 200 <= 0.96


def test_undefined_replicates_are_dropped_and_counted() -> None:
    values = np.array([0.5] * 6 + [np.nan] * 4)
    assert metrics.interval(values, 0.9) == metrics.Interval(0.5, 0.5, 4)
    assert metrics.interval(values[2:], 0.9) == metrics.Interval(None, None, 4)


@pytest.mark.parametrize(("low", "high", "excludes"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False)])
def test_excluding_zero(low: float, high: float, excludes: bool) -> None:
    assert metrics.Interval(low, high, 0).excludes_zero is excludes
    assert metrics.Interval(None, None, 9).excludes_zero is None


def test_one_positive_patient_leaves_replicates_out() -> None:
    targets = np.zeros((50, 1))
    targets[0] = 1
    weights = metrics.patient_weights(50, 1000, seeds.of("test"))
    auroc, _ = metrics.resample(targets, np.arange(50.0)[:, None], np.arange(50), weights)
    assert np.isnan(auroc[:, 0]).mean() == pytest.approx((1 - 1 / 50) ** 50, abs=0.05)
