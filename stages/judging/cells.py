"""The models that params.yaml declares, and where each one's files lie."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARAMS = ("cohorts", "teachers", "students", "losses", "loss_sums", "seeds")


@dataclass(frozen=True, order=True)
class Model:
    """A trained model.

    Attributes:
        kind: `teacher`, `twin` (the undistilled student) or `distilled`.
        cohort: what it was trained on.
        architecture: its file under stages/models.
        teacher: the teacher's architecture; empty but for `distilled`.
        loss: the distillation loss, or a weighted sum of several; empty but for `distilled`.
        seed: the student's seed; -1 for a teacher.
    """

    kind: str
    cohort: str
    architecture: str
    teacher: str = ""
    loss: str = ""
    seed: int = -1

    @property
    def id(self) -> str:
        """The model's name, which is its path below data/models, data/predictions, data/curves and reports/curves."""
        if self.kind == "teacher":
            return f"teacher/{self.cohort}/{self.architecture}"
        if self.kind == "twin":
            return f"twin/{self.cohort}/{self.architecture}/{self.seed}"
        return f"distilled/{self.cohort}/{self.architecture}/{self.teacher}/{self.loss}/{self.seed}"

    @property
    def group(self) -> str:
        """What a distilled student shares with those that differ only in their seed, as a name."""
        return f"{self.cohort}/{self.architecture}/{self.teacher}/{self.loss}"

    def twin(self) -> "Model":
        """The undistilled twin of a distilled student."""
        return Model("twin", self.cohort, self.architecture, seed=self.seed)

    def its_teacher(self) -> "Model":
        """The teacher of a distilled student."""
        return Model("teacher", self.cohort, self.teacher)


def models(cohorts: Any, teachers: Any, students: Any, losses: Any, sums: Any, seeds: Any) -> list[Model]:
    """Every model that params declares, teachers first (arguments as `params.load(*cells.PARAMS)` gives them)."""
    found = [Model("teacher", cohort, teacher) for cohort in cohorts for teacher in teachers]
    found += [Model("twin", cohort, student, seed=seed) for cohort in cohorts for student in students for seed in seeds]
    return found + [
        Model("distilled", cohort, student, teacher, loss, seed)
        for cohort in cohorts
        for student in students
        for teacher in teachers
        for loss in [*losses, *sums]
        for seed in seeds
    ]


def headline_model(headline: Any, cohort: str) -> Model:
    """The distilled student of a cohort that the headline names."""
    return Model("distilled", cohort, headline.student, headline.teacher, headline.loss, headline.seed)


class UndeclaredError(ValueError):
    """A folder holds what params.yaml no longer declares."""


def require_declared(folder: Path, pattern: str, wanted: set[str]) -> None:
    """Check that a folder of cells holds what params declares and nothing else.

    Args:
        folder: e.g. data/predictions.
        pattern: a glob below it, e.g. ``**/*.parquet``.
        wanted: paths relative to `folder`, as params declares them.

    Raises:
        UndeclaredError: naming each file that is not declared and the remedy.
        FileNotFoundError: naming each one that is missing.
    """
    there = {path.relative_to(folder).as_posix() for path in folder.glob(pattern) if not path.name.startswith(".")}
    if extra := sorted(there - wanted):
        raise UndeclaredError(
            f"{folder} holds what params.yaml does not declare: {', '.join(extra)}; run `make prune` (for a preset: "
            "`make prune PRESET=<name>`)"
        )
    if missing := sorted(wanted - there):
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; run `make repro`")
