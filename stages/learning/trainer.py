"""One training run: the task, its loop, checkpoints and live curves, on timm's `timm.task`."""

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dvclive.live import Live
from timm.optim._optim_factory import create_optimizer_v2
from timm.optim._param_groups import param_groups_weight_decay
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.task import MultiLabelClassificationTask
from timm.utils.distributed import distribute_bn
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from stages.core import files, seeds
from stages.learning import objectives, ranks
from stages.learning.cohort import Cohort, val_auroc
from stages.nets import nets

Terms = Callable[..., dict[str, Tensor]]  # of signals, and of the adapter if the loss has one
Adapter = Callable[[int, int], nn.Module]  # of the student's and the teacher's channels


class TrainingError(RuntimeError):
    """Training cannot go on; the message names step and films."""


@dataclass(frozen=True)
class Recipe:
    """What one training learns from.

    Attributes:
        cohort: its data.
        terms: the loss as named terms.
        settings: `train.teacher` or `train.student` of params.yaml.
        views: `views` of params.yaml.
        seed: the run's seed, which the views derive from.
        names: what this training's own randomness is seeded with.
        soft: the teacher's logits of each view, float16 (views, training rows, findings).
        teacher: the net itself, for a loss that needs its features; it runs in eval mode, in float32, on every batch.
        adapter: makes what the loss trains beside the student, if anything.
    """

    cohort: Cohort
    terms: Terms
    settings: Any
    views: Any
    seed: int
    names: tuple[str | int, ...]
    soft: np.ndarray | None = None
    teacher: nn.Module | None = None
    adapter: Adapter | None = None


class Task(MultiLabelClassificationTask):
    """timm's multi-label task with a masked loss made of named terms, and what the teacher says beside the target.

    Its criterion gives the hard labels' loss of each element, which is masked and averaged by the terms. The adapter is
    what a loss trains beside the model.
    """

    def __init__(
        self, model: nn.Module, terms: Terms, device: torch.device, criterion: nn.Module, adapter: nn.Module | None
    ) -> None:
        super().__init__(model, criterion=criterion, device=device, verbose=False)
        self.terms, self.adapter = terms, adapter

    def forward(
        self,
        input: Tensor,  # noqa: A002 - as timm names it
        target: Tensor,
        teacher: Tensor | None = None,
        features: objectives.Features | None = None,
        is_logged: bool = False,
    ) -> dict[str, Any]:
        """The loss, its terms, the logits (`output`), and if the step is logged the terms' pull (`ratios`).

        Args:
            input: (batch, 3, size_px, size_px).
            target: (batch, finding), NaN where a label does not count.
            teacher: the teacher's logits (batch, finding), for a distilled student.
            features: the teacher's, for a loss that needs them.
            is_logged: whether to measure how strongly each term pulls.
        """
        if features is None:
            output = source = self.trainable_module(input).float()
            seen = None
        else:
            output, own = objectives.with_features(self.trainable_module, input)
            source, seen = own.source, (own, features)
        given = objectives.signals(output, target, teacher, seen, self.criterion)
        terms = self.terms(given) if self.adapter is None else self.terms(given, adapter=self.adapter)
        ratios = gradient_ratios(terms, source) if is_logged else {}
        return {"loss": torch.stack(list(terms.values())).sum(), "output": output, "ratios": ratios, **terms}


def gradient_ratios(terms: dict[str, Tensor], source: Tensor) -> dict[str, float]:
    """How strongly each term pulls beside the task: the norm of its gradient over the norm of the task's, in one batch.

    The gradients are those at the logits, so that no layer of the net runs backward and no parameter is touched. Terms
    of a loss of features bypass the logits: there the gradients are those at the output of the last layer before the
    head, and only the head runs backward.

    Args:
        terms: of one step.
        source: what they were computed from: the student's logits, or what its logits and features come from.

    Returns:
        `<term>_grad_ratio` of each term but the task; NaN where the task has no gradient (a weight of 0).
    """
    pulls = [torch.autograd.grad(value, source, retain_graph=True)[0].norm() for value in terms.values()]
    whole = torch.stack(pulls) if ranks.count() == 1 else ranks.total(torch.stack(pulls).square()).sqrt()
    norms = dict(zip(terms, whole.tolist(), strict=True))
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
        recipe: what it learns from.
        device: where it runs.

    Raises:
        ValueError: the batch cannot be shared evenly by the ranks.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device) -> None:
        settings = recipe.settings
        if settings.batch_size % ranks.count():
            raise ValueError(
                f"batch_size must divide by the number of processes, got {settings.batch_size} for {ranks.count()} "
                "(params.yaml: train.teacher.batch_size, train.student.batch_size)"
            )
        self.recipe, self.device, self.model = recipe, device, model.to(device)
        if recipe.teacher is not None:
            recipe.teacher.to(device).eval().requires_grad_(False)
        beside = build_adapter(recipe, model)
        self.adapter = nn.Identity() if beside is None else beside.to(device)
        criterion = objectives.criterion(settings, recipe.cohort.train.targets)
        self.task = Task(model, recipe.terms, device, criterion, beside)
        self.averaged = ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True).requires_grad_(False)
        self.task.trainable_module_ema = self.averaged
        self.optimizer = create_optimizer_v2(
            model,
            opt=settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            layer_decay=settings.layer_decay if settings.layer_decay < 1 else None,
            fused=True,
        )
        for group in param_groups_weight_decay(self.adapter, settings.weight_decay) if recipe.adapter else []:
            self.optimizer.add_param_group(group)
        self.scheduler = CosineLRScheduler(
            self.optimizer,
            t_initial=round(settings.steps * (1 - settings.cooldown)),
            lr_min=settings.lr * settings.final_lr,
            warmup_t=round(settings.steps * settings.warmup),
            t_in_epochs=False,
        )
        if settings.compile:
            self.task.compile()
        self.run: nn.Module = self.task
        if ranks.count() > 1:
            # Around the whole task, not the net as timm's prepare_distributed has it: losses of features call its
            # parts. Told to look for unused parameters, DDP keeps its buckets, so that a resumed run sums as before.
            warnings.filterwarnings("ignore", "Grad strides do not match")  # of depthwise gradients; they are copied
            self.run = DistributedDataParallel(self.task, find_unused_parameters=True)
        steps, parts = settings.steps, settings.evaluations
        self.due = {math.ceil(steps * part / parts) for part in range(1, parts + 1)}
        self.progress = Progress()
        self._ratios: dict[str, float] = {}
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def fit(self, checkpoint: Path, live: Path | None = None) -> tuple[nn.Module, list[dict[str, float]]]:
        """Train to the end of the schedule, from the checkpoint if there is one.

        Args:
            checkpoint: a file; it is written every `checkpoint_steps` steps.
            live: a folder for the curves of an unfinished training; None for none.

        Returns:
            The averaged weights (their exponential moving average) and the history, a row an evaluation.

        Raises:
            TrainingError: the loss is not finite.
            files.DiskFullError: there is no room for a checkpoint; the one before is kept.
        """
        self._restore(checkpoint)
        self.task.train()
        settings, progress, is_first = self.recipe.settings, self.progress, ranks.index() == 0
        steps = settings.steps
        curves = Curves(live, progress.history) if live and is_first and progress.step < steps else None
        bar = tqdm(
            total=steps,
            initial=progress.step,
            unit="step",
            desc=" ".join(map(str, self.recipe.names)),
            mininterval=5,
            disable=not is_first,
        )
        while progress.step < steps:
            self._step()
            progress.step += 1
            if progress.step in self.due:
                self._evaluate()
                bar.set_postfix(val_auroc=progress.history[-1]["val_auroc"])
                if curves:
                    curves.add(progress.history[-1])
            if progress.step % settings.checkpoint_steps == 0 and progress.step < steps:
                self.save(checkpoint)
            bar.update()
        bar.close()
        return self.averaged.module.eval(), progress.history

    def _step(self) -> None:
        """One batch forward, backward, and into the averages."""
        recipe, progress, settings = self.recipe, self.progress, self.recipe.settings
        self.scheduler.step_update(progress.step + 1)
        rank = [ranks.index()] if ranks.index() else []
        torch.manual_seed(seeds.integer("step", *recipe.names, progress.step, *rank))  # dropout and stochastic depth
        batch, epochs = self._rows(progress.step)
        size = settings.batch_size // ranks.count()
        own = slice(ranks.index() * size, (ranks.index() + 1) * size)
        rows, numbers = batch[own], (epochs[own] % recipe.views.count).tolist()
        train = recipe.cohort.train
        films = np.stack(
            [train.view(row, number, recipe.views, recipe.seed) for row, number in zip(rows, numbers, strict=True)]
        )
        target = torch.from_numpy(train.targets[rows]).to(self.device)
        target = target * (1 - 2 * settings.label_smoothing) + settings.label_smoothing
        teacher = None
        if recipe.soft is not None:
            teacher = torch.from_numpy(recipe.soft[numbers, rows].astype(np.float32)).to(self.device)
        images, features = nets.to_input(films, self.device), None
        if recipe.teacher is not None:
            _, features = objectives.with_features(recipe.teacher, images)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=settings.bf16):
            result = self.run(images, target, teacher, features, progress.step + 1 in self.due)
        output, ratios = result.pop("output"), result.pop("ratios")
        means = ranks.total(torch.stack([value.detach() for value in result.values()])) / ranks.count()
        values = dict(zip(result, means.tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            shown = ", ".join(train.rows["image"].iloc[batch[:4]])
            raise TrainingError(
                f"the loss is {values['loss']} at step {progress.step} ({' '.join(map(str, recipe.names))}), batch of "
                f"{shown}, ...; terms {values}; largest logit {output.abs().max().item():.3g}: lower lr or clip_norm"
            )
        self._ratios = ratios
        self.optimizer.zero_grad()
        result["loss"].backward()
        trained = [*self.task.get_clip_parameters(), *self.adapter.parameters()]
        torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        self.optimizer.step()
        self.task.update_ema(step=progress.step)
        for name, value in values.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value

    def _rows(self, step: int) -> tuple[list[int], np.ndarray]:
        """Which rows a step sees and in which epoch each is: epochs are permutations laid end to end."""
        recipe = self.recipe
        count, size = len(recipe.cohort.train.rows), recipe.settings.batch_size
        places = np.arange(step * size, (step + 1) * size)
        rows = []
        for place in places:
            epoch = int(place // count)
            if self._order[0] != epoch:
                self._order = (epoch, seeds.of("order", *recipe.names, epoch).permutation(count))
            rows.append(int(self._order[1][place % count]))
        return rows, places // count

    def _evaluate(self) -> None:
        """Add a row to the history: means of the terms since the last one, their pull now, and validation AUROC."""
        recipe, progress = self.recipe, self.progress
        since = progress.step - (int(progress.history[-1]["step"]) if progress.history else 0)
        if ranks.count() > 1:
            distribute_bn(self.averaged.module, ranks.count(), reduce=False)  # type: ignore[no-untyped-call]  # of timm
        batch_size = 4 * recipe.settings.batch_size
        auroc = val_auroc(self.averaged.module.eval(), recipe.cohort.val, batch_size, self.device)
        row = {"step": progress.step, "lr": max(group["lr"] for group in self.optimizer.param_groups)}
        row |= {name: total / since for name, total in progress.sums.items()}
        progress.history.append(row | self._ratios | {"val_auroc": auroc})
        progress.sums = {}

    def save(self, path: Path) -> None:
        """Write the whole state; a kill or a full disk leaves the checkpoint before.

        Raises:
            files.DiskFullError: there is no room for it.
        """
        if ranks.index() > 0:
            return
        state = {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "adapter": self.adapter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        with files.whole(path) as made, made.open("wb") as file:
            torch.save(state, file)

    def _restore(self, path: Path) -> None:
        """Go on from a checkpoint if there is one; other ranks take rank 0's, since they may not see its disk."""
        is_there = path.exists() and ranks.index() == 0
        state = ranks.of_first(torch.load(path, map_location="cpu", weights_only=True) if is_there else None)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.adapter.load_state_dict(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])


def build_adapter(recipe: Recipe, student: Any) -> nn.Module | None:
    """What a recipe's loss trains beside the student, if anything, for the channels of both nets' deepest maps."""
    if recipe.adapter is None:
        return None
    teacher: Any = recipe.teacher
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer("adapter", recipe.seed, *recipe.names))
        return recipe.adapter(student.num_features, teacher.num_features)


class Curves:
    """The history of an unfinished training as DVCLive writes it, for `dvc plots show` and editors.

    Args:
        folder: what an earlier try left there is replaced by the history that it goes on from.
        history: of that checkpoint.
    """

    def __init__(self, folder: Path, history: list[dict[str, float]]) -> None:
        self.live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
        if self.live._dvc_repo:  # its open git packs would have the last word, at length, where a training crashes
            self.live._dvc_repo.close()
        for row in history:
            self.add(row)

    def add(self, row: dict[str, float]) -> None:
        """Add a row of the history; what is undefined is no point of a curve."""
        self.live.step = int(row["step"])
        for name, value in row.items():
            if name != "step" and math.isfinite(value):
                self.live.log_metric(name, value)
