"""Teachers that are no single net: a table of probabilities that stands in for one, and ensembles."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import owners
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit
from test_training import CPU, ROOT, drawn, settings, weights

from stages import predict, soft_label, train_teacher
from stages.core import files, params, plugins, seeds
from stages.learning import objectives, soft_labels, training
from stages.learning.cohort import Cohort, load_cohort, mean_auroc
from stages.learning.trainer import Recipe
from stages.nets import nets, probability_table
from stages.nets.weights import CheckpointError

FINDINGS = ["Edema", "Mass"]
TABLE = {"file": ["0.png", "1", "2.png"], "prob_Mass": [0.25, 0.0, 1.0], "edema": [0.5, 0.1, 0.9]}
CLIP = plugins.constants("models", "precomputed")["CLIP"]


@pytest.fixture
def views() -> Any:
    return params.parse(params.read(ROOT / "params.yaml")).views


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return drawn(tmp_path / "cohort", 32)


def read(path: Path, values: Any, wanted: list[str] = FINDINGS) -> pd.DataFrame:
    """A table after it was written to a csv."""
    pd.DataFrame(values).to_csv(path, index=False)
    return probability_table.read(path, files.sha256(path), CLIP, wanted)


def test_a_table_becomes_logits_by_image_and_finding_with_or_without_prefix(tmp_path: Path) -> None:
    table = read(tmp_path / "t.csv", TABLE)
    assert list(table.columns) == FINDINGS
    assert np.allclose(table.loc["0"], [0, logit(0.25)])
    assert np.array_equal(
        probability_table.logits(table, pd.Series(["2.png", "0.png"]), "films"), table.loc[["2", "0"]]
    )


def test_a_column_of_another_name_is_one_that_the_plug_in_says_it_is(tmp_path: Path) -> None:
    values = {"oedema" if name == "edema" else name: column for name, column in TABLE.items()} | {"spots": [0, 0, 2]}
    with pytest.raises(
        probability_table.TableError, match=r"lacks 1 .*: Edema \(it also has oedema, spots\); add or re"
    ):
        read(tmp_path / "t.csv", values)
    sha256 = files.sha256(tmp_path / "t.csv")
    table = probability_table.read(tmp_path / "t.csv", sha256, CLIP, FINDINGS, {"Oedema": "Edema"})
    assert table.equals(read(tmp_path / "u.csv", TABLE))


def test_probabilities_of_0_and_1_are_clipped_at_the_stated_value(tmp_path: Path) -> None:
    table = read(tmp_path / "t.csv", TABLE)
    assert np.allclose(table.loc[["1", "2"], "Mass"], [logit(CLIP), logit(1 - CLIP)], rtol=1e-5)
    assert np.isfinite(table.to_numpy().astype(np.float16)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prob_Mass": [0.2, 1.5, -1]}, r"2 rows with no probability of Mass: row 3 \('1.5'\), row 4 \('-1.0'\)"),
        ({"prob_Mass": [0.2, 0.3, None]}, r"no probability of Mass: row 4 \(''\); probabilities lie in \[0, 1\]"),
        ({"prob_Mass": [0.2, "nan", 0.1]}, r"no probability of Mass: row 3 \('nan'\)"),
        ({"file": ["a", "b", "a.png"]}, r"an image that another row names: row 4 \('a'\); leave one row an image"),
        ({"file": ["a", "", "b"]}, r"1 rows with no image name: row 3"),
        ({"Mass": [0, 0, 0]}, "several columns of Mass: leave one"),
    ],
)
def test_a_table_with_a_fault_is_refused_with_row_and_remedy(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(probability_table.TableError, match=message):
        read(tmp_path / "t.csv", TABLE | change)


def test_a_table_without_a_finding_of_the_cohort_is_refused(tmp_path: Path) -> None:
    with pytest.raises(probability_table.TableError, match="lacks 1 of the cohort's 3 findings: Hernia; add"):
        read(tmp_path / "t.csv", TABLE, [*FINDINGS, "Hernia"])


def test_a_table_with_another_hash_is_refused(tmp_path: Path) -> None:
    read(tmp_path / "t.csv", TABLE)
    with pytest.raises(CheckpointError, match="it is another file"):
        probability_table.read(tmp_path / "t.csv", "0" * 64, CLIP, FINDINGS)


def teacher(project: Path, name: str, films: int = 40, **start: Any) -> Path:
    """The folder of a teacher that the stage trained on the 40 films of `drawn`; a table has some of them."""
    probabilities = expit(np.random.default_rng(0).normal(size=(films, 2)))
    table = pd.DataFrame(probabilities, columns=FINDINGS)
    table.insert(0, "image", [f"{number}" for number in range(films)])
    table.to_csv(project / "table.csv", index=False)
    entry = {"pretrained": False, "checkpoint": None, "checkpoint_sha256": None} | start
    if name == "precomputed":
        entry |= {"checkpoint": "table.csv", "checkpoint_sha256": files.sha256(project / "table.csv")}
    short = {"steps": 4, "batch_size": 8, "evaluations": 4, "checkpoint_steps": 3}
    changes = {f"train__teacher__{key}": value for key, value in short.items()}
    owners.project(project, teachers={name: entry}, headline__teacher=name, **changes)
    if not (project / "data/cohorts/joint").exists():
        (project / "data/cohorts").mkdir(parents=True)
        drawn(project / "data/cohorts/joint", 32)
    train_teacher.main(["--cohort", "joint", "--teacher", name])
    return project / f"data/models/teacher/joint/{name}"


def test_the_stages_read_a_table_and_its_logits_serve_every_view(project: Path) -> None:
    folder = teacher(project, "precomputed")
    soft_label.main(["--cohort", "joint", "--teacher", "precomputed"])
    with (project / "data/soft_labels/joint/precomputed/logits.npy").open("rb") as file:
        logits = np.load(file)
    given = pd.read_csv(project / "table.csv")[FINDINGS].to_numpy()
    assert logits.shape == (4, 28, 2)
    assert all(np.array_equal(logits[0], of_view) for of_view in logits[1:])
    assert np.allclose(expit(logits[0].astype(float)), given[:28], atol=1e-3)
    curve = pd.read_csv(project / "data/curves/teacher/joint/precomputed.csv")
    val = load_cohort(project / "data/cohorts/joint").val
    assert curve.to_dict("list") == {"step": [0], "val_auroc": [pytest.approx(mean_auroc(given[28:], val))]}
    assert files.read_json(folder / "model.json")["findings"] == FINDINGS


@pytest.mark.parametrize(("films", "lacking"), [(27, "1 of 28 training films, e.g. 27.png"), (30, "10 of 12 val")])
def test_a_table_that_lacks_films_of_the_cohort_stops_the_first_stage(project: Path, films: int, lacking: str) -> None:
    with pytest.raises(probability_table.TableError, match=f"lacks {lacking}.*datasets.<name>.films"):
        teacher(project, "precomputed", films)
    assert not (project / "data/models/teacher/joint/precomputed").exists()


def test_soft_labels_of_a_table_without_a_training_film_are_refused(project: Path) -> None:
    folder = teacher(project, "precomputed")
    table = files.read_table(folder / "logits.parquet")
    files.write_table(table.drop(5), folder / "logits.parquet")
    with pytest.raises(probability_table.TableError, match=r"lacks 1 of 28 training films, e.g. 5.png \(it names 0\)"):
        soft_label.main(["--cohort", "joint", "--teacher", "precomputed"])


def test_a_table_predicts_the_data_sets_that_it_covers_and_no_part_of_one(tmp_path: Path) -> None:
    for dataset, names in (("a", ["0.png", "2.png"]), ("b", ["8.png", "9.png"])):
        rows = pd.DataFrame({"image": names, "split": "test"})
        files.write_table(rows, tmp_path / f"{dataset}.parquet")
        files.write_table(rows.assign(shard=0, row=range(2)), tmp_path / f"{dataset}/index.parquet")
    table = read(tmp_path / "t.csv", TABLE)
    found = predict.predictions(predict.of_table(table), FINDINGS, tmp_path, tmp_path, ["a", "b"])
    assert found[["dataset", "image"]].to_numpy().tolist() == [["a", "0.png"], ["a", "2.png"]]
    assert np.array_equal(found[FINDINGS], table.loc[["0", "2"]])
    none = predict.predictions(predict.of_table(table), FINDINGS, tmp_path, tmp_path, ["b"])
    assert (len(none), list(none.columns)) == (0, ["dataset", "image", "split", *FINDINGS])
    with pytest.raises(probability_table.TableError, match=r"lacks 1 of 2 test films of a, e.g. 2.png"):
        predict.predictions(predict.of_table(table.drop("2")), FINDINGS, tmp_path, tmp_path, ["a", "b"])


def test_films_that_validate_are_predicted_beside_those_that_test_and_those_that_train_are_not(tmp_path: Path) -> None:
    rows = pd.DataFrame({"image": ["0.png", "1.png", "2.png"], "split": ["test", "train", "val"]})
    files.write_table(rows, tmp_path / "a.parquet")
    files.write_table(rows.assign(shard=0, row=range(3)), tmp_path / "a/index.parquet")
    table = read(tmp_path / "t.csv", TABLE)
    found = predict.predictions(predict.of_table(table), FINDINGS, tmp_path, tmp_path, ["a"])
    assert found[["image", "split"]].to_numpy().tolist() == [["2.png", "val"], ["0.png", "test"]]
    assert np.array_equal(found[FINDINGS], table.loc[["2", "0"]])


@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_the_fitted_temperature_is_the_one_that_spoilt_calibrated_logits(temperature: float) -> None:
    rng = np.random.default_rng(0)
    calibrated = rng.normal(scale=2, size=(40_000, 2))
    targets = (rng.random(calibrated.shape) < expit(calibrated)).astype(np.float32)
    targets[::3, 1] = np.nan
    assert train_teacher.fit_temperature(temperature * calibrated, targets) == pytest.approx(temperature, rel=0.03)


def test_an_ensemble_is_the_mean_of_its_members_over_their_temperatures() -> None:
    ensemble: Any = nets.build_model("resnets", 3, 32, seed=1).eval()
    ensemble.temperatures.copy_(torch.tensor([2.0, 4.0]))
    images = nets.to_input(np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8))
    with torch.inference_mode():
        first, second = (net(images) for net in ensemble.nets)
        assert torch.allclose(ensemble(images), first / 4 + second / 8, atol=1e-6)


def test_the_stage_trains_each_member_as_if_alone_and_fits_its_temperature(project: Path) -> None:
    folder = teacher(project, "resnets")
    given = load_cohort(project / "data/cohorts/joint")
    ensemble, about = nets.load_model(folder)
    assert about["architecture"] == "resnets"
    values = params.parse(params.read(project / "params.yaml"))
    scores = []
    for member, net in enumerate(ensemble.nets):  # type: ignore[arg-type]
        names = ("teacher", "tiny", "resnets", member)
        start, schedule = values.teachers["resnets"], values.train.teacher
        recipe = Recipe(given, objectives.undistilled, schedule, values.views, values.seed, names)
        alone, _, _ = training.train(recipe, "resnets", start, 1, project / f"{member}.pt", member)
        assert weights(alone) == weights(net)
        scores.append(nets.logits(alone, nets.in_batches(given.val.films, 32), CPU))
        fitted = train_teacher.fit_temperature(scores[-1], given.val.targets)
        assert ensemble.temperatures[member].item() == pytest.approx(fitted, rel=1e-6)  # type: ignore[index]
    curve = pd.read_csv(project / "data/curves/teacher/joint/resnets.csv")
    assert curve["step"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert curve["member"].tolist()[:8] == [0] * 4 + [1] * 4
    together = nets.logits(ensemble, nets.in_batches(given.val.films, 32), CPU)
    last = curve.iloc[-1]
    assert np.isnan(last["member"])
    assert last["val_auroc"] == pytest.approx(mean_auroc(together, given.val), rel=1e-5)
    soft_label.main(["--cohort", "joint", "--teacher", "resnets"])
    first = soft_labels.read(project / "data/soft_labels/joint/resnets", given, values.views, values.seed, folder)
    online = nets.logits(ensemble, [given.train.view(3, 1, values.views, values.seed)[None]], CPU)
    assert np.allclose(first[1, 3], online[0], atol=2e-3)


def test_members_of_one_name_start_from_other_weights() -> None:
    one, other = (nets.build_model("resnets", 3, 32, seed=seed, member=0) for seed in (1, 2))
    assert weights(one) != weights(other)


@pytest.mark.usefixtures("cohort")
@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"findings": ["Edema"]}, r"has outputs \['Edema'\] at 32 px, tiny has \['Edema', 'Mass'\] at 32 px"),
        ({"findings": ["Edema", "Mass", "Hernia"]}, r"'Hernia'\] at 32 px, tiny has"),
        ({"size_px": 64}, "at 64 px, tiny has .* at 32 px: run `make repro`, which trains it again"),
    ],
)
def test_a_teacher_of_other_outputs_or_another_input_size_is_refused(tmp_path: Path, about: Any, message: str) -> None:
    made = {"architecture": "resnet10t", "findings": FINDINGS, "size_px": 32} | about
    nets.write(nets.build_model("resnet10t", len(made["findings"]), made["size_px"]), made, tmp_path / "net")
    probability_table.write(read(tmp_path / "t.csv", TABLE), made | {"architecture": "precomputed"}, tmp_path / "table")
    given = load_cohort(tmp_path / "cohort")
    with pytest.raises(soft_labels.SoftLabelError, match=message):
        soft_labels.load_teacher(tmp_path / "net", given)
    with pytest.raises(soft_labels.SoftLabelError, match=message):
        soft_labels.of_table(tmp_path / "table", given)


def test_soft_labels_of_an_older_teacher_are_refused(cohort: Any, views: Any, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    made = {"architecture": "resnet10t", "findings": FINDINGS, "size_px": 32}
    nets.write(nets.build_model("resnet10t", 2, 32, seed=1), made, folder)
    soft_labels.write(np.zeros((views.count, 28, 2)), cohort, views, 17, tmp_path / "soft", folder)
    assert soft_labels.read(tmp_path / "soft", cohort, views, 17, folder).shape == (views.count, 28, 2)
    shutil.rmtree(folder)
    nets.write(nets.build_model("resnet10t", 2, 32, seed=2), made, folder)
    with pytest.raises(soft_labels.SoftLabelError, match=r"made for other teacher than cohort tiny has now: run"):
        soft_labels.read(tmp_path / "soft", cohort, views, 17, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size_px"),
    [("densenet161", 64), ("visformer_s", 64), ("autoformer_v2_t", 64), ("ofa_595", 32), ("eeea_net_c2", 32)],
)
def test_each_teacher_of_the_paper_takes_a_step_and_gives_its_own_logits_when_loaded(
    tmp_path: Path, views: Any, name: str, size_px: int
) -> None:
    given = drawn(tmp_path / "cohort", size_px)
    schedule = settings(steps=1, batch_size=4, lr=0.1).model_copy(update={"evaluations": 1})
    names = ("teacher", "tiny", name)
    recipe = Recipe(given, objectives.undistilled, schedule, views, 17, names)
    model, about, history = training.train(recipe, name, None, 1, tmp_path / "none.pt")
    assert np.isfinite(history[-1]["loss"])
    fresh = nets.build_model(name, 2, size_px, None, seeds.integer("init", 17, *names))
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True)]
    assert np.mean(moved) > 0.9
    nets.write(model, about, tmp_path / "model")
    loaded = soft_labels.load_teacher(tmp_path / "model", given)
    films = list(soft_label.films_of_view(given.val, 0, views, 17))
    assert np.allclose(nets.logits(loaded, films, CPU), nets.logits(model, films, CPU), atol=1e-5)
