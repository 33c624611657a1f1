"""The headline student as one folder that other runtimes run: a film as it is stored goes in, what is shown comes out.

Reads the student, its cohort's films and what operate chose on validation films. Writes data/export/ (student.onnx, of
a film logits and calibrated probabilities; student_map.onnx, of a film and a finding these and its class map, where the
explainer can be put into a graph; files for each of `export.variants`; model.json, README.md, sample films with what
they give) and reports/export/student.json. Stops when student.onnx differs from PyTorch by more than `export.tolerance`
on validation films. How far variants answer otherwise on test films, `agree` tells.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pandas as pd
import torch

from stages.core import arguments, files, findings, params, plugins, seeds
from stages.device import graphs, running, variants
from stages.nets import nets
from stages.pages import rendering
from stages.sources.images import Images

STUDENT, MAPS = "student.onnx", "student_map.onnx"
PARTS = ("train", "val")  # films that set ranges, and that are compared
SAMPLES = 3
PATTERNS = "patterns, because the films' owners allow no copy"


class ExportError(RuntimeError):
    """The exported model does not answer as the trained one."""


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


def patterns(size_px: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random pictures, (SAMPLES, size_px, size_px), in the place of films that may not be copied."""
    noise = rng.integers(0, 256, (SAMPLES, size_px, size_px), dtype=np.uint8)
    return np.stack([cv2.GaussianBlur(one, (0, 0), size_px / 16) for one in noise])


def populations(operating: dict[str, Any], outputs: list[str]) -> list[dict[str, Any]]:
    """What validation films of each data set chose, a value an output: threshold (a logit), temperature, bias."""
    listed = []
    for dataset, found in operating.items():
        chosen = [found["findings"].get(name, {}).get("models", {}).get("distilled", {}) for name in outputs]
        values = {key: [one.get(key) for one in chosen] for key in ("threshold", "temperature", "bias")}
        listed.append({"name": dataset, **values})
    return listed


def as_numbers(listed: list[dict[str, Any]], key: str) -> np.ndarray:
    """(population, finding), NaN for None."""
    return np.array([[np.nan if value is None else value for value in one[key]] for one in listed], float)


def require_same(found: np.ndarray, reference: np.ndarray, tolerance: float, what: str) -> float:
    """The largest difference of two arrays.

    Raises:
        ExportError: it is above the tolerance, or no number.
    """
    largest = float(np.abs(found - reference).max())
    if not largest <= tolerance:
        raise ExportError(
            f"{what} must agree with PyTorch within {tolerance:g}, got {largest:g} (export.tolerance): try another "
            "export.opset, or look for an operator that onnxruntime computes otherwise"
        )
    return largest


def write(proto: onnx.ModelProto, path: Path) -> None:
    """Write a model; the same model gives the same bytes."""
    path.write_bytes(proto.SerializeToString(deterministic=True))


def write_samples(folder: Path, session: running.Session, films: np.ndarray) -> None:
    """Write films as PNG, and what the model says of each as JSON."""
    folder.mkdir()
    expected = {}
    for number, film in enumerate(films):
        name = f"sample_{number}.png"
        cv2.imwrite(str(folder / name), film)
        logits, probabilities = session.answer(film)
        known = [[None if np.isnan(value) else round(float(value), 6) for value in row] for row in probabilities]
        expected[name] = {"logits": np.round(logits.astype(float), 6).tolist(), "probabilities": known}
    files.write_json(expected, folder / "expected.json")


def write_models(
    folder: Path, answer: graphs.Answer, explaining: graphs.Explanation | None, settings: Any, films: variants.Films
) -> None:
    """Write the whole model, with maps too where there is a graph for them, and each variant of both.

    Args:
        folder: where.
        answer: the model.
        explaining: with maps.
        settings: `export` of params.yaml.
        films: that set the ranges of a variant that computes in whole numbers.
    """
    proto = graphs.to_onnx(answer, settings.opset)
    with_map = explaining and graphs.to_onnx(explaining, settings.opset)
    write(proto, folder / STUDENT)
    if with_map:
        write(with_map, folder / MAPS)
    for name in settings.variants:
        write(variants.VARIANTS[name](proto, films), folder / f"student_{name}.onnx")
        if with_map and name in variants.FLOAT:
            write(variants.VARIANTS[name](with_map, films), folder / f"student_map_{name}.onnx")


def in_and_out() -> dict[str, Any]:
    """The graphs' inputs and outputs, in words."""
    return {
        "input": {
            graphs.FILM: "uint8 (height, width), grey, bones bright, any size: the graph takes the middle square",
            graphs.FINDING: "int64 (), of student_map files: a place in findings",
        },
        "output": {
            graphs.LOGITS: "float32 (finding,)",
            graphs.PROBABILITIES: "float32 (population, finding), calibrated; NaN where validation fixed none",
            graphs.MAP: "float32 (row, column), of student_map files: the class map of the finding at that place",
        },
    }


def hashes(folder: Path) -> dict[str, Any]:
    """Of each file in a folder its SHA-256 and bytes."""
    return {
        path.relative_to(folder).as_posix(): {"sha256": files.sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def main(argv: list[str] | None = None) -> None:
    """Export the headline student."""
    args = arguments.parser(__doc__, "cohort", "student", "teacher", "loss", "seed").parse_args(argv)
    settings, explainers, max_stride, ingest, drawn, seed, threads = params.load(
        "export", "explain.explainers", "explain.max_stride", "ingest", "phantoms", "seed", "threads"
    )
    nets.fix(threads)
    plugins.load("models", args.student)
    net, about = nets.load_model(
        files.input(f"data/models/distilled/{args.cohort}/{args.student}/{args.teacher}/{args.loss}/{args.seed}")
    )
    cohort, operating = files.input(f"data/cohorts/{args.cohort}"), files.input("reports/operating")
    titles = findings.vocabulary(files.input("stages/findings.csv")).titles
    readme = files.input("stages/pages/export.md.j2").read_text(encoding="utf-8")
    rows = files.read_table(cohort / "rows.parquet", ["dataset", "image", "split", "shard", "row"])
    size_px, outputs, explainer = about["size_px"], about["findings"], explainers[0]
    chosen = populations(
        {name: files.read_json(operating / f"{name}.json") for name in sorted(set(rows["dataset"]))}, outputs
    )
    picked = {part: choose_films(rows, part, settings.compared_films, ("export", seed, part)) for part in PARTS}
    ranging, films = (Images.of_rows(cohort, of_part).take(range(len(of_part))) for of_part in picked.values())
    is_drawn = picked["val"]["dataset"].isin(list(drawn)).to_numpy()
    shown = films[is_drawn][:SAMPLES] if is_drawn.any() else patterns(size_px, seeds.of("export", seed))
    net = net.to("cpu")
    reference = nets.logits(net, [films], torch.device("cpu"))
    calibration = graphs.Calibration(*(as_numbers(chosen, key) for key in ("temperature", "bias")))
    report: dict[str, Any] = {"map": explainer, "no_map": None}
    try:
        explaining = graphs.Explanation(net, size_px, calibration, max_stride, explainer)
    except graphs.GraphError as error:
        explaining, report = None, {"map": None, "no_map": str(error)}
    with files.output("data/export") as folder, files.output("reports/export/student.json") as report_path:
        folder.mkdir()
        write_models(folder, graphs.Answer(net, size_px, calibration), explaining, settings, ranging)
        session = running.Session((folder / STUDENT).read_bytes(), threads)
        logits = np.stack([session.answer(film)[0] for film in films])
        report["logits"] = require_same(logits, reference, settings.tolerance, STUDENT)
        write_samples(folder / "samples", session, shown)
        maps = {"explainer": explainer, "files": sorted(path.name for path in folder.glob("student_map*"))}
        described = {
            "format": running.FORMAT,
            "use": "research only; not for diagnosis, not a medical device",
            "architecture": about["architecture"],
            "size_px": size_px,
            "ingest": {"max_pixels": ingest.max_pixels, "min_range": ingest.min_range},
            "findings": [{"name": name, "title": titles[name]} for name in outputs],
            "populations": chosen,
            **in_and_out(),
            "map": maps if explaining else None,
            "no_map": report["no_map"],
            "samples": "drawn films" if is_drawn.any() else PATTERNS,
            "files": hashes(folder),
        }
        files.write_json(described, folder / running.MODEL)
        text = rendering.render(readme, {"model": described, "size_px": size_px}, is_html=False)
        (folder / "README.md").write_text(text, encoding="utf-8")
        report |= {
            "opset": settings.opset,
            "tolerance": settings.tolerance,
            "size_px": size_px,
            "compared_films": len(films),
            "logit_spread": round(float(reference.std(axis=0).mean()), 6),
            "files": described["files"],
        }
        files.write_json(report, report_path)


if __name__ == "__main__":
    main()
