"""Steps of training beside timm's own tasks, and what reading, soft labels and an online teacher cost."""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from timm.optim._optim_factory import create_optimizer_v2
from timm.task import LogitDistillationTask, MultiLabelClassificationTask
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from benchmarks import measure
from stages.core import depthwise, models, objectives, params, plugins, training
from stages.core.images import Images
from stages.losses import sigmoid_kd

OUTPUTS, SIZE_PX = 14, 64
FEW, MANY = 2_000, 20_000
STUDENT, TEACHER = "eeea_net_c2", "densenet161"
STEPS = 4  # that are timed together
TIMM_PAIRS = 7
# bf16 in channels-last; torch.compile is not tried: inductor took over 10 minutes for the student on two cores
MODES = ("contiguous", "channels-last", "bf16")
MODE_STEPS, MODE_ROUNDS = 2, 3  # bf16 takes some ten times as long where the processor has no instructions for it


def cohort(folder: Path, count: int) -> training.Cohort:
    """So many films of noise with labels, in a shard."""
    rng = np.random.default_rng(0)
    shard = np.lib.format.open_memmap(folder / "shard.npy", "w+", np.uint8, (count, SIZE_PX, SIZE_PX))
    for film in shard:
        film[:] = rng.integers(0, 256, film.shape, dtype=np.uint8)
    shard.flush()
    names = [str(number) for number in range(count)]
    rows = pd.DataFrame({"dataset": "drawn", "image": names, "patient": names})
    films = Images(folder, ["shard.npy"] * count, range(count))
    part = training.Part(rows, films, rng.integers(0, 2, (count, OUTPUTS)).astype(np.float32))
    findings = [f"finding {number}" for number in range(OUTPUTS)]
    return training.Cohort({"findings": findings, "size_px": SIZE_PX}, part, part)


def trainer(drawn: training.Cohort, settings: Any, views: Any, soft: np.ndarray | None = None) -> training.Trainer:
    """Ours, as `training.train` builds it."""
    terms: Callable[..., Any] = objectives.undistilled
    if soft is not None:
        terms = partial(sigmoid_kd.terms, settings=sigmoid_kd.Settings(alpha=0.3, temperature=2.0))
    student = models.build_model(STUDENT, OUTPUTS, SIZE_PX)
    depthwise.speed_up(student)
    made = training.Trainer(student, drawn, terms, settings, views, 0, ("bench",), torch.device("cpu"), soft)
    made.task.train()
    return made


def steps(made: training.Trainer) -> None:
    """Some of its steps, with reading and views."""
    for _ in range(STEPS):
        made._step()
        made.progress.step += 1


class Timm:
    """A loop of timm's task with the same optimizer, clipping and averaging, on films that are in memory already."""

    def __init__(self, task: Any, settings: Any, is_bf16: bool = False) -> None:
        self.task, self.settings, self.is_bf16 = task, settings, is_bf16
        student = task.trainable_module
        task.trainable_module_ema = ModelEmaV3(student, decay=settings.ema_decay, use_warmup=True)
        self.optimizer = create_optimizer_v2(
            student, opt=settings.optimizer, lr=settings.lr, momentum=settings.momentum,
            weight_decay=settings.weight_decay, fused=True,
        )  # fmt: skip
        films = np.random.default_rng(1).integers(0, 256, (settings.batch_size, SIZE_PX, SIZE_PX), dtype=np.uint8)
        self.films = models.to_input(films)
        self.target = torch.rand(settings.batch_size, OUTPUTS).round()
        self.done = 0
        task.train()

    def steps(self, count: int = STEPS) -> None:
        """Some steps."""
        for _ in range(count):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.is_bf16):
                loss = self.task(self.films, self.target)["loss"]
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.task.get_clip_parameters(), self.settings.clip_norm)
            self.optimizer.step()
            self.task.update_ema(step=self.done)
            self.done += 1


def plain_timm(architecture: str, settings: Any, mode: str) -> Timm:
    """timm's multi-label task on a net, in one of MODES."""
    order = torch.contiguous_format if mode == "contiguous" else torch.channels_last
    net = models.build_model(architecture, OUTPUTS, SIZE_PX).to(memory_format=order)
    task = MultiLabelClassificationTask(
        net, criterion=nn.BCEWithLogitsLoss(), device=torch.device("cpu"), verbose=False
    )
    made = Timm(task, settings, is_bf16=mode == "bf16")
    made.films = made.films.contiguous(memory_format=order)
    return made


def fastest(architecture: str, settings: Any) -> tuple[str, list[measure.Line]]:
    """The mode in which timm's task steps fastest on a net, and a line for each mode beside the first."""
    works = [partial(plain_timm(architecture, settings, mode).steps, MODE_STEPS) for mode in MODES]
    first, *others = measure.in_turn(*works, count=MODE_ROUNDS)
    images = MODE_STEPS * settings.batch_size
    about = f"timm's step of {architecture} at {SIZE_PX} px, batch {settings.batch_size}"
    lines = [
        measure.compare(f"{about}: {mode} to {MODES[0]}", timed, first, "films", images, None, True)
        for mode, timed in zip(MODES[1:], others, strict=True)
    ]
    chosen = min(zip(MODES, [first, *others], strict=True), key=lambda timed: median(timed[1]))
    return chosen[0], lines


def online_timm(settings: Any) -> Timm:
    """timm's distillation task with a teacher that sees every batch."""
    student = models.build_model(STUDENT, OUTPUTS, SIZE_PX)
    teacher = timm.create_model(TEACHER, num_classes=OUTPUTS).to(memory_format=torch.channels_last)
    task = LogitDistillationTask(
        student, teacher, criterion=nn.BCEWithLogitsLoss(), task_loss_weight=0.3, temperature=2.0,
        device=torch.device("cpu"), verbose=False,
    )  # fmt: skip
    return Timm(task, settings)


def peak(count: int) -> None:
    """Print the peak memory of some steps on so many films."""
    settings = params.parse(params.read())
    models.fix(settings.threads)
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(cohort(Path(folder), count), settings.train.student, settings.views)
        for _ in range(3):
            steps(made)
    print(measure.own_peak_mb())


def run() -> list[measure.Line]:
    """The lines on training."""
    whole = params.parse(params.read())
    settings, views = whole.train.student, whole.views
    models.fix(whole.threads)
    for architecture in (STUDENT, whole.headline.teacher):
        plugins.load("models", architecture)
    with tempfile.TemporaryDirectory() as name:
        drawn = cohort(Path(name), FEW)
        soft = np.zeros((views.count, FEW, OUTPUTS), np.float16)
        plain, distilled = (trainer(drawn, settings, views, labels) for labels in (None, soft))
        mode, modes = fastest(STUDENT, settings)
        beside = measure.in_turn(partial(steps, plain), plain_timm(STUDENT, settings, mode).steps, count=TIMM_PAIRS)
        with_soft = measure.in_turn(partial(steps, distilled), partial(steps, plain), count=TIMM_PAIRS)
        online = measure.in_turn(partial(steps, distilled), online_timm(settings).steps, count=3)
        step = median(beside[0]) / STEPS
        batch = list(range(settings.batch_size))
        reading = median(measure.seconds(partial(drawn.train.films.take, batch)) for _ in range(50))
        viewing = median(
            measure.seconds(lambda: [drawn.train.view(row, 0, views, 0) for row in batch]) for _ in range(20)
        )
    _, modes_of_teacher = fastest(whole.headline.teacher, whole.train.teacher)
    few, many = (measure.printed("benchmarks.training", str(count))[0] for count in (FEW, MANY))
    student = f"EEEA-Net-C2 at {SIZE_PX} px, batch {settings.batch_size}, {whole.threads} threads"
    images = STEPS * settings.batch_size
    return [
        *modes,
        *modes_of_teacher,
        measure.compare(f"step of {student}, with reading and views, to timm's task without, {mode} (its fastest)",
                        *beside, "films", images, 0.98, True),
        measure.compare("step with cached soft labels to a plain one", *with_soft, "s", STEPS, 1.1, False),
        measure.compare(f"cached soft labels, to timm's task with {TEACHER} online", *online, "films", images, 5, True),
        measure.Line("reading a batch from shards, to a step", f"{1e3 * reading:.3g} ms", f"{1e3 * step:.3g} ms",
                     reading / step, limit=0.03),
        measure.Line("reading and the augmented views, to a step", f"{1e3 * viewing:.3g} ms", f"{1e3 * step:.3g} ms",
                     viewing / step, limit=0.03),
        measure.Line(f"peak memory of training, {MANY:,} films to {FEW:,}", f"{many:.0f} MB", f"{few:.0f} MB",
                     many / few, limit=1.1),
    ]  # fmt: skip


if __name__ == "__main__":
    peak(int(sys.argv[1]))
