"""The schema of `params.yaml`: which keys there are and what each may be by itself; `rules` has the rest."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

TWIN = "twin"  # in rates, beside the losses: the student without a teacher


def _focusing(gamma: float) -> float:
    if 0 < gamma < 1:
        raise ValueError("must be 0 or at least 1 (between them the gradient of an easy film is infinite)")
    return gamma


Item = TypeVar("Item")


def _distinct(items: list[Item]) -> list[Item]:
    if len(set(items)) < len(items):
        raise ValueError("an item stands twice in the list")
    return items


Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Focusing = Annotated[float, Field(ge=0), AfterValidator(_focusing)]
Policy = Literal["ones", "zeros", "ignore", "smoothed", "teacher"]
BlankPolicy = Literal["ones", "zeros", "ignore", "teacher"]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]


class Section(BaseModel):
    """A part of params.yaml: every key is needed, no other is allowed, nothing is converted; numbers are finite."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


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
    findings: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]


class FindingPolicy(Section):
    """What a fact becomes in training: `default`, but for the findings named in `per_finding`."""

    default: Policy
    per_finding: dict[str, Policy]


class BlankFindingPolicy(Section):
    """What a not-mentioned label becomes in training; `smoothed` is for uncertain ones."""

    default: BlankPolicy
    per_finding: dict[str, BlankPolicy]


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
    min_range: Share
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


class Schedule(Section):
    """A training schedule without its learning rate."""

    optimizer: Literal["sgd", "adamw"]
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
    def _long_enough(self) -> Self:
        if self.evaluations > self.steps:
            raise ValueError(f"evaluations must not exceed steps, got {self.evaluations} > {self.steps}")
        return self

    @model_validator(mode="after")
    def _shared_evenly(self) -> Self:
        if self.batch_size % self.processes or self.batch_size < 2 * self.processes:
            raise ValueError(
                "batch_size must divide by processes, with two films or more for each, got "
                f"{self.batch_size} for {self.processes}"
            )
        return self

    def at(self, lr: float) -> "Training":
        """This schedule with a peak learning rate."""
        return Training.model_validate(self.model_dump() | {"lr": lr})


class Training(Schedule):
    """One training schedule."""

    lr: Positive


class Train(Section):
    """The schedules of teachers and students; twin and distilled student share one but for the rate, see `Rates`."""

    teacher: Training
    student: Schedule


class Rates(Section):
    """The peak learning rate of one way to train students: `default`, but for the cohorts named in `per_cohort`."""

    default: Positive
    per_cohort: dict[str, Positive]

    def of(self, cohort: str) -> float:
        """The rate on a cohort."""
        return self.per_cohort.get(cohort, self.default)


class Headline(Section):
    """The cell that is exported, explained and shown first."""

    cohort: str
    student: str
    teacher: str
    loss: str
    seed: Seed


class Evaluate(Section):
    """Intervals and thresholds."""

    replicates: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    min_positives: Count
    margin: Positive
    plateau: Positive


class Operate(Section):
    """Where findings are called, and which groups of patients are looked at apart."""

    rule: Literal["sensitivity", "youden", "prevalence"]
    sensitivity: Share
    min_positives: Count
    bins: Annotated[int, Field(ge=2)]
    min_group: Count
    age_bands: Annotated[list[Count], Field(min_length=1)]

    @field_validator("age_bands")
    @classmethod
    def _rise(cls, bands: list[int]) -> list[int]:
        if sorted(set(bands)) != bands:
            raise ValueError(f"ages must rise, got {bands}")
        return bands


class Profile(Section):
    """How cost is measured."""

    sizes_px: Annotated[list[Annotated[int, Field(ge=32)]], Field(min_length=1)]
    outputs: Count
    repeats: Annotated[int, Field(ge=3)]


class Explain(Section):
    """Which maps are made and how they are scored."""

    explainers: Annotated[list[str], Field(min_length=1)]
    max_stride: Count
    iobb_thresholds: Annotated[list[Share], Field(min_length=1)]
    map_quantile: Share
    gallery_per_outcome: Count
    max_boxes: Count
    sound_pairs: Count
    sanity_pairs: Count


class Limits(Section):
    """How far a smaller file may answer otherwise than the whole one on test films."""

    auroc: Share
    interval: Share
    flipped: Share
    pointing: Share


class Export(Section):
    """Which files the student is exported as, and what they must satisfy."""

    opset: Annotated[int, Field(ge=17)]
    tolerance: Positive
    compared_films: Count
    variants: Annotated[list[Literal["int8_weights", "fp16_weights", "int8_static"]], AfterValidator(_distinct)]
    limits: Limits


class Params(Section):
    """The whole of params.yaml."""

    title: str
    seed: Seed
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
    teachers: dict[str, Architecture]
    students: dict[str, Architecture]
    losses: dict[str, dict[str, Any]]
    loss_sums: dict[str, Annotated[dict[str, Positive], Field(min_length=2)]]
    seeds: Seeds
    headline: Headline
    views: Views
    train: Train
    choice: str | None
    rates: dict[str, Rates]
    evaluate: Evaluate
    operate: Operate
    profile: Profile
    explain: Explain
    export: Export
