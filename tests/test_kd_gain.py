"""The study of `make kd-gain`, with trainings of four steps on a handful of films."""

import subprocess
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import owners
import pandas as pd
import pytest
from ruamel.yaml import YAML

from benchmarks.kd_gain import study
from stages.core import files, params
from stages.learning import checkpoints, soft_labels, training
from stages.learning.cohort import load_cohort
from stages.pipeline.preset import merged

DATASETS = ("chestxray14", "chexpert", "padchest")
FINDINGS = ["Effusion", "Pneumothorax"]
SIZE_PX = 32
FILE = Path("toy.yaml")
STUDENT = "resnet10t"  # quicker to build and to train than the default student
STUDY = {
    "choose_on": "joint", "cohorts": ["joint"], "trial_seed": 9, "seeds": [0, 1], "paper": "paper", "views": 2,
    "trial_steps": 4, "steps": 5, "evaluations": 4, "teacher": None,
    "trials": {
        "twin": [{"lr": 0.1}, {"lr": 0.2}],
        "sigmoid_kd": [{"lr": 0.1, "alpha": 0.3, "temperature": 2.0}, {"lr": 0.1, "alpha": 0.0, "temperature": 1.0}],
        "paper": [
            {"lr": lr, "alpha": 0.5, "temperature": 2.0, "gamma": 2.0, "weight": 1.0, "reduction": "sum"}
            for lr in (0.1, 0.2)
        ],
    },
}  # fmt: skip


def git(*arguments: str) -> None:
    """Run git in the current folder, without the user's settings."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def draw(dataset: str, count: int = 36) -> tuple[pd.DataFrame, np.ndarray]:
    """Label rows with their films, in which the first finding is a bright lower half."""
    rng = np.random.default_rng(len(dataset))
    facts = rng.integers(0, 2, (count, 2)).astype(np.int8)
    films = rng.integers(0, 120, (count, SIZE_PX, SIZE_PX), dtype=np.uint8)
    films[facts[:, 0] == 1, SIZE_PX // 2 :] += 100
    names, split = [str(row) for row in range(count)], np.resize(["train", "val", "test"], count)
    rows = pd.DataFrame({"image": names, "patient": names, "study": "s", "split": split})
    return rows.assign(**dict(zip(FINDINGS, facts.T, strict=True))), films


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the study's result goes, in a project with what `make repro` leaves of a cohort, committed."""
    changes: dict[str, Any] = {f"datasets__{dataset}__findings": FINDINGS for dataset in DATASETS}
    changes["students"] = {STUDENT: {"pretrained": False, "checkpoint": None, "checkpoint_sha256": None}}
    owners.project(
        tmp_path,
        headline__student=STUDENT,
        threads=1,
        train__student__batch_size=4,
        evaluate__replicates=100,
        **changes,
    )
    monkeypatch.chdir(tmp_path)
    cohort, parts = tmp_path / "data/cohorts/joint", []
    cohort.mkdir(parents=True)
    for dataset in DATASETS:
        rows, films = draw(dataset)
        files.write_table(rows, tmp_path / f"data/labels/{dataset}.parquet")
        index = rows[["image"]].assign(shard=0, row=range(len(rows)))
        files.write_table(index, tmp_path / f"data/images/{dataset}/index.parquet")
        for shard in (tmp_path / f"data/images/{dataset}/shard_0000.npy", cohort / f"{dataset}.npy"):
            np.save(shard, films)
        parts.append(rows.assign(dataset=dataset, shard=f"{dataset}.npy", row=range(len(rows))))
    rows = pd.concat(parts, ignore_index=True)
    rows = rows[rows["split"] != "test"]
    files.write_table(rows.drop(columns=FINDINGS), cohort / "rows.parquet")
    np.save(cohort / "targets.npy", rows[FINDINGS].to_numpy(np.float32))
    files.write_json({"cohort": "joint", "findings": FINDINGS, "size_px": SIZE_PX}, cohort / "cohort.json")
    seed, views, teacher = params.load("seed", "views", "headline.teacher")
    views = views.model_copy(update={"count": STUDY["views"]})
    loaded = load_cohort(cohort)
    logits = np.broadcast_to(4 * loaded.train.targets - 2, (views.count, *loaded.train.targets.shape))
    soft_labels.write(logits, loaded, views, seed, tmp_path / f"data/soft_labels/joint/{teacher}", cohort)
    made = tmp_path / "reports/kd_gain"
    made.mkdir(parents=True)
    write(STUDY)
    git("init", "-q")
    git("add", FILE.name)
    git("commit", "-qm", "Study")
    return made


def write(values: dict[str, Any]) -> None:
    """Write the study's file."""
    with FILE.open("w") as file:
        YAML(typ="safe").dump(values, file)


def commit() -> None:
    """Commit the choice."""
    git("add", "reports/kd_gain/toy.choice.yaml")
    git("commit", "-qm", "Choice")


@pytest.mark.usefixtures("folder")
def test_a_training_that_another_process_is_making_is_refused() -> None:
    given = study.setup(FILE)
    task = (given, "joint", study.TWIN, {"lr": 0.1}, 0)
    name = study.train(*task).name
    files.remove(study.KEPT / name)
    with (
        filelock.FileLock(Path(f".ckpt/locks/kd_gain-{name}.lock")),
        pytest.raises(checkpoints.BusyError, match=f"still making kd_gain-{name}"),
    ):
        study.train(*task)
    assert not list(study.KEPT.iterdir())
    assert study.train(*task).exists()
    assert [path.name for path in study.KEPT.iterdir()] == [name]


def test_the_choice_is_committed_before_test_is_read_and_nothing_is_trained_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    train, read_test = training.train, study.read_test

    def counted(*arguments: Any) -> Any:
        calls.append(arguments[4])
        return train(*arguments)

    def refused(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(training, "train", counted)
    monkeypatch.setattr(study, "read_test", refused)
    with pytest.raises(study.StudyError, match=r"commit .*choice\.yaml and run again"):
        study.run(FILE, folder, lanes=1)
    choice = YAML(typ="safe").load(folder / "toy.choice.yaml")
    methods = len({study.TWIN, choice["loss"], "paper"})
    assert len(set(calls)) == len(calls) == 6 + 2 * methods  # trials, then each method with each seed
    for method, tried in choice["methods"].items():
        best = max(tried["trials"], key=lambda trial: trial["val_auroc"])
        assert tried["chosen"] | {"val_auroc": tried["val_auroc"]} == best
        assert [{**trial, "val_auroc": 0} for trial in tried["trials"]] == [
            {**trial, "val_auroc": 0}
            for trial in STUDY["trials"][method]  # type: ignore[index]
        ]
    assert choice["loss"] == max(("sigmoid_kd", "paper"), key=lambda loss: choice["methods"][loss]["val_auroc"])
    assert not list(study.KEPT.glob("*.pt"))

    commit()
    monkeypatch.setattr(study, "read_test", read_test)
    study.run(FILE, folder, lanes=1)
    assert len(calls) == 6 + 2 * methods
    result, page = files.read_json(folder / "toy.json"), (folder / "toy.md").read_text(encoding="utf-8")
    assert set(result["tests"]["joint"]) == {*DATASETS, "joint"}
    for loss in {choice["loss"], "paper"}:
        gains = {name: test[loss]["minus_twin"]["difference"] for name, test in result["tests"]["joint"].items()}
        assert gains["joint"] == pytest.approx(np.mean([gains[dataset] for dataset in DATASETS]), abs=2e-6)
        assert f"{loss} \N{MINUS SIGN} twin" in page
    assert result["inputs"]["joint"]["data/cohorts/joint/targets.npy"] == files.sha256(
        Path("data/cohorts/joint/targets.npy")
    )
    assert [len(curve["points"]) for curve in result["curves"]["joint"]["twin"]] == [4, 4]

    assert [len(pd.read_csv(path)) for path in study.KEPT.glob("*/curve.csv")] == [4] * len(calls)

    result["choice_sha256"] = "0" * 64
    files.write_json(result, folder / "toy.json")
    with pytest.raises(study.StudyError, match="not blind"):
        study.run(FILE, folder, lanes=1)


@pytest.mark.usefixtures("folder")
def test_a_teacher_of_the_study_is_trained_once_and_what_its_students_learn_from() -> None:
    short = {"steps": 4, "evaluations": 4, "batch_size": 4, "bf16": False}
    write(STUDY | {"teacher": {"architecture": STUDENT, **short}})
    first, again = study.setup(FILE), study.setup(FILE)
    assert first == again
    assert first.teacher == STUDENT
    assert len(list(study.KEPT.iterdir())) == 1
    write(STUDY | {"teacher": {"architecture": STUDENT, "lr": 0.01, **short}})
    other = study.setup(FILE)
    logits = [np.load(given.soft["joint"] / "logits.npy") for given in (first, other)]
    assert logits[0].shape == (STUDY["views"], 36, len(FINDINGS))
    assert not np.array_equal(*logits)
    theirs, ours = (
        {path: value for path, value in given.inputs["joint"].items() if path.endswith("logits.npy")}
        for given in (other, first)
    )
    assert set(theirs.values()) != set(ours.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": STUDY["trials"] | {"twin": [{"lr": 0.1}]}}, "as many for the twin"),  # type: ignore[operator]
        ({"trials": STUDY["trials"] | {"twin": [{"lr": 0.1}, {}]}}, "lr"),  # type: ignore[operator]
        ({"trials": STUDY["trials"] | {"mld": [{"lr": 0.1, "alpha": 2.0}] * 2}}, "alpha"),  # type: ignore[operator]
        ({"paper": "mld"}, "trials must have mld"),
        ({"trial_seed": 1}, "trial_seed must not be one of seeds"),
        ({"choose_on": "chexpert"}, "choose_on must be one of cohorts"),
    ],
)
def test_an_unfair_or_wrong_study_stops_before_any_training(folder: Path, change: dict[str, Any], message: str) -> None:
    write(STUDY | change)
    with pytest.raises(ValueError, match=message):
        study.run(FILE, folder, lanes=1)
    assert not study.KEPT.exists()


@pytest.mark.parametrize(("name", "preset"), [("drawn", None), ("nih", "presets/nih_teacher.yaml")])
def test_a_committed_study_is_a_valid_one(name: str, preset: str | None) -> None:
    root = Path(__file__).parent.parent
    given = study.Study.model_validate(YAML(typ="safe").load(root / f"benchmarks/kd_gain/{name}.yaml"))
    base = root / "params.yaml"
    parsed = params.parse(merged(root / preset, base) if preset else params.read(base))
    assert set(given.cohorts) <= set(parsed.cohorts)
    schedule = parsed.train.student.model_copy(update={"steps": given.steps, "evaluations": given.evaluations})
    for method, trials in given.trials.items():
        for trial in trials:
            assert study.plan(schedule, method, trial)[0].lr == trial["lr"]


def test_an_interval_resamples_patients_over_the_mean_of_the_seeds() -> None:
    rng = np.random.default_rng(0)
    tested = {"twin": rng.random((3, 201)), "paper": rng.random((3, 201))}
    found = study.compare(tested, confidence=0.9)["paper"]
    less = (tested["paper"] - tested["twin"]).mean(axis=0)
    assert found["minus_twin"]["difference"] == pytest.approx(less[0], abs=1e-6)
    assert found["minus_twin"]["low"] == pytest.approx(np.quantile(less[1:], 0.05), abs=1e-6)
    assert found["deviation"]["auroc"] == pytest.approx(np.std(tested["paper"][:, 0], ddof=1), abs=1e-6)


@pytest.mark.parametrize(
    ("lows", "differences", "holds"),
    [
        ((0.01, 0.01, -0.01, 0.01), (0.02, 0.02, 0.02, 0.02), [True, True, True]),
        ((0.01, -0.01, -0.01, 0.01), (0.02, 0.02, 0.02, 0.02), [False, True, True]),
        ((0.01, 0.01, -0.01, -0.01), (0.02, 0.02, -0.02, 0.02), [True, False, False]),
    ],
)
def test_the_verdict_can_fail_in_each_part(lows: Any, differences: Any, holds: list[bool]) -> None:
    tests = {
        name: {"paper": {"minus_twin": {"low": low, "difference": difference}}}
        for name, low, difference in zip((*DATASETS, "joint"), lows, differences, strict=True)
    }
    assert list(study.judge(tests, "paper").values()) == holds


def test_one_data_set_alone_must_win() -> None:
    tests = {"chestxray14": {"paper": {"minus_twin": {"low": -0.01, "difference": 0.02}}}}
    assert list(study.judge(tests, "paper").values()) == [False, True]
    tests["chestxray14"]["paper"]["minus_twin"]["low"] = 0.01
    assert list(study.judge(tests, "paper").values()) == [True, True]
