"""What it costs to pin the instruction set: each kind of work in processes with the pins and without, in turn.

Seconds of processor time. "All trainings of the default" adds up its steps: one teacher, and a twin and a distilled
student a seed. Both sides are today's code.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from benchmarks import measure
from stages.pipeline import pinning

ROUNDS, REPEATS = 3, 8
FILMS, SIZE_PX, OUTPUTS = 32, 64, 14
MAX_PIXELS = 1 << 20
ROWS, REPLICATES = 2700, 100


def phantom() -> Callable[[], Any]:
    """Draw images."""
    from stages.core import params, plugins
    from stages.phantom import draw_film, layouts

    given = params.parse(params.read()).phantom
    layout = layouts.LAYOUTS["padchest"](plugins.load("datasets", "padchest").TERMS)
    shown = frozenset(layout.names[:4])
    rows = [{"patient": str(n), "sex": "M", "image": str(n), "number": n, "view": "PA", "BitsStored_DICOM": 12}
            for n in range(FILMS)]  # fmt: skip
    return lambda: [draw_film(layout, row, shown, given, "padchest", 17)[0] for row in rows]


def ingest() -> Callable[[], Any]:
    """Decode and resize them."""
    from stages.films import decoding

    contents = phantom()()
    return lambda: [decoding.to_square(content, decoding.Stated(), SIZE_PX, MAX_PIXELS) for content in contents]


def step(role: str) -> Callable[[], Any]:
    """A training step of the default's teacher or student, with its batch."""
    import torch
    from torch.nn import functional

    from stages.core import params
    from stages.learning import layers
    from stages.nets import nets

    nets.fix(1)
    given = params.parse(params.read())
    architecture = getattr(given.headline, role)
    batch = getattr(given.train, role).batch_size
    model = nets.build_model(architecture, OUTPUTS, SIZE_PX).train()
    layers.speed_up(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True)
    images = torch.randn(batch, 3, SIZE_PX, SIZE_PX).contiguous(memory_format=torch.channels_last)
    targets = (torch.rand(batch, OUTPUTS) < 0.3).float()

    def work() -> None:
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(model(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # of torch
        optimizer.step()

    return work


def predict() -> Callable[[], Any]:
    """Logits of the student."""
    import numpy as np
    import torch

    from stages.nets import nets

    nets.fix(1)
    model = nets.build_model("eeea_net_c2", OUTPUTS, SIZE_PX).eval()
    films = np.random.default_rng(0).integers(0, 256, (64, SIZE_PX, SIZE_PX), np.uint8)
    return lambda: nets.logits(model, [films], torch.device("cpu"))


def evaluate() -> Callable[[], Any]:
    """Bootstrap of AUROC and average precision."""
    import numpy as np

    from stages.judging import metrics

    rng = np.random.default_rng(0)
    targets, scores = (rng.random((ROWS, OUTPUTS)) < 0.1).astype(float), rng.normal(size=(ROWS, OUTPUTS))
    weights = metrics.patient_weights(ROWS, REPLICATES, rng)
    return lambda: metrics.resample(targets, scores, np.arange(ROWS), weights)


def explain() -> Callable[[], Any]:
    """Class maps of the student."""
    import torch

    from stages.explainers import layer_cam
    from stages.nets import nets

    nets.fix(1)
    model = nets.build_model("eeea_net_c2", OUTPUTS, SIZE_PX).eval()
    images = torch.randn(8, 3, SIZE_PX, SIZE_PX).contiguous(memory_format=torch.channels_last)
    return lambda: layer_cam.maps(model, images, list(range(OUTPUTS)), 8)


WORKS: dict[str, Callable[[], Callable[[], Any]]] = {
    "phantom: 32 images": phantom,
    "ingest: 32 images": ingest,
    "train_teacher: a step": partial(step, "teacher"),
    "train_student, distill: a step": partial(step, "student"),
    "soft_label, predict: 64 images": predict,
    "evaluate: 100 replicates": evaluate,
    "explain: maps of 8 images": explain,
}


def seconds_of(name: str) -> float:
    """Median processor time of a work in this process."""
    work, taken = WORKS[name](), []
    for _ in range(REPEATS + 2):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return median(taken[2:])


def run() -> list[measure.Line]:
    """Measure each work in fresh processes."""
    from stages.core import params

    given = params.parse(params.read())
    timed = dict[str, list[list[float]]]()
    for name in WORKS:
        timed[name] = [[], []]
        for _ in range(ROUNDS):
            timed[name][0] += measure.printed("benchmarks.pinning", name)
            with pinning.released():
                timed[name][1] += measure.printed("benchmarks.pinning", name)
    lines = [measure.compare(name, both, "s", 1, None, False) for name, both in timed.items()]
    steps = {
        "train_teacher: a step": given.train.teacher.steps,
        "train_student, distill: a step": 2 * len(given.seeds) * given.train.student.steps,
    }
    whole = [
        [sum(count * timed[name][side][place] for name, count in steps.items()) for place in range(ROUNDS)]
        for side in (0, 1)
    ]
    return [*lines, measure.compare("all trainings of the default", whole, "s", 1, 1.1, False)]


if __name__ == "__main__":
    print(seconds_of(sys.argv[1]))
