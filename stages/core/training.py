"""Training: what teachers, twins and distilled students share.

The loop runs on timm's `timm.task`. Same params, inputs, seed and thread count give the same bytes; a killed run goes
on from its checkpoint and ends with the bytes of an undisturbed one.
"""

import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from timm.optim._optim_factory import create_optimizer_v2
from timm.optim._param_groups import param_groups_weight_decay
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.task import MultiLabelClassificationTask
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from stages.core import depthwise, files, metrics, models, objectives, seeds
from stages.core.images import Images, view

Terms = Callable[..., dict[str, Tensor]]  # of signals, and of the adapter if the loss has one
Adapter = Callable[[int, int], nn.Module]  # of the student's and the teacher's channels


class TrainingError(RuntimeError):
    """Training cannot go on; the message names step and films."""


@dataclass(frozen=True)
class Part:
    """One split of a cohort.

    Attributes:
        rows: the table, with `dataset`, `image` and `patient`.
        films: their pixels.
        targets: float32 (rows, findings), NaN where a label does not count.
    """

    rows: pd.DataFrame
    films: Images
    targets: np.ndarray

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """(data set, image) of each row: what a view's randomness derives from."""
        return list(zip(self.rows["dataset"].astype(str), self.rows["image"].astype(str), strict=True))

    def view(self, index: int, number: int, settings: Any, seed: int) -> np.ndarray:
        """One augmented view of a row's film, uint8 (size_px, size_px)."""
        return view(self.films[index], settings, seed, *self.names[index], number)


@dataclass(frozen=True)
class Cohort:
    """What a model trains on; `about` is its cohort.json."""

    about: dict[str, Any]
    train: Part
    val: Part

    @property
    def findings(self) -> list[str]:
        """The outputs of a model of this cohort."""
        return list(self.about["findings"])


def load_cohort(folder: Path) -> Cohort:
    """Read `data/cohorts/<cohort>`; films stay on disk until they are asked for.

    Raises:
        ValueError: a split is empty.
    """
    rows = files.read_table(folder / "rows.parquet")
    with (folder / "targets.npy").open("rb") as file:
        targets = np.load(file)
    parts = {}
    for split in ("train", "val"):
        mask = (rows["split"] == split).to_numpy()
        if not mask.any():
            raise ValueError(f"{folder} has no {split} images: change val_fraction in params.yaml or add data")
        part = rows[mask].reset_index(drop=True)
        parts[split] = Part(part, Images.of_rows(folder, part), targets[mask])
    return Cohort(files.read_json(folder / "cohort.json"), parts["train"], parts["val"])


def val_auroc(model: nn.Module, val: Part, batch_size: int, device: torch.device) -> float:
    """Validation AUROC: mean over findings within a data set, then mean over data sets, never pooled."""
    return mean_auroc(models.logits(model, models.in_batches(val.films, batch_size), device), val)


def mean_auroc(scores: np.ndarray, val: Part) -> float:
    """The same of given logits (films, findings)."""
    datasets = val.rows["dataset"].to_numpy()
    means = [
        metrics.mean_auroc(val.targets[datasets == name], scores[datasets == name]) for name in np.unique(datasets)
    ]
    defined = [mean for mean in means if mean is not None]
    return float(np.mean(defined)) if defined else math.nan


class Task(MultiLabelClassificationTask):
    """timm's multi-label task with a masked loss made of named terms, and what the teacher says beside the target.

    Its criterion gives the hard labels' loss of each element, which is masked and averaged by the terms.
    """

    def __init__(self, model: nn.Module, terms: Terms, device: torch.device, criterion: nn.Module) -> None:
        super().__init__(model, criterion=criterion, device=device, verbose=False)
        self.terms = terms

    def forward(
        self,
        input: Tensor,  # noqa: A002 - as timm names it
        target: Tensor,
        teacher: Tensor | None = None,
        features: objectives.Features | None = None,
    ) -> dict[str, Tensor]:
        """The loss, its terms, the logits (`output`), and what all terms were computed from (`source`).

        Args:
            input: (batch, 3, size_px, size_px).
            target: (batch, finding), NaN where a label does not count.
            teacher: the teacher's logits (batch, finding), for a distilled student.
            features: the teacher's, for a loss that needs them.
        """
        if features is None:
            output = source = self.trainable_module(input).float()
            seen = None
        else:
            output, own = objectives.with_features(self.trainable_module, input)
            source, seen = own.source, (own, features)
        terms = self.terms(objectives.signals(output, target, teacher, seen, self.criterion))
        return {"loss": torch.stack(list(terms.values())).sum(), "output": output, "source": source, **terms}


def gradient_ratios(terms: dict[str, Tensor], source: Tensor) -> dict[str, float]:
    """How strongly each term pulls beside the task: the norm of its gradient over the norm of the task's, in one batch.

    The gradients are those at the logits, so that no layer of the net runs backward and no parameter is touched. Terms
    of a loss of features bypass the logits: there the gradients are those at the output of the last layer before the
    head, and only the head runs backward.

    Args:
        terms: of one step, as `Task` gives them.
        source: what they were computed from: the student's logits, or what its logits and features come from.

    Returns:
        `<term>_grad_ratio` of each term but the task; NaN where the task has no gradient (a weight of 0).
    """
    norms = {
        name: torch.autograd.grad(value, source, retain_graph=True)[0].norm().item()
        for name, value in terms.items()
        if name != "loss"
    }
    task = norms.pop("task")
    return {f"{name}_grad_ratio": norm / task if task else math.nan for name, norm in norms.items()}


@dataclass
class Progress:
    """What a run has done so far: the part of a checkpoint that is not weights."""

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """One training run.

    Args:
        model: fresh weights.
        cohort: its data.
        terms: the loss as named terms.
        settings: `train.teacher` or `train.student` of params.yaml.
        views: `views` of params.yaml.
        seed: the run's seed, which the views derive from.
        names: what this training's own randomness is seeded with.
        device: where it runs.
        soft: the teacher's logits of each view, float16 (views, training rows, findings).
        teacher: the net itself, for a loss that needs its features; it runs in eval mode, in float32, on every batch.
        adapter: makes what the loss trains beside the student, if anything.
    """

    def __init__(
        self,
        model: nn.Module,
        cohort: Cohort,
        terms: Terms,
        settings: Any,
        views: Any,
        seed: int,
        names: tuple[str | int, ...],
        device: torch.device,
        soft: np.ndarray | None = None,
        teacher: nn.Module | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self.cohort, self.settings, self.views, self.seed = cohort, settings, views, seed
        self.names, self.device, self.soft = names, device, soft
        self.teacher = teacher.to(device).eval().requires_grad_(False) if teacher else None
        self.adapter: nn.Module = nn.Identity()
        if adapter:
            self.adapter = build_adapter(adapter, model, teacher, seeds.integer("adapter", seed, *names)).to(device)
            terms = partial(terms, adapter=self.adapter)
        self.task = Task(model.to(device), terms, device, objectives.criterion(settings, cohort.train.targets))
        self.averaged = ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True)
        self.task.trainable_module_ema = self.averaged
        self.optimizer = create_optimizer_v2(
            model,
            opt=settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        for group in param_groups_weight_decay(self.adapter, settings.weight_decay):
            self.optimizer.add_param_group(group)
        self.scheduler = CosineLRScheduler(
            self.optimizer,
            t_initial=round(settings.steps * (1 - settings.cooldown)),
            lr_min=settings.lr * settings.final_lr,
            warmup_t=round(settings.steps * settings.warmup),
            t_in_epochs=False,
        )
        steps, parts = settings.steps, settings.evaluations
        self.due = {math.ceil(steps * part / parts) for part in range(1, parts + 1)}
        self.progress = Progress()
        self._ratios: dict[str, float] = {}
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def fit(self, checkpoint: Path) -> tuple[nn.Module, list[dict[str, float]]]:
        """Train to the end of the schedule, from the checkpoint if there is one.

        Args:
            checkpoint: a file; it is written every `checkpoint_steps` steps.

        Returns:
            The averaged weights (their exponential moving average) and the history, a row an evaluation.

        Raises:
            TrainingError: the loss is not finite.
        """
        self._restore(checkpoint)
        self.task.train()
        steps, progress = self.settings.steps, self.progress
        bar = tqdm(total=steps, initial=progress.step, unit="step", desc=" ".join(map(str, self.names)), mininterval=5)
        while progress.step < steps:
            self._step()
            progress.step += 1
            if progress.step in self.due:
                self._evaluate()
                bar.set_postfix(val_auroc=progress.history[-1]["val_auroc"])
            if progress.step % self.settings.checkpoint_steps == 0 and progress.step < steps:
                self._save(checkpoint)
            bar.update()
        bar.close()
        return self.averaged.module.eval(), progress.history

    def _step(self) -> None:
        """One batch forward, backward, and into the averages."""
        progress, settings = self.progress, self.settings
        self.scheduler.step_update(progress.step + 1)
        torch.manual_seed(seeds.integer("step", *self.names, progress.step))  # dropout and stochastic depth
        rows, epochs = self._rows(progress.step)
        numbers = (epochs % self.views.count).tolist()
        train = self.cohort.train
        films = np.stack(
            [train.view(row, number, self.views, self.seed) for row, number in zip(rows, numbers, strict=True)]
        )
        target = torch.from_numpy(train.targets[rows]).to(self.device)
        target = target * (1 - 2 * settings.label_smoothing) + settings.label_smoothing
        teacher = None
        if self.soft is not None:
            teacher = torch.from_numpy(self.soft[numbers, rows].astype(np.float32)).to(self.device)
        images, features = models.to_input(films, self.device), None
        if self.teacher is not None:
            _, features = objectives.with_features(self.teacher, images)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=settings.bf16):
            result = self.task(images, target, teacher, features)
        output, source = result.pop("output"), result.pop("source")
        values = {name: value.item() for name, value in result.items()}
        if not math.isfinite(values["loss"]):
            shown = ", ".join(train.rows["image"].iloc[rows[:4]])
            raise TrainingError(
                f"the loss is {values['loss']} at step {progress.step} ({' '.join(map(str, self.names))}), batch of "
                f"{shown}, ...; terms {values}; largest logit {output.abs().max().item():.3g}: lower lr or clip_norm"
            )
        self.optimizer.zero_grad()
        if progress.step + 1 in self.due:
            self._ratios = gradient_ratios(result, source)
        result["loss"].backward()
        trained = [*self.task.get_clip_parameters(), *self.adapter.parameters()]
        torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        self.optimizer.step()
        self.task.update_ema(step=progress.step)
        for name, value in values.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value

    def _rows(self, step: int) -> tuple[list[int], np.ndarray]:
        """Which rows a step sees and in which epoch each is: epochs are permutations laid end to end."""
        count, size = len(self.cohort.train.rows), self.settings.batch_size
        places = np.arange(step * size, (step + 1) * size)
        rows = []
        for place in places:
            epoch = int(place // count)
            if self._order[0] != epoch:
                self._order = (epoch, seeds.of("order", *self.names, epoch).permutation(count))
            rows.append(int(self._order[1][place % count]))
        return rows, places // count

    def _evaluate(self) -> None:
        """Add a row to the history: means of the terms since the last one, their pull now, and validation AUROC."""
        progress = self.progress
        since = progress.step - (int(progress.history[-1]["step"]) if progress.history else 0)
        auroc = val_auroc(self.averaged.module.eval(), self.cohort.val, 4 * self.settings.batch_size, self.device)
        row = {"step": progress.step, "lr": self.optimizer.param_groups[0]["lr"]}
        row |= {name: total / since for name, total in progress.sums.items()}
        progress.history.append(row | self._ratios | {"val_auroc": auroc})
        progress.sums = {}

    def _save(self, path: Path) -> None:
        """Write the whole state to a temporary name, then rename: a kill never leaves half a checkpoint."""
        state = {
            "model": self.task.trainable_module.state_dict(),
            "averaged": self.averaged.state_dict(),
            "adapter": self.adapter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        temporary = files.temporary_name(path)
        torch.save(state, temporary)
        temporary.replace(path)

    def _restore(self, path: Path) -> None:
        """Go on from a checkpoint if there is one."""
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.task.trainable_module.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.adapter.load_state_dict(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])


def build_adapter(adapter: Adapter, student: Any, teacher: Any, seed: int) -> nn.Module:
    """What a loss trains beside the student, for the channels of both nets' deepest maps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return adapter(student.num_features, teacher.num_features)


def start_at_prevalence(model: nn.Module, targets: np.ndarray) -> None:
    """Set the classifier's bias to each finding's log-odds, so that no step is spent on learning that most are rare.

    Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002, section 3.3, with the data's own prevalence.

    Args:
        model: a timm model.
        targets: float (rows, findings), NaN where a label does not count; a finding is given one row of each kind more,
            so that one without positives, or without any label, stays finite.
    """
    annotated = (~np.isnan(targets)).sum(axis=0)
    prevalence = (np.nansum(targets, axis=0) + 1) / (annotated + 2)
    classifier: nn.Linear = model.get_classifier()  # type: ignore[operator]  # every timm model has it
    with torch.no_grad():
        classifier.bias.copy_(torch.from_numpy(np.log(prevalence / (1 - prevalence))))


def require_bf16(wanted: bool, device: torch.device) -> None:
    """Check that bf16, if wanted, is in the processor: emulated, a step takes some ten times as long.

    Raises:
        ValueError: it is not.
    """
    is_x86 = device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
    if wanted and is_x86 and not torch.cpu._is_avx512_bf16_supported():
        raise ValueError(
            "bf16 must be false on a CPU without bf16 instructions, which takes some ten times as long for a step "
            "(params.yaml: train.teacher.bf16, train.student.bf16)"
        )


def train(
    cohort: Cohort,
    architecture: str,
    start: Any,
    terms: Terms,
    settings: Any,
    views: Any,
    seed: int,
    names: tuple[str | int, ...],
    threads: int,
    checkpoint: Path,
    soft: np.ndarray | None = None,
    teacher: nn.Module | None = None,
    adapter: Adapter | None = None,
    member: int | None = None,
) -> tuple[nn.Module, dict[str, Any], list[dict[str, float]]]:
    """Build a model and train it on a cohort (arguments as of `build_model` and `Trainer`).

    Returns:
        The averaged weights, what `load_model` needs to know, and the history.
    """
    device = models.fix(threads)
    require_bf16(settings.bf16, device)
    size_px = cohort.about["size_px"]
    first = seeds.integer("init", seed, *names)
    model = models.build_model(architecture, len(cohort.findings), size_px, start, first, member)
    start_at_prevalence(model, cohort.train.targets)
    depthwise.speed_up(model)
    trainer = Trainer(model, cohort, terms, settings, views, seed, names, device, soft, teacher, adapter)
    averaged, history = trainer.fit(checkpoint)
    return averaged, about(cohort, architecture), history


def about(cohort: Cohort, architecture: str) -> dict[str, Any]:
    """What `load_model` needs to know of a model of this cohort: its model.json."""
    return {
        "architecture": architecture,
        "cohort": cohort.about["cohort"],
        "findings": cohort.findings,
        "size_px": cohort.about["size_px"],
    }


def write_history(history: list[dict[str, float]], path: Path) -> None:
    """Write the learning curve as CSV, a row an evaluation."""
    pd.DataFrame(history).to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
