"""`params.yaml`: its schema, and the one door through which a stage reads it.

A stage calls `load` once in its `main()`, with the keys that it declares in `dvc.yaml`, and gets their values and
nothing else. The whole file is checked at every call, so that a wrong key stops the first stage, before any work.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.core import findings, plugins

FILE = Path("params.yaml")
DECLARED = "STAGE_DECLARED_PARAMS"  # set by the guard: the keys that dvc.yaml declares for the running stage


class ParamsError(ValueError):
    """`params.yaml` breaks its schema; the message lists every fault."""


def _known_finding(name: str) -> str:
    findings.in_order({name})
    return name


def _model(name: str) -> str:
    plugins.model_kind(name)
    return name


def _explainer(name: str) -> str:
    plugins.require("explainers", name)
    return name


def _focusing(gamma: float) -> float:
    if 0 < gamma < 1:
        raise ValueError("must be 0 or at least 1 (between them the gradient of an easy film is infinite)")
    return gamma


Item = TypeVar("Item")


def _distinct(items: list[Item]) -> list[Item]:
    if len(set(items)) < len(items):
        raise ValueError("an item stands twice in the list")
    return items


Finding = Annotated[str, BeforeValidator(_known_finding)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Focusing = Annotated[float, Field(ge=0), AfterValidator(_focusing)]
Policy = Literal["ones", "zeros", "ignore", "smoothed", "teacher"]
BlankPolicy = Literal["ones", "zeros", "ignore", "teacher"]


class Section(BaseModel):
    """A part of params.yaml: every key is needed, no other is allowed, nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Interval(Section):
    """A range that a number is drawn from."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> "Interval":
        if self.low > self.high:
            raise ValueError(f"low must not exceed high, got {self.low} > {self.high}")
        return self


class Phantoms(Section):
    """How many rows of a real table are drawn."""

    train_val_images: Count
    test_images: Count


class Difficulty(Section):
    """How hard the drawn findings are to see."""

    contrast: Interval
    size: Interval
    noise: Share
    anatomy: Positive
    distractors: Share


class Phantom(Section):
    """What is drawn, and how the public labels differ from the truth."""

    size_px: Annotated[int, Field(ge=32)]
    images_per_patient: Count
    min_positives: Count
    blank_present: Rate
    uncertain_present: Rate
    unchanged_present: Rate
    missed: Rate
    false_per_true: Annotated[float, Field(ge=0)]
    difficulty: Difficulty


class Dataset(Section):
    """Where a data set lies and how it is read."""

    root: str
    films: str | None
    split: Literal["official", "later_test", "patient_random", "patient_hash"]
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    views: Annotated[list[Literal["PA", "AP", "AP_horizontal", "lateral"]], Field(min_length=1)]
    max_rejected_rows: Share
    max_rejected_images: Share
    findings: Annotated[list[Finding], Field(min_length=1), AfterValidator(_distinct)]


class FindingPolicy(Section):
    """What a fact becomes in training: `default`, but for the findings named in `per_finding`."""

    default: Policy
    per_finding: dict[Finding, Policy]


class BlankFindingPolicy(Section):
    """What a not-mentioned label becomes in training; `smoothed` is for uncertain ones."""

    default: BlankPolicy
    per_finding: dict[Finding, BlankPolicy]


class Policies(Section):
    """What an uncertain and a not-mentioned label of a data set become in training."""

    uncertain: FindingPolicy
    blank: BlankFindingPolicy


class Assemble(Section):
    """Limits on what may be left out when labels meet images."""

    max_rows_without_image: Share
    max_images_without_row: Share


class Ingest(Section):
    """How source images become shards."""

    size_px: Annotated[int, Field(ge=32)]
    shard_images: Count
    max_pixels: Count
    check_size: bool
    near_duplicate_bits: Annotated[int, Field(ge=0, le=6)]
    dask_scheduler: str | None


class Cohort(Section):
    """What a model trains on."""

    datasets: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]


class Architecture(Section):
    """Where an architecture's weights start from."""

    pretrained: bool
    checkpoint: str | None
    checkpoint_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None

    @model_validator(mode="after")
    def _hash_recorded(self) -> "Architecture":
        if (self.checkpoint is None) != (self.checkpoint_sha256 is None):
            raise ValueError("checkpoint and checkpoint_sha256 are given together or are both null")
        if self.pretrained and self.checkpoint:
            raise ValueError("pretrained: true and a checkpoint exclude each other")
        return self


class Views(Section):
    """The fixed augmented views of an image that teacher and student both see."""

    count: Count
    shift: Share
    scale: Share
    rotate_deg: Annotated[float, Field(ge=0, le=180)]
    brightness: Share
    contrast: Share


class Asymmetric(Section):
    """The asymmetric loss of hard labels, in place of binary cross-entropy."""

    gamma_neg: Focusing
    gamma_pos: Focusing
    clip: Rate


class Training(Section):
    """One training schedule."""

    optimizer: Literal["sgd", "adamw"]
    lr: Positive
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    momentum: Share
    weight_decay: Annotated[float, Field(ge=0)]
    warmup: Share
    cooldown: Annotated[float, Field(ge=0, le=0.5)]
    final_lr: Share
    steps: Count
    batch_size: Annotated[int, Field(ge=2)]
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    asymmetric: Asymmetric | None
    positive_weight_cap: Annotated[float, Field(ge=1)]
    clip_norm: Positive
    ema_decay: Rate
    bf16: bool
    compile: bool
    processes: Count
    evaluations: Annotated[int, Field(ge=4)]
    checkpoint_steps: Count

    @model_validator(mode="after")
    def _long_enough(self) -> "Training":
        if self.evaluations > self.steps:
            raise ValueError(f"evaluations must not exceed steps, got {self.evaluations} > {self.steps}")
        return self

    @model_validator(mode="after")
    def _shared_evenly(self) -> "Training":
        if self.batch_size % self.processes or self.batch_size < 2 * self.processes:
            raise ValueError(
                "batch_size must divide by processes, with two films or more for each, got "
                f"{self.batch_size} for {self.processes}"
            )
        return self


class Train(Section):
    """The schedules of teachers and students; twin and distilled student share one."""

    teacher: Training
    student: Training


class AlsoDistill(Section):
    """Cells beyond the headline cohort, which gets every loss."""

    cohorts: Annotated[list[str], AfterValidator(_distinct)]
    losses: Annotated[list[str], AfterValidator(_distinct)]


class Headline(Section):
    """The cell that is exported, explained and shown first."""

    cohort: str
    student: Annotated[str, BeforeValidator(_model)]
    teacher: Annotated[str, BeforeValidator(_model)]
    loss: str
    seed: int


class Evaluate(Section):
    """Intervals and thresholds."""

    replicates: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    min_positives: Count
    margin: Positive
    plateau: Positive


class Profile(Section):
    """How cost is measured."""

    sizes_px: Annotated[list[Annotated[int, Field(ge=32)]], Field(min_length=1)]
    outputs: Count
    repeats: Annotated[int, Field(ge=3)]


class Explain(Section):
    """Which maps are made and how they are scored."""

    explainer: Annotated[str, BeforeValidator(_explainer)]
    max_stride: Count
    iobb_thresholds: Annotated[list[Share], Field(min_length=1)]
    map_quantile: Share
    gallery_per_outcome: Count
    max_boxes: Count


class Export(Section):
    """What the on-device model must satisfy."""

    opset: Annotated[int, Field(ge=17)]
    tolerance: Positive
    calibration_images: Count


class Params(Section):
    """The whole of params.yaml."""

    title: str
    pixels: Literal["phantom", "real"]
    seed: int
    threads: Count
    workers: Count
    max_table_mb: Count
    phantom: Phantom
    phantoms: dict[str, Phantoms]
    datasets: dict[str, Dataset]
    policies: dict[str, Policies]
    ingest: Ingest
    assemble: Assemble
    cohorts: dict[str, Cohort]
    teachers: dict[Annotated[str, BeforeValidator(_model)], Architecture]
    students: dict[Annotated[str, BeforeValidator(_model)], Architecture]
    losses: dict[str, dict[str, Any]]
    loss_sums: dict[str, Annotated[dict[str, Positive], Field(min_length=2)]]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_distinct)]
    also_distill: AlsoDistill
    headline: Headline
    views: Views
    train: Train
    evaluate: Evaluate
    profile: Profile
    explain: Explain
    export: Export

    def contradictions(self) -> list[str]:
        """What each part allows alone but not together, as `key: rule, got value`."""
        faults: list[str] = []

        def member(key: str, value: object, known: Any, where: str) -> None:
            if value not in known:
                faults.append(f"{key}: must be one of {where} ({', '.join(map(str, known))}), got {value!r}")

        for name in self.datasets:
            member(f"datasets.{name}", name, plugins.names("datasets"), "the files in stages/datasets")
            member(f"policies.{name}", name, self.policies, "the keys of policies")
        for name in self.phantoms:
            member(f"phantoms.{name}", name, self.datasets, "the keys of datasets")
            member(
                f"datasets.{name}.root",
                self.datasets[name].root if name in self.datasets else None,
                [f"data/phantom/{name}"],
                "where its phantom is drawn",
            )
        if (self.pixels == "phantom") != (set(self.phantoms) == set(self.datasets)):
            faults.append(f"pixels: phantom if every data set is in phantoms, else real, got {self.pixels}")
        if self.pixels == "real" and self.phantoms:
            faults.append(f"phantoms: must be {{}} with pixels: real, got {', '.join(self.phantoms)}")
        for name, cohort in self.cohorts.items():
            for dataset in cohort.datasets:
                member(f"cohorts.{name}.datasets", dataset, self.datasets, "the keys of datasets")
        for cohort_name in self.also_distill.cohorts:
            member("also_distill.cohorts", cohort_name, self.cohorts, "the keys of cohorts")
            if cohort_name == self.headline.cohort:
                faults.append(f"also_distill.cohorts: {cohort_name} is headline.cohort, which has every loss already")
        for cohort_name in self.cohorts:
            if cohort_name not in (self.headline.cohort, *self.also_distill.cohorts):
                faults.append(
                    f"cohorts.{cohort_name}: must be headline.cohort or in also_distill.cohorts, since its distilled "
                    "student is explained and reported"
                )
        for loss in self.also_distill.losses:
            member("also_distill.losses", loss, self.losses, "the keys of losses")
        for name, weights in self.loss_sums.items():
            if name in plugins.names("losses"):
                faults.append(f"loss_sums.{name}: must not be named like a loss, and stages/losses/{name}.py is one")
            for part in weights:
                member(f"loss_sums.{name}", part, self.losses, "the keys of losses")
        member("headline.cohort", self.headline.cohort, self.cohorts, "the keys of cohorts")
        member("headline.student", self.headline.student, self.students, "the keys of students")
        member("headline.teacher", self.headline.teacher, self.teachers, "the keys of teachers")
        if self.also_distill.cohorts:
            member("headline.loss", self.headline.loss, self.also_distill.losses, "also_distill.losses")
        else:
            both = [*self.losses, *self.loss_sums]
            member("headline.loss", self.headline.loss, both, "the keys of losses and loss_sums")
        member("headline.seed", self.headline.seed, self.seeds, "seeds")
        for group in ("phantoms", "datasets", "cohorts", "teachers", "students", "losses", "loss_sums"):
            for name in getattr(self, group):
                if not plugins.NAME.fullmatch(name):
                    faults.append(f"{group}.{name}: names match [a-z0-9_]+ (DVC cannot address dots and dashes)")
        for loss, given in self.losses.items():
            faults += _loss_faults(loss, given)
        return faults + self._kind_faults()

    def _kind_faults(self) -> list[str]:
        """What a teacher or student cannot be or do because of what its file describes."""
        faults = []
        for name in self.students:
            if (kind := plugins.model_kind(name)) != "net":
                faults.append(f"students.{name}: must be a net, got one of kind {kind}, which can only teach")
        known = [loss for loss in self.losses if loss in plugins.names("losses")]
        reading = [loss for loss in known if plugins.constants("losses", loss)["NEEDS"] == "features"]
        for name, start in self.teachers.items():
            kind = plugins.model_kind(name)
            if kind == "net":
                continue
            for loss in reading:
                faults.append(f"losses.{loss}: needs a net's features, teachers.{name} is of kind {kind}: take one out")
            if kind == "table" and not start.checkpoint:
                faults.append(f"teachers.{name}.checkpoint: must be a csv of probabilities, got null")
            if kind == "table" and start.pretrained:
                faults.append(f"teachers.{name}.pretrained: must be false, since a table has no weights, got true")
            if kind == "ensemble" and start.checkpoint:
                faults.append(f"teachers.{name}.checkpoint: must be null, since an ensemble has several nets, got "
                              f"{start.checkpoint!r}")  # fmt: skip
        return faults


def _loss_faults(loss: str, given: dict[str, Any]) -> list[str]:
    """What is wrong with `losses.<loss>`, by the annotations of the plug-in's `Settings`."""
    try:
        wanted = plugins.settings("losses", loss)
    except ValueError as error:
        return [f"losses.{loss}: {error}"]
    faults = [f"losses.{loss}.{key}: missing ({wanted[key]})" for key in wanted if key not in given]
    faults += [f"losses.{loss}.{key}: unknown, allowed are {', '.join(wanted)}" for key in given if key not in wanted]
    kinds = {"float": (int, float), "int": (int,), "str": (str,), "bool": (bool,)}
    for key, annotation in wanted.items():
        allowed = kinds.get(annotation)
        value = given.get(key)
        is_bool_by_mistake = isinstance(value, bool) and annotation != "bool"
        if key in given and allowed and (not isinstance(value, allowed) or is_bool_by_mistake):
            faults.append(f"losses.{loss}.{key}: must be {annotation}, got {value!r}")
    return faults


def _reason(error: Any) -> str:
    """One line for one pydantic error."""
    key = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if error["type"] == "missing":
        return f"{key}: missing"
    return f"{key}: {error['msg'].removeprefix('Value error, ')}, got {error['input']!r}"


def parse(values: Any, file: str = "params.yaml") -> Params:
    """Check a whole params file.

    Raises:
        ParamsError: with every fault, each named by its key.
    """
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        faults = [_reason(item) for item in error.errors()]
        losses = values.get("losses") if isinstance(values, dict) else None
        if isinstance(losses, dict):
            faults += [
                fault
                for name, given in losses.items()
                if isinstance(given, dict)
                for fault in _loss_faults(name, given)
            ]
    else:
        faults = params.contradictions()
        if not faults:
            return params
    raise ParamsError(_message(file, faults))


def _message(file: str, faults: list[str]) -> str:
    listed = "\n".join(f"  {fault}" for fault in faults)
    return f"{file} has {len(faults)} fault(s):\n{listed}\nEach key is explained by its comment in params.yaml."


def read(file: Path = FILE) -> Any:
    """The plain values of a params file (YAML 1.2, as DVC reads it).

    Raises:
        ParamsError: the file is no YAML, or empty.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            values = YAML(typ="safe").load(stream)
    except YAMLError as error:
        raise ParamsError(f"{file} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{file} must hold keys, got {values!r}")
    return values


def pick(params: Any, key: str) -> Any:
    """The value at a dotted key of a parsed file.

    Raises:
        ParamsError: no such key.
    """
    value = params
    for part in key.split("."):
        try:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        except (KeyError, AttributeError) as error:
            raise ParamsError(f"params.yaml has no key {key}") from error
    return value


def load(*keys: str) -> Any:
    """The values of these keys, in order: one value for one key, else a tuple.

    Raises:
        ParamsError: the file has faults, or dvc.yaml does not declare a key for the running stage.
    """
    declared = os.environ.get(DECLARED)
    if declared is not None:
        undeclared = sorted(set(keys) ^ set(declared.split()))
        if undeclared:
            raise ParamsError(f"params read and params declared in dvc.yaml differ: {', '.join(undeclared)}")
    params = parse(read())
    values = tuple(pick(params, key) for key in keys)
    return values[0] if len(values) == 1 else values


def plugin_faults(params: Params) -> list[str]:
    """What is wrong with values that only a plug-in knows: settings out of range, findings that a data set lacks."""
    faults = []
    for loss, given in params.losses.items():
        try:
            plugins.load("losses", loss).Settings.model_validate(given)
        except ValidationError as error:
            faults += [f"losses.{loss}.{_reason(item)}" for item in error.errors()]
    for name, dataset in params.datasets.items():
        terms = plugins.load("datasets", name).TERMS
        faults += [
            f"datasets.{name}.findings: {finding} is never annotated by this data set, which has {', '.join(terms)}"
            for finding in dataset.findings
            if finding not in terms
        ]
    return faults


def check(file: Path = FILE) -> None:
    """Check a params file with all that plug-ins know of it; imports them, and so torch.

    Raises:
        ParamsError: with every fault.
    """
    if faults := plugin_faults(parse(read(file), str(file))):
        raise ParamsError(_message(str(file), faults))


if __name__ == "__main__":
    try:
        check()
    except (ParamsError, FileNotFoundError) as fault:
        sys.exit(str(fault))
