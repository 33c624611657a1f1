"""Steps of training beside timm's own tasks, and what reading, soft labels and an online teacher cost.

With a teacher online, it sees every batch of every epoch; with cached soft labels it sees each view of each film once,
for all students and losses, which is not in the lines. The student is the same net on both sides; ours has its faster
layers, theirs is as the library runs it. torch.compile is measured where there is g++; the minutes that it takes
before the first step are in no line.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from timm.optim._optim_factory import create_optimizer_v2
from timm.task import LogitDistillationTask, MultiLabelClassificationTask
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torchdistill.core.distillation import get_distillation_box

from benchmarks import measure
from stages import profile
from stages.core import params
from stages.learning import layers, objectives
from stages.learning.cohort import Cohort, Part
from stages.learning.trainer import Recipe, Trainer
from stages.losses import sigmoid_kd
from stages.nets import nets
from stages.sources.images import Images

OUTPUTS, SIZE_PX = 14, 64
FEW, MANY = 2_000, 20_000
STUDENT, TEACHER = "eeea_net_c2", "densenet161"
PAPER_PX, PAPER_BATCH = 224, 8  # the paper's size; a small batch, since a step of 64 takes half a minute on a core
STEPS = 4  # that are timed together
TIMM_PAIRS, ONLINE_ROUNDS = 7, 3
ALPHA, TEMPERATURE = 0.3, 2.0
MODES = ("contiguous", "channels-last", "bf16", "compile")  # the last two in channels-last
MODE_STEPS, MODE_ROUNDS = 1, 3  # bf16 takes some ten times as long where the processor has no instructions for it
GPU_BATCH, GPU_ROUNDS, PEAK_SIDE = 128, 20, 8192


@dataclass(frozen=True)
class Case:
    """At what size, in what batches and where a net is trained.

    Attributes:
        settings: `train.teacher` of params.yaml, or `train.student` with the twin's rate.
        size_px: side of the films.
        device: of the nets and batches.
    """

    settings: Any
    size_px: int
    device: torch.device

    def __str__(self) -> str:
        card = f" on {torch.cuda.get_device_name()}" if self.device.type == "cuda" else ""
        return f"{self.size_px} px, batch {self.settings.batch_size}{card}"

    def net(self, architecture: str) -> nn.Module:
        """A net in channels-last, in training mode."""
        return nets.build_model(architecture, OUTPUTS, self.size_px).to(self.device).train()

    def student(self) -> nn.Module:
        """The student with the faster layers that all of ours have."""
        student = self.net(STUDENT)
        layers.speed_up(student)
        return student

    def batch(self) -> tuple[Tensor, Tensor]:
        """Films and labels that are in memory already."""
        shape = (self.settings.batch_size, self.size_px, self.size_px)
        films = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        return nets.to_input(films, self.device), torch.rand(shape[0], OUTPUTS, device=self.device).round()

    def autocast(self, is_bf16: bool) -> AbstractContextManager[Any]:
        """bf16 where it is wanted."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_bf16)

    def finish(self) -> None:
        """Wait for a GPU, which works on after a call returns."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def cohort(folder: Path, count: int, size_px: int) -> Cohort:
    """So many films of noise with labels, in a shard."""
    rng = np.random.default_rng(0)
    name = f"shard_{size_px}.npy"
    shard = np.lib.format.open_memmap(folder / name, "w+", np.uint8, (count, size_px, size_px))
    for film in shard:
        film[:] = rng.integers(0, 256, film.shape, dtype=np.uint8)
    shard.flush()
    names = [str(number) for number in range(count)]
    rows = pd.DataFrame({"dataset": "drawn", "image": names, "patient": names})
    films = Images(folder, [name] * count, range(count))
    part = Part(rows, films, rng.integers(0, 2, (count, OUTPUTS)).astype(np.float32))
    findings = [f"finding {number}" for number in range(OUTPUTS)]
    return Cohort({"findings": findings, "size_px": size_px}, part, part)


class Ours:
    """Our loop, as `training.train` builds it, with reading and views; with soft labels it distils."""

    def __init__(self, net: nn.Module, drawn: Cohort, case: Case, views: Any, is_distilled: bool) -> None:
        terms: Callable[..., Any] = objectives.undistilled
        soft = None
        if is_distilled:
            soft = np.zeros((views.count, len(drawn.train.rows), OUTPUTS), np.float16)
            terms = partial(sigmoid_kd.terms, settings=sigmoid_kd.Settings(alpha=ALPHA, temperature=TEMPERATURE))
        self.case = case
        recipe = Recipe(drawn, terms, case.settings, views, 0, ("bench",), soft)
        self.trainer = Trainer(net, recipe, case.device)
        self.trainer.task.train()

    def steps(self, count: int = STEPS) -> None:
        """Some steps."""
        for _ in range(count):
            self.trainer._step()
            self.trainer.progress.step += 1
        self.case.finish()


class Timm:
    """A loop of timm's task with the same optimizer, clipping and averaging."""

    def __init__(self, task: Any, case: Case, is_bf16: bool) -> None:
        self.task, self.case, self.is_bf16 = task, case, is_bf16
        settings, student = case.settings, task.trainable_module
        task.trainable_module_ema = ModelEmaV3(student, decay=settings.ema_decay, use_warmup=True)
        self.optimizer = create_optimizer_v2(
            student, opt=settings.optimizer, lr=settings.lr, momentum=settings.momentum,
            weight_decay=settings.weight_decay, fused=True,
        )  # fmt: skip
        self.films, self.target = case.batch()
        self.done = 0
        task.train()

    def steps(self, count: int = STEPS) -> None:
        """Some steps."""
        for _ in range(count):
            with self.case.autocast(self.is_bf16):
                loss = self.task(self.films, self.target)["loss"]
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.task.get_clip_parameters(), self.case.settings.clip_norm)
            self.optimizer.step()
            self.task.update_ema(step=self.done)
            self.done += 1
        self.case.finish()


class Torchdistill:
    """A loop of torchdistill's box with a teacher that sees every batch, called as its examples do; it averages none.

    Its criterion reads both nets' outputs out of the dictionaries that the box fills.
    """

    def __init__(self, case: Case) -> None:
        settings, output = case.settings, {"module_path": ".", "io": "output"}
        logits = {f"{role}_module_{key}": value for role in ("student", "teacher")
                  for key, value in (("path", "."), ("io", "output"))}  # fmt: skip
        soft = {"key": "KDLoss", "kwargs": {**logits, "temperature": TEMPERATURE, "alpha": 0.0}}
        hard = {"key": "BCEWithLogitsLoss", "kwargs": {}}
        wrapper = {"input": {"is_from_teacher": False, **output}, "target": {"uses_label": True}}
        wrapped = {"criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": wrapper}}
        sub_terms = {"soft": {"criterion": soft, "weight": (1 - ALPHA) * TEMPERATURE**2},
                     "hard": {"criterion": hard, "weight": ALPHA, **wrapped}}  # fmt: skip
        kind, kwargs = {
            "sgd": ("SGD", {"momentum": settings.momentum, "nesterov": True}),
            "adamw": ("AdamW", {}),
        }[settings.optimizer]
        kwargs |= {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": True}
        self.case = case
        self.box = get_distillation_box(
            case.net(TEACHER).eval(), case.net(STUDENT), {},
            {
                "num_epochs": 1,
                "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
                "student": {"forward_proc": "forward_batch_only"},
                "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": sub_terms}},
                "optimizer": {"key": kind, "kwargs": kwargs, "max_grad_norm": settings.clip_norm},
            },
            case.device, None, False, 1.0,
        )  # fmt: skip
        self.box.pre_epoch_process()
        self.films, self.target = case.batch()

    def steps(self, count: int = STEPS) -> None:
        """Some steps."""
        for _ in range(count):
            with self.case.autocast(self.case.settings.bf16):
                loss = self.box.forward_process(self.films, self.target, None)
            self.box.post_forward_process(loss)
        self.case.finish()


def plain_timm(architecture: str, case: Case, mode: str) -> Timm:
    """timm's multi-label task on a net, in one of MODES."""
    order = torch.contiguous_format if mode == "contiguous" else torch.channels_last
    net = case.net(architecture).to(memory_format=order)
    task = MultiLabelClassificationTask(net, criterion=nn.BCEWithLogitsLoss(), device=case.device, verbose=False)
    if mode == "compile":
        task.compile()
    made = Timm(task, case, is_bf16=mode == "bf16")
    made.films = made.films.contiguous(memory_format=order)
    return made


def online_timm(case: Case) -> Timm:
    """timm's distillation task with a teacher that sees every batch."""
    task = LogitDistillationTask(
        case.net(STUDENT), case.net(TEACHER), criterion=nn.BCEWithLogitsLoss(), task_loss_weight=ALPHA,
        temperature=TEMPERATURE, device=case.device, verbose=False,
    )  # fmt: skip
    return Timm(task, case, case.settings.bf16)


def fastest(architecture: str, case: Case) -> tuple[str, list[measure.Line]]:
    """The mode in which timm's task steps fastest on a net, and a line for each mode beside the first."""
    modes = [mode for mode in MODES if mode != "compile" or shutil.which("g++")]
    works = [partial(plain_timm(architecture, case, mode).steps, MODE_STEPS) for mode in modes]
    first, *others = measure.in_turn(*works, count=MODE_ROUNDS)
    images = MODE_STEPS * case.settings.batch_size
    lines = [
        measure.compare(f"timm's step of {architecture} at {case}: {mode} to {MODES[0]}", [timed, first], "films",
                        images, None, True)
        for mode, timed in zip(modes[1:], others, strict=True)
    ]  # fmt: skip
    chosen = min(zip(modes, [first, *others], strict=True), key=lambda timed: median(timed[1]))
    return chosen[0], lines


def beside_timm(folder: Path, case: Case, views: Any, threads: int) -> list[measure.Line]:
    """A plain step beside timm's fastest, and what soft labels, reading and views add to it."""
    drawn = cohort(folder, FEW, case.size_px)
    plain, distilled = (Ours(case.student(), drawn, case, views, is_distilled) for is_distilled in (False, True))
    mode, modes = fastest(STUDENT, case)
    beside = measure.in_turn(plain.steps, plain_timm(STUDENT, case, mode).steps, count=TIMM_PAIRS)
    with_soft = measure.in_turn(distilled.steps, plain.steps, count=TIMM_PAIRS)
    step = median(beside[0]) / STEPS
    batch = range(case.settings.batch_size)
    reading = median(measure.seconds(partial(drawn.train.films.take, batch)) for _ in range(50))
    viewing = median(measure.seconds(lambda: [drawn.train.view(row, 0, views, 0) for row in batch]) for _ in range(20))
    about = f"EEEA-Net-C2 at {case}, {threads} thread{'s' * (threads > 1)}"
    return [
        *modes,
        measure.compare(f"step of {about}, with reading and views, to timm's task without, {mode} (its fastest)",
                        beside, "films", STEPS * case.settings.batch_size, 0.98, True),
        measure.compare("step with cached soft labels to a plain one", with_soft, "s", STEPS, 1.1, False),
        measure.Line("reading a batch from shards, to a step", f"{1e3 * reading:.3g} ms", f"{1e3 * step:.3g} ms",
                     reading / step, limit=0.03),
        measure.Line("reading and the augmented views, to a step", f"{1e3 * viewing:.3g} ms", f"{1e3 * step:.3g} ms",
                     viewing / step, limit=0.03),
    ]  # fmt: skip


def beside_online(folder: Path, case: Case, views: Any, limit: float | None) -> list[measure.Line]:
    """Films a second from cached soft labels, beside those with a teacher online: the ratio of their epochs."""
    drawn = cohort(folder, max(case.settings.batch_size, FEW // 10), case.size_px)
    works: list[Ours | Timm | Torchdistill] = [
        Ours(case.student(), drawn, case, views, is_distilled=True), online_timm(case), Torchdistill(case)
    ]  # fmt: skip
    cached, *online = measure.in_turn(*(partial(work.steps, 1) for work in works), count=ONLINE_ROUNDS)
    return [
        measure.compare(f"epoch of distillation at {case}, from cached soft labels; {name} with {TEACHER} online",
                        [cached, timed], "films", case.settings.batch_size, limit, True)
        for name, timed in zip(("timm's task", "torchdistill"), online, strict=True)
    ]  # fmt: skip


def peak_macs(device: torch.device, side: int = PEAK_SIDE) -> float:
    """Multiply-adds a second of a large product in bf16: what a card reaches at most."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def product() -> None:
        (left @ right)[0, 0].item()  # waits for the result

    (timed,) = measure.in_turn(product, count=GPU_ROUNDS)
    return side**3 / min(timed)


def of_peak(folder: Path, architecture: str, case: Case, views: Any, peak: float) -> measure.Line:
    """A whole step in bf16, with reading and views, as a share of the card's peak."""
    drawn = cohort(folder, FEW, case.size_px)
    made = Ours(case.net(architecture), drawn, case, views, is_distilled=False)
    (timed,) = measure.in_turn(partial(made.steps, 1), count=GPU_ROUNDS)
    films = case.settings.batch_size / median(timed)
    forward = profile.exact_cost(architecture, OUTPUTS, [case.size_px])["compute"][0]["macs"]
    macs = 3 * forward * films  # backward takes twice as many
    return measure.Line(f"step of {architecture} at {case}, bf16, with reading and views ({films:.4g} films/s); peak "
                        "of a bf16 product", f"{macs / 1e12:.3g} TMAC/s", f"{peak / 1e12:.3g} TMAC/s",
                        macs / peak)  # fmt: skip


def memory(count: int) -> None:
    """Print the peak memory of some steps on so many films."""
    settings = params.parse(params.read())
    case = Case(settings.train.student.at(settings.rates["twin"].default), SIZE_PX, nets.fix(settings.threads))
    with tempfile.TemporaryDirectory() as folder:
        drawn = cohort(Path(folder), count, SIZE_PX)
        Ours(case.student(), drawn, case, settings.views, is_distilled=False).steps(3 * STEPS)
    print(measure.own_peak_mb())


def run() -> list[measure.Line]:
    """The lines on training."""
    whole = params.parse(params.read())
    device, views = nets.fix(whole.threads), whole.views
    students = whole.train.student.at(whole.rates["twin"].default)
    ours, teachers = (Case(settings, SIZE_PX, device) for settings in (students, whole.train.teacher))
    papers = Case(ours.settings.model_copy(update={"batch_size": PAPER_BATCH}), PAPER_PX, device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = beside_timm(folder, ours, views, whole.threads)
        lines += fastest(whole.headline.teacher, teachers)[1]
        lines += beside_online(folder, ours, views, limit=None)
        lines += beside_online(folder, papers, views, limit=5)
        if device.type == "cuda":
            peak, changes = peak_macs(device), {"batch_size": GPU_BATCH, "bf16": True}
            large = Case(ours.settings.model_copy(update=changes), PAPER_PX, device)
            lines += [of_peak(folder, architecture, large, views, peak) for architecture in (STUDENT, TEACHER)]
    few, many = (measure.printed("benchmarks.training", str(count))[0] for count in (FEW, MANY))
    about = f"peak memory of training, {MANY:,} films to {FEW:,}"
    return [*lines, measure.Line(about, f"{many:.0f} MB", f"{few:.0f} MB", many / few, limit=1.1)]


if __name__ == "__main__":
    memory(int(sys.argv[1]))
