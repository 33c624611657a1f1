"""The exported student: onnxruntime beside eager PyTorch, a small file beside the whole one, and `cxr-predict`.

Nets are untrained, on one thread, at 224 px, one film at a time. For `cxr-predict` a folder of a student at 64 px is
exported and 1,000 films of 128 px are drawn; the runtime's own rate is a loop over their decoded squares. ExecuTorch is
timed where it is installed (`make extra`).
"""

import copy
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import onnx
import torch

from benchmarks import measure
from stages import export, phone, predict_image
from stages.core import files, seeds
from stages.device import graphs, running, variants
from stages.films import decoding
from stages.nets import nets

SIZE_PX, OUTPUTS, OPSET, COUNT = 224, 14, 20, 40
FILM_PX, SMALL_PX, FILMS, MORE_FILMS = 128, 64, 1000, 4000
MEGABYTE = 1e6
PEAK = """
import sys
from stages import predict_image
from stages.device import runtimes
predict_image.main(sys.argv[1:])
print(runtimes.peak_bytes())
"""


def exported(folder: Path) -> None:
    """A folder as the stage `export` writes it, as far as `cxr-predict` reads it, of an untrained student."""
    net = nets.build_model("eeea_net_c2", OUTPUTS, SMALL_PX, seed=0).eval()
    ones = np.ones((1, OUTPUTS))
    answer = graphs.Answer(net, SMALL_PX, graphs.Calibration(ones, 0 * ones))
    folder.mkdir()
    export.write(graphs.to_onnx(answer, OPSET), folder / export.STUDENT)
    names = [f"finding_{place}" for place in range(OUTPUTS)]
    about = {
        "format": running.FORMAT,
        "size_px": SMALL_PX,
        "ingest": {"max_pixels": 40_000_000, "min_range": 0.125},
        "findings": [{"name": name, "title": name} for name in names],
        "populations": [{"name": "none", "threshold": [0.0] * OUTPUTS}],
        "map": None,
        "no_map": "not timed",
        "files": export.hashes(folder),
    }
    files.write_json(about, folder / running.MODEL)


def draw(folder: Path, count: int) -> None:
    """Films as PNG."""
    rng = seeds.of("bench", "device")
    folder.mkdir()
    for number in range(count):
        small = rng.integers(0, 256, (24, 24), dtype=np.uint8)
        film = cv2.resize(small, (FILM_PX, FILM_PX), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number:05d}.png"), film)


def answer_all(session: running.Session, squares: list[np.ndarray]) -> None:
    """The runtime's own loop."""
    for square in squares:
        session.answer(square)


def predict(films: Path, model: Path, out: Path) -> None:
    """`cxr-predict` on a folder, from nothing, in this process."""
    shutil.rmtree(out, ignore_errors=True)
    predict_image.predict([films], predict_image.parsed([str(films), "--model", str(model), "--out", str(out)])[1])


def alone(films: Path, model: Path, out: Path) -> int:
    """Peak memory, in bytes, of `cxr-predict` in a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, "-c", PEAK, *map(str, (films, "--model", model, "--out", out))]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def runtimes() -> list[measure.Line]:
    """The lines on nets."""
    films, batch = np.zeros((1, 3, SIZE_PX, SIZE_PX), np.float32), torch.zeros(1, 3, SIZE_PX, SIZE_PX)
    student, large = (nets.build_model(name, OUTPUTS, SIZE_PX).eval() for name in ("eeea_net_c2", "densenet161"))
    whole = graphs.plain(student, SIZE_PX, OPSET)
    small = variants.int8_weights(whole)
    of_int8, of_fp32 = (len(proto.SerializeToString()) / MEGABYTE for proto in (small, whole))
    sessions = [_session(proto) for proto in (whole, small, graphs.plain(large, SIZE_PX, OPSET))]
    works = [partial(session.run, None, {"films": films}) for session in sessions]
    if find_spec("executorch"):
        works.append(partial(_program(student).execute, [batch]))
    with torch.inference_mode():
        timed = measure.in_turn(partial(student, batch), *works, count=COUNT)
    eager, of_whole, of_small, of_large, *of_phone = timed
    compared = partial(measure.compare, unit="films", work=1)
    phones = [
        compared("student, ExecuTorch to onnxruntime", [one, of_whole], limit=None, is_rate=True) for one in of_phone
    ]
    return [
        *phones,
        compared("student, onnxruntime to eager PyTorch", [of_whole, eager], limit=2, is_rate=True),
        compared("student to DenseNet161, both in onnxruntime", [of_whole, of_large], limit=12, is_rate=True),
        compared("int8 weights to fp32, in onnxruntime", [of_small, of_whole], limit=0.97, is_rate=True),
        measure.Line("file of int8 weights to fp32's", _mb(of_int8), _mb(of_fp32), of_int8 / of_fp32, limit=1 / 3.5),
        measure.Line("file of int8 weights to 5.3 MB", _mb(of_int8), "5.3 MB", of_int8 / 5.3, limit=1),
    ]


def _mb(size: float) -> str:
    return f"{size:.3g} MB"


def _session(proto: onnx.ModelProto) -> Any:
    return running.cpu_session(proto.SerializeToString(), 1)


def _program(net: torch.nn.Module) -> Any:
    """A net in ExecuTorch, on one thread."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    _unsafe_reset_threadpool(1)
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    return phone.Program(phone.to_executorch(plain, (torch.zeros(1, 3, SIZE_PX, SIZE_PX),)))


def commands() -> list[measure.Line]:
    """The lines on `cxr-predict`."""
    with tempfile.TemporaryDirectory() as work:
        model, films, more, out = (Path(work, name) for name in ("model", "films", "more", "out"))
        exported(model)
        draw(films, FILMS)
        draw(more, MORE_FILMS)
        session = running.Exported.of(model).session(export.STUDENT, 1)
        contents = [path.read_bytes() for path in sorted(films.iterdir())]
        squares = [decoding.to_square(content, decoding.Stated(), SMALL_PX, FILM_PX**2) for content in contents]
        timed = measure.in_turn(partial(predict, films, model, out), partial(answer_all, session, squares), count=5)
        what = f"cxr-predict on {FILMS:,} films to the runtime's own loop"
        rate = measure.compare(what, timed, "films", FILMS, 0.9, is_rate=True)
        first = [measure.seconds(partial(alone, films / "00000.png", model, out)) for _ in range(5)]
        start, spread = median(first), measure.quartiles(first)
        many, few = (alone(some, model, out) / MEGABYTE for some in (more, films))
        what = f"peak memory of {MORE_FILMS:,} films to that of {FILMS:,}"
        return [
            rate,
            measure.Line("first answer, start included, to 1 s", f"{start:.3g} s", "1 s", start, spread, limit=1),
            measure.Line(what, f"{many:.0f} MB", f"{few:.0f} MB", many / few, limit=1.05),
        ]


def run() -> list[measure.Line]:
    """The lines on the device."""
    torch.set_num_threads(1)
    return [*runtimes(), *commands()]
