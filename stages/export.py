"""The headline student as one folder that other runtimes run: a film as it is stored goes in, what is shown comes out.

Reads the student, its cohort's films and what operate chose on validation films. Writes data/export/ (student.onnx, of
a film logits and calibrated probabilities; student_map.onnx, of a film and a finding its class map, where the explainer
can be put into a graph; a file for each of `export.variants`; model.json, README.md, sample films with what they give)
and reports/export/student.json. Stops when student.onnx differs from PyTorch by more than `export.tolerance` on
validation films. How far variants answer otherwise on test films, `agree` tells.
"""

import hashlib
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

STUDENT, MAPS, MODEL = "student.onnx", "student_map.onnx", "model.json"
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


def sha256(path: Path) -> str:
    """Of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


def main(argv: list[str] | None = None) -> None:
    """Export the headline student."""
    args = arguments.parser(__doc__, "cohort", "student", "teacher", "loss", "seed").parse_args(argv)
    settings, explainers, max_stride, drawn, seed, threads = params.load(
        "export", "explain.explainers", "explain.max_stride", "phantoms", "seed", "threads"
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
    trained_on = sorted(set(rows["dataset"]))
    chosen = populations({name: files.read_json(operating / f"{name}.json") for name in trained_on}, about["findings"])
    validation = choose_films(rows, "val", settings.compared_films, ("export", seed, "val"))
    films = Images.of_rows(cohort, validation).take(range(len(validation)))
    is_drawn = validation["dataset"].isin(list(drawn)).to_numpy()
    shown = films[is_drawn][:SAMPLES] if is_drawn.any() else patterns(about["size_px"], seeds.of("export", seed))
    reference = nets.logits(net, [films], torch.device("cpu"))
    net, outputs, explainer = net.to("cpu"), about["findings"], explainers[0]
    answer = graphs.Answer(net, about["size_px"], *(as_numbers(chosen, key) for key in ("temperature", "bias")))
    with files.output("data/export") as folder, files.output("reports/export/student.json") as report_path:
        folder.mkdir()
        proto = graphs.to_onnx(answer, settings.opset, [graphs.LOGITS, graphs.PROBABILITIES])
        write(proto, folder / STUDENT)
        session = running.Session(folder / STUDENT, threads)
        logits = np.stack([session.answer(film)[0] for film in films])
        report: dict[str, Any] = {"logits": require_same(logits, reference, settings.tolerance, STUDENT)}
        report |= {"map": explainer, "no_map": None}
        try:
            explaining = graphs.Explanation(net, about["size_px"], len(outputs), max_stride, explainer)
            write(graphs.to_onnx(explaining, settings.opset, [graphs.MAP]), folder / MAPS)
        except graphs.GraphError as error:
            report |= {"map": None, "no_map": str(error)}
        for name in settings.variants:
            write(variants.VARIANTS[name](proto), folder / f"student_{name}.onnx")
        write_samples(folder / "samples", session, shown)
        described = {
            "format": 1,
            "use": "research only; not for diagnosis, not a medical device",
            "architecture": about["architecture"],
            "findings": [{"name": name, "title": titles[name]} for name in outputs],
            "populations": chosen,
            "input": {
                graphs.FILM: "uint8 (height, width), grey, bones bright, of any size: the graph takes the middle square"
            },
            "output": {
                graphs.LOGITS: "float32 (finding,)",
                graphs.PROBABILITIES: "float32 (population, finding), calibrated; NaN where validation fixed none",
            },
            "map": report["map"] and {"explainer": explainer, "file": MAPS, "input": [graphs.FILM, graphs.FINDING]},
            "no_map": report["no_map"],
            "samples": "drawn films" if is_drawn.any() else PATTERNS,
            "files": {
                path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
        }
        files.write_json(described, folder / MODEL)
        text = rendering.render(readme, {"model": described, "size_px": about["size_px"]}, is_html=False)
        (folder / "README.md").write_text(text, encoding="utf-8")
        report |= {
            "opset": settings.opset,
            "tolerance": settings.tolerance,
            "size_px": about["size_px"],
            "compared_films": len(films),
            "logit_spread": round(float(reference.std(axis=0).mean()), 6),
            "files": described["files"],
        }
        files.write_json(report, report_path)


if __name__ == "__main__":
    main()
