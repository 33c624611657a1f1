"""The study of `make trials`: settings of the twin and of each loss are tried, and chosen on validation films alone.

Each training is a folder below data/trials, named after the hash of all that it depends on: a killed study goes on.
`<study>.yaml` beside this file says what is tried; films, teacher, schedule and views are those of params.yaml, as the
pipeline made them. The choice goes to reports/choices, where the stage `choice` holds it against params.yaml.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from joblib import Parallel, delayed
from pydantic import ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from stages import choice
from stages.core import files, params, plugins, schema
from stages.core.schema import TWIN
from stages.judging import evaluation
from stages.learning import checkpoints, objectives, soft_labels, terms, training
from stages.learning.cohort import load_cohort
from stages.learning.trainer import Recipe

KEPT = Path("data/trials")
HEAD = "# Written by `make trials`; the stage `choice` holds it against params.yaml.\n"


class StudyError(ValueError):
    """The study's file breaks a rule; the message says which."""


class Longer(schema.Section):
    """Methods whose chosen settings are also trained for other numbers of steps."""

    methods: list[str]
    steps: list[schema.Count]


class Study(schema.Section):
    """What is tried; see the comments of a study's file."""

    cohort: str
    trial_seeds: schema.Seeds
    trials: dict[str, list[dict[str, Any]]]
    longer: Longer | None = None

    @model_validator(mode="after")
    def _is_fair(self) -> "Study":
        numbers = {name: len(trials) for name, trials in self.trials.items()}
        if len(set(numbers.values())) > 1 or 0 in numbers.values():
            raise ValueError(f"trials must be as many for the twin and each loss, got {numbers}")
        if TWIN not in self.trials or len(self.trials) == 1:
            raise ValueError(f"trials must have {TWIN} and a loss or more, got {', '.join(self.trials) or 'none'}")
        tried = {tuple(sorted(trial.keys() & choice.SCHEDULE)) for of in self.trials.values() for trial in of}
        if len(tried) > 1:
            found = ", ".join(sorted({key for keys in tried for key in keys}))
            raise ValueError(
                "all trials must set the same keys of train.student, since one that lacks a key would change when "
                f"another's is carried into params.yaml, got some without {found}"
            )
        if any("steps" in keys for keys in tried):
            raise ValueError("steps must not be set by a trial: all run for train.student.steps")
        if self.longer and (unknown := set(self.longer.methods) - set(self.trials)):
            raise ValueError(f"longer.methods must be of trials, got {', '.join(sorted(unknown))}")
        return self


@dataclass(frozen=True)
class Setup:
    """What all trainings share.

    Attributes:
        study: what is tried.
        run: key -> value, of what the stage `choice` reads of params.yaml.
        threads: the run's.
        code: as of `choice.sources`.
        inputs: path -> SHA-256, of the cohort's files and of the teacher's soft labels.
        made_of: what is recorded of all this.
    """

    study: Study
    run: dict[str, Any]
    threads: int
    code: dict[str, str]
    inputs: dict[str, str]
    made_of: choice.MadeOf

    @property
    def steps(self) -> int:
        """Of each trial."""
        return int(self.run["train"].student.steps)


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
    with checkpoints.only_writer(f"trial-{folder.name}"):
        yield checkpoint
        files.remove(checkpoint)


def hashes(folder: Path) -> dict[str, str]:
    """Path -> SHA-256, of the files in a folder."""
    return {path.as_posix(): files.sha256(path) for path in sorted(folder.iterdir())}


def plan(schedule: schema.Schedule, method: str, trial: dict[str, Any]) -> tuple[schema.Training, terms.Loss]:
    """The schedule and the loss of a trial: keys of `train.student` and `lr` are the schedule's, all else the loss's.

    Raises:
        StudyError: a setting is missing, unknown or out of range, or the method is no loss.
    """
    lr, own, given = choice.parted(trial)
    try:
        settings = schema.Training.model_validate(schedule.model_dump() | own | {"lr": lr})
        if method != TWIN:
            return settings, terms.with_settings(plugins.load("losses", method), given)
    except ValidationError as error:
        faults = "; ".join(params.reason(item) for item in error.errors())
        raise StudyError(f"trials.{method}: {trial}: {faults}") from error
    if given:
        raise StudyError(f"trials.{method}: {trial}: it has no loss to set {', '.join(given)} of")
    return settings, terms.Loss(objectives.undistilled, needs_features=False, adapter=None)


def setup(file: Path) -> Setup:
    """Read the study and params.yaml, check every trial, and hash what is trained on.

    Raises:
        ValueError: the study or one of its trials breaks a rule.
        FileNotFoundError: the pipeline has not made cohort or soft labels yet.
    """
    try:
        study = Study.model_validate(params.read(file))
    except ValidationError as error:
        raise StudyError(f"{file}: {'; '.join(params.reason(item) for item in error.errors())}") from error
    threads, seeds, *values = params.load("threads", "seeds", *choice.PARAMS)
    run = dict(zip(choice.PARAMS, values, strict=True))
    if both := sorted(set(study.trial_seeds) & set(seeds)):
        raise StudyError(f"{file}: trial_seeds must be none of seeds (params.yaml), got {', '.join(map(str, both))}")
    if study.cohort not in run["cohorts"]:
        raise StudyError(f"{file}: cohort must be a key of cohorts ({', '.join(run['cohorts'])}), got {study.cohort}")
    lengths = study.longer.steps if study.longer else []
    for method, trials in study.trials.items():
        for trial in trials:
            for other in ({}, *({"steps": steps} for steps in lengths)):
                plan(run["train"].student, method, trial | other)
    soft = files.input(f"data/soft_labels/{study.cohort}/{run['headline'].teacher}")
    cohort, code = files.input(f"data/cohorts/{study.cohort}"), choice.sources()
    made_of = choice.made_of(run, code, cohort, study.trials)
    return Setup(study, run, threads, code, hashes(cohort) | hashes(soft), made_of)


def train(given: Setup, method: str, trial: dict[str, Any], seed: int) -> float:
    """Validation AUROC at the end of one training, whose folder is made if it is not there.

    Args:
        given: what all trainings share.
        method: `twin`, or a loss.
        trial: `lr`, settings of the loss, and what differs from `train.student`.
        seed: of the student.
    """
    run, headline, name = given.run, given.run["headline"], given.study.cohort
    settings, loss = plan(run["train"].student, method, trial)
    start = run["students"][headline.student]
    parts = [choice.WEIGHTS] if start.checkpoint else []
    facts = {
        "cohort": name, "method": method, "loss": choice.parted(trial)[2], "settings": settings.model_dump(),
        "student_seed": seed, "seed": run["seed"], "views": run["views"].model_dump(),
        "student": headline.student, "start": start.model_dump(), "threads": given.threads, "torch": torch.__version__,
        "inputs": given.inputs, "code": choice.code_of(given.code, [headline.student], [method], *parts),
    }  # fmt: skip
    folder = place_of(facts)
    if not folder.exists():
        cohort = load_cohort(files.input(f"data/cohorts/{name}"))
        made_by = files.input(f"data/models/teacher/{name}/{headline.teacher}")
        of_teacher = files.input(f"data/soft_labels/{name}/{headline.teacher}")
        soft = None if method == TWIN else soft_labels.read(of_teacher, cohort, run["views"], run["seed"], made_by)
        teacher = soft_labels.load_teacher(made_by, cohort) if loss.needs_features else None
        names = ("student", name, headline.student, seed)
        recipe = Recipe(cohort, loss.terms, settings, run["views"], run["seed"], names, soft, teacher, loss.adapter)
        with unfinished(folder) as checkpoint:
            _, _, history = training.train(recipe, headline.student, start, given.threads, checkpoint)
            with files.output(folder.as_posix()) as made:
                made.mkdir()
                training.write_history(history, made / "curve.csv")
                files.write_json(facts, made / "facts.json")
    curve = pd.read_csv(folder / "curve.csv")
    return round(float(curve["val_auroc"].iloc[-1]), evaluation.DECIMALS)


def train_all(given: Setup, tasks: list[tuple[str, dict[str, Any]]], lanes: int) -> Iterator[list[float]]:
    """What `train` returns for each (method, trial), once a seed; so many at a time, each in a process of its own."""
    seeds = given.study.trial_seeds
    found = Parallel(n_jobs=lanes)(delayed(train)(given, *task, seed) for task in tasks for seed in seeds)
    return (found[place : place + len(seeds)] for place in range(0, len(found), len(seeds)))


def mean(aurocs: list[float]) -> float:
    """Over seeds."""
    return round(fmean(aurocs), evaluation.DECIMALS)


def try_all(given: Setup, lanes: int) -> dict[str, choice.Tried]:
    """Train every trial: method -> its trials, and the best at its end on validation, the first of equal ones.

    One seed chooses badly: a rate at the edge of divergence wins on one and loses on others.
    """
    trials = given.study.trials
    made = train_all(given, [(method, trial) for method, of in trials.items() for trial in of], lanes)
    found = {}
    for method, of in trials.items():
        aurocs = [next(made) for _ in of]
        tried = [trial | {"val_auroc": mean(each), "val_aurocs": each} for trial, each in zip(of, aurocs, strict=True)]
        best = max(range(len(of)), key=lambda place: tried[place]["val_auroc"])
        found[method] = choice.Tried(chosen=of[best], val_auroc=tried[best]["val_auroc"], trials=tried)
    return found


def train_longer(given: Setup, found: dict[str, choice.Tried], lanes: int) -> dict[str, list[choice.Point]]:
    """Train the chosen settings of the methods of `longer` for its numbers of steps: method -> a point a number."""
    longer = given.study.longer or Longer(methods=[], steps=[])
    tasks = [(method, found[method].chosen | {"steps": steps}) for method in longer.methods for steps in longer.steps]
    made = train_all(given, tasks, lanes)
    return {
        method: [
            choice.Point(steps=given.steps, val_auroc=found[method].val_auroc),
            *(choice.Point(steps=steps, val_auroc=mean(next(made))) for steps in longer.steps),
        ]
        for method in longer.methods
    }


def laid_out(value: Any) -> Any:
    """A value for YAML, in which each entry of a list takes one line."""
    if isinstance(value, dict):
        return {key: laid_out(below) for key, below in value.items()}
    return [in_one_line(item) for item in value] if isinstance(value, list) else value


def in_one_line(value: Any) -> Any:
    """A value for YAML, in which a mapping takes one line."""
    if not isinstance(value, dict):
        return value
    line = CommentedMap(value)
    line.fa.set_flow_style()
    return line


def write(chosen: choice.Choice, path: Path) -> None:
    """Write a choice."""
    yaml = YAML()
    yaml.width = 10**6
    with files.whole(path) as made, made.open("w", encoding="utf-8") as file:
        file.write(HEAD)
        yaml.dump(laid_out(chosen.model_dump()), file)


def run(file: Path, into: Path, lanes: int | None = None) -> None:
    """The whole study.

    Args:
        file: `<study>.yaml`.
        into: where the choice is written, under the same name.
        lanes: trainings at a time; as many as the cores have room for if None.
    """
    given = setup(file)
    lanes = lanes or max(1, (os.cpu_count() or 1) // given.threads)
    found = try_all(given, lanes)
    chosen = choice.Choice(
        cohort=given.study.cohort,
        steps=given.steps,
        seeds=given.study.trial_seeds,
        loss=max((method for method in found if method != TWIN), key=lambda method: found[method].val_auroc),
        methods=found,
        longer=train_longer(given, found, lanes),
        made_of=given.made_of,
    )
    write(chosen, into / file.name)
