"""The exported student for ExecuTorch, PyTorch's runtime on Android and iOS: `make phone`, after `make repro`.

Reads data/export and the trained student that it was made from. Writes data/phone: student.pte and, where the exported
folder has maps, student_map.pte, with model.json, the sample films and a README. No stage makes it, as a run is
complete without it and ExecuTorch is a large package. A file that answers otherwise than data/export does is not
written.

Of the graphs of data/export one part is left out, the resizing of a film to the net's square: ExecuTorch plans memory
ahead, for the largest film that would be allowed. README says how to do it. LiteRT would take the same graphs; its
converter wants an environment of its own, and ExecuTorch's lives within this project's pins.
"""

import logging
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from stages import export
from stages.core import arguments, files, params, plugins, seeds
from stages.device import graphs, running
from stages.judging import cells
from stages.nets import nets

MEGABYTE = 1e6
INTO, EXPORTED = Path("data/phone"), Path("data/export")
ANSWER, MAPS = "student.pte", "student_map.pte"
README = """# A chest X-ray classifier for phones: {architecture}

**Research only. Not for diagnosis, not a medical device.** `model.json` names the findings, in the order of the outputs, with the thresholds (of logits) that were chosen on validation films of each population. The files are for [ExecuTorch](https://executorch.ai) {version} with its XNNPACK backend, which its packages for Android and iOS have.

| file | takes | gives |
|---|---|---|
{rows}

The square: the middle square of a grey film, bones bright, as 8 bits, resized to {size_px} x {size_px} by area (OpenCV's `INTER_AREA`, of a film that is no smaller) and rounded. In Python, with `pip install executorch`:

```python
import json, numpy as np, torch
from executorch.runtime import Runtime
from PIL import Image

student = Runtime.get().load_program("student.pte").load_method("forward")
for name, expected in sorted(json.load(open("samples/expected.json")).items()):
    square = torch.from_numpy(np.array(Image.open(f"samples/{{name}}").convert("L")))
    logits, probabilities = student.execute([square])
    assert np.allclose(logits, expected["logits"], atol=1e-4), name
```
"""  # noqa: E501 - a line a paragraph, as Markdown has it


class PhoneError(RuntimeError):
    """There is no file for phones to be had; the message says what to do."""


class Square(graphs.Preprocessing):
    """`Preprocessing` of a film that is the square already."""

    def square(self, film: Tensor) -> Tensor:
        """The film."""
        return film


def to_executorch(module: nn.Module, example: tuple[Tensor, ...]) -> bytes:
    """A module as a program whose products run in XNNPACK; the same module gives the same bytes."""
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torchao registers an enum the old way
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(module.eval(), example)
    content: bytes = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
    return content


class Program:
    """A program in ExecuTorch, which reads weights from the given bytes for as long as it runs."""

    def __init__(self, content: bytes) -> None:
        """Load what a .pte file holds."""
        from executorch.runtime import Runtime

        self._content = content  # freed, the runtime would read what lies there then
        self._method = Runtime.get().load_program(content).load_method("forward")

    def execute(self, given: Sequence[Tensor]) -> Sequence[Tensor]:
        """Its outputs."""
        made: Sequence[Tensor] = self._method.execute(given)
        return made


def programs(
    net: nn.Module, size_px: int, calibration: graphs.Calibration, mapping: tuple[int, str] | None
) -> dict[str, bytes]:
    """File -> content.

    Args:
        net: the trained student.
        size_px: of its square.
        calibration: of its logits.
        mapping: stride and explainer of class maps; None for no file with maps.
    """
    net = net.to("cpu").to(memory_format=torch.contiguous_format)  # else XNNPACK's passes refuse the weights
    square = torch.zeros((size_px, size_px), dtype=torch.uint8)
    answer: Any = graphs.Answer(net, size_px, calibration)
    made: dict[str, tuple[Any, tuple[Tensor, ...]]] = {ANSWER: (answer, (square,))}
    if mapping:
        made[MAPS] = (graphs.Explanation(net, size_px, calibration, *mapping), (square, torch.tensor(0)))
    contents = {}
    for name, (module, example) in made.items():
        module.preprocessing = Square(size_px)
        contents[name] = to_executorch(module, example)
    return contents


def require_same(content: bytes, session: running.Session, films: Sequence[Any], tolerance: float, name: str) -> None:
    """Hold a program's answers against onnxruntime's, logits and probabilities to the tolerance, maps to it by peak.

    Raises:
        PhoneError: it answers otherwise.
    """
    ours = Program(content)
    for number, film in enumerate(films):
        place, square = number % session.findings, torch.from_numpy(film)
        given = [square] if name == ANSWER else [square, torch.tensor(place)]
        expected = session.answer(film) if name == ANSWER else session.explain(film, place)
        for found, wanted in zip(ours.execute(given), expected, strict=True):
            scale = max(1.0, float(np.abs(np.nan_to_num(wanted)).max())) if wanted is expected[-1] else 1.0
            if not np.allclose(found.numpy(), wanted, rtol=0, atol=tolerance * scale, equal_nan=True):
                raise PhoneError(
                    f"{name} answers otherwise than {EXPORTED}, by more than {tolerance:g} (export.tolerance): if "
                    "models have changed since, `make repro` first; else this version of ExecuTorch computes otherwise"
                )


def write(contents: dict[str, bytes], about: dict[str, Any], exported: Path, version: str, into: Path) -> None:
    """The folder, with what is described of it.

    Args:
        contents: file -> content.
        about: model.json of the exported folder.
        exported: that folder.
        version: of ExecuTorch.
        into: the folder.
    """
    of_all = "`logits` (finding,), `probabilities` (population, finding; NaN where validation fixed none)"
    takes = {ANSWER: "the square, uint8 (row, column)", MAPS: "the square, and a finding's place, int64 ()"}
    gives = {ANSWER: of_all, MAPS: f"{of_all}, the finding's class map (row, column)"}
    rows = [
        f"| `{name}`, {len(content) / MEGABYTE:.1f} MB | {takes[name]} | {gives[name]} |"
        for name, content in contents.items()
    ]
    with files.whole(into) as folder:
        folder.mkdir()
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        shutil.copytree(exported / "samples", folder / "samples", copy_function=shutil.copyfile)
        kept = {key: value for key, value in about.items() if key not in ("input", "output", "map", "no_map")}
        explainer = about["map"] and about["map"]["explainer"]
        described = kept | {"executorch": version, "map": explainer, "files": export.hashes(folder)}
        files.write_json(described, folder / running.MODEL)
        text = README.format(**about, version=version, rows="\n".join(rows))
        (folder / "README.md").write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Convert, compare, write."""
    arguments.parser(__doc__).parse_args(argv)
    headline, explain, settings, seed, threads = params.load("headline", "explain", "export", "seed", "threads")
    if find_spec("executorch") is None:
        sys.exit("ExecuTorch is not installed: make extra")
    nets.fix(threads)
    try:
        exported = running.Exported.of(EXPORTED)
        about = exported.about
        plugins.load("models", headline.student)
        weights = Path("data/models") / cells.headline_model(headline, headline.cohort).id
        net, _ = nets.load_model(weights)
        calibration = graphs.Calibration(
            *(export.as_numbers(about["populations"], key) for key in ("temperature", "bias"))
        )
        mapping = (explain.max_stride, about["map"]["explainer"]) if about["map"] else None
        print(f"converting {weights}: this takes some minutes", file=sys.stderr)
        contents = programs(net, about["size_px"], calibration, mapping)
        samples = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted((EXPORTED / "samples").glob("*.png"))]
        films = [*samples, *export.patterns(about["size_px"], seeds.of("phone", seed))]
        for name, content in contents.items():
            session = exported.session(f"{Path(name).stem}.onnx", threads)
            require_same(content, session, films, settings.tolerance, name)
        write(contents, about, EXPORTED, metadata.version("executorch"), INTO)
    except (PhoneError, running.FolderError, OSError) as error:
        sys.exit(str(error))
    print(INTO)


if __name__ == "__main__":
    main()
