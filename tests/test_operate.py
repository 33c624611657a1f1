"""Operating points, calibration, subgroups and their intervals, against other people's code and by hand."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from stages import operate
from stages.core import findings, schema
from stages.judging import calibration, evaluation, operating, significance, subgroups

FINDINGS = ["Edema", "Mass"]
SETTINGS = schema.Operate(
    rule="sensitivity", sensitivity=0.8, min_positives=5, bins=5, min_group=20, age_bands=[40, 60]
)
ONE_EACH = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def films(rng: np.random.Generator, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Targets with both kinds, and scores of which many are alike."""
    targets = (rng.random(count) < 0.4).astype(float)
    targets[:2] = [0, 1]
    return targets, np.round(rng.normal(size=count) + targets, 1)


def alone(count: int) -> tuple[np.ndarray, np.ndarray]:
    """A patient a film, each drawn once."""
    return np.arange(count), np.ones((count, 1), np.uint16)


@given(ONE_EACH, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
@settings(deadline=None, max_examples=40)
def test_a_threshold_is_the_highest_that_keeps_its_rule(rng: np.random.Generator, wanted: float) -> None:
    targets, scores = films(rng)
    found = operating.threshold(targets, scores, "sensitivity", wanted)
    assert sk.recall_score(targets, scores >= found) >= wanted - 1e-9
    higher = [level for level in np.unique(scores) if level > found]
    assert not higher or sk.recall_score(targets, scores >= higher[0]) < wanted - 1e-9
    youden = operating.threshold(targets, scores, "youden", wanted)
    worth = {level: sk.balanced_accuracy_score(targets, scores >= level) for level in np.unique(scores)}
    assert worth[youden] == max(worth.values())
    called = scores >= operating.threshold(targets, scores, "prevalence", wanted)
    assert called.sum() >= targets.sum()
    assert (scores > operating.threshold(targets, scores, "prevalence", wanted)).sum() < targets.sum()


def test_films_whose_label_is_not_known_choose_no_threshold() -> None:
    targets, scores = np.array([1, 0, 1, np.nan, np.nan]), np.array([2.0, 1.0, 3.0, 9.0, -9.0])
    assert operating.threshold(targets, scores, "sensitivity", 1.0) == 2.0
    assert operating.threshold(targets, scores, "prevalence", 1.0) == 2.0


@given(ONE_EACH)
@settings(deadline=None, max_examples=40)
def test_the_figures_of_calls_are_scikit_learns(rng: np.random.Generator) -> None:
    targets, scores = films(rng)
    called = scores > 0.5
    patients, weights = alone(len(targets))
    found = {name: values[0, 0] for name, values in operating.figures(
        called[:, None], targets[:, None], patients, weights).items()}  # fmt: skip
    wanted = {
        "sensitivity": sk.recall_score(targets, called),
        "specificity": sk.recall_score(1 - targets, ~called),
        "f1": sk.f1_score(targets, called, zero_division=0),
    }
    if called.any():
        wanted["ppv"] = sk.precision_score(targets, called)
    if not called.all():
        wanted["npv"] = sk.precision_score(1 - targets, ~called)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value)


def test_figures_without_rows_have_no_value() -> None:
    targets, (patients, weights) = np.array([[0.0], [0.0]]), alone(2)
    found = operating.figures(np.zeros((2, 1), bool), targets, patients, weights)
    assert np.isnan(found["sensitivity"][0, 0])
    assert np.isnan(found["ppv"][0, 0])
    assert found["specificity"][0, 0] == 1


def test_a_patient_drawn_twice_counts_twice_with_all_films() -> None:
    called, targets = np.array([[True], [False], [True]]), np.array([[1.0], [1.0], [1.0]])
    found = operating.figures(called, targets, np.array([0, 0, 1]), np.array([[2, 0], [1, 3]]))
    np.testing.assert_allclose(found["sensitivity"][:, 0], [3 / 5, 1])


@given(ONE_EACH)
@settings(deadline=None, max_examples=30)
def test_the_brier_score_is_scikit_learns(rng: np.random.Generator) -> None:
    targets, scores = films(rng)
    stated, (patients, weights) = calibration.sigmoid(scores), alone(len(targets))
    known = np.append(targets, np.nan)
    found = calibration.brier(np.append(stated, 0.3)[:, None], known[:, None], np.append(patients, 0), weights)
    assert found[0, 0] == pytest.approx(sk.brier_score_loss(targets, stated))


def test_temperature_and_bias_are_those_of_the_highest_likelihood() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=4000) * 3 - 1
    targets = (rng.random(4000) < calibration.sigmoid(logits / 2 + 0.7)).astype(float)
    scale = calibration.fit(targets, logits)
    assert (scale.temperature, scale.bias) == (pytest.approx(2, abs=0.15), pytest.approx(0.7, abs=0.15))
    left = scale.probability(logits) - targets  # the likelihood's slopes are nothing there
    assert abs(left.mean()) < 1e-5
    assert abs((left * logits).mean()) < 1e-5


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([-2.0, -1.0, 1.0, 2.0], calibration.SEPARABLE),
        ([-2.0, 0.0, 0.0, 2.0], calibration.SEPARABLE),  # a tie lets the likelihood rise without end too
        ([2.0, 1.0, -1.0, 1.5], calibration.REVERSED),
    ],
)
def test_a_temperature_that_films_do_not_fix_is_none_with_its_reason(scores: list[float], reason: str) -> None:
    with pytest.raises(calibration.NoScaleError, match=reason):
        calibration.fit(np.array([0.0, 0.0, 1.0, 1.0]), np.array(scores))


def test_the_calibration_error_of_a_hand_made_case() -> None:
    """Two bins of two films: |.15 - 0| and |.8 - 1|, each half of the films."""
    stated, targets = np.array([[0.1], [0.2], [0.7], [0.9]]), np.array([[0.0], [0.0], [1.0], [1.0]])
    patients, weights = alone(4)
    errors = calibration.calibration_errors(stated, targets, patients, weights, 2)
    assert errors.found[0, 0] == pytest.approx((0.15 + 0.2) / 2)
    curve = calibration.reliability(stated[:, 0], targets[:, 0], 2)
    assert curve == [
        {"films": 2, "probability": 0.15, "observed": 0.0},
        {"films": 2, "probability": 0.8, "observed": 1.0},
    ]


def test_an_error_that_chance_gives_has_an_interval_from_0_and_a_real_one_has_not() -> None:
    rng = np.random.default_rng(1)
    stated = rng.random((800, 1))
    fair = (rng.random((800, 1)) < stated).astype(float)
    off = (rng.random((800, 1)) < stated**3).astype(float)
    patients = np.arange(800)
    weights = np.concatenate([np.ones((800, 1)), rng.multinomial(800, np.full(800, 1 / 800), 300).T], axis=1)
    shown = [calibration.calibration_errors(stated, of, patients, weights, 10).shown(0, 0.95) for of in (fair, off)]
    assert shown[0]["low"] == 0
    assert shown[1]["low"] > shown[1]["by_chance"]


@given(ONE_EACH)
@settings(deadline=None, max_examples=30)
def test_delongs_variance_is_that_of_its_pairs(rng: np.random.Generator) -> None:
    """DeLong, DeLong & Clarke-Pearson 1988, equations 4 to 8, pair by pair."""
    targets, scores = films(rng, 30)
    targets[2:4], others = [1, 0], np.round(rng.normal(size=30), 1)

    def components(of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        there, absent = of[targets == 1][:, None], of[targets == 0][None]
        pairs = (there > absent) + 0.5 * (there == absent)
        return pairs.mean(axis=1), pairs.mean(axis=0)

    found, error = significance.delong(targets, scores, others)
    (one, two), (three, four) = components(scores), components(others)
    assert found == pytest.approx(sk.roc_auc_score(targets, scores) - sk.roc_auc_score(targets, others))
    positives, negatives = np.cov(one, three), np.cov(two, four)
    wanted = sum(
        (of[0, 0] + of[1, 1] - 2 * of[0, 1]) / count for of, count in ((positives, len(one)), (negatives, len(two)))
    )
    assert error**2 == pytest.approx(wanted, abs=1e-12)
    assert significance.delong(targets, scores, scores) == (0, 0)


def test_holms_correction_of_a_hand_made_case() -> None:
    assert significance.holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert significance.holm([0.5, 0.6]) == [1.0, 1.0]
    assert significance.holm([None]) == [None]


def test_ages_fall_into_bands_and_what_is_not_stated_stands_apart() -> None:
    test = pd.DataFrame({"age": [39.9, 40, 59, 60, 99, np.nan], "sex": ["M", "F", "M", None, "", "F"]})
    of_age = {group.name: group.rows.tolist() for group in subgroups.groups_of(test, "age", [40, 60])}
    assert of_age == {
        "under 40": [True, False, False, False, False, False],
        "40 to 59": [False, True, True, False, False, False],
        "60 or more": [False, False, False, True, True, False],
        "not stated": [False, False, False, False, False, True],
    }
    of_sex = {group.name: int(group.rows.sum()) for group in subgroups.groups_of(test, "sex", [40])}
    assert of_sex == {"F": 2, "M": 2, "not stated": 2}


def make_tested(shift: float = 0.0, count: int = 600) -> tuple[pd.DataFrame, operate.Tested]:
    """Test films of which the women's scores are worse by some noise, for the distilled student alone."""
    rng = np.random.default_rng(2)
    sex = np.where(np.arange(count) % 2 == 0, "F", "M")
    targets = (rng.random((count, 2)) < 0.4).astype(float)
    scores = {kind: (2 * targets - 1 + rng.normal(size=(count, 2))).astype(np.float32)
              for kind in ("teacher", "twin", "distilled")}  # fmt: skip
    scores["distilled"][sex == "F"] += shift * rng.normal(size=(count // 2, 2)).astype(np.float32)
    patients = np.arange(count) // 2
    sample = evaluation.Sample(FINDINGS, targets, patients, scores)
    test = pd.DataFrame({"sex": sex, "age": rng.integers(20, 90, count), "view": "PA", "label_source": "report"})
    return test, operate.Tested(sample, evaluation.draw(sample, "toy", 200, 0), SETTINGS, 0.95)


def chosen_by(sample: evaluation.Sample, settings_: Any = SETTINGS) -> dict[str, list[operate.Chosen]]:
    """What the films themselves would choose, as validation films."""
    return {
        kind: [operate.choose(sample.targets[:, column], scores[:, column], settings_) for column in range(2)]
        for kind, scores in sample.scores.items()
    }


def groups_of(found: dict[str, Any], attribute: str) -> dict[str, Any]:
    """The groups of an attribute by their names."""
    return {group["name"]: group for group in found["subgroups"][attribute]["groups"]}


@pytest.fixture(scope="module")
def judged() -> dict[str, Any]:
    test, known = make_tested(shift=2.0)
    return operate.judge(test, known, chosen_by(known.sample))


def test_a_model_that_is_worse_for_one_sex_shows_and_its_teacher_is_not_accused(judged: dict[str, Any]) -> None:
    gaps = judged["subgroups"]["sex"]["gaps"]["auroc"]
    assert (gaps["distilled"]["higher"], gaps["distilled"]["lower"]) == ("M", "F")
    assert gaps["distilled"]["low"] > 0
    assert gaps["distilled_minus_teacher"]["low"] > 0
    assert gaps["teacher"]["value"] < 0.05


def test_without_a_gap_no_gap_is_wider_than_the_teachers() -> None:
    test, known = make_tested()
    gaps = operate.judge(test, known, chosen_by(known.sample))["subgroups"]["sex"]["gaps"]["auroc"]
    assert gaps["distilled_minus_teacher"]["low"] < 0 < gaps["distilled_minus_teacher"]["high"]


def test_figures_of_groups_are_fairlearns(judged: dict[str, Any]) -> None:
    from fairlearn.metrics import MetricFrame

    test, known = make_tested(shift=2.0)
    called = known.called("distilled", chosen_by(known.sample)["distilled"])
    frames = [
        MetricFrame(
            metrics={"sensitivity": sk.recall_score},
            y_true=known.sample.targets[:, column],
            y_pred=called[:, column],
            sensitive_features=test["sex"],
        )
        for column in range(2)
    ]
    wanted = sum(frame.by_group["sensitivity"] for frame in frames) / 2
    listed = groups_of(judged, "sex")
    for group in ("F", "M"):
        assert listed[group]["models"]["distilled"]["sensitivity"]["value"] == pytest.approx(wanted[group], abs=1e-6)
    gap = judged["subgroups"]["sex"]["gaps"]["sensitivity"]["distilled"]["value"]
    assert gap == pytest.approx(wanted.max() - wanted.min(), abs=1e-6)


def test_an_attribute_of_one_value_and_one_that_is_missing_have_their_reason(judged: dict[str, Any]) -> None:
    assert judged["subgroups"]["view"]["reason"] == subgroups.ONE_GROUP
    test, known = make_tested()
    without = operate.judge(test.drop(columns="sex"), known, chosen_by(known.sample))
    assert without["subgroups"]["sex"]["reason"] == operate.NO_COLUMN


def test_a_group_of_few_films_is_counted_and_not_scored() -> None:
    test, known = make_tested()
    test.loc[:9, "sex"] = "X"
    found = operate.judge(test, known, chosen_by(known.sample))
    found = groups_of(found, "sex")["X"]
    assert (found["films"], found["models"], found["reason"]) == (10, {}, subgroups.FEW_FILMS)


def test_shuffled_scores_are_worth_nothing(judged: dict[str, Any]) -> None:
    test, known = make_tested()
    rng = np.random.default_rng(3)
    shuffled = {kind: rng.permutation(scores) for kind, scores in known.sample.scores.items()}
    sample = evaluation.Sample(FINDINGS, known.sample.targets, known.sample.patients, shuffled)
    noise = operate.Tested(sample, known.weights, SETTINGS, 0.95)
    found = groups_of(operate.judge(test, noise, chosen_by(known.sample)), "sex")
    for group in ("F", "M"):
        area = found[group]["models"]["teacher"]["auroc"]
        assert area["low"] < 0.5 < area["high"]
    for checked in judged["cross_check"].values():
        assert checked["p_holm"] >= checked["p"]


@pytest.mark.parametrize(
    ("targets", "scores", "reason"),
    [
        ([1.0] * 4 + [0.0] * 20, None, operating.FEW_POSITIVES),
        ([1.0] * 20 + [0.0] * 4, None, operating.FEW_NEGATIVES),
        ([1.0, 0.0] * 12, [np.nan] * 24, evaluation.NOT_AN_OUTPUT),
        ([], [], operate.NO_FILMS),
    ],
)
def test_what_validation_cannot_choose_is_none_with_its_reason(
    targets: list[float], scores: list[float] | None, reason: str
) -> None:
    given_ = np.arange(len(targets), dtype=float) if scores is None else np.array(scores)
    found = operate.choose(np.array(targets), given_, SETTINGS).as_json()
    assert (found["threshold"], found["temperature"], found["reason"], found["scale_reason"]) == (
        None,
        None,
        reason,
        reason,
    )


def test_constant_scores_have_a_threshold_and_no_temperature() -> None:
    found = operate.choose(np.array([1.0, 0.0] * 12), np.zeros(24), SETTINGS)
    assert found.threshold == 0
    assert found.scale is None


def test_a_finding_without_a_threshold_has_no_figures_and_no_share_in_means() -> None:
    test, known = make_tested()
    chosen = chosen_by(known.sample)
    chosen["twin"][1] = operate.Chosen(None, None, "why", "why")
    found = operate.judge(test, known, chosen)
    assert found["findings"]["Mass"]["models"]["twin"]["sensitivity"]["value"] is None
    assert found["findings"]["Mass"]["models"]["twin"]["after"]["error"]["value"] is None
    assert found["findings"]["Mass"]["models"]["twin"]["before"]["error"]["value"] is not None
    assert found["means"]["findings"] == ["Edema"]


def test_a_test_set_of_one_class_has_no_figures_of_the_other() -> None:
    test, known = make_tested()
    known.sample.targets[:, 0] = 0
    found = operate.judge(test, known, chosen_by(make_tested()[1].sample))["findings"]["Edema"]
    assert found["reason"] == "no positives"
    assert found["models"]["distilled"]["sensitivity"]["value"] is None
    assert found["models"]["distilled"]["specificity"]["value"] is not None


def test_bands_of_age_must_rise() -> None:
    with pytest.raises(ValueError, match="ages must rise"):
        schema.Operate(**(SETTINGS.model_dump() | {"age_bands": [60, 40]}))


def table_of(images: list[str]) -> pd.DataFrame:
    """Logits of images, as `evaluation.select` gives them."""
    return pd.DataFrame({"Edema": np.arange(len(images), dtype=np.float32)}, index=pd.Index(images, name="image"))


def labels_of(images: list[str], split: str = "val") -> pd.DataFrame:
    """Labels of images."""
    return pd.DataFrame({"image": images, "split": split, "Edema": np.arange(len(images)) % 2})


POLICIES = schema.Policies.model_validate(
    {kind: {"default": "ignore", "per_finding": {}} for kind in ("uncertain", "blank")}
)


def test_validation_films_are_those_that_were_predicted_with_targets_as_training_reads_them() -> None:
    labels = pd.concat([labels_of(["a", "b", "c"]), labels_of(["d"], "test")])
    labels.loc[labels["image"] == "b", "Edema"] = findings.UNCERTAIN
    tables = dict.fromkeys(("teacher", "twin", "distilled"), table_of(["a", "b"]))
    targets, logits = operate.validation(labels, tables, ["Edema"], "chexpert", POLICIES)
    np.testing.assert_array_equal(targets[:, 0], [0, np.nan])
    np.testing.assert_array_equal(logits["twin"][:, 0], [0, 1])


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        (["a", "x"], ["a", "x"], "predicted images must be in the labels' val split, got x"),
        (["a"], ["a", "b"], "one lacks b"),
    ],
)
def test_predictions_of_other_films_than_the_labels_or_each_other_stop_it(
    teacher: list[str], student: list[str], message: str
) -> None:
    tables = {"teacher": table_of(teacher), "twin": table_of(student), "distilled": table_of(student)}
    with pytest.raises(ValueError, match=message):
        operate.validation(labels_of(["a", "b"]), tables, ["Edema"], "chexpert", POLICIES)


def test_without_validation_films_nothing_is_chosen_and_the_reason_is_told() -> None:
    tables = dict.fromkeys(("teacher", "twin", "distilled"), table_of([]))
    targets, logits = operate.validation(labels_of(["a"], "test"), tables, ["Edema"], "chexpert", POLICIES)
    assert operate.choose(targets[:, 0], logits["twin"][:, 0], SETTINGS).reason == operate.NO_FILMS


def test_labels_of_two_findings_that_are_swapped_show() -> None:
    """A model that knows its findings is worse than chance would be expected to be on neither: both fall to .5."""
    test, known = make_tested()
    swapped = evaluation.Sample(FINDINGS, known.sample.targets[:, ::-1], known.sample.patients, known.sample.scores)
    found = operate.judge(test, operate.Tested(swapped, known.weights, SETTINGS, 0.95), chosen_by(known.sample))
    for finding in FINDINGS:
        about = found["findings"][finding]["models"]["teacher"]
        fair = about["sensitivity"]["value"] + about["specificity"]["value"]
        assert abs(fair - 1) < 0.1
        assert about["after"]["error"]["low"] > about["after"]["error"]["by_chance"]
