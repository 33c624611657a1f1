"""Hashes of what each kind of computation gives on this processor: `python tests/portable.py` prints them as JSON.

`test_portable.py` compares them with the committed ones, `portable.json`, here and under an emulated processor. After a
change of what is computed, or of a package, the same command makes that file anew: `python tests/portable.py >
tests/portable.json`.
"""

# ruff: noqa: E402 - the instruction set is pinned before numerical libraries are imported
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from stages.pipeline import pinning

pinning.pin()

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional

from stages.core import params, plugins, seeds
from stages.films import decoding
from stages.judging import calibration, metrics
from stages.learning import layers
from stages.nets import nets
from stages.phantom import draw_film, layouts
from stages.sources.images import view

ROOT = Path(__file__).parent.parent
FILMS, SIZE_PX, OUTPUTS, STEPS = 4, 64, 14, 2
MAX_PIXELS = 1 << 20
TEACHER, STUDENT = "resnet18", "eeea_net_c2"


def digest(*arrays: Any) -> str:
    """The first digits of the SHA-256 of arrays' bytes."""
    joined = b"".join(one if isinstance(one, bytes) else np.ascontiguousarray(one).tobytes() for one in arrays)
    return hashlib.sha256(joined).hexdigest()[:16]


def drawn(given: Any, dataset: str) -> list[bytes]:
    """Image files of a data set, each with three findings, as the stage `phantom` draws them."""
    layout = layouts.LAYOUTS[dataset](plugins.load("datasets", dataset).TERMS)
    files = []
    for number in range(FILMS):
        shown = [layout.names[(3 * number + place) % len(layout.names)] for place in range(3)]
        row = {"patient": f"p{number}", "sex": "MF"[number % 2], "image": f"{number}.png", "number": number}
        row |= {"view": ("PA", "AP")[number % 2], "BitsStored_DICOM": 12}
        files.append(draw_film(layout, row, frozenset(shown), given.phantom, dataset, 17)[0])
    return files


def trained(architecture: str, is_fast: bool, images: Any, targets: Any) -> tuple[str, str]:
    """Hashes of a model's weights after some steps, and of its logits."""
    model = nets.build_model(architecture, OUTPUTS, SIZE_PX, seed=1).train()
    if is_fast:
        layers.speed_up(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(model(images), targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    weights = [value.detach().numpy() for value in model.state_dict().values()]
    with torch.inference_mode():
        return digest(*weights), digest(model.eval()(images).numpy())


def hashes() -> Iterator[tuple[str, str]]:
    """What is computed -> its hash."""
    given = params.parse(params.read(ROOT / "params.yaml"))
    contents = []
    for dataset in sorted(layouts.LAYOUTS):
        films = drawn(given, dataset)
        yield f"drawn images of {dataset}", digest(*films)
        contents += films
    decoded = [decoding.decode(content, decoding.Stated(), MAX_PIXELS) for content in contents]
    yield "decoded images", digest(*(one.image for one in decoded))
    squares = [one.square(SIZE_PX) for one in decoded]
    yield "resized images", digest(*squares)
    views = np.stack([view(square, given.views, 17, "d", str(place), 0) for place, square in enumerate(squares)])
    yield "augmented views", digest(views)
    yield "blurred images", digest(*(cv2.GaussianBlur(square, (0, 0), 4) for square in squares))

    rng = seeds.of("portable")
    nets.fix(threads=1)
    images, targets = nets.to_input(views[:8]), torch.from_numpy((rng.random((8, OUTPUTS)) < 0.3).astype(np.float32))
    for name, architecture, is_fast in (
        ("a teacher", TEACHER, False), ("a student with plain layers", STUDENT, False), ("a student", STUDENT, True),
    ):  # fmt: skip
        yield f"weights of {name}", (of := trained(architecture, is_fast, images, targets))[0]
        yield f"logits of {name}", of[1]

    known = (rng.random((300, 3)) < 0.2).astype(float)
    scores = (known + rng.normal(size=(300, 3))).astype(np.float32)
    weights = metrics.patient_weights(300, 200, rng)
    yield "bootstrap", digest(*metrics.resample(known, scores, np.arange(300), weights))
    scale = calibration.fit(known[:, 0], scores[:, 0])
    yield "calibration", digest(np.array([scale.temperature, scale.bias]), scale.probability(scores))


if __name__ == "__main__":
    made = {}
    for name, hash_ in hashes():
        made[name] = hash_
        print(name, file=sys.stderr)  # under emulation this takes minutes
    print(json.dumps(made, indent=2))
