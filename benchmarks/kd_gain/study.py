"""The study of `make kd-gain`: trials on validation, the choice, trainings with it, and one look at the test films.

Each training is a folder below data/kd_gain, named after the hash of all that it depends on: a killed study goes on.
`<study>.yaml` beside this file says what is compared; choice and result go to reports/kd_gain.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from pydantic import model_validator
from ruamel.yaml import YAML

from stages import predict, report, soft_label
from stages.core import files, findings, params, plugins, schema
from stages.judging import evaluation, metrics
from stages.learning import checkpoints, objectives, soft_labels, training
from stages.learning.cohort import load_cohort
from stages.learning.trainer import Recipe, Terms
from stages.nets import nets
from stages.pages import charts

TWIN = "twin"
KEPT = Path("data/kd_gain")
STAGES = Path(training.__file__).parent.parent
CODE = ("core/seeds.py", "judging/metrics.py", "learning/cohort.py", "learning/kernels.py", "learning/layers.py",
        "learning/objectives.py", "learning/ranks.py", "learning/trainer.py", "learning/training.py", "nets/nets.py",
        "nets/once_for_all.py", "sources/images.py")  # fmt: skip
WINS = 2  # data sets on which the whole interval is wanted above 0


class StudyError(RuntimeError):
    """The study cannot go on; the message says what to do."""


class Study(schema.Section):
    """What is compared; see the comments of a study's file.

    Attributes:
        teacher: the study's own teacher, an architecture and what differs from `train.teacher`; None for the soft
            labels that the pipeline made.
    """

    choose_on: str
    cohorts: list[str]
    trial_seed: int
    seeds: list[int]
    paper: str
    views: schema.Count
    trial_steps: schema.Count
    steps: schema.Count
    evaluations: schema.Count
    teacher: dict[str, Any] | None
    trials: dict[str, list[dict[str, Any]]]

    @model_validator(mode="after")
    def _is_fair(self) -> "Study":
        numbers = {name: len(trials) for name, trials in self.trials.items()}
        if len(set(numbers.values())) > 1:
            raise ValueError(f"trials must be as many for the twin and each loss, got {numbers}")
        if missing := {TWIN, self.paper} - set(self.trials):
            raise ValueError(f"trials must have {', '.join(sorted(missing))}")
        if self.choose_on not in self.cohorts:
            raise ValueError(f"choose_on must be one of cohorts, got {self.choose_on}")
        if self.trial_seed in self.seeds:
            raise ValueError(f"trial_seed must not be one of seeds, got {self.trial_seed}")
        return self


@dataclass(frozen=True)
class Setup:
    """What all trainings share: params.yaml's values, and the hashes of what is trained on.

    Attributes:
        schedule: `train.student` with the study's steps and evaluations.
        soft: cohort -> folder of the teacher's soft labels.
        inputs: cohort -> path -> SHA-256, of the cohort's files and the teacher's soft labels.
    """

    study: Study
    title: str
    seed: int
    threads: int
    views: Any
    schedule: Any
    architecture: str
    start: Any
    teacher: str
    soft: dict[str, Path]
    inputs: dict[str, dict[str, str]]


def code_of(*plug_ins: str) -> dict[str, str]:
    """File below stages/ -> SHA-256, of what every training runs and of these."""
    return {name: files.sha256(STAGES / name) for name in (*CODE, *plug_ins)}


def place_of(facts: dict[str, Any]) -> Path:
    """The folder of what these facts, and nothing else, decide."""
    return KEPT / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """The checkpoint of what will be this folder, open to one process at a time and dropped when the block ends well.

    Raises:
        checkpoints.BusyError: another process makes it.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    checkpoint = folder.with_suffix(".pt")
    with checkpoints.only_writer(f"kd_gain-{folder.name}"):
        yield checkpoint
        files.remove(checkpoint)


def hashes(folder: Path) -> dict[str, str]:
    """Path -> SHA-256, of the files in a folder."""
    return {path.as_posix(): files.sha256(path) for path in sorted(folder.iterdir())}


def plan(schedule: Any, method: str, trial: dict[str, Any]) -> tuple[Any, Terms]:
    """The schedule and the loss of a trial: its `lr` is the schedule's, all else are settings of the loss.

    Raises:
        pydantic.ValidationError: a setting is missing, unknown or out of range.
    """
    given = dict(trial)
    settings = schema.Training.model_validate(schedule.model_dump() | {"lr": given.pop("lr", None)})
    if method == TWIN:
        return settings, objectives.undistilled
    loss = plugins.load("losses", method)
    return settings, partial(loss.terms, settings=loss.Settings.model_validate(given))


def teach(cohort_name: str, teacher: dict[str, Any], views: Any, seed: int, threads: int) -> Path:
    """The folder of the study's own teacher of a cohort and its soft labels, made if it is not there.

    Args:
        cohort_name: what it trains on.
        teacher: its `architecture`, and what differs from `train.teacher` of params.yaml.
        views: that soft labels are computed of.
        seed: the run's.
        threads: the run's.
    """
    changes = dict(teacher)
    architecture, base = changes.pop("architecture"), params.load("train.teacher")
    settings = schema.Training.model_validate(base.model_dump() | changes)
    source = files.input(f"data/cohorts/{cohort_name}")
    plugins.load("models", architecture)
    facts = {
        "cohort": cohort_name, "architecture": architecture, "settings": settings.model_dump(), "seed": seed,
        "threads": threads, "torch": torch.__version__, "views": views.model_dump(), "inputs": hashes(source),
        "code": code_of(f"models/{architecture}.py", "learning/soft_labels.py", "soft_label.py"),
    }  # fmt: skip
    folder = place_of(facts)
    if folder.exists():
        return folder
    cohort = load_cohort(source)
    start = schema.Architecture(pretrained=False, checkpoint=None, checkpoint_sha256=None)
    names = ("teacher", cohort_name, architecture)
    recipe = Recipe(cohort, objectives.undistilled, settings, views, seed, names)
    with unfinished(folder) as checkpoint:
        model, about, history = training.train(recipe, architecture, start, threads, checkpoint)
        device = nets.fix(threads)
        logits = np.stack([
            nets.logits(model.to(device), soft_label.films_of_view(cohort.train, number, views, seed), device)
            for number in range(views.count)
        ])  # fmt: skip
        with files.output(folder.as_posix()) as made:
            nets.write(model, about, made / "model")
            soft_labels.write(logits, cohort, views, seed, made / "soft", made / "model")
            training.write_history(history, made / "curve.csv")
            files.write_json(facts, made / "facts.json")
    return folder


def setup(file: Path, lanes: int = 1) -> Setup:
    """Read the study and params.yaml, train the study's own teachers if it has one, and hash the inputs."""
    study = Study.model_validate(YAML(typ="safe").load(file))
    title, seed, threads, views, schedule, students, headline = params.load(
        "title", "seed", "threads", "views", "train.student", "students", "headline"
    )
    plugins.load("models", headline.student)
    schedule = schedule.model_copy(update={"steps": study.steps, "evaluations": study.evaluations})
    for method, trials in study.trials.items():
        for trial in trials:
            plan(schedule, method, trial)  # a wrong setting stops the study before any work
    views = views.model_copy(update={"count": study.views})
    if study.teacher is None:
        teacher = headline.teacher
        soft = {cohort: files.input(f"data/soft_labels/{cohort}/{teacher}") for cohort in study.cohorts}
    else:
        teacher = study.teacher["architecture"]
        made = Parallel(n_jobs=lanes)(
            delayed(teach)(cohort, study.teacher, views, seed, threads) for cohort in study.cohorts
        )
        soft = {cohort: folder / "soft" for cohort, folder in zip(study.cohorts, made, strict=True)}
    inputs = {cohort: hashes(files.input(f"data/cohorts/{cohort}")) | hashes(folder) for cohort, folder in soft.items()}
    return Setup(study, title, seed, threads, views, schedule, headline.student, students[headline.student], teacher,
                 soft, inputs)  # fmt: skip


def train(given: Setup, cohort_name: str, method: str, trial: dict[str, Any], seed: int) -> Path:
    """The folder of one training, which is made if it is not there.

    Args:
        given: what all trainings share.
        cohort_name: what it trains on.
        method: `twin`, or a loss.
        trial: `lr` and the settings of the loss.
        seed: the student's; a twin and a distilled student of one seed start from the same weights.
    """
    settings, terms = plan(given.schedule, method, trial)
    facts = {
        "cohort": cohort_name, "method": method, "trial": trial, "student_seed": seed, "seed": given.seed,
        "threads": given.threads, "torch": torch.__version__, "views": given.views.model_dump(),
        "settings": settings.model_dump(), "architecture": given.architecture, "start": given.start.model_dump(),
        "inputs": given.inputs[cohort_name],
        "code": code_of(f"models/{given.architecture}.py", *([] if method == TWIN else [f"losses/{method}.py"])),
    }  # fmt: skip
    folder = place_of(facts)
    if folder.exists():
        return folder
    cohort = load_cohort(files.input(f"data/cohorts/{cohort_name}"))
    soft = None
    if method != TWIN:
        soft = soft_labels.read(given.soft[cohort_name], cohort, given.views, given.seed)
    names = ("student", cohort_name, given.architecture, seed)
    recipe = Recipe(cohort, terms, settings, given.views, given.seed, names, soft)
    with unfinished(folder) as checkpoint:
        model, about, history = training.train(recipe, given.architecture, given.start, given.threads, checkpoint)
        with files.output(folder.as_posix()) as made:
            nets.write(model, about, made)
            training.write_history(history, made / "curve.csv")
            files.write_json(facts, made / "facts.json")
    return folder


def train_all(given: Setup, tasks: list[tuple[str, str, dict[str, Any], int]], lanes: int) -> list[Path]:
    """The folders of many trainings (arguments as of `train`), so many at a time, each in a process of its own."""
    return list(Parallel(n_jobs=lanes)(delayed(train)(given, *task) for task in tasks))


def curve_of(folder: Path) -> pd.DataFrame:
    """The learning curve of a training."""
    return pd.read_csv(folder / "curve.csv")


def choose(given: Setup, lanes: int = 1) -> dict[str, Any]:
    """Train every trial and choose, for the twin and for each loss, the best at its end on validation.

    Returns:
        What choice.yaml holds: `loss`, the best of all losses, and of each method its trials and the chosen one.
    """
    study = given.study
    given = replace(given, schedule=given.schedule.model_copy(update={"steps": study.trial_steps}))
    found: dict[str, Any] = {}
    tasks = [
        (study.choose_on, method, trial, study.trial_seed)
        for method, trials in study.trials.items()
        for trial in trials
    ]
    made = iter(train_all(given, tasks, lanes))
    for method, trials in study.trials.items():
        folders = [next(made) for _ in trials]
        values = [round(report.late_gain(curve_of(folder))[0], evaluation.DECIMALS) for folder in folders]
        best = int(np.argmax(values))
        tried = [trial | {"val_auroc": value} for trial, value in zip(trials, values, strict=True)]
        found[method] = {"chosen": trials[best], "val_auroc": values[best], "trials": tried}
    losses = [method for method in found if method != TWIN]
    return {
        "loss": max(losses, key=lambda method: found[method]["val_auroc"]),
        "methods": found,
        "inputs": given.inputs[study.choose_on],
    }


def write_choice(choice: dict[str, Any], path: Path) -> None:
    """Write the choice, unless it is there as it is."""
    yaml = YAML(typ="safe")
    yaml.default_flow_style = None
    if path.exists() and yaml.load(path) == choice:
        return
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(choice, file)


def require_committed(path: Path) -> None:
    """Check that a file is in git's last commit as it is.

    Raises:
        StudyError: it is not.
    """
    command = ["git", "status", "--porcelain", "--ignored", "--", path.name]
    changed = subprocess.run(command, cwd=path.parent, check=True, capture_output=True, text=True).stdout
    if changed:
        raise StudyError(f"the choice must be committed before the test films are read: commit {path} and run again")


def final(given: Setup, choice: dict[str, Any], lanes: int = 1) -> dict[str, dict[str, list[Path]]]:
    """Train the twin, the chosen loss and the paper's on every cohort: cohort -> method -> a folder a seed."""
    study = given.study
    methods = list(dict.fromkeys([TWIN, choice["loss"], study.paper]))
    tasks = [
        (cohort, method, choice["methods"][method]["chosen"], seed)
        for cohort in study.cohorts
        for method in methods
        for seed in study.seeds
    ]
    made = iter(train_all(given, tasks, lanes))
    return {cohort: {method: [next(made) for _ in study.seeds] for method in methods} for cohort in study.cohorts}


def read_test(
    folders: dict[str, list[Path]], datasets: dict[str, list[str]], settings: Any, seed: int, device: torch.device
) -> dict[str, dict[str, np.ndarray]]:
    """Mean AUROC on test films: data set -> method -> (seed, 1 + replicate), the estimate first.

    Args:
        folders: method -> a folder a seed.
        datasets: data set -> the findings that it evaluates.
        settings: `evaluate` of params.yaml.
        seed: the run's, which the patients are drawn with: the same ones for all models.
        device: where the models run.
    """
    labels, images, tables = files.input("data/labels"), files.input("data/images"), {}
    for method, of_method in folders.items():
        for number, folder in enumerate(of_method):
            model, about = nets.load_model(folder)
            score = predict.of_net(model.to(device), device)
            table = predict.predictions(score, about["findings"], labels, images, sorted(datasets))
            tables[f"{method}/{number}"] = table
    found = {}
    for dataset, evaluated in datasets.items():
        predictions = {model: evaluation.select(table, dataset, model) for model, table in tables.items()}
        test = evaluation.match(files.read_table(labels / f"{dataset}.parquet"), predictions)
        sample = evaluation.image_sample(test, predictions, findings.in_order_of(test.columns, evaluated))
        own_means = getattr(plugins.load("datasets", dataset), "MEANS", {})
        means = evaluation.means_of(sample.findings, own_means)
        chosen = means[report.main_mean({"means": means})].findings
        columns = [sample.findings.index(finding) for finding in chosen]
        weights = evaluation.draw(sample, dataset, settings.replicates, seed)
        found[dataset] = {
            method: np.stack([
                mean_of(evaluation.areas_of(sample, f"{method}/{number}", weights).auroc[:, columns])
                for number in range(len(of_method))
            ])
            for method, of_method in folders.items()
        }  # fmt: skip
    return found


def mean_of(areas: np.ndarray) -> np.ndarray:
    """The mean over the findings whose estimate is defined, (1 + replicate,)."""
    means: np.ndarray = areas[:, ~np.isnan(areas[0])].mean(axis=1)
    return means


def compare(tested: dict[str, np.ndarray], confidence: float) -> dict[str, Any]:
    """Each method over the mean of its seeds, and its paired difference from the twin.

    Args:
        tested: method -> (seed, 1 + replicate).
        confidence: of the intervals.
    """
    found = {}
    for method, areas in tested.items():
        scored = evaluation.estimate(areas.mean(axis=0), "auroc", "", confidence)
        values = {"auroc": [evaluation.rounded(value) for value in areas[:, 0]]}
        if method != TWIN:
            less = areas - tested[TWIN]
            gain = evaluation.estimate(less.mean(axis=0), "difference", "", confidence)
            excludes_zero = metrics.Interval(gain["low"], gain["high"], 0).excludes_zero
            scored["minus_twin"] = gain | {"excludes_zero": excludes_zero}
            values["difference"] = [evaluation.rounded(value) for value in less[:, 0]]
        found[method] = scored | {"per_seed": values} | evaluation.spread(values)
    return found


def judge(tests: dict[str, Any], loss: str) -> dict[str, bool]:
    """What was wanted of the chosen loss, and whether it holds (`joint` is the mean of several data sets)."""
    gains = {name: of_test[loss]["minus_twin"] for name, of_test in tests.items()}
    above = {name: gain["low"] is not None and gain["low"] > 0 for name, gain in gains.items()}
    datasets = [name for name in gains if name != "joint"]
    wanted, won = min(WINS, len(datasets)), sum(above[name] for name in datasets)
    found = {
        f"interval above 0 on at least {wanted} of {len(datasets)} data sets": won >= wanted,
        "all differences positive": all(gain["difference"] > 0 for gain in gains.values()),
    }
    return found | ({"interval above 0 on joint": above["joint"]} if "joint" in above else {})


def flatten(folders: list[Path]) -> list[dict[str, Any]]:
    """A learning curve a seed, with what it gained in the last quarter of its schedule."""
    found = []
    for folder in folders:
        curve = curve_of(folder)
        points = [[int(step), round(auroc, 4)] for step, auroc in zip(curve["step"], curve["val_auroc"], strict=True)]
        end, gained = report.late_gain(curve)
        found.append({"val_auroc": round(end, 4), "late_gain": round(gained, 4), "points": points})
    return found


def run(file: Path, into: Path, lanes: int | None = None) -> None:
    """The whole study.

    Args:
        file: `<study>.yaml`.
        into: where `<study>.choice.yaml`, then `<study>.json` and `<study>.md` are written, in a git checkout.
        lanes: trainings at a time; as many as the cores have room for if None.

    Raises:
        StudyError: the choice is not committed, or the test films were read with another one.
    """
    lanes = lanes or max(1, (os.cpu_count() or 1) // params.load("threads"))
    given = setup(file, lanes)
    choice = choose(given, lanes)
    choice_file, result_file = into / f"{file.stem}.choice.yaml", into / f"{file.stem}.json"
    write_choice(choice, choice_file)
    chosen_sha256 = files.sha256(choice_file)
    if result_file.exists() and files.read_json(result_file)["choice_sha256"] != chosen_sha256:
        raise StudyError(
            f"the test films were read with another choice, so that this one is not blind: {result_file} says with "
            "which; remove it to read them again, and say so beside the result"
        )
    trained = final(given, choice, lanes)
    require_committed(choice_file)
    cohorts, evaluated, settings = params.load("cohorts", "datasets", "evaluate")
    device = nets.fix(given.threads)
    tests = {}
    for cohort, folders in trained.items():
        datasets = {dataset: evaluated[dataset].findings for dataset in cohorts[cohort].datasets}
        tested = read_test(folders, datasets, settings, given.seed, device)
        if len(tested) > 1:
            tested["joint"] = {method: np.mean([of[method] for of in tested.values()], axis=0) for method in folders}
        tests[cohort] = {name: compare(of_test, settings.confidence) for name, of_test in tested.items()}
    result = {
        "title": given.title,
        "study": given.study.model_dump(),
        "schedule": given.schedule.model_dump(),
        "views": given.views.model_dump(),
        "code": code_of(f"models/{given.architecture}.py"),
        "params_sha256": files.sha256(params.FILE),
        "choice_sha256": chosen_sha256,
        "inputs": given.inputs,
        "architecture": given.architecture,
        "teacher": given.teacher,
        "teacher_val_auroc": {cohort: end_of_teacher(folder) for cohort, folder in given.soft.items()},
        "confidence": settings.confidence,
        "replicates": settings.replicates,
        "loss": choice["loss"],
        "chosen": {method: choice["methods"][method]["chosen"] for method in trained[given.study.choose_on]},
        "tests": tests,
        "verdict": judge(tests[given.study.choose_on], choice["loss"]),
        "curves": {
            cohort: {method: flatten(of_method) for method, of_method in folders.items()}
            for cohort, folders in trained.items()
        },
    }
    result_file.with_suffix(".md").write_text(page(result, file.stem), encoding="utf-8")
    files.write_json(result, result_file)


def end_of_teacher(soft: Path) -> float | None:
    """Validation AUROC of the study's own teacher at its end; None where the pipeline made the soft labels."""
    curve = soft.parent / "curve.csv"
    return round(report.late_gain(pd.read_csv(curve))[0], evaluation.DECIMALS) if curve.exists() else None


def page(result: dict[str, Any], name: str) -> str:
    """The result in Markdown."""
    methods = list(result["chosen"])
    gains = [method for method in methods if method != TWIN]
    lines = [
        f"# Does distillation help? {result['title']}", "",
        f"Student `{result['architecture']}`, teacher `{result['teacher']}`, {result['study']['steps']} steps, mean "
        f"over the seeds {', '.join(map(str, result['study']['seeds']))}. Settings were chosen on the validation films "
        f"of `{result['study']['choose_on']}` ([choice]({name}.choice.yaml)), each method with as many trials of "
        f"{result['study']['trial_steps']} steps, before "
        f"the test films were read. Chosen loss: `{result['loss']}`. Intervals: {100 * result['confidence']:g}% of "
        f"{result['replicates']} patient-bootstrap replicates of the mean over seeds, differences paired; the standard "
        "deviation over seeds behind them. The row `joint` is the mean of the data sets.", "",
        "<!-- results -->",
        "| trained on | tested on | twin | " + " | ".join(f"{gain} {charts.MINUS} twin" for gain in gains) + " |",
        "|---|---|---:|" + "---:|" * len(gains),
    ]  # fmt: skip
    for cohort, tests in result["tests"].items():
        for name, test in tests.items():
            twin = test[TWIN]
            cells = [f"{charts.number(twin['auroc'])} ({charts.interval(twin['low'], twin['high'])})"]
            for gain in gains:
                less, deviation = test[gain]["minus_twin"], test[gain]["deviation"]
                shown = f"{charts.signed(less['difference'])} ({charts.interval(less['low'], less['high'], True)})"
                cells.append(shown + (f", sd {charts.number(deviation['difference'])}" if deviation else ""))
            lines.append(f"| {cohort} | {name} | {' | '.join(cells)} |")
    lines += ["<!-- /results -->", "", f"Wanted of `{result['loss']}` on `{result['study']['choose_on']}`:", ""]
    lines += [f"- {claim}: {'yes' if holds else '**no**'}" for claim, holds in result["verdict"].items()]
    lines += ["", "| trained on | method | validation AUROC at the end | gained in the last quarter | settings |"]
    lines += ["|---|---|---:|---:|---|"]
    for cohort, curves in result["curves"].items():
        for method in methods:
            ends = ", ".join(charts.number(curve["val_auroc"]) for curve in curves[method])
            late = ", ".join(charts.signed(curve["late_gain"]) for curve in curves[method])
            chosen = ", ".join(f"{key} {value}" for key, value in result["chosen"][method].items())
            lines.append(f"| {cohort} | {method} | {ends} | {late} | {chosen} |")
    return "\n".join([*lines, ""])
