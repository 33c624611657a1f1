"""`make trials`, with trainings of four steps on a handful of films, and the stage that holds its choice to params."""

import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import filelock
import numpy as np
import owners
import pandas as pd
import pytest
import wiring
from ruamel.yaml import YAML

from benchmarks.trials import same, study
from stages import choice
from stages.core import files, params
from stages.core.schema import TWIN
from stages.learning import checkpoints, soft_labels, training
from stages.learning.cohort import load_cohort
from stages.pipeline import lock, revisions
from stages.pipeline.preset import merged

FINDINGS = ["Effusion", "Pneumothorax"]
SIZE_PX = 32
FILE = Path("toy.yaml")
COHORT = Path("data/cohorts/joint")
RESULT = Path("reports/choice.json")
STUDENT, TEACHER = "resnet10t", "resnet18"  # quicker to build and to train than the default student
PAPER = {"alpha": 0.5, "temperature": 2.0, "gamma": 0.0, "weight": 1.0, "softening": "sigmoid", "reduction": "mean"}
STUDY: dict[str, Any] = {
    "cohort": "joint", "trial_seeds": [9, 8],
    "trials": {
        "twin": [{"lr": 0.1}, {"lr": 0.2}],
        "sigmoid_kd": [{"lr": 0.1, "alpha": 0.3, "temperature": 2.0}, {"lr": 0.1, "alpha": 0.0, "temperature": 1.0}],
        "paper": [{"lr": lr, **PAPER} for lr in (0.1, 0.2)],
    },
    "longer": {"methods": ["twin", "paper"], "steps": [6]},
}  # fmt: skip


def lay_params(**changes: Any) -> None:
    """Write the params of a run of four steps, but for keys changed by their dotted names."""
    start = {"pretrained": False, "checkpoint": None, "checkpoint_sha256": None}
    given: dict[str, Any] = {
        "seeds": [0, 1], "threads": 1, "choice": "toy", "students": {STUDENT: start}, "teachers": {TEACHER: start},
        "headline__student": STUDENT, "headline__teacher": TEACHER, "headline__loss": "sigmoid_kd", "views__count": 2,
        "losses": {"sigmoid_kd": {"alpha": 0.3, "temperature": 2.0}, "paper": PAPER},
        "rates": {name: {"default": 0.1, "per_cohort": {}} for name in ("twin", "sigmoid_kd", "paper")},
        "train__student__steps": 4, "train__student__evaluations": 4, "train__student__batch_size": 4,
    }  # fmt: skip
    owners.project(Path(), **(given | changes))


def lay_cohort(count: int = 36) -> None:
    """Write films, in which the first finding is a bright lower half, with a teacher's soft labels."""
    rng = np.random.default_rng(0)
    facts = rng.integers(0, 2, (count, 2)).astype(np.float32)
    films = rng.integers(0, 120, (count, SIZE_PX, SIZE_PX), dtype=np.uint8)
    films[facts[:, 0] == 1, SIZE_PX // 2 :] += 100
    names = [str(row) for row in range(count)]
    rows = pd.DataFrame({"dataset": "padchest", "image": names, "patient": names, "shard": "padchest.npy"})
    COHORT.mkdir(parents=True)
    files.write_table(rows.assign(split=np.resize(["train", "val"], count), row=range(count)), COHORT / "rows.parquet")
    np.save(COHORT / "padchest.npy", films)
    np.save(COHORT / "targets.npy", facts)
    files.write_json({"cohort": "joint", "findings": FINDINGS, "size_px": SIZE_PX}, COHORT / "cohort.json")
    teacher = Path(f"data/models/teacher/joint/{TEACHER}")
    files.write_json({}, teacher / "model.json")
    seed, views = params.load("seed", "views")
    cohort = load_cohort(COHORT)
    logits = np.broadcast_to(4 * cohort.train.targets - 2, (views.count, *cohort.train.targets.shape))
    soft_labels.write(logits, cohort, views, seed, Path(f"data/soft_labels/joint/{TEACHER}"), teacher)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of choices, in a project with what `make repro` leaves before students are trained."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(wiring.ROOT / "stages", "stages", ignore=shutil.ignore_patterns("__pycache__"))
    lay_params()
    lay_cohort()
    lay_study(STUDY)
    made = Path("reports/choices")
    made.mkdir(parents=True)
    return made


def lay_study(values: dict[str, Any]) -> None:
    """Write the study's file."""
    with FILE.open("w") as file:
        YAML().dump(values, file)


def ends_by_seed() -> dict[tuple[Any, ...], float]:
    """(method, rate, alpha, steps, seed) -> validation AUROC at the end of each training that is kept."""
    found = {}
    for folder in study.KEPT.iterdir():
        facts, curve = files.read_json(folder / "facts.json"), pd.read_csv(folder / "curve.csv")
        way = facts["method"], facts["settings"]["lr"], facts["loss"].get("alpha"), facts["settings"]["steps"]
        found[*way, facts["student_seed"]] = round(float(curve["val_auroc"].iloc[-1]), 6)
    return found


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The checkpoint of each training that begins."""
    calls: list[Path] = []
    train = training.train

    def counted(*arguments: Any) -> Any:
        calls.append(arguments[4])
        return train(*arguments)

    monkeypatch.setattr(training, "train", counted)
    return calls


def judged() -> dict[str, Any]:
    """What the stage writes."""
    choice.main([])
    found: dict[str, Any] = files.read_json(RESULT)
    return found


# the study


def test_the_best_trial_on_validation_is_chosen_and_what_carries_it_differs_in_nothing(
    folder: Path, trained: list[Path]
) -> None:
    study.run(FILE, folder, lanes=1)
    assert len(set(trained)) == len(trained) == 16
    text = (folder / "toy.yaml").read_text()
    found = YAML(typ="safe").load(text)
    assert (found["cohort"], found["steps"], found["seeds"]) == ("joint", 4, [9, 8])
    ends = ends_by_seed()
    for method, tried in found["methods"].items():
        best = max(tried["trials"], key=lambda trial: trial["val_auroc"])
        assert tried["chosen"] | {key: best[key] for key in ("val_auroc", "val_aurocs")} == best
        assert tried["val_auroc"] == best["val_auroc"]
        assert tried["trials"] == [
            trial | {"val_auroc": round(fmean(each), 6), "val_aurocs": each}
            for trial in STUDY["trials"][method]
            for each in [[ends[method, trial["lr"], trial.get("alpha"), 4, seed] for seed in (9, 8)]]
        ]
    aurocs = {method: tried["val_auroc"] for method, tried in found["methods"].items()}
    assert found["loss"] == max(("sigmoid_kd", "paper"), key=lambda loss: aurocs[loss])
    for method in ("twin", "paper"):
        first, longer = found["longer"][method]
        assert first == {"steps": 4, "val_auroc": aurocs[method]}
        chosen = found["methods"][method]["chosen"]
        each = [ends[method, chosen["lr"], chosen.get("alpha"), 6, seed] for seed in (9, 8)]
        assert longer == {"steps": 6, "val_auroc": round(fmean(each), 6)}
    assert len(list(study.KEPT.iterdir())) == 16

    chosen = {method: dict(tried["chosen"]) for method, tried in found["methods"].items()}
    rates = {method: {"default": of.pop("lr"), "per_cohort": {}} for method, of in chosen.items()}
    lay_params(rates=rates, losses={loss: chosen[loss] for loss in ("sigmoid_kd", "paper")},
               headline__loss=found["loss"])  # fmt: skip
    assert judged() == {key: found[key] for key in found if key != "made_of"} | {
        "name": "toy", "stale": [], "differs": []
    }  # fmt: skip
    study.run(FILE, folder, lanes=1)
    assert len(trained) == 16
    assert (folder / "toy.yaml").read_text() == text


def test_a_killed_study_goes_on(folder: Path, trained: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    lay_study(STUDY | {"longer": None})
    counted = training.train

    def killed(*arguments: Any) -> Any:
        if len(trained) == 3:
            raise KeyboardInterrupt
        return counted(*arguments)

    monkeypatch.setattr(training, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        study.run(FILE, folder, lanes=1)
    assert not list(folder.iterdir())
    monkeypatch.setattr(training, "train", counted)
    study.run(FILE, folder, lanes=1)
    assert len(set(trained)) == len(trained) == 12


@pytest.mark.usefixtures("folder")
def test_a_trial_that_another_process_is_making_is_refused() -> None:
    task = (study.setup(FILE), TWIN, {"lr": 0.1}, 9)
    study.train(*task)
    (made,) = study.KEPT.iterdir()
    files.remove(made)
    with (
        filelock.FileLock(Path(f".ckpt/locks/trial-{made.name}.lock")),
        pytest.raises(checkpoints.BusyError, match=f"still making trial-{made.name}"),
    ):
        study.train(*task)
    assert not list(study.KEPT.iterdir())


@pytest.mark.usefixtures("folder")
def test_a_key_of_the_schedule_changes_the_training_and_no_loss() -> None:
    trial, given = {"lr": 0.1, "optimizer": "adamw", "alpha": 0.3, "temperature": 2.0}, study.setup(FILE)
    settings, _ = study.plan(given.run["train"].student, "sigmoid_kd", trial)
    assert (settings.optimizer, settings.lr, settings.steps) == ("adamw", 0.1, 4)


@pytest.mark.usefixtures("folder")
def test_another_draw_or_another_loss_is_another_trial(trained: list[Path]) -> None:
    study.train(study.setup(FILE), "twin", {"lr": 0.1}, 9)
    with Path("stages/losses/paper.py").open("a") as file:
        file.write("# edited\n")
    study.train(study.setup(FILE), "twin", {"lr": 0.1}, 9)
    assert len(trained) == 1
    with (COHORT / "padchest.npy").open("ab") as file:
        file.write(b"\0")
    study.train(study.setup(FILE), "twin", {"lr": 0.1}, 9)
    assert len(trained) == 2


TRIALS = STUDY["trials"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": TRIALS | {"twin": [{"lr": 0.1}]}}, "as many for the twin"),
        ({"trials": {"twin": [{"lr": 0.1}]}}, "trials must have twin and a loss or more, got twin"),
        ({"trials": TRIALS | {"twin": [{"lr": 0.1}, {}]}}, "trials.twin: {}: lr"),
        ({"trials": TRIALS | {"twin": [{"lr": 0.1}, {"lr": 0.1, "alpha": 0.2}]}}, "no loss to set alpha of"),
        ({"trials": TRIALS | {"mld": [{"lr": 0.1, "alpha": 2.0}] * 2}}, "trials.mld: .*alpha"),
        ({"trials": TRIALS | {"no_loss": [{"lr": 0.1}] * 2}}, r"no file stages/losses/no_loss\.py"),
        ({"trials": TRIALS | {"twin": [{"lr": 0.1}, {"lr": 0.1, "optimizer": "sgd"}]}}, "some without optimizer"),
        ({"trials": {key: [{"lr": 0.1, "steps": 8}] for key in TRIALS}}, "steps must not be set by a trial"),
        ({"longer": {"methods": ["mld"], "steps": [8]}}, "longer.methods must be of trials, got mld"),
        ({"longer": {"methods": ["twin"], "steps": [2]}}, "evaluations must not exceed steps"),
        ({"trial_seeds": [1, 5, 0]}, r"trial_seeds must be none of seeds \(params\.yaml\), got 0, 1"),
        ({"trial_seeds": [5, 5]}, "trial_seeds: an item stands twice"),
        ({"trial_seeds": []}, "trial_seeds: .*at least 1"),
        ({"cohort": "chexpert"}, r"cohort must be a key of cohorts \(joint\), got chexpert"),
        ({"steps": 8}, "steps: unknown key"),
    ],
)
def test_an_unfair_or_wrong_study_stops_before_any_work(folder: Path, change: dict[str, Any], message: str) -> None:
    lay_study(STUDY | change)
    with pytest.raises(ValueError, match=message):
        study.run(FILE, folder, lanes=1)
    assert not study.KEPT.exists()


@pytest.mark.parametrize(("name", "preset"), [("drawn", None), ("nih", "presets/nih_teacher.yaml")])
def test_a_committed_study_is_a_valid_one(name: str, preset: str | None) -> None:
    given = study.Study.model_validate(params.read(wiring.ROOT / f"benchmarks/trials/{name}.yaml"))
    base = wiring.ROOT / "params.yaml"
    parsed = params.parse(merged(wiring.ROOT / preset, base) if preset else params.read(base))
    assert given.cohort in parsed.cohorts
    assert not set(given.trial_seeds) & set(parsed.seeds)
    for method, trials in given.trials.items():
        for trial in trials:
            assert study.plan(parsed.train.student, method, trial)[0].lr == trial["lr"]


# the stage


def lay_choice(folder: Path, **chosen: dict[str, Any]) -> None:
    """Write a choice as the study does, without training: the first trial of each, but for changes by method."""
    given = study.setup(FILE)
    found = {
        method: choice.Tried(
            chosen=trials[0] | chosen.get(method, {}), val_auroc=0.75, trials=[t | {"val_auroc": 0.75} for t in trials]
        )
        for method, trials in given.study.trials.items()
    }
    made = choice.Choice(cohort="joint", steps=4, seeds=[9, 8], loss="sigmoid_kd", methods=found, longer={},
                         made_of=given.made_of)  # fmt: skip
    study.write(made, folder / "toy.yaml")


@pytest.mark.usefixtures("folder")
def test_without_a_choice_nothing_is_wrong() -> None:
    lay_params(choice=None)
    assert judged() == {
        "name": None, "cohort": None, "steps": None, "seeds": None, "loss": None, "stale": [], "differs": [],
        "methods": {}, "longer": {},
    }  # fmt: skip


def test_changed_code_params_and_films_are_named(folder: Path) -> None:
    lay_choice(folder)
    assert judged()["stale"] == []
    before = files.sha256(COHORT / "rows.parquet")[:12]
    for name in ("learning/trainer.py", "losses/mld.py", "losses/paper.py", "phantom/lesions.py", "soft_label.py",
                 "learning/checkpoints.py", "harmonize.py"):  # fmt: skip
        with Path("stages", name).open("a") as file:
            file.write("# edited\n")
    rows = files.read_table(COHORT / "rows.parquet")
    files.write_table(rows[::-1], COHORT / "rows.parquet")
    with (COHORT / "padchest.npy").open("ab") as file:
        file.write(b"\0")
    lay_params(seed=18, train__student__optimizer="adamw", phantoms={}, threads=2, workers=1,
               datasets__padchest__root="films")  # fmt: skip
    found = judged()
    drawn = sorted(path.as_posix() for path in Path("stages/phantom").glob("*.py") if path.name != "__init__.py")
    after = files.sha256(COHORT / "rows.parquet")[:12]
    named = [line for line in found["stale"] if not line.startswith(("params: phantom", "code: stages/phantom"))]
    assert named == [
        "code: stages/learning/trainer.py has changed",
        "code: stages/losses/paper.py has changed",
        "code: stages/soft_label.py has changed",
        "params: seed is 18, the trials ran with 17",
        'params: train.student.optimizer is "adamw", the trials ran with "sgd"',
        f"cohort: rows.parquet is another draw's ({after}, the trials ran on {before})",
    ]
    assert [line for line in found["stale"] if "stages/phantom" in line] == [
        f"code: {path} is not part of this run" for path in drawn
    ]
    assert "params: phantom.size_px is nothing, the trials ran with 128" in found["stale"]
    assert found["differs"] == []


def test_code_of_drawing_counts_where_films_are_drawn(folder: Path) -> None:
    lay_choice(folder)
    with Path("stages/phantom/lesions.py").open("a") as file:
        file.write("# edited\n")
    assert judged()["stale"] == ["code: stages/phantom/lesions.py has changed"]


def test_code_that_reads_checkpoints_counts_where_one_is_named(folder: Path) -> None:
    lay_choice(folder)
    with Path(choice.WEIGHTS).open("a") as file:
        file.write("# edited\n")
    assert judged()["stale"] == []
    start = {"pretrained": False, "checkpoint": "/here/net.pt", "checkpoint_sha256": "a" * 64}
    lay_params(teachers={TEACHER: start})
    assert f"code: {choice.WEIGHTS} was not part of the trials" in judged()["stale"]


def test_another_teacher_is_named(folder: Path) -> None:
    lay_choice(folder)
    start = {"pretrained": False, "checkpoint": None, "checkpoint_sha256": None}
    lay_params(teachers={STUDENT: start}, headline__teacher=STUDENT)
    assert judged()["stale"] == [
        f"code: stages/models/{TEACHER}.py is not part of this run",
        f'params: headline.teacher is "{STUDENT}", the trials ran with "{TEACHER}"',
        f"params: teachers.{STUDENT}.checkpoint_sha256 is null, the trials ran with nothing",
        f"params: teachers.{STUDENT}.pretrained is false, the trials ran with nothing",
        f"params: teachers.{TEACHER}.checkpoint_sha256 is nothing, the trials ran with null",
        f"params: teachers.{TEACHER}.pretrained is nothing, the trials ran with false",
    ]


def test_a_cohort_that_is_gone_is_named(folder: Path) -> None:
    lay_choice(folder)
    own = {"chexpert": {"datasets": ["chexpert"]}}
    lay_params(cohorts=own, headline__cohort="chexpert")
    assert judged()["stale"] == ["params: there is no cohorts.joint, which the trials ran on"]


def test_a_choice_that_params_do_not_carry_is_named(folder: Path) -> None:
    lay_choice(folder, twin={"lr": 0.2}, sigmoid_kd={"optimizer": "adamw"}, paper={"reduction": "sum"})
    start = {"default": 0.1, "per_cohort": {}}
    lay_params(
        headline__loss="mld",
        losses={"sigmoid_kd": {"alpha": 0.5, "temperature": 2.0}, "paper": PAPER, "mld": {"alpha": 0.3}},
        rates={"twin": start, "sigmoid_kd": start | {"per_cohort": {"joint": 0.4}}, "paper": start, "mld": start},
    )
    found = judged()
    assert found["stale"] == []
    assert found["differs"] == [
        "rates.twin on joint is 0.1, chosen was 0.2",
        "losses.sigmoid_kd.alpha is 0.5, chosen was 0.3",
        "rates.sigmoid_kd on joint is 0.4, chosen was 0.1",
        'train.student.optimizer is "sgd", chosen for sigmoid_kd was "adamw"',
        'losses.paper.reduction is "mean", chosen was "sum"',
        "losses.mld has no trials",
        'headline.loss is "mld", the best of the trials was "sigmoid_kd"',
    ]


def test_a_tried_loss_may_be_left_out_of_params(folder: Path) -> None:
    lay_choice(folder)
    rates = {name: {"default": 0.1, "per_cohort": {}} for name in ("twin", "sigmoid_kd")}
    lay_params(losses={"sigmoid_kd": {"alpha": 0.3, "temperature": 2.0}}, rates=rates)
    found = judged()
    assert found["stale"] + found["differs"] == []


def test_a_key_of_the_schedule_that_trials_set_may_be_carried(folder: Path) -> None:
    trials = {key: [trial | {"optimizer": "adamw"} for trial in of] for key, of in TRIALS.items()}
    lay_study(STUDY | {"trials": trials})
    lay_choice(folder)
    differ = [f'train.student.optimizer is "sgd", chosen for {key} was "adamw"' for key in TRIALS]
    assert judged()["differs"] == differ
    lay_params(train__student__optimizer="adamw")
    found = judged()
    assert found["stale"] + found["differs"] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"there is no reports/choices/toy\.yaml"),
        ("loss: [", "toy.yaml is no YAML"),
        ("loss: paper\n", "cohort: missing; steps: missing"),
    ],
)
def test_a_choice_that_cannot_be_read_stops_the_stage(folder: Path, text: str | None, message: str) -> None:
    if text:
        (folder / "toy.yaml").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}.*make trials STUDY=toy"):
        choice.main([])
    assert not RESULT.exists()


@pytest.mark.parametrize("key", ["loss", "lr"])
def test_a_choice_without_a_loss_or_a_rate_stops_the_stage(folder: Path, key: str) -> None:
    lay_choice(folder)
    text = (folder / "toy.yaml").read_text()
    broken = {"loss": ("loss: sigmoid_kd", "loss: mld"), "lr": ("lr: 0.1\n      alpha", "alpha")}[key]
    assert broken[0] in text
    (folder / "toy.yaml").write_text(text.replace(*broken))
    with pytest.raises(ValueError, match="methods must have mld" if key == "loss" else "lr, which sigmoid_kd, paper"):
        choice.main([])


def test_no_place_of_a_machine_is_recorded(folder: Path) -> None:
    start = {"pretrained": False, "checkpoint": "/here/net.pt", "checkpoint_sha256": "a" * 64}
    lay_params(datasets__padchest__root="/here/films", teachers={TEACHER: start}, ingest__dask_scheduler="tcp://here:1",
               phantoms={})  # fmt: skip
    lay_choice(folder)
    text = (folder / "toy.yaml").read_text()
    assert "here" not in text
    assert f"teachers.{TEACHER}.checkpoint_sha256: {'a' * 64}" in text
    assert f"{choice.WEIGHTS}: " in text


def test_the_code_of_trials_is_all_that_trains_or_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hashes cover all that these stages import but their own files and what of the core changes no number."""
    monkeypatch.chdir(wiring.ROOT)
    stages = ("train_teacher", "soft_label", "train_student", "distill")
    needed = {path.relative_to(wiring.ROOT).as_posix() for of in stages for path in wiring.closure(f"stages.{of}")}
    plain = {f"stages/core/{name}.py" for name in ("arguments", "files", "findings", "params", "plugins", "schema")}
    plain |= {"stages/distill.py", "stages/train_student.py", "stages/learning/checkpoints.py"}
    code = choice.code_of(choice.sources(), [], [], choice.WEIGHTS)
    for_plug_ins = {f"stages/nets/{name}.py" for name in ("activations", "once_for_all")}
    assert set(code) == needed - plain | for_plug_ins


def test_code_that_trains_the_same_bytes_is_taken_for_that_of_the_trials_and_other_code_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/train.py").write_text("now")

    def entries(model: str, code: str) -> dict[str, Any]:
        deps = [{"path": "stages/train.py", "md5": code}]
        return {"train": {"cmd": "x", "deps": deps, "outs": [{"path": "data/models/a", "md5": model}]}}

    code = lock.md5(tmp_path / "stages/train.py")
    kept = {"then": entries("1", "0"), revisions.HERE: entries("1", code)}
    monkeypatch.setattr(revisions, "entries", lambda revision: kept[revision])
    assert same.require_same("then", ["stages/train.py"]) == 1
    with pytest.raises(same.NotProvenError, match=r"no training in dvc\.lock ran with this stages/other\.py"):
        same.require_same("then", ["stages/other.py"])
    kept[revisions.HERE] = entries("1", "0")
    with pytest.raises(same.NotProvenError, match=r"no training in dvc\.lock ran with this stages/train\.py"):
        same.require_same("then", ["stages/train.py"])
    kept[revisions.HERE] = entries("2", code)
    with pytest.raises(same.NotProvenError, match="data/models/a has other bytes than in then: run `make trials`"):
        same.require_same("then", ["stages/train.py"])
