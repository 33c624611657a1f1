"""The exported model answers as the trained one, and says nothing of the machine that made it."""

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import owners
import pandas as pd
import pytest
import torch

from stages import agree, export, predict_image
from stages.core import files
from stages.device import gates, running, variants
from stages.explainers import layer_cam
from stages.films import decoding
from stages.nets import nets

ROOT = Path(__file__).parent.parent
SIZE = 64
FINDINGS = ["Cardiomegaly", "Effusion", "Nodule"]
MODEL = "data/models/distilled/c/resnet18/resnet18/sigmoid_kd/0"
CELL = {"cohort": "c", "student": "resnet18", "teacher": "resnet18", "loss": "sigmoid_kd", "seed": "0"}
ARGS = [word for name, value in CELL.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module", autouse=True)
def _torch_settings() -> Iterator[None]:
    """What the stage sets in torch is undone."""
    threads, is_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(is_deterministic)


def films(count: int) -> np.ndarray:
    """Random films."""
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE), np.uint8)


def chosen(threshold: float | None) -> dict[str, Any]:
    """What operate writes of a finding, as far as the export and its agreement read it."""
    scale = {"temperature": 2.0, "bias": 0.5} if threshold is not None else {"temperature": None, "bias": None}
    return {"models": {"distilled": {"threshold": threshold, **scale}}}


def project(folder: Path, **changes: Any) -> None:
    """A student, its cohort, labels and films of a data set, and thresholds; Nodule has none."""
    about = {"architecture": "resnet18", "findings": FINDINGS, "size_px": SIZE}
    nets.write(nets.build_model("resnet18", len(FINDINGS), SIZE, seed=4), about, folder / MODEL)
    names = [f"{number}.png" for number in range(20)]
    rows = pd.DataFrame({"dataset": "chestxray14", "image": names, "split": ["train", "val"] * 10})
    files.write_table(rows.assign(shard="one.npy", row=range(20)), folder / "data/cohorts/c/rows.parquet")
    np.save(folder / "data/cohorts/c/one.npy", films(20))
    facts = {name: np.arange(20) // 2 % 2 for name in FINDINGS}
    labels = rows[["image"]].assign(split="test", patient=[f"p{n // 2}" for n in range(20)], **facts)
    files.write_table(labels, folder / "data/labels/chestxray14.parquet")
    index = pd.DataFrame({"image": names, "shard": 0, "row": range(20)})
    files.write_table(index, folder / "data/images/chestxray14/index.parquet")
    np.save(folder / "data/images/chestxray14/shard_0000.npy", films(20))
    boxes = {"image": names[:6], "finding": "Effusion", "x": 0.2, "y": 0.3, "width": 0.5, "height": 0.4}
    files.write_table(pd.DataFrame(boxes), folder / "data/boxes/chestxray14.parquet")
    told = {name: chosen(None if name == "Nodule" else 0.0) for name in FINDINGS}
    files.write_json({"findings": told}, folder / "reports/operating/chestxray14.json")
    limits = {"auroc": 0.05, "interval": 0.1, "flipped": 0.1, "pointing": 0.1}  # of a random net on 20 films
    made = ["int8_weights", "fp16_weights", "int8_static"]
    values = {"threads": 1, "export__compared_films": 8, "export__limits": limits, "export__variants": made}
    values["evaluate__replicates"] = 100
    owners.project(folder, **values | {"datasets__chestxray14__findings": FINDINGS} | changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the stage ran."""
    folder = tmp_path_factory.mktemp("export")
    project(folder)
    with contextlib.chdir(folder):
        export.main(ARGS)
    return folder


def test_exported_logits_equal_the_models(root: Path) -> None:
    net, _ = nets.load_model(root / MODEL)
    session = running.Session((root / "data/export/student.onnx").read_bytes(), 1)
    for film in films(3):
        logits, probabilities = session.answer(film)
        wanted = nets.logits(net, [film[None]], torch.device("cpu"))[0]
        np.testing.assert_allclose(logits, wanted, atol=1e-4)
        stated = 1 / (1 + np.exp(-(wanted / 2 + 0.5)))
        np.testing.assert_allclose(probabilities[0, :2], stated[:2], atol=1e-4)
        assert np.isnan(probabilities[0, 2])


def test_the_map_of_the_folder_is_the_headlines_explainers(root: Path) -> None:
    net, _ = nets.load_model(root / MODEL)
    made = running.Session((root / "data/export/student_map.onnx").read_bytes(), 1).explain(films(1)[0], 1)[2]
    wanted = layer_cam.maps(net, nets.to_input(films(1)), [1], 8)[0, 0]
    np.testing.assert_allclose(made, wanted, atol=1e-4 * np.abs(wanted).max())
    assert json.loads((root / "reports/export/student.json").read_text())["map"] == "layer_cam"


ALLOWED = """
import sys
class Only:
    def find_spec(self, name, path=None, target=None):
        first = name.split(".")[0]
        if first in ("torch", "cv2", "pandas", "onnx", "stages", "scipy", "timm"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Only())
"""


def test_the_folder_alone_runs_by_the_code_of_its_readme(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "far away"
    shutil.copytree(root / "data/export", folder)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(code.strip().splitlines()) <= 16
    words = [sys.executable, "-I", "-c", ALLOWED + code]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "on films like those of chestxray14" in done.stdout
    (folder / "samples/sample_0.png").write_bytes((folder / "samples/sample_1.png").read_bytes())
    assert subprocess.run(words, cwd=folder, capture_output=True, check=False).returncode


def installed(folder: Path, *what: str) -> Path:
    """The programs of a new virtual environment with some packages, at the lock's versions; pip needs a registry."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    words = [folder / "bin/pip", "install", "--quiet", "-c", ROOT / "requirements.lock", *what]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip(f"pip reaches no registry: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder / "bin"


@pytest.mark.slow
def test_the_folder_runs_where_only_onnxruntime_numpy_and_pillow_are(root: Path, tmp_path: Path) -> None:
    folder, programs = tmp_path / "empty", installed(tmp_path / "venv", "onnxruntime", "numpy", "pillow")
    shutil.copytree(root / "data/export", folder)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [programs / "python", "-I", "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "on films like those of chestxray14" in done.stdout


@pytest.mark.slow
def test_the_command_is_installed_apart(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"  # pip builds beside what it installs
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "stages"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    programs = installed(tmp_path / "venv", f"{source}[predict]")
    sample, out = root / "data/export/samples/sample_0.png", tmp_path / "answers"
    words = [programs / "cxr-predict", sample, "--model", root / "data/export", "--out", out, "--explain"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    expected = files.read_json(root / "data/export/samples/expected.json")["sample_0.png"]
    found = [line["findings"][name]["logit"] for name in FINDINGS]
    assert found == pytest.approx(expected["logits"], abs=1e-4)
    assert all((out / name).exists() for name in line["maps"].values())


def test_people_get_what_the_stages_say_of_png_jpeg_and_dicom(root: Path, tmp_path: Path) -> None:
    """Of the same pixels, decoded as `ingest` does; wider than high, of 12 bits in the DICOM."""
    stored = owners.film(3, shape=(150, 210)).astype(np.uint16) * 16
    grey = (stored // 16).astype(np.uint8)
    given = {"a.png": owners.png(grey), "b.jpg": owners.jpeg(grey), "c": owners.dicom(stored)}
    given |= {"d.png": owners.png_of_words(stored)}
    net, _ = nets.load_model(root / MODEL)
    for name, content in given.items():
        (tmp_path / name).write_bytes(content)
    words = [
        *map(str, sorted(tmp_path.iterdir())),
        "--model",
        str(root / "data/export"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert predict_image.main(words) == 0
    lines = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert len(lines) == len(given)
    for line in lines:
        square = decoding.to_square(given[Path(line["file"]).name], decoding.Stated(), SIZE, 10**6)
        wanted = nets.logits(net, [square[None]], torch.device("cpu"))[0]
        for place, name in enumerate(FINDINGS[:2]):
            assert line["findings"][name]["logit"] == pytest.approx(wanted[place], abs=1e-4)
            stated = 1 / (1 + np.exp(-(wanted[place] / 2 + 0.5)))
            assert line["findings"][name]["probability"] == pytest.approx(stated, abs=1e-4)


def test_the_models_own_description_names_every_file_by_its_hash(root: Path) -> None:
    folder = root / "data/export"
    told = json.loads((folder / "model.json").read_text())
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there - set(told["files"]) == {"model.json", "README.md"}
    for name, about in told["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == about["sha256"]
    assert [one["name"] for one in told["findings"]] == FINDINGS
    assert told["populations"] == [
        {"name": "chestxray14", "threshold": [0, 0, None], "temperature": [2, 2, None], "bias": [0.5, 0.5, None]}
    ]
    assert "not for diagnosis" in told["use"]


@pytest.mark.parametrize("name", ["student.onnx", "student_map.onnx", "student_int8_weights.onnx"])
def test_file_names_no_path_and_no_build(root: Path, name: str) -> None:
    content = (root / "data/export" / name).read_bytes()
    assert not any(word in content for word in (b"site-packages", b"stack_trace", b"graph_signature", bytes(root)))
    assert torch.__version__.encode() not in content


def test_real_films_are_not_copied_into_the_folder(tmp_path: Path) -> None:
    project(tmp_path, phantoms={}, export__variants=[], explain__explainers=["eigen_cam"])
    with contextlib.chdir(tmp_path):
        export.main(ARGS)
    told = json.loads((tmp_path / "data/export/model.json").read_text())
    assert told["samples"] == export.PATTERNS
    shown = cv2.imread(str(tmp_path / "data/export/samples/sample_0.png"), cv2.IMREAD_GRAYSCALE)
    assert not any(np.array_equal(shown, film) for film in films(20))
    assert told["map"] is None
    assert "maps of eigen_cam are in no graph" in told["no_map"]
    assert not (tmp_path / "data/export/student_map.onnx").exists()


def test_stage_stops_when_the_export_answers_otherwise(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = nets.logits
    before = (root / "reports/export/student.json").read_bytes()
    monkeypatch.chdir(root)
    monkeypatch.setattr(nets, "logits", lambda *given: real(*given) + 2e-4)
    with pytest.raises(export.ExportError, match=r"export\.tolerance"):
        export.main(ARGS)
    assert (root / "reports/export/student.json").read_bytes() == before


def test_difference_that_is_not_a_number_is_no_agreement() -> None:
    with pytest.raises(export.ExportError):
        export.require_same(np.array([np.nan]), np.zeros(1), 1e-4, "it")


def test_variants_are_compared_on_test_films(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    agree.main(["--dataset", "chestxray14"])
    found = json.loads((root / "reports/agreement/chestxray14.json").read_text())
    assert set(found) == {"int8_weights", "fp16_weights", "int8_static"}
    assert found["int8_weights"]["pointing"]["pairs"] == 6
    assert abs(found["fp16_weights"]["pointing"]["value"]) < 0.05
    assert found["int8_static"]["pointing"] is None
    assert found["fp16_weights"]["films"] == 20
    assert set(found["fp16_weights"]["flipped"]) == {"Cardiomegaly", "Effusion"}


def test_a_variant_that_answers_otherwise_stops_the_stage(root: Path, tmp_path: Path) -> None:
    """Its ranges come from films unlike those that are tested, as once from one of high contrast."""
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "data/export"
    bad = variants.int8_static(onnx.load(folder / "student.onnx"), films(4) // 2 + 60)
    export.write(bad, folder / "student_int8_static.onnx")
    with contextlib.chdir(tmp_path):
        with pytest.raises(running.FolderError, match=r"is not the file that model\.json lists"):
            agree.main(["--dataset", "chestxray14"])
        about = files.read_json(folder / running.MODEL)
        files.write_json(about | {"files": export.hashes(folder)}, folder / running.MODEL)
        with pytest.raises(gates.GateError, match="int8_static answers otherwise"):
            agree.main(["--dataset", "chestxray14"])


def test_films_are_of_the_split_and_do_not_move_when_others_join() -> None:
    rows = pd.DataFrame({"dataset": "d", "image": [str(i) for i in range(40)], "split": ["train", "val"] * 20})
    chosen = export.choose_films(rows, "train", 5, ("test",))
    assert set(chosen["split"]) == {"train"}
    shuffled = export.choose_films(rows.sample(frac=1, random_state=1), "train", 5, ("test",))
    assert list(shuffled["image"]) == list(chosen["image"])
    assert list(export.choose_films(rows, "train", 5, ("control",))["image"]) != list(chosen["image"])


def test_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="val_fraction"):
        export.choose_films(pd.DataFrame({"dataset": ["d"], "image": ["a"], "split": ["train"]}), "val", 1, ("test",))
