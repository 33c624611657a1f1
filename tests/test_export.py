"""The exported model answers as the trained one, and says nothing of the machine that made it."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import owners
import pandas as pd
import pytest
import torch
from torch import nn

from stages import export
from stages.core import files
from stages.nets import nets

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


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student and its cohort, where the stage ran."""
    folder = tmp_path_factory.mktemp("export")
    about = {"architecture": "resnet18", "findings": FINDINGS, "size_px": SIZE}
    nets.write(nets.build_model("resnet18", len(FINDINGS), SIZE, seed=4), about, folder / MODEL)
    names = [f"{number}.png" for number in range(20)]
    rows = pd.DataFrame({"dataset": "chestxray14", "image": names, "split": ["train", "val"] * 10})
    files.write_table(rows.assign(shard="one.npy", row=range(20)), folder / "data/cohorts/c/rows.parquet")
    np.save(folder / "data/cohorts/c/one.npy", films(20))
    owners.project(folder, threads=1, export__calibration_images=8)
    with contextlib.chdir(folder):
        export.main(ARGS)
    return folder


def test_exported_logits_equal_the_models_for_any_batch(root: Path) -> None:
    model, _ = nets.load_model(root / MODEL)
    for count in (1, 3, 40):
        wanted = nets.logits(model, [films(count)], torch.device("cpu"))
        found = export.run_onnx(root / "data/export/student.onnx", films(count), 1)
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_description_alone_is_enough_to_feed_the_model(root: Path) -> None:
    told = json.loads((root / "data/export/preprocessing.json").read_text())
    film = films(1)[0]
    mean, std = (np.array(told["input"][name], np.float32)[:, None, None] for name in ("mean", "std"))
    image = (np.repeat(film[None].astype(np.float32) / 255, 3, axis=0) - mean) / std
    session = export.onnxruntime.InferenceSession((root / "data/export/student.onnx").read_bytes())
    (found,) = session.run([told["output"]["name"]], {told["input"]["name"]: image[None]})
    model, _ = nets.load_model(root / MODEL)
    np.testing.assert_allclose(found, nets.logits(model, [film[None]], torch.device("cpu")), atol=1e-4)
    assert told["output"]["findings"] == FINDINGS


@pytest.mark.parametrize("name", ["student.onnx", "student_int8.onnx"])
def test_file_names_no_path_and_no_build(root: Path, name: str) -> None:
    content = (root / "data/export" / name).read_bytes()
    assert not any(word in content for word in (b"site-packages", b"stack_trace", b"graph_signature", bytes(root)))
    assert torch.__version__.encode() not in content


def test_second_export_has_the_same_bytes_and_other_weights_have_not() -> None:
    linear = nn.Linear(3, 2)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear).eval()
    wanted, again = (export.to_onnx(net, SIZE, 20).SerializeToString(deterministic=True) for _ in range(2))
    assert again == wanted
    with torch.no_grad():
        linear.bias.add_(1)
    assert export.to_onnx(net, SIZE, 20).SerializeToString(deterministic=True) != wanted


def test_int8_is_smaller_and_its_agreement_is_reported(root: Path) -> None:
    report = json.loads((root / "reports/export/export.json").read_text())
    assert report["int8"]["bytes"] < 0.3 * report["fp32"]["bytes"]
    assert report["fp32"]["max_abs_difference"] <= report["tolerance"]
    assert report["int8"]["mean_abs_difference"] < report["logit_spread"]
    assert (report["compared_films"], report["calibration_films"]) == (8, 8)


def test_stage_stops_when_the_export_answers_otherwise(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model: nn.Module, batches: Any, _device: torch.device) -> np.ndarray:
        with torch.inference_mode():
            return np.concatenate([model(nets.to_input(batch)).numpy() for batch in batches]) + 2e-4

    before = (root / "reports/export/export.json").read_bytes()
    monkeypatch.chdir(root)
    monkeypatch.setattr(nets, "logits", shifted)
    made = onnx.load(root / "data/export/student.onnx")
    monkeypatch.setattr(export, "to_onnx", lambda *_: made)
    with pytest.raises(export.ExportError, match=r"export\.tolerance"):
        export.main(ARGS)
    assert (root / "reports/export/export.json").read_bytes() == before


def test_difference_that_is_not_a_number_is_no_agreement() -> None:
    with pytest.raises(export.ExportError):
        export.require_same({"max_abs_difference": float("nan")}, 1e-4)


def test_agreement_is_exact_for_equal_logits_and_ranks_survive_scaling() -> None:
    logits = np.random.default_rng(0).normal(size=(9, 2))
    same = {"max_abs_difference": 0.0, "mean_abs_difference": 0.0, "rank_correlation": 1.0}
    assert export.agreement(logits, logits) == same
    assert export.agreement(2 * logits, logits)["rank_correlation"] == 1
    assert export.agreement(-logits, logits)["rank_correlation"] == -1


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
