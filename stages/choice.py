"""Do the committed trials belong to this code, these params and these films, and does params.yaml carry their choice?

Reads `reports/choices/<choice>.yaml`, which `make trials` wrote, the code that trials run, and rows and targets of the
cohort that they trained on. Its films and the teacher's soft labels are not compared: their last digits may differ
between CPUs. Writes `reports/choice.json`: the choice, and a line for all that is not as the trials had it (`stale`)
and for each choice that params.yaml does not carry (`differs`). Such lines fail `make audit` and not this stage, so
that a run goes on. Stops when the file is missing, no YAML, or lacks keys.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator

from stages.core import arguments, files, params, schema
from stages.core.schema import TWIN

PARAMS = ("choice", "cohorts", "datasets", "headline", "ingest", "losses", "phantom", "phantoms", "policies", "rates",
          "seed", "students", "teachers", "train", "views")  # fmt: skip
COHORT = ("rows.parquet", "targets.npy")
SCHEDULE = frozenset(schema.Schedule.model_fields)
NO_NUMBERS = ("__init__.py", "checkpoints.py")  # code that changes no trained weight
DRAWING, WEIGHTS = "stages/phantom/", "stages/nets/weights.py"
CHOSEN = ("stages/losses/", "stages/models/", DRAWING, WEIGHTS)  # of these trials run only what params name
OF_MACHINE = ("root", "checkpoint", "dask_scheduler")  # last parts of keys whose values are places: never recorded
NOTHING = "nothing"  # what a line says of a key that is not there


class Tried(schema.Section):
    """A method's trials, each with `val_aurocs`, one a seed, and their mean `val_auroc`, and the best of them."""

    chosen: dict[str, Any]
    val_auroc: float
    trials: list[dict[str, Any]]


class Point(schema.Section):
    """Validation AUROC at the end of a training of so many steps."""

    steps: schema.Count
    val_auroc: float


class MadeOf(schema.Section):
    """What the trials depend on: file -> SHA-256, dotted key -> value, file of the cohort -> SHA-256."""

    code: dict[str, str]
    params: dict[str, Any]
    cohort: dict[str, str]


class Choice(schema.Section):
    """What `make trials` writes.

    Attributes:
        cohort: whose validation films chose.
        steps: of each trial.
        seeds: of each trial, which is trained once a seed.
        loss: the best of the losses.
        methods: `twin` or a loss -> its trials.
        longer: the same -> its chosen settings for other numbers of steps, the trials' own first.
        made_of: what all this depends on.
    """

    cohort: str
    steps: schema.Count
    seeds: list[int]
    loss: str
    methods: dict[str, Tried]
    longer: dict[str, list[Point]]
    made_of: MadeOf

    @model_validator(mode="after")
    def _is_whole(self) -> "Choice":
        if missing := {TWIN, self.loss} - set(self.methods):
            raise ValueError(f"methods must have {', '.join(sorted(missing))}")
        if without := [method for method, tried in self.methods.items() if "lr" not in tried.chosen]:
            raise ValueError(f"chosen must have lr, which {', '.join(without)} lacks")
        return self


def read(folder: Path, name: str) -> Choice:
    """The choice of a study.

    Raises:
        FileNotFoundError: the study wrote none.
        ValueError: it is no YAML, or not what `make trials` writes.
    """
    file = folder / f"{name}.yaml"
    remedy = f"`make trials STUDY={name}` writes it, and `choice: null` in params.yaml does without"
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}: {remedy}")
    try:
        return Choice.model_validate(params.read(file))
    except ValidationError as error:
        faults = "; ".join(params.reason(item) for item in error.errors())
        raise ValueError(f"{file} is not what `make trials` writes ({faults}): {remedy}") from error
    except params.ParamsError as error:
        raise ValueError(f"{error}: {remedy}") from error


def parted(trial: Mapping[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A trial's learning rate, its keys of `train.student`, and its settings of the loss."""
    own = {key: value for key, value in trial.items() if key in SCHEDULE}
    return trial.get("lr"), own, {key: value for key, value in trial.items() if key != "lr" and key not in own}


def sources() -> dict[str, str]:
    """Path -> SHA-256, of all code that some trial may depend on, its teacher and drawn films included."""
    folders = (
        files.input("stages/learning"), files.input("stages/losses"), files.input("stages/models"),
        files.input("stages/nets"), files.input("stages/phantom"),
    )  # fmt: skip
    alone = [
        files.input("stages/core/seeds.py"), files.input("stages/judging/metrics.py"),
        files.input("stages/soft_label.py"), files.input("stages/sources/images.py"),
        files.input("stages/train_teacher.py"),
    ]  # fmt: skip
    paths = [*alone, *(path for folder in folders for path in folder.glob("*.py"))]
    return {path.as_posix(): files.sha256(path) for path in sorted(paths) if path.name not in NO_NUMBERS}


def code_of(code: Mapping[str, str], models: Iterable[str], methods: Iterable[str], *parts: str) -> dict[str, str]:
    """Path -> SHA-256, of what these models and methods run.

    Args:
        code: as of `sources`.
        models: architectures.
        methods: `twin`, or losses.
        *parts: `DRAWING` if films are drawn, `WEIGHTS` if a model starts from a file.
    """
    wanted = {f"stages/models/{name}.py" for name in models} | {f"stages/losses/{name}.py" for name in methods}
    return {
        path: sha256
        for path, sha256 in code.items()
        if path in wanted or not path.startswith(CHOSEN) or path.startswith(parts)
    }


def made_of(run: Mapping[str, Any], code: Mapping[str, str], folder: Path, trials: Mapping[str, Any]) -> MadeOf:
    """What trials depend on.

    Args:
        run: key -> value, of `PARAMS`.
        code: as of `sources`.
        folder: of the cohort, which bears its name.
        trials: method -> its trials.
    """
    headline, datasets = run["headline"], run["cohorts"][folder.name].datasets
    drawn = [dataset for dataset in datasets if dataset in run["phantoms"]]
    starts = run["students"][headline.student], run["teachers"][headline.teacher]
    parts = [part for part, runs in ((DRAWING, drawn), (WEIGHTS, any(start.checkpoint for start in starts))) if runs]
    return MadeOf(
        code=code_of(code, (headline.student, headline.teacher), trials, *parts),
        params=_params_of(run, folder.name, drawn, {key for of in trials.values() for trial in of for key in trial}),
        cohort={name: files.sha256(folder / name) for name in COHORT},
    )


def _params_of(run: Mapping[str, Any], cohort: str, drawn: list[str], tried: set[str]) -> dict[str, Any]:
    """Dotted key -> value, of what decides trials; what they set themselves (all of them the same keys) does not."""
    headline = run["headline"]
    wanted = {key: run[key] for key in ("ingest", "seed", "train", "views", *(["phantom"] if drawn else []))}
    wanted |= {"headline.student": headline.student, "headline.teacher": headline.teacher}
    wanted[f"students.{headline.student}"] = run["students"][headline.student]
    wanted[f"teachers.{headline.teacher}"] = run["teachers"][headline.teacher]
    wanted[f"cohorts.{cohort}"] = run["cohorts"][cohort]
    for dataset in run["cohorts"][cohort].datasets:
        wanted |= {f"{group}.{dataset}": run[group][dataset] for group in ("datasets", "policies")}
    wanted |= {f"phantoms.{dataset}": run["phantoms"][dataset] for dataset in drawn}
    found = {key: value for part, given in wanted.items() for key, value in flat(given, part).items()}
    left_out = {f"train.student.{key}" for key in tried}
    return {key: found[key] for key in sorted(found.keys() - left_out) if key.split(".")[-1] not in OF_MACHINE}


def flat(value: Any, key: str) -> dict[str, Any]:
    """Dotted key -> value, of all at and below a key that is no filled mapping."""
    given = value.model_dump() if isinstance(value, BaseModel) else value
    if not isinstance(given, dict) or not given:
        return {key: given}
    return {name: leaf for part, below in given.items() for name, leaf in flat(below, f"{key}.{part}").items()}


def differing(now: Mapping[str, Any], then: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key, present value, value then) of what differs; `NOTHING` for a key that is not there."""
    for key in sorted(now.keys() | then.keys()):
        if (ours := now.get(key, NOTHING)) != (theirs := then.get(key, NOTHING)):
            yield key, ours, theirs


def said(value: Any) -> str:
    """A value as a line has it."""
    return NOTHING if value is NOTHING else json.dumps(value, ensure_ascii=False)


def stale(now: MadeOf, then: MadeOf) -> list[str]:
    """A line for each thing that is not as the trials had it."""
    lines = []
    for path, ours, theirs in differing(now.code, then.code):
        has = "is not part of this run" if ours is NOTHING else "has changed"
        lines.append(f"code: {path} {'was not part of the trials' if theirs is NOTHING else has}")
    for key, ours, theirs in differing(now.params, then.params):
        lines.append(f"params: {key} is {said(ours)}, the trials ran with {said(theirs)}")
    for name, ours, theirs in differing(now.cohort, then.cohort):
        lines.append(f"cohort: {name} is another draw's ({ours[:12]}, the trials ran on {theirs[:12]})")
    return lines


def differs(choice: Choice, run: Mapping[str, Any]) -> list[str]:
    """A line for each choice that params.yaml does not carry; a tried loss that it does not train needs none."""
    lines = []
    for method, tried in choice.methods.items():
        if method != TWIN and method not in run["losses"]:
            continue
        lr, of_schedule, of_loss = parted(tried.chosen)
        rate = f"rates.{method} on {choice.cohort}"
        chosen = {rate: lr} | flat(of_loss, f"losses.{method}")
        carried = {rate: run["rates"][method].of(choice.cohort)}
        carried |= flat(run["losses"].get(method, {}), f"losses.{method}")
        lines += [
            f"{key} is {said(ours)}, chosen was {said(theirs)}" for key, ours, theirs in differing(carried, chosen)
        ]
        schedule = run["train"].student.model_dump()
        lines += [
            f"train.student.{key} is {said(schedule[key])}, chosen for {method} was {said(value)}"
            for key, value in of_schedule.items()
            if schedule[key] != value
        ]
    lines += [f"losses.{loss} has no trials" for loss in run["losses"] if loss not in choice.methods]
    if (loss := run["headline"].loss) != choice.loss:
        lines.append(f"headline.loss is {said(loss)}, the best of the trials was {said(choice.loss)}")
    return lines


def judge(name: str, choice: Choice, run: Mapping[str, Any], cohorts: Path) -> dict[str, Any]:
    """What reports/choice.json holds of a choice."""
    if choice.cohort in run["cohorts"]:
        trials = {method: tried.trials for method, tried in choice.methods.items()}
        outdated = stale(made_of(run, sources(), cohorts / choice.cohort, trials), choice.made_of)
    else:
        outdated = [f"params: there is no cohorts.{choice.cohort}, which the trials ran on"]
    found = choice.model_dump(exclude={"made_of"})
    return found | {"name": name, "stale": outdated, "differs": differs(choice, run)}


def main(argv: list[str] | None = None) -> None:
    """Read, compare, write."""
    arguments.parser(__doc__).parse_args(argv)
    run = dict(zip(PARAMS, params.load(*PARAMS), strict=True))
    choices, cohorts = files.input("reports/choices"), files.input("data/cohorts")
    found: dict[str, Any] = dict.fromkeys(("name", "cohort", "steps", "seeds", "loss"))
    found |= {"stale": [], "differs": [], "methods": {}, "longer": {}}
    if (name := run["choice"]) is not None:
        found = judge(name, read(choices, name), run, cohorts)
    with files.output("reports/choice.json") as made:
        files.write_json(found, made)


if __name__ == "__main__":
    main()
