"""Export the headline student as ONNX, fp32 and int8, with the preprocessing that it needs described beside it.

Reads the student and its cohort's films; writes `data/export/` (student.onnx, student_int8.onnx, preprocessing.json)
and `reports/export/export.json`. Stops when a logit of student.onnx differs from PyTorch's by more than
`export.tolerance` on validation films. The int8 model has no tolerance: its agreement is measured and reported.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from stages.core import arguments, files, params, plugins, seeds
from stages.nets import nets
from stages.sources.images import Images

INPUT, OUTPUT = "image", "logits"
BATCH = 32  # films in memory at once; no number depends on it


class ExportError(RuntimeError):
    """The exported model does not answer as the trained one."""


class Films(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Calibration films, one at a time, as onnxruntime asks for them."""

    def __init__(self, films: np.ndarray) -> None:
        self._films = iter(films)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next film as model input; `None` after the last."""
        film = next(self._films, None)
        return None if film is None else {INPUT: as_input(film[None])}


def as_input(films: np.ndarray) -> np.ndarray:
    """uint8 films as the exported model takes them, float32 (batch, 3, size_px, size_px)."""
    return np.ascontiguousarray(nets.to_input(films).numpy())


def choose_films(rows: pd.DataFrame, split: str, count: int, names: tuple[str | int, ...]) -> pd.DataFrame:
    """Films of one split, drawn by seed; all of them where there are fewer than `count`.

    Raises:
        ValueError: the split is empty.
    """
    part = rows[rows["split"] == split]
    if part.empty:
        raise ValueError(f"export needs {split} films, got none: change val_fraction in params.yaml or add data")
    keys = zip(part["dataset"], part["image"], strict=True)
    drawn = part.assign(draw=[seeds.unit(*names, dataset, image) for dataset, image in keys])
    return drawn.sort_values("draw").head(count)


def to_onnx(model: nn.Module, size_px: int, opset: int) -> onnx.ModelProto:
    """A model as ONNX with a free batch axis, without the notes of where and how it was traced.

    Args:
        model: in eval mode.
        size_px: side of the input.
        opset: version of the operator set.
    """
    example = nets.to_input(np.zeros((2, size_px, size_px), np.uint8))
    free = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        opset_version=opset,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=free,
        verbose=False,
    )
    if program is None:
        raise ExportError("torch.onnx.export gave no program")
    proto = program.model_proto
    strip_notes(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def strip_notes(proto: onnx.ModelProto) -> None:
    """Remove what names the machine: stack traces with paths, signatures, the producer's build."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    proto.producer_version = ""


def to_int8(source: Path, target: Path, films: np.ndarray) -> None:
    """Quantise an ONNX file statically: int8 weights a channel, uint8 activations, ranges from calibration films."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            Films(films),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )
    proto = onnx.load(target)
    strip_notes(proto)
    target.write_bytes(proto.SerializeToString(deterministic=True))


def run_onnx(path: Path, films: np.ndarray, threads: int) -> np.ndarray:
    """Logits of an ONNX file for uint8 films, on the CPU: (films, findings)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run([OUTPUT], {INPUT: as_input(batch)})[0] for batch in batches(films)])


def batches(films: np.ndarray) -> Iterator[np.ndarray]:
    """Films in groups of BATCH."""
    for start in range(0, len(films), BATCH):
        yield films[start : start + BATCH]


def agreement(logits: np.ndarray, reference: np.ndarray) -> dict[str, float | None]:
    """How far logits (films, findings) are from the reference, and how alike both rank the films.

    The rank correlation is Spearman's, the mean over findings; `None` where the films cannot be ranked.
    """
    difference = np.abs(logits.astype(float) - reference.astype(float))
    ranks = [
        pd.Series(logits[:, column]).corr(pd.Series(reference[:, column]), method="spearman")
        for column in range(logits.shape[1])
    ]
    return {
        "max_abs_difference": float(f"{difference.max():.3g}"),
        "mean_abs_difference": float(f"{difference.mean():.3g}"),
        "rank_correlation": None if np.isnan(ranks).any() else round(float(np.mean(ranks)), 6),
    }


def require_same(found: dict[str, float | None], tolerance: float) -> None:
    """Check that an export answers as the model does.

    Raises:
        ExportError: it does not.
    """
    largest = found["max_abs_difference"]
    if largest is None or not largest <= tolerance:
        raise ExportError(
            f"student.onnx must agree with PyTorch within {tolerance:g} a logit, got {largest} (export.tolerance): "
            "try another export.opset, or look for an operator that onnxruntime computes otherwise"
        )


def preprocessing(about: dict[str, Any]) -> dict[str, Any]:
    """What an app must do with a film before, and what the logits mean after."""
    return {
        "input": {
            "name": INPUT,
            "shape": ["batch", 3, about["size_px"], about["size_px"]],
            "type": "float32",
            "steps": [
                "decode to grey with bones bright (invert a DICOM that is MONOCHROME1), 0 to 255 for all bits stored",
                "cut the ends of the longer side, so that a centred square is left",
                f"resize by area (OpenCV INTER_AREA) to {about['size_px']} x {about['size_px']}, round to 8 bits",
                "divide by 255",
                "repeat the grey channel 3 times (order: channel, row, column)",
                "subtract mean and divide by std, channel by channel",
            ],
            "mean": list(nets.MEAN),
            "std": list(nets.STD),
        },
        "output": {
            "name": OUTPUT,
            "shape": ["batch", len(about["findings"])],
            "type": "float32",
            "meaning": "one logit a finding, in this order; sigmoid gives a score in [0, 1] that is not calibrated",
            "findings": about["findings"],
        },
        "architecture": about["architecture"],
        "use": "research only; not a medical device",
    }


def main(argv: list[str] | None = None) -> None:
    """Export the headline student."""
    args = arguments.parser(__doc__, "cohort", "student", "teacher", "loss", "seed").parse_args(argv)
    settings, seed, threads = params.load("export", "seed", "threads")
    nets.fix(threads)
    plugins.load("models", args.student)
    model, about = nets.load_model(
        files.input(f"data/models/distilled/{args.cohort}/{args.student}/{args.teacher}/{args.loss}/{args.seed}")
    )
    cohort = files.input(f"data/cohorts/{args.cohort}")
    rows = files.read_table(cohort / "rows.parquet", ["dataset", "image", "split", "shard", "row"])
    films = {}
    for split in ("train", "val"):
        chosen = choose_films(rows, split, settings.calibration_images, ("export", seed, split))
        films[split] = Images.of_rows(cohort, chosen).take(range(len(chosen)))
    reference = nets.logits(model, batches(films["val"]), torch.device("cpu"))
    with files.output("data/export") as folder, files.output("reports/export/export.json") as report_path:
        fp32, int8 = folder / "student.onnx", folder / "student_int8.onnx"
        folder.mkdir()
        fp32.write_bytes(to_onnx(model, about["size_px"], settings.opset).SerializeToString(deterministic=True))
        exact = agreement(run_onnx(fp32, films["val"], threads), reference)
        require_same(exact, settings.tolerance)
        to_int8(fp32, int8, films["train"])
        rounded = agreement(run_onnx(int8, films["val"], threads), reference)
        files.write_json(preprocessing(about), folder / "preprocessing.json")
        report = {
            "opset": settings.opset,
            "tolerance": settings.tolerance,
            "size_px": about["size_px"],
            "compared_films": len(films["val"]),
            "calibration_films": len(films["train"]),
            "logit_spread": round(float(reference.std(axis=0).mean()), 6),
            "fp32": exact | {"bytes": fp32.stat().st_size},
            "int8": rounded | {"bytes": int8.stat().st_size},
        }
        files.write_json(report, report_path)


if __name__ == "__main__":
    main()
