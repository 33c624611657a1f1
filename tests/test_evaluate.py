"""Evaluation of a data set: what is a target, what is undefined, what is compared, and that nothing vanishes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from stages import evaluate
from stages.core import files, findings, params, schema
from stages.datasets import chexpert
from stages.judging import cells, evaluation

SETTINGS = schema.Evaluate(replicates=200, confidence=0.95, min_positives=10, margin=0.02, plateau=0.01)
LOSSES = {"kd": 0, "other": 0}
DECLARED: tuple[Any, ...] = ({"joint": 0, "one": 0}, {"big": 0}, {"small": 0}, LOSSES, {}, [0])
MODELS = cells.models(*DECLARED)
COLUMNS = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Hernia"]
OF_ONE = COLUMNS[:5]  # the cohort `one` never saw Hernia


def test_a_sum_is_a_loss_like_others() -> None:
    with_sum = cells.models(*DECLARED[:4], {"mix": 0}, *DECLARED[5:])
    added = [f"distilled/{cohort}/small/big/mix/0" for cohort in ("joint", "one")]
    assert [model.id for model in with_sum if model not in MODELS] == added
    assert set(MODELS) < set(with_sum)


def make_labels(images: int = 240, dataset: str = "chexpert") -> pd.DataFrame:
    """Labels of two images a study and two studies a patient; no image has Hernia."""
    rng = np.random.default_rng(0)
    study = np.arange(images) // 2
    facts = (rng.random((images // 2, len(COLUMNS))) < 0.3).astype(np.int8)[study]
    facts[:, COLUMNS.index("Hernia")] = findings.ABSENT
    table = pd.DataFrame(facts, columns=COLUMNS)
    table.insert(0, "image", [f"{dataset}_{row:04d}" for row in range(images)])
    table.insert(1, "patient", [f"p{row // 4}" for row in range(images)])
    table.insert(2, "study", [f"s{row // 2 % 2}" for row in range(images)])
    table.insert(3, "split", "test")
    return table


def predict(labels: pd.DataFrame, model: cells.Model, dataset: str = "chexpert") -> pd.DataFrame:
    """Logits that are better for a teacher than for a distilled student than for a twin."""
    rng = np.random.default_rng(len(model.id) + 100 * max(model.seed, 0))
    noise = {"teacher": 0.5, "distilled": 1.0, "twin": 3.0}[model.kind]
    columns = OF_ONE if model.cohort == "one" else COLUMNS
    logits = labels[columns].to_numpy() + noise * rng.standard_normal((len(labels), len(columns)))
    table = pd.DataFrame(logits.astype(np.float32), columns=columns)
    table.insert(0, "dataset", dataset)
    table.insert(1, "image", labels["image"].to_numpy())
    table.insert(2, "split", "test")
    return table


def resample(
    labels: pd.DataFrame, dataset: str = "chexpert", models: list[cells.Model] = MODELS, **changed: pd.DataFrame
) -> evaluation.Evaluation:
    """The areas for these labels, with the table of a model id replaced."""
    tables = {model.id: predict(labels, model) for model in models} | changed
    predictions = {model: evaluation.select(table, "chexpert", model) for model, table in tables.items()}
    test = evaluation.match(labels, predictions)
    sample = evaluation.image_sample(test, predictions, COLUMNS)
    studies = (test["patient"] + "/" + test["study"]).to_numpy(str)
    means = evaluation.means_of(sample.findings, chexpert.MEANS)
    return evaluate.resample(sample, studies, dataset, means, SETTINGS, seed=0, workers=1)


def run(
    labels: pd.DataFrame, dataset: str = "chexpert", models: list[cells.Model] = MODELS, **changed: pd.DataFrame
) -> dict[str, Any]:
    """The result for these labels, with the table of a model id replaced."""
    return evaluate.evaluate(resample(labels, dataset, models, **changed), dataset, models, SETTINGS)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return run(make_labels())


def test_facts_become_targets() -> None:
    facts = np.array([findings.PRESENT, findings.ABSENT, findings.IMPLIED, findings.UNCERTAIN, findings.BLANK,
                      findings.MISSING], np.int8)  # fmt: skip
    np.testing.assert_array_equal(evaluation.targets_of(facts), [1, 0, 0, np.nan, np.nan, np.nan])


def test_a_finding_without_positives_is_null_with_its_reason(result: dict[str, Any]) -> None:
    scored = result["models"]["teacher/joint/big"]["findings"]["Hernia"]
    assert (scored["auroc"], scored["low"], scored["ap"], scored["reason"]) == (None, None, None, "no positives")
    assert result["findings"]["Hernia"] == {
        "positives": 0, "negatives": 240, "masked": 0, "positive_patients": 0, "few_positives": True,
        "reason": "no positives",
    }  # fmt: skip


def test_positives_of_a_single_patient_give_a_value_without_an_interval() -> None:
    labels = make_labels()
    labels.loc[:3, "Hernia"] = findings.PRESENT
    changed = run(labels)
    assert changed["findings"]["Hernia"]["positive_patients"] == 1
    for scored in (
        changed["models"]["teacher/joint/big"]["findings"]["Hernia"],
        changed["comparisons"]["teacher_minus_twin"]["teacher/joint/big - twin/joint/small/0"]["findings"]["Hernia"],
    ):
        assert (scored["low"], scored["high"], scored["ap_low"], scored["reason"]) == (None, None, None, None)
    assert changed["models"]["teacher/joint/big"]["findings"]["Hernia"]["auroc"] > 0.5
    compared = changed["comparisons"]["teacher_minus_twin"]["teacher/joint/big - twin/joint/small/0"]["findings"]
    assert compared["Hernia"]["excludes_zero"] is None


def test_a_finding_that_a_cohort_never_saw_is_null_with_its_reason(result: dict[str, Any]) -> None:
    scored = result["models"]["twin/one/small/0"]
    assert scored["findings"]["Hernia"]["reason"] == evaluation.NOT_AN_OUTPUT
    assert scored["means"]["all"]["undefined"] == {"Hernia": evaluation.NOT_AN_OUTPUT}
    assert scored["means"]["all"]["n_findings"] == 5


def test_the_mean_is_over_the_defined_findings(result: dict[str, Any]) -> None:
    labels = make_labels()
    table = predict(labels, MODELS[0])
    expected = np.mean([roc_auc_score(labels[name], table[name]) for name in OF_ONE])
    mean = result["models"][MODELS[0].id]["means"]["all"]
    assert mean["auroc"] == pytest.approx(expected, abs=1e-6)
    assert mean["low"] < mean["auroc"] < mean["high"]
    assert mean["undefined"] == {"Hernia": "no positives"}


def test_a_study_scores_the_maximum_over_its_images(result: dict[str, Any]) -> None:
    labels = make_labels()
    study = labels["patient"] + labels["study"]
    scores, truth = (table.groupby(study)[OF_ONE].max() for table in (predict(labels, MODELS[0]), labels))
    expected = np.mean([roc_auc_score(truth[name], scores[name]) for name in OF_ONE])
    mean = result["models"][MODELS[0].id]["means"]["competition5_per_study"]
    assert mean["auroc"] == pytest.approx(expected, abs=1e-6)
    assert result["rows"] == {"image": 240, "study": 120, "patient": 60}


def test_the_means_of_a_plug_in_are_reported_per_image_and_per_study_as_far_as_its_findings_are_evaluated() -> None:
    common, own = {"all", "shared7"}, {"competition5", "competition5_per_study"}
    assert set(evaluation.means_of(COLUMNS, {})) == common
    means = evaluation.means_of(COLUMNS[1:], chexpert.MEANS)
    assert set(means) == common | own
    assert (
        means["competition5"].findings == means["competition5_per_study"].findings == chexpert.MEANS["competition5"][1:]
    )
    assert [means[name].unit for name in sorted(own)] == ["image", "study"]
    assert set(evaluation.means_of(["Hernia"], chexpert.MEANS)) == {"all"}


def test_every_distilled_student_is_compared_with_its_own_twin_and_teacher(result: dict[str, Any]) -> None:
    one = "distilled/one/small/big/kd/0"
    assert set(result["comparisons"]["distilled_minus_twin"]) == {
        "distilled/joint/small/big/kd/0 - twin/joint/small/0",
        "distilled/joint/small/big/other/0 - twin/joint/small/0",
        f"{one} - twin/one/small/0",
        "distilled/one/small/big/other/0 - twin/one/small/0",
    }
    assert f"{one} - teacher/one/big" in result["comparisons"]["distilled_minus_teacher"]
    assert set(result["comparisons"]["teacher_minus_twin"]) == {
        "teacher/joint/big - twin/joint/small/0",
        "teacher/one/big - twin/one/small/0",
    }


def test_a_difference_is_that_of_the_scores_and_says_whether_it_excludes_zero(result: dict[str, Any]) -> None:
    compared = result["comparisons"]["teacher_minus_twin"]["teacher/joint/big - twin/joint/small/0"]["means"]["all"]
    scores = [result["models"][model]["means"]["all"]["auroc"] for model in ("teacher/joint/big", "twin/joint/small/0")]
    assert compared["difference"] == pytest.approx(scores[0] - scores[1], abs=2e-6)
    assert compared["low"] > 0
    assert compared["excludes_zero"] is True


def test_a_model_less_a_copy_of_itself_is_exactly_zero() -> None:
    labels = make_labels()
    same = predict(labels, MODELS[0])
    compared = run(labels, **{"twin/joint/small/0": same})["comparisons"]["teacher_minus_twin"]
    mean = compared["teacher/joint/big - twin/joint/small/0"]["means"]["all"]
    assert (mean["difference"], mean["low"], mean["high"], mean["excludes_zero"]) == (0, 0, 0, False)


def test_replicates_hold_the_estimate_and_give_its_interval(result: dict[str, Any]) -> None:
    table = resample(make_labels()).replicates()
    assert list(table.columns) == ["model", "mean", "replicate", "auroc"]
    assert len(table) == len(MODELS) * len(result["means"]) * (SETTINGS.replicates + 1)
    for (model, mean), rows in table.groupby(["model", "mean"]):
        scored = result["models"][model]["means"][mean]
        assert rows["replicate"].tolist() == list(range(SETTINGS.replicates + 1))
        values = rows["auroc"].to_numpy()
        assert values[0] == pytest.approx(scored["auroc"], abs=1e-6)
        ends = np.quantile(values[1:], [0.025, 0.975])
        assert tuple(ends) == pytest.approx((scored["low"], scored["high"]), abs=1e-6)


def test_replicates_of_two_models_are_of_the_same_patients(result: dict[str, Any]) -> None:
    table = resample(make_labels()).replicates().set_index(["model", "mean"])["auroc"]
    less = (table["teacher/joint/big", "all"] - table["twin/joint/small/0", "all"].to_numpy()).to_numpy()
    compared = result["comparisons"]["teacher_minus_twin"]["teacher/joint/big - twin/joint/small/0"]["means"]["all"]
    ends = np.quantile(less[1:], [0.025, 0.975])
    assert tuple(ends) == pytest.approx((compared["low"], compared["high"]), abs=2e-6)


def test_a_mean_that_no_finding_defines_has_replicates_without_a_value() -> None:
    labels = make_labels()
    labels[COLUMNS] = findings.ABSENT
    table = resample(labels).replicates()
    assert set(table["mean"]) == {"all", "shared7", "competition5", "competition5_per_study"}
    assert table["auroc"].isna().all()


@pytest.mark.parametrize(
    ("means", "quoted"),
    [
        (["all", "shared7"], ["all"]),
        (["all", "shared7", "ten", "ten_per_study"], ["ten", "ten_per_study"]),
        (["shared7", "all", "zone_per_study", "zone", "area", "area_per_study"], ["area", "area_per_study"]),
    ],
)
def test_a_data_set_is_quoted_by_a_mean_of_its_own_if_it_has_one(means: list[str], quoted: list[str]) -> None:
    assert evaluation.main_mean(means) == quoted[0]
    assert evaluation.quoted_means(means) == quoted


def test_the_spread_is_the_standard_deviation_of_the_seeds_and_one_seed_has_none() -> None:
    assert evaluation.spread([0.1, 0.2, 0.6]) == {"deviation": 0.264575, "deviation_reason": None}
    assert evaluation.spread([0.1]) == {"deviation": None, "deviation_reason": evaluation.ONE_SEED}
    assert evaluation.spread([0.1, None]) == {"deviation": None, "deviation_reason": "undefined"}


def test_non_inferiority_needs_the_low_end_above_the_margin(result: dict[str, Any]) -> None:
    for compared in result["comparisons"]["distilled_minus_teacher"].values():
        mean = compared["means"]["all"]
        assert mean["non_inferior"] is (mean["low"] > -SETTINGS.margin)
    labels = make_labels()
    copied = run(labels, **{"distilled/joint/small/big/kd/0": predict(labels, MODELS[0])})
    key = "distilled/joint/small/big/kd/0 - teacher/joint/big"
    assert copied["comparisons"]["distilled_minus_teacher"][key]["means"]["all"]["non_inferior"] is True


def test_models_that_saw_different_images_are_refused() -> None:
    labels = make_labels()
    with pytest.raises(ValueError, match=r"same images.*chexpert_0007"):
        run(labels, **{"twin/joint/small/0": predict(labels.drop(7), MODELS[2])})


def test_a_precomputed_teacher_without_a_film_of_the_data_set_is_null_with_its_reason(result: dict[str, Any]) -> None:
    """A teacher may lack a data set whole; a student may not, nor may a teacher lack a part."""
    labels = make_labels()
    found = run(labels, **{"teacher/joint/big": predict(labels, MODELS[0])[:0]})
    alone = found["models"]["teacher/joint/big"]
    compared = found["comparisons"]["distilled_minus_teacher"]["distilled/joint/small/big/kd/0 - teacher/joint/big"]
    for scored, name in ((alone, "auroc"), (compared, "difference")):
        for value in [*scored["findings"].values(), *scored["means"].values()]:
            assert (value[name], value["low"], value["reason"]) == (None, None, evaluation.NO_PREDICTION)
    assert compared["means"]["all"]["non_inferior"] is None
    for kept in ("twin/joint/small/0", "teacher/one/big"):
        assert found["models"][kept] == result["models"][kept]
    assert found["comparisons"]["distilled_minus_twin"] == result["comparisons"]["distilled_minus_twin"]
    with pytest.raises(ValueError, match="same images"):
        run(labels, **{"twin/joint/small/0": predict(labels, MODELS[2])[:0]})
    with pytest.raises(ValueError, match="same images"):
        run(labels, **{"teacher/joint/big": predict(labels, MODELS[0])[:9]})


def test_a_prediction_outside_the_test_split_is_refused() -> None:
    labels = make_labels()
    labels.loc[3, "split"] = "train"
    with pytest.raises(ValueError, match=r"test split.*chexpert_0003"):
        run(labels)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_is_refused(value: float) -> None:
    table = predict(make_labels(), MODELS[0])
    table.loc[5, "Edema"] = value
    with pytest.raises(ValueError, match=r"finite.*chexpert_0005.*twin/a"):
        evaluation.select(table, "chexpert", "twin/a")


def test_an_image_predicted_twice_is_refused() -> None:
    table = predict(make_labels(), MODELS[0])
    with pytest.raises(ValueError, match="one prediction, got several for chexpert_0000"):
        evaluation.select(pd.concat([table, table[:1]]), "chexpert", "twin/a")


def test_no_image_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no test image"):
        run(make_labels()[:0])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stage's inputs, and the params that it loads."""
    labels = make_labels()
    labels["split"] = np.where(labels["image"] < "chexpert_0200", "test", "train")
    files.write_table(labels, tmp_path / "data/labels/chexpert.parquet")
    for model in MODELS:
        elsewhere = predict(labels, model, "padchest")
        table = pd.concat([predict(labels[4:200], model), elsewhere])
        files.write_table(table, tmp_path / f"data/predictions/{model.id}.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(params, "load", lambda *_: (*DECLARED, SETTINGS, COLUMNS[::-1], 0, 2))
    return tmp_path


def test_same_inputs_give_same_bytes_and_another_seed_does_not(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = project / "reports/metrics/chexpert.json"
    evaluate.main(["--dataset", "chexpert"])
    first = written.read_bytes()
    evaluate.main(["--dataset", "chexpert"])
    assert written.read_bytes() == first
    monkeypatch.setattr(params, "load", lambda *_: (*DECLARED, SETTINGS, COLUMNS, 1, 1))
    evaluate.main(["--dataset", "chexpert"])
    assert written.read_bytes() != first


def test_test_rows_without_prediction_are_counted(project: Path) -> None:
    evaluate.main(["--dataset", "chexpert"])
    result = json.loads((project / "reports/metrics/chexpert.json").read_text())
    assert (result["rows"]["image"], result["without_prediction"]) == (196, 4)
    assert list(result["means"]["all"]["findings"]) == COLUMNS


def test_what_compare_reads_is_written_beside_the_metrics(project: Path) -> None:
    evaluate.main(["--dataset", "chexpert"])
    table = files.read_table(project / "data/replicates/chexpert.parquet")
    result = json.loads((project / "reports/metrics/chexpert.json").read_text())
    estimates = table[table["replicate"] == 0].set_index(["model", "mean"])["auroc"]
    assert len(estimates) == len(MODELS) * len(result["means"])
    for model in MODELS:
        scored = result["models"][model.id]["means"]["competition5_per_study"]["auroc"]
        assert estimates[model.id, "competition5_per_study"] == pytest.approx(scored, abs=1e-6)


def test_an_undeclared_prediction_stops_the_stage(project: Path) -> None:
    source = project / f"data/predictions/{MODELS[0].id}.parquet"
    leftover = project / "data/predictions/distilled/joint/small/big/removed/0.parquet"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(source.read_bytes())
    with pytest.raises(cells.UndeclaredError, match=r"removed/0.parquet; run `make prune`"):
        evaluate.main(["--dataset", "chexpert"])
